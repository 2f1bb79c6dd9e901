//! Data frames, packed.
//!
//! Owns the codec: the body of a data frame enters and leaves smaller, or the other way round. What
//! a packed frame inflates to is bounded by its head, and that by a limit, before a byte is
//! inflated; it is then checked as a plain body is. Contexts are made once and used for one frame
//! after the other; no frame needs another one. Never decides whether packing pays.

use crate::data::DataFrame;
use crate::error::WireError;
use crate::frame::FrameKind;
use crate::layout::{DATA_HEAD_BYTES, FRAME_HEADER_BYTES, PACKED_HEAD_BYTES, PackedHead};
use crate::limits::PACKED_PLAIN_MAX;
use blkrep_io::Slice;
use blkrep_types::planted;
use std::fmt;
use zerocopy::{FromBytes, IntoBytes};
use zstd::bulk::{Compressor, Decompressor};

/// Codecs that a target takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Codecs(u8);

const ZSTD: u8 = 1;

impl Codecs {
    /// Plain frames only.
    pub const NONE: Self = Self(0);
    /// Zstandard, as in RFC 8878, without dictionaries.
    pub const ZSTD: Self = Self(ZSTD);

    /// True if Zstandard is one of them.
    #[must_use]
    pub const fn has_zstd(self) -> bool {
        self.0 & ZSTD != 0
    }

    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    pub(crate) const fn from_bits(bits: u8) -> Option<Self> {
        if bits & !ZSTD == 0 {
            Some(Self(bits))
        } else {
            None
        }
    }
}

/// A packed body is shorter than this many sixteenths of the plain one, or it is not sent: what it
/// saves has to pay for inflating it.
const SIXTEENTHS_MAX: usize = 15;

/// Packs the bodies of one link.
pub struct Packer {
    context: Compressor<'static>,
    level: i32,
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packer(level {})", self.level)
    }
}

impl Packer {
    /// With a level of Zstandard's. `None`: there is no memory for it. A first batch takes what the
    /// level needs, below 20 MiB; a hundred much smaller ones give some of it back.
    #[must_use]
    pub fn new(level: i32) -> Option<Self> {
        let context = Compressor::new(level).ok()?;
        Some(Self { context, level })
    }

    /// Packs with this level from now on. One that Zstandard does not have changes nothing.
    pub fn set_level(&mut self, level: i32) {
        if level != self.level && self.context.set_compression_level(level).is_ok() {
            self.level = level;
        }
    }

    /// Writes the body of a packed frame to its place in `to`, the buffer of a whole frame, and
    /// returns its length; `None` if it is not worth sending. The first `checked_bytes` of `plain`
    /// have this checksum.
    pub(crate) fn pack(
        &mut self,
        plain: &Slice,
        checked_bytes: usize,
        plain_crc: u32,
        to: &Slice,
    ) -> Option<usize> {
        let begin = FRAME_HEADER_BYTES + PACKED_HEAD_BYTES;
        let room = (plain.len() / 16 * SIXTEENTHS_MAX).checked_sub(PACKED_HEAD_BYTES)?;
        let end = to.len().min(begin + room);
        if plain.len() > PACKED_PLAIN_MAX || end <= begin {
            return None;
        }
        let out = to.part(begin..end);
        let packed = plain.with(|plain| {
            let context = &mut self.context;
            out.with_mut(|out| context.compress_to_buffer(plain, out))
        });
        // An error means: it does not fit.
        let packed = packed.ok()?;
        let narrow = |len: usize| u32::try_from(len).expect("frames are bounded");
        let head = PackedHead {
            plain_bytes: narrow(plain.len()).into(),
            checked_bytes: narrow(checked_bytes).into(),
            plain_crc: plain_crc.into(),
            codec: ZSTD,
            reserved: [0; 3],
        };
        to.write(FRAME_HEADER_BYTES, head.as_bytes());
        Some(PACKED_HEAD_BYTES + packed)
    }
}

/// Inflates the bodies of one connection, one at a time.
pub struct Inflater {
    context: Decompressor<'static>,
    buffer: Slice,
}

impl fmt::Debug for Inflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inflater({} bytes)", self.buffer.len())
    }
}

const fn wrong(field: &'static str) -> WireError {
    WireError::Field {
        kind: FrameKind::Packed,
        field,
    }
}

impl Inflater {
    /// Inflates into `buffer`. `None`: there is no memory for it.
    ///
    /// # Panics
    /// If the buffer does not hold [`PACKED_PLAIN_MAX`] bytes.
    #[must_use]
    pub fn new(buffer: Slice) -> Option<Self> {
        assert!(
            buffer.len() >= PACKED_PLAIN_MAX,
            "what a packed frame may become fits"
        );
        let context = Decompressor::new().ok()?;
        Some(Self { context, buffer })
    }

    /// The data frame in a packed body whose checksum is right. It stays valid until the next call.
    pub(crate) fn inflate(&mut self, body: &Slice) -> Result<DataFrame, WireError> {
        let head = body.with(|bytes| Some(PackedHead::read_from_prefix(bytes).ok()?.0));
        let head = head.ok_or_else(|| wrong("head"))?;
        let plain_bytes = usize::try_from(head.plain_bytes.get()).expect("64-bit platform");
        let checked_bytes = usize::try_from(head.checked_bytes.get()).expect("64-bit platform");
        if head.reserved != [0; 3] {
            return Err(wrong("reserved"));
        }
        if head.codec != ZSTD {
            return Err(wrong("codec"));
        }
        // Packing makes smaller: no other body has a reason to be there.
        if plain_bytes > PACKED_PLAIN_MAX || plain_bytes <= body.len() {
            return Err(wrong("plain_bytes"));
        }
        if !(DATA_HEAD_BYTES..=plain_bytes).contains(&checked_bytes) {
            return Err(wrong("checked_bytes"));
        }
        let plain = self.buffer.part(0..plain_bytes);
        let packed = body.part(PACKED_HEAD_BYTES..body.len());
        let len = packed.with(|packed| {
            let context = &mut self.context;
            // No more is written than there is room, whatever the bytes ask for.
            plain.with_mut(|plain| context.decompress_to_buffer(packed, plain))
        });
        if !len.is_ok_and(|len| len == plain_bytes) {
            return Err(WireError::Inflate);
        }
        let found = plain.part(0..checked_bytes).with(crc32fast::hash);
        if found != head.plain_crc.get() && !planted!(PackedChecksumIgnored) {
            return Err(WireError::BodyChecksum {
                kind: FrameKind::Packed,
            });
        }
        DataFrame::new(plain, checked_bytes, planted!(PackedChecksumIgnored))
    }
}
