//! Waiting has an end, and costs nothing meanwhile.

use super::*;

/// A log full of local writes that the backing does not end made every worker look at it without a
/// pause once the patience of the waiting write was over.
#[test]
fn a_write_that_waits_for_a_slow_backing_keeps_nobody_awake() {
    let mut rig = Rig::with_full_log();
    rig.pass(Duration::from_millis(600));
    rig.pass(Duration::from_millis(10));
    assert_eq!(rig.running.len(), 16, "the backing holds the log");
    let due = rig.group.deadline().unwrap();
    assert!(due > rig.now, "the next turn is due at once, for ever");
}

/// The queue of a link that is not connected held more than half of the log; the mirror of another
/// link waited for room that only a write of the application would have made.
#[test]
fn a_link_that_is_not_connected_does_not_stop_the_mirror_of_another() {
    let mut rig = Rig::with_one_link_down(1 << 20);
    assert_eq!(rig.position(0), Position::Following, "the log holds it");
    rig.group.start_mirror(link(1), MirrorKind::Full);
    for _ in 0..600 {
        rig.pass(Duration::from_millis(100));
        rig.finish_mirror_reads(false);
        rig.serve(1);
        rig.commit(true);
    }
    assert!(
        rig.group.link_is_drained(link(1)),
        "{:?}",
        rig.group.link_status(link(1))
    );
    let status = rig.group.link_status(link(0)).unwrap();
    assert_eq!(status.position, Position::Behind);
    assert_eq!(status.dirty_bytes, ByteLen::new(13 * 65536), "as dirt now");
}

/// The intent of a write could not be written, and before it was tried again the last link was
/// removed: nobody looked after it any more.
#[test]
fn a_write_that_waits_for_its_intent_goes_on_when_the_last_link_is_removed() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    rig.serve(0);
    rig.write(extent(0, 4096));
    rig.commit(false);
    assert!(rig.running.is_empty(), "its intent is not durable");
    rig.group.link_down(link(0), DownReason::Asked);
    rig.group.remove_link(link(0));
    rig.take();
    assert_eq!(rig.running.len(), 1, "nobody needs its intent");
    rig.finish(0, Ok(()));
    assert_eq!(rig.answers, [(1, Ok(()))]);
}
