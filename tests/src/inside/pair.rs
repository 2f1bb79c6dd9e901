//! Two nodes in one guest: a source with its volumes on ublk, a target, and a network between them that can be cut.
//!
//! Owns both daemons, the network, and the tally of what the link did over every restart of the source. Backings and places of
//! replicas enter; devices, states, figures and comparisons leave. Never decides when something breaks.

use super::Context;
use super::line::{FAR_ADDRESS, Far};
use super::node::{Node, Setup};
use super::shell::{run, wait_for};
use super::volume::equal;
use anyhow::{Context as _, Result, bail, ensure};
use blkrep_api::{
    ConnectionState, DataState, EventId, EventPage, EventRecord, GroupStatus, LinkStatus,
    MirrorState, ReplicationState, VolumeState,
};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the two listen; fixed, so that a daemon comes back where it was.
pub(super) const TARGET_ADDRESS: &str = "127.0.0.1:7420";
/// At the far end of a line too.
const TARGET_PORT: u16 = 7420;
/// Where the first source listens once it has become the target.
pub(super) const SOURCE_ADDRESS: &str = "127.0.0.1:7421";
/// Longest wait for equality; an emulated machine mirrors some MiB a second.
pub(super) const QUIET_LIMIT: Duration = Duration::from_secs(150);
/// A restarted daemon's devices are served within this.
const SERVED_LIMIT: Duration = Duration::from_secs(60);
/// The daemon's log has an event of its engine after 200 ms; an emulated one gets some more.
const EVENTS_SETTLE: Duration = Duration::from_millis(600);
/// Events that a killed daemon had in memory and not yet in its file, at most.
const EVENTS_LOST_MAX: u64 = 64;
/// Number of the source's first device: its numbers stay free for it when the target, in the same kernel, makes devices of its
/// own while the source is away.
const SOURCE_DEVICE: u32 = 10;
/// Short times, so that what breaks is noticed and mended within a test; silence is told from slowness still.
pub(super) const CONFIG: &str = "[group]\nlog-memory = '64MiB'\n[target]\njournal-size = '64MiB'\n\
     [link]\nreconnect-interval = '200ms'\nheartbeat-interval = '500ms'\nheartbeat-timeout = '3s'\n\
     [events]\nkept = 20000\n";

/// One volume and where it is on both sides.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    /// Its name.
    pub(super) name: String,
    /// The source's disk or file.
    pub(super) backing: PathBuf,
    /// The target's.
    pub(super) replica: PathBuf,
}

impl Placed {
    /// A volume of this name.
    pub(super) fn new(name: &str, backing: &Path, replica: &Path) -> Self {
        let (name, backing, replica) = (name.to_owned(), backing.to_owned(), replica.to_owned());
        Self {
            name,
            backing,
            replica,
        }
    }
}

/// What the two nodes are made of.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Name of the group that all volumes are in.
    pub(super) group: String,
    /// The volumes, in the order of the group.
    pub(super) volumes: Vec<Placed>,
    /// Where the daemons put their sockets.
    pub(super) dir: PathBuf,
    /// The source's state directory.
    pub(super) source_state: PathBuf,
    /// The target's, with its journal.
    pub(super) target_state: PathBuf,
    /// Both sides' `blkrepd.toml`.
    pub(super) config: String,
    /// Where the target is, if it is at the far end of a line.
    pub(super) far: Option<Far>,
}

impl Plan {
    /// Everything but the volumes in the body's own directory, settings as in [`CONFIG`].
    pub(super) fn new(context: &Context, volumes: Vec<Placed>) -> Self {
        Self {
            group: "g".to_owned(),
            volumes,
            dir: context.dir.clone(),
            source_state: context.dir.join("source-state"),
            target_state: context.dir.join("target-state"),
            config: CONFIG.to_owned(),
            far: None,
        }
    }

    /// Where the target listens.
    fn target_address(&self) -> String {
        match self.far {
            None => TARGET_ADDRESS.to_owned(),
            Some(_) => format!("{FAR_ADDRESS}:{TARGET_PORT}"),
        }
    }

    /// How the source is started.
    pub(super) fn source_setup(&self) -> Setup {
        let backings = self.volumes.iter().map(|volume| &volume.backing);
        Setup {
            name: "source".to_owned(),
            listen: SOURCE_ADDRESS.to_owned(),
            replica_dirs: parents(backings),
            config: self.config.clone(),
            far: None,
        }
    }

    /// How the target is started.
    pub(super) fn target_setup(&self) -> Setup {
        let replicas = self.volumes.iter().map(|volume| &volume.replica);
        Setup {
            name: "target".to_owned(),
            listen: self.target_address(),
            replica_dirs: parents(replicas),
            config: self.config.clone(),
            far: self.far.clone(),
        }
    }
}

fn parents<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Vec<PathBuf> {
    let mut parents: Vec<_> = paths
        .filter_map(|path| path.parent().map(Path::to_owned))
        .collect();
    parents.sort();
    parents.dedup();
    parents
}

