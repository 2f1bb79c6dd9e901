//! Whether to compress what a link sends.
//!
//! Owns the decision for each batch. What the operator set, what packing took and saved, and how fast
//! the line took bytes enter; yes or no leaves, and why not. Time is handed in. Never packs anything.
//!
//! Packing a batch takes time and saves the time that the line would have needed for what is not
//! sent. It pays where the second is more. `adaptive` packs only where that was measured:
//!
//! ```text
//!            a queue waited for the line          packing cost more than it saved
//!   Unknown ──────────────────────────► Packing ◄──────────────────────────────► Resting
//!      ▲                                   │        after 100 ms, 200 ms, .. 6.4 s   │
//!      └── the line takes far more than it was measured to take ──────────────┘
//! ```

use blkrep_types::Nanos;
use std::time::Duration;

/// What an operator sets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// Never.
    Off,
    /// Every batch that gets smaller.
    On,
    /// Where it makes the link faster.
    #[default]
    Adaptive,
}

/// What a link does about compression now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Packing {
    /// Nothing: it is set so.
    #[default]
    Off,
    /// Nothing: the target does not take packed frames.
    NotTaken,
    /// Nothing: the line takes all there is at once.
    LineIdle,
    /// Nothing for a while: what is sent does not get smaller.
    Incompressible,
    /// Nothing for a while: the line is faster than packing.
    LineFaster,
    /// Batches are packed.
    Packed,
}

/// Smaller batches are sent as they are: what they could save is less than a packet.
pub const PACK_BYTES_MIN: usize = 1 << 10;

/// Smaller buffers say nothing of a line: what is the same for each of them counts more.
const LINE_SAMPLE_MIN: u64 = 32 << 10;

/// So many bytes must have waited for the line before its speed is believed.
const LINE_BYTES_MIN: u64 = 1 << 20;

/// Older samples of the line count half when so many bytes are newer.
const LINE_BYTES_HALVED: u64 = 4 << 20;

/// A line that took so much more than it was measured to take is faster than that: no buffer of the
/// kernel is as long.
const LINE_AHEAD_MAX: u64 = 16 << 20;

/// Older batches count half when so many plain bytes are newer.
const TRIED_BYTES_HALVED: u64 = 8 << 20;

/// The first rest; each after it is twice as long while packing does not pay.
const REST_MIN: Duration = Duration::from_millis(100);

/// The longest rest: one batch in this time is packed in vain at most.
const REST_MAX: Duration = Duration::from_millis(6_400);

/// What packing took and gave lately.
#[derive(Debug, Clone, Copy, Default)]
struct Tried {
    nanos: u64,
    plain: u64,
    packed: u64,
}

/// What the line took lately while something waited behind it.
#[derive(Debug, Clone, Copy, Default)]
struct Line {
    nanos: u64,
    bytes: u64,
    /// Bytes it took beyond what these figures allow.
    ahead: u64,
    last: Option<Nanos>,
}

impl Line {
    const fn is_known(&self) -> bool {
        self.bytes >= LINE_BYTES_MIN
    }

    /// It took a buffer that was first in the queue for so long; `pressed` if another waited behind.
    fn took(&mut self, now: Nanos, bytes: u64, waited: Duration, pressed: bool) {
        let since = self.last.map_or(Duration::ZERO, |last| now.since(last));
        self.last = Some(now);
        if self.is_known() {
            let carried = u128::from(nanos(since)) * u128::from(self.bytes);
            let carried = carried / u128::from(self.nanos.max(1));
            let carried = u64::try_from(carried).unwrap_or(u64::MAX);
            self.ahead = self.ahead.saturating_sub(carried).saturating_add(bytes);
            if self.ahead > LINE_AHEAD_MAX {
                *self = Self {
                    last: self.last,
                    ..Self::default()
                };
            }
        }
        if pressed && bytes >= LINE_SAMPLE_MIN {
            self.nanos = self.nanos.saturating_add(nanos(waited));
            self.bytes += bytes;
            if self.bytes >= LINE_BYTES_HALVED {
                (self.nanos, self.bytes) = (self.nanos / 2, self.bytes / 2);
            }
        }
    }
}

