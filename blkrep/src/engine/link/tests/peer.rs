//! A target that follows a script, on a ring of its own.
//!
//! Owns a listener and at most one connection. An honest one checks that every record is the next
//! and has the bytes of its place, and acknowledges it; the others do what their script says.

use super::port::{fill, generation, history, name};
use blkrep_io::sim::{SimIo, SimSocket};
use blkrep_io::{Completion, Io, Op, Region, Slice, Worker};
use blkrep_types::{
    ByteLen, DataState, ExtentIndex, ExtentSize, History, Nanos, NodeName, RecordKind, VolumeIndex,
    WriteName,
};
use blkrep_wire::limits::{PACKED_PLAIN_MAX, SOURCE_BODY_MAX, buffer_bytes};
use blkrep_wire::{
    Ack, Applying, Codecs, DataFrame, Decoder, DigestReply, Encoder, Frame, Hello, Inflater,
    MapEnd, MapPart, Message, PeerRole, Refuse, RefuseCode, SessionId, Start, VERSION_PACKED,
    Welcome, WelcomeVolume,
};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the target does with a connection.
#[derive(Debug, Clone)]
pub(super) enum Script {
    /// Replicates.
    Honest,
    /// Replicates, and says of its own accord that it lives.
    Lively,
    /// Accepts, and says nothing ever.
    Silent,
    /// Accepts, and lives, but never answers.
    Mute,
    /// Says these bytes at once.
    Rubbish(Vec<u8>),
    /// Refuses.
    Refuse(RefuseCode, History),
    /// Says no matter what it has.
    Welcome(Box<Welcome>),
    /// Replicates until this place, then says this.
    Then(u64, Message),
    /// Replicates until this place, then its journal is full: it receives nothing more but lives.
    Full(u64),
    /// Replicates until this place, then makes nothing durable any more but lives.
    Stuck(u64),
    /// Sends this map.
    Map(Vec<MapPart>, MapEnd),
}

/// What the target has and was told.
#[derive(Debug, Default)]
pub(super) struct Replica {
    pub(super) scripts: VecDeque<Script>,
    pub(super) connections: u32,
    pub(super) received: u64,
    pub(super) hello: Option<Hello>,
    pub(super) starts: Vec<Start>,
    pub(super) goodbyes: Vec<Message>,
    pub(super) digests: u64,
    /// What it says that it takes.
    pub(super) codecs: Codecs,
}

pub(super) type Shared = Arc<Mutex<Replica>>;

#[derive(Debug)]
pub(super) struct Peer {
    listener: SimSocket,
    replica: Shared,
    script: Script,
    socket: Option<SimSocket>,
    receiving: bool,
    full: bool,
    stuck: bool,
    left: bool,
    encoder: Encoder,
    decoder: Decoder,
    outgoing: VecDeque<(Slice, usize)>,
    sending: bool,
    heartbeat: Nanos,
}

const ACCEPT: u64 = 1;
const RECV: u64 = 2;
const SEND: u64 = 3;

pub(super) fn welcome(durable: u64) -> Welcome {
    let volume = |index| WelcomeVolume {
        index: VolumeIndex::new(index),
        len: ByteLen::new(17 << 20),
    };
    Welcome {
        version: 1,
        node: NodeName::new("south").unwrap(),
        role: PeerRole::Target,
        data_state: DataState::Ok,
        history: history(&[1]),
        durable: name(durable),
        journal_used: ByteLen::ZERO,
        journal_capacity: ByteLen::new(1 << 20),
        codecs: Codecs::NONE,
        connections: 1,
        reads: false,
        session: SessionId::NONE,
        volumes: vec![volume(0), volume(1)],
    }
}

/// Room in the journal of the target.
const JOURNAL: u64 = 256 << 20;

pub(super) fn ack(received: u64) -> Message {
    ack_with(received, 512)
}

fn ack_with(received: u64, journal_used: u64) -> Message {
    Message::Ack(Ack {
        received: name(received),
        durable: name(received),
        applied: name(received),
        journal_used: ByteLen::new(journal_used),
        journal_capacity: ByteLen::new(JOURNAL),
        data_state: DataState::Ok,
        applying: Applying::Running,
        held: false,
    })
}

pub(super) fn map_part(volume: u16, first: u64, bit_count: u32, bits: &[u8]) -> MapPart {
    MapPart {
        volume: VolumeIndex::new(volume),
        extent_size: ExtentSize::DIRTY_DEFAULT,
        first: ExtentIndex::new(first),
        bit_count,
        bits: bits.to_vec(),
    }
}

