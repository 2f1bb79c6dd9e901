//! What completed writes may rely on, and what happens to them when a link is lost.

use super::*;
use blkrep_types::OnLoss;

const TIMEOUT: Duration = Duration::from_secs(2);

/// A link in `sync` mode whose target has everything, with this policy; and what a predecessor's map
/// would say of it.
fn kept(on_loss: OnLoss) -> Rig {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    let policy = LossPolicy {
        on_loss,
        timeout: TIMEOUT,
    };
    rig.group.set_loss_policy(link(0), policy);
    rig.group.set_mode(link(0), Mode::Sync);
    in_step(&mut rig);
    assert_eq!(protection(&rig), Protection::Kept);
    told(&mut rig);
    rig
}

/// The link gets all there is, and what it then is goes on record.
fn in_step(rig: &mut Rig) {
    for _ in 0..4 {
        rig.finish_mirror_reads(true);
        rig.serve(0);
        rig.commit(true);
        rig.pass(Duration::from_millis(500));
    }
}

fn protection(rig: &Rig) -> Protection {
    rig.group.link_status(link(0)).unwrap().protection
}

/// The events of promises since the last call.
fn told(rig: &mut Rig) -> Vec<GroupEvent> {
    let events = std::iter::from_fn(|| rig.group.take_event());
    let ours = |event: &GroupEvent| {
        let (of_loss, of_keeping) = (
            matches!(event, GroupEvent::Degraded { .. }),
            matches!(event, GroupEvent::Protected { .. }),
        );
        of_loss || of_keeping
    };
    events.filter(ours).collect()
}

/// A write that is done here; its tag.
fn write(rig: &mut Rig, at: u64) -> u16 {
    let tag = rig.write(extent(at, 4096));
    rig.commit(true);
    rig.finish(0, Ok(()));
    tag
}

/// The link's connection comes back, and the target has what it had.
fn come_back(rig: &mut Rig) {
    let durable = rig.acked(0);
    rig.come_back(0, durable);
    rig.take();
}

/// The link is lost for good, and these writes complete without it.
fn degrade(rig: &mut Rig, places: &[u64]) {
    rig.group.link_down(link(0), DownReason::Lost);
    rig.pass(TIMEOUT);
    rig.pass(TIMEOUT);
    rig.commit(true);
    for at in places {
        write(rig, *at);
    }
    assert_eq!(protection(rig), Protection::Degraded);
    told(rig);
}

/// The link is lost, a write waits for it, and the log runs over; the write.
fn overflow_while_waiting(rig: &mut Rig) -> u16 {
    rig.group.link_down(link(0), DownReason::Lost);
    let written = write(rig, 0);
    rig.group.overflow();
    rig.take();
    written
}

/// Commits the link's map; what its head says.
fn commit_head(rig: &mut Rig, success: bool) -> Option<bool> {
    let mut said = None;
    while let Some(map) = rig.group.next_commit() {
        let head = rig.group.begin_commit(map, |_, words| {
            assert!(words.count() > 0);
        });
        said = head.map(|head| head.promised).or(said);
        let result = if success { Ok(()) } else { Err(Errno::EIO) };
        rig.group.commit_done(map, result);
        if !success {
            break;
        }
    }
    rig.take();
    said
}

#[test]
fn writes_wait_for_a_lost_link_and_go_on_only_when_that_is_on_record() {
    let mut rig = kept(OnLoss::Continue);
    rig.group.link_down(link(0), DownReason::Lost);
    let written = write(&mut rig, 0);
    rig.pass(TIMEOUT - Duration::from_millis(1));
    assert!(matches!(protection(&rig), Protection::Lost { .. }));
    assert_eq!(rig.answers, [], "it may come back");
    rig.pass(Duration::from_millis(1));
    assert!(matches!(protection(&rig), Protection::Degrading(_)));
    assert_eq!(commit_head(&mut rig, false), Some(false));
    assert_eq!(rig.answers, [], "the record could not be written");
    rig.pass(Duration::from_secs(2));
    assert_eq!(commit_head(&mut rig, true), Some(false));
    assert_eq!(rig.answers, [(written, Ok(()))]);
    assert_eq!(protection(&rig), Protection::Degraded);
    assert_eq!(told(&mut rig), [GroupEvent::Degraded { link: link(0) }]);
    let written = write(&mut rig, 8192);
    assert_eq!(rig.answers.last(), Some(&(written, Ok(()))), "at once");
}

