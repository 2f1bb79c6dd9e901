//! Where a promise is tried.

use blkrep_io::real::{RealHost, UringIo};
use blkrep_io::sim::{NodeId, SimHost, SimIo, SimOptions, SimWorld};
use blkrep_io::{Completion, Host, Io};
use blkrep_types::Nanos;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// A place with a host.
pub(crate) trait Place {
    /// Its host.
    type Host: Host;

    /// The host, as a process sees it.
    fn host(&self) -> Self::Host;

    /// A path for a file.
    fn path(&self, name: &str) -> PathBuf;

    /// An address to listen on, any port.
    fn address(&self) -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    /// Whether files can be opened past the page cache.
    fn direct(&self) -> bool;

    /// Wakes the ring from elsewhere after a while.
    fn wake_later(&self, io: &<Self::Host as Host>::Io, delay: Duration);

    /// A ring.
    fn ring(&self) -> <Self::Host as Host>::Io {
        self.host().ring(64).unwrap()
    }
}

/// Waits for one completion, at most ten seconds.
pub(crate) fn one<I: Io>(io: &mut I) -> Completion<I::Socket> {
    let mut out = all(io, 1);
    out.pop().unwrap()
}

/// Waits for `count` completions, at most ten seconds.
pub(crate) fn all<I: Io>(io: &mut I, count: usize) -> Vec<Completion<I::Socket>> {
    let end = io.now().after(Duration::from_secs(10));
    let mut out = Vec::new();
    while out.len() < count {
        assert!(io.now() < end, "{} of {count} completed in time", out.len());
        io.wait(Some(end), &mut out).unwrap();
    }
    assert_eq!(out.len(), count, "no more completes than was asked for");
    out
}

/// A filesystem of this machine.
pub(crate) struct Real {
    directory: TempDir,
    prefix: String,
}

fn real(parent: &Path) -> Real {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    Real {
        directory: TempDir::new_in(parent).unwrap(),
        prefix: format!("blkrep-test-{}-{count}", std::process::id()),
    }
}

/// A disk's filesystem.
pub(crate) struct OnDisk(Real);

impl OnDisk {
    pub(crate) fn new() -> Self {
        Self(real(Path::new("/var/tmp")))
    }
}

/// A filesystem in memory.
pub(crate) struct OnTmpfs(Real);

impl OnTmpfs {
    pub(crate) fn new() -> Self {
        Self(real(Path::new("/dev/shm")))
    }
}

fn wake_from_a_thread(io: &UringIo, delay: Duration) {
    let waker = io.waker();
    std::thread::spawn(move || {
        std::thread::sleep(delay);
        waker.wake();
    });
}

impl Place for OnDisk {
    type Host = RealHost;

    fn host(&self) -> RealHost {
        RealHost::new(&self.0.prefix)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.directory.path().join(name)
    }

    fn direct(&self) -> bool {
        true
    }

    fn wake_later(&self, io: &UringIo, delay: Duration) {
        wake_from_a_thread(io, delay);
    }
}

impl Place for OnTmpfs {
    type Host = RealHost;

    fn host(&self) -> RealHost {
        RealHost::new(&self.0.prefix)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.directory.path().join(name)
    }

    fn direct(&self) -> bool {
        false
    }

    fn wake_later(&self, io: &UringIo, delay: Duration) {
        wake_from_a_thread(io, delay);
    }
}

/// A simulated host.
pub(crate) struct Simulated {
    pub(crate) world: SimWorld,
    pub(crate) node: NodeId,
    host: SimHost,
}

impl Simulated {
    pub(crate) fn new(seed: u64) -> Self {
        let world = SimWorld::new(seed, SimOptions::default());
        let node = world.add_node();
        let host = world.start(node);
        Self { world, node, host }
    }
}

impl Place for Simulated {
    type Host = SimHost;

    fn host(&self) -> SimHost {
        self.host.clone()
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new("/files").join(name)
    }

    fn direct(&self) -> bool {
        true
    }

    fn wake_later(&self, io: &SimIo, delay: Duration) {
        self.world.wake_after(io.id(), delay);
    }
}

/// Virtual or real, a time on the clock of `io`.
pub(crate) fn in_future<I: Io>(io: &I, millis: u64) -> Nanos {
    io.now().after(Duration::from_millis(millis))
}
