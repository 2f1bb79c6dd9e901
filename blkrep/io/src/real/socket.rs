//! A TCP connection or listener.
//!
//! Owns the descriptor, closed with the last clone. Data leaves at once (TCP_NODELAY): the engine
//! batches, so the kernel must not. Liveness is the engine's heartbeat; the kernel only ends a
//! connection whose peer confirms nothing, which the engine cannot notice while it does not listen.

use super::errno_of;
use blkrep_types::Errno;
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, SockaddrStorage, setsockopt, shutdown, socket,
    sockopt,
};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Weak};

/// Times a connection request is repeated, after 1 and 2 more seconds: an attempt then fails after
/// 7 seconds. The kernel's own 6 would wait for up to a minute between two of them, and a link
/// that was cut would stay down that long after the network is back.
const SYN_REPEATS: libc::c_int = 2;

/// Time in milliseconds after which a peer that confirms nothing of what was sent is gone. The kernel's own limit is a
/// quarter of an hour, in which a target that waits for room would take a dead source for a live one. Only for whoever
/// accepted: the kernel counts a window that stays closed as well, and a target may keep a source waiting.
const UNCONFIRMED_MS: u32 = 20_000;

/// A connection or listener; clones share it, the last one closes it.
#[derive(Debug, Clone)]
pub struct RealSocket(Arc<OwnedFd>);

/// A connection that somebody else holds, to be ended from outside.
#[derive(Debug, Clone)]
pub struct WeakSocket(Weak<OwnedFd>);

impl WeakSocket {
    /// True while somebody holds it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Ends both directions; operations under way complete with an error or nothing.
    pub fn shutdown(&self) {
        if let Some(fd) = self.0.upgrade() {
            RealSocket(fd).shutdown();
        }
    }
}

impl From<TcpListener> for RealSocket {
    /// A listener that is bound already.
    fn from(listener: TcpListener) -> Self {
        Self(Arc::new(listener.into()))
    }
}

impl RealSocket {
    /// Where the other end is.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.stream().ok()?.peer_addr().ok()
    }

    /// The connection, for who is no ring.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn stream(&self) -> io::Result<TcpStream> {
        Ok(TcpStream::from(self.0.try_clone()?))
    }

    /// The connection without holding it.
    #[must_use]
    pub fn weak(&self) -> WeakSocket {
        WeakSocket(Arc::downgrade(&self.0))
    }

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
        made.syn_repeats(SYN_REPEATS)?;
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
        accepted.unconfirmed(UNCONFIRMED_MS)?;
        Ok(accepted)
    }

    fn no_delay(&self) -> Result<(), Errno> {
        setsockopt(&self.0, sockopt::TcpNoDelay, &true).map_err(errno_of)
    }

    fn unconfirmed(&self, limit_ms: u32) -> Result<(), Errno> {
        setsockopt(&self.0, sockopt::TcpUserTimeout, &limit_ms).map_err(errno_of)
    }

    fn syn_repeats(&self, count: libc::c_int) -> Result<(), Errno> {
        let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("four bytes");
        // SAFETY: the descriptor is open, and `count` is a live integer of the length given, which
        // the kernel only reads.
        let result = unsafe {
            libc::setsockopt(
                self.raw(),
                libc::IPPROTO_TCP,
                libc::TCP_SYNCNT,
                (&raw const count).cast(),
                len,
            )
        };
        nix::errno::Errno::result(result)
            .map(drop)
            .map_err(errno_of)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_at_a_silent_network_ends_in_seconds() {
        let socket = RealSocket::for_peer(&SocketAddr::from(([127, 0, 0, 1], 1))).unwrap();
        let mut count: libc::c_int = 0;
        let mut len = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap();
        // SAFETY: the descriptor is open; both pointers are to live values of the right length.
        let result = unsafe {
            libc::getsockopt(
                socket.raw(),
                libc::IPPROTO_TCP,
                libc::TCP_SYNCNT,
                (&raw mut count).cast(),
                &raw mut len,
            )
        };
        assert_eq!((result, count), (0, SYN_REPEATS));
    }
}
