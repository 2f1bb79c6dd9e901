//! What a run is to be: the cluster, the load, faults, commands, probes and takeovers.
//!
//! Owns the words of a plan. Never draws one and never acts.

use super::app::Habits;
use super::theme::Theme;
use blkrep_core::compression::Compression;
use blkrep_core::source::{StreamLimits, Throttle};
use blkrep_core::target::RetryPolicy;
use blkrep_io::sim::{Crash, FaultKind, LieKind, SimOptions};
use blkrep_types::{Errno, LossPolicy, MirrorKind, Mode};
use std::time::Duration;

/// Something that goes wrong. Nodes are counted from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A node's daemon is killed or its host loses power, at once or inside one of its next
    /// calls, and comes back after a while.
    Crash {
        /// Whose.
        node: usize,
        /// How.
        crash: Crash,
        /// After so many of its calls; at once if `None`.
        calls: Option<u32>,
        /// How long it is away.
        down: Duration,
    },
    /// Nothing passes from a node to another, or both ways if `both`.
    Cut {
        /// From here.
        from: usize,
        /// To there.
        to: usize,
        /// And the other way.
        both: bool,
        /// How long.
        span: Duration,
    },
    /// Every connection of two nodes is reset.
    Reset {
        /// The one.
        one: usize,
        /// The other.
        other: usize,
    },
    /// One connection of two nodes is reset, or goes silent.
    Sever {
        /// The one.
        one: usize,
        /// The other.
        other: usize,
        /// Which, counted from the oldest on and around.
        which: usize,
        /// Nothing passes on it any more, and neither end is told.
        silent: bool,
    },
    /// A disk answers with errors.
    Disk {
        /// Whose.
        node: usize,
        /// What fails.
        kind: FaultKind,
        /// With what.
        errno: Errno,
        /// How often.
        times: u32,
        /// Which of its disks.
        place: Place,
    },
    /// A disk answers late.
    Stall {
        /// Whose.
        node: usize,
        /// Which of its disks.
        place: Place,
        /// How long.
        span: Duration,
    },
    /// Every backing that a node has of a group answers with errors, whatever it is asked: until the disks
    /// are replaced, which an operator does where no target serves the group.
    Lost {
        /// Whose.
        node: usize,
        /// Of this group.
        group: usize,
        /// So many times for each kind of request.
        times: u32,
        /// When an operator looks whether it is served.
        span: Duration,
    },
    /// Bytes are changed on their way, past every checksum of TCP's.
    Garble {
        /// From here.
        from: usize,
        /// To there.
        to: usize,
        /// So many; without it, one in some deliveries for the time of `span`.
        bytes: Option<u64>,
        /// How long.
        span: Duration,
    },
    /// Everything from a node to another takes longer, and not always as long.
    Delay {
        /// From here.
        from: usize,
        /// To there.
        to: usize,
        /// By so much at most.
        most: Duration,
        /// How long.
        span: Duration,
    },
    /// Connections arrive twice.
    Double {
        /// From here.
        from: usize,
        /// To there.
        to: usize,
        /// So many.
        times: u32,
    },
    /// A host's clock leaps forward.
    Leap {
        /// Whose.
        node: usize,
        /// By so much.
        span: Duration,
    },
    /// A host's filesystem is full: state can neither be made nor grow.
    Full {
        /// Whose.
        node: usize,
        /// How long.
        span: Duration,
    },
    /// A sector of a file or device cannot be read until it is written.
    Unreadable {
        /// Whose.
        node: usize,
    },
    /// A bit of a file of the state directory is flipped, at rest.
    Rot {
        /// Whose.
        node: usize,
        /// Of which files.
        place: Place,
    },
    /// A disk lies once: a read of a state file brings a flipped bit; or, of a journal, what was there
    /// before. (One that loses what it flushed breaks what every promise rests on.)
    Lie {
        /// Whose.
        node: usize,
        /// What it does.
        kind: LieKind,
    },
    /// A target's files are copied, and put back later after a loss of power.
    OldBackup {
        /// Whose.
        node: usize,
        /// How old the copy is then.
        span: Duration,
    },
}

/// Which of a node's files and devices are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Any.
    Any,
    /// The backings and bases.
    Backings,
    /// The maps of groups that it serves: a bit of them that is set.
    Maps,
    /// What journals hold, without their heads.
    Journals,
    /// One of the two copies of the record of a group or of a replica.
    Records,
    /// What disk queues hold, without their heads.
    Queues,
}

/// A group's disk queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuePlan {
    /// Which of two directories has it.
    pub second: bool,
    /// Segments at most.
    pub segments: u64,
    /// Percent of them at which it alerts.
    pub alert_percent: u8,
}

