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

/// When an event happens, and where it waits: small, for the heap moves it about.
#[derive(Debug)]
struct Scheduled {
    at: u64,
    order: u64,
    place: usize,
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
    /// What waits, by place.
    waiting: Vec<Option<Event>>,
    free: Vec<usize>,
    order: u64,
}

impl Events {
    pub(super) fn add(&mut self, at: u64, event: Event) {
        self.order += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.waiting.push(None);
            self.waiting.len() - 1
        });
        self.waiting[place] = Some(event);
        self.heap.push(Scheduled {
            at,
            order: self.order,
            place,
        });
    }

    /// When the next one happens.
    pub(super) fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|next| next.at)
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        let next = self.heap.pop()?;
        Some(self.leave(next.place))
    }

    fn leave(&mut self, place: usize) -> Event {
        self.free.push(place);
        self.waiting[place].take().expect("a place has its event")
    }

    /// The disk operations to come, in order of time.
    pub(super) fn disk(&self) -> Vec<&DiskOp> {
        let mut all: Vec<&Scheduled> = self.heap.iter().collect();
        all.sort_by(|one, other| other.cmp(one));
        let waiting = all.into_iter().map(|next| &self.waiting[next.place]);
        waiting
            .filter_map(|event| match event {
                Some(Event::Disk(op)) => Some(op),
                _ => None,
            })
            .collect()
    }

    /// Takes out the disk operations that `which` names, in order of time.
    pub(super) fn take_disk(&mut self, which: impl Fn(&DiskOp) -> bool) -> Vec<(u64, DiskOp)> {
        let mut all = std::mem::take(&mut self.heap).into_vec();
        all.sort_by(|one, other| other.cmp(one));
        let mut taken = Vec::new();
        for next in all {
            let wanted = matches!(&self.waiting[next.place], Some(Event::Disk(op)) if which(op));
            if !wanted {
                self.heap.push(next);
            } else if let Event::Disk(op) = self.leave(next.place) {
                taken.push((next.at, op));
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
