//! Frames on their way out, in order.
//!
//! Owns a few buffers: one is being sent, the others are being filled. Records are copied into
//! them, so that the log never waits for the network to let go of its memory, and the kernel gets
//! few large sends. When all buffers are full nothing more is taken: the log holds what waits.

use blkrep_io::{Region, Slice};
use blkrep_types::Nanos;
use blkrep_types::limits::REQUEST_BYTES_MAX;
use blkrep_wire::{
    Encoder, Entry, FRAME_HEADER_BYTES, Message, Packer, Place, RECORD_HEADER_BYTES, Written,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Buffers: one with the kernel, one waiting behind it so that the socket never runs dry, one
/// being filled.
const BUFFERS: usize = 3;

/// Records in one frame.
pub(super) const BATCH_RECORDS_MAX: usize = 256;

/// Bytes of one buffer: the largest record, or as much of small ones, in a frame; page-aligned.
const BUFFER_BYTES: usize = (BATCH_BYTES_MAX
    + PLACE_BYTES_MAX
    + FRAME_HEADER_BYTES
    + RECORD_HEADER_BYTES * (BATCH_RECORDS_MAX + 1))
    .next_multiple_of(4096);
const _: () = assert!(
    BATCH_BYTES_MAX as u64 == REQUEST_BYTES_MAX,
    "a buffer takes any record"
);

/// Bytes of what says where a batch belongs, which goes before it.
const PLACE_BYTES_MAX: usize = FRAME_HEADER_BYTES + 16;

/// Memory of one outbox.
pub const OUTBOX_BYTES: usize = (BUFFERS + 1) * BUFFER_BYTES;

/// Data bytes that are asked of the log at a time: with its records it fills a buffer.
pub(super) const BATCH_BYTES_MAX: usize = 1 << 20;

/// One buffer that is not empty.
#[derive(Debug)]
struct Filled {
    buffer: Slice,
    len: usize,
    sent: usize,
}

/// The queue of outgoing bytes of one connection.
#[derive(Debug)]
pub(super) struct Outbox {
    free: Vec<Slice>,
    queue: VecDeque<Filled>,
    sending: bool,
    /// Where a frame is plain before it is packed.
    spare: Slice,
    /// Since when the first of the queue is the first.
    first_since: Option<Nanos>,
}

/// A buffer that the line has taken whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) bytes: usize,
    /// How long it was the first of the queue.
    pub(super) waited: Duration,
    /// Another one waits behind it.
    pub(super) pressed: bool,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self::with(BUFFERS)
    }

    /// With so many buffers.
    pub(super) fn with(buffers: usize) -> Self {
        let region: Arc<Region> = Region::heap((buffers + 1) * BUFFER_BYTES);
        let buffer = |index: usize| region.slice(index * BUFFER_BYTES..(index + 1) * BUFFER_BYTES);
        Self {
            free: (0..buffers).map(buffer).collect(),
            queue: VecDeque::with_capacity(buffers),
            sending: false,
            spare: buffer(buffers),
            first_since: None,
        }
    }

    /// Queues a message; false if there is no room now.
    pub(super) fn message(&mut self, encoder: &mut Encoder, message: &Message) -> bool {
        if let Some(last) = self.unsent_tail() {
            let tail = last.buffer.part(last.len..last.buffer.len());
            if let Some(len) = encoder.message(message, &tail) {
                last.len += len;
                return true;
            }
        }
        self.fresh(|buffer| encoder.message(message, buffer))
    }

    /// True if a frame of records can be queued.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Bytes that were queued and are not sent.
    pub(super) fn queued(&self) -> usize {
        self.queue
            .iter()
            .map(|filled| filled.len - filled.sent)
            .sum()
    }

    /// Queues a frame of records, after its place where it needs one; the length of both.
    ///
    /// # Panics
    /// If there is no room, or the records are more than one batch.
    pub(super) fn data(
        &mut self,
        encoder: &mut Encoder,
        place: Option<Place>,
        entries: &[Entry],
    ) -> usize {
        let queued = self.fresh(|buffer| {
            let at = put_place(encoder, place, buffer);
            Some(at + encoder.data(entries, &buffer.part(at..buffer.len()))?)
        });
        assert!(queued, "one batch fits a buffer, and one was free");
        self.queue.back().expect("just queued").len
    }

    /// As [`Outbox::data`], packed if that makes it smaller.
    ///
    /// # Panics
    /// As there.
    pub(super) fn packed(
        &mut self,
        encoder: &mut Encoder,
        place: Option<Place>,
        entries: &[Entry],
        packer: &mut Packer,
    ) -> usize {
        let mut buffer = self.free.pop().expect("there is room");
        let at = put_place(encoder, place, &buffer);
        let plain = self.spare.part(at..self.spare.len());
        let written = encoder.packed(entries, packer, &plain, &buffer.part(at..buffer.len()));
        let len = match written.expect("one batch fits a buffer") {
            Written::Packed(len) => at + len,
            Written::Plain(len) => {
                self.spare.copy_from(&buffer.part(0..at));
                std::mem::swap(&mut buffer, &mut self.spare);
                at + len
            }
        };
        self.queue.push_back(Filled {
            buffer,
            len,
            sent: 0,
        });
        len
    }

    /// Bytes that one send could take; `None` while something is being sent or nothing waits.
    pub(super) fn waiting(&mut self, now: Nanos) -> Option<usize> {
        let first = self.queue.front().filter(|_| !self.sending)?;
        // A limit that it waits for is as slow as a line.
        self.first_since.get_or_insert(now);
        Some(first.len - first.sent)
    }

    /// What to send now, at most so many bytes; `None` while something is being sent or nothing waits.
    pub(super) fn next_send(&mut self, now: Nanos, bytes_max: usize) -> Option<Slice> {
        if self.sending {
            return None;
        }
        let first = self.queue.front()?;
        self.sending = true;
        self.first_since.get_or_insert(now);
        let end = first.len.min(first.sent.saturating_add(bytes_max));
        Some(first.buffer.part(first.sent..end))
    }

    /// The send ended after this many bytes; the buffer that it was the end of.
    pub(super) fn sent(&mut self, now: Nanos, count: usize) -> Option<Taken> {
        assert!(self.sending, "a send was in flight");
        self.sending = false;
        let first = self
            .queue
            .front_mut()
            .expect("what is sent is in the queue");
        first.sent += count;
        assert!(first.sent <= first.len, "no more was sent than there was");
        if first.sent < first.len {
            return None;
        }
        let done = self.queue.pop_front().expect("just seen");
        self.free.push(done.buffer);
        let pressed = !self.queue.is_empty();
        let since = std::mem::replace(&mut self.first_since, pressed.then_some(now));
        Some(Taken {
            bytes: done.len,
            waited: since.map_or(Duration::ZERO, |since| now.since(since)),
            pressed,
        })
    }

    /// Nothing waits and nothing is being sent.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Forgets what waits, as if it had been sent.
    pub(super) fn discard(&mut self) {
        assert!(!self.sending, "nothing is on its way where nothing is sent");
        self.reset();
    }

    /// Forgets what waits; nothing may be in flight.
    pub(super) fn reset(&mut self) {
        self.sending = false;
        self.first_since = None;
        let buffers = self.queue.drain(..).map(|filled| filled.buffer);
        self.free.extend(buffers);
    }

    /// The last buffer of the queue, if the kernel has not begun with it.
    fn unsent_tail(&mut self) -> Option<&mut Filled> {
        let begun = self.sending && self.queue.len() == 1;
        self.queue
            .back_mut()
            .filter(|last| !begun && last.sent == 0)
    }

    fn fresh(&mut self, write: impl FnOnce(&Slice) -> Option<usize>) -> bool {
        let Some(buffer) = self.free.pop() else {
            return false;
        };
        let Some(len) = write(&buffer) else {
            self.free.push(buffer);
            return false;
        };
        self.queue.push_back(Filled {
            buffer,
            len,
            sent: 0,
        });
        true
    }
}

