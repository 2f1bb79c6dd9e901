//! Files of the simulated hosts: handles, claims, and operations on their way to a disk.
//!
//! Owns which file is which disk, who holds a claim, and what becomes of an operation. The bytes
//! themselves are the disk's.

use super::disk::{Disk, DiskShape, Write};
use super::net::Caller;
use super::random::SimRandom;
use super::world::{NodeId, ProcessId};
use crate::host::{Access, FileKind, Geometry};
use crate::memory::Slice;
use crate::proactor::Op;
use crate::sim::SimSocket;
use blkrep_types::{BlockSize, ByteLen, Errno};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

const ENOENT: Errno = Errno::new(2);
const EBADF: Errno = Errno::new(9);

/// What a host without a limit says it has left.
const UNLIMITED: u64 = 1 << 50;

/// A disk of the world, by number; it stays when its path is removed.
pub(super) type DiskId = usize;

/// An open simulated file; clones share it.
#[derive(Debug, Clone)]
pub struct SimFile(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    disk: DiskId,
    process: ProcessId,
    path: PathBuf,
    access: Access,
    /// Operations on their way to the disk: they hold the claim of a dead process.
    pending: AtomicU32,
}

impl SimFile {
    pub(super) fn disk(&self) -> DiskId {
        self.0.disk
    }

    pub(super) fn path(&self) -> &Path {
        &self.0.path
    }

    fn pending(&self, change: i32) {
        let count = &self.0.pending;
        match change {
            1 => count.fetch_add(1, Ordering::Relaxed),
            _ => count.fetch_sub(1, Ordering::Relaxed),
        };
    }
}

/// What an operation does to its disk when it finishes.
#[derive(Debug)]
pub(super) enum DiskWork {
    Read {
        offset: u64,
        slice: Slice,
    },
    Write {
        offset: u64,
        bytes: Arc<[u8]>,
        source: Option<Slice>,
        durable: bool,
    },
    Sync {
        upto: u64,
    },
}

/// An operation on its way to a disk.
#[derive(Debug)]
pub(super) struct DiskOp {
    pub(super) caller: Caller,
    pub(super) file: SimFile,
    pub(super) work: DiskWork,
}

impl DiskOp {
    /// First byte and length of what it writes.
    pub(super) fn write_bytes(&self) -> Option<(u64, u64)> {
        match &self.work {
            DiskWork::Write { offset, bytes, .. } => {
                let len = u64::try_from(bytes.len()).expect("64-bit platform");
                Some((*offset, len))
            }
            DiskWork::Read { .. } | DiskWork::Sync { .. } => None,
        }
    }

    /// The bytes it may leave behind if it is cut short.
    pub(super) fn into_write(self) -> Option<Write> {
        match self.work {
            DiskWork::Write { offset, bytes, .. } => Some((offset, bytes)),
            DiskWork::Read { .. } | DiskWork::Sync { .. } => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) disk: DiskId,
    /// The name survives a power cut.
    pub(super) durable: bool,
}

/// A disk with what its host knows about it.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) node: NodeId,
    pub(super) disk: Disk,
    claim: Option<Weak<Handle>>,
    pub(super) stalled_until: u64,
}

/// All files of all hosts.
#[derive(Debug, Default)]
pub(super) struct Storage {
    /// Flushes do nothing.
    pub(super) sync_lies: bool,
    pub(super) stores: Vec<Store>,
    pub(super) names: BTreeMap<(NodeId, PathBuf), Entry>,
    /// Bytes that a host may still allocate to new files; unlimited if absent.
    space: BTreeMap<NodeId, u64>,
    /// Hosts whose files can neither be made nor grow.
    full: BTreeSet<NodeId>,
}

impl Storage {
    pub(super) fn new(sync_lies: bool) -> Self {
        Self {
            sync_lies,
            ..Self::default()
        }
    }

    /// Puts a disk at a path, replacing what is there.
    pub(super) fn place(&mut self, node: NodeId, path: &Path, shape: DiskShape, len: u64) {
        let id = self.add(node, shape, len);
        self.names.insert(
            (node, path.to_owned()),
            Entry {
                disk: id,
                durable: true,
            },
        );
    }

    fn add(&mut self, node: NodeId, shape: DiskShape, len: u64) -> DiskId {
        let disk = Disk::new(shape, len);
        self.stores.push(Store {
            node,
            disk,
            claim: None,
            stalled_until: 0,
        });
        self.stores.len() - 1
    }

