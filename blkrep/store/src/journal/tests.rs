//! Golden bytes, and what a scan makes of journals that were torn, corrupted or lapped.

#![allow(clippy::unwrap_used)]

mod refusals;

use super::*;
use crate::error::FormatError;
use blkrep_io::{Region, Slice};
use blkrep_types::{
    ByteLen, ByteOffset, Errno, Extent, Generation, Incarnation, MirrorKind, Record, RecordKind,
    Seq, VolumeIndex, WriteName,
};
use proptest::prelude::*;
use twox_hash::XxHash3_64;

const ID: JournalId = [3; 16];
const CAPACITY: u64 = 64 * JOURNAL_BLOCK_BYTES;

fn name(seq: u64) -> WriteName {
    WriteName {
        generation: Generation::from_bytes([1; 16]),
        incarnation: Incarnation::new(1),
        seq: Seq::new(seq),
    }
}

fn data(seq: u64, len: u64) -> Record {
    Record {
        incarnation: Incarnation::new(1),
        seq: Seq::new(seq),
        kind: RecordKind::Data { mirror: false },
        volume: VolumeIndex::new(0),
        extent: Some(Extent::new(ByteOffset::new(seq * 4096), ByteLen::new(len)).unwrap()),
    }
}

fn bare(seq: u64, kind: RecordKind) -> Record {
    Record {
        kind,
        extent: None,
        ..data(seq, 512)
    }
}

fn buffer() -> Slice {
    Region::heap(ByteLen::new(BATCH_BYTES_MIN).as_usize()).whole()
}

/// A journal in memory, written as the worker writes it.
struct Journal {
    file: Vec<u8>,
    space: Space,
    number: u64,
    state: JournalState,
}

impl Journal {
    fn new() -> Self {
        Self {
            file: vec![0; usize::try_from(JournalState::file_bytes(CAPACITY)).unwrap()],
            space: Space::new(CAPACITY, 0, 0),
            number: 1,
            state: JournalState::new(ID, CAPACITY, name(0)),
        }
    }

    /// Writes a batch; where it went in the file.
    fn write(&mut self, records: &[Record]) -> Option<std::ops::Range<usize>> {
        let batch = self.seal(records)?;
        Some(self.write_batch(&batch))
    }

    /// Writes a batch of one record with these bytes.
    fn write_bytes(&mut self, record: &Record, bytes: &[u8]) -> Option<std::ops::Range<usize>> {
        let mut plan = BatchPlan::new(buffer(), Vec::new());
        assert!(plan.push(record, bytes, crc32fast::hash(bytes)));
        let batch = self.seal_plan(plan)?;
        Some(self.write_batch(&batch))
    }

    fn write_batch(&mut self, batch: &Batch) -> std::ops::Range<usize> {
        let info = *batch.info();
        self.space.take(info.position, info.bytes);
        self.number += 1;
        let at = usize::try_from(self.space.file_offset(info.position)).unwrap();
        let range = at..at + usize::try_from(info.bytes).unwrap();
        batch.slice().read(0, &mut self.file[range.clone()]);
        range
    }

    fn seal(&self, records: &[Record]) -> Option<Batch> {
        let mut plan = BatchPlan::new(buffer(), Vec::new());
        for record in records {
            let bytes = vec![u8::try_from(record.seq.get() % 251).unwrap(); data_len(record)];
            let crc = match bytes.len() {
                0 => 0,
                _ => crc32fast::hash(&bytes),
            };
            assert!(plan.push(record, &bytes, crc));
        }
        self.seal_plan(plan)
    }

    fn seal_plan(&self, plan: BatchPlan) -> Option<Batch> {
        let position = self.space.place(plan.bytes())?;
        let generation = name(0).generation;
        Some(plan.seal(&Placed {
            journal: ID,
            number: self.number,
            position,
            generation,
        }))
    }

    fn scan(&self) -> (ScanEnd, Vec<u64>, Vec<u64>, usize) {
        self.scan_with(&mut |_| false)
    }

