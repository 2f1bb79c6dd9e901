//! Whether somebody has a block device open.
//!
//! A device number enters, an answer leaves. What it sees: every exclusive use (mounts in any
//! namespace, device mapper, md, swap; of the device or a partition) by trying an exclusive open,
//! and every open file descriptor of a process that `/proc` shows, if the device was opened by a
//! name below `/dev`. What it does not see: a memory mapping or a registered io_uring file whose
//! descriptor is closed, and a descriptor on its way between processes.

use nix::sys::stat::{major, minor};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// True if the device `/dev/ublkb<id>` or a partition of it is in use.
pub(super) fn in_use(id: u32) -> bool {
    let name = format!("ublkb{id}");
    claimed(&Path::new("/dev").join(&name)) || opened(&numbers(&name))
}

/// True if an exclusive open is refused because somebody else has it.
fn claimed(path: &Path) -> bool {
    let open = fs::File::options()
        .read(true)
        .custom_flags(libc::O_EXCL | libc::O_CLOEXEC)
        .open(path);
    open.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

/// The numbers of a disk and its partitions, from sysfs.
fn numbers(name: &str) -> Vec<(u64, u64)> {
    let disk = Path::new("/sys/block").join(name);
    let mut numbers: Vec<_> = number(&disk).into_iter().collect();
    for entry in fs::read_dir(&disk).into_iter().flatten().flatten() {
        if entry.file_name().as_bytes().starts_with(name.as_bytes()) {
            numbers.extend(number(&entry.path()));
        }
    }
    numbers
}

fn number(directory: &Path) -> Option<(u64, u64)> {
    let text = fs::read_to_string(directory.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// True if a process has a descriptor of a block device with one of these numbers.
fn opened(numbers: &[(u64, u64)]) -> bool {
    if numbers.is_empty() {
        return false;
    }
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| is_process(&entry.file_name()))
        .any(|entry| has_open(&entry.path().join("fd"), numbers))
}

fn is_process(name: &OsStr) -> bool {
    name.as_bytes().iter().all(u8::is_ascii_digit)
}

fn has_open(descriptors: &Path, numbers: &[(u64, u64)]) -> bool {
    fs::read_dir(descriptors)
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| {
            let link = entry.path();
            // Only what lies below /dev is looked at: that never waits for a lost server.
            let below_dev = fs::read_link(&link).is_ok_and(|to| to.starts_with("/dev"));
            below_dev && is_block_device(&link, numbers)
        })
}

fn is_block_device(path: &Path, numbers: &[(u64, u64)]) -> bool {
    fs::metadata(path).is_ok_and(|file| {
        let number = (major(file.rdev()), minor(file.rdev()));
        file.file_type().is_block_device() && numbers.contains(&number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_not_in_use() {
        assert!(!in_use(u32::MAX - 1));
    }

    #[test]
    fn only_block_devices_count() {
        // /dev/null is open in every test process, but it is a character device.
        let null = fs::metadata("/dev/null").map(|file| file.rdev());
        let number = null.map(|number| (major(number), minor(number)));
        assert!(number.is_ok_and(|number| !opened(&[number])));
        assert!(is_process(OsStr::new("12")) && !is_process(OsStr::new("self")));
    }
}
