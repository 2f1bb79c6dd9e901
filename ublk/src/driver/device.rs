//! A device: start, stop, use.
//!
//! Owns the device's control side and its stage. Commands of the operator enter, the driver's
//! answers leave. Never on the way of a request.
//!
//! ```text
//!     Made ──start──► Live ──stop──► Stopped
//!      └─────────────stop──────────────▲
//! ```

use super::abi::feature;
use super::char_device::CharDevice;
use super::control::Control;
use super::errors::{failed, refused};
use super::left_behind::wait_until_free;
use super::setup::undo;
use super::shared::Shared;
use super::usage;
use crate::front::{Device, FrontError, FrontKind, Stop, Users};
use blkrep_types::Errno;
use std::sync::Arc;
use std::time::Duration;

/// How long requests in flight may take until a device is gone: as long as a disk's own errors.
const STOP_WAIT: Duration = Duration::from_secs(60);

/// How long a device is waited for that waits for us.
const QUIESCE_WAIT: Duration = Duration::from_secs(10);

/// How long the number of a deleted device is waited for.
const FREE_WAIT: Duration = Duration::from_secs(5);

/// Where a device is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// New, not started.
    Made,
    /// Taken over, not started.
    TakenOver,
    /// Serving.
    Live,
    /// Gone, or left to a successor.
    Stopped,
}

impl Stage {
    /// Whether a device may go from `self` to `next`.
    const fn may_become(self, next: Self) -> bool {
        match self {
            Self::Made | Self::TakenOver => matches!(next, Self::Live | Self::Stopped),
            Self::Live => matches!(next, Self::Stopped),
            Self::Stopped => false,
        }
    }
}

/// A ublk device.
#[derive(Debug)]
pub(super) struct UblkDevice {
    id: u32,
    flags: u64,
    control: Control,
    /// Our hold on the data side; each queue has its own.
    data_side: Option<Arc<CharDevice>>,
    shared: Arc<Shared>,
    stage: Stage,
}

impl UblkDevice {
    pub(super) fn new(
        id: u32,
        flags: u64,
        control: Control,
        data_side: Option<Arc<CharDevice>>,
        shared: Arc<Shared>,
        stage: Stage,
    ) -> Self {
        Self {
            id,
            flags,
            control,
            data_side,
            shared,
            stage,
        }
    }

    fn change(&mut self, next: Stage, reason: &str) {
        assert!(
            self.stage.may_become(next),
            "{:?} cannot become {next:?}",
            self.stage
        );
        tracing::info!(device = self.id, from = ?self.stage, to = ?next, reason, "ublk device");
        self.stage = next;
    }

    fn delete(&mut self) -> Result<(), FrontError> {
        let what = format!("stop /dev/ublkb{}", self.id);
        let action = "requests in flight are not answered: see the status of the volume";
        // A process that is killed while the driver waits for its requests hangs in the kernel: what
        // we have is answered before.
        if self.stage == Stage::Live {
            self.shared.refuse();
            if !self.shared.wait_drained(STOP_WAIT) {
                let action =
                    "its disk does not answer: bring it back or take it away, then detach again";
                return Err(failed(&what, Errno::ETIMEDOUT, action));
            }
        }
        match self.control.stop(self.id, STOP_WAIT) {
            Err(error) if error.errno != Errno::ENODEV => {
                return Err(refused(error, &what, action));
            }
            _ => {}
        }
        self.data_side = None;
        match self.control.delete(self.id) {
            Err(error) if error.errno != Errno::ENODEV => {
                return Err(refused(error, &what, "see the kernel's log (dmesg)"));
            }
            _ => {}
        }
        self.change(Stage::Stopped, "deleted");
        wait_until_free(&mut self.control, self.id, FREE_WAIT);
        Ok(())
    }

    /// Lets the queues answer what they have, then lets go of the device. What comes meanwhile,
    /// and what comes later, waits in the kernel for the successor.
    fn leave(&mut self) {
        self.shared.leave();
        if !self.shared.wait_drained(STOP_WAIT) {
            tracing::warn!(
                device = self.id,
                "left with requests in flight: the successor gets them again"
            );
        }
        if self.flags & feature::QUIESCE != 0
            && let Err(error) = self.control.quiesce(self.id, QUIESCE_WAIT)
        {
            // The driver quiesces the device itself when we are gone.
            tracing::warn!(device = self.id, errno = %error.errno, "the device is not quiesced");
        }
        self.shared.release();
        self.data_side = None;
        self.change(Stage::Stopped, "left to a successor");
    }
}

impl Device for UblkDevice {
    fn kind(&self) -> FrontKind {
        FrontKind::Ublk
    }

    fn path(&self) -> String {
        format!("/dev/ublkb{}", self.id)
    }

    fn id(&self) -> Option<u32> {
        Some(self.id)
    }

