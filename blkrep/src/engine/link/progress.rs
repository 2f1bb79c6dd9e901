//! Whether a target that lives takes what it is sent.
//!
//! Owns the last sign that the stream moves. What is sent, what is acknowledged, what the line takes
//! and time enter; since when nothing moves leaves. A target whose journal is full rightly takes
//! nothing, and so does a slow line. Never ends a connection.

use blkrep_types::{ByteLen, Nanos, Seq, WriteName};
use blkrep_wire::Ack;
use blkrep_wire::limits::SOURCE_BODY_MAX;
use std::time::Duration;

/// With less room than this a journal may be full: a batch is placed as a whole, and what is left
/// before the journal's end may be too small for it.
const ROOM: u64 = 2 * SOURCE_BODY_MAX as u64;

/// Bytes that waited this long for the line are the line's slowness, not the target's. Others only
/// fill buffers.
const SLOW_LINE: Duration = Duration::from_millis(100);

/// What changes while a target works.
type Facts = (WriteName, WriteName, WriteName, ByteLen);

/// The movement of one connection's stream.
#[derive(Debug, Default)]
pub(super) struct Progress {
    sent: Seq,
    durable: Seq,
    facts: Option<Facts>,
    moved: Nanos,
}

impl Progress {
    /// Records up to here were handed to the connection.
    pub(super) fn sent(&mut self, now: Nanos, through: Seq) {
        if self.is_even() {
            self.moved = now;
        }
        self.sent = self.sent.max(through);
    }

    /// The line took bytes that had waited for so long.
    pub(super) fn line_took(&mut self, now: Nanos, waited: Duration) {
        if waited >= SLOW_LINE {
            self.moved = now;
        }
    }

    /// What waits to be sent waits for a limit of ours.
    pub(super) const fn held_back(&mut self, now: Nanos) {
        self.moved = now;
    }

    /// The target said how far it is; `ours` if that is about this stream.
    pub(super) fn acked(&mut self, now: Nanos, ack: &Ack, ours: bool) {
        let facts = (ack.received, ack.durable, ack.applied, ack.journal_used);
        let room = ack
            .journal_capacity
            .get()
            .saturating_sub(ack.journal_used.get());
        if self.facts.replace(facts) != Some(facts) || room < ROOM {
            self.moved = now;
        }
        if ours {
            self.durable = self.durable.max(ack.durable.seq);
        }
    }

    /// Since when nothing has moved although something is to be acknowledged.
    pub(super) fn stuck_since(&self) -> Option<Nanos> {
        (!self.is_even()).then_some(self.moved)
    }

    fn is_even(&self) -> bool {
        self.durable >= self.sent
    }
}
