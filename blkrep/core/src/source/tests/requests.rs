//! From a request to its answer: order, failures, freezing.

use super::*;

#[test]
fn a_write_without_a_link_starts_at_once_and_takes_no_place() {
    let mut rig = Rig::new(0, 0, OnBackingError::Pass);
    rig.write(extent(0, 4096));
    assert_eq!(rig.running.len(), 1);
    assert!(rig.running[0].2.is_none());
    rig.finish(0, Ok(()));
    assert_eq!(rig.answers, [(1, Ok(()))]);
    assert_eq!(rig.group.deadline(), None, "nothing to look after");
}

#[test]
fn a_write_starts_when_its_intent_is_durable_and_places_follow_the_order_of_arrival() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    rig.serve(0);
    rig.write(extent(0, 4096));
    rig.write(extent(8192, 4096));
    assert!(rig.running.is_empty(), "not before the commit");
    rig.commit(false);
    assert!(rig.running.is_empty(), "nor after one that failed");
    rig.pass(Duration::from_secs(2));
    rig.commit(true);
    let places: Vec<_> = rig
        .running
        .iter()
        .map(|(_, _, slot)| slot.unwrap().seq)
        .collect();
    assert_eq!(places.len(), 2);
    assert_eq!(places[0].next(), places[1]);
}

#[test]
fn a_failed_write_is_dirty_on_every_link_before_its_error_is_given() {
    let mut rig = Rig::new(2, 1 << 20, OnBackingError::Pass);
    rig.write(extent(65536, 4096));
    rig.commit(true);
    let (id, ..) = rig.running.pop().unwrap();
    rig.group.local_done(id, Err(Errno::EIO));
    assert!(
        rig.group
            .links
            .iter()
            .flatten()
            .all(|link| link.live.test(1))
    );
    rig.take();
    assert_eq!(rig.answers, [(1, Err(Errno::EIO))]);
}

#[test]
fn a_frozen_group_tries_again_when_thawed() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Freeze);
    rig.write(extent(0, 4096));
    rig.commit(true);
    rig.finish(0, Err(Errno::EIO));
    rig.write(extent(0, 4096));
    assert_eq!((rig.group.gate(), rig.answers.len()), (Gate::Frozen, 0));
    rig.group.thaw();
    rig.take();
    assert_eq!(rig.running.len(), 1, "the second overlaps and waits");
    rig.finish(0, Ok(()));
    rig.finish(0, Ok(()));
    assert_eq!(rig.answers, [(1, Ok(())), (2, Ok(()))]);
}

#[test]
fn a_read_that_failed_is_tried_again_when_a_frozen_group_is_thawed() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Freeze);
    let worker = rig.queue;
    let new = |tag| NewRequest {
        worker,
        tag,
        volume: VOLUME,
        op: RequestOp::Read,
        extent: Some(extent(0, 4096)),
    };
    let mut actions = Vec::new();
    for tag in [1, 2] {
        rig.group.read_failed(new(tag), Errno::EIO);
        rig.group.take_actions(rig.queue, &mut actions);
        assert_eq!((rig.group.gate(), actions.len()), (Gate::Frozen, 0));
    }
    rig.group.thaw();
    rig.group.take_actions(rig.queue, &mut actions);
    let again = |action: &Action| matches!(action, Action::Read { .. });
    assert_eq!(actions.iter().filter(|action| again(action)).count(), 2);
    rig.group.set_policy(OnBackingError::Pass);
    rig.group.read_failed(new(3), Errno::EIO);
    rig.take();
    assert_eq!(rig.answers, [(3, Err(Errno::EIO))]);
}

#[test]
fn who_waits_for_a_target_gets_an_error_when_somebody_else_has_taken_over() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    rig.serve(0);
    rig.group.set_mode(link(0), Mode::Sync);
    let written = rig.write(extent(0, 4096));
    rig.commit(true);
    rig.finish(0, Ok(()));
    assert!(rig.answers.is_empty(), "not acknowledged");
    rig.group.fence(Generation::from_bytes([9; 16]));
    rig.take();
    assert_eq!(rig.answers, [(written, Err(Errno::EIO))]);
    let (first, last) = rig.group.layout.bits_of(VOLUME, extent(0, 4096));
    let link = rig.group.links[0].as_ref().unwrap();
    let known = link.live.test(first) && link.live.test(last) || link.is_following();
    assert!(known, "what was written here is not forgotten");
}