#[test]
fn a_link_that_is_back_in_time_has_everything_and_nothing_is_recorded() {
    let mut rig = kept(OnLoss::Continue);
    rig.group.link_down(link(0), DownReason::Lost);
    let written = write(&mut rig, 0);
    rig.pass(TIMEOUT / 2);
    come_back(&mut rig);
    assert_eq!(rig.answers, [], "the target does not have it yet");
    rig.serve(0);
    assert_eq!(rig.answers, [(written, Ok(()))]);
    rig.pass(10 * TIMEOUT);
    assert_eq!(protection(&rig), Protection::Kept);
    assert_eq!(told(&mut rig), []);
}

#[test]
fn a_target_that_lacks_what_completed_without_it_is_protected_when_it_has_it() {
    let mut rig = kept(OnLoss::Continue);
    degrade(&mut rig, &[0, 8192]);
    come_back(&mut rig);
    assert!(matches!(protection(&rig), Protection::Joining { .. }));
    rig.serve(0);
    assert!(matches!(protection(&rig), Protection::Recording(_)));
    assert_eq!(commit_head(&mut rig, true), Some(true));
    assert_eq!(protection(&rig), Protection::Kept);
    assert_eq!(told(&mut rig), [GroupEvent::Protected { link: link(0) }]);
}

#[test]
fn a_link_that_is_lost_again_before_its_promise_is_on_record_is_recorded_as_it_was() {
    let mut rig = kept(OnLoss::Continue);
    degrade(&mut rig, &[0]);
    come_back(&mut rig);
    rig.serve(0);
    let map = rig.group.next_commit().unwrap();
    let head = rig.group.begin_commit(map, |_, words| {
        assert!(words.count() > 0);
    });
    assert!(head.unwrap().promised);
    rig.group.link_down(link(0), DownReason::Lost);
    let written = write(&mut rig, 0);
    rig.group.commit_done(map, Ok(()));
    rig.take();
    let last = rig.answers.last().map(|(tag, _)| *tag);
    assert_ne!(
        last,
        Some(written),
        "the record says that the target has it"
    );
    assert_eq!(commit_head(&mut rig, true), Some(false));
    assert_eq!(rig.answers.last(), Some(&(written, Ok(()))));
}

#[test]
fn block_waits_for_as_long_as_it_takes_and_another_policy_lets_go() {
    let mut rig = kept(OnLoss::Block);
    rig.group.link_down(link(0), DownReason::Lost);
    let written = write(&mut rig, 0);
    rig.pass(100 * TIMEOUT);
    assert_eq!(rig.answers, []);
    assert!(rig.group.waits_for_lost_links());
    let policy = LossPolicy {
        on_loss: OnLoss::Continue,
        timeout: TIMEOUT,
    };
    rig.group.set_loss_policy(link(0), policy);
    assert_eq!(commit_head(&mut rig, true), Some(false));
    assert_eq!(rig.answers, [(written, Ok(()))]);
}

