//! Entries of the write log: filled by one thread, sent by another.

use super::super::bell::{Bell, Ring};
use super::super::idle::IdleLinks;
use super::super::state::{LOCAL_DONE, PUBLISHED, Words, add, read};
use super::super::sync::{AtomicU64, Mutex, Ordering};
use crate::explore::explore_pair;
use blkrep_io::Io as _;
use loom::cell::UnsafeCell;
use std::sync::Arc;

/// One entry: its state, and its bytes as something that two threads may not use at once.
struct Entry {
    state: AtomicU64,
    bytes: UnsafeCell<()>,
    /// The group's, under which everything but filling is done.
    mutex: Mutex<()>,
}

impl Words for Entry {
    fn load(&self, _: usize, order: Ordering) -> u64 {
        self.state.load(order)
    }

    fn store(&self, _: usize, word: u64, order: Ordering) {
        self.state.store(word, order);
    }
}

impl Entry {
    #[allow(clippy::arc_with_non_send_sync, reason = "loom's threads are of one")]
    fn new() -> Arc<Self> {
        Arc::new(Self {
            state: AtomicU64::new(0),
            bytes: UnsafeCell::new(()),
            mutex: Mutex::new(()),
        })
    }

    /// As the queue's thread does: without the mutex.
    fn fill(&self) {
        self.bytes.with_mut(|_| ());
        add(self, 0, PUBLISHED);
    }

    fn is_published(&self) -> bool {
        let _under = self.mutex.lock().expect("no panic here");
        read(self, 0) & PUBLISHED != 0
    }
}

/// A link that happens to look at an entry reads bytes that are complete, or none.
pub fn what_is_published_is_whole() {
    explore_pair(|| {
        let entry = Entry::new();
        let queue = {
            let entry = Arc::clone(&entry);
            move || entry.fill()
        };
        let link = move || {
            if entry.is_published() {
                entry.bytes.with(|_| ());
            }
        };
        (queue, link)
    });
}

/// What a link does before it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiter {
    /// It says so and looks once more, as the product's links do.
    LooksAgain,
    /// It says so and waits: what was published in between wakes nobody.
    Trusts,
}

/// A queue's thread fills an entry without the mutex, publishes it, and later says that its local
/// write is done. A link that waits for it is woken, reads the bytes, and finds both facts in the end.
pub fn what_is_published_is_sent(waiter: Waiter) {
    explore_pair(move || {
        let (entry, idle) = (Entry::new(), Arc::new(IdleLinks::default()));
        let (link, done) = (Ring(Bell::new()), Bell::new());
        let queue = {
            let (entry, idle, done) = (Arc::clone(&entry), Arc::clone(&idle), Arc::clone(&done));
            let waker = link.waker();
            move || {
                entry.fill();
                if idle.take() {
                    waker.wake();
                }
                let under = entry.mutex.lock().expect("no panic here");
                add(&*entry, 0, LOCAL_DONE);
                drop(under);
                done.complete();
            }
        };
        let link = move || {
            while !entry.is_published() {
                idle.wait(0);
                if waiter == Waiter::LooksAgain && entry.is_published() {
                    break;
                }
                link.0.wait();
            }
            entry.bytes.with(|_| ());
            done.wait();
            assert_eq!(read(&*entry, 0), PUBLISHED | LOCAL_DONE, "both facts stay");
        };
        (queue, link)
    });
}
