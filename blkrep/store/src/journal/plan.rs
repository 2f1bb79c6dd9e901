//! A batch being filled: records are taken until it is full, then it is sealed and written.
//!
//! The data area of a buffer begins at a fixed place, so that bytes are copied once, before the
//! number of records is known; head and table are written directly before it when it is sealed.

use super::batch::{
    Batch, BatchInfo, BatchRecord, ENTRY_BYTES, HEAD_BYTES, MAGIC, align_data, data_bytes,
    data_sum, encode_kind,
};
use super::head::VERSION;
use super::{BATCH_BYTES_MIN, BATCH_RECORDS_MAX, JOURNAL_BLOCK_BYTES, JournalId};
use crate::layout::{BatchHead, RecordEntry, head_crc};
use blkrep_io::Slice;
use blkrep_types::{ByteLen, Generation, Record, WriteName, planted};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

/// Data of whole blocks begins at one, so that any disk can take it as it is.
pub(super) const DATA_ALIGN_LARGE: u64 = 4096;
/// Other data begins at a sector.
pub(super) const DATA_ALIGN_SMALL: u64 = 512;

/// Where the data of a batch of `count` records begins, in bytes from its start.
pub(super) const fn data_begin(count: usize) -> u64 {
    ((HEAD_BYTES + count * ENTRY_BYTES) as u64).next_multiple_of(JOURNAL_BLOCK_BYTES)
}

/// Where the data area begins in a buffer: behind the longest table.
const DATA_BASE: usize = 45_056;
const _: () = assert!(DATA_BASE as u64 == data_begin(BATCH_RECORDS_MAX));

/// Where a sealed batch belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Its journal.
    pub journal: JournalId,
    /// Its number.
    pub number: u64,
    /// Its position.
    pub position: u64,
    /// The generation of its records.
    pub generation: Generation,
}

/// A batch that still takes records.
#[derive(Debug)]
pub struct BatchPlan {
    buffer: Slice,
    records: Vec<BatchRecord>,
    /// End of the data so far, from the start of the data area.
    data_end: u64,
}

impl BatchPlan {
    /// An empty batch over `buffer`; `records` is emptied and used again.
    ///
    /// # Panics
    /// If the buffer could not hold one record of the largest request.
    #[must_use]
    pub fn new(buffer: Slice, mut records: Vec<BatchRecord>) -> Self {
        assert!(
            buffer.len() as u64 >= BATCH_BYTES_MIN,
            "a batch holds the largest request"
        );
        records.clear();
        Self {
            buffer,
            records,
            data_end: 0,
        }
    }

    /// True if `record` still fits.
    #[must_use]
    pub fn fits(&self, record: &Record) -> bool {
        let len = data_bytes(record);
        let end = align_data(self.data_end, len) + len as u64;
        let room = (self.buffer.len() - DATA_BASE) as u64;
        self.records.len() < BATCH_RECORDS_MAX && end.next_multiple_of(JOURNAL_BLOCK_BYTES) <= room
    }

    /// Takes a record with its bytes and their CRC32, 0 without bytes; false if it does not fit
    /// any more. The checksum is the one the bytes came with: what goes wrong from there on is
    /// found when the batch is read.
    ///
    /// # Panics
    /// If `data` is not as long as the record says.
    pub fn push(&mut self, record: &Record, data: &[u8], data_crc: u32) -> bool {
        assert_eq!(
            data.len(),
            data_bytes(record),
            "a record has as many bytes as it says"
        );
        if !self.fits(record) {
            return false;
        }
        let at = align_data(self.data_end, data.len());
        self.clear(self.data_end, at);
        self.buffer.write(DATA_BASE + to_usize(at), data);
        self.records.push(BatchRecord {
            record: *record,
            data_crc,
            data_at: u32::try_from(at).expect("within a buffer"),
        });
        self.data_end = at + data.len() as u64;
        true
    }

    fn clear(&self, from: u64, to: u64) {
        if from < to {
            self.buffer
                .part(DATA_BASE + to_usize(from)..DATA_BASE + to_usize(to))
                .clear();
        }
    }

