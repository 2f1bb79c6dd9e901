//! The frames of a running connection, other than data.
//!
//! Owns acknowledgements, digests, map parts and the words of an end.

use crate::error::WireError;
use crate::frame::FrameKind;
use crate::handshake::codes;
use crate::layout::{
    AckBody, DigestBytes, DigestsHead, FarewellHead, MapEndBody, MapPartHead, PulseBody,
};
use crate::limits::{DIGESTS_MAX, MAP_PART_BYTES_MAX, TEXT_BYTES_MAX};
use crate::read::{Body, clean, count, data_state_number};
use blkrep_types::limits::{GROUP_VOLUMES_MAX, REQUEST_BYTES_MAX};
use blkrep_types::{
    ByteLen, ByteOffset, DataState, Extent, ExtentIndex, ExtentSize, Incarnation, NoteError,
    NoteReport, Seq, VolumeIndex, WriteName,
};
use zerocopy::IntoBytes;

/// Target: extents in which I know I differ, or may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapPart {
    /// Of which volume.
    pub volume: VolumeIndex,
    /// The grain of these bits.
    pub extent_size: ExtentSize,
    /// The extent of the first bit.
    pub first: ExtentIndex,
    /// How many bits follow.
    pub bit_count: u32,
    /// The bits, lowest first in each byte; set means: may differ. Unused bits are zero.
    pub bits: Vec<u8>,
}

impl MapPart {
    /// True if the extent of the `nth` bit may differ.
    #[must_use]
    pub fn is_set(&self, nth: u32) -> bool {
        let byte = usize::try_from(nth / 8).expect("64-bit platform");
        self.bits
            .get(byte)
            .is_some_and(|bits| bits >> (nth % 8) & 1 == 1)
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        assert!(
            self.bits.len() <= MAP_PART_BYTES_MAX,
            "a map is sent in parts"
        );
        let head = MapPartHead {
            first: self.first.get().into(),
            bit_count: self.bit_count.into(),
            extent_bytes: u32::try_from(self.extent_size.get()).expect("1 MiB").into(),
            volume: self.volume.get().into(),
            reserved: [0; 6],
        };
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(&self.bits);
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut body = Body::new(FrameKind::MapPart, bytes);
        let head: MapPartHead = body.take("head")?;
        body.reserved(&head.reserved, "reserved")?;
        body.check(usize::from(head.volume.get()) < GROUP_VOLUMES_MAX, "volume")?;
        let extent_size = ExtentSize::try_from(u64::from(head.extent_bytes.get()));
        let bit_count = head.bit_count.get();
        let byte_count = usize::try_from(bit_count.div_ceil(8)).expect("64-bit platform");
        body.check((1..=MAP_PART_BYTES_MAX).contains(&byte_count), "bit_count")?;
        let last = head.first.get().checked_add(u64::from(bit_count));
        body.check(last.is_some_and(|last| last <= 1 << 52), "first")?;
        let bits = body.bytes(byte_count, "bits")?.to_vec();
        let unused = if bit_count.is_multiple_of(8) {
            0
        } else {
            0xff << (bit_count % 8)
        };
        body.check(bits.last().is_some_and(|byte| byte & unused == 0), "bits")?;
        let part = Self {
            volume: VolumeIndex::new(head.volume.get()),
            extent_size: extent_size.map_err(|_| body.wrong("extent_bytes"))?,
            first: ExtentIndex::new(head.first.get()),
            bit_count,
            bits,
        };
        body.end()?;
        Ok(part)
    }
}

/// Target: that was all of my map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEnd {
    /// How many parts came before.
    pub part_count: u32,
    /// The target cannot say which extents differ: any may.
    pub unknown: bool,
}

impl MapEnd {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let body = MapEndBody {
            part_count: self.part_count.into(),
            unknown: u8::from(self.unknown),
            reserved: [0; 3],
        };
        out.extend_from_slice(body.as_bytes());
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut body = Body::new(FrameKind::MapEnd, bytes);
        let end: MapEndBody = body.take("body")?;
        body.reserved(&end.reserved, "reserved")?;
        let unknown = body.flag(end.unknown, "unknown")?;
        body.end()?;
        Ok(Self {
            part_count: end.part_count.get(),
            unknown,
        })
    }
}

