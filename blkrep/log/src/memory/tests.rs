#![allow(clippy::unwrap_used)]

use super::*;
use blkrep_types::limits::COUNT_MAX;
use proptest::prelude::*;
use std::collections::VecDeque;

const NAME: MemoryLogName = MemoryLogName {
    group: [7; 16],
    generation: Generation::from_bytes([9; 16]),
};
const RUN: Incarnation = Incarnation::new(3);
const BASE: Place = (Incarnation::new(2), Seq::new(100));

fn shape() -> MemoryLogShape {
    MemoryLogShape::holding(ByteLen::new(64 << 10))
}

fn region() -> Arc<Region> {
    Region::heap(usize_of(shape().bytes().get()))
}

fn log(region: &Arc<Region>) -> MemoryLog {
    MemoryLog::create(Arc::clone(region), shape(), &NAME, RUN, BASE)
}

fn extent(len: u64) -> Extent {
    Extent::new(ByteOffset::new(4096), ByteLen::new(len)).unwrap()
}

fn data(len: u64) -> Append {
    Append {
        kind: RecordKind::Data { mirror: false },
        volume: VolumeIndex::new(1),
        extent: Some(extent(len)),
        link: None,
        local: true,
    }
}

fn zero() -> Append {
    Append {
        kind: RecordKind::Zero {
            mirror: false,
            free: true,
        },
        ..data(1 << 30)
    }
}

/// A fuzzer's: a record set back to an old copy met an empty log of a later run, and gave names of the
/// older run after it, which its own successor then refused.
#[test]
fn a_log_of_a_later_run_is_not_taken_over() {
    let region = region();
    drop(log(&region));
    let earlier = Incarnation::new(1);
    assert!(MemoryLog::recover(Arc::clone(&region), shape(), &NAME, earlier).is_err());
    assert!(MemoryLog::recover(region, shape(), &NAME, BASE.0).is_ok());
}

/// A fuzzer's: positions near the end of all numbers overflowed, and a slot over the end of the ring was
/// read behind the memory.
#[test]
fn bytes_that_no_slot_can_have_are_refused() {
    for start in [u64::MAX - 511, COUNT_MAX + 512, 1, (64 << 10) - 512] {
        let region = region();
        let mut first = log(&region);
        let one = first.append(&data(4096)).unwrap();
        let at = HEADER_BYTES + usize_of(one.seq.get() % shape().entries) * ENTRY_BYTES;
        region.store(at + entry::DATA, start, Relaxed);
        let recovered = MemoryLog::recover(region, shape(), &NAME, RUN.next());
        assert!(recovered.is_err(), "bytes at {start}");
    }
}

#[test]
fn a_successor_reads_what_its_predecessor_appended() {
    let region = region();
    let mut first = log(&region);
    let one = first.append(&data(4096)).unwrap();
    first.data(one.position, 4096).write(0, b"bytes");
    first.publish(one.seq);
    first.set_local_done(one.seq);
    let two = first.append(&data(512)).unwrap();
    let three = first
        .append(&Append {
            link: Some(5),
            local: false,
            ..zero()
        })
        .unwrap();
    first.set_mark(
        5,
        &Mark {
            flags: 3,
            held: one.seq,
            acked: BASE,
        },
    );
    drop(first);
    let second = MemoryLog::recover(region, shape(), &NAME, RUN.next()).unwrap();
    assert_eq!((second.base(), second.head()), (BASE, (RUN, three.seq)));
    let held = second.entry(one.seq);
    assert!(held.published && held.local_done);
    let mut bytes = [0; 5];
    second.data(held.position, 4096).read(0, &mut bytes);
    assert_eq!(&bytes, b"bytes");
    let held = second.entry(two.seq);
    assert!(!held.published && !held.local_done);
    let held = second.entry(three.seq);
    assert!(held.published && held.local_done && held.link == Some(5));
    assert_eq!(
        second.mark(5),
        Mark {
            flags: 3,
            held: one.seq,
            acked: BASE
        }
    );
    assert_eq!(second.mark(4), Mark::default());
}

