//! Messages and records in, frames out.
//!
//! Owns the version and the running number of one direction of a connection, and a scratch buffer,
//! so that nothing is allocated once it has grown.

use crate::connections::write_joined;
use crate::data::{DataPlan, Entry, write_data};
use crate::frame::{FrameKind, Message};
use crate::layout::{FRAME_HEADER_BYTES, FrameHeader, HEADER_CHECKED_BYTES, MAGIC};
use crate::packed::Packer;
use crate::stream::{write_digests, write_pulse};
use crate::version::HANDSHAKE_VERSION;
use blkrep_io::Slice;
use zerocopy::IntoBytes;

/// Where a frame of records was written, and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// To the buffer of plain frames.
    Plain(usize),
    /// To the other one.
    Packed(usize),
}

/// Makes the frames of one direction of one connection, in the order in which they are sent.
#[derive(Debug)]
pub struct Encoder {
    version: u16,
    number: u64,
    scratch: Vec<u8>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// For a new connection, before a version was agreed on.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            version: HANDSHAKE_VERSION,
            number: 0,
            scratch: Vec::new(),
        }
    }

    /// Uses the version that was agreed on from the next frame on.
    pub const fn agree(&mut self, version: u16) {
        self.version = version;
    }

    /// Begins anew, for another connection.
    pub const fn reset(&mut self) {
        self.version = HANDSHAKE_VERSION;
        self.number = 0;
    }

    /// Writes `message` to the front of `to` and returns the frame's length; `None`, and nothing
    /// written, if it does not fit.
    pub fn message(&mut self, message: &Message, to: &Slice) -> Option<usize> {
        self.scratch.clear();
        self.scratch.resize(FRAME_HEADER_BYTES, 0);
        write_body(message, &mut self.scratch);
        let body_bytes = self.scratch.len() - FRAME_HEADER_BYTES;
        assert!(
            body_bytes <= message.kind().body_bytes_max(),
            "the parts of a message are bounded where they are made"
        );
        (self.scratch.len() <= to.len()).then(|| self.finish(message.kind(), body_bytes, to))
    }

    /// Writes a data frame of `entries` to the front of `to` and returns its length; `None`, and
    /// nothing written, if there are none or they do not fit ([`DataPlan`] says beforehand).
    pub fn data(&mut self, entries: &[Entry], to: &Slice) -> Option<usize> {
        let plan = plan(entries, to.len())?;
        self.prepare(entries, plan, to);
        self.finish(FrameKind::Data, plan.frame_bytes() - FRAME_HEADER_BYTES, to);
        Some(plan.frame_bytes())
    }

    /// Writes a frame of `entries`, packed to the front of `to`, or plain to the front of `plain` if
    /// packing does not make it smaller. Both buffers are used. `None` as in [`Encoder::data`].
    pub fn packed(
        &mut self,
        entries: &[Entry],
        packer: &mut Packer,
        plain: &Slice,
        to: &Slice,
    ) -> Option<Written> {
        let plan = plan(entries, plain.len())?;
        self.prepare(entries, plan, plain);
        let checked = &self.scratch[FRAME_HEADER_BYTES..];
        plain.write(FRAME_HEADER_BYTES, checked);
        let crc = crc32fast::hash(checked);
        let body = plain.part(FRAME_HEADER_BYTES..plan.frame_bytes());
        let Some(body_bytes) = packer.pack(&body, checked.len(), crc, to) else {
            self.finish(FrameKind::Data, body.len(), plain);
            return Some(Written::Plain(plan.frame_bytes()));
        };
        let end = FRAME_HEADER_BYTES + body_bytes;
        let crc = to.part(FRAME_HEADER_BYTES..end).with(crc32fast::hash);
        let header = self.header(FrameKind::Packed, body_bytes, body_bytes, crc);
        to.write(0, header.as_bytes());
        Some(Written::Packed(end))
    }

    /// Copies the bytes of records to their places, and the rest of the body to the scratch buffer.
    fn prepare(&mut self, entries: &[Entry], plan: DataPlan, to: &Slice) {
        self.scratch.clear();
        self.scratch.resize(FRAME_HEADER_BYTES, 0);
        write_data(entries, plan, to, &mut self.scratch);
    }

    /// Completes the header of the frame in the scratch buffer and copies it to `to`.
    fn finish(&mut self, kind: FrameKind, body_bytes: usize, to: &Slice) -> usize {
        let checked = &self.scratch[FRAME_HEADER_BYTES..];
        let (len, crc) = (checked.len(), crc32fast::hash(checked));
        let header = self.header(kind, body_bytes, len, crc);
        self.scratch[..FRAME_HEADER_BYTES].copy_from_slice(header.as_bytes());
        to.write(0, &self.scratch);
        self.scratch.len()
    }

    /// The header of the next frame.
    fn header(&mut self, kind: FrameKind, body: usize, checked: usize, crc: u32) -> FrameHeader {
        let narrow = |len: usize| u32::try_from(len).expect("frames are bounded");
        let mut header = FrameHeader {
            magic: MAGIC.into(),
            version: self.version.into(),
            kind: kind.number().into(),
            body_bytes: narrow(body).into(),
            checked_bytes: narrow(checked).into(),
            number: self.number.into(),
            body_crc: crc.into(),
            header_crc: 0.into(),
        };
        header.header_crc = crc32fast::hash(&header.as_bytes()[..HEADER_CHECKED_BYTES]).into();
        self.number += 1;
        header
    }
}

/// A plan of all entries; `None` if there are none or they do not fit.
fn plan(entries: &[Entry], capacity: usize) -> Option<DataPlan> {
    let mut plan = DataPlan::default();
    let fits = entries
        .iter()
        .all(|entry| plan.add(&entry.record, capacity));
    (fits && !entries.is_empty()).then_some(plan)
}

fn write_body(message: &Message, out: &mut Vec<u8>) {
    match message {
        Message::Hello(hello) => hello.write(out),
        Message::Welcome(welcome) => welcome.write(out),
        Message::Refuse(refuse) => refuse.write(out),
        Message::MapPart(part) => part.write(out),
        Message::MapEnd(end) => end.write(out),
        Message::Start(start) => start.write(out),
        Message::Ack(ack) => ack.write(out),
        Message::Digests(digests) => write_digests(digests, out),
        Message::Note(report) => out.extend_from_slice(&report.encode()),
        Message::Ping(stamp) | Message::Pong(stamp) => write_pulse(*stamp, out),
        Message::Error(farewell) | Message::Goodbye(farewell) => farewell.write(out),
        Message::Join(join) => join.write(out),
        Message::Joined(index) => write_joined(*index, out),
        Message::Place(place) => place.write(out),
        Message::Again(again) => again.write(out),
        Message::Content(content) => content.write(out),
    }
}