/// What applying does at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applying {
    /// As writes come.
    Running,
    /// Not, by command; the journal goes on receiving.
    Paused,
    /// Will be paused after the batch in hand.
    PausePending,
    /// A write failed and is tried again.
    Retrying,
}

/// Target: how far I am.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// The last record received.
    pub received: WriteName,
    /// The last record durable in the journal; at most `received`.
    pub durable: WriteName,
    /// The last record applied to the base; at most `durable`.
    pub applied: WriteName,
    /// Bytes its journal holds.
    pub journal_used: ByteLen,
    /// Bytes its journal can hold.
    pub journal_capacity: ByteLen,
    /// What its data is worth.
    pub data_state: DataState,
    /// What applying does.
    pub applying: Applying,
    /// A mirror is held in the journal until its end has come.
    pub held: bool,
}

impl Ack {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let body = AckBody {
            received: self.received.into(),
            durable: self.durable.into(),
            applied: self.applied.into(),
            journal_used: self.journal_used.get().into(),
            journal_capacity: self.journal_capacity.get().into(),
            data_state: data_state_number(self.data_state),
            applying: match self.applying {
                Applying::Running => 1,
                Applying::Paused => 2,
                Applying::PausePending => 3,
                Applying::Retrying => 4,
            },
            held: u8::from(self.held),
            reserved: [0; 13],
        };
        out.extend_from_slice(body.as_bytes());
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut body = Body::new(FrameKind::Ack, bytes);
        let ack: AckBody = body.take("body")?;
        body.reserved(&ack.reserved, "reserved")?;
        let [received, durable, applied] =
            [ack.received, ack.durable, ack.applied].map(WriteName::from);
        body.check(!is_ahead(durable, received), "durable")?;
        body.check(!is_ahead(applied, durable), "applied")?;
        let ack = Self {
            received,
            durable,
            applied,
            journal_used: ByteLen::new(ack.journal_used.get()),
            journal_capacity: ByteLen::new(ack.journal_capacity.get()),
            data_state: body.data_state(ack.data_state)?,
            applying: match ack.applying {
                1 => Applying::Running,
                2 => Applying::Paused,
                3 => Applying::PausePending,
                4 => Applying::Retrying,
                _ => return Err(body.wrong("applying")),
            },
            held: body.flag(ack.held, "held")?,
        };
        body.end()?;
        Ok(ack)
    }
}

/// True if both are of one generation and `name` comes after `other`.
fn is_ahead(name: WriteName, other: WriteName) -> bool {
    name.generation == other.generation
        && (name.incarnation, name.seq) > (other.incarnation, other.seq)
}

/// Target: the digest of an extent as it was at a record `Compare`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DigestReply {
    /// The record's run.
    pub incarnation: Incarnation,
    /// The record's place.
    pub seq: Seq,
    /// The record's volume.
    pub volume: VolumeIndex,
    /// The record's extent.
    pub extent: Extent,
    /// The BLAKE3 digest; `None`: cannot tell.
    pub digest: Option<[u8; 32]>,
}

pub(crate) fn write_digests(digests: &[DigestReply], out: &mut Vec<u8>) {
    assert!(digests.len() <= DIGESTS_MAX, "digests are sent in parts");
    let head = DigestsHead {
        digest_count: u32::from(count(digests.len())).into(),
        reserved: 0.into(),
    };
    out.extend_from_slice(head.as_bytes());
    for reply in digests {
        let bytes = DigestBytes {
            incarnation: reply.incarnation.get().into(),
            seq: reply.seq.get().into(),
            offset: reply.extent.offset().get().into(),
            len: reply.extent.len().get().into(),
            digest: reply.digest.unwrap_or_default(),
            volume: reply.volume.get().into(),
            known: u8::from(reply.digest.is_some()),
            reserved: [0; 5],
        };
        out.extend_from_slice(bytes.as_bytes());
    }
}