    fn start(&mut self) -> Result<(), FrontError> {
        let what = format!("start /dev/ublkb{}", self.id);
        let pid = std::process::id();
        let give_up = || self.shared.failure();
        let started = match self.stage {
            Stage::Made => self.control.start(self.id, pid, &give_up),
            Stage::TakenOver => self.control.end_recovery(self.id, pid, &give_up),
            Stage::Live | Stage::Stopped => {
                let action = "attach the volume again";
                return Err(failed(&what, Errno::EINVAL, action));
            }
        };
        let action = "see the kernel's log (dmesg); in a container, share the host's process ids";
        started.map_err(|error| refused(error, &what, action))?;
        self.change(Stage::Live, "started");
        Ok(())
    }

    fn users(&self) -> Users {
        let (live, id) = (self.stage == Stage::Live, self.id);
        Box::new(move || live && usage::in_use(id))
    }

    fn reissues(&self) -> bool {
        true
    }

    fn stop(&mut self, how: Stop) -> Result<(), FrontError> {
        match (self.stage, how) {
            (Stage::Stopped, _) => Ok(()),
            (Stage::Live, Stop::LeaveForSuccessor) => {
                self.leave();
                Ok(())
            }
            // Taken over and not started: closing it leaves it as it was.
            (Stage::TakenOver, Stop::LeaveForSuccessor) => {
                self.shared.release();
                self.data_side = None;
                self.change(Stage::Stopped, "left to a successor");
                Ok(())
            }
            (Stage::Made, Stop::LeaveForSuccessor)
            | (Stage::Made | Stage::TakenOver | Stage::Live, Stop::Delete) => self.delete(),
        }
    }
}

impl Drop for UblkDevice {
    fn drop(&mut self) {
        if self.stage == Stage::Made {
            self.data_side = None;
            undo(&mut self.control, self.id);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::abi::state;
    use super::super::fake::{FakeDriver, spec};
    use super::super::setup;
    use super::*;

    fn made(driver: &FakeDriver, stage: Stage) -> (UblkDevice, Arc<Shared>) {
        let info = setup::add(&mut driver.control(), &spec()).unwrap();
        let shared = Arc::new(Shared::new(1));
        let flags = driver.info(info.device).unwrap().flags;
        let device = UblkDevice::new(
            info.device,
            flags,
            driver.control(),
            None,
            Arc::clone(&shared),
            stage,
        );
        (device, shared)
    }

    #[test]
    fn a_device_that_never_started_is_not_left_behind() {
        let driver = FakeDriver::new(0x1fe);
        drop(made(&driver, Stage::Made));
        assert!(driver.info(0).is_none());
    }

    #[test]
    fn a_live_device_outlives_its_handle() {
        let driver = FakeDriver::new(0x1fe);
        let (mut device, _) = made(&driver, Stage::Made);
        device.start().unwrap();
        drop(device);
        assert_eq!(driver.info(0).unwrap().state, state::LIVE);
    }

    #[test]
    fn a_device_is_deleted_once() {
        let driver = FakeDriver::new(0x1fe);
        let (mut device, shared) = made(&driver, Stage::Made);
        device.start().unwrap();
        driver.change(0, |device| device.lingers_for = 2);
        // What its queue has is answered first.
        let other = Arc::clone(&shared);
        let driver_too = driver.clone();
        let queue = std::thread::spawn(move || {
            while !other.refusing() {
                std::thread::yield_now();
            }
            assert_eq!(driver_too.info(0).unwrap().state, state::LIVE);
            other.drained();
        });
        device.stop(Stop::Delete).unwrap();
        queue.join().unwrap();
        assert!(driver.info(0).is_none(), "the number is free again");
        device.stop(Stop::Delete).unwrap();
        device.stop(Stop::LeaveForSuccessor).unwrap();
        assert!(device.start().is_err());
    }

    #[test]
    fn a_queue_that_cannot_serve_ends_the_start() {
        let driver = FakeDriver::new(0x1fe);
        let (mut device, shared) = made(&driver, Stage::Made);
        shared.fail(Errno::EBUSY);
        assert_eq!(device.start().unwrap_err().source, Errno::EBUSY);
        assert_eq!(driver.info(0).unwrap().state, state::DEAD);
    }

    #[test]
    fn a_device_is_left_quiesced_where_the_driver_can() {
        for (features, quiesced) in [(0xf_ffff, true), (0x1fe, false)] {
            let driver = FakeDriver::new(features);
            let (mut device, shared) = made(&driver, Stage::Made);
            device.start().unwrap();
            let other = Arc::clone(&shared);
            let queue = std::thread::spawn(move || {
                while !other.leaving() {
                    std::thread::yield_now();
                }
                other.drained();
            });
            device.stop(Stop::LeaveForSuccessor).unwrap();
            queue.join().unwrap();
            assert!(shared.released());
            assert_eq!(driver.log().contains(&"QUIESCE_DEV"), quiesced);
            assert!(driver.info(0).is_some());
        }
    }

    #[test]
    fn a_take_over_ends_with_its_own_command() {
        let driver = FakeDriver::new(0x1fe);
        let (mut device, _) = made(&driver, Stage::TakenOver);
        device.start().unwrap();
        assert!(driver.log().contains(&"END_USER_RECOVERY"));
        assert!(!driver.log().contains(&"START_DEV"));
    }
}
