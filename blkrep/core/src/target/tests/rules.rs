//! One rule at a time.

use super::model::*;
use crate::dirty::MapLayout;
use crate::target::*;
use blkrep_types::{
    BlockSize, ByteLen, DataState, ExtentSize, Generation, History, Incarnation, MirrorKind,
    Record, RecordKind, Seq, VolumeIndex, WriteName,
};

/// Feeds one batch and runs until it waits; the steps that were taken, without persisting.
fn feed(world: &mut World, records: &[Record]) -> usize {
    for record in records {
        world.source.seq = record.seq.get();
        world.source.image = [record.seq.get(); IMAGE];
        world.source.push(*record);
    }
    world.receive();
    world.run(1000);
    world.flying.len()
}

#[test]
fn overlapping_records_are_applied_one_after_the_other_and_others_together() {
    let mut world = World::new();
    let records = [
        data(1, 0, 2, false),
        data(2, 4, 1, false),
        data(3, 1, 1, false),
    ];
    assert_eq!(
        feed(&mut world, &records),
        2,
        "the third overlaps the first"
    );
    assert_eq!(world.applier.applied(), name(0));
    world.complete(0);
    world.run(10);
    assert_eq!(world.flying.len(), 2);
    world.drain();
    assert_eq!(world.applier.applied(), name(3));
}

#[test]
fn a_difference_mirror_is_held_until_its_end_is_durable() {
    let mut world = World::new();
    let begin = record(2, RecordKind::MirrorBegin(MirrorKind::Difference), None);
    feed(&mut world, &[data(1, 0, 1, false)]);
    world.drain();
    assert_eq!(
        feed(
            &mut world,
            &[begin, data(3, 1, 1, true), data(4, 2, 1, false)]
        ),
        0
    );
    assert!(world.applier.is_holding());
    assert_eq!(world.facts.state(), DataState::Ok, "at its old prefix");
    assert_eq!(world.applier.applied(), name(1));
    assert_eq!(
        world.applier.needed_from(),
        2,
        "nothing of the hold is freed"
    );
    assert_eq!(
        feed(&mut world, &[record(5, RecordKind::MirrorEnd, None)]),
        2
    );
    world.drain();
    assert_eq!(
        (world.facts.state(), world.applier.applied()),
        (DataState::Ok, name(5))
    );
}

/// A held mirror was being applied, a pause stopped that in the middle, what was applied was freed, and the target
/// was killed: its successor saw no begin of a mirror, and ran a task in the middle of one (simulator, seed 102499).
#[test]
fn a_released_mirror_is_kept_in_the_journal_until_its_end_is_applied() {
    let mut world = World::new();
    let begin = record(1, RecordKind::MirrorBegin(MirrorKind::Difference), None);
    for held in [begin, data(2, 0, 2, true), data(3, 1, 1, true)] {
        assert_eq!(feed(&mut world, &[held]), 0);
    }
    let end = record(4, RecordKind::MirrorEnd, None);
    assert_eq!(feed(&mut world, &[end]), 1, "released: it is applied now");
    world.complete(0);
    world.run(10);
    assert_eq!(
        world.applier.applied(),
        name(2),
        "the other block is under way"
    );
    assert!(!world.applier.is_exact(), "in the middle of a mirror");
    assert_eq!(world.applier.needed_from(), 1, "its begin is kept");
    world.drain();
    assert!(world.applier.is_exact());
    assert_eq!(world.applier.needed_from(), 5, "all of it is applied");
}

#[test]
fn a_digest_is_told_of_what_was_there_and_not_where_something_is_held() {
    let mut world = World::new();
    world.applier.connected(Some(name(0)));
    let compare = |seq, first| record(seq, RecordKind::Compare, Some(extent(first, 1)));
    let begin = record(1, RecordKind::MirrorBegin(MirrorKind::Checksum), None);
    assert_eq!(
        feed(&mut world, &[begin, data(2, 0, 1, false), compare(3, 4)]),
        1
    );
    let flight = world.flying[0];
    assert_eq!(world.applier.flight(flight).record.seq, Seq::new(3));
    let batch = Batch {
        number: 2,
        records: vec![compare(4, 0)],
    };
    world.applier.durable(2);
    world.next_batch = 3;
    let step = world.applier.step(&mut world.facts, Some(&batch));
    assert_eq!(step, Step::CannotTell(compare(4, 0)));
}