    /// Copies all files of a host of another world, unflushed writes included.
    pub(super) fn copy(&mut self, to: NodeId, other: &Self, from: NodeId) {
        for ((_, path), entry) in other.names.iter().filter(|((node, _), _)| *node == from) {
            let disk = other.stores[entry.disk].disk.clone();
            self.stores.push(Store {
                node: to,
                disk,
                claim: None,
                stalled_until: 0,
            });
            let copied = Entry {
                disk: self.stores.len() - 1,
                durable: entry.durable,
            };
            self.names.insert((to, path.clone()), copied);
        }
    }

    pub(super) fn set_space(&mut self, node: NodeId, bytes: u64) {
        self.space.insert(node, bytes);
    }

    pub(super) fn set_full(&mut self, node: NodeId, full: bool) {
        if full {
            self.full.insert(node);
        } else {
            self.full.remove(&node);
        }
    }

    /// Bytes that files of a host may still take.
    pub(super) fn space_left(&self, node: NodeId) -> u64 {
        match self.full.contains(&node) {
            true => 0,
            false => self.space.get(&node).copied().unwrap_or(UNLIMITED),
        }
    }

    pub(super) fn find(&self, node: NodeId, path: &Path) -> Option<DiskId> {
        self.names
            .get(&(node, path.to_owned()))
            .map(|entry| entry.disk)
    }

    pub(super) fn names(&self, node: NodeId) -> impl Iterator<Item = (&Path, DiskId)> {
        let all = self.names.iter();
        all.filter(move |((at, _), _)| *at == node)
            .map(|((_, path), entry)| (path.as_path(), entry.disk))
    }

    pub(super) fn open(
        &mut self,
        (node, process): (NodeId, ProcessId),
        path: &Path,
        access: Access,
        alive: impl Fn(ProcessId) -> bool,
    ) -> Result<SimFile, Errno> {
        let id = match (self.find(node, path), access.create) {
            (Some(id), _) => id,
            (None, Some(len)) => self.create(node, path, len)?,
            (None, None) => return Err(ENOENT),
        };
        let store = &mut self.stores[id];
        if access.claim {
            let holder = store.claim.as_ref().and_then(Weak::upgrade);
            let held = holder.is_some_and(|handle| {
                alive(handle.process) || handle.pending.load(Ordering::Relaxed) > 0
            });
            if held {
                return Err(Errno::EBUSY);
            }
        }
        let path = path.to_owned();
        let handle = Arc::new(Handle {
            disk: id,
            process,
            path,
            access,
            pending: 0.into(),
        });
        if access.claim {
            store.claim = Some(Arc::downgrade(&handle));
        }
        Ok(SimFile(handle))
    }

    fn create(&mut self, node: NodeId, path: &Path, len: ByteLen) -> Result<DiskId, Errno> {
        if self.full.contains(&node) {
            return Err(Errno::ENOSPC);
        }
        if let Some(space) = self.space.get_mut(&node) {
            *space = space.checked_sub(len.get()).ok_or(Errno::ENOSPC)?;
        }
        let shape = DiskShape {
            device: None,
            block_size: BlockSize::B512,
            write_cache: true,
        };
        let disk = self.add(node, shape, len.get());
        self.names.insert(
            (node, path.to_owned()),
            Entry {
                disk,
                durable: false,
            },
        );
        Ok(disk)
    }

    pub(super) fn remove(&mut self, node: NodeId, path: &Path) {
        if let Some(entry) = self.names.remove(&(node, path.to_owned())) {
            let freed = self.stores[entry.disk].disk.len();
            if let Some(space) = self.space.get_mut(&node) {
                *space = space.saturating_add(freed);
            }
        }
    }

    /// The name of a disk is durable from now on.
    pub(super) fn name_durably(&mut self, disk: DiskId) {
        for entry in self.names.values_mut().filter(|entry| entry.disk == disk) {
            entry.durable = true;
        }
    }

    pub(super) fn geometry(&self, file: &SimFile) -> Geometry {
        let disk = &self.stores[file.disk()].disk;
        Geometry {
            kind: match disk.shape.device {
                Some(minor) => FileKind::Block { major: 8, minor },
                None => FileKind::Regular,
            },
            len: ByteLen::new(disk.len()),
            block_size: disk.shape.block_size,
            physical_block_bytes: 4096,
            write_cache: disk.shape.write_cache,
            read_only: false,
        }
    }

