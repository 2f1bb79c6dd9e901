//! What a line would have to carry, measured without one.
//!
//! Owns the sums of a simulated link: bytes as they would be on the line, second by second, and the queue that a
//! line of a stated rate would need. Time and bytes enter, figures leave. A mirror is counted apart: it goes as fast
//! as the line lets it, so that it needs time and not a rate. Never sends anything.

use blkrep_types::{ByteLen, Nanos};
use std::time::Duration;

/// Seconds that are remembered: the longest window.
const SECONDS: usize = 60;

/// The windows in which the most is looked for, in seconds.
const WINDOWS: [usize; 3] = [1, 10, SECONDS];

/// Bytes, as they are and as they would be on the line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes of data.
    pub plain: ByteLen,
    /// Frames.
    pub framed: ByteLen,
}

impl Carried {
    fn add(&mut self, plain: u64, framed: u64) {
        self.plain = ByteLen::new(self.plain.get().saturating_add(plain));
        self.framed = ByteLen::new(self.framed.get().saturating_add(framed));
    }
}

/// A batch that would have been sent.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Bytes of writes.
    pub writes: u64,
    /// Bytes of mirror blocks.
    pub mirror: u64,
    /// What both became.
    pub framed: u64,
}

/// What a real link would need. Rates are for a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// How long it was measured.
    pub span: Duration,
    /// Writes.
    pub writes: Carried,
    /// Mirror blocks.
    pub mirror: Carried,
    /// Writes on the line, on average.
    pub average: ByteLen,
    /// The most in a second, in ten on average, and in sixty.
    pub peaks: [ByteLen; 3],
    /// The line that the following is about.
    pub rate: ByteLen,
    /// The longest queue that writes would have made.
    pub queue: ByteLen,
    /// How long the mirror blocks would have taken it alone.
    pub mirror_time: Duration,
}

/// The sums of one link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meter {
    begun: Nanos,
    rate: u64,
    writes: Carried,
    mirror: Carried,
    /// Bytes of writes in each of the last seconds, by the second's number.
    seconds: [u64; SECONDS],
    /// The number of the newest.
    second: u64,
    peaks: [u64; 3],
    queue: u64,
    queue_max: u64,
    drained: Nanos,
}

impl Meter {
    /// Begins to measure, for a line of so many bytes a second.
    #[must_use]
    pub fn new(now: Nanos, rate: ByteLen) -> Self {
        Self {
            begun: now,
            rate: rate.get().max(1),
            writes: Carried::default(),
            mirror: Carried::default(),
            seconds: [0; SECONDS],
            second: 0,
            peaks: [0; 3],
            queue: 0,
            queue_max: 0,
            drained: now,
        }
    }

    /// States another rate. What the old one would have queued is forgotten.
    pub fn set_rate(&mut self, now: Nanos, rate: ByteLen) {
        let rate = rate.get().max(1);
        if rate != self.rate {
            (self.rate, self.queue, self.queue_max, self.drained) = (rate, 0, 0, now);
        }
    }

    /// A batch would have been sent.
    pub fn took(&mut self, now: Nanos, frame: Frame) {
        let plain = frame.writes.saturating_add(frame.mirror);
        // A frame without data, of zeroes for instance, is one of writes.
        let part = match plain {
            0 => 0,
            _ => u128::from(frame.framed) * u128::from(frame.mirror) / u128::from(plain),
        };
        let mirrored = u64::try_from(part).expect("a part of the frame");
        let written = frame.framed - mirrored;
        self.mirror.add(frame.mirror, mirrored);
        self.writes.add(frame.writes, written);
        self.count(now, written);
        self.fill(now, written);
    }

    fn count(&mut self, now: Nanos, bytes: u64) {
        let second = now.since(self.begun).as_secs();
        let skipped = second - self.second;
        for passed in 1..=skipped.min(SECONDS as u64) {
            self.seconds[place(self.second + passed)] = 0;
        }
        if skipped > SECONDS as u64 {
            self.seconds = [0; SECONDS];
        }
        self.second = second;
        self.seconds[place(second)] += bytes;
        for (peak, window) in self.peaks.iter_mut().zip(WINDOWS) {
            let back = 0..u64::try_from(window).expect("small").min(second + 1);
            let sum = back.map(|back| self.seconds[place(second - back)]).sum();
            *peak = (*peak).max(sum);
        }
    }

    fn fill(&mut self, now: Nanos, bytes: u64) {
        let span = now.since(self.drained).as_nanos();
        let carried = span * u128::from(self.rate) / 1_000_000_000;
        let carried = u64::try_from(carried).unwrap_or(u64::MAX);
        self.drained = now;
        self.queue = self.queue.saturating_sub(carried).saturating_add(bytes);
        self.queue_max = self.queue_max.max(self.queue);
    }

