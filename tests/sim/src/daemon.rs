//! One node's daemon: the groups it serves, the replicas it receives, and who becomes what.
//!
//! Owns one process. It follows the node's own order of things, so that a crash at any moment leaves
//! one or the other: a promotion is in the table first, then in the replica's record, then the engine
//! opens; a former source is closed, its replica's record decides, then what it was is forgotten. A
//! cluster, a host and commands enter; workers for the scheduler leave.

use super::cluster::{Cluster, Entry, replica_dir};
use super::desk::Desk;
use super::front::Front;
use super::program::{Program, Task};
use super::received::{Promoted, Received, sorted};
use super::served::Served;
use super::start::StartError;
use blkrep::engine::target::{
    Acceptor, AcceptorLimits, TargetError, promoted_record, recorded_role,
};
use blkrep_core::source::Gate;
use blkrep_io::Host as _;
use blkrep_io::sim::{ProcessId, RingId, SimHost};
use blkrep_store::superblock::ReplicaRole;
use blkrep_wire::{Hello, VERSION_MAX, VERSION_PACKED};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A running daemon.
pub struct Daemon {
    pub(super) program: Program,
    pub(super) desk: Desk,
    pub(super) fronts: Vec<Vec<Front>>,
    stop: Arc<AtomicBool>,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {}: {:#?}", self.desk.node, self.desk.hosted())
    }
}

impl Daemon {
    /// Opens what the node has of `groups` and listens. `fronts` are its devices, by group.
    ///
    /// # Errors
    /// The state is claimed, a disk failed, or what is there cannot be opened.
    pub fn open(
        cluster: &Cluster,
        host: SimHost,
        node: usize,
        groups: impl Iterator<Item = usize>,
        fronts: Vec<Vec<Front>>,
    ) -> Result<Self, StartError> {
        let mut daemon = Self {
            program: Program::new(host.clone()),
            desk: Desk {
                cluster: cluster.clone(),
                node,
                host,
                hosted: Arc::default(),
            },
            fronts,
            stop: Arc::default(),
        };
        for group in groups {
            daemon.restore(group)?;
        }
        daemon.listen()?;
        Ok(daemon)
    }

    fn listen(&mut self) -> Result<(), StartError> {
        let busy = |error: blkrep_io::HostError| StartError::Busy(error.to_string());
        let any = SocketAddr::from(([0, 0, 0, 0], super::cluster::PORT));
        let (listener, _) = self.desk.host.listen(any).map_err(busy)?;
        let mut limits = AcceptorLimits::default();
        if self.desk.cluster.plan.older == Some(self.desk.node) {
            // One that knows neither notes nor several connections, or nothing but plain frames.
            limits.versions.1 = match self.desk.cluster.plan.seed % 2 {
                0 => VERSION_PACKED - 1,
                _ => VERSION_MAX - 1,
            };
        }
        let rubbish = self.desk.cluster.told.of(format!("node{}", self.desk.node));
        let acceptor = Acceptor::<SimHost>::new(
            listener,
            Box::new(self.desk.clone()),
            limits,
            Arc::new(move |what| rubbish.say(&what)),
            Arc::clone(&self.stop),
        );
        let acceptor = Box::new(acceptor);
        self.program.spawn(Task::Accept, acceptor).map_err(busy)
    }

    /// Brings back what the node has of a group.
    fn restore(&mut self, group: usize) -> Result<(), StartError> {
        let desk = self.desk.clone();
        let role =
            recorded_role(&desk.host, &replica_dir(group)).map_err(|error| sorted(&error))?;
        match (role, desk.entry(group)) {
            (Some(ReplicaRole::Target), entry) => {
                // Before it is open, so that a refusal leaves both.
                self.receive(group)?;
                if entry.is_some() {
                    // A promotion that never became durable, or a rejoin that was not concluded.
                    if desk.has_record(group) {
                        desk.forget(group)?;
                    }
                    desk.cluster.table.remove(desk.node, group);
                    // Devices of a source that is none any more.
                    let fronts = self.fronts.get(group);
                    fronts
                        .into_iter()
                        .flatten()
                        .for_each(Front::fail_outstanding);
                }
                Ok(())
            }
            (_, Some(_)) if desk.detached_whole(group) => {
                self.leave_closed(group);
                Ok(())
            }
            (_, Some(_)) => self.serve(group),
            _ => Ok(()),
        }
    }

