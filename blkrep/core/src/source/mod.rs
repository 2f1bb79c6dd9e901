//! The source side of a group, sans-I/O.
//!
//! Owns [`SourceGroup`]: the order of admission, the write log's entries, links with their maps
//! and mirrors, flushes, the gate. Requests, completions, acknowledgements and time enter; actions
//! for workers leave through one outbox a worker. Never copies a byte, opens a file or reads a
//! clock. One mutex around it orders all queues and links of a group.
//!
//! ```text
//! write: range lock -> intent durable -> Seq and log slot -> local write -> completion
//!        (without a link: range lock -> local write -> completion)
//! ```

mod admit;
mod blocks;
mod coverage;
mod disk_queue;
mod facts;
mod flush;
mod leaving;
mod link;
mod local;
mod mirror;
mod mirror_pace;
mod notes;
mod promise;
mod reissue;
mod request;
mod served;
mod session;
mod stream;
mod throttle;
mod upkeep;
mod volumes;
mod write_log;

#[cfg(test)]
mod tests;

pub use blocks::JobId;
pub use disk_queue::{OutPart, QueueJob, QueueStatus, WRITE_OPERATIONS, WriteOut};
pub use facts::{
    Acks, Connection, ContentPart, DigestReply, DownReason, HelloFacts, JournalFill, LINKS_MAX,
    LinkIndex, LinkStatus, MirrorPhase, MirrorProgress, Outgoing, PeerRole, Position, Rejection,
    StreamStart, Transmit, VolumeFacts, WelcomeFacts,
};
pub use link::{LinkSetup, LinkStart};
pub use mirror_pace::StreamLimits;
pub use notes::{NOTES_KEPT, NoteDenied, NoteOnLinks};
pub use promise::Protection;
pub use request::{NewRequest, RequestId, RequestOp};
pub use served::CannotServe;
pub use throttle::{Throttle, ThrottleStatus};
pub use upkeep::{LinkHead, MapId};
pub use write_log::{Away, FlushTroubles, LinkMark, LogEntry, NewEntry, Slot, WriteLog};

use crate::dirty::{MapLayout, Words};
use crate::intent::IntentMap;
use crate::persist::CommitNo;
use crate::queue::QueueChange;
use crate::range::RangeLock;
use blkrep_types::{
    ByteLen, Errno, Extent, Generation, History, MirrorKind, Nanos, NoteReport, Seq, VolumeIndex,
};
use blocks::Job;
use disk_queue::DiskQueue;
use flush::FlushState;
use link::Link;
use reissue::Reissues;
use request::{Request, Slab};
use std::collections::VecDeque;
use std::time::Duration;
use throttle::Throttling;

/// A worker of the group, for as long as the group is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(u16);

impl WorkerId {
    /// Its number, for indexing.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::from(self.0)
    }
}

/// What happens when the backing fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnBackingError {
    /// The application gets the error.
    #[default]
    Pass,
    /// The group stops completing and waits for an operator.
    Freeze,
}

/// Settings of a group.
#[derive(Debug, Clone, Copy)]
pub struct GroupOptions {
    /// What happens when the backing fails.
    pub on_backing_error: OnBackingError,
    /// How long a write waits for room in the log while a connected link drains it, before the log
    /// is given up for dirty extents. Long enough to ride out a burst, short enough that no
    /// application takes the device for dead.
    pub throttle_max: Duration,
    /// How writers are slowed before; `None`: they are not.
    pub throttle: Option<Throttle>,
    /// How much links may have under way.
    pub stream: StreamLimits,
    /// Requests that can be outstanding over all queues.
    pub requests_max: usize,
}

/// Whether requests are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// They are.
    Open,
    /// They wait for an operator: the backing failed.
    Frozen,
    /// Every request gets EIO: a newer generation exists elsewhere.
    Fenced,
    /// They are, by a target: the backing is lost.
    Served,
}

