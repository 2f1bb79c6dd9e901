//! The NBD server as its clients see it: every command, the usual tools, and clients that misbehave.
//!
//! Needs nbdinfo and nbdcopy (libnbd-bin), qemu-img and qemu-io (qemu-utils) and fio.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/nbd_client.rs"]
mod nbd_client;

use blkrep_types::{BlockSize, ByteLen, ByteOffset, Extent};
use blkrep_ublk::nbd::{NBD_CONNECTIONS_MAX, NbdFrontEnd, NbdOptions};
use blkrep_ublk::{DeviceSpec, FrontEnd, RequestKind};
use common::{Volume, spec, tool, tool_ok, until};
use nbd_client::{Client, DF, DISCONNECT, FLUSH, FUA, NO_HOLE, READ, TRIM, WRITE, WRITE_ZEROES};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EPERM: u32 = 1;
const EOVERFLOW: u32 = 75;

struct Served {
    volume: Volume,
    directory: TempDir,
}

impl Served {
    fn new(spec: &DeviceSpec) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = NbdOptions::new(directory.path().to_owned());
        let volume = Volume::serve(&NbdFrontEnd::new(options), spec);
        Self { volume, directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("data.sock")
    }

    fn uri(&self) -> String {
        self.volume.device.path()
    }

    fn client(&self) -> Client {
        Client::connect(&self.path(), false)
    }

    fn stop(self) {
        let path = self.path();
        self.volume.stop();
        assert!(!path.exists(), "the socket is removed");
    }
}

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .collect()
}

fn extent(offset: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(offset), ByteLen::new(len)).unwrap()
}

#[test]
fn each_command_does_what_it_says() {
    let served = Served::new(&spec(4 * MIB));
    let mut client = served.client();
    assert_eq!((client.len, client.flags), (4 * MIB, 0b1_0110_1101));
    let data = pattern(8192, 1);
    assert_eq!(client.call(WRITE, 0, (4096, 8192), &data), 0);
    assert_eq!(client.call(WRITE, FUA, (65536, 8192), &data), 0);
    assert_eq!(client.call(FLUSH, 0, (0, 0), &[]), 0);
    assert_eq!(client.read(4096, 8192), data);
    assert_eq!(client.call(TRIM, 0, (4096, 4096), &[]), 0);
    assert_eq!(client.call(WRITE_ZEROES, NO_HOLE, (65536, 512), &[]), 0);
    assert_eq!(client.call(WRITE_ZEROES, FUA, (65536, 512), &[]), 0);
    assert_eq!(client.call(TRIM, FUA, (66048, 512), &[]), 0);
    assert_eq!(client.read(4096, 4096), vec![0; 4096]);
    assert_eq!(client.read(66048, 1024)[512..], data[1024..1536]);
    let zeroes = |fua, may_free| RequestKind::WriteZeroes { fua, may_free };
    assert_eq!(
        served.volume.asked(),
        [
            (RequestKind::Write { fua: false }, Some(extent(4096, 8192))),
            (RequestKind::Write { fua: true }, Some(extent(65536, 8192))),
            (RequestKind::Flush, None),
            (RequestKind::Read, Some(extent(4096, 8192))),
            (RequestKind::Discard, Some(extent(4096, 4096))),
            (zeroes(false, false), Some(extent(65536, 512))),
            (zeroes(true, true), Some(extent(65536, 512))),
            (zeroes(true, true), Some(extent(66048, 512))),
            (RequestKind::Read, Some(extent(4096, 4096))),
            (RequestKind::Read, Some(extent(66048, 1024))),
        ]
    );
    client.send(DISCONNECT, 0, (0, 0), &[]);
    assert!(client.closed());
    until("the client is gone", || !served.volume.device.in_use());
    served.stop();
}

#[test]
fn what_cannot_be_done_is_refused_and_the_connection_goes_on() {
    let served = Served::new(&spec(MIB));
    let mut client = served.client();
    let data = pattern(512, 2);
    assert_eq!(client.call(WRITE, 0, (MIB, 512), &data), ENOSPC);
    assert_eq!(client.call(READ, 0, (MIB - 512, 1024), &[]), EINVAL);
    assert_eq!(client.call(READ, 0, (1, 512), &[]), EINVAL);
    assert_eq!(client.call(WRITE, 1 << 4, (0, 512), &data), EINVAL);
    assert_eq!(client.call(99, 0, (0, 512), &[]), EINVAL);
    assert_eq!(client.call(WRITE_ZEROES, 1 << 4, (0, 512), &[]), EINVAL);
    served.volume.ram().bad = Some(extent(8192, 512));
    assert_eq!(client.call(READ, 0, (8192, 512), &[]), EIO);
    assert_eq!(client.call(WRITE, 0, (8192, 512), &data), EIO);
    assert_eq!(client.read(0, 512), vec![0; 512]);
    drop(client);
    served.stop();

    let read_only = DeviceSpec {
        read_only: true,
        ..spec(MIB)
    };
    let served = Served::new(&read_only);
    let mut client = served.client();
    assert_eq!(client.flags & 2, 2);
    assert_eq!(client.call(WRITE, 0, (0, 512), &data), EPERM);
    assert_eq!(client.call(WRITE_ZEROES, 0, (0, 512), &[]), EPERM);
    assert_eq!(client.read(0, 512), vec![0; 512]);
    drop(client);
    served.stop();
}

