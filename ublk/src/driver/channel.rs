//! The way to `/dev/ublk-control`.
//!
//! Owns the trait [`Channel`], one blocking command at a time, and its real implementation: a
//! small io_uring with 128-byte entries. Commands enter, the kernel's answers leave. Never knows
//! what a command means.

use super::abi::{ControlCommand, NO_QUEUE};
use blkrep_io::{Region, Slice};
use blkrep_types::Errno;
use io_uring::squeue::Entry128;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// Room for a command's argument: a path and the largest structure.
const ARGUMENT_BYTES: usize = 4096;

/// How often a long command looks whether somebody has given up on it.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long a command that is given up may take to come back.
const CANCEL_WAIT: Duration = Duration::from_secs(2);

/// The user data of a cancellation: nobody waits for it.
const NOBODY: u64 = 0;

/// A control command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) command: u32,
    pub(super) device: u32,
    pub(super) data: u64,
    /// Bytes of the argument that are the path of the device, for the commands that want it.
    pub(super) path_len: u16,
}

/// How long a command may take.
pub(super) struct Patience<'a> {
    pub(super) limit: Duration,
    /// Asked while waiting: a reason to give up before the limit.
    pub(super) give_up: &'a dyn Fn() -> Option<Errno>,
}

impl Patience<'_> {
    /// Waits `limit`, whatever happens.
    pub(super) fn up_to(limit: Duration) -> Self {
        Self {
            limit,
            give_up: &|| None,
        }
    }
}

impl fmt::Debug for Patience<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Patience({:?})", self.limit)
    }
}

/// Takes control commands, one at a time.
pub(super) trait Channel: fmt::Debug + Send {
    /// Executes a command with `argument`, which the driver reads and writes.
    ///
    /// # Errors
    /// What the driver says; ETIMEDOUT after the limit; the reason to give up.
    fn execute(
        &mut self,
        call: &Call,
        argument: &mut [u8],
        patience: &Patience<'_>,
    ) -> Result<(), Errno>;
}

/// The driver's control device.
pub(super) struct ControlDevice {
    file: File,
    ring: IoUring<Entry128, cqueue::Entry>,
    argument: Slice,
    next: u64,
}

impl ControlDevice {
    /// Opens it.
    ///
    /// # Errors
    /// ENOENT without the driver, EACCES or EPERM without the rights, ENOSYS without io_uring.
    pub(super) fn open(path: &str) -> Result<Self, Errno> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|error| Errno::from(&error))?;
        Ok(Self {
            file,
            ring: new_ring()?,
            argument: Region::heap(ARGUMENT_BYTES).whole(),
            next: NOBODY + 1,
        })
    }

    fn push(&mut self, entry: Entry128) {
        // SAFETY: the entry names our file, and our argument memory, which is kept until the
        // answer or, without one, for ever (`abandon`).
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(
            pushed.is_ok(),
            "one command and its cancellation fit the ring"
        );
    }

    /// Waits for the answer of `name` until `end` or until there is a reason to give up.
    fn wait_for(
        &mut self,
        name: u64,
        end: Instant,
        give_up: &dyn Fn() -> Option<Errno>,
    ) -> Result<i32, Errno> {
        loop {
            for entry in self.ring.completion() {
                if entry.user_data() == name {
                    return Ok(entry.result());
                }
            }
            if let Some(errno) = give_up() {
                return Err(errno);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Errno::ETIMEDOUT);
            }
            let limit = Timespec::from(left.min(LOOK_EVERY));
            let args = SubmitArgs::new().timespec(&limit);
            match self.ring.submitter().submit_with_args(1, &args) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => {}
                    _ => return Err(Errno::from(&error)),
                },
            }
        }
    }

    /// Gets rid of a command without an answer: asks the kernel to interrupt it; if even that
    /// brings no answer, the ring and the memory it may still write are never used again.
    fn abandon(&mut self, name: u64) -> Result<Option<i32>, Errno> {
        let cancel = opcode::AsyncCancel::new(name)
            .build()
            .user_data(NOBODY)
            .into();
        self.push(cancel);
        let end = Instant::now() + CANCEL_WAIT;
        if let Ok(result) = self.wait_for(name, end, &|| None) {
            return Ok(Some(result));
        }
        let fresh = Region::heap(ARGUMENT_BYTES).whole();
        std::mem::forget(std::mem::replace(&mut self.argument, fresh));
        std::mem::forget(std::mem::replace(&mut self.ring, new_ring()?));
        Ok(None)
    }
}

