//! One node's daemon: the groups it serves, the replicas it receives, and who becomes what.
//!
//! Owns one process. It follows the node's own order of things, so that a crash at any moment leaves
//! one or the other: a promotion is in the table first, then in the replica's record, then the engine
//! opens; a former source is closed, its replica's record decides, then what it was is forgotten. A
//! cluster, a host and commands enter; workers for the scheduler leave.

use super::cluster::{Cluster, Entry, STATE, group_name, group_of, node_name, replica_dir};
use super::front::Front;
use super::program::{Program, Task};
use super::received::{Promoted, Received, not_now, sorted};
use super::served::Served;
use super::start::StartError;
use blkrep::engine::source::forget_group;
use blkrep::engine::target::{
    Acceptor, AcceptorLimits, Arrival, Route, Router, TargetError, promoted_record, recorded_role,
};
use blkrep_core::source::Gate;
use blkrep_io::Host as _;
use blkrep_io::sim::{ProcessId, RingId, SimHost, SimSocket};
use blkrep_store::superblock::ReplicaRole;

use blkrep_wire::{Hello, Welcome, WelcomeVolume};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What this process has of each group.
#[derive(Debug, Default)]
struct Hosted {
    served: BTreeMap<usize, Served>,
    received: BTreeMap<usize, Received>,
    /// Former sources that a newer one may overwrite, with what it said.
    rejoining: BTreeMap<usize, Box<Hello>>,
    /// Promoted, and to be served as soon as the replica's worker has ended.
    rising: Vec<usize>,
    /// Promotions that were answered.
    answers: BTreeMap<usize, Promoted>,
}

/// What the acceptor shares with the scheduler's side.
#[derive(Clone)]
struct Desk {
    cluster: Cluster,
    node: usize,
    host: SimHost,
    hosted: Arc<Mutex<Hosted>>,
}

/// A running daemon.
pub struct Daemon {
    program: Program,
    desk: Desk,
    fronts: Vec<Vec<Front>>,
    stop: Arc<AtomicBool>,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {}: {:#?}", self.desk.node, self.desk.hosted())
    }
}

impl Desk {
    fn hosted(&self) -> MutexGuard<'_, Hosted> {
        self.hosted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, group: usize) -> Option<Entry> {
        self.cluster.table.get(self.node, group)
    }

    /// True if something is recorded of the group as a source.
    fn has_record(&self, group: usize) -> bool {
        let known = self.host.list(Path::new(STATE)).unwrap_or_default();
        known.contains(&format!("{}.group", group_name(group)))
    }

    fn forget(&self, group: usize) -> Result<(), StartError> {
        forget_group(&self.host, Path::new(STATE), &group_name(group))
            .map_err(|error| StartError::Busy(error.to_string()))
    }

    fn remove_replica(&self, group: usize) -> Result<(), StartError> {
        for name in ["superblock", "journal", "map"] {
            let path = replica_dir(group).join(name);
            let removed = self.host.remove(&path);
            removed.map_err(|error| StartError::Busy(error.to_string()))?;
        }
        Ok(())
    }

    fn route_to(&self, group: usize, arrival: Arrival<SimSocket>) -> Route {
        if let Some(received) = self.hosted().received.get(&group) {
            return received.session(arrival);
        }
        if self.entry(group).is_some() {
            return self.as_source(group, &arrival);
        }
        let at = (self.node, group);
        let made = match Received::open(&self.cluster, &self.host, at) {
            Ok(Some(received)) => Ok(received),
            Ok(None) if self.has_record(group) => {
                return not_now("there is a record of the group as a source");
            }
            Ok(None) => Received::make(&self.cluster, &self.host, at, &arrival.hello),
            Err(error) => Err(error),
        };
        match made {
            Ok(received) => {
                let route = received.session(arrival);
                self.hosted().received.insert(group, received);
                route
            }
            Err(error) => not_now(error.to_string()),
        }
    }

    /// What a node that serves the group says to another source of it.
    fn as_source(&self, group: usize, arrival: &Arrival<SimSocket>) -> Route {
        let mut hosted = self.hosted();
        let hello = &arrival.hello;
        let Some(served) = hosted.served.get(&group) else {
            return not_now("it is not served now");
        };
        let history = served.engine().history();
        if hello.history.supersedes(history.current()) {
            // If it cannot be written down it is heard anew at the next connection.
            let _ = served.engine().fence(hello.history.current());
            if hello.overwrite {
                served.stop();
                hosted.rejoining.insert(group, hello.clone());
                return not_now("the source here is being closed");
            }
        }
        let volumes = hello.volumes.iter().map(|volume| WelcomeVolume {
            index: volume.index,
            len: volume.len,
        });
        let (version, node) = (arrival.version, node_name(self.node));
        let answer = Welcome::of_source(version, node, history, volumes.collect());
        Route::Answer(Box::new(answer))
    }
}

impl Router<SimSocket> for Desk {
    fn route(&mut self, arrival: Arrival<SimSocket>) -> Route {
        match group_of(&arrival.hello.group) {
            Some(group) => self.route_to(group, arrival),
            None => not_now("no such group"),
        }
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
        let rubbish = self.desk.cluster.told.of(format!("node{}", self.desk.node));
        let acceptor = Acceptor::<SimHost>::new(
            listener,
            Box::new(self.desk.clone()),
            AcceptorLimits::default(),
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
    fn serve(&mut self, group: usize) -> Result<(), StartError> {
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
        served.begin(&mut self.program)?;
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

    fn alive(&self) -> bool {
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

    /// Does something to a group that it serves. One that is stopping takes no commands.
    pub fn with_served<R>(
        &mut self,
        group: usize,
        work: impl FnOnce(&mut Served, &mut Program) -> R,
    ) -> Option<R> {
        if self.stop.load(Ordering::Acquire) {
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
