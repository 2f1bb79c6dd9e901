//! The journal's file at rest: finding what is live, and beginning anew.
//!
//! Blocking and rare, as everything in `files` is. The order in which superblock and journal are
//! written makes every crash in between mean one of the two.

use super::control::TargetEvent;
use super::files::{NO_JOURNAL, ReplicaFiles};
use super::policy::{TargetError, TargetSettings};
use blkrep_core::target::Facts;
use blkrep_io::{Host, HostError, Region};
use blkrep_store::FormatError;
use blkrep_store::journal::{
    BATCH_BYTES_DEFAULT, BatchInfo, Damage, JOURNAL_AREA_OFFSET, JOURNAL_BLOCK_BYTES, JournalState,
    Scan, Space,
};
use blkrep_types::{ByteLen, Errno, WriteName};
use std::collections::VecDeque;

/// The journal as the worker runs it.
#[derive(Debug)]
pub(super) struct Journal {
    /// The head as it is on disk.
    pub(super) state: JournalState,
    pub(super) space: Space,
    /// The number of the next batch to write.
    pub(super) next: u64,
    /// Durable batches from the checkpoint on.
    pub(super) live: VecDeque<BatchInfo>,
    /// The last durable record.
    pub(super) last: WriteName,
    /// What is live ends in damage: it is applied, then the journal begins anew.
    pub(super) damaged: bool,
}

impl Journal {
    fn empty(state: JournalState) -> Self {
        Self {
            space: Space::new(state.capacity, state.position, state.position),
            next: state.number,
            live: VecDeque::new(),
            last: state.before,
            damaged: false,
            state,
        }
    }

    /// The batch `number`, if it is live.
    pub(super) fn find(&self, number: u64) -> Option<&BatchInfo> {
        let first = self.live.front()?.number;
        let at = usize::try_from(number.checked_sub(first)?).ok()?;
        self.live.get(at)
    }

    /// The head that frees every batch before `number`.
    pub(super) fn head_from(&self, number: u64) -> JournalState {
        let before = self.live.iter().rev().find(|info| info.number < number);
        let (position, name) = before.map_or((self.state.position, self.state.before), |info| {
            (info.end(), info.last)
        });
        // What is damaged is not counted, and the head may know of it.
        let (durable, last) = if self.next > self.state.durable {
            (self.next - 1, self.last)
        } else {
            (self.state.durable, self.state.last)
        };
        JournalState {
            counter: self.state.counter + 1,
            position,
            number,
            before: name,
            durable,
            last,
            ..self.state
        }
    }

    /// True if batches are durable that the head does not know of: if the last of them rots, it
    /// passes for one that was never acknowledged.
    pub(super) const fn has_unknown(&self) -> bool {
        self.next - 1 > self.state.durable && self.next > self.state.number
    }

    /// The head is on disk.
    pub(super) fn freed(&mut self, state: JournalState) {
        self.state = state;
        while self
            .live
            .front()
            .is_some_and(|info| info.number < state.number)
        {
            self.live.pop_front();
        }
        self.space.free(state.position);
    }
}

/// Opens the journal of an open replica: its live batches were read and checked once.
pub(super) fn open_journal<H: Host>(
    files: &mut ReplicaFiles<H>,
    facts: &mut Facts,
    settings: &TargetSettings,
    notes: &mut Vec<TargetEvent>,
) -> Result<Journal, TargetError> {
    if files.replica.journal == NO_JOURNAL {
        return Ok(begin_journal(files, facts, settings)?);
    }
    let state = match read_state(files) {
        Ok(state) => state,
        Err(error) if error.is_newer() => {
            let path = files.directory().join("journal");
            return Err(TargetError::Newer { path, error });
        }
        Err(error) => {
            let what = format!("{error}; everything the replica holds is compared");
            notes.push(TargetEvent::JournalCorrupt { what });
            facts.lost_everything();
            return Ok(begin_journal(files, facts, settings)?);
        }
    };
    scan(files, facts, settings, state, notes)
}

fn read_state<H: Host>(files: &ReplicaFiles<H>) -> Result<JournalState, FormatError> {
    let block = ByteLen::new(JOURNAL_BLOCK_BYTES).as_usize();
    let mut copies = [vec![0; block], vec![0; block]];
    for (at, copy) in copies.iter_mut().enumerate() {
        let offset = at as u64 * JOURNAL_BLOCK_BYTES;
        if files.host.read_at(&files.journal, offset, copy).is_err() {
            // As good as corrupt: the other copy decides.
            copy.fill(0xff);
        }
    }
    let (state, _) = JournalState::choose(&copies[0], &copies[1])?;
    let what = "journal";
    let len = files
        .host
        .geometry(&files.journal)
        .map_err(|_| FormatError::Short { what })?
        .len;
    if state.id != files.replica.journal {
        return Err(FormatError::Field {
            what,
            field: "journal",
        });
    }
    if JournalState::file_bytes(state.capacity) > len.get() {
        return Err(FormatError::Short { what });
    }
    if copies
        .iter()
        .any(|copy| JournalState::decode(copy) != Ok(state))
    {
        // As good as it was before if it fails: the right copy is not touched.
        let _ = mend_head(files, &state, &copies);
    }
    Ok(state)
}