#[test]
fn requests_longer_than_a_tag_are_split_and_answered_once() {
    let split = DeviceSpec {
        request_bytes_max: 64 << 10,
        depth: 4,
        ..spec(16 * MIB)
    };
    let served = Served::new(&split);
    let mut client = served.client();
    let len = 3 * (64 << 10) + 1024;
    let data = pattern(usize::try_from(len).unwrap(), 3);
    assert_eq!(client.call(WRITE, FUA, (512, len), &data), 0);
    assert_eq!(client.read(512, len), data);
    let asked = served.volume.asked();
    assert!(
        asked
            .iter()
            .all(|(_, extent)| extent.unwrap().len().get() <= 64 << 10)
    );
    assert_eq!(client.call(WRITE_ZEROES, 0, (0, 8 << 20), &[]), 0);
    assert_eq!(served.volume.asked().len(), 8 << 4);
    assert_eq!(client.read(512, len), vec![0; data.len()]);

    // A part that fails: the one answer says so, and a read whose head is sent is cut off.
    served.volume.ram().bad = Some(extent(100_352, 512));
    assert_eq!(client.call(WRITE, 0, (512, len), &data), EIO);
    assert_eq!(client.call(TRIM, 0, (0, 1 << 20), &[]), EIO);
    assert_eq!(client.call(READ, 0, (65536, 131_072), &[]), EIO);
    client.send(READ, 0, (512, len), &[]);
    assert_eq!(client.simple().1, 0);
    client.bytes((64 << 10) - 512);
    assert!(client.closed());
    served.stop();
}

#[test]
fn structured_reads_come_in_chunks_that_end_once() {
    let split = DeviceSpec {
        request_bytes_max: 64 << 10,
        ..spec(4 * MIB)
    };
    let served = Served::new(&split);
    let mut client = Client::connect(&served.path(), true);
    assert_eq!(client.flags & (1 << 7), 1 << 7);
    let data = pattern(256 << 10, 4);
    assert_eq!(client.call(WRITE, 0, (0, 256 << 10), &data), 0);
    let cookie = client.send(READ, 0, (0, 256 << 10), &[]);
    let mut seen = vec![0; data.len()];
    for part in 1..=4 {
        let chunk = client.chunk();
        assert_eq!(
            (chunk.cookie, chunk.kind, chunk.done),
            (cookie, 1, part == 4)
        );
        let offset = u64::from_be_bytes(chunk.data[..8].try_into().unwrap());
        let at = usize::try_from(offset).unwrap();
        seen[at..at + chunk.data.len() - 8].copy_from_slice(&chunk.data[8..]);
    }
    assert!(seen == data);

    served.volume.ram().bad = Some(extent(65536, 512));
    client.send(READ, 0, (0, 256 << 10), &[]);
    let chunks: Vec<_> = (0..4).map(|_| client.chunk()).collect();
    let failed: Vec<_> = chunks.iter().filter(|chunk| chunk.kind == 0x8002).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].data, [0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
    assert!(chunks[3].done && chunks[..3].iter().all(|chunk| !chunk.done));

    client.send(READ, DF, (0, 256 << 10), &[]);
    let chunk = client.chunk();
    assert_eq!((chunk.kind, chunk.done), (0x8001, true));
    assert_eq!(chunk.data[..4], EOVERFLOW.to_be_bytes());
    client.send(READ, DF, (131_072, 64 << 10), &[]);
    assert_eq!(client.chunk().data[8..], data[131_072..196_608]);
    client.send(READ, 0, (4 * MIB, 512), &[]);
    assert_eq!(client.chunk().kind, 0x8001);
    drop(client);
    served.stop();
}

