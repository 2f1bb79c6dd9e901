//! A directory as the value of a setting, and what a disk queue needs of it.
//!
//! Owns the text of such a value and the checks that only the running machine can make: they are
//! made by `set`, so that nobody waits for a full memory to learn of them. Never keeps a file.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Longest path: what a directory entry has room for, and enough for any mount point.
const PATH_BYTES_MAX: usize = 255;

/// An absolute path, or none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Folder {
    bytes: [u8; PATH_BYTES_MAX],
    len: usize,
}

impl Folder {
    /// Reads `none` or an absolute path.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = if text == "none" { "" } else { text };
        let mut bytes = [0; PATH_BYTES_MAX];
        let Some(place) = bytes.get_mut(..text.len()) else {
            return Err(format!("the path has more than {PATH_BYTES_MAX} bytes"));
        };
        place.copy_from_slice(text.as_bytes());
        if !text.is_empty() && !text.starts_with('/') {
            return Err(format!("'{text}' does not begin with /"));
        }
        if text.contains(|c: char| c.is_control() || c == '"' || c == '\\') {
            return Err("the path has a quote, a backslash or a control character".to_owned());
        }
        Ok(Self {
            bytes,
            len: text.len(),
        })
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).expect("it was text")
    }

    /// The path, if there is one.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        (self.len > 0).then(|| PathBuf::from(self.text()))
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.len == 0 { "none" } else { self.text() })
    }
}

impl fmt::Debug for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Folder({self})")
    }
}

/// The block device below a file's filesystem, as sysfs has it.
fn device_below(found: &fs::Metadata) -> Option<PathBuf> {
    let number = found.dev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()
}

/// True for a device of the ublk driver, and a partition of one.
fn is_ublk(device: &Path) -> bool {
    let parts = device.components();
    let mut names = parts.filter_map(|part| part.as_os_str().to_str());
    names.any(|name| name.starts_with("ublkb"))
}

/// Checks that files can be made in a directory whose filesystem has `least` bytes altogether.
///
/// # Errors
/// A sentence that says what is wrong.
pub(super) fn check_usable(path: &Path, least: u64) -> Result<(), String> {
    let name = path.display();
    let found = fs::metadata(path).map_err(|error| format!("{name}: {error}"))?;
    if !found.is_dir() {
        return Err(format!("{name} is not a directory"));
    }
    if let Some(device) = device_below(&found).filter(|device| is_ublk(device)) {
        return Err(format!(
            "{name} is on {}, a device that may be replicated: the queue would wait for itself",
            device.display()
        ));
    }
    // Hidden, so that nobody takes it for a queue; the number keeps two daemons apart.
    let probe = path.join(format!(".blkrep-probe-{}", std::process::id()));
    let mut options = OpenOptions::new();
    let made = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&probe);
    made.map_err(|error| format!("no file can be made in {name}: {error}"))?;
    fs::remove_file(&probe).map_err(|error| format!("{}: {error}", probe.display()))?;
    let whole = nix::sys::statvfs::statvfs(path).map_err(|error| format!("{name}: {error}"))?;
    let whole = whole.blocks() * whole.fragment_size();
    if whole < least {
        return Err(format!(
            "the filesystem of {name} has {whole} bytes, less than queue.free-space and one segment"
        ));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_absolute_short_and_plain_or_none() {
        assert_eq!(Folder::parse("none").unwrap().path(), None);
        let folder = Folder::parse("/var/lib/queue").unwrap();
        assert_eq!(folder.path().unwrap(), Path::new("/var/lib/queue"));
        assert_eq!(folder.to_string(), "/var/lib/queue");
        let long = format!("/{}", "a".repeat(PATH_BYTES_MAX));
        for wrong in ["relative", "/a\"b", "/a\\b", "/a\nb", long.as_str()] {
            assert!(Folder::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_replicated_device_is_no_place_for_its_own_queue() {
        for (path, ublk) in [
            ("/sys/devices/virtual/block/ublkb0", true),
            ("/sys/devices/virtual/block/ublkb12/ublkb12p1", true),
            ("/sys/devices/virtual/block/loop0", false),
            (
                "/sys/devices/pci0000:00/0000:00:04.0/virtio1/block/vda/vda1",
                false,
            ),
        ] {
            assert_eq!(is_ublk(Path::new(path)), ublk, "{path}");
        }
    }
}