#[test]
fn a_successor_goes_on_with_the_order_under_its_own_run() {
    let region = region();
    let mut first = log(&region);
    let last = first.append(&data(512)).unwrap().seq;
    let mut second = MemoryLog::recover(Arc::clone(&region), shape(), &NAME, RUN.next()).unwrap();
    let next = second.append(&data(512)).unwrap().seq;
    assert_eq!(next, last.next());
    assert_eq!(second.entry(last).record.incarnation, RUN);
    assert_eq!(second.entry(next).record.incarnation, RUN.next());
    second.free_through(last);
    assert_eq!(second.base(), (RUN, last));
}

#[test]
fn memory_of_another_group_history_or_size_is_refused() {
    let region = region();
    drop(log(&region));
    let recover = |shape, name: &MemoryLogName| {
        MemoryLog::recover(Arc::clone(&region), shape, name, RUN.next()).unwrap_err()
    };
    for name in [
        MemoryLogName {
            group: [8; 16],
            ..NAME
        },
        MemoryLogName {
            generation: Generation::NONE,
            ..NAME
        },
    ] {
        assert!(recover(shape(), &name).to_string().contains("another"));
    }
    let smaller = MemoryLogShape::holding(ByteLen::new(32 << 10));
    assert!(recover(smaller, &NAME).to_string().contains("another size"));
    let empty = Region::heap(usize_of(shape().bytes().get()));
    assert!(MemoryLog::recover(empty, shape(), &NAME, RUN).is_err());
}

#[test]
fn a_corrupt_entry_is_refused() {
    let region = region();
    let mut first = log(&region);
    let seq = first.append(&data(512)).unwrap().seq;
    let at = first.entry_at(seq);
    for (word, value) in [
        (entry::WHAT, 99),
        (entry::SEQ, 5),
        (entry::LEN, 0),
        (entry::INCARNATION, 9),
        (entry::STATE, 8),
    ] {
        let good = region.load(at + word, Relaxed);
        region.store(at + word, value, Relaxed);
        assert!(MemoryLog::recover(Arc::clone(&region), shape(), &NAME, RUN.next()).is_err());
        region.store(at + word, good, Relaxed);
    }
    assert!(MemoryLog::recover(region, shape(), &NAME, RUN.next()).is_ok());
}

/// A write to the second volume whose bytes were never complete became nothing after a kill, and
/// went over the wire as nothing "of the second volume", which no target takes: the link came up
/// and fell down for ever. Found by the simulator (seeds 516 and 595).
#[test]
fn an_entry_that_became_nothing_names_no_volume() {
    let region = region();
    let mut log = log(&region);
    let seq = log.append(&data(512)).unwrap().seq;
    log.replace_kind(seq, RecordKind::Void);
    let record = log.entry(seq).record;
    assert_eq!(
        (record.volume, record.extent),
        (VolumeIndex::default(), None)
    );
}

#[test]
fn a_full_log_takes_nothing_and_a_freed_one_the_largest_slot() {
    let region = region();
    let mut log = log(&region);
    let mut last = BASE.1;
    while let Some(appended) = log.append(&data(4096)) {
        last = appended.seq;
    }
    assert_eq!(log.used(), log.capacity());
    log.free_through(last);
    assert_eq!(log.used(), ByteLen::ZERO);
    let whole = log.append(&data(log.capacity().get())).unwrap();
    assert_eq!(whole.position, 0);
    let mut entries = 1;
    while log.append(&zero()).is_some() {
        entries += 1;
    }
    assert_eq!(
        entries,
        shape().entries,
        "entries have a limit of their own"
    );
}

