//! The two nodes, the network between them, and what is seen of the link.
//!
//! Owns the daemons, the proxy, the directory and the record. Acts ask for changes and for what was
//! seen; figures leave. Whatever happens, daemons and directory go with the value.

use super::daemon::Daemon;
use super::figures::Seen;
use super::interrupt::Interrupt;
use super::load::{Pace, Record, Running};
use super::proxy::Proxy;
use super::show::{self, Show};
use anyhow::{Context as _, bail};
use blkrep_api::{
    ConnectionState, DataState, EventId, EventPage, EventQuery, FrontendKind, GroupStatus,
    LinkStatus, MirrorKind, MirrorState, ReplicationState, VolumeState, route,
};
use blkrep_types::{GroupName, VolumeName};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The write log of both groups: small, so that a cut of seconds can fill it.
pub(crate) const LOG_BYTES: u64 = 32 << 20;
/// The target's journal.
pub(crate) const JOURNAL_BYTES: u64 = 64 << 20;
/// Longest wait for a link to be equal again, on a slow machine too.
const EQUAL_LIMIT: Duration = Duration::from_secs(300);
/// The daemon's log has an event within 200 ms; a slow machine gets some more.
const EVENTS_SETTLE: Duration = Duration::from_millis(1000);
/// Time between two looks at the link.
const LOOK: Duration = Duration::from_millis(50);

/// Everything that the acts play with.
#[derive(Debug)]
pub(crate) struct Scene<'a> {
    pub(crate) source: Daemon,
    pub(crate) target: Daemon,
    pub(crate) network: Proxy,
    pub(crate) record: Record,
    pub(crate) volume: VolumeName,
    pub(crate) group: GroupName,
    pub(crate) size_bytes: u64,
    pub(crate) frontend: FrontendKind,
    pub(crate) interrupt: Interrupt,
    pub(crate) show: &'a Show<'a>,
    // The last field: daemons end before their directory is removed.
    pub(crate) dir: TempDir,
}

/// What was seen before a step, to tell what the step changed.
#[derive(Debug)]
pub(crate) struct Before {
    cursor: u64,
    mirror_sent: u64,
    mirror_skipped: u64,
    wire: u64,
    seen: Seen,
}

impl<'a> Scene<'a> {
    /// Starts both nodes and the network.
    pub(crate) fn set(
        size_bytes: u64,
        frontend: FrontendKind,
        interrupt: Interrupt,
        show: &'a Show<'a>,
    ) -> anyhow::Result<Self> {
        let dir = directory()?;
        // A slow machine is not a silent peer: cuts and crashes close the connection.
        let config = format!(
            "[group]\nlog-memory = '{}MiB'\n[target]\njournal-size = '{}MiB'\n\
             [link]\nreconnect-interval = '200ms'\nheartbeat-timeout = '20s'\n",
            LOG_BYTES >> 20,
            JOURNAL_BYTES >> 20
        );
        let source = Daemon::start("source", dir.path(), &config, &interrupt)?;
        let target = Daemon::start("target", dir.path(), &config, &interrupt)?;
        let network = Proxy::start(target.listens()?).context("make the network")?;
        // Names of this run alone: other devices of this machine are none of our business.
        let name = format!("demo-{}", std::process::id());
        let run = u64::from(std::process::id()) << 32 | u64::from(network.address().port());
        Ok(Self {
            source,
            target,
            network,
            record: Record::new(dir.path().join("record"), run),
            volume: VolumeName::new(&name)?,
            group: GroupName::new(&name)?,
            size_bytes,
            frontend,
            interrupt,
            show,
            dir,
        })
    }

    /// The file that the source's volume is.
    pub(crate) fn backing(&self) -> PathBuf {
        self.source.disks().join("volume")
    }

    /// The file that the target's replica is.
    pub(crate) fn replica(&self) -> PathBuf {
        self.target.disks().join("replica")
    }

