//! Disks for bodies: in memory, and mapped ones that delay, drop or fail writes.
//!
//! Owns mapped devices and null_blk disks, and removes them when dropped. Sizes and behaviours enter, a device path leaves.

use super::shell::{command, run, spawn, wait_for};
use anyhow::{Context, Result};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a device or file.
///
/// # Errors
/// It cannot be opened.
pub fn bytes_of(path: &Path) -> Result<u64> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    Ok(std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?)
}

/// Makes the next reads of a device come from the device.
///
/// # Errors
/// The kernel refuses.
pub fn drop_caches() -> Result<()> {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("drop the page cache")
}

/// Reads past the page cache.
///
/// # Errors
/// The device cannot be read.
pub fn read_direct(path: &Path, offset: u64, len: usize) -> Result<Vec<u8>> {
    let flags = nix::fcntl::OFlag::O_DIRECT.bits();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    let mut buffer = vec![0; len + 4096];
    let skip = buffer.as_ptr().align_offset(4096);
    file.read_exact_at(&mut buffer[skip..skip + len], offset)?;
    Ok(buffer[skip..skip + len].to_vec())
}

/// Writes past the page cache.
///
/// # Errors
/// The device cannot be written.
pub fn write_direct(path: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    let flags = nix::fcntl::OFlag::O_DIRECT.bits();
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(path)?;
    let mut buffer = vec![0; bytes.len() + 4096];
    let skip = buffer.as_ptr().align_offset(4096);
    buffer[skip..skip + bytes.len()].copy_from_slice(bytes);
    Ok(file.write_all_at(&buffer[skip..skip + bytes.len()], offset)?)
}

/// A device-mapper device over one other.
#[derive(Debug)]
pub struct Mapped {
    name: String,
    below: PathBuf,
    sectors: u64,
    first: u64,
}

/// How a mapped device behaves.
#[derive(Debug, Clone, Copy)]
pub enum Behaviour {
    /// Passes everything on.
    Plain,
    /// Writes complete at once and are lost.
    DropWrites,
    /// Writes fail, reads work.
    FailWrites,
    /// Writes wait so long.
    DelayWrites(Duration),
}

impl Mapped {
    /// Maps `below` under this name.
    ///
    /// # Errors
    /// The target is missing in this kernel, or the device in use.
    pub fn new(name: &str, below: &Path, behaviour: Behaviour) -> Result<Self> {
        Self::slice(name, below, 0, bytes_of(below)? / 512, behaviour)
    }

    /// Maps a part of `below`, in sectors.
    ///
    /// # Errors
    /// As `new`.
    pub fn slice(
        name: &str,
        below: &Path,
        first: u64,
        sectors: u64,
        behaviour: Behaviour,
    ) -> Result<Self> {
        let mapped = Self {
            name: name.to_owned(),
            below: below.to_owned(),
            sectors,
            first,
        };
        mapped.dmsetup("create", &mapped.table(behaviour))?;
        // Nobody answers for udev here, so the nodes are made by hand.
        run(&format!("dmsetup mknodes {name}"))?;
        Ok(mapped)
    }

    fn table(&self, behaviour: Behaviour) -> String {
        let (sectors, below, first) = (self.sectors, self.below.display(), self.first);
        match behaviour {
            Behaviour::Plain => format!("0 {sectors} linear {below} {first}"),
            Behaviour::DropWrites => {
                format!("0 {sectors} flakey {below} {first} 0 3600 1 drop_writes")
            }
            Behaviour::FailWrites => {
                format!("0 {sectors} flakey {below} {first} 0 3600 1 error_writes")
            }
            Behaviour::DelayWrites(delay) => {
                format!(
                    "0 {sectors} delay {below} {first} 0 {below} {first} {}",
                    delay.as_millis()
                )
            }
        }
    }

    fn dmsetup(&self, verb: &str, table: &str) -> Result<()> {
        let mut call = command(&format!(
            "dmsetup --noudevsync --noudevrules {verb} {}",
            self.name
        ));
        call.args(["--table", table]);
        spawn(call)?.succeed(Duration::from_secs(30)).map(drop)
    }

    /// Changes the behaviour between two requests; what is under way ends by the old one.
    ///
    /// # Errors
    /// The new table is refused.
    pub fn behave(&self, behaviour: Behaviour) -> Result<()> {
        self.dmsetup("load", &self.table(behaviour))?;
        run(&format!("dmsetup suspend --nolockfs {}", self.name))?;
        run(&format!("dmsetup --noudevsync resume {}", self.name)).map(drop)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let _ = run(&format!(
            "dmsetup --noudevsync remove --force {}",
            self.name
        ));
    }
}

/// A disk in memory, of any size and block, all zeroes at first and without a cache.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    config: PathBuf,
}

impl Memory {
    /// A disk of this name.
    ///
    /// # Errors
    /// The kernel has no null_blk with configfs.
    pub fn new(name: &str, size_mib: u64, block_bytes: u32) -> Result<Self> {
        let config = Path::new("/sys/kernel/config/nullb").join(name);
        fs::create_dir(&config).with_context(|| format!("create {}", config.display()))?;
        let disk = Self {
            path: Path::new("/dev").join(name),
            config,
        };
        let settings = [
            ("size", size_mib),
            ("blocksize", u64::from(block_bytes)),
            ("memory_backed", 1),
            ("discard", 1),
            // Completion by timer is coarse in guests; from the softirq it is as fast as a RAM disk.
            ("irqmode", 1),
            ("queue_mode", 2),
            ("power", 1),
        ];
        for (setting, value) in settings {
            disk.set(setting, value)?;
        }
        wait_for("the disk's node", Duration::from_secs(20), || {
            Ok(disk.path.exists())
        })?;
        Ok(disk)
    }

    fn set(&self, setting: &str, value: u64) -> Result<()> {
        let path = self.config.join(setting);
        fs::write(&path, value.to_string())
            .with_context(|| format!("set {} to {value}", path.display()))
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = self.set("power", 0);
        let _ = fs::remove_dir(&self.config);
    }
}

/// A file or device lent out through a loop device.
#[derive(Debug)]
pub struct Lent {
    device: PathBuf,
}

impl Lent {
    /// Lends it out; `direct` for devices whose writes must not linger in the page cache.
    ///
    /// # Errors
    /// There is no loop device left.
    pub fn new(below: &Path, direct: bool) -> Result<Self> {
        let direct = if direct { "--direct-io=on" } else { "" };
        let device = run(&format!("losetup {direct} --show -f {}", below.display()))?;
        Ok(Self {
            device: PathBuf::from(device.trim()),
        })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.device
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let _ = run(&format!("losetup -d {}", self.device.display()));
    }
}
