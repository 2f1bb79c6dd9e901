//! The part of the exhaustive set that every run of the tests goes through.
//!
//! `blkrep-sim --exhaustive` goes through all of it.

use blkrep_sim::exhaustive::crashes::{self, Part, Scope};
use blkrep_sim::exhaustive::{counts::Counts, flaw::Flaw, journal, maps, superblocks};

fn legal(what: &str, found: Result<Counts, String>) {
    match found {
        Ok(counts) => {
            println!("{what}: {counts}");
            assert!(counts.histories > 0 && counts.crash_points > counts.histories);
        }
        Err(why) => panic!("{what}: {why}"),
    }
}

#[test]
fn every_crash_of_a_commit_leaves_old_or_new_sectors_of_a_map() {
    legal("maps", maps::explore(3, Flaw::None));
}

#[test]
fn every_crash_of_a_save_leaves_an_old_or_the_new_superblock() {
    legal("superblocks", superblocks::explore(2, Flaw::None));
}

#[test]
fn every_crash_of_the_journal_leaves_what_was_acknowledged() {
    legal("journal", journal::explore(2, Flaw::None));
}

#[test]
fn every_crash_of_a_request_in_a_tiny_world_is_survived() {
    let scope = Scope {
        length: 1,
        commands: false,
        stride: 4,
        flushes_lie: false,
        part: Part::WHOLE,
        jobs: 1,
    };
    legal("worlds", crashes::explore(&scope));
}

#[test]
fn every_mistake_with_the_files_is_found() {
    let found = |what: &str, result: Result<Counts, String>| {
        assert!(result.is_err(), "{what} passes for right");
    };
    let (map, save, place) = (
        Flaw::CommitAnnouncedEarly,
        Flaw::SaveAnnouncedEarly,
        Flaw::OnePlace,
    );
    let (second, old) = (Flaw::SecondNotFlushed, Flaw::OldCopyLeft);
    found("a second copy not flushed", superblocks::explore(1, second));
    found("an older copy left", superblocks::explore(1, old));
    found("a commit announced early", maps::explore(1, map));
    found("a save announced early", superblocks::explore(1, save));
    found("one place for all copies", superblocks::explore(1, place));
    let (batch, freed, turn) = (
        Flaw::BatchAnnouncedEarly,
        Flaw::FreedEarly,
        Flaw::HeadsInTurn,
    );
    found("a batch acknowledged early", journal::explore(1, batch));
    found("room taken before it is free", journal::explore(3, freed));
    found("heads in turn", journal::explore(3, turn));
}

#[test]
fn disks_that_lie_about_flushes_are_found_in_a_tiny_world() {
    let scope = Scope {
        length: 1,
        commands: false,
        stride: 4,
        flushes_lie: true,
        part: Part::WHOLE,
        jobs: 1,
    };
    assert!(crashes::explore(&scope).is_err());
}

#[test]
fn the_parts_of_the_histories_are_all_of_them() {
    let of = |part: &str| Scope {
        length: 1,
        commands: false,
        stride: 400,
        flushes_lie: false,
        part: part.parse().expect("a part"),
        jobs: 1,
    };
    let count = |part: &str| crashes::explore(&of(part)).expect("all legal").histories;
    let parts = ["1/3", "2/3", "3/3"].map(count);
    assert_eq!(parts.iter().sum::<u64>(), count("1/1"));
    assert!(parts.iter().all(|count| *count > 0));
    for bad in ["0/3", "4/3", "1/0", "1", "a/b", ""] {
        assert!(bad.parse::<Part>().is_err(), "{bad:?}");
    }
}
