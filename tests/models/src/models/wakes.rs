//! Threads that are woken.

use super::super::bell::{Bell, Ring};
use super::super::mail::Mail;
use super::super::sync::{AtomicBool, Mutex, Ordering};
use crate::explore::explore;
use blkrep_io::{Io as _, Wake as _};
use loom::thread;
use std::sync::Arc;

/// Two threads leave something for a third and wake it, while an operation of its own completes:
/// it sees everything, and sleeps for ever over nothing.
pub fn a_wake_is_never_lost() {
    explore(|| {
        let bell = Bell::new();
        let left = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let wakers = left.each_ref().map(|place| {
            let (bell, place) = (Arc::clone(&bell), Arc::clone(place));
            thread::spawn(move || {
                place.store(true, Ordering::Relaxed);
                bell.wake();
            })
        });
        bell.complete();
        let mut completions = 0;
        while completions == 0 || !left.iter().all(|place| place.load(Ordering::Relaxed)) {
            completions += bell.wait();
        }
        assert_eq!(completions, 1, "an operation completes once");
        for waker in wakers {
            waker.join().expect("a waker ends");
        }
    });
}

/// When a worker lowers the flag of its mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taking {
    /// Before it looks, as the product's workers do.
    First,
    /// After it looked: what came in between is forgotten.
    Last,
}

/// A worker starts while one thread has something for it and another, a worker too, has as well:
/// it gets both. The flag keeps wakes few, never from being made.
pub fn mail_is_always_read(taking: Taking) {
    explore(move || {
        // Made here: the standard library's cell by which the waker travels is not modelled.
        let ring = Ring(Bell::new());
        let (mail, sent) = (Arc::new(Mail::default()), Arc::new(Mutex::new(0)));
        let senders = [false, true].map(|worker| {
            let (mail, sent) = (Arc::clone(&mail), Arc::clone(&sent));
            thread::spawn(move || {
                *sent.lock().expect("no panic here") += 1;
                if worker {
                    mail.notify(&mut Ring(Bell::new()));
                } else {
                    mail.send();
                }
            })
        });
        mail.register(ring.waker());
        let mut got = 0;
        loop {
            // A worker that starts looks whether there is mail or not.
            if taking == Taking::First {
                mail.take();
            }
            got += std::mem::take(&mut *sent.lock().expect("no panic here"));
            if taking == Taking::Last {
                mail.take();
            }
            if got == senders.len() {
                break;
            }
            ring.0.wait();
        }
        for sender in senders {
            sender.join().expect("a sender ends");
        }
    });
}
