//! What the checks look at, gathered in one go.
//!
//! Owns the reading of `/proc`, `/sys` and `/dev`. What cannot be read counts as not there.

use crate::files::read_bounded;
use blkrep_types::ByteLen;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use std::path::{Path, PathBuf};

/// Largest file of `/proc` that is read: `modules.dep` of a distribution's kernel has 700 KiB.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// The magic number of ramfs, which `nix` does not name: `linux/magic.h`.
const RAMFS_MAGIC: u32 = 0x8584_58f6;

/// Whether a part of the kernel is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Module {
    /// Built in or loaded.
    Present,
    /// Installed, not loaded.
    Loadable,
    /// Neither.
    Missing,
}

/// Space of a filesystem.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    pub(super) free: u64,
    /// Gone after a reboot.
    pub(super) volatile: bool,
}

/// Everything the checks look at.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) release: String,
    pub(super) ublk_control: bool,
    pub(super) ublk_module: Module,
    /// `kernel.io_uring_disabled`; `None` on kernels without it.
    pub(super) io_uring_disabled: Option<u32>,
    pub(super) effective_uid: u32,
    pub(super) fuse_device: bool,
    pub(super) fuse_module: Module,
    pub(super) loop_control: bool,
    /// `None`: unlimited.
    pub(super) memlock_bytes: Option<ByteLen>,
    /// Effective capabilities as bits.
    pub(super) capabilities: u64,
    pub(super) state_dir: PathBuf,
    pub(super) state_space: Option<Space>,
    pub(super) shm_space: Option<Space>,
}

impl Facts {
    pub(super) fn gather(state_dir: &Path) -> Self {
        let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
        let release = release.trim().to_owned();
        let disabled = read("/proc/sys/kernel/io_uring_disabled");
        let memlock = getrlimit(Resource::RLIMIT_MEMLOCK).ok();
        let memlock = memlock.filter(|(soft, _)| *soft != RLIM_INFINITY);
        Self {
            ublk_control: Path::new("/dev/ublk-control").exists(),
            ublk_module: module(&release, "ublk_drv"),
            io_uring_disabled: disabled.and_then(|text| text.trim().parse().ok()),
            effective_uid: nix::unistd::geteuid().as_raw(),
            fuse_device: Path::new("/dev/fuse").exists(),
            fuse_module: module(&release, "fuse"),
            loop_control: Path::new("/dev/loop-control").exists(),
            memlock_bytes: memlock.map(|(soft, _)| ByteLen::new(soft)),
            capabilities: capabilities(&read("/proc/self/status").unwrap_or_default()),
            state_dir: state_dir.to_owned(),
            state_space: space(state_dir),
            shm_space: space(Path::new("/dev/shm")),
            release,
        }
    }

    pub(super) const fn capability(&self, bit: u32) -> bool {
        self.capabilities & (1 << bit) != 0
    }
}

fn read(path: &str) -> Option<String> {
    read_bounded(Path::new(path), FILE_BYTES_MAX).ok()
}

fn module(release: &str, name: &str) -> Module {
    if Path::new("/sys/module").join(name).exists() {
        return Module::Present;
    }
    let dir = format!("/lib/modules/{release}");
    let listed =
        |file: &str| read(&format!("{dir}/{file}")).is_some_and(|text| lists_module(&text, name));
    if listed("modules.builtin") {
        Module::Present
    } else if listed("modules.dep") {
        Module::Loadable
    } else {
        Module::Missing
    }
}

/// True if a line of `modules.dep` or `modules.builtin` is about the module.
fn lists_module(text: &str, name: &str) -> bool {
    text.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        let stem = file.split(".ko").next().unwrap_or_default();
        stem.replace('-', "_") == name
    })
}

fn capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0)
}

fn space(path: &Path) -> Option<Space> {
    let found = statfs(path).ok()?;
    let unit = u64::try_from(found.block_size()).ok()?;
    let kind = found.filesystem_type();
    let ramfs = i64::from(RAMFS_MAGIC) == kind.0;
    Some(Space {
        free: found.blocks_available().saturating_mul(unit),
        volatile: kind == TMPFS_MAGIC || ramfs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_by_either_spelling() {
        let text =
            "kernel/drivers/block/ublk_drv.ko.xz:\nkernel/fs/fuse/fuse.ko: a.ko\nx/dm-mod.ko:";
        assert!(lists_module(text, "ublk_drv") && lists_module(text, "dm_mod"));
        assert!(!lists_module(text, "ublk") && !lists_module(text, "a"));
    }

    #[test]
    fn capabilities_are_read_from_status() {
        assert_eq!(
            capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"),
            0x1ff_ffff_ffff
        );
        assert_eq!(capabilities("nothing"), 0);
    }
}
