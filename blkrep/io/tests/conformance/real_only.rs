//! What only a running kernel can show: block devices, and limits of its own.

use crate::body::claimed;
use crate::place::{OnDisk, Place, all, one};
use blkrep_io::real::{RealFile, RealHost};
use blkrep_io::{Access, FileKind, Host, Io, Op, Region};
use blkrep_types::{ByteLen, Errno};
use std::path::{Path, PathBuf};
use std::process::Command;

const LEN: u64 = 4 << 20;

/// A loop device over a file; detached when dropped.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn over(file: &Path) -> Self {
        let made = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&made.stdout).trim().to_owned();
        let why = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(
            made.status.success(),
            "losetup (needs root and loop devices): {why}"
        );
        Self(PathBuf::from(text))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_block_device_is_sized_claimed_written_and_zeroed() {
    let place = OnDisk::new();
    let host = place.host();
    let plain = Access {
        read_only: false,
        direct: false,
        claim: false,
        create: None,
    };
    let create = Access {
        create: Some(ByteLen::new(LEN)),
        ..plain
    };
    drop(host.open(&place.path("disk"), create).unwrap());
    let device = LoopDevice::over(&place.path("disk"));
    let claiming = Access {
        direct: true,
        claim: true,
        ..plain
    };
    let file = host.open(&device.0, claiming).unwrap();
    let geometry = host.geometry(&file).unwrap();
    assert!(matches!(geometry.kind, FileKind::Block { major: 7, .. }));
    assert_eq!(
        (geometry.len, geometry.block_size.get()),
        (ByteLen::new(LEN), 512)
    );
    assert!(!geometry.read_only);
    assert_eq!(
        host.open(&device.0, claiming).unwrap_err().errno,
        Errno::EBUSY
    );

    written_and_zeroed(&host, &file);
    drop(file);
    drop(claimed(&host, &device.0, claiming));
}

fn written_and_zeroed(host: &RealHost, file: &RealFile) {
    let mut io = host.ring(8).unwrap();
    let slice = Region::heap(1 << 20).whole();
    slice.with_mut(|bytes| bytes.fill(5));
    let write = Op::Write {
        file: file.clone(),
        offset: 0,
        slice: slice.clone(),
        durable: true,
    };
    io.submit(1, write);
    assert_eq!(one(&mut io).result, Ok(1 << 20));
    for free in [true, false] {
        let zero = Op::Zero {
            file: file.clone(),
            offset: 512,
            len: 512 << 10,
            free,
        };
        io.submit(2, zero);
        assert_eq!(one(&mut io).result, Ok(0));
        io.submit(
            3,
            Op::Read {
                file: file.clone(),
                offset: 0,
                slice: slice.clone(),
            },
        );
        assert_eq!(one(&mut io).result, Ok(1 << 20));
        slice.with(|bytes| {
            let end = 512 + (512 << 10);
            assert!(
                bytes[..512]
                    .iter()
                    .chain(&bytes[end..])
                    .all(|byte| *byte == 5)
            );
            assert!(bytes[512..end].iter().all(|byte| *byte == 0));
        });
    }
}

#[test]
fn a_half_made_file_is_not_seen_and_made_again() {
    let place = OnDisk::new();
    let host = place.host();
    // What a process leaves behind that died while it made a file.
    std::fs::write(place.path(".journal.new"), b"half").unwrap();
    let directory = place.path("x").parent().unwrap().to_owned();
    assert_eq!(host.list(&directory).unwrap(), Vec::<String>::new());
    let create = Some(ByteLen::new(LEN));
    let access = Access {
        read_only: false,
        direct: true,
        claim: true,
        create,
    };
    let file = host.open(&place.path("journal"), access).unwrap();
    assert_eq!(host.geometry(&file).unwrap().len, ByteLen::new(LEN));
    assert_eq!(host.list(&directory).unwrap(), ["journal"]);
}

