//! The event catalogue: what is worth telling, with stable numbers and names.
//!
//! Owns ids, severities, causes and responses, and the JSON form of a recorded event. A number or
//! name is never given to another event; new ones are added at the end of their block of a hundred.

use crate::state::words;
use blkrep_types::{GroupName, LinkName, VolumeName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Write as _};

words! {
    /// How much an event matters.
    Severity, "severity" {
        /// Something went as it should.
        Info = "info",
        /// Protection is reduced, or someone should look.
        Warning = "warning",
        /// Something failed, or data is not protected.
        Error = "error",
    }
}

macro_rules! catalogue {
    ($( $number:literal $variant:ident = $name:literal, $severity:ident, $cause:literal, $response:literal; )+) => {
        /// The identity of an event: a stable number and a stable name, which is its JSON form.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum EventId {
            $( #[doc = $cause] #[serde(rename = $name)] $variant ),+
        }

        impl EventId {
            /// Every event, by number.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its stable number.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self { $(Self::$variant => $number),+ }
            }

            /// Its stable name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// How much it matters.
            #[must_use]
            pub const fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity),+ }
            }

            /// Why it is raised, in a sentence.
            #[must_use]
            pub const fn cause(self) -> &'static str {
                match self { $(Self::$variant => $cause),+ }
            }

            /// What an operator does about it; empty for what needs nothing.
            #[must_use]
            pub const fn response(self) -> &'static str {
                match self { $(Self::$variant => $response),+ }
            }
        }
    };
}

