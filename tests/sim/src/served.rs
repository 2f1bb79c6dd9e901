//! A group that a daemon serves: its engine and queues, assembled as the real daemon does.
//!
//! Owns one group's engine in one process. A cluster, fronts and a program enter; workers of the
//! program and answers to commands leave.

use super::cluster::{Cluster, QUEUES, STATE, backing, group_name, volume_name};
use super::front::Front;
use super::plan::QueuePlan;
use super::program::{Program, Task};
use super::start::StartError;
use blkrep::engine::link::{LinkConnection, LinkControl};
use blkrep::engine::source::{
    GroupSpec, OpenError, QueueSpec, QueueWorker, SourceOptions, SourceShared, VolumeSpec,
};
use blkrep_core::intent::IntentOptions;
use blkrep_core::source::{Connection, Gate, MirrorPhase, OnBackingError, Position, Transmit};
use blkrep_io::sim::{ProcessId, SimHost};
use blkrep_types::{ByteLen, Extent, ExtentSize, History, LinkName, MirrorKind, VolumeIndex};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a disk queue's segment.
pub const QUEUE_SEGMENT: u64 = 1 << 20;

/// What the former source of a promoted group lacks.
pub type Lacking = Vec<(VolumeIndex, Extent)>;

/// A group that is served.
pub struct Served {
    pub(super) cluster: Cluster,
    pub(super) node: usize,
    pub(super) group: usize,
    pub(super) process: ProcessId,
    pub(super) shared: Arc<SourceShared<SimHost>>,
    pub(super) links: BTreeMap<LinkName, LinkControl>,
    /// Links whose mirror an operator has stopped.
    pub(super) mirror_stopped: BTreeSet<LinkName>,
    /// Requests wait for the operator when a backing fails.
    freezes: bool,
    pub(super) fronts: Vec<Front>,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let links: Vec<_> = self.links.values().map(LinkControl::snapshot).collect();
        write!(
            f,
            "node {} serves group {}: {:#?}\n{links:#?}",
            self.node,
            self.group,
            self.shared.status()
        )
    }
}

/// What an error of opening means for the scheduler.
pub(super) fn sorted(error: &OpenError) -> StartError {
    match error {
        OpenError::Busy { .. } | OpenError::Host(_) => StartError::Busy(error.to_string()),
        _ => StartError::Failed(error.to_string()),
    }
}

fn index_of(volume: usize) -> VolumeIndex {
    VolumeIndex::new(u16::try_from(volume).expect("a group has few volumes"))
}

fn spec(cluster: &Cluster, group: usize, history: Option<History>) -> GroupSpec {
    let plan = &cluster.plan.groups[group];
    let volume = |volume: usize| VolumeSpec {
        name: volume_name(group, volume),
        backing: backing(group, volume),
        offset: 0,
        len: None,
        block_size: None,
        extent_size: ExtentSize::try_from(plan.extent_bytes).expect("a legal grain"),
        read_only: false,
    };
    GroupSpec {
        name: group_name(group),
        volumes: (0..plan.volumes.len()).map(volume).collect(),
        history,
        options: SourceOptions {
            log_bytes: ByteLen::new(plan.log_bytes),
            stream: plan.stream,
            throttle: plan.throttle,
            reissues: cluster.plan.reissues,
            intent: IntentOptions {
                idle: Duration::from_secs(5),
                regions_calm: 8,
            },
            ..SourceOptions::default()
        },
        queue: plan.queue.map(queue_spec),
    }
}

fn queue_spec(plan: QueuePlan) -> QueueSpec {
    QueueSpec {
        directory: PathBuf::from(QUEUES[usize::from(plan.second)]),
        segment_bytes: ByteLen::new(QUEUE_SEGMENT),
        bytes_max: ByteLen::new(plan.segments * QUEUE_SEGMENT),
        free_min: ByteLen::new(QUEUE_SEGMENT),
        alert_percent: plan.alert_percent,
    }
}

impl Served {
    /// Opens the group; nothing is served before [`Served::begin`].
    ///
    /// # Errors
    /// The state is claimed, a disk failed, or what is there cannot be opened.
    pub fn open(
        cluster: &Cluster,
        host: &SimHost,
        (node, group): (usize, usize),
        history: Option<History>,
        fronts: &[Front],
    ) -> Result<Self, StartError> {
        let spec = spec(cluster, group, history);
        let (shared, report) =
            SourceShared::open(host, Path::new(STATE), &spec).map_err(|error| sorted(&error))?;
        let served = Self {
            cluster: cluster.clone(),
            node,
            group,
            process: host.process(),
            shared,
            links: BTreeMap::new(),
            mirror_stopped: BTreeSet::new(),
            freezes: false,
            fronts: fronts.to_vec(),
        };
        served.cluster.told.of(served.whose()).say(&report);
        if served.hands_over() {
            served.tell_who_serves();
            served.shared.set_policy(OnBackingError::Freeze);
        }
        Ok(served)
    }

    pub(super) fn whose(&self) -> String {
        format!("node{} g{}", self.node, self.group)
    }

