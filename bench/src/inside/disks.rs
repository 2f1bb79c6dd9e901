//! Disks to measure on: RAM disks, and memory-backed ones with a limit on bytes a second.
//!
//! Owns the limited ones and removes them when dropped. Sizes enter, paths leave. Never measures.

use anyhow::{Context, Result};
use blkrep_tests::inside::disk::write_direct;
use blkrep_tests::inside::shell::{run, wait_for};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The disk that an application's writes reach first.
pub(super) const NEAR: &str = "/dev/ram0";
/// The disk of the other end.
pub(super) const FAR: &str = "/dev/ram1";

const MIB: u64 = 1 << 20;

/// Writes zeroes, so that every page exists, both ends are equal, and no signature of the last one is left.
pub(super) fn fill(disk: &Path, size_mib: u64) -> Result<()> {
    let zeroes = vec![0; 1 << 20];
    let end = blkrep_tests::inside::disk::bytes_of(disk)?;
    let mut at = 0;
    while at < size_mib * MIB {
        write_direct(disk, at, &zeroes)?;
        at += MIB;
    }
    // Peers keep their superblocks at the end.
    write_direct(disk, end - MIB, &zeroes).with_context(|| format!("clear {}", disk.display()))
}

/// Fills with bytes that no end can leave out or squeeze.
pub(super) fn scramble(disk: &Path, seed: u64) -> Result<()> {
    let mut state = seed | 1;
    let mut block = vec![0_u8; 1 << 20];
    let size = blkrep_tests::inside::disk::bytes_of(disk)?;
    let mut at = 0;
    while at + MIB <= size {
        for word in block.chunks_exact_mut(8) {
            // xorshift64: incompressible, and the same in every run.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        write_direct(disk, at, &block)?;
        at += MIB;
    }
    Ok(())
}

/// Both disks hold the same first bytes.
pub(super) fn equal(near: &Path, far: &Path, bytes: u64) -> Result<()> {
    blkrep_tests::inside::disk::drop_caches()?;
    run(&format!(
        "cmp -n {bytes} {} {}",
        near.display(),
        far.display()
    ))
    .map(drop)
    .context("the ends differ")
}

/// A memory-backed disk with a limit.
#[derive(Debug)]
pub(super) struct Limited {
    path: PathBuf,
    config: PathBuf,
}

impl Limited {
    /// A disk of this name and size.
    pub(super) fn new(name: &str, size_mib: u64, limit_mib: u32) -> Result<Self> {
        let config = Path::new("/sys/kernel/config/nullb").join(name);
        fs::create_dir(&config).with_context(|| {
            format!(
                "create {}: has this kernel null_blk and configfs?",
                config.display()
            )
        })?;
        let disk = Self {
            path: Path::new("/dev").join(name),
            config,
        };
        let settings = [
            ("size", size_mib),
            ("blocksize", 4096),
            ("memory_backed", 1),
            ("mbps", u64::from(limit_mib)),
            ("irqmode", 0),
            ("queue_mode", 2),
            ("power", 1),
        ];
        for (setting, value) in settings {
            let path = disk.config.join(setting);
            fs::write(&path, value.to_string())
                .with_context(|| format!("set {} to {value}", path.display()))?;
        }
        wait_for("the disk's node", Duration::from_secs(20), || {
            Ok(disk.path.exists())
        })?;
        Ok(disk)
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = fs::write(self.config.join("power"), "0");
        let _ = fs::remove_dir(&self.config);
    }
}
