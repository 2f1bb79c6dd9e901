//! Mirrors that are held, ended, or find a backing that fails.

use super::*;

const EXTENT: u64 = 65536;

/// A link that has everything, and then a full mirror whose first reads are handed out.
fn begun(kind: MirrorKind) -> Rig {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    rig.serve(0);
    rig.serve(0);
    rig.group.start_mirror(link(0), kind);
    rig.take();
    rig
}

/// What was sent: bytes of the mirror, and whether it said that it ends.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sent {
    bytes: u64,
    ended: bool,
}

/// Reads and sends until nothing comes any more.
fn go_on(rig: &mut Rig) -> Sent {
    let mut sent = Sent::default();
    loop {
        rig.finish_mirror_reads(false);
        let mut out = Vec::new();
        rig.group
            .next_records(link(0), 100, usize::MAX, |_| None, &mut out);
        for Outgoing { record, .. } in &out {
            match (record.kind, record.extent) {
                (RecordKind::Data { mirror: true }, Some(extent)) => {
                    sent.bytes += extent.len().get();
                }
                (kind, _) => sent.ended = kind == RecordKind::MirrorEnd,
            }
        }
        if let Some(last) = out.last() {
            rig.group.release(link(0), last.record.seq, ByteLen::ZERO);
            rig.ack(0, last.record.seq);
        }
        rig.take();
        if out.is_empty() && rig.mirror.is_empty() {
            return sent;
        }
    }
}

fn phase(rig: &Rig) -> (MirrorPhase, ByteLen) {
    let status = rig.group.link_status(link(0)).unwrap();
    (status.mirror.phase, status.dirty_bytes)
}

#[test]
fn a_held_mirror_reads_nothing_and_goes_on_where_it_was() {
    let mut rig = begun(MirrorKind::Full);
    rig.group.pause_mirror(link(0));
    let before = go_on(&mut rig);
    let left = ByteLen::new(LEN - before.bytes);
    assert!(before.bytes > 0, "what was asked for is sent");
    assert_eq!(phase(&rig), (MirrorPhase::Paused, left));
    rig.pass(Duration::from_secs(3600));
    assert_eq!(go_on(&mut rig), Sent::default(), "it stays held");
    rig.group.resume_mirror(link(0));
    rig.take();
    let after = go_on(&mut rig);
    assert!(after.ended);
    assert_eq!(phase(&rig), (MirrorPhase::Idle, ByteLen::ZERO));
    assert_eq!(after.bytes, left.get(), "nothing is sent twice");
}

/// The target waits for the end of what it was told the beginning of, also when nothing is left to send.
#[test]
fn a_mirror_that_is_held_after_its_last_block_ends_when_it_goes_on() {
    let mut rig = begun(MirrorKind::Full);
    while phase(&rig).1 > ByteLen::ZERO {
        rig.finish_mirror_reads(false);
        rig.serve(0);
    }
    assert_eq!(phase(&rig).0, MirrorPhase::Running, "reads are under way");
    rig.group.pause_mirror(link(0));
    assert!(!go_on(&mut rig).ended);
    rig.group.resume_mirror(link(0));
    rig.take();
    assert!(go_on(&mut rig).ended);
    assert_eq!(phase(&rig), (MirrorPhase::Idle, ByteLen::ZERO));
}

/// A link may be held before there is anything to mirror: what comes then waits.
#[test]
fn a_mirror_that_is_held_before_it_begins_does_not_begin() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    rig.serve(0);
    rig.serve(0);
    rig.group.pause_mirror(link(0));
    rig.write(extent(0, 4096));
    rig.commit(true);
    rig.finish(0, Err(Errno::EIO));
    rig.pass(Duration::from_secs(60));
    assert_eq!(go_on(&mut rig).bytes, 0);
    assert_eq!(phase(&rig), (MirrorPhase::Paused, ByteLen::new(EXTENT)));
    rig.group.resume_mirror(link(0));
    rig.take();
    assert_eq!(go_on(&mut rig).bytes, EXTENT);
    assert_eq!(phase(&rig), (MirrorPhase::Idle, ByteLen::ZERO));
}