/// A mirror of an empty volume reserves a slot for every block and finds zeroes in each.
#[test]
fn slots_of_entries_that_became_zeroes_are_freed_with_them() {
    let region = region();
    let mut log = log(&region);
    for _ in 0..100 {
        let block = log.append(&data(16 << 10)).unwrap();
        log.replace_kind(
            block.seq,
            RecordKind::Zero {
                mirror: true,
                free: false,
            },
        );
        log.publish(block.seq);
        log.free_through(block.seq);
        assert_eq!(log.used(), ByteLen::ZERO);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(u64),
    Zero,
    Publish(u8),
    BecomeZero(u8),
    Free(u8),
    Lend(u8),
    /// Of an operation, and whether it wrote the bytes out.
    TakeBack(u8, bool),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_u64..24).prop_map(|sectors| Step::Append(sectors * 512)),
        1 => Just(Step::Zero),
        2 => any::<u8>().prop_map(Step::Publish),
        1 => any::<u8>().prop_map(Step::BecomeZero),
        2 => any::<u8>().prop_map(Step::Free),
        2 => any::<u8>().prop_map(Step::Lend),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(of, wrote)| Step::TakeBack(of, wrote)),
        1 => Just(Step::Restart),
    ]
}

/// What the model knows of an entry: place, length of bytes, first byte, published.
type Known = VecDeque<(Seq, usize, u8, bool)>;

fn check(log: &MemoryLog, known: &Known) {
    for (seq, len, byte, published) in known {
        let held = log.entry(*seq);
        assert_eq!(held.published, *published);
        if let Some(away) = held.away {
            assert_eq!(away, away_of(*seq), "a successor finds what is away");
        } else if held.record.kind.has_data() {
            let slice = log.data(held.position, *len);
            assert!(
                slice.with(|bytes| bytes.iter().all(|b| b == byte)),
                "entry {seq} kept its bytes"
            );
            let align = if *len >= PAGE_BYTES { PAGE_BYTES } else { 512 };
            assert!(held.position.is_multiple_of(align));
        }
    }
}

fn away_of(seq: Seq) -> Away {
    let seq = u32::try_from(seq.get()).unwrap();
    Away {
        sector: seq,
        crc: !seq,
    }
}

/// What an operation reads of the log: its entry, length of bytes, first byte.
type Reading = Vec<(Seq, usize, usize, u8)>;

/// An operation that writes bytes out reads its own to the end, whatever is freed meanwhile.
fn check_reading(log: &MemoryLog, reading: &Reading) {
    for (seq, position, len, byte) in reading {
        let slice = log.data(*position, *len);
        assert!(
            slice.with(|bytes| bytes.iter().all(|b| b == byte)),
            "what is lent of {seq} stays as it is"
        );
    }
}

#[test]
fn what_went_away_leaves_its_slot_and_its_name() {
    let region = region();
    let mut log = log(&region);
    let mut seqs = Vec::new();
    while let Some(appended) = log.append(&data(4096)) {
        log.publish(appended.seq);
        log.set_local_done(appended.seq);
        seqs.push(appended.seq);
    }
    let (first, last) = (seqs[4], seqs[9]);
    for seq in &seqs[4..10] {
        log.lend(*seq);
    }
    assert!(log.append(&data(512)).is_none(), "lent is not free");
    for seq in &seqs[4..10] {
        log.take_back(*seq, Some(away_of(*seq)));
    }
    let new = log.append(&data(6 * 4096)).expect("six slots in a row");
    log.data(new.position, 6 * 4096)
        .with_mut(|bytes| bytes.fill(1));
    log.set_queue_file(77);
    drop(log);
    let mut log = MemoryLog::recover(region, shape(), &NAME, RUN.next()).unwrap();
    assert_eq!(log.queue_file(), 77);
    assert_eq!(log.entry(first).away, Some(away_of(first)));
    assert_eq!(log.entry(last.next()).away, None);
    log.free_through(new.seq);
    assert_eq!(log.used(), ByteLen::ZERO);
}