catalogue! {
    1001 DaemonStarted = "daemon-started", Info, "The daemon is ready.", "";
    1002 DaemonStopping = "daemon-stopping", Info, "The daemon was told to stop; devices stay open and wait for its successor.", "";
    1003 DaemonRecovered = "daemon-recovered", Warning, "The daemon started after one that did not stop in order.", "Find out why the former daemon ended; its devices were taken over.";
    1004 SettingChanged = "setting-changed", Info, "A setting was changed by `set`.", "";
    1005 StateCorrupt = "state-corrupt", Error, "Recorded state failed its checksum.", "One good copy is enough to go on. Check the disk below the state directory; where both copies are bad, connect again with a checksum mirror.";
    1006 StateRepaired = "state-repaired", Warning, "A damaged copy of recorded state was rewritten from the good one.", "Check the disk below the state directory.";
    1007 StateFull = "state-full", Error, "The state directory has no space.", "Free space on it; nothing is lost meanwhile, but maps are kept coarser and nothing new can be attached.";
    1008 StateNewer = "state-newer", Error, "Recorded state was written by a newer version and was left alone.", "Install that version again, or a newer one.";
    1009 EventLogTrouble = "event-log-trouble", Warning, "The event log file could not be written; events are kept in memory only.", "Free space in, or repair, the state directory.";
    1010 PeerRubbish = "peer-rubbish", Warning, "Something sent bytes that are no legal request or frame; its connection was closed.", "Find out what connects to the port named in the text.";

    1101 VolumeAttached = "volume-attached", Info, "A backing is served as a device.", "";
    1102 VolumeDetached = "volume-detached", Info, "A volume is served no longer; its backing is the plain data.", "";
    1103 VolumeDetachForced = "volume-detach-forced", Warning, "A volume was detached while it was open; its users got errors.", "";
    1104 VolumeRecovered = "volume-recovered", Info, "A device that outlived its daemon is served again; no request failed.", "";
    1105 VolumeRecoveryFailed = "volume-recovery-failed", Error, "A device that outlived its daemon cannot be served.", "Do what the text says, then start the daemon again; or `blkctl detach VOLUME --force`.";
    1106 VolumeAttachFailed = "volume-attach-failed", Error, "A persistent volume could not be attached at start.", "Do what the text says, then attach it again.";
    1107 BackingWaited = "backing-waited", Info, "The backing was still claimed by requests of the former daemon; serving waited for them.", "";
    1108 BackingError = "backing-error", Error, "A read or write of the backing failed.", "Check the disk. With policy `pass` the application got the error, with `freeze` it waits: `blkctl set volume.on-backing-error=pass` lets it go on.";
    1109 VolumeFrozen = "volume-frozen", Error, "Requests of a volume wait because its backing failed and the policy is `freeze`.", "Repair the backing, or set `volume.on-backing-error=pass` for the group.";
    1110 VolumeThawed = "volume-thawed", Info, "Requests of a frozen volume are served again.", "";
    1111 VolumeFenced = "volume-fenced", Error, "The device returns errors because a newer generation of its group exists elsewhere.", "Use the data where it was promoted. To make this node its target: connect from there with `--mirror checksum`.";
    1112 FrontendLost = "frontend-lost", Error, "The front end ended by itself.", "See the text; detach and attach the volume.";
    1113 IntentMapUnreadable = "intent-map-unreadable", Warning, "A volume's intent map was lost; everything will be compared.", "";
    1114 BackingReplaced = "backing-replaced", Warning, "Another disk holds a volume from now on; everything is compared with the targets.", "Attach the volume: its targets become equal to what the disk holds.";
    1115 WritesSlowed = "writes-slowed", Warning, "Writes are delayed a little, so that the log does not run over.", "Nothing if it passes. Else raise what limits the link, or `group.log-memory`; `blkctl set group.throttle=off` stops it.";
    1116 WritesFree = "writes-free", Info, "Writes are not delayed any more.", "";
    1117 ServedByTarget = "served-by-target", Error, "The backing of a group is lost, and a target serves it from now on: nothing is read from or written to the backing any more.", "The newest data is at the target alone. Promote it when that suits you: `blkctl promote GROUP` there; then bring this node back as its target, on a good disk. Until then keep link and target running: requests wait for them.";
    1118 NotServedByTarget = "not-served-by-target", Error, "The backing of a group failed, and no target can serve it for now: its requests wait.", "Do what the text says, or promote the target. It is tried again by itself.";

    1201 LinkCreated = "link-created", Info, "A link was made.", "";
    1202 LinkUp = "link-up", Info, "Both ends of a link talk.", "";
    1203 LinkDown = "link-down", Warning, "The connection of a link ended.", "Nothing if it comes back: the log keeps what is written. Else check the network and the target.";
    1204 LinkRefused = "link-refused", Error, "The peer, or this node, refused the link.", "Do what the text says; it is not tried again before.";
    1205 LinkRemoved = "link-removed", Info, "A link was ended.", "";
    1206 LinkBehind = "link-behind", Warning, "The log overflowed; its writes became dirty extents.", "Nothing: a difference mirror starts by itself when the link drains faster than it dirties. Give the group a larger log if this repeats.";
    1207 LinkCaughtUp = "link-caught-up", Info, "The link replicates again.", "";
    1208 LinkDegraded = "link-degraded", Warning, "The application goes on without the acknowledgement its mode asks for.", "Restore the link; writes until then are not protected as configured.";
    1209 LinkResumed = "link-resumed", Info, "The stream goes on at the last write the target holds; nothing is mirrored.", "";
    1210 LinkNotResumable = "link-not-resumable", Warning, "The target's last write is not in the source's log; a mirror is needed.", "Nothing: the mirror named in the text starts.";
    1211 TransmitPaused = "transmit-paused", Info, "Transmission is held; the log keeps writes.", "";
    1212 TransmitStopped = "transmit-stopped", Info, "Transmission is stopped; changes are tracked.", "";
    1213 TransmitStarted = "transmit-started", Info, "Transmission goes on.", "";
    1214 PeerSilent = "peer-silent", Warning, "The peer sent no heartbeat in time; the connection was closed.", "Check the network and the target's load.";
    1215 FrameRefused = "frame-refused", Warning, "A frame failed its checksum and was not applied; it is sent again.", "If it repeats, check network hardware and memory.";
    1216 LinkChanged = "link-changed", Info, "A link's mode, or what happens when it is lost, was changed.", "";
    1217 LinkProtected = "link-protected", Info, "The target has everything again; writes complete as the link's mode asks.", "";
    1218 BandwidthChanged = "bandwidth-changed", Info, "Another limit of bandwidth holds, by a setting or by the time of day.", "";
    1220 LinkSimulated = "link-simulated", Info, "A simulated link measures what a real one would need.", "Nothing. It protects nothing: connect the group to a target.";
    1221 SessionStarted = "session-started", Info, "A schedule lets a link transmit.", "";
    1222 SessionEnded = "session-ended", Info, "A schedule holds a link back; its connection was closed, the log keeps what is written.", "";
    1223 ConnectionLost = "connection-lost", Warning, "One of several connections of a link was lost, or could not be made; the stream goes on over the others, and what was on it is sent again.", "Nothing if it does not repeat: it is tried again by itself. Else check the network between the nodes.";
    1224 ConnectionRestored = "connection-restored", Info, "One of several connections of a link that was lost is there again.", "";
    1225 CongestionControlRefused = "congestion-control-refused", Warning, "The kernel does not give a link the congestion control that was set; its connections have the system's.", "Do what the text says. The link works meanwhile; over a long line that loses packets it may carry less.";
    1230 QueueSpilling = "queue-spilling", Info, "Memory is full; newer writes go to the disk queue.", "";
    1231 QueueDrained = "queue-drained", Info, "The disk queue holds nothing any more.", "";
    1232 QueueAlert = "queue-alert", Warning, "The disk queue is above its alert level.", "Raise the link's limits, or `queue.disk-size`; what does not fit becomes dirty extents.";
    1233 QueueAlertOver = "queue-alert-over", Info, "The disk queue is below its alert level again.", "";
    1234 QueueFull = "queue-full", Warning, "The disk queue takes no more; once memory is full too, what waits becomes dirty extents.", "Nothing is lost: a difference mirror follows. Raise `queue.disk-size`, or make room on its filesystem.";
    1235 QueueFailed = "queue-failed", Error, "The disk queue cannot be used; it is tried again.", "Do what the text says: check the disk and the directory of `queue.directory`. Memory alone holds what waits meanwhile.";
    1236 QueueUnreadable = "queue-unreadable", Error, "What the disk queue held for a link could not be read, or was changed; it counts as different.", "Check the disk below `queue.directory`. Nothing is lost: a difference mirror follows.";
    1240 TaskSubmitted = "task-submitted", Info, "A task was put into the order of writes.", "";
    1241 BookmarkSubmitted = "bookmark-submitted", Info, "A bookmark was put into the order of writes.", "";
    1301 MirrorStarted = "mirror-started", Info, "A mirror began.", "";
    1302 MirrorDone = "mirror-done", Info, "A mirror ended; the target is equal.", "";
    1303 MirrorPaused = "mirror-paused", Info, "A mirror is held; its position is kept.", "";
    1304 MirrorStopped = "mirror-stopped", Warning, "A mirror was ended before it was done.", "Start it again to protect the group.";
    1305 MirrorNotConverging = "mirror-not-converging", Warning, "Extents become dirty faster than the mirror sends them.", "Raise the link's limits, or reduce the writing.";
    1306 MirrorFailed = "mirror-failed", Error, "A mirror ended by an error.", "Do what the text says, then start it again.";
    1307 CrashCompared = "crash-regions-compared", Info, "After a crash of the source, the regions in flight were compared with the target.", "";
    1308 MirrorHeldBack = "mirror-held-back", Info, "A mirror stands back: the target's journal is above `link.mirror-high-mark`.", "Nothing: it goes on by itself. If it repeats, the target's disks are slower than the line; `target.journal-size` takes more.";
    1309 MirrorGoesOn = "mirror-goes-on", Info, "A mirror that stood back goes on.", "";

    1401 TargetCreated = "target-created", Info, "This node became target of a group.", "";
    1402 TargetOk = "target-ok", Info, "The replica is consistent and can be promoted.", "";
    1403 TargetNotOk = "target-not-ok", Warning, "The replica is not consistent for the time of a mirror or after an error.", "Wait for the mirror; `blkctl status` says more.";
    1404 TargetPaused = "target-paused", Info, "Applying is paused; the journal goes on receiving.", "";
    1405 TargetResumed = "target-resumed", Info, "Applying goes on.", "";
    1406 TargetWriteError = "target-write-error", Error, "A write to the replica failed; its extents count as different.", "Check the target's disk; a difference mirror repairs the extents.";
    1407 JournalFull = "journal-full", Warning, "The target's journal is full; the source is held back.", "Resume applying if it is paused; else check the target's disks, or set `target.journal-size` higher.";
    1408 JournalCorrupt = "journal-corrupt", Error, "A journal record failed its checksum; what it held counts as different.", "Check the disk below the journal; a difference mirror repairs the extents.";
    1409 JournalReplayed = "journal-replayed", Info, "The target applied what its journal held from before its start.", "";
    1410 TargetRestored = "target-restored-from-backup", Warning, "The target holds less than it had acknowledged to the source; it gets it from the log, or everything is compared by checksum.", "";
    1411 TargetForgotten = "target-forgotten", Info, "This node is target of the group no longer; the replica's data was left.", "";
    1412 TargetReplaced = "target-replaced", Warning, "Another disk holds a volume of the replica from now on; all of it counts as different.", "Nothing: the source sends it when it connects. Until then the replica cannot be promoted.";
    1413 TargetFull = "target-full", Error, "The replica's disk has no space; writes to it are tried again, and nothing new is applied meanwhile.", "Make room below the path in the text. The journal goes on receiving; the replica stays as it was. `blkctl set target.retry-limit=N` says when to give up.";
    1414 TargetBusy = "target-busy", Error, "Something else keeps the replica's disk busy; writes to it are tried again, and nothing new is applied meanwhile.", "Find out who uses the path in the text: fuser -v shows it.";
    1415 TargetDenied = "target-denied", Error, "The replica's disk is read-only or may not be written; writes to it are tried again, and nothing new is applied meanwhile.", "Make the path in the text writable; the kernel's log says why a disk became read-only.";
    1416 TargetFailing = "target-failing", Error, "The replica's disk fails; writes to it are tried again, and nothing new is applied meanwhile.", "Check the disk in the text. If it does not recover: `blkctl set target.retry-limit=1` counts what cannot be written as different, or replace the disk.";
    1417 TargetWritable = "target-writable", Info, "The replica's disk takes writes again; nothing was lost.", "";
    1420 BookmarkSet = "bookmark-set", Info, "A target remembers a bookmark at its place.", "";
    1421 TaskStarted = "task-started", Info, "A task runs at a target; nothing is applied there until it is over.", "";
    1422 TaskDone = "task-done", Info, "A task ended well.", "";
    1423 TaskFailed = "task-failed", Error, "A task ended with another exit status than 0, by a signal, or could not be started.", "See its output: `blkctl task show GROUP ID`. The target goes on.";
    1424 TaskTimedOut = "task-timed-out", Error, "A task did not end in time and was killed with all that it started.", "Find out what it waited for, or set `task.timeout` higher at the target. The target goes on.";
    1425 TaskRefused = "task-refused", Warning, "A target does not run a task: tasks are off there, or the program is not allowed.", "Do what the text says at the target, then submit it again.";
    1426 NoteSkipped = "note-skipped", Warning, "A bookmark was not set or a task not run: its place was no state of the source there.", "Submit it again when the link replicates and the replica is ok.";
    1427 TaskInterrupted = "task-interrupted", Warning, "The target stopped, was promoted or died while a task ran; it is not run again.", "Find out what it has done; submit it again if need be.";
    1428 NoteUnreadable = "note-unreadable", Error, "A bookmark or task could not be read where it was reached; nothing was done.", "See whether source and target have the same version of blkrep; submit it again.";

    1501 Promoted = "promoted", Warning, "This node got the right to write the group; a new generation began.", "Start the applications here. The former source will not overwrite anything by itself.";
    1502 PromoteRefused = "promote-refused", Error, "A promotion was refused.", "See the text: the source is alive, or the replica is not consistent.";
    1503 Demoted = "demoted", Info, "This node stopped serving the group.", "";
    1504 GenerationRefused = "generation-refused", Error, "A peer has another history of the group; nothing was overwritten.", "Decide which data is right. To overwrite the other: connect from the right one with `--mirror checksum --yes`.";
    1505 SplitBrain = "split-brain", Error, "Two nodes wrote the group, each in its own generation.", "Decide which data is right, save what the other one has, then connect from the right one with `--mirror checksum --yes`.";
    1506 SourceFenced = "source-fenced", Error, "This source heard of a newer generation; its devices return errors.", "Use the data where it was promoted.";

    1601 KeyMade = "key-made", Info, "This node made its key and certificate.", "";
    1602 InviteMade = "invite-made", Info, "A one-time token for pairing was made.", "";
    1603 NodePaired = "node-paired", Info, "A node's certificate was pinned: it is trusted for links, and for what its role says.", "";
    1604 NodeForgotten = "node-forgotten", Warning, "A node is trusted no longer; its connections were ended.", "Forget this node there too.";
    1605 NodeRoleChanged = "node-role-changed", Info, "A paired node has another role for remote control.", "";
    1606 PairRefused = "pair-refused", Warning, "A pairing failed: the token was unknown, used, expired or wrong, or the other node was not the one that made it.", "If it was you: make a new token. If not: find out who tried, from the address in the text.";
    1607 NodeRefused = "node-refused", Warning, "An encrypted connection was refused, here or by the other end: the certificate is not the one that is pinned, or is pinned for nobody.", "If the node is one of yours: pair it (again). If not: find out who connects, from the address in the text.";
    1608 PlainRefused = "plain-refused", Warning, "A connection without encryption was refused.", "Pair the two nodes.";
    1609 StreamBroken = "stream-broken", Warning, "An encrypted connection with a paired node failed: what came was changed on its way, or is no legal TLS. It was not used.", "Nothing if it does not repeat: the link connects again. Else look for what changes bytes between the nodes.";
    1610 RemoteRefused = "remote-refused", Warning, "A paired node asked by remote control for more than its role allows.", "If it is to be allowed: `blkctl node role NODE monitor` or `admin`.";
    1611 KeyRotated = "key-rotated", Warning, "This node has a new key.", "Pair the nodes again that the command named, if any.";
    1612 NodeRenewed = "node-renewed", Info, "A paired node used the new key that it had announced; its old one is not accepted any more.", "";
}