/// Applies one batch to a replica that is not `ok`, completes what flies and persists what is to be, up to the first
/// step that is another.
fn next_step(world: &mut World, batch: &Batch) -> Step {
    loop {
        match world.applier.step(&mut world.facts, Some(batch)) {
            Step::Persist => world.facts.saved(),
            Step::Digest(flight) | Step::Write(flight) => {
                assert!(!world.applier.completed(&mut world.facts, flight, true));
            }
            other => return other,
        }
    }
}

#[test]
fn what_reads_back_after_lost_flushes_is_not_compared_until_a_mirror_has_written_it_anew() {
    let mut world = World::new();
    world.facts.flush_lost(VolumeIndex::new(0));
    world.facts.handed_over(name(0));
    world.applier.connected(Some(name(0)));
    let compare = |seq| record(seq, RecordKind::Compare, Some(extent(4, 1)));
    let begin = |seq| record(seq, RecordKind::MirrorBegin(MirrorKind::Checksum), None);
    let mirror = Batch {
        number: 1,
        records: vec![begin(1), compare(2), data(3, 4, 1, true)],
    };
    world.applier.durable(1);
    assert_eq!(
        next_step(&mut world, &mirror),
        Step::CannotTell(compare(2)),
        "what reads back may be gone with the power"
    );
    assert_eq!(next_step(&mut world, &mirror), Step::Wait);
    assert_ne!(world.facts.doubtful(), 0, "before its end");
    let end = Batch {
        number: 2,
        records: vec![record(4, RecordKind::MirrorEnd, None)],
    };
    world.applier.durable(2);
    assert_eq!(next_step(&mut world, &end), Step::Flush);
    let mark = world.applier.flush_begins();
    world.applier.flushed(mark);
    assert_eq!(next_step(&mut world, &end), Step::Wait);
    assert_eq!(world.facts.state(), DataState::Ok);
    assert_eq!(world.facts.doubtful(), 0);
}

#[test]
fn a_mirror_that_found_everything_equal_ends_after_a_flush() {
    let mut world = World::new();
    world.facts = facts(DataState::MirrorRequired);
    world.applier.connected(Some(name(0)));
    let mark = world.applier.flush_begins();
    world.applier.flushed(mark);
    let mirror = Batch {
        number: 1,
        records: vec![
            record(1, RecordKind::MirrorBegin(MirrorKind::Checksum), None),
            record(2, RecordKind::Compare, Some(extent(0, 4))),
            record(3, RecordKind::MirrorEnd, None),
        ],
    };
    world.applier.durable(1);
    assert_eq!(
        next_step(&mut world, &mirror),
        Step::Flush,
        "nobody knows that what was there is durable"
    );
    assert_ne!(world.facts.state(), DataState::Ok);
    let mark = world.applier.flush_begins();
    world.applier.flushed(mark);
    next_step(&mut world, &mirror);
    assert_eq!(world.facts.state(), DataState::Ok);
}

#[test]
fn a_failed_write_of_the_base_is_dirt_before_anything_follows() {
    let mut world = World::new();
    feed(&mut world, &[data(1, 3, 1, false), data(2, 5, 1, false)]);
    let flight = world.flying.remove(0);
    assert!(
        world.applier.completed(&mut world.facts, flight, false),
        "the source must hear of it"
    );
    let step = world.applier.step(&mut world.facts, None::<&Batch>);
    assert_eq!(step, Step::Persist);
    assert_eq!(world.facts.state(), DataState::MirrorRequired);
    assert!(
        world
            .facts
            .part()
            .touches(VolumeIndex::new(0), extent(3, 1))
    );
    assert!(
        !world
            .facts
            .part()
            .touches(VolumeIndex::new(0), extent(5, 1))
    );
}

