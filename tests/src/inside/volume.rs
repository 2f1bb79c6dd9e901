//! One volume, and two, on ublk: contents, filesystems, and every kind of operation.

use super::Context;
use super::disk::{self, Memory, drop_caches};
use super::node::Node;
use super::shell::{command, run, spawn, try_run};
use anyhow::{Result, ensure};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// MiB of the backings here.
pub(super) const SIZE_MIB: u64 = 64;
pub(super) const FIO_LIMIT: Duration = Duration::from_secs(500);

/// A daemon with one state directory in the body's own.
pub(super) fn node(context: &Context) -> Result<Node> {
    Node::start(&context.dir.join("node"), &context.dir.join("state"))
}

/// The command of a verifying load: random writes of mixed sizes, each with its checksum, all read back at the end.
pub(super) fn fio_verify(device: &Path, megabytes: u32, block: &str) -> String {
    format!(
        "fio --name=verify --filename={} --ioengine=libaio --direct=1 --iodepth=32 --rw=randwrite --bsrange={block} \
         --size={megabytes}m --verify=crc32c --verify_fatal=1 --randrepeat=0 --group_reporting",
        device.display()
    )
}

/// Both hold the same bytes, read from the devices themselves.
pub(super) fn equal(one: &Path, two: &Path) -> Result<()> {
    drop_caches()?;
    let done = try_run(&format!("cmp {} {}", one.display(), two.display()))?;
    ensure!(
        done.status.success(),
        "{} and {} differ: {}{}",
        one.display(),
        two.display(),
        done.stdout,
        done.stderr
    );
    Ok(())
}

pub(super) fn verifies_at_depth_32(context: &Context) -> Result<String> {
    let backing = Memory::new("backing", SIZE_MIB, 512)?;
    let mut node = node(context)?;
    let device = node.attach("data", backing.path(), "--frontend ublk")?;
    ensure!(
        device == Path::new("/dev/ublkb0"),
        "the device is {}",
        device.display()
    );
    run(&fio_verify(&device, context.times(24, 60), "512-128k"))?;
    equal(&device, backing.path())?;
    node.detach("data")?;
    ensure!(!device.exists(), "the device is still there after detach");
    node.stop()?;
    Ok(format!("{} MiB of 512 to 128k", context.times(24, 60)))
}

pub(super) fn blocks_of_4096_verify(context: &Context) -> Result<String> {
    let backing = Memory::new("backing", SIZE_MIB, 4096)?;
    let mut node = node(context)?;
    let device = node.attach("data", backing.path(), "--frontend ublk")?;
    let block = run(&format!("blockdev --getss {}", device.display()))?;
    ensure!(
        block.trim() == "4096",
        "the device has blocks of {}",
        block.trim()
    );
    run(&fio_verify(&device, context.times(24, 60), "4k-128k"))?;
    let small = spawn(command(&fio_verify(&device, 1, "512-512")))?.finish(FIO_LIMIT)?;
    ensure!(
        !small.status.success(),
        "a write of 512 bytes to blocks of 4096 was taken"
    );
    equal(&device, backing.path())?;
    node.detach("data")?;
    node.stop()?;
    Ok("a block is 4096".to_owned())
}

pub(super) fn two_volumes_verify_side_by_side(context: &Context) -> Result<String> {
    let backings = [
        Memory::new("backing1", SIZE_MIB, 512)?,
        Memory::new("backing2", SIZE_MIB, 512)?,
    ];
    let mut node = node(context)?;
    let mut loads = Vec::new();
    let mut devices = Vec::new();
    for (name, backing) in ["one", "two"].iter().zip(&backings) {
        let device = node.attach(name, backing.path(), "--group both --frontend ublk")?;
        loads.push(spawn(command(&fio_verify(
            &device,
            context.times(16, 60),
            "512-64k",
        )))?);
        devices.push(device);
    }
    for load in loads {
        load.succeed(FIO_LIMIT)?;
    }
    for (device, backing) in devices.iter().zip(&backings) {
        equal(device, backing.path())?;
    }
    node.detach("one")?;
    ensure!(devices[1].exists(), "detaching one took the other along");
    node.detach("two")?;
    node.stop()?;
    Ok("both verified".to_owned())
}

