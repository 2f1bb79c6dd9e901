//! One encrypted connection, without its socket.
//!
//! Owns rustls' state and three bounded buffers: encrypted bytes that came, encrypted bytes that are
//! to go, and decrypted bytes that nobody has taken yet. Bytes enter and leave by copies; the memory
//! is made once. Never waits, never decides who is trusted.
//!
//! rustls itself allocates for each record of 16 KiB, and frees it at once (`docs/adr/0008`).

use blkrep_io::{Region, Slice};
use blkrep_types::Errno;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use std::fmt;
use std::sync::Arc;

/// Data of one record: the most that TLS allows.
const RECORD_BYTES: usize = 16 << 10;
/// What a record adds: header, kind, tag.
const RECORD_EXTRA_BYTES: usize = 5 + 1 + 16;
/// Records that are encrypted for one send: fewer, larger sends, and the second half of a large frame
/// is encrypted while the first is on its way.
const RECORDS: usize = 16;
/// Room for a key update or an alert beside them.
const SPARE_BYTES: usize = 1 << 10;
/// Bytes on their way out.
const OUTGOING_BYTES: usize = RECORDS * (RECORD_BYTES + RECORD_EXTRA_BYTES) + SPARE_BYTES;
/// Bytes that came: several records, and a whole handshake whatever its peer says.
const INCOMING_BYTES: usize = 18 * (RECORD_BYTES + 256);

/// Both roles of a handshake.
pub(super) enum Side {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

impl fmt::Debug for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client(_) => "Client",
            Self::Server(_) => "Server",
        })
    }
}

/// What a connection's state asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Something was done; there may be more.
    Again,
    /// Nothing can be done before bytes come.
    Idle,
    /// Nothing can be done before bytes have gone.
    Full,
    /// The peer ended the stream in order.
    Closed,
}

/// What a step works on.
struct Work<'a> {
    outgoing: &'a Slice,
    out_end: &'a mut usize,
    plain: &'a Slice,
    plain_end: &'a mut usize,
    /// Where decrypted bytes go first, and how many have.
    into: Option<&'a Slice>,
    read: usize,
    /// What is to be encrypted, and how much of it was.
    from: Option<&'a Slice>,
    written: usize,
    spoke: bool,
    established: bool,
}

/// An encrypted connection.
#[derive(Debug)]
pub(super) struct Cipher {
    side: Side,
    incoming: Slice,
    in_start: usize,
    in_end: usize,
    outgoing: Slice,
    out_start: usize,
    out_end: usize,
    /// Decrypted, not taken yet. All of `incoming` fits.
    plain: Slice,
    plain_start: usize,
    plain_end: usize,
    established: bool,
    closed: bool,
    /// What is on its way out is not, or not only, the worker's bytes.
    speaking: bool,
}

