//! Requests of a kernel to the filesystem of one file, over a socket in the place of `/dev/fuse`.
//!
//! Promises: no panic in our filesystem; what reaches the volume is within it, whole and bounded; each
//! answer names a request that was sent, and the session ends when the kernel goes.
#![no_main]

use blkrep_fuzz::{Input, ram};
use blkrep_ublk::fuse_loop::fuzzing::Shown;
use libfuzzer_sys::fuzz_target;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::cell::RefCell;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::sync::Arc;

/// Requests of one input, and the bytes of one: together they fit a socket's buffer.
const REQUESTS_MAX: u64 = 16;
const BYTES_MAX: usize = 8 << 10;

const HEADER: usize = 40;
const INIT: u32 = 26;
const WRITE: u32 = 16;
const FSYNC: u32 = 20;
const SETXATTR: u32 = 21;
const IOCTL: u32 = 39;
const WRONG_LEN: u8 = 1;

/// Those that the filesystem answers itself; any other number goes to the library's defaults.
const OPCODES: [u32; 16] = [1, 3, 14, 15, 16, 17, 18, 20, 25, 27, 28, 29, 35, 36, 43, 2];

/// The kernel's end of a session, and the number of its next request.
struct Kernel {
    socket: File,
    next: u64,
}

thread_local! {
    static SHOWN: Arc<Shown> = {
        let (shown, queue) = Shown::new(&ram::spec()).expect("make a file");
        ram::answer(queue);
        Arc::new(shown)
    };
    static KERNEL: RefCell<Option<Kernel>> = const { RefCell::new(None) };
}

impl Kernel {
    /// A session that has begun: a thread of the library's serves it until it ends.
    fn begin() -> Self {
        let made = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        );
        let (kernel, daemon) = made.expect("make sockets");
        let shown = SHOWN.with(Arc::clone);
        std::thread::spawn(move || shown.serve(daemon));
        let mut begun = Self {
            socket: File::from(kernel),
            next: 2,
        };
        begun
            .socket
            .write_all(&init())
            .expect("send the first request");
        assert_eq!(begun.answer(), Some(1), "the first request is answered");
        begun
    }

    /// The number of the next answer; `None` if the session has ended.
    fn answer(&mut self) -> Option<u64> {
        let mut bytes = [0; 32 << 10];
        let len = loop {
            match self.socket.read(&mut bytes) {
                Ok(0) => return None,
                // It went without reading all that was sent.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                // The fuzzer's own clock, which rings twice in the time an input may take.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other.expect("read an answer"),
            }
        };
        assert!(len >= 16, "an answer has a header");
        let unique = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
        assert!(unique < self.next, "it was asked for");
        Some(unique)
    }

    /// Sends requests and takes answers until the last, which nobody else sent, is answered; false if
    /// the session has ended.
    fn ask(&mut self, requests: &mut Input<'_>) -> bool {
        for _ in 0..REQUESTS_MAX {
            if requests.is_empty() {
                break;
            }
            let bytes = next_request(requests, self.next);
            self.next += 1;
            if self.socket.write_all(&bytes).is_err() {
                return false;
            }
        }
        let last = self.next;
        self.next += 1;
        if self
            .socket
            .write_all(&request(FSYNC, last, 2, &[0; 16], 0))
            .is_err()
        {
            return false;
        }
        while let Some(unique) = self.answer() {
            if unique == last {
                return true;
            }
        }
        false
    }
}

fn request(opcode: u32, unique: u64, node: u64, body: &[u8], wrong: u32) -> Vec<u8> {
    let len = u32::try_from(HEADER + body.len())
        .expect("bounded")
        .wrapping_add(wrong);
    let mut bytes = len.to_le_bytes().to_vec();
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(unique.to_le_bytes());
    bytes.extend(node.to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend_from_slice(body);
    bytes
}

/// As a kernel of today begins.
fn init() -> Vec<u8> {
    let mut body = Vec::new();
    for word in [7_u32, 38, 1 << 20, u32::MAX] {
        body.extend(word.to_le_bytes());
    }
    body.resize(64, 0);
    request(INIT, 1, 0, &body, 0)
}

/// A request that says how many bytes follow its fixed part, and has as many, as a kernel always sends it: the
/// library takes its word for that.
fn counted(body: &[u8], fixed: usize, count: Range<usize>) -> Vec<u8> {
    let mut body = body.to_vec();
    body.resize(body.len().max(fixed), 0);
    let data = u32::try_from(body.len() - fixed).expect("bounded");
    body[count].copy_from_slice(&data.to_le_bytes());
    body
}

/// Where a name ends that begins at `from`, its zero included.
fn behind_name(body: &[u8], from: usize) -> usize {
    let mut bytes = body.iter().skip(from);
    from + bytes.position(|byte| *byte == 0).map_or(1, |len| len + 1)
}

fn next_request(input: &mut Input<'_>, unique: u64) -> Vec<u8> {
    let (flags, opcode, node) = (input.byte(), input.byte(), input.byte());
    let opcode = match OPCODES.get(usize::from(opcode)) {
        Some(known) => *known,
        None => u32::from(opcode),
    };
    let body = input.piece();
    let mut body = body[..body.len().min(BYTES_MAX)].to_vec();
    match opcode {
        WRITE => body = counted(&body, 40, 16..20),
        IOCTL => body = counted(&body, 32, 24..28),
        SETXATTR => body = counted(&body, behind_name(&body, 8), 0..4),
        _ => {}
    }
    let wrong = if flags & WRONG_LEN == 0 {
        0
    } else {
        u32::from(flags)
    };
    request(opcode, unique, u64::from(node % 4), &body, wrong)
}

fuzz_target!(|data: &[u8]| {
    KERNEL.with_borrow_mut(|kernel| {
        let open = kernel.get_or_insert_with(Kernel::begin);
        if !open.ask(&mut Input(data)) {
            *kernel = None;
        }
    });
});
