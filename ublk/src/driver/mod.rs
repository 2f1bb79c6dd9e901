//! The ublk front end: `/dev/ublkbN`, a block device of the kernel served by this process.
//!
//! Owns our own binding of the kernel's ublk driver (`docs/adr/0001-own-ublk-binding.md`): its
//! layouts, its control commands, and the queues on the workers' own rings. Device specs enter,
//! devices with their queues leave. Never knows what is behind a volume.
//!
//! How it works, and what the kernel promises, is told in `docs/internals/ublk.md`.

mod abi;
mod channel;
mod char_device;
mod control;
mod device;
mod errors;
#[cfg(test)]
mod fake;
mod kernel;
mod left_behind;
mod params;
mod queue;
mod request;
mod setup;
mod shared;
mod tags;
mod usage;

pub use kernel::{KnownFault, known_fault};
pub use left_behind::{Found, Meant, ServerState, meant};

use crate::front::{DeviceSpec, FrontEnd, FrontError, FrontKind, FrontQueue, Made};
use crate::sync;
use abi::DeviceInfo;
use blkrep_io::real::UringIo;
use blkrep_types::Errno;
use channel::ControlDevice;
use char_device::CharDevice;
use control::Control;
use device::{Stage, UblkDevice};
use errors::{failed, refused};
use queue::{Plan, UblkQueue};
use request::Bounds;
use shared::Shared;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The driver's control device.
const CONTROL_PATH: &str = "/dev/ublk-control";

/// How long the control device may take to appear after the driver was loaded.
const LOAD_WAIT: Duration = Duration::from_secs(5);

/// How long a new device's file may take to appear: devtmpfs has it at once, udev may not.
const APPEAR_WAIT: Duration = Duration::from_secs(5);

/// How this front end works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Use the driver even on a kernel that is known to crash with it.
    pub allow_broken_kernel: bool,
    /// Bind the thread of each queue to the processors whose requests it gets, if there is more
    /// than one queue.
    pub bind_threads: bool,
    /// How long a successor waits for its predecessor's last writes to land.
    pub recovery_wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            allow_broken_kernel: false,
            bind_threads: true,
            // A disk's own time-out is 30 s in most drivers; twice that, and its retry is in.
            recovery_wait: Duration::from_secs(60),
        }
    }
}

/// Makes ublk devices.
#[derive(Debug, Clone, Default)]
pub struct Ublk {
    settings: Settings,
}

impl Ublk {
    /// A front end with these settings.
    #[must_use]
    pub const fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// What the driver knows about a device; `None` if there is none with this number, or no driver.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn find(&self, id: u32) -> Result<Option<Found>, FrontError> {
        if !self.may_have_devices() {
            return Ok(None);
        }
        left_behind::find(&mut self.control()?, id)
    }

    /// The devices of this host that blkrep made, whichever process serves them; none without the
    /// driver.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn list(&self) -> Result<Vec<Found>, FrontError> {
        if !self.may_have_devices() {
            return Ok(Vec::new());
        }
        let mut control = self.control()?;
        let mut list = Vec::new();
        for id in left_behind::numbers() {
            list.extend(left_behind::find(&mut control, id)?.filter(Found::is_ours));
        }
        Ok(list)
    }

    /// Removes a device whose daemon is gone for good: what waits for it gets an error, and no
    /// task hangs. Nothing happens if there is none.
    ///
    /// # Errors
    /// EBUSY if it is served, EPERM if blkrep did not make it.
    pub fn remove_left_behind(&self, id: u32) -> Result<(), FrontError> {
        left_behind::remove(&mut self.control()?, id)
    }

    /// True if somebody has `/dev/ublkb<id>` or a partition of it open: see [`crate::Device::in_use`].
    #[must_use]
    pub fn in_use(&self, id: u32) -> bool {
        usage::in_use(id)
    }

    /// False if there is no driver, or one that is never asked anything.
    fn may_have_devices(&self) -> bool {
        let usable = self.settings.allow_broken_kernel || known_fault(&kernel::release()).is_none();
        usable && Path::new(CONTROL_PATH).exists()
    }

    fn control(&self) -> Result<Control, FrontError> {
        let release = kernel::release();
        if let Some(fault) = known_fault(&release)
            && !self.settings.allow_broken_kernel
        {
            let what = format!("kernel {release} cannot be used with ublk: {}", fault.what);
            let action = format!(
                "boot a kernel from {} on (reported in {}), or use another front end (loop, nbd)",
                fault.fixed_in, fault.report
            );
            return Err(failed(&what, Errno::EOPNOTSUPP, &action));
        }
        if !Path::new(CONTROL_PATH).exists() {
            load_driver();
        }
        ControlDevice::open(CONTROL_PATH)
            .map(|device| Control::new(Box::new(device)))
            .map_err(|errno| failed("open /dev/ublk-control", errno, open_action(errno)))
    }

    fn queues(
        &self,
        control: &mut Control,
        spec: &DeviceSpec,
        info: &DeviceInfo,
        shared: &Arc<Shared>,
        data_side: &Arc<CharDevice>,
    ) -> Result<Vec<Box<dyn FrontQueue<UringIo>>>, FrontError> {
        let what = format!("open the queues of /dev/ublkb{}", info.device);
        let bind = self.settings.bind_threads && info.queues > 1;
        let mut queues: Vec<Box<dyn FrontQueue<UringIo>>> = Vec::new();
        for index in 0..info.queues {
            let processors = if bind {
                control
                    .affinity(info.device, index)
                    .map_err(|error| refused(error, &what, "see the kernel's log (dmesg)"))?
            } else {
                Vec::new()
            };
            let plan = Plan {
                index,
                depth: info.depth,
                bounds: Bounds {
                    volume_len: spec.len,
                    block_bytes: spec.block_size.get(),
                    request_bytes_max: u64::from(info.request_bytes_max),
                    read_only: spec.read_only,
                },
                processors,
                can_quiesce: info.flags & abi::feature::QUIESCE != 0,
            };
            let queue = UblkQueue::new(plan, data_side, shared)
                .map_err(|errno| failed(&what, errno, "free memory, or use a smaller depth"))?;
            queues.push(Box::new(queue));
        }
        Ok(queues)
    }
}

