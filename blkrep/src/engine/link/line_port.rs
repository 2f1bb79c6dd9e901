//! A group's port on a ring that encrypts.
//!
//! Owns nothing: the port works on the ring below, because what it reads and writes are files, and
//! those pass the encrypting ring as they are.

use crate::engine::source::{Batch, LinkPort};
use blkrep_core::source::{
    Acks, ContentPart, DigestReply, DownReason, HelloFacts, LinkStatus, Outgoing, Rejection,
    StreamStart, WelcomeFacts,
};
use blkrep_io::{Completion, Io, Slice};
use blkrep_types::{ByteLen, Extent, MirrorKind, Nanos, NoteReport, Seq, VolumeIndex};
use blkrep_wire::tls::LineIo;

/// The port.
#[derive(Debug)]
pub struct LinePort<P>(pub P);

impl<I: Io, P: LinkPort<I>> LinkPort<LineIo<I>> for LinePort<P> {
    fn start(&mut self, io: &mut LineIo<I>) {
        self.0.start(io.inner());
    }

    fn hello(&mut self) -> HelloFacts {
        self.0.hello()
    }

    fn wanted(&self) -> bool {
        self.0.wanted()
    }

    fn welcome(&mut self, io: &mut LineIo<I>, welcome: &WelcomeFacts) -> Result<(), Rejection> {
        self.0.welcome(io.inner(), welcome)
    }

    fn map_part(&mut self, volume: VolumeIndex, extent: Extent) {
        self.0.map_part(volume, extent);
    }

    fn map_unknown(&mut self) {
        self.0.map_unknown();
    }

    fn begin(&mut self, io: &mut LineIo<I>) -> Option<StreamStart> {
        self.0.begin(io.inner())
    }

    fn down(&mut self, io: &mut LineIo<I>, reason: DownReason) {
        self.0.down(io.inner(), reason);
    }

    fn next(
        &mut self,
        io: &mut LineIo<I>,
        records_max: usize,
        bytes_max: usize,
        batch: &mut Batch,
    ) {
        self.0.next(io.inner(), records_max, bytes_max, batch);
    }

    fn bytes(&self, record: &Outgoing) -> Slice {
        self.0.bytes(record)
    }

    fn release(&mut self, through: Seq, framed: ByteLen) {
        self.0.release(through, framed);
    }

    fn again(&mut self, io: &mut LineIo<I>) {
        self.0.again(io.inner());
    }

    fn acked(&mut self, io: &mut LineIo<I>, acks: &Acks) -> bool {
        self.0.acked(io.inner(), acks)
    }

    fn digest(&mut self, io: &mut LineIo<I>, reply: &DigestReply) -> bool {
        self.0.digest(io.inner(), reply)
    }

    fn content(&mut self, io: &mut LineIo<I>, part: &ContentPart, bytes: &[u8]) -> bool {
        self.0.content(io.inner(), part, bytes)
    }

    fn takes_notes(&mut self, able: bool) {
        self.0.takes_notes(able);
    }

    fn note(&mut self, io: &mut LineIo<I>, report: &NoteReport) {
        self.0.note(io.inner(), report);
    }

    fn on_completion(
        &mut self,
        io: &mut LineIo<I>,
        completion: Completion<<LineIo<I> as Io>::Socket>,
    ) {
        assert!(completion.socket.is_none(), "a port connects to nobody");
        let completion = Completion {
            token: completion.token,
            result: completion.result,
            socket: None,
        };
        self.0.on_completion(io.inner(), completion);
    }

    fn on_turn(&mut self, io: &mut LineIo<I>) {
        self.0.on_turn(io.inner());
    }

    fn deadline(&self) -> Option<Nanos> {
        self.0.deadline()
    }

    fn busy(&self) -> bool {
        self.0.busy()
    }

    fn status(&self, now: Nanos) -> LinkStatus {
        self.0.status(now)
    }

    fn mirror(&mut self, io: &mut LineIo<I>, kind: MirrorKind) {
        self.0.mirror(io.inner(), kind);
    }
}
