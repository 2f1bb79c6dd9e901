//! A power cut whose losses somebody chooses, where chance would choose one of many.
//!
//! Owns the list of what a host would lose, and the power cut that keeps a stated part of it. Both
//! go through names, disks and writes in the same order. For worlds that go through every case.

use super::disk::Write;
use super::random::SimRandom;
use super::state::State;
use super::storage::{DiskId, DiskOp, Storage};
use super::world::NodeId;
use blkrep_types::limits::SECTOR_BYTES;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Something that a power cut now would keep or lose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unflushed {
    /// A file that was made and never flushed: kept or lost with all its bytes.
    Name {
        /// The file.
        path: PathBuf,
    },
    /// A write: each of its sectors is kept or lost.
    Write {
        /// The file or device.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// It has not completed.
        in_flight: bool,
    },
}

impl Unflushed {
    /// How many parts of it are kept or lost each by itself.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        match self {
            Self::Name { .. } => 1,
            Self::Write { offset, len, .. } => {
                (*offset + *len).div_ceil(SECTOR_BYTES) - *offset / SECTOR_BYTES
            }
        }
    }
}

/// Writes in flight, by disk, in order of time; their handles are given up.
fn by_disk(in_flight: Vec<DiskOp>) -> BTreeMap<DiskId, Vec<Write>> {
    let mut writes: BTreeMap<DiskId, Vec<Write>> = BTreeMap::new();
    for op in in_flight {
        Storage::cancel(&op);
        let disk = op.file.disk();
        writes.entry(disk).or_default().extend(op.into_write());
    }
    writes
}

impl Storage {
    fn unflushed(&self, node: NodeId, in_flight: &[&DiskOp]) -> Vec<Unflushed> {
        let mut all = Vec::new();
        let names = self.names.iter().filter(|((at, _), _)| *at == node);
        for ((_, path), entry) in names {
            let name = Unflushed::Name { path: path.clone() };
            all.extend((!entry.durable).then_some(name));
            let write = |(offset, len), in_flight| Unflushed::Write {
                path: path.clone(),
                offset,
                len,
                in_flight,
            };
            let cached = self.stores[entry.disk].disk.unflushed();
            all.extend(cached.map(|bytes| write(bytes, false)));
            let ops = in_flight.iter().filter(|op| op.file.disk() == entry.disk);
            all.extend(ops.filter_map(|op| Some(write(op.write_bytes()?, true))));
        }
        all
    }

    fn power_loss_keeping(
        &mut self,
        node: NodeId,
        in_flight: Vec<DiskOp>,
        keep: &mut dyn FnMut(usize, u64) -> bool,
    ) {
        let mut writes = by_disk(in_flight);
        let (mut index, mut gone) = (0, Vec::new());
        for ((at, path), entry) in &mut self.names {
            if *at != node {
                continue;
            }
            if !std::mem::replace(&mut entry.durable, true) {
                if !keep(index, 0) {
                    gone.push((node, path.clone()));
                }
                index += 1;
            }
            let in_flight = writes.remove(&entry.disk).unwrap_or_default();
            let disk = &mut self.stores[entry.disk].disk;
            index +=
                disk.power_loss_keeping(&in_flight, |write, sector| keep(index + write, sector));
        }
        for name in gone {
            self.names.remove(&name);
        }
        self.release(node);
    }

    /// The host lost power with these operations in flight.
    pub(super) fn power_loss(
        &mut self,
        node: NodeId,
        in_flight: Vec<DiskOp>,
        random: &mut SimRandom,
    ) {
        let mut torn = by_disk(in_flight);
        for (id, store) in self.stores.iter_mut().enumerate() {
            if store.node == node {
                let writes = torn.remove(&id).unwrap_or_default();
                store.disk.power_loss(&writes, random);
            }
        }
        self.names
            .retain(|(at, _), entry| *at != node || entry.durable || random.one_in(2));
        for ((at, _), entry) in &mut self.names {
            entry.durable |= *at == node;
        }
        self.release(node);
    }
}

impl State {
    pub(super) fn unflushed(&self, node: NodeId) -> Vec<Unflushed> {
        self.storage.unflushed(node, &self.events.disk())
    }

    pub(super) fn power_loss(&mut self, node: NodeId) {
        let in_flight = self.take_in_flight(node);
        self.storage.power_loss(node, in_flight, &mut self.random);
        self.go_dark(node);
    }

    pub(super) fn power_loss_keeping(
        &mut self,
        node: NodeId,
        keep: &mut dyn FnMut(usize, u64) -> bool,
    ) {
        let in_flight = self.take_in_flight(node);
        self.storage.power_loss_keeping(node, in_flight, keep);
        self.go_dark(node);
    }

    fn take_in_flight(&mut self, node: NodeId) -> Vec<DiskOp> {
        let stores = &self.storage.stores;
        let taken = self
            .events
            .take_disk(|op| stores[op.file.disk()].node == node);
        taken.into_iter().map(|(_, op)| op).collect()
    }
}