#[test]
fn only_a_mirror_that_ends_after_the_map_was_taken_over_clears_it() {
    let mut facts = facts(DataState::Mirroring);
    facts.lost(VolumeIndex::new(0), extent(0, 1));
    assert_eq!(facts.state(), DataState::MirrorRequired);
    assert!(!facts.may_end(name(50)), "nobody has heard of it");
    facts.handed_over(name(60));
    assert!(
        !facts.may_end(name(60)),
        "that mirror ended before it was heard of"
    );
    assert!(facts.may_end(name(61)));
    facts.lost(VolumeIndex::new(0), extent(1, 1));
    assert!(!facts.may_end(name(61)), "nobody has heard of the second");
}

#[test]
fn a_promotion_discards_what_is_held_and_remembers_its_extents() {
    let mut world = World::new();
    let begin = record(2, RecordKind::MirrorBegin(MirrorKind::Difference), None);
    feed(
        &mut world,
        &[data(1, 0, 1, false), begin, data(3, 6, 1, true)],
    );
    world.drain();
    world.applier.discard_hold(&mut world.facts);
    world
        .facts
        .promoted(Generation::from_bytes([2; 16]), world.applier.applied());
    assert_eq!(world.facts.state(), DataState::Ok);
    assert_eq!(world.facts.history.ancestors()[1].branch_seq, Seq::new(1));
    assert!(
        world
            .facts
            .part()
            .touches(VolumeIndex::new(0), extent(6, 1))
    );
    assert!(
        !world
            .facts
            .part()
            .touches(VolumeIndex::new(0), extent(0, 1))
    );
}

#[test]
fn names_are_taken_once_and_without_gaps() {
    let shape = VolumeShape {
        len: ByteLen::new(BLOCKS * BLOCK),
        block_size: BlockSize::B4096,
    };
    let mut incoming = Incoming::new(name(5), vec![shape]);
    assert_eq!(incoming.take(&data(5, 0, 1, false)), Ok(Taken::Duplicate));
    assert_eq!(incoming.take(&data(6, 0, 1, false)), Ok(Taken::New));
    assert!(matches!(
        incoming.take(&data(8, 0, 1, false)),
        Err(RecordError::Gap { .. })
    ));
    assert_eq!(incoming.last(), name(6));
    let begin = record(20, RecordKind::MirrorBegin(MirrorKind::Difference), None);
    assert_eq!(
        incoming.take(&begin),
        Ok(Taken::New),
        "a mirror's begin may jump"
    );
    let next_run = Record {
        incarnation: Incarnation::new(2),
        ..data(21, 0, 1, false)
    };
    assert_eq!(incoming.take(&next_run), Ok(Taken::New));
    assert_eq!(
        incoming.take(&data(22, 0, 1, false)),
        Ok(Taken::Duplicate),
        "of an older run"
    );
    let mut last = Incoming::new(name(5), vec![shape]);
    let end = record(u64::MAX, RecordKind::MirrorBegin(MirrorKind::Full), None);
    assert_eq!(last.take(&end), Ok(Taken::New), "the last name there is");
    assert!(last.take(&next_run).is_err(), "nothing follows it");
    let outside = Record {
        incarnation: Incarnation::new(2),
        ..data(22, 7, 2, false)
    };
    assert_eq!(
        incoming.take(&outside),
        Err(RecordError::Extent(Seq::new(22)))
    );
    let elsewhere = Record {
        volume: VolumeIndex::new(1),
        ..outside
    };
    assert_eq!(
        incoming.take(&elsewhere),
        Err(RecordError::Volume(Seq::new(22)))
    );
}

fn history(of: &[u8]) -> History {
    let mut history = History::new();
    for number in of {
        let generation = Generation::from_bytes([*number; 16]);
        history.branch(generation, Incarnation::new(1), Seq::new(9));
    }
    history
}

