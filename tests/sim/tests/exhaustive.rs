//! The part of the exhaustive set that every run of the tests goes through.
//!
//! `blkrep-sim --exhaustive` goes through all of it.

use blkrep_sim::exhaustive::crashes::{self, Scope};
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
        jobs: 1,
    };
    assert!(crashes::explore(&scope).is_err());
}