    fn receive(&mut self, group: usize) -> Result<(), StartError> {
        let desk = &self.desk;
        let received = Received::open(&desk.cluster, &desk.host, (desk.node, group));
        if let Some(received) = received.map_err(|error| sorted(&error))? {
            desk.hosted().received.insert(group, received);
        }
        self.take_workers();
        Ok(())
    }

    /// Opens a group as the table says, and serves it.
    pub(super) fn serve(&mut self, group: usize) -> Result<(), StartError> {
        let desk = self.desk.clone();
        let Some(entry) = desk.entry(group) else {
            return Ok(());
        };
        let record = if entry.promoted {
            promoted_record(&desk.host, &replica_dir(group)).map_err(|error| sorted(&error))?
        } else {
            None
        };
        let history = record.as_ref().map(|record| record.history.clone());
        let at = (desk.node, group);
        let mut served = Served::open(&desk.cluster, &desk.host, at, history, &self.fronts[group])?;
        if !entry.promoted {
            served.link_as_planned()?;
        } else if entry.untracked {
            served.track_former(record.map_or_else(Vec::new, |record| record.lacking))?;
            let untracked = false;
            desk.cluster
                .table
                .put(desk.node, group, Entry { untracked, ..entry });
        }
        served.begin(entry.detached, &mut self.program)?;
        desk.hosted().served.insert(group, served);
        Ok(())
    }

    /// Gives workers of fresh replicas to the program.
    fn take_workers(&mut self) {
        let mut hosted = self.desk.hosted();
        for (group, received) in &mut hosted.received {
            if let Some(worker) = received.take_worker() {
                // An error means that the process has died: the scheduler sees that by itself.
                let _ = self.program.spawn(Task::Receive(*group), Box::new(worker));
            }
        }
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> ProcessId {
        self.program.process()
    }

    /// Gives one of its workers a turn; false if it has no such ring.
    ///
    /// # Errors
    /// What could not be done and should have been.
    pub fn turn(&mut self, ring: RingId) -> Result<bool, String> {
        if !self.program.turn(ring) {
            return Ok(false);
        }
        self.take_workers();
        self.tend()?;
        Ok(true)
    }

    /// True when every worker has ended.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.program.finished()
    }

