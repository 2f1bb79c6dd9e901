//! A host whose rings encrypt.

use super::io::LineIo;
use super::keeper::Keeper;
use super::line::Line;
use blkrep_io::{Access, Geometry, Host, HostError, Io, Region};
use blkrep_types::ByteLen;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

type SocketOf<H> = <<H as Host>::Io as Io>::Socket;
type FileOf<H> = <<H as Host>::Io as Io>::File;

/// The host: everything but its rings and listeners is that of the host below.
pub struct LineHost<H: Host> {
    inner: H,
    keeper: Arc<dyn Keeper<SocketOf<H>>>,
}

impl<H: Host> LineHost<H> {
    /// Over `inner`, with connections as `keeper` says.
    pub fn new(inner: H, keeper: Arc<dyn Keeper<SocketOf<H>>>) -> Self {
        Self { inner, keeper }
    }
}

impl<H: Host> Clone for LineHost<H> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            keeper: Arc::clone(&self.keeper),
        }
    }
}

impl<H: Host> fmt::Debug for LineHost<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LineHost({:?})", self.inner)
    }
}

impl<H: Host> Host for LineHost<H> {
    type Io = LineIo<H::Io>;

    fn ring(&self, entries: u32) -> Result<Self::Io, HostError> {
        let ring = self.inner.ring(entries)?;
        Ok(LineIo::new(ring, Arc::clone(&self.keeper)))
    }

    fn listen(&self, address: SocketAddr) -> Result<(Line<SocketOf<H>>, SocketAddr), HostError> {
        let (listener, bound) = self.inner.listen(address)?;
        Ok((Line::plain(listener), bound))
    }

    fn open(&self, path: &Path, access: Access) -> Result<FileOf<H>, HostError> {
        self.inner.open(path, access)
    }

    fn geometry(&self, file: &FileOf<H>) -> Result<Geometry, HostError> {
        self.inner.geometry(file)
    }

    fn free_space(&self, file: &FileOf<H>) -> Result<ByteLen, HostError> {
        self.inner.free_space(file)
    }

    fn read_at(&self, file: &FileOf<H>, offset: u64, bytes: &mut [u8]) -> Result<(), HostError> {
        self.inner.read_at(file, offset, bytes)
    }

    fn write_at(&self, file: &FileOf<H>, offset: u64, bytes: &[u8]) -> Result<(), HostError> {
        self.inner.write_at(file, offset, bytes)
    }

    fn sync(&self, file: &FileOf<H>) -> Result<(), HostError> {
        self.inner.sync(file)
    }

    fn remove(&self, path: &Path) -> Result<(), HostError> {
        self.inner.remove(path)
    }

    fn list(&self, directory: &Path) -> Result<Vec<String>, HostError> {
        self.inner.list(directory)
    }

    fn shared_memory(&self, name: &str, len: ByteLen) -> Result<(Arc<Region>, bool), HostError> {
        self.inner.shared_memory(name, len)
    }

    fn forget_shared_memory(&self, name: &str) -> Result<(), HostError> {
        self.inner.forget_shared_memory(name)
    }

    fn random(&self, bytes: &mut [u8]) {
        self.inner.random(bytes);
    }
}
