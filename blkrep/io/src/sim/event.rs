//! What will happen, in order of time.
//!
//! Owns the queue of events. Two at the same instant happen in the order in which they were made.

use super::net::{Caller, NetEvent};
use super::storage::DiskOp;
use super::world::RingId;
use crate::proactor::Completion;
use crate::sim::SimSocket;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Something that will happen.
#[derive(Debug)]
pub(super) enum Event {
    /// A disk finishes an operation.
    Disk(DiskOp),
    /// The network moves.
    Net(NetEvent),
    /// An answer reaches its ring.
    Answer(Caller, Completion<SimSocket>),
    /// A ring is woken.
    Wake(RingId),
}

#[derive(Debug)]
struct Scheduled {
    at: u64,
    order: u64,
    event: Event,
}

impl Ord for Scheduled {
    /// The earliest is the greatest: `BinaryHeap` pops the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

/// The events to come.
#[derive(Debug, Default)]
pub(super) struct Events {
    heap: BinaryHeap<Scheduled>,
    order: u64,
}

impl Events {
    pub(super) fn add(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.heap.push(Scheduled {
            at,
            order: self.order,
            event,
        });
    }

    /// When the next one happens.
    pub(super) fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|next| next.at)
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        self.heap.pop().map(|next| next.event)
    }

    /// Takes out the disk operations that `which` names, in order of time.
    pub(super) fn take_disk(&mut self, which: impl Fn(&DiskOp) -> bool) -> Vec<(u64, DiskOp)> {
        let mut all = std::mem::take(&mut self.heap).into_vec();
        all.sort_by(|one, other| other.cmp(one));
        let mut taken = Vec::new();
        for next in all {
            match next.event {
                Event::Disk(op) if which(&op) => taken.push((next.at, op)),
                event => self.heap.push(Scheduled { event, ..next }),
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_by_age() {
        let mut events = Events::default();
        for (at, ring) in [(5, 1), (3, 2), (5, 3), (3, 4)] {
            events.add(at, Event::Wake(RingId(ring)));
        }
        let mut seen = Vec::new();
        while let Some(Event::Wake(ring)) = events.pop() {
            seen.push(ring.0);
        }
        assert_eq!(seen, [2, 4, 1, 3]);
    }
}
