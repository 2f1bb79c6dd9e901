//! The real hands: io_uring, files, block devices, sockets and shared memory of Linux.
//!
//! Owns the implementations of the two seams for a running kernel: [`UringIo`] for one data-plane
//! thread, [`RealHost`] for the rare blocking calls, and [`process`] for what a whole process asks
//! of the kernel once. Operations enter, completions leave. Never decides what is written where.

mod alarm;
mod clock;
mod congestion;
mod device;
mod file;
mod flight;
mod host;
mod notice;
pub mod process;
mod ring;
mod sleep;
mod socket;
mod wake;
mod zero;

pub use file::RealFile;
pub use host::RealHost;
pub use ring::UringIo;
pub use socket::{RealSocket, WeakSocket};

use blkrep_types::Errno;
// What threads share: a model of it is given another one (tests/models).
use std::sync::atomic as sync;

/// The kernel's error number of a call of `nix`.
fn errno_of(errno: nix::errno::Errno) -> Errno {
    // EWOULDBLOCK is what a held flock says; to every caller here that is "busy" or "again", and
    // the callers that mean "busy" say so themselves.
    Errno::new(errno as i32)
}
