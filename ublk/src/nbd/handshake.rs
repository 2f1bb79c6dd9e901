//! The negotiation: fixed newstyle, until the client asks for data or leaves.
//!
//! Owns the dialogue of options. Enters: a stream of a client that may say anything. Leaves: what
//! was agreed, or why there was no agreement. Bounded in options and bytes here, in time by the
//! stream it is given. Never touches the volume.

use super::protocol::{
    Fields, MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, PAYLOAD_BYTES_MAX, Shape, handshake, info,
    option, reply,
};
use std::io::{self, Read, Write};

/// Options one client may send: a real one sends fewer than ten.
const OPTIONS_MAX: usize = 64;

/// Longest data of an option that is looked at: an export name may have 4096 bytes.
const OPTION_BYTES_MAX: u32 = 8192;

/// Longest data of an option that is read past; a longer one ends the connection.
const SKIP_BYTES_MAX: u32 = 64 << 10;

/// What the two sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreed {
    /// Reads are answered in chunks.
    pub(super) structured: bool,
}

/// How a negotiation can end without an agreement.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAgreement {
    /// The client said that it leaves, or closed.
    #[error("the client left")]
    Left,
    /// The client does not keep to the protocol.
    #[error("the client broke the protocol: {0}")]
    Broken(&'static str),
    /// The connection failed, or the client was too slow.
    #[error("the connection failed: {0}")]
    Failed(#[from] io::Error),
}

/// What is offered, and to whom it is said.
#[derive(Debug)]
pub(super) struct Handshake<'a, S> {
    pub(super) stream: &'a mut S,
    /// The name of the export; the empty name means it too.
    pub(super) export: &'a str,
    pub(super) shape: Shape,
    /// The size of a request that suits the volume best.
    pub(super) preferred_bytes: u32,
}

/// One option as it was received.
enum Asked {
    Option(u32, Vec<u8>),
    /// Its data was too long to look at, and has been read past.
    TooBig(u32),
}

/// What to do after an option.
enum Step {
    GoOn,
    Agreed,
}

