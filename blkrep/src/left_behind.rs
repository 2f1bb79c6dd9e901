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
use blkrep_ublk::driver::{Found, Meant, ServerState, Ublk, meant};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long the driver may take to notice that a daemon is gone, and how often it is asked.
const NOTICE_WAIT: Duration = Duration::from_secs(10);
const ASK_EVERY: Duration = Duration::from_millis(50);

/// Removes the device left behind of a volume of this name, by the daemon with this state directory if
/// one is named; says which in sentences.
///
/// # Errors
/// There is none, it is being served, several daemons left one and none was named, or the driver
/// refuses.
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
    let meant = match owner {
        Some(owner) => devices(&ublk, |found| found.belongs_to(owner, volume))?,
        None => of_one_daemon(&ublk, volume)?,
    };
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

fn devices(ublk: &Ublk, is_meant: impl Fn(&Found) -> bool) -> anyhow::Result<Vec<Found>> {
    let all = ublk.list().map_err(|error| {
        anyhow!(
            "look for ublk devices that a daemon left: {}: {}; a loop device or NBD server ends with its daemon, and leaves none",
            error.what,
            error.source
        )
    })?;
    Ok(all.into_iter().filter(is_meant).collect())
}

/// The devices of this name of the one daemon that left some. Another daemon may serve one beside it.
fn of_one_daemon(ublk: &Ublk, volume: &VolumeName) -> anyhow::Result<Vec<Found>> {
    let end = Instant::now() + NOTICE_WAIT;
    loop {
        let (first, other, how) = match meant(devices(ublk, |found| found.is_of(volume))?) {
            Meant::These(devices) => return Ok(devices),
            Meant::Served(..) if Instant::now() < end => {
                thread::sleep(ASK_EVERY);
                continue;
            }
            Meant::Served(first, other) => (first, other, "serve"),
            Meant::Several(first, other) => (first, other, "left"),
        };
        bail!(
            "two daemons of this host {how} a device of a volume {volume}: /dev/ublkb{first} and /dev/ublkb{other}; say whose is meant: blkrepd --remove-left-behind {volume} --state DIR"
        );
    }
}
