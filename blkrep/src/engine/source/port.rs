//! What the driver of a link can ask of its group.
//!
//! Owns the trait [`LinkPort`]. The driver owns the connection; the group owns the order, the maps
//! and the mirror. All methods are called on the link's thread and never block. Reads of the
//! mirror, digests and map files are done by the port itself on the driver's ring: the driver
//! passes on completions whose token has [`PORT_TOKEN`].

use blkrep_core::source::{
    Acks, ContentPart, DigestReply, DownReason, HelloFacts, LinkStatus, Outgoing, Rejection,
    StreamStart, WelcomeFacts,
};
use blkrep_io::{Completion, Io, Slice, Token};
use blkrep_types::{ByteLen, Extent, MirrorKind, Nanos, NoteReport, Seq, VolumeIndex};
use std::fmt;

/// Tokens with this bit belong to the port; the driver of the link never uses it.
pub const PORT_TOKEN: Token = 1 << 62;

/// Where the records of a batch have their bytes.
#[derive(Debug)]
pub struct Batch {
    /// Records in order.
    pub records: Vec<Outgoing>,
    /// More can be had at once.
    pub more: bool,
}

/// One link's side of its group.
pub trait LinkPort<I: Io>: fmt::Debug + Send {
    /// Called once on the link's thread: from now on the group wakes it when there is something
    /// to send or to do.
    fn start(&mut self, io: &mut I);

    /// What to say first. Valid until the next call of [`LinkPort::down`].
    fn hello(&mut self) -> HelloFacts;

    /// True while the link should be connected; false after `disconnect`, a refusal or a fence.
    fn wanted(&self) -> bool;

    /// Takes the peer's answer.
    ///
    /// # Errors
    /// The handshake ends here: close the connection. After [`Rejection::Stale`] the group is
    /// fenced already.
    fn welcome(&mut self, io: &mut I, welcome: &WelcomeFacts) -> Result<(), Rejection>;

    /// Takes one extent of the target's part of the dirty map.
    fn map_part(&mut self, volume: VolumeIndex, extent: Extent);

    /// The target cannot tell what it lacks: everything is compared.
    fn map_unknown(&mut self);

    /// Ends the handshake: both maps are here. The stream begins where this says. `None`: a map is
    /// being made durable first; call again at the next turn, the port wakes the driver.
    fn begin(&mut self, io: &mut I) -> Option<StreamStart>;

    /// The connection ended, at whatever stage, and no send of it reads the log's bytes any more.
    /// Idempotent.
    fn down(&mut self, io: &mut I, reason: DownReason);

    /// Takes the next records in order, at most `bytes_max` bytes of data (but at least one
    /// record) and `records_max` records, and stops before the first whose bytes are not yet
    /// complete. `batch.records` is cleared first. Nothing is handed out twice in one session but
    /// after [`LinkPort::again`].
    fn next(&mut self, io: &mut I, records_max: usize, bytes_max: usize, batch: &mut Batch);

    /// The bytes of a record handed out and not yet released.
    fn bytes(&self, record: &Outgoing) -> Slice;

    /// The bytes of all records up to `through` are no longer needed by the driver: they were
    /// copied, or the kernel has sent them. They, and what was handed out with them, became
    /// `framed` bytes on the wire.
    fn release(&mut self, through: Seq, framed: ByteLen);

    /// What was handed out and not acknowledged as received may be lost: the next records are those again,
    /// from the first on. Nothing that was handed out is read any more.
    fn again(&mut self, io: &mut I);

    /// Takes an acknowledgement. False if it names a write that was never sent: the peer is
    /// wrong, close the connection.
    fn acked(&mut self, io: &mut I, acks: &Acks) -> bool;

    /// Takes the target's digest. False if nothing was asked at that place.
    fn digest(&mut self, io: &mut I, reply: &DigestReply) -> bool;

    /// Takes a part of what the target holds, with its bytes if it can tell them. False if nothing was asked at
    /// that place.
    fn content(&mut self, io: &mut I, part: &ContentPart, bytes: &[u8]) -> bool;

    /// The target of this connection takes notes, or is too old for them; said before
    /// [`LinkPort::welcome`].
    fn takes_notes(&mut self, able: bool);

    /// The target says what became of a note.
    fn note(&mut self, io: &mut I, report: &NoteReport);

    /// Takes a completion whose token has [`PORT_TOKEN`].
    fn on_completion(&mut self, io: &mut I, completion: Completion<I::Socket>);

    /// Called at every turn, after the completions: does what the group wants done.
    fn on_turn(&mut self, io: &mut I);

    /// When the port wants its next turn at the latest.
    fn deadline(&self) -> Option<Nanos>;

    /// True while operations of the port are in flight.
    fn busy(&self) -> bool;

    /// What a status shows.
    fn status(&self, now: Nanos) -> LinkStatus;

    /// Asks for a mirror by command.
    fn mirror(&mut self, io: &mut I, kind: MirrorKind);
}
