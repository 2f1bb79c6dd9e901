//! Segments and read-ahead against a model that keeps everything in plain lists.
#![allow(clippy::unwrap_used)]

use crate::ahead::{AwayRecord, ReadAhead};
use crate::queue::{QueueLimits, Segments, room_of};
use blkrep_types::{ByteLen, Seq};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

const SEGMENT: u64 = 64 << 10;
const LIMITS: QueueLimits = QueueLimits {
    bytes_max: ByteLen::new(6 * SEGMENT),
    alert_percent: 50,
};

#[derive(Debug, Clone)]
enum Step {
    /// Begins a write of operations with so many sectors each.
    Begin(Vec<u64>),
    /// It ends well, or not.
    End(bool),
    /// So many operations are needed no more.
    Free(usize),
    /// Segments are given back.
    Clear,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(1_u64..40, 1..6).prop_map(Step::Begin),
        4 => any::<bool>().prop_map(|bad| Step::End(!bad)),
        3 => (1_usize..20).prop_map(Step::Free),
        2 => Just(Step::Clear),
        1 => Just(Step::Restart),
    ]
}

#[derive(Debug, Default)]
struct Model {
    /// Operations on disk that are needed: place, sector, length.
    held: VecDeque<(Seq, u32, u64)>,
    writing: Option<Vec<(Seq, u32, u64)>>,
    /// Who wrote each sector last.
    file: BTreeMap<u32, Seq>,
    next: u64,
    freed: Seq,
}

impl Model {
    fn begin(&mut self, segments: &mut Segments, sectors: &[u64]) {
        let Some(room) = segments.room(sectors[0] * 512, &LIMITS) else {
            let whole = u64::try_from(self.file.len()).unwrap();
            assert!(
                whole > 0 || self.writing.is_some(),
                "an empty queue has room"
            );
            return;
        };
        let mut taken = 0;
        let fit = sectors.iter().take_while(|count| {
            taken += **count * 512;
            taken <= room
        });
        let fit: Vec<_> = fit.copied().collect();
        let first = Seq::new(self.next + 1);
        let last = Seq::new(self.next + fit.len() as u64);
        self.next = last.get();
        let bytes = fit.iter().map(|count| room_of(count * 512)).sum();
        let mut sector = segments.take(first, last, bytes).sector;
        let mut parts = Vec::new();
        for (seq, count) in (first.get()..).map(Seq::new).zip(fit) {
            parts.push((seq, sector, count * 512));
            for each in sector..sector + u32::try_from(count).unwrap() {
                let before = self.file.insert(each, seq);
                let needed = |seq: Seq| self.held.iter().any(|held| held.0 == seq);
                assert!(!before.is_some_and(needed), "sector {each} is still needed");
            }
            sector += u32::try_from(count).unwrap();
        }
        let segment = |at: u32| u64::from(at) * 512 / SEGMENT;
        assert_eq!(segment(parts[0].1), segment(sector - 1), "in one segment");
        self.writing = Some(parts);
    }

    fn end(&mut self, segments: &mut Segments, good: bool) {
        let Some(parts) = self.writing.take() else {
            return;
        };
        let kept: Vec<_> = parts
            .into_iter()
            .filter(|part| part.0 > self.freed)
            .collect();
        let bytes = kept.iter().map(|part| part.2).sum();
        segments.written(good.then_some(bytes), Some(&LIMITS));
        if good {
            self.held.extend(kept);
        }
        segments.free_through(self.freed, Some(&LIMITS));
    }

    fn free(&mut self, segments: &mut Segments, count: usize) {
        let through = Seq::new((self.freed.get() + count as u64).min(self.next));
        self.freed = through;
        let mut gone = 0;
        while let Some(part) = self.held.front().filter(|part| part.0 <= through) {
            gone += part.2;
            self.held.pop_front();
        }
        segments.gone(gone);
        segments.free_through(through, Some(&LIMITS));
    }

    fn clear(&self, segments: &mut Segments) {
        let writing = self.writing.iter().flatten();
        let needed: Vec<_> = self.held.iter().chain(writing).map(|part| part.1).collect();
        while let Some(sector) = segments.next_to_clear() {
            let end = sector + u32::try_from(SEGMENT / 512).unwrap();
            let hit = needed.iter().any(|at| (sector..end).contains(at));
            assert!(!hit, "a segment is given back that is still needed");
            segments.cleared(sector);
        }
    }

