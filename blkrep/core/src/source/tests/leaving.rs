//! A device that goes away while requests wait: each gets its answer, and no link is lied to.

use super::*;

const EIO: Result<(), Errno> = Err(Errno::EIO);

#[test]
fn who_waits_for_an_operator_gets_an_error_when_the_device_goes() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Freeze);
    rig.serve(0);
    let failed = rig.write(extent(65536, 4096));
    rig.commit(true);
    let seq = rig.running[0].2.unwrap().seq;
    rig.finish(0, EIO);
    let overlapping = rig.write(extent(65536, 8192));
    let flush = rig.submit(RequestOp::Flush, None);
    let read = rig.submit(RequestOp::Read, Some(extent(0, 4096)));
    assert_eq!((rig.group.gate(), rig.answers.len()), (Gate::Frozen, 0));
    rig.group.end_volume(VOLUME);
    rig.take();
    let mut answers = rig.answers.clone();
    answers.sort_by_key(|(tag, _)| *tag);
    assert_eq!(
        answers,
        [failed, overlapping, flush, read].map(|tag| (tag, EIO))
    );
    assert_eq!(rig.group.requests_in_flight(), 0);
    let live = &rig.group.links[0].as_ref().unwrap().live;
    assert!(live.test(1), "what the disk has of it nobody knows");
    rig.serve(0);
    let freed = rig.group.log.as_ref().unwrap().base().1;
    assert!(freed >= seq, "the log does not wait for it");
    let late = rig.write(extent(0, 4096));
    assert_eq!(rig.answers.last(), Some(&(late, EIO)));
    // A new device is served as before; the group still waits for its operator.
    rig.group.begin_volume(VOLUME);
    rig.group.thaw();
    rig.write(extent(1 << 20, 4096));
    rig.commit(true);
    rig.finish(0, Ok(()));
    assert_eq!(rig.answers.last().unwrap().1, Ok(()));
}

#[test]
fn who_waits_for_an_intent_or_for_room_gets_an_error_when_the_device_goes() {
    let mut rig = Rig::with_full_log();
    let (second, third) = (rig.write(extent(0, 4096)), rig.write(extent(8 << 20, 4096)));
    rig.commit(false);
    rig.group.end_volume(VOLUME);
    rig.take();
    let mut told: Vec<_> = rig.answers.iter().map(|(tag, _)| *tag).collect();
    told.sort_unstable();
    assert_eq!(told, [17, second, third], "what the disk has is not theirs");
    while !rig.running.is_empty() {
        rig.finish(0, Ok(()));
    }
    assert_eq!(rig.group.requests_in_flight(), 0);
    assert!(rig.answers.iter().skip(3).all(|(_, result)| result.is_ok()));
    rig.group.begin_volume(VOLUME);
    rig.serve(0);
    rig.write(extent(0, 4096));
    rig.pass(Duration::from_secs(2));
    rig.commit(true);
    assert_eq!(rig.running.len(), 1, "its range is free");
}

#[test]
fn who_waits_for_a_target_gets_an_error_when_the_device_goes() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    rig.serve(0);
    rig.group.set_mode(link(0), Mode::Sync);
    rig.write(extent(0, 4096));
    rig.commit(true);
    rig.finish(0, Ok(()));
    rig.write(extent(65536, 4096));
    rig.commit(true);
    assert!(rig.answers.is_empty(), "not acknowledged");
    rig.group.end_volume(VOLUME);
    rig.finish(0, Ok(()));
    assert_eq!(rig.answers, [(1, EIO), (2, EIO)]);
    rig.serve(0);
    assert_eq!(rig.group.requests_in_flight(), 0);
}
