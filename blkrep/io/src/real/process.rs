//! What a whole process asks of the kernel once, before it serves a device.
//!
//! A process that is the disk below a filesystem must not wait for that filesystem when it needs
//! memory, and must not wait for its own pages to be read from it.

use blkrep_types::Errno;

/// `PR_SET_IO_FLUSHER` of `linux/prctl.h` (Linux 5.6).
const SET_IO_FLUSHER: libc::c_int = 57;

/// What could not be had, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}; {action}")]
pub struct ProcessError {
    /// What was asked for.
    pub what: &'static str,
    /// The kernel's reason.
    pub source: Errno,
    /// What the operator can do.
    pub action: &'static str,
}

/// Marks the calling thread, and every thread it starts later, as part of a disk
/// (`PR_SET_IO_FLUSHER`): its memory allocations then never wait for writeback to our own device.
///
/// # Errors
/// EPERM without the right CAP_SYS_RESOURCE.
pub fn set_io_flusher() -> Result<(), ProcessError> {
    let zero: libc::c_ulong = 0;
    let one: libc::c_ulong = 1;
    // SAFETY: this option takes plain numbers only.
    let done = unsafe { libc::prctl(SET_IO_FLUSHER, one, zero, zero, zero) };
    if done == 0 {
        return Ok(());
    }
    Err(ProcessError {
        what: "mark the process as an I/O flusher",
        source: last_errno(),
        action: "run as root or with CAP_SYS_RESOURCE; without it a machine short of memory can \
                 hang on its own device",
    })
}

/// Keeps every page that is touched in memory (`mlockall`, on fault): no page of ours is ever
/// read back from a disk that we serve.
///
/// # Errors
/// ENOMEM or EPERM where the limit on locked memory is too small.
pub fn lock_memory() -> Result<(), ProcessError> {
    // SAFETY: takes flags only.
    let done = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) };
    if done == 0 {
        return Ok(());
    }
    Err(ProcessError {
        what: "lock the process's memory",
        source: last_errno(),
        action: "run as root, or raise LimitMEMLOCK (ulimit -l)",
    })
}

fn last_errno() -> Errno {
    Errno::from(&std::io::Error::last_os_error())
}
