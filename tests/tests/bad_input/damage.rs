//! What disks and people do to files of a daemon that does not run.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

/// Turns every bit of some bytes.
pub(crate) fn flip(path: &Path, at: u64, len: usize) {
    let file = open(path);
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
    file.write_all_at(&bytes, at).unwrap();
}

/// Gives the copies at these places a version that is not known yet, checksum and all. Head, version and checksum are
/// where `docs/format` says.
pub(crate) fn make_newer(path: &Path, copies: &[u64]) {
    let file = open(path);
    for at in copies {
        let mut head = [0; 512];
        file.read_exact_at(&mut head, *at).unwrap();
        head[8..12].copy_from_slice(&9_u32.to_le_bytes());
        let crc = crc32fast::hash(&head[..508]);
        head[508..].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&head, *at).unwrap();
    }
}

/// Where the copies of a source group's record are.
pub(crate) const GROUP_COPIES: [u64; 2] = [0, 1 << 20];
/// Where the copies of a replica's record are.
pub(crate) const REPLICA_COPIES: [u64; 2] = [0, 512 << 10];

/// The place of the copy that was written last: the higher counter.
pub(crate) fn newest(path: &Path, copies: [u64; 2]) -> u64 {
    let file = open(path);
    let counter = |at: u64| {
        let mut head = [0; 24];
        file.read_exact_at(&mut head, at).unwrap();
        let blank = head[..8] == [0; 8];
        let counter = u64::from_le_bytes(head[16..].try_into().unwrap());
        if blank { 0 } else { counter + 1 }
    };
    if counter(copies[0]) > counter(copies[1]) {
        copies[0]
    } else {
        copies[1]
    }
}

/// Every file below a directory that is neither a socket nor a log, with its content.
pub(crate) fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let about = std::fs::symlink_metadata(&path).unwrap();
            let is_log = path.extension().is_some_and(|kind| kind == "jsonl");
            if about.is_dir() {
                left.push(path);
            } else if about.is_file() && !is_log {
                let bytes = std::fs::read(&path).unwrap();
                found.push((path, bytes));
            }
        }
    }
    found.sort();
    found
}

/// Copies a directory of files.
pub(crate) fn copy(from: &Path, to: &Path) {
    for (path, bytes) in content(from) {
        let place = to.join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(place, bytes).unwrap();
    }
}
