//! Disks that fail, journals that fill, state that cannot be written.

use super::super::*;
use super::rig::{Rig, STATE, base, settings};
use blkrep_io::sim::{DiskFault, FaultKind};
use blkrep_store::journal::JOURNAL_AREA_OFFSET;
use blkrep_types::{DataState, Errno, MirrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) fn state(name: &str) -> PathBuf {
    Path::new(STATE).join(name)
}

pub(super) fn fault(kind: FaultKind, times: u32) -> DiskFault {
    DiskFault {
        kind,
        errno: Errno::EIO,
        bytes: None,
        times,
    }
}

pub(super) fn followed(seed: u64) -> Rig {
    let mut rig = Rig::new(seed);
    rig.book.borrow_mut().write(0, 3, 5, 0x11, false);
    rig.settle();
    rig
}

/// Writes of `sectors` over both volumes, none of them the same.
pub(super) fn writes(rig: &Rig, count: u8, sectors: u64) {
    let mut book = rig.book.borrow_mut();
    for round in 0..count {
        let at = u64::from(round) * 7 % (128 - sectors);
        book.write(
            u16::from(round % 2),
            at,
            sectors,
            round.wrapping_mul(3) | 1,
            false,
        );
    }
}

pub(super) fn durable(rig: &mut Rig) {
    rig.poke();
    assert!(rig.wait(|rig| {
        let book = rig.book.borrow();
        book.ack.is_some_and(|ack| ack.durable == book.head())
    }));
}

#[test]
fn a_failed_write_of_a_base_is_dirt_and_state_and_is_mirrored_again() {
    let mut rig = followed(101);
    let mirrored = rig.book.borrow().mirror_bytes;
    rig.world
        .inject(rig.target, &base(1), fault(FaultKind::Write, 1));
    rig.book.borrow_mut().write(1, 16, 8, 0x55, false);
    rig.poke();
    assert!(rig.wait(|rig| {
        rig.events
            .any(|e| matches!(e, TargetEvent::WriteFailed { .. }))
    }));
    assert!(rig.wait(|rig| {
        rig.events.any(|e| {
            matches!(
                e,
                TargetEvent::State {
                    to: DataState::MirrorRequired,
                    ..
                }
            )
        })
    }));
    rig.settle();
    rig.check_equal();
    assert_eq!(rig.status().data_state, DataState::Ok);
    assert_eq!(
        rig.book.borrow().mirror_bytes - mirrored,
        4096,
        "that extent and no other"
    );
}

#[test]
fn dirt_of_a_failed_write_outlives_a_power_loss() {
    let mut rig = followed(102);
    rig.book.borrow_mut().connect = false;
    rig.poke();
    rig.run(Duration::from_secs(1));
    rig.pause(true);
    rig.book.borrow_mut().connect = true;
    writes(&rig, 6, 8);
    durable(&mut rig);
    rig.book.borrow_mut().connect = false;
    rig.poke();
    rig.run(Duration::from_secs(1));
    rig.world
        .inject(rig.target, &base(0), fault(FaultKind::Write, 2));
    rig.pause(false);
    rig.run(Duration::from_secs(3));
    rig.power_loss();
    rig.restart_target();
    assert_eq!(rig.status().data_state, DataState::MirrorRequired);
    assert!(rig.status().dirty.get() > 0);
    rig.book.borrow_mut().connect = true;
    rig.settle();
    rig.check_equal();
}

#[test]
fn a_failed_flush_is_applied_again_and_a_lasting_one_is_dirt() {
    let mut rig = followed(103);
    rig.world
        .inject(rig.target, &base(0), fault(FaultKind::Sync, 1));
    writes(&rig, 10, 8);
    rig.settle();
    assert!(rig.wait(|rig| {
        rig.events
            .any(|e| matches!(e, TargetEvent::FlushFailed { .. }))
    }));
    rig.run(Duration::from_secs(3));
    rig.power_loss();
    rig.restart_target();
    rig.settle();
    rig.check_equal();
    assert_eq!(rig.status().data_state, DataState::Ok);
    rig.world
        .inject(rig.target, &base(0), fault(FaultKind::Sync, 3));
    writes(&rig, 4, 8);
    rig.poke();
    assert!(rig.wait(|rig| {
        rig.events.any(|e| {
            matches!(
                e,
                TargetEvent::State {
                    to: DataState::MirrorRequired,
                    ..
                }
            )
        })
    }));
    rig.settle();
    rig.check_equal();
    assert_eq!(rig.status().data_state, DataState::Ok);
}

