//! A target in memory, and the driver of the link to it: no network, the port is called directly.

use super::super::{Batch, GroupLinkPort, LinkPort, PORT_TOKEN};
use blkrep_core::source::{Acks, DigestReply, DownReason, JournalFill, PeerRole, WelcomeFacts};
use blkrep_io::sim::{SimHost, SimIo, SimRandom, SimSocket};
use blkrep_io::{Completion, Io, Worker};
use blkrep_types::{
    ByteLen, DataState, Extent, History, Nanos, Record, RecordKind, VolumeIndex, WriteName,
};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the target holds.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) role: PeerRole,
    pub(super) history: History,
    pub(super) state: DataState,
    pub(super) name: WriteName,
    pub(super) images: Vec<Vec<u8>>,
    /// It can be reached.
    pub(super) reachable: bool,
    /// Extents it lost, until a mirror that knew of them has ended.
    pub(super) lost: Vec<(VolumeIndex, Extent)>,
    /// A mirror that ends after this write knew of all of them.
    pub(super) merged: Option<WriteName>,
    pub(super) mirror_bytes: u64,
    pub(super) records: u64,
    pub(super) connects: u64,
}

pub(super) type Shared = Arc<Mutex<Replica>>;

impl Replica {
    pub(super) fn new(lens: &[usize]) -> Shared {
        Arc::new(Mutex::new(Self {
            role: PeerRole::New,
            history: History::new(),
            state: DataState::NotReady,
            name: WriteName::NONE,
            images: lens.iter().map(|len| vec![0xee; *len]).collect(),
            reachable: true,
            lost: Vec::new(),
            merged: None,
            mirror_bytes: 0,
            records: 0,
            connects: 0,
        }))
    }

    fn part(&mut self, record: &Record) -> &mut [u8] {
        let extent = record.extent.expect("it has an extent");
        let from = usize::try_from(extent.offset().get()).unwrap();
        &mut self.images[record.volume.as_usize()][from..from + extent.len().as_usize()]
    }

    fn apply(&mut self, record: &Record, bytes: &[u8]) -> Option<DigestReply> {
        let begins = matches!(record.kind, RecordKind::MirrorBegin(_));
        let next = record.seq == self.name.seq.next();
        assert!(
            next || (begins
                && (record.incarnation, record.seq) > (self.name.incarnation, self.name.seq)),
            "the stream jumps from {} to {record:?}",
            self.name
        );
        assert!(
            record.incarnation >= self.name.incarnation,
            "runs do not go back"
        );
        self.name.incarnation = record.incarnation;
        self.name.seq = record.seq;
        self.records += 1;
        let mut reply = None;
        match record.kind {
            RecordKind::Data { mirror } => {
                self.part(record).copy_from_slice(bytes);
                self.mirror_bytes += if mirror { bytes.len() as u64 } else { 0 };
            }
            RecordKind::Zero { .. } => self.part(record).fill(0),
            RecordKind::Void | RecordKind::Read | RecordKind::Note { .. } => {}
            RecordKind::Compare => {
                let digest = *blake3::hash(self.part(record)).as_bytes();
                reply = Some(DigestReply {
                    incarnation: record.incarnation,
                    seq: record.seq,
                    volume: record.volume,
                    extent: record.extent.unwrap(),
                    digest: Some(digest),
                });
            }
            RecordKind::MirrorBegin(_) => self.state = DataState::Mirroring,
            RecordKind::MirrorEnd => {
                let place = (record.incarnation, record.seq);
                if self
                    .merged
                    .is_some_and(|name| place > (name.incarnation, name.seq))
                {
                    self.lost.clear();
                }
                if self.lost.is_empty() {
                    self.state = DataState::Ok;
                }
            }
        }
        reply
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Down,
    Beginning,
    Streaming,
}

/// Drives the link.
#[derive(Debug)]
pub(super) struct Driver {
    port: GroupLinkPort<SimHost>,
    replica: Shared,
    random: SimRandom,
    stage: Stage,
    retry_at: Nanos,
    /// When to look whether the target can be reached.
    poll_at: Nanos,
    /// On the way to the target.
    wire: VecDeque<(Nanos, Record, Vec<u8>)>,
    batch: Batch,
    /// The source's, as it said.
    history: History,
}

impl Driver {
    pub(super) fn new(port: GroupLinkPort<SimHost>, replica: Shared, random: SimRandom) -> Self {
        Self {
            port,
            replica,
            random,
            stage: Stage::Down,
            retry_at: Nanos::default(),
            poll_at: Nanos::default(),
            wire: VecDeque::new(),
            batch: Batch {
                records: Vec::new(),
                more: false,
            },
            history: History::new(),
        }
    }

