//! The kernel's ublk interface as values.
//!
//! Owns the numbers and layouts of the kernel's public header `linux/ublk_cmd.h`, with their sizes
//! asserted at compile time. Nothing enters or leaves; never talks to the kernel.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A 512-byte sector as a shift: the kernel counts positions and lengths in sectors.
pub(super) const SECTOR_SHIFT: u32 = 9;

/// Requests a queue can have outstanding (`UBLK_MAX_QUEUE_DEPTH`).
pub(super) const DEPTH_MAX: u16 = 4096;

/// Number of a queue in a control command that is not about a queue.
pub(super) const NO_QUEUE: u16 = u16::MAX;

/// Number of a device that the kernel is to choose.
pub(super) const ANY_DEVICE: u32 = u32::MAX;

/// How a control command is encoded: the direction bits of an `ioctl` number.
const READ: u32 = 2;
const READ_WRITE: u32 = 3;

const fn encode(direction: u32, number: u32, argument_bytes: usize) -> u32 {
    assert!(
        argument_bytes < 1 << 14,
        "an ioctl argument is shorter than 16 KiB"
    );
    #[allow(clippy::cast_possible_truncation)] // Just asserted.
    let bytes = argument_bytes as u32;
    direction << 30 | bytes << 16 | (b'u' as u32) << 8 | number
}

const fn control(direction: u32, number: u32) -> u32 {
    encode(direction, number, size_of::<ControlCommand>())
}

/// Control commands, to `/dev/ublk-control`.
pub(super) mod command {
    use super::{READ, READ_WRITE, control};

    pub(in crate::driver) const GET_QUEUE_AFFINITY: u32 = control(READ, 0x01);
    pub(in crate::driver) const ADD_DEV: u32 = control(READ_WRITE, 0x04);
    pub(in crate::driver) const DEL_DEV: u32 = control(READ_WRITE, 0x05);
    pub(in crate::driver) const START_DEV: u32 = control(READ_WRITE, 0x06);
    pub(in crate::driver) const STOP_DEV: u32 = control(READ_WRITE, 0x07);
    pub(in crate::driver) const SET_PARAMS: u32 = control(READ_WRITE, 0x08);
    pub(in crate::driver) const GET_PARAMS: u32 = control(READ, 0x09);
    pub(in crate::driver) const START_USER_RECOVERY: u32 = control(READ_WRITE, 0x10);
    pub(in crate::driver) const END_USER_RECOVERY: u32 = control(READ_WRITE, 0x11);
    pub(in crate::driver) const GET_DEV_INFO2: u32 = control(READ, 0x12);
    pub(in crate::driver) const GET_FEATURES: u32 = control(READ, 0x13);
    pub(in crate::driver) const DEL_DEV_ASYNC: u32 = control(READ, 0x14);
    pub(in crate::driver) const QUIESCE_DEV: u32 = control(READ_WRITE, 0x16);

    /// The name of a command, for errors.
    pub(in crate::driver) fn name(command: u32) -> &'static str {
        match command {
            GET_QUEUE_AFFINITY => "GET_QUEUE_AFFINITY",
            ADD_DEV => "ADD_DEV",
            DEL_DEV => "DEL_DEV",
            START_DEV => "START_DEV",
            STOP_DEV => "STOP_DEV",
            SET_PARAMS => "SET_PARAMS",
            GET_PARAMS => "GET_PARAMS",
            START_USER_RECOVERY => "START_USER_RECOVERY",
            END_USER_RECOVERY => "END_USER_RECOVERY",
            GET_DEV_INFO2 => "GET_DEV_INFO2",
            GET_FEATURES => "GET_FEATURES",
            DEL_DEV_ASYNC => "DEL_DEV_ASYNC",
            QUIESCE_DEV => "QUIESCE_DEV",
            _ => "unknown command",
        }
    }
}

/// Data commands, to `/dev/ublkcN`.
pub(super) mod io_command {
    use super::{IoCommand, READ_WRITE, encode};

    pub(in crate::driver) const FETCH: u32 = encode(READ_WRITE, 0x20, size_of::<IoCommand>());
    pub(in crate::driver) const COMMIT_AND_FETCH: u32 =
        encode(READ_WRITE, 0x21, size_of::<IoCommand>());
}

/// What the driver can do, and what a device was made with.
pub(super) mod feature {
    pub(in crate::driver) const USER_RECOVERY: u64 = 1 << 3;
    pub(in crate::driver) const USER_RECOVERY_REISSUE: u64 = 1 << 4;
    pub(in crate::driver) const IOCTL_ENCODE: u64 = 1 << 6;
    pub(in crate::driver) const QUIESCE: u64 = 1 << 12;
}

/// The state of a device in [`DeviceInfo`].
pub(super) mod state {
    pub(in crate::driver) const DEAD: u16 = 0;
    pub(in crate::driver) const LIVE: u16 = 1;
    pub(in crate::driver) const QUIESCED: u16 = 2;
    pub(in crate::driver) const FAIL_IO: u16 = 3;
}

/// Operations and flags of a request in [`Descriptor`].
pub(super) mod operation {
    pub(in crate::driver) const READ: u32 = 0;
    pub(in crate::driver) const WRITE: u32 = 1;
    pub(in crate::driver) const FLUSH: u32 = 2;
    pub(in crate::driver) const DISCARD: u32 = 3;
    pub(in crate::driver) const WRITE_ZEROES: u32 = 5;
    /// The operation's part of the word; the rest are flags.
    pub(in crate::driver) const MASK: u32 = 0xff;
    pub(in crate::driver) const FUA: u32 = 1 << 13;
    pub(in crate::driver) const NO_UNMAP: u32 = 1 << 15;
}

