//! A model of a source, a journal, a base that loses unflushed writes, and crashes: whatever
//! happens, a replica that says `ok` is a prefix.

use crate::dirty::MapLayout;
use crate::target::*;
use blkrep_types::{
    ByteLen, ByteOffset, DataState, Extent, ExtentSize, Generation, History, Incarnation,
    MirrorKind, Record, RecordKind, Seq, VolumeIndex, WriteName,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

pub(super) const BLOCKS: u64 = 8;
pub(super) const IMAGE: usize = 8;
pub(super) const BLOCK: u64 = 4096;
pub(super) const G: Generation = Generation::from_bytes([1; 16]);
const BATCHES_MAX: usize = 12;

pub(super) type Image = [u64; IMAGE];

pub(super) fn name(seq: u64) -> WriteName {
    WriteName {
        generation: G,
        incarnation: Incarnation::new(1),
        seq: Seq::new(seq),
    }
}

pub(super) fn extent(first: u64, count: u64) -> Extent {
    Extent::new(ByteOffset::new(first * BLOCK), ByteLen::new(count * BLOCK)).unwrap()
}

pub(super) fn layout() -> MapLayout {
    MapLayout::new([(
        ByteLen::new(BLOCKS * BLOCK),
        ExtentSize::try_from(BLOCK).unwrap(),
    )])
}

pub(super) fn facts(state: DataState) -> Facts {
    let mut history = History::new();
    history.branch(G, Incarnation::new(0), Seq::ZERO);
    Facts::new(history, state, Part::empty(layout()), None, name(0), false)
}

pub(super) fn record(seq: u64, kind: RecordKind, extent: Option<Extent>) -> Record {
    Record {
        incarnation: Incarnation::new(1),
        seq: Seq::new(seq),
        kind,
        volume: VolumeIndex::new(0),
        extent,
    }
}

pub(super) fn data(seq: u64, first: u64, count: u64, mirror: bool) -> Record {
    record(seq, RecordKind::Data { mirror }, Some(extent(first, count)))
}

#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) records: Vec<Record>,
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
pub(super) struct Source {
    pub(super) seq: u64,
    pub(super) image: Image,
    pub(super) dirty: BTreeSet<u64>,
    pub(super) mirroring: bool,
    /// The image at each record at which a replica that has applied it may be `ok`.
    pub(super) legal: BTreeMap<u64, Image>,
    /// What each record with data writes, block by block.
    pub(super) values: BTreeMap<u64, Image>,
    pub(super) out: Vec<Record>,
}

impl Source {
    pub(super) fn push(&mut self, record: Record) {
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
pub(super) struct World {
    pub(super) source: Source,
    pub(super) facts: Facts,
    pub(super) durable_facts: Facts,
    pub(super) applier: Applier,
    pub(super) journal: Vec<Batch>,
    pub(super) next_batch: u64,
    pub(super) checkpoint: (u64, WriteName),
    pub(super) base: Image,
    pub(super) unflushed: Vec<(usize, u64)>,
    pub(super) durable_base: Image,
    pub(super) flying: Vec<FlightId>,
    pub(super) hold_seen: bool,
}

impl World {
    pub(super) fn new() -> Self {
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

    pub(super) fn receive(&mut self) {
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
    pub(super) fn run(&mut self, limit: usize) {
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
                Step::Write(flight) | Step::Zero(flight, _) | Step::Digest(flight) => {
                    self.flying.push(flight);
                }
                Step::CannotTell(_) => {}
                Step::Flush => self.flush(),
                Step::Note(_) => unreachable!("this source has none"),
                Step::Wait => return,
            }
            self.hold_seen |= self.applier.is_holding();
        }
    }

    pub(super) fn complete(&mut self, nth: usize) {
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

    pub(super) fn drain(&mut self) {
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
