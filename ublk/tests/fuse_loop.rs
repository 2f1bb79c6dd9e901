//! The loop front end on this machine's kernel: a filesystem on it, discards, errors and its end.
//!
//! Needs root, /dev/fuse, /dev/loop-control, e2fsprogs, util-linux and fio; fails without them.

#![allow(clippy::unwrap_used)]

mod common;

use blkrep_io::real::UringIo;
use blkrep_types::{BlockSize, ByteLen, ByteOffset, Extent, VolumeName};
use blkrep_ublk::fuse_loop::LoopFrontEnd;
use blkrep_ublk::{DeviceSpec, FrontEnd, RequestKind, Stop};
use common::{Volume, spec, tool, tool_ok, until};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// Numbers that no other test is given as the next free one.
const FIXED: u32 = 901;
const FIXED_OF_CHILD: u32 = 902;

/// Set for the process that plays the daemon to be killed.
const CHILD: &str = "BLKREP_TEST_LOOP_CHILD";

fn serve(directory: &Path, spec: &DeviceSpec) -> Volume {
    Volume::serve(&LoopFrontEnd::new(directory.to_owned()), spec)
}

fn direct(path: &str, write: bool) -> File {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap()
}

/// Page-aligned bytes, as direct I/O wants them.
fn with_aligned<R>(byte: u8, use_it: impl FnOnce(&mut [u8]) -> R) -> R {
    let memory = blkrep_io::Region::heap(4096).whole();
    memory.with_mut(|bytes| {
        bytes.fill(byte);
        use_it(bytes)
    })
}

fn queue_file(device: &str, name: &str) -> String {
    let disk = device.strip_prefix("/dev/").unwrap();
    let path = format!("/sys/block/{disk}/{name}");
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.contains(&format!(" {} ", path.display()))
}

struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn point(&self) -> PathBuf {
        self.path().join("data")
    }
}

#[test]
fn a_filesystem_lives_on_it_and_trims_it() {
    let directory = Directory::new();
    let volume = serve(directory.path(), &spec(128 * MIB));
    let device = volume.device.path();
    assert!(!volume.device.in_use());
    tool_ok("mkfs.ext4", &["-q", "-F", &device]);
    let target = directory.path().join("mnt");
    std::fs::create_dir(&target).unwrap();
    let target = target.to_str().unwrap();
    tool_ok("mount", &["-o", "nodev,nosuid", &device, target]);
    assert!(volume.device.in_use());
    let large: Vec<u8> = (0..24 * MIB)
        .map(|at| (at % 251).to_le_bytes()[0])
        .collect();
    let path = Path::new(target).join("large");
    std::fs::write(&path, &large).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    let asked = volume.asked();
    assert!(asked.contains(&(RequestKind::Flush, None)), "fsync flushes");
    let longest = asked
        .iter()
        .filter_map(|(_, extent)| Some(extent.as_ref()?.len().get()));
    let longest = longest.max().unwrap();
    assert!((256 << 10..=1 << 20).contains(&longest), "{longest}");
    std::fs::write(Path::new(target).join("other"), b"kept").unwrap();
    std::fs::remove_file(&path).unwrap();
    tool_ok("sync", &["-f", target]);
    volume.asked();
    tool_ok("fstrim", &[target]);
    let discarded: u64 = volume
        .asked()
        .iter()
        .filter(|(kind, _)| *kind == RequestKind::Discard)
        .map(|(_, extent)| extent.unwrap().len().get())
        .sum();
    assert!(discarded > 24 * MIB, "{discarded}");
    tool_ok("umount", &[target]);
    tool_ok("e2fsck", &["-fn", &device]);
    // The kernel reads again what we hold, and what we hold is a filesystem.
    tool_ok("mount", &["-o", "ro", &device, target]);
    assert_eq!(
        std::fs::read(Path::new(target).join("other")).unwrap(),
        b"kept"
    );
    tool_ok("umount", &[target]);
    let image = directory.path().join("image");
    std::fs::write(&image, &volume.ram().bytes).unwrap();
    tool_ok("e2fsck", &["-fn", image.to_str().unwrap()]);
    volume.stop();
    assert!(!is_mounted(&directory.point()));
    assert!(!directory.point().exists());
}