/// Without a codec it refuses packed frames.
fn decoder(codecs: Codecs) -> Decoder {
    let buffer = Region::heap(buffer_bytes(SOURCE_BODY_MAX)).whole();
    let mut decoder = Decoder::new(buffer, SOURCE_BODY_MAX);
    if codecs.has_zstd() {
        let buffer = Region::heap(PACKED_PLAIN_MAX).whole();
        decoder.inflate_with(Inflater::new(buffer).unwrap());
    }
    decoder
}

impl Peer {
    pub(super) fn new(listener: SimSocket, replica: Shared) -> Self {
        Self {
            listener,
            replica,
            script: Script::Honest,
            socket: None,
            receiving: false,
            full: false,
            stuck: false,
            left: false,
            encoder: Encoder::new(),
            decoder: decoder(Codecs::NONE),
            outgoing: VecDeque::new(),
            sending: false,
            heartbeat: Nanos::default(),
        }
    }

    fn with<R>(&self, look: impl FnOnce(&mut Replica) -> R) -> R {
        look(&mut self.replica.lock().unwrap())
    }

    /// It says of its own accord that it lives.
    fn pings(&self) -> bool {
        self.full || self.stuck || matches!(self.script, Script::Mute | Script::Lively)
    }

    fn queue(&mut self, message: &Message) {
        let slice = Region::heap(256 << 10).whole();
        let len = self.encoder.message(message, &slice).unwrap();
        self.outgoing.push_back((slice.part(0..len), 0));
    }

    fn accepted(&mut self, io: &mut SimIo, socket: SimSocket) {
        if let Some(old) = self.socket.take() {
            io.shutdown(&old);
        }
        self.encoder.reset();
        let codecs = self.with(|replica| replica.codecs);
        self.decoder = decoder(codecs);
        self.outgoing.clear();
        self.sending = false;
        self.receiving = false;
        self.full = false;
        self.stuck = false;
        self.left = false;
        self.socket = Some(socket);
        self.script = self.with(|replica| {
            replica.connections += 1;
            replica.scripts.pop_front().unwrap_or(Script::Honest)
        });
        if let Script::Rubbish(bytes) = &self.script {
            let slice = Region::heap(bytes.len()).whole();
            slice.write(0, bytes);
            self.outgoing.push_back((slice, 0));
        }
    }

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Hello(hello) => {
                self.with(|replica| replica.hello = Some(*hello));
                self.answer();
            }
            Message::Start(start) => self.with(|replica| replica.starts.push(start)),
            Message::Ping(_) if matches!(self.script, Script::Silent) => {}
            Message::Ping(stamp) => self.queue(&Message::Pong(stamp)),
            Message::Pong(_) => {}
            Message::Error(_) | Message::Goodbye(_) => {
                self.with(|replica| replica.goodbyes.push(message));
                self.left = true;
            }
            other => panic!("a source does not send {other:?}"),
        }
    }

    fn answer(&mut self) {
        let durable = self.with(|replica| replica.received);
        match self.script.clone() {
            Script::Silent | Script::Mute | Script::Rubbish(_) => {}
            Script::Refuse(code, history) => {
                let text = format!("because of {code}");
                self.queue(&Message::Refuse(Refuse {
                    versions: (1, 1),
                    code,
                    history,
                    text,
                }));
            }
            Script::Welcome(welcome) => {
                self.queue(&Message::Welcome(welcome));
                self.queue(&Message::MapEnd(MapEnd {
                    part_count: 0,
                    unknown: false,
                }));
            }
            Script::Map(parts, end) => {
                self.queue(&Message::Welcome(Box::new(welcome(durable))));
                for part in parts {
                    self.queue(&Message::MapPart(part));
                }
                self.queue(&Message::MapEnd(end));
            }
            Script::Honest
            | Script::Lively
            | Script::Then(..)
            | Script::Full(_)
            | Script::Stuck(_) => {
                let mut welcome = welcome(durable);
                welcome.codecs = self.with(|replica| replica.codecs);
                if welcome.codecs != Codecs::NONE {
                    welcome.version = VERSION_PACKED;
                }
                let version = welcome.version;
                self.queue(&Message::Welcome(Box::new(welcome)));
                self.encoder.agree(version);
                self.decoder.agree(version);
                self.queue(&Message::MapEnd(MapEnd {
                    part_count: 0,
                    unknown: false,
                }));
            }
        }
    }

    fn on_data(&mut self, frame: &DataFrame) {
        let mut digests = Vec::new();
        for entry in frame.entries() {
            let (record, seq) = (entry.record, entry.record.seq.get());
            let before = self.with(|replica| std::mem::replace(&mut replica.received, seq));
            assert_eq!(seq, before + 1, "every record once, in order");
            if let Some(bytes) = entry.bytes {
                let mut wanted = vec![0; bytes.len()];
                fill(seq, &mut wanted);
                assert!(bytes.with(|bytes| bytes == wanted), "bytes of write {seq}");
            }
            if record.kind == RecordKind::Compare {
                digests.push(DigestReply {
                    incarnation: record.incarnation,
                    seq: record.seq,
                    volume: record.volume,
                    extent: record.extent.unwrap(),
                    digest: Some([7; 32]),
                });
            }
        }
        self.with(|replica| replica.digests += digests.len() as u64);
        if !digests.is_empty() {
            self.queue(&Message::Digests(digests));
        }
        let received = self.with(|replica| replica.received);
        match self.script {
            Script::Stuck(seq) if received >= seq => {
                self.stuck = true;
                return;
            }
            _ => self.queue(&ack(received)),
        }
        match self.script.clone() {
            Script::Then(seq, message) if received >= seq => {
                self.script = Script::Honest;
                self.queue(&message);
            }
            Script::Full(seq) if received >= seq => self.full = true,
            _ => {}
        }
    }

    fn take_frames(&mut self) {
        while let Some(frame) = self.decoder.next().expect("a source sends legal frames") {
            match frame {
                Frame::Message(message) => self.on_message(message),
                Frame::Data(frame) => self.on_data(&frame),
            }
        }
    }
}

