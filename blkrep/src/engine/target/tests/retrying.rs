//! Bases that do not take writes for a while: nothing is lost, nothing is given up before its time.

use super::super::*;
use super::faults::{durable, fault, writes};
use super::rig::{Rig, base, settings};
use blkrep_core::target::{RetryPolicy, WriteTrouble};
use blkrep_io::sim::{DiskFault, FaultKind};
use blkrep_types::{DataState, Errno};
use blkrep_wire::Applying;
use std::time::Duration;

const DELAY: Duration = Duration::from_millis(300);

fn patient(seed: u64, limit: Option<u32>) -> Rig {
    let mut rig = Rig::with(
        seed,
        TargetSettings {
            retry: RetryPolicy {
                limit,
                delay: DELAY,
            },
            ..settings()
        },
    );
    rig.book.borrow_mut().write(0, 3, 5, 0x11, false);
    rig.settle();
    rig
}

fn full(times: u32) -> DiskFault {
    DiskFault {
        errno: Errno::ENOSPC,
        ..fault(FaultKind::Write, times)
    }
}

fn is_retrying(event: &TargetEvent) -> bool {
    matches!(event, TargetEvent::Retrying { .. })
}

#[test]
fn what_a_full_base_does_not_take_waits_and_nothing_is_mirrored() {
    let mut rig = patient(901, None);
    let mirrored = rig.book.borrow().mirror_bytes;
    rig.world.inject(rig.target, &base(1), full(7));
    writes(&rig, 12, 8);
    durable(&mut rig);
    assert!(rig.wait(|rig| rig.status().retrying.is_some()));
    let status = rig.status();
    assert_eq!(status.applying, Applying::Retrying);
    assert_eq!(status.data_state, DataState::Ok, "it stays what it was");
    let retrying = status.retrying.unwrap();
    assert_eq!(retrying.trouble.why, WriteTrouble::Full);
    assert_eq!(retrying.path, base(1));
    assert!(status.connected_since.is_some(), "the source goes on");
    rig.settle();
    rig.check_equal();
    let told = rig.events.all();
    assert_eq!(told.iter().filter(|event| is_retrying(event)).count(), 1);
    let ended = |event: &&TargetEvent| matches!(event, TargetEvent::RetryEnded { failures: 7, lasted, .. } if *lasted >= DELAY);
    assert_eq!(told.iter().filter(ended).count(), 1, "{told:?}");
    assert!(
        !rig.events
            .any(|e| matches!(e, TargetEvent::WriteFailed { .. }))
    );
    assert_eq!(rig.book.borrow().mirror_bytes, mirrored);
    assert_eq!(rig.status().retrying, None);
}

#[test]
fn at_the_limit_a_write_is_dirt_and_not_before() {
    let mut rig = patient(902, Some(2));
    let mirrored = rig.book.borrow().mirror_bytes;
    rig.world
        .inject(rig.target, &base(1), fault(FaultKind::Write, 2));
    rig.book.borrow_mut().write(1, 16, 8, 0x55, false);
    rig.settle();
    assert_eq!(
        rig.book.borrow().mirror_bytes,
        mirrored,
        "tried twice again"
    );
    rig.world
        .inject(rig.target, &base(1), fault(FaultKind::Write, 3));
    rig.book.borrow_mut().write(1, 16, 8, 0x66, false);
    rig.poke();
    assert!(rig.wait(|rig| {
        rig.events
            .any(|e| matches!(e, TargetEvent::WriteFailed { .. }))
    }));
    rig.settle();
    rig.check_equal();
    assert_eq!(rig.book.borrow().mirror_bytes - mirrored, 4096);
    let told = rig.events.all();
    assert_eq!(told.iter().filter(|event| is_retrying(event)).count(), 2);
}

#[test]
fn what_waits_outlives_a_power_loss_of_the_target() {
    let mut rig = patient(903, None);
    rig.world.inject(rig.target, &base(0), full(100));
    writes(&rig, 9, 8);
    durable(&mut rig);
    assert!(rig.wait(|rig| rig.status().retrying.is_some()));
    rig.run(Duration::from_secs(2));
    rig.power_loss();
    rig.world.clear_faults(rig.target);
    rig.restart_target();
    rig.settle();
    rig.check_equal();
    assert!(
        !rig.events
            .any(|e| matches!(e, TargetEvent::WriteFailed { .. }))
    );
}

#[test]
fn a_target_that_waits_stops_at_once_and_goes_on_later() {
    let mut rig = patient(904, None);
    rig.world.inject(rig.target, &base(0), full(100));
    writes(&rig, 9, 8);
    durable(&mut rig);
    assert!(rig.wait(|rig| rig.status().retrying.is_some()));
    rig.stop();
    rig.world.clear_faults(rig.target);
    rig.restart_target();
    rig.settle();
    rig.check_equal();
    assert_eq!(rig.status().data_state, DataState::Ok);
}

#[test]
fn a_promotion_is_given_back_while_the_base_takes_nothing_and_done_when_it_does() {
    let mut rig = patient(905, None);
    rig.world.inject(rig.target, &base(0), full(1000));
    writes(&rig, 9, 8);
    durable(&mut rig);
    assert!(rig.wait(|rig| rig.status().retrying.is_some()));
    rig.book.borrow_mut().connect = false;
    rig.poke();
    rig.run(Duration::from_secs(1));
    let why = rig.promote(false, false).unwrap_err().to_string();
    assert!(why.contains("No space") && why.contains("journal"), "{why}");
    let status = rig.status();
    assert_eq!(status.data_state, DataState::Ok, "nothing was given up");
    assert!(status.retrying.is_some());
    rig.world.clear_faults(rig.target);
    let promotion = rig.promote(false, false).unwrap();
    assert_eq!(promotion.data_state, DataState::Ok);
    assert_eq!(promotion.part.bytes().get(), 0);
    rig.check_equal();
}

#[test]
fn a_promotion_that_may_be_inconsistent_goes_on_without_what_the_base_does_not_take() {
    let mut rig = patient(906, None);
    rig.world.inject(rig.target, &base(0), full(1000));
    rig.book.borrow_mut().write(0, 16, 8, 0x55, false);
    durable(&mut rig);
    assert!(rig.wait(|rig| rig.status().retrying.is_some()));
    rig.book.borrow_mut().connect = false;
    rig.poke();
    rig.run(Duration::from_secs(1));
    let promotion = rig.promote(false, true).unwrap();
    assert_eq!(promotion.data_state, DataState::MirrorRequired);
    assert_eq!(promotion.part.bytes().get(), 4096);
}

#[test]
fn a_policy_is_changed_live() {
    let mut rig = patient(907, None);
    rig.world
        .inject(rig.target, &base(1), fault(FaultKind::Write, 1000));
    rig.book.borrow_mut().write(1, 16, 8, 0x55, false);
    rig.poke();
    assert!(rig.wait(|rig| rig.status().retrying.is_some()));
    rig.run(Duration::from_secs(3));
    assert_eq!(rig.status().data_state, DataState::Ok);
    rig.control().set_retry(RetryPolicy {
        limit: Some(1),
        delay: DELAY,
    });
    assert!(rig.wait(|rig| {
        rig.events
            .any(|e| matches!(e, TargetEvent::WriteFailed { .. }))
    }));
    rig.world.clear_faults(rig.target);
    rig.settle();
    rig.check_equal();
}
