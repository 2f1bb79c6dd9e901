//! The target's journal alone: batches, heads, laps.
//!
//! Owns the histories of a small circular area, written as the product writes it: one durable batch
//! at a time, a durable head when the base was flushed. What a scan finds after a crash must be
//! every batch that was acknowledged and is not freed, perhaps the one in flight, whole and in order,
//! and nothing else; so if the journal is gone on with from there and crashes again. A sector that
//! rots is seen, but for the last batch of all before a head knows of it (`docs/format/journal.md`).

use super::counts::Counts;
use super::flaw::Flaw;
use super::history::histories;
use super::medium::{Medium, SECTOR};
use blkrep_io::{Region, Slice};
use blkrep_store::journal::{
    BATCH_BYTES_MIN, Batch, BatchPlan, BatchRecord, Damage, JOURNAL_AREA_OFFSET,
    JOURNAL_BLOCK_BYTES, JournalState, Placed, Scan, ScanEnd, Space,
};
use blkrep_types::{
    ByteLen, ByteOffset, Extent, Generation, Incarnation, Record, RecordKind, Seq, VolumeIndex,
    WriteName,
};

const ID: [u8; 16] = [3; 16];

/// Two batches and a half: a history of three laps.
const CAPACITY: u64 = 5 * JOURNAL_BLOCK_BYTES;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Update {
    /// A batch of one sector.
    Small,
    /// A batch of a block, a sector and a record without data.
    Mixed,
    /// Everything is applied and flushed: the head frees it.
    Free,
    /// The head is to know of the last batch.
    Note,
    /// A batch is written while the head is.
    Both,
}

const ALPHABET: [Update; 5] = [
    Update::Small,
    Update::Mixed,
    Update::Free,
    Update::Note,
    Update::Both,
];

/// A batch as it was written or read.
#[derive(Clone)]
struct Written {
    number: u64,
    position: u64,
    end: u64,
    last: WriteName,
    /// Each record with its data.
    records: Vec<(BatchRecord, Vec<u8>)>,
    bytes: Vec<u8>,
}

impl PartialEq for Written {
    /// Nobody reads the gaps between records.
    fn eq(&self, other: &Self) -> bool {
        let place = |batch: &Self| (batch.number, batch.position, batch.end, batch.last);
        place(self) == place(other) && self.records == other.records
    }
}

impl std::fmt::Debug for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            number,
            position,
            end,
            last,
            ..
        } = self;
        write!(
            f,
            "batch {number} at {position}..{end}, up to {}",
            last.seq.get()
        )
    }
}

/// What a start reads.
#[derive(Debug)]
struct Found {
    state: JournalState,
    end: ScanEnd,
    good: Vec<Written>,
    lost: usize,
}

fn name(seq: u64) -> WriteName {
    WriteName {
        generation: Generation::from_bytes([1; 16]),
        incarnation: Incarnation::new(1),
        seq: Seq::new(seq),
    }
}

fn record(seq: u64, len: u64) -> Record {
    let extent = Extent::new(ByteOffset::new(seq * 4096), ByteLen::new(len.max(512)));
    Record {
        incarnation: Incarnation::new(1),
        seq: Seq::new(seq),
        kind: if len == 0 {
            RecordKind::Void
        } else {
            RecordKind::Data { mirror: false }
        },
        volume: VolumeIndex::new(0),
        extent: extent.ok().filter(|_| len > 0),
    }
}

fn as_usize(number: u64) -> usize {
    usize::try_from(number).expect("64-bit platform")
}

fn written(batch: &Batch) -> Written {
    Written {
        number: batch.info().number,
        position: batch.info().position,
        end: batch.info().end(),
        last: batch.info().last,
        records: batch
            .records()
            .iter()
            .enumerate()
            .map(|(index, record)| (*record, batch.data(index).with(<[u8]>::to_vec)))
            .collect(),
        bytes: batch.slice().with(<[u8]>::to_vec),
    }
}

/// Memory for one batch, used again.
#[derive(Debug, Clone)]
struct Memory {
    write: Slice,
    read: Slice,
}

