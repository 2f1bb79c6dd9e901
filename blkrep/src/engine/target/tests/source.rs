//! A source as simple as one can be: it keeps every record it ever made, knows its image at each of
//! them, and judges a handshake by the rules of the protocol.

use blkrep_core::dirty::MapLayout;
use blkrep_io::sim::{SimIo, SimSocket};
use blkrep_io::{Completion, Io, Op, Region, Slice, Worker};
use blkrep_types::{
    BlockSize, BookmarkName, ByteLen, ByteOffset, DataState, Extent, ExtentIndex, ExtentSize,
    Generation, GroupName, History, Incarnation, LinkName, MirrorKind, Mode, NOTE_BYTES, Nanos,
    NodeName, Note, NoteId, NoteKind, NoteState, Record, RecordKind, Seq, TaskCommand, VolumeIndex,
    VolumeName, WriteName,
};
use blkrep_wire::limits::{HELLO_BODY_MAX, TARGET_BODY_MAX, buffer_bytes};
use blkrep_wire::{
    Ack, Content, Decoder, DigestReply, Encoder, Entry, FRAME_HEADER_BYTES, Frame, Hello,
    HelloVolume, Message, Refuse, Start, VERSION_MAX, VERSION_MIN, Welcome,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

pub(super) const VOLUMES: u16 = 2;
pub(super) const VOLUME_BYTES: u64 = 64 << 10;
pub(super) const GRAIN: u64 = 4096;
const SECTOR: u64 = 512;

pub(super) type Images = Vec<Vec<u8>>;
type Place = (Incarnation, Seq);

#[derive(Clone)]
pub(super) struct Logged {
    pub(super) record: Record,
    pub(super) bytes: Option<Slice>,
}

/// What the source knows; the test looks into it.
pub(super) struct Book {
    pub(super) peer: SocketAddr,
    pub(super) node: NodeName,
    pub(super) link: LinkName,
    pub(super) group: GroupName,
    pub(super) history: History,
    pub(super) incarnation: Incarnation,
    pub(super) seq: Seq,
    pub(super) overwrite: bool,
    pub(super) mode: Mode,
    pub(super) paths: Vec<String>,
    pub(super) volume_bytes: u64,
    pub(super) images: Images,
    pub(super) log: Vec<Logged>,
    /// Images at which a replica may be `ok`, by the last record it has.
    pub(super) legal: BTreeMap<Place, Images>,
    pub(super) dirty: BTreeSet<(u16, u64)>,
    pub(super) mirroring: bool,
    pub(super) connect: bool,
    /// Send nothing of the log for now.
    pub(super) hold: bool,
    /// Bytes to send instead of a hello.
    pub(super) rubbish: Option<Vec<u8>>,
    pub(super) versions: (u16, u16),
    pub(super) silent: bool,
    /// It sends and takes nothing.
    pub(super) deaf: bool,
    /// Changes what is sent, for tests of a source that is wrong.
    pub(super) twist: Option<fn(&mut Entry)>,
    pub(super) start_twist: Option<fn(&mut Start)>,
    pub(super) welcome: Option<Welcome>,
    pub(super) refused: Option<Refuse>,
    pub(super) farewell: Option<String>,
    pub(super) ack: Option<Ack>,
    pub(super) digests: Vec<DigestReply>,
    /// What the target said that it holds.
    pub(super) contents: Vec<Content>,
    /// What the target said of notes.
    pub(super) told: Vec<(NoteId, NoteState)>,
    pub(super) map_unknown: bool,
    pub(super) map_bits: u64,
    pub(super) sessions: u32,
    pub(super) mirror_bytes: u64,
}

pub(super) fn generation(number: u8) -> Generation {
    Generation::from_bytes([number; 16])
}

impl Book {
    pub(super) fn new(peer: SocketAddr) -> Self {
        let mut history = History::new();
        history.branch(generation(1), Incarnation::new(0), Seq::ZERO);
        let image = vec![0; usize::try_from(VOLUME_BYTES).unwrap()];
        Self {
            peer,
            node: NodeName::new("alpha").unwrap(),
            link: LinkName::new("to-beta").unwrap(),
            group: GroupName::new("db").unwrap(),
            history,
            incarnation: Incarnation::new(1),
            seq: Seq::ZERO,
            overwrite: false,
            mode: Mode::Async,
            paths: vec![String::new(); usize::from(VOLUMES)],
            volume_bytes: VOLUME_BYTES,
            images: vec![image; usize::from(VOLUMES)],
            log: Vec::new(),
            legal: BTreeMap::new(),
            dirty: BTreeSet::new(),
            mirroring: false,
            connect: true,
            hold: false,
            rubbish: None,
            versions: (VERSION_MIN, VERSION_MAX),
            silent: false,
            deaf: false,
            twist: None,
            start_twist: None,
            welcome: None,
            refused: None,
            farewell: None,
            ack: None,
            digests: Vec::new(),
            contents: Vec::new(),
            told: Vec::new(),
            map_unknown: false,
            map_bits: 0,
            sessions: 0,
            mirror_bytes: 0,
        }
    }

    pub(super) fn head(&self) -> WriteName {
        WriteName {
            generation: self.history.current(),
            incarnation: self.incarnation,
            seq: self.seq,
        }
    }

    fn push(&mut self, kind: RecordKind, volume: u16, extent: Option<Extent>) {
        self.seq = self.seq.next();
        let record = Record {
            incarnation: self.incarnation,
            seq: self.seq,
            kind,
            volume: VolumeIndex::new(volume),
            extent,
        };
        let bytes = extent.filter(|_| kind.has_data()).map(|extent| {
            let at = usize::try_from(extent.offset().get()).unwrap();
            let len = extent.len().as_usize();
            let slice = Region::heap(len).whole();
            slice.write(0, &self.images[usize::from(volume)][at..at + len]);
            slice
        });
        self.log.push(Logged { record, bytes });
        if !self.mirroring {
            self.legal
                .insert((self.incarnation, self.seq), self.images.clone());
        }
    }

    /// An application writes `sectors` of `value`; a lost one leaves only dirt.
    pub(super) fn write(&mut self, volume: u16, at: u64, sectors: u64, value: u8, lost: bool) {
        let extent = self.change(volume, at, sectors, value);
        if lost {
            self.seq = self.seq.next();
            self.soil(volume, extent);
        } else {
            self.push(RecordKind::Data { mirror: false }, volume, Some(extent));
        }
    }

    pub(super) fn zero(&mut self, volume: u16, at: u64, sectors: u64, free: bool) {
        let extent = self.change(volume, at, sectors, 0);
        self.push(
            RecordKind::Zero {
                mirror: false,
                free,
            },
            volume,
            Some(extent),
        );
    }

    /// A bookmark, or a task that runs that program.
    pub(super) fn note(&mut self, id: u8, task: Option<&str>) {
        let kind = match task {
            None => NoteKind::Bookmark(BookmarkName::new(&format!("mark-{id}")).unwrap()),
            Some(name) => {
                let words = vec![name.to_owned()];
                NoteKind::Task(TaskCommand::new(words, String::new()).unwrap())
            }
        };
        let note = Note {
            id: NoteId::from_bytes([id; 16]),
            submitted: 5,
            kind,
        };
        let task = task.is_some();
        self.push(RecordKind::Note { task }, 0, None);
        let slice = Region::heap(NOTE_BYTES).whole();
        slice.write(0, &note.encode());
        self.log.last_mut().unwrap().bytes = Some(slice);
    }

    pub(super) fn void(&mut self) {
        self.push(RecordKind::Void, 0, None);
    }

    pub(super) fn compare(&mut self, volume: u16, block: u64) {
        let extent = extent(block * GRAIN, GRAIN);
        self.push(RecordKind::Compare, volume, Some(extent));
    }

    pub(super) fn read(&mut self, volume: u16, offset: u64, len: u64) {
        self.push(RecordKind::Read, volume, Some(extent(offset, len)));
    }

    fn change(&mut self, volume: u16, at: u64, sectors: u64, value: u8) -> Extent {
        let range = at * SECTOR..(at + sectors) * SECTOR;
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        self.images[usize::from(volume)][range].fill(value);
        extent(at * SECTOR, sectors * SECTOR)
    }

    fn soil(&mut self, volume: u16, extent: Extent) {
        for block in extent.offset().get() / GRAIN..extent.end().get().div_ceil(GRAIN) {
            self.dirty.insert((volume, block));
        }
    }

    pub(super) fn soil_everything(&mut self) {
        for volume in 0..VOLUMES {
            self.soil(volume, extent(0, self.volume_bytes));
        }
    }

    pub(super) fn begin_mirror(&mut self, kind: MirrorKind) {
        self.mirroring = true;
        self.push(RecordKind::MirrorBegin(kind), 0, None);
    }

    /// Sends one dirty block, or the end.
    pub(super) fn mirror_step(&mut self) {
        match self.dirty.pop_first() {
            Some((volume, block)) => {
                self.mirror_bytes += GRAIN;
                let kind = RecordKind::Data { mirror: true };
                self.push(kind, volume, Some(extent(block * GRAIN, GRAIN)));
            }
            None => {
                self.mirroring = false;
                self.push(RecordKind::MirrorEnd, 0, None);
            }
        }
    }

    /// Begins or ends whatever mirror is due, wholly.
    pub(super) fn finish_mirror(&mut self) {
        if !self.mirroring && !self.dirty.is_empty() {
            self.begin_mirror(MirrorKind::Difference);
        }
        while self.mirroring {
            self.mirror_step();
        }
    }

    /// Forgets what is in the log after `from`: an overflow.
    pub(super) fn overflow(&mut self, from: usize) {
        let dropped = self.log.split_off(from);
        for logged in dropped {
            let Record {
                volume,
                extent,
                kind,
                ..
            } = logged.record;
            if let (Some(extent), RecordKind::Data { .. } | RecordKind::Zero { .. }) =
                (extent, kind)
            {
                self.soil(volume.get(), extent);
            }
        }
    }

    pub(super) fn hello(&self) -> Hello {
        let volume = |index: u16| HelloVolume {
            index: VolumeIndex::new(index),
            name: VolumeName::new(&format!("v{index}")).unwrap(),
            len: ByteLen::new(self.volume_bytes),
            block_size: BlockSize::B512,
            extent_size: ExtentSize::try_from(GRAIN).unwrap(),
            path: self.paths[usize::from(index)].clone(),
        };
        Hello {
            versions: self.versions,
            node: self.node.clone(),
            group: self.group.clone(),
            link: self.link.clone(),
            history: self.history.clone(),
            incarnation: self.incarnation,
            mode: self.mode,
            mirror: None,
            overwrite: self.overwrite,
            heartbeat: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
            volumes: (0..VOLUMES).map(volume).collect(),
        }
    }

    /// Where the stream goes on; the index of the first record to send.
    fn judge(&mut self) -> Option<(Start, usize)> {
        let welcome = self.welcome.as_ref()?;
        let theirs = welcome.durable;
        let generation = self.history.current();
        if welcome.history.supersedes(generation) {
            return None;
        }
        let same = welcome.history.current() == generation;
        let place = (theirs.incarnation, theirs.seq);
        let after = |logged: &Logged| (logged.record.incarnation, logged.record.seq) > place;
        let next = self.log.iter().position(after).unwrap_or(self.log.len());
        let before = self.log[..next]
            .last()
            .map(|l| (l.record.incarnation, l.record.seq));
        let known = same && theirs.generation == generation && before == Some(place);
        let future = same && place > (self.incarnation, self.seq);
        let ready = welcome.data_state != DataState::NotReady;
        let head = self.head();
        let parts = self.map_bits > 0 || self.map_unknown;
        let mut start = Start {
            after: theirs,
            head,
            generation,
            adopt: false,
            connections: 1,
        };
        if known && ready {
            if parts && !self.mirroring {
                self.begin_mirror(MirrorKind::Difference);
            }
            return Some((start, next));
        }
        let from = self.log.len();
        self.mirroring = false;
        self.soil_everything();
        start.adopt = !same || !ready || future;
        start.after = head;
        let kind = if ready {
            MirrorKind::Checksum
        } else {
            MirrorKind::Full
        };
        self.begin_mirror(kind);
        Some((start, from))
    }
}

pub(super) fn extent(offset: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(offset), ByteLen::new(len)).unwrap()
}