#[test]
fn fail_gives_errors_after_its_time_changes_nothing_more_and_ends_with_the_link_back() {
    let mut rig = kept(OnLoss::Fail);
    rig.group.link_down(link(0), DownReason::Lost);
    let written = write(&mut rig, 0);
    assert_eq!(rig.answers, []);
    rig.pass(TIMEOUT);
    assert_eq!(rig.answers, [(written, Err(Errno::EIO))]);
    let head = rig.group.log_ref().head();
    let refused = rig.write(extent(8192, 4096));
    let flushed = rig.submit(RequestOp::Flush, None);
    assert_eq!(
        rig.answers[1..],
        [(refused, Err(Errno::EIO)), (flushed, Err(Errno::EIO))]
    );
    assert!(rig.running.is_empty(), "nothing was written");
    assert_eq!(rig.group.log_ref().head(), head);
    come_back(&mut rig);
    let written = write(&mut rig, 8192);
    rig.serve(0);
    assert_eq!(rig.answers.last(), Some(&(written, Ok(()))));
    assert_eq!(told(&mut rig), [], "nothing completed without it");
}

#[test]
fn fail_gives_errors_also_while_a_mirror_brings_the_target_back() {
    let mut rig = kept(OnLoss::Fail);
    let waited = overflow_while_waiting(&mut rig);
    rig.pass(TIMEOUT);
    come_back(&mut rig);
    rig.pass(Duration::from_secs(11));
    rig.serve(0);
    let refused = rig.write(extent(0, 4096));
    let failed = Err(Errno::EIO);
    assert_eq!(rig.answers, [(waited, failed), (refused, failed)]);
    in_step(&mut rig);
    let written = write(&mut rig, 0);
    rig.serve(0);
    assert_eq!(rig.answers.last(), Some(&(written, Ok(()))));
}

/// The log ran over while a write waited for its acknowledgement: what the mirror then acknowledges has
/// places after it and does not have it.
#[test]
fn what_was_given_up_to_the_dirty_map_is_answered_when_a_mirror_has_brought_it() {
    let mut rig = kept(OnLoss::Block);
    let written = overflow_while_waiting(&mut rig);
    come_back(&mut rig);
    rig.pass(Duration::from_secs(11));
    assert!(rig.serve(0).len() == 1, "a mirror begins");
    assert_eq!(rig.answers, [], "its extent is still to come");
    for _ in 0..4 {
        rig.finish_mirror_reads(false);
        rig.serve(0);
    }
    assert_eq!(rig.answers, [(written, Ok(()))]);
}

#[test]
fn a_link_that_never_had_everything_holds_nobody_up() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    let policy = LossPolicy {
        on_loss: OnLoss::Fail,
        timeout: Duration::ZERO,
    };
    rig.group.set_loss_policy(link(0), policy);
    rig.group.set_mode(link(0), Mode::Sync);
    rig.group.link_down(link(0), DownReason::Lost);
    let written = write(&mut rig, 0);
    assert_eq!(rig.answers, [(written, Ok(()))]);
}

#[test]
fn a_group_that_comes_back_with_a_promise_on_record_keeps_it() {
    let mut rig = Rig::new(0, 0, OnBackingError::Pass);
    rig.group.set_log(PlainLog::after(Seq::ZERO, 1 << 20));
    rig.drivers.push(rig.group.add_worker());
    rig.make_promised_link(0);
    rig.group.set_mode(link(0), Mode::Sync);
    let written = write(&mut rig, 0);
    assert_eq!(
        rig.answers,
        [],
        "the record says that nothing completes alone"
    );
    rig.pass(TIMEOUT);
    rig.pass(TIMEOUT);
    assert_eq!(commit_head(&mut rig, true), Some(false));
    assert_eq!(rig.answers, [(written, Ok(()))]);
}

#[test]
fn a_link_in_async_mode_promises_nothing_and_records_that() {
    let mut rig = kept(OnLoss::Block);
    rig.group.set_mode(link(0), Mode::Async);
    let written = write(&mut rig, 0);
    assert_eq!(rig.answers, [(written, Ok(()))]);
    assert_eq!(protection(&rig), Protection::Degraded);
    assert_eq!(told(&mut rig), [], "an operator wanted it");
}
