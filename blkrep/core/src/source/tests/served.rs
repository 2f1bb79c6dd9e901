//! A group that has lost its backing.

use super::*;
use blkrep_types::OnLoss;

const EIO: Result<(), Errno> = Err(Errno::EIO);

fn part(seq: u64, extent: Extent, known: bool) -> ContentPart {
    ContentPart {
        incarnation: RUN,
        seq: Seq::new(seq),
        volume: VOLUME,
        extent,
        known,
    }
}

/// A group with links whose first write failed, so that it waits; its first link has everything.
fn frozen(links: usize) -> Rig {
    let mut rig = Rig::new(links, 64 << 10, OnBackingError::Freeze);
    for index in 0..links {
        while rig.group.link_status(link(index)).unwrap().mirror.phase != MirrorPhase::Idle {
            rig.serve(index);
        }
    }
    rig.write(extent(0, 4096));
    rig.commit(true);
    rig.finish(0, EIO);
    assert_eq!(rig.group.gate(), Gate::Frozen);
    assert_eq!(
        rig.group.may_serve_from(link(0)),
        Err(CannotServe::Draining)
    );
    rig.serve(0);
    rig
}

fn served(links: usize) -> Rig {
    let mut rig = frozen(links);
    rig.group.may_serve_from(link(0)).unwrap();
    rig.group.serve_from(link(0));
    rig.take();
    rig
}

impl Rig {
    /// The log has the bytes of what was written.
    fn keep_all(&mut self) {
        for id in std::mem::take(&mut self.kept) {
            self.group.local_done(id, Ok(()));
        }
        self.take();
    }

    fn head(&self) -> u64 {
        self.group.log().unwrap().head().1.get()
    }

    fn receive(&mut self, index: usize, received: u64, durable: u64) {
        let name = |seq| WriteName {
            generation: GENERATION,
            incarnation: RUN,
            seq: Seq::new(seq),
        };
        let acks = Acks {
            received: name(received),
            durable: name(durable),
            data_state: DataState::Ok,
            journal: JournalFill::default(),
        };
        assert!(self.group.acked(link(index), &acks));
        self.take();
    }

    fn send(&mut self, index: usize) {
        let mut out = Vec::new();
        let some = usize::MAX;
        self.group
            .next_records(link(index), 100, some, |_| None, &mut out);
        if let Some(last) = out.last() {
            let seq = last.record.seq;
            self.group.release(link(index), seq, ByteLen::ZERO);
        }
    }
}

#[test]
fn a_write_that_failed_completes_when_the_target_has_it_and_is_no_dirt() {
    let mut rig = served(1);
    assert!(rig.running.is_empty());
    assert_eq!(rig.answers, [(1, Ok(()))], "it has the one that failed");
    let second = rig.write(extent(4096, 4096));
    rig.keep_all();
    let head = rig.head();
    rig.send(0);
    rig.receive(0, head - 1, head - 1);
    assert_eq!(rig.answers.len(), 1);
    rig.receive(0, head, head - 1);
    assert_eq!(rig.answers[1..], [(second, Ok(()))]);
    let status = rig.group.link_status(link(0)).unwrap();
    assert_eq!(status.dirty_bytes, ByteLen::ZERO);
}

#[test]
fn nothing_is_done_to_the_backing_any_more() {
    let mut rig = served(1);
    rig.write(extent(0, 4096));
    rig.submit(
        RequestOp::Zero {
            fua: true,
            free: true,
        },
        Some(extent(8192, 4096)),
    );
    rig.submit(RequestOp::Flush, None);
    rig.submit(RequestOp::Read, Some(extent(0, 4096)));
    rig.synced = EIO;
    rig.keep_all();
    rig.pass(Duration::from_secs(60));
    assert!(rig.running.is_empty(), "neither written nor flushed");
    rig.serve(0);
    assert!(rig.answers.iter().all(|(_, result)| result.is_ok()));
    assert_eq!(rig.answers.len(), 4, "all but the read");
}

#[test]
fn a_flush_and_a_durable_write_wait_until_the_target_has_it_durably() {
    let mut rig = served(1);
    let durable = rig.submit(RequestOp::Write { fua: true }, Some(extent(8192, 4096)));
    rig.keep_all();
    let flush = rig.submit(RequestOp::Flush, None);
    let head = rig.head();
    rig.send(0);
    rig.receive(0, head, head - 1);
    assert_eq!(rig.answers, [(1, Ok(()))], "received is not durable");
    rig.receive(0, head, head);
    rig.answers.sort_by_key(|(tag, _)| *tag);
    assert_eq!(rig.answers[1..], [(durable, Ok(())), (flush, Ok(()))]);
}