/// What a worker is to do.
#[derive(Debug, Clone, Copy)]
pub enum Action {
    /// Copy the tag's bytes into the slot if there is one, publish, write locally, report.
    Write {
        /// For the report.
        id: RequestId,
        /// The queue's tag.
        tag: u16,
        /// The volume.
        volume: VolumeIndex,
        /// Where.
        extent: Extent,
        /// The log slot; `None` writes the tag's memory.
        slot: Option<Slot>,
        /// Durable when it completes.
        durable: bool,
        /// The bytes are in the slot already: it is a retry.
        copied: bool,
    },
    /// Copy the tag's bytes into the slot, publish, report: the backing is lost.
    Keep {
        /// For the report.
        id: RequestId,
        /// The queue's tag.
        tag: u16,
        /// Where.
        extent: Extent,
        /// The log slot.
        slot: Slot,
    },
    /// Zero locally, report.
    Zero {
        /// For the report.
        id: RequestId,
        /// The volume.
        volume: VolumeIndex,
        /// Where.
        extent: Extent,
        /// The storage below may be given back.
        free: bool,
    },
    /// Read into the tag's memory: a read that waited for the gate.
    Read {
        /// The queue's tag.
        tag: u16,
        /// Where.
        extent: Extent,
    },
    /// Flush the volume's backing, report with the number.
    Sync {
        /// The volume.
        volume: VolumeIndex,
        /// Which flush.
        number: u64,
    },
    /// Answer the application.
    Complete {
        /// The queue's tag.
        tag: u16,
        /// The answer.
        result: Result<(), Errno>,
    },
    /// Read the backing into the slot for a mirror, report whether it was all zeroes.
    MirrorRead {
        /// For the report.
        job: JobId,
        /// The volume.
        volume: VolumeIndex,
        /// Where.
        extent: Extent,
        /// The log slot.
        slot: Slot,
    },
    /// Read the backing and report its BLAKE3 digest.
    MirrorDigest {
        /// For the report.
        job: JobId,
        /// The volume.
        volume: VolumeIndex,
        /// Where.
        extent: Extent,
    },
}

/// What happened, for the event log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupEvent {
    /// A local write, zero, flush or read failed.
    BackingError {
        /// The volume.
        volume: VolumeIndex,
        /// Where; `None` for a flush.
        extent: Option<Extent>,
        /// Why.
        errno: Errno,
    },
    /// The group is frozen.
    Frozen,
    /// The group serves again.
    Thawed,
    /// The backing is lost, and this link's target serves the group.
    Served {
        /// The link.
        link: LinkIndex,
    },
    /// A newer generation exists.
    Fenced {
        /// It.
        newer: Generation,
    },
    /// A link is up; with what follows, and why.
    LinkUp {
        /// The link.
        link: LinkIndex,
        /// What follows.
        start: StreamStart,
    },
    /// A link is down.
    LinkDown {
        /// The link.
        link: LinkIndex,
        /// Why.
        reason: DownReason,
    },
    /// The peer or we refused.
    Refused {
        /// The link.
        link: LinkIndex,
        /// Why, and what to do.
        reason: String,
    },
    /// The log ran over for a link.
    Behind {
        /// The link.
        link: LinkIndex,
    },
    /// A mirror began.
    MirrorBegun {
        /// The link.
        link: LinkIndex,
        /// Its kind.
        kind: MirrorKind,
        /// Bytes to look at.
        bytes: ByteLen,
    },
    /// A mirror is done and acknowledged.
    MirrorDone {
        /// The link.
        link: LinkIndex,
        /// Bytes sent.
        sent: ByteLen,
        /// Bytes found equal or zero.
        skipped: ByteLen,
    },
    /// Writes dirty extents faster than a mirror sends them.
    NotConverging {
        /// The link.
        link: LinkIndex,
    },
    /// A mirror stands back: the target's journal fills.
    MirrorHeldBack {
        /// The link.
        link: LinkIndex,
        /// Bytes the journal holds.
        used: ByteLen,
        /// Bytes it can hold.
        capacity: ByteLen,
    },
    /// It goes on.
    MirrorGoesOn {
        /// The link.
        link: LinkIndex,
    },
    /// A mirror could not read the backing; it tries again.
    MirrorError {
        /// The link.
        link: LinkIndex,
        /// Why.
        errno: Errno,
    },
    /// Writes complete without what a link's mode asks for; that is on record.
    Degraded {
        /// The link.
        link: LinkIndex,
    },
    /// A link's target has everything, and writes complete as its mode asks.
    Protected {
        /// The link.
        link: LinkIndex,
    },
    /// Writers are slowed, because the log fills up, or are not any more.
    Slowed {
        /// They are.
        active: bool,
    },
    /// What the disk queue holds has changed in a way that matters.
    Queue {
        /// How.
        change: QueueChange,
    },
    /// The disk queue's disk does not take what is written; memory holds what it can.
    QueueFailed {
        /// Why.
        errno: Errno,
    },
    /// What the disk queue holds for a link cannot be read, or is not what was written.
    QueueUnreadable {
        /// The link.
        link: LinkIndex,
        /// Why; EBADMSG if its sum is wrong.
        errno: Errno,
    },
    /// A note is somewhere else on a link, or has become something there.
    Note {
        /// The link.
        link: LinkIndex,
        /// How far it is.
        report: Box<NoteReport>,
    },
    /// A map file could not be written; writes to new regions wait while it is tried again.
    MapError {
        /// Why.
        errno: Errno,
    },
}

