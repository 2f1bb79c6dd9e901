//! Front ends: requests of other threads, and devices that end.

use super::super::bell::{Bell, Ring};
use super::super::flags::Shared;
use super::super::mailbox::{Asker, Lease, Mailbox, MailboxQueue};
use super::super::parts::Parts;
use crate::explore::{explore, explore_pair};
use blkrep_io::Io as _;
use blkrep_types::Errno;
use blkrep_ublk::{FrontQueue, RequestKind};
use loom::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

/// Counts answers. Not modelled: nobody waits for it.
#[derive(Debug)]
struct Counts(Arc<AtomicUsize>);

impl Asker for Counts {
    fn answer(self, lease: Lease<Self>, result: Result<(), Errno>) {
        drop(lease);
        if result.is_ok() {
            self.0.fetch_add(1, SeqCst);
        }
    }
}

/// Two clients share the tags of a mailbox whose worker starts meanwhile, then the device is closed
/// while a third still has a tag: each is answered once, none waits for ever, and the worker learns
/// that it is finished. One tag makes clients wait, two let requests come while one is taken.
pub fn every_request_is_answered(tags: u16) {
    explore(move || {
        let (mailbox, mut queue) = Mailbox::<Counts>::new(tags, 512).expect("memory for tags");
        let answered = Arc::new(AtomicUsize::new(0));
        let clients = [(); 2].map(|()| {
            let (mailbox, answered) = (Arc::clone(&mailbox), Arc::clone(&answered));
            thread::spawn(move || {
                let lease = mailbox.lease().expect("it is closed after the last client");
                lease.submit(RequestKind::Flush, None, Counts(answered));
            })
        });
        let worker = thread::spawn(move || work(&mut queue));
        for client in clients {
            client.join().expect("a client ends");
        }
        let last = mailbox.lease().expect("it is not closed");
        mailbox.close();
        drop(last);
        worker.join().expect("the worker ends");
        assert_eq!(answered.load(SeqCst), 2, "each request is answered once");
    });
}

/// The product's loop of a worker, for a queue alone.
fn work(queue: &mut MailboxQueue<Counts>) {
    let mut ring = Ring(Bell::new());
    let mut requests = Vec::new();
    queue.start(&mut ring).expect("a mailbox starts");
    while !FrontQueue::<Ring>::finished(queue) {
        ring.0.wait();
        queue.on_turn(&mut ring, &mut requests);
        for request in requests.drain(..) {
            queue.complete(&mut ring, request.tag, Ok(()));
        }
    }
}

/// Parts of a request end on two threads, one of them badly: exactly one thread has the outcome, and
/// it is the error.
pub fn parts_end_once() {
    explore(|| {
        let parts = Parts::new(2);
        let other = thread::spawn({
            let parts = Arc::clone(&parts);
            move || parts.done(Err(Errno::EIO))
        });
        let mine = parts.done(Ok(()));
        let others = other.join().expect("a part ends");
        match (mine, others) {
            (Some(outcome), None) | (None, Some(outcome)) => {
                assert_eq!(outcome, Err(Errno::EIO), "the error is told");
            }
            outcomes => panic!("one part is the last: {outcomes:?}"),
        }
    });
}

/// A device is told to leave while its queue starts: the queue hears of it, whether it slept or not,
/// and the device hears that it is drained.
pub fn a_device_that_leaves_reaches_its_queues() {
    explore_pair(|| {
        let shared = Arc::new(Shared::new(1));
        let queue = {
            let shared = Arc::clone(&shared);
            move || {
                let ring = Ring(Bell::new());
                shared.started(ring.waker());
                while !shared.leaving() {
                    ring.0.wait();
                }
                shared.drained();
            }
        };
        let device = move || {
            shared.leave();
            assert!(
                shared.wait_drained(Duration::from_secs(3600)),
                "it is drained"
            );
        };
        (device, queue)
    });
}