#[derive(Debug, PartialEq)]
enum Stage {
    Idle(Nanos),
    Connecting,
    Greeting,
    Streaming(usize),
    Ending,
}

pub(super) struct ScriptedSource {
    pub(super) book: Rc<RefCell<Book>>,
    stage: Stage,
    socket: Option<SimSocket>,
    decoder: Decoder,
    encoder: Encoder,
    out: Slice,
    sending: Option<Slice>,
    receiving: bool,
    flying: usize,
    said: Nanos,
    heard: Nanos,
}

const CONNECT: u64 = 1;
const SEND: u64 = 2;
const RECEIVE: u64 = 3;
/// Longer than a target's heartbeat.
const SILENCE: Duration = Duration::from_secs(4);
const RETRY: Duration = Duration::from_millis(100);

impl ScriptedSource {
    pub(super) fn new(book: Rc<RefCell<Book>>) -> Self {
        let receive = Region::anonymous(buffer_bytes(TARGET_BODY_MAX))
            .unwrap()
            .whole();
        let out = Region::anonymous(FRAME_HEADER_BYTES + HELLO_BODY_MAX)
            .unwrap()
            .whole();
        Self {
            book,
            stage: Stage::Idle(Nanos::new(0)),
            socket: None,
            decoder: Decoder::new(receive, TARGET_BODY_MAX),
            encoder: Encoder::new(),
            out,
            sending: None,
            receiving: false,
            flying: 0,
            said: Nanos::new(0),
            heard: Nanos::new(0),
        }
    }