#[test]
fn fio_verifies_what_it_wrote() {
    let directory = Directory::new();
    let volume = serve(directory.path(), &spec(64 * MIB));
    let file = format!("--filename={}", volume.device.path());
    let output = tool(
        "fio",
        &[
            "--name=verify",
            "--ioengine=libaio",
            "--direct=1",
            &file,
            "--rw=randwrite",
            "--bsrange=4k-1m",
            "--iodepth=32",
            "--size=64M",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--fsync=64",
        ],
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    volume.stop();
}

#[test]
fn the_device_has_the_shape_that_was_asked_for() {
    for block_size in [BlockSize::B512, BlockSize::B4096] {
        let directory = Directory::new();
        let shape = DeviceSpec {
            block_size,
            ..spec(8 * MIB + block_size.get())
        };
        let volume = serve(directory.path(), &shape);
        let device = volume.device.path();
        let size: u64 = queue_file(&device, "size").parse().unwrap();
        assert_eq!(size * 512, shape.len.get());
        let block = queue_file(&device, "queue/logical_block_size");
        assert_eq!(block, block_size.get().to_string());
        assert_eq!(queue_file(&device, "loop/dio"), "1", "direct I/O");
        assert_eq!(queue_file(&device, "queue/write_cache"), "write back");
        assert_ne!(queue_file(&device, "queue/discard_max_bytes"), "0");
        let id = volume.device.id().unwrap();
        assert_eq!(device, format!("/dev/loop{id}"));
        volume.stop();
    }
}

#[test]
fn zeroes_holes_and_sync_writes_reach_the_engine() {
    let directory = Directory::new();
    let volume = serve(directory.path(), &spec(16 * MIB));
    let device = volume.device.path();
    let file = direct(&device, true);
    with_aligned(7, |bytes| file.write_all_at(bytes, 4096).unwrap());
    assert!(volume.ram().bytes[4096..8192].iter().all(|byte| *byte == 7));
    volume.asked();
    tool_ok("blkdiscard", &["-z", "-o", "0", "-l", "8M", &device]);
    assert!(volume.ram().bytes.iter().all(|byte| *byte == 0));
    let asked = volume.asked();
    let zeroed = asked
        .iter()
        .filter(|(kind, _)| matches!(kind, RequestKind::WriteZeroes { .. } | RequestKind::Discard));
    let zeroed: u64 = zeroed.map(|(_, extent)| extent.unwrap().len().get()).sum();
    assert_eq!(zeroed, 8 * MIB, "zeroes travel as zeroes: {asked:?}");
    tool_ok("blkdiscard", &["-o", "8M", "-l", "4M", &device]);
    let whole = Extent::new(ByteOffset::new(8 * MIB), ByteLen::new(MIB)).unwrap();
    let mut discards = volume.asked();
    // The tool looks for signatures first.
    discards.retain(|(kind, _)| *kind != RequestKind::Read);
    assert_eq!(discards[0], (RequestKind::Discard, Some(whole)));
    assert_eq!(discards.len(), 4, "in requests of at most 1 MiB");
    drop(file);
    volume.stop();
}

#[test]
fn errors_of_the_engine_reach_the_application_and_nothing_else_stops() {
    let directory = Directory::new();
    let volume = serve(directory.path(), &spec(4 * MIB));
    let file = direct(&volume.device.path(), true);
    let bad = Extent::new(ByteOffset::new(65536), ByteLen::new(4096)).unwrap();
    volume.ram().bad = Some(bad);
    with_aligned(1, |bytes| {
        let refused = file.write_all_at(bytes, 65536).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EIO));
        assert!(file.read_exact_at(bytes, 65536).is_err());
        file.write_all_at(bytes, 0).unwrap();
    });
    drop(file);
    volume.stop();

    let read_only = DeviceSpec {
        read_only: true,
        ..spec(4 * MIB)
    };
    let volume = serve(directory.path(), &read_only);
    let device = volume.device.path();
    assert_eq!(queue_file(&device, "ro"), "1");
    let file = direct(&device, false);
    with_aligned(1, |bytes| file.read_exact_at(bytes, 0).unwrap());
    drop(file);
    volume.stop();
}

