//! Records, heads and superblocks that rot, and files that are put back from an old copy.

use super::super::*;
use super::faults::{durable, followed, state, writes};
use super::rig::{Rig, base};
use blkrep_io::sim::Unflushed;
use blkrep_store::journal::{JOURNAL_AREA_OFFSET, JOURNAL_BLOCK_BYTES, JournalState};
use blkrep_store::superblock::COPY_BYTES;
use blkrep_types::DataState;
use std::time::Duration;

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
fn no_copy_of_the_superblock_is_left_for_a_power_cut_to_tear() {
    let mut rig = followed(136);
    rig.pause(true);
    let parts = rig.world.unflushed(rig.target).into_iter();
    let ours = |part: &Unflushed| matches!(part, Unflushed::Write { path, .. } if *path == state("superblock"));
    assert_eq!(parts.filter(ours).count(), 0);
    rig.power_loss();
    rig.world.spoil(rig.target, &state("superblock"), 0..512);
    rig.restart_target();
    assert_eq!(rig.status().applying, blkrep_wire::Applying::Paused);
}

/// A target that died between the two writes of a save left the other place an older truth, to come back
/// when the newer copy rots.
#[test]
fn an_older_copy_of_the_superblock_is_written_anew_at_the_next_start() {
    let copy = usize::try_from(COPY_BYTES).unwrap();
    let mut rig = followed(137);
    let path = state("superblock");
    let old = rig.world.image(rig.target, &path);
    rig.pause(true);
    rig.stop();
    for place in [0, copy] {
        let half = &old[place..place + copy];
        rig.world.corrupt(rig.target, &path, place as u64, half);
        rig.restart_target();
        assert_eq!(rig.status().applying, blkrep_wire::Applying::Paused);
        rig.stop();
        let now = rig.world.image(rig.target, &path);
        assert!(
            now[..copy] == now[copy..],
            "the copy at {place} is the old one"
        );
    }
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
