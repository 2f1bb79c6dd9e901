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
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Weak};

/// Times a connection request is repeated, after 1 and 2 more seconds: an attempt then fails after
/// 7 seconds. The kernel's own 6 would wait for up to a minute between two of them, and a link
/// that was cut would stay down that long after the network is back.
const SYN_REPEATS: libc::c_int = 2;

/// Time in milliseconds after which a peer that confirms nothing of what was sent is gone. The kernel's own limit is a
/// quarter of an hour, in which a target that waits for room would take a dead source for a live one. Only for whoever
/// accepted: the kernel counts a window that stays closed as well, and a target may keep a source waiting.
const UNCONFIRMED_MS: u32 = 20_000;

/// Bytes that the kernel takes ahead of what the network lets it send. Without a limit it takes megabytes on a long line, and
/// whatever is said next, a heartbeat too, waits for them: seconds on a slow one. What waits belongs in the log, where it can
/// still be batched, packed or sent over another connection; and the time until the kernel takes a buffer then says how fast
/// the line is. A line of 10 Gbit/s takes 100 µs for so many, longer than a thread takes to wake up; over loopback neither 16 KiB nor
/// 1 MiB is measurably slower.
const NOT_SENT_MAX: libc::c_int = 128 << 10;

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

impl AsFd for RealSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<TcpStream> for RealSocket {
    /// A connection that is made already.
    fn from(stream: TcpStream) -> Self {
        Self(Arc::new(stream.into()))
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
        made.option(libc::TCP_SYNCNT, SYN_REPEATS)?;
        made.option(libc::TCP_NOTSENT_LOWAT, NOT_SENT_MAX)?;
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
        accepted.option(libc::TCP_NOTSENT_LOWAT, NOT_SENT_MAX)?;
        Ok(accepted)
    }

    fn no_delay(&self) -> Result<(), Errno> {
        setsockopt(&self.0, sockopt::TcpNoDelay, &true).map_err(errno_of)
    }

    fn unconfirmed(&self, limit_ms: u32) -> Result<(), Errno> {
        setsockopt(&self.0, sockopt::TcpUserTimeout, &limit_ms).map_err(errno_of)
    }

    /// Sets a number of TCP that `nix` has no name for.
    fn option(&self, name: libc::c_int, value: libc::c_int) -> Result<(), Errno> {
        let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("four bytes");
        // SAFETY: the descriptor is open, and `value` is a live integer of the length given, which
        // the kernel only reads.
        let result = unsafe {
            libc::setsockopt(
                self.raw(),
                libc::IPPROTO_TCP,
                name,
                (&raw const value).cast(),
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

    fn option(socket: &RealSocket, name: libc::c_int) -> libc::c_int {
        let mut value: libc::c_int = 0;
        let mut len = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap();
        // SAFETY: the descriptor is open; both pointers are to live values of the right length.
        let result = unsafe {
            libc::getsockopt(
                socket.raw(),
                libc::IPPROTO_TCP,
                name,
                (&raw mut value).cast(),
                &raw mut len,
            )
        };
        assert_eq!(result, 0);
        value
    }

    #[test]
    fn an_attempt_at_a_silent_network_ends_in_seconds() {
        let socket = RealSocket::for_peer(&SocketAddr::from(([127, 0, 0, 1], 1))).unwrap();
        assert_eq!(option(&socket, libc::TCP_SYNCNT), SYN_REPEATS);
    }

    #[test]
    fn the_kernel_takes_little_ahead_of_what_it_may_send() {
        let (listener, address) =
            RealSocket::listening(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let socket = RealSocket::for_peer(&address).unwrap();
        let _peer = TcpStream::connect(address).unwrap();
        let waiting = TcpListener::from(listener.0.try_clone().unwrap());
        let (taken, _) = waiting.accept().unwrap();
        let accepted = RealSocket::accepted(std::os::fd::IntoRawFd::into_raw_fd(taken)).unwrap();
        for one in [socket, accepted] {
            assert_eq!(option(&one, libc::TCP_NOTSENT_LOWAT), NOT_SENT_MAX);
        }
    }
}
