//! What a source group and the driver of one of its links tell each other.
//!
//! Owns the values of that seam: what a handshake needs, what the peer answered, where the stream
//! begins, what was acknowledged, what a status shows. Holds no state and decides nothing.

use blkrep_types::{
    BlockSize, ByteLen, DataState, Extent, ExtentSize, Generation, GroupName, History, Incarnation,
    LinkName, MirrorKind, Mode, Nanos, Record, Seq, VolumeIndex, VolumeName, WriteName,
};

/// A link's place in its group, for as long as the group is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkIndex(u8);

/// Links a group can have: each costs a map and a share of every acknowledgement.
pub const LINKS_MAX: usize = 16;

impl LinkIndex {
    /// The `index`-th link.
    ///
    /// # Panics
    /// If there cannot be that many.
    #[must_use]
    pub fn new(index: usize) -> Self {
        assert!(index < LINKS_MAX, "a group has at most {LINKS_MAX} links");
        Self(u8::try_from(index).expect("below 16"))
    }

    /// Its number, for indexing.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::from(self.0)
    }
}

/// One volume, as a handshake describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeFacts {
    /// Its place in the group.
    pub index: VolumeIndex,
    /// Its name.
    pub name: VolumeName,
    /// Its size.
    pub len: ByteLen,
    /// Its block size.
    pub block_size: BlockSize,
    /// The grain of its dirty maps.
    pub extent_size: ExtentSize,
    /// Where the target keeps it; empty if the target is to choose.
    pub target_path: String,
}

/// What the source says of itself before anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloFacts {
    /// The group.
    pub group: GroupName,
    /// The link.
    pub link: LinkName,
    /// Its data history.
    pub history: History,
    /// The run that is going on.
    pub incarnation: Incarnation,
    /// Its volumes in their order.
    pub volumes: Vec<VolumeFacts>,
    /// When writes complete.
    pub mode: Mode,
    /// The operator said that what the target holds may be overwritten.
    pub overwrite: bool,
    /// The mirror the operator asked for, until it has begun.
    pub first_mirror: Option<MirrorKind>,
}

/// What the peer is for the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    /// It has never held the group.
    New,
    /// It is a replica.
    Replica,
    /// It serves the group, or did: it was promoted or is a source itself.
    Source,
}

/// What the peer answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WelcomeFacts {
    /// What it is for the group.
    pub role: PeerRole,
    /// What its data is worth.
    pub data_state: DataState,
    /// Its data history.
    pub history: History,
    /// The last write it holds durably.
    pub durable: WriteName,
    /// It answers reads.
    pub reads: bool,
}

/// Why a handshake ends without a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// The peer knows a newer generation: this source is stale and its device now returns EIO.
    Stale {
        /// The peer's current generation.
        newer: Generation,
    },
    /// Going on would overwrite what nobody allowed to be overwritten. Not tried again until
    /// somebody acts.
    Refused {
        /// What is wrong and what to do.
        reason: String,
    },
}

/// Where the stream begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamStart {
    /// The stream goes on after this write.
    pub after: WriteName,
    /// The last write named when the target's map was taken over: a mirror that ends after it
    /// covers that map.
    pub head: WriteName,
    /// The generation it belongs to.
    pub generation: Generation,
    /// The mirror that will follow; `None` if the stream just goes on.
    pub mirror: Option<MirrorKind>,
    /// Why, in words, for the event.
    pub reason: &'static str,
    /// The target lacks what it had acknowledged: an older copy of it was put back.
    pub set_back: bool,
}

/// One acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acks {
    /// The last write received.
    pub received: WriteName,
    /// The last write durable.
    pub durable: WriteName,
    /// What the target's data is worth.
    pub data_state: DataState,
    /// How full its journal is.
    pub journal: JournalFill,
}

/// What a target's journal holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JournalFill {
    /// Bytes it holds.
    pub used: ByteLen,
    /// Bytes it can hold; 0 if that is not known.
    pub capacity: ByteLen,
    /// It holds a mirror until its end has come.
    pub held: bool,
}

/// A range of the stream to send: a record, and where its bytes lie in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    /// The record.
    pub record: Record,
    /// First byte in the log's data memory, or in the link's own if the record was away; meaningless
    /// without data.
    pub position: usize,
    /// Its bytes came from the disk queue.
    pub away: bool,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownReason {
    /// The network or the peer's process.
    Lost,
    /// The peer broke the protocol.
    Protocol,
    /// Somebody asked for it.
    Asked,
}

/// Is there a connection?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// None.
    Down,
    /// The handshake is going on.
    Negotiating,
    /// The stream flows.
    Up,
}

