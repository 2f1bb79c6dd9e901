//! A model of a source, a journal, a base that loses unflushed writes, and crashes: whatever
//! happens, a replica that says `ok` is a prefix.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::dirty::MapLayout;
use blkrep_types::{
    BlockSize, ByteLen, ByteOffset, DataState, Extent, ExtentSize, Generation, History,
    Incarnation, MirrorKind, Record, RecordKind, Seq, VolumeIndex, WriteName,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const BLOCKS: u64 = 8;
const IMAGE: usize = 8;
const BLOCK: u64 = 4096;
const G: Generation = Generation::from_bytes([1; 16]);
const BATCHES_MAX: usize = 12;

type Image = [u64; IMAGE];

fn name(seq: u64) -> WriteName {
    WriteName {
        generation: G,
        incarnation: Incarnation::new(1),
        seq: Seq::new(seq),
    }
}

fn extent(first: u64, count: u64) -> Extent {
    Extent::new(ByteOffset::new(first * BLOCK), ByteLen::new(count * BLOCK)).unwrap()
}

fn layout() -> MapLayout {
    MapLayout::new([(
        ByteLen::new(BLOCKS * BLOCK),
        ExtentSize::try_from(BLOCK).unwrap(),
    )])
}

fn facts(state: DataState) -> Facts {
    let mut history = History::new();
    history.branch(G, Incarnation::new(0), Seq::ZERO);
    Facts::new(history, state, Part::empty(layout()), None, name(0), false)
}

fn record(seq: u64, kind: RecordKind, extent: Option<Extent>) -> Record {
    Record {
        incarnation: Incarnation::new(1),
        seq: Seq::new(seq),
        kind,
        volume: VolumeIndex::new(0),
        extent,
    }
}

fn data(seq: u64, first: u64, count: u64, mirror: bool) -> Record {
    record(seq, RecordKind::Data { mirror }, Some(extent(first, count)))
}

#[derive(Debug, Clone)]
struct Batch {
    number: u64,
    records: Vec<Record>,
}

impl Records for Batch {
    fn number(&self) -> u64 {
        self.number
    }
    fn count(&self) -> usize {
        self.records.len()
    }
    fn record(&self, index: usize) -> Record {
        self.records[index]
    }
}

fn blocks(record: &Record) -> std::ops::Range<usize> {
    let extent = record.extent.unwrap();
    let block = |bytes: u64| usize::try_from(bytes / BLOCK).unwrap();
    block(extent.offset().get())..block(extent.end().get())
}

/// A source that appends writes, loses track of some, and mirrors.
#[derive(Default)]
struct Source {
    seq: u64,
    image: Image,
    dirty: BTreeSet<u64>,
    mirroring: bool,
    /// The image at each record at which a replica that has applied it may be `ok`.
    legal: BTreeMap<u64, Image>,
    /// What each record with data writes, block by block.
    values: BTreeMap<u64, Image>,
    out: Vec<Record>,
}

impl Source {
    fn push(&mut self, record: Record) {
        self.values.insert(self.seq, self.image);
        if !self.mirroring {
            self.legal.insert(self.seq, self.image);
        }
        self.out.push(record);
    }

    fn write(&mut self, first: u64, count: u64, sent: bool) {
        self.seq += 1;
        for block in first..first + count {
            self.image[usize::try_from(block).unwrap()] = self.seq;
        }
        if sent {
            self.push(data(self.seq, first, count, false));
        } else {
            self.dirty.extend(first..first + count);
        }
    }

    fn begin(&mut self, kind: MirrorKind) {
        if kind == MirrorKind::Full {
            self.dirty.extend(0..BLOCKS);
        }
        self.mirroring = true;
        self.seq += 1;
        self.push(record(self.seq, RecordKind::MirrorBegin(kind), None));
    }

    fn mirror_step(&mut self) {
        self.seq += 1;
        match self.dirty.pop_first() {
            Some(block) => self.push(data(self.seq, block, 1, true)),
            None => {
                self.mirroring = false;
                self.push(record(self.seq, RecordKind::MirrorEnd, None));
            }
        }
    }
}

/// The target's side: durable things survive a crash, the rest does not.
struct World {
    source: Source,
    facts: Facts,
    durable_facts: Facts,
    applier: Applier,
    journal: Vec<Batch>,
    next_batch: u64,
    checkpoint: (u64, WriteName),
    base: Image,
    unflushed: Vec<(usize, u64)>,
    durable_base: Image,
    flying: Vec<FlightId>,
    hold_seen: bool,
}

impl World {
    fn new() -> Self {
        let facts = facts(DataState::Ok);
        let mut source = Source::default();
        source.legal.insert(0, source.image);
        Self {
            source,
            durable_facts: facts.clone(),
            facts,
            applier: Applier::new(name(0), 1, 1),
            journal: Vec::new(),
            next_batch: 1,
            checkpoint: (1, name(0)),
            base: [0; IMAGE],
            unflushed: Vec::new(),
            durable_base: [0; IMAGE],
            flying: Vec::new(),
            hold_seen: false,
        }
    }

    fn receive(&mut self) {
        if self.source.out.is_empty() || self.journal.len() == BATCHES_MAX {
            return;
        }
        let records = std::mem::take(&mut self.source.out);
        self.journal.push(Batch {
            number: self.next_batch,
            records,
        });
        self.applier.durable(self.next_batch);
        self.next_batch += 1;
    }

    /// Takes steps until there is nothing to do but wait; at most `limit` of them.
    fn run(&mut self, limit: usize) {
        for _ in 0..limit {
            let cursor = self.applier.cursor().batch;
            let hand = self
                .journal
                .iter()
                .find(|batch| batch.number == cursor)
                .cloned();
            match self.applier.step(&mut self.facts, hand.as_ref()) {
                Step::Persist => {
                    self.facts.saved();
                    self.durable_facts = self.facts.clone();
                }
                Step::Load(number) => {
                    let kept = self.journal.iter().any(|batch| batch.number == number);
                    assert!(kept, "batch {number} was freed while it was needed");
                }
                Step::Write(flight, _) | Step::Zero(flight, _) | Step::Digest(flight) => {
                    self.flying.push(flight);
                }
                Step::CannotTell(_) => {}
                Step::Flush => self.flush(),
                Step::Wait => return,
            }
            self.hold_seen |= self.applier.is_holding();
        }
    }

    fn complete(&mut self, nth: usize) {
        if self.flying.is_empty() {
            return;
        }
        let flight = self.flying.swap_remove(nth % self.flying.len());
        self.land(flight);
        assert!(!self.applier.completed(&mut self.facts, flight, true));
    }

    fn land(&mut self, flight: FlightId) {
        let record = self.applier.flight(flight).record;
        let values = self.source.values[&record.seq.get()];
        for block in blocks(&record) {
            self.base[block] = values[block];
            self.unflushed.push((block, values[block]));
        }
    }

    fn flush(&mut self) {
        let mark = self.applier.flush_begins();
        self.durable_base = self.base;
        self.unflushed.clear();
        self.applier.flushed(mark);
        let freed: Vec<_> = self
            .journal
            .iter()
            .filter(|batch| batch.number < mark.needed_from)
            .collect();
        if let Some(last) = freed.last().and_then(|batch| batch.records.last()) {
            self.checkpoint = (mark.needed_from, name(last.seq.get()));
        }
        self.journal
            .retain(|batch| batch.number >= mark.needed_from);
    }

    fn make_room(&mut self) {
        if self.journal.len() == BATCHES_MAX {
            self.flush();
        }
        if self.journal.len() == BATCHES_MAX && self.applier.is_holding() {
            let given_up = self.applier.give_up_hold(&mut self.facts);
            assert_eq!(given_up, !self.facts.paused());
        }
    }

    /// Power is lost: of what was not flushed, and of what was under way, anything may survive.
    fn crash(&mut self, mut luck: u64) {
        let mut lucky = || {
            luck = luck.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            luck & 1 == 1
        };
        for flight in std::mem::take(&mut self.flying) {
            if lucky() {
                self.land(flight);
            }
        }
        self.base = self.durable_base;
        for (block, value) in std::mem::take(&mut self.unflushed) {
            if lucky() {
                self.base[block] = value;
            }
        }
        self.durable_base = self.base;
        self.facts = self.durable_facts.clone();
        let (from, before) = self.checkpoint;
        self.applier = Applier::new(before, from, self.next_batch);
    }

    fn drain(&mut self) {
        for _ in 0..10_000 {
            self.run(1000);
            if self.flying.is_empty() {
                break;
            }
            self.complete(0);
        }
        assert!(self.applier.is_idle());
    }

    /// What a promotion would find.
    fn check(&mut self) {
        self.drain();
        if self.facts.state() == DataState::Ok {
            let applied = self.applier.applied().seq.get();
            let legal = self.source.legal.get(&applied);
            assert_eq!(Some(&self.base), legal, "ok at {applied} is a prefix");
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    Write(u64, u64),
    Lose(u64, u64),
    Begin(MirrorKind),
    Mirror(u8),
    Receive,
    Run(usize),
    Complete(usize),
    Flush,
    Crash(u64),
    Check,
    Pause(bool),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let write = (0..BLOCKS, 1..4_u64).prop_map(|(at, len)| (at, len.min(BLOCKS - at)));
    let kinds = prop::sample::select(vec![
        MirrorKind::Difference,
        MirrorKind::Difference,
        MirrorKind::Checksum,
        MirrorKind::Full,
    ]);
    let event = prop_oneof![
        6 => write.clone().prop_map(|(at, len)| Event::Write(at, len)),
        2 => write.prop_map(|(at, len)| Event::Lose(at, len)),
        1 => kinds.prop_map(Event::Begin),
        4 => (1_u8..4).prop_map(Event::Mirror),
        5 => Just(Event::Receive),
        6 => (1_usize..20).prop_map(Event::Run),
        6 => any::<usize>().prop_map(Event::Complete),
        1 => Just(Event::Flush),
        1 => any::<u64>().prop_map(Event::Crash),
        1 => Just(Event::Check),
        1 => any::<bool>().prop_map(Event::Pause),
    ];
    prop::collection::vec(event, 1..250)
}

fn happen(world: &mut World, event: &Event) {
    match *event {
        Event::Write(at, len) => world.source.write(
            at,
            len,
            world.source.dirty.is_empty() || world.source.mirroring,
        ),
        Event::Lose(at, len) => {
            if !world.source.mirroring {
                world.source.write(at, len, false);
            }
        }
        Event::Begin(kind) => {
            if !world.source.mirroring {
                world.source.begin(kind);
            }
        }
        Event::Mirror(count) => {
            for _ in 0..count {
                if world.source.mirroring {
                    world.source.mirror_step();
                }
            }
        }
        Event::Receive => {
            world.make_room();
            world.receive();
        }
        Event::Run(steps) => world.run(steps),
        Event::Complete(nth) => world.complete(nth),
        Event::Flush => world.flush(),
        Event::Crash(luck) => world.crash(luck),
        Event::Check => {
            let paused = world.facts.paused();
            world.facts.set_paused(false);
            world.check();
            world.facts.set_paused(paused);
        }
        Event::Pause(paused) => world.facts.set_paused(paused),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_replica_that_says_ok_is_a_prefix_after_any_crash(events in events()) {
        let mut world = World::new();
        for event in &events {
            happen(&mut world, event);
        }
        world.facts.set_paused(false);
        world.check();
        // Once the source has sent everything, the replica equals it.
        while world.source.mirroring || !world.source.dirty.is_empty() {
            if !world.source.mirroring {
                world.source.begin(MirrorKind::Difference);
            }
            world.source.mirror_step();
        }
        while !world.source.out.is_empty() {
            world.make_room();
            world.receive();
            world.drain();
        }
        world.check();
        prop_assert_eq!(world.facts.state(), DataState::Ok);
        prop_assert_eq!(world.base, world.source.image);
    }
}

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
