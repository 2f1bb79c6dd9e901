//! One entry of a group's ordered stream, as log, wire and journal all know it.

use crate::{Extent, Incarnation, MirrorKind, Seq, VolumeIndex};

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
    /// From here the stream may jump over places whose extents were dirty, and blocks of a mirror
    /// are mixed with writes: what is applied is no prefix until `MirrorEnd`.
    MirrorBegin(MirrorKind),
    /// All differences have been sent: with this record applied the replica equals the source.
    MirrorEnd,
}

impl RecordKind {
    /// True if bytes travel with the record, exactly as many as its extent has.
    #[must_use]
    pub const fn has_data(self) -> bool {
        matches!(self, Self::Data { .. })
    }

    /// True if the record names an extent.
    #[must_use]
    pub const fn has_extent(self) -> bool {
        matches!(self, Self::Data { .. } | Self::Zero { .. } | Self::Compare)
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
