//! The stream goes back: what was sent on a connection that is lost is handed out again.

use super::*;

const WRITE: u64 = 4096;

/// A link that follows, and `count` writes it was not handed yet.
fn rig(count: u64, capacity: u64) -> Rig {
    let mut rig = Rig::new(1, capacity, OnBackingError::Pass);
    rig.serve(0);
    for place in 0..count {
        rig.write(extent(place * WRITE, WRITE));
        rig.commit(true);
        rig.finish(0, Ok(()));
    }
    rig
}

/// The places that are handed out now; the bytes of none are read any more afterwards.
fn handed(rig: &mut Rig, count: usize) -> Vec<u64> {
    let mut out = Vec::new();
    rig.group
        .next_records(link(0), count, usize::MAX, |_| None, &mut out);
    if let Some(last) = out.last() {
        rig.group.release(link(0), last.record.seq, ByteLen::ZERO);
    }
    out.iter().map(|each| each.record.seq.get()).collect()
}

fn received(rig: &mut Rig, received: u64, durable: u64) {
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
    assert!(rig.group.acked(link(0), &acks), "{received} was sent");
}

#[test]
fn what_was_not_received_is_handed_out_again_and_then_what_follows() {
    let mut rig = rig(9, 1 << 20);
    let first = handed(&mut rig, 6);
    let from = first[0];
    received(&mut rig, from + 1, from);
    rig.group.send_again(link(0));
    assert!(rig.group.has_records(link(0), |_| None));
    assert_eq!(handed(&mut rig, 3), [from + 2, from + 3, from + 4]);
    assert_eq!(
        handed(&mut rig, 9),
        [from + 5, from + 6, from + 7, from + 8]
    );
    assert!(handed(&mut rig, 9).is_empty());
}

/// The target may have more than it had acknowledged when the connection was lost: that is freed here,
/// and the stream must not look for it.
#[test]
fn what_is_acknowledged_meanwhile_is_not_looked_for_again() {
    let mut rig = rig(9, 1 << 20);
    let from = handed(&mut rig, 8)[0];
    rig.group.send_again(link(0));
    assert_eq!(handed(&mut rig, 1), [from]);
    received(&mut rig, from + 4, from + 3);
    assert_eq!(rig.group.log.as_ref().unwrap().base().1, Seq::new(from + 3));
    assert_eq!(handed(&mut rig, 2), [from + 5, from + 6]);
    rig.group.send_again(link(0));
    received(&mut rig, from + 7, from + 7);
    assert_eq!(handed(&mut rig, 9), [from + 8], "for the first time");
    received(&mut rig, from + 8, from + 8);
    let log = rig.group.log.as_ref().unwrap();
    assert_eq!(log.base(), log.head(), "nothing is kept");
}

/// What went back is not read by anybody: it does not keep the log from being given up, and the
/// mirror that follows is the next thing that is sent.
#[test]
fn a_link_that_falls_behind_while_it_goes_back_goes_on_with_its_mirror() {
    let mut rig = rig(4, 64 * WRITE);
    let from = handed(&mut rig, 4)[0];
    rig.group.send_again(link(0));
    assert_eq!(handed(&mut rig, 1), [from]);
    for place in 10..140 {
        rig.pass(Duration::from_secs(5));
        rig.write(extent(place * WRITE, WRITE));
        rig.commit(true);
        if !rig.running.is_empty() {
            rig.finish(0, Ok(()));
        }
    }
    assert!(rig.group.link_status(link(0)).unwrap().overflows > 0);
    for _ in 0..60 {
        rig.pass(Duration::from_secs(1));
        rig.commit(true);
        while !rig.running.is_empty() {
            rig.finish(0, Ok(()));
        }
        rig.serve(0);
        rig.finish_mirror_reads(false);
    }
    assert_eq!(rig.position(0), Position::Following);
    assert!(rig.group.link_is_drained(link(0)));
}
