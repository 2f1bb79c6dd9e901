//! The sockets of the NBD server: a unix socket, and TCP on the loopback interface.
//!
//! Owns how they are bound, taken over from a dead predecessor and accepted. Enters: a path and
//! perhaps an address. Leaves: streams. Never listens where another host could connect.

use crate::front::FrontError;
use blkrep_types::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// One connection.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    pub(super) fn set_read_limit(&self, limit: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(Some(limit)),
            Self::Tcp(stream) => stream.set_read_timeout(Some(limit)),
        }
    }

    pub(super) fn set_write_limit(&self, limit: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_write_timeout(Some(limit)),
            Self::Tcp(stream) => stream.set_write_timeout(Some(limit)),
        }
    }

    /// Ends one or both directions. A stream that is gone already is no error.
    pub(super) fn shutdown(&self, how: Shutdown) {
        let done = match self {
            Self::Unix(stream) => stream.shutdown(how),
            Self::Tcp(stream) => stream.shutdown(how),
        };
        if let Err(error) = done {
            tracing::trace!(%error, "the connection was closed already");
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&mut &*stream).read(bytes),
            Stream::Tcp(stream) => (&mut &*stream).read(bytes),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&mut &*stream).write(bytes),
            Stream::Tcp(stream) => (&mut &*stream).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream whose every call together may take until a deadline.
#[derive(Debug)]
pub(super) struct Limited<'a> {
    pub(super) stream: &'a Stream,
    pub(super) deadline: Instant,
}

impl Limited<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // The kernel counts in microseconds and takes zero for "no limit".
        Ok(left.max(Duration::from_millis(1)))
    }
}

impl Read for Limited<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_limit(self.left()?)?;
        (&mut &*self.stream).read(bytes)
    }
}

impl Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_limit(self.left()?)?;
        (&mut &*self.stream).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a device listens on.
#[derive(Debug)]
pub(super) struct Listeners {
    unix: UnixListener,
    path: PathBuf,
    tcp: Option<TcpListener>,
}

/// What `accept` came back with.
#[derive(Debug)]
pub(super) enum Accepted {
    Client(Stream),
    /// The event was signalled: the device stops.
    Stopped,
}

impl Listeners {
    /// Binds. A socket that a dead predecessor left behind is replaced; a live one is not.
    pub(super) fn bind(
        path: &Path,
        mode: u32,
        tcp: Option<SocketAddr>,
    ) -> Result<Self, FrontError> {
        let tcp = tcp.map(bind_tcp).transpose()?;
        remove_stale(path)?;
        let unix = bind_unix(path, mode).map_err(|source| {
            let action = match source.get() {
                libc::ENAMETOOLONG | libc::EINVAL => {
                    "a socket's path has at most 107 bytes: use a shorter state directory"
                }
                _ => "see that the directory exists and can be written",
            };
            refusal(format!("listen on {}", path.display()), source, action)
        })?;
        Ok(Self {
            unix,
            path: path.to_owned(),
            tcp,
        })
    }

    /// Where TCP clients connect, with the port that was chosen.
    pub(super) fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref()?.local_addr().ok()
    }

    /// Waits for a client or for `stop`.
    pub(super) fn accept(&self, stop: &EventFd) -> io::Result<Accepted> {
        loop {
            let mut fds = vec![
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.unix.as_fd(), PollFlags::POLLIN),
            ];
            if let Some(tcp) = &self.tcp {
                fds.push(PollFd::new(tcp.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut fds, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
            if ready[0] {
                return Ok(Accepted::Stopped);
            }
            let client = if ready[1] {
                self.unix.accept().map(|(stream, _)| Stream::Unix(stream))
            } else if let Some(tcp) = self.tcp.as_ref().filter(|_| ready[2]) {
                tcp.accept().map(|(stream, _)| Stream::Tcp(stream))
            } else {
                continue;
            };
            match client {
                // The client has gone again between the two calls.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                other => return prepare(other?).map(Accepted::Client),
            }
        }
    }
}

impl Drop for Listeners {
    /// Takes the name away, so that a client hears at once that nobody listens.
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "could not remove the socket");
        }
    }
}

fn prepare(stream: Stream) -> io::Result<Stream> {
    match &stream {
        Stream::Unix(unix) => unix.set_nonblocking(false)?,
        Stream::Tcp(tcp) => {
            tcp.set_nonblocking(false)?;
            tcp.set_nodelay(true)?;
        }
    }
    Ok(stream)
}

fn bind_unix(path: &Path, mode: u32) -> Result<UnixListener, Errno> {
    let errno = |errno: nix::errno::Errno| Errno::new(errno as i32);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(errno)?;
    // Before it has a name: nobody can come in between with wider rights.
    fchmod(&fd, Mode::from_bits_truncate(mode)).map_err(errno)?;
    let address = UnixAddr::new(path).map_err(errno)?;
    bind(fd.as_raw_fd(), &address).map_err(errno)?;
    let backlog = Backlog::new(BACKLOG).map_err(errno)?;
    listen(&fd, backlog).map_err(errno)?;
    Ok(UnixListener::from(fd))
}

fn remove_stale(path: &Path) -> Result<(), FrontError> {
    let failed = |error: &io::Error, action| {
        Err(refusal(
            format!("take over {}", path.display()),
            Errno::from(error),
            action,
        ))
    };
    let kind = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return failed(&error, "see that the directory can be read"),
        Ok(found) => found.file_type(),
    };
    let in_the_way = |errno| io::Error::from_raw_os_error(errno);
    if !kind.is_socket() {
        return failed(
            &in_the_way(libc::EEXIST),
            "something that is no socket is in the way: move it",
        );
    }
    if UnixStream::connect(path).is_ok() {
        return failed(
            &in_the_way(libc::EADDRINUSE),
            "another process serves there: stop it",
        );
    }
    match std::fs::remove_file(path) {
        Err(error) => failed(&error, "remove the stale socket"),
        Ok(()) => Ok(()),
    }
}

fn bind_tcp(address: SocketAddr) -> Result<TcpListener, FrontError> {
    let what = || format!("listen on {address}");
    if !address.ip().is_loopback() {
        let action = "NBD has neither encryption nor a password here: use 127.0.0.1 or ::1";
        return Err(refusal(what(), Errno::new(libc::EADDRNOTAVAIL), action));
    }
    let bound = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|error| refusal(what(), Errno::from(&error), "use a port that is free, or 0"))
}

pub(super) fn refusal(what: String, source: Errno, action: &str) -> FrontError {
    FrontError {
        what,
        source,
        action: action.to_owned(),
    }
}