#[test]
fn a_flush_of_one_connection_covers_the_writes_of_another() {
    let served = Served::new(&spec(MIB));
    let (mut one, mut other) = (served.client(), served.client());
    let data = pattern(512, 5);
    assert_eq!(one.call(WRITE, 0, (0, 512), &data), 0);
    assert_eq!(other.call(FLUSH, 0, (0, 0), &[]), 0);
    assert_eq!(other.read(0, 512), data);
    let kinds: Vec<_> = served
        .volume
        .asked()
        .iter()
        .map(|(kind, _)| *kind)
        .collect();
    assert_eq!(
        kinds[..2],
        [RequestKind::Write { fua: false }, RequestKind::Flush]
    );
    drop((one, other));
    served.stop();
}

#[test]
fn a_client_that_vanishes_with_requests_in_flight_hurts_nobody() {
    let served = Served::new(&spec(MIB));
    let mut other = served.client();
    served.volume.hold();
    let mut client = served.client();
    let data = pattern(4096, 6);
    for block in 0..8 {
        client.send(WRITE, 0, (block * 4096, 4096), &data);
        client.send(READ, 0, (block * 4096, 4096), &[]);
    }
    served.volume.wait_held(16);
    drop(client);
    // Another one vanishes in the middle of a write's data.
    let mut half = served.client();
    half.send(WRITE, 0, (65536, 4096), &data[..100]);
    drop(half);
    served.volume.let_go();
    until("the vanished are forgotten", || {
        served.volume.ram().waiting == 0
    });
    assert_eq!(other.read(0, 4096), data, "what was whole was written");
    assert_eq!(other.read(65536, 4096), vec![0; 4096]);
    drop(other);
    until("nobody is connected", || !served.volume.device.in_use());
    served.stop();
}

#[test]
fn rubbish_ends_only_its_own_connection() {
    let served = Served::new(&spec(MIB));
    let mut good = served.client();
    let mut rubbish = nbd_client::open(&served.path());
    rubbish
        .write_all(b"GET / HTTP/1.1\r\n\r\n and more of the same")
        .unwrap();
    let mut hello = [0; 18];
    std::io::Read::read_exact(&mut rubbish, &mut hello).unwrap();
    assert!(nbd_client::closed(&mut rubbish));
    let mut broken = served.client();
    broken.stream.write_all(&[0xa5; 28]).unwrap();
    assert!(broken.closed());
    let mut endless = served.client();
    endless.send(WRITE, 0, (0, u32::MAX), &[]);
    assert!(endless.closed());
    assert_eq!(good.read(0, 512), vec![0; 512]);
    drop(good);
    served.stop();
}

#[test]
fn a_client_that_never_negotiates_is_sent_away() {
    let served = Served::new(&spec(MIB));
    let mut slow = nbd_client::open(&served.path());
    let begun = Instant::now();
    let mut hello = [0; 18];
    std::io::Read::read_exact(&mut slow, &mut hello).unwrap();
    assert!(nbd_client::closed(&mut slow));
    let waited = begun.elapsed();
    assert!(waited > Duration::from_secs(8) && waited < Duration::from_secs(30));
    served.stop();
}

#[test]
fn a_client_that_takes_no_answers_leaves_tags_for_others() {
    let few = DeviceSpec {
        depth: 8,
        ..spec(16 * MIB)
    };
    let served = Served::new(&few);
    let mut good = served.client();
    let mut greedy = served.client();
    let mut bytes = Vec::new();
    for cookie in 0..64_u64 {
        bytes.extend_from_slice(&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0]);
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0]);
    }
    greedy.stream.write_all(&bytes).unwrap();
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(good.read(0, 4096), vec![0; 4096]);
    }
    assert!(begun.elapsed() < Duration::from_secs(10));
    drop((good, greedy));
    served.stop();
}

#[test]
fn more_connections_than_allowed_are_closed_at_once() {
    let served = Served::new(&spec(MIB));
    let mut clients: Vec<_> = (0..NBD_CONNECTIONS_MAX).map(|_| served.client()).collect();
    let mut one_more = nbd_client::open(&served.path());
    assert!(nbd_client::closed(&mut one_more));
    for client in &mut clients {
        assert_eq!(client.read(0, 512), vec![0; 512]);
    }
    clients.pop();
    let limit = usize::from(NBD_CONNECTIONS_MAX);
    until("there is room again", || {
        let mut stream = nbd_client::open(&served.path());
        let mut hello = [0; 18];
        std::io::Read::read_exact(&mut stream, &mut hello).is_ok()
    });
    assert_eq!(clients.len(), limit - 1);
    drop(clients);
    served.stop();
}