impl<S: Read + Write> Handshake<'_, S> {
    /// Runs the dialogue.
    pub(super) fn run(mut self) -> Result<Agreed, NoAgreement> {
        let client = self.greet()?;
        let mut structured = false;
        for _ in 0..OPTIONS_MAX {
            let (kind, data) = match self.receive()? {
                Asked::TooBig(kind) => {
                    self.answer(kind, reply::TOO_BIG, b"the option's data is too long")?;
                    continue;
                }
                Asked::Option(kind, data) => (kind, data),
            };
            match kind {
                option::EXPORT_NAME => {
                    self.export_name(&data, client, structured)?;
                    return Ok(Agreed { structured });
                }
                option::ABORT => {
                    // The client need not wait for the answer, and may be gone.
                    drop(self.answer(kind, reply::ACK, &[]));
                    return Err(NoAgreement::Left);
                }
                option::STRUCTURED_REPLY if data.is_empty() => {
                    structured = true;
                    self.answer(kind, reply::ACK, &[])?;
                }
                option::LIST if data.is_empty() => self.list()?,
                option::STRUCTURED_REPLY | option::LIST => {
                    self.answer(kind, reply::INVALID, b"this option has no data")?;
                }
                option::INFO | option::GO => {
                    if let Step::Agreed = self.describe(kind, &data, structured)? {
                        return Ok(Agreed { structured });
                    }
                }
                option::STARTTLS => {
                    let why = b"no TLS here: the socket is local to this machine";
                    self.answer(kind, reply::POLICY, why)?;
                }
                _ => self.answer(kind, reply::UNSUPPORTED, b"unknown option")?,
            }
        }
        Err(NoAgreement::Broken("too many options"))
    }

    /// Greets, and returns the client's flags.
    fn greet(&mut self) -> Result<u32, NoAgreement> {
        let mut hello = Vec::with_capacity(18);
        hello.extend_from_slice(&MAGIC.to_be_bytes());
        hello.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        let offered = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
        hello.extend_from_slice(&offered.to_be_bytes());
        self.stream.write_all(&hello)?;
        let flags = u32::from_be_bytes(self.read()?);
        if flags & !u32::from(offered) != 0 {
            return Err(NoAgreement::Broken("flags that were not offered"));
        }
        Ok(flags)
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N], NoAgreement> {
        let mut bytes = [0; N];
        match self.stream.read_exact(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(NoAgreement::Left),
            other => Ok(other.map(|()| bytes)?),
        }
    }

    fn receive(&mut self) -> Result<Asked, NoAgreement> {
        let head: [u8; 16] = self.read()?;
        let mut fields = Fields(&head);
        let (Some(magic), Some(kind), Some(len)) = (fields.u64(), fields.u32(), fields.u32())
        else {
            unreachable!("sixteen bytes are a word and two halves");
        };
        if magic != OPTION_MAGIC {
            return Err(NoAgreement::Broken("an option without its first word"));
        }
        if len > OPTION_BYTES_MAX {
            if len > SKIP_BYTES_MAX || kind == option::EXPORT_NAME {
                return Err(NoAgreement::Broken("an option that is much too long"));
            }
            let data = Read::by_ref(self.stream).take(u64::from(len));
            io::copy(&mut { data }, &mut io::sink())?;
            return Ok(Asked::TooBig(kind));
        }
        let mut data = vec![0; usize::try_from(len).expect("a bounded length")];
        self.stream.read_exact(&mut data)?;
        Ok(Asked::Option(kind, data))
    }

    fn answer(&mut self, kind: u32, answer: u32, data: &[u8]) -> Result<(), NoAgreement> {
        let mut bytes = Vec::with_capacity(20 + data.len());
        bytes.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&answer.to_be_bytes());
        let len = u32::try_from(data.len()).expect("answers are short");
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(data);
        Ok(self.stream.write_all(&bytes)?)
    }

    /// The old way in: it has no way to say no but to close.
    fn export_name(
        &mut self,
        name: &[u8],
        client: u32,
        structured: bool,
    ) -> Result<(), NoAgreement> {
        if !self.is_ours(name) {
            return Err(NoAgreement::Broken("an export that does not exist"));
        }
        let mut bytes = Vec::with_capacity(10 + handshake::ZEROES);
        bytes.extend_from_slice(&self.shape.len.to_be_bytes());
        bytes.extend_from_slice(&self.shape.flags(structured).to_be_bytes());
        if client & u32::from(handshake::NO_ZEROES) == 0 {
            bytes.resize(10 + handshake::ZEROES, 0);
        }
        Ok(self.stream.write_all(&bytes)?)
    }

    fn is_ours(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.export.as_bytes()
    }

    fn list(&mut self) -> Result<(), NoAgreement> {
        let name = self.export.as_bytes();
        let len = u32::try_from(name.len()).expect("names are short");
        let mut data = len.to_be_bytes().to_vec();
        data.extend_from_slice(name);
        self.answer(option::LIST, reply::SERVER, &data)?;
        self.answer(option::LIST, reply::ACK, &[])
    }

    fn describe(&mut self, kind: u32, data: &[u8], structured: bool) -> Result<Step, NoAgreement> {
        let Some((name, wants_name)) = parse_info(data) else {
            self.answer(kind, reply::INVALID, b"the option's data makes no sense")?;
            return Ok(Step::GoOn);
        };
        if !self.is_ours(name) {
            self.answer(kind, reply::UNKNOWN, b"there is no such export here")?;
            return Ok(Step::GoOn);
        }
        let mut export = info::EXPORT.to_be_bytes().to_vec();
        export.extend_from_slice(&self.shape.len.to_be_bytes());
        export.extend_from_slice(&self.shape.flags(structured).to_be_bytes());
        self.answer(kind, reply::INFO, &export)?;
        if wants_name {
            let mut data = info::NAME.to_be_bytes().to_vec();
            data.extend_from_slice(self.export.as_bytes());
            self.answer(kind, reply::INFO, &data)?;
        }
        // Said to everybody: who did not ask may ignore it, and gets EINVAL for what is unaligned.
        let block = u32::try_from(self.shape.block_bytes).expect("512 or 4096");
        let mut sizes = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for bytes in [block, self.preferred_bytes.max(block), PAYLOAD_BYTES_MAX] {
            sizes.extend_from_slice(&bytes.to_be_bytes());
        }
        self.answer(kind, reply::INFO, &sizes)?;
        self.answer(kind, reply::ACK, &[])?;
        Ok(if kind == option::GO {
            Step::Agreed
        } else {
            Step::GoOn
        })
    }
}

/// The export's name, and whether the client wants to hear its real one.
fn parse_info(data: &[u8]) -> Option<(&[u8], bool)> {
    let mut fields = Fields(data);
    let name_bytes = usize::try_from(fields.u32()?).ok()?;
    let name = fields.take(name_bytes)?;
    let wanted = fields.u16()?;
    let mut wants_name = false;
    for _ in 0..wanted {
        wants_name |= fields.u16()? == info::NAME;
    }
    fields.0.is_empty().then_some((name, wants_name))
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
