//! How much may be under way, and what a mirror leaves to writes.

use super::*;

const MIRROR: u64 = 256 << 10;

fn rig(log: u64, limits: StreamLimits) -> Rig {
    let mut rig = Rig::new(1, log, OnBackingError::Pass);
    rig.serve(0);
    rig.serve(0);
    rig.group.set_stream_limits(limits);
    rig
}

fn writes(rig: &mut Rig, from: u64, count: u64) {
    for index in from..from + count {
        rig.write(extent(index * 4096, 4096));
        rig.commit(true);
        rig.finish(0, Ok(()));
    }
}

/// Hands out all there is; its bytes of writes and of the mirror, and the last place.
fn hand_out(rig: &mut Rig) -> (u64, u64, Seq) {
    let mut out = Vec::new();
    rig.group
        .next_records(link(0), 1000, usize::MAX, |_| None, &mut out);
    let bytes = |mirror: bool| {
        let ours = out
            .iter()
            .filter(|one| one.record.kind == RecordKind::Data { mirror });
        ours.filter_map(|one| one.record.extent)
            .map(|extent| extent.len().get())
            .sum()
    };
    let last = out.last().map_or(Seq::ZERO, |one| one.record.seq);
    if last > Seq::ZERO {
        rig.group.release(link(0), last, ByteLen::ZERO);
    }
    rig.take();
    (bytes(false), bytes(true), last)
}

/// The target has received, and nothing is durable; its journal is so full.
fn received(rig: &mut Rig, seq: Seq, journal: JournalFill) {
    let acks = Acks {
        received: WriteName {
            generation: GENERATION,
            incarnation: RUN,
            seq,
        },
        durable: WriteName::NONE,
        data_state: DataState::Ok,
        journal,
    };
    assert!(rig.group.acked(link(0), &acks));
    rig.take();
}

#[test]
fn no_more_is_sent_than_may_be_under_way_until_it_is_received() {
    let limits = StreamLimits {
        in_flight: ByteLen::new(5 * 4096),
        ..StreamLimits::default()
    };
    let mut rig = rig(1 << 20, limits);
    writes(&mut rig, 0, 12);
    let (bytes, _, first) = hand_out(&mut rig);
    assert_eq!(bytes, 5 * 4096);
    assert!(
        !rig.group.has_records(link(0), |_| None),
        "nobody is kept awake"
    );
    assert_eq!(hand_out(&mut rig).0, 0);
    received(&mut rig, Seq::new(first.get() - 2), JournalFill::default());
    assert!(rig.group.has_records(link(0), |_| None));
    assert_eq!(hand_out(&mut rig).0, 3 * 4096);
    // What is durable is received.
    rig.ack(0, first);
    let (bytes, _, last) = hand_out(&mut rig);
    assert_eq!(bytes, 2 * 4096, "the three behind it are still under way");
    received(&mut rig, last, JournalFill::default());
    assert_eq!(hand_out(&mut rig).0, 2 * 4096);
}

#[test]
fn one_write_larger_than_the_limit_is_sent_alone() {
    let limits = StreamLimits {
        in_flight: ByteLen::new(512),
        ..StreamLimits::default()
    };
    let mut rig = rig(1 << 20, limits);
    writes(&mut rig, 0, 2);
    let (bytes, _, last) = hand_out(&mut rig);
    assert_eq!(bytes, 4096);
    rig.ack(0, last);
    assert_eq!(hand_out(&mut rig).0, 4096);
}

#[test]
fn what_was_under_way_is_counted_anew_in_the_next_connection() {
    let limits = StreamLimits {
        in_flight: ByteLen::new(4 * 4096),
        ..StreamLimits::default()
    };
    let mut rig = rig(1 << 20, limits);
    writes(&mut rig, 0, 8);
    let (_, _, last) = hand_out(&mut rig);
    rig.ack(0, Seq::new(last.get() - 2));
    let durable = rig.acked(0);
    rig.group.link_down(link(0), DownReason::Lost);
    rig.come_back(0, durable);
    assert_eq!(
        hand_out(&mut rig).0,
        4 * 4096,
        "from the first that is missing"
    );
}

#[test]
fn a_mirror_has_no_more_in_the_stream_than_it_may() {
    let limits = StreamLimits {
        mirror_in_flight: ByteLen::new(2 * MIRROR),
        ..StreamLimits::default()
    };
    let mut rig = rig(64 << 20, limits);
    rig.group.start_mirror(link(0), MirrorKind::Full);
    rig.take();
    let mut all = 0;
    loop {
        rig.finish_mirror_reads(false);
        let (_, bytes, last) = hand_out(&mut rig);
        if last == Seq::ZERO {
            break;
        }
        assert!(bytes <= 2 * MIRROR, "{bytes}");
        assert!(
            rig.mirror.is_empty() || bytes < 2 * MIRROR,
            "no more is read"
        );
        all += bytes;
        received(&mut rig, last, JournalFill::default());
    }
    assert_eq!(all, LEN);
}