impl Worker<SimIo> for Peer {
    fn start(&mut self, io: &mut SimIo) {
        io.submit(
            ACCEPT,
            Op::Accept {
                listener: self.listener.clone(),
            },
        );
    }

    fn on_completion(&mut self, io: &mut SimIo, completion: Completion<SimSocket>) {
        match completion.token & 0xff {
            ACCEPT => {
                self.accepted(io, completion.socket.expect("listening goes on"));
                io.submit(
                    ACCEPT,
                    Op::Accept {
                        listener: self.listener.clone(),
                    },
                );
                return;
            }
            // What was in flight on an earlier connection.
            _ if completion.token >> 8 != u64::from(self.with(|r| r.connections)) => return,
            RECV => self.receiving = false,
            SEND => self.sending = false,
            other => panic!("operation {other}"),
        }
        let Ok(count @ 1..) = completion.result else {
            self.socket = None;
            return;
        };
        let count = usize::try_from(count).unwrap();
        if completion.token & 0xff == RECV {
            self.decoder.received(count);
            self.take_frames();
        } else if let Some(front) = self.outgoing.front_mut() {
            front.1 += count;
            if front.1 == front.0.len() {
                self.outgoing.pop_front();
            }
        }
    }

    fn on_turn(&mut self, io: &mut SimIo) {
        let Some(socket) = self.socket.clone() else {
            return;
        };
        if self.left {
            io.shutdown(&socket);
            self.socket = None;
            return;
        }
        if self.pings() && io.now() >= self.heartbeat.after(Duration::from_millis(500)) {
            self.heartbeat = io.now();
            let received = self.with(|replica| replica.received);
            self.queue(&match self.script {
                Script::Full(_) => ack_with(received, JOURNAL - (1 << 20)),
                Script::Stuck(seq) => ack(seq.min(received) - 1),
                _ => Message::Ping(1),
            });
        }
        let epoch = u64::from(self.with(|replica| replica.connections)) << 8;
        if !self.receiving && !self.full {
            self.receiving = true;
            let slice = self.decoder.space();
            io.submit(
                epoch | RECV,
                Op::Recv {
                    socket: socket.clone(),
                    slice,
                },
            );
        }
        if let Some((slice, sent)) = self.outgoing.front().filter(|_| !self.sending) {
            self.sending = true;
            let slice = slice.part(*sent..slice.len());
            io.submit(epoch | SEND, Op::Send { socket, slice });
        }
    }

    fn deadline(&self) -> Option<Nanos> {
        let due = self.heartbeat.after(Duration::from_millis(500));
        (self.pings() && self.socket.is_some()).then_some(due)
    }

    fn finished(&self) -> bool {
        false
    }
}

/// A name of another history.
pub(super) fn foreign(seq: u64) -> WriteName {
    WriteName {
        generation: generation(9),
        ..name(seq)
    }
}
