//! What links are handed and acknowledge: a full log, a slow link, digests.

use super::*;

#[test]
fn a_full_log_waits_for_a_draining_link_and_then_gives_it_up() {
    let mut rig = Rig::with_full_log();
    while !rig.running.is_empty() {
        rig.finish(0, Ok(()));
    }
    assert_eq!(rig.position(0), Position::Following);
    rig.pass(Duration::from_millis(600));
    assert_eq!(rig.position(0), Position::Behind, "patience is over");
    assert_eq!(rig.running.len(), 1);
    assert!(rig.running[0].2.is_none(), "tracked, not logged");
    let status = rig.group.link_status(link(0)).unwrap();
    assert_eq!(status.dirty_bytes, ByteLen::new(2 * 65536));
    assert_eq!(status.overflows, 1);
}

#[test]
fn a_slow_link_does_not_take_a_fast_one_along_and_gets_its_own_mirror() {
    let mut rig = Rig::with_one_link_down(512 << 10);
    assert_eq!(
        (rig.position(0), rig.position(1)),
        (Position::Behind, Position::Following)
    );
    let durable = rig.acked(0);
    let start = rig.come_back(0, durable);
    assert_eq!(start.mirror, Some(MirrorKind::Difference));
    assert!(!start.set_back, "it has all that it acknowledged");
    rig.pass(Duration::from_secs(3));
    let mut sent = [Vec::new(), Vec::new()];
    for _ in 0..50 {
        rig.take();
        rig.finish_mirror_reads(false);
        for (index, kinds) in sent.iter_mut().enumerate() {
            kinds.extend(rig.serve(index));
        }
    }
    let [slow, fast] = sent;
    assert!(matches!(slow.first(), Some(RecordKind::MirrorBegin(_))));
    assert_eq!(slow.last(), Some(&RecordKind::MirrorEnd));
    let blocks = slow
        .iter()
        .filter(|kind| matches!(kind, RecordKind::Data { mirror: true }));
    assert!(blocks.count() >= 4, "200 writes of 4 KiB touch 13 extents");
    assert!(
        fast.iter().all(|kind| *kind == RecordKind::Void),
        "not meant for it"
    );
    let status = rig.group.link_status(link(0)).unwrap();
    assert_eq!(
        (status.dirty_bytes, status.mirror.phase),
        (ByteLen::ZERO, MirrorPhase::Idle)
    );
}

#[test]
fn a_digest_that_differs_makes_the_extent_dirty_and_an_equal_one_does_not() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    rig.serve(0);
    rig.serve(0);
    rig.group.start_mirror(link(0), MirrorKind::Checksum);
    rig.take();
    let extents = LEN >> 16;
    let mut sent = 0;
    for _ in 0..extents * 4 {
        for action in std::mem::take(&mut rig.mirror) {
            match action {
                Action::MirrorDigest { job, .. } => {
                    rig.group.mirror_digest_done(job, Ok([7; 32]));
                }
                Action::MirrorRead { job, extent, .. } => {
                    sent += extent.len().get();
                    rig.group.mirror_read_done(job, Ok(false));
                }
                _ => {}
            }
        }
        let mut out = Vec::new();
        rig.group
            .next_records(link(0), 100, usize::MAX, |_| None, &mut out);
        for outgoing in &out {
            let record = outgoing.record;
            if let (RecordKind::Compare, Some(extent)) = (record.kind, record.extent) {
                let equal = extent.offset().get() != 3 << 16;
                let reply = DigestReply {
                    incarnation: record.incarnation,
                    seq: record.seq,
                    volume: record.volume,
                    extent,
                    digest: Some(if equal { [7; 32] } else { [8; 32] }),
                };
                assert!(rig.group.digest_reply(link(0), &reply));
            }
        }
        if let Some(last) = out.last() {
            rig.group.release(link(0), last.record.seq, ByteLen::ZERO);
            rig.ack(0, last.record.seq);
        }
        rig.take();
    }
    assert_eq!(sent, 65536, "only what differs is sent");
    let status = rig.group.link_status(link(0)).unwrap();
    assert_eq!(
        (status.dirty_bytes, status.mirror.phase),
        (ByteLen::ZERO, MirrorPhase::Idle)
    );
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_is_refused() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    rig.serve(0);
    let name = WriteName {
        generation: GENERATION,
        incarnation: RUN,
        seq: Seq::new(1000),
    };
    let acks = Acks {
        received: name,
        durable: name,
        data_state: DataState::Ok,
        journal: JournalFill::default(),
    };
    assert!(!rig.group.acked(link(0), &acks));
}