impl Memory {
    fn new() -> Self {
        let slice = || Region::heap(as_usize(BATCH_BYTES_MIN)).whole();
        Self {
            write: slice(),
            read: slice(),
        }
    }

    /// What a start reads of a file.
    fn scan(&self, file: &[u8]) -> Result<Found, String> {
        let block = as_usize(JOURNAL_BLOCK_BYTES);
        let chosen = JournalState::choose(&file[..block], &file[block..2 * block]);
        let (state, _) = chosen.map_err(|error| error.to_string())?;
        let (mut good, mut lost) = (Vec::new(), 0);
        let mut read = |offset: u64, into: &mut [u8]| {
            let at = as_usize(offset);
            into.copy_from_slice(&file[at..at + into.len()]);
            Ok(())
        };
        let mut take = |damage: Damage<'_>| match damage {
            Damage::Good(batch) => good.push(written(batch)),
            Damage::Lost(_) | Damage::Unknown => lost += 1,
        };
        let end = Scan::new(state, self.read.clone())
            .run(&mut read, &mut take)
            .map_err(|error| error.to_string())?;
        Ok(Found {
            state,
            end,
            good,
            lost,
        })
    }
}

/// A journal and its file.
#[derive(Clone)]
struct Journal {
    flaw: Flaw,
    memory: Memory,
    medium: Medium,
    space: Space,
    state: JournalState,
    /// Durable batches that no durable head has freed.
    live: Vec<Written>,
    /// A batch that a crash interrupted: what is written over it may make it whole.
    interrupted: Option<Written>,
    next: u64,
    seq: u64,
}

impl Journal {
    /// A new journal whose first batch begins `skip` blocks into its lap, over what an earlier lap
    /// left there.
    fn new(memory: &Memory, skip: u64, flaw: Flaw) -> Self {
        let state = JournalState::new(ID, CAPACITY, name(0));
        let mut journal = Self {
            flaw,
            memory: memory.clone(),
            medium: Medium::new(vec![0; as_usize(JournalState::file_bytes(CAPACITY))]),
            space: Space::new(CAPACITY, 0, 0),
            state,
            live: Vec::new(),
            interrupted: None,
            next: 1,
            seq: 0,
        };
        journal.put_head(&state);
        journal.put_head(&JournalState {
            counter: 1,
            ..state
        });
        journal.state.counter = 1;
        journal.medium.flush();
        // Batches of two blocks: the lap is behind after three of them.
        for _ in 0..skip {
            let batch = journal.seal(&[512]).expect("there is room");
            journal.put_batch(&batch);
            journal.finish_batch(&batch);
            let head = journal.freeing();
            journal.put_head(&head);
            journal.finish_head(&head);
        }
        journal
    }

    /// A batch with a record of each of these lengths; `None` if there is no room.
    fn seal(&mut self, lens: &[u64]) -> Option<Written> {
        let mut plan = BatchPlan::new(self.memory.write.clone(), Vec::new());
        for (seq, len) in (self.seq + 1..).zip(lens) {
            let bytes = vec![u8::try_from(seq % 251).expect("a byte"); as_usize(*len)];
            let crc = if bytes.is_empty() {
                0
            } else {
                crc32fast::hash(&bytes)
            };
            assert!(plan.push(&record(seq, *len), &bytes, crc), "it is small");
        }
        let position = self.space.place(plan.bytes())?;
        self.space.take(position, plan.bytes());
        self.seq += u64::try_from(lens.len()).expect("few");
        let batch = plan.seal(&Placed {
            journal: ID,
            number: self.next,
            position,
            generation: name(0).generation,
        });
        Some(written(&batch))
    }

    fn put_batch(&mut self, batch: &Written) {
        let offset = self.space.file_offset(batch.position);
        self.medium.write(offset, &batch.bytes);
    }

    fn finish_batch(&mut self, batch: &Written) {
        let offset = self.space.file_offset(batch.position);
        if self.flaw != Flaw::BatchAnnouncedEarly {
            self.medium.finish_durable(offset, batch.bytes.len());
        }
        self.live.push(batch.clone());
        self.interrupted = None;
        self.next += 1;
    }

