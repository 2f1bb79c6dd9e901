//! The worker's side of applying: steps carried out on the bases, flushes, checkpoints.

use super::control::TargetEvent;
use super::session::Session;
use super::worker::{Kind, Mode, TargetWorker, token};
use blkrep_core::target::{FLIGHTS_MAX, FlightId, FlushMark, Records, Retries, RetryPolicy, Step};
use blkrep_io::{Host, Op, Region, Slice};
use blkrep_store::journal::Batch;
use blkrep_types::limits::REQUEST_BYTES_MAX;
use blkrep_types::{ByteLen, DataState, Errno, Nanos, Record, RecordKind, WriteName, planted};
use blkrep_wire::{Applying as ApplyingWord, DigestReply, FarewellCode};
use std::collections::VecDeque;

/// Digests and reads at once: each holds a buffer of the largest request, a read until its answer is on its
/// way.
const DIGESTS_AT_ONCE: usize = 4;

/// A flush of a base is tried so often at least, in a row, before its volume counts as different.
const FLUSH_FAILURES_MIN: u32 = 3;

/// True if a record of this kind asks for something and changes nothing.
const fn asks(kind: RecordKind) -> bool {
    matches!(kind, RecordKind::Compare | RecordKind::Read)
}

/// A batch as the state machine sees it.
struct View<'a>(&'a Batch);

impl Records for View<'_> {
    fn number(&self) -> u64 {
        self.0.info().number
    }
    fn count(&self) -> usize {
        self.0.records().len()
    }
    fn record(&self, index: usize) -> Record {
        self.0.records()[index].record
    }
}

#[derive(Debug)]
struct FlushRun {
    mark: FlushMark,
    pending: usize,
    failed: Vec<(usize, Errno)>,
}

/// What is under way on the bases.
#[derive(Debug)]
pub(super) struct Applying {
    /// Writes that the bases did not take.
    pub(super) retries: Retries,
    flush: Option<FlushRun>,
    /// A flush has succeeded: batches before this one can be freed.
    free_from: u64,
    failures: u32,
    rewinding: bool,
    retry_at: Option<Nanos>,
    checkpoint_at: Option<Nanos>,
    digests: VecDeque<FlightId>,
    digest_slices: Vec<Slice>,
    digest_of: Vec<Option<Slice>>,
    digests_flying: usize,
    volumes: usize,
    replay_through: Option<WriteName>,
}

impl Applying {
    pub(super) fn new(volumes: usize, replay_through: WriteName, policy: RetryPolicy) -> Self {
        Self {
            retries: Retries::new(policy),
            flush: None,
            free_from: 0,
            failures: 0,
            rewinding: false,
            retry_at: None,
            checkpoint_at: None,
            digests: VecDeque::new(),
            digest_slices: Vec::new(),
            digest_of: vec![None; FLIGHTS_MAX],
            digests_flying: 0,
            volumes,
            replay_through: Some(replay_through),
        }
    }

    /// A new journal begins after `last`.
    pub(super) fn restart(&mut self, last: WriteName) {
        assert!(
            self.flush.is_none(),
            "a journal begins anew when all is quiet"
        );
        *self = Self::new(self.volumes, last, self.retries.policy());
        self.replay_through = None;
    }

    /// True while a flush or what follows from its failure is under way.
    pub(super) const fn is_busy(&self) -> bool {
        self.flush.is_some() || self.rewinding
    }

    /// What was applied is not applied again from the checkpoint.
    pub(super) const fn give_up_rewind(&mut self) {
        self.rewinding = false;
    }

    /// When it wants a turn at the latest.
    pub(super) fn due(&self) -> Option<Nanos> {
        [self.retry_at, self.checkpoint_at, self.retries.due()]
            .into_iter()
            .flatten()
            .min()
    }
}

impl<H: Host> TargetWorker<H> {
    pub(super) fn applying_word(&self) -> ApplyingWord {
        let noting = self.notes.due().is_some();
        let waits = self.applying.retry_at.is_some() || self.persist_at.is_some() || noting;
        if waits || self.applying.retries.trouble().is_some() {
            ApplyingWord::Retrying
        } else if !self.facts.holds_back() {
            ApplyingWord::Running
        } else if self.applier.is_flying() {
            ApplyingWord::PausePending
        } else {
            ApplyingWord::Paused
        }
    }