impl EventId {
    /// The event with this number.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|id| id.number() == number)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for EventId {
    type Err = String;

    /// Reads a name or a number.
    fn from_str(text: &str) -> Result<Self, String> {
        let by_name = Self::ALL.iter().copied().find(|id| id.name() == text);
        by_name
            .or_else(|| text.parse().ok().and_then(Self::from_number))
            .ok_or_else(|| format!("'{text}' is no event: see docs/reference/events.md"))
    }
}

/// Something that happened, before it is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// What.
    pub id: EventId,
    /// To which group.
    pub group: Option<GroupName>,
    /// To which volume.
    pub volume: Option<VolumeName>,
    /// To which link.
    pub link: Option<LinkName>,
    /// In a sentence, with names and numbers.
    pub text: String,
}

impl NewEvent {
    /// An event that concerns the node.
    #[must_use]
    pub fn new(id: EventId, text: impl Into<String>) -> Self {
        Self {
            id,
            group: None,
            volume: None,
            link: None,
            text: text.into(),
        }
    }

    /// The same, of a group.
    #[must_use]
    pub fn group(mut self, group: &GroupName) -> Self {
        self.group = Some(group.clone());
        self
    }

    /// The same, of a volume.
    #[must_use]
    pub fn volume(mut self, volume: &VolumeName) -> Self {
        self.volume = Some(volume.clone());
        self
    }