    fn scan_with(
        &self,
        unreadable: &mut dyn FnMut(u64) -> bool,
    ) -> (ScanEnd, Vec<u64>, Vec<u64>, usize) {
        let (mut good, mut lost, mut unknown) = (Vec::new(), Vec::new(), 0);
        let mut read = |offset: u64, into: &mut [u8]| {
            if unreadable(offset) {
                return Err(Errno::EIO);
            }
            let at = usize::try_from(offset).unwrap();
            into.copy_from_slice(&self.file[at..at + into.len()]);
            Ok(())
        };
        let end = Scan::new(self.state, buffer())
            .run(&mut read, &mut |damage| match damage {
                Damage::Good(batch) => {
                    good.extend(batch.records().iter().map(|r| r.record.seq.get()));
                }
                Damage::Lost(batch) => {
                    lost.extend(batch.records().iter().map(|r| r.record.seq.get()));
                }
                Damage::Unknown => unknown += 1,
            })
            .unwrap();
        (end, good, lost, unknown)
    }
}

fn data_len(record: &Record) -> usize {
    record.data_len().as_usize()
}

#[test]
fn the_bytes_of_head_and_batch_are_golden() {
    let mut block = vec![0; 4096];
    JournalState {
        counter: 5,
        ..JournalState::new(ID, CAPACITY, name(8))
    }
    .encode(&mut block);
    assert_eq!(&block[..8], b"BLKrJRNL");
    assert_eq!(
        XxHash3_64::oneshot(&block),
        GOLDEN_HEAD_SUM,
        "a changed layout needs a new version"
    );
    let batch = Journal::new()
        .seal(&[
            data(1, 512),
            data(2, 4096),
            Record {
                kind: RecordKind::Zero {
                    mirror: true,
                    free: true,
                },
                ..data(3, 4096)
            },
            bare(4, RecordKind::MirrorBegin(MirrorKind::Checksum)),
            Record {
                kind: RecordKind::Compare,
                ..data(5, 65536)
            },
            bare(6, RecordKind::MirrorEnd),
            bare(7, RecordKind::Void),
        ])
        .unwrap();
    assert_eq!(
        batch.info().bytes,
        3 * 4096,
        "table, 512 bytes alone, an aligned block"
    );
    assert_eq!(batch.slice().with(|bytes| bytes[..8].to_vec()), b"BLKrBTCH");
    assert_eq!(
        batch.slice().with(XxHash3_64::oneshot),
        GOLDEN_BATCH_SUM,
        "a changed layout needs a new version"
    );
}

/// Of the structures above; they change only with the version of the format. No CRC32: that of a head with
/// its own CRC32 at the end is the same whatever it says.
const GOLDEN_HEAD_SUM: u64 = 16_618_827_611_740_077_434;
const GOLDEN_BATCH_SUM: u64 = 17_198_527_469_665_638_357;

#[test]
fn a_batch_is_read_as_it_was_written() {
    let journal = Journal::new();
    let records = [
        data(1, 512),
        data(2, 8192),
        bare(3, RecordKind::Void),
        data(4, 1024),
    ];
    let written = journal.seal(&records).unwrap();
    let copy = buffer();
    copy.copy_from(&written.slice());
    let read = Batch::read(copy, Vec::new(), &ID, 0).unwrap();
    assert_eq!(read.info(), written.info());
    assert_eq!(read.records(), written.records());
    assert!(!read.damaged());
    for (index, record) in records.iter().enumerate() {
        assert_eq!(read.records()[index].record, *record);
        assert_eq!(read.data(index).len(), data_len(record));
        assert!(
            read.data(index)
                .with(|b| b.iter().all(|b| u64::from(*b) == record.seq.get()))
        );
    }
    assert_eq!(read.data(1).offset() % 4096, 0, "whole blocks begin at one");
}

