//! The bytes of the network block device protocol: numbers, requests, replies.
//!
//! Owns constants and the pure encoding and decoding of the transmission phase, as the protocol's
//! public description (NetworkBlockDevice/nbd, `doc/proto.md`) states them. Everything is
//! big-endian. Enters: bytes of a client. Leaves: checked commands, or what is wrong with them.
//! Never does I/O.

use blkrep_types::Errno;

/// Server's greeting, first word.
pub(super) const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Server's greeting, second word, and the first of every option.
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First word of the answer to an option.
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of a request.
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a simple reply.
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a chunk of a structured reply.
pub(super) const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Bytes of a request without its data.
pub(super) const REQUEST_BYTES: usize = 28;

/// Longest read or write that a client may ask for in one request: what the protocol lets a
/// client assume that has not asked for a limit.
pub(super) const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// Flags of the greeting and of the client's answer to it.
pub(super) mod handshake {
    pub(in crate::nbd) const FIXED_NEWSTYLE: u16 = 1;
    pub(in crate::nbd) const NO_ZEROES: u16 = 1 << 1;
    /// Zeroes after the answer to `EXPORT_NAME`, for clients that do not refuse them.
    pub(in crate::nbd) const ZEROES: usize = 124;
}

/// Options of the negotiation.
pub(super) mod option {
    pub(in crate::nbd) const EXPORT_NAME: u32 = 1;
    pub(in crate::nbd) const ABORT: u32 = 2;
    pub(in crate::nbd) const LIST: u32 = 3;
    pub(in crate::nbd) const STARTTLS: u32 = 5;
    pub(in crate::nbd) const INFO: u32 = 6;
    pub(in crate::nbd) const GO: u32 = 7;
    pub(in crate::nbd) const STRUCTURED_REPLY: u32 = 8;
}

/// Answers to options.
pub(super) mod reply {
    pub(in crate::nbd) const ACK: u32 = 1;
    pub(in crate::nbd) const SERVER: u32 = 2;
    pub(in crate::nbd) const INFO: u32 = 3;
    pub(in crate::nbd) const UNSUPPORTED: u32 = (1 << 31) | 1;
    pub(in crate::nbd) const POLICY: u32 = (1 << 31) | 2;
    pub(in crate::nbd) const INVALID: u32 = (1 << 31) | 3;
    pub(in crate::nbd) const UNKNOWN: u32 = (1 << 31) | 6;
    pub(in crate::nbd) const TOO_BIG: u32 = (1 << 31) | 9;
}

/// Pieces of information about an export.
pub(super) mod info {
    pub(in crate::nbd) const EXPORT: u16 = 0;
    pub(in crate::nbd) const NAME: u16 = 1;
    pub(in crate::nbd) const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub(super) mod transmission {
    pub(in crate::nbd) const HAS_FLAGS: u16 = 1;
    pub(in crate::nbd) const READ_ONLY: u16 = 1 << 1;
    pub(in crate::nbd) const SEND_FLUSH: u16 = 1 << 2;
    pub(in crate::nbd) const SEND_FUA: u16 = 1 << 3;
    pub(in crate::nbd) const SEND_TRIM: u16 = 1 << 5;
    pub(in crate::nbd) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(in crate::nbd) const SEND_DF: u16 = 1 << 7;
    pub(in crate::nbd) const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Requests.
pub(super) mod command {
    pub(in crate::nbd) const READ: u16 = 0;
    pub(in crate::nbd) const WRITE: u16 = 1;
    pub(in crate::nbd) const DISCONNECT: u16 = 2;
    pub(in crate::nbd) const FLUSH: u16 = 3;
    pub(in crate::nbd) const TRIM: u16 = 4;
    pub(in crate::nbd) const WRITE_ZEROES: u16 = 6;

    pub(in crate::nbd) const FLAG_FUA: u16 = 1;
    pub(in crate::nbd) const FLAG_NO_HOLE: u16 = 1 << 1;
    pub(in crate::nbd) const FLAG_DF: u16 = 1 << 2;
}

/// Chunks of a structured reply.
pub(super) mod chunk {
    pub(in crate::nbd) const FLAG_DONE: u16 = 1;
    pub(in crate::nbd) const OFFSET_DATA: u16 = 1;
    pub(in crate::nbd) const ERROR: u16 = (1 << 15) | 1;
    pub(in crate::nbd) const ERROR_OFFSET: u16 = (1 << 15) | 2;
}

/// The shape of an export, as requests are checked against it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) len: u64,
    pub(super) block_bytes: u64,
    pub(super) read_only: bool,
    pub(super) write_cache: bool,
    pub(super) discard: bool,
}

impl Shape {
    /// What the export can do, as the client is told.
    pub(super) fn flags(self, structured: bool) -> u16 {
        use transmission as can;
        let mut flags = can::HAS_FLAGS | can::CAN_MULTI_CONN;
        if self.read_only {
            flags |= can::READ_ONLY;
        } else if self.discard {
            flags |= can::SEND_TRIM | can::SEND_WRITE_ZEROES;
        }
        if self.write_cache {
            flags |= can::SEND_FLUSH | can::SEND_FUA;
        }
        if structured {
            flags |= can::SEND_DF;
        }
        flags
    }
}

/// A request as it stands in the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RawRequest {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) len: u32,
}

