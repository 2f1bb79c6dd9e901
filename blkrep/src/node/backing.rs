//! What a backing is, and who else has it.
//!
//! Owns the checks before a backing is opened: that it exists, is a block device or a regular
//! file, and is not in use by a mount, swap, another device or another volume. Enters: a path.
//! Leaves: its identity and, where it is in use, by whom and what to do. The claim of the open
//! itself is what keeps others out; these checks say who is meant by "busy". Never writes.

use blkrep_api::ErrorCode;
use blkrep_types::{BlockSize, ByteLen, Extent};
use std::fmt;
use std::fs;
use std::io::Seek as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What tells one backing from another, whatever path names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Identity {
    /// A block device by its number.
    Device {
        /// Major number.
        major: u64,
        /// Minor number.
        minor: u64,
    },
    /// A file by its filesystem and inode.
    File {
        /// The filesystem.
        device: u64,
        /// The inode.
        inode: u64,
    },
}

impl fmt::Display for Identity {
    /// Writes `MAJOR:MINOR` of a device, as sysfs and udev do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { major, minor } => write!(f, "{major}:{minor}"),
            Self::File { device, inode } => write!(f, "file {device}:{inode}"),
        }
    }
}

/// A backing that cannot be taken.
#[derive(Debug, thiserror::Error)]
#[error("{what}; {action}")]
pub(super) struct Unusable {
    /// What is wrong with which backing.
    pub what: String,
    /// What to do.
    pub action: String,
    /// Its kind, for the control API.
    pub code: ErrorCode,
}

impl Unusable {
    fn new(code: ErrorCode, what: String, action: impl Into<String>) -> Self {
        Self {
            what,
            action: action.into(),
            code,
        }
    }
}

/// A range of a backing that a volume already has.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    /// Which backing.
    pub identity: Identity,
    /// Which bytes of it.
    pub extent: Extent,
    /// By which volume.
    pub volume: String,
}

/// Finds out what `path` is, following links.
///
/// # Errors
/// It is missing, unreachable, or neither a block device nor a regular file.
pub(super) fn identify(path: &Path) -> Result<(PathBuf, Identity), Unusable> {
    let shown = path.display();
    if !path.is_absolute() {
        return Err(Unusable::new(
            ErrorCode::BackingUnsuitable,
            format!("backing '{shown}' is not an absolute path"),
            "give the whole path, such as /dev/vg0/pgdata",
        ));
    }
    let real = fs::canonicalize(path).map_err(|error| {
        Unusable::new(
            ErrorCode::BackingMissing,
            format!("backing {shown} cannot be reached: {error}"),
            "check the path, and that the disk is connected",
        )
    })?;
    let about = fs::metadata(&real).map_err(|error| {
        Unusable::new(
            ErrorCode::NoRights,
            format!("backing {shown} cannot be examined: {error}"),
            "check its rights",
        )
    })?;
    if about.file_type().is_block_device() {
        let number = about.rdev();
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        Ok((real, Identity::Device { major, minor }))
    } else if about.is_file() {
        Ok((
            real,
            Identity::File {
                device: about.dev(),
                inode: about.ino(),
            },
        ))
    } else {
        Err(Unusable::new(
            ErrorCode::BackingUnsuitable,
            format!("backing {shown} is neither a block device nor a regular file"),
            "name the disk, logical volume, partition or file that holds the data",
        ))
    }
}

/// Size and logical block size of a backing; files have blocks of 512 bytes.
///
/// # Errors
/// It cannot be opened, or is empty.
pub(super) fn measure(path: &Path) -> Result<(ByteLen, BlockSize), Unusable> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| {
        Unusable::new(
            ErrorCode::BackingFailing,
            format!("backing {shown} cannot be opened: {error}"),
            "check its rights, and the disk",
        )
    };
    let mut file = fs::File::open(path).map_err(unreadable)?;
    let len = file.seek(std::io::SeekFrom::End(0)).map_err(unreadable)?;
    if len == 0 {
        return Err(Unusable::new(
            ErrorCode::BackingUnsuitable,
            format!("backing {shown} is empty"),
            "make it as large as the volume is to be, such as with fallocate or lvextend",
        ));
    }
    let number = file.metadata().map_err(unreadable)?.rdev();
    let bytes = if number == 0 {
        512
    } else {
        logical_block_bytes(number)
    };
    let block_size = BlockSize::try_from(bytes).map_err(|error| {
        let what = format!("backing {shown}: {error}");
        Unusable::new(ErrorCode::BackingUnsuitable, what, "use another disk")
    })?;
    Ok((ByteLen::new(len), block_size))
}

/// What sysfs says of a device's blocks; a partition has those of its disk.
fn logical_block_bytes(number: u64) -> u64 {
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    ["queue", "../queue"]
        .iter()
        .map(|queue| {
            read(format!(
                "/sys/dev/block/{major}:{minor}/{queue}/logical_block_size"
            ))
        })
        .find_map(|text| text.trim().parse().ok())
        .unwrap_or(512)
}

/// Refuses a range that another volume of this node already has.
///
/// # Errors
/// Names the volume and its range.
pub(super) fn refuse_overlap(
    path: &Path,
    identity: Identity,
    extent: Extent,
    taken: &[Taken],
) -> Result<(), Unusable> {
    let other = taken
        .iter()
        .find(|t| t.identity == identity && t.extent.overlaps(extent));
    other.map_or(Ok(()), |other| {
        Err(Unusable::new(
            ErrorCode::BackingOverlaps,
            format!(
                "bytes {}..{} of {} overlap volume '{}', which has {}..{}",
                extent.offset().get(),
                extent.end().get(),
                path.display(),
                other.volume,
                other.extent.offset().get(),
                other.extent.end().get()
            ),
            "choose another --offset and --size, or detach that volume first",
        ))
    })
}