pub(crate) fn read_digests(bytes: &[u8]) -> Result<Vec<DigestReply>, WireError> {
    let mut body = Body::new(FrameKind::Digests, bytes);
    let head: DigestsHead = body.take("head")?;
    body.check(head.reserved.get() == 0, "reserved")?;
    let count = usize::try_from(head.digest_count.get()).expect("64-bit platform");
    body.check((1..=DIGESTS_MAX).contains(&count), "digest_count")?;
    let mut digests = Vec::with_capacity(count);
    for _ in 0..count {
        let bytes: DigestBytes = body.take("digests")?;
        body.reserved(&bytes.reserved, "digests.reserved")?;
        body.check(
            usize::from(bytes.volume.get()) < GROUP_VOLUMES_MAX,
            "digests.volume",
        )?;
        body.check(bytes.len.get() <= REQUEST_BYTES_MAX, "digests.len")?;
        let extent = Extent::new(
            ByteOffset::new(bytes.offset.get()),
            ByteLen::new(bytes.len.get()),
        );
        let known = body.flag(bytes.known, "digests.known")?;
        body.check(known || bytes.digest == [0; 32], "digests.digest")?;
        digests.push(DigestReply {
            incarnation: Incarnation::new(bytes.incarnation.get()),
            seq: Seq::new(bytes.seq.get()),
            volume: VolumeIndex::new(bytes.volume.get()),
            extent: extent.map_err(|_| body.wrong("digests.offset"))?,
            digest: known.then_some(bytes.digest),
        });
    }
    body.end()?;
    Ok(digests)
}

pub(crate) fn write_pulse(stamp: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(
        PulseBody {
            stamp: stamp.into(),
        }
        .as_bytes(),
    );
}

pub(crate) fn read_pulse(kind: FrameKind, bytes: &[u8]) -> Result<u64, WireError> {
    let mut body = Body::new(kind, bytes);
    let pulse: PulseBody = body.take("body")?;
    body.end()?;
    Ok(pulse.stamp.get())
}

codes! {
    /// Why a connection ends.
    FarewellCode {
        /// The daemon stops.
        Stopping = 1 "stopping",
        /// An operator ended the link.
        Disconnected = 2 "disconnected",
        /// The peer sent what is not legal.
        Protocol = 3 "protocol",
        /// The peer was silent for too long.
        Timeout = 4 "timeout",
        /// A disk or file failed.
        Failed = 5 "failed",
        /// The node was promoted, or heard of a newer generation.
        Promoted = 6 "promoted",
        /// The stream has a gap, or a name from the future.
        Order = 7 "order",
        /// A newer connection of the same link takes its place.
        Replaced = 8 "replaced",
    }
}

/// Why this end goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Farewell {
    /// The kind of reason.
    pub code: FarewellCode,
    /// The reason in words.
    pub text: String,
}

impl Farewell {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let text = clean(&self.text, TEXT_BYTES_MAX);
        let head = FarewellHead {
            code: self.code.number().into(),
            text_bytes: count(text.len()).into(),
            reserved: 0.into(),
        };
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(text.as_bytes());
    }

    pub(crate) fn read(kind: FrameKind, bytes: &[u8]) -> Result<Self, WireError> {
        let mut body = Body::new(kind, bytes);
        let head: FarewellHead = body.take("head")?;
        body.check(head.reserved.get() == 0, "reserved")?;
        let text_bytes = usize::from(head.text_bytes.get());
        body.check(text_bytes <= TEXT_BYTES_MAX, "text_bytes")?;
        let code = FarewellCode::from_number(head.code.get()).ok_or_else(|| body.wrong("code"))?;
        let text = body.text(text_bytes, "text")?;
        body.end()?;
        Ok(Self { code, text })
    }
}

pub(crate) fn read_note(bytes: &[u8]) -> Result<NoteReport, WireError> {
    NoteReport::decode(bytes).map_err(|error| WireError::Field {
        kind: FrameKind::Note,
        field: match error {
            NoteError::Bytes(field) => field,
            _ => "text",
        },
    })
}
