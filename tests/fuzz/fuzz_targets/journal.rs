//! A target's journal from a file that may hold anything: chosen, walked, and gone on with.
//!
//! Promises: no panic, no endless walk, no more memory than the one buffer; only good batches are applied,
//! and none after damage; what is written next is found by the next walk.
#![no_main]

use blkrep_fuzz::{Input, disk, sealed, within};
use blkrep_io::{Region, Slice};
use blkrep_store::journal::{
    BATCH_BYTES_MIN, Damage, JOURNAL_AREA_OFFSET, JOURNAL_BLOCK_BYTES, JournalState, Scan, ScanEnd,
    Space,
};
use blkrep_types::limits::COUNT_MAX;
use blkrep_types::{ByteLen, Errno};
use libfuzzer_sys::fuzz_target;
use std::cell::Cell;
use twox_hash::XxHash3_64;

/// Two heads and the circular area.
const BLOCKS: usize = 18;

/// A table, and what tests keep of a walk.
const HELD_MAX: usize = 1 << 20;

const WRONG_HEADS: u8 = 1;
const WRONG_BATCHES: u8 = 2;
const WRONG_DATA: u8 = 4;
const BAD_DISK: u8 = 8;

thread_local! {
    static BUFFER: Slice = Region::heap(ByteLen::new(BATCH_BYTES_MIN).as_usize()).whole();
}

/// Makes the checksums of records' bytes right, where they lie as a batch has them, and the sum of all.
fn seal_data(block: &mut [u8]) {
    let count = u32::from_le_bytes(block[96..100].try_into().expect("four bytes"));
    let count = usize::try_from(count).expect("64-bit platform").min(90);
    let front = (128 + count * 40).next_multiple_of(disk::BLOCK);
    let mut at = front;
    for record in 0..count {
        let entry = 128 + record * 40;
        let len = u64::from_le_bytes(
            block[entry + 24..entry + 32]
                .try_into()
                .expect("eight bytes"),
        );
        let len = usize::try_from(len).expect("64-bit platform");
        if block[entry + 38] != 1 {
            continue;
        }
        at = at.next_multiple_of(if len.is_multiple_of(4096) { 4096 } else { 512 });
        let Some(bytes) = at.checked_add(len).and_then(|end| block.get(at..end)) else {
            break;
        };
        let crc = crc32fast::hash(bytes).to_le_bytes();
        block[entry + 32..entry + 36].copy_from_slice(&crc);
        at += len;
    }
    let end = u32::from_le_bytes(block[12..16].try_into().expect("four bytes"));
    let end = usize::try_from(end).expect("64-bit platform");
    if let Some(data) = block.get(front..end) {
        let sum = XxHash3_64::oneshot(data).to_le_bytes();
        block[104..112].copy_from_slice(&sum);
    }
}

fn file(input: &mut Input<'_>, choice: u8) -> Vec<u8> {
    let mut file = disk::file(input, BLOCKS);
    if choice & WRONG_HEADS == 0 {
        for copy in [0, disk::BLOCK] {
            sealed::head(&mut file[copy..], 256);
        }
    }
    if choice & WRONG_BATCHES == 0 {
        for at in (2 * disk::BLOCK..file.len()).step_by(disk::BLOCK) {
            if file[at..].starts_with(b"BLKrBTCH") {
                if choice & WRONG_DATA == 0 {
                    seal_data(&mut file[at..]);
                }
                sealed::batch(&mut file[at..]);
            }
        }
    }
    file
}

/// What a walk told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    good: Vec<u64>,
    lost: usize,
    unknown: usize,
    head: u64,
}

fn walk(state: JournalState, file: &[u8], bad: Option<u64>) -> Option<(ScanEnd, Told)> {
    let reads = Cell::new(0_usize);
    let mut read = |offset: u64, into: &mut [u8]| {
        reads.set(reads.get() + 1);
        assert!(reads.get() < 100_000, "a walk ends");
        if bad == Some(offset / JOURNAL_BLOCK_BYTES) {
            return Err(Errno::EIO);
        }
        let at = usize::try_from(offset).expect("64-bit platform");
        let end = at.checked_add(into.len()).filter(|end| *end <= file.len());
        into.copy_from_slice(&file[at..end.expect("nothing is read behind the journal's end")]);
        Ok(())
    };
    let mut told = Told {
        head: state.position,
        ..Told::default()
    };
    let mut damaged = false;
    let end =
        Scan::new(state, BUFFER.with(Slice::clone)).run(&mut read, &mut |damage| match damage {
            Damage::Good(batch) => {
                assert!(!damaged, "nothing behind damage is applied");
                assert!(!batch.damaged(), "what is applied is what was written");
                for index in 0..batch.records().len() {
                    let _all_of_it = batch.data(index).len();
                }
                told.good.push(batch.info().number);
                told.head = batch.info().end();
            }
            Damage::Lost(batch) => {
                damaged = true;
                told.lost += batch.records().len();
            }
            Damage::Unknown => {
                damaged = true;
                told.unknown += 1;
            }
        });
    let end = end.ok()?;
    assert_eq!(end.damaged, damaged);
    Some((end, told))
}

/// What the engine does with the end of a walk: the batches after it go where they are found again.
fn go_on(state: JournalState, end: &ScanEnd, told: &Told) {
    let space = Space::new(state.capacity, state.position, told.head);
    assert!(space.used() <= state.capacity);
    if let Some(position) = space.place(JOURNAL_BLOCK_BYTES) {
        let offset = space.file_offset(position);
        assert!(offset >= JOURNAL_AREA_OFFSET && offset < JournalState::file_bytes(state.capacity));
    }
    let next = told.good.last().map_or(state.number, |number| number + 1);
    assert!(end.number >= next, "no number is given twice");
    // Forged: nobody counts this far, and nobody reads what would come next.
    if state.counter >= COUNT_MAX || next > COUNT_MAX {
        return;
    }
    let mut block = vec![0; disk::BLOCK];
    let later = JournalState {
        counter: state.counter + 1,
        number: next,
        ..state
    };
    later.encode(&mut block);
    assert_eq!(
        JournalState::decode(&block),
        Ok(later),
        "the head is read as it was written"
    );
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let choice = input.byte();
    let bad = input.byte();
    let file = file(&mut input, choice);
    let bad = (choice & BAD_DISK != 0).then(|| u64::from(bad) % BLOCKS as u64);
    BUFFER.with(|_| ());
    within(HELD_MAX, || {
        let (first, rest) = file.split_at(disk::BLOCK);
        let Ok((state, _)) = JournalState::choose(first, &rest[..disk::BLOCK]) else {
            return;
        };
        // As the engine does before it walks.
        if JournalState::file_bytes(state.capacity) > file.len() as u64 {
            return;
        }
        if let Some((end, told)) = walk(state, &file, bad) {
            go_on(state, &end, &told);
        }
    });
});
