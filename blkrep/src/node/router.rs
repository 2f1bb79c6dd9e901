//! Connections of other nodes.
//!
//! Owns the acceptor's thread and the answer to each arrival: the group's replica takes it over, a
//! new replica is made for it, or it is told what this node is for the group. Never reads a stream.

use super::rejoin::OwnBase;
use super::state::Trouble;
use super::superseded::Own;
use super::threads::{ThreadError, WorkerThread};
use super::{Inner, NetHost, NetSocket};
use crate::engine::source::{fence_closed, history_of_closed};
use crate::engine::target::{
    Acceptor, AcceptorLimits, Arrival, Joining, Opened, ReplicaFiles, ReplicaRequest, Route,
    Router, TargetError, TargetPolicy,
};
use blkrep_api::{EventId, NewEvent};
use blkrep_core::source::Gate;
use blkrep_io::real::RealSocket;
use blkrep_store::superblock::ReplicaVolume;
use blkrep_types::{ByteLen, GroupName, History};
use blkrep_wire::{Hello, HelloVolume, RefuseCode, Welcome, WelcomeVolume};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

const RING_ENTRIES: u32 = 128;

/// The acceptor's thread.
#[derive(Debug)]
pub(super) struct Listening {
    stop: Arc<AtomicBool>,
    thread: WorkerThread,
}

impl Listening {
    pub(super) fn start(inner: &Arc<Inner>, listener: TcpListener) -> Result<Self, ThreadError> {
        let stop = Arc::new(AtomicBool::new(false));
        let router = NodeRouter(Arc::downgrade(inner));
        let events = inner.events.clone();
        let rubbish: Arc<dyn Fn(&str) + Send + Sync> =
            Arc::new(move |what| events.publish(NewEvent::new(EventId::PeerRubbish, what)));
        let stopped = Arc::clone(&stop);
        let thread = WorkerThread::start(&inner.net, "acceptor", RING_ENTRIES, move |_| {
            let listener = NetSocket::plain(RealSocket::from(listener));
            let limits = AcceptorLimits::default();
            Ok(Acceptor::<NetHost>::new(
                listener,
                Box::new(router),
                limits,
                rubbish,
                stopped,
            ))
        })?;
        Ok(Self { stop, thread })
    }

    pub(super) fn stop(self) {
        self.stop.store(true, Ordering::Release);
        self.thread.wake();
        self.thread.join();
    }
}

struct NodeRouter(Weak<Inner>);

impl Router<NetSocket> for NodeRouter {
    fn route(&mut self, arrival: Arrival<NetSocket>) -> Route {
        match self.0.upgrade() {
            Some(inner) if !inner.stopping.load(Ordering::Acquire) => inner.route(arrival),
            _ => stopping(),
        }
    }

    fn join(&mut self, joining: Joining<NetSocket>) -> Route {
        match self.0.upgrade() {
            Some(inner) if !inner.stopping.load(Ordering::Acquire) => inner.join_session(joining),
            _ => stopping(),
        }
    }
}

fn stopping() -> Route {
    refuse(
        RefuseCode::Unavailable,
        "the target is stopping; it is tried again".to_owned(),
    )
}

/// Commands change what a new replica depends on. The acceptor does not wait for one that takes
/// long: other sources wait for the acceptor.
pub(super) fn another_command() -> Route {
    refuse(
        RefuseCode::Unavailable,
        "the target is busy with another command; it is tried again".to_owned(),
    )
}

/// A replica that cannot be used: nothing of it is replaced before somebody says so.
fn unusable(error: &TargetError, group: &GroupName) -> Route {
    let text = match error {
        TargetError::Promoted(_) => format!(
            "{error}; blkctl forget {group} there lets it become a target, whose data is then \
             overwritten"
        ),
        _ => error.to_string(),
    };
    refuse(error.code(), text)
}

pub(super) fn refuse(code: RefuseCode, text: String) -> Route {
    Route::Refuse {
        code,
        history: History::new(),
        text,
    }
}

impl Inner {
    fn route(&self, arrival: Arrival<NetSocket>) -> Route {
        let (facts, from) = (arrival.socket.facts(), arrival.socket.raw().peer());
        let node = arrival.hello.node.clone();
        if let Err(why) = self.trust.judge_link(&facts, from, &node) {
            return refuse(RefuseCode::Untrusted, why);
        }
        let group = arrival.hello.group.clone();
        let route = self.route_trusted(arrival);
        if matches!(route, Route::Taken)
            && let Some(replica) = self.state().replicas.get_mut(&group)
        {
            replica.proven = facts.node;
        }
        route
    }

