//! Errors of rooms below, in the words of the control API.
//!
//! Owns the translation: each gets a code, what happened, to what, and what to do next.

use super::backing::Unusable;
use super::table::TableError;
use crate::engine::source::OpenError;
use blkrep_api::{ApiError, ErrorCode};
use blkrep_io::HostError;
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

/// The table could not be changed.
pub(super) fn of_table(subject: impl Into<String>, error: &TableError) -> ApiError {
    let code = match error {
        TableError::Io { source, .. } if Errno::from(source) == Errno::ENOSPC => {
            ErrorCode::StateFull
        }
        TableError::Io { .. } => ErrorCode::NoRights,
        TableError::Corrupt { .. } => ErrorCode::StateCorrupt,
        TableError::Newer { .. } => ErrorCode::StateNewer,
    };
    let action = "free space in, or repair, the state directory; nothing was changed";
    ApiError::new(code, subject, error.to_string(), action)
}

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
        OpenError::State { .. } => ApiError::new(
            ErrorCode::StateCorrupt,
            subject,
            error.to_string(),
            "restore the file from a backup of the state directory; or `blkctl forget` the group, attach and connect it again with a checksum mirror",
        ),
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
fn of_host(subject: String, error: &HostError) -> ApiError {
    let (code, action) = match error.errno {
        Errno::EROFS => (
            ErrorCode::BackingReadOnly,
            "attach it with --read-only, or make the backing writable",
        ),
        Errno::ENOSPC => (ErrorCode::StateFull, "free space in the state directory"),
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
        other if other.get() == 2 => (ErrorCode::BackingMissing, "check the path"),
        other if matches!(other.get(), 1 | 13) => (
            ErrorCode::NoRights,
            "run blkrepd as root, or give its user the rights",
        ),
        _ => (ErrorCode::BackingFailing, "see the kernel's log (dmesg)"),
    };
    ApiError::new(code, subject, error.to_string(), action)
}
