//! One batch as it is in memory: its records and where their bytes are.
//!
//! Reads and checks what [`super::BatchPlan`] wrote. A batch is good only if its head, its table
//! and every record's bytes match their checksums, and all data together its sum. A CRC32 cannot tell
//! sectors that end with a CRC32 of their own from one another: with it alone, a torn batch whose place
//! held other such sectors passed for whole.

use super::head::VERSION;
use super::plan::{DATA_ALIGN_LARGE, DATA_ALIGN_SMALL, data_begin};
use super::{BATCH_RECORDS_MAX, JOURNAL_BLOCK_BYTES, JournalId};
use crate::error::FormatError;
use crate::layout::{BatchHead, RecordEntry, head_crc};
use blkrep_io::Slice;
use blkrep_types::limits::{COUNT_MAX, REQUEST_BYTES_MAX};
use blkrep_types::{
    ByteLen, ByteOffset, Extent, Generation, Incarnation, MirrorKind, Record, RecordKind, Seq,
    VolumeIndex, WriteName, planted,
};
use twox_hash::XxHash3_64;
use zerocopy::{FromBytes, IntoBytes};

pub(super) const MAGIC: [u8; 8] = *b"BLKrBTCH";
pub(super) const WHAT: &str = "batch";
pub(super) const HEAD_BYTES: usize = size_of::<BatchHead>();
pub(super) const ENTRY_BYTES: usize = size_of::<RecordEntry>();

/// Which batch, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchInfo {
    /// Its number: batches are numbered without gaps.
    pub number: u64,
    /// Where it begins, as [`super::Space`] counts.
    pub position: u64,
    /// Its length, whole blocks.
    pub bytes: u64,
    /// Its first record.
    pub first: WriteName,
    /// Its last record.
    pub last: WriteName,
    /// How many records.
    pub record_count: u32,
}

impl BatchInfo {
    /// Where the next batch begins, unless it has to begin a lap.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.position + self.bytes
    }
}

/// One record of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchRecord {
    /// What it is.
    pub record: Record,
    /// CRC32 of its bytes; 0 where it has none.
    pub data_crc: u32,
    /// Where its bytes begin in the batch.
    pub data_at: u32,
}

impl BatchRecord {
    /// Bytes of data in the batch.
    #[must_use]
    pub fn data_bytes(&self) -> usize {
        data_bytes(&self.record)
    }
}

/// Bytes of data that travel with `record`.
pub(super) fn data_bytes(record: &Record) -> usize {
    record.data_len().as_usize()
}

/// A batch in memory.
#[derive(Debug)]
pub struct Batch {
    pub(super) info: BatchInfo,
    pub(super) records: Vec<BatchRecord>,
    pub(super) buffer: Slice,
    pub(super) begin: usize,
    /// Of all its data, as it was written.
    pub(super) data_sum: u64,
}

impl Batch {
    /// Checks and takes the batch at the start of `buffer`. Its data is not looked at yet: see
    /// [`Batch::damaged`]. `records` is emptied and used again.
    ///
    /// # Errors
    /// Head or table are not what the batch of this journal at this position must have.
    pub fn read(
        buffer: Slice,
        mut records: Vec<BatchRecord>,
        id: &JournalId,
        position: u64,
    ) -> Result<Self, FormatError> {
        records.clear();
        let (info, sums) = buffer.with(|bytes| -> Result<_, FormatError> {
            let (info, sums) = read_head(bytes, id, position)?;
            read_table(bytes, &info, sums.table_crc, &mut records)?;
            if planted!(ReplayStopsEarly) && records.len() > 1 {
                records.pop();
            }
            Ok((info, sums))
        })?;
        Ok(Self {
            info,
            records,
            buffer,
            begin: 0,
            data_sum: sums.data_sum,
        })
    }

    /// Which batch it is.
    #[must_use]
    pub const fn info(&self) -> &BatchInfo {
        &self.info
    }

    /// Its records in order.
    #[must_use]
    pub fn records(&self) -> &[BatchRecord] {
        &self.records
    }

    /// The bytes to write at its position.
    #[must_use]
    pub fn slice(&self) -> Slice {
        let bytes = ByteLen::new(self.info.bytes).as_usize();
        self.buffer.part(self.begin..self.begin + bytes)
    }

