//! Records of the stream with their bytes.
//!
//! Owns the layout of a data frame: how much fits, its encoding straight into the buffer that is
//! sent, and its reading straight from the buffer that was filled. Each byte of a record is hashed
//! once on each side: the body's checksum stands over the records, each record's over its bytes.

use crate::error::WireError;
use crate::frame::FrameKind;
use crate::layout::{
    DATA_HEAD_BYTES, DataHead, FRAME_HEADER_BYTES, RECORD_HEADER_BYTES, RecordHeader,
};
use crate::limits::{FRAME_DATA_BYTES_MAX, FRAME_RECORDS_MAX};
use crate::read::{mirror_from, mirror_number};
use blkrep_io::Slice;
use blkrep_types::limits::{GROUP_VOLUMES_MAX, REQUEST_BYTES_MAX, SECTOR_BYTES};
use blkrep_types::{
    ByteLen, ByteOffset, Extent, Incarnation, Record, RecordKind, Seq, VolumeIndex,
};
use zerocopy::{FromBytes, IntoBytes};

/// One record with its bytes.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The record.
    pub record: Record,
    /// Its bytes: present exactly if [`RecordKind::has_data`], and [`Record::data_len`] of them.
    pub bytes: Option<Slice>,
}

/// One record of a frame that was received, with its bytes.
#[derive(Debug, Clone)]
pub struct Received {
    /// The record.
    pub record: Record,
    /// Its bytes, as in [`Entry`].
    pub bytes: Option<Slice>,
    /// CRC32 of its bytes, made by the source and found right; 0 where it has none.
    pub data_crc: u32,
}

/// How much goes into one data frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DataPlan {
    records: usize,
    data_bytes: usize,
}

impl DataPlan {
    /// Takes `record` into the frame if the frame, with its header, is then within the limits and
    /// `capacity` bytes; says whether it was taken.
    pub fn add(&mut self, record: &Record, capacity: usize) -> bool {
        let more = Self {
            records: self.records + 1,
            data_bytes: self.data_bytes + data_len(record),
        };
        let fits = more.records <= FRAME_RECORDS_MAX
            && more.data_bytes <= FRAME_DATA_BYTES_MAX
            && more.frame_bytes() <= capacity;
        if fits {
            *self = more;
        }
        fits
    }

    /// Length of the whole frame, with its header, in bytes.
    #[must_use]
    pub const fn frame_bytes(self) -> usize {
        FRAME_HEADER_BYTES + self.checked_bytes() + self.data_bytes
    }

    /// Records taken so far.
    #[must_use]
    pub const fn records(self) -> usize {
        self.records
    }

    /// Bytes of data taken so far.
    #[must_use]
    pub const fn data_bytes(self) -> usize {
        self.data_bytes
    }

    pub(crate) const fn checked_bytes(self) -> usize {
        DATA_HEAD_BYTES + self.records * RECORD_HEADER_BYTES
    }
}

fn data_len(record: &Record) -> usize {
    record.data_len().as_usize()
}

/// Copies the bytes of `entries` to their places in `to`, the buffer of a whole frame, and appends
/// the frame's checked part to `checked`.
pub(crate) fn write_data(entries: &[Entry], plan: DataPlan, to: &Slice, checked: &mut Vec<u8>) {
    let head = DataHead {
        record_count: u32::from(crate::read::count(entries.len())).into(),
        reserved: 0.into(),
    };
    checked.extend_from_slice(head.as_bytes());
    let mut at = FRAME_HEADER_BYTES + plan.checked_bytes();
    for entry in entries {
        let record = &entry.record;
        assert_eq!(
            record.kind.has_extent(),
            record.extent.is_some(),
            "a record has what its kind says"
        );
        let data_crc = match &entry.bytes {
            Some(bytes) => {
                assert_eq!(
                    bytes.len(),
                    data_len(record),
                    "a record's bytes are as long as its extent"
                );
                let crc = bytes.with(crc32fast::hash);
                to.part(at..at + bytes.len()).copy_from(bytes);
                at += bytes.len();
                crc
            }
            None => {
                assert!(!record.kind.has_data(), "a record of data has its bytes");
                0
            }
        };
        checked.extend_from_slice(record_header(record, data_crc).as_bytes());
    }
    assert_eq!(
        at,
        plan.frame_bytes(),
        "the frame is as long as it was planned"
    );
}

