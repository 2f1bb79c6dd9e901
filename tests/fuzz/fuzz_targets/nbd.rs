//! A client of the NBD server that may say anything, over the real socket.
//!
//! Promises: no panic on any thread; what reaches the volume is within it, whole and bounded; the server
//! answers and closes, and serves the next client.
#![no_main]

use blkrep_fuzz::{Input, ram};
use blkrep_ublk::nbd::{NbdFrontEnd, NbdOptions};
use blkrep_ublk::{Device, FrontEnd};
use libfuzzer_sys::fuzz_target;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Less than a socket takes without a reader, so that a client can send before it reads.
const STREAM_MAX: usize = 96 << 10;

/// Far above what any answer here takes, on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(60);

const RAW: u8 = 1;
const RAW_OPTIONS: u8 = 2;
const STRUCTURED: u8 = 4;
const EXPORT_NAME: u32 = 1;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;

struct Server {
    directory: tempfile::TempDir,
    /// Listens for as long as it lives.
    _device: Box<dyn Device>,
}

thread_local! {
    static SERVER: Server = serve();
}

fn serve() -> Server {
    let directory = tempfile::tempdir().expect("make a directory");
    let front = NbdFrontEnd::new(NbdOptions::new(directory.path().to_owned()));
    let (mut device, mut queues) = front.make(&ram::spec()).expect("make a device");
    ram::answer(queues.remove(0));
    device.start().expect("start a device");
    Server {
        directory,
        _device: device,
    }
}

fn option(stream: &mut Vec<u8>, kind: u32, data: &[u8]) {
    stream.extend(0x4948_4156_454f_5054_u64.to_be_bytes());
    stream.extend(kind.to_be_bytes());
    stream.extend(
        u32::try_from(data.len())
            .expect("pieces are short")
            .to_be_bytes(),
    );
    stream.extend_from_slice(data);
}

fn negotiate(input: &mut Input<'_>, choice: u8, stream: &mut Vec<u8>) {
    stream.extend(3_u32.to_be_bytes());
    if choice & RAW_OPTIONS != 0 {
        for _ in 0..input.byte() % 8 {
            let kind = u32::from(input.byte());
            option(stream, kind, input.piece());
        }
    }
    if choice & STRUCTURED != 0 {
        option(stream, STRUCTURED_REPLY, &[]);
    }
    if choice & 8 != 0 {
        option(stream, EXPORT_NAME, b"data");
    } else {
        option(stream, GO, &[0; 6]);
    }
}

/// Requests that begin as such, until the input ends.
fn requests(input: &mut Input<'_>, stream: &mut Vec<u8>) {
    while !input.is_empty() && stream.len() < STREAM_MAX {
        let (flags, command) = (u16::from(input.byte()), u16::from(input.byte()));
        let (cookie, blocks, len) = (input.byte(), input.word(), input.word());
        // In blocks, so that most are not refused at once; the top bits make them any number.
        let offset = (blocks % 4096).wrapping_mul(512).wrapping_add(blocks >> 32);
        let len = (len % 64).wrapping_mul(512).wrapping_add(len >> 32);
        let [.., a, b, c, d] = len.to_be_bytes();
        stream.extend(0x2560_9513_u32.to_be_bytes());
        stream.extend(flags.to_be_bytes());
        stream.extend(command.to_be_bytes());
        stream.extend(u64::from(cookie).to_be_bytes());
        stream.extend(offset.to_be_bytes());
        stream.extend([a, b, c, d]);
        if command == 1 {
            let len = usize::try_from(u32::from_be_bytes([a, b, c, d])).expect("64-bit platform");
            let data = input.piece();
            stream.extend(
                data.iter()
                    .chain(std::iter::repeat(&0))
                    .take(len.min(40_000)),
            );
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let choice = input.byte();
    let mut stream = Vec::new();
    if choice & RAW == 0 {
        negotiate(&mut input, choice, &mut stream);
        requests(&mut input, &mut stream);
    } else {
        stream.extend_from_slice(input.rest());
    }
    stream.truncate(STREAM_MAX);
    let path = SERVER.with(|server| server.directory.path().join("data.sock"));
    let mut client = UnixStream::connect(path).expect("connect");
    client
        .set_read_timeout(Some(PATIENCE))
        .expect("set a limit");
    // A server that has closed already takes no more, which is its right.
    let _sent = client
        .write_all(&stream)
        .and_then(|()| client.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    if let Err(error) = client.read_to_end(&mut answer) {
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset,
            "the server closes"
        );
    }
    let greeted = answer.len() < 8 || answer.starts_with(b"NBDMAGIC");
    assert!(greeted, "the server speaks first");
});
