//! The worker's side of the journal: batches filled, written, kept and read back.
//!
//! One batch is filled while the one before it is written; only when that is durable is it
//! acknowledged and the next one begun. Durable batches stay in memory while there are buffers, so
//! that a target that keeps up never reads its journal.

use super::control::{TargetCommandError, TargetEvent};
use super::worker::{Kind, Mode, TargetWorker, token};
use blkrep_io::{Host, Io, Op, Region, Slice};
use blkrep_store::journal::{
    Batch, BatchPlan, BatchRecord, JOURNAL_BLOCK_BYTES, JournalState, Placed,
};
use blkrep_types::{ByteLen, Errno, Nanos, Record, planted};
use blkrep_wire::{FarewellCode, Received};

pub(super) type SocketOf<H> = <<H as Host>::Io as Io>::Socket;

/// Batch buffers of a worker: one being filled, one being written, the rest hold batches that are
/// being applied.
const BUFFERS: usize = 6;

/// Buffers that receiving leaves to applying: without one it could never read a batch back.
const BUFFERS_TO_APPLY: usize = 2;

/// The write of a head to the place that does not count.
const COPIED: u64 = 1;

/// A durable batch in memory.
#[derive(Debug)]
pub(super) struct Cached {
    pub(super) batch: Batch,
    /// Operations that read its bytes.
    pub(super) flying: usize,
}

/// Buffers and batches.
#[derive(Debug)]
pub(super) struct Journaling {
    batch_bytes: usize,
    free: Vec<Slice>,
    lists: Vec<Vec<BatchRecord>>,
    made: usize,
    plan: Option<BatchPlan>,
    writing: Option<Batch>,
    cache: Vec<Cached>,
    loading: Option<(u64, Slice)>,
    head: Option<JournalState>,
    /// A durable head is being written to the other place too.
    head_copying: bool,
    head_block: Slice,
    /// Not before then a head is written again after one failed.
    head_retry_at: Option<Nanos>,
    retry_at: Option<Nanos>,
    full: bool,
}

impl Journaling {
    pub(super) fn new(batch_bytes: usize) -> Self {
        let block = ByteLen::new(JOURNAL_BLOCK_BYTES).as_usize();
        Self {
            batch_bytes,
            free: Vec::new(),
            lists: Vec::new(),
            made: 0,
            plan: None,
            writing: None,
            cache: Vec::new(),
            loading: None,
            head: None,
            head_copying: false,
            head_block: Region::heap(block).whole(),
            head_retry_at: None,
            retry_at: None,
            full: false,
        }
    }

    /// True if nothing waits to be written and nothing is being written or read.
    pub(super) fn is_drained(&self) -> bool {
        self.plan.as_ref().is_none_or(BatchPlan::is_empty)
            && self.writing.is_none()
            && !self.head_under_way()
            && self.loading.is_none()
    }

    /// True while the journal cannot be written.
    pub(super) const fn failed(&self) -> bool {
        self.retry_at.is_some()
    }

    pub(super) const fn retry_at(&self) -> Option<Nanos> {
        self.retry_at
    }

    pub(super) const fn head_retry_at(&self) -> Option<Nanos> {
        self.head_retry_at
    }

    pub(super) const fn head_under_way(&self) -> bool {
        self.head.is_some() || self.head_copying
    }

    /// The batch `number`, if it is in memory.
    pub(super) fn cached(&self, number: u64) -> Option<&Cached> {
        self.cache
            .iter()
            .find(|cached| cached.batch.info().number == number)
    }

    pub(super) fn fly(&mut self, number: u64) {
        self.cached_mut(number).flying += 1;
    }

    pub(super) fn land(&mut self, number: u64) {
        self.cached_mut(number).flying -= 1;
    }

    fn cached_mut(&mut self, number: u64) -> &mut Cached {
        let found = self
            .cache
            .iter_mut()
            .find(|cached| cached.batch.info().number == number);
        found.expect("a batch stays while its bytes are used")
    }

    fn recycle(&mut self, (buffer, list): (Slice, Vec<BatchRecord>)) {
        self.free.push(buffer);
        self.lists.push(list);
    }