#[test]
fn a_batch_elsewhere_or_of_another_journal_is_refused() {
    let batch = Journal::new().seal(&[data(1, 4096)]).unwrap();
    let read = |id: &JournalId, position| {
        let copy = buffer();
        copy.copy_from(&batch.slice());
        Batch::read(copy, Vec::new(), id, position).err()
    };
    assert_eq!(read(&ID, 0), None);
    assert!(matches!(
        read(&[4; 16], 0),
        Some(FormatError::Field {
            field: "journal",
            ..
        })
    ));
    assert!(matches!(
        read(&ID, 4096),
        Some(FormatError::Field {
            field: "position",
            ..
        })
    ));
}

#[test]
fn a_torn_end_is_the_end() {
    let mut journal = Journal::new();
    journal.write(&[data(1, 4096), data(2, 4096)]);
    let end = journal.space.head();
    let torn = journal.write(&[data(3, 4096), data(4, 4096)]).unwrap();
    for lost in [torn.start, torn.start + 4096, torn.end - 512] {
        let whole = journal.file.clone();
        journal.file[lost..lost + 512].fill(0xee);
        let (found, good, lost, unknown) = journal.scan();
        assert_eq!((good, lost, unknown), (vec![1, 2], vec![], 0));
        assert_eq!((found.head, found.number, found.last), (end, 2, name(2)));
        assert!(!found.damaged);
        journal.file = whole;
    }
}

/// Sectors whose last four bytes are the CRC32 of the others: for every CRC32 that goes over whole ones of
/// them, each is as good as any other. A torn batch that lay over such sectors of an earlier lap was
/// applied, old sectors and all, and the replica was `ok`.
#[test]
fn old_sectors_with_a_checksum_of_their_own_do_not_pass_for_the_ones_that_a_torn_batch_lacks() {
    let sectors = |salt: u8| -> Vec<u8> {
        let sector = |nth: u8| {
            let mut sector = vec![salt ^ nth; 508];
            sector.extend(crc32fast::hash(&sector).to_le_bytes());
            sector
        };
        (0..8).flat_map(sector).collect()
    };
    let (old, new) = (sectors(0x40), sectors(0x80));
    assert_eq!(crc32fast::hash(&old), crc32fast::hash(&new));
    let mut journal = Journal::new();
    let written = journal.write_bytes(&data(1, 4096), &new).unwrap();
    assert_eq!(journal.scan().1, [1]);
    let at = written.end - 4096;
    for sector in (0..4096).step_by(512) {
        let whole = journal.file.clone();
        let part = sector..sector + 512;
        journal.file[at + part.start..at + part.end].copy_from_slice(&old[part]);
        let (end, good, ..) = journal.scan();
        assert!(good.is_empty() && !end.damaged, "{sector}: {good:?}");
        journal.file = whole;
    }
}

#[test]
fn a_corrupt_batch_in_the_middle_is_told_from_a_torn_end() {
    let mut journal = Journal::new();
    journal.write(&[data(1, 4096)]);
    let middle = journal.write(&[data(2, 4096), data(3, 4096)]).unwrap();
    journal.write(&[data(4, 4096)]);
    let whole = journal.file.clone();
    journal.file[middle.end - 1] ^= 1;
    let (end, good, lost, unknown) = journal.scan();
    assert_eq!(
        (good, lost, unknown),
        (vec![1], vec![2, 3, 4], 0),
        "its extents are known"
    );
    assert!(end.damaged);
    assert_eq!((end.last, end.number), (name(4), 4));
    journal.file = whole;
    journal.file[middle.start + 130] ^= 1;
    let (end, good, lost, unknown) = journal.scan();
    assert_eq!(
        (good, lost, unknown),
        (vec![1], vec![4], 1),
        "its extents are not known"
    );
    assert_eq!((end.last, end.damaged), (name(4), true));
}

