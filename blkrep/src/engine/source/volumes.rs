//! Volumes that join or leave a group without links.
//!
//! Owns claiming and letting go of their backings, and the superblock's list of them. With links the
//! set is fixed: its maps and its stream are of these volumes. Never touches a volume's bytes.

use super::OpenError;
use super::group::SourceShared;
use super::open::{VolumeSpec, dirty_layout, intent_layout, open_backing};
use blkrep_core::dirty::Bits;
use blkrep_core::intent::IntentMap;
use blkrep_core::source::{OnBackingError, StreamLimits, Throttle};
use blkrep_io::{Geometry, Host};
use blkrep_log::superblock::GroupVolume;
use blkrep_types::{ByteLen, VolumeIndex};

impl<H: Host> SourceShared<H> {
    /// Claims a backing and adds it as the group's last volume. `share` is a volume of this group
    /// on the same backing, whose claim is shared.
    ///
    /// # Errors
    /// The group has links, or the backing cannot be claimed; nothing changed.
    pub fn add_volume(
        &self,
        spec: &VolumeSpec,
        share: Option<VolumeIndex>,
    ) -> Result<VolumeIndex, OpenError> {
        let shared = share.map(|volume| self.volume_file(volume).file);
        let (file, mut volume) = open_backing(&self.host, spec, shared)?;
        let mut volumes = self.volumes_without_links()?;
        let index = VolumeIndex::new(u16::try_from(volumes.len()).expect("checked by its limit"));
        volume.index = index;
        volumes.push(volume);
        self.set_volumes(volumes)?;
        self.lock().volumes.push(file);
        Ok(index)
    }

    /// True if the set of volumes has to stay as it is: maps and stream of a link are of these
    /// volumes. A log stays for as long as the group is open, also when its last link is gone.
    #[must_use]
    pub fn volumes_are_fixed(&self) -> bool {
        let linked = !self.admin().record.links.is_empty();
        linked || self.lock().group.log().is_some()
    }

    /// The group's volumes, by index.
    #[must_use]
    pub fn volumes(&self) -> Vec<GroupVolume> {
        self.admin().record.volumes.clone()
    }

    /// Says what happens when a backing fails.
    pub fn set_policy(&self, policy: OnBackingError) {
        self.command(|state| state.group.set_policy(policy));
    }

    /// Says how writers are slowed before the log is full.
    pub fn set_throttle(&self, throttle: Option<Throttle>) {
        self.command(|state| state.group.set_throttle(throttle));
    }

    /// Says how much links may have under way.
    pub fn set_stream_limits(&self, limits: StreamLimits) {
        self.command(|state| state.group.set_stream_limits(limits));
    }

    /// The device of a volume goes away: requests that wait for anything but the disk get an error,
    /// and so do those that still come.
    pub fn end_volume(&self, volume: VolumeIndex) {
        self.command(|state| state.group.end_volume(volume));
    }

    /// A device for the volume is to be served, again or for the first time.
    pub fn begin_volume(&self, volume: VolumeIndex) {
        self.command(|state| state.group.begin_volume(volume));
    }

    /// The device of a volume did not come back after a crash of the daemon, and its requests may
    /// never be issued again: the targets have writes that the backing may lack. They are dirt.
    pub fn requests_are_lost(&self, volume: VolumeIndex) {
        self.command(|state| state.group.requests_are_lost(volume));
    }

    /// The shape of a volume's backing.
    ///
    /// # Errors
    /// The host refuses.
    pub fn backing_geometry(&self, volume: VolumeIndex) -> Result<Geometry, OpenError> {
        let file = self.volume_file(volume).file;
        Ok(self.host.geometry(&file)?)
    }

    /// Lets go of the group's last volume; its worker has ended.
    ///
    /// # Errors
    /// The group has links, it is not the last one, requests of it are under way, or the state could
    /// not be written.
    pub fn remove_last_volume(&self, volume: VolumeIndex) -> Result<(), OpenError> {
        let mut volumes = self.volumes_without_links()?;
        if volume.as_usize() + 1 != volumes.len() {
            let text = format!("volume {} of the group is not its last", volume.get());
            return Err(OpenError::Command(text));
        }
        if !self.lock().group.volume_is_idle(volume) {
            let text = format!(
                "the disk of volume {} has requests that it does not give back",
                volume.get()
            );
            return Err(OpenError::Command(text));
        }
        volumes.pop();
        self.set_volumes(volumes)?;
        self.lock().volumes.pop();
        Ok(())
    }

    fn volumes_without_links(&self) -> Result<Vec<GroupVolume>, OpenError> {
        let admin = self.admin();
        if !admin.record.links.is_empty() {
            let text = format!(
                "group {} has links, and they replicate the volumes it has: disconnect them with --forget first",
                admin.record.name
            );
            return Err(OpenError::Command(text));
        }
        if self.lock().group.log().is_some() {
            let text = format!(
                "group {} had a link since it was attached, and its log is of the volumes it has: detach them all and attach them again",
                admin.record.name
            );
            return Err(OpenError::Command(text));
        }
        Ok(admin.record.volumes.clone())
    }

    fn set_volumes(&self, volumes: Vec<GroupVolume>) -> Result<(), OpenError> {
        let lens: Vec<ByteLen> = volumes.iter().map(|volume| volume.len).collect();
        let (dirty, regions) = (dirty_layout(&volumes), intent_layout(&volumes));
        let intent = IntentMap::new(Bits::clear_of(regions.bits()), regions, self.options.intent);
        self.record(|record| record.volumes = volumes)?;
        self.lock().group.set_volumes(&lens, dirty, intent);
        Ok(())
    }
}