/// Something that is done while a mirror runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// At this request of the load or later.
    pub after: u64,
    /// Of this group.
    pub group: usize,
    /// On this link.
    pub link: usize,
    /// So many steps of the run after it was seen to run.
    pub steps: u64,
    /// What.
    pub deed: Deed,
}

/// What is done at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// Something goes wrong.
    Strike(Fault),
    /// An operator does something.
    Operate(Command),
    /// A replica is tried.
    Look(Probe),
}

/// How transmission is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Changes are tracked as extents.
    Stop,
    /// The log keeps writes.
    Pause,
    /// As a schedule does: there is no connection.
    Schedule,
}

/// What an operator does. `group` and `link` are taken modulo what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Stops applying on a target for a while.
    PauseTarget {
        /// Of this group.
        group: usize,
        /// The target of this link.
        link: usize,
        /// How long.
        span: Duration,
    },
    /// Asks for a mirror.
    Mirror {
        /// Of this group.
        group: usize,
        /// On this link.
        link: usize,
        /// Which.
        kind: MirrorKind,
    },
    /// Stops what mirror there is.
    StopMirror {
        /// Of this group.
        group: usize,
        /// On this link.
        link: usize,
    },
    /// Pauses what mirror there is for a while.
    PauseMirror {
        /// Of this group.
        group: usize,
        /// On this link.
        link: usize,
        /// How long.
        span: Duration,
    },
    /// Holds transmission for a while.
    HoldTransmission {
        /// Of this group.
        group: usize,
        /// On this link.
        link: usize,
        /// In this way.
        how: Hold,
        /// How long.
        span: Duration,
    },
    /// Stops and starts a node's daemon in order.
    Restart {
        /// Which.
        node: usize,
    },
    /// The same with its host.
    Reboot {
        /// Which.
        node: usize,
    },
    /// Disconnects a link and connects it again.
    Reconnect {
        /// Of this group.
        group: usize,
        /// Which.
        link: usize,
        /// How long it is away.
        span: Duration,
    },
    /// Forgets a link, and makes it anew.
    Relink {
        /// Of this group.
        group: usize,
        /// Which.
        link: usize,
        /// How long it is away.
        span: Duration,
    },
    /// Detaches a volume, or all of a group's, and attaches it again.
    Detach {
        /// Of this group.
        group: usize,
        /// Which; all if `None`.
        volume: Option<usize>,
        /// Even while the application has requests outstanding: they get errors.
        force: bool,
        /// Somebody writes to the backings while nobody serves them.
        written: bool,
        /// How long it is away.
        span: Duration,
    },
    /// Has a group wait for its operator when its backing fails, for a while.
    Freeze {
        /// Which.
        group: usize,
        /// How long.
        span: Duration,
    },
    /// Changes a link's settings: how long it waits for its peer, and for the next attempt.
    SetPatience {
        /// Of this group.
        group: usize,
        /// On this link.
        link: usize,
        /// Shorter than usual, or longer.
        short: bool,
    },
    /// Says when writes complete, from now on.
    SetMode {
        /// Of this group.
        group: usize,
        /// On this link.
        link: usize,
        /// When.
        mode: Mode,
    },
    /// Says what happens to writes when a link is lost.
    SetLoss {
        /// Of this group.
        group: usize,
        /// On this link.
        link: usize,
        /// What.
        policy: LossPolicy,
    },
    /// Puts a bookmark or a task into the order of a group's writes.
    Note {
        /// Which.
        group: usize,
        /// A task, and whether targets run it.
        task: Option<bool>,
        /// How long it runs.
        lasts: Duration,
    },
    /// Gives a group another disk queue, or none.
    SetQueue {
        /// Which.
        group: usize,
        /// What.
        queue: Option<QueuePlan>,
    },
    /// Says how a target tries writes again.
    SetRetry {
        /// Of this group.
        group: usize,
        /// On this link's target.
        link: usize,
        /// How.
        retry: RetryPolicy,
    },
}

/// A target takes a group over after the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Takeover {
    /// Which group.
    pub group: usize,
    /// Which of its links leads to the new source.
    pub link: usize,
    /// What became of the old one.
    pub why: TakeoverReason,
    /// A crash of the new source while it serves, after so many of its calls.
    pub crash: Option<(Crash, u32)>,
    /// A crash of the old source while it becomes a target, after so many of its calls.
    pub crash_old: Option<(Crash, u32)>,
}

/// Why a target is promoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakeoverReason {
    /// The source's daemon was killed.
    Killed,
    /// The source's host lost power.
    PowerLost,
    /// The source cannot be reached, and goes on.
    Cut,
}