    fn group_of(&self, daemon: &Daemon) -> anyhow::Result<GroupStatus> {
        let groups = daemon.status()?.groups;
        let found = groups.into_iter().find(|group| group.name == self.group);
        found.with_context(|| format!("find group {} in the status", self.group))
    }

    pub(crate) fn source_group(&self) -> anyhow::Result<GroupStatus> {
        self.group_of(&self.source)
    }

    pub(crate) fn target_group(&self) -> anyhow::Result<GroupStatus> {
        self.group_of(&self.target)
    }

    /// The only link, as the source sees it.
    pub(crate) fn link(&self) -> anyhow::Result<LinkStatus> {
        let links = self.source_group()?.links;
        links.into_iter().next().context("find the link")
    }

    /// The address of the volume's device once it is served by `daemon`.
    pub(crate) fn served_by(&self, daemon: &Daemon, limit: Duration) -> anyhow::Result<String> {
        let mut device = String::new();
        self.interrupt.wait("serving the volume again", limit, || {
            let group = self.group_of(daemon)?;
            let volume = group.volumes.into_iter().next();
            let served = volume.filter(|volume| volume.state == VolumeState::Served);
            device = served.map(|volume| volume.device).unwrap_or_default();
            Ok(!device.is_empty())
        })?;
        Ok(device)
    }

    /// A load through `device`.
    pub(crate) fn load(
        &mut self,
        device: &str,
        pace: Pace,
        time: Duration,
    ) -> anyhow::Result<Running> {
        self.record.load(device, pace, time)
    }

    fn mirrors_after(&self, cursor: u64) -> anyhow::Result<EventPage> {
        let query = EventQuery {
            after: Some(cursor),
            id: Some(EventId::MirrorStarted),
            group: Some(self.group.clone()),
            ..EventQuery::default()
        };
        self.source.get(route::EVENTS, &query)
    }

    /// Where things stand before a step.
    pub(crate) fn before(&self) -> anyhow::Result<Before> {
        let newest = EventQuery {
            limit: Some(1),
            ..EventQuery::default()
        };
        let page: EventPage = self.source.get(route::EVENTS, &newest)?;
        let links = self.source_group()?.links;
        let mirror = links.into_iter().next().map(|link| link.mirror);
        Ok(Before {
            cursor: page.events.last().map_or(0, |event| event.cursor),
            mirror_sent: mirror.as_ref().map_or(0, |mirror| mirror.bytes_sent.get()),
            mirror_skipped: mirror.map_or(0, |mirror| mirror.bytes_skipped.get()),
            wire: self.network.bytes_to_target(),
            seen: Seen::default(),
        })
    }

    /// Looks at the link once.
    pub(crate) fn look(&self, before: &mut Before) -> anyhow::Result<LinkStatus> {
        let link = self.link()?;
        let seen = &mut before.seen;
        seen.lag_ms_max = seen.lag_ms_max.max(link.lag_ms.unwrap_or(0));
        seen.queue_bytes_max = seen.queue_bytes_max.max(link.queue.memory_bytes.get());
        seen.was_disconnected |= link.connection != ConnectionState::Connected;
        seen.was_behind |= link.replication == ReplicationState::Behind;
        let not_ok = [
            DataState::Mirroring,
            DataState::MirrorRequired,
            DataState::NotReady,
        ];
        seen.was_not_ok |= not_ok.contains(&link.data_state);
        Ok(link)
    }

    /// Looks at the link until a load ends by itself, and shows it.
    pub(crate) fn watch(
        &self,
        before: &mut Before,
        load: &Running,
        time: Duration,
    ) -> anyhow::Result<()> {
        let bar = self.show.time_bar(time);
        let began = Instant::now();
        while !load.is_finished() {
            let link = self.look(before)?;
            let passed = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            bar.set(passed, in_words(&link));
            self.interrupt.sleep(LOOK)?;
        }
        Ok(())
    }

