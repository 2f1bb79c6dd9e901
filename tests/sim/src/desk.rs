//! What a daemon's parts share: the groups it serves, the replicas it receives, and who gets a connection.
//!
//! Owns the answer to a connection that arrives: a replica that is there or is made, a source that says so
//! or is fenced, or a refusal. Arrivals enter, routes leave.

use super::cluster::{Cluster, Entry, STATE, group_name, group_of, node_name, replica_dir};
use super::received::{Promoted, Received, not_now};
use super::served::Served;
use super::start::StartError;
use blkrep::engine::source::forget_group;
use blkrep::engine::target::{Arrival, Joining, Route, Router};
use blkrep_io::Host as _;
use blkrep_io::sim::{SimHost, SimSocket};
use blkrep_wire::{Hello, Welcome, WelcomeVolume};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What this process has of each group.
#[derive(Debug, Default)]
pub(super) struct Hosted {
    pub(super) served: BTreeMap<usize, Served>,
    pub(super) received: BTreeMap<usize, Received>,
    /// Former sources that a newer one may overwrite, with what it said.
    pub(super) rejoining: BTreeMap<usize, Box<Hello>>,
    /// Promoted, and to be served as soon as the replica's worker has ended.
    pub(super) rising: Vec<usize>,
    /// Promotions that were answered.
    pub(super) answers: BTreeMap<usize, Promoted>,
}

/// What the acceptor shares with the scheduler's side.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) cluster: Cluster,
    pub(super) node: usize,
    pub(super) host: SimHost,
    pub(super) hosted: Arc<Mutex<Hosted>>,
}

impl Desk {
    pub(super) fn hosted(&self) -> MutexGuard<'_, Hosted> {
        self.hosted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn entry(&self, group: usize) -> Option<Entry> {
        self.cluster.table.get(self.node, group)
    }

    /// True if the node has the group as a source, and none of its volumes is served.
    pub(super) fn detached_whole(&self, group: usize) -> bool {
        let all = self.cluster.all_volumes(group);
        self.entry(group).is_some_and(|entry| entry.detached == all)
    }

    /// True if something is recorded of the group as a source.
    pub(super) fn has_record(&self, group: usize) -> bool {
        let known = self.host.list(Path::new(STATE)).unwrap_or_default();
        known.contains(&format!("{}.group", group_name(group)))
    }

    pub(super) fn forget(&self, group: usize) -> Result<(), StartError> {
        forget_group(&self.host, Path::new(STATE), &group_name(group))
            .map_err(|error| StartError::Busy(error.to_string()))?;
        self.cluster.serving.set(self.node, group, None);
        Ok(())
    }

    pub(super) fn remove_replica(&self, group: usize) -> Result<(), StartError> {
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

    fn join(&mut self, joining: Joining<SimSocket>) -> Route {
        let Some(group) = group_of(&joining.join.group) else {
            return not_now("no such group");
        };
        match self.hosted().received.get(&group) {
            Some(received) => received.join(joining),
            None => not_now("no such replica"),
        }
    }
}
