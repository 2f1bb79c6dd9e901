//! One connection: what its worker waits for, and what its socket does.
//!
//! Owns at most one read and one write of the worker, and says which operations of the socket serve
//! them. Completions enter; [`Acts`] leave. Never touches a ring.
//!
//! ```text
//!  Sniffing --plain--> Plain
//!     |  '---visitor--> Given
//!     '---link--> Secure --error--> Leaving --told--> Dead
//! ```

use super::cipher::{Cipher, Side};
use super::keeper::{Failure, Keeper};
use super::sniff::{Found, Sniff};
use super::words::{explain, is_refusal};
use blkrep_io::{LineFacts, Slice, Token};
use blkrep_types::{Errno, NodeName};

/// What a worker is told when a connection cannot be used; the words are in its facts.
const EPROTO: Errno = Errno::new(71);
const EPIPE: Errno = Errno::new(32);

/// Bytes of a peer that is told why it is refused: what it still says is read, so that the kernel
/// does not throw our last word away.
const TRASH_BYTES: usize = 4096;

#[derive(Debug)]
enum Mode {
    /// Accepted, and nothing is known.
    Sniffing(Box<Sniff>),
    /// Not encrypted: operations are the socket's own from now on.
    Plain,
    /// Encrypted.
    Secure(Box<Cipher>),
    /// It failed; the alert is on its way, and the peer is heard out.
    Leaving { cipher: Box<Cipher>, listen: bool },
    /// It is somebody else's.
    Given,
    /// It is of no use.
    Dead,
}

/// A write of the worker.
#[derive(Debug)]
struct Writing {
    token: Token,
    slice: Slice,
    /// Bytes of it that are encrypted and not yet sent.
    encrypted: usize,
}

/// What is to be done for a channel.
#[derive(Debug, Default)]
pub(super) struct Acts {
    /// Receive into it.
    pub(super) receive: Option<Slice>,
    /// Send it.
    pub(super) send: Option<Slice>,
    /// The worker's read is over.
    pub(super) read: Option<(Token, Result<u32, Errno>)>,
    /// The worker's write is over.
    pub(super) wrote: Option<(Token, Result<u32, Errno>)>,
}

/// A connection that is encrypted, or may be.
#[derive(Debug)]
pub(super) struct Channel<S> {
    raw: S,
    mode: Mode,
    accepted: bool,
    reading: Option<(Token, Slice)>,
    writing: Option<Writing>,
    receiving: bool,
    sending: bool,
    /// How the socket's stream ended, each way.
    ended: Option<Result<u32, Errno>>,
    broken: Option<Errno>,
    facts: LineFacts,
}

fn bytes(count: usize) -> u32 {
    u32::try_from(count).expect("buffers are small")
}

