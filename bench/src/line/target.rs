//! A target behind a line of a rate, on loopback.
//!
//! Owns a listener and one connection. It reads no faster than the line would carry, checks and inflates
//! what it reads, and acknowledges it. Bytes of pages leave with the time they took.

use super::port::{history, name};
use anyhow::{Context, Result, ensure};
use blkrep_io::{Region, Slice};
use blkrep_types::{ByteLen, DataState, VolumeIndex};
use blkrep_wire::limits::{PACKED_PLAIN_MAX, SOURCE_BODY_MAX, TARGET_BODY_MAX, buffer_bytes};
use blkrep_wire::{
    Ack, Applying, Codecs, Decoder, Encoder, FRAME_HEADER_BYTES, Frame, Inflater, MapEnd, Message,
    PeerRole, SessionId, VERSION_PACKED, Welcome, WelcomeVolume,
};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// The line's own buffer: less than a tenth of a second at 100 Mbit/s.
const LINE_BUFFER: usize = 256 << 10;

/// What is read at a time: a slow line brings no more at once.
const READ: usize = 32 << 10;

/// Ready to be connected to.
#[derive(Debug)]
pub(super) struct Target {
    listener: TcpListener,
    /// Bytes a second that the line carries; none if it is as fast as it is.
    rate: Option<u64>,
    /// The line is encrypted.
    encrypts: Option<Arc<ServerConfig>>,
}

struct Line {
    stream: TcpStream,
    rate: Option<u64>,
    begun: Instant,
    read: u64,
}

impl Read for Line {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = self.rate.map_or(into.len(), |_| READ.min(into.len()));
        let count = self.stream.read(&mut into[..most])?;
        self.read += u64::try_from(count).map_err(io::Error::other)?;
        if let Some(rate) = self.rate {
            let nanos = u128::from(self.read) * 1_000_000_000 / u128::from(rate);
            let due = Duration::from_nanos(u64::try_from(nanos).map_err(io::Error::other)?);
            let since = self.begun.elapsed();
            if since + Duration::from_secs(1) < due {
                return Err(io::Error::other("the line is far behind its own rate"));
            }
            if since > due + Duration::from_millis(100) {
                // It stood idle: what was not carried then is not carried later.
                self.begun += since.saturating_sub(due);
            }
            thread::sleep(due.saturating_sub(self.begun.elapsed()));
        }
        Ok(count)
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// What the target reads and writes.
trait Wire: Read + Write {}

impl<W: Read + Write> Wire for W {}

/// What it says.
struct Voice {
    encoder: Encoder,
    space: Slice,
}

impl Voice {
    fn say(&mut self, wire: &mut dyn Wire, message: &Message) -> Result<()> {
        let len = self.encoder.message(message, &self.space);
        let len = len.context("a message fits")?;
        self.space
            .part(0..len)
            .with(|bytes| wire.write_all(bytes))?;
        Ok(wire.flush()?)
    }
}

impl Target {
    pub(super) fn new(rate: Option<u64>, encrypts: Option<Arc<ServerConfig>>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen on loopback")?;
        if rate.is_some() {
            setsockopt(&listener, sockopt::RcvBuf, &LINE_BUFFER).context("bound the line")?;
        }
        Ok(Self {
            listener,
            rate,
            encrypts,
        })
    }

    pub(super) fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Takes so many writes; the time from the first of their bytes to the last, and whether any came packed.
    pub(super) fn take(self, count: u64) -> Result<Duration> {
        let (stream, _) = self.listener.accept().context("accept the source")?;
        stream.set_nodelay(true)?;
        let line = Line {
            stream,
            rate: self.rate,
            begun: Instant::now(),
            read: 0,
        };
        let mut wire: Box<dyn Wire> = match self.encrypts {
            Some(config) => Box::new(StreamOwned::new(ServerConnection::new(config)?, line)),
            None => Box::new(line),
        };
        let mut decoder = decoder()?;
        let mut voice = Voice {
            encoder: Encoder::new(),
            space: Region::heap(FRAME_HEADER_BYTES + TARGET_BODY_MAX).whole(),
        };
        let (mut taken, mut begun) = (0, None);
        while taken < count {
            let space = decoder.space();
            let read = space.with_mut(|bytes| wire.read(bytes))?;
            ensure!(read > 0, "the source ended after {taken} of {count} writes");
            decoder.received(read);
            while let Some(frame) = decoder.next()? {
                match frame {
                    Frame::Message(Message::Hello(_)) => {
                        voice.say(&mut *wire, &Message::Welcome(Box::new(welcome()?)))?;
                        voice.encoder.agree(VERSION_PACKED);
                        decoder.agree(VERSION_PACKED);
                        let (part_count, unknown) = (0, false);
                        let end = MapEnd {
                            part_count,
                            unknown,
                        };
                        voice.say(&mut *wire, &Message::MapEnd(end))?;
                    }
                    Frame::Message(Message::Ping(stamp)) => {
                        voice.say(&mut *wire, &Message::Pong(stamp))?
                    }
                    Frame::Message(_) => {}
                    Frame::Data(frame) => {
                        begun.get_or_insert_with(Instant::now);
                        taken += u64::try_from(frame.record_count())?;
                        voice.say(&mut *wire, &ack(taken))?;
                    }
                }
            }
        }
        Ok(begun.context("nothing was to be sent")?.elapsed())
    }
}

pub(crate) fn decoder() -> Result<Decoder> {
    let buffer = Region::heap(buffer_bytes(SOURCE_BODY_MAX)).whole();
    let mut decoder = Decoder::new(buffer, SOURCE_BODY_MAX);
    let inflater = Inflater::new(Region::heap(PACKED_PLAIN_MAX).whole());
    decoder.inflate_with(inflater.context("memory for a context")?);
    Ok(decoder)
}

fn welcome() -> Result<Welcome> {
    Ok(Welcome {
        version: VERSION_PACKED,
        node: "target".to_owned().try_into().ok().context("a name")?,
        role: PeerRole::Target,
        data_state: DataState::Ok,
        history: history(),
        durable: name(0),
        journal_used: ByteLen::ZERO,
        journal_capacity: ByteLen::new(1 << 30),
        codecs: Codecs::ZSTD,
        connections: 1,
        reads: false,
        session: SessionId::NONE,
        volumes: vec![WelcomeVolume {
            index: VolumeIndex::new(0),
            len: ByteLen::new(1 << 30),
        }],
    })
}

fn ack(seq: u64) -> Message {
    Message::Ack(Ack {
        received: name(seq),
        durable: name(seq),
        applied: name(seq),
        journal_used: ByteLen::ZERO,
        journal_capacity: ByteLen::new(1 << 30),
        data_state: DataState::Ok,
        applying: Applying::Running,
        held: false,
    })
}