#[test]
fn while_writes_wait_a_mirror_gets_its_part_and_else_what_it_can() {
    let limits = StreamLimits {
        mirror_ratio: 4,
        mirror_in_flight: ByteLen::new(1 << 30),
        ..StreamLimits::default()
    };
    let mut rig = rig(64 << 20, limits);
    writes(&mut rig, 0, 100);
    rig.group.start_mirror(link(0), MirrorKind::Full);
    rig.take();
    assert!(
        rig.mirror.len() <= 1,
        "a hundred writes wait: {}",
        rig.mirror.len()
    );
    let begun = |rig: &Rig| rig.group.link_status(link(0)).unwrap().mirror.remaining;
    let before = begun(&rig);
    // None is handed out: they go on waiting, and the mirror gets a quarter of what comes.
    writes(&mut rig, 100, 512);
    rig.finish_mirror_reads(false);
    rig.pass(Duration::from_millis(1));
    rig.finish_mirror_reads(false);
    let part = before.get() - begun(&rig).get();
    assert!((MIRROR..=3 * MIRROR).contains(&part), "{part}");
    loop {
        let (_, _, last) = hand_out(&mut rig);
        if last == Seq::ZERO && rig.mirror.is_empty() {
            break;
        }
        if last > Seq::ZERO {
            rig.ack(0, last);
        }
        rig.take();
        rig.finish_mirror_reads(false);
    }
    assert_eq!(begun(&rig), ByteLen::ZERO);
}

fn fill(percent: u64, held: bool) -> JournalFill {
    JournalFill {
        used: ByteLen::new(percent << 20),
        capacity: ByteLen::new(100 << 20),
        held,
    }
}

/// What a mirror sends until it stands still, with a journal so full at every acknowledgement.
fn mirrored(rig: &mut Rig, journal: JournalFill) -> u64 {
    let mut all = 0;
    loop {
        rig.finish_mirror_reads(false);
        let (_, bytes, last) = hand_out(rig);
        all += bytes;
        if last == Seq::ZERO && rig.mirror.is_empty() {
            return all;
        }
        let head = rig.group.link(link(0)).unwrap().last_handed_out();
        received(rig, head, journal);
    }
}

#[test]
fn a_mirror_stands_back_above_the_high_mark_and_goes_on_below_the_low_one() {
    let mut rig = rig(64 << 20, StreamLimits::default());
    rig.group.start_mirror(link(0), MirrorKind::Full);
    rig.take();
    let head = rig.group.link(link(0)).unwrap().last_handed_out();
    received(&mut rig, head, fill(76, false));
    let first = mirrored(&mut rig, fill(80, false));
    assert!(first < LEN / 2, "what was begun before: {first}");
    assert!(rig.group.link_status(link(0)).unwrap().mirror.held_back);
    // Writes go on.
    writes(&mut rig, 0, 3);
    assert_eq!(hand_out(&mut rig).0, 3 * 4096);
    let head = rig.group.link(link(0)).unwrap().last_handed_out();
    received(&mut rig, head, fill(51, false));
    assert_eq!(mirrored(&mut rig, fill(51, false)), 0, "not yet");
    received(&mut rig, head, fill(50, false));
    assert!(!rig.group.link_status(link(0)).unwrap().mirror.held_back);
    let rest = mirrored(&mut rig, fill(75, false));
    assert_eq!(first + rest, LEN);
    let mut told = Vec::new();
    while let Some(event) = rig.group.take_event() {
        told.push(event);
    }
    let held = told
        .iter()
        .filter(|e| matches!(e, GroupEvent::MirrorHeldBack { .. }));
    let free = told
        .iter()
        .filter(|e| matches!(e, GroupEvent::MirrorGoesOn { .. }));
    assert_eq!((held.count(), free.count()), (1, 1), "{told:?}");
}

/// Only its end empties the journal: it would wait for itself.
#[test]
fn a_mirror_that_the_target_holds_in_its_journal_is_not_held_back() {
    let mut rig = rig(64 << 20, StreamLimits::default());
    rig.group.start_mirror(link(0), MirrorKind::Full);
    rig.take();
    assert_eq!(mirrored(&mut rig, fill(99, true)), LEN);
}

#[test]
fn a_high_mark_of_a_hundred_never_holds_a_mirror_back() {
    let limits = StreamLimits {
        mirror_high: 100,
        ..StreamLimits::default()
    };
    let mut rig = rig(64 << 20, limits);
    rig.group.start_mirror(link(0), MirrorKind::Full);
    rig.take();
    assert_eq!(mirrored(&mut rig, fill(100, false)), LEN);
}