#[test]
fn a_journal_that_cannot_be_written_acknowledges_nothing_and_recovers() {
    let mut rig = followed(104);
    let acked = rig.book.borrow().ack.unwrap().durable;
    rig.world.inject(
        rig.target,
        &state("journal"),
        DiskFault {
            kind: FaultKind::Write,
            errno: Errno::ENOSPC,
            bytes: None,
            times: 3,
        },
    );
    writes(&rig, 3, 8);
    rig.poke();
    assert!(rig.wait(|rig| {
        rig.events
            .any(|e| matches!(e, TargetEvent::JournalFailed { .. }))
    }));
    assert_eq!(rig.book.borrow().ack.unwrap().durable, acked);
    rig.settle();
    rig.check_equal();
    assert_eq!(rig.status().data_state, DataState::Ok);
}

#[test]
fn state_that_cannot_be_written_holds_back_what_depends_on_it() {
    let mut rig = followed(105);
    let before = rig.bases();
    rig.world
        .inject(rig.target, &state("superblock"), fault(FaultKind::Write, 5));
    {
        // A full mirror of an ok replica: not-ok is durable before its first byte.
        let mut book = rig.book.borrow_mut();
        book.write(0, 0, 16, 0x99, true);
        book.begin_mirror(MirrorKind::Full);
        book.mirror_step();
    }
    rig.poke();
    assert!(rig.wait(|rig| {
        rig.events
            .any(|e| matches!(e, TargetEvent::StateFailed { .. }))
    }));
    assert_eq!(rig.differs(&before), None, "nothing was applied");
    assert!(rig.status().trouble.is_some());
    rig.settle();
    rig.check_equal();
    assert_eq!(rig.status().data_state, DataState::Ok);
}

#[test]
fn a_full_journal_holds_the_source_back_and_loses_nothing() {
    let mut rig = followed(106);
    rig.pause(true);
    // More than the journal holds: 2.2 MB of small records, most of it padding to blocks.
    for round in 0..5 {
        writes(&rig, 120 + round, 100);
    }
    rig.poke();
    assert!(rig.wait(|rig| rig.events.any(|e| *e == TargetEvent::JournalFull)));
    rig.run(Duration::from_secs(20));
    assert_eq!(rig.book.borrow().sessions, 1, "the connection is kept");
    rig.pause(false);
    rig.settle();
    rig.check_equal();
}

#[test]
fn a_held_mirror_that_outgrows_the_journal_is_given_up_and_said_so_first() {
    let mut rig = followed(107);
    rig.book.borrow_mut().write(0, 0, 100, 0x42, true);
    rig.book.borrow_mut().begin_mirror(MirrorKind::Difference);
    for round in 0..5 {
        writes(&rig, 120 + round, 100);
    }
    rig.poke();
    assert!(rig.wait(|rig| rig.events.any(|e| *e == TargetEvent::HoldGivenUp)));
    rig.settle();
    let events = rig.events.all();
    let at = |wanted: &TargetEvent| events.iter().position(|event| event == wanted);
    let not_ok = TargetEvent::State {
        from: DataState::Ok,
        to: DataState::Mirroring,
    };
    assert!(at(&not_ok) > at(&TargetEvent::HoldGivenUp), "{events:?}");
    rig.check_equal();
    assert_eq!(rig.status().data_state, DataState::Ok);
}

#[test]
fn a_held_mirror_is_applied_whole_also_after_a_power_loss() {
    let mut rig = followed(108);
    let old = rig.bases();
    {
        let mut book = rig.book.borrow_mut();
        book.write(0, 0, 60, 0x42, true);
        book.begin_mirror(MirrorKind::Difference);
        for _ in 0..4 {
            book.mirror_step();
        }
        book.write(1, 5, 3, 0x43, false);
    }
    durable(&mut rig);
    assert!(rig.status().held);
    rig.power_loss();
    rig.restart_target();
    rig.run(Duration::from_secs(1));
    assert_eq!(rig.status().data_state, DataState::Ok);
    assert_eq!(rig.differs(&old), None, "still its old prefix");
    rig.settle();
    rig.check_equal();
    let events = rig.events.all();
    let from_ok = |e: &TargetEvent| {
        matches!(
            e,
            TargetEvent::State {
                from: DataState::Ok,
                ..
            }
        )
    };
    assert!(
        !events.iter().any(from_ok),
        "it was never anything but ok: {events:?}"
    );
}

/// From now on no head of the journal can be written.
fn fail_heads(rig: &Rig) {
    let heads = DiskFault {
        bytes: Some(0..JOURNAL_AREA_OFFSET),
        ..fault(FaultKind::Write, 10_000)
    };
    rig.world.inject(rig.target, &state("journal"), heads);
}

#[test]
fn a_head_that_cannot_be_written_is_tried_now_and_then_and_holds_nobody_up() {
    let mut rig = followed(133);
    fail_heads(&rig);
    writes(&rig, 20, 8);
    durable(&mut rig);
    rig.run(Duration::from_secs(5));
    let failed = |event: &&TargetEvent| matches!(event, TargetEvent::JournalFailed { .. });
    let count = rig.events.all().iter().filter(failed).count();
    assert!((2..=20).contains(&count), "{count} attempts in 5 s");
    // A new connection, and a promotion.
    rig.world.reset_connections(rig.source_node, rig.target);
    writes(&rig, 20, 8);
    durable(&mut rig);
    rig.book.borrow_mut().connect = false;
    rig.world.reset_connections(rig.source_node, rig.target);
    rig.run(Duration::from_secs(1));
    assert!(rig.promote(false, false).is_ok());
    rig.check_equal();
}