    /// Carries out steps until there is nothing to do but wait.
    pub(super) fn pump_apply(&mut self, io: &mut H::Io) {
        self.read_digests(io);
        if matches!(self.mode, Mode::Resetting | Mode::Stopping | Mode::Done) {
            return;
        }
        self.retry_writes(io);
        if self.applying.retries.holds_back() || !self.may_step() {
            return;
        }
        if self.adopts() {
            return;
        }
        loop {
            let cursor = self.applier.cursor().batch;
            self.journaling.trim(cursor);
            let hand = self
                .journaling
                .cached(cursor)
                .map(|cached| View(&cached.batch));
            let step = self.applier.step(&mut self.facts, hand.as_ref());
            let go_on = match step {
                Step::Persist => self.persist(),
                Step::Load(number) => self.load(io, number),
                Step::Write(flight) => self.write_base(io, flight),
                Step::Zero(flight, free) => self.zero_base(io, flight, free),
                Step::Digest(flight) => {
                    self.applying.digests.push_back(flight);
                    self.read_digests(io);
                    true
                }
                Step::CannotTell(record) => {
                    match record.kind {
                        RecordKind::Read => self.tell_content(&record, None),
                        _ => self.tell_digest(&record, None),
                    }
                    true
                }
                Step::Flush => {
                    self.begin_flush(io);
                    false
                }
                Step::Note(index) => self.reach_note(index),
                Step::Wait => false,
            };
            if !go_on {
                break;
            }
        }
        self.note_replay();
        self.plan_checkpoint(io);
    }

    /// False while a failure is waited out.
    fn may_step(&mut self) -> bool {
        if self.applying.retry_at.is_some() {
            return false;
        }
        if self.applying.rewinding {
            // A head under way moves the checkpoint that it is applied again from.
            if self.applier.is_flying() || self.journaling.head_under_way() {
                return false;
            }
            self.applying.rewinding = false;
            self.applier
                .rewind(self.journal.state.before, self.journal.state.number);
        }
        true
    }

    fn note_replay(&mut self) {
        let Some(through) = self.applying.replay_through else {
            return;
        };
        if self.applier.is_idle() || self.applier.applied() == through {
            self.applying.replay_through = None;
            if !self.journal.live.is_empty() {
                self.event(&TargetEvent::Replayed {
                    through: self.applier.applied(),
                });
            }
        }
    }

    pub(super) fn write_base(&mut self, io: &mut H::Io, flight: FlightId) -> bool {
        let flying = self.applier.flight(flight);
        let (number, index, record) = (flying.batch, flying.index, flying.record);
        let extent = record.extent.expect("checked when it was received");
        let cached = self
            .journaling
            .cached(number)
            .expect("the batch is in hand");
        let slice = cached.batch.data(index);
        self.journaling.fly(number);
        let op = Op::Write {
            file: self.files.bases[record.volume.as_usize()].file.clone(),
            offset: extent.offset().get(),
            slice,
            durable: false,
        };
        self.submit(io, token(Kind::Base, flight.as_usize() as u64), op);
        true
    }

    pub(super) fn zero_base(&mut self, io: &mut H::Io, flight: FlightId, free: bool) -> bool {
        let record = self.applier.flight(flight).record;
        let extent = record.extent.expect("checked when it was received");
        let op = Op::Zero {
            file: self.files.bases[record.volume.as_usize()].file.clone(),
            offset: extent.offset().get(),
            len: extent.len().get(),
            free,
        };
        self.submit(io, token(Kind::Base, flight.as_usize() as u64), op);
        true
    }

