//! A simulated host: the twin of the real one.
//!
//! Owns nothing but its name in the world. Every call is an instant of virtual time and a place
//! where the process can die, before or after the call's effect, or in the middle of a write.

use super::io::SimIo;
use super::net::SimSocket;
use super::state::State;
use super::storage::SimFile;
use super::world::{Moment, NodeId, ProcessId, SimWorld};
use crate::host::{Access, Geometry, Host, HostError};
use crate::memory::Region;
use blkrep_types::{ByteLen, Errno};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

/// A process's host in a simulated world.
#[derive(Debug, Clone)]
pub struct SimHost {
    world: SimWorld,
    node: NodeId,
    process: ProcessId,
}

/// Does `effect` for a living process; if it is to crash in this call, before or after it.
pub(super) fn crash_or<R>(
    state: &mut State,
    process: ProcessId,
    effect: impl FnOnce(&mut State) -> Result<R, Errno>,
) -> Result<R, Errno> {
    if !state.alive(process) {
        return Err(Errno::EIO);
    }
    if let Some(moment) = state.begin_call(process) {
        if moment == Moment::After {
            // What came of it no longer matters to the process.
            let _ = effect(state);
        }
        state.halt(process);
        return Err(Errno::EIO);
    }
    let Some(crash) = state.count(process) else {
        return effect(state);
    };
    if state.random.one_in(2) {
        // What came of it no longer matters to the process.
        let _ = effect(state);
    }
    state.crash(process, crash);
    Err(Errno::EIO)
}

impl SimHost {
    pub(super) fn new(world: SimWorld, node: NodeId, process: ProcessId) -> Self {
        Self {
            world,
            node,
            process,
        }
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> ProcessId {
        self.process
    }

    /// The host it runs on.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    fn call<R>(
        &self,
        operation: &'static str,
        path: &Path,
        effect: impl FnOnce(&mut State) -> Result<R, Errno>,
    ) -> Result<R, HostError> {
        crash_or(&mut self.world.lock(), self.process, effect).map_err(|errno| HostError {
            operation,
            path: path.to_owned(),
            errno,
        })
    }
}

impl Host for SimHost {
    type Io = SimIo;

    fn ring(&self, _entries: u32) -> Result<SimIo, HostError> {
        let ring = self.call("make a ring", Path::new("ring"), |state| {
            Ok(state.rings.add(self.process))
        })?;
        Ok(SimIo::new(
            self.world.clone(),
            ring,
            self.node,
            self.process,
        ))
    }

    fn listen(&self, address: SocketAddr) -> Result<(SimSocket, SocketAddr), HostError> {
        let path = address.to_string();
        let (socket, port) = self.call("listen on", Path::new(&path), |state| {
            state
                .network
                .listen(self.node, self.process, address.port())
        })?;
        Ok((socket, SocketAddr::new(self.node.address(), port)))
    }

    fn open(&self, path: &Path, access: Access) -> Result<SimFile, HostError> {
        let owner = (self.node, self.process);
        self.call("open", path, |state| state.open(owner, path, access))
    }

    fn geometry(&self, file: &SimFile) -> Result<Geometry, HostError> {
        self.call("ask the size of", file.path(), |state| {
            Ok(state.storage.geometry(file))
        })
    }

    fn read_at(&self, file: &SimFile, offset: u64, bytes: &mut [u8]) -> Result<(), HostError> {
        self.call("read", file.path(), |state| {
            let State {
                storage, random, ..
            } = state;
            let disk = &mut storage.stores[file.disk()].disk;
            disk.read(offset, bytes, random)
        })
    }

    fn write_at(&self, file: &SimFile, offset: u64, bytes: &[u8]) -> Result<(), HostError> {
        {
            let mut state = self.world.lock();
            // A write can also be cut in the middle.
            let middle = state.random.one_in(2) && state.alive(self.process);
            if let Some(crash) = state.due(self.process).filter(|_| middle) {
                let State {
                    storage, random, ..
                } = &mut *state;
                storage.stores[file.disk()]
                    .disk
                    .write_torn(offset, bytes, random);
                state.crash(self.process, crash);
            }
        }
        self.call("write", file.path(), |state| {
            let State {
                storage, random, ..
            } = state;
            storage.write(file, offset, &bytes.into(), false, random)
        })
    }

    fn sync(&self, file: &SimFile) -> Result<(), HostError> {
        self.call("flush", file.path(), |state| {
            let State {
                storage, random, ..
            } = state;
            if storage.sync_lies {
                return Ok(());
            }
            let disk = &mut storage.stores[file.disk()].disk;
            disk.sync(disk.completed(), random)?;
            storage.name_durably(file.disk());
            Ok(())
        })
    }

    fn free_space(&self, file: &SimFile) -> Result<ByteLen, HostError> {
        self.call("ask the free space of", file.path(), |state| {
            Ok(ByteLen::new(state.storage.space_left(self.node)))
        })
    }

    fn remove(&self, path: &Path) -> Result<(), HostError> {
        self.call("remove", path, |state| {
            state.storage.remove(self.node, path);
            Ok(())
        })
    }

    fn list(&self, directory: &Path) -> Result<Vec<String>, HostError> {
        self.call("list", directory, |state| {
            let paths = state.storage.names(self.node).map(|(path, _)| path);
            let within = paths.filter(|path| path.parent() == Some(directory));
            let names = within.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
            Ok(names.collect())
        })
    }

    fn shared_memory(&self, name: &str, len: ByteLen) -> Result<(Arc<Region>, bool), HostError> {
        self.call("map shared memory", Path::new(name), |state| {
            let shared = state.shared(self.node);
            if let Some(found) = shared
                .get(name)
                .filter(|found| found.len() == len.as_usize())
            {
                return Ok((Arc::clone(found), true));
            }
            let region = Region::heap(len.as_usize());
            shared.insert(name.to_owned(), Arc::clone(&region));
            Ok((region, false))
        })
    }

    fn forget_shared_memory(&self, name: &str) -> Result<(), HostError> {
        self.call("forget shared memory", Path::new(name), |state| {
            state.shared(self.node).remove(name);
            Ok(())
        })
    }

    fn random(&self, bytes: &mut [u8]) {
        let mut state = self.world.lock();
        for piece in bytes.chunks_mut(8) {
            let bits = state.random.bits().to_le_bytes();
            piece.copy_from_slice(&bits[..piece.len()]);
        }
    }
}