/// A head of the journal could not be written while nothing was to be freed: when it might be tried again nobody
/// did, and the target took one turn after another.
#[test]
fn a_head_that_fails_while_nothing_is_freed_keeps_no_processor_busy() {
    // Nobody else asks for a head for as long.
    let checkpoint_interval = Duration::from_secs(10);
    let mut rig = Rig::with(
        134,
        TargetSettings {
            checkpoint_interval,
            ..settings()
        },
    );
    rig.settle();
    rig.run(3 * checkpoint_interval);
    rig.pause(true);
    fail_heads(&rig);
    writes(&rig, 20, 8);
    durable(&mut rig);
    let failed = |event: &TargetEvent| matches!(event, TargetEvent::JournalFailed { .. });
    assert!(rig.wait(|rig| rig.events.any(failed)), "it is written down");
    let until = rig.world.now().after(Duration::from_secs(5));
    let mut turns = 0;
    rig.wait(|rig| {
        turns += 1;
        turns == 10_000 || rig.world.now() >= until
    });
    assert!(turns < 1_000, "{turns} turns in 5 s");
    let count = rig
        .events
        .all()
        .iter()
        .filter(|event| failed(event))
        .count();
    assert!((2..=20).contains(&count), "{count} attempts in 5 s");
}

#[test]
fn a_journal_that_was_cut_short_is_made_anew() {
    for (round, left) in [0, 100, JOURNAL_AREA_OFFSET, JOURNAL_AREA_OFFSET + 4096]
        .into_iter()
        .enumerate()
    {
        let mut rig = followed(140 + round as u64);
        rig.stop();
        rig.run(Duration::from_secs(1));
        let mut image = rig.world.image(rig.target, &state("journal"));
        image.truncate(usize::try_from(left).unwrap());
        rig.world.set_image(rig.target, &state("journal"), &image);
        rig.book.borrow_mut().ack = None;
        rig.restart_target();
        writes(&rig, 60, 8);
        rig.settle();
        rig.check_equal();
        assert_eq!(rig.status().data_state, DataState::Ok, "{left} bytes left");
    }
}

#[test]
fn a_source_comes_back_to_a_paused_target_whose_journal_is_full() {
    let mut rig = followed(145);
    rig.pause(true);
    for round in 0..5 {
        writes(&rig, 120 + round, 100);
    }
    rig.poke();
    assert!(rig.wait(|rig| rig.events.any(|e| *e == TargetEvent::JournalFull)));
    rig.run(Duration::from_secs(1));
    let sessions = rig.book.borrow().sessions;
    rig.world.reset_connections(rig.source_node, rig.target);
    assert!(rig.wait(|rig| rig.book.borrow().sessions > sessions));
    rig.pause(false);
    rig.settle();
    rig.check_equal();
}

#[test]
fn ghost_writes_of_a_killed_daemon_never_land_on_newer_data() {
    for seed in 0..10 {
        let mut rig = followed(120 + seed);
        writes(&rig, 20, 8);
        rig.poke();
        rig.run(Duration::from_micros(300 * (seed + 1)));
        rig.kill();
        writes(&rig, 20, 8);
        rig.restart_target();
        rig.settle();
        rig.run(Duration::from_secs(10));
        rig.check_equal();
    }
}

#[test]
fn a_silent_source_is_given_up_after_its_time_out() {
    let mut rig = followed(114);
    rig.book.borrow_mut().silent = true;
    rig.run(Duration::from_secs(4));
    assert!(
        !rig.events
            .any(|e| matches!(e, TargetEvent::Disconnected { .. }))
    );
    rig.run(Duration::from_secs(4));
    assert!(
        rig.events
            .any(|e| matches!(e, TargetEvent::Disconnected { .. }))
    );
}

#[test]
fn a_full_state_directory_refuses_a_new_replica_with_the_reason() {
    let mut rig = Rig::with(115, settings());
    rig.world
        .set_space(rig.target, blkrep_types::ByteLen::new(1 << 20));
    assert!(rig.wait(|rig| rig.book.borrow().refused.is_some()));
    let refuse = rig.book.borrow_mut().refused.take().unwrap();
    assert_eq!(refuse.code, blkrep_wire::RefuseCode::Failed);
    assert!(refuse.text.contains("No space"), "{}", refuse.text);
    rig.world
        .set_space(rig.target, blkrep_types::ByteLen::new(1 << 30));
    rig.book.borrow_mut().connect = true;
    rig.settle();
    rig.check_equal();
}
