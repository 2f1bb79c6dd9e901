//! The network between the two nodes, with a switch.
//!
//! Owns a listener and the connections through it. Bytes enter on one side and leave on the other
//! unchanged, counted on the way to the target; a cut ends every connection and refuses new ones.
//! Never looks into the bytes.

use std::io::{self, ErrorKind, Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A link has one connection, and while it is replaced perhaps two; more are not taken.
const CONNECTIONS_MAX: usize = 8;
/// How long the target may take to accept.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Bytes passed on at a time.
const CHUNK_BYTES: usize = 128 << 10;

/// A TCP proxy on the loopback address.
#[derive(Debug)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    cut: AtomicBool,
    ended: AtomicBool,
    to_target: AtomicU64,
    /// Both ends of each connection, to be closed by a cut.
    open: Mutex<Vec<Arc<(TcpStream, TcpStream)>>>,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Vec<Arc<(TcpStream, TcpStream)>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuses(&self) -> bool {
        self.cut.load(Ordering::Acquire) || self.ended.load(Ordering::Acquire)
    }

    fn close_all(&self) {
        for pair in self.open().drain(..) {
            close(&pair);
        }
    }

    /// Takes a connection in; false if it is refused. The switch is read under the lock that a cut
    /// takes after it has thrown the switch, so no connection outlives a cut.
    fn admit(&self, pair: &Arc<(TcpStream, TcpStream)>) -> bool {
        let mut open = self.open();
        let admitted = !self.refuses() && open.len() < CONNECTIONS_MAX;
        if admitted {
            open.push(Arc::clone(pair));
        }
        admitted
    }

    fn forget(&self, pair: &Arc<(TcpStream, TcpStream)>) {
        self.open().retain(|other| !Arc::ptr_eq(other, pair));
    }
}

fn close(pair: &(TcpStream, TcpStream)) {
    // One that the other side has closed already is as good.
    let _ = pair.0.shutdown(Shutdown::Both);
    let _ = pair.1.shutdown(Shutdown::Both);
}

impl Proxy {
    /// Listens on a free port and connects whoever comes to `target`.
    pub(crate) fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target,
            cut: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            to_target: AtomicU64::new(0),
            open: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        let accepting = std::thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(move || accept(&listener, &accepting))?;
        Ok(Self {
            shared,
            address,
            accepting: Some(accepting),
        })
    }

    /// Where the source connects to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection and refuses new ones.
    pub(crate) fn cut(&self) {
        self.shared.cut.store(true, Ordering::Release);
        self.shared.close_all();
    }

    /// Lets connections through again.
    pub(crate) fn heal(&self) {
        self.shared.cut.store(false, Ordering::Release);
    }

    /// Bytes that travelled to the target so far.
    pub(crate) fn bytes_to_target(&self) -> u64 {
        self.shared.to_target.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.shared.close_all();
        // Wakes the accepting thread, which then sees that it has ended.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            // A panic there has been reported by its own thread.
            let _ = accepting.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.ended.load(Ordering::Acquire) {
        let Ok((source, _)) = listener.accept() else {
            // Out of descriptors, or the peer has gone: the next one may do better.
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        if shared.refuses() {
            continue;
        }
        let Ok(target) = TcpStream::connect_timeout(&shared.target, CONNECT_LIMIT) else {
            continue;
        };
        let pair = Arc::new((source, target));
        if shared.admit(&pair) && pass_on(shared, &pair).is_err() {
            close(&pair);
            shared.forget(&pair);
        }
    }
}

/// Two threads, one a direction. Either end of stream ends the connection: the protocol has no half
/// of one.
fn pass_on(shared: &Arc<Shared>, pair: &Arc<(TcpStream, TcpStream)>) -> io::Result<()> {
    for to_target in [true, false] {
        let (shared, pair) = (Arc::clone(shared), Arc::clone(pair));
        std::thread::Builder::new().spawn(move || {
            let (from, to) = if to_target {
                (&pair.0, &pair.1)
            } else {
                (&pair.1, &pair.0)
            };
            let counted = to_target.then_some(&shared.to_target);
            // However it ended, both sides learn it by the closing.
            let _ = copy(from, to, counted);
            close(&pair);
            shared.forget(&pair);
        })?;
    }
    Ok(())
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, counted: Option<&AtomicU64>) -> io::Result<()> {
    to.set_nodelay(true)?;
    let mut bytes = vec![0; CHUNK_BYTES];
    loop {
        let count = match from.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&bytes[..count])?;
        if let Some(total) = counted {
            total.fetch_add(count as u64, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Echoes whatever it is sent, for any number of connections.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                std::thread::spawn(move || io::copy(&mut &stream, &mut &stream));
            }
        });
        address
    }

    fn connect(proxy: &Proxy) -> TcpStream {
        let stream = TcpStream::connect(proxy.address()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    fn echoes(mut stream: &TcpStream, what: &[u8]) -> bool {
        let mut back = vec![0; what.len()];
        let told = stream
            .write_all(what)
            .and_then(|()| stream.read_exact(&mut back));
        told.is_ok() && back == what
    }

    #[test]
    fn bytes_pass_unchanged_and_are_counted_one_way() {
        let proxy = Proxy::start(echo()).unwrap();
        let stream = connect(&proxy);
        let bytes: Vec<u8> = (0..300_000_u32)
            .map(|n| u8::try_from(n % 251).unwrap())
            .collect();
        for chunk in bytes.chunks(50_000) {
            assert!(echoes(&stream, chunk));
        }
        assert_eq!(proxy.bytes_to_target(), 300_000);
    }

    #[test]
    fn a_cut_ends_connections_and_refuses_new_ones_until_it_is_healed() {
        let proxy = Proxy::start(echo()).unwrap();
        let before = connect(&proxy);
        assert!(echoes(&before, b"before"));
        proxy.cut();
        assert!(!echoes(&before, b"after the cut"));
        assert!(!echoes(&connect(&proxy), b"while it is cut"));
        proxy.heal();
        assert!(!echoes(&before, b"a cut connection stays cut"));
        assert!(echoes(&connect(&proxy), b"healed"));
        assert_eq!(proxy.bytes_to_target(), 12);
    }

    #[test]
    fn connections_are_limited_and_come_free_again() {
        let proxy = Proxy::start(echo()).unwrap();
        let held: Vec<_> = (0..CONNECTIONS_MAX).map(|_| connect(&proxy)).collect();
        assert!(held.iter().all(|stream| echoes(stream, b"x")));
        assert!(!echoes(&connect(&proxy), b"one too many"));
        drop(held);
        let mut tries = (0..100).map(|_| {
            std::thread::sleep(Duration::from_millis(20));
            echoes(&connect(&proxy), b"again")
        });
        assert!(tries.any(|worked| worked));
    }

    #[test]
    fn its_end_closes_everything() {
        let proxy = Proxy::start(echo()).unwrap();
        let stream = connect(&proxy);
        assert!(echoes(&stream, b"x"));
        let address = proxy.address();
        drop(proxy);
        assert!(!echoes(&stream, b"y"));
        assert!(TcpStream::connect(address).is_err());
    }
}