    /// Checks an operation as the kernel would and makes it one on its way; `Err` is its answer.
    pub(super) fn begin(
        &mut self,
        caller: Caller,
        op: Op<SimFile, SimSocket>,
    ) -> Result<DiskOp, Errno> {
        let (file, work) = match op {
            Op::Read {
                file,
                offset,
                slice,
            } => {
                self.check_direct(&file, offset, &slice)?;
                (file, DiskWork::Read { offset, slice })
            }
            Op::Write {
                file,
                offset,
                slice,
                durable,
            } => {
                self.check_direct(&file, offset, &slice)?;
                let bytes = slice.with(|bytes| bytes.into());
                (
                    file,
                    DiskWork::Write {
                        offset,
                        bytes,
                        source: Some(slice),
                        durable,
                    },
                )
            }
            Op::Zero {
                file, offset, len, ..
            } => {
                let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?;
                (
                    file,
                    DiskWork::Write {
                        offset,
                        bytes: vec![0; len].into(),
                        source: None,
                        durable: false,
                    },
                )
            }
            Op::Sync { file } => {
                let upto = self.stores[file.disk()].disk.completed();
                (file, DiskWork::Sync { upto })
            }
            Op::Connect { .. } | Op::Accept { .. } | Op::Send { .. } | Op::Recv { .. } => {
                unreachable!("an operation of the network is not a disk's")
            }
        };
        if file.0.access.read_only && matches!(work, DiskWork::Write { .. }) {
            return Err(EBADF);
        }
        file.pending(1);
        Ok(DiskOp { caller, file, work })
    }

    /// Direct I/O wants position, length and memory aligned, as the kernel does.
    fn check_direct(&self, file: &SimFile, offset: u64, slice: &Slice) -> Result<(), Errno> {
        let grain = self.stores[file.disk()].disk.shape.block_size.get();
        let len = u64::try_from(slice.len()).expect("64-bit platform");
        let at = u64::try_from(slice.offset()).expect("64-bit platform");
        let aligned = [offset, len, at]
            .iter()
            .all(|number| number.is_multiple_of(grain));
        if file.0.access.direct && !aligned {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    /// The operation finishes. A flush that nobody is left to hear of does not fail.
    pub(super) fn finish(
        &mut self,
        op: &DiskOp,
        heard: bool,
        random: &mut SimRandom,
    ) -> Result<u32, Errno> {
        op.file.pending(-1);
        let disk = &mut self.stores[op.file.disk()].disk;
        match &op.work {
            DiskWork::Read { offset, slice } => {
                slice.with_mut(|bytes| disk.read(*offset, bytes, random))?;
                u32::try_from(slice.len()).map_err(|_| Errno::EINVAL)
            }
            DiskWork::Write {
                offset,
                bytes,
                source,
                durable,
            } => {
                self.write(&op.file, *offset, bytes, *durable, random)?;
                match source {
                    Some(_) => u32::try_from(bytes.len()).map_err(|_| Errno::EINVAL),
                    None => Ok(0),
                }
            }
            DiskWork::Sync { .. } if self.sync_lies => Ok(0),
            DiskWork::Sync { upto } if !heard => {
                disk.flush(*upto);
                Ok(0)
            }
            DiskWork::Sync { upto } => disk.sync(*upto, random).map(|()| 0),
        }
    }

    /// A write completes.
    pub(super) fn write(
        &mut self,
        file: &SimFile,
        offset: u64,
        bytes: &Arc<[u8]>,
        durable: bool,
        random: &mut SimRandom,
    ) -> Result<(), Errno> {
        let Store { node, disk, .. } = &mut self.stores[file.disk()];
        let len = u64::try_from(bytes.len()).expect("64-bit platform");
        let grows = offset.saturating_add(len) > disk.len();
        if grows && self.full.contains(node) {
            return Err(Errno::ENOSPC);
        }
        disk.write(offset, bytes, durable, random)
    }

    /// True if the memory of a write still holds what was submitted.
    pub(super) fn unchanged(op: &DiskOp) -> bool {
        match &op.work {
            DiskWork::Write {
                bytes,
                source: Some(source),
                ..
            } => source.with(|now| now == &**bytes),
            _ => true,
        }
    }

    /// The operation will never happen.
    pub(super) fn cancel(op: &DiskOp) {
        op.file.pending(-1);
    }

    /// Nobody holds a file of a host without power, and nothing of it stalls.
    pub(super) fn release(&mut self, node: NodeId) {
        for store in self.stores.iter_mut().filter(|store| store.node == node) {
            store.claim = None;
            store.stalled_until = 0;
        }
    }
}
