//! Devices without a server: finding them and getting rid of them.
//!
//! Owns what a node does about devices that an earlier daemon left. Numbers enter, facts leave.
//! Never touches a device that is served, or one that blkrep did not make.

use super::abi::{DeviceInfo, state};
use super::control::Control;
use super::errors::{failed, refused};
use super::params::{is_mark_of, is_ours, mark_of, names, owner_of};
use crate::front::{FrontError, Owner};
use blkrep_types::{Errno, VolumeName};
use std::fs;
use std::time::{Duration, Instant};

/// How long a device may take to notice that its server is gone.
const NOTICE_WAIT: Duration = Duration::from_secs(10);

/// How long failing the requests of a device without a server may take.
const STOP_WAIT: Duration = Duration::from_secs(30);

/// How long the number of a deleted device is waited for.
const FREE_WAIT: Duration = Duration::from_secs(5);

const ASK_EVERY: Duration = Duration::from_millis(10);

/// What the driver says about a device's server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerState {
    /// Never started, or stopped: there is no block device.
    Dead,
    /// A process serves it.
    Live,
    /// Nobody serves it; its requests wait for a successor.
    Waiting,
    /// Nobody serves it; its requests fail.
    Failing,
}

/// A ublk device of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its number: `/dev/ublkb<id>`.
    pub id: u32,
    /// Whether it is served.
    pub server: ServerState,
    /// The process that serves it, or served it last.
    pub pid: Option<u32>,
    mark: u64,
}

impl Found {
    fn new(info: &DeviceInfo) -> Self {
        let server = match info.state {
            state::LIVE => ServerState::Live,
            state::QUIESCED => ServerState::Waiting,
            state::FAIL_IO => ServerState::Failing,
            _ => ServerState::Dead,
        };
        let pid = u32::try_from(info.server_pid).ok().filter(|pid| *pid > 0);
        Self {
            id: info.device,
            server,
            pid,
            mark: info.server_mark,
        }
    }

    /// True if blkrep made it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        is_ours(self.mark)
    }

    /// True if this owner made it, for a volume of this name.
    #[must_use]
    pub fn belongs_to(&self, owner: Owner, volume: &VolumeName) -> bool {
        self.mark == mark_of(owner, volume)
    }

    /// True if this owner made it.
    #[must_use]
    pub fn is_made_by(&self, owner: Owner) -> bool {
        is_mark_of(self.mark, owner)
    }

    /// True if blkrep made it for a volume of this name, whoever of this host it was.
    #[must_use]
    pub fn is_of(&self, volume: &VolumeName) -> bool {
        names(self.mark, volume)
    }

    /// True if the same daemon made both.
    fn has_owner_of(&self, other: &Self) -> bool {
        owner_of(self.mark) == owner_of(other.mark)
    }
}

/// Which devices are meant when nobody says whose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meant {
    /// These: they are one daemon's. Where several daemons have one, those that nobody serves.
    These(Vec<Found>),
    /// Several daemons have one, and every one is served, or its daemon is so newly gone that the
    /// driver does not know yet.
    Served(u32, u32),
    /// Several daemons left one.
    Several(u32, u32),
}

/// Of devices of one volume name, those that are meant.
#[must_use]
pub fn meant(found: Vec<Found>) -> Meant {
    let stranger = |found: &[Found]| {
        let first = found.first()?;
        let other = found.iter().find(|other| !other.has_owner_of(first))?;
        Some((first.id, other.id))
    };
    let Some((first, other)) = stranger(&found) else {
        return Meant::These(found);
    };
    let left: Vec<Found> = found
        .into_iter()
        .filter(|found| found.server != ServerState::Live)
        .collect();
    match stranger(&left) {
        Some((first, other)) => Meant::Several(first, other),
        None if left.is_empty() => Meant::Served(first, other),
        None => Meant::These(left),
    }
}

/// One device; `None` if there is none with this number.
pub(super) fn find(control: &mut Control, id: u32) -> Result<Option<Found>, FrontError> {
    match control.info(id) {
        Ok(info) => Ok(Some(Found::new(&info))),
        // ENOENT: deleted, and only its number is still taken.
        Err(error) if matches!(error.errno.get(), libc::ENODEV | libc::ENOENT) => Ok(None),
        Err(error) => {
            let what = format!("ask for ublk device {id}");
            Err(refused(error, &what, "see the kernel's log (dmesg)"))
        }
    }
}