/// The loopback device of the guest, or of the body's own network namespace on the machine itself: without it no packet travels,
/// and nobody is told.
#[derive(Debug)]
struct Network;

impl Network {
    fn set(up: bool) -> Result<()> {
        let word = if up { "up" } else { "down" };
        run(&format!("ip link set lo {word}")).map(drop)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The next body wants it whatever became of this one.
        let _ = Self::set(true);
    }
}

/// What the source's link did so far, over every daemon that drove it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Tally {
    /// Mirrors of any kind that began.
    pub(super) mirrors: u32,
    /// Bytes that mirrors sent, and bytes that they found equal or zero.
    pub(super) mirror_bytes: u64,
    /// How often the stream went on by exact name.
    pub(super) resumed: u32,
    /// How often it could not.
    pub(super) not_resumable: u32,
    /// How often the connection was lost while its daemon lived.
    pub(super) downs: u32,
    /// How often the log overflowed.
    pub(super) behind: u32,
    last: Option<EventRecord>,
    /// What the present daemon's mirror counter showed when it was last read.
    counter: u64,
}

impl Tally {
    /// The counter shows the bytes of the newest mirror; a successor of a killed daemon begins at zero.
    fn read_counter(&mut self, now: u64) {
        let begins_anew = now < self.counter;
        self.mirror_bytes += if begins_anew { now } else { now - self.counter };
        self.counter = now;
    }

    fn add(&mut self, events: &[EventRecord]) {
        for event in events {
            let earlier = self
                .last
                .as_ref()
                .is_some_and(|last| (event.time, event.cursor) <= (last.time, last.cursor));
            if earlier {
                continue;
            }
            println!("source: {} {} {}", event.time, event.name, event.text);
            match event.name {
                EventId::MirrorStarted => self.mirrors += 1,
                EventId::LinkResumed => self.resumed += 1,
                EventId::LinkNotResumable => self.not_resumable += 1,
                EventId::LinkDown => self.downs += 1,
                EventId::LinkBehind => self.behind += 1,
                _ => {}
            }
            self.last = Some(event.clone());
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} mirrors with {} bytes, {} exact resumes, {} lost connections, {} overflows",
            self.mirrors, self.mirror_bytes, self.resumed, self.downs, self.behind
        )
    }
}

/// The two nodes.
#[derive(Debug)]
pub(super) struct Pair {
    /// The node with the volumes.
    pub(super) source: Node,
    /// The node with the replicas.
    pub(super) target: Node,
    /// What they are made of.
    pub(super) plan: Plan,
    devices: Vec<PathBuf>,
    tally: Tally,
    // The last field: it comes back after the daemons are gone.
    _network: Network,
}

impl Pair {
    /// Starts both daemons and attaches the volumes on ublk. There is no link yet.
    pub(super) fn start(plan: Plan) -> Result<Self> {
        let network = Network;
        let mut target = Node::start_as(
            &plan.dir.join("target"),
            &plan.target_state,
            plan.target_setup(),
        )?;
        let mut source = Node::start_as(
            &plan.dir.join("source"),
            &plan.source_state,
            plan.source_setup(),
        )?;
        if plan.far.is_some() {
            // To another host only who is paired connects.
            let token = target.ctl("node pair --invite")?;
            let (to, token) = (plan.target_address(), token.trim());
            source.ctl(&format!("node pair {to} --token {token}"))?;
        }
        let devices = attach_all(&mut source, &plan)?;
        Ok(Self {
            source,
            target,
            plan,
            devices,
            tally: Tally::default(),
            _network: network,
        })
    }

    /// The source's devices, in the order of the volumes.
    pub(super) fn devices(&self) -> &[PathBuf] {
        &self.devices
    }

    /// The words of `connect` that make the link, without options.
    pub(super) fn connect_words(&self) -> String {
        let to = self.plan.target_address();
        let mut line = format!("connect {} --to {to}", self.plan.group);
        for volume in &self.plan.volumes {
            line += &format!(" --map {}={}", volume.name, volume.replica.display());
        }
        line
    }

    /// Makes the link and waits for the full mirror, which the tally leaves out.
    pub(super) fn connect(&mut self) -> Result<()> {
        let line = format!("{} --mirror full --wait", self.connect_words());
        self.source.ctl_within(QUIET_LIMIT, &line)?;
        let link = self.until_quiet(QUIET_LIMIT)?;
        std::thread::sleep(EVENTS_SETTLE);
        let counter = mirror_bytes(&link);
        ensure!(counter > 0, "the full mirror looked at nothing: {link:?}");
        let last = self.events()?.events.last().cloned();
        ensure!(last.is_some(), "the source tells of no event");
        self.tally = Tally {
            last,
            counter,
            ..Tally::default()
        };
        Ok(())
    }

    fn events(&mut self) -> Result<EventPage> {
        let seen = self.tally.last.as_ref().map_or(0, |last| last.cursor);
        let after = seen.saturating_sub(EVENTS_LOST_MAX);
        let line = format!("events --json --after {after} --limit 100000");
        serde_json::from_str(&self.source.ctl(&line)?).context("read the events")
    }