    /// What a real link would need, by what was seen so far.
    #[must_use]
    pub fn needs(&self, now: Nanos) -> Needs {
        let span = now.since(self.begun);
        let nanos = span.as_nanos().max(1);
        let average = u128::from(self.writes.framed.get()) * 1_000_000_000 / nanos;
        let average = average.min(u128::from(self.writes.framed.get()));
        let windows = [1, 10, 60];
        let mut peaks = [ByteLen::ZERO; 3];
        for ((peak, most), window) in peaks.iter_mut().zip(self.peaks).zip(windows) {
            *peak = ByteLen::new(most / window);
        }
        let time = u128::from(self.mirror.framed.get()) * 1000 / u128::from(self.rate);
        Needs {
            span,
            writes: self.writes,
            mirror: self.mirror,
            average: ByteLen::new(u64::try_from(average).expect("at most what was sent")),
            peaks,
            rate: ByteLen::new(self.rate),
            queue: ByteLen::new(self.queue_max),
            mirror_time: Duration::from_millis(u64::try_from(time).unwrap_or(u64::MAX)),
        }
    }
}

fn place(second: u64) -> usize {
    usize::try_from(second % SECONDS as u64).expect("small")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Nanos {
        Nanos::new(5_000_000_000 + millis * 1_000_000)
    }

    fn writes(framed: u64) -> Frame {
        Frame {
            writes: framed * 3,
            mirror: 0,
            framed,
        }
    }

    #[test]
    fn peaks_are_those_of_the_windows() {
        let mut meter = Meter::new(at(0), ByteLen::new(1000));
        // 100 a second for two minutes, 5,000 in one second of them, 2,000 in each of five others.
        for second in 0..120 {
            let bytes = match second {
                30 => 5_000,
                70..75 => 2_000,
                _ => 100,
            };
            meter.took(at(second * 1000 + 500), writes(bytes));
        }
        let needs = meter.needs(at(120_000));
        let most = needs.peaks.map(ByteLen::get);
        assert_eq!(
            most,
            [
                5_000,
                (5 * 2_000 + 5 * 100) / 10,
                (5_000 + 5 * 2_000 + 54 * 100) / 60
            ]
        );
        assert_eq!(needs.average.get(), (114 * 100 + 15_000) / 120);
        assert_eq!(needs.writes.plain.get(), 3 * needs.writes.framed.get());
    }

    #[test]
    fn seconds_that_nobody_wrote_in_count_as_empty() {
        let mut meter = Meter::new(at(0), ByteLen::new(1000));
        meter.took(at(0), writes(6_000));
        meter.took(at(59_000), writes(6_000));
        meter.took(at(600_000), writes(600));
        let most = meter.needs(at(600_000)).peaks.map(ByteLen::get);
        assert_eq!(most, [6_000, 600, 200]);
    }

    #[test]
    fn the_queue_is_what_the_stated_rate_would_leave() {
        let mut meter = Meter::new(at(0), ByteLen::new(1000));
        meter.took(at(0), writes(3_000));
        meter.took(at(1_000), writes(500));
        assert_eq!(meter.needs(at(1_000)).queue.get(), 3_000);
        meter.took(at(1_500), writes(2_000));
        assert_eq!(
            meter.needs(at(1_500)).queue.get(),
            4_000,
            "2,500, less 500, and 2,000"
        );
        meter.took(at(60_000), writes(1));
        assert_eq!(
            meter.needs(at(60_000)).queue.get(),
            4_000,
            "the longest is kept"
        );
        meter.set_rate(at(60_000), ByteLen::new(1_000_000));
        assert_eq!(meter.needs(at(60_000)).queue.get(), 0);
    }

    #[test]
    fn a_mirror_needs_time_and_no_rate() {
        let mut meter = Meter::new(at(0), ByteLen::new(1000));
        let frame = Frame {
            writes: 1_000,
            mirror: 9_000,
            framed: 5_000,
        };
        meter.took(at(0), frame);
        let needs = meter.needs(at(1_000));
        assert_eq!(
            (needs.mirror.plain.get(), needs.mirror.framed.get()),
            (9_000, 4_500)
        );
        assert_eq!(
            (needs.writes.plain.get(), needs.writes.framed.get()),
            (1_000, 500)
        );
        assert_eq!(needs.mirror_time, Duration::from_millis(4_500));
        assert_eq!((needs.queue.get(), needs.peaks[0].get()), (500, 500));
        assert_eq!(needs.average.get(), 500);
    }
}
