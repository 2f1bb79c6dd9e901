//! Errors of rooms below, in the words of the control API.
//!
//! Owns the translation: each gets a code, what happened, to what, and what to do next.

use super::backing::Unusable;
use super::table::TableError;
use crate::engine::source::OpenError;
use blkrep_api::{ApiError, ErrorCode};
use blkrep_io::HostError;
use blkrep_log::FormatError;
use blkrep_types::{Errno, GroupName, VolumeName};
use blkrep_ublk::FrontError;

/// No group of that name.
pub(super) fn no_group(name: &GroupName) -> ApiError {
    ApiError::new(
        ErrorCode::NoSuchGroup,
        format!("group {name}"),
        "this node has no group of that name",
        "see its groups with: blkctl status",
    )
}

/// No volume of that name.
pub(super) fn no_volume(name: &VolumeName) -> ApiError {
    ApiError::new(
        ErrorCode::NoSuchVolume,
        format!("volume {name}"),
        "this node has no volume of that name",
        "see its volumes with: blkctl status",
    )
}

/// A backing that cannot be taken.
pub(super) fn of_backing(volume: &VolumeName, error: Unusable) -> ApiError {
    ApiError::new(
        error.code,
        format!("volume {volume}"),
        error.what,
        error.action,
    )
}

/// A front end that refused.
pub(super) fn of_front(volume: &VolumeName, error: &FrontError) -> ApiError {
    let code = match error.source {
        Errno::EBUSY => ErrorCode::DeviceNumberTaken,
        errno if errno.get() == EEXIST => ErrorCode::DeviceNumberTaken,
        _ => ErrorCode::FrontendUnavailable,
    };
    let happened = format!("{}: {}", error.what, error.source);
    ApiError::new(
        code,
        format!("volume {volume}"),
        happened,
        error.action.clone(),
    )
}

/// A device that could not be ended.
pub(super) fn of_ending(volume: &VolumeName, error: &FrontError) -> ApiError {
    let code = match error.source {
        Errno::EBUSY | Errno::ETIMEDOUT => ErrorCode::BackingFailing,
        _ => ErrorCode::FrontendUnavailable,
    };
    ApiError {
        code,
        ..of_front(volume, error)
    }
}

/// The table could not be changed.
pub(super) fn of_table(subject: impl Into<String>, error: &TableError) -> ApiError {
    let (code, action) = match error {
        TableError::Io { source, .. } => match Errno::from(source) {
            errno if is_full(errno) => (
                ErrorCode::StateFull,
                "free space in the state directory and try again",
            ),
            errno if is_denied(errno) => (
                ErrorCode::NoRights,
                "give blkrepd's user the right to write the state directory",
            ),
            _ => (
                ErrorCode::StateCorrupt,
                "repair the disk of the state directory: see the kernel's log (dmesg)",
            ),
        },
        TableError::Corrupt { .. } => (ErrorCode::StateCorrupt, "see the text"),
        TableError::Newer { .. } => (ErrorCode::StateNewer, "start the newer blkrepd again"),
    };
    let action = format!("{action}; nothing was changed");
    ApiError::new(code, subject, error.to_string(), action)
}

/// No space, no quota, or a limit on the size of files.
fn is_full(errno: Errno) -> bool {
    errno == Errno::ENOSPC || matches!(errno.get(), EDQUOT | EFBIG)
}

const fn is_denied(errno: Errno) -> bool {
    matches!(errno.get(), EPERM | EACCES | EROFS)
}

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EACCES: i32 = 13;
const EFBIG: i32 = 27;
const EROFS: i32 = 30;
const EEXIST: i32 = 17;
const EDQUOT: i32 = 122;

/// An engine that does not open or does not do it.
pub(super) fn of_engine(subject: impl Into<String>, error: &OpenError) -> ApiError {
    let subject = subject.into();
    match error {
        OpenError::Busy { path } => ApiError::new(
            ErrorCode::BackingInUse,
            subject,
            format!("{} is open elsewhere", path.display()),
            format!("find out by what with: fuser -v {}", path.display()),
        ),
        OpenError::Host(error) => of_host(subject, error),
        OpenError::State { source, .. } => {
            let (code, action) = match source {
                FormatError::Newer { .. } => (
                    ErrorCode::StateNewer,
                    "install the newer blkrepd again; nothing was changed",
                ),
                FormatError::Room { .. } => (
                    ErrorCode::LimitReached,
                    "give up a link (blkctl disconnect --forget), or use shorter paths",
                ),
                _ => (
                    ErrorCode::StateCorrupt,
                    "restore the file from a backup of the state directory; or give up what is                      remembered: blkctl forget the group, attach it and connect it again with a                      checksum mirror",
                ),
            };
            ApiError::new(code, subject, error.to_string(), action)
        }
        OpenError::Volume { volume, problem } => {
            let (happened, action) = problem
                .rsplit_once(": ")
                .unwrap_or((problem, "see the log"));
            ApiError::new(
                ErrorCode::BackingUnsuitable,
                format!("volume {volume}"),
                happened,
                action,
            )
        }
        OpenError::Command(text) => {
            let (happened, action) = text
                .rsplit_once(": ")
                .unwrap_or((text, "see blkctl status"));
            ApiError::new(ErrorCode::BadRequest, subject, happened, action)
        }
    }
}

/// A blocking call that failed.
pub(super) fn of_host(subject: String, error: &HostError) -> ApiError {
    let (code, action) = match error.errno {
        Errno::EROFS => (
            ErrorCode::BackingReadOnly,
            "attach it with --read-only, or make the backing writable",
        ),
        errno if is_full(errno) => (ErrorCode::StateFull, "free space there and try again"),
        Errno::EINVAL => (
            ErrorCode::BackingUnsuitable,
            "use a backing that takes direct I/O: a block device, or a file on a disk filesystem",
        ),
        Errno::EIO => (
            ErrorCode::BackingFailing,
            "check the disk: see the kernel's log (dmesg)",
        ),
        Errno::ENODEV => (
            ErrorCode::BackingMissing,
            "check that the disk is connected",
        ),
        other if other.get() == ENOENT => (ErrorCode::BackingMissing, "check the path"),
        other if matches!(other.get(), EPERM | EACCES) => (
            ErrorCode::NoRights,
            "run blkrepd as root, or give its user the rights",
        ),
        _ => (ErrorCode::BackingFailing, "see the kernel's log (dmesg)"),
    };
    ApiError::new(code, subject, error.to_string(), action)
}
