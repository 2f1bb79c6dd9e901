//! Making a device, and taking one over.
//!
//! Owns the order of the commands and what is undone when one fails. A spec enters, the driver's
//! word on the device leaves, ready for its queues. Never serves a request.

use super::abi::{ANY_DEVICE, DEPTH_MAX, DeviceInfo, SECTOR_SHIFT, feature, state};
use super::control::{Control, Refused, device_flags, missing};
use super::errors::{failed, refused};
use super::params::{is_mark_of, is_ours, mark_of, params_of, request_bytes};
use crate::front::{DeviceSpec, FrontError};
use blkrep_types::Errno;
use std::time::{Duration, Instant};

/// How often a device is asked whether its old server is gone.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// Checks what the driver can do.
///
/// # Errors
/// EOPNOTSUPP if a device could not survive its server here.
pub(super) fn check_features(control: &mut Control) -> Result<u64, FrontError> {
    let upgrade = "use a kernel from 6.5 on, or another front end (loop, nbd)";
    let features = control
        .features()
        .map_err(|error| refused(error, "ask the ublk driver for its features", upgrade))?;
    let missing = missing(features);
    if missing.is_empty() {
        return Ok(features);
    }
    let what = format!(
        "the ublk driver of this kernel lacks {}",
        missing.join(", ")
    );
    Err(failed(&what, Errno::EOPNOTSUPP, upgrade))
}

/// Makes a new device and sets its parameters.
///
/// # Errors
/// What the driver says; then no device is left behind.
pub(super) fn add(control: &mut Control, spec: &DeviceSpec) -> Result<DeviceInfo, FrontError> {
    let features = check_features(control)?;
    check_spec(spec)?;
    let wanted = spec.device_id.unwrap_or(ANY_DEVICE);
    let mut info = DeviceInfo {
        queues: spec.queues.max(1),
        depth: spec.depth,
        request_bytes_max: request_bytes(spec),
        device: wanted,
        server_pid: -1,
        flags: device_flags(features),
        server_mark: mark_of(spec.owner, &spec.volume),
        ..DeviceInfo::default()
    };
    let what = match spec.device_id {
        Some(id) => format!("make ublk device {id} for volume {}", spec.volume),
        None => format!("make a ublk device for volume {}", spec.volume),
    };
    control
        .add(&mut info)
        .map_err(|error| add_error(control, error, &what, (wanted, spec)))?;
    if let Err(error) = control.set_params(info.device, &params_of(spec)) {
        undo(control, info.device);
        return Err(refused(
            error,
            &what,
            "check block size and size of the backing",
        ));
    }
    Ok(info)
}

/// Deletes a device that never came to serve.
pub(super) fn undo(control: &mut Control, id: u32) {
    if let Err(error) = control.delete(id) {
        tracing::error!(device = id, errno = %error.errno, "an unfinished ublk device is left");
    }
}

fn check_spec(spec: &DeviceSpec) -> Result<(), FrontError> {
    let block = spec.block_size.get();
    if spec.len.get() == 0 || !spec.len.get().is_multiple_of(block) {
        let what = format!(
            "volume {} of {} is not whole blocks of {block} bytes",
            spec.volume, spec.len
        );
        return Err(failed(
            &what,
            Errno::EINVAL,
            "give a size (--size) that is a multiple",
        ));
    }
    if spec.depth == 0 || spec.depth > DEPTH_MAX {
        let what = format!("a queue depth of {}", spec.depth);
        return Err(failed(&what, Errno::EINVAL, "use 1 to 4096"));
    }
    Ok(())
}

fn add_error(
    control: &mut Control,
    error: Refused,
    what: &str,
    (id, spec): (u32, &DeviceSpec),
) -> FrontError {
    if error.errno.get() != libc::EEXIST {
        return refused(error, what, "see the kernel's log (dmesg) for its reason");
    }
    let action = match control.info(id) {
        Ok(info) if is_ours(info.server_mark) && !is_mark_of(info.server_mark, spec.owner) => {
            let pid = info.server_pid;
            return refused(
                error,
                what,
                &format!(
                    "another blkrepd of this host has it (process {pid}): detach its volume there, or \
                     detach this one and attach it with another --device-id"
                ),
            );
        }
        Ok(info) if is_ours(info.server_mark) => {
            "blkrep made it: attach its volume again, or remove it with 'blkctl detach --force'"
        }
        _ => "another program made it: choose another number (--device-id)",
    };
    refused(error, what, action)
}

