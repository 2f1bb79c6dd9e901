//! A TCP connection or listener.
//!
//! Owns the descriptor, closed with the last clone. Data leaves at once (TCP_NODELAY): the engine
//! batches, so the kernel must not. Liveness is the engine's heartbeat, never the kernel's.

use super::errno_of;
use blkrep_types::Errno;
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, SockaddrStorage, setsockopt, shutdown, socket,
    sockopt,
};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// A connection or listener; clones share it, the last one closes it.
#[derive(Debug, Clone)]
pub struct RealSocket(Arc<OwnedFd>);

impl RealSocket {
    /// A socket that can connect to `peer`.
    pub(super) fn for_peer(peer: &SocketAddr) -> Result<Self, Errno> {
        let family = match peer {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let fd =
            socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(errno_of)?;
        let made = Self(Arc::new(fd));
        made.no_delay()?;
        Ok(made)
    }

    /// A listener on `address`, and the address it got.
    pub(super) fn listening(address: SocketAddr) -> Result<(Self, SocketAddr), Errno> {
        let listener = TcpListener::bind(address).map_err(|error| Errno::from(&error))?;
        let bound = listener.local_addr().map_err(|error| Errno::from(&error))?;
        Ok((Self(Arc::new(OwnedFd::from(listener))), bound))
    }

    /// The connection that an accept returned.
    pub(super) fn accepted(fd: RawFd) -> Result<Self, Errno> {
        assert!(fd >= 0, "a completed accept carries a descriptor");
        // SAFETY: the kernel just made this descriptor for this completion; nobody else has it.
        let accepted = Self(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) }));
        accepted.no_delay()?;
        Ok(accepted)
    }

    fn no_delay(&self) -> Result<(), Errno> {
        setsockopt(&self.0, sockopt::TcpNoDelay, &true).map_err(errno_of)
    }

    pub(super) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub(super) fn shutdown(&self) {
        // ENOTCONN: it was never connected or is reset already; then nothing is pending on it.
        let _ = shutdown(self.raw(), Shutdown::Both);
    }
}

/// The kernel's form of an address, at a place that does not move while an operation reads it.
pub(super) fn address_of(peer: SocketAddr) -> Box<SockaddrStorage> {
    Box::new(SockaddrStorage::from(peer))
}