impl Connection {
    /// True if `next` may follow.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        match (self, next) {
            (Self::Down, Self::Negotiating)
            | (Self::Negotiating, Self::Up | Self::Down)
            | (Self::Up, Self::Down) => true,
            (Self::Down, Self::Down | Self::Up)
            | (Self::Negotiating, Self::Negotiating)
            | (Self::Up, Self::Up | Self::Negotiating) => false,
        }
    }
}

/// Does the log keep what the link has not got?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Yes: every write after the last acknowledged one is in the log.
    Following,
    /// No: writes set dirty bits, a mirror must follow.
    Behind,
}

/// What holds transmission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transmit {
    /// Nothing.
    Started,
    /// An operator; the log keeps.
    Paused,
    /// An operator; extents are tracked.
    Stopped,
}

/// What a mirror does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MirrorPhase {
    /// Nothing to do.
    Idle,
    /// There is something to do; it waits for the link or for a calmer source.
    Waiting,
    /// Extents are compared and sent.
    Running,
    /// Everything is sent; its end is not yet acknowledged.
    Ending,
    /// An operator holds it.
    Paused,
}

impl MirrorPhase {
    /// True if `next` may follow.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        match (self, next) {
            (Self::Idle | Self::Paused | Self::Running | Self::Ending, Self::Waiting)
            | (Self::Waiting, Self::Running | Self::Paused | Self::Idle)
            | (Self::Running, Self::Ending | Self::Paused | Self::Idle)
            | (Self::Ending, Self::Idle | Self::Paused)
            | (Self::Paused, Self::Idle) => true,
            (Self::Idle, Self::Idle | Self::Running | Self::Ending | Self::Paused)
            | (Self::Waiting, Self::Waiting | Self::Ending)
            | (Self::Running, Self::Running)
            | (Self::Ending, Self::Ending | Self::Running)
            | (Self::Paused, Self::Paused | Self::Running | Self::Ending) => false,
        }
    }
}

/// What a status shows of a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MirrorProgress {
    /// What it does.
    pub phase: MirrorPhase,
    /// Its kind; `None` if none ran.
    pub kind: Option<MirrorKind>,
    /// Bytes sent.
    pub sent: ByteLen,
    /// Bytes found equal or zero, and not sent.
    pub skipped: ByteLen,
    /// Bytes still to look at.
    pub remaining: ByteLen,
    /// The application dirties faster than the link drains.
    pub not_converging: bool,
    /// It stands back until the target's journal has room.
    pub held_back: bool,
}

/// What a status shows of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkStatus {
    /// Is there a connection?
    pub connection: Connection,
    /// Does the log keep what it has not got?
    pub position: Position,
    /// What holds transmission.
    pub transmit: Transmit,
    /// What completed writes may rely on; of no meaning in `async` mode.
    pub protection: super::Protection,
    /// Times that writes began to complete without what the mode asks for, since the group is open.
    pub degradations: u64,
    /// The mirror.
    pub mirror: MirrorProgress,
    /// What the target's data is worth, as it said last.
    pub data_state: DataState,
    /// The last write that is durable there.
    pub durable: WriteName,
    /// Writes in the log that are not durable there, and their bytes.
    pub queued_ops: u64,
    /// Bytes of those writes in memory.
    pub queued_bytes: ByteLen,
    /// Bytes of those writes in the disk queue.
    pub queued_disk_bytes: ByteLen,
    /// When the oldest of them entered the log.
    pub oldest: Option<Nanos>,
    /// Bytes in extents that may differ and that the log does not hold.
    pub dirty_bytes: ByteLen,
    /// Bytes of records handed to the link since it was made.
    pub sent_bytes: ByteLen,
    /// What these records became on the wire, frames and all.
    pub framed_bytes: ByteLen,
    /// Times the log ran over.
    pub overflows: u64,
}

/// A part of what an extent held at one place of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentPart {
    /// The run of the source that asked.
    pub incarnation: Incarnation,
    /// The place of the `Read` record in it.
    pub seq: Seq,
    /// Its volume.
    pub volume: VolumeIndex,
    /// The part of its extent.
    pub extent: Extent,
    /// The bytes are there; false if the target cannot tell them, nor any further ones.
    pub known: bool,
}

/// The digest of an extent at one place of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DigestReply {
    /// The run of the source that asked.
    pub incarnation: Incarnation,
    /// The place of the `Compare` record in it.
    pub seq: Seq,
    /// Its volume.
    pub volume: VolumeIndex,
    /// Its extent.
    pub extent: Extent,
    /// BLAKE3 of the bytes there, or `None` if the target cannot tell.
    pub digest: Option<[u8; 32]>,
}