/// The last batch of a journal rotted, and nothing behind it told it from one that was never
/// acknowledged: it was dropped without a word.
#[test]
fn a_last_batch_that_the_head_knows_as_durable_is_corrupt_and_not_torn() {
    let mut journal = Journal::new();
    journal.write(&[data(1, 4096)]);
    let last = journal.write(&[data(2, 4096), data(3, 4096)]).unwrap();
    (journal.state.durable, journal.state.last) = (2, name(3));
    let whole = journal.file.clone();
    journal.file[last.end - 1] ^= 1;
    let (end, good, lost, unknown) = journal.scan();
    assert_eq!((good, lost, unknown), (vec![1], vec![2, 3], 0));
    assert_eq!((end.last, end.number, end.damaged), (name(3), 3, true));
    journal.file.clone_from(&whole);
    journal.file[last.start + 130] ^= 1;
    let (end, good, lost, unknown) = journal.scan();
    assert_eq!((good, lost, unknown), (vec![1], vec![], 1));
    assert_eq!((end.last, end.number, end.damaged), (name(3), 3, true));
    journal.file = whole;
    let torn = journal.write(&[data(4, 4096)]).unwrap();
    journal.file[torn.start] ^= 1;
    let (end, good, ..) = journal.scan();
    assert_eq!(good, [1, 2, 3]);
    assert_eq!(
        (end.last, end.damaged),
        (name(3), false),
        "nobody knows of it"
    );
}

/// A torn batch behind a corrupt one that the head knows: both ends are told apart.
#[test]
fn the_last_two_batches_corrupt_are_lost_as_far_as_the_head_knows() {
    let mut journal = Journal::new();
    journal.write(&[data(1, 4096)]);
    let one = journal.write(&[data(2, 4096)]).unwrap();
    let two = journal.write(&[data(3, 4096)]).unwrap();
    journal.file[one.end - 1] ^= 1;
    journal.file[two.start] ^= 1;
    (journal.state.durable, journal.state.last) = (3, name(3));
    let (end, good, lost, unknown) = journal.scan();
    assert_eq!((good, lost, unknown), (vec![1], vec![2], 1));
    assert_eq!((end.last, end.number, end.damaged), (name(3), 4, true));
    (journal.state.durable, journal.state.last) = (2, name(2));
    let (end, good, lost, unknown) = journal.scan();
    assert_eq!((good, lost, unknown), (vec![1], vec![2], 0));
    assert_eq!((end.last, end.number, end.damaged), (name(2), 3, true));
}

#[test]
fn a_place_that_cannot_be_read_is_never_taken_for_the_end() {
    let mut journal = Journal::new();
    journal.write(&[data(1, 4096)]);
    let last = journal.write(&[data(2, 4096)]).unwrap();
    let bad = last.start as u64;
    let (end, good, lost, unknown) = journal.scan_with(&mut |offset| offset == bad);
    assert_eq!((good, lost, unknown), (vec![1], vec![], 1));
    assert!(end.damaged);
    let behind = last.end as u64;
    let (end, good, ..) = journal.scan_with(&mut |offset| offset == behind + 4096);
    assert_eq!(
        (good, end.damaged),
        (vec![1, 2], false),
        "an unused place may be unreadable"
    );
}

/// A fuzzer's: the number after the last one there is overflowed, and the daemon ended at its start.
#[test]
fn numbers_that_nobody_can_have_counted_to_are_refused() {
    let journal = Journal::new();
    let mut block = vec![0; ByteLen::new(JOURNAL_BLOCK_BYTES).as_usize()];
    let mut read = |state: JournalState| {
        state.encode(&mut block);
        JournalState::decode(&block)
    };
    assert!(read(journal.state).is_ok());
    let state = journal.state;
    for (state, expected) in [
        (
            JournalState {
                number: u64::MAX,
                ..state
            },
            "number",
        ),
        (
            JournalState {
                counter: u64::MAX,
                ..state
            },
            "counter",
        ),
        (
            JournalState {
                durable: u64::MAX - 1,
                ..state
            },
            "durable",
        ),
    ] {
        let Err(FormatError::Field { field, .. }) = read(state) else {
            panic!("{expected} is refused");
        };
        assert_eq!(field, expected);
    }
    let mut journal = Journal::new();
    journal.number = u64::MAX;
    let batch = journal.seal(&[data(1, 512)]).unwrap();
    let read = Batch::read(batch.slice(), Vec::new(), &ID, batch.info().position);
    assert!(matches!(
        read,
        Err(FormatError::Field {
            field: "number",
            ..
        })
    ));
}

