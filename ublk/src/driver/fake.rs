//! A driver for tests: the rules of the control commands, without a kernel.

use super::abi::{ANY_DEVICE, DeviceInfo, Params, command, state};
use super::channel::{Call, Channel, Patience};
use super::control::Control;
use crate::front::{DeviceSpec, Owner};
use blkrep_types::{BlockSize, ByteLen, Errno, VolumeName};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use zerocopy::{FromBytes, IntoBytes};

/// A device of the fake.
#[derive(Debug, Clone, Default)]
pub(super) struct FakeDevice {
    pub(super) info: DeviceInfo,
    pub(super) params: Params,
    /// Times that a take-over is still refused.
    pub(super) busy_for: u32,
    pub(super) recovering: bool,
    /// Times that the number is still taken after the deletion.
    pub(super) lingers_for: u32,
    pub(super) deleted: bool,
}

#[derive(Debug, Default)]
struct Model {
    features: u64,
    devices: BTreeMap<u32, FakeDevice>,
    refuse: Option<(u32, Errno)>,
    log: Vec<&'static str>,
}

/// The fake driver; clones share it.
#[derive(Debug, Clone)]
pub(super) struct FakeDriver(Arc<Mutex<Model>>);

impl FakeDriver {
    pub(super) fn new(features: u64) -> Self {
        Self(Arc::new(Mutex::new(Model {
            features,
            ..Model::default()
        })))
    }

    fn with<R>(&self, act: impl FnOnce(&mut Model) -> R) -> R {
        act(&mut self.0.lock().expect("tests do not panic in here"))
    }

    pub(super) fn control(&self) -> Control {
        Control::new(Box::new(self.clone()))
    }

    pub(super) fn device(&self, id: u32) -> Option<FakeDevice> {
        self.with(|model| model.devices.get(&id).cloned())
    }

    pub(super) fn info(&self, id: u32) -> Option<DeviceInfo> {
        self.device(id).map(|device| device.info)
    }

    pub(super) fn params(&self, id: u32) -> Option<Params> {
        self.device(id).map(|device| device.params)
    }

    pub(super) fn change(&self, id: u32, act: impl FnOnce(&mut FakeDevice)) {
        self.with(|model| act(model.devices.get_mut(&id).expect("the device exists")));
    }

    /// Refuses a command from now on.
    pub(super) fn refuse(&self, command: u32, errno: Errno) {
        self.with(|model| model.refuse = Some((command, errno)));
    }

    /// The names of the commands so far.
    pub(super) fn log(&self) -> Vec<&'static str> {
        self.with(|model| model.log.clone())
    }
}

impl Channel for FakeDriver {
    fn execute(
        &mut self,
        call: &Call,
        argument: &mut [u8],
        patience: &Patience<'_>,
    ) -> Result<(), Errno> {
        self.with(|model| {
            model.log.push(command::name(call.command));
            match model.refuse {
                Some((command, errno)) if command == call.command => return Err(errno),
                _ => {}
            }
            if let Some(errno) = (patience.give_up)() {
                return Err(errno);
            }
            model.execute(call, argument)
        })
    }
}

impl Model {
    fn execute(&mut self, call: &Call, argument: &mut [u8]) -> Result<(), Errno> {
        match call.command {
            command::GET_FEATURES => {
                argument.copy_from_slice(&self.features.to_le_bytes());
                return Ok(());
            }
            command::ADD_DEV => return self.add(argument),
            _ => {}
        }
        let device = self.devices.get_mut(&call.device).ok_or(Errno::ENODEV)?;
        match call.command {
            command::SET_PARAMS => device.params = read_params(argument),
            command::GET_PARAMS => {
                argument.copy_from_slice(&device.params.as_bytes()[..argument.len()]);
            }
            command::GET_DEV_INFO2 => {
                if device.deleted {
                    return self.linger(call.device);
                }
                argument[usize::from(call.path_len)..].copy_from_slice(device.info.as_bytes());
            }
            command::START_DEV | command::END_USER_RECOVERY => {
                device.info.state = state::LIVE;
                device.recovering = false;
            }
            command::STOP_DEV => device.info.state = state::DEAD,
            command::DEL_DEV_ASYNC => {
                device.deleted = true;
                if device.lingers_for == 0 {
                    self.devices.remove(&call.device);
                }
            }
            command::QUIESCE_DEV => device.info.state = state::QUIESCED,
            command::START_USER_RECOVERY if device.busy_for > 0 => {
                device.busy_for = device.busy_for.saturating_sub(1);
                return Err(Errno::EBUSY);
            }
            command::START_USER_RECOVERY => device.recovering = true,
            _ => return Err(Errno::EOPNOTSUPP),
        }
        Ok(())
    }

    fn add(&mut self, argument: &mut [u8]) -> Result<(), Errno> {
        let mut info = DeviceInfo::read_from_bytes(argument).map_err(|_| Errno::EINVAL)?;
        let free = (0..u32::MAX).find(|id| !self.devices.contains_key(id));
        if info.device == ANY_DEVICE {
            info.device = free.ok_or(Errno::ENOSPC)?;
        } else if self.devices.contains_key(&info.device) {
            return Err(Errno::new(libc::EEXIST));
        }
        argument.copy_from_slice(info.as_bytes());
        let device = FakeDevice {
            info,
            ..FakeDevice::default()
        };
        self.devices.insert(info.device, device);
        Ok(())
    }

    fn linger(&mut self, id: u32) -> Result<(), Errno> {
        let device = self.devices.get_mut(&id).ok_or(Errno::ENODEV)?;
        device.lingers_for = device.lingers_for.saturating_sub(1);
        if device.lingers_for == 0 {
            self.devices.remove(&id);
        }
        Err(Errno::new(libc::ENOENT))
    }
}

fn read_params(argument: &[u8]) -> Params {
    let mut params = Params::default();
    params.as_mut_bytes()[..argument.len()].copy_from_slice(argument);
    params
}

/// A spec for tests.
pub(super) fn spec() -> DeviceSpec {
    DeviceSpec {
        volume: VolumeName::new("data").expect("a legal name"),
        owner: Owner::of("test"),
        len: ByteLen::new(1 << 20),
        block_size: BlockSize::B4096,
        physical_block_bytes: 4096,
        read_only: false,
        write_cache: true,
        discard: true,
        queues: 1,
        depth: 64,
        request_bytes_max: 512 << 10,
        device_id: None,
        recover: false,
    }
}
