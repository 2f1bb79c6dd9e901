//! A group as the driver of a link sees it, made of a list.
//!
//! Owns records with their bytes, what was handed out, released and acknowledged, and every call
//! that matters to a test. Decides resume from the welcome alone.

use crate::engine::source::{Batch, LinkPort};
use blkrep_core::source::{
    Acks, Connection, DigestReply, DownReason, HelloFacts, LinkStatus, MirrorPhase, MirrorProgress,
    Outgoing, Position, Protection, Rejection, StreamStart, Transmit, VolumeFacts, WelcomeFacts,
};
use blkrep_io::{Completion, Io, Region, Slice, Waker};
use blkrep_types::{
    BlockSize, ByteLen, ByteOffset, DataState, Extent, ExtentSize, Generation, GroupName, History,
    Incarnation, LinkName, MirrorKind, Mode, Nanos, NoteReport, NoteState, Record, RecordKind, Seq,
    VolumeIndex, VolumeName, WriteName,
};
use std::sync::{Arc, Mutex};

pub(super) const VOLUME_BYTES: u64 = (16 << 20) + 512;

pub(super) fn generation(number: u8) -> Generation {
    Generation::from_bytes([number; 16])
}

pub(super) fn history(numbers: &[u8]) -> History {
    let mut history = History::new();
    for number in numbers {
        history.branch(generation(*number), Incarnation::new(0), Seq::ZERO);
    }
    history
}

pub(super) fn name(seq: u64) -> WriteName {
    WriteName {
        generation: generation(1),
        incarnation: Incarnation::new(1),
        seq: Seq::new(seq),
    }
}

/// What the group knows and was told.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) wanted: bool,
    pub(super) log: Vec<(Record, Option<Slice>)>,
    /// Records whose bytes are complete.
    pub(super) published: usize,
    next: usize,
    /// The most that was handed out, and acknowledged as received.
    sent: u64,
    received: u64,
    /// Times that the stream went back.
    pub(super) agains: u64,
    pub(super) released: u64,
    pub(super) framed: u64,
    pub(super) durable: u64,
    pub(super) downs: Vec<DownReason>,
    pub(super) map: Vec<(u16, u64, u64)>,
    pub(super) map_unknown: bool,
    /// What was said of notes: whether the target takes them, and how far they are.
    pub(super) notes: Vec<(bool, Option<NoteState>)>,
    /// The next time something is asked for, it has only just come.
    pub(super) look_again: bool,
    /// The maps are not durable yet.
    pub(super) maps_pending: bool,
    pub(super) starts: Vec<StreamStart>,
    pub(super) digests: Vec<u64>,
    pub(super) fenced: Option<Generation>,
    waker: Option<Waker>,
}

/// A handle on the group for port and test.
#[derive(Debug, Clone, Default)]
pub(super) struct ListPort(pub(super) Arc<Mutex<Group>>);

impl ListPort {
    pub(super) fn with<R>(&self, look: impl FnOnce(&mut Group) -> R) -> R {
        look(&mut self.0.lock().unwrap())
    }

    /// Appends a write of `len` bytes that tell its place.
    pub(super) fn append(&self, len: u64) {
        self.with(|group| {
            let seq = group.log.len() as u64 + 1;
            let kind = match (seq % 9, len) {
                (_, 0) => RecordKind::Compare,
                (8, _) => RecordKind::Zero {
                    mirror: false,
                    free: true,
                },
                _ => RecordKind::Data {
                    mirror: seq.is_multiple_of(5),
                },
            };
            let extent_len = len.max(512);
            let extent = Extent::new(ByteOffset::new(seq % 64 * 512), ByteLen::new(extent_len));
            let record = Record {
                incarnation: Incarnation::new(1),
                seq: Seq::new(seq),
                kind,
                volume: VolumeIndex::new(u16::try_from(seq % 2).unwrap()),
                extent: Some(extent.unwrap()),
            };
            let bytes = kind.has_data().then(|| {
                let slice = Region::heap(usize::try_from(len).unwrap()).whole();
                slice.with_mut(|bytes| fill(seq, bytes));
                slice
            });
            group.log.push((record, bytes));
        });
    }

    /// Completes the bytes of all records and wakes the driver.
    pub(super) fn publish(&self) {
        let waker = self.with(|group| {
            group.published = group.log.len();
            group.waker.clone()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = self.with(|group| group.waker.clone()) {
            waker.wake();
        }
    }
}

pub(super) fn fill(seq: u64, bytes: &mut [u8]) {
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::try_from((seq * 31 + at as u64) % 251).unwrap();
    }
}

impl<I: Io> LinkPort<I> for ListPort {
    fn start(&mut self, io: &mut I) {
        self.with(|group| group.waker = Some(io.waker()));
    }