    fn connect(&mut self, io: &mut SimIo) {
        self.history = self.port.hello().history;
        let (welcome, lost) = {
            let mut replica = self.replica.lock().unwrap();
            replica.connects += 1;
            let welcome = WelcomeFacts {
                role: replica.role,
                data_state: replica.state,
                history: replica.history.clone(),
                durable: replica.name,
                reads: true,
            };
            (welcome, replica.lost.clone())
        };
        if self.port.welcome(io, &welcome).is_err() {
            self.port.down(io, DownReason::Asked);
            return;
        }
        for (volume, extent) in lost {
            self.port.map_part(volume, extent);
        }
        self.stage = Stage::Beginning;
    }

    fn begin(&mut self, io: &mut SimIo) {
        if let Some(start) = self.port.begin(io) {
            let mut replica = self.replica.lock().unwrap();
            if replica.name != start.after {
                replica.state = DataState::Mirroring;
                replica.name = start.after;
            }
            replica.role = PeerRole::Replica;
            replica.merged = Some(start.head);
            replica.history = self.history.clone();
            drop(replica);
            self.stage = Stage::Streaming;
        }
    }

    fn stream(&mut self, io: &mut SimIo) {
        loop {
            self.port.next(io, 8, 64 << 10, &mut self.batch);
            for outgoing in &self.batch.records {
                let bytes = match outgoing.record.kind {
                    RecordKind::Data { .. } => self.port.bytes(outgoing).with(<[u8]>::to_vec),
                    _ => Vec::new(),
                };
                let delay = Duration::from_micros(self.random.between(50, 2000));
                let last = self.wire.back().map_or(Nanos::default(), |(at, _, _)| *at);
                let at = io.now().after(delay).max(last);
                self.wire.push_back((at, outgoing.record, bytes));
            }
            if let Some(last) = self.batch.records.last() {
                self.port.release(last.record.seq, ByteLen::ZERO);
            }
            if !self.batch.more {
                break;
            }
        }
        let mut arrived = false;
        while self.wire.front().is_some_and(|(at, _, _)| *at <= io.now()) {
            let (_, record, bytes) = self.wire.pop_front().unwrap();
            let reply = self.replica.lock().unwrap().apply(&record, &bytes);
            arrived = true;
            if let Some(reply) = reply {
                assert!(self.port.digest(io, &reply), "it was asked");
            }
        }
        if arrived {
            let acks = {
                let replica = self.replica.lock().unwrap();
                Acks {
                    received: replica.name,
                    durable: replica.name,
                    data_state: replica.state,
                    journal: JournalFill::default(),
                }
            };
            assert!(self.port.acked(io, &acks), "it was sent");
        }
    }
}

impl Worker<SimIo> for Driver {
    fn start(&mut self, io: &mut SimIo) {
        self.port.start(io);
        self.on_turn(io);
    }

    fn on_completion(&mut self, io: &mut SimIo, completion: Completion<SimSocket>) {
        assert!(
            completion.token & PORT_TOKEN != 0,
            "only the port has operations"
        );
        self.port.on_completion(io, completion);
    }

    fn on_turn(&mut self, io: &mut SimIo) {
        if !io.alive() {
            return;
        }
        self.poll_at = io.now().after(Duration::from_millis(20));
        self.port.on_turn(io);
        let reachable = self.replica.lock().unwrap().reachable;
        if self.stage != Stage::Down && (!reachable || !self.port.wanted()) {
            self.wire.clear();
            self.port.down(io, DownReason::Lost);
            self.stage = Stage::Down;
        }
        if self.stage == Stage::Down && reachable && self.port.wanted() && io.now() >= self.retry_at
        {
            self.retry_at = io.now().after(Duration::from_millis(100));
            self.connect(io);
        }
        if self.stage == Stage::Beginning {
            self.begin(io);
        }
        if self.stage == Stage::Streaming {
            self.stream(io);
        }
    }

    fn deadline(&self) -> Option<Nanos> {
        let wire = self.wire.front().map_or(self.poll_at, |(at, _, _)| *at);
        let own = wire.min(self.poll_at);
        Some(self.port.deadline().map_or(own, |port| port.min(own)))
    }

    fn finished(&self) -> bool {
        false
    }
}