impl Cipher {
    /// A connection at its beginning, of which these bytes have come.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn new(side: Side, seen: &[u8]) -> Result<Self, Errno> {
        let memory = |len| Region::anonymous(len).map(|region| region.whole());
        let incoming = memory(INCOMING_BYTES)?;
        assert!(seen.len() <= INCOMING_BYTES, "what was seen was bounded");
        incoming.write(0, seen);
        Ok(Self {
            side,
            in_start: 0,
            in_end: seen.len(),
            plain: memory(incoming.len())?,
            incoming,
            outgoing: memory(OUTGOING_BYTES)?,
            out_start: 0,
            out_end: 0,
            plain_start: 0,
            plain_end: 0,
            established: false,
            closed: false,
            speaking: false,
        })
    }

    /// The handshake is over: the peer is proven.
    pub(super) const fn is_established(&self) -> bool {
        self.established
    }

    /// The peer ended the stream in order.
    pub(super) const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Decrypted bytes wait to be taken.
    pub(super) const fn holds_plain(&self) -> bool {
        self.plain_start < self.plain_end
    }

    /// Bytes of a handshake, an alert or a key update are on their way out.
    pub(super) const fn is_speaking(&self) -> bool {
        self.speaking
    }

    /// What the peer showed.
    pub(super) fn certificate(&self) -> Option<&CertificateDer<'static>> {
        let shown = match &self.side {
            Side::Client(side) => side.peer_certificates(),
            Side::Server(side) => side.peer_certificates(),
        };
        shown.and_then(<[_]>::first)
    }

    /// Where bytes of the network are received to, no more than `limit` and never none. Only while
    /// nothing waits to be taken: what is decrypted always finds room.
    pub(super) fn space(&mut self, limit: usize) -> Slice {
        assert!(!self.holds_plain(), "all was taken");
        if self.in_start > 0 {
            // What is left is less than one record.
            let held = self.incoming.part(self.in_start..self.in_end);
            self.incoming.copy_from(&held);
            self.in_end -= self.in_start;
            self.in_start = 0;
        }
        let end = (self.in_end + limit.max(RECORD_BYTES)).min(self.incoming.len());
        self.incoming.part(self.in_end..end)
    }

    /// Where bytes go that nobody looks at.
    pub(super) fn trash(&self, len: usize) -> Slice {
        self.plain.part(0..len)
    }

    /// There is no room for a record that does not end: no legal peer does that.
    pub(super) const fn is_choked(&self) -> bool {
        self.in_end - self.in_start == self.incoming.len()
    }

    /// So many bytes came into the last [`Cipher::space`].
    pub(super) fn received(&mut self, count: usize) {
        self.in_end += count;
        assert!(
            self.in_end <= self.incoming.len(),
            "no more than there was room"
        );
    }

    /// What is to be sent now, if anything.
    pub(super) fn to_send(&self) -> Option<Slice> {
        (self.out_start < self.out_end).then(|| self.outgoing.part(self.out_start..self.out_end))
    }

    /// So much of it is sent.
    pub(super) fn sent(&mut self, count: usize) {
        self.out_start += count;
        assert!(self.out_start <= self.out_end, "no more than there was");
        if self.out_start == self.out_end {
            (self.out_start, self.out_end) = (0, 0);
            self.speaking = false;
        }
    }

    /// Does what can be done: takes in what came, decrypts into `into`, encrypts from `from`. Says
    /// how many bytes of each.
    ///
    /// # Errors
    /// The peer is not who it must be, or its bytes are not what it sent. The alert that tells it is
    /// among what is to be sent.
    pub(super) fn advance(
        &mut self,
        into: Option<&Slice>,
        from: Option<&Slice>,
    ) -> Result<(usize, usize), rustls::Error> {
        let mut read = into.map_or(0, |into| self.take(into));
        let mut written = 0;
        loop {
            let rest = into.map(|into| into.part(read..into.len()));
            // One send's worth at a time, as soon as the one before it is out.
            let from = from.filter(|_| written == 0 && self.out_end == 0);
            let (step, more_read, more_written) = self.step(rest.as_ref(), from)?;
            read += more_read;
            written += more_written;
            match step {
                Step::Again => {}
                Step::Idle | Step::Full => break,
                Step::Closed => {
                    self.closed = true;
                    break;
                }
            }
        }
        Ok((read, written))
    }

    /// What is left to say after an error: the alert. Nothing that came is looked at again: rustls is
    /// not made for that.
    pub(super) fn last_words(&mut self) {
        while self.side.has_words() {
            if !matches!(self.step(None, None), Ok((Step::Again, ..))) {
                return;
            }
        }
    }

    /// Gives what was decrypted earlier.
    fn take(&mut self, into: &Slice) -> usize {
        let count = into.len().min(self.plain_end - self.plain_start);
        let held = self.plain.part(self.plain_start..self.plain_start + count);
        into.copy_from(&held);
        self.plain_start += count;
        if self.plain_start == self.plain_end {
            (self.plain_start, self.plain_end) = (0, 0);
        }
        count
    }

    fn step(
        &mut self,
        into: Option<&Slice>,
        from: Option<&Slice>,
    ) -> Result<(Step, usize, usize), rustls::Error> {
        let mut work = Work {
            outgoing: &self.outgoing,
            out_end: &mut self.out_end,
            plain: &self.plain,
            plain_end: &mut self.plain_end,
            into,
            read: 0,
            from,
            written: 0,
            spoke: false,
            established: false,
        };
        let incoming = self.incoming.part(self.in_start..self.in_end);
        let (discard, result) = incoming.with_mut(|bytes| match &mut self.side {
            Side::Client(side) => settle(side.process_tls_records(bytes), &mut work),
            Side::Server(side) => settle(side.process_tls_records(bytes), &mut work),
        });
        let (read, written) = (work.read, work.written);
        self.established |= work.established;
        self.speaking |= work.spoke;
        self.in_start += discard;
        result.map(|step| (step, read, written))
    }
}