impl<S: 'static> Channel<S> {
    fn new(raw: S, mode: Mode, accepted: bool) -> Self {
        Self {
            raw,
            mode,
            accepted,
            reading: None,
            writing: None,
            receiving: false,
            sending: false,
            ended: None,
            broken: None,
            facts: LineFacts::default(),
        }
    }

    /// A connection that was accepted.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn accepted(raw: S) -> Result<Self, Errno> {
        Ok(Self::new(
            raw,
            Mode::Sniffing(Box::new(Sniff::new()?)),
            true,
        ))
    }

    /// A connection that was made, to be encrypted.
    pub(super) fn connected(raw: S, side: Result<Side, rustls::Error>) -> Self {
        let cipher = match side.map(|side| Cipher::new(side, &[])) {
            Ok(Ok(cipher)) => cipher,
            Ok(Err(errno)) => return Self::refused(raw, format!("no memory to encrypt: {errno}")),
            Err(error) => return Self::refused(raw, explain(&error)),
        };
        Self::new(raw, Mode::Secure(Box::new(cipher)), false)
    }

    /// A connection that may not be used.
    pub(super) fn refused(raw: S, why: String) -> Self {
        let mut channel = Self::new(raw, Mode::Dead, false);
        channel.facts.trouble = Some(why);
        channel
    }

    pub(super) const fn raw(&self) -> &S {
        &self.raw
    }

    pub(super) fn facts(&self) -> LineFacts {
        self.facts.clone()
    }

    /// Operations go to the socket as they are.
    pub(super) const fn is_plain(&self) -> bool {
        matches!(self.mode, Mode::Plain)
    }

    /// The socket is not the worker's any more.
    pub(super) const fn is_given(&self) -> bool {
        matches!(self.mode, Mode::Given)
    }

    /// The worker wants bytes.
    pub(super) fn read(&mut self, token: Token, slice: Slice) {
        assert!(self.reading.is_none(), "one receive at a time");
        self.reading = Some((token, slice));
    }

    /// The worker has bytes.
    pub(super) fn write(&mut self, token: Token, slice: Slice) {
        assert!(self.writing.is_none(), "one send at a time");
        let encrypted = 0;
        self.writing = Some(Writing {
            token,
            slice,
            encrypted,
        });
    }

    /// A receive of the socket is over.
    pub(super) fn received(&mut self, result: Result<u32, Errno>, keeper: &dyn Keeper<S>) {
        assert!(self.receiving, "a receive was under way");
        self.receiving = false;
        let count = match result {
            Ok(count) if count > 0 => usize::try_from(count).expect("64-bit platform"),
            ended => {
                self.ended = Some(ended);
                return;
            }
        };
        match &mut self.mode {
            Mode::Sniffing(sniff) => {
                let found = sniff.received(count);
                self.found(found, keeper);
            }
            Mode::Secure(cipher) => cipher.received(count),
            Mode::Leaving { .. } | Mode::Dead | Mode::Given | Mode::Plain => {}
        }
    }

    /// A send of the socket is over.
    pub(super) fn sent(&mut self, result: Result<u32, Errno>) {
        assert!(self.sending, "a send was under way");
        self.sending = false;
        match (result, &mut self.mode) {
            (Ok(count), Mode::Secure(cipher) | Mode::Leaving { cipher, .. }) => {
                cipher.sent(usize::try_from(count).expect("64-bit platform"));
            }
            (Ok(_), _) => {}
            (Err(errno), _) => self.broken = Some(errno),
        }
    }

    /// The first bytes said what this is.
    fn found(&mut self, found: Found, keeper: &dyn Keeper<S>) {
        let mode = std::mem::replace(&mut self.mode, Mode::Dead);
        let Mode::Sniffing(sniff) = mode else {
            unreachable!("found while sniffing")
        };
        self.mode = match found {
            Found::Nothing => Mode::Sniffing(sniff),
            // What came is given to the worker, and then the mode changes.
            Found::Plain => {
                let seen = sniff.seen();
                let (token, slice) = self.reading.take().expect("sniffed for a read");
                slice.copy_from(&seen);
                self.reading = Some((token, slice.part(0..seen.len())));
                Mode::Plain
            }
            Found::Link => match sniff.seen().with(|seen| accepting(seen, keeper)) {
                Ok(cipher) => Mode::Secure(Box::new(cipher)),
                Err(why) => self.dies(why, keeper),
            },
            Found::Visitor(door) => {
                keeper.visitor(&self.raw, door, sniff.seen().with(<[u8]>::to_vec));
                Mode::Given
            }
            Found::Rubbish(why) => self.dies(why, keeper),
        };
    }

    fn dies(&mut self, why: String, keeper: &dyn Keeper<S>) -> Mode {
        keeper.failed(&self.raw, None, Failure::Refused, &why);
        self.facts.trouble = Some(why);
        Mode::Dead
    }

    /// Does what can be done, and says what the socket and the worker are to do.
    pub(super) fn advance(&mut self, keeper: &dyn Keeper<S>) -> Acts {
        let mut acts = Acts::default();
        self.advance_cipher(keeper, &mut acts);
        match &mut self.mode {
            Mode::Plain => {
                // The read that sniffed: its bytes are there. Later ones never come here.
                let read = self.reading.take();
                acts.read = read.map(|(token, slice)| (token, Ok(bytes(slice.len()))));
                acts.wrote = self.drop_write(EPIPE);
            }
            Mode::Sniffing(sniff) => match (&self.reading, self.ended) {
                (_, Some(ended)) => self.over(ended, &mut acts),
                (Some((_, slice)), None) if !self.receiving => {
                    acts.receive = Some(sniff.space(slice.len()));
                }
                _ => {}
            },
            Mode::Secure(_) => {}
            Mode::Leaving { cipher, listen } => {
                let silent = cipher.to_send().is_none() || self.broken.is_some();
                if !silent && !self.sending {
                    acts.send = cipher.to_send();
                }
                let heard = self.ended.is_some() || self.broken.is_some() || !*listen;
                if silent && heard {
                    self.mode = Mode::Dead;
                    self.over(Err(EPROTO), &mut acts);
                } else if *listen && self.ended.is_none() && !self.receiving {
                    acts.receive = Some(cipher.trash(TRASH_BYTES));
                }
            }
            Mode::Given => self.over(Ok(0), &mut acts),
            Mode::Dead => self.over(Err(EPROTO), &mut acts),
        }
        self.receiving |= acts.receive.is_some();
        self.sending |= acts.send.is_some();
        acts
    }

    fn advance_cipher(&mut self, keeper: &dyn Keeper<S>, acts: &mut Acts) {
        let Mode::Secure(cipher) = &mut self.mode else {
            return;
        };
        // Nothing is given out while our own handshake is on its way: whoever gets the first
        // message may take the connection to another ring.
        let into = self.reading.as_ref().filter(|_| !cipher.is_speaking());
        let from = self.writing.as_ref().filter(|write| write.encrypted == 0);
        let done = cipher.advance(into.map(|(_, slice)| slice), from.map(|write| &write.slice));
        let result = match done {
            Ok(done) if cipher.is_established() && self.facts.node.is_none() => {
                name_of(cipher, keeper).map(|node| {
                    keeper.opened(&self.raw, &node);
                    self.facts.node = Some(node);
                    done
                })
            }
            Ok(_) if cipher.is_choked() => {
                Err((Failure::Broken, "a record without end".to_owned()))
            }
            Ok(done) => Ok(done),
            Err(error) => {
                let proven = cipher.is_established() && !is_refusal(&error);
                let failure = if proven {
                    Failure::Broken
                } else {
                    Failure::Refused
                };
                Err((failure, explain(&error)))
            }
        };
        match result {
            Ok((read, written)) => self.flow(read, written, acts),
            Err((failure, why)) => self.leave(failure, why, keeper),
        }
    }

    fn flow(&mut self, read: usize, written: usize, acts: &mut Acts) {
        let Mode::Secure(cipher) = &mut self.mode else {
            unreachable!("what flows is encrypted")
        };
        if read > 0 {
            let (token, _) = self.reading.take().expect("read for somebody");
            acts.read = Some((token, Ok(bytes(read))));
        }
        if let Some(write) = &mut self.writing {
            write.encrypted += written;
            if write.encrypted > 0 && cipher.to_send().is_none() {
                acts.wrote = Some((write.token, Ok(bytes(write.encrypted))));
                self.writing = None;
            }
        }
        if let Some(errno) = self.broken {
            acts.wrote = acts.wrote.take().or_else(|| self.drop_write(errno));
        } else if !self.sending {
            acts.send = cipher.to_send();
        }
        let Mode::Secure(cipher) = &mut self.mode else {
            unreachable!("just seen")
        };
        let ended = self.ended.or(cipher.is_closed().then_some(Ok(0)));
        let shaking = !cipher.is_established();
        let wants = self.reading.is_some() || (shaking && self.writing.is_some());
        let given = !cipher.is_speaking() || self.broken.is_some();
        match ended {
            Some(ended) if given && !cipher.holds_plain() => {
                if let Some((token, _)) = self.reading.take() {
                    acts.read = Some((token, ended));
                }
                if shaking {
                    if self.facts.trouble.is_none() {
                        self.facts.trouble = Some(
                            "the other node closed the connection before it was encrypted; see its \
                             events"
                                .to_owned(),
                        );
                    }
                    acts.wrote = acts.wrote.take().or_else(|| self.drop_write(EPIPE));
                }
            }
            Some(_) => {}
            None if wants && !self.receiving && !cipher.holds_plain() => {
                let limit = self.reading.as_ref().map_or(0, |(_, slice)| slice.len());
                acts.receive = Some(cipher.space(limit));
            }
            None => {}
        }
    }

    /// The connection failed: the other end is told.
    fn leave(&mut self, failure: Failure, why: String, keeper: &dyn Keeper<S>) {
        keeper.failed(&self.raw, self.facts.node.as_ref(), failure, &why);
        self.facts.trouble = Some(why);
        let mode = std::mem::replace(&mut self.mode, Mode::Dead);
        if let Mode::Secure(mut cipher) = mode {
            let listen = self.accepted && self.facts.node.is_none();
            cipher.last_words();
            self.mode = Mode::Leaving { cipher, listen };
        }
    }

    fn drop_write(&mut self, errno: Errno) -> Option<(Token, Result<u32, Errno>)> {
        let write = self.writing.take()?;
        Some((write.token, Err(errno)))
    }

    fn over(&mut self, ended: Result<u32, Errno>, acts: &mut Acts) {
        let read = self.reading.take();
        acts.read = read.map(|(token, _)| (token, ended));
        acts.wrote = self.drop_write(ended.err().unwrap_or(EPIPE));
    }
}

/// The accepting side of a connection that began with these bytes.
fn accepting<S: 'static>(seen: &[u8], keeper: &dyn Keeper<S>) -> Result<Cipher, String> {
    let nobody = "it is encrypted, and this node is paired with nobody; pair the two nodes";
    let config = keeper.incoming().ok_or(nobody)?;
    let side = Side::accepting(config).map_err(|error| explain(&error))?;
    Cipher::new(side, seen).map_err(|errno| format!("no memory to decrypt: {errno}"))
}

fn name_of<S: 'static>(
    cipher: &Cipher,
    keeper: &dyn Keeper<S>,
) -> Result<NodeName, (Failure, String)> {
    let name = cipher
        .certificate()
        .and_then(|certificate| keeper.name_of(certificate));
    name.ok_or_else(|| {
        let why = "the node was forgotten here while it connected";
        (Failure::Refused, why.to_owned())
    })
}