    fn restart(&mut self) -> Segments {
        self.writing = None;
        let mut segments = Segments::new(ByteLen::new(SEGMENT));
        for (seq, sector, len) in &self.held {
            segments.adopt(*seq, *sector, *len);
        }
        segments.adopted();
        segments
    }
}

proptest! {
    /// Whatever is written, fails, is freed and taken over: nothing that is needed is written over or
    /// given back, nothing is split, and the limit holds.
    #[test]
    fn what_is_needed_stays_where_it_is(steps in prop::collection::vec(step(), 1..300)) {
        let mut segments = Segments::new(ByteLen::new(SEGMENT));
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Begin(sectors) if model.writing.is_none() => model.begin(&mut segments, &sectors),
                Step::Begin(_) => {}
                Step::End(good) => model.end(&mut segments, good),
                Step::Free(count) => model.free(&mut segments, count),
                Step::Clear => model.clear(&mut segments),
                Step::Restart => segments = model.restart(),
            }
            let bytes: u64 = model.held.iter().map(|part| part.2).sum();
            prop_assert_eq!(segments.bytes().get(), bytes);
            prop_assert!(segments.taken() <= LIMITS.bytes_max);
        }
        model.end(&mut segments, true);
        model.free(&mut segments, usize::MAX >> 1);
        model.clear(&mut segments);
        prop_assert!(segments.is_idle(), "what is drained is given back");
    }

    /// Whatever order reads end in: what is handed out is what was asked for, unbroken and right.
    #[test]
    fn what_is_read_ahead_is_right_or_not_there(
        lens in prop::collection::vec((1_u64..300_000, any::<bool>()), 1..60),
        order in any::<u64>(),
        bad in prop::option::of(0_usize..60),
    ) {
        let size = 2 << 20;
        let mut ahead = ReadAhead::new(size);
        let mut memory = vec![0_u32; size / 512];
        let mut file = BTreeMap::new();
        let (mut sector, mut records) = (0, VecDeque::new());
        for (index, (len, gap)) in lens.iter().enumerate() {
            let seq = Seq::new(index as u64 + 1);
            sector += u32::from(*gap);
            records.push_back(AwayRecord { seq, sector, crc: sector + 1, len: usize::try_from(*len).unwrap() });
            for each in 0..u32::try_from(room_of(*len) / 512).unwrap() {
                file.insert(sector + each, if Some(index) == bad { 0 } else { sector + 1 });
            }
            sector += u32::try_from(room_of(*len) / 512).unwrap();
        }
        let (mut reading, mut next, mut coin) = (Vec::new(), Seq::new(1), order);
        let last = Seq::new(lens.len() as u64);
        while next <= last {
            while let Some(record) = records.front().filter(|record| ahead.ask(record)) {
                prop_assert_eq!(ahead.looked(), record.seq);
                records.pop_front();
            }
            reading.extend(std::iter::from_fn(|| ahead.next_read()));
            coin = coin.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            if !reading.is_empty() {
                let read = reading.swap_remove(usize::try_from(coin % reading.len() as u64).unwrap());
                for each in 0..read.bytes / 512 {
                    let from = read.sector + u32::try_from(each).unwrap();
                    memory[read.at / 512 + each] = file[&from];
                }
                let sum = |at: usize, len: usize| {
                    let sectors = &memory[at / 512..(at + len).div_ceil(512)];
                    if sectors.iter().all(|each| *each == sectors[0]) { sectors[0] } else { 0 }
                };
                if let Err(seq) = ahead.done(read.id, true, sum) {
                    prop_assert_eq!(Some(usize::try_from(seq.get() - 1).unwrap()), bad);
                    return Ok(());
                }
            }
            while let Some(at) = ahead.place_of(next) {
                let (len, _) = lens[usize::try_from(next.get() - 1).unwrap()];
                let crc = memory[at / 512];
                let whole = usize::try_from(room_of(len) / 512).unwrap();
                prop_assert!(memory[at / 512..at / 512 + whole].iter().all(|each| *each == crc && crc > 0));
                ahead.passed(next);
                next = next.next();
            }
        }
        prop_assert!(!ahead.is_reading() || !reading.is_empty());
    }
}