/// Takes over device `id`, which a predecessor left behind, waiting up to `wait` until it is gone.
///
/// # Errors
/// ENODEV if there is no such device; EINVAL if it is not this volume's; EBUSY if it is still
/// served after `wait`. The device stays as it is.
pub(super) fn recover(
    control: &mut Control,
    spec: &DeviceSpec,
    id: u32,
    wait: Duration,
) -> Result<DeviceInfo, FrontError> {
    check_features(control)?;
    let what = format!("take over ublk device {id} of volume {}", spec.volume);
    let end = Instant::now() + wait;
    let info = control
        .info(id)
        .map_err(|error| refused(error, &what, "attach the volume anew"))?;
    check_heritage(control, spec, &info, &what)?;
    while let Err(error) = control.start_recovery(id) {
        match error.errno {
            Errno::EBUSY if Instant::now() < end => std::thread::sleep(ASK_EVERY),
            Errno::EBUSY => {
                let action = "its server still runs, or the kernel still waits for its last \
                              writes: end that process, then try again";
                return Err(refused(error, &what, action));
            }
            // Older drivers say so if a successor died after it had begun: go on then.
            Errno::EINVAL if begun_already(control, id) => break,
            _ => {
                return Err(refused(
                    error,
                    &what,
                    "detach it with --force, then attach anew",
                ));
            }
        }
    }
    control
        .info(id)
        .map_err(|error| refused(error, &what, "attach the volume anew"))
}

fn begun_already(control: &mut Control, id: u32) -> bool {
    control
        .info(id)
        .is_ok_and(|info| info.flags & feature::USER_RECOVERY != 0 && info.state == state::QUIESCED)
}

