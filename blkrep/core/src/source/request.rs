//! Requests of an application while they are under way.
//!
//! Owns the words of a request and the slab that holds those under way. Never decides anything.

use super::WorkerId;
use blkrep_types::{Extent, Seq, VolumeIndex};

/// A request's place in the slab.
pub type RequestId = u32;

/// What a request that changes or flushes asks for. Reads bypass the state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestOp {
    /// Read; only seen while the gate is closed.
    Read,
    /// Write the tag's bytes.
    Write {
        /// Durable before it completes.
        fua: bool,
    },
    /// The extent reads as zeroes afterwards.
    Zero {
        /// Durable before it completes.
        fua: bool,
        /// The storage below may be given back.
        free: bool,
    },
    /// Everything completed becomes durable.
    Flush,
}

/// A request as it comes.
#[derive(Debug, Clone, Copy)]
pub struct NewRequest {
    /// The queue's worker.
    pub worker: WorkerId,
    /// The queue's name for it.
    pub tag: u16,
    /// The volume.
    pub volume: VolumeIndex,
    /// What it asks for.
    pub op: RequestOp,
    /// Where; `None` exactly for a flush.
    pub extent: Option<Extent>,
}

/// Where a request is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Waits for its range.
    Locking,
    /// Waits until its intent is durable.
    Intending,
    /// Waits for its delay, or for room in the log.
    Queued,
    /// Its local operation runs.
    Local,
    /// Waits for a flush.
    Flushing,
    /// Waits for an acknowledgement.
    Acking,
    /// Waits for an operator.
    Parked,
    /// Waits for what the target holds.
    Reading,
    /// Answered because its device went away; its range is still to come.
    Left,
}

impl Stage {
    /// True if `next` may follow.
    const fn may_become(self, next: Self) -> bool {
        match (self, next) {
            (
                Self::Locking,
                Self::Intending | Self::Queued | Self::Local | Self::Reading | Self::Left,
            )
            | (Self::Intending, Self::Queued | Self::Local)
            | (Self::Queued, Self::Local)
            | (Self::Local | Self::Flushing, Self::Flushing | Self::Acking | Self::Parked)
            | (Self::Parked, Self::Locking | Self::Local | Self::Flushing | Self::Reading) => true,
            (Self::Locking | Self::Intending | Self::Queued, _)
            | (Self::Local | Self::Flushing | Self::Parked, _)
            | (Self::Acking | Self::Reading | Self::Left, _) => false,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub(super) new: NewRequest,
    pub(super) stage: Stage,
    pub(super) slot: Option<super::Slot>,
    /// It is counted in the intent map.
    pub(super) intent: bool,
    /// What an acknowledgement must reach.
    pub(super) wait_for: Seq,
}

impl Request {
    pub(super) fn extent(&self) -> Extent {
        self.new.extent.expect("reads and writes have an extent")
    }

    /// True if it must be durable before it is answered.
    pub(super) const fn is_durable(&self) -> bool {
        match self.new.op {
            RequestOp::Flush => true,
            RequestOp::Write { fua } | RequestOp::Zero { fua, .. } => fua,
            RequestOp::Read => false,
        }
    }

    pub(super) fn become_stage(&mut self, next: Stage) {
        assert!(
            self.stage.may_become(next),
            "a request goes from {:?} to {next:?}",
            self.stage
        );
        self.stage = next;
    }
}

/// Things under way, by number. Numbers are used again.
#[derive(Debug)]
pub(super) struct Slab<T> {
    items: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self {
            items: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
        }
    }

    pub(super) fn insert(&mut self, item: T) -> u32 {
        if let Some(id) = self.free.pop() {
            self.items[index(id)] = Some(item);
            return id;
        }
        self.items.push(Some(item));
        u32::try_from(self.items.len() - 1).expect("bounded by the queues' depth")
    }

    pub(super) fn get(&self, id: u32) -> &T {
        self.items[index(id)].as_ref().expect("it is under way")
    }

    pub(super) fn get_mut(&mut self, id: u32) -> &mut T {
        self.items[index(id)].as_mut().expect("it is under way")
    }

    pub(super) fn remove(&mut self, id: u32) -> T {
        let item = self.items[index(id)].take().expect("it is under way");
        self.free.push(id);
        item
    }

    pub(super) fn len(&self) -> usize {
        self.items.len() - self.free.len()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.items.iter_mut().flatten()
    }

    /// The numbers of all that are under way.
    pub(super) fn ids(&self) -> Vec<u32> {
        let places = (0_u32..).zip(&self.items);
        let taken = places.filter(|(_, item)| item.is_some());
        taken.map(|(id, _)| id).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.iter().flatten()
    }
}

fn index(id: u32) -> usize {
    usize::try_from(id).expect("64-bit platform")
}