/// Does what a state asks for; says how much of the incoming bytes is used up.
fn settle<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    work: &mut Work<'_>,
) -> (usize, Result<Step, rustls::Error>) {
    let discard = status.discard;
    let state = match status.state {
        Ok(state) => state,
        Err(error) => return (discard, Err(error)),
    };
    let mut used = 0;
    let step = match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            let mut result = Ok(Step::Again);
            while let Some(record) = traffic.next_record() {
                match record {
                    Ok(record) => {
                        work.deliver(record.payload);
                        used += record.discard;
                    }
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
            }
            result
        }
        ConnectionState::EncodeTlsData(mut data) => {
            let room = work.outgoing.part(*work.out_end..work.outgoing.len());
            match room.with_mut(|room| data.encode(room)) {
                Ok(count) => {
                    *work.out_end += count;
                    work.spoke = true;
                    Ok(Step::Again)
                }
                Err(EncodeError::InsufficientSize(_)) => Ok(Step::Full),
                Err(error @ EncodeError::AlreadyEncoded) => {
                    Err(rustls::Error::General(error.to_string()))
                }
            }
        }
        ConnectionState::TransmitTlsData(data) => {
            // It is in the buffer, which is sent in order.
            data.done();
            Ok(Step::Again)
        }
        ConnectionState::WriteTraffic(mut traffic) => {
            work.established = true;
            work.encrypt(|bytes, room| traffic.encrypt(bytes, room))
        }
        ConnectionState::PeerClosed | ConnectionState::Closed => Ok(Step::Closed),
        ConnectionState::BlockedHandshake => Ok(Step::Idle),
        // Early data is switched off.
        other => Err(rustls::Error::General(format!(
            "unexpected state {other:?}"
        ))),
    };
    (discard + used, step)
}

impl Work<'_> {
    /// Puts a decrypted record where it is wanted, and the rest where it waits.
    fn deliver(&mut self, payload: &[u8]) {
        let room = self.into.map_or(0, |into| into.len() - self.read);
        let (now, later) = payload.split_at(room.min(payload.len()));
        if let Some(into) = self.into {
            into.write(self.read, now);
            self.read += now.len();
        }
        self.plain.write(*self.plain_end, later);
        *self.plain_end += later.len();
    }

    fn encrypt(
        &mut self,
        encrypt: impl FnOnce(&[u8], &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<Step, rustls::Error> {
        let Some(from) = self.from.filter(|_| self.written == 0) else {
            return Ok(Step::Idle);
        };
        let some = from.part(0..from.len().min(RECORDS * RECORD_BYTES));
        let room = self.outgoing.part(*self.out_end..self.outgoing.len());
        let result = some.with(|bytes| room.with_mut(|room| encrypt(bytes, room)));
        match result {
            Ok(count) => {
                *self.out_end += count;
                self.written = some.len();
                Ok(Step::Again)
            }
            Err(EncryptError::InsufficientSize(_)) => Ok(Step::Full),
            Err(EncryptError::EncryptExhausted) => Err(rustls::Error::EncryptError),
        }
    }
}

impl Side {
    /// Something is to be encoded, which comes before everything else.
    fn has_words(&self) -> bool {
        match self {
            Self::Client(side) => side.wants_write(),
            Self::Server(side) => side.wants_write(),
        }
    }

    /// The side that connects; the name is the protocol's formality and means nothing.
    ///
    /// # Errors
    /// rustls says why.
    pub(super) fn connecting(config: Arc<rustls::ClientConfig>) -> Result<Self, rustls::Error> {
        let name = rustls::pki_types::ServerName::try_from("blkrep").expect("letters");
        UnbufferedClientConnection::new(config, name).map(Self::Client)
    }

    /// The side that is connected to.
    ///
    /// # Errors
    /// rustls says why.
    pub(super) fn accepting(config: Arc<rustls::ServerConfig>) -> Result<Self, rustls::Error> {
        UnbufferedServerConnection::new(config).map(Self::Server)
    }
}
