//! A group that is all writes: what the link's driver takes its records from.
//!
//! Owns a stretch of data that is sent as writes of one page each, as often as asked, and how far the
//! target is. Sent and not acknowledged is bounded as in the daemon.

use super::data::PAGE;
use blkrep::engine::source::{Batch, LinkPort};
use blkrep_core::source::{
    Acks, Connection, DigestReply, DownReason, HelloFacts, LinkStatus, MirrorPhase, MirrorProgress,
    Outgoing, Position, Protection, Rejection, StreamStart, Transmit, VolumeFacts, WelcomeFacts,
};
use blkrep_io::{Completion, Io, Slice};
use blkrep_types::{
    BlockSize, ByteLen, ByteOffset, DataState, Extent, ExtentSize, Generation, History,
    Incarnation, MirrorKind, Mode, Nanos, NoteReport, Record, RecordKind, Seq, VolumeIndex,
    WriteName,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// As `link.in-flight` has it.
const IN_FLIGHT: u64 = 16 << 20;

/// The group.
#[derive(Debug)]
pub(super) struct Writes {
    pub(super) data: Slice,
    /// Writes to send.
    pub(super) count: u64,
    next: u64,
    acked: u64,
    /// Bytes on the wire.
    pub(super) framed: Arc<AtomicU64>,
}

pub(super) fn generation() -> Generation {
    Generation::from_bytes([7; 16])
}

pub(super) fn history() -> History {
    let mut history = History::new();
    history.branch(generation(), Incarnation::new(0), Seq::ZERO);
    history
}

pub(super) fn name(seq: u64) -> WriteName {
    WriteName {
        generation: generation(),
        incarnation: Incarnation::new(1),
        seq: Seq::new(seq),
    }
}

impl Writes {
    pub(super) fn new(data: Slice, count: u64, framed: Arc<AtomicU64>) -> Self {
        Self {
            data,
            count,
            next: 0,
            acked: 0,
            framed,
        }
    }

    /// Where the bytes of a write are.
    fn place(&self, number: u64) -> usize {
        let pages = u64::try_from(self.data.len() / PAGE).expect("64-bit platform");
        usize::try_from(number % pages).expect("64-bit platform") * PAGE
    }
}

fn page() -> ByteLen {
    ByteLen::new(u64::try_from(PAGE).expect("64-bit platform"))
}

impl<I: Io> LinkPort<I> for Writes {
    fn start(&mut self, _io: &mut I) {}

    fn hello(&mut self) -> HelloFacts {
        let named = "a name is legal";
        HelloFacts {
            group: "bench".to_owned().try_into().expect(named),
            link: "line".to_owned().try_into().expect(named),
            history: history(),
            incarnation: Incarnation::new(1),
            volumes: vec![VolumeFacts {
                index: VolumeIndex::new(0),
                name: "volume".to_owned().try_into().expect(named),
                len: ByteLen::new(1 << 30),
                block_size: BlockSize::B4096,
                extent_size: ExtentSize::DIRTY_DEFAULT,
                target_path: String::new(),
            }],
            mode: Mode::Async,
            overwrite: false,
            first_mirror: None,
        }
    }

    fn wanted(&self) -> bool {
        true
    }

    fn welcome(&mut self, _io: &mut I, _welcome: &WelcomeFacts) -> Result<(), Rejection> {
        Ok(())
    }

    fn map_part(&mut self, _volume: VolumeIndex, _extent: Extent) {}

    fn map_unknown(&mut self) {}

    fn takes_notes(&mut self, _able: bool) {}

    fn note(&mut self, _io: &mut I, _report: &NoteReport) {}

    fn begin(&mut self, _io: &mut I) -> Option<StreamStart> {
        Some(StreamStart {
            after: name(0),
            head: name(0),
            generation: generation(),
            mirror: None,
            reason: "a benchmark",
            set_back: false,
        })
    }

    fn down(&mut self, _io: &mut I, _reason: DownReason) {}

    fn next(&mut self, _io: &mut I, records_max: usize, bytes_max: usize, batch: &mut Batch) {
        batch.records.clear();
        let room = (self.acked + IN_FLIGHT / page().get()).min(self.count);
        let most = records_max.min(bytes_max / PAGE);
        while self.next < room && batch.records.len() < most {
            let number = self.next;
            self.next += 1;
            let at = ByteOffset::new(number % (1 << 16) * page().get());
            batch.records.push(Outgoing {
                record: Record {
                    incarnation: Incarnation::new(1),
                    seq: Seq::new(number + 1),
                    kind: RecordKind::Data { mirror: false },
                    volume: VolumeIndex::new(0),
                    extent: Some(Extent::new(at, page()).expect("within the volume")),
                },
                position: self.place(number),
                away: false,
            });
        }
        batch.more = self.next < room;
    }

    fn bytes(&self, record: &Outgoing) -> Slice {
        self.data.part(record.position..record.position + PAGE)
    }

    fn release(&mut self, _through: Seq, framed: ByteLen) {
        self.framed.fetch_add(framed.get(), Ordering::Relaxed);
    }

    fn again(&mut self, _io: &mut I) {
        unreachable!("one connection");
    }

    fn acked(&mut self, _io: &mut I, acks: &Acks) -> bool {
        self.acked = acks.durable.seq.get();
        true
    }

    fn content(
        &mut self,
        _io: &mut I,
        _part: &blkrep_core::source::ContentPart,
        _bytes: &[u8],
    ) -> bool {
        false
    }

    fn digest(&mut self, _io: &mut I, _reply: &DigestReply) -> bool {
        false
    }

    fn on_completion(&mut self, _io: &mut I, completion: Completion<I::Socket>) {
        unreachable!("{completion:?}: this port submits nothing");
    }

    fn on_turn(&mut self, _io: &mut I) {}

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn busy(&self) -> bool {
        false
    }

    fn status(&self, _now: Nanos) -> LinkStatus {
        LinkStatus {
            connection: Connection::Up,
            position: Position::Following,
            transmit: Transmit::Started,
            protection: Protection::Degraded,
            degradations: 0,
            mirror: MirrorProgress {
                phase: MirrorPhase::Idle,
                kind: None,
                sent: ByteLen::ZERO,
                skipped: ByteLen::ZERO,
                remaining: ByteLen::ZERO,
                not_converging: false,
                held_back: false,
            },
            data_state: DataState::Ok,
            durable: name(self.acked),
            queued_ops: 0,
            queued_bytes: ByteLen::ZERO,
            queued_disk_bytes: ByteLen::ZERO,
            oldest: None,
            dirty_bytes: ByteLen::ZERO,
            sent_bytes: ByteLen::ZERO,
            framed_bytes: ByteLen::ZERO,
            overflows: 0,
        }
    }

    fn mirror(&mut self, _io: &mut I, _kind: MirrorKind) {}
}
