//! The write log in shared memory, as a successor finds it and goes on with it.
//!
//! Words are given as differences to right ones, so that an input of zeroes is a good log. Promises: no
//! panic; a log is refused or makes sense (entries in order, bytes within the ring, none shared); what a
//! successor appends, publishes and frees is what its own successor finds.
#![no_main]

use blkrep_fuzz::{Input, within};
use blkrep_io::Region;
use blkrep_log::{Append, Held, MemoryLog, MemoryLogName, MemoryLogShape};
use blkrep_types::{
    ByteLen, ByteOffset, Extent, Generation, Incarnation, RecordKind, Seq, VolumeIndex,
};
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

const NAME: MemoryLogName = MemoryLogName {
    group: [7; 16],
    generation: Generation::from_bytes([9; 16]),
};
const RUN: Incarnation = Incarnation::new(3);
const RING: u64 = 64 << 10;
const ENTRIES: u64 = 1024;
const HELD_MAX: usize = 1 << 20;

/// Offsets of `docs/format/memory-log.md`.
const BASES: usize = 128;
const BASE_CHOICE: usize = 160;
const HEAD: usize = 192;
const MARKS: usize = 1024;
const HEADER: usize = 4096;
const ENTRY: usize = 64;

thread_local! {
    static REGION: RefCell<Arc<Region>> = RefCell::new(Region::heap(shape().bytes().as_usize()));
}

fn shape() -> MemoryLogShape {
    MemoryLogShape::holding(ByteLen::new(RING))
}

/// A log as a killed predecessor may have left it.
fn leave(region: &Arc<Region>, input: &mut Input<'_>) {
    let (base_run, base, held) = (input.word(), input.word(), u64::from(input.byte()));
    let (choice, head_off) = (u64::from(input.byte()), input.word());
    let place = (
        Incarnation::new(base_run.wrapping_add(2)),
        Seq::new(base.wrapping_add(100)),
    );
    drop(MemoryLog::create(
        Arc::clone(region),
        shape(),
        &NAME,
        RUN,
        place,
    ));
    // Both copies of the base say the same, so that the choice is any.
    for copy in [BASES, BASES + 16] {
        region.store(copy, place.0.get(), Relaxed);
        region.store(copy + 8, place.1.get(), Relaxed);
    }
    region.store(BASE_CHOICE, choice, Relaxed);
    let head = place.1.get().wrapping_add(held).wrapping_add(head_off);
    region.store(HEAD, head, Relaxed);
    for word in 0..4 {
        region.store(MARKS + word * 8, input.word(), Relaxed);
    }
    let mut start = 0_u64;
    for nth in 1..=held {
        let seq = place.1.get().wrapping_add(nth);
        let at = HEADER + usize::try_from(seq % ENTRIES).expect("few entries") * ENTRY;
        let (what, len) = (input.word(), input.word());
        // A write of 512 bytes to the first volume, published and done.
        let right = [seq, place.0.get().min(3), 1, nth * 512, 512, start, 3];
        let off = [
            input.word(),
            input.word(),
            what,
            input.word(),
            len,
            input.word(),
            input.word(),
        ];
        for (word, (right, off)) in right.into_iter().zip(off).enumerate() {
            region.store(at + word * 8, right.wrapping_add(off), Relaxed);
        }
        start = start.wrapping_add(
            512u64
                .wrapping_add(len)
                .checked_next_multiple_of(512)
                .unwrap_or(0),
        );
    }
}

fn entries(log: &MemoryLog) -> Vec<Held> {
    let mut all = Vec::new();
    let mut seq = log.base().1;
    while seq < log.head().1 {
        seq = seq.next();
        let held = log.entry(seq);
        assert_eq!(held.record.seq, seq);
        let len = held.record.data_len().as_usize();
        if held.record.kind.has_data() {
            assert_eq!(log.data(held.position, len).len(), len);
        }
        all.push(held);
    }
    all
}

/// What a successor does: settles what it found, appends, frees.
fn go_on(log: &mut MemoryLog, input: &mut Input<'_>) {
    for held in entries(log) {
        if !held.local_done {
            log.set_local_done(held.record.seq);
        }
    }
    for link in 0..16 {
        let mark = log.mark(link);
        log.set_mark(link, &mark);
        assert_eq!(log.mark(link), mark);
    }
    for _ in 0..8 {
        let len = 512 * (1 + u64::from(input.byte()));
        let append = Append {
            kind: RecordKind::Data { mirror: false },
            volume: VolumeIndex::new(1),
            extent: Some(Extent::new(ByteOffset::new(4096), ByteLen::new(len)).expect("small")),
            link: None,
            local: true,
        };
        if log.head().1.get() > u64::MAX - 16 {
            return;
        }
        if let Some(new) = log.append(&append) {
            log.data(new.position, append.extent.expect("given").len().as_usize())
                .clear();
            log.publish(new.seq);
        } else if log.head() > log.base() {
            log.free_through(log.base().1.next());
        }
    }
    assert!(
        log.used().get() <= log.capacity().get(),
        "the ring is not overfull"
    );
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    REGION.with_borrow(|region| {
        leave(region, &mut input);
        within(HELD_MAX, || {
            let recover = |run| MemoryLog::recover(Arc::clone(region), shape(), &NAME, run);
            let Ok(mut log) = recover(RUN.next()) else {
                return;
            };
            go_on(&mut log, &mut input);
            let (all, base, head) = (entries(&log), log.base(), log.head());
            drop(log);
            let next = recover(RUN.next().next()).expect("our own log is good");
            assert_eq!(
                (entries(&next), next.base(), next.head()),
                (all, base, head)
            );
        });
    });
});