/// Refuses a device that is not the one that was left behind for this spec.
fn check_heritage(
    control: &mut Control,
    spec: &DeviceSpec,
    info: &DeviceInfo,
    what: &str,
) -> Result<(), FrontError> {
    let wrong = |why: &str| {
        let what = format!("{what}: {why}");
        Err(failed(
            &what,
            Errno::EINVAL,
            "detach it with --force, then attach the volume anew",
        ))
    };
    if is_ours(info.server_mark) && !is_mark_of(info.server_mark, spec.owner) {
        return wrong("another blkrepd of this host made it");
    }
    if info.server_mark != mark_of(spec.owner, &spec.volume) {
        return wrong("it was not made for this volume");
    }
    if info.flags & feature::USER_RECOVERY_REISSUE == 0 {
        return wrong("it was made without recovery");
    }
    if info.state == state::DEAD {
        return wrong("it was never started, or it is stopped");
    }
    let params = control
        .params(info.device)
        .map_err(|error| refused(error, what, "see the kernel's log (dmesg)"))?;
    if params.device_sectors != spec.len.get() >> SECTOR_SHIFT {
        return wrong("it has another size than the volume has now");
    }
    if params.logical_shift != spec.block_size.shift() {
        return wrong("it has another block size than the volume has now");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::fake::{FakeDriver, spec};
    use super::*;
    use crate::front::Owner;
    use blkrep_types::{ByteLen, VolumeName};

    const WAIT: Duration = Duration::from_secs(10);

    #[test]
    fn a_new_device_carries_our_mark_and_flags() {
        let driver = FakeDriver::new(0xf_ffff);
        let info = add(&mut driver.control(), &spec()).unwrap();
        assert_eq!(info.device, 0);
        assert!(is_ours(info.server_mark));
        let made = driver.info(0).unwrap();
        assert_eq!(made.flags & 0b1_1000, 0b1_1000);
        assert_eq!(made.request_bytes_max, 512 << 10);
        assert_eq!(driver.params(0).unwrap().device_sectors, 2048);
    }

    #[test]
    fn an_old_driver_is_refused_before_anything_is_made() {
        let driver = FakeDriver::new(0x40);
        let error = add(&mut driver.control(), &spec()).unwrap_err();
        assert_eq!(error.source, Errno::EOPNOTSUPP);
        assert!(error.what.contains("USER_RECOVERY"), "{error}");
        assert!(driver.info(0).is_none());
    }

    #[test]
    fn a_number_that_is_taken_is_said_by_whom() {
        let driver = FakeDriver::new(0x1fe);
        let spec = DeviceSpec {
            device_id: Some(5),
            ..spec()
        };
        add(&mut driver.control(), &spec).unwrap();
        let error = add(&mut driver.control(), &spec).unwrap_err();
        assert!(error.action.contains("detach --force"), "{error}");
        let stranger = DeviceSpec {
            owner: Owner::of("another"),
            ..spec.clone()
        };
        let error = add(&mut driver.control(), &stranger).unwrap_err();
        assert!(error.action.contains("another blkrepd"), "{error}");
        driver.change(5, |device| device.info.server_mark = 7);
        let error = add(&mut driver.control(), &spec).unwrap_err();
        assert!(error.action.contains("--device-id"), "{error}");
    }

    #[test]
    fn a_device_whose_parameters_are_refused_is_not_left_behind() {
        let driver = FakeDriver::new(0x1fe);
        driver.refuse(super::super::abi::command::SET_PARAMS, Errno::EINVAL);
        assert!(add(&mut driver.control(), &spec()).is_err());
        assert!(driver.info(0).is_none());
    }

    #[test]
    fn a_spec_that_cannot_be_is_refused() {
        let driver = FakeDriver::new(0x1fe);
        for wrong in [
            DeviceSpec {
                len: ByteLen::ZERO,
                ..spec()
            },
            DeviceSpec {
                len: ByteLen::new(4097),
                ..spec()
            },
            DeviceSpec { depth: 0, ..spec() },
            DeviceSpec {
                depth: 4097,
                ..spec()
            },
        ] {
            let error = add(&mut driver.control(), &wrong).unwrap_err();
            assert_eq!(error.source, Errno::EINVAL);
        }
        assert!(driver.info(0).is_none());
    }

    fn left_behind(driver: &FakeDriver) {
        add(&mut driver.control(), &spec()).unwrap();
        driver.change(0, |device| device.info.state = state::QUIESCED);
    }

    #[test]
    fn a_successor_waits_until_its_predecessor_is_gone() {
        let driver = FakeDriver::new(0x1fe);
        left_behind(&driver);
        driver.change(0, |device| device.busy_for = 3);
        let info = recover(&mut driver.control(), &spec(), 0, WAIT).unwrap();
        assert_eq!(info.depth, 64);
        assert!(driver.device(0).unwrap().recovering);
    }

    #[test]
    fn a_predecessor_that_stays_is_reported_and_left_alone() {
        let driver = FakeDriver::new(0x1fe);
        left_behind(&driver);
        driver.change(0, |device| device.busy_for = u32::MAX);
        let wait = Duration::from_millis(30);
        let error = recover(&mut driver.control(), &spec(), 0, wait).unwrap_err();
        assert_eq!(error.source, Errno::EBUSY);
        assert!(driver.info(0).is_some());
    }

    #[test]
    fn a_device_of_another_volume_size_or_block_is_not_taken_over() {
        let driver = FakeDriver::new(0x1fe);
        left_behind(&driver);
        let other = VolumeName::new("other").unwrap();
        for wrong in [
            DeviceSpec {
                volume: other,
                ..spec()
            },
            // Another daemon of this host has a volume of the same name.
            DeviceSpec {
                owner: Owner::of("another"),
                ..spec()
            },
            DeviceSpec {
                len: ByteLen::new(8 << 20),
                ..spec()
            },
            DeviceSpec {
                block_size: blkrep_types::BlockSize::B512,
                ..spec()
            },
        ] {
            let error = recover(&mut driver.control(), &wrong, 0, WAIT).unwrap_err();
            assert_eq!(error.source, Errno::EINVAL, "{error}");
        }
        let error = recover(&mut driver.control(), &spec(), 9, WAIT).unwrap_err();
        assert_eq!(error.source, Errno::ENODEV);
    }

    #[test]
    fn a_take_over_that_died_half_way_is_gone_on_with() {
        let driver = FakeDriver::new(0x1fe);
        left_behind(&driver);
        driver.refuse(
            super::super::abi::command::START_USER_RECOVERY,
            Errno::EINVAL,
        );
        assert!(recover(&mut driver.control(), &spec(), 0, WAIT).is_ok());
        driver.change(0, |device| device.info.state = state::LIVE);
        assert!(recover(&mut driver.control(), &spec(), 0, WAIT).is_err());
    }
}
