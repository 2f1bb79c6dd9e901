//! Connections of other nodes.
//!
//! Owns the acceptor's thread and the answer to each arrival: the group's replica takes it over, a
//! new replica is made for it, or it is told what this node is for the group. Never reads a stream.

use super::Inner;
use super::threads::{ThreadError, WorkerThread};
use crate::engine::target::{
    Acceptor, AcceptorLimits, Arrival, ReplicaFiles, ReplicaRequest, Route, Router, TargetPolicy,
};
use blkrep_api::{EventId, NewEvent};
use blkrep_io::real::{RealHost, RealSocket};
use blkrep_store::superblock::ReplicaVolume;
use blkrep_types::{ByteLen, DataState, History, VolumeName, WriteName};
use blkrep_wire::{Hello, HelloVolume, PeerRole, RefuseCode, Welcome, WelcomeVolume};
use std::net::TcpListener;
use std::path::PathBuf;
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
        let thread = WorkerThread::start(&inner.host, "acceptor", RING_ENTRIES, move |_| {
            let listener = RealSocket::from(listener);
            let limits = AcceptorLimits::default();
            Ok(Acceptor::<RealHost>::new(
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

/// A volume this node had as its source, and its backing.
type OwnBase = (VolumeName, PathBuf);

struct NodeRouter(Weak<Inner>);

impl Router<RealSocket> for NodeRouter {
    fn route(&mut self, arrival: Arrival<RealSocket>) -> Route {
        match self.0.upgrade() {
            Some(inner) if !inner.stopping.load(Ordering::Acquire) => inner.route(arrival),
            _ => refuse(
                RefuseCode::Busy,
                "the target is stopping; it is tried again".to_owned(),
            ),
        }
    }
}

fn refuse(code: RefuseCode, text: String) -> Route {
    Route::Refuse {
        code,
        history: History::new(),
        text,
    }
}

impl Inner {
    fn route(&self, arrival: Arrival<RealSocket>) -> Route {
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
        if let Err(refusal) = self.make_replica(&arrival.hello, &[]) {
            return refusal;
        }
        let control = self
            .state()
            .replicas
            .get(&group)
            .map(|replica| replica.control.clone());
        match control {
            Some(control) => hand_over(&control, arrival),
            None => refuse(RefuseCode::Busy, "the replica has just ended".to_owned()),
        }
    }

    /// The answer where this node is source of the group, or was. `Taken` if it has become a target.
    fn as_source(&self, hello: &Hello, version: u16) -> Option<Route> {
        let volumes = self.volumes_of(&hello.group);
        if volumes.is_empty() {
            return None;
        }
        let Some(engine) = self.state().engine(&hello.group) else {
            let text = format!(
                "node {} is source of group {} itself, and does not serve it now; `blkctl forget {}` there lets it become a target",
                self.name, hello.group, hello.group
            );
            return Some(refuse(RefuseCode::Busy, text));
        };
        let history = engine.history();
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
        } else if !history.supersedes(hello.history.current()) {
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
        Some(Route::Answer(Box::new(Welcome {
            version,
            node: self.name.clone(),
            role: PeerRole::Source,
            data_state: DataState::Ok,
            durable: WriteName {
                generation: history.current(),
                ..WriteName::NONE
            },
            history,
            journal_used: ByteLen::ZERO,
            journal_capacity: ByteLen::ZERO,
            volumes: hello
                .volumes
                .iter()
                .map(|volume| WelcomeVolume {
                    index: volume.index,
                    len: len(volume.index.as_usize()),
                })
                .collect(),
        })))
    }

    /// Gives up a superseded source for the newer history: its backings become the replica's bases.
    /// The operator has said so at the newer source, by name.
    fn become_target(&self, hello: &Hello) -> Result<(), Route> {
        let _turn = self.command();
        let group = &hello.group;
        let own: Vec<OwnBase> = self
            .volumes_of(group)
            .into_iter()
            .map(|(name, entry)| (name, entry.backing))
            .collect();
        self.give_up(group)
            .map_err(|error| refuse(RefuseCode::Busy, format!("{error}; {}", error.action)))?;
        self.make_replica(hello, &own)
    }

    /// Makes a replica for a group that this node does not serve. Bases of `own` volumes, which the
    /// node had as their source, are allowed and are where a volume goes that nobody named a path for.
    fn make_replica(&self, hello: &Hello, own: &[OwnBase]) -> Result<(), Route> {
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
        let directory = self.replica_dir(&hello.group);
        let settings = self.target_settings(&hello.group);
        let opened = ReplicaFiles::create(&self.host, &directory, &policy, &settings, &request)
            .map_err(|error| refuse(error.code(), error.to_string()))?;
        self.start_replica(&hello.group, opened)
            .map_err(|error| refuse(RefuseCode::Busy, format!("{error}; {}", error.action)))
    }
}

fn hand_over(
    control: &crate::engine::target::TargetControl<RealSocket>,
    arrival: Arrival<RealSocket>,
) -> Route {
    // If its worker is just ending the socket goes with the attempt, and the source tries again.
    let taken = control.session(arrival.socket, arrival.hello, arrival.version);
    tracing::debug!(taken, "handed a connection to its replica");
    Route::Taken
}