    fn read_digests(&mut self, io: &mut H::Io) {
        let said = self.session.as_mut().map(Session::take_said);
        self.applying
            .digest_slices
            .extend(said.into_iter().flatten());
        let untaken = self.session.as_ref().map_or(0, Session::contents);
        while self.applying.digests_flying + untaken < DIGESTS_AT_ONCE {
            let Some(flight) = self.applying.digests.pop_front() else {
                return;
            };
            let record = self.applier.flight(flight).record;
            let extent = record.extent.expect("checked when it was received");
            let whole = self.applying.digest_slices.pop().unwrap_or_else(|| {
                Region::heap(ByteLen::new(REQUEST_BYTES_MAX).as_usize()).whole()
            });
            let slice = whole.part(0..extent.len().as_usize());
            self.applying.digest_of[flight.as_usize()] = Some(whole);
            self.applying.digests_flying += 1;
            let op = Op::Read {
                file: self.files.bases[record.volume.as_usize()].file.clone(),
                offset: extent.offset().get(),
                slice,
            };
            self.submit(io, token(Kind::Base, flight.as_usize() as u64), op);
        }
    }

    fn tell_digest(&mut self, record: &Record, digest: Option<[u8; 32]>) {
        let Some(session) = &mut self.session else {
            return;
        };
        session.digest(DigestReply {
            incarnation: record.incarnation,
            seq: record.seq,
            volume: record.volume,
            extent: record.extent.expect("checked when it was received"),
            digest,
        });
    }

    /// What a read found goes to the source; its memory comes back when that is said.
    fn read_ended(&mut self, index: usize, record: &Record, ok: bool) {
        let whole = self.applying.digest_of[index]
            .take()
            .expect("it was read into one");
        self.applying.digests_flying -= 1;
        if ok {
            self.tell_content(record, Some(whole));
        } else {
            self.applying.digest_slices.push(whole);
            self.tell_content(record, None);
        }
    }

    fn tell_content(&mut self, record: &Record, whole: Option<Slice>) {
        let whole = match &mut self.session {
            Some(session) => session.content(*record, whole),
            None => whole,
        };
        self.applying.digest_slices.extend(whole);
    }

    pub(super) fn base_done(&mut self, rest: u64, result: Result<u32, Errno>) {
        let index = usize::try_from(rest).expect("64-bit platform");
        let flight = FlightId::new(index).expect("one of our tokens");
        let flying = self.applier.flight(flight);
        let (number, record) = (flying.batch, flying.record);
        match record.kind {
            RecordKind::Compare => {
                let whole = self.applying.digest_of[index]
                    .take()
                    .expect("it was read into one");
                self.applying.digests_flying -= 1;
                let len = record.extent.map_or(0, |extent| extent.len().as_usize());
                let digest = result.is_ok().then(|| {
                    whole
                        .part(0..len)
                        .with(|bytes| *blake3::hash(bytes).as_bytes())
                });
                self.applying.digest_slices.push(whole);
                self.tell_digest(&record, digest);
            }
            RecordKind::Read => self.read_ended(index, &record, result.is_ok()),
            RecordKind::Data { .. } => self.journaling.land(number),
            RecordKind::Zero { .. }
            | RecordKind::Void
            | RecordKind::MirrorBegin(_)
            | RecordKind::MirrorEnd
            | RecordKind::Note { .. } => {}
        }
        match result {
            Err(errno) if !asks(record.kind) => self.write_failed(flight, errno),
            _ => {
                self.applier
                    .completed(&mut self.facts, flight, result.is_ok());
                self.write_ended(flight);
            }
        }
    }

    /// The source has to hear of what was lost, and it hears that at a handshake.
    pub(super) fn base_failed(&mut self, volume: usize, errno: Errno) {
        let path = self.files.replica().volumes[volume]
            .path
            .display()
            .to_string();
        self.event(&TargetEvent::WriteFailed {
            path: path.clone(),
            errno,
        });
        if let Some(session) = &mut self.session {
            session.end(
                FarewellCode::Failed,
                format!("a write to {path} failed: {errno}"),
            );
        }
    }

    /// Sees to it that what is applied is flushed and freed before long.
    fn plan_checkpoint(&mut self, io: &mut H::Io) {
        let wanted = self.is_checkpoint_due() || self.journal.has_unknown();
        if !wanted {
            self.applying.checkpoint_at = None;
        } else if self.applying.checkpoint_at.is_none() {
            self.applying.checkpoint_at = Some(self.now.after(self.settings.checkpoint_interval));
        }
        let freeable = self.applier.needed_from() > self.journal.state.number;
        if freeable && self.journal.space.used() > self.journal.space.capacity() / 2 {
            self.begin_flush(io);
        }
    }