fn record_header(record: &Record, data_crc: u32) -> RecordHeader {
    let (kind, argument) = match record.kind {
        RecordKind::Data { mirror } => (1, u8::from(mirror)),
        RecordKind::Zero { mirror, free } => (2, u8::from(mirror) | u8::from(free) << 1),
        RecordKind::Void => (3, 0),
        RecordKind::Compare => (4, 0),
        RecordKind::MirrorBegin(kind) => (5, mirror_number(kind)),
        RecordKind::MirrorEnd => (6, 0),
        RecordKind::Note { task } => (7, u8::from(task)),
        RecordKind::Read => (8, 0),
    };
    RecordHeader {
        incarnation: record.incarnation.get().into(),
        seq: record.seq.get().into(),
        offset: record
            .extent
            .map_or(0, |extent| extent.offset().get())
            .into(),
        len: record.extent.map_or(0, |extent| extent.len().get()).into(),
        data_crc: data_crc.into(),
        volume: record.volume.get().into(),
        kind,
        argument,
    }
}

const fn wrong(field: &'static str) -> WireError {
    WireError::Field {
        kind: FrameKind::Data,
        field,
    }
}

fn kind_from(header: &RecordHeader) -> Option<RecordKind> {
    let argument = header.argument;
    Some(match (header.kind, argument) {
        (1, 0 | 1) => RecordKind::Data {
            mirror: argument == 1,
        },
        (2, 0..=3) => RecordKind::Zero {
            mirror: argument & 1 == 1,
            free: argument & 2 == 2,
        },
        (3, 0) => RecordKind::Void,
        (4, 0) => RecordKind::Compare,
        (5, number) => RecordKind::MirrorBegin(mirror_from(number)?),
        (6, 0) => RecordKind::MirrorEnd,
        (7, 0 | 1) => RecordKind::Note {
            task: argument == 1,
        },
        (8, 0) => RecordKind::Read,
        _ => return None,
    })
}

fn read_record(header: &RecordHeader) -> Result<Record, WireError> {
    let kind = kind_from(header).ok_or_else(|| wrong("records.kind"))?;
    let (offset, len) = (header.offset.get(), header.len.get());
    let extent = if kind.has_extent() {
        let aligned = offset.is_multiple_of(SECTOR_BYTES) && len.is_multiple_of(SECTOR_BYTES);
        let bounded = matches!(kind, RecordKind::Zero { .. }) || len <= REQUEST_BYTES_MAX;
        if !aligned || !bounded {
            return Err(wrong("records.len"));
        }
        let extent = Extent::new(ByteOffset::new(offset), ByteLen::new(len));
        Some(extent.map_err(|_| wrong("records.offset"))?)
    } else if offset == 0 && len == 0 && header.volume.get() == 0 {
        None
    } else {
        return Err(wrong("records.len"));
    };
    if header.incarnation.get() == 0 || header.seq.get() == 0 {
        return Err(wrong("records.seq"));
    }
    if usize::from(header.volume.get()) >= GROUP_VOLUMES_MAX {
        return Err(wrong("records.volume"));
    }
    if !kind.has_data() && header.data_crc.get() != 0 {
        return Err(wrong("records.data_crc"));
    }
    Ok(Record {
        incarnation: Incarnation::new(header.incarnation.get()),
        seq: Seq::new(header.seq.get()),
        kind,
        volume: VolumeIndex::new(header.volume.get()),
        extent,
    })
}

