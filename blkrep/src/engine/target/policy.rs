//! Where a target may write, its settings, and why it says no.

use blkrep_core::target::RetryPolicy;
use blkrep_io::HostError;
use blkrep_store::FormatError;
use blkrep_store::journal::{
    BATCH_BYTES_DEFAULT, BATCH_BYTES_MIN, JOURNAL_BLOCK_BYTES, JournalState,
};
use blkrep_types::{ByteLen, Errno, GroupName, NodeName, VolumeName};
use blkrep_wire::RefuseCode;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Which paths may hold replicas.
#[derive(Debug, Clone, Default)]
pub struct TargetPolicy {
    /// Files and devices below these directories; missing files are made there.
    pub directories: Vec<PathBuf>,
    /// And exactly these.
    pub paths: Vec<PathBuf>,
}

impl TargetPolicy {
    /// Checks a path.
    ///
    /// # Errors
    /// It is not absolute, climbs, or is not allowed.
    pub fn check(&self, path: &Path) -> Result<(), TargetError> {
        let plain = path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !path.is_absolute() || !plain {
            return Err(TargetError::PathDenied {
                path: path.to_owned(),
                why: "it is not a plain absolute path",
            });
        }
        let below = self
            .directories
            .iter()
            .any(|dir| path.starts_with(dir) && path != dir);
        if below || self.paths.iter().any(|allowed| allowed == path) {
            return Ok(());
        }
        Err(TargetError::PathDenied {
            path: path.to_owned(),
            why: "the target's configuration does not allow it",
        })
    }

    /// True if a missing file may be made there. Among devices a missing name is a wrong one: a file
    /// there is in memory, and gone with the next boot.
    #[must_use]
    pub fn may_make(&self, path: &Path) -> bool {
        let among_devices = path.starts_with("/dev") && !path.starts_with("/dev/shm");
        let mut directories = self.directories.iter();
        !among_devices && directories.any(|dir| path.starts_with(dir) && path != dir)
    }

    /// Where a volume goes that nobody named a path for.
    ///
    /// # Errors
    /// No directory is allowed.
    pub fn choose(&self, group: &GroupName, volume: &VolumeName) -> Result<PathBuf, TargetError> {
        let directory = self.directories.first().ok_or(TargetError::NoDirectory)?;
        Ok(directory.join(format!("{group}.{volume}.img")))
    }
}

/// Settings of one replica.
#[derive(Debug, Clone)]
pub struct TargetSettings {
    /// This node's name, as the source will show it.
    pub node: NodeName,
    /// Bytes of the journal of a new replica.
    pub journal_bytes: ByteLen,
    /// Bytes of one batch buffer; a handful of them bounds the worker's memory.
    pub batch_bytes: ByteLen,
    /// What is applied is flushed and freed from the journal after this, if nothing else did.
    pub checkpoint_interval: Duration,
    /// When and how often a write that a base did not take is tried again. Its delay is that of the
    /// journal and the record, too, which are tried for ever.
    pub retry: RetryPolicy,
}

/// How long after a failure a disk is tried again.
const RETRY_DELAY: Duration = Duration::from_secs(3);

impl TargetSettings {
    /// The defaults, for a node.
    #[must_use]
    pub const fn new(node: NodeName) -> Self {
        Self {
            node,
            journal_bytes: ByteLen::new(256 << 20),
            batch_bytes: ByteLen::new(BATCH_BYTES_DEFAULT),
            checkpoint_interval: Duration::from_secs(1),
            retry: RetryPolicy {
                limit: None,
                delay: RETRY_DELAY,
            },
        }
    }
}

impl TargetSettings {
    /// Bytes of one batch buffer, within what the journal's format allows.
    pub(super) fn batch_bytes(&self) -> usize {
        let bytes = self
            .batch_bytes
            .get()
            .clamp(BATCH_BYTES_MIN, BATCH_BYTES_DEFAULT);
        ByteLen::new(bytes).as_usize()
    }

    /// Bytes of records that a journal holds at least: two batches, so that one always fits.
    pub(super) fn capacity_min(&self) -> u64 {
        2 * self.batch_bytes() as u64
    }

    /// Bytes of the file of a new journal.
    pub(super) fn journal_file_bytes(&self) -> ByteLen {
        let capacity = self.journal_bytes.get().max(self.capacity_min());
        let capacity = capacity.next_multiple_of(JOURNAL_BLOCK_BYTES);
        ByteLen::new(JournalState::file_bytes(capacity))
    }
}

