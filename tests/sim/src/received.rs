//! A replica that a daemon receives: its worker and what it was asked, assembled as the real daemon does.
//!
//! Owns one group's replica in one process. A host and a hello enter; a worker and answers leave.

use super::cluster::{Cluster, node_name, replica_dir};
use super::start::StartError;
use super::tasks::Watch;
use blkrep::engine::target::{
    Arrival, Joining, Opened, Promotion, ReplicaFiles, ReplicaRequest, Route, TargetCommandError,
    TargetControl, TargetError, TargetPolicy, TargetSettings, TargetStatus, TargetWorker,
};
use blkrep_core::target::RetryPolicy;
use blkrep_io::sim::{SimHost, SimSocket};
use blkrep_store::superblock::ReplicaVolume;
use blkrep_types::{ByteLen, DataState, History};
use blkrep_wire::{Hello, RefuseCode};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What a promotion was answered.
pub type Promoted = Result<Box<Promotion>, TargetCommandError>;

/// A replica.
pub struct Received {
    control: TargetControl<SimSocket>,
    /// Its worker, until the scheduler takes it.
    fresh: Option<TargetWorker<SimHost>>,
    promoting: bool,
    answer: Arc<Mutex<Option<Promoted>>>,
}

impl std::fmt::Debug for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "replica: {:#?}", self.control.status())
    }
}

/// What an error of opening means for the scheduler.
pub(super) fn sorted(error: &TargetError) -> StartError {
    match error {
        TargetError::Busy { .. } | TargetError::Host(_) => StartError::Busy(error.to_string()),
        _ => StartError::Failed(error.to_string()),
    }
}

fn settings(cluster: &Cluster, node: usize, group: usize) -> TargetSettings {
    TargetSettings {
        journal_bytes: ByteLen::new(cluster.plan.groups[group].journal_bytes),
        batch_bytes: ByteLen::new(2 << 20),
        checkpoint_interval: Duration::from_millis(300),
        retry: cluster.plan.groups[group].retry,
        ..TargetSettings::new(node_name(node))
    }
}

/// A refusal that passes.
pub(super) fn not_now(text: impl Into<String>) -> Route {
    Route::Refuse {
        code: RefuseCode::Unavailable,
        history: History::new(),
        text: text.into(),
    }
}

impl Received {
    /// Opens the replica that is there; `None` if there is none.
    ///
    /// # Errors
    /// It is claimed, a disk failed, or it cannot be opened.
    pub fn open(
        cluster: &Cluster,
        host: &SimHost,
        (node, group): (usize, usize),
    ) -> Result<Option<Self>, TargetError> {
        let opened = ReplicaFiles::open(host, &replica_dir(group))?;
        let begun = opened.map(|opened| Self::begin(cluster, host, opened, (node, group)));
        begun.transpose()
    }

    /// Makes a replica for a source that asks for it.
    ///
    /// # Errors
    /// A path is not allowed, in use, or holds something else; or a disk failed.
    pub fn make(
        cluster: &Cluster,
        host: &SimHost,
        (node, group): (usize, usize),
        hello: &Hello,
    ) -> Result<Self, TargetError> {
        let volume = |volume: &blkrep_wire::HelloVolume| ReplicaVolume {
            index: volume.index,
            name: volume.name.clone(),
            len: volume.len,
            block_size: volume.block_size,
            extent_size: volume.extent_size,
            path: PathBuf::from(&volume.path),
        };
        let request = ReplicaRequest {
            group: hello.group.clone(),
            source: hello.node.clone(),
            link: hello.link.clone(),
            volumes: hello.volumes.iter().map(volume).collect(),
            overwrite: hello.overwrite,
        };
        let policy = TargetPolicy {
            directories: Vec::new(),
            paths: cluster.backings(group),
        };
        let settings = settings(cluster, node, group);
        let directory = replica_dir(group);
        let opened = ReplicaFiles::create(host, &directory, &policy, &settings, &request)?;
        Self::begin(cluster, host, opened, (node, group))
    }

    fn begin(
        cluster: &Cluster,
        host: &SimHost,
        opened: Opened<SimHost>,
        (node, group): (usize, usize),
    ) -> Result<Self, TargetError> {
        let watch = Arc::new(Watch::new(cluster, host, (node, group)));
        let worker = TargetWorker::new(opened, settings(cluster, node, group), watch)?;
        Ok(Self {
            control: worker.control(),
            fresh: Some(worker),
            promoting: false,
            answer: Arc::default(),
        })
    }

    /// Its worker, once.
    pub fn take_worker(&mut self) -> Option<TargetWorker<SimHost>> {
        self.fresh.take()
    }

    /// Gives it a connection.
    #[must_use]
    pub fn session(&self, arrival: Arrival<SimSocket>) -> Route {
        if self.promoting {
            return not_now("the replica is being promoted");
        }
        let Arrival {
            socket,
            hello,
            version,
        } = arrival;
        // If its worker is just ending the socket goes with the attempt.
        let _ = self.control.session(socket, hello, version);
        Route::Taken
    }

    /// Gives it a further connection of its session.
    #[must_use]
    pub fn join(&self, joining: Joining<SimSocket>) -> Route {
        match self.control.join(joining.socket, joining.join) {
            true => Route::Taken,
            false => not_now("the replica is closing"),
        }
    }

    /// Ends its worker in order.
    pub fn stop(&self) {
        self.control.stop();
    }

    /// Pauses or resumes applying.
    pub fn pause(&self, paused: bool) {
        self.control.pause(paused, |_| {});
    }

    /// Says how it tries writes again.
    pub fn set_retry(&self, retry: RetryPolicy) {
        self.control.set_retry(retry);
    }

    /// Promotes it, whether or not its source was heard of lately.
    pub fn promote(&mut self) {
        self.promoting = true;
        let answer = Arc::clone(&self.answer);
        self.control.promote(true, false, move |promoted| {
            *answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(promoted);
        });
    }

    /// The answer to the promotion, once.
    pub fn promoted(&mut self) -> Option<Promoted> {
        let answer = self
            .answer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()?;
        self.promoting = answer.is_ok();
        Some(answer)
    }

    /// The last snapshot.
    #[must_use]
    pub fn status(&self) -> Option<TargetStatus> {
        self.control.status()
    }

    /// Everything received is applied and good.
    ///
    /// # Errors
    /// What is not quiet.
    pub fn quiet(&self) -> Result<(), String> {
        let Some(status) = self.status() else {
            return Err("the replica is being opened".to_owned());
        };
        if status.data_state != DataState::Ok {
            return Err(format!("the replica is {}", status.data_state));
        }
        if status.applied != status.received {
            return Err("not everything is applied".to_owned());
        }
        Ok(())
    }
}