#[test]
fn a_stream_never_overwrites_what_nobody_allowed() {
    let replica = |of: &[u8], state| {
        let history = history(of);
        Facts::new(history, state, Part::empty(layout()), None, name(0), false)
    };
    let judge = |facts: &Facts, of: &[u8], overwrite, adopt, head: u64| {
        let history = history(of);
        let generation = history.current();
        let offer = Offer {
            history,
            incarnation: Incarnation::new(1),
            overwrite,
        };
        let at = |seq| WriteName {
            generation,
            ..name(seq)
        };
        let stream = StreamOffer {
            after: at(5),
            head: at(head),
            generation,
            adopt,
        };
        let last = WriteName {
            generation: facts.history.current(),
            ..name(5)
        };
        begin_stream(facts, last, &offer, &stream).map_err(|denial| denial.kind)
    };
    let ours = replica(&[1, 2], DataState::Ok);
    assert_eq!(
        judge(&ours, &[1, 2], false, false, 9),
        Ok(Adoption::Continue)
    );
    assert_eq!(
        judge(&ours, &[1, 2], false, false, 4),
        Err(DenialKind::Unrelated),
        "set back"
    );
    assert_eq!(
        judge(&ours, &[1, 2], false, true, 4),
        Ok(Adoption::Adopt),
        "with new names"
    );
    assert_eq!(
        judge(&ours, &[1], true, true, 9),
        Err(DenialKind::Newer),
        "whatever is allowed"
    );
    assert_eq!(
        judge(&ours, &[3], false, true, 9),
        Err(DenialKind::Unrelated)
    );
    assert_eq!(judge(&ours, &[3], true, true, 9), Ok(Adoption::Adopt));
    assert_eq!(
        judge(&ours, &[3], true, false, 9),
        Err(DenialKind::Unrelated)
    );
    assert_eq!(
        judge(&ours, &[1, 2, 3], false, true, 9),
        Ok(Adoption::Adopt),
        "a descendant"
    );
    let elsewhere = replica(&[1, 2], DataState::RestoreRequired);
    assert_eq!(
        judge(&elsewhere, &[1, 2], true, false, 9),
        Err(DenialKind::Newer),
        "the same names would go on over what is newer elsewhere"
    );
    let unused = replica(&[], DataState::NotReady);
    assert_eq!(judge(&unused, &[7], false, true, 9), Ok(Adoption::Adopt));
    let other = StreamOffer {
        after: name(0),
        head: name(0),
        generation: Generation::from_bytes([9; 16]),
        adopt: false,
    };
    let offer = Offer {
        history: history(&[1]),
        incarnation: Incarnation::new(1),
        overwrite: false,
    };
    let denial = begin_stream(&ours, name(0), &offer, &other).unwrap_err();
    assert_eq!(denial.kind, DenialKind::Malformed);
}

#[test]
fn only_an_ok_replica_without_its_source_is_promoted_unless_told() {
    let ask = |connected, state, force, inconsistent| {
        check_promote(&PromoteRequest {
            connected,
            state,
            force,
            inconsistent,
        })
    };
    assert_eq!(ask(false, DataState::Ok, false, false), Ok(()));
    assert_eq!(
        ask(true, DataState::Ok, false, true),
        Err(PromoteRefusal::SourceAlive)
    );
    assert_eq!(ask(true, DataState::Ok, true, false), Ok(()));
    let mirroring = DataState::Mirroring;
    assert_eq!(
        ask(false, mirroring, true, false),
        Err(PromoteRefusal::NotOk(mirroring))
    );
    assert_eq!(ask(false, mirroring, false, true), Ok(()));
    assert_eq!(
        ask(false, DataState::NotReady, true, true),
        Err(PromoteRefusal::Nothing)
    );
}

#[test]
fn volumes_of_another_shape_are_refused() {
    let shape = |len| {
        (
            ByteLen::new(len),
            BlockSize::B4096,
            ExtentSize::DIRTY_DEFAULT,
        )
    };
    assert!(check_volumes(&[shape(4096)], &[shape(4096)]).is_ok());
    let smaller = check_volumes(&[shape(4096)], &[shape(8192)]).unwrap_err();
    assert_eq!(smaller.kind, DenialKind::Volumes);
    assert!(
        smaller.text.contains("8KiB") && smaller.text.contains("4KiB"),
        "{smaller}"
    );
    assert!(check_volumes(&[shape(4096)], &[shape(4096), shape(4096)]).is_err());
}