    /// Waits until nothing is on its way any more: the target has every write, durably.
    pub(crate) fn until_equal(&self, before: &mut Before) -> anyhow::Result<LinkStatus> {
        let began = Instant::now();
        let bar = self.show.bytes_bar(0);
        loop {
            let link = self.look(before)?;
            let mirror = &link.mirror;
            let done = mirror.bytes_sent.get() + mirror.bytes_skipped.get();
            bar.set_length(done + mirror.bytes_remaining.get());
            bar.set(done, in_words(&link));
            if let Some(refusal) = &link.refusal {
                bail!("the link was refused: {refusal}");
            }
            if is_equal(&link) {
                return Ok(link);
            }
            if began.elapsed() > EQUAL_LIMIT {
                bail!(
                    "the target is not equal after {} s: {}",
                    EQUAL_LIMIT.as_secs(),
                    in_words(&link)
                );
            }
            self.interrupt.sleep(LOOK)?;
        }
    }

    /// What changed since `before`. `restarted`: another daemon began to count anew meanwhile.
    pub(crate) fn seen_since(&self, before: Before, restarted: bool) -> anyhow::Result<Seen> {
        self.interrupt.sleep(EVENTS_SETTLE)?;
        let mirror = self.link()?.mirror;
        let mut seen = before.seen;
        seen.mirrors = self.mirrors_after(before.cursor)?.events.len() as u64;
        if !restarted && mirror.bytes_sent.get() < before.mirror_sent {
            // It counts anew for each mirror, whether an event tells of it or not.
            seen.mirrors = seen.mirrors.max(1);
        }
        let anew = restarted || seen.mirrors > 0;
        let (sent, skipped) = if anew {
            (0, 0)
        } else {
            (before.mirror_sent, before.mirror_skipped)
        };
        seen.mirror_bytes_sent = mirror.bytes_sent.get().saturating_sub(sent);
        seen.mirror_bytes_skipped = mirror.bytes_skipped.get().saturating_sub(skipped);
        if seen.mirrors > 0 && mirror.kind != Some(MirrorKind::Difference) {
            seen.whole_mirrors = seen.mirrors;
        }
        seen.wire_bytes = self.network.bytes_to_target() - before.wire;
        Ok(seen)
    }
}

/// Connected, nothing queued, nothing dirty, and the target says that its data is good.
fn is_equal(link: &LinkStatus) -> bool {
    link.connection == ConnectionState::Connected
        && link.replication == ReplicationState::Replicating
        && link.mirror.state == MirrorState::Idle
        && link.data_state == DataState::Ok
        && link.queue.ops == 0
        && link.dirty_bytes.get() == 0
        && link.lag_ms == Some(0)
}

fn in_words(link: &LinkStatus) -> String {
    let lag = link
        .lag_ms
        .map_or_else(|| "unknown".to_owned(), |lag| format!("{lag} ms"));
    format!(
        "{}, {}, lag {lag}, log {}, dirty {}",
        link.connection,
        link.replication,
        show::bytes(link.queue.memory_bytes.get()),
        show::bytes(link.dirty_bytes.get())
    )
}

/// A directory of our own on a file system that takes direct I/O.
pub(crate) fn directory() -> anyhow::Result<TempDir> {
    let named = std::env::temp_dir();
    let places = [named.clone(), PathBuf::from("/var/tmp")];
    let mut tried = Vec::new();
    for place in places {
        let made = tempfile::Builder::new()
            .prefix("blkrep-demo-")
            .tempdir_in(&place);
        match made.map_err(anyhow::Error::from).and_then(|dir| {
            takes_direct_io(dir.path())?;
            Ok(dir)
        }) {
            Ok(dir) => return Ok(dir),
            Err(error) => tried.push(format!("{}: {error:#}", place.display())),
        }
    }
    bail!(
        "no directory for the demonstration: {}; name one with TMPDIR",
        tried.join("; ")
    )
}

fn takes_direct_io(dir: &std::path::Path) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(nix::fcntl::OFlag::O_DIRECT.bits())
        .open(dir.join("probe"))
        .context("open a file for direct I/O")?;
    std::fs::remove_file(dir.join("probe")).context("remove a file")
}