#[test]
fn stopping_answers_what_was_asked_and_then_closes() {
    let served = Served::new(&spec(MIB));
    let mut client = served.client();
    served.volume.hold();
    let data = pattern(4096, 7);
    let cookie = client.send(WRITE, 0, (0, 4096), &data);
    served.volume.wait_held(1);
    let ram = std::sync::Arc::clone(&served.volume.ram);
    let waker = served.volume.waker.clone();
    let path = served.path();
    let stopping = std::thread::spawn(move || served.stop());
    until("the socket is gone", || !path.exists());
    assert!(!stopping.is_finished());
    ram.lock().unwrap().held = false;
    waker.wake();
    assert_eq!(client.simple(), (cookie, 0));
    assert!(client.closed());
    stopping.join().unwrap();
    assert_eq!(ram.lock().unwrap().bytes[..4096], data);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let front_end = NbdFrontEnd::new(NbdOptions::new(directory.path().to_owned()));
    let volume = Volume::serve(&front_end, &spec(MIB));
    let again = FrontEnd::<blkrep_io::real::UringIo>::make(&front_end, &spec(MIB));
    let refused = again.expect_err("somebody serves there").to_string();
    assert!(refused.contains("another process"), "{refused}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(Client::connect(&path, false).len, MIB);
    volume.stop();
    std::fs::write(&path, b"precious").unwrap();
    let again = FrontEnd::<blkrep_io::real::UringIo>::make(&front_end, &spec(MIB));
    assert!(again.is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn tcp_is_for_this_machine_only() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = NbdOptions::new(directory.path().to_owned());
    options.tcp = Some("0.0.0.0:0".parse().unwrap());
    let front_end = NbdFrontEnd::new(options.clone());
    let refused = FrontEnd::<blkrep_io::real::UringIo>::make(&front_end, &spec(MIB));
    assert!(refused.unwrap_err().to_string().contains("127.0.0.1"));

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = free.local_addr().unwrap();
    drop(free);
    options.tcp = Some(address);
    let volume = Volume::serve(&NbdFrontEnd::new(options), &spec(MIB));
    assert!(TcpStream::connect(address).is_ok());
    let text = tool_ok("nbdinfo", &[&format!("nbd://{address}/data")]);
    assert!(text.contains("export-size: 1048576"), "{text}");
    volume.stop();
}

#[test]
fn the_usual_tools_agree_with_the_volume() {
    let large_blocks = DeviceSpec {
        block_size: BlockSize::B4096,
        ..spec(32 * MIB)
    };
    let served = Served::new(&large_blocks);
    let uri = served.uri();
    let text = tool_ok("nbdinfo", &[&uri]);
    for line in [
        "export-size: 33554432",
        "block_size_minimum: 4096",
        "block_size_maximum: 33554432",
        "can_multi_conn: true",
        "can_fua: true",
        "can_trim: true",
        "can_zero: true",
        "is_read_only: false",
        "structured packets",
    ] {
        assert!(text.contains(line), "{line} in:\n{text}");
    }
    assert!(tool_ok("nbdinfo", &["--list", &uri]).contains("export=\"data\""));

    let image = served.directory.path().join("image");
    std::fs::write(&image, pattern(32 << 20, 8)).unwrap();
    let image = image.to_str().unwrap();
    tool_ok("nbdcopy", &["--flush", image, &uri]);
    assert!(served.volume.ram().bytes == std::fs::read(image).unwrap());
    let copy = served.directory.path().join("copy");
    tool_ok("nbdcopy", &[&uri, copy.to_str().unwrap()]);
    assert!(std::fs::read(&copy).unwrap() == std::fs::read(image).unwrap());
    tool_ok(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", image, &uri],
    );

    let steps = [
        "write -P 0xa5 1M 8M",
        "write -f -P 0x11 0 4k",
        "discard 2M 1M",
        "write -z -u 4M 1M",
        "write -z 5M 64k",
        "flush",
        "read -P 0xa5 1M 1M",
        "read -P 0 4M 1M",
        "read -P 0x11 0 4k",
    ];
    let mut arguments = vec!["-f", "raw"];
    for step in &steps {
        arguments.extend(["-c", step]);
    }
    arguments.push(&uri);
    let text = tool_ok("qemu-io", &arguments);
    assert!(!text.contains("failed"), "{text}");
    served.stop();
}

#[test]
fn fio_verifies_what_it_wrote() {
    let served = Served::new(&spec(64 * MIB));
    let uri = format!("--uri={}", served.uri());
    let output = tool(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randrw",
            "--bsrange=4k-256k",
            "--iodepth=32",
            "--size=64M",
            "--io_size=64M",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--trim_percentage=0",
            "--fsync=64",
        ],
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("err= 0"), "{text}{errors}");
    served.stop();
}