#[test]
fn a_map_is_read_as_it_was_written_and_a_lost_sector_counts_as_dirty() {
    let size = ExtentSize::try_from(BLOCK).unwrap();
    let layout = MapLayout::new([
        (ByteLen::new(BLOCK * 5000), size),
        (ByteLen::new(BLOCK), size),
    ]);
    let mut part = Part::empty(layout.clone());
    part.set(VolumeIndex::new(0), extent(4000, 2));
    let sectors: Vec<_> = (0..layout.sectors())
        .map(|sector| part.sector(sector))
        .collect();
    let (again, whole) = Part::read(
        layout.clone(),
        sectors.iter().map(|sector| Some(sector.as_slice())),
    );
    assert!(whole && again.bits().ones() == 2);
    assert!(again.touches(VolumeIndex::new(0), extent(4001, 1)));
    let first_lost = sectors
        .iter()
        .enumerate()
        .map(|(at, sector)| (at > 0).then_some(sector.as_slice()));
    let (again, whole) = Part::read(layout, first_lost);
    assert!(!whole);
    assert_eq!(again.bits().ones(), 3712 + 2);
}

/// A batch of a write, a note and a write over the first one.
fn around_a_note(task: bool) -> Batch {
    Batch {
        number: 1,
        records: vec![
            data(1, 3, 1, false),
            record(2, RecordKind::Note { task }, None),
            data(3, 3, 1, false),
        ],
    }
}

#[test]
fn a_task_is_reached_when_all_before_it_is_durable_in_the_base_and_nothing_behind_it_is_applied() {
    let mut world = World::new();
    let batch = around_a_note(true);
    world.applier.durable(1);
    let Step::Write(flight) = world.applier.step(&mut world.facts, Some(&batch)) else {
        panic!("the write before it comes first");
    };
    let step = |world: &mut World| world.applier.step(&mut world.facts, Some(&batch));
    assert_eq!(step(&mut world), Step::Wait, "it is not done");
    assert!(!world.applier.completed(&mut world.facts, flight, true));
    assert_eq!(step(&mut world), Step::Flush, "it is not durable");
    let mark = world.applier.flush_begins();
    world.applier.flushed(mark);
    assert_eq!(step(&mut world), Step::Note(1));
    assert_eq!(step(&mut world), Step::Note(1), "until it is settled");
    assert_eq!(world.applier.applied(), name(1));
    world.applier.note_settled(1, &batch.records[1]);
    assert_eq!(world.applier.applied(), name(2));
    assert!(matches!(step(&mut world), Step::Write(_)));
}

#[test]
fn a_bookmark_waits_for_no_flush() {
    let mut world = World::new();
    let batch = around_a_note(false);
    world.applier.durable(1);
    let first = world.applier.step(&mut world.facts, Some(&batch));
    assert!(matches!(first, Step::Write(_)));
    let second = world.applier.step(&mut world.facts, Some(&batch));
    assert_eq!(second, Step::Note(1));
}

#[test]
fn a_pause_holds_a_note_back() {
    let mut world = World::new();
    world.facts.set_paused(true);
    world.facts.saved();
    world.applier.durable(1);
    let batch = Batch {
        number: 1,
        records: vec![record(1, RecordKind::Note { task: false }, None)],
    };
    let step = world.applier.step(&mut world.facts, Some(&batch));
    assert_eq!(step, Step::Wait);
}

#[test]
fn within_a_held_mirror_no_place_is_exact() {
    let mut world = World::new();
    world.applier.durable(1);
    let mirror = Batch {
        number: 1,
        records: vec![
            record(1, RecordKind::MirrorBegin(MirrorKind::Difference), None),
            record(2, RecordKind::Note { task: false }, None),
            record(3, RecordKind::MirrorEnd, None),
            record(4, RecordKind::Note { task: false }, None),
        ],
    };
    assert_eq!(next_step(&mut world, &mirror), Step::Note(1));
    assert_eq!(
        world.facts.state(),
        DataState::Ok,
        "the journal makes it so"
    );
    assert!(!world.applier.is_exact(), "the bases are on their way");
    world.applier.note_settled(1, &mirror.records[1]);
    let mut step = next_step(&mut world, &mirror);
    if step == Step::Flush {
        let mark = world.applier.flush_begins();
        world.applier.flushed(mark);
        step = next_step(&mut world, &mirror);
    }
    assert_eq!(step, Step::Note(3));
    assert!(world.applier.is_exact());
}