#[test]
fn what_is_frozen_goes_on_when_the_policy_no_longer_wants_it() {
    let mut rig = Rig::new(0, 0, OnBackingError::Freeze);
    let written = rig.write(extent(0, 4096));
    rig.finish(0, Err(Errno::EIO));
    rig.group.set_policy(OnBackingError::Freeze);
    rig.take();
    assert_eq!((rig.group.gate(), rig.running.len()), (Gate::Frozen, 0));
    rig.group.set_policy(OnBackingError::Pass);
    rig.take();
    assert_eq!((rig.group.gate(), rig.running.len()), (Gate::Open, 1));
    rig.finish(0, Err(Errno::EIO));
    assert_eq!(rig.answers, [(written, Err(Errno::EIO))], "and is told now");
}

/// In `memory` a write waits until the target has it, and no longer: the target's disk may take its time.
#[test]
fn a_write_in_memory_mode_waits_for_what_was_received_and_not_for_what_is_durable() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    rig.serve(0);
    rig.group.set_mode(link(0), Mode::Memory);
    let written = rig.write(extent(0, 4096));
    rig.commit(true);
    rig.finish(0, Ok(()));
    assert!(rig.answers.is_empty(), "nobody else has it");
    let mut out = Vec::new();
    rig.group
        .next_records(link(0), 100, usize::MAX, |_| None, &mut out);
    let sent = out.last().unwrap().record.seq;
    let name = |seq| WriteName {
        generation: GENERATION,
        incarnation: RUN,
        seq,
    };
    let acks = |received| Acks {
        received: name(received),
        durable: name(Seq::new(sent.get() - 1)),
        data_state: DataState::Ok,
        journal: JournalFill::default(),
    };
    assert!(rig.group.acked(link(0), &acks(Seq::new(sent.get() - 1))));
    rig.take();
    assert!(rig.answers.is_empty(), "the one before was received");
    assert!(rig.group.acked(link(0), &acks(sent)));
    rig.take();
    assert_eq!(rig.answers, [(written, Ok(()))]);
}

#[test]
fn a_flush_that_failed_is_told_although_the_operator_thaws_and_the_next_succeeds() {
    let mut rig = Rig::new(0, 1 << 20, OnBackingError::Freeze);
    rig.write(extent(0, 4096));
    rig.finish(0, Ok(()));
    rig.synced = Err(Errno::EIO);
    let lost = rig.submit(RequestOp::Flush, None);
    rig.take();
    assert_eq!((rig.group.gate(), rig.answers.len()), (Gate::Frozen, 1));
    rig.synced = Ok(());
    rig.group.thaw();
    rig.take();
    rig.take();
    assert_eq!(rig.answers.last(), Some(&(lost, Err(Errno::EIO))));
    let next = rig.submit(RequestOp::Flush, None);
    rig.take();
    assert_eq!(rig.answers.last(), Some(&(next, Ok(()))));
}

/// A failing flush was one that a durable zero needed. Only the zero was told, the application's next
/// flush succeeded, and the power cut took a write from before both.
#[test]
fn a_flush_that_failed_for_a_durable_zero_is_told_to_the_next_flush_too() {
    for policy in [OnBackingError::Pass, OnBackingError::Freeze] {
        let mut rig = Rig::new(0, 1 << 20, policy);
        rig.write(extent(0, 4096));
        rig.finish(0, Ok(()));
        rig.take();
        let zero = RequestOp::Zero {
            fua: true,
            free: false,
        };
        let zero = rig.submit(zero, Some(extent(8192, 4096)));
        rig.synced = Err(Errno::EIO);
        rig.finish(0, Ok(()));
        rig.take();
        assert_eq!(rig.answers.last(), Some(&(zero, Err(Errno::EIO))));
        rig.synced = Ok(());
        rig.group.thaw();
        for told in [Err(Errno::EIO), Ok(())] {
            let flush = rig.submit(RequestOp::Flush, None);
            rig.take();
            assert_eq!(rig.answers.last(), Some(&(flush, told)));
        }
    }
}
