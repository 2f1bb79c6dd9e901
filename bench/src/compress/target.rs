//! A target behind a line of a rate, on loopback.
//!
//! Owns a listener and one connection. It reads no faster than the line would carry, checks and inflates
//! what it reads, and acknowledges it. Bytes of pages leave with the time they took.

use super::port::{history, name};
use anyhow::{Context, Result, bail, ensure};
use blkrep_io::Region;
use blkrep_types::{ByteLen, DataState, VolumeIndex};
use blkrep_wire::limits::{PACKED_PLAIN_MAX, SOURCE_BODY_MAX, TARGET_BODY_MAX, buffer_bytes};
use blkrep_wire::{
    Ack, Applying, Codecs, Decoder, Encoder, FRAME_HEADER_BYTES, Frame, Inflater, MapEnd, Message,
    PeerRole, SessionId, VERSION_PACKED, Welcome, WelcomeVolume,
};
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
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
}

struct Line {
    stream: TcpStream,
    rate: Option<u64>,
    begun: Instant,
    read: u64,
}

impl Line {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        let most = self.rate.map_or(into.len(), |_| READ.min(into.len()));
        let count = self.stream.read(&mut into[..most])?;
        self.read += u64::try_from(count)?;
        if let Some(rate) = self.rate {
            let due = Duration::from_nanos(u64::try_from(
                u128::from(self.read) * 1_000_000_000 / u128::from(rate),
            )?);
            let since = self.begun.elapsed();
            if since + Duration::from_secs(1) < due {
                bail!("the line is far behind its own rate");
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

impl Target {
    pub(super) fn new(rate: Option<u64>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen on loopback")?;
        if rate.is_some() {
            setsockopt(&listener, sockopt::RcvBuf, &LINE_BUFFER).context("bound the line")?;
        }
        Ok(Self { listener, rate })
    }

    pub(super) fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Takes so many writes; the time from the first of their bytes to the last, and whether any came packed.
    pub(super) fn take(self, count: u64) -> Result<Duration> {
        let (stream, _) = self.listener.accept().context("accept the source")?;
        stream.set_nodelay(true)?;
        let mut out = stream.try_clone()?;
        let mut line = Line {
            stream,
            rate: self.rate,
            begun: Instant::now(),
            read: 0,
        };
        let mut decoder = decoder()?;
        let mut encoder = Encoder::new();
        let space = Region::heap(FRAME_HEADER_BYTES + TARGET_BODY_MAX).whole();
        let mut say = |encoder: &mut Encoder, message: &Message| -> Result<()> {
            let len = encoder.message(message, &space).context("a message fits")?;
            Ok(space.part(0..len).with(|bytes| out.write_all(bytes))?)
        };
        let (mut taken, mut begun) = (0, None);
        while taken < count {
            let space = decoder.space();
            let read = space.with_mut(|bytes| line.read(bytes))?;
            ensure!(read > 0, "the source ended after {taken} of {count} writes");
            decoder.received(read);
            while let Some(frame) = decoder.next()? {
                match frame {
                    Frame::Message(Message::Hello(_)) => {
                        say(&mut encoder, &Message::Welcome(Box::new(welcome()?)))?;
                        encoder.agree(VERSION_PACKED);
                        decoder.agree(VERSION_PACKED);
                        let (part_count, unknown) = (0, false);
                        let end = MapEnd {
                            part_count,
                            unknown,
                        };
                        say(&mut encoder, &Message::MapEnd(end))?;
                    }
                    Frame::Message(Message::Ping(stamp)) => {
                        say(&mut encoder, &Message::Pong(stamp))?
                    }
                    Frame::Message(_) => {}
                    Frame::Data(frame) => {
                        begun.get_or_insert_with(Instant::now);
                        taken += u64::try_from(frame.record_count())?;
                        say(&mut encoder, &ack(taken))?;
                    }
                }
            }
        }
        Ok(begun.context("nothing was to be sent")?.elapsed())
    }
}

pub(super) fn decoder() -> Result<Decoder> {
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
