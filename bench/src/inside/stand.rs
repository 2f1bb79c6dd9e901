//! Contestants, set up on the RAM disks.
//!
//! Owns what is alike for all of them. A contestant enters, a device to measure leaves. Never measures.

use super::daemon::{self, Pair};
use super::disks::{FAR, NEAR, fill};
use super::peers;
use crate::plan::{Common, Contestant};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// A contestant that is up.
pub(super) trait Stand {
    /// What the application uses.
    fn device(&self) -> &Path;
    /// How it is set up, in words.
    fn settings(&self) -> String;
    /// Its servers' process ids.
    fn servers(&self) -> Result<Vec<u32>>;
    /// Its replication, if it is ours.
    fn pair(&mut self) -> Option<&mut Pair> {
        None
    }
    /// Takes it down, and checks what it leaves.
    fn lower(self: Box<Self>) -> Result<()>;
}

/// Clears both disks.
pub(super) fn clear(common: &Common) -> Result<()> {
    for disk in [NEAR, FAR] {
        fill(disk.as_ref(), common.size_mib).context("clear the disks")?;
    }
    Ok(())
}

/// Removes what a contestant that failed may have left; what was never there says so on the console, and that is all.
pub(super) fn sweep() {
    peers::sweep();
    daemon::sweep();
}

/// Sets a contestant up on cleared disks.
pub(super) fn raise(contestant: Contestant, common: &Common) -> Result<Box<dyn Stand>> {
    clear(common)?;
    Ok(match contestant {
        Contestant::Ram => Box::new(Bare {
            device: PathBuf::from(NEAR),
        }),
        Contestant::Rublk => Box::new(peers::Rublk::raise(common, NEAR.as_ref())?),
        Contestant::Volume => Box::new(daemon::Volume::raise(common, NEAR.as_ref())?),
        Contestant::Async | Contestant::Memory | Contestant::Sync => {
            let mode = contestant.mode().context("a link of ours has a mode")?;
            Box::new(Pair::raise(common, mode, NEAR.as_ref(), FAR.as_ref())?)
        }
        Contestant::DrbdA | Contestant::DrbdB | Contestant::DrbdC => {
            let drbd = peers::Drbd::raise(contestant, NEAR.as_ref(), FAR.as_ref())?;
            Box::new(drbd.assume_equal()?)
        }
        Contestant::MdNbd => Box::new(peers::Mirrored::raise(NEAR.as_ref(), FAR)?),
    })
}

#[derive(Debug)]
struct Bare {
    device: PathBuf,
}

impl Stand for Bare {
    fn device(&self) -> &Path {
        &self.device
    }

    fn settings(&self) -> String {
        format!("brd, {}", self.device.display())
    }

    fn servers(&self) -> Result<Vec<u32>> {
        Ok(Vec::new())
    }

    fn lower(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
