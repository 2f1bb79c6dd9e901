//! Errors of this front end, for people.

use super::abi::command;
use super::control::Refused;
use crate::front::FrontError;
use blkrep_types::Errno;

/// An error of ours.
pub(super) fn failed(what: &str, source: Errno, action: &str) -> FrontError {
    FrontError {
        what: what.to_owned(),
        source,
        action: action.to_owned(),
    }
}

/// A command that the driver refused, tried in order to do `what`.
pub(super) fn refused(error: Refused, what: &str, action: &str) -> FrontError {
    let action = match error.errno.get() {
        libc::EPERM | libc::EACCES => "run as root (CAP_SYS_ADMIN)",
        libc::ETIMEDOUT => "the driver did not answer in time: see the kernel's log (dmesg)",
        _ => action,
    };
    FrontError {
        what: format!("{what} ({})", command::name(error.command)),
        source: error.errno,
        action: action.to_owned(),
    }
}