/// The numbers of all ublk devices of this host, in order.
pub(super) fn numbers() -> Vec<u32> {
    let mut numbers: Vec<u32> = fs::read_dir("/dev")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            name.to_str()?.strip_prefix("ublkc")?.parse().ok()
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Removes a device that nobody serves: what waits for it gets an error.
pub(super) fn remove(control: &mut Control, id: u32) -> Result<(), FrontError> {
    let what = format!("remove /dev/ublkb{id}");
    let end = Instant::now() + NOTICE_WAIT;
    loop {
        let Some(found) = find(control, id)? else {
            return Ok(());
        };
        if !found.is_ours() {
            let action = "another program made it: use that program to remove it";
            return Err(failed(&what, Errno::new(libc::EPERM), action));
        }
        if found.server != ServerState::Live {
            break;
        }
        if Instant::now() > end {
            let pid = found
                .pid
                .map_or_else(String::new, |pid| format!(" (process {pid})"));
            let action = format!("it is served{pid}: detach its volume there");
            return Err(failed(&what, Errno::EBUSY, &action));
        }
        std::thread::sleep(ASK_EVERY);
    }
    for done in [control.stop(id, STOP_WAIT), control.delete(id)] {
        match done {
            Err(error) if error.errno != Errno::ENODEV => {
                return Err(refused(error, &what, "see the kernel's log (dmesg)"));
            }
            _ => {}
        }
    }
    wait_until_free(control, id, FREE_WAIT);
    Ok(())
}

/// Waits until the number of a deleted device can be used again. A program that still has the
/// block device open keeps the number; that is its right, and no reason to wait longer.
pub(super) fn wait_until_free(control: &mut Control, id: u32, wait: Duration) {
    let end = Instant::now() + wait;
    while control
        .info(id)
        .err()
        .is_none_or(|error| error.errno != Errno::ENODEV)
    {
        if Instant::now() > end {
            tracing::warn!(
                device = id,
                "deleted, but its number is taken until it is closed"
            );
            return;
        }
        std::thread::sleep(ASK_EVERY);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::fake::{FakeDriver, spec};
    use super::super::setup;
    use super::*;

    fn left(driver: &FakeDriver) {
        setup::add(&mut driver.control(), &spec()).unwrap();
        driver.change(0, |device| {
            device.info.state = state::QUIESCED;
            device.info.server_pid = 77;
        });
    }

    #[test]
    fn a_device_is_recognised_by_its_mark() {
        let driver = FakeDriver::new(0x1fe);
        left(&driver);
        let found = find(&mut driver.control(), 0).unwrap().unwrap();
        assert_eq!((found.server, found.pid), (ServerState::Waiting, Some(77)));
        let (owner, volume) = (spec().owner, spec().volume);
        assert!(found.is_ours() && found.belongs_to(owner, &volume));
        let other = VolumeName::new("other").unwrap();
        assert!(!found.belongs_to(owner, &other) && !found.is_of(&other));
        // Another daemon's volume of the same name.
        assert!(!found.belongs_to(Owner::of("another"), &volume) && found.is_of(&volume));
        assert_eq!(find(&mut driver.control(), 1).unwrap(), None);
    }

    #[test]
    fn a_device_without_a_server_is_removed() {
        let driver = FakeDriver::new(0x1fe);
        left(&driver);
        driver.change(0, |device| device.lingers_for = 2);
        remove(&mut driver.control(), 0).unwrap();
        assert!(driver.info(0).is_none());
        remove(&mut driver.control(), 0).unwrap();
    }

    #[test]
    fn of_several_daemons_the_one_that_is_gone_is_meant() {
        let volume = spec().volume;
        let found = |id, owner: &str, server| Found {
            id,
            server,
            pid: Some(77),
            mark: mark_of(Owner::of(owner), &volume),
        };
        let (live, waiting) = (ServerState::Live, ServerState::Waiting);
        let (ours, theirs) = (found(0, "ours", live), found(1, "theirs", live));
        let (ours_left, theirs_left) = (found(0, "ours", waiting), found(1, "theirs", waiting));
        assert_eq!(meant(Vec::new()), Meant::These(Vec::new()));
        assert_eq!(meant(vec![ours]), Meant::These(vec![ours]));
        assert_eq!(meant(vec![ours, theirs]), Meant::Served(0, 1));
        let only = Meant::These(vec![theirs_left]);
        assert_eq!(meant(vec![ours, theirs_left]), only);
        assert_eq!(meant(vec![ours_left, theirs_left]), Meant::Several(0, 1));
        let second = found(2, "ours", live);
        assert_eq!(
            meant(vec![ours_left, second]),
            Meant::These(vec![ours_left, second]),
            "a daemon's own are not told apart"
        );
    }

    #[test]
    fn a_strangers_device_is_not() {
        let driver = FakeDriver::new(0x1fe);
        left(&driver);
        driver.change(0, |device| device.info.server_mark = 0);
        assert!(remove(&mut driver.control(), 0).is_err());
        assert!(driver.info(0).is_some());
    }
}
