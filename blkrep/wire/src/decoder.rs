//! Received bytes in, whole and checked frames out.
//!
//! Owns one bounded buffer. A header is believed only after its checksum; its lengths are compared
//! with the limits before a byte of the body is waited for; a frame leaves only if everything in it
//! is right. After an error the decoder gives nothing more.

use crate::connections::{Again, Join, Place, read_joined};
use crate::content::Content;
use crate::data::DataFrame;
use crate::error::WireError;
use crate::frame::{Frame, FrameKind, Message};
use crate::handshake::{Hello, Refuse, Start, Welcome};
use crate::layout::{FRAME_HEADER_BYTES, FrameHeader, HEADER_CHECKED_BYTES, MAGIC};
use crate::packed::Inflater;
use crate::stream::{Ack, Farewell, MapEnd, MapPart, read_digests, read_note, read_pulse};
use crate::version::{HANDSHAKE_VERSION, VERSION_NOTES, VERSION_READS};
use blkrep_io::Slice;
use blkrep_types::planted;
use zerocopy::FromBytes;

/// Space that is left before what is received so far is moved to the front of the buffer: less
/// would make the receives small.
const SPACE_BYTES_MIN: usize = 64 << 10;

/// Takes the frames of one direction of one connection apart.
#[derive(Debug)]
pub struct Decoder {
    buffer: Slice,
    start: usize,
    end: usize,
    body_bytes_max: usize,
    version: u16,
    number: u64,
    failed: Option<WireError>,
    /// Without one, packed frames are refused.
    inflater: Option<Inflater>,
}

/// What a header says once it is believed.
struct Head {
    kind: FrameKind,
    body_bytes: usize,
    checked_bytes: usize,
    body_crc: u32,
}

impl Decoder {
    /// Receives into `buffer`; refuses bodies over `body_bytes_max`.
    ///
    /// # Panics
    /// If the buffer cannot hold a whole frame.
    #[must_use]
    pub fn new(buffer: Slice, body_bytes_max: usize) -> Self {
        assert!(
            buffer.len() >= FRAME_HEADER_BYTES + body_bytes_max,
            "a whole frame fits"
        );
        Self {
            buffer,
            start: 0,
            end: 0,
            body_bytes_max,
            version: HANDSHAKE_VERSION,
            number: 0,
            failed: None,
            inflater: None,
        }
    }

    /// Takes packed frames too.
    pub fn inflate_with(&mut self, inflater: Inflater) {
        self.inflater = Some(inflater);
    }

    /// Expects the version that was agreed on from the next frame on.
    pub const fn agree(&mut self, version: u16) {
        self.version = version;
    }

    /// Goes on with a connection whose first frame another decoder has taken. That one must hold
    /// nothing else ([`Decoder::is_empty`]): a source says nothing between `Hello` and the answer.
    pub const fn continue_after_first(&mut self) {
        self.reset();
        self.number = 1;
    }

    /// Begins anew, for another connection. What was received is forgotten.
    pub const fn reset(&mut self) {
        self.start = 0;
        self.end = 0;
        self.version = HANDSHAKE_VERSION;
        self.number = 0;
        self.failed = None;
    }

    /// Where the next bytes are to be received. Frames given out earlier are no longer valid. Call
    /// it only after [`Decoder::next`] said that it needs more: then it is never empty.
    pub fn space(&mut self) -> Slice {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let wanted = self.frame_bytes().unwrap_or(SPACE_BYTES_MIN);
        let least = SPACE_BYTES_MIN.min(self.buffer.len() / 2);
        let fits = self.start + wanted <= self.buffer.len();
        if self.start > 0 && (!fits || self.buffer.len() - self.end < least) {
            let held = self.buffer.part(self.start..self.end);
            self.buffer.copy_from(&held);
            self.end -= self.start;
            self.start = 0;
        }
        self.buffer.part(self.end..self.buffer.len())
    }

    /// The first `count` bytes of the last [`Decoder::space`] have been received.
    ///
    /// # Panics
    /// If the space was smaller.
    pub const fn received(&mut self, count: usize) {
        assert!(
            count <= self.buffer.len() - self.end,
            "received no more than there was space"
        );
        self.end += count;
    }

