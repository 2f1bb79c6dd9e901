//! What is between two nodes, and changes or cuts what passes.
//!
//! Owns a listener and the connections through it. Never knows what the bytes mean.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What passes bytes on between source and target, and changes or cuts them if asked to.
pub(crate) struct Meddler {
    pub(crate) address: String,
    /// Bytes to the target that pass before the next one has a bit flipped; none if it is huge.
    pub(crate) flip_after: Arc<AtomicUsize>,
    /// The same, before the connection is cut.
    pub(crate) cut_after: Arc<AtomicUsize>,
}

pub(crate) const NEVER: usize = usize::MAX;

impl Meddler {
    pub(crate) fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let flip_after = Arc::new(AtomicUsize::new(NEVER));
        let cut_after = Arc::new(AtomicUsize::new(NEVER));
        let (flips, cuts) = (Arc::clone(&flip_after), Arc::clone(&cut_after));
        let target = target.to_owned();
        std::thread::spawn(move || {
            for source in listener.incoming() {
                let Ok(source) = source else { return };
                let Ok(target) = TcpStream::connect(&target) else {
                    continue;
                };
                let (back_from, back_to) =
                    (target.try_clone().unwrap(), source.try_clone().unwrap());
                let nothing = Arc::new(AtomicUsize::new(NEVER));
                let same = Arc::clone(&nothing);
                std::thread::spawn(move || pass(back_from, back_to, &nothing, &same));
                let (flips, cuts) = (Arc::clone(&flips), Arc::clone(&cuts));
                std::thread::spawn(move || pass(source, target, &flips, &cuts));
            }
        });
        Self {
            address,
            flip_after,
            cut_after,
        }
    }
}

/// Counts down by `count`; true if it comes due in these bytes, with where.
fn due(after: &AtomicUsize, count: usize) -> Option<usize> {
    let left = after.load(Ordering::SeqCst);
    if left == NEVER {
        return None;
    }
    if left < count {
        after.store(NEVER, Ordering::SeqCst);
        return Some(left);
    }
    after.store(left - count, Ordering::SeqCst);
    None
}

fn pass(mut from: TcpStream, mut to: TcpStream, flips: &AtomicUsize, cuts: &AtomicUsize) {
    let mut bytes = [0; 8192];
    while let Ok(count) = from.read(&mut bytes) {
        if count == 0 {
            break;
        }
        if let Some(at) = due(flips, count) {
            bytes[at] ^= 1;
        }
        let whole = due(cuts, count);
        if to.write_all(&bytes[..whole.unwrap_or(count)]).is_err() || whole.is_some() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