/// Parts of [`Params`] that are set, and attributes of a device.
pub(super) mod param {
    pub(in crate::driver) const BASIC: u32 = 1 << 0;
    pub(in crate::driver) const DISCARD: u32 = 1 << 1;
    pub(in crate::driver) const READ_ONLY: u32 = 1 << 0;
    pub(in crate::driver) const VOLATILE_CACHE: u32 = 1 << 2;
    pub(in crate::driver) const FUA: u32 = 1 << 3;
}

/// `struct ublksrv_ctrl_cmd`.
#[derive(Debug, Clone, Copy, Default, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct ControlCommand {
    pub(super) device: u32,
    pub(super) queue: u16,
    pub(super) len: u16,
    pub(super) addr: u64,
    pub(super) data: u64,
    pub(super) path_len: u16,
    pub(super) pad: u16,
    pub(super) reserved: u32,
}

/// `struct ublksrv_ctrl_dev_info`.
#[derive(Debug, Clone, Copy, Default, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct DeviceInfo {
    pub(super) queues: u16,
    pub(super) depth: u16,
    pub(super) state: u16,
    pub(super) pad0: u16,
    pub(super) request_bytes_max: u32,
    pub(super) device: u32,
    pub(super) server_pid: i32,
    pub(super) pad1: u32,
    pub(super) flags: u64,
    /// Ours to use: the driver keeps it and never looks at it.
    pub(super) server_mark: u64,
    pub(super) owner_uid: u32,
    pub(super) owner_gid: u32,
    pub(super) reserved: [u64; 2],
}

/// `struct ublksrv_io_cmd`.
#[derive(Debug, Clone, Copy, Default, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct IoCommand {
    pub(super) queue: u16,
    pub(super) tag: u16,
    pub(super) result: i32,
    pub(super) addr: u64,
}

/// `struct ublksrv_io_desc`: what a request is, in memory shared with the driver.
#[derive(Debug, Clone, Copy, Default, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Descriptor {
    pub(super) op_flags: u32,
    pub(super) sectors: u32,
    pub(super) start_sector: u64,
    pub(super) addr: u64,
}

/// `struct ublk_params` as far as we set and read it: the length in the header tells the driver
/// where it ends, so later parts are simply not there.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub(super) struct Params {
    pub(super) len: u32,
    pub(super) types: u32,
    // `struct ublk_param_basic`
    pub(super) attributes: u32,
    pub(super) logical_shift: u8,
    pub(super) physical_shift: u8,
    pub(super) io_opt_shift: u8,
    pub(super) io_min_shift: u8,
    pub(super) max_sectors: u32,
    pub(super) chunk_sectors: u32,
    pub(super) device_sectors: u64,
    pub(super) virt_boundary_mask: u64,
    // `struct ublk_param_discard`
    pub(super) discard_alignment: u32,
    pub(super) discard_granularity: u32,
    pub(super) discard_sectors_max: u32,
    pub(super) write_zeroes_sectors_max: u32,
    pub(super) discard_segments_max: u16,
    pub(super) reserved: u16,
    // `struct ublk_param_devt`, read only
    pub(super) char_major: u32,
    pub(super) char_minor: u32,
    pub(super) disk_major: u32,
    pub(super) disk_minor: u32,
    pub(super) pad: u32,
}

/// Bytes of [`Params`] that are sent to the driver: without what is read only.
pub(super) const PARAMS_SET_BYTES: usize = 60;

const _: () = {
    assert!(size_of::<ControlCommand>() == 32);
    assert!(size_of::<DeviceInfo>() == 64);
    assert!(size_of::<IoCommand>() == 16);
    assert!(size_of::<Descriptor>() == 24);
    assert!(std::mem::offset_of!(Params, device_sectors) == 24);
    assert!(std::mem::offset_of!(Params, discard_alignment) == 40);
    assert!(std::mem::offset_of!(Params, char_major) == PARAMS_SET_BYTES);
    assert!(std::mem::offset_of!(Params, pad) == PARAMS_SET_BYTES + 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_numbers_of_the_kernels_header() {
        // As `_IOR('u', ...)` and `_IOWR('u', ...)` of the header come out of a C compiler.
        assert_eq!(command::GET_QUEUE_AFFINITY, 0x8020_7501);
        assert_eq!(command::ADD_DEV, 0xc020_7504);
        assert_eq!(command::GET_DEV_INFO2, 0x8020_7512);
        assert_eq!(command::GET_FEATURES, 0x8020_7513);
        assert_eq!(command::QUIESCE_DEV, 0xc020_7516);
        assert_eq!(io_command::FETCH, 0xc010_7520);
        assert_eq!(io_command::COMMIT_AND_FETCH, 0xc010_7521);
    }

    #[test]
    fn a_control_command_lies_as_the_kernel_reads_it() {
        let command = ControlCommand {
            device: 0x0403_0201,
            queue: 0x0605,
            len: 0x0807,
            addr: 0x100f_0e0d_0c0b_0a09,
            data: 0x1817_1615_1413_1211,
            path_len: 0x1a19,
            ..Default::default()
        };
        let bytes = command.as_bytes();
        let expected: Vec<u8> = (1..=26).collect();
        assert_eq!(&bytes[..26], &expected[..]);
        assert!(bytes[26..].iter().all(|byte| *byte == 0));
    }
}
