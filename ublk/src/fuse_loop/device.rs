//! A loop device over a FUSE file: how the two are put together and taken apart.
//!
//! Owns the order: mount, bind; unbind, unmount. Enters: `start` and `stop`. Leaves: a block
//! device, or nothing at all. Stopping never waits for an application that has the device open,
//! nor for requests that nobody answers.

use super::filesystem::{Ask, OneFile};
use super::loop_device::{self, Shape};
use super::mount::{self, Mounted};
use super::refusal;
use crate::front::{Device, DeviceSpec, FrontError, FrontKind, Stop, Users};
use crate::mailbox::{Mailbox, MailboxQueue};
use blkrep_types::Errno;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a loop device gets to finish what is in flight and let go, before the file below it is
/// taken away.
const UNBIND_LIMIT: Duration = Duration::from_secs(10);

/// One volume as a loop device.
#[derive(Debug)]
pub(super) struct LoopDevice {
    spec: DeviceSpec,
    point: PathBuf,
    mailbox: Arc<Mailbox<Ask>>,
    mounted: Option<Mounted>,
    /// Known once it is started.
    number: Option<u32>,
}

impl LoopDevice {
    pub(super) fn make(
        directory: &Path,
        spec: &DeviceSpec,
    ) -> Result<(Self, MailboxQueue<Ask>), FrontError> {
        let volume = &spec.volume;
        let request_bytes = usize::try_from(spec.request_bytes_max).expect("64-bit platform");
        let (mailbox, queue) = Mailbox::new(spec.depth, request_bytes).map_err(|source| {
            let what = format!("make the request memory of {volume}");
            refusal(what, source, "ask for fewer or smaller requests")
        })?;
        let point = prepare(directory, volume.as_str())?;
        let device = Self {
            spec: spec.clone(),
            point,
            mailbox,
            mounted: None,
            number: None,
        };
        Ok((device, queue))
    }

    fn bind(&self) -> io::Result<u32> {
        let file = OpenOptions::new()
            .read(true)
            .write(!self.spec.read_only)
            .open(mount::file_path(&self.point))?;
        let shape = Shape {
            len: self.spec.len.get(),
            block_bytes: u32::try_from(self.spec.block_size.get()).expect("512 or 4096"),
            read_only: self.spec.read_only,
        };
        let name = format!("blkrep:{}", self.spec.volume);
        loop_device::bind(file.as_fd(), shape, &name, self.spec.device_id)
    }

    fn end(&mut self) {
        if let Some(number) = self.number.take()
            && !loop_device::unbind(number, UNBIND_LIMIT)
        {
            tracing::warn!(
                number,
                "the loop device is still in use; its users get I/O errors until they close it"
            );
        }
        let Some(mounted) = self.mounted.take() else {
            self.mailbox.close();
            return mount::remove_directory(&self.point);
        };
        mounted.abort();
        // Before the join: the serving thread may be waiting for a tag.
        self.mailbox.close();
        mounted.join();
    }
}

fn prepare(directory: &Path, volume: &str) -> Result<PathBuf, FrontError> {
    let made = std::fs::create_dir_all(directory).and_then(|()| directory.canonicalize());
    let directory = made.map_err(|error| {
        let what = format!("make the directory {}", directory.display());
        refusal(
            what,
            Errno::from(&error),
            "see that its parent can be written",
        )
    })?;
    let point = directory.join(volume);
    mount::prepare(&point).map_err(|error| {
        let action = match error.raw_os_error() {
            Some(libc::EBUSY) => "another process serves there: stop it",
            _ => "see that nothing else is mounted there",
        };
        refusal(
            format!("make the mount point {}", point.display()),
            Errno::from(&error),
            action,
        )
    })?;
    Ok(point)
}

impl Device for LoopDevice {
    fn kind(&self) -> FrontKind {
        FrontKind::Loop
    }

    /// Before it is started, and without a fixed number, the number is not known.
    fn path(&self) -> String {
        match self.id() {
            Some(number) => loop_device::node(number).display().to_string(),
            None => "/dev/loop?".to_owned(),
        }
    }

    fn id(&self) -> Option<u32> {
        self.number.or(self.spec.device_id)
    }

    fn start(&mut self) -> Result<(), FrontError> {
        if self.mounted.is_some() {
            return Ok(());
        }
        let filesystem = OneFile::new(Arc::clone(&self.mailbox), &self.spec);
        let bytes = self.mailbox.request_bytes();
        let mounted = Mounted::new(&self.point, self.spec.volume.as_str(), filesystem, bytes);
        self.mounted = Some(mounted.map_err(|error| {
            let what = format!("mount a FUSE filesystem on {}", self.point.display());
            refusal(what, Errno::from(&error), "see the kernel's log (dmesg)")
        })?);
        match self.bind() {
            Ok(number) => {
                self.number = Some(number);
                Ok(())
            }
            Err(error) => {
                if let Some(mounted) = self.mounted.take() {
                    mounted.abort();
                    mounted.join();
                }
                Err(bind_refused(self.spec.device_id, &error))
            }
        }
    }

    fn users(&self) -> Users {
        let number = self.number;
        Box::new(move || number.is_some_and(loop_device::in_use))
    }

    fn reissues(&self) -> bool {
        false
    }

    /// Both ways are the same: the device cannot outlive the process.
    fn stop(&mut self, _how: Stop) -> Result<(), FrontError> {
        self.end();
        Ok(())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        self.end();
    }
}

fn bind_refused(wanted: Option<u32>, error: &io::Error) -> FrontError {
    let (what, action) = match (wanted, error.raw_os_error()) {
        (Some(number), Some(libc::EBUSY)) => (
            format!("bind /dev/loop{number}"),
            "something else is bound to it, or users of a killed daemon's device have not closed \
             it: see losetup -l, unmount it, or attach without a fixed number",
        ),
        (Some(number), _) => (
            format!("bind /dev/loop{number}"),
            "see the kernel's log (dmesg)",
        ),
        (None, _) => (
            "bind a loop device".to_owned(),
            "see losetup -l and the kernel's log (dmesg)",
        ),
    };
    refusal(what, Errno::from(error), action)
}