    /// Starts its links, and its queues but for those of detached volumes.
    ///
    /// # Errors
    /// The process has died.
    pub fn begin(&mut self, detached: u32, program: &mut Program) -> Result<(), StartError> {
        for (volume, front) in self.fronts.iter().enumerate() {
            if detached >> volume & 1 == 1 {
                front.fail_outstanding();
            }
        }
        self.begin_volumes(!detached, program)?;
        self.start_links(program)
    }

    /// Starts the queues of these volumes, a bit for each.
    ///
    /// # Errors
    /// The process has died.
    pub fn begin_volumes(&self, volumes: u32, program: &mut Program) -> Result<(), StartError> {
        let beginning = |(volume, _): &(usize, &Front)| volumes >> volume & 1 == 1;
        for (volume, front) in self.fronts.iter().enumerate().filter(beginning) {
            let index = index_of(volume);
            self.shared.begin_volume(index);
            let queue = QueueWorker::new(&self.shared, index, Box::new(front.serve()));
            program
                .spawn(Task::Serve(self.group, volume), Box::new(queue))
                .map_err(|error| StartError::Busy(error.to_string()))?;
        }
        Ok(())
    }

    /// Ends the devices of these volumes, a bit for each.
    pub fn end_volumes(&self, volumes: u32) {
        let ending = |(volume, _): &(usize, &Front)| volumes >> volume & 1 == 1;
        for (volume, front) in self.fronts.iter().enumerate().filter(ending) {
            self.shared.end_volume(index_of(volume));
            front.stop();
        }
    }

    /// Ends its workers in order.
    pub fn stop(&self) {
        self.fronts.iter().for_each(Front::stop);
        self.links.values().for_each(LinkControl::stop);
    }

    /// Ends the group after its workers have ended; false if a disk did not let it be clean.
    #[must_use]
    pub fn close(&self, detached: bool) -> bool {
        self.shared.stop(detached).is_ok()
    }

    /// Its fronts.
    #[must_use]
    pub fn fronts(&self) -> &[Front] {
        &self.fronts
    }

    /// Says whether requests wait for the operator when a backing fails. What waited is tried again when
    /// they no longer do.
    pub fn set_policy(&mut self, policy: OnBackingError) {
        if self.hands_over() {
            // It waits for a target anyway.
            return;
        }
        self.shared.set_policy(policy);
        self.freezes = policy == OnBackingError::Freeze;
    }

    /// Slows writers as planned, or not.
    pub fn slow_writers(&self, slow: bool) {
        let plan = &self.cluster.plan.groups[self.group];
        self.shared.set_throttle(plan.throttle.filter(|_| slow));
    }

    /// Gives the group another disk queue; a disk that fails leaves the one it has.
    pub fn set_queue(&self, plan: Option<QueuePlan>) {
        let spec = plan.map(queue_spec);
        if let Err(error) = self.shared.set_queue(spec.as_ref()) {
            self.cluster.told.of(self.whose()).say(&error);
        }
    }

    /// Takes what the engine has to tell, and exchanges drained queues.
    pub fn tend(&self) {
        self.shared.tend_queue();
        for event in self.shared.take_events() {
            self.cluster.queues.note(&event);
            self.cluster.told.of(self.whose()).say(&event);
        }
    }

    /// Nothing is wrong any more: what an operator who looks at the status would do.
    pub fn calm(&mut self) {
        if self.freezes {
            self.set_policy(OnBackingError::Pass);
        }
        let status = self.shared.status();
        if status.gate == Gate::Frozen {
            self.shared.thaw();
        }
        for (name, wanted, link) in &status.links {
            let Some(control) = self.links.get(name) else {
                continue;
            };
            if !wanted || control.snapshot().connection == LinkConnection::Refused {
                self.connect(name);
            }
            control.hold(false);
            if link.transmit != Transmit::Started {
                self.transmit(name, Transmit::Started);
            }
            if link.mirror.phase == MirrorPhase::Paused {
                self.pause_mirror(name, false);
            }
            let idle = link.mirror.phase == MirrorPhase::Idle;
            let open = link.dirty_bytes != ByteLen::ZERO || self.mirror_stopped.contains(name);
            if idle && link.connection == Connection::Up && open {
                self.mirror(name, MirrorKind::Difference);
                self.mirror_stopped.remove(name);
            }
        }
    }

    /// The engine, for judges.
    #[must_use]
    pub fn engine(&self) -> &Arc<SourceShared<SimHost>> {
        &self.shared
    }

    /// Nothing is under way and nothing has to be sent, on any link that leads somewhere.
    ///
    /// # Errors
    /// What is not quiet.
    pub fn quiet(&self) -> Result<(), String> {
        let status = self.shared.status();
        let serving = self.cluster.serving.get(self.node, self.group);
        let gate = serving.map_or(Gate::Open, |_| Gate::Served);
        if status.gate != gate {
            return Err(format!("the gate is {:?}", status.gate));
        }
        for (name, _, link) in &status.links {
            let serves = serving.is_none_or(|target| self.link(target).as_ref() == Some(name));
            if !self.links.contains_key(name) || !serves {
                continue;
            }
            let up = link.connection == Connection::Up && link.position == Position::Following;
            let idle = link.mirror.phase == MirrorPhase::Idle && link.dirty_bytes == ByteLen::ZERO;
            if !up || !idle || link.queued_ops != 0 {
                return Err(format!("link {name} has work to do"));
            }
        }
        Ok(())
    }
}