#[test]
fn a_mirror_that_was_ended_leaves_dirt_and_does_not_begin_by_itself() {
    let mut rig = begun(MirrorKind::Full);
    rig.group.stop_mirror(link(0));
    let sent = go_on(&mut rig);
    let left = ByteLen::new(LEN - sent.bytes);
    assert!(!sent.ended, "it is not equal");
    rig.pass(Duration::from_secs(3600));
    assert_eq!(go_on(&mut rig), Sent::default());
    assert_eq!(phase(&rig), (MirrorPhase::Idle, left));
    rig.group.start_mirror(link(0), MirrorKind::Difference);
    rig.take();
    assert_eq!(go_on(&mut rig).bytes, left.get());
    assert_eq!(phase(&rig), (MirrorPhase::Idle, ByteLen::ZERO));
}

/// Answers every digest with an equal one, ours or theirs; the backing fails where `fails` says.
fn compare(rig: &mut Rig, fails: impl Fn(Extent) -> bool) -> Vec<RecordKind> {
    compare_with(rig, fails, RUN)
}

/// The same, with the target's digests asked for by `run`.
fn compare_with(
    rig: &mut Rig,
    fails: impl Fn(Extent) -> bool,
    run: Incarnation,
) -> Vec<RecordKind> {
    let mut sent = Vec::new();
    loop {
        let asked = std::mem::take(&mut rig.mirror);
        let idle = asked.is_empty();
        for action in asked {
            let Action::MirrorDigest { job, extent, .. } = action else {
                panic!("equal extents are not read: {action:?}")
            };
            let digest = if fails(extent) {
                Err(Errno::EIO)
            } else {
                Ok([7; 32])
            };
            rig.group.mirror_digest_done(job, digest);
        }
        let mut out = Vec::new();
        rig.group
            .next_records(link(0), 100, usize::MAX, |_| None, &mut out);
        for outgoing in &out {
            let record = outgoing.record;
            if record.kind == RecordKind::Compare {
                let reply = DigestReply {
                    incarnation: run,
                    seq: record.seq,
                    volume: record.volume,
                    extent: record.extent.unwrap(),
                    digest: Some([7; 32]),
                };
                assert!(rig.group.digest_reply(link(0), &reply));
            }
            sent.push(record.kind);
        }
        if let Some(last) = out.last() {
            rig.group.release(link(0), last.record.seq, ByteLen::ZERO);
            rig.ack(0, last.record.seq);
        }
        rig.take();
        if idle && out.is_empty() {
            return sent;
        }
    }
}

#[test]
fn an_extent_whose_digest_could_not_be_read_is_compared_again_after_a_pause() {
    let mut rig = begun(MirrorKind::Checksum);
    let bad = extent(5 * EXTENT, EXTENT);
    let sent = compare(&mut rig, |extent| extent == bad);
    assert!(
        !sent.contains(&RecordKind::MirrorEnd),
        "one is not compared"
    );
    let failed =
        |event| matches!(event, GroupEvent::MirrorError { errno, .. } if errno == Errno::EIO);
    let events = std::iter::from_fn(|| rig.group.take_event());
    assert!(events.filter(|event| failed(event.clone())).count() >= 1);
    let (running, left) = phase(&rig);
    assert_eq!(running, MirrorPhase::Running);
    assert!(left.get() >= EXTENT, "the rest waits with it");
    rig.pass(Duration::from_secs(2));
    let sent = compare(&mut rig, |_| false);
    assert_eq!(sent.last(), Some(&RecordKind::MirrorEnd));
    assert_eq!(phase(&rig), (MirrorPhase::Idle, ByteLen::ZERO));
}

/// The target was still reading, behind a disk that stood still, what the run before had asked for. That run
/// had asked at the same places for the same extents. A write of that run came after the reading, was on its
/// way to the target, and was lost at the source with its power. The old digests, from before the write,
/// agreed with what the source then had: both ends said that nothing was missing, and differed.
#[test]
fn a_digest_that_an_earlier_run_asked_for_answers_nothing() {
    let mut rig = begun(MirrorKind::Checksum);
    let sent = compare_with(&mut rig, |_| false, Incarnation::new(RUN.get() - 1));
    assert!(sent.contains(&RecordKind::Compare), "they were asked for");
    assert!(
        !sent.contains(&RecordKind::MirrorEnd),
        "nothing is answered"
    );
    assert_eq!(phase(&rig), (MirrorPhase::Running, ByteLen::new(LEN)));
}
