//! Devices whose daemon is gone for good.
//!
//! Owns `blkrepd --remove-left-behind VOLUME`, which `blkctl detach --force` calls when no daemon
//! answers: it deletes the volume's ublk device, so that what waits for it gets an error and no
//! task hangs. A device that some process serves is left alone. Never reads or changes the state
//! directory: the volume stays attached there, and the next daemon serves it again.

use anyhow::{anyhow, bail};
use blkrep_types::VolumeName;
use blkrep_ublk::driver::{ServerState, Ublk};

/// Removes every device left behind of a volume of this name; says which in sentences.
///
/// # Errors
/// There is none, it is being served, or the driver refuses.
pub fn remove(volume: &VolumeName) -> anyhow::Result<Vec<String>> {
    let ublk = Ublk::default();
    let mut removed = Vec::new();
    let all = ublk.list().map_err(|error| {
        anyhow!(
            "look for ublk devices that a daemon left: {}: {}; a loop device or NBD server ends with its daemon, and leaves none",
            error.what,
            error.source
        )
    })?;
    for found in all.into_iter().filter(|found| found.belongs_to(volume)) {
        // A process that was just killed may not be gone yet: removing waits for that.
        ublk.remove_left_behind(found.id)?;
        let waited = match found.server {
            ServerState::Waiting => "; requests that waited for it got an error",
            ServerState::Dead | ServerState::Live | ServerState::Failing => "",
        };
        removed.push(format!(
            "/dev/ublkb{} of volume {volume} is gone{waited}",
            found.id
        ));
    }
    if removed.is_empty() {
        bail!(
            "volume {volume} has no ublk device on this host; a loop device or NBD server ends with its daemon"
        );
    }
    removed.push(format!(
        "volume {volume} is still in the daemon's table: the next blkrepd serves it again"
    ));
    Ok(removed)
}