    /// The bytes of one of its records.
    ///
    /// # Panics
    /// If there is no such record.
    #[must_use]
    pub fn data(&self, index: usize) -> Slice {
        let record = &self.records[index];
        let at = self.begin + record.data_at as usize;
        self.buffer.part(at..at + record.data_bytes())
    }

    /// True if its data is not what was written, or that of a record not what came with it.
    #[must_use]
    pub fn damaged(&self) -> bool {
        if planted!(JournalChecksumIgnored) {
            return false;
        }
        let differs = |index: usize| {
            let record = &self.records[index];
            record.data_bytes() > 0 && self.data(index).with(crc32fast::hash) != record.data_crc
        };
        let front = ByteLen::new(data_begin(self.info.record_count as usize)).as_usize();
        let whole = self.slice();
        whole.part(front..whole.len()).with(data_sum) != self.data_sum
            || (0..self.records.len()).any(differs)
    }

    /// Gives back buffer and list for the next batch.
    #[must_use]
    pub fn recycle(self) -> (Slice, Vec<BatchRecord>) {
        (self.buffer, self.records)
    }
}

/// The sum of all data of a batch, gaps included.
pub(super) fn data_sum(data: &[u8]) -> u64 {
    XxHash3_64::oneshot(data)
}

/// What a head says of what follows it.
pub(super) struct Sums {
    table_crc: u32,
    data_sum: u64,
}

/// Checks a head: what it says of its batch, and the checksums of what follows.
pub(super) fn read_head(
    bytes: &[u8],
    id: &JournalId,
    position: u64,
) -> Result<(BatchInfo, Sums), FormatError> {
    let wrong = |field| FormatError::Field { what: WHAT, field };
    let Ok((head, _)) = BatchHead::read_from_prefix(bytes) else {
        return Err(FormatError::Short { what: WHAT });
    };
    if head.magic != MAGIC {
        return Err(FormatError::Magic { what: WHAT });
    }
    if head_crc(head.as_bytes()) != head.crc.get() {
        return Err(FormatError::Checksum { what: WHAT });
    }
    let found = head.version.get();
    if found > VERSION {
        return Err(FormatError::Newer {
            what: WHAT,
            found,
            supported: VERSION,
        });
    }
    if head.journal != *id {
        return Err(wrong("journal"));
    }
    if head.position.get() != position {
        return Err(wrong("position"));
    }
    if head.number.get() > COUNT_MAX {
        return Err(wrong("number"));
    }
    let record_count = head.record_count.get();
    if record_count == 0 || record_count as usize > BATCH_RECORDS_MAX {
        return Err(wrong("record_count"));
    }
    let bytes = u64::from(head.bytes.get());
    if !bytes.is_multiple_of(JOURNAL_BLOCK_BYTES) || bytes < data_begin(record_count as usize) {
        return Err(wrong("bytes"));
    }
    if head.reserved.iter().any(|byte| *byte != 0) || found == 0 {
        return Err(wrong("reserved"));
    }
    let generation = Generation::from_bytes(head.generation);
    let name = |incarnation: u64, seq: u64| WriteName {
        generation,
        incarnation: Incarnation::new(incarnation),
        seq: Seq::new(seq),
    };
    let info = BatchInfo {
        number: head.number.get(),
        position,
        bytes,
        first: name(head.first_incarnation.get(), head.first_seq.get()),
        last: name(head.last_incarnation.get(), head.last_seq.get()),
        record_count,
    };
    let sums = Sums {
        table_crc: head.table_crc.get(),
        data_sum: head.data_sum.get(),
    };
    Ok((info, sums))
}

