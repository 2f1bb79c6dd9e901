//! The rings of a world: who has something to see.
//!
//! Owns each ring's completions and its deadline, in the order in which the rings were made. Asked
//! before every event: few rings, gone through in one sweep.

use super::clock::Clock;
use super::net::SimSocket;
use super::world::{ProcessId, RingId};
use crate::proactor::Completion;
use std::collections::VecDeque;

/// A ring as the world sees it.
#[derive(Debug)]
pub(super) struct Ring {
    id: RingId,
    process: ProcessId,
    pub(super) ready: VecDeque<Completion<SimSocket>>,
    pub(super) woken: bool,
    /// The deadline by the clock of its host.
    wanted: Option<u64>,
    /// The same by the world's.
    deadline: Option<u64>,
}

impl Ring {
    /// Its worker wants a turn at this time of its host's clock.
    pub(super) fn expect(&mut self, wanted: Option<u64>, clock: &Clock) {
        self.wanted = wanted;
        self.deadline = wanted.map(|at| clock.world(at));
    }

    fn ready(&self, now: u64) -> bool {
        !self.ready.is_empty() || self.woken || self.deadline.is_some_and(|at| at <= now)
    }
}

/// All rings of living processes, oldest first.
#[derive(Debug, Default)]
pub(super) struct Rings {
    rings: Vec<Ring>,
    made: u64,
}

impl Rings {
    pub(super) fn add(&mut self, process: ProcessId) -> RingId {
        self.made += 1;
        let id = RingId(self.made);
        self.rings.push(Ring {
            id,
            process,
            ready: VecDeque::new(),
            woken: false,
            wanted: None,
            deadline: None,
        });
        id
    }

    pub(super) fn get_mut(&mut self, id: RingId) -> Option<&mut Ring> {
        self.rings.iter_mut().find(|ring| ring.id == id)
    }

    /// The clock of these processes has changed.
    pub(super) fn set_clock(&mut self, clock: &Clock, ours: impl Fn(ProcessId) -> bool) {
        for ring in self.rings.iter_mut().filter(|ring| ours(ring.process)) {
            ring.expect(ring.wanted, clock);
        }
    }

    pub(super) fn remove(&mut self, id: RingId) {
        self.rings.retain(|ring| ring.id != id);
    }

    pub(super) fn remove_process(&mut self, process: ProcessId) {
        self.rings.retain(|ring| ring.process != process);
    }

    /// How many have something to see.
    pub(super) fn ready(&self, now: u64) -> usize {
        self.rings.iter().filter(|ring| ring.ready(now)).count()
    }

    /// One of those.
    pub(super) fn nth_ready(&self, now: u64, index: usize) -> Option<RingId> {
        let ready = self.rings.iter().filter(|ring| ring.ready(now));
        ready.map(|ring| ring.id).nth(index)
    }

    /// When the first of them wants its turn at the latest.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.rings.iter().filter_map(|ring| ring.deadline).min()
    }
}
