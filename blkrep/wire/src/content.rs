//! What a target's base holds, for a source that has lost its own.
//!
//! Owns the frame that answers a record `Read`, a part at a time. Never longer than a part: other frames
//! find their way in between.

use crate::error::WireError;
use crate::frame::FrameKind;
use crate::layout::ContentHead;
use crate::limits::CONTENT_BYTES_MAX;
use crate::read::Body;
use blkrep_types::limits::GROUP_VOLUMES_MAX;
use blkrep_types::{ByteLen, ByteOffset, Extent, Incarnation, Seq, VolumeIndex};
use zerocopy::IntoBytes;

/// Target: a part of what an extent held at a record `Read`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The record's run.
    pub incarnation: Incarnation,
    /// The record's place.
    pub seq: Seq,
    /// The record's volume.
    pub volume: VolumeIndex,
    /// The part of the record's extent; all that is left of it if there are no bytes.
    pub extent: Extent,
    /// The bytes there; `None`: the target cannot tell, and no further part comes.
    pub bytes: Option<Vec<u8>>,
}

impl Content {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let bytes = self.bytes.as_deref().unwrap_or_default();
        assert!(bytes.len() <= CONTENT_BYTES_MAX, "content is sent in parts");
        let head = ContentHead {
            incarnation: self.incarnation.get().into(),
            seq: self.seq.get().into(),
            offset: self.extent.offset().get().into(),
            len: u32::try_from(self.extent.len().get())
                .expect("a request is bounded")
                .into(),
            volume: self.volume.get().into(),
            known: u8::from(self.bytes.is_some()),
            reserved: 0,
        };
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(bytes);
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut body = Body::new(FrameKind::Content, bytes);
        let head: ContentHead = body.take("head")?;
        body.check(head.reserved == 0, "reserved")?;
        body.check(usize::from(head.volume.get()) < GROUP_VOLUMES_MAX, "volume")?;
        let known = body.flag(head.known, "known")?;
        let len = usize::try_from(head.len.get()).expect("64-bit platform");
        let max = blkrep_types::limits::REQUEST_BYTES_MAX;
        body.check(u64::from(head.len.get()) <= max, "len")?;
        body.check(!known || len <= CONTENT_BYTES_MAX, "len")?;
        let extent = Extent::new(
            ByteOffset::new(head.offset.get()),
            ByteLen::new(head.len.get().into()),
        );
        let extent = extent.map_err(|_| body.wrong("offset"))?;
        let bytes = match known {
            true => Some(body.bytes(len, "bytes")?.to_vec()),
            false => None,
        };
        body.end()?;
        Ok(Self {
            incarnation: Incarnation::new(head.incarnation.get()),
            seq: Seq::new(head.seq.get()),
            volume: VolumeIndex::new(head.volume.get()),
            extent,
            bytes,
        })
    }
}