#[test]
fn a_read_has_its_place_behind_what_was_written_and_takes_its_answer_in_parts() {
    let mut rig = served(1);
    rig.serve(0);
    rig.answers.clear();
    let all = extent(0, 128 << 10);
    let tag = rig.submit(RequestOp::Read, Some(all));
    let seq = rig.head();
    assert_eq!(rig.serve(0), [RecordKind::Read]);
    let (mut copied, half) = (Vec::new(), 64 << 10);
    let wrong = part(seq, extent(half, half), true);
    assert!(
        !rig.group
            .content(link(0), &wrong, |_, _, _| panic!("a part is missing"))
    );
    for at in [0, half] {
        let part = part(seq, extent(at, half), true);
        assert!(
            rig.group
                .content(link(0), &part, |_, tag, at| copied.push((tag, at)))
        );
    }
    rig.take();
    assert_eq!(copied, [(tag, 0), (tag, 64 << 10)]);
    assert_eq!(rig.answers, [(tag, Ok(()))]);
    let late = part(seq, all, false);
    assert!(
        rig.group
            .content(link(0), &late, |_, _, _| panic!("it is answered"))
    );
    let unknown = part(seq + 1, all, true);
    assert!(
        !rig.group
            .content(link(0), &unknown, |_, _, _| panic!("nobody asked"))
    );
}

#[test]
fn a_read_that_the_target_cannot_answer_is_an_error() {
    let mut rig = served(1);
    let tag = rig.submit(RequestOp::Read, Some(extent(0, 4096)));
    let seq = rig.head();
    rig.serve(0);
    rig.answers.clear();
    let part = part(seq, extent(0, 4096), false);
    assert!(
        rig.group
            .content(link(0), &part, |_, _, _| panic!("there is nothing"))
    );
    rig.take();
    assert_eq!(rig.answers, [(tag, EIO)]);
}

#[test]
fn a_read_that_a_lost_connection_took_is_asked_again() {
    let mut rig = served(1);
    rig.serve(0);
    let before = rig.acked(0);
    rig.answers.clear();
    let tag = rig.submit(RequestOp::Read, Some(extent(0, 4096)));
    let first = rig.head();
    rig.serve(0);
    let after = rig.acked(0);
    rig.group.link_down(link(0), DownReason::Lost);
    let second = rig.submit(RequestOp::Read, Some(extent(4096, 4096)));
    assert_eq!(rig.head(), first, "nobody to ask");
    rig.come_back(0, after);
    rig.take();
    assert_eq!(rig.head(), first + 2, "both have places behind what it has");
    // A target without it gets the record again.
    rig.group.link_down(link(0), DownReason::Lost);
    rig.come_back(0, after);
    rig.take();
    assert_eq!(rig.head(), first + 2);
    assert_eq!(rig.serve(0), [RecordKind::Read; 2]);
    for (seq, tag, at) in [(first + 1, tag, 0), (first + 2, second, 4096)] {
        let part = part(seq, extent(at, 4096), true);
        assert!(
            rig.group
                .content(link(0), &part, |_, found, _| assert_eq!(found, tag))
        );
    }
    rig.take();
    assert_eq!(rig.answers.len(), 2);
    assert!(before.seq < after.seq);
}

#[test]
fn the_log_is_never_given_up_for_the_link_that_serves() {
    let mut rig = served(2);
    rig.serve(0);
    rig.serve(1);
    rig.group.link_down(link(0), DownReason::Lost);
    for index in 0..40 {
        rig.write(extent(index * 4096, 4096));
        rig.keep_all();
        rig.serve(1);
        rig.pass(Duration::from_secs(1));
    }
    let full = rig.group.log().unwrap().used().get();
    assert!(full > 60 << 10, "it holds what fits");
    let status = rig.group.link_status(link(0)).unwrap();
    assert_eq!(status.position, Position::Following);
    let after = rig.acked(0);
    rig.come_back(0, after);
    rig.take();
    for _ in 0..60 {
        rig.keep_all();
        rig.serve(0);
        rig.serve(1);
    }
    assert_eq!(rig.answers.len(), 41, "nothing is lost");
}