    /// True before the first record.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes it would have in the journal.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        data_begin(self.records.len()) + self.data_end.next_multiple_of(JOURNAL_BLOCK_BYTES)
    }

    /// Writes head and table: now it can be written at its position.
    ///
    /// # Panics
    /// If it is empty.
    #[must_use]
    pub fn seal(mut self, placed: &Placed) -> Batch {
        assert!(!self.is_empty(), "a batch has a record");
        let bytes = self.bytes();
        let data_end = self.data_end.next_multiple_of(JOURNAL_BLOCK_BYTES);
        self.clear(self.data_end, data_end);
        let data = self.buffer.part(DATA_BASE..DATA_BASE + to_usize(data_end));
        let data_sum = data.with(data_sum);
        let front = data_begin(self.records.len());
        let begin = DATA_BASE - to_usize(front);
        let head = self.buffer.part(begin..DATA_BASE);
        let info =
            head.with_mut(|head| write_front(head, &self.records, placed, (bytes, data_sum)));
        if planted!(ApplyBatchBackwards) {
            self.records.reverse();
        }
        for record in &mut self.records {
            record.data_at += u32::try_from(front).expect("a table is small");
        }
        Batch {
            info,
            records: self.records,
            buffer: self.buffer,
            begin,
            data_sum,
        }
    }

    /// Gives up what was taken; buffer and list for the next batch.
    #[must_use]
    pub fn recycle(self) -> (Slice, Vec<BatchRecord>) {
        (self.buffer, self.records)
    }
}

fn write_front(
    front: &mut [u8],
    records: &[BatchRecord],
    placed: &Placed,
    (bytes, data_sum): (u64, u64),
) -> BatchInfo {
    front.fill(0);
    let (head_bytes, table) = front.split_at_mut(HEAD_BYTES);
    let table = &mut table[..records.len() * ENTRY_BYTES];
    for (entry, record) in table.chunks_exact_mut(ENTRY_BYTES).zip(records) {
        entry.copy_from_slice(encode_entry(record).as_bytes());
    }
    let name = |record: &Record| WriteName {
        generation: placed.generation,
        incarnation: record.incarnation,
        seq: record.seq,
    };
    let first = name(&records[0].record);
    let last = name(&records[records.len() - 1].record);
    let mut head = BatchHead::new_zeroed();
    head.magic = MAGIC;
    head.version = U32::new(VERSION);
    head.bytes = U32::new(u32::try_from(bytes).expect("within a buffer"));
    head.journal = placed.journal;
    head.number = U64::new(placed.number);
    head.position = U64::new(placed.position);
    head.generation = *placed.generation.as_bytes();
    head.first_incarnation = U64::new(first.incarnation.get());
    head.first_seq = U64::new(first.seq.get());
    head.last_incarnation = U64::new(last.incarnation.get());
    head.last_seq = U64::new(last.seq.get());
    let record_count = u32::try_from(records.len()).expect("bounded");
    head.record_count = U32::new(record_count);
    head.table_crc = U32::new(crc32fast::hash(table));
    head.data_sum = U64::new(data_sum);
    head.crc = U32::new(head_crc(head.as_bytes()));
    head_bytes.copy_from_slice(head.as_bytes());
    BatchInfo {
        number: placed.number,
        position: placed.position,
        bytes,
        first,
        last,
        record_count,
    }
}

fn encode_entry(record: &BatchRecord) -> RecordEntry {
    let (kind, argument) = encode_kind(record.record.kind);
    let extent = record.record.extent;
    RecordEntry {
        incarnation: U64::new(record.record.incarnation.get()),
        seq: U64::new(record.record.seq.get()),
        offset: U64::new(extent.map_or(0, |extent| extent.offset().get())),
        len: U64::new(extent.map_or(0, |extent| extent.len().get())),
        data_crc: U32::new(record.data_crc),
        volume: U16::new(record.record.volume.get()),
        kind,
        argument,
    }
}

fn to_usize(bytes: u64) -> usize {
    ByteLen::new(bytes).as_usize()
}