pub(super) fn read_table(
    bytes: &[u8],
    info: &BatchInfo,
    table_crc: u32,
    records: &mut Vec<BatchRecord>,
) -> Result<(), FormatError> {
    let wrong = |field| FormatError::Field { what: WHAT, field };
    let count = info.record_count as usize;
    let table = bytes.get(HEAD_BYTES..HEAD_BYTES + count * ENTRY_BYTES);
    let table = table.ok_or(FormatError::Short { what: WHAT })?;
    if crc32fast::hash(table) != table_crc {
        return Err(FormatError::Checksum {
            what: "table of a batch",
        });
    }
    let entries = <[RecordEntry]>::ref_from_bytes(table).map_err(|_| wrong("table"))?;
    let mut at = data_begin(count);
    for entry in entries {
        let record = decode_entry(entry).ok_or_else(|| wrong("table"))?;
        at = align_data(at, data_bytes(&record));
        let data_at = u32::try_from(at).map_err(|_| wrong("bytes"))?;
        records.push(BatchRecord {
            record,
            data_crc: entry.data_crc.get(),
            data_at,
        });
        at += data_bytes(&record) as u64;
    }
    if at.next_multiple_of(JOURNAL_BLOCK_BYTES) != info.bytes {
        return Err(wrong("bytes"));
    }
    let named = |record: &Record, name: WriteName| {
        record.incarnation == name.incarnation && record.seq == name.seq
    };
    let (first, last) = (&records[0].record, &records[count - 1].record);
    if !named(first, info.first) || !named(last, info.last) {
        return Err(wrong("first_seq"));
    }
    let place = |record: &BatchRecord| (record.record.incarnation, record.record.seq);
    if records
        .windows(2)
        .any(|pair| place(&pair[0]) >= place(&pair[1]))
    {
        return Err(wrong("table"));
    }
    Ok(())
}

/// Where data of `len` bytes begins at or after `at`: on a boundary that direct I/O can use.
pub(super) const fn align_data(at: u64, len: usize) -> u64 {
    if len == 0 {
        at
    } else if (len as u64).is_multiple_of(DATA_ALIGN_LARGE) {
        at.next_multiple_of(DATA_ALIGN_LARGE)
    } else {
        at.next_multiple_of(DATA_ALIGN_SMALL)
    }
}

const MIRROR: u8 = 1;
const FREE: u8 = 2;

/// Kind and argument of a record, as the format page numbers them.
pub(super) const fn encode_kind(kind: RecordKind) -> (u8, u8) {
    match kind {
        RecordKind::Data { mirror } => (1, mirror as u8 * MIRROR),
        RecordKind::Zero { mirror, free } => (2, mirror as u8 * MIRROR + free as u8 * FREE),
        RecordKind::Void => (3, 0),
        RecordKind::Compare => (4, 0),
        RecordKind::MirrorBegin(MirrorKind::Full) => (5, 1),
        RecordKind::MirrorBegin(MirrorKind::Difference) => (5, 2),
        RecordKind::MirrorBegin(MirrorKind::Checksum) => (5, 3),
        RecordKind::MirrorEnd => (6, 0),
        RecordKind::Note { task } => (7, task as u8),
        RecordKind::Read => (8, 0),
    }
}

const fn decode_kind(kind: u8, argument: u8) -> Option<RecordKind> {
    Some(match (kind, argument) {
        (1, 0 | MIRROR) => RecordKind::Data {
            mirror: argument == MIRROR,
        },
        (2, 0..=3) => RecordKind::Zero {
            mirror: argument & MIRROR != 0,
            free: argument & FREE != 0,
        },
        (3, 0) => RecordKind::Void,
        (4, 0) => RecordKind::Compare,
        (5, 1) => RecordKind::MirrorBegin(MirrorKind::Full),
        (5, 2) => RecordKind::MirrorBegin(MirrorKind::Difference),
        (5, 3) => RecordKind::MirrorBegin(MirrorKind::Checksum),
        (6, 0) => RecordKind::MirrorEnd,
        (7, 0 | 1) => RecordKind::Note {
            task: argument == 1,
        },
        (8, 0) => RecordKind::Read,
        _ => return None,
    })
}

fn decode_entry(entry: &RecordEntry) -> Option<Record> {
    let kind = decode_kind(entry.kind, entry.argument)?;
    let extent = if kind.has_extent() {
        let offset = ByteOffset::new(entry.offset.get());
        Some(Extent::new(offset, ByteLen::new(entry.len.get())).ok()?)
    } else if entry.offset.get() == 0 && entry.len.get() == 0 {
        None
    } else {
        return None;
    };
    let too_long = extent.is_some_and(|extent| extent.len().get() > REQUEST_BYTES_MAX);
    if kind.has_data() && too_long || !kind.has_data() && entry.data_crc.get() != 0 {
        return None;
    }
    Some(Record {
        incarnation: Incarnation::new(entry.incarnation.get()),
        seq: Seq::new(entry.seq.get()),
        kind,
        volume: VolumeIndex::new(entry.volume.get()),
        extent,
    })
}
