//! The control commands of the driver, typed.
//!
//! Owns the arguments, the time limits and the meaning of the answers. Calls enter, devices' facts
//! or an error with a name leave. Never decides when a command is due: that is the device's work.

use super::abi::{ANY_DEVICE, DeviceInfo, Params, command, feature};
use super::channel::{Call, Channel, Patience};
use blkrep_types::Errno;
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

/// For a command that only reads or writes the driver's tables.
const SHORT: Duration = Duration::from_secs(10);

/// For making and starting a device: the kernel reads its partition table through us, and that
/// read may have to wait for a slow backing.
const LONG: Duration = Duration::from_secs(60);

/// Bytes of the longest mask of processors: 8192, what a kernel can be built for.
const AFFINITY_BYTES: usize = 1024;

/// A command that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) command: u32,
    pub(super) errno: Errno,
}

type Answer<T> = Result<T, Refused>;

/// The driver's control side.
#[derive(Debug)]
pub(super) struct Control {
    channel: Box<dyn Channel>,
}

impl Control {
    pub(super) fn new(channel: Box<dyn Channel>) -> Self {
        Self { channel }
    }

    fn call(
        &mut self,
        call: Call,
        argument: &mut [u8],
        patience: &Patience<'_>,
    ) -> Result<(), Refused> {
        self.channel
            .execute(&call, argument, patience)
            .map_err(|errno| Refused {
                command: call.command,
                errno,
            })
    }

    fn plain(&mut self, command: u32, device: u32, data: u64, limit: Duration) -> Answer<()> {
        self.call(
            call(command, device, data),
            &mut [],
            &Patience::up_to(limit),
        )
    }

    /// What the driver can do.
    pub(super) fn features(&mut self) -> Answer<u64> {
        let mut features = [0; 8];
        let patience = Patience::up_to(SHORT);
        self.call(
            call(command::GET_FEATURES, ANY_DEVICE, 0),
            &mut features,
            &patience,
        )?;
        Ok(u64::from_le_bytes(features))
    }

    /// Makes a device; `info` comes back as the driver has changed it.
    pub(super) fn add(&mut self, info: &mut DeviceInfo) -> Answer<()> {
        let added = call(command::ADD_DEV, info.device, 0);
        self.call(added, info.as_mut_bytes(), &Patience::up_to(LONG))
    }

    /// Sets what the device looks like.
    pub(super) fn set_params(&mut self, device: u32, params: &Params) -> Answer<()> {
        let mut params = *params;
        let len = usize::try_from(params.len).expect("64-bit platform");
        let argument = &mut params.as_mut_bytes()[..len];
        let set = call(command::SET_PARAMS, device, 0);
        self.call(set, argument, &Patience::up_to(SHORT))
    }

    /// What the device looks like.
    pub(super) fn params(&mut self, device: u32) -> Answer<Params> {
        /// All of it but the padding: there, the kernel's structure goes on.
        const LEN: usize = std::mem::offset_of!(Params, pad);
        let mut params = Params {
            len: u32::try_from(LEN).expect("a small constant"),
            ..Params::default()
        };
        let get = call(command::GET_PARAMS, device, 0);
        let argument = &mut params.as_mut_bytes()[..LEN];
        self.call(get, argument, &Patience::up_to(SHORT))?;
        Ok(params)
    }

    /// What the driver knows about a device; ENODEV if there is none.
    pub(super) fn info(&mut self, device: u32) -> Answer<DeviceInfo> {
        let path = format!("/dev/ublkc{device}\0");
        let mut argument = path.clone().into_bytes();
        argument.resize(path.len() + size_of::<DeviceInfo>(), 0);
        let get = Call {
            path_len: u16::try_from(path.len()).expect("a short path"),
            ..call(command::GET_DEV_INFO2, device, 0)
        };
        self.call(get, &mut argument, &Patience::up_to(SHORT))?;
        Ok(DeviceInfo::read_from_bytes(&argument[path.len()..]).expect("sized for it"))
    }

    /// Processors whose requests come to this queue.
    pub(super) fn affinity(&mut self, device: u32, queue: u16) -> Answer<Vec<usize>> {
        let mut mask = [0; AFFINITY_BYTES];
        let get = call(command::GET_QUEUE_AFFINITY, device, u64::from(queue));
        self.call(get, &mut mask, &Patience::up_to(SHORT))?;
        Ok(processors(&mask))
    }