    /// Forgets batches that the cursor has passed.
    pub(super) fn trim(&mut self, cursor: u64) {
        while let Some(at) = self
            .cache
            .iter()
            .position(|cached| cached.flying == 0 && cached.batch.info().number < cursor)
        {
            let cached = self.cache.swap_remove(at);
            self.recycle(cached.batch.recycle());
        }
    }

    /// Forgets every batch; nothing may be using one.
    pub(super) fn forget(&mut self) {
        self.trim(u64::MAX);
        assert!(self.cache.is_empty(), "nothing is under way");
        if let Some(plan) = self.plan.take() {
            self.recycle(plan.recycle());
        }
    }

    /// A buffer, if need be of the batch that will be wanted last.
    fn buffer(&mut self, wanted: u64, leave: usize) -> Option<Slice> {
        if self.free.len() + (BUFFERS - self.made) > leave {
            if let Some(buffer) = self.free.pop() {
                return Some(buffer);
            }
            self.made += 1;
            // Untouched pages cost nothing, so the size is only a bound.
            return match Region::anonymous(self.batch_bytes) {
                Ok(region) => Some(region.part_of(self.batch_bytes)),
                Err(_) => {
                    self.made -= 1;
                    None
                }
            };
        }
        let unused = self
            .cache
            .iter()
            .enumerate()
            .filter(|(_, cached)| cached.flying == 0 && cached.batch.info().number != wanted);
        let (last, _) = unused.max_by_key(|(_, cached)| cached.batch.info().number)?;
        let cached = self.cache.swap_remove(last);
        self.recycle(cached.batch.recycle());
        if self.free.len() + (BUFFERS - self.made) > leave {
            self.free.pop()
        } else {
            None
        }
    }

    /// True if `record` can go into the batch that is being filled.
    pub(super) fn can_take(&mut self, record: &Record, cursor: u64) -> bool {
        if self.plan.is_none() {
            let Some(buffer) = self.buffer(cursor, BUFFERS_TO_APPLY) else {
                return false;
            };
            self.plan = Some(BatchPlan::new(buffer, self.lists.pop().unwrap_or_default()));
        }
        self.plan.as_ref().is_some_and(|plan| plan.fits(record))
    }

    /// Puts a record into the batch that is being filled; [`Journaling::can_take`] said it fits.
    pub(super) fn take(&mut self, received: &Received) {
        let plan = self.plan.as_mut().expect("asked before");
        let (record, crc) = (&received.record, received.data_crc);
        let taken = match &received.bytes {
            Some(bytes) => bytes.with(|bytes| plan.push(record, bytes, crc)),
            None => plan.push(record, &[], crc),
        };
        assert!(taken, "asked before");
    }

    fn drop_plan(&mut self) {
        if let Some(plan) = self.plan.take() {
            self.recycle(plan.recycle());
        }
    }
}

/// The part of a region that was asked for; the rest is rounding.
trait PartOf {
    fn part_of(self, len: usize) -> Slice;
}

impl PartOf for std::sync::Arc<Region> {
    fn part_of(self, len: usize) -> Slice {
        self.slice(0..len)
    }
}

impl<H: Host> TargetWorker<H> {
    /// Writes the next batch if there is one and room for it.
    pub(super) fn pump_journal(&mut self, io: &mut H::Io) {
        if self.journaling.retry_at.is_some_and(|at| self.now < at) {
            return;
        }
        self.journaling.retry_at = None;
        if self.journaling.writing.is_some() {
            return;
        }
        let Some(plan) = self.journaling.plan.take_if(|plan| !plan.is_empty()) else {
            return;
        };
        let Some(position) = self.journal.space.place(plan.bytes()) else {
            self.journaling.plan = Some(plan);
            self.make_room(io);
            return;
        };
        self.journaling.full = false;
        let placed = Placed {
            journal: self.journal.state.id,
            number: self.journal.next,
            position,
            generation: self.facts.history.current(),
        };
        let batch = plan.seal(&placed);
        let op = Op::Write {
            file: self.files.journal.clone(),
            offset: self.journal.space.file_offset(position),
            slice: batch.slice(),
            durable: !planted!(AckBeforeSync),
        };
        self.journaling.writing = Some(batch);
        self.submit(io, token(Kind::Batch, 0), op);
    }

