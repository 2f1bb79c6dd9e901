//! What the kernel says about an open file or block device.
//!
//! Owns the questions (ioctl, statx, sysfs). Never opens the device a second time.

use super::errno_of;
use crate::host::{FileKind, Geometry};
use blkrep_types::{BlockSize, ByteLen, Errno};
use nix::sys::stat::{SFlag, fstat, major, minor};
use std::fs::File;
use std::os::fd::AsRawFd;

mod ask {
    //! The ioctls of `linux/fs.h`.
    nix::ioctl_read!(size_bytes, 0x12, 114, libc::size_t);
    nix::ioctl_read_bad!(logical, nix::request_code_none!(0x12, 104), libc::c_int);
    nix::ioctl_read_bad!(physical, nix::request_code_none!(0x12, 123), libc::c_uint);
    nix::ioctl_read_bad!(read_only, nix::request_code_none!(0x12, 94), libc::c_int);
}

/// The shape of an open file or device.
pub(super) fn geometry(file: &File, direct: bool) -> Result<Geometry, Errno> {
    let stat = fstat(file).map_err(errno_of)?;
    let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    if kind == SFlag::S_IFBLK {
        return block_geometry(file, major(stat.st_rdev), minor(stat.st_rdev));
    }
    if kind != SFlag::S_IFREG {
        return Err(Errno::EINVAL);
    }
    Ok(Geometry {
        kind: FileKind::Regular,
        len: ByteLen::new(u64::try_from(stat.st_size).map_err(|_| Errno::EIO)?),
        block_size: if direct {
            direct_grain(file)
        } else {
            BlockSize::B512
        },
        physical_block_bytes: u32::try_from(stat.st_blksize)
            .unwrap_or(4096)
            .clamp(512, 1 << 20),
        write_cache: true,
        read_only: false,
    })
}

fn block_geometry(file: &File, major: u64, minor: u64) -> Result<Geometry, Errno> {
    let fd = file.as_raw_fd();
    let (mut size, mut logical, mut physical, mut read_only) = (0, 0, 0, 0);
    // SAFETY: each of these ioctls writes one value of the type of its argument, which is a live
    // exclusive reference.
    unsafe {
        ask::size_bytes(fd, &raw mut size).map_err(errno_of)?;
        ask::logical(fd, &raw mut logical).map_err(errno_of)?;
        ask::physical(fd, &raw mut physical).map_err(errno_of)?;
        ask::read_only(fd, &raw mut read_only).map_err(errno_of)?;
    }
    let logical = u64::try_from(logical).map_err(|_| Errno::EIO)?;
    let number = |part: u64| u32::try_from(part).map_err(|_| Errno::EIO);
    Ok(Geometry {
        kind: FileKind::Block {
            major: number(major)?,
            minor: number(minor)?,
        },
        len: ByteLen::new(u64::try_from(size).map_err(|_| Errno::EIO)?),
        block_size: BlockSize::try_from(logical).map_err(|_| Errno::EOPNOTSUPP)?,
        physical_block_bytes: physical,
        write_cache: write_cache(major, minor),
        read_only: read_only != 0,
    })
}

/// The grain of direct I/O on a regular file: 512 unless the kernel says that it is coarser.
fn direct_grain(file: &File) -> BlockSize {
    // SAFETY: all-zero is a valid `statx`, a plain structure of integers.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an empty path with AT_EMPTY_PATH means the open descriptor; the answer is written
    // to a live exclusive reference.
    let asked = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut answer,
        )
    };
    let known = asked == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0;
    if known && answer.stx_dio_offset_align > 512 {
        BlockSize::B4096
    } else {
        BlockSize::B512
    }
}

/// Whether the device has a volatile cache. Where the kernel does not say, it may have one.
fn write_cache(major: u64, minor: u64) -> bool {
    let base = format!("/sys/dev/block/{major}:{minor}");
    // A partition has no queue of its own: its disk's is one directory up.
    ["queue/write_cache", "../queue/write_cache"]
        .iter()
        .find_map(|name| std::fs::read_to_string(format!("{base}/{name}")).ok())
        .is_none_or(|text| text.trim() != "write through")
}
