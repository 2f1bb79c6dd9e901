//! Which record touches the base next.
//!
//! One cursor walks over the durable batches in order. Records that do not overlap run together,
//! others one after the other. When it comes upon the begin of a mirror and the replica is `ok`,
//! it goes on only to take note of what it sees (a *hold*) until the mirror's end is durable too:
//! then it goes back and applies everything, so that base and journal together are a prefix at
//! every instant. What must be durable first comes out as a step of its own, and nothing else
//! comes out before it is done.

use super::facts::Facts;
use super::flight::{Flight, FlightId, Flights};
use super::incoming::Place;
use super::part::Part;
use crate::dirty::MapLayout;
use blkrep_types::{
    DataState, Generation, Incarnation, MirrorKind, Record, RecordKind, Seq, WriteName, planted,
};

/// The records of one batch, wherever they are.
pub trait Records {
    /// The batch's number.
    fn number(&self) -> u64;
    /// How many there are.
    fn count(&self) -> usize;
    /// One of them.
    fn record(&self, index: usize) -> Record;
}

/// A place between two records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// The batch.
    pub batch: u64,
    /// The record of it that comes next.
    pub index: usize,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Write the facts down, then call [`Facts::saved`].
    Persist,
    /// Bring this batch into memory and ask again with it.
    Load(u64),
    /// Write the bytes of the flight's record, of the batch in hand, to the base.
    Write(FlightId),
    /// Make the record's extent read as zeroes; the flag says if its storage may be freed.
    Zero(FlightId, bool),
    /// Read the record's extent and tell its digest, or the bytes themselves if the record is a read.
    Digest(FlightId),
    /// Tell that what this record asks for cannot be told.
    CannotTell(Record),
    /// Flush every base, then call [`Applier::flushed`].
    Flush,
    /// A note is reached, this record of the batch in hand: do what it says, then call
    /// [`Applier::note_settled`]. Nothing behind it is applied before.
    Note(usize),
    /// Nothing, until something completes, arrives or is resumed.
    Wait,
}

#[derive(Debug)]
enum Mode {
    Applying,
    /// Noting what is held since the mirror's begin.
    Holding {
        /// Directly behind the begin.
        from: Cursor,
        /// Extents that held records write.
        held: Box<Part>,
    },
}

/// The walk over the journal.
#[derive(Debug)]
pub struct Applier {
    generation: Generation,
    cursor: Cursor,
    /// The number of the first batch that is not durable yet.
    end: u64,
    mode: Mode,
    /// The last record that the cursor passed while applying.
    passed: WriteName,
    flights: Flights,
    /// Up to here a released hold is applied, from this batch on: the mirrors in it need no hold of their own.
    release: Option<(Place, u64)>,
    /// Digests are answered for records after this one: others were asked in another connection.
    asked_after: Option<Place>,
    /// Digests up to here were answered while holding.
    answered: Place,
    /// Writes begun since the start.
    begun: u64,
    /// How many of them a successful flush covers, if it covers all that had begun then.
    flushed: u64,
}

/// What a flush that begins now will cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlushMark {
    /// Every batch before this one is then safe.
    pub needed_from: u64,
    /// Writes begun; `None` if one of them is still under way.
    begun: Option<u64>,
}

fn can_tell(facts: &Facts, record: &Record) -> bool {
    let extent = record.extent.expect("checked when it was received");
    facts.can_tell(record.volume, extent)
}

const NOWHERE: Place = (Incarnation::new(0), Seq::ZERO);

impl Applier {
    /// Begins after `before`, at the batch `from` of those up to (not including) `end`.
    #[must_use]
    pub fn new(before: WriteName, from: u64, end: u64) -> Self {
        assert!(from <= end, "batches are in order");
        Self {
            generation: before.generation,
            cursor: Cursor {
                batch: from,
                index: 0,
            },
            end,
            mode: Mode::Applying,
            passed: before,
            flights: Flights::new(),
            release: None,
            asked_after: None,
            answered: NOWHERE,
            // What an earlier run applied may not be flushed.
            begun: 1,
            flushed: 0,
        }
    }