    /// The same, of a link.
    #[must_use]
    pub fn link(mut self, link: &LinkName) -> Self {
        self.link = Some(link.clone());
        self
    }
}

/// A recorded event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Its place among the node's events; rises by one, also over restarts.
    pub cursor: u64,
    /// When it was recorded, by the node's clock.
    pub time: Timestamp,
    /// Its number.
    pub number: u16,
    /// Its id.
    pub name: EventId,
    /// How much it matters.
    pub severity: Severity,
    /// To which group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// To which volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeName>,
    /// To which link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkName>,
    /// In a sentence, with names and numbers.
    pub text: String,
}

impl EventRecord {
    /// The event as recorded at `cursor`.
    #[must_use]
    pub fn record(event: NewEvent, cursor: u64, time: Timestamp) -> Self {
        Self {
            cursor,
            time,
            number: event.id.number(),
            name: event.id,
            severity: event.id.severity(),
            group: event.group,
            volume: event.volume,
            link: event.link,
            text: event.text,
        }
    }
}

/// The reply to `events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventPage {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// Events by cursor.
    pub events: Vec<EventRecord>,
    /// What to pass as `after` to go on.
    pub next: u64,
    /// Events between `after` and the first kept one that are gone.
    pub missed: u64,
}

/// One line of `events --follow`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "kebab-case")]
pub enum FollowLine {
    /// An event.
    Event(EventRecord),
    /// So many events were overwritten before they could be sent.
    Missed {
        /// How many.
        count: u64,
    },
    /// Nothing happened; the connection is alive.
    Idle,
}

