//! How much of the stream a link may fill, and how much of that a mirror.
//!
//! Owns what is on its way to the target, in bytes, and when a mirror stands back: behind writes that wait, and
//! before a journal at the target that fills. Places in the stream and acknowledgements enter; whether another
//! block may be begun leaves. Never holds back a write for a mirror.

use super::{GroupEvent, JournalFill, LinkIndex, SourceGroup, WriteLog, blocks, stream};
use crate::dirty::Words;
use blkrep_types::{ByteLen, Seq, planted};
use std::collections::VecDeque;

/// Records that wait to be handed out and do not count as writes that wait: no more than one batch has.
const WAITING_MIN: u64 = 64;

/// Limits of a link's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamLimits {
    /// Bytes sent and not acknowledged as received, at most.
    pub in_flight: ByteLen,
    /// Bytes of mirror blocks in the stream and not acknowledged, at most.
    pub mirror_in_flight: ByteLen,
    /// While writes wait, one byte of a mirror for so many of theirs.
    pub mirror_ratio: u32,
    /// A mirror stands back when the target's journal is so full, in percent; at 100 it never does.
    pub mirror_high: u8,
    /// It goes on when no more of it is than this. Below `mirror_high`.
    pub mirror_low: u8,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            in_flight: ByteLen::new(16 << 20),
            mirror_in_flight: ByteLen::new(4 << 20),
            mirror_ratio: 5,
            mirror_high: 75,
            mirror_low: 50,
        }
    }
}

/// What of a mirror is under way.
#[derive(Debug, Default)]
pub(super) struct MirrorPace {
    /// Blocks in the stream, oldest first, with their bytes.
    blocks: VecDeque<(Seq, u64)>,
    in_flight: u64,
    /// All that were ever placed.
    placed: u64,
    /// Bytes of writes, and of the mirror, when no write waited last.
    even: (u64, u64),
    /// The target's journal is too full.
    pub(super) held_back: bool,
}

impl MirrorPace {
    /// A block got its place.
    pub(super) fn placed(&mut self, seq: Seq, bytes: ByteLen) {
        self.blocks.push_back((seq, bytes.get()));
        self.in_flight += bytes.get();
        self.placed += bytes.get();
    }

    /// All up to here is acknowledged.
    pub(super) fn acked(&mut self, through: Seq) {
        while let Some((_, bytes)) = self.blocks.pop_front_if(|(seq, _)| *seq <= through) {
            self.in_flight -= bytes;
        }
    }

    /// What was in the stream is dirt.
    pub(super) fn forget(&mut self) {
        self.blocks.clear();
        self.in_flight = 0;
    }
}

/// What a link was handed and the target has not said it received.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct InFlight {
    /// Up to here it is received.
    received: Seq,
    bytes: u64,
}

impl InFlight {
    /// The stream begins behind this place.
    pub(super) const fn begins_after(after: Seq) -> Self {
        Self {
            received: after,
            bytes: 0,
        }
    }

    /// Records with so many bytes were handed out.
    pub(super) const fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// True if no more than `limit` is under way with another `bytes`; one record always may.
    pub(super) const fn allows(&self, bytes: u64, limit: ByteLen) -> bool {
        self.bytes == 0 || self.bytes + bytes <= limit.get()
    }
}

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// Other limits from now on.
    pub fn set_stream_limits(&mut self, limits: StreamLimits) {
        self.options.stream = limits;
        self.go_on();
    }

    /// A link's target has received all up to `through`.
    pub(super) fn count_received(&mut self, index: LinkIndex, through: Seq) {
        let Some((log, link)) = self.log.as_ref().zip(
            self.links
                .get_mut(index.as_usize())
                .and_then(Option::as_mut),
        ) else {
            return;
        };
        let through = through.min(link.last_handed_out());
        let from = link.in_flight.received.max(log.base().1);
        let mut seq = from;
        while seq < through {
            seq = seq.next();
            let record = stream::record_for(&log.entry(seq), index, link.notes);
            let bytes = stream::data_len(&record) as u64;
            link.in_flight.bytes = link.in_flight.bytes.saturating_sub(bytes);
        }
        link.in_flight.received = seq.max(link.in_flight.received);
        if link.in_flight.received >= link.last_handed_out() {
            link.in_flight.bytes = 0;
        }
    }

    /// How full a target's journal is: a mirror stands back above the high mark and goes on below the low one.
    /// One that is held in the journal until it is whole is not held back: only its end empties that.
    pub(super) fn target_journal(&mut self, index: LinkIndex, fill: &JournalFill) {
        let limits = self.options.stream;
        let (used, capacity) = (u128::from(fill.used.get()), u128::from(fill.capacity.get()));
        let Some(link) = self.link_mut(index) else {
            return;
        };
        let above = |percent: u8| used * 100 > capacity * u128::from(percent);
        let before = link.mirror.pace.held_back;
        let now = match before {
            _ if capacity == 0 || limits.mirror_high >= 100 => false,
            _ if fill.held && !planted!(HeldMirrorHeldBack) => false,
            true => above(limits.mirror_low),
            false => above(limits.mirror_high),
        };
        link.mirror.pace.held_back = now;
        if now != before && link.mirror.open {
            let event = match now {
                true => GroupEvent::MirrorHeldBack {
                    link: index,
                    used: fill.used,
                    capacity: fill.capacity,
                },
                false => GroupEvent::MirrorGoesOn { link: index },
            };
            self.event(event);
        }
    }

    /// True if a link's mirror may put another block into the stream.
    pub(super) fn mirror_may_go(&mut self, index: LinkIndex) -> bool {
        let (limits, written) = (self.options.stream, self.written);
        let head = self.log_ref().head().1;
        let Some(link) = self.link_mut(index) else {
            return false;
        };
        let waiting = head.get() - link.last_handed_out().get().min(head.get());
        let pace = &mut link.mirror.pace;
        let full = pace.in_flight + blocks::BLOCK_BYTES_MAX > limits.mirror_in_flight.get();
        if pace.held_back || full && pace.in_flight > 0 {
            return false;
        }
        if waiting <= WAITING_MIN {
            pace.even = (written, pace.placed);
            return true;
        }
        let (of_writes, of_mirror) = (written - pace.even.0, pace.placed - pace.even.1);
        of_mirror.saturating_mul(u64::from(limits.mirror_ratio)) <= of_writes
    }
}