#[test]
fn the_newer_head_is_chosen_and_one_torn_head_is_survived() {
    let state = JournalState::new(ID, CAPACITY, name(0));
    let copy = |counter| {
        let mut block = vec![0; 4096];
        JournalState { counter, ..state }.encode(&mut block);
        block
    };
    let (a, mut b) = (copy(4), copy(5));
    assert_eq!(JournalState::choose(&a, &b).unwrap().0.counter, 5);
    b[20] ^= 1;
    let (chosen, error) = JournalState::choose(&a, &b).unwrap();
    assert_eq!(chosen.counter, 4);
    assert!(error.is_some());
    assert!(JournalState::choose(&b, &b).is_err());
    assert_eq!(
        JournalState::choose(&vec![0; 4096], &a).unwrap(),
        (chosen, None)
    );
    assert_ne!(JournalState::copy_offset(4), JournalState::copy_offset(5));
}

fn batches() -> impl Strategy<Value = Vec<Vec<u64>>> {
    let len = prop_oneof![Just(512_u64), Just(4096), Just(12288), Just(1024)];
    prop::collection::vec(prop::collection::vec(len, 1..5), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever sectors of the last write reached the disk, everything before it is found.
    #[test]
    fn acknowledged_batches_survive_a_crash_at_every_sector(
        batches in batches(), keep in any::<u64>(), free in 0_usize..3,
    ) {
        let mut journal = Journal::new();
        let mut live = std::collections::VecDeque::new();
        let mut seq = 0;
        for lens in batches {
            let records: Vec<_> =
                lens.iter().zip(seq + 1..).map(|(len, seq)| data(seq, *len)).collect();
            let before = journal.file.clone();
            let (mut head, number) = (journal.space.head(), journal.number);
            let Some(range) = journal.write(&records) else {
                for _ in 0..=free {
                    if let Some((end, number, last)) = live.pop_front() {
                        journal.space.free(end);
                        journal.state.position = end;
                        journal.state.number = number;
                        journal.state.before = name(last);
                    }
                }
                continue;
            };
            let mut torn = journal.file.clone();
            let mut whole = true;
            for (sector, at) in range.clone().step_by(512).enumerate() {
                if keep >> (sector % 64) & 1 == 0 {
                    torn[at..at + 512].copy_from_slice(&before[at..at + 512]);
                    whole &= torn[at..at + 512] == journal.file[at..at + 512];
                }
            }
            let complete = std::mem::replace(&mut journal.file, torn);
            let (end, good, lost, unknown) = journal.scan();
            let last = seq + lens.len() as u64;
            let reached = end.last.seq.get();
            prop_assert!(good.iter().copied().eq(journal.state.before.seq.get() + 1..=reached));
            prop_assert_eq!((lost.len(), unknown, end.damaged), (0, 0, false));
            // What was not acknowledged may be there all the same, but only as a whole.
            prop_assert!(reached == last || reached == seq && !whole);
            if reached == last {
                head = journal.space.head();
            }
            prop_assert_eq!(end.head, head);
            prop_assert_eq!(end.number, number + u64::from(reached == last));
            journal.file = complete;
            seq = last;
            live.push_back((journal.space.head(), journal.number, seq));
        }
    }

    #[test]
    fn no_flipped_bit_is_applied(at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let mut journal = Journal::new();
        for seq in 1..10 {
            journal.write(&[data(seq, 512 * seq)]);
        }
        let used = usize::try_from(journal.space.head()).unwrap();
        let at = usize::try_from(JOURNAL_AREA_OFFSET).unwrap() + at.index(used);
        journal.file[at] ^= 1 << bit;
        let (end, good, lost, unknown) = journal.scan();
        prop_assert!(good.iter().copied().eq(1..=good.len() as u64), "a prefix");
        let found = good.len() + lost.len();
        prop_assert!(found == 9 || unknown == 1 || !end.damaged);
        if !end.damaged {
            prop_assert!(good.len() >= 8, "only the last batch can pass for a torn end");
        }
    }
}