/// The reference page of the events.
#[must_use]
pub fn events_markdown() -> String {
    let mut page = String::from(
        "# Events\n\nGenerated from the code. Numbers and names are stable: filter on them. \
         `blkctl events` shows what was recorded,\n`blkctl events --follow` what happens.\n\n\
         | number | name | severity | cause | response |\n|---|---|---|---|---|\n",
    );
    for id in EventId::ALL {
        let (number, severity) = (id.number(), id.severity());
        let (cause, response) = (id.cause(), id.response());
        let response = if response.is_empty() { "–" } else { response };
        writeln!(
            page,
            "| {number} | `{id}` | {severity} | {cause} | {response} |"
        )
        .expect("a String takes all text");
    }
    page
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_rise_and_names_are_unique() {
        let numbers: Vec<_> = EventId::ALL.iter().map(|id| id.number()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b));
        let names: BTreeSet<_> = EventId::ALL.iter().map(|id| id.name()).collect();
        assert_eq!(names.len(), numbers.len());
        for id in EventId::ALL {
            assert_eq!(id.name().parse::<EventId>().unwrap(), *id);
            assert_eq!(id.number().to_string().parse::<EventId>().unwrap(), *id);
        }
    }

    #[test]
    fn whatever_is_not_info_says_what_to_do_or_what_happens_next() {
        for id in EventId::ALL {
            let text = format!("{}{}", id.cause(), id.response());
            assert!(!id.cause().is_empty(), "{id}");
            assert!(
                id.severity() != Severity::Error || !id.response().is_empty(),
                "{id}: {text}"
            );
        }
    }

    #[test]
    fn a_record_is_read_as_it_is_written() {
        let event = NewEvent::new(EventId::LinkUp, "peer 10.0.0.2:7420")
            .group(&GroupName::new("db").unwrap());
        let record = EventRecord::record(event, 7, Timestamp::from_second(1).unwrap());
        let json = serde_json::to_string(&record).unwrap();
        assert!(json.contains("\"name\":\"link-up\"") && !json.contains("volume"));
        assert_eq!(serde_json::from_str::<EventRecord>(&json).unwrap(), record);
    }
}
