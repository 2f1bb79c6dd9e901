//! One client: negotiation, then requests until it leaves.
//!
//! Owns the reader's side of a connection. Enters: bytes of a client. Leaves: requests in the
//! mailbox, with a write's bytes received straight into its tag's memory. A client that breaks the
//! protocol or stalls within a request loses its connection, and nobody else notices.

use super::handshake::{Handshake, NoAgreement};
use super::outbox::{Ask, Outbox, SEND_LIMIT, What};
use super::parts::Parts;
use super::protocol::{Command, PAYLOAD_BYTES_MAX, REQUEST_BYTES, RawRequest, Shape};
use super::socket::{Limited, Stream};
use crate::front::RequestKind;
use crate::mailbox::{Lease, Mailbox, Pieces};
use blkrep_types::{ByteLen, ByteOffset, Errno, Extent};
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long a whole negotiation may take.
pub(super) const NEGOTIATION_LIMIT: Duration = Duration::from_secs(10);

/// How long the rest of a request, or a piece of its data as large as a tag, may take once it has
/// begun.
const RECEIVE_LIMIT: Duration = Duration::from_secs(30);

/// Bytes read ahead: several small requests a system call.
const READ_AHEAD_BYTES: usize = 64 << 10;

/// What every connection of a device knows.
#[derive(Debug)]
pub(super) struct Export {
    pub(super) name: String,
    pub(super) shape: Shape,
    pub(super) mailbox: Arc<Mailbox<Ask>>,
}

/// How connections of a device share its tags, and whether they should end.
pub(super) trait House: Sync {
    /// Requests that one connection may have outstanding now.
    fn share(&self) -> usize;
    /// No new request is taken.
    fn stopping(&self) -> bool;
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("no agreement: {0}")]
    Negotiation(#[from] NoAgreement),
    #[error("the client's bytes are no request")]
    OutOfStep,
    #[error("a request of {0} bytes is too long to be read past")]
    TooLong(u32),
    #[error("the connection failed: {0}")]
    Failed(#[from] io::Error),
}

/// Serves one client until it leaves, the device stops or something is wrong.
pub(super) fn serve(export: &Export, house: &dyn House, stream: &Stream) -> Result<(), Ended> {
    let mut limited = Limited {
        stream,
        deadline: Instant::now() + NEGOTIATION_LIMIT,
    };
    let handshake = Handshake {
        stream: &mut limited,
        export: &export.name,
        shape: export.shape,
        preferred_bytes: piece_bytes(export),
    };
    let agreed = match handshake.run() {
        Err(NoAgreement::Left) => return Ok(()),
        other => other?,
    };
    stream.set_read_limit(RECEIVE_LIMIT)?;
    stream.set_write_limit(SEND_LIMIT)?;
    let outbox = Arc::new(Outbox::new(export.mailbox.depth()));
    let mut reader = Reader {
        export,
        house,
        structured: agreed.structured,
        input: BufReader::with_capacity(READ_AHEAD_BYTES, stream),
        outbox: Arc::clone(&outbox),
    };
    thread::scope(|scope| {
        let sender = thread::Builder::new()
            .name("nbd-send".to_owned())
            .spawn_scoped(scope, || outbox.run(stream))?;
        let ended = reader.run();
        if ended.is_err() {
            outbox.break_off();
        }
        outbox.stop_reading();
        if sender.join().is_err() {
            tracing::error!("the sender of an NBD connection panicked");
        }
        ended
    })
}

/// Bytes of the largest piece that one tag takes.
fn piece_bytes(export: &Export) -> u32 {
    u32::try_from(export.mailbox.request_bytes()).unwrap_or(PAYLOAD_BYTES_MAX)
}

struct Reader<'a> {
    export: &'a Export,
    house: &'a dyn House,
    structured: bool,
    input: BufReader<&'a Stream>,
    outbox: Arc<Outbox>,
}

/// What to do after a request.
enum Step {
    GoOn,
    End,
}