    /// For a test that failed.
    pub(super) fn tell(&self) -> String {
        format!("{:?}, {} under way", self.stage, self.flying)
    }

    fn submit(&mut self, io: &mut SimIo, token: u64, op: Op<blkrep_io::sim::SimFile, SimSocket>) {
        self.flying += 1;
        io.submit(token, op);
    }

    fn end(&mut self, io: &mut SimIo) {
        if let Some(socket) = &self.socket {
            io.shutdown(socket);
        }
        self.stage = Stage::Ending;
    }

    fn frames(&mut self, io: &mut SimIo) {
        loop {
            match self.decoder.next() {
                Ok(Some(Frame::Message(message))) => self.message(io, message),
                Ok(Some(frame)) => panic!("a target sent {}", frame.kind()),
                Ok(None) => return,
                Err(error) => panic!("a target sent what is not legal: {error}"),
            }
            if self.stage == Stage::Ending {
                return;
            }
        }
    }

    fn message(&mut self, io: &mut SimIo, message: Message) {
        let mut book = self.book.borrow_mut();
        match message {
            Message::Welcome(welcome) => {
                self.encoder.agree(welcome.version);
                self.decoder.agree(welcome.version);
                book.welcome = Some(*welcome);
            }
            Message::Refuse(refuse) => {
                book.connect = refuse.code.passes();
                book.refused = Some(refuse);
            }
            Message::MapPart(part) => {
                let layout = MapLayout::new([(ByteLen::new(book.volume_bytes), part.extent_size)]);
                for nth in (0..part.bit_count).filter(|nth| part.is_set(*nth)) {
                    let index = ExtentIndex::new(part.first.get() + u64::from(nth));
                    let extent = part
                        .extent_size
                        .bytes_of(index, ByteLen::new(book.volume_bytes));
                    let (bit, _) = layout.bits_of(VolumeIndex::new(0), extent.unwrap());
                    book.map_bits += 1;
                    book.dirty.insert((part.volume.get(), bit));
                }
            }
            Message::MapEnd(end) => {
                if end.unknown {
                    book.map_unknown = true;
                    book.soil_everything();
                }
                let Some((mut start, next)) = book.judge() else {
                    book.connect = false;
                    drop(book);
                    return self.end(io);
                };
                if let Some(twist) = book.start_twist {
                    twist(&mut start);
                }
                book.sessions += 1;
                drop(book);
                self.send(io, &Message::Start(start));
                self.stage = Stage::Streaming(next);
            }
            Message::Ack(ack) => {
                if let Some(before) = &book.ack
                    && before.durable.generation == ack.durable.generation
                    && book.sessions > 0
                {
                    let place = |name: WriteName| (name.incarnation, name.seq);
                    assert!(
                        place(ack.durable) >= place(before.durable),
                        "acks never go back"
                    );
                }
                book.ack = Some(ack);
            }
            Message::Digests(digests) => book.digests.extend(digests),
            Message::Content(content) => book.contents.push(content),
            Message::Note(report) => book.told.push((report.id, report.state)),
            Message::Error(farewell) | Message::Goodbye(farewell) => {
                book.farewell = Some(farewell.text);
                drop(book);
                self.end(io);
            }
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Hello(_)
            | Message::Start(_)
            | Message::Join(_)
            | Message::Joined(_)
            | Message::Place(_)
            | Message::Again(_) => panic!("a target sent {}", message.kind()),
        }
    }