#[test]
fn another_link_that_is_lost_holds_nobody_up_and_is_not_mirrored() {
    let mut rig = served(2);
    rig.serve(0);
    rig.serve(1);
    rig.group.link_down(link(1), DownReason::Lost);
    let after = rig.acked(1);
    for index in 0..40 {
        rig.write(extent(index * 4096, 4096));
        rig.keep_all();
        rig.serve(0);
        rig.pass(Duration::from_secs(1));
    }
    assert_eq!(rig.answers.len(), 41);
    assert_eq!(rig.position(1), Position::Behind);
    rig.group.negotiating(link(1));
    let peer = WelcomeFacts {
        role: PeerRole::Replica,
        data_state: DataState::Ok,
        history: rig.group.history().clone(),
        durable: after,
        reads: true,
    };
    let refused = rig.group.welcome(link(1), &peer).unwrap_err();
    assert!(
        matches!(refused, Rejection::Refused { reason } if reason.contains("lost its backing"))
    );
}

#[test]
fn a_link_that_cannot_serve_says_why() {
    let rig = Rig::new(1, 1 << 20, OnBackingError::Freeze);
    assert_eq!(
        rig.group.may_serve_from(link(0)),
        Err(CannotServe::NotFrozen)
    );
    let mut rig = frozen(2);
    assert_eq!(rig.group.may_serve_from(link(5)), Err(CannotServe::NoLink));
    rig.group.start_mirror(link(1), MirrorKind::Checksum);
    assert_eq!(
        rig.group.may_serve_from(link(1)),
        Err(CannotServe::NotEqual)
    );
    rig.group.link_down(link(0), DownReason::Lost);
    assert_eq!(
        rig.group.may_serve_from(link(0)),
        Err(CannotServe::NotConnected)
    );
    rig.group.negotiating(link(0));
    let acked = rig.acked(0);
    let peer = WelcomeFacts {
        role: PeerRole::Replica,
        data_state: DataState::Ok,
        history: rig.group.history().clone(),
        durable: acked,
        reads: false,
    };
    rig.group.welcome(link(0), &peer).unwrap();
    rig.group.begin_stream(link(0)).unwrap();
    assert_eq!(rig.group.may_serve_from(link(0)), Err(CannotServe::TooOld));
}

#[test]
fn with_the_policy_fail_requests_end_when_the_serving_link_stays_lost() {
    let mut rig = served(1);
    rig.serve(0);
    rig.group.set_mode(link(0), Mode::Memory);
    rig.group.set_loss_policy(
        link(0),
        LossPolicy {
            on_loss: OnLoss::Fail,
            timeout: Duration::from_secs(2),
        },
    );
    for _ in 0..4 {
        rig.pass(Duration::from_secs(1));
        rig.commit(true);
        rig.serve(0);
    }
    rig.answers.clear();
    rig.group.link_down(link(0), DownReason::Lost);
    let read = rig.submit(RequestOp::Read, Some(extent(0, 4096)));
    let write = rig.write(extent(0, 4096));
    rig.keep_all();
    assert!(rig.answers.is_empty());
    rig.pass(Duration::from_secs(3));
    rig.answers.sort_by_key(|(tag, _)| *tag);
    assert_eq!(rig.answers, [(read, EIO), (write, EIO)]);
    let late = rig.submit(RequestOp::Read, Some(extent(0, 4096)));
    assert_eq!(rig.answers.last(), Some(&(late, EIO)));
}

/// What is answered while the record is being written must not depend on this host's power.
#[test]
fn nothing_gets_a_place_while_it_goes_on_record_who_serves() {
    let mut rig = Rig::new(1, 64 << 10, OnBackingError::Freeze);
    rig.serve(0);
    rig.serve(0);
    rig.write(extent(0, 4096));
    // Its intent is not durable yet.
    let second = rig.submit(RequestOp::Write { fua: true }, Some(extent(8192, 4096)));
    rig.group.read_failed(
        NewRequest {
            worker: rig.queue,
            tag: 99,
            volume: VOLUME,
            op: RequestOp::Read,
            extent: Some(extent(0, 4096)),
        },
        Errno::EIO,
    );
    assert_eq!(rig.group.gate(), Gate::Frozen);
    let head = rig.head();
    rig.group.pin(link(0)).unwrap();
    rig.commit(true);
    assert_eq!((rig.head(), rig.running.len()), (head, 0));
    assert!(rig.group.still_serves(link(0)));
    rig.group.serve_from(link(0));
    rig.take();
    rig.keep_all();
    assert!(rig.running.is_empty());
    rig.serve(0);
    assert!(rig.answers.contains(&(second, Ok(()))));
}