    /// What the link did since the first mirror.
    pub(super) fn tally(&mut self) -> Result<Tally> {
        std::thread::sleep(EVENTS_SETTLE);
        self.count()?;
        Ok(self.tally.clone())
    }

    /// Takes what is to be seen now into the tally.
    fn count(&mut self) -> Result<()> {
        let page = self.events()?;
        let before = self.tally.mirrors;
        self.tally.add(&page.events);
        if self.tally.mirrors > before {
            // A new mirror counts anew, whatever the one before it had shown.
            self.tally.counter = 0;
        }
        let counter = mirror_bytes(&self.link()?);
        self.tally.read_counter(counter);
        Ok(())
    }

    /// The group as the source sees it.
    pub(super) fn source_group(&mut self) -> Result<GroupStatus> {
        self.source.group(&self.plan.group)
    }

    /// The group as the target sees it.
    pub(super) fn target_group(&mut self) -> Result<GroupStatus> {
        self.target.group(&self.plan.group)
    }

    /// The only link, as the source sees it.
    pub(super) fn link(&mut self) -> Result<LinkStatus> {
        let links = self.source_group()?.links;
        links.into_iter().next().context("find the link")
    }

    /// Waits until both ends talk, and the source's event log tells of it.
    pub(super) fn until_connected(&mut self) -> Result<()> {
        wait_for("both ends to talk", QUIET_LIMIT, || {
            Ok(self.link()?.connection == ConnectionState::Connected)
        })?;
        std::thread::sleep(EVENTS_SETTLE);
        Ok(())
    }

    /// Waits until nothing is on its way any more: every write is in the target's replica, durably and in its place.
    pub(super) fn until_quiet(&mut self, limit: Duration) -> Result<LinkStatus> {
        let mut last = None;
        let waited = wait_for("both sides to be equal", limit, || {
            std::thread::sleep(Duration::from_millis(100));
            let link = self.link()?;
            if let Some(refusal) = &link.refusal {
                bail!("the link is refused: {refusal}");
            }
            let target = self.target_group()?.target;
            let applied = target.as_ref().is_some_and(|target| {
                target.data_state == DataState::Ok && target.journal_bytes.get() == 0
            });
            let quiet = is_quiet(&link) && applied;
            last = Some((link, target));
            Ok(quiet)
        });
        let last = last.context("the link was never looked at")?;
        waited.with_context(|| format!("{last:?}"))?;
        Ok(last.0)
    }

    /// Cuts the network: packets are dropped in silence, both ways.
    pub(super) fn cut(&self) -> Result<()> {
        Network::set(false)
    }

    /// Lets packets through again.
    pub(super) fn heal(&self) -> Result<()> {
        Network::set(true)
    }

    /// `kill -9` of the source's daemon; what its link did is counted first.
    pub(super) fn kill_source(&mut self) -> Result<()> {
        self.count()?;
        self.source.kill()?;
        self.tally.counter = 0;
        Ok(())
    }

    /// Starts the source's successor and waits until it serves every volume again.
    pub(super) fn restart_source(&mut self) -> Result<()> {
        self.source.restart()?;
        wait_for("the source to serve again", SERVED_LIMIT, || {
            let volumes = self.source_group()?.volumes;
            Ok(volumes.iter().all(|v| v.state == VolumeState::Served))
        })
    }

    /// Compares every backing with its replica, byte by byte.
    pub(super) fn images_equal(&self) -> Result<()> {
        let mut volumes = self.plan.volumes.iter();
        volumes.try_for_each(|volume| equal(&volume.backing, &volume.replica))
    }

    /// Detaches the source's volumes and stops both daemons in order.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.source.is_well()?;
        self.target.is_well()?;
        for volume in &self.plan.volumes {
            self.source.detach(&volume.name)?;
        }
        self.source.stop()?;
        self.target.stop()
    }
}

/// Attaches every volume at the source; its devices.
pub(super) fn attach_all(source: &mut Node, plan: &Plan) -> Result<Vec<PathBuf>> {
    let numbered = plan.volumes.iter().zip(SOURCE_DEVICE..);
    numbered
        .map(|(volume, number)| {
            let group = &plan.group;
            let options = format!("--group {group} --frontend ublk --device-id {number}");
            source.attach(&volume.name, &volume.backing, &options)
        })
        .collect()
}

fn mirror_bytes(link: &LinkStatus) -> u64 {
    link.mirror.bytes_sent.get() + link.mirror.bytes_skipped.get()
}

/// Connected, nothing queued, nothing dirty, everything durable, and the target says that its data is good.
pub(super) fn is_quiet(link: &LinkStatus) -> bool {
    link.connection == ConnectionState::Connected
        && link.replication == ReplicationState::Replicating
        && link.mirror.state == MirrorState::Idle
        && link.data_state == DataState::Ok
        && link.queue.ops == 0
        && link.dirty_bytes.get() == 0
        && link.lag_ms == Some(0)
}