    /// The batch `number` is durable.
    ///
    /// # Panics
    /// If it is not the next one.
    pub fn durable(&mut self, number: u64) {
        assert_eq!(number, self.end, "batches become durable in order");
        self.end = number + 1;
    }

    /// A connection's stream begins after `after`; `None`: it ended.
    pub const fn connected(&mut self, after: Option<WriteName>) {
        self.asked_after = match after {
            Some(name) => Some((name.incarnation, name.seq)),
            None => None,
        };
    }

    /// The step that comes next. `batch` is the batch in hand, if there is one.
    pub fn step(&mut self, facts: &mut Facts, batch: Option<&impl Records>) -> Step {
        loop {
            let unsaid = planted!(NotOkTooLate) && facts.state() == DataState::Mirroring;
            if facts.unsaved() && !unsaid {
                return Step::Persist;
            }
            if self.cursor.batch == self.end || self.flights.is_full() {
                return Step::Wait;
            }
            if facts.holds_back() && matches!(self.mode, Mode::Applying) {
                return Step::Wait;
            }
            let Some(batch) = batch.filter(|batch| batch.number() == self.cursor.batch) else {
                return Step::Load(self.cursor.batch);
            };
            if self.cursor.index == batch.count() {
                self.cursor = Cursor {
                    batch: self.cursor.batch + 1,
                    index: 0,
                };
                continue;
            }
            let record = batch.record(self.cursor.index);
            let step = match self.mode {
                Mode::Applying => self.apply(facts, &record),
                Mode::Holding { .. } => self.note(&record),
            };
            if let Some(step) = step {
                return step;
            }
        }
    }

    fn name(&self, record: &Record) -> WriteName {
        WriteName {
            generation: self.generation,
            incarnation: record.incarnation,
            seq: record.seq,
        }
    }

    const fn pass(&mut self, name: WriteName) {
        self.cursor.index += 1;
        self.passed = name;
    }

    /// Applies the record at the cursor; `None`: it was passed.
    fn apply(&mut self, facts: &mut Facts, record: &Record) -> Option<Step> {
        let name = self.name(record);
        match record.kind {
            RecordKind::Void => {
                self.pass(name);
                None
            }
            RecordKind::MirrorBegin(kind) => self.mirror_begins(facts, record, kind),
            RecordKind::MirrorEnd => self.mirror_ends(facts, name),
            RecordKind::Compare | RecordKind::Read if !self.wanted(record) => {
                self.pass(name);
                None
            }
            RecordKind::Compare if facts.is_doubtful(record.volume) => {
                self.pass(name);
                Some(Step::CannotTell(*record))
            }
            RecordKind::Read if !can_tell(facts, record) => {
                self.pass(name);
                Some(Step::CannotTell(*record))
            }
            RecordKind::Compare | RecordKind::Read => self.fly(record, Step::Digest),
            RecordKind::Zero { free, .. } => self.fly(record, |flight| Step::Zero(flight, free)),
            RecordKind::Data { .. } => self.fly(record, Step::Write),
            RecordKind::Note { task } => Some(self.reach_note(task)),
        }
    }

    /// What is to be run sees everything before it, and durably: it may copy the base.
    fn reach_note(&self, task: bool) -> Step {
        if task && !planted!(TaskBeforeItsWrites) {
            if !self.flights.is_empty() {
                return Step::Wait;
            }
            if self.needs_flush() {
                return Step::Flush;
            }
        }
        Step::Note(self.cursor.index)
    }

    /// What the note at the cursor says is done, or will not be.
    ///
    /// # Panics
    /// If it is not the one at the cursor's batch.
    pub fn note_settled(&mut self, batch: u64, record: &Record) {
        assert!(
            self.cursor.batch == batch && matches!(record.kind, RecordKind::Note { .. }),
            "only the note at the cursor is settled"
        );
        self.pass(self.name(record));
    }

    /// True if what is passed is all that the bases have, and no mirror is being applied: with the replica
    /// `ok` they are the source's image at this place.
    #[must_use]
    pub const fn is_exact(&self) -> bool {
        self.release.is_none() && matches!(self.mode, Mode::Applying)
    }