    /// True if something was applied that is not flushed and freed.
    fn is_checkpoint_due(&self) -> bool {
        self.applier.needs_flush() || self.applier.needed_from() > self.journal.state.number
    }

    pub(super) fn checkpoint_if_due(&mut self, io: &mut H::Io) {
        if self.applying.retry_at.is_some_and(|at| self.now >= at) {
            self.applying.retry_at = None;
        }
        // A flush that has succeeded frees what it covered as soon as the facts are on disk.
        let freeable = self.applying.free_from > self.journal.state.number;
        if freeable && (planted!(NotOkTooLate) || self.persist()) {
            let from = self.applying.free_from;
            self.begin_head(io, from);
        }
        if self.applying.checkpoint_at.is_some_and(|at| self.now >= at) {
            self.applying.checkpoint_at = None;
            if self.is_checkpoint_due() {
                self.begin_flush(io);
            } else {
                self.note_durable(io);
            }
        }
    }

    /// Flushes every base, unless that is under way.
    pub(super) fn begin_flush(&mut self, io: &mut H::Io) {
        let waiting = self.applying.retry_at.is_some();
        let busy = self.applying.is_busy() || self.notes.is_running();
        if busy || self.journaling.head_under_way() || waiting {
            return;
        }
        let mark = self.applier.flush_begins();
        if planted!(FreeJournalBeforeFlush) {
            self.applying.free_from = mark.needed_from;
        }
        self.applying.flush = Some(FlushRun {
            mark,
            pending: self.files.bases.len(),
            failed: Vec::new(),
        });
        for volume in 0..self.files.bases.len() {
            let file = self.files.bases[volume].file.clone();
            self.submit(io, token(Kind::Flush, volume as u64), Op::Sync { file });
        }
    }

    pub(super) fn flush_done(&mut self, rest: u64, result: Result<u32, Errno>) {
        let volume = usize::try_from(rest).expect("64-bit platform");
        let run = self.applying.flush.as_mut().expect("a flush was begun");
        run.pending -= 1;
        if let Err(errno) = result {
            run.failed.push((volume, errno));
        }
        if run.pending > 0 {
            return;
        }
        let run = self.applying.flush.take().expect("just seen");
        if run.failed.is_empty() || planted!(BaseFlushErrorIgnored) {
            self.applying.failures = 0;
            self.applier.flushed(run.mark);
            self.applying.free_from = run.mark.needed_from;
        } else {
            self.flush_failed(&run);
        }
    }

    /// True if the flush has failed as often as a write may, and at a promotion in any case: that has to come
    /// to an end.
    fn flush_is_given_up(&self) -> bool {
        let limit = self.applying.retries.policy().limit;
        let promoting = matches!(self.mode, Mode::Promoting(_)).then_some(0);
        let limit = promoting
            .or(limit)
            .map(|limit| limit.max(FLUSH_FAILURES_MIN - 1));
        limit.is_some_and(|limit| self.applying.failures > limit)
    }

    /// After a failed flush the kernel has forgotten what was not written, though it may read back. What is
    /// still in the journal is applied again, as often as the policy says; then, or if a mirror counts on what reads back, the
    /// volume counts as different.
    fn flush_failed(&mut self, run: &FlushRun) {
        self.applying.failures += 1;
        for (volume, errno) in &run.failed {
            let path = self.files.replica().volumes[*volume]
                .path
                .display()
                .to_string();
            self.event(&TargetEvent::FlushFailed {
                path,
                errno: *errno,
            });
        }
        self.applying.retry_at = Some(self.now.after(self.applying.retries.policy().delay));
        let given_up = self.flush_is_given_up();
        // While a mirror compares, the base has what was found equal, and no journal has that.
        if given_up || self.facts.state() != DataState::Ok {
            for (volume, errno) in &run.failed {
                let index = blkrep_types::VolumeIndex::new(u16::try_from(*volume).expect("few"));
                self.facts.flush_lost(index);
                self.base_failed(*volume, *errno);
            }
        }
        if !given_up {
            self.applying.rewinding = !planted!(BaseFlushRetriedOnly);
            return;
        }
        self.applying.failures = 0;
        self.applier.flushed(run.mark);
        self.applying.free_from = run.mark.needed_from;
    }
}