impl RawRequest {
    /// `None` if the bytes do not begin as a request does: the stream is out of step, and nothing
    /// that follows can be understood.
    pub(super) fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if fields.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Self {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            len: fields.u32()?,
        })
    }

    /// Bytes that follow the request in the stream, whether it is accepted or not.
    pub(super) fn payload(&self) -> u32 {
        if self.command == command::WRITE {
            self.len
        } else {
            0
        }
    }

    /// Checks it against the export. An error is the client's answer; the stream goes on.
    pub(super) fn check(&self, shape: Shape, structured: bool) -> Result<Command, Errno> {
        let fua = self.flags & command::FLAG_FUA != 0;
        let known = match self.command {
            command::READ if structured => command::FLAG_FUA | command::FLAG_DF,
            command::WRITE_ZEROES => command::FLAG_FUA | command::FLAG_NO_HOLE,
            _ => command::FLAG_FUA,
        };
        if self.flags & !known != 0 {
            return Err(Errno::EINVAL);
        }
        let checked = match self.command {
            command::READ => Command::Read {
                whole: self.flags & command::FLAG_DF != 0,
            },
            command::WRITE => Command::Write { fua },
            command::DISCONNECT => return Ok(Command::Disconnect),
            command::FLUSH => return Ok(Command::Flush),
            command::TRIM => Command::Trim { fua },
            command::WRITE_ZEROES => Command::WriteZeroes {
                fua,
                may_free: self.flags & command::FLAG_NO_HOLE == 0,
            },
            _ => return Err(Errno::EINVAL),
        };
        let reads = matches!(checked, Command::Read { .. });
        if shape.read_only && !reads {
            return Err(Errno::EROFS);
        }
        let zeroes = matches!(checked, Command::Trim { .. } | Command::WriteZeroes { .. });
        if zeroes && !shape.discard {
            return Err(Errno::EINVAL);
        }
        self.check_range(shape, checked)?;
        Ok(checked)
    }

    fn check_range(&self, shape: Shape, checked: Command) -> Result<(), Errno> {
        let len = u64::from(self.len);
        let moves = matches!(checked, Command::Read { .. } | Command::Write { .. });
        if moves && self.len > PAYLOAD_BYTES_MAX {
            return Err(Errno::EINVAL);
        }
        if len == 0 || !self.offset.is_multiple_of(shape.block_bytes) {
            return Err(Errno::EINVAL);
        }
        if !len.is_multiple_of(shape.block_bytes) {
            return Err(Errno::EINVAL);
        }
        match self.offset.checked_add(len) {
            Some(end) if end <= shape.len => Ok(()),
            _ if matches!(checked, Command::Read { .. }) => Err(Errno::EINVAL),
            _ => Err(Errno::ENOSPC),
        }
    }
}

/// A request that the export can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Read { whole: bool },
    Write { fua: bool },
    Disconnect,
    Flush,
    Trim { fua: bool },
    WriteZeroes { fua: bool, may_free: bool },
}

/// The protocol's number for an error: it knows nine.
pub(super) fn wire_error(errno: Errno) -> u32 {
    let known = match errno.get() {
        libc::EROFS | libc::EACCES | libc::EPERM => libc::EPERM,
        libc::ENOMEM => libc::ENOMEM,
        libc::EINVAL => libc::EINVAL,
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => libc::ENOSPC,
        libc::EOVERFLOW => libc::EOVERFLOW,
        libc::EOPNOTSUPP => libc::EOPNOTSUPP,
        libc::ESHUTDOWN | libc::ENODEV => libc::ESHUTDOWN,
        _ => libc::EIO,
    };
    known.unsigned_abs()
}

/// Appends a simple reply without data.
pub(super) fn put_simple(out: &mut Vec<u8>, cookie: u64, result: Result<(), Errno>) {
    out.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    let error = result.map_or_else(wire_error, |()| 0);
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
}

fn put_chunk(out: &mut Vec<u8>, cookie: u64, done: bool, kind: u16, len: u32) {
    let flags = if done { chunk::FLAG_DONE } else { 0 };
    out.extend_from_slice(&CHUNK_MAGIC.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
}

/// Appends the head of a chunk of `len` bytes of data, which must follow.
pub(super) fn put_data_chunk(out: &mut Vec<u8>, cookie: u64, done: bool, offset: u64, len: u32) {
    put_chunk(out, cookie, done, chunk::OFFSET_DATA, len + 8);
    out.extend_from_slice(&offset.to_be_bytes());
}

/// Appends a chunk that says what failed; where, if only a part did.
pub(super) fn put_error_chunk(
    out: &mut Vec<u8>,
    cookie: u64,
    done: bool,
    errno: Errno,
    at: Option<u64>,
) {
    let (kind, len) = match at {
        Some(_) => (chunk::ERROR_OFFSET, 4 + 2 + 8),
        None => (chunk::ERROR, 4 + 2),
    };
    put_chunk(out, cookie, done, kind, len);
    out.extend_from_slice(&wire_error(errno).to_be_bytes());
    // No text: the number says it.
    out.extend_from_slice(&0_u16.to_be_bytes());
    if let Some(offset) = at {
        out.extend_from_slice(&offset.to_be_bytes());
    }
}

/// Takes big-endian numbers off the front of bytes that may be too short.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