    /// Ends its workers in order.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        let hosted = self.desk.hosted();
        hosted.received.values().for_each(Received::stop);
        hosted.served.values().for_each(Served::stop);
        drop(hosted);
        self.program.wake_all();
    }

    /// Ends its groups after its workers have ended.
    pub fn close(&self) {
        for served in self.desk.hosted().served.values() {
            // A disk that does not let it be clean costs a comparison at the next start.
            let _ = served.close(false);
        }
    }

    /// Promotes a replica. A daemon without one answers nothing.
    ///
    /// # Errors
    /// There is no replica, or the state could not be written.
    pub fn promote(&mut self, group: usize) -> Result<(), StartError> {
        let desk = self.desk.clone();
        if !desk.hosted().received.contains_key(&group) {
            return Err(StartError::Failed("there is no replica".to_owned()));
        }
        if desk.has_record(group) {
            desk.forget(group)?;
        }
        let entry = Entry {
            promoted: true,
            untracked: true,
            detached: 0,
        };
        desk.cluster.table.put(desk.node, group, entry);
        if let Some(received) = desk.hosted().received.get_mut(&group) {
            received.promote();
        }
        Ok(())
    }

    /// Promotes a replica of which nothing will be served.
    pub fn promote_only(&self, group: usize) {
        self.with_received(group, Received::promote);
    }

    /// Gives one of its workers a turn and does nothing else; false if it has no such ring.
    pub fn turn_only(&mut self, ring: RingId) -> bool {
        let mine = self.program.turn(ring);
        self.take_workers();
        mine
    }

    /// The answer to a promotion, once.
    pub fn promoted(&mut self, group: usize) -> Option<Promoted> {
        self.desk.hosted().answers.remove(&group)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(super) fn alive(&self) -> bool {
        self.desk.cluster.world.alive(self.process())
    }

    /// Does what workers that ended, or answers that came, make possible.
    ///
    /// # Errors
    /// What could not be done and should have been.
    pub fn tend(&mut self) -> Result<(), String> {
        if !self.alive() {
            return Ok(());
        }
        self.take_answers();
        self.finish_detaches();
        for served in self.desk.hosted().served.values() {
            served.tend();
        }
        let rising = std::mem::take(&mut self.desk.hosted().rising);
        for group in rising {
            if self.program.has_done(&Task::Receive(group)) {
                self.desk.hosted().received.remove(&group);
                match self.serve(group) {
                    Ok(()) => continue,
                    Err(StartError::Busy(_)) => {}
                    Err(StartError::Failed(why)) if self.alive() => {
                        return Err(format!("serve promoted group {group}: {why}"));
                    }
                    Err(StartError::Failed(_)) => {}
                }
            }
            self.desk.hosted().rising.push(group);
        }
        let rejoining: Vec<usize> = self.desk.hosted().rejoining.keys().copied().collect();
        for group in rejoining {
            self.rejoin(group)?;
        }
        self.take_workers();
        Ok(())
    }

    fn take_answers(&mut self) {
        let mut hosted = self.desk.hosted();
        let groups: Vec<usize> = hosted.received.keys().copied().collect();
        for group in groups {
            let Some(received) = hosted.received.get_mut(&group) else {
                continue;
            };
            let Some(answer) = received.promoted() else {
                continue;
            };
            if answer.is_ok() {
                hosted.rising.push(group);
            } else {
                self.desk.cluster.table.remove(self.desk.node, group);
            }
            hosted.answers.insert(group, answer);
        }
    }

    /// Goes on with making a former source a target.
    fn rejoin(&mut self, group: usize) -> Result<(), String> {
        let desk = self.desk.clone();
        if !self.program.has_left(group) {
            return Ok(());
        }
        let served = desk.hosted().served.remove(&group);
        if let Some(served) = served {
            if served.engine().secure().is_err() {
                desk.hosted().served.insert(group, served);
                return Ok(());
            }
            // A disk that does not let it be clean costs nothing: all will be compared.
            let _ = served.close(true);
            served.fronts().iter().for_each(Front::fail_outstanding);
        }
        let hello = desk.hosted().rejoining.remove(&group);
        let Some(hello) = hello else {
            return Ok(());
        };
        match self.become_target(group, &hello) {
            Ok(()) => {}
            Err(StartError::Failed(why)) if self.alive() => {
                return Err(format!(
                    "make former source of group {group} a target: {why}"
                ));
            }
            Err(_) => drop(desk.hosted().rejoining.insert(group, hello)),
        }
        Ok(())
    }

    fn become_target(&self, group: usize, hello: &Hello) -> Result<(), StartError> {
        let desk = &self.desk;
        let of_target = |error: TargetError| sorted(&error);
        let directory = replica_dir(group);
        let promoted = promoted_record(&desk.host, &directory).map_err(of_target)?;
        if promoted.is_some() && desk.has_record(group) {
            desk.remove_replica(group)?;
        }
        let at = (desk.node, group);
        let made = match Received::open(&desk.cluster, &desk.host, at).map_err(of_target)? {
            Some(received) => received,
            None => Received::make(&desk.cluster, &desk.host, at, hello).map_err(of_target)?,
        };
        // The replica's record is the decision: what the source was goes now.
        desk.forget(group)?;
        desk.cluster.table.remove(desk.node, group);
        desk.hosted().received.insert(group, made);
        Ok(())
    }

    /// Whether it serves a group, and if so whether requests are let in.
    #[must_use]
    pub fn gate(&self, group: usize) -> Option<Gate> {
        let hosted = self.desk.hosted();
        hosted
            .served
            .get(&group)
            .map(|served| served.engine().gate())
    }

    /// Does something to a group that it serves. One that is stopping takes no commands, and none gets to
    /// a group that is being closed: a node carries out one command after the other.
    pub fn with_served<R>(
        &mut self,
        group: usize,
        work: impl FnOnce(&mut Served, &mut Program) -> R,
    ) -> Option<R> {
        if self.is_stopping() || self.desk.detached_whole(group) {
            return None;
        }
        let mut hosted = self.desk.hosted();
        let served = hosted.served.get_mut(&group)?;
        Some(work(served, &mut self.program))
    }

    /// Does something to a replica that it receives.
    pub fn with_received<R>(
        &self,
        group: usize,
        work: impl FnOnce(&mut Received) -> R,
    ) -> Option<R> {
        self.desk.hosted().received.get_mut(&group).map(work)
    }
}