    /// A further connection proves by itself who it is from.
    fn join_session(&self, joining: Joining<NetSocket>) -> Route {
        let Joining { socket, join } = joining;
        let (facts, from) = (socket.facts(), socket.raw().peer());
        if let Err(why) = self.trust.judge_link(&facts, from, &join.node) {
            return refuse(RefuseCode::Untrusted, why);
        }
        let replica = self
            .state()
            .replicas
            .get(&join.group)
            .map(|replica| replica.control.clone());
        let taken = replica.is_some_and(|control| control.join(socket, join));
        if taken {
            Route::Taken
        } else {
            let text = "no session of that group is here".to_owned();
            refuse(RefuseCode::Unavailable, text)
        }
    }

    fn route_trusted(&self, arrival: Arrival<NetSocket>) -> Route {
        let group = arrival.hello.group.clone();
        let control = self
            .state()
            .replicas
            .get(&group)
            .map(|replica| replica.control.clone());
        if let Some(control) = control {
            return hand_over(&control, arrival);
        }
        if let Some(answer) = self.as_source(&arrival.hello, arrival.version) {
            if !matches!(answer, Route::Taken) {
                return answer;
            }
            // The former source has become a target just now.
            let control = self
                .state()
                .replicas
                .get(&group)
                .map(|replica| replica.control.clone());
            return control.map_or(answer, |control| hand_over(&control, arrival));
        }
        let made = match self.try_command() {
            Some(_turn) => self
                .make_replica(&arrival.hello, &[])
                .and_then(|opened| self.begin_replica(&group, opened)),
            None => Err(another_command()),
        };
        if let Err(refusal) = made {
            return refusal;
        }
        let control = self
            .state()
            .replicas
            .get(&group)
            .map(|replica| replica.control.clone());
        match control {
            Some(control) => hand_over(&control, arrival),
            None => refuse(
                RefuseCode::Unavailable,
                "the replica has just ended".to_owned(),
            ),
        }
    }

    /// The answer where this node is source of the group, or was. `Taken` if it has become a target.
    fn as_source(&self, hello: &Hello, version: u16) -> Option<Route> {
        let volumes = self.volumes_of(&hello.group);
        if volumes.is_empty() {
            return None;
        }
        let Some(engine) = self.state().engine(&hello.group) else {
            let served = volumes.iter().any(|(_, entry)| entry.served);
            return Some(self.as_closed_source(hello, served));
        };
        let history = engine.history();
        let who = format!("node {}", hello.node);
        // One that is fenced has heard of it.
        let told = engine.gate() == Gate::Fenced
            || self
                .teller
                .tell(&hello.group, None, &Own::of(&engine), &hello.history, &who);
        if hello.history.supersedes(history.current()) {
            // The other one was promoted over us: from this moment our device returns EIO.
            let newer = hello.history.current();
            if let Err(error) = engine.fence(newer) {
                tracing::error!(group = %hello.group, %error, "remember the newer generation");
            }
            if hello.overwrite {
                drop(engine);
                return Some(self.become_target(hello).err().unwrap_or(Route::Taken));
            }
        } else if !told && !history.supersedes(hello.history.current()) {
            let text = format!(
                "node {} offers generation {}, which this node does not know, to one that serves {}",
                hello.node,
                hello.history.current(),
                history.current()
            );
            self.tell(NewEvent::new(EventId::GenerationRefused, text).group(&hello.group));
        }
        let len = |index: usize| {
            volumes
                .get(index)
                .map_or(ByteLen::ZERO, |(_, entry)| entry.len)
        };
        let lens = hello.volumes.iter().map(|volume| WelcomeVolume {
            index: volume.index,
            len: len(volume.index.as_usize()),
        });
        let answer = Welcome::of_source(version, self.name.clone(), history, lens.collect());
        Some(Route::Answer(Box::new(answer)))
    }