#[test]
fn a_newer_generation_ends_it() {
    let mut rig = served(1);
    rig.serve(0);
    rig.answers.clear();
    let read = rig.submit(RequestOp::Read, Some(extent(0, 4096)));
    let write = rig.write(extent(0, 4096));
    rig.keep_all();
    rig.group.fence(Generation::from_bytes([9; 16]));
    rig.take();
    rig.answers.sort_by_key(|(tag, _)| *tag);
    assert_eq!(rig.answers, [(read, EIO), (write, EIO)]);
    assert!(rig.group.is_lost() && rig.group.serving().is_none());
}

#[test]
fn a_volume_that_leaves_takes_its_reads_along() {
    let mut rig = served(1);
    let read = rig.submit(RequestOp::Read, Some(extent(0, 4096)));
    rig.group.end_volume(VOLUME);
    rig.take();
    assert!(rig.answers.contains(&(read, EIO)));
    assert!(rig.group.volume_is_idle(VOLUME));
}

/// The memory of the log went with the power: what the target has is all that there is.
#[test]
fn without_its_log_the_group_goes_on_from_what_the_target_has() {
    let mut rig = Rig::without_log(OnBackingError::Pass, |_| ());
    rig.group.set_log(PlainLog::after(Seq::ZERO, 1 << 20));
    rig.group.serve_from(link(0));
    rig.drivers.push(rig.group.add_worker());
    let name = WriteName {
        generation: GENERATION,
        incarnation: Incarnation::default(),
        seq: Seq::new(70),
    };
    rig.make_link(0, None, Some(name));
    let write = rig.write(extent(0, 4096));
    assert!(rig.kept.is_empty(), "it waits for the target");
    rig.come_back(0, name);
    rig.take();
    rig.keep_all();
    let sent = rig.serve(0);
    let kinds = [
        RecordKind::MirrorBegin(MirrorKind::Difference),
        RecordKind::MirrorEnd,
    ];
    assert_eq!(sent, kinds, "nothing is sent but where it goes on");
    rig.take();
    rig.keep_all();
    assert_eq!(rig.serve(0), [RecordKind::Data { mirror: false }]);
    rig.serve(0);
    assert_eq!(rig.answers, [(write, Ok(()))]);
}

/// The simulator's seed 1000421: source and target lost their power, the source came back to what the target had
/// left, and then the target lost it once more, before it had durably where the stream went on. It was refused for
/// ever for lacking what nobody had written.
#[test]
fn a_target_that_loses_its_power_before_it_joins_the_new_log_may_do_so_again() {
    let mut rig = Rig::without_log(OnBackingError::Pass, |_| ());
    rig.group.set_log(PlainLog::after(Seq::ZERO, 1 << 20));
    rig.group.serve_from(link(0));
    rig.drivers.push(rig.group.add_worker());
    let name = WriteName {
        generation: GENERATION,
        incarnation: Incarnation::default(),
        seq: Seq::new(70),
    };
    rig.make_link(0, None, Some(name));
    let write = rig.write(extent(0, 4096));
    let read = rig.submit(RequestOp::Read, Some(extent(8192, 4096)));
    rig.come_back(0, name);
    rig.take();
    rig.send(0);
    let head = rig.head();
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.head(), head, "nothing that it might miss");
    rig.group.link_down(link(0), DownReason::Lost);
    rig.come_back(0, name);
    rig.take();
    rig.serve(0);
    rig.keep_all();
    let mut sent = rig.serve(0);
    sent.sort_by_key(|kind| *kind != RecordKind::Read);
    let kinds = [RecordKind::Read, RecordKind::Data { mirror: false }];
    assert_eq!(sent, kinds, "they come when it has joined");
    assert!(rig.answers.contains(&(write, Ok(()))));
    assert!(!rig.answers.iter().any(|(tag, _)| *tag == read));
}
