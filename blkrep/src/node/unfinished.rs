//! What the end of a daemon cut short: detaches, and devices that never came to serve.
//!
//! Owns finishing them at the next start. The table says what was begun; nothing here decides that a
//! volume is to go.

use super::Inner;
use super::serve::left_device;
use super::table::VolumeEntry;
use blkrep_api::{EventId, NewEvent};
use blkrep_types::{GroupName, VolumeName};
use blkrep_ublk::FrontError;
use blkrep_ublk::driver::{ServerState, Ublk};

/// Removes the device that this daemon, or a predecessor, left of a volume.
pub(super) fn remove_left(
    inner: &Inner,
    volume: &VolumeName,
    entry: &VolumeEntry,
) -> Result<(), FrontError> {
    match left_device(inner.owner, volume, entry)? {
        Some(found) => Ublk::default().remove_left_behind(found.id),
        None => Ok(()),
    }
}

impl Inner {
    /// Ends what was begun to be detached: its device is removed, and what is not remembered of a
    /// detached volume is forgotten.
    pub(super) fn finish_detaches(&self, group: &GroupName) {
        let mut volumes = self.volumes_of(group);
        volumes.retain(|(_, entry)| !entry.served);
        if volumes.is_empty() {
            return;
        }
        for (volume, entry) in &volumes {
            if let Err(error) = remove_left(self, volume, entry) {
                tracing::error!(%group, %volume, %error, "remove the device of a detached volume");
                return;
            }
        }
        let linked = self.has_links(group);
        if let Err(error) = self.settle(group, linked, &mut Vec::new()) {
            tracing::error!(%group, %error, "finish a detach");
        }
        let left = self.volumes_of(group);
        for (volume, entry) in &volumes {
            if left.iter().any(|(name, _)| name == volume) {
                continue;
            }
            self.show(volume, entry);
            let text = format!(
                "{} is served no longer; the daemon ended while it was detached",
                entry.backing.display()
            );
            self.tell(
                NewEvent::new(EventId::VolumeDetached, text)
                    .group(group)
                    .volume(volume),
            );
        }
    }

    /// Removes devices of ours that were made and never started, and that the table does not know.
    pub(super) fn remove_unfinished(&self) {
        let ublk = Ublk::default();
        let found = match ublk.list() {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "look for devices that were never started");
                return;
            }
        };
        for device in found {
            let ours = device.is_made_by(self.owner) && device.server == ServerState::Dead;
            if ours && let Err(error) = ublk.remove_left_behind(device.id) {
                tracing::warn!(device = device.id, %error, "remove a device that was never started");
            }
        }
    }
}