/// A queue's disk that hangs holds what it was given to write, and nothing else of the log.
#[test]
fn a_slot_that_is_lent_is_nobodys_until_it_is_taken_back() {
    let region = region();
    let mut log = log(&region);
    let lent = log.append(&data(4096)).unwrap().seq;
    log.publish(lent);
    log.set_local_done(lent);
    log.lend(lent);
    log.free_through(lent);
    assert_eq!(log.used(), ByteLen::new(4096), "its entry is gone");
    assert!(log.append(&data(64 << 10)).is_none());
    assert!(log.append(&data(60 << 10)).is_some());
    log.take_back(lent, Some(away_of(lent)));
    assert_eq!(log.used(), ByteLen::new(60 << 10));
}

#[test]
fn an_entry_that_is_away_and_unfinished_is_refused() {
    for state in [4, 5, 6, 8, 16] {
        let region = region();
        let mut first = log(&region);
        let seq = first.append(&data(512)).unwrap().seq;
        region.store(first.entry_at(seq) + entry::STATE, state, Relaxed);
        assert!(MemoryLog::recover(region, shape(), &NAME, RUN.next()).is_err());
    }
}

/// Found by the fuzz target `memory_log`.
#[test]
fn an_entry_that_is_away_and_larger_than_the_memory_is_refused() {
    let region = region();
    let mut first = log(&region);
    let seq = first.append(&data(512)).unwrap().seq;
    let at = first.entry_at(seq);
    region.store(at + entry::STATE, 7, Relaxed);
    let recovered = || MemoryLog::recover(Arc::clone(&region), shape(), &NAME, RUN.next());
    assert!(recovered().is_ok());
    region.store(at + entry::LEN, shape().data_bytes + 512, Relaxed);
    assert!(recovered().is_err());
}

proptest! {
    /// Whatever is appended, written out, freed and taken over, no entry's bytes are given to another.
    #[test]
    fn bytes_belong_to_one_entry(steps in prop::collection::vec(step(), 1..200)) {
        let region = region();
        let mut log = log(&region);
        let (mut known, mut reading) = (Known::new(), Reading::new());
        let mut run = RUN;
        for (number, step) in (0_u8..=255).cycle().zip(steps) {
            let pick = |of: u8| (!known.is_empty()).then(|| usize::from(of) % known.len());
            match step {
                Step::Append(len) => if let Some(appended) = log.append(&data(len)) {
                    let len = usize_of(len);
                    log.data(appended.position, len).with_mut(|bytes| bytes.fill(number));
                    known.push_back((appended.seq, len, number, false));
                },
                Step::Zero => if let Some(appended) = log.append(&zero()) {
                    known.push_back((appended.seq, 0, 0, true));
                },
                Step::Publish(of) => if let Some(index) = pick(of).filter(|i| !known[*i].3) {
                    log.publish(known[index].0);
                    known[index].3 = true;
                },
                Step::BecomeZero(of) => if let Some(index) = pick(of).filter(|i| !known[*i].3) {
                    log.replace_kind(known[index].0, RecordKind::Zero { mirror: true, free: false });
                },
                Step::Free(of) => if let Some(index) = pick(of) {
                    log.free_through(known[index].0);
                    known.drain(..=index);
                },
                Step::Lend(of) => if let Some(index) = pick(of) {
                    let (seq, len, byte, published) = known[index];
                    let held = log.entry(seq);
                    let here = published && held.record.kind.has_data() && held.away.is_none();
                    if here && reading.iter().all(|read| read.0 != seq) {
                        log.set_local_done(seq);
                        log.lend(seq);
                        reading.push((seq, held.position, len, byte));
                    }
                },
                Step::TakeBack(of, wrote) => if !reading.is_empty() {
                    let read = reading.swap_remove(usize::from(of) % reading.len());
                    log.take_back(read.0, wrote.then(|| away_of(read.0)));
                },
                Step::Restart => {
                    reading.clear();
                    run = run.next();
                    drop(log);
                    log = MemoryLog::recover(Arc::clone(&region), shape(), &NAME, run).unwrap();
                }
            }
            check(&log, &known);
            check_reading(&log, &reading);
        }
    }
}