/// Why it rests, and until when.
#[derive(Debug, Clone, Copy)]
struct Rest {
    why: Packing,
    until: Nanos,
}

/// The decision of one link.
#[derive(Debug)]
pub struct Policy {
    setting: Compression,
    taken: bool,
    tried: Tried,
    line: Line,
    rest: Option<Rest>,
    span: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(Compression::default())
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

impl Policy {
    /// For a link whose target has not said yet what it takes.
    #[must_use]
    pub const fn new(setting: Compression) -> Self {
        Self {
            setting,
            taken: false,
            tried: Tried {
                nanos: 0,
                plain: 0,
                packed: 0,
            },
            line: Line {
                nanos: 0,
                bytes: 0,
                ahead: 0,
                last: None,
            },
            rest: None,
            span: REST_MIN,
        }
    }

    /// Uses another setting from now on. What was measured is kept.
    pub const fn set(&mut self, setting: Compression) {
        self.setting = setting;
    }

    /// A connection begins to a target that takes packed frames, or does not.
    pub const fn connected(&mut self, taken: bool) {
        self.taken = taken;
    }

    /// True if a batch of so many plain bytes is to be packed now.
    #[must_use]
    pub fn wants(&self, now: Nanos, bytes: usize) -> bool {
        bytes >= PACK_BYTES_MIN && self.packing(now) == Packing::Packed
    }

    /// What the link does about compression now.
    #[must_use]
    pub fn packing(&self, now: Nanos) -> Packing {
        match self.setting {
            Compression::Off => Packing::Off,
            Compression::On | Compression::Adaptive if !self.taken => Packing::NotTaken,
            Compression::On => Packing::Packed,
            Compression::Adaptive => match self.rest {
                Some(rest) if now < rest.until => rest.why,
                Some(_) | None if self.line.is_known() => Packing::Packed,
                Some(_) | None => Packing::LineIdle,
            },
        }
    }

    /// A batch was packed, or tried in vain (`packed` as long as `plain`), in this time.
    pub fn packed(&mut self, now: Nanos, spent: Duration, plain: usize, packed: usize) {
        let bytes = |len: usize| u64::try_from(len).expect("64-bit platform");
        let tried = &mut self.tried;
        tried.nanos = tried.nanos.saturating_add(nanos(spent));
        tried.plain += bytes(plain);
        tried.packed += bytes(packed.min(plain));
        if tried.plain >= TRIED_BYTES_HALVED {
            tried.nanos /= 2;
            tried.plain /= 2;
            tried.packed /= 2;
        }
        if self.pays() {
            self.rest = None;
            self.span = REST_MIN;
            return;
        }
        // Less than a sixteenth was saved.
        let tight = u128::from(self.tried.packed) * 16 >= u128::from(self.tried.plain) * 15;
        let why = match tight {
            true => Packing::Incompressible,
            false => Packing::LineFaster,
        };
        let until = now.after(self.span);
        self.rest = Some(Rest { why, until });
        self.span = (self.span * 2).min(REST_MAX);
        // The next try speaks for itself.
        self.tried = Tried::default();
    }

    /// The line took a buffer of so many bytes that was the first in the queue for this time;
    /// `pressed` if another one waited behind it.
    pub fn line_took(&mut self, now: Nanos, bytes: usize, waited: Duration, pressed: bool) {
        let bytes = u64::try_from(bytes).expect("64-bit platform");
        self.line.took(now, bytes, waited, pressed);
    }

    /// True if the line would have needed longer for what was saved than packing took, by a quarter:
    /// inflating is not free either.
    fn pays(&self) -> bool {
        let saved = self.tried.plain.saturating_sub(self.tried.packed);
        let (spent, line) = (self.tried.nanos, self.line);
        let won = u128::from(saved) * u128::from(line.nanos) * 4;
        let paid = u128::from(spent) * u128::from(line.bytes) * 5;
        saved > 0 && won >= paid
    }
}

#[cfg(test)]
#[path = "compression_tests.rs"]
mod tests;
