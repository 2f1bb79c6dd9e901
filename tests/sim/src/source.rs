//! The source's daemon: a group with its queues and one link, assembled as the real daemon does.
//!
//! Owns one process's engine. A plan, fronts and a host enter; workers for the scheduler leave.

use super::front::Front;
use super::names::{NamedPort, Names};
use super::plan::{Plan, Side};
use super::program::Program;
use super::run::{source_path, target_path};
use super::start::StartError;
use super::told::Told;
use blkrep::engine::link::{LinkConnection, LinkControl, LinkSettings, LinkWorker};
use blkrep::engine::source::{
    GroupSpec, InitialMap, LinkSpec, OpenError, QueueWorker, SourceOptions, SourceShared,
    VolumeSpec,
};
use blkrep_core::intent::IntentOptions;
use blkrep_core::source::{Connection, Gate, MirrorPhase, Position};
use blkrep_io::sim::{NodeId, ProcessId, RingId, SimHost};
use blkrep_types::{
    ByteLen, ExtentSize, GroupName, History, LinkName, MirrorKind, NodeName, VolumeIndex,
    VolumeName,
};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Where the target listens.
pub const PORT: u16 = 7420;

/// Where a daemon keeps its state.
pub const STATE: &str = "/var/lib/blkrep";

/// The one group.
pub const GROUP: &str = "group";

const LINK: &str = "link";

/// A running source.
pub struct Source {
    program: Program,
    shared: Arc<SourceShared<SimHost>>,
    link: LinkControl,
    fronts: Vec<Front>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:#?}\n{:#?}",
            self.shared.status(),
            self.link.snapshot()
        )
    }
}

/// What a daemon of a group is opened with.
#[derive(Debug)]
pub struct Opening<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Its volumes' devices.
    pub fronts: &'a [Front],
    /// Where its volumes are.
    pub backings: Vec<PathBuf>,
    /// The generations to begin with, for a group that was promoted.
    pub history: Option<History>,
    /// The link to make if the group has none.
    pub link: Option<NodeId>,
    /// Where names are noted.
    pub names: &'a Names,
    /// What it says.
    pub told: Told,
}

impl<'a> Opening<'a> {
    /// The first source of a plan.
    #[must_use]
    pub fn first(
        plan: &'a Plan,
        fronts: &'a [Front],
        target: NodeId,
        names: &'a Names,
        told: Told,
    ) -> Self {
        let backings = (0..plan.volumes.len()).map(source_path).collect();
        Self {
            plan,
            fronts,
            backings,
            history: None,
            link: Some(target),
            names,
            told,
        }
    }
}

fn spec(opening: &Opening<'_>) -> GroupSpec {
    let plan = opening.plan;
    let volume = |(index, backing): (usize, &PathBuf)| VolumeSpec {
        name: volume_name(index),
        backing: backing.clone(),
        offset: 0,
        len: None,
        block_size: None,
        extent_size: ExtentSize::try_from(plan.extent_bytes).expect("a legal grain"),
        read_only: false,
    };
    GroupSpec {
        name: group_name(),
        volumes: opening.backings.iter().enumerate().map(volume).collect(),
        history: opening.history.clone(),
        options: SourceOptions {
            log_bytes: ByteLen::new(plan.log_bytes),
            reissues: plan.reissues,
            intent: IntentOptions {
                idle: Duration::from_secs(5),
                regions_calm: 8,
            },
            ..SourceOptions::default()
        },
    }
}

/// The name of the group.
///
/// # Panics
/// Never: it is a legal name.
#[must_use]
pub fn group_name() -> GroupName {
    GROUP.parse().expect("a legal name")
}

/// The name of a volume.
///
/// # Panics
/// Never: it is a legal name.
#[must_use]
pub fn volume_name(index: usize) -> VolumeName {
    format!("volume{index}").parse().expect("a legal name")
}

/// The name of a node.
///
/// # Panics
/// Never: it is a legal name.
#[must_use]
pub fn node_name(side: Side) -> NodeName {
    let name = match side {
        Side::Source => "first",
        Side::Target => "second",
    };
    name.parse().expect("a legal name")
}

fn link_name() -> LinkName {
    LINK.parse().expect("a legal name")
}

/// What an error of opening means for the scheduler.
fn sorted(error: &OpenError) -> StartError {
    match error {
        OpenError::Busy { .. } | OpenError::Host(_) => StartError::Busy(error.to_string()),
        _ => StartError::Failed(error.to_string()),
    }
}