    /// True if nothing is held but whole frames that were given out: the place where a connection
    /// may end in order.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Bytes that were received and not given out.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.end - self.start
    }

    /// The next frame; `None` if more bytes are needed.
    ///
    /// # Errors
    /// The bytes are no legal frame. Then every later call says the same.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Frame>, WireError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.take();
        self.failed = result.as_ref().err().copied();
        result
    }

    /// Bytes of the frame at the front, once its header is there; the header was or will be
    /// checked by `take`, so a length out of bounds is only cut off here.
    fn frame_bytes(&self) -> Option<usize> {
        let header = self.header()?;
        let body = usize::try_from(header.body_bytes.get()).expect("64-bit platform");
        Some(FRAME_HEADER_BYTES + body.min(self.body_bytes_max))
    }

    fn header(&self) -> Option<FrameHeader> {
        if self.end - self.start < FRAME_HEADER_BYTES {
            return None;
        }
        let bytes = self
            .buffer
            .part(self.start..self.start + FRAME_HEADER_BYTES);
        bytes.with(|bytes| FrameHeader::read_from_bytes(bytes).ok())
    }

    fn take(&mut self) -> Result<Option<Frame>, WireError> {
        self.check_magic()?;
        let Some(header) = self.header() else {
            return Ok(None);
        };
        let head = self.believe(&header)?;
        let body_at = self.start + FRAME_HEADER_BYTES;
        let body_end = body_at + head.body_bytes;
        if self.end < body_end {
            return Ok(None);
        }
        let body = self.buffer.part(body_at..body_end);
        let checked = body.part(0..head.checked_bytes);
        let ignored = head.kind == FrameKind::Packed && planted!(PackedChecksumIgnored);
        if checked.with(crc32fast::hash) != head.body_crc && !ignored {
            return Err(WireError::BodyChecksum { kind: head.kind });
        }
        let frame = match head.kind {
            FrameKind::Data => Frame::Data(DataFrame::new(
                body,
                head.checked_bytes,
                planted!(DataChecksumIgnored),
            )?),
            FrameKind::Packed => Frame::Data(self.inflate(&body)?),
            kind => Frame::Message(checked.with(|bytes| read_message(kind, bytes))?),
        };
        self.start = body_end;
        self.number += 1;
        Ok(Some(frame))
    }

    fn inflate(&mut self, body: &Slice) -> Result<DataFrame, WireError> {
        let inflater = self.inflater.as_mut().ok_or(WireError::Kind {
            found: FrameKind::Packed.number(),
        })?;
        inflater.inflate(body)
    }

    /// Refuses a stranger at the first bytes, not after a header's worth of them.
    fn check_magic(&self) -> Result<(), WireError> {
        let held = (self.end - self.start).min(4);
        let mut found = [0; 4];
        self.buffer
            .part(self.start..self.start + held)
            .read(0, &mut found[..held]);
        if found[..held] == MAGIC.to_le_bytes()[..held] {
            Ok(())
        } else {
            Err(WireError::Magic {
                found: u32::from_le_bytes(found),
            })
        }
    }

    fn believe(&self, header: &FrameHeader) -> Result<Head, WireError> {
        use zerocopy::IntoBytes;
        if crc32fast::hash(&header.as_bytes()[..HEADER_CHECKED_BYTES]) != header.header_crc.get() {
            return Err(WireError::HeaderChecksum);
        }
        let found = header.kind.get();
        let kind = FrameKind::from_number(found)
            .filter(|kind| *kind != FrameKind::Packed || self.inflater.is_some())
            .filter(|kind| *kind != FrameKind::Note || self.version >= VERSION_NOTES)
            .filter(|kind| *kind != FrameKind::Content || self.version >= VERSION_READS)
            .ok_or(WireError::Kind { found })?;
        // A refusal is read in any state: the peer may not speak what was asked of it.
        let (found, expected) = (header.version.get(), self.version);
        if found != expected && !(kind == FrameKind::Refuse && found == HANDSHAKE_VERSION) {
            return Err(WireError::Version { found, expected });
        }
        let (found, expected) = (header.number.get(), self.number);
        if found != expected {
            return Err(WireError::Number { found, expected });
        }
        let body_bytes = usize::try_from(header.body_bytes.get()).expect("64-bit platform");
        let checked_bytes = usize::try_from(header.checked_bytes.get()).expect("64-bit platform");
        if body_bytes > self.body_bytes_max || !kind.lengths_fit(body_bytes, checked_bytes) {
            return Err(WireError::Length {
                kind,
                len: header.body_bytes.get().into(),
            });
        }
        Ok(Head {
            kind,
            body_bytes,
            checked_bytes,
            body_crc: header.body_crc.get(),
        })
    }
}

fn read_message(kind: FrameKind, bytes: &[u8]) -> Result<Message, WireError> {
    Ok(match kind {
        FrameKind::Hello => Message::Hello(Box::new(Hello::read(bytes)?)),
        FrameKind::Welcome => Message::Welcome(Box::new(Welcome::read(bytes)?)),
        FrameKind::Refuse => Message::Refuse(Refuse::read(bytes)?),
        FrameKind::MapPart => Message::MapPart(MapPart::read(bytes)?),
        FrameKind::MapEnd => Message::MapEnd(MapEnd::read(bytes)?),
        FrameKind::Start => Message::Start(Start::read(bytes)?),
        FrameKind::Ack => Message::Ack(Ack::read(bytes)?),
        FrameKind::Digests => Message::Digests(read_digests(bytes)?),
        FrameKind::Note => Message::Note(Box::new(read_note(bytes)?)),
        FrameKind::Ping => Message::Ping(read_pulse(kind, bytes)?),
        FrameKind::Pong => Message::Pong(read_pulse(kind, bytes)?),
        FrameKind::Error => Message::Error(Farewell::read(kind, bytes)?),
        FrameKind::Goodbye => Message::Goodbye(Farewell::read(kind, bytes)?),
        FrameKind::Join => Message::Join(Box::new(Join::read(bytes)?)),
        FrameKind::Joined => Message::Joined(read_joined(bytes)?),
        FrameKind::Place => Message::Place(Place::read(bytes)?),
        FrameKind::Again => Message::Again(Again::read(bytes)?),
        FrameKind::Content => Message::Content(Content::read(bytes)?),
        FrameKind::Data | FrameKind::Packed => {
            return Err(WireError::Kind {
                found: kind.number(),
            });
        }
    })
}