    fn send(&mut self, io: &mut SimIo, message: &Message) {
        let len = self.encoder.message(message, &self.out).unwrap();
        self.send_bytes(io, len);
    }

    fn send_bytes(&mut self, io: &mut SimIo, len: usize) {
        let slice = self.out.part(0..len);
        self.sending = Some(slice.clone());
        self.said = io.now();
        let socket = self.socket.clone().unwrap();
        self.submit(io, SEND, Op::Send { socket, slice });
    }

    fn connected(&mut self, io: &mut SimIo) {
        self.heard = io.now();
        self.encoder.reset();
        self.decoder.reset();
        let mut book = self.book.borrow_mut();
        book.map_bits = 0;
        book.map_unknown = false;
        let hello = Message::Hello(Box::new(book.hello()));
        let rubbish = book.rubbish.clone();
        drop(book);
        self.stage = Stage::Greeting;
        match rubbish {
            None => self.send(io, &hello),
            Some(bytes) => {
                self.out.write(0, &bytes);
                self.send_bytes(io, bytes.len());
            }
        }
    }

    fn stream(&mut self, io: &mut SimIo) {
        let Stage::Streaming(next) = self.stage else {
            return;
        };
        if self.sending.is_some() {
            return;
        }
        let book = self.book.borrow();
        if book.silent {
            return;
        }
        let waiting = if book.hold {
            &[][..]
        } else {
            &book.log[next.min(book.log.len())..]
        };
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for logged in waiting.iter().take(8) {
            bytes += logged.bytes.as_ref().map_or(0, Slice::len);
            if bytes > 128 << 10 {
                break;
            }
            let mut entry = Entry {
                record: logged.record,
                bytes: logged.bytes.clone(),
            };
            if let Some(twist) = book.twist {
                twist(&mut entry);
            }
            entries.push(entry);
        }
        drop(book);
        if let Some(len) = self.encoder.data(&entries, &self.out) {
            self.stage = Stage::Streaming(next + entries.len());
            self.send_bytes(io, len);
        } else if io.now() >= self.said.after(Duration::from_secs(1)) {
            self.send(io, &Message::Ping(7));
        }
    }
}

