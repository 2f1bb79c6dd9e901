//! The other end of a link, played by the test: what no daemon of ours would ever say can be said.
//!
//! Owns one connection. Messages and raw bytes go out; frames come in, or nothing more. Never decides anything.

use crate::lab::LIMIT;
use blkrep_io::{Region, Slice};
use blkrep_types::{
    BlockSize, ByteLen, DataState, ExtentSize, Generation, GroupName, History, Incarnation,
    LinkName, Mode, NodeName, Seq, VolumeIndex, VolumeName, WriteName,
};
use blkrep_wire::limits::{SOURCE_BODY_MAX, buffer_bytes};
use blkrep_wire::{
    Codecs, Decoder, Encoder, Frame, Hello, HelloVolume, MapEnd, Message, PeerRole, Refuse,
    SessionId, VERSION_MAX, VERSION_MIN, Welcome, WelcomeVolume,
};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// A connection that speaks the wire's language, mostly.
pub(crate) struct Peer {
    stream: TcpStream,
    encoder: Encoder,
    decoder: Decoder,
    out: Slice,
}

impl Peer {
    pub(crate) fn connect(address: &str) -> Self {
        Self::of(TcpStream::connect(address).unwrap())
    }

    /// The next connection of a daemon to this listener.
    pub(crate) fn accept(listener: &TcpListener) -> Self {
        listener.set_nonblocking(true).unwrap();
        let stream = crate::lab::until("a daemon connects", || listener.accept().ok());
        stream.0.set_nonblocking(false).unwrap();
        Self::of(stream.0)
    }

    fn of(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            encoder: Encoder::new(),
            decoder: Decoder::new(
                Region::heap(buffer_bytes(SOURCE_BODY_MAX)).whole(),
                SOURCE_BODY_MAX,
            ),
            out: Region::heap(1 << 20).whole(),
        }
    }

    pub(crate) fn say(&mut self, message: &Message) {
        let len = self.encoder.message(message, &self.out).unwrap();
        let bytes = self.out.part(0..len).with(<[u8]>::to_vec);
        self.raw(&bytes);
        if let Message::Welcome(welcome) = message {
            self.agree(welcome.version);
        }
    }

    fn agree(&mut self, version: u16) {
        self.encoder.agree(version);
        self.decoder.agree(version);
    }

    /// Sends bytes as they are. The other end may have closed already.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// The next frame; `None` if the other end closed the connection instead.
    pub(crate) fn hear(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                if let Frame::Message(Message::Welcome(welcome)) = &frame {
                    self.agree(welcome.version);
                }
                return Some(frame);
            }
            let space = self.decoder.space();
            let mut bytes = vec![0; space.len().min(1 << 16)];
            match self.stream.read(&mut bytes) {
                Ok(count) if count > 0 => {
                    space.write(0, &bytes[..count]);
                    self.decoder.received(count);
                }
                Ok(_) => return None,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("the other end neither answers nor closes: {error}"),
            }
        }
    }

    /// The next message that is no heartbeat, acknowledgement or map.
    pub(crate) fn message(&mut self) -> Option<Message> {
        let end = Instant::now() + LIMIT;
        loop {
            assert!(Instant::now() < end, "nothing but heartbeats");
            match self.hear()? {
                Frame::Message(
                    Message::Ping(_) | Message::Ack(_) | Message::MapPart(_) | Message::MapEnd(_),
                )
                | Frame::Data(_) => {}
                Frame::Message(message) => return Some(message),
            }
        }
    }

    /// Waits until the other end closes.
    pub(crate) fn closes(&mut self) {
        let end = Instant::now() + LIMIT;
        while self.hear().is_some() {
            assert!(Instant::now() < end, "the connection stays");
        }
    }

    /// What a refused source is told.
    pub(crate) fn refusal(&mut self) -> Refuse {
        match self.message() {
            Some(Message::Refuse(refuse)) => refuse,
            other => panic!("not refused: {other:?}"),
        }
    }
}

pub(crate) fn generation(number: u8) -> Generation {
    Generation::from_bytes([number; 16])
}

/// A history of one generation.
pub(crate) fn history(number: u8) -> History {
    let mut history = History::new();
    history.branch(generation(number), Incarnation::new(0), Seq::ZERO);
    history
}

/// What a source of one volume says first.
pub(crate) fn hello(group: &str, len: u64, history: History) -> Hello {
    Hello {
        versions: (VERSION_MIN, VERSION_MAX),
        node: NodeName::new("stranger").unwrap(),
        group: GroupName::new(group).unwrap(),
        link: LinkName::new("link1").unwrap(),
        history,
        incarnation: Incarnation::new(1),
        mode: Mode::Async,
        mirror: None,
        overwrite: false,
        heartbeat: Duration::from_secs(1),
        timeout: LIMIT,
        volumes: vec![HelloVolume {
            index: VolumeIndex::new(0),
            name: VolumeName::new("pg").unwrap(),
            len: ByteLen::new(len),
            block_size: BlockSize::B512,
            extent_size: ExtentSize::try_from(64 << 10).unwrap(),
            path: String::new(),
        }],
    }
}

/// What a target of one volume answers.
pub(crate) fn welcome(len: u64, history: History, durable: WriteName) -> Welcome {
    Welcome {
        version: VERSION_MAX,
        node: NodeName::new("stranger").unwrap(),
        role: PeerRole::Target,
        data_state: DataState::Ok,
        history,
        durable,
        journal_used: ByteLen::ZERO,
        journal_capacity: ByteLen::new(1 << 24),
        codecs: Codecs::NONE,
        connections: 1,
        reads: false,
        session: SessionId::NONE,
        volumes: vec![WelcomeVolume {
            index: VolumeIndex::new(0),
            len: ByteLen::new(len),
        }],
    }
}

/// The end of a map that has nothing.
pub(crate) const NO_MAP: Message = Message::MapEnd(MapEnd {
    part_count: 0,
    unknown: false,
});