/// Refuses a backing that is mounted, swap, or held by another device, and says by what.
///
/// # Errors
/// Names the user, and what to do about it.
pub(super) fn refuse_in_use(path: &Path, identity: Identity) -> Result<(), Unusable> {
    let users = match identity {
        Identity::Device { major, minor } => device_users(major, minor),
        Identity::File { .. } => file_users(path),
    };
    users.map_or(Ok(()), |user| {
        let what = format!("backing {} is in use: {}", path.display(), user.what);
        Err(Unusable::new(user.code, what, user.action))
    })
}

/// Who has a backing.
struct User {
    code: ErrorCode,
    what: String,
    action: String,
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn names_in(directory: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn device_users(major: u64, minor: u64) -> Option<User> {
    let number = format!("{major}:{minor}");
    if let Some(mount) = mount_point(&read("/proc/self/mountinfo"), &number) {
        let what = format!("it is mounted on {mount}");
        let action = format!("unmount it: umount {mount}");
        return Some(User {
            code: ErrorCode::BackingMounted,
            what,
            action,
        });
    }
    let in_use = |what, action| {
        Some(User {
            code: ErrorCode::BackingInUse,
            what,
            action,
        })
    };
    let sysfs = PathBuf::from(format!("/sys/dev/block/{number}"));
    if let Some(holder) = names_in(sysfs.join("holders")).first() {
        return in_use(
            format!("device {holder} is built on it"),
            format!("attach /dev/{holder} instead, or take it apart"),
        );
    }
    let name = fs::canonicalize(&sysfs)
        .ok()?
        .file_name()?
        .to_str()?
        .to_owned();
    if read("/proc/swaps")
        .lines()
        .any(|line| line.starts_with(&format!("/dev/{name} ")))
    {
        return in_use(
            "it is swap space".to_owned(),
            format!("stop it: swapoff /dev/{name}"),
        );
    }
    // A whole disk is in use if one of its partitions is.
    names_in(&sysfs)
        .iter()
        .filter(|part| part.starts_with(&name))
        .find_map(|part| {
            let number = read(sysfs.join(part).join("dev"));
            let (major, minor) = number.trim().split_once(':')?;
            let user = device_users(major.parse().ok()?, minor.parse().ok()?)?;
            let what = format!("its partition {part}: {}", user.what);
            Some(User { what, ..user })
        })
}

fn file_users(path: &Path) -> Option<User> {
    let mut loops = names_in("/sys/block")
        .into_iter()
        .filter(|name| name.starts_with("loop"));
    loops.find_map(|name| {
        let file = read(format!("/sys/block/{name}/loop/backing_file"));
        (Path::new(file.trim_end()) == path).then(|| User {
            code: ErrorCode::BackingInUse,
            what: format!("/dev/{name} is set up on it"),
            action: format!("detach it: losetup -d /dev/{name}"),
        })
    })
}

fn mount_point<'a>(mountinfo: &'a str, number: &str) -> Option<&'a str> {
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let device = fields.nth(2)?;
        (device == number).then(|| fields.nth(1)).flatten()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use blkrep_types::ByteOffset;

    #[test]
    fn a_mounted_device_is_found_by_its_number() {
        let table = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
                     37 35 8:1 / /data rw - ext4 /dev/sda1 rw\n";
        assert_eq!(mount_point(table, "8:1"), Some("/data"));
        assert_eq!(mount_point(table, "8:2"), None);
    }

    #[test]
    fn a_missing_backing_and_a_directory_are_refused_with_what_to_do() {
        for (path, word) in [
            ("/nonexistent/disk", "cannot be reached"),
            ("/tmp", "neither"),
            ("relative", "absolute"),
            ("/dev/null", "neither"),
        ] {
            let refusal = identify(Path::new(path)).unwrap_err();
            assert!(refusal.to_string().contains(word), "{refusal}");
            assert!(!refusal.action.is_empty());
        }
    }

    #[test]
    fn a_file_has_one_identity_under_every_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a");
        fs::write(&file, b"x").unwrap();
        let link = directory.path().join("b");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(identify(&file).unwrap().1, identify(&link).unwrap().1);
    }

    #[test]
    fn overlapping_ranges_of_one_backing_are_refused_and_touching_ones_are_not() {
        let extent = |offset, len| Extent::new(ByteOffset::new(offset), ByteLen::new(len)).unwrap();
        let identity = Identity::Device { major: 8, minor: 1 };
        let taken = [Taken {
            identity,
            extent: extent(4096, 4096),
            volume: "a".to_owned(),
        }];
        let path = Path::new("/dev/x");
        assert!(refuse_overlap(path, identity, extent(0, 4096), &taken).is_ok());
        assert!(refuse_overlap(path, identity, extent(8192, 1), &taken).is_ok());
        let refusal = refuse_overlap(path, identity, extent(8191, 1), &taken).unwrap_err();
        assert!(
            refusal.code == ErrorCode::BackingOverlaps && refusal.what.contains("'a'"),
            "{refusal}"
        );
        let elsewhere = Identity::Device { major: 8, minor: 2 };
        assert!(refuse_overlap(path, elsewhere, extent(4096, 1), &taken).is_ok());
    }
}