    /// The journal is full: frees what is applied, or gives up a hold; else the source waits.
    fn make_room(&mut self, io: &mut H::Io) {
        let freeable = self.applier.needed_from() > self.journal.state.number;
        let promoting = matches!(self.mode, Mode::Promoting(_));
        let stuck = self.journaling.head_retry_at.is_some() || self.applier.is_idle() && !freeable;
        if matches!(self.mode, Mode::Stopping) || promoting && stuck {
            // Nobody was told that it is durable; a hold is worth more.
            self.give_up_unplaced();
            return;
        }
        if !self.journaling.full {
            self.journaling.full = true;
            self.event(&TargetEvent::JournalFull);
        }
        if self.applying.is_busy() || self.journaling.head_under_way() {
            return;
        }
        if freeable {
            self.begin_flush(io);
        } else if promoting {
            // Applying goes on, and then there is room.
        } else if self.applier.give_up_hold(&mut self.facts) {
            self.event(&TargetEvent::HoldGivenUp);
            self.pump_apply(io);
        }
    }

    /// What waits for room in the journal is forgotten: its source sends it again.
    pub(super) fn give_up_unplaced(&mut self) {
        let plan = self.journaling.plan.as_ref();
        let waits = plan.is_some_and(|plan| self.journal.space.place(plan.bytes()).is_none());
        if waits && self.journaling.writing.is_none() {
            self.journaling.drop_plan();
            self.incoming.restart(self.journal.last);
        }
    }

    pub(super) fn batch_done(&mut self, result: Result<u32, Errno>) {
        let batch = self.journaling.writing.take().expect("a batch was written");
        let info = *batch.info();
        match result {
            Ok(_) => {
                self.journal.space.take(info.position, info.bytes);
                self.journal.live.push_back(info);
                self.journal.next = info.number + 1;
                self.journal.last = info.last;
                self.applier.durable(info.number);
                self.journaling.cache.push(Cached { batch, flying: 0 });
                if self.persist_at.is_none() {
                    self.trouble = None;
                }
                self.ack();
            }
            Err(errno) => {
                self.journaling.recycle(batch.recycle());
                self.journal_failed(errno);
            }
        }
    }

    /// What was not acknowledged is forgotten; the source sends it again when the journal works.
    fn journal_failed(&mut self, errno: Errno) {
        self.event(&TargetEvent::JournalFailed { errno });
        self.journaling.drop_plan();
        self.incoming.restart(self.journal.last);
        self.journaling.retry_at = Some(self.now.after(self.applying.retries.policy().delay));
        let text = format!("the target's journal cannot be written: {errno}");
        self.trouble = Some(text.clone());
        if let Some(session) = &mut self.session {
            session.end(FarewellCode::Failed, text);
        }
    }

    /// Writes a head that frees every batch before `number`, once the facts are on disk.
    pub(super) fn begin_head(&mut self, io: &mut H::Io, number: u64) {
        if number > self.journal.state.number && !matches!(self.mode, Mode::Stopping) {
            self.write_head(io, number);
        }
    }

    /// Writes a head that frees nothing and knows of every batch that is durable.
    pub(super) fn note_durable(&mut self, io: &mut H::Io) {
        if self.journal.has_unknown() {
            let number = self.journal.state.number;
            self.write_head(io, number);
        }
    }

    /// Once a head that failed may be written again: whoever frees something asks again by itself, but
    /// nobody would for one that only says what is durable.
    pub(super) fn retry_head(&mut self, io: &mut H::Io) {
        let due = self.journaling.head_retry_at;
        if due.is_none_or(|at| self.now < at) {
            return;
        }
        self.journaling.head_retry_at = None;
        if !matches!(self.mode, Mode::Stopping | Mode::Done) {
            self.note_durable(io);
        }
    }

