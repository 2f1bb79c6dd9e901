//! The loop front end: a real block device on any kernel, for root.
//!
//! Owns a FUSE filesystem of one file and a loop device over it. Enters: a [`DeviceSpec`]. Leaves:
//! `/dev/loopN`, whose requests come through a mailbox, one queue a device. Never keeps a device
//! over the end of the process: the kernel closes the file's filesystem with it, and whoever has
//! the device open then gets EIO.

mod device;
mod filesystem;
#[cfg(fuzzing)]
pub mod fuzzing;
mod loop_device;
mod mount;

use crate::front::{DeviceSpec, FrontEnd, FrontError, FrontKind, Made};
use blkrep_io::Io;
use blkrep_types::Errno;
use device::LoopDevice;
use std::fs::OpenOptions;
use std::path::PathBuf;

const FUSE_DEVICE: &str = "/dev/fuse";

/// The bit of CAP_SYS_ADMIN in a process's capabilities.
const SYS_ADMIN_BIT: u32 = 21;

/// Makes loop devices over FUSE files.
#[derive(Debug)]
pub struct LoopFrontEnd {
    directory: PathBuf,
}

impl LoopFrontEnd {
    /// Mounts below `directory`, which is made if it is missing and is this daemon's alone:
    /// `VOLUME/volume` is the file of a volume.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }
}

impl<I: Io> FrontEnd<I> for LoopFrontEnd {
    fn kind(&self) -> FrontKind {
        FrontKind::Loop
    }

    fn available(&self) -> Result<(), FrontError> {
        if !may_mount() {
            return Err(refusal(
                "mount a FUSE filesystem and bind a loop device".to_owned(),
                Errno::new(libc::EPERM),
                "run as root (CAP_SYS_ADMIN), or use the nbd front end",
            ));
        }
        let fuse = OpenOptions::new().read(true).write(true).open(FUSE_DEVICE);
        fuse.map_err(|error| {
            let source = loop_device::errno_of(&error);
            refusal(
                format!("open {FUSE_DEVICE}"),
                source,
                "load the module fuse (modprobe fuse), or use the nbd front end",
            )
        })?;
        loop_device::available().map_err(|error| {
            let source = loop_device::errno_of(&error);
            refusal(
                "open /dev/loop-control".to_owned(),
                source,
                "load the module loop (modprobe loop), or use the nbd front end",
            )
        })
    }

    /// Makes the device with exactly one queue, of `spec.depth` tags.
    fn make(&self, spec: &DeviceSpec) -> Result<Made<I>, FrontError> {
        let (device, queue) = LoopDevice::make(&self.directory, spec)?;
        Ok((Box::new(device), vec![Box::new(queue)]))
    }
}

/// True if the process has the capability that both mounting and binding ask for.
fn may_mount() -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return nix::unistd::geteuid().is_root();
    };
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << SYS_ADMIN_BIT) != 0)
}

fn refusal(what: String, source: Errno, action: &str) -> FrontError {
    FrontError {
        what,
        source,
        action: action.to_owned(),
    }
}