    /// Lets the device appear. Returns when the kernel has read its partition table.
    pub(super) fn start(
        &mut self,
        device: u32,
        pid: u32,
        give_up: &dyn Fn() -> Option<Errno>,
    ) -> Answer<()> {
        let started = call(command::START_DEV, device, u64::from(pid));
        let patience = Patience {
            limit: LONG,
            give_up,
        };
        self.call(started, &mut [], &patience)
    }

    /// Makes the device disappear, when its requests in flight are answered.
    pub(super) fn stop(&mut self, device: u32, limit: Duration) -> Answer<()> {
        self.plain(command::STOP_DEV, device, 0, limit)
    }

    /// Deletes the device without waiting for its last user.
    pub(super) fn delete(&mut self, device: u32) -> Answer<()> {
        match self.plain(command::DEL_DEV_ASYNC, device, 0, SHORT) {
            // Before 6.9 there is only the command that waits. Given up, it has still deleted.
            Err(refused) if refused.errno == Errno::EOPNOTSUPP => {
                match self.plain(command::DEL_DEV, device, 0, SHORT) {
                    Err(refused) if refused.errno == Errno::ETIMEDOUT => Ok(()),
                    other => other,
                }
            }
            other => other,
        }
    }

    /// Begins to take over a device whose server is gone; EBUSY while it is not yet.
    pub(super) fn start_recovery(&mut self, device: u32) -> Answer<()> {
        self.plain(command::START_USER_RECOVERY, device, 0, SHORT)
    }

    /// Ends the take-over: requests come again, those in flight at the crash first.
    pub(super) fn end_recovery(
        &mut self,
        device: u32,
        pid: u32,
        give_up: &dyn Fn() -> Option<Errno>,
    ) -> Answer<()> {
        let ended = call(command::END_USER_RECOVERY, device, u64::from(pid));
        let patience = Patience {
            limit: LONG,
            give_up,
        };
        self.call(ended, &mut [], &patience)
    }

    /// Takes the commands of an idle device back, so that its server can let go of it.
    pub(super) fn quiesce(&mut self, device: u32, limit: Duration) -> Answer<()> {
        let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        // The driver keeps the limit itself; ours is for a driver that does not.
        self.plain(command::QUIESCE_DEV, device, millis, limit + SHORT)
    }
}

/// What is missing of the features that a recoverable device needs, as names.
pub(super) fn missing(features: u64) -> Vec<&'static str> {
    [
        (feature::USER_RECOVERY, "USER_RECOVERY"),
        (feature::USER_RECOVERY_REISSUE, "USER_RECOVERY_REISSUE"),
        (feature::IOCTL_ENCODE, "CMD_IOCTL_ENCODE"),
    ]
    .into_iter()
    .filter(|(bit, _)| features & bit == 0)
    .map(|(_, name)| name)
    .collect()
}

/// The flags of a device on a driver with `features`.
pub(super) fn device_flags(features: u64) -> u64 {
    let wanted = feature::USER_RECOVERY
        | feature::USER_RECOVERY_REISSUE
        | feature::IOCTL_ENCODE
        | feature::QUIESCE;
    features & wanted
}

fn call(command: u32, device: u32, data: u64) -> Call {
    Call {
        command,
        device,
        data,
        path_len: 0,
    }
}

/// The numbers of the bits that are set.
fn processors(mask: &[u8]) -> Vec<usize> {
    (0..mask.len() * 8)
        .filter(|bit| mask[bit / 8] & (1 << (bit % 8)) != 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_without_recovery_is_refused_by_name() {
        assert!(missing(0x1fe).is_empty());
        assert!(missing(0xf_ffff).is_empty());
        assert_eq!(missing(0x40), ["USER_RECOVERY", "USER_RECOVERY_REISSUE"]);
    }

    #[test]
    fn a_device_gets_no_feature_that_changes_the_data_path() {
        assert_eq!(device_flags(0x1fe), 0b101_1000);
        assert_eq!(device_flags(u64::MAX), 0b101_1000 | 1 << 12);
    }

    #[test]
    fn a_mask_is_read_as_processor_numbers() {
        assert_eq!(processors(&[0b1000_0001, 0, 0b10]), [0, 7, 17]);
        assert!(processors(&[0; 8]).is_empty());
    }
}
