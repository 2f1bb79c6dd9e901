//! One entry of a group's ordered stream, as log, wire and journal all know it.

use crate::{ByteLen, Extent, Incarnation, MirrorKind, NOTE_BYTES, Seq, VolumeIndex};

/// What an entry of the ordered stream does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// Writes bytes that travel with the record.
    Data {
        /// Sent to bring the target to equality, not because an application wrote it.
        mirror: bool,
    },
    /// Makes the extent read as zeroes.
    Zero {
        /// Sent by a mirror.
        mirror: bool,
        /// The storage below may be given back (a discard).
        free: bool,
    },
    /// Nothing: holds the place of an entry whose bytes were never complete.
    Void,
    /// Asks for the digest of the extent as it is at this place of the stream.
    Compare,
    /// Asks for the bytes of the extent as they are at this place of the stream: the source has lost its
    /// own.
    Read,
    /// From here the stream may jump over places whose extents were dirty, and blocks of a mirror
    /// are mixed with writes: what is applied is no prefix until `MirrorEnd`.
    MirrorBegin(MirrorKind),
    /// All differences have been sent: with this record applied the replica equals the source.
    MirrorEnd,
    /// A note: changes nothing. Its bytes say what is to be remembered, or run, at this place.
    Note {
        /// Something is to be run: everything before it has to be in the base first.
        task: bool,
    },
}

impl RecordKind {
    /// True if bytes travel with the record: as many as its extent has, or as a note has.
    #[must_use]
    pub const fn has_data(self) -> bool {
        matches!(self, Self::Data { .. } | Self::Note { .. })
    }

    /// Bytes that travel with a record of this kind and extent.
    #[must_use]
    pub const fn data_len(self, extent: Option<Extent>) -> ByteLen {
        match (self, extent) {
            (Self::Note { .. }, _) => ByteLen::new(NOTE_BYTES as u64),
            (Self::Data { .. }, Some(extent)) => extent.len(),
            _ => ByteLen::ZERO,
        }
    }

    /// True if the record names an extent.
    #[must_use]
    pub const fn has_extent(self) -> bool {
        matches!(
            self,
            Self::Data { .. } | Self::Zero { .. } | Self::Compare | Self::Read
        )
    }
}

/// One entry of the ordered stream, without its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The run of the source that gave it its place.
    pub incarnation: Incarnation,
    /// Its place.
    pub seq: Seq,
    /// What it does.
    pub kind: RecordKind,
    /// To which volume of the group; the first where it has no extent.
    pub volume: VolumeIndex,
    /// Where; present exactly if [`RecordKind::has_extent`].
    pub extent: Option<Extent>,
}

impl Record {
    /// Bytes that travel with it.
    #[must_use]
    pub const fn data_len(&self) -> ByteLen {
        self.kind.data_len(self.extent)
    }
}