    fn hello(&mut self) -> HelloFacts {
        let volume = |index: u16| VolumeFacts {
            index: VolumeIndex::new(index),
            name: VolumeName::new(&format!("v{index}")).unwrap(),
            len: ByteLen::new(VOLUME_BYTES),
            block_size: BlockSize::B512,
            extent_size: ExtentSize::DIRTY_DEFAULT,
            target_path: String::new(),
        };
        HelloFacts {
            group: GroupName::new("pg").unwrap(),
            link: LinkName::new("south").unwrap(),
            history: history(&[1]),
            incarnation: Incarnation::new(1),
            volumes: vec![volume(0), volume(1)],
            mode: Mode::Async,
            overwrite: false,
            first_mirror: None,
        }
    }

    fn wanted(&self) -> bool {
        self.with(|group| group.wanted && group.fenced.is_none())
    }

    fn welcome(&mut self, _io: &mut I, welcome: &WelcomeFacts) -> Result<(), Rejection> {
        self.with(|group| {
            let theirs = &welcome.history;
            if theirs.supersedes(generation(1)) {
                group.fenced = Some(theirs.current());
                return Err(Rejection::Stale {
                    newer: theirs.current(),
                });
            }
            if !theirs.ancestors().is_empty() && theirs.current() != generation(1) {
                return Err(Rejection::Refused {
                    reason: "the target's data is unrelated".into(),
                });
            }
            group.next = usize::try_from(welcome.durable.seq.get()).unwrap();
            group.received = welcome.durable.seq.get();
            Ok(())
        })
    }

    fn content(&mut self, _: &mut I, _: &blkrep_core::source::ContentPart, _: &[u8]) -> bool {
        false
    }

    fn takes_notes(&mut self, able: bool) {
        self.with(|group| group.notes.push((able, None)));
    }

    fn note(&mut self, _io: &mut I, report: &NoteReport) {
        self.with(|group| group.notes.push((true, Some(report.state))));
    }

    fn map_part(&mut self, volume: VolumeIndex, extent: Extent) {
        let part = (volume.get(), extent.offset().get(), extent.len().get());
        self.with(|group| group.map.push(part));
    }

    fn map_unknown(&mut self) {
        self.with(|group| group.map_unknown = true);
    }

    fn begin(&mut self, _io: &mut I) -> Option<StreamStart> {
        self.with(|group| {
            if group.maps_pending {
                return None;
            }
            let start = StreamStart {
                after: name(group.next as u64),
                head: name(group.log.len() as u64),
                generation: generation(1),
                mirror: None,
                reason: "test",
                set_back: false,
            };
            group.starts.push(start.clone());
            Some(start)
        })
    }

    fn down(&mut self, _io: &mut I, reason: DownReason) {
        self.with(|group| group.downs.push(reason));
    }

    fn next(&mut self, _io: &mut I, records_max: usize, bytes_max: usize, batch: &mut Batch) {
        self.with(|group| {
            batch.records.clear();
            if std::mem::take(&mut group.look_again) {
                batch.more = true;
                return;
            }
            let mut bytes = 0;
            while group.next < group.published && batch.records.len() < records_max {
                let (record, slice) = &group.log[group.next];
                bytes += slice.as_ref().map_or(0, Slice::len);
                if bytes > bytes_max && !batch.records.is_empty() {
                    break;
                }
                batch.records.push(Outgoing {
                    record: *record,
                    position: group.next,
                    away: false,
                });
                group.next += 1;
            }
            batch.more = group.next < group.published;
        });
    }

    fn bytes(&self, record: &Outgoing) -> Slice {
        self.with(|group| group.log[record.position].1.clone().unwrap())
    }

    fn release(&mut self, through: Seq, framed: ByteLen) {
        self.with(|group| {
            group.released = through.get();
            group.framed += framed.get();
        });
    }

    fn again(&mut self, _io: &mut I) {
        self.with(|group| {
            group.sent = group.sent.max(group.next as u64);
            group.next = usize::try_from(group.received).unwrap();
            group.agains += 1;
        });
    }

    fn acked(&mut self, _io: &mut I, acks: &Acks) -> bool {
        self.with(|group| {
            let known = acks.received.seq.get() <= group.sent.max(group.next as u64);
            if known {
                group.received = group.received.max(acks.received.seq.get());
                group.next = group.next.max(usize::try_from(group.received).unwrap());
                group.durable = group.durable.max(acks.durable.seq.get());
            }
            known
        })
    }

    fn digest(&mut self, _io: &mut I, reply: &DigestReply) -> bool {
        self.with(|group| {
            let index = usize::try_from(reply.seq.get()).unwrap() - 1;
            let asked = group
                .log
                .get(index)
                .is_some_and(|(r, _)| r.kind == RecordKind::Compare);
            group.digests.push(reply.seq.get());
            asked
        })
    }

    fn on_completion(&mut self, _io: &mut I, completion: Completion<I::Socket>) {
        panic!("{completion:?}: this port submits nothing");
    }

    fn on_turn(&mut self, _io: &mut I) {}

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn busy(&self) -> bool {
        false
    }

    fn status(&self, _now: Nanos) -> LinkStatus {
        let durable = self.with(|group| group.durable);
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
            durable: name(durable),
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
