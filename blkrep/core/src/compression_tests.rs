//! A link, a line and a compressor in arithmetic: the policy decides, the sums say whether it was right.

use super::*;

const MIB: usize = 1 << 20;

/// Feeds a policy with batches of 1 MiB over a line, and counts the time that the link needs.
struct Model {
    policy: Policy,
    now: Nanos,
    /// Nanoseconds of the line for a byte, in thousandths.
    line: u64,
    /// Nanoseconds of packing a byte, in thousandths.
    packing: u64,
    /// What is left of a batch, in percent.
    left: u64,
    packed: u64,
}

impl Model {
    fn new(line: u64, packing: u64, left: u64) -> Self {
        let mut policy = Policy::new(Compression::Adaptive);
        policy.connected(true);
        Self {
            policy,
            now: Nanos::new(1),
            line,
            packing,
            left,
            packed: 0,
        }
    }

    fn span(rate: u64, bytes: usize) -> Duration {
        Duration::from_nanos(rate * bytes as u64 / 1000)
    }

    /// One batch after the other, packed and then sent; the writer always has more.
    fn batch(&mut self) {
        let mut wire = MIB;
        if self.policy.wants(self.now, MIB) {
            let spent = Self::span(self.packing, MIB);
            self.now = self.now.after(spent);
            wire = MIB * usize::try_from(self.left).unwrap_or(100) / 100;
            self.policy.packed(self.now, spent, MIB, wire);
            self.packed += 1;
        }
        let waited = Self::span(self.line, wire);
        self.now = self.now.after(waited);
        self.policy.line_took(self.now, wire, waited, true);
    }

    fn run(&mut self, batches: u64) -> Duration {
        let begun = self.now;
        self.packed = 0;
        (0..batches).for_each(|_| self.batch());
        self.now.since(begun)
    }

    /// What the same takes without packing.
    fn off(&self, batches: u64) -> Duration {
        Self::span(self.line, MIB) * u32::try_from(batches).unwrap_or(u32::MAX)
    }
}

/// 100 Mbit/s is 80 ns for a byte; zstd takes about 2.5.
const SLOW: u64 = 80_000;
const ZSTD: u64 = 2_500;

#[test]
fn a_slow_line_gets_what_is_smaller() {
    let mut model = Model::new(SLOW, ZSTD, 30);
    let (took, off) = (model.run(200), model.off(200));
    assert!(model.packed >= 190, "{} of 200 packed", model.packed);
    assert!(took * 2 < off, "{took:?} against {off:?}");
    assert_eq!(model.policy.packing(model.now), Packing::Packed);
}

#[test]
fn what_does_not_get_smaller_costs_next_to_nothing() {
    for line in [SLOW, 8_000, 800] {
        let mut model = Model::new(line, ZSTD, 100);
        let (took, off) = (model.run(2_000), model.off(2_000));
        assert!(
            took < off + off / 100 + Duration::from_millis(20),
            "{line}: {took:?} {off:?}"
        );
        assert!(model.packed < 60, "{line}: {} tries", model.packed);
        assert_eq!(model.policy.packing(model.now), Packing::Incompressible);
    }
}

#[test]
fn a_line_faster_than_the_compressor_gets_plain_frames() {
    // 10 Gbit/s.
    let mut model = Model::new(800, ZSTD, 30);
    let (took, off) = (model.run(10_000), model.off(10_000));
    assert!(took < off + off / 100, "{took:?} {off:?}");
    assert_eq!(model.policy.packing(model.now), Packing::LineFaster);
}

#[test]
fn whatever_line_and_data_it_is_never_slower_than_off() {
    for line in [300, 800, 1_600, 2_500, 3_500, 5_000, 8_000, 20_000, SLOW] {
        for left in [5, 20, 30, 50, 70, 90, 95, 100] {
            for packing in [600, ZSTD, 10_000] {
                let mut model = Model::new(line, packing, left);
                let (took, off) = (model.run(3_000), model.off(3_000));
                let noise = off / 50 + Duration::from_millis(40);
                assert!(
                    took < off + noise,
                    "{line} {left} {packing}: {took:?} {off:?}"
                );
            }
        }
    }
}

