//! Disks that fail, journals that fill or rot, state that cannot be written.

use super::super::*;
use super::rig::{Rig, STATE, base, settings};
use blkrep_io::sim::{DiskFault, FaultKind};
use blkrep_store::journal::{JOURNAL_AREA_OFFSET, JOURNAL_BLOCK_BYTES, JournalState};
use blkrep_store::superblock::COPY_BYTES;
use blkrep_types::{DataState, Errno, MirrorKind, VolumeName};
use std::path::{Path, PathBuf};
use std::time::Duration;

fn state(name: &str) -> PathBuf {
    Path::new(STATE).join(name)
}

fn fault(kind: FaultKind, times: u32) -> DiskFault {
    DiskFault {
        kind,
        errno: Errno::EIO,
        bytes: None,
        times,
    }
}

fn followed(seed: u64) -> Rig {
    let mut rig = Rig::new(seed);
    rig.book.borrow_mut().write(0, 3, 5, 0x11, false);
    rig.settle();
    rig
}

/// Writes of `sectors` over both volumes, none of them the same.
fn writes(rig: &Rig, count: u8, sectors: u64) {
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

fn durable(rig: &mut Rig) {
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

/// Stops the target with records in its journal that are not in the bases.
fn journal_only(rig: &mut Rig, count: u8) {
    rig.pause(true);
    for round in 0..count {
        rig.book
            .borrow_mut()
            .write(0, u64::from(round) * 8, 8, 0x70 + round, false);
        durable(rig);
    }
    rig.book.borrow_mut().connect = false;
    rig.poke();
    rig.run(Duration::from_secs(1));
    rig.power_loss();
}

#[test]
fn a_corrupt_record_in_the_middle_is_never_applied_and_its_extents_are_mirrored() {
    let mut rig = followed(109);
    let old = rig.bases();
    journal_only(&mut rig, 6);
    let image = rig.world.image(rig.target, &state("journal"));
    let marked: Vec<_> = (0..image.len() / 4096)
        .map(|block| block * 4096)
        .filter(|at| image[*at..*at + 8] == *b"BLKrBTCH")
        .filter(|at| {
            image[*at + 4096..]
                .first()
                .is_some_and(|byte| *byte == 0x72)
        })
        .collect();
    assert_eq!(marked.len(), 1, "one batch has the third write");
    rig.world.corrupt(
        rig.target,
        &state("journal"),
        marked[0] as u64 + 4096 + 100,
        &[0],
    );
    rig.restart_target();
    assert!(
        rig.events
            .any(|e| matches!(e, TargetEvent::JournalCorrupt { .. }))
    );
    rig.run(Duration::from_secs(2));
    assert_eq!(rig.status().data_state, DataState::MirrorRequired);
    let bases = rig.bases();
    let images = rig.book.borrow().images.clone();
    assert!(
        bases[0][..8192] == images[0][..8192],
        "what is before it is there"
    );
    assert!(
        bases[0][8192..] == old[0][8192..],
        "nothing from it on was applied"
    );
    let mirrored = rig.book.borrow().mirror_bytes;
    rig.book.borrow_mut().connect = true;
    rig.settle();
    rig.check_equal();
    assert_eq!(
        rig.book.borrow().mirror_bytes - mirrored,
        4 * 4096,
        "its extents and no others"
    );
}

#[test]
fn a_head_that_is_lost_makes_everything_differ() {
    let mut rig = followed(110);
    journal_only(&mut rig, 3);
    rig.world.corrupt(rig.target, &state("journal"), 100, &[1]);
    rig.world
        .corrupt(rig.target, &state("journal"), 4096 + 100, &[1]);
    rig.book.borrow_mut().ack = None;
    rig.restart_target();
    assert!(
        rig.events
            .any(|e| matches!(e, TargetEvent::JournalCorrupt { .. }))
    );
    assert_eq!(rig.status().data_state, DataState::MirrorRequired);
    rig.pause(false);
    rig.book.borrow_mut().connect = true;
    rig.settle();
    assert!(rig.book.borrow().map_unknown || rig.book.borrow().mirror_bytes > 64 << 10);
    rig.check_equal();
}

#[test]
fn one_bad_superblock_is_repaired_and_two_are_refused_untouched() {
    let mut rig = followed(111);
    rig.power_loss();
    rig.world
        .corrupt(rig.target, &state("superblock"), 100, &[0xff]);
    rig.restart_target();
    rig.settle();
    assert!(
        rig.events
            .any(|e| matches!(e, TargetEvent::StateRepaired { .. }))
    );
    rig.power_loss();
    rig.world
        .corrupt(rig.target, &state("superblock"), 100, &[0xff]);
    rig.world
        .corrupt(rig.target, &state("superblock"), (512 << 10) + 100, &[0xff]);
    let image = rig.world.image(rig.target, &state("superblock"));
    let error = rig.try_start_target().unwrap_err();
    assert!(matches!(error, TargetError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("checksum mirror"), "{error}");
    assert!(rig.world.image(rig.target, &state("superblock")) == image);
}

#[test]
fn a_superblock_that_rots_brings_no_older_truth_back() {
    for (seed, place) in [(134, 0), (135, COPY_BYTES)] {
        let mut rig = followed(seed);
        rig.pause(true);
        rig.stop();
        let rot = [0x5a; 64];
        rig.world
            .corrupt(rig.target, &state("superblock"), place + 100, &rot);
        rig.restart_target();
        assert_eq!(rig.status().applying, blkrep_wire::Applying::Paused);
        rig.pause(false);
        rig.settle();
        rig.check_equal();
    }
}

/// Both places have the same head once it is durable. When they were written in turn only, the loss
/// of the newer copy brought back a head whose batches had been written over: what came after them
/// passed for never acknowledged.
#[test]
fn a_journal_head_that_rots_brings_no_older_one_back() {
    for (seed, place) in [(136, 0), (137, JOURNAL_BLOCK_BYTES)] {
        let mut rig = followed(seed);
        writes(&rig, 20, 8);
        rig.settle();
        rig.stop();
        let image = rig.world.image(rig.target, &state("journal"));
        let heads = [0, 4096].map(|at| JournalState::decode(&image[at..at + 4096]).unwrap());
        assert_eq!(heads[0], heads[1]);
        rig.world
            .corrupt(rig.target, &state("journal"), place + 100, &[0x5a; 64]);
        rig.restart_target();
        let image = rig.world.image(rig.target, &state("journal"));
        let mended = [0, 4096].map(|at| JournalState::decode(&image[at..at + 4096]).unwrap());
        assert_eq!(mended, heads, "the next head goes over the only good copy");
        rig.settle();
        rig.check_equal();
        let corrupt = |e: &TargetEvent| matches!(e, TargetEvent::JournalCorrupt { .. });
        assert!(!rig.events.any(corrupt));
    }
}

#[test]
fn a_journal_that_rots_while_it_is_needed_is_compared_whole() {
    let mut rig = followed(112);
    rig.pause(true);
    // Enough that the first batches are no longer in memory.
    writes(&rig, 200, 100);
    writes(&rig, 200, 100);
    rig.poke();
    rig.run(Duration::from_secs(20));
    let noise = vec![0xa5; 1 << 20];
    rig.world
        .corrupt(rig.target, &state("journal"), JOURNAL_AREA_OFFSET, &noise);
    rig.pause(false);
    assert!(rig.wait(|rig| {
        rig.events
            .any(|e| matches!(e, TargetEvent::JournalCorrupt { .. }))
    }));
    rig.settle();
    rig.check_equal();
    assert_eq!(rig.status().data_state, DataState::Ok);
}

#[test]
fn a_target_restored_from_an_old_backup_is_compared_whole() {
    let mut rig = followed(113);
    rig.stop();
    let paths = [
        state("superblock"),
        state("journal"),
        state("map"),
        base(0),
        base(1),
    ];
    let backup: Vec<_> = paths
        .iter()
        .map(|p| rig.world.image(rig.target, p))
        .collect();
    rig.restart_target();
    writes(&rig, 40, 8);
    rig.settle();
    rig.power_loss();
    for (path, image) in paths.iter().zip(&backup) {
        rig.world.set_image(rig.target, path, image);
    }
    // The source has freed what was acknowledged.
    let mut book = rig.book.borrow_mut();
    let keep = book.log.len() - 3;
    book.log.drain(..keep);
    drop(book);
    rig.book.borrow_mut().ack = None;
    rig.restart_target();
    rig.settle();
    rig.check_equal();
}

#[test]
fn a_head_that_cannot_be_written_is_tried_now_and_then_and_holds_nobody_up() {
    let mut rig = followed(133);
    let heads = DiskFault {
        bytes: Some(0..JOURNAL_AREA_OFFSET),
        ..fault(FaultKind::Write, 10_000)
    };
    rig.world.inject(rig.target, &state("journal"), heads);
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
    let heads = DiskFault {
        bytes: Some(0..JOURNAL_AREA_OFFSET),
        ..fault(FaultKind::Write, 10_000)
    };
    rig.world.inject(rig.target, &state("journal"), heads);
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

/// Opens the stopped replica with another base for its second volume.
fn replace(rig: &mut Rig, volume: &str, path: &str) -> Result<(), TargetError> {
    let host = rig.world.start(rig.target);
    let name = VolumeName::new(volume).unwrap();
    let replacement = Replacement {
        volume: &name,
        path: Path::new(path),
        overwrite: false,
        policy: &rig.policy,
    };
    let opened = ReplicaFiles::open_replacing(&host, Path::new(STATE), &replacement);
    let process = host.process();
    let done = opened.map(|opened| assert!(opened.is_some(), "there is a replica"));
    rig.world.crash_process(process);
    done
}

#[test]
fn a_replaced_base_is_mirrored_and_the_others_are_not() {
    let mut rig = followed(131);
    writes(&rig, 40, 8);
    rig.settle();
    let mirrored = rig.book.borrow().mirror_bytes;
    rig.stop();
    let new = base(7);
    replace(&mut rig, "v1", new.to_str().unwrap()).unwrap();
    // Also if the power goes before anything else happens.
    rig.power_loss();
    rig.restart_target();
    assert_ne!(rig.status().data_state, DataState::Ok);
    assert_eq!(rig.status().volumes[1].path, new);
    rig.settle();
    assert_eq!(rig.status().data_state, DataState::Ok);
    let book = rig.book.borrow();
    assert_eq!(
        book.mirror_bytes - mirrored,
        book.volume_bytes,
        "one of two"
    );
    assert!(rig.world.image(rig.target, &base(0)) == book.images[0]);
    assert!(rig.world.image(rig.target, &new) == book.images[1]);
}

#[test]
fn a_base_is_replaced_only_by_what_may_hold_it() {
    let mut rig = followed(132);
    rig.stop();
    let before = rig.world.image(rig.target, &state("superblock"));
    let own = base(0);
    for (volume, path, why) in [
        ("v9", "/replicas/new.img", "no volume 'v9'"),
        ("v1", "/etc/passwd", "refused"),
        ("v1", own.to_str().unwrap(), "two volumes"),
    ] {
        let error = replace(&mut rig, volume, path).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        let after = rig.world.image(rig.target, &state("superblock"));
        assert!(before == after, "{volume} {path}");
    }
    rig.restart_target();
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