    /// The head that frees everything.
    fn freeing(&self) -> JournalState {
        let last = self.live.last();
        JournalState {
            counter: self.state.counter + 1,
            position: last.map_or(self.state.position, |last| last.end),
            number: self.next,
            before: last.map_or(self.state.before, |last| last.last),
            ..self.knowing()
        }
    }

    /// The head that frees nothing and knows of every batch.
    fn knowing(&self) -> JournalState {
        let last = self.live.last().map(|last| (last.number, last.last));
        let (durable, last) = last.unwrap_or((self.state.durable, self.state.last));
        JournalState {
            counter: self.state.counter + 1,
            durable,
            last,
            ..self.state
        }
    }

    fn put_head(&mut self, head: &JournalState) {
        self.put_head_at(head.counter % 2, head);
    }

    fn put_head_at(&mut self, place: u64, head: &JournalState) {
        let mut block = vec![0; as_usize(JOURNAL_BLOCK_BYTES)];
        head.encode(&mut block);
        self.medium.write(JournalState::copy_offset(place), &block);
    }

    fn finish_head(&mut self, head: &JournalState) {
        let offset = JournalState::copy_offset(head.counter);
        self.medium
            .finish_durable(offset, as_usize(JOURNAL_BLOCK_BYTES));
        self.state = *head;
        self.live.retain(|batch| batch.number >= head.number);
        self.space.free(head.position);
        // The other place says the same from now on, without a flush.
        if self.flaw != Flaw::HeadsInTurn {
            self.put_head_at(head.counter + 1, head);
        }
    }

    /// What a start does whose two heads differ: the right one goes to both places, durably.
    fn mend(&mut self, counts: &mut Counts) -> Result<(), String> {
        let heads: Vec<_> = self.medium.view()[..as_usize(JOURNAL_AREA_OFFSET)]
            .chunks(as_usize(JOURNAL_BLOCK_BYTES))
            .map(JournalState::decode)
            .collect();
        for (place, head) in (0..).zip(heads) {
            if head != Ok(self.state) {
                self.put_head_at(place, &self.state.clone());
                self.point(None, None, counts, false)?;
                self.medium.flush();
            }
        }
        Ok(())
    }

    /// Everything a crash now can leave is every acknowledged batch, and perhaps the one in flight.
    fn point(
        &self,
        batch: Option<&Written>,
        head: Option<&JournalState>,
        counts: &mut Counts,
        deep: bool,
    ) -> Result<(), String> {
        let mut left = Vec::new();
        self.medium.losses(counts, |file| {
            let found = self.memory.scan(file)?;
            let head = head
                .filter(|head| **head == found.state)
                .unwrap_or(&self.state);
            let expected: Vec<&Written> = self
                .live
                .iter()
                .filter(|batch| batch.number >= head.number)
                .collect();
            let (good, more) = found.good.split_at(expected.len().min(found.good.len()));
            let legal = match more {
                [] => true,
                [one] => [batch, self.interrupted.as_ref()].contains(&Some(one)),
                _ => false,
            };
            let kept = good.iter().eq(expected.iter().copied());
            if found.lost > 0 || found.state != *head || !kept || !legal {
                return Err(format!(
                    "a crash left {found:?}, expected {head:?} and {expected:?}, perhaps {batch:?}"
                ));
            }
            if deep {
                left.push((file.to_vec(), found));
            }
            Ok(())
        })?;
        for (file, found) in left {
            self.go_on(file, found, batch, counts)?;
        }
        Ok(())
    }

    /// A start over what a crash left, one more batch, and the next crash.
    fn go_on(
        &self,
        file: Vec<u8>,
        found: Found,
        batch: Option<&Written>,
        counts: &mut Counts,
    ) -> Result<(), String> {
        let head = found
            .good
            .last()
            .map_or(found.state.position, |last| last.end);
        let mut journal = Self {
            flaw: self.flaw,
            memory: self.memory.clone(),
            medium: Medium::new(file),
            space: Space::new(CAPACITY, found.state.position, head),
            state: found.state,
            live: found.good,
            interrupted: batch.cloned(),
            next: found.end.number,
            seq: found.end.last.seq.get(),
        };
        journal
            .mend(counts)
            .and_then(|()| journal.append(&[512], None, counts, false))
            .map_err(|why| format!("after a crash: {why}"))?;
        Ok(())
    }

