//! Writers are slowed while the log fills up, and by no more than is said.

use super::*;

const ADAPTIVE: Throttle = Throttle {
    always: false,
    start: 50,
    stop: 25,
    delay_max: Duration::from_millis(100),
};

/// A group whose log of 16 writes holds nine: more than half of it is full.
fn half_full(throttle: Throttle) -> Rig {
    let mut rig = Rig::new(1, 64 << 10, OnBackingError::Pass);
    rig.serve(0);
    rig.pass(Duration::ZERO);
    rig.group.set_throttle(Some(throttle));
    for index in 0..9 {
        write(&mut rig, index);
    }
    rig
}

fn write(rig: &mut Rig, index: u64) {
    rig.write(extent(index * 4096, 4096));
    rig.commit(true);
}

fn slowed(rig: &mut Rig) -> Vec<bool> {
    let events = std::iter::from_fn(|| rig.group.take_event());
    let slowed = events.filter_map(|event| match event {
        GroupEvent::Slowed { active } => Some(active),
        _ => None,
    });
    slowed.collect()
}

fn finish_all(rig: &mut Rig) {
    while !rig.running.is_empty() {
        rig.finish(0, Ok(()));
    }
}

#[test]
fn the_fuller_the_log_the_longer_a_write_waits_and_they_leave_in_order() {
    let mut rig = half_full(ADAPTIVE);
    assert_eq!(rig.running.len(), 9, "up to the start nobody waits");
    assert_eq!(rig.group.throttle_status().delayed, 0);
    write(&mut rig, 9);
    write(&mut rig, 10);
    assert_eq!(rig.running.len(), 9);
    // Nine of sixteen are full: 56.2 percent, of 25 to 100.
    let status = rig.group.throttle_status();
    assert_eq!((status.delay.as_millis(), status.delayed), (41, 2));
    assert_eq!(rig.group.deadline(), Some(rig.now.after(status.delay)));
    rig.pass(Duration::from_millis(40));
    assert_eq!(rig.running.len(), 9);
    rig.pass(Duration::from_millis(2));
    // The first one makes the log fuller, and the other waits for longer.
    assert_eq!(rig.running.len(), 10);
    rig.pass(Duration::from_millis(10));
    assert_eq!(rig.running.len(), 11);
    let (.., last) = rig.running[10];
    let (.., before) = rig.running[9];
    assert!(last.unwrap().seq > before.unwrap().seq);
    assert_eq!(slowed(&mut rig), [true]);
}

#[test]
fn it_ends_where_it_is_to_end_and_is_told_once_a_minute() {
    let mut rig = half_full(ADAPTIVE);
    write(&mut rig, 9);
    finish_all(&mut rig);
    rig.serve(0);
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.running.len(), 1, "there is room again");
    assert_eq!(slowed(&mut rig), [true, false]);
    for round in 0..3 {
        for index in 0..10 {
            write(&mut rig, index);
        }
        rig.pass(Duration::from_millis(100));
        finish_all(&mut rig);
        rig.serve(0);
        let wanted: &[bool] = if round == 2 { &[true, false] } else { &[] };
        assert_eq!(slowed(&mut rig), wanted, "round {round}");
        if round == 1 {
            rig.pass(Duration::from_secs(60));
            rig.serve(0);
        }
    }
}

#[test]
fn nobody_is_slowed_for_a_link_that_empties_nothing() {
    let mut rig = half_full(ADAPTIVE);
    write(&mut rig, 9);
    assert_eq!(rig.running.len(), 9);
    rig.group.link_down(link(0), DownReason::Lost);
    rig.pass(Duration::from_millis(50));
    assert_eq!(rig.running.len(), 10);
    write(&mut rig, 10);
    assert_eq!(rig.running.len(), 11);
}

#[test]
fn always_is_always_but_without_a_link() {
    let always = Throttle {
        always: true,
        ..ADAPTIVE
    };
    let mut rig = half_full(always);
    assert!(rig.running.is_empty());
    rig.pass(Duration::from_millis(99));
    assert!(rig.running.is_empty());
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.running.len(), 9);
    write(&mut rig, 9);
    rig.group.link_down(link(0), DownReason::Asked);
    rig.group.remove_link(link(0));
    rig.take();
    assert_eq!(rig.running.len(), 10, "nobody looks after it any more");
}

#[test]
fn who_is_slowed_goes_at_once_when_that_is_switched_off_and_gets_an_error_when_its_device_goes() {
    let mut rig = half_full(ADAPTIVE);
    write(&mut rig, 9);
    rig.group.set_throttle(None);
    rig.take();
    assert_eq!(rig.running.len(), 10);
    rig.group.set_throttle(Some(ADAPTIVE));
    let tag = rig.write(extent(10 * 4096, 4096));
    rig.commit(true);
    rig.group.end_volume(VOLUME);
    rig.take();
    assert_eq!(rig.answers, [(tag, Err(Errno::EIO))]);
    finish_all(&mut rig);
    assert!(rig.group.volume_is_idle(VOLUME));
}