/// Writes the head to the place that says something else, durably: the next head goes over the copy
/// that is right now.
fn mend_head<H: Host>(
    files: &ReplicaFiles<H>,
    state: &JournalState,
    copies: &[Vec<u8>; 2],
) -> Result<(), HostError> {
    let mut block = vec![0; ByteLen::new(JOURNAL_BLOCK_BYTES).as_usize()];
    state.encode(&mut block);
    for (at, copy) in copies.iter().enumerate() {
        if JournalState::decode(copy) != Ok(*state) {
            let offset = at as u64 * JOURNAL_BLOCK_BYTES;
            files.host.write_at(&files.journal, offset, &block)?;
        }
    }
    files.host.sync(&files.journal)
}

fn scan<H: Host>(
    files: &mut ReplicaFiles<H>,
    facts: &mut Facts,
    settings: &TargetSettings,
    state: JournalState,
    notes: &mut Vec<TargetEvent>,
) -> Result<Journal, TargetError> {
    // As large as any batch of any settings the journal was ever written with.
    let bytes = ByteLen::new(BATCH_BYTES_DEFAULT)
        .as_usize()
        .max(settings.batch_bytes());
    let buffer = Region::anonymous(bytes)
        .map_err(|errno| memory_error(files, errno))?
        .whole();
    let mut live = VecDeque::new();
    let mut lost = 0_u64;
    let mut unknown = false;
    let mut read = |offset: u64, into: &mut [u8]| {
        let read = files.host.read_at(&files.journal, offset, into);
        read.map_err(|error| error.errno)
    };
    let mut found = |damage: Damage<'_>| match damage {
        Damage::Good(batch) => live.push_back(*batch.info()),
        Damage::Lost(batch) => {
            for record in batch.records() {
                if let Some(extent) = record.record.extent {
                    lost += extent.len().get();
                    facts.lost(record.record.volume, extent);
                }
            }
        }
        Damage::Unknown => unknown = true,
    };
    let end = Scan::new(state, buffer)
        .run(&mut read, &mut found)
        .map_err(|error| TargetError::Newer {
            path: files.directory().join("journal"),
            error,
        })?;
    if unknown {
        facts.lost_everything();
    }
    if end.damaged {
        let what = if unknown {
            "extents of acknowledged writes are not known any more: everything is compared".into()
        } else {
            format!(
                "{} of acknowledged writes count as different",
                ByteLen::new(lost)
            )
        };
        notes.push(TargetEvent::JournalCorrupt { what });
        files.persist(facts)?;
    }
    // What is damaged is not live: the applier never sees it.
    let next = live
        .back()
        .map_or(state.number, |info: &BatchInfo| info.number + 1);
    let head = live.back().map_or(state.position, BatchInfo::end);
    Ok(Journal {
        space: Space::new(state.capacity, state.position, head),
        next,
        live,
        last: end.last,
        damaged: end.damaged,
        state,
    })
}

fn memory_error<H: Host>(files: &ReplicaFiles<H>, errno: Errno) -> HostError {
    HostError {
        operation: "allocate buffers for",
        path: files.directory().to_owned(),
        errno,
    }
}

/// Begins a journal anew after `facts.base`: what the old one holds means nothing from now on.
///
/// A crash before the first superblock leaves the old journal valid, one after it leaves none;
/// a crash before the last superblock does not make the new one valid.
pub(super) fn begin_journal<H: Host>(
    files: &mut ReplicaFiles<H>,
    facts: &mut Facts,
    settings: &TargetSettings,
) -> Result<Journal, HostError> {
    files.replica.journal = NO_JOURNAL;
    files.persist(facts)?;
    let len = files.host.geometry(&files.journal)?.len.get();
    let mut capacity = len.saturating_sub(JOURNAL_AREA_OFFSET) & !(JOURNAL_BLOCK_BYTES - 1);
    if capacity < settings.capacity_min() {
        // Somebody cut it short: nothing that is valid is in it.
        let bytes = settings.journal_file_bytes();
        files.renew_journal(bytes)?;
        capacity = bytes.get() - JOURNAL_AREA_OFFSET;
    }
    let mut id = NO_JOURNAL;
    while id == NO_JOURNAL {
        files.host.random(&mut id);
    }
    let mut state = JournalState::new(id, capacity, facts.base);
    let mut block = vec![0; ByteLen::new(JOURNAL_BLOCK_BYTES).as_usize()];
    for counter in 0..2 {
        state.counter = counter;
        state.encode(&mut block);
        files
            .host
            .write_at(&files.journal, JournalState::copy_offset(counter), &block)?;
    }
    files.host.sync(&files.journal)?;
    files.replica.journal = id;
    files.save()?;
    Ok(Journal::empty(state))
}