impl Reader<'_> {
    fn run(&mut self) -> Result<(), Ended> {
        while let Some(bytes) = self.head()? {
            let raw = RawRequest::parse(&bytes).ok_or(Ended::OutOfStep)?;
            if raw.payload() > PAYLOAD_BYTES_MAX {
                return Err(Ended::TooLong(raw.payload()));
            }
            let step = match raw.check(self.export.shape, self.structured) {
                Ok(command) => self.take(raw, command)?,
                Err(errno) => self.refuse(raw, errno)?,
            };
            if let Step::End = step {
                break;
            }
        }
        Ok(())
    }

    /// The next request's head; `None` when the client has left or the device stops.
    fn head(&mut self) -> Result<Option<[u8; REQUEST_BYTES]>, Ended> {
        loop {
            if self.house.stopping() {
                return Ok(None);
            }
            match self.input.fill_buf() {
                Ok([]) => return Ok(None),
                Ok(_) => break,
                // Between requests a client may be silent as long as it likes.
                Err(error) if is_pause(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut bytes = [0; REQUEST_BYTES];
        receive(&mut self.input, &mut bytes)?;
        Ok(Some(bytes))
    }

    fn refuse(&mut self, raw: RawRequest, errno: Errno) -> Result<Step, Ended> {
        let mut left = usize::try_from(raw.payload()).expect("a bounded length");
        let mut bin = [0; 4096];
        while left > 0 {
            let len = left.min(bin.len());
            receive(&mut self.input, &mut bin[..len])?;
            left -= len;
        }
        if !self.admit() {
            return Ok(Step::End);
        }
        let is_read = raw.command == super::protocol::command::READ;
        self.outbox
            .refuse(raw.cookie, is_read && self.structured, errno);
        Ok(Step::GoOn)
    }

    fn admit(&self) -> bool {
        self.outbox.admit(|| self.house.share())
    }

    /// Counts a request and gets it a tag; `None` if the connection or the device has ended.
    fn lease(&self) -> Option<Lease<Ask>> {
        if !self.admit() {
            return None;
        }
        let lease = self.export.mailbox.lease();
        if lease.is_none() {
            self.outbox.release();
        }
        lease
    }

    fn submit(
        &self,
        lease: Lease<Ask>,
        cookie: u64,
        kind: RequestKind,
        (extent, what): (Option<Extent>, What),
    ) {
        let ask = Ask {
            outbox: Arc::clone(&self.outbox),
            cookie,
            what,
        };
        lease.submit(kind, extent, ask);
    }

    fn take(&mut self, raw: RawRequest, command: Command) -> Result<Step, Ended> {
        match command {
            Command::Disconnect => Ok(Step::End),
            Command::Flush => Ok(self.one(raw, RequestKind::Flush, None)),
            // Discarded ranges read as zeroes here, so a durable discard is a durable
            // write of zeroes that may free.
            Command::Trim { fua: true } => Ok(self.walk(
                raw,
                RequestKind::WriteZeroes {
                    fua: true,
                    may_free: true,
                },
            )),
            Command::Trim { fua: false } => Ok(self.walk(raw, RequestKind::Discard)),
            Command::WriteZeroes { fua, may_free } => {
                Ok(self.walk(raw, RequestKind::WriteZeroes { fua, may_free }))
            }
            Command::Write { fua } => self.write(raw, fua),
            Command::Read { whole } => Ok(self.read(raw, whole)),
        }
    }

    fn pieces(&self, raw: RawRequest) -> Pieces {
        Pieces::new(extent_of(raw), u64::from(piece_bytes(self.export)))
    }

    fn one(&self, raw: RawRequest, kind: RequestKind, extent: Option<Extent>) -> Step {
        let Some(lease) = self.lease() else {
            return Step::End;
        };
        self.submit(lease, raw.cookie, kind, (extent, What::Outcome));
        Step::GoOn
    }

    /// A range of any length, piece after piece through one tag.
    fn walk(&self, raw: RawRequest, kind: RequestKind) -> Step {
        let mut rest = self.pieces(raw);
        let first = rest.next();
        let Some(lease) = self.lease() else {
            return Step::End;
        };
        let what = What::Walk { kind, rest };
        self.submit(lease, raw.cookie, kind, (first, what));
        Step::GoOn
    }

    fn write(&mut self, raw: RawRequest, fua: bool) -> Result<Step, Ended> {
        let pieces = self.pieces(raw);
        let count = u32::try_from(pieces.count()).expect("32 MiB have few pieces");
        let parts = (count > 1).then(|| Parts::new(count));
        for piece in pieces {
            let Some(lease) = self.lease() else {
                return Ok(Step::End);
            };
            let data = lease.data().part(0..piece.len().as_usize());
            if let Err(error) = data.with_mut(|bytes| receive(&mut self.input, bytes)) {
                drop(lease);
                self.outbox.release();
                return Err(error.into());
            }
            let what = match &parts {
                Some(parts) => What::WritePart(Arc::clone(parts)),
                None => What::Outcome,
            };
            let kind = RequestKind::Write { fua };
            self.submit(lease, raw.cookie, kind, (Some(piece), what));
        }
        Ok(Step::GoOn)
    }

    fn read(&mut self, raw: RawRequest, whole: bool) -> Step {
        let pieces = self.pieces(raw);
        let count = u32::try_from(pieces.count()).expect("32 MiB have few pieces");
        if self.structured {
            return self.read_chunks(raw, whole, count);
        }
        // Without chunks the parts of an answer are one run of bytes: such a read has the
        // connection to itself, part after part, and ends with the part that fails.
        let parts = (count > 1).then(|| Parts::new(count));
        for (index, piece) in pieces.enumerate() {
            if let Some(parts) = &parts {
                if !self.outbox.settle() {
                    return Step::End;
                }
                if parts.failed() {
                    return Step::GoOn;
                }
            }
            let Some(lease) = self.lease() else {
                return Step::End;
            };
            let what = What::Data {
                head: index == 0,
                len: len_of(piece),
                parts: parts.clone(),
            };
            self.submit(lease, raw.cookie, RequestKind::Read, (Some(piece), what));
        }
        if parts.is_some() && !self.outbox.settle() {
            return Step::End;
        }
        Step::GoOn
    }

    fn read_chunks(&mut self, raw: RawRequest, whole: bool, count: u32) -> Step {
        if whole && count > 1 {
            if !self.admit() {
                return Step::End;
            }
            let errno = Errno::new(libc::EOVERFLOW);
            self.outbox.refuse(raw.cookie, true, errno);
            return Step::GoOn;
        }
        let parts = (count > 1).then(|| Parts::new(count));
        for piece in self.pieces(raw) {
            let Some(lease) = self.lease() else {
                return Step::End;
            };
            let what = What::Chunk {
                offset: piece.offset().get(),
                len: len_of(piece),
                parts: parts.clone(),
            };
            self.submit(lease, raw.cookie, RequestKind::Read, (Some(piece), what));
        }
        Step::GoOn
    }
}

fn extent_of(raw: RawRequest) -> Extent {
    Extent::new(
        ByteOffset::new(raw.offset),
        ByteLen::new(u64::from(raw.len)),
    )
    .expect("checked against the export")
}

fn len_of(piece: Extent) -> u32 {
    u32::try_from(piece.len().get()).expect("a piece fits a tag")
}

fn is_pause(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

/// Fills `bytes` within [`RECEIVE_LIMIT`] (twice it, if the last byte comes just in time).
fn receive(input: &mut BufReader<&Stream>, mut bytes: &mut [u8]) -> io::Result<()> {
    let deadline = Instant::now() + RECEIVE_LIMIT;
    while !bytes.is_empty() {
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match input.read(bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => bytes = &mut bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