/// Why a replica cannot be made or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The path is not allowed.
    #[error("path {} is refused: {why}; use a path below one of the target's replica directories, or allow its directory there with --allow-replica-dir", path.display())]
    PathDenied {
        /// The path.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// No path was named and no directory is allowed.
    #[error(
        "the target has no replica directory: start its daemon with --allow-replica-dir, or map the volume to an allowed path"
    )]
    NoDirectory,
    /// The replica has no such volume.
    #[error("the replica has no volume '{0}'; blkctl status names those it has")]
    NoVolume(VolumeName),
    /// Two volumes of the group go to one path.
    #[error("two volumes of the group go to {}; map each to a path of its own", path.display())]
    SamePath {
        /// The path.
        path: PathBuf,
    },
    /// It holds something else.
    #[error("{} holds {what}; if it may be overwritten, connect with --overwrite", path.display())]
    Occupied {
        /// The path.
        path: PathBuf,
        /// What it holds.
        what: &'static str,
    },
    /// It is not there, and is nothing that is made.
    #[error("{} does not exist; check its name, and that the disk is connected", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// It is smaller than the volume.
    #[error("{} has {have}, volume '{volume}' needs {need}; use a larger target", path.display())]
    TooSmall {
        /// The path.
        path: PathBuf,
        /// The volume.
        volume: VolumeName,
        /// Its size.
        have: ByteLen,
        /// The volume's size.
        need: ByteLen,
    },
    /// Its blocks are larger than those of the volume.
    #[error("{} has blocks of {have} bytes, volume '{volume}' of {need}; use a target with smaller blocks", path.display())]
    Blocks {
        /// The path.
        path: PathBuf,
        /// The volume.
        volume: VolumeName,
        /// Its blocks.
        have: u64,
        /// The volume's blocks.
        need: u64,
    },
    /// The device is read-only.
    #[error("{} cannot be written: it is read-only", path.display())]
    ReadOnly {
        /// The path.
        path: PathBuf,
    },
    /// Somebody else has it.
    #[error("{} is in use, by another replica, a mount or a daemon whose last writes have not landed", path.display())]
    Busy {
        /// The path.
        path: PathBuf,
    },
    /// The replica of that name is one of another source.
    #[error(
        "group '{group}' is replicated here from node '{source_node}'; a replica has one source"
    )]
    OtherSource {
        /// The group.
        group: GroupName,
        /// The node it comes from.
        source_node: NodeName,
    },
    /// Its record is damaged.
    #[error("the record of the replica at {}: {error}; forget the replica and connect again with a checksum mirror", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: FormatError,
    },
    /// It was written by a newer program.
    #[error("{}: {error}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// What was found.
        error: FormatError,
    },
    /// It was promoted.
    #[error("group '{0}' was promoted here: it is a source now")]
    Promoted(GroupName),
    /// A call failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl TargetError {
    /// The kind of refusal a source is told.
    #[must_use]
    pub const fn code(&self) -> RefuseCode {
        match self {
            Self::PathDenied { .. }
            | Self::NoDirectory
            | Self::SamePath { .. }
            | Self::Missing { .. } => RefuseCode::Path,
            Self::Occupied { .. } => RefuseCode::Occupied,
            Self::TooSmall { .. } => RefuseCode::TooSmall,
            Self::Blocks { .. } | Self::NoVolume(_) => RefuseCode::Volumes,
            Self::Busy { .. } => RefuseCode::Busy,
            Self::OtherSource { .. } | Self::Promoted(_) => RefuseCode::Group,
            Self::ReadOnly { .. } | Self::Corrupt { .. } | Self::Newer { .. } | Self::Host(_) => {
                RefuseCode::Failed
            }
        }
    }

    /// Makes an error of a call one of ours where we know more.
    pub(super) fn from_open(error: HostError) -> Self {
        if error.errno == Errno::EBUSY || error.errno == Errno::EAGAIN {
            Self::Busy { path: error.path }
        } else {
            Self::Host(error)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_allowed_paths_are_taken() {
        let policy = TargetPolicy {
            directories: vec!["/replicas".into()],
            paths: vec!["/dev/vg0/copy".into()],
        };
        for right in ["/replicas/a", "/replicas/b/c.img", "/dev/vg0/copy"] {
            assert!(policy.check(Path::new(right)).is_ok(), "{right}");
        }
        for wrong in [
            "/replicas",
            "/replicas2/a",
            "/replicas/../etc/passwd",
            "replicas/a",
            "",
            "/dev/vg0/copy2",
            "/dev/vg0",
        ] {
            assert!(policy.check(Path::new(wrong)).is_err(), "{wrong}");
        }
        assert!(!policy.may_make(Path::new("/dev/vg0/copy")));
        assert!(policy.may_make(Path::new("/replicas/a")));
        let devices = TargetPolicy {
            directories: vec!["/dev".into(), "/dev/shm/lab".into()],
            paths: Vec::new(),
        };
        assert!(devices.check(Path::new("/dev/nosuch")).is_ok());
        assert!(!devices.may_make(Path::new("/dev/nosuch")));
        assert!(devices.may_make(Path::new("/dev/shm/lab/a.img")));
        let group = GroupName::new("db").unwrap();
        let volume = VolumeName::new("wal").unwrap();
        assert_eq!(
            policy.choose(&group, &volume).unwrap(),
            Path::new("/replicas/db.wal.img")
        );
    }
}