/// A replica is promoted in a copy of its world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Of this group.
    pub group: usize,
    /// The target of this link.
    pub link: usize,
    /// Its host loses power first, or only its daemon is killed.
    pub crash: Crash,
}

/// A group of the cluster.
#[derive(Debug, Clone)]
pub struct GroupPlan {
    /// The node that serves it first.
    pub home: usize,
    /// The nodes it is replicated to.
    pub targets: Vec<usize>,
    /// When writes complete, by target; links that a takeover makes have the first one's.
    pub modes: Vec<Mode>,
    /// What happens to writes when such a link is lost.
    pub losses: Vec<LossPolicy>,
    /// Whether its links pack what they send.
    pub compression: Compression,
    /// How many connections its links want.
    pub connections: u8,
    /// A target serves it when a backing fails.
    pub hands_over: bool,
    /// Length of each volume in bytes.
    pub volumes: Vec<u64>,
    /// Block size of the volumes.
    pub block_bytes: u64,
    /// Grain of the dirty maps.
    pub extent_bytes: u64,
    /// How writers are slowed.
    pub throttle: Option<Throttle>,
    /// How much links may have under way.
    pub stream: StreamLimits,
    /// Data bytes of the source's memory log.
    pub log_bytes: u64,
    /// The disk queue that it begins with.
    pub queue: Option<QueuePlan>,
    /// How targets try writes again.
    pub retry: RetryPolicy,
    /// Bytes of a target's journal.
    pub journal_bytes: u64,
    /// The mirror that links begin with.
    pub first_mirror: MirrorKind,
    /// How the application behaves.
    pub habits: Habits,
    /// Requests it has outstanding at most.
    pub outstanding_max: usize,
    /// How long it thinks between requests, at most.
    pub think_nanos_max: u64,
}

/// A run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What it was drawn from.
    pub seed: u64,
    /// What is likely to come together in it.
    pub theme: Option<Theme>,
    /// How the world behaves.
    pub options: SimOptions,
    /// Hosts.
    pub nodes: usize,
    /// The one that speaks an older version, if one does.
    pub older: Option<usize>,
    /// How fast their clocks go, in thousandths.
    pub clocks: Vec<u32>,
    /// Groups.
    pub groups: Vec<GroupPlan>,
    /// The backings may lose unflushed writes.
    pub write_cache: bool,
    /// The front end gives requests in flight to a killed daemon's successor.
    pub reissues: bool,
    /// Requests of the load.
    pub requests: u64,
    /// How long all applications rest, at which request.
    pub rests: Vec<(u64, Duration)>,
    /// What goes wrong, at which request.
    pub faults: Vec<(u64, Fault)>,
    /// What the operator does, at which request.
    pub commands: Vec<(u64, Command)>,
    /// Which replicas are tried, at which request.
    pub probes: Vec<(u64, Probe)>,
    /// What is done while a mirror runs.
    pub moments: Vec<Moment>,
    /// What happens after the load, once everything was whole again.
    pub takeovers: Vec<Takeover>,
}

impl GroupPlan {
    /// When writes complete on a link to this node.
    #[must_use]
    pub fn mode_to(&self, node: usize) -> Mode {
        let place = self.targets.iter().position(|target| *target == node);
        self.modes[place.unwrap_or_default()]
    }

    /// What happens to writes when a link to this node is lost.
    #[must_use]
    pub fn loss_to(&self, node: usize) -> LossPolicy {
        let place = self.targets.iter().position(|target| *target == node);
        self.losses[place.unwrap_or_default()]
    }
}

impl Fault {
    /// Whose disks answer with errors, or hold what they should not: a target there may then come to
    /// lack what it had acknowledged, and says so.
    #[must_use]
    pub const fn fails_disks_of(&self) -> Option<usize> {
        match self {
            // What a queue holds is a copy.
            Self::Disk {
                place: Place::Queues,
                ..
            }
            | Self::Rot {
                place: Place::Queues,
                ..
            } => None,
            Self::Disk { node, .. }
            | Self::Full { node, .. }
            | Self::Unreadable { node }
            | Self::Rot { node, .. }
            | Self::Lie { node, .. }
            | Self::OldBackup { node, .. } => Some(*node),
            Self::Crash { .. }
            | Self::Cut { .. }
            | Self::Reset { .. }
            | Self::Sever { .. }
            | Self::Stall { .. }
            | Self::Lost { .. }
            | Self::Garble { .. }
            | Self::Delay { .. }
            | Self::Double { .. }
            | Self::Leap { .. } => None,
        }
    }
}

impl Plan {
    /// True if a disk answers with errors.
    #[must_use]
    pub fn fails_disks(&self) -> bool {
        let mut faults = self.faults.iter();
        faults.any(|(_, fault)| fault.fails_disks_of().is_some())
    }
}