/// Events kept until somebody takes them; more are dropped.
const EVENTS_MAX: usize = 256;

#[derive(Debug)]
struct Volume {
    lock: RangeLock,
    flush: FlushState,
    len: ByteLen,
    /// Its device is going away.
    ended: bool,
}

/// The source side of a group.
#[derive(Debug)]
pub struct SourceGroup<L, W> {
    options: GroupOptions,
    history: History,
    log: Option<L>,
    layout: MapLayout,
    intent: IntentMap,
    /// The commit with which regions are open that nobody noted.
    doubted: CommitNo,
    volumes: Vec<Volume>,
    links: Vec<Option<Link<W>>>,
    /// Places, by bit, whose link is gone while its map was being written: the report is still to come.
    leaving: u16,
    requests: Slab<Request>,
    jobs: Slab<Job>,
    gate: Gate,
    served: Option<served::Served>,
    /// Nothing gets a place while it goes on record that this link's target is to serve.
    pinned: Option<LinkIndex>,
    intent_waiters: Vec<RequestId>,
    /// For each of `intent_waiters`, the commit it waits for.
    intent_commits: Vec<CommitNo>,
    log_waiters: VecDeque<RequestId>,
    /// Since when the first of `log_waiters` has waited.
    log_wait_since: Nanos,
    throttling: Throttling,
    /// Bytes of writes that got a place.
    written: u64,
    ack_waiters: Vec<RequestId>,
    parked: VecDeque<RequestId>,
    reissues: Reissues,
    queue: DiskQueue,
    notes: notes::Notes,
    granted: Vec<u32>,
    outboxes: Vec<Vec<Action>>,
    events: VecDeque<GroupEvent>,
    /// When a place was given, sampled: the age of what waits.
    ages: VecDeque<(Seq, Nanos)>,
    lazy_commit_at: Nanos,
    tick_at: Nanos,
    retry_commits_at: Nanos,
    commits_due: Vec<MapId>,
    /// A clean stop goes on: close every region at once.
    stopping: bool,
    me: WorkerId,
    now: Nanos,
}

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// A group that serves nothing yet. `layout` is that of dirty maps, `intent` the map as found.
    #[must_use]
    pub fn new(
        options: GroupOptions,
        history: History,
        volumes: &[ByteLen],
        layout: MapLayout,
        intent: IntentMap,
    ) -> Self {
        assert_eq!(
            volumes.len(),
            layout.volumes(),
            "the layout is of these volumes"
        );
        let capacity = options.requests_max;
        let volumes = volumes.iter().map(|len| Volume {
            lock: RangeLock::with_capacity(capacity + blocks::JOBS_MAX),
            flush: FlushState::with_capacity(capacity),
            len: *len,
            ended: false,
        });
        Self {
            options,
            history,
            log: None,
            layout,
            intent,
            doubted: CommitNo::default(),
            volumes: volumes.collect(),
            links: Vec::new(),
            leaving: 0,
            requests: Slab::with_capacity(capacity),
            jobs: Slab::with_capacity(blocks::JOBS_MAX),
            gate: Gate::Open,
            served: None,
            pinned: None,
            intent_waiters: Vec::with_capacity(capacity),
            intent_commits: Vec::with_capacity(capacity),
            log_waiters: VecDeque::with_capacity(capacity),
            log_wait_since: Nanos::default(),
            throttling: Throttling::with_capacity(options.throttle, capacity),
            written: 0,
            ack_waiters: Vec::with_capacity(capacity),
            parked: VecDeque::with_capacity(capacity),
            reissues: Reissues::default(),
            queue: DiskQueue::default(),
            notes: notes::Notes::default(),
            granted: Vec::with_capacity(capacity),
            outboxes: Vec::new(),
            events: VecDeque::with_capacity(EVENTS_MAX),
            ages: VecDeque::with_capacity(upkeep::AGES_MAX),
            lazy_commit_at: Nanos::default(),
            tick_at: Nanos::default(),
            retry_commits_at: Nanos::default(),
            commits_due: Vec::with_capacity(LINKS_MAX + 1),
            stopping: false,
            me: WorkerId(0),
            now: Nanos::default(),
        }
    }

    /// A new worker with its outbox.
    pub fn add_worker(&mut self) -> WorkerId {
        self.outboxes
            .push(Vec::with_capacity(2 * self.options.requests_max));
        WorkerId(u16::try_from(self.outboxes.len() - 1).expect("few workers"))
    }

    /// The place of a worker that has ended, if nothing refers to it any more: no link is driven by
    /// it, no request came from it, nothing was left for it to do.
    #[must_use]
    pub fn reuse_worker(&self, place: usize) -> Option<WorkerId> {
        let id = WorkerId(u16::try_from(place).expect("few workers"));
        let drives = self.links.iter().flatten().any(|l| l.worker == Some(id));
        let asked = self.requests.iter().any(|r| r.new.worker == id);
        let free = !drives && !asked && self.outboxes[place].is_empty();
        free.then_some(id)
    }

    /// The worker that was added first.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn first_worker(&self) -> WorkerId {
        assert!(!self.outboxes.is_empty(), "a worker was added");
        WorkerId(0)
    }

    /// The workers of the links.
    pub fn link_workers(&self) -> impl Iterator<Item = WorkerId> + '_ {
        self.links.iter().flatten().filter_map(|link| link.worker)
    }

    /// Begins a turn in the name of the worker with this number, at the time of the last one.
    pub fn enter_as(&mut self, worker: usize) {
        assert!(worker < self.outboxes.len(), "a worker was added");
        self.me = WorkerId(u16::try_from(worker).expect("few workers"));
    }

    /// Begins a worker's turn: what is done for everybody is done by it, at this time.
    pub const fn enter(&mut self, me: WorkerId, now: Nanos) {
        self.me = me;
        if now.get() > self.now.get() {
            self.now = now;
        }
    }

    /// Swaps a worker's actions out.
    pub fn take_actions(&mut self, worker: WorkerId, out: &mut Vec<Action>) {
        debug_assert!(out.is_empty(), "earlier actions were done");
        std::mem::swap(&mut self.outboxes[worker.as_usize()], out);
    }

    /// True if the worker with this number has actions waiting.
    #[must_use]
    pub fn has_actions_at(&self, worker: usize) -> bool {
        !self.outboxes[worker].is_empty()
    }

    /// The next thing that happened.
    pub fn take_event(&mut self) -> Option<GroupEvent> {
        self.events.pop_front()
    }

    /// Whether requests are served.
    #[must_use]
    pub const fn gate(&self) -> Gate {
        self.gate
    }

    /// The data history.
    #[must_use]
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// The layout of dirty maps.
    #[must_use]
    pub const fn layout(&self) -> &MapLayout {
        &self.layout
    }

    /// The intent map.
    #[must_use]
    pub const fn intent(&self) -> &IntentMap {
        &self.intent
    }

    /// Requests under way.
    #[must_use]
    pub fn requests_in_flight(&self) -> usize {
        self.requests.len()
    }

    /// The log, once there is a link.
    #[must_use]
    pub const fn log(&self) -> Option<&L> {
        self.log.as_ref()
    }

    fn has_links(&self) -> bool {
        self.log.is_some() && self.links.iter().any(Option::is_some)
    }

    fn log_mut(&mut self) -> &mut L {
        self.log.as_mut().expect("a group with links has a log")
    }

    fn log_ref(&self) -> &L {
        self.log.as_ref().expect("a group with links has a log")
    }

    /// The links there are. Of those that were removed the places stay.
    fn each_link(&self) -> impl Iterator<Item = (LinkIndex, &Link<W>)> {
        self.link_indices()
            .filter_map(|index| Some((index, self.link(index)?)))
    }

    fn link_indices(&self) -> impl Iterator<Item = LinkIndex> + use<L, W> {
        (0..self.links.len()).map(LinkIndex::new)
    }

    fn link(&self, index: LinkIndex) -> Option<&Link<W>> {
        self.links.get(index.as_usize()).and_then(Option::as_ref)
    }

    fn act(&mut self, worker: WorkerId, action: Action) {
        self.outboxes[worker.as_usize()].push(action);
    }

    fn event(&mut self, event: GroupEvent) {
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        }
    }
}