impl Source {
    /// Opens the group and starts its workers.
    ///
    /// # Errors
    /// The state is claimed, a disk failed, or what is there cannot be opened.
    pub fn open(host: SimHost, opening: &Opening<'_>) -> Result<Self, StartError> {
        let spec = spec(opening);
        let (shared, report) =
            SourceShared::open(&host, Path::new(STATE), &spec).map_err(|error| sorted(&error))?;
        opening.told.say(&report);
        if let (true, Some(target)) = (shared.links().is_empty(), opening.link) {
            shared
                .add_link(&link_spec(opening, target))
                .map_err(|error| sorted(&error))?;
        }
        let peer = shared.links().first().map(|link| link.peer.clone());
        let peer: SocketAddr = peer.map_or_else(
            || SocketAddr::from(([127, 0, 0, 1], PORT)),
            |peer| peer.parse().expect("as it was written"),
        );
        let link = LinkControl::new(LinkSettings {
            node: node_name(Side::Source),
            peer,
            heartbeat: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
            progress_timeout: Duration::from_secs(120),
            reconnect: true,
            reconnect_interval: Duration::from_millis(500),
        });
        let mut program = Program::new(host);
        let busy = |error: blkrep_io::HostError| StartError::Busy(error.to_string());
        for (volume, front) in (0_u16..).zip(opening.fronts) {
            let queue =
                QueueWorker::new(&shared, VolumeIndex::new(volume), Box::new(front.serve()));
            program.spawn(Box::new(queue)).map_err(busy)?;
        }
        if !shared.links().is_empty() {
            let port = shared
                .link_port(&link_name())
                .map_err(|error| sorted(&error))?;
            let port = NamedPort::new(port, opening.names.clone());
            let watch = Arc::new(opening.told.clone());
            let driver = LinkWorker::new(port, link.clone(), watch);
            program.spawn(Box::new(driver)).map_err(busy)?;
        }
        Ok(Self {
            program,
            shared,
            link,
            fronts: opening.fronts.to_vec(),
        })
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> ProcessId {
        self.program.process()
    }

    /// Gives one of its workers a turn.
    pub fn turn(&mut self, ring: RingId) -> bool {
        self.program.turn(ring)
    }

    /// True when every worker has ended.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.program.finished()
    }

    /// Ends its workers in order.
    pub fn stop(&mut self) {
        self.fronts.iter().for_each(Front::stop);
        self.link.stop();
    }

    /// Ends the group after its workers have ended; false if a disk did not let it be clean.
    #[must_use]
    pub fn close(&self) -> bool {
        self.shared.stop(false).is_ok()
    }

    /// Asks for a mirror.
    pub fn mirror(&self, kind: MirrorKind) {
        // Only a missing link is an error, and a link is made at the start.
        let _ = self.shared.start_mirror(&link_name(), kind);
    }

    /// Ends the connection; tracking goes on.
    pub fn disconnect(&self) {
        // A disk that fails leaves the link as it was.
        let _ = self.shared.set_wanted(&link_name(), false);
    }

    /// Connects again.
    pub fn connect(&self) {
        // As above; the scheduler asks again while it waits for quiet.
        let _ = self.shared.set_wanted(&link_name(), true);
        self.link.connect();
    }

    /// Nothing is wrong any more: what an operator who looks at the status would do.
    pub fn calm(&self) {
        let status = self.shared.status();
        if status.gate == Gate::Frozen {
            self.shared.thaw();
        }
        if status.links.iter().any(|(_, wanted, _)| !wanted) {
            self.connect();
        }
        if self.link.snapshot().connection == LinkConnection::Refused {
            self.connect();
        }
    }

    /// Whether requests are served.
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.shared.gate()
    }

    /// Its generations.
    #[must_use]
    pub fn history(&self) -> History {
        self.shared.history()
    }

    /// Nothing is under way and nothing has to be sent.
    ///
    /// # Errors
    /// What is not quiet.
    pub fn quiet(&self) -> Result<(), String> {
        let status = self.shared.status();
        if status.gate != Gate::Open {
            return Err(format!("the gate is {:?}", status.gate));
        }
        let Some((_, _, link)) = status.links.first() else {
            return Err("there is no link".to_owned());
        };
        let up = link.connection == Connection::Up && link.position == Position::Following;
        let idle = link.mirror.phase == MirrorPhase::Idle && link.dirty_bytes == ByteLen::ZERO;
        if up && idle && link.queued_ops == 0 {
            return Ok(());
        }
        Err("the link has work to do".to_owned())
    }
}

fn link_spec(opening: &Opening<'_>, target: NodeId) -> LinkSpec {
    let path = |volume| target_path(volume).to_string_lossy().into_owned();
    LinkSpec {
        name: link_name(),
        peer: SocketAddr::new(target.address(), PORT).to_string(),
        paths: (0..opening.plan.volumes.len()).map(path).collect(),
        mode: opening.plan.mode,
        first_mirror: Some(opening.plan.first_mirror),
        overwrite: false,
        wanted: true,
        initial: InitialMap::Everything,
    }
}