/// Makes a filesystem on `device`, works in it, and checks that it is clean.
pub(super) fn ext4_cycle(context: &Context, device: &Path) -> Result<()> {
    let at = PathBuf::from("/mnt/ext4");
    fs::create_dir_all(&at)?;
    run(&format!("mkfs.ext4 -q -F {}", device.display()))?;
    run(&format!("mount {} {}", device.display(), at.display()))?;
    for number in 0..context.times(60, 400) {
        let dir = at.join(format!("d{}", number % 7));
        fs::create_dir_all(&dir)?;
        let seed = u8::try_from(number % 251)?;
        fs::write(
            dir.join(format!("f{number}")),
            vec![seed; 1000 * (usize::from(seed) % 40 + 1)],
        )?;
        if number % 3 == 0 {
            fs::remove_file(dir.join(format!("f{number}")))?;
        }
    }
    run(&format!("umount {}", at.display()))?;
    drop_caches()?;
    run(&format!("mount {} {}", device.display(), at.display()))?;
    for number in (0..context.times(60, 400)).filter(|number| number % 3 != 0) {
        let seed = u8::try_from(number % 251)?;
        let bytes = fs::read(at.join(format!("d{}/f{number}", number % 7)))?;
        ensure!(
            bytes == vec![seed; 1000 * (usize::from(seed) % 40 + 1)],
            "file {number} is not what was written"
        );
    }
    run(&format!("umount {}", at.display()))?;
    run(&format!("e2fsck -fn {}", device.display())).map(drop)
}

pub(super) fn ext4_works_and_checks_clean(context: &Context) -> Result<String> {
    let backing = Memory::new("backing", SIZE_MIB, 512)?;
    let mut node = node(context)?;
    let device = node.attach("data", backing.path(), "--frontend ublk")?;
    ext4_cycle(context, &device)?;
    node.detach("data")?;
    node.stop()?;
    // Detached, the backing is the plain filesystem.
    run(&format!("e2fsck -fn {}", backing.path().display()))?;
    Ok("clean through the device and on the backing".to_owned())
}

pub(super) fn every_operation_reaches_the_backing(context: &Context) -> Result<String> {
    let backing = Memory::new("backing", SIZE_MIB, 512)?;
    let mut node = node(context)?;
    let device = node.attach("data", backing.path(), "--frontend ublk")?;
    let size = 4 << 20;
    let pattern: Vec<u8> = (0..size)
        .map(|at| u8::try_from(at % 253).unwrap_or(0))
        .collect();
    disk::write_direct(&device, 0, &pattern)?;
    let shows = |expected: &[u8], what: &str| -> Result<()> {
        drop_caches()?;
        for path in [&device, backing.path()] {
            let found = disk::read_direct(path, 0, expected.len())?;
            let at = found
                .iter()
                .zip(expected)
                .position(|(found, expected)| found != expected);
            ensure!(
                at.is_none(),
                "after {what}, {} differs at byte {at:?}",
                path.display()
            );
        }
        Ok(())
    };
    shows(&pattern, "a write")?;
    let mut expected = pattern;
    OpenOptions::new().write(true).open(&device)?.sync_data()?;
    let dsync = nix::fcntl::OFlag::O_DSYNC.bits();
    OpenOptions::new()
        .write(true)
        .custom_flags(dsync)
        .open(&device)?
        .write_all_at(&[9; 8192], 65536)?;
    expected[65536..65536 + 8192].fill(9);
    shows(&expected, "a FUA write")?;
    // Edges on a block, but on nothing larger: every byte counts.
    let ranges = [
        ("--zeroout", 1_u64 << 20, 99 * 512),
        ("", (2 << 20) + 512, 131 * 512),
        ("--zeroout", 512, 512),
    ];
    for (kind, offset, len) in ranges {
        run(&format!(
            "blkdiscard -f {kind} -o {offset} -l {len} {}",
            device.display()
        ))?;
        let (from, to) = (usize::try_from(offset)?, usize::try_from(offset + len)?);
        expected[from..to].fill(0);
        shows(&expected, &format!("blkdiscard {kind} at {offset}"))?;
    }
    node.detach("data")?;
    node.stop()?;
    ensure!(
        disk::read_direct(backing.path(), 0, expected.len())? == expected,
        "the backing changed at detach"
    );
    Ok("write, FUA, flush, discard, write-zeroes".to_owned())
}