#[test]
fn data_that_becomes_compressible_is_noticed_within_seconds() {
    let mut model = Model::new(SLOW, ZSTD, 100);
    model.run(1_000);
    assert_eq!(model.policy.packing(model.now), Packing::Incompressible);
    model.left = 30;
    let begun = model.now;
    while model.policy.packing(model.now) != Packing::Packed {
        model.batch();
        assert!(model.now.since(begun) <= REST_MAX + Duration::from_millis(200));
    }
    model.run(100);
    assert_eq!(model.packed, 100);
}

#[test]
fn every_other_batch_that_gets_smaller_is_worth_trying_all() {
    let mut model = Model::new(SLOW, ZSTD, 30);
    let mut took = Duration::ZERO;
    for turn in 0..1_000 {
        model.left = if turn % 2 == 0 { 100 } else { 30 };
        took += model.run(1);
    }
    let off = model.off(1_000);
    assert!(took * 100 < off * 70, "{took:?} {off:?}");
}

#[test]
fn a_line_that_takes_all_at_once_is_left_alone() {
    let mut policy = Policy::new(Compression::Adaptive);
    policy.connected(true);
    let mut now = Nanos::new(1);
    for _ in 0..10_000 {
        assert!(!policy.wants(now, MIB));
        now = now.after(Duration::from_micros(100));
        policy.line_took(now, 64 << 10, Duration::from_micros(60), false);
    }
    assert_eq!(policy.packing(now), Packing::LineIdle);
}

#[test]
fn small_buffers_that_wait_for_each_other_say_nothing_of_the_line() {
    let mut policy = Policy::new(Compression::Adaptive);
    policy.connected(true);
    for turn in 1..10_000 {
        let now = Nanos::new(turn * 1_000_000);
        policy.line_took(now, 4 << 10, Duration::from_millis(1), true);
        assert!(!policy.wants(now, 4 << 10));
    }
}

#[test]
fn a_line_that_became_faster_is_noticed_while_packing() {
    let mut model = Model::new(SLOW, ZSTD, 30);
    model.run(100);
    assert_eq!(model.policy.packing(model.now), Packing::Packed);
    // The compressor is the slower one now: nothing waits behind what is sent.
    let mut batches = 0;
    while model.policy.wants(model.now, MIB) {
        model.now = model.now.after(Model::span(ZSTD, MIB));
        model
            .policy
            .packed(model.now, Model::span(ZSTD, MIB), MIB, MIB * 3 / 10);
        model
            .policy
            .line_took(model.now, MIB * 3 / 10, Duration::from_micros(50), false);
        batches += 1;
        assert!(batches < 200, "it goes on for ever");
    }
    assert_eq!(model.policy.packing(model.now), Packing::LineIdle);
}

#[test]
fn a_writer_below_the_packed_line_stays_packed() {
    let mut model = Model::new(SLOW, ZSTD, 30);
    model.run(100);
    // 20 MB/s: more than the line takes plain, less than it takes packed.
    for _ in 0..2_000 {
        assert!(model.policy.wants(model.now, MIB));
        let wire = MIB * 3 / 10;
        model
            .policy
            .packed(model.now, Model::span(ZSTD, MIB), MIB, wire);
        model.now = model.now.after(Duration::from_millis(50));
        model
            .policy
            .line_took(model.now, wire, Duration::from_micros(100), false);
    }
}

#[test]
fn what_is_set_and_what_the_target_takes_come_first() {
    let now = Nanos::new(5);
    let mut policy = Policy::new(Compression::On);
    assert_eq!(policy.packing(now), Packing::NotTaken);
    policy.connected(true);
    assert!(policy.wants(now, PACK_BYTES_MIN) && !policy.wants(now, PACK_BYTES_MIN - 1));
    policy.packed(now, Duration::from_secs(1), MIB, MIB);
    assert!(policy.wants(now, MIB), "on is on");
    policy.set(Compression::Off);
    assert_eq!(policy.packing(now), Packing::Off);
    assert!(!policy.wants(now, MIB));
}