    /// True if somebody still waits for the digest.
    fn wanted(&self, record: &Record) -> bool {
        let place = (record.incarnation, record.seq);
        place > self.answered && self.asked_after.is_some_and(|after| place > after)
    }

    fn fly(&mut self, record: &Record, step: impl Fn(FlightId) -> Step) -> Option<Step> {
        let extent = record.extent.expect("checked when it was received");
        let at_once = planted!(ReadsBeforeBarrier) && record.kind == RecordKind::Read;
        let together = planted!(ApplyOverlappingTogether) || at_once;
        if self.flights.overlaps(record.volume, extent) && !together {
            return Some(Step::Wait);
        }
        let at = (self.cursor.batch, self.cursor.index);
        let flight = self.flights.begin(*record, at, self.passed);
        // What is compared and found equal becomes part of the replica: a flush has to cover it as well.
        self.begun += 1;
        let step = step(flight);
        self.pass(self.name(record));
        Some(step)
    }

    fn mirror_begins(
        &mut self,
        facts: &mut Facts,
        record: &Record,
        kind: MirrorKind,
    ) -> Option<Step> {
        if !self.flights.is_empty() {
            return Some(Step::Wait);
        }
        let name = self.name(record);
        let place = (record.incarnation, record.seq);
        let released = self.release.is_some_and(|(end, _)| place < end);
        if facts.state() == DataState::Ok && !released {
            if kind == MirrorKind::Full {
                if !planted!(FullMirrorStaysOk) {
                    facts.mirror_begins();
                }
            } else if !planted!(HoldNotHeld) {
                let from = Cursor {
                    index: self.cursor.index + 1,
                    ..self.cursor
                };
                let layout: MapLayout = facts.part().layout().clone();
                self.mode = Mode::Holding {
                    from,
                    held: Box::new(Part::empty(layout)),
                };
                self.cursor = from;
                return None;
            }
        } else if facts.state() != DataState::Ok {
            facts.mirror_begins();
        }
        self.pass(name);
        None
    }

    fn mirror_ends(&mut self, facts: &mut Facts, name: WriteName) -> Option<Step> {
        if !self.flights.is_empty() {
            return Some(Step::Wait);
        }
        if facts.may_end(name) {
            if self.needs_flush() {
                return Some(Step::Flush);
            }
            facts.mirror_ends();
        }
        let ended = (name.incarnation, name.seq);
        if self.release.is_some_and(|(end, _)| end == ended) {
            self.release = None;
        }
        self.pass(name);
        None
    }

    /// Takes note of the record at the cursor while holding.
    fn note(&mut self, record: &Record) -> Option<Step> {
        let place = (record.incarnation, record.seq);
        let wanted = record.kind == RecordKind::Compare && self.wanted(record);
        let Mode::Holding { from, held } = &mut self.mode else {
            unreachable!("only called while holding")
        };
        match (record.kind, record.extent) {
            (RecordKind::Data { .. } | RecordKind::Zero { .. }, Some(extent)) => {
                held.set(record.volume, extent);
            }
            (RecordKind::Compare, Some(extent)) if wanted => {
                self.answered = place;
                let at = (self.cursor.batch, self.cursor.index);
                self.cursor.index += 1;
                if held.touches(record.volume, extent) {
                    return Some(Step::CannotTell(*record));
                }
                let flight = self.flights.begin(*record, at, self.passed);
                return Some(Step::Digest(flight));
            }
            (RecordKind::MirrorEnd, _) => {
                self.cursor = *from;
                self.release = Some((place, from.batch));
                self.mode = Mode::Applying;
                return None;
            }
            (
                RecordKind::Compare
                | RecordKind::Read
                | RecordKind::Void
                | RecordKind::MirrorBegin(_)
                | RecordKind::Data { .. }
                | RecordKind::Zero { .. }
                | RecordKind::Note { .. },
                _,
            ) => {}
        }
        self.cursor.index += 1;
        None
    }