#[test]
fn a_file_larger_than_the_disk_is_refused_and_nothing_is_left() {
    let place = OnDisk::new();
    let create = Some(ByteLen::new(1 << 50));
    let access = Access {
        read_only: false,
        direct: false,
        claim: false,
        create,
    };
    let error = place.host().open(&place.path("huge"), access).unwrap_err();
    assert!(
        matches!(error.errno.get(), libc::ENOSPC | libc::EFBIG),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(place.path("")).unwrap().count(), 0);
}

#[test]
fn shared_memory_of_somebody_else_is_not_trusted() {
    use std::os::unix::fs::PermissionsExt;
    let prefix = format!("blkrep-test-trust-{}", std::process::id());
    let host = RealHost::new(&prefix);
    let (_, found) = host.shared_memory("log", ByteLen::new(4096)).unwrap();
    assert!(!found);
    let path = format!("/dev/shm/{prefix}-log");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let error = host.shared_memory("log", ByteLen::new(4096)).unwrap_err();
    assert_eq!(error.errno.get(), libc::EPERM);
    host.forget_shared_memory("log").unwrap();
}

#[test]
fn a_front_ends_own_operation_passes_through() {
    let place = OnDisk::new();
    let mut io = place.ring();
    let nop = io_uring::opcode::Nop::new().build();
    // SAFETY: the entry names no memory and no descriptor.
    unsafe { io.submit_raw(77, nop.clone()) };
    let done = one(&mut io);
    assert_eq!((done.token, done.result), (77, Ok(0)));
    for token in 0..500 {
        // SAFETY: as above.
        unsafe { io.submit_raw(token, nop.clone()) };
    }
    assert_eq!(all(&mut io, 500).len(), 500);
}

#[test]
fn a_ring_dropped_in_the_middle_leaves_its_file_whole() {
    let place = OnDisk::new();
    let host = place.host();
    let create = Some(ByteLen::new(LEN));
    let access = Access {
        read_only: false,
        direct: true,
        claim: true,
        create,
    };
    let path = place.path("file");
    for _ in 0..10 {
        let file = claimed(&host, &path, access);
        let mut io = host.ring(8).unwrap();
        let (listener, _) = host.listen(place.address()).unwrap();
        io.submit(0, Op::Accept { listener });
        for token in 1..50 {
            let slice = Region::anonymous(64 << 10).unwrap().whole();
            let offset = token * (64 << 10);
            io.submit(
                token,
                Op::Write {
                    file: file.clone(),
                    offset,
                    slice,
                    durable: false,
                },
            );
        }
        drop(io);
        drop(file);
        // Nothing of the dropped ring holds the claim.
        drop(claimed(&host, &path, access));
    }
}

#[test]
fn the_time_limit_of_a_connection_is_nobodys_completion() {
    let place = OnDisk::new();
    let mut io = place.ring();
    let (listener, address) = place.host().listen(place.address()).unwrap();
    drop(listener);
    // Each connection is a pair of entries: itself and its limit. Both must come home.
    for token in 0..20 {
        io.submit(token, Op::Connect { peer: address });
    }
    for done in all(&mut io, 20) {
        assert_eq!(done.result, Err(Errno::ECONNREFUSED));
    }
    assert_eq!(io.in_flight(), 0);
}

/// Zeroes over 4 GiB were done and called an error: their length is no count of bytes moved.
#[test]
fn a_range_longer_than_a_count_of_bytes_is_zeroed() {
    let place = OnDisk::new();
    let host = place.host();
    let access = Access {
        read_only: false,
        direct: false,
        claim: false,
        create: Some(ByteLen::new(0)),
    };
    let path = place.path("sparse");
    let file = host.open(&path, access).unwrap();
    let len = (4 << 30) + (1 << 20);
    std::fs::File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(len))
        .unwrap();
    host.write_at(&file, len - 512, &[7; 512]).unwrap();
    let mut io = host.ring(8).unwrap();
    let zero = Op::Zero {
        file: file.clone(),
        offset: 0,
        len,
        free: true,
    };
    io.submit(1, zero);
    assert_eq!(one(&mut io).result, Ok(0));
    let mut bytes = [1; 512];
    host.read_at(&file, len - 512, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 512]);
}