    /// The answer where this node was source of the group and does not serve it now.
    fn as_closed_source(&self, hello: &Hello, served: bool) -> Route {
        let group = &hello.group;
        let Some(turn) = self.try_command() else {
            return another_command();
        };
        if self.rejoin_is_decided(group) {
            return self.go_on_as_target(hello).err().unwrap_or(Route::Taken);
        }
        let history = match history_of_closed(&self.host, &self.groups_dir, group) {
            Ok(history) => history.unwrap_or_default(),
            Err(error) => {
                tracing::error!(%group, %error, "look at the history of a group");
                History::new()
            }
        };
        let superseded = hello.history.supersedes(history.current());
        if !superseded {
            let text = format!(
                "node {} is source of group {group} itself, and does not serve it now; `blkctl forget {group}` there lets it become a target",
                self.name
            );
            // One that is to be served may be soon.
            let code = if served {
                RefuseCode::Unavailable
            } else {
                RefuseCode::Busy
            };
            return refuse(code, text);
        }
        let (last, who) = (None, format!("node {}", hello.node));
        let own = Own { history, last };
        self.teller.tell(group, None, &own, &hello.history, &who);
        // From this moment its device returns EIO, also when it is attached again.
        let newer = hello.history.current();
        if let Err(error) = fence_closed(&self.host, &self.groups_dir, group, newer) {
            tracing::error!(%group, %error, "remember the newer generation");
            let text = format!(
                "node {} cannot write down that a newer generation of group {group} exists: {error}; it is tried again",
                self.name
            );
            return refuse(RefuseCode::Unavailable, text);
        }
        drop(turn);
        if hello.overwrite {
            return self.become_target(hello).err().unwrap_or(Route::Taken);
        }
        let text = format!(
            "node {} was source of group {group} and may hold writes of its own; to overwrite it, connect again with --mirror checksum --yes",
            self.name
        );
        refuse(RefuseCode::Unrelated, text)
    }

    /// Makes a replica for a group that this node does not serve, or opens the one that is there. One
    /// that is there and cannot be opened (damaged, of a newer version, its disk missing) is left as
    /// it is: it may hold the only copy of what was acknowledged. Bases of `own` volumes, which the
    /// node had as their source, are allowed and are where a volume goes that nobody named a path for.
    pub(super) fn make_replica(
        &self,
        hello: &Hello,
        own: &[OwnBase],
    ) -> Result<Opened<NetHost>, Route> {
        let directory = self.replica_dir(&hello.group);
        match ReplicaFiles::open(&self.net, &directory) {
            Ok(None) => {}
            Ok(Some(opened)) => return Ok(opened),
            Err(error) => return Err(unusable(&error, &hello.group)),
        }
        if own.is_empty() && self.has_record(&hello.group) {
            let text = format!(
                "node {} has a record of group {} as its source, without a volume; `blkctl forget {}` there lets it become a target",
                self.name, hello.group, hello.group
            );
            return Err(refuse(RefuseCode::Busy, text));
        }
        let policy = TargetPolicy {
            directories: self.replica_dirs.clone(),
            paths: own.iter().map(|(_, path)| path.clone()).collect(),
        };
        let path_of = |volume: &HelloVolume| {
            let base = own
                .iter()
                .find(|(name, _)| *name == volume.name && volume.path.is_empty());
            base.map_or_else(|| volume.path.clone().into(), |(_, path)| path.clone())
        };
        let request = ReplicaRequest {
            group: hello.group.clone(),
            source: hello.node.clone(),
            link: hello.link.clone(),
            volumes: hello
                .volumes
                .iter()
                .map(|volume| ReplicaVolume {
                    index: volume.index,
                    name: volume.name.clone(),
                    len: volume.len,
                    block_size: volume.block_size,
                    extent_size: volume.extent_size,
                    path: path_of(volume),
                })
                .collect(),
            overwrite: hello.overwrite,
        };
        let settings = self.target_settings(&hello.group);
        let made = ReplicaFiles::create(&self.net, &directory, &policy, &settings, &request);
        made.map_err(|error| {
            if let Err(error) = self.remove_replica_files(&hello.group) {
                tracing::warn!(group = %hello.group, %error, "remove a replica that was not made");
            }
            refuse(error.code(), error.to_string())
        })
    }

    /// A replica that cannot be run now is tried again, as after a start.
    pub(super) fn begin_replica(
        &self,
        group: &GroupName,
        opened: Opened<NetHost>,
    ) -> Result<(), Route> {
        let begun = self.start_replica(group, opened);
        let mut state = self.state();
        match begun {
            Ok(()) => drop(state.unopened.remove(group)),
            Err(error) => {
                let trouble = Trouble::from(&error);
                state.unopened.insert(group.clone(), trouble.clone());
                let text = format!("{}; {}", trouble.what, trouble.action);
                return Err(refuse(RefuseCode::Failed, text));
            }
        }
        Ok(())
    }
}

fn hand_over(
    control: &crate::engine::target::TargetControl<NetSocket>,
    arrival: Arrival<NetSocket>,
) -> Route {
    // If its worker is just ending the socket goes with the attempt, and the source tries again.
    let taken = control.session(arrival.socket, arrival.hello, arrival.version);
    tracing::debug!(taken, "handed a connection to its replica");
    Route::Taken
}