impl Channel for ControlDevice {
    fn execute(
        &mut self,
        call: &Call,
        argument: &mut [u8],
        patience: &Patience<'_>,
    ) -> Result<(), Errno> {
        self.argument.write(0, argument);
        let command = encode(call, &self.argument, argument.len());
        let name = self.next;
        self.next += 1;
        let entry = opcode::UringCmd80::new(Fd(self.file.as_raw_fd()), call.command)
            .cmd(command)
            .build()
            .user_data(name);
        self.push(entry);
        let end = Instant::now() + patience.limit;
        let result = match self.wait_for(name, end, patience.give_up) {
            Ok(result) => result,
            // Interrupted, it may have come to its end all the same.
            Err(errno) => match self.abandon(name)? {
                Some(result) if result >= 0 => result,
                _ => return Err(errno),
            },
        };
        if result < 0 {
            return Err(Errno::new(-result));
        }
        self.argument.read(0, argument);
        Ok(())
    }
}

impl fmt::Debug for ControlDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ControlDevice")
    }
}

fn new_ring() -> Result<IoUring<Entry128, cqueue::Entry>, Errno> {
    IoUring::builder()
        .build(4)
        .map_err(|error| Errno::from(&error))
}

/// The 80 command bytes of an entry.
fn encode(call: &Call, argument: &Slice, argument_len: usize) -> [u8; 80] {
    let command = ControlCommand {
        device: call.device,
        queue: NO_QUEUE,
        len: u16::try_from(argument_len).expect("an argument is at most 4 KiB"),
        addr: if argument_len == 0 {
            0
        } else {
            argument.as_ptr() as u64
        },
        data: call.data,
        path_len: call.path_len,
        ..ControlCommand::default()
    };
    let mut bytes = [0; 80];
    bytes[..size_of::<ControlCommand>()].copy_from_slice(command.as_bytes());
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use zerocopy::FromBytes;

    #[test]
    fn a_command_names_its_argument_only_if_it_has_one() {
        let memory = Region::heap(64).whole();
        let call = Call {
            command: 1,
            device: 7,
            data: 9,
            path_len: 3,
        };
        let bytes = encode(&call, &memory, 64);
        let command = ControlCommand::read_from_bytes(&bytes[..32]).unwrap();
        assert_eq!(
            (command.device, command.queue, command.len),
            (7, 0xffff, 64)
        );
        assert_eq!(command.addr, memory.as_ptr() as u64);
        assert_eq!((command.data, command.path_len), (9, 3));
        assert!(bytes[32..].iter().all(|byte| *byte == 0));
        let bytes = encode(&call, &memory, 0);
        assert_eq!(
            ControlCommand::read_from_bytes(&bytes[..32]).unwrap().addr,
            0
        );
    }

    #[test]
    fn a_missing_driver_is_said_to_be_missing() {
        let missing = ControlDevice::open("/nonexistent/ublk-control");
        assert_eq!(missing.err().map(Errno::get), Some(libc::ENOENT));
    }

    fn execute(path: &str) -> Result<(), Errno> {
        let call = Call {
            command: super::super::abi::command::GET_FEATURES,
            device: 0,
            data: 0,
            path_len: 0,
        };
        let patience = Patience::up_to(Duration::from_secs(5));
        ControlDevice::open(path)
            .unwrap()
            .execute(&call, &mut [0; 8], &patience)
    }

    #[test]
    fn a_command_is_executed_or_refused_by_the_file_it_goes_to() {
        // The null device takes every command (since kernel 6.2), the zero device none.
        assert!(matches!(
            execute("/dev/null"),
            Ok(()) | Err(Errno::EOPNOTSUPP)
        ));
        assert_eq!(execute("/dev/zero"), Err(Errno::EOPNOTSUPP));
    }
}