/// Writes what says where a batch belongs; its length.
fn put_place(encoder: &mut Encoder, place: Option<Place>, buffer: &Slice) -> usize {
    place.map_or(0, |place| {
        let len = encoder.message(&Message::Place(place), buffer);
        len.expect("a buffer has room for it")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use blkrep_types::{
        ByteLen, ByteOffset, Extent, Incarnation, Record, RecordKind, Seq, VolumeIndex,
    };
    use blkrep_wire::limits::{PACKED_PLAIN_MAX, SOURCE_BODY_MAX, buffer_bytes};
    use blkrep_wire::{Decoder, Frame, Inflater};

    const NOW: Nanos = Nanos::new(7);

    #[test]
    fn frames_leave_in_order_whatever_the_kernel_takes_at_once() {
        let (mut outbox, mut encoder) = (Outbox::new(), Encoder::new());
        let mut bytes = Vec::new();
        for stamp in 0..3 {
            assert!(outbox.message(&mut encoder, &Message::Ping(stamp)));
        }
        let first = outbox.next_send(NOW, usize::MAX).unwrap();
        assert!(
            outbox.next_send(NOW, usize::MAX).is_none(),
            "one send at a time"
        );
        assert!(
            outbox.message(&mut encoder, &Message::Ping(3)),
            "goes to another buffer"
        );
        bytes.extend(first.part(0..50).with(<[u8]>::to_vec));
        outbox.sent(NOW, 50);
        while let Some(slice) = outbox.next_send(NOW, usize::MAX) {
            bytes.extend(slice.with(<[u8]>::to_vec));
            outbox.sent(NOW, slice.len());
        }
        assert!(outbox.is_empty());
        let mut again = Encoder::new();
        let region = Region::heap(4096);
        let mut wanted = Vec::new();
        for stamp in 0..4 {
            let len = again
                .message(&Message::Ping(stamp), &region.whole())
                .unwrap();
            wanted.extend(region.slice(0..len).with(<[u8]>::to_vec));
        }
        assert_eq!(bytes, wanted);
    }

    #[test]
    fn a_full_outbox_takes_no_more_until_something_was_sent() {
        let (mut outbox, mut encoder) = (Outbox::new(), Encoder::new());
        let mut queued = 0;
        while outbox.message(&mut encoder, &Message::Ping(queued)) {
            queued += 1;
            let _ = outbox.next_send(NOW, usize::MAX);
        }
        assert!(!outbox.has_room() && queued > 1000);
        let first = outbox.queue.front().unwrap().len;
        outbox.sent(NOW, first);
        assert!(outbox.has_room());
        outbox.reset();
        assert!(outbox.is_empty() && outbox.free.len() == BUFFERS);
    }

    /// A write at a place: noise, or something that gets smaller.
    fn entry(seq: u64, noise: bool) -> Entry {
        let region = Region::heap(64 << 10);
        let mut state = seq;
        region.whole().with_mut(|bytes| {
            for byte in bytes {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                *byte = if noise { state.to_le_bytes()[7] } else { 9 };
            }
        });
        let extent = Extent::new(ByteOffset::new(0), ByteLen::new(64 << 10));
        Entry {
            record: Record {
                incarnation: Incarnation::new(1),
                seq: Seq::new(seq),
                kind: RecordKind::Data { mirror: false },
                volume: VolumeIndex::new(0),
                extent: Some(extent.unwrap()),
            },
            bytes: Some(region.whole()),
        }
    }

    #[test]
    fn what_gets_smaller_and_what_does_not_leave_in_order_and_whole() {
        let (mut outbox, mut encoder) = (Outbox::new(), Encoder::new());
        let mut packer = Packer::new(1).unwrap();
        let buffer = Region::heap(buffer_bytes(SOURCE_BODY_MAX)).whole();
        let mut decoder = Decoder::new(buffer, SOURCE_BODY_MAX);
        decoder.inflate_with(Inflater::new(Region::heap(PACKED_PLAIN_MAX).whole()).unwrap());
        let (mut queued, mut taken) = (0, 0);
        while taken < 40 {
            while outbox.has_room() {
                queued += 1;
                let entry = entry(queued, queued % 3 != 0);
                let len = outbox.packed(&mut encoder, None, &[entry], &mut packer);
                assert_eq!(len < 64 << 10, queued.is_multiple_of(3), "write {queued}");
            }
            let slice = outbox.next_send(NOW, usize::MAX).unwrap();
            decoder.space().write(0, &slice.with(<[u8]>::to_vec));
            decoder.received(slice.len());
            outbox.sent(NOW, slice.len());
            let Some(Frame::Data(frame)) = decoder.next().unwrap() else {
                panic!("one buffer, one frame");
            };
            taken += 1;
            let found = frame.entries().next().unwrap();
            let wanted = entry(taken, taken % 3 != 0);
            assert_eq!(found.record, wanted.record);
            let bytes = |slice: Option<Slice>| slice.unwrap().with(<[u8]>::to_vec);
            assert!(bytes(found.bytes) == bytes(wanted.bytes), "write {taken}");
        }
    }

    #[test]
    fn the_line_is_measured_from_the_first_place_in_the_queue_on() {
        let (mut outbox, mut encoder) = (Outbox::new(), Encoder::new());
        for seq in 1..3 {
            outbox.data(&mut encoder, None, &[entry(seq, true)]);
        }
        let at = |millis: u64| Nanos::new(millis * 1_000_000);
        let first = outbox.next_send(at(10), usize::MAX).unwrap();
        assert_eq!(outbox.sent(at(12), 100), None, "not all of it");
        outbox.next_send(at(13), usize::MAX).unwrap();
        let taken = outbox.sent(at(17), first.len() - 100).unwrap();
        let millis = |taken: Taken| taken.waited.as_millis();
        assert_eq!(
            (taken.bytes, millis(taken), taken.pressed),
            (first.len(), 7, true)
        );
        let second = outbox.next_send(at(20), usize::MAX).unwrap();
        let taken = outbox.sent(at(21), second.len()).unwrap();
        assert_eq!(
            (millis(taken), taken.pressed),
            (4, false),
            "since it was the first"
        );
        outbox.data(&mut encoder, None, &[entry(3, true)]);
        let third = outbox.next_send(at(90), usize::MAX).unwrap();
        let taken = outbox.sent(at(91), third.len()).unwrap();
        assert_eq!(millis(taken), 1, "an idle line is not a slow one");
    }
}