#[test]
fn stopping_a_device_that_is_open_or_stuck_ends_it_with_errors() {
    let directory = Directory::new();
    let mut volume = serve(directory.path(), &spec(4 * MIB));
    let file = direct(&volume.device.path(), true);
    let own = volume.device.path();
    volume.hold();
    let stuck = std::thread::spawn(move || {
        let file = direct(&own, true);
        with_aligned(1, |bytes| {
            file.write_all_at(bytes, 0)
                .map_err(|error| error.raw_os_error())
        })
    });
    volume.wait_held(1);
    volume.device.stop(Stop::Delete).unwrap();
    assert_eq!(stuck.join().unwrap(), Err(Some(libc::EIO)));
    let refused = with_aligned(1, |bytes| file.write_all_at(bytes, 0)).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EIO));
    assert!(!is_mounted(&directory.point()));
    drop(file);
    volume.let_go();
    volume.stop();
}

#[test]
fn a_fixed_number_is_kept_and_a_taken_one_is_refused() {
    let directory = Directory::new();
    let other = Directory::new();
    let own = DeviceSpec {
        device_id: Some(FIXED),
        ..spec(MIB)
    };
    let volume = serve(directory.path(), &own);
    assert_eq!(volume.device.path(), format!("/dev/loop{FIXED}"));
    let fixed = DeviceSpec {
        volume: VolumeName::new("other").unwrap(),
        ..own.clone()
    };
    let front_end = LoopFrontEnd::new(other.path().to_owned());
    let (mut device, _queues) = FrontEnd::<UringIo>::make(&front_end, &fixed).unwrap();
    let refused = device.start().unwrap_err().to_string();
    assert!(refused.contains(&format!("/dev/loop{FIXED}")), "{refused}");
    drop(device);
    assert!(
        !other.path().join("other").exists(),
        "nothing is left behind"
    );
    volume.stop();
    let volume = serve(other.path(), &own);
    assert_eq!(volume.device.id(), Some(FIXED));
    // Who serves there is not disturbed by a second one.
    let again = FrontEnd::<UringIo>::make(&LoopFrontEnd::new(other.path().to_owned()), &spec(MIB));
    assert!(again.unwrap_err().to_string().contains("another process"));
    let file = direct(&volume.device.path(), true);
    with_aligned(1, |bytes| file.write_all_at(bytes, 0).unwrap());
    drop(file);
    volume.stop();
}

#[test]
fn what_a_killed_daemon_left_is_cleaned_up_by_its_successor() {
    if let Some(directory) = std::env::var_os(CHILD) {
        play_the_daemon(Path::new(&directory));
    }
    let directory = Directory::new();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "what_a_killed_daemon_left_is_cleaned_up_by_its_successor",
        ])
        .arg("--nocapture")
        .env(CHILD, directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let device = lines
        .find_map(|line| Some(line.unwrap().strip_prefix("device ")?.to_owned()))
        .expect("the child serves");
    let file = direct(&device, true);
    with_aligned(5, |bytes| file.write_all_at(bytes, 0).unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
    // The open device does not come back: its user gets errors, at once.
    let refused = with_aligned(5, |bytes| file.write_all_at(bytes, 0)).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EIO));
    assert!(is_mounted(&directory.point()), "a dead mount is there");
    drop(file);

    let volume = serve(directory.path(), &of_child());
    assert_eq!(volume.device.path(), device);
    let mut again = File::open(&device).unwrap();
    again.read_exact(&mut [0; 4096]).unwrap();
    drop(again);
    until("the device is closed", || !volume.device.in_use());
    volume.stop();
    assert!(!directory.point().exists());
}

fn of_child() -> DeviceSpec {
    DeviceSpec {
        device_id: Some(FIXED_OF_CHILD),
        ..spec(4 * MIB)
    }
}

fn play_the_daemon(directory: &Path) -> ! {
    let volume = serve(directory, &of_child());
    // Past the test harness, which keeps what tests print.
    let mut out = std::io::stdout().lock();
    writeln!(out, "\ndevice {}", volume.device.path()).unwrap();
    out.flush().unwrap();
    loop {
        std::thread::park();
    }
}
