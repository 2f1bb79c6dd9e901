//! A client of the protocol that says exactly what a test wants, right or wrong.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISCONNECT: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;
pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;
pub const DF: u16 = 4;

/// A connection after its negotiation.
pub struct Client {
    pub stream: UnixStream,
    pub len: u64,
    pub flags: u16,
    next: u64,
}

/// One chunk of a structured reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    pub done: bool,
    pub kind: u16,
    pub cookie: u64,
    pub data: Vec<u8>,
}

pub fn open(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream
}

pub fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

impl Client {
    /// Connects to the default export, with or without structured replies.
    pub fn connect(path: &Path, structured: bool) -> Self {
        let mut stream = open(path);
        let hello: [u8; 18] = take(&mut stream);
        assert_eq!(&hello[..16], b"NBDMAGICIHAVEOPT");
        stream.write_all(&3_u32.to_be_bytes()).unwrap();
        if structured {
            stream.write_all(&option(8, &[])).unwrap();
            let answer: [u8; 20] = take(&mut stream);
            assert_eq!(answer[12..], [0, 0, 0, 1, 0, 0, 0, 0]);
        }
        stream.write_all(&option(1, &[])).unwrap();
        let export: [u8; 10] = take(&mut stream);
        Self {
            stream,
            len: u64::from_be_bytes(export[..8].try_into().unwrap()),
            flags: u16::from_be_bytes(export[8..].try_into().unwrap()),
            next: 1,
        }
    }

    /// Sends a request; returns its cookie.
    pub fn send(
        &mut self,
        command: u16,
        flags: u16,
        (offset, len): (u64, u32),
        data: &[u8],
    ) -> u64 {
        let cookie = self.next;
        self.next += 1;
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(data);
        self.stream.write_all(&bytes).unwrap();
        cookie
    }

    /// Takes the head of a simple reply: its cookie and error.
    pub fn simple(&mut self) -> (u64, u32) {
        let head: [u8; 16] = take(&mut self.stream);
        assert_eq!(head[..4], [0x67, 0x44, 0x66, 0x98]);
        let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
        (u64::from_be_bytes(head[8..].try_into().unwrap()), error)
    }

    /// Takes a chunk of a structured reply.
    pub fn chunk(&mut self) -> Chunk {
        let head: [u8; 20] = take(&mut self.stream);
        assert_eq!(head[..4], [0x66, 0x8e, 0x33, 0xef]);
        let len = u32::from_be_bytes(head[16..].try_into().unwrap());
        Chunk {
            done: head[5] & 1 == 1,
            kind: u16::from_be_bytes(head[6..8].try_into().unwrap()),
            cookie: u64::from_be_bytes(head[8..16].try_into().unwrap()),
            data: self.bytes(usize::try_from(len).unwrap()),
        }
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Sends a request and takes its simple reply's error.
    pub fn call(&mut self, command: u16, flags: u16, range: (u64, u32), data: &[u8]) -> u32 {
        let cookie = self.send(command, flags, range, data);
        let (answered, error) = self.simple();
        assert_eq!(answered, cookie);
        error
    }

    pub fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        assert_eq!(self.call(READ, 0, (offset, len), &[]), 0);
        self.bytes(usize::try_from(len).unwrap())
    }

    /// True if the server has closed the connection and nothing more comes.
    pub fn closed(&mut self) -> bool {
        closed(&mut self.stream)
    }
}

/// True if the server has closed the connection and nothing more comes.
pub fn closed(stream: &mut UnixStream) -> bool {
    let mut bytes = [0; 64];
    match stream.read(&mut bytes) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn take<const N: usize>(stream: &mut UnixStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}