impl Worker<SimIo> for ScriptedSource {
    fn start(&mut self, io: &mut SimIo) {
        self.on_turn(io);
    }

    fn on_completion(&mut self, io: &mut SimIo, completion: Completion<SimSocket>) {
        self.flying -= 1;
        match completion.token {
            CONNECT => match completion.result {
                Ok(_) => {
                    self.socket = completion.socket;
                    self.connected(io);
                }
                Err(_) => self.stage = Stage::Idle(io.now().after(RETRY)),
            },
            SEND => {
                let slice = self.sending.take().unwrap();
                match completion.result {
                    Ok(count) if (count as usize) < slice.len() && self.stage != Stage::Ending => {
                        let rest = slice.part(count as usize..slice.len());
                        self.sending = Some(rest.clone());
                        let socket = self.socket.clone().unwrap();
                        self.submit(
                            io,
                            SEND,
                            Op::Send {
                                socket,
                                slice: rest,
                            },
                        );
                    }
                    Ok(_) => {}
                    Err(_) => self.end(io),
                }
            }
            RECEIVE => {
                self.receiving = false;
                match completion.result {
                    Ok(count) if count > 0 && self.stage != Stage::Ending => {
                        self.heard = io.now();
                        self.decoder.received(count as usize);
                        self.frames(io);
                    }
                    Ok(_) | Err(_) => self.end(io),
                }
            }
            other => panic!("token {other}"),
        }
    }

    fn on_turn(&mut self, io: &mut SimIo) {
        if self.stage == Stage::Ending && self.flying == 0 {
            self.socket = None;
            self.sending = None;
            self.stage = Stage::Idle(io.now().after(RETRY));
        }
        if let Stage::Idle(at) = self.stage
            && io.now() >= at
            && self.book.borrow().connect
        {
            let peer = self.book.borrow().peer;
            self.stage = Stage::Connecting;
            self.submit(io, CONNECT, Op::Connect { peer });
        }
        if !self.book.borrow().connect
            && !matches!(
                self.stage,
                Stage::Idle(_) | Stage::Ending | Stage::Connecting
            )
        {
            self.end(io);
        }
        let talking = matches!(self.stage, Stage::Greeting | Stage::Streaming(_));
        let (silent, deaf) = (self.book.borrow().silent, self.book.borrow().deaf);
        if talking && io.now() >= self.heard.after(SILENCE) && !silent && !deaf {
            self.end(io);
        }
        self.stream(io);
        let talking = matches!(self.stage, Stage::Greeting | Stage::Streaming(_));
        if !self.receiving && talking && !deaf {
            self.receiving = true;
            let socket = self.socket.clone().unwrap();
            let slice = self.decoder.space();
            self.submit(io, RECEIVE, Op::Recv { socket, slice });
        }
    }

    fn deadline(&self) -> Option<Nanos> {
        match self.stage {
            Stage::Idle(at) if self.book.borrow().connect => Some(at),
            Stage::Greeting | Stage::Streaming(_) if !self.book.borrow().silent => {
                // Who takes nothing does not wait for anything to come.
                let deaf = self.book.borrow().deaf;
                let heard = if deaf { self.said } else { self.heard }.after(SILENCE);
                let ping = self.said.after(Duration::from_secs(1));
                let streaming = matches!(self.stage, Stage::Streaming(_));
                Some(if streaming && self.sending.is_none() {
                    ping.min(heard)
                } else {
                    heard
                })
            }
            _ => None,
        }
    }

    fn finished(&self) -> bool {
        false
    }
}