    /// Writes a batch, with a head beside it if there is one; false if there is no room.
    fn append(
        &mut self,
        lens: &[u64],
        head: Option<&JournalState>,
        counts: &mut Counts,
        deep: bool,
    ) -> Result<bool, String> {
        let Some(batch) = self.seal(lens) else {
            return Ok(false);
        };
        if let Some(head) = head {
            self.put_head(head);
        }
        self.put_batch(&batch);
        self.point(Some(&batch), head, counts, deep)?;
        self.finish_batch(&batch);
        self.point(None, head, counts, deep)?;
        if let Some(head) = head {
            self.finish_head(head);
            self.point(None, None, counts, deep)?;
        }
        Ok(true)
    }

    fn write_head(&mut self, head: &JournalState, counts: &mut Counts) -> Result<(), String> {
        self.put_head(head);
        self.point(None, Some(head), counts, true)?;
        self.finish_head(head);
        self.point(None, None, counts, true)
    }

    fn update(&mut self, update: Update, counts: &mut Counts) -> Result<bool, String> {
        match update {
            Update::Small => self.append(&[512], None, counts, true),
            Update::Mixed => self.append(&[4096, 0, 512], None, counts, true),
            Update::Both => {
                let head = self.freeing();
                if self.flaw == Flaw::FreedEarly {
                    self.space.free(head.position);
                }
                self.append(&[512, 512], Some(&head), counts, true)
            }
            Update::Free => self.write_head(&self.freeing(), counts).map(|()| true),
            Update::Note => self.write_head(&self.knowing(), counts).map(|()| true),
        }
    }

    /// Each sector in turn turns into others: either everything acknowledged is read, or damage is
    /// seen, or it was in the last batch of all and no head knows of that.
    fn rot(&self, counts: &mut Counts) -> Result<(), String> {
        let good = self.medium.view();
        let newest = self.next - 1;
        let last = self
            .live
            .last()
            .filter(|last| last.number > self.state.durable);
        let unknown = last.map_or(0..0, |last| {
            let len = u64::try_from(last.bytes.len()).expect("small");
            let offset = self.space.file_offset(last.end - len);
            as_usize(offset)..as_usize(offset + len)
        });
        for at in (0..good.len()).step_by(SECTOR) {
            let mut file = good.clone();
            file[at..at + SECTOR]
                .iter_mut()
                .for_each(|byte| *byte ^= 0xff);
            counts.rotten += 1;
            let found = self.memory.scan(&file)?;
            let whole = found.end.number == newest + 1 && found.lost == 0;
            let excused = unknown.contains(&at) && found.end.number == newest;
            let told = found.end.damaged && found.lost > 0;
            if !(whole || excused || told) {
                return Err(format!(
                    "rot at byte {at} passes for {found:?}, newest is {newest}"
                ));
            }
        }
        Ok(())
    }
}

/// Goes through every history of up to `longest` updates, from the start of a new journal and of
/// ones with an earlier lap behind them.
///
/// # Errors
/// A state that a crash or rot leaves and that must not be.
pub fn explore(longest: usize, flaw: Flaw) -> Result<Counts, String> {
    let mut counts = Counts::default();
    let memory = Memory::new();
    assert!(JournalState::file_bytes(CAPACITY) > JOURNAL_AREA_OFFSET);
    for skip in [0, 2, 3, 4] {
        for history in histories(&ALPHABET, longest) {
            let mut journal = Journal::new(&memory, skip, flaw);
            let mut whole = true;
            for update in &history {
                whole &= journal
                    .update(*update, &mut counts)
                    .map_err(|why| format!("after {skip} batches {history:?}: {why}"))?;
            }
            // Without room it is the history without that letter, which has its own turn.
            counts.histories += u64::from(whole);
            journal
                .rot(&mut counts)
                .map_err(|why| format!("after {skip} batches {history:?}: {why}"))?;
        }
    }
    Ok(counts)
}