/// A data frame whose every byte was checked, in the buffer it was received in. It must be used up
/// before the decoder is asked for more space.
#[derive(Debug)]
pub struct DataFrame {
    body: Slice,
    record_count: usize,
}

impl DataFrame {
    /// Checks a body whose checked part has the right checksum; `trusted` is said only by mistake: the
    /// checksums of records are not looked at.
    pub(crate) fn new(body: Slice, checked_bytes: usize, trusted: bool) -> Result<Self, WireError> {
        let frame = body.with(|bytes| check_body(bytes, checked_bytes, trusted))?;
        Ok(Self {
            body,
            record_count: frame,
        })
    }

    /// How many records it has; at least one.
    #[must_use]
    pub const fn record_count(&self) -> usize {
        self.record_count
    }

    /// Bytes of data it has.
    #[must_use]
    pub const fn data_bytes(&self) -> usize {
        self.body.len() - DATA_HEAD_BYTES - self.record_count * RECORD_HEADER_BYTES
    }

    /// Its records in order, each with its bytes.
    #[must_use]
    pub const fn entries(&self) -> Entries<'_> {
        Entries {
            frame: self,
            next: 0,
            data_at: DATA_HEAD_BYTES + self.record_count * RECORD_HEADER_BYTES,
        }
    }
}

fn header_at(bytes: &[u8], index: usize) -> Option<RecordHeader> {
    let at = DATA_HEAD_BYTES + index * RECORD_HEADER_BYTES;
    RecordHeader::read_from_bytes(bytes.get(at..at + RECORD_HEADER_BYTES)?).ok()
}

fn check_body(bytes: &[u8], checked_bytes: usize, trusted: bool) -> Result<usize, WireError> {
    let (head, _) = DataHead::read_from_prefix(bytes).map_err(|_| wrong("record_count"))?;
    if head.reserved.get() != 0 {
        return Err(wrong("reserved"));
    }
    let count = usize::try_from(head.record_count.get()).expect("64-bit platform");
    let right = (1..=FRAME_RECORDS_MAX).contains(&count)
        && checked_bytes == DATA_HEAD_BYTES + count * RECORD_HEADER_BYTES;
    if !right {
        return Err(wrong("record_count"));
    }
    let mut data_at = checked_bytes;
    for index in 0..count {
        let header = header_at(bytes, index).ok_or_else(|| wrong("record_count"))?;
        let record = read_record(&header)?;
        if record.kind.has_data() {
            let end = data_at + data_len(&record);
            let data = bytes
                .get(data_at..end)
                .ok_or_else(|| wrong("records.len"))?;
            if crc32fast::hash(data) != header.data_crc.get() && !trusted {
                return Err(WireError::DataChecksum {
                    seq: record.seq.get(),
                });
            }
            data_at = end;
        }
    }
    if data_at == bytes.len() {
        Ok(count)
    } else {
        Err(wrong("end"))
    }
}

/// The records of a data frame.
#[derive(Debug)]
pub struct Entries<'a> {
    frame: &'a DataFrame,
    next: usize,
    data_at: usize,
}

impl Iterator for Entries<'_> {
    type Item = Received;

    fn next(&mut self) -> Option<Received> {
        if self.next == self.frame.record_count {
            return None;
        }
        let header = self.frame.body.with(|bytes| header_at(bytes, self.next));
        let (record, data_crc) = header
            .and_then(|header| Some((read_record(&header).ok()?, header.data_crc.get())))
            .expect("checked when the frame was made");
        self.next += 1;
        let bytes = record.kind.has_data().then(|| {
            let end = self.data_at + data_len(&record);
            let bytes = self.frame.body.part(self.data_at..end);
            self.data_at = end;
            bytes
        });
        Some(Received {
            record,
            bytes,
            data_crc,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.frame.record_count - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Entries<'_> {}