impl FrontEnd<UringIo> for Ublk {
    fn kind(&self) -> FrontKind {
        FrontKind::Ublk
    }

    fn available(&self) -> Result<(), FrontError> {
        setup::check_features(&mut self.control()?).map(|_| ())
    }

    /// Makes a device. The kernel may give it fewer queues than the spec wants: one for each
    /// processor at most. A device that is taken over keeps its number of queues and depth.
    fn make(&self, spec: &DeviceSpec) -> Result<Made<UringIo>, FrontError> {
        let mut control = self.control()?;
        let (info, stage) = match (spec.recover, spec.device_id) {
            (false, _) => (setup::add(&mut control, spec)?, Stage::Made),
            (true, Some(id)) => {
                let wait = self.settings.recovery_wait;
                let info = setup::recover(&mut control, spec, id, wait)?;
                (info, Stage::TakenOver)
            }
            (true, None) => {
                let what = format!("take over the ublk device of volume {}", spec.volume);
                let action = "say which device: its number is not known";
                return Err(failed(&what, Errno::EINVAL, action));
            }
        };
        let shared = Arc::new(Shared::new(info.queues));
        let made = CharDevice::open(info.device, APPEAR_WAIT)
            .map_err(|errno| {
                let what = format!("open /dev/ublkc{}", info.device);
                failed(
                    &what,
                    errno,
                    "another process serves the device: stop that one",
                )
            })
            .and_then(|data_side| {
                let queues = self.queues(&mut control, spec, &info, &shared, &data_side)?;
                Ok((data_side, queues))
            });
        match made {
            Ok((data_side, queues)) => {
                let device = UblkDevice::new(
                    info.device,
                    info.flags,
                    control,
                    Some(data_side),
                    shared,
                    stage,
                );
                Ok((Box::new(device), queues))
            }
            Err(error) => {
                if stage == Stage::Made {
                    setup::undo(&mut control, info.device);
                }
                Err(error)
            }
        }
    }
}

/// Loads the driver, once. If it cannot be, opening the control device says so.
fn load_driver() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let loaded = Command::new("modprobe")
        .arg("ublk_drv")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    tracing::info!(?loaded, "modprobe ublk_drv");
    let end = Instant::now() + LOAD_WAIT;
    while loaded.as_ref().is_ok_and(std::process::ExitStatus::success)
        && !Path::new(CONTROL_PATH).exists()
        && Instant::now() < end
    {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn open_action(errno: Errno) -> &'static str {
    match errno.get() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => {
            "this kernel has no ublk driver: install one that has (6.5 or later, module ublk_drv), \
             or use another front end (loop, nbd)"
        }
        libc::EACCES => "run as root (CAP_SYS_ADMIN), or use the front end nbd",
        libc::ENOSYS | libc::EPERM => {
            "io_uring is switched off: set sysctl kernel.io_uring_disabled=0, and run as root"
        }
        _ => "see the kernel's log (dmesg)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_for_no_driver_has_its_own_advice() {
        assert!(open_action(Errno::new(libc::ENOENT)).contains("no ublk driver"));
        assert!(open_action(Errno::new(libc::EACCES)).contains("root"));
        assert!(open_action(Errno::new(libc::ENOSYS)).contains("io_uring_disabled"));
    }
}