    /// A record's operation completed. True if the base failed: the connection has to end, so that
    /// the source hears of what was lost.
    pub fn completed(&mut self, facts: &mut Facts, id: FlightId, ok: bool) -> bool {
        let flight = self.flights.end(id);
        let asks = matches!(flight.record.kind, RecordKind::Compare | RecordKind::Read);
        if ok || planted!(BaseWriteErrorIgnored) || asks {
            return false;
        }
        let extent = flight.record.extent.expect("it flew");
        facts.lost(flight.record.volume, extent);
        true
    }

    /// A flush of every base is about to begin.
    #[must_use]
    pub fn flush_begins(&self) -> FlushMark {
        FlushMark {
            needed_from: self.needed_from(),
            begun: self.flights.is_empty().then_some(self.begun),
        }
    }

    /// That flush succeeded.
    pub fn flushed(&mut self, mark: FlushMark) {
        if let Some(begun) = mark.begun {
            self.flushed = begun;
        }
    }

    /// The flush failed: what was applied since the checkpoint may be gone, and is applied again
    /// from there. `before` is the last record before the batch `from`.
    ///
    /// # Panics
    /// If something is under way.
    pub fn rewind(&mut self, before: WriteName, from: u64) {
        assert!(
            self.flights.is_empty(),
            "a rewind waits for what is under way"
        );
        self.mode = Mode::Applying;
        self.cursor = Cursor {
            batch: from,
            index: 0,
        };
        self.passed = before;
        self.begun += 1;
    }

    /// The journal is full and a hold keeps it so: it is given up. True if there was one.
    pub fn give_up_hold(&mut self, facts: &mut Facts) -> bool {
        let Mode::Holding { from, .. } = &self.mode else {
            return false;
        };
        if facts.holds_back() {
            return false;
        }
        self.cursor = *from;
        self.mode = Mode::Applying;
        if !planted!(HoldGivenUpSilently) {
            facts.mirror_begins();
        }
        true
    }

    /// At a promotion: what is held will never be applied. Only once everything durable was seen.
    ///
    /// # Panics
    /// If something is left to be seen or under way.
    pub fn discard_hold(&mut self, facts: &mut Facts) {
        assert!(self.is_idle(), "a promotion waits for the cursor");
        if let Mode::Holding { held, .. } = &self.mode {
            facts.set_aside(held);
        }
        self.mode = Mode::Applying;
    }

    /// True if nothing is left to be seen and nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.cursor.batch == self.end && self.flights.is_empty()
    }

    /// True while operations are under way.
    #[must_use]
    pub const fn is_flying(&self) -> bool {
        !self.flights.is_empty()
    }

    /// How many operations are under way, those included that wait to be tried again.
    #[must_use]
    pub const fn flying(&self) -> usize {
        self.flights.len()
    }

    /// True while a mirror is held.
    #[must_use]
    pub const fn is_holding(&self) -> bool {
        matches!(self.mode, Mode::Holding { .. })
    }

    /// A record under way.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn flight(&self, id: FlightId) -> &Flight {
        self.flights.get(id)
    }

    /// Where the cursor is.
    #[must_use]
    pub const fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The last record that is in the base with all before it.
    #[must_use]
    pub fn applied(&self) -> WriteName {
        let noted = self.is_holding();
        match self.flights.first() {
            Some(flight) if !noted => flight.before,
            Some(_) | None => self.passed,
        }
    }

    /// The oldest batch that is still needed: all before it are in the base. A released hold is needed from
    /// its begin until its end is applied: whoever walks the journal anew has to know what is a state of the
    /// source and what is the middle of a mirror.
    #[must_use]
    pub fn needed_from(&self) -> u64 {
        let held = match (&self.mode, self.release) {
            (Mode::Holding { from, .. }, _) => from.batch,
            (Mode::Applying, Some((_, begun))) => begun.min(self.cursor.batch),
            (Mode::Applying, None) => self.cursor.batch,
        };
        self.flights
            .oldest_batch()
            .map_or(held, |batch| batch.min(held))
    }

    /// True if the base has writes that no flush covers.
    #[must_use]
    pub const fn needs_flush(&self) -> bool {
        self.flushed != self.begun
    }
}