    fn write_head(&mut self, io: &mut H::Io, number: u64) {
        let early = self
            .journaling
            .head_retry_at
            .is_some_and(|at| self.now < at);
        if self.journaling.head_under_way() || early {
            return;
        }
        self.journaling.head_retry_at = None;
        let state = self.journal.head_from(number);
        self.journaling
            .head_block
            .with_mut(|block| state.encode(block));
        self.journaling.head = Some(state);
        let op = Op::Write {
            file: self.files.journal.clone(),
            offset: JournalState::copy_offset(state.counter),
            slice: self.journaling.head_block.clone(),
            durable: true,
        };
        self.submit(io, token(Kind::Head, 0), op);
    }

    pub(super) fn head_done(&mut self, io: &mut H::Io, copy: u64, result: Result<u32, Errno>) {
        if copy == COPIED {
            // What is durable already is not undone by a failure here.
            self.journaling.head_copying = false;
            return;
        }
        let state = self.journaling.head.take().expect("a head was written");
        match result {
            Ok(_) => {
                self.journal.freed(state);
                self.ack();
                self.copy_head(io, &state);
            }
            // Nothing is lost: the same copy is written again.
            Err(errno) => {
                self.journaling.head_retry_at =
                    Some(self.now.after(self.applying.retries.policy().delay));
                self.event(&TargetEvent::JournalFailed { errno });
            }
        }
    }

    /// The other place says the same from now on: if this copy rots, no older head comes back, whose
    /// batches may have been written over.
    fn copy_head(&mut self, io: &mut H::Io, state: &JournalState) {
        self.journaling.head_copying = true;
        let op = Op::Write {
            file: self.files.journal.clone(),
            offset: JournalState::copy_offset(state.counter + 1),
            slice: self.journaling.head_block.clone(),
            durable: false,
        };
        self.submit(io, token(Kind::Head, COPIED), op);
    }

    /// Brings a batch into memory. True if it is there already.
    pub(super) fn load(&mut self, io: &mut H::Io, number: u64) -> bool {
        if self.journaling.cached(number).is_some() {
            return true;
        }
        if self.journaling.loading.is_some() {
            return false;
        }
        let info = *self
            .journal
            .find(number)
            .expect("a batch that is needed is live");
        let Some(buffer) = self.journaling.buffer(number, 0) else {
            return false;
        };
        let slice = buffer.part(0..ByteLen::new(info.bytes).as_usize());
        self.journaling.loading = Some((number, buffer));
        let op = Op::Read {
            file: self.files.journal.clone(),
            offset: self.journal.space.file_offset(info.position),
            slice,
        };
        self.submit(io, token(Kind::Load, number), op);
        false
    }

    pub(super) fn load_done(&mut self, number: u64, result: Result<u32, Errno>) {
        let (_, buffer) = self.journaling.loading.take().expect("a batch was read");
        let position = self.journal.find(number).map(|info| info.position);
        let list = self.journaling.lists.pop().unwrap_or_default();
        let read = match (result, position) {
            (Ok(_), Some(position)) => {
                Batch::read(buffer.clone(), list, &self.journal.state.id, position)
                    .map_err(|error| error.to_string())
            }
            (Err(errno), _) => Err(errno.to_string()),
            (_, None) => Err("it was freed".to_owned()),
        };
        let sound = read.and_then(|batch| {
            if batch.damaged() {
                return Err("the bytes of a batch are corrupt".to_owned());
            }
            Ok(batch)
        });
        match sound {
            Ok(batch) => self.journaling.cache.push(Cached { batch, flying: 0 }),
            Err(why) => {
                self.journaling.free.push(buffer);
                self.journal_unreadable(&why);
            }
        }
    }

    /// What was acknowledged cannot be applied: everything counts as different, and the journal
    /// begins anew behind it.
    fn journal_unreadable(&mut self, why: &str) {
        let what = format!("{why}; everything the replica holds is compared");
        self.event(&TargetEvent::JournalCorrupt { what: what.clone() });
        self.facts.lost_everything();
        self.journaling.drop_plan();
        if let Some(session) = &mut self.session {
            session.end(
                FarewellCode::Failed,
                format!("the target's journal is corrupt: {what}"),
            );
        }
        if !matches!(self.mode, Mode::Stopping | Mode::Done) {
            let why = "the journal cannot be read".to_owned();
            self.end_promotion_unfinished(TargetCommandError::Failed(why));
            self.mode = Mode::Resetting;
        }
    }
}
