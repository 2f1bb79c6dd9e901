//! Devices whose daemon is gone for good.
//!
//! Owns `blkrepd --remove-left-behind VOLUME`, which `blkctl detach --force` calls when no daemon
//! answers: it deletes the volume's ublk device, so that what waits for it gets an error and no
//! task hangs. A device that some process serves is left alone. Never reads or changes what is in a
//! state directory: the volume stays attached there, and the next daemon serves it again.

use crate::files::identity_of;
use anyhow::{Context as _, anyhow, bail};
use blkrep_types::VolumeName;
use blkrep_ublk::Owner;
use blkrep_ublk::driver::{Found, ServerState, Ublk};
use std::path::Path;

/// Removes the device left behind of a volume of this name, by the daemon with this state directory if
/// one is named; says which in sentences.
///
/// # Errors
/// There is none, it is being served, several daemons left one and none was named, or the driver refuses.
pub fn remove(volume: &VolumeName, state_dir: Option<&Path>) -> anyhow::Result<Vec<String>> {
    let owner = match state_dir {
        Some(dir) => {
            let examine = || format!("examine state directory {}", dir.display());
            Some(Owner::of(&identity_of(dir).with_context(examine)?))
        }
        None => None,
    };
    let ublk = Ublk::default();
    let mut removed = Vec::new();
    let all = ublk.list().map_err(|error| {
        anyhow!(
            "look for ublk devices that a daemon left: {}: {}; a loop device or NBD server ends with its daemon, and leaves none",
            error.what,
            error.source
        )
    })?;
    let meant = |found: &Found| match owner {
        Some(owner) => found.belongs_to(owner, volume),
        None => found.is_of(volume),
    };
    let meant: Vec<Found> = all.into_iter().filter(meant).collect();
    if let Some(first) = meant.first()
        && let Some(other) = meant.iter().find(|found| !found.has_owner_of(first))
    {
        bail!(
            "two daemons of this host left a device of a volume {volume}: /dev/ublkb{} and /dev/ublkb{}; say whose is meant: blkrepd --remove-left-behind {volume} --state DIR",
            first.id,
            other.id
        );
    }
    for found in meant {
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
