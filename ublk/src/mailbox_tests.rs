//! Tests of the mailbox: every request is answered, tags are bounded and come back.

#![allow(clippy::unwrap_used)]

use super::*;
use blkrep_io::real::UringIo;
use blkrep_types::{ByteLen, ByteOffset};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

/// Passes the answer on, with the lease when it is asked to keep it.
#[derive(Debug)]
struct Passes(Sender<(Lease<Self>, Result<(), Errno>)>);

impl Asker for Passes {
    fn answer(self, lease: Lease<Self>, result: Result<(), Errno>) {
        // The test that has gone away does not want its lease either.
        drop(self.0.send((lease, result)));
    }
}

type Answers = Receiver<(Lease<Passes>, Result<(), Errno>)>;

fn asker() -> (Passes, Answers) {
    let (sender, receiver) = channel();
    (Passes(sender), receiver)
}

fn turn(queue: &mut MailboxQueue<Passes>, io: &mut UringIo) -> Vec<Request> {
    let mut requests = Vec::new();
    FrontQueue::<UringIo>::on_turn(queue, io, &mut requests);
    requests
}

fn finished(queue: &MailboxQueue<Passes>) -> bool {
    FrontQueue::<UringIo>::finished(queue)
}

#[test]
fn a_request_carries_its_bytes_to_the_worker_and_its_answer_back() {
    let mut io = UringIo::new(8).unwrap();
    let (mailbox, mut queue) = Mailbox::new(2, 4096).unwrap();
    FrontQueue::<UringIo>::start(&mut queue, &mut io).unwrap();
    let (passes, answers) = asker();
    let lease = mailbox.lease().unwrap();
    lease.data().write(0, b"bytes");
    let extent = Extent::new(ByteOffset::new(512), ByteLen::new(512)).unwrap();
    lease.submit(RequestKind::Write { fua: true }, Some(extent), passes);

    let requests = turn(&mut queue, &mut io);
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].kind, RequestKind::Write { fua: true });
    assert_eq!(requests[0].extent, Some(extent));
    let mut bytes = [0; 5];
    FrontQueue::<UringIo>::data(&queue, requests[0].tag).read(0, &mut bytes);
    assert_eq!(&bytes, b"bytes");
    assert!(turn(&mut queue, &mut io).is_empty());

    queue.complete(&mut io, requests[0].tag, Err(Errno::EIO));
    assert_eq!(answers.recv().unwrap().1, Err(Errno::EIO));
}

#[test]
fn who_finds_no_tag_waits_until_one_comes_back() {
    let (mailbox, queue) = Mailbox::<Passes>::new(1, 4096).unwrap();
    let held = mailbox.lease().unwrap();
    let (sender, got) = channel();
    let other = Arc::clone(&mailbox);
    let waiter = thread::spawn(move || {
        let lease = other.lease();
        sender.send(lease.is_some()).unwrap();
    });
    assert!(got.recv_timeout(Duration::from_millis(50)).is_err());
    drop(held);
    assert!(got.recv_timeout(Duration::from_secs(10)).unwrap());
    waiter.join().unwrap();
    drop(queue);
}

#[test]
fn a_closed_mailbox_is_finished_when_the_last_tag_is_back() {
    let mut io = UringIo::new(8).unwrap();
    let (mailbox, mut queue) = Mailbox::new(2, 4096).unwrap();
    FrontQueue::<UringIo>::start(&mut queue, &mut io).unwrap();
    let (passes, answers) = asker();
    mailbox
        .lease()
        .unwrap()
        .submit(RequestKind::Flush, None, passes);
    mailbox.close();
    assert!(mailbox.lease().is_none());
    assert!(!finished(&queue));

    let request = turn(&mut queue, &mut io)[0];
    queue.complete(&mut io, request.tag, Ok(()));
    let answer = answers.recv().unwrap();
    assert!(!finished(&queue), "the asker still has the tag");
    drop(answer);
    assert!(finished(&queue));
}

#[test]
fn a_worker_that_goes_away_answers_everybody_with_an_error() {
    let mut io = UringIo::new(8).unwrap();
    let (mailbox, mut queue) = Mailbox::new(3, 4096).unwrap();
    FrontQueue::<UringIo>::start(&mut queue, &mut io).unwrap();
    let (first, first_answers) = asker();
    let (second, second_answers) = asker();
    let (late, late_answers) = asker();
    let lease = mailbox.lease().unwrap();
    lease.submit(RequestKind::Flush, None, first);
    assert_eq!(turn(&mut queue, &mut io).len(), 1);
    let lease = mailbox.lease().unwrap();
    lease.submit(RequestKind::Flush, None, second);
    let lease = mailbox.lease().unwrap();
    drop(queue);
    lease.submit(RequestKind::Flush, None, late);
    for answers in [first_answers, second_answers, late_answers] {
        assert_eq!(answers.recv().unwrap().1, Err(Errno::ENODEV));
    }
    assert!(mailbox.lease().is_none());
}

#[test]
fn many_threads_get_every_answer_through_few_tags() {
    const THREADS: usize = 4;
    const EACH: usize = 500;
    let mut io = UringIo::new(8).unwrap();
    let (mailbox, mut queue) = Mailbox::new(3, 4096).unwrap();
    FrontQueue::<UringIo>::start(&mut queue, &mut io).unwrap();
    let askers: Vec<_> = (0..THREADS)
        .map(|_| {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || {
                for _ in 0..EACH {
                    let (passes, answers) = asker();
                    let lease = mailbox.lease().unwrap();
                    lease.submit(RequestKind::Flush, None, passes);
                    assert_eq!(answers.recv().unwrap().1, Ok(()));
                }
            })
        })
        .collect();
    let mut answered = 0;
    let mut completions = Vec::new();
    while answered < THREADS * EACH {
        io.wait(None, &mut completions).unwrap();
        for request in turn(&mut queue, &mut io) {
            queue.complete(&mut io, request.tag, Ok(()));
            answered += 1;
        }
    }
    for asker in askers {
        asker.join().unwrap();
    }
    mailbox.close();
    assert!(finished(&queue));
}

#[test]
fn a_long_range_is_cut_into_pieces_that_cover_it() {
    let extent = Extent::new(ByteOffset::new(700), ByteLen::new(3000)).unwrap();
    let pieces: Vec<_> = Pieces::new(extent, 1024)
        .map(|piece| (piece.offset().get(), piece.len().get()))
        .collect();
    assert_eq!(
        pieces,
        [(700, 324), (1024, 1024), (2048, 1024), (3072, 628)]
    );
}
