//! Bringing back what the table says: at the start, and when something that was missing returns.
//!
//! Owns taking over devices that outlived a predecessor, and serving anew those that did not. A
//! volume that cannot be served keeps its entry, its status says why, and it is tried again.

use super::Inner;
use super::claim::Volumes;
use super::serve::outlived;
use super::state::{Group, Trouble};
use super::table::VolumeEntry;
use blkrep_api::{EventId, NewEvent};
use blkrep_types::{GroupName, VolumeIndex, VolumeName};
use std::time::{Duration, Instant};

impl Inner {
    /// Serves everything the table says. Claims that are held elsewhere are waited for up to `end`:
    /// one group that cannot be had does not keep the others, and the daemon, from working.
    pub(super) fn restore(&self, end: Instant) {
        self.forget_transient();
        self.remove_unfinished();
        let groups: Vec<GroupName> = {
            let state = self.state();
            let mut groups: Vec<_> = state
                .table
                .entries()
                .volumes
                .values()
                .map(|entry| entry.group.clone())
                .collect();
            groups.sort();
            groups.dedup();
            groups
        };
        for group in groups {
            let begun = self.has_record(&group) && !self.rejoin_is_decided(&group);
            let (is_target, is_here) = {
                let state = self.state();
                let is_target = state.replicas.contains_key(&group);
                (is_target, state.replica_is_here(&group))
            };
            if is_target {
                self.settle_target(&group);
            } else if begun || !is_here {
                self.bring_up(&group, end.saturating_duration_since(Instant::now()));
                self.finish_detaches(&group);
            }
            // Else nobody knows whether it was promoted until its replica can be opened.
        }
    }

    /// The table has a group as a source that is a target: a promotion was begun and never became
    /// durable, or a rejoin became durable and was not concluded.
    pub(super) fn settle_target(&self, group: &GroupName) {
        if !self.has_record(group) {
            self.take_back(group);
        } else if let Err(error) = self.conclude_rejoin(group) {
            tracing::error!(%group, %error, "conclude the rejoin of a former source");
        }
    }

    /// Transient volumes of an earlier boot are gone.
    fn forget_transient(&self) {
        let boot = self.boot.clone();
        let stale = |entry: &VolumeEntry| {
            entry
                .transient_boot
                .as_ref()
                .is_some_and(|attached| *attached != boot)
        };
        let updated = self
            .state()
            .table
            .update(|entries| entries.volumes.retain(|_, entry| !stale(entry)));
        if let Err(error) = updated {
            tracing::warn!(%error, "forget transient volumes of an earlier boot");
        }
    }

    /// Serves what is to be served of a group and is not. Tells what fails.
    pub(super) fn bring_up(&self, group: &GroupName, patience: Duration) {
        let volumes = self.volumes_of(group);
        let missing = self.missing(group, &volumes);
        if missing.is_empty() {
            return;
        }
        let left: Vec<bool> = missing
            .iter()
            .map(|(name, entry)| outlived(self.owner, name, entry))
            .collect();
        let engine = self.state().engine(group);
        let engine = engine.map_or_else(
            || {
                for (name, entry) in &volumes {
                    self.hide(name, entry);
                }
                let all_reissue = left.iter().all(|left| *left);
                let history = self.history_of_promotion(group)?;
                self.open_engine(group, &volumes, history, all_reissue, patience)
            },
            Ok,
        );
        let engine = engine.and_then(|engine| {
            let mut state = self.state();
            state.groups.entry(group.clone()).or_default().engine = Some(engine.clone());
            drop(state);
            self.track_former_source(group, &engine).map(|()| engine)
        });
        let engine = match engine {
            Ok(engine) => engine,
            Err(error) => {
                for ((name, _), left) in missing.iter().zip(left) {
                    self.trouble(group, name, left, Trouble::from(&error));
                }
                return;
            }
        };
        for ((name, entry), left) in missing.iter().zip(left) {
            match self.serve(name, entry, &engine, left, |id| self.note_number(name, id)) {
                Ok((served, _)) => {
                    let device = served.device.path();
                    let mut state = self.state();
                    let known = state.groups.entry(group.clone()).or_default();
                    known.served.insert(name.clone(), served);
                    known.troubles.remove(name);
                    drop(state);
                    self.tell_back(group, name, left, &device);
                }
                Err(error) => {
                    if left {
                        engine.requests_are_lost(VolumeIndex::new(entry.index));
                    }
                    self.trouble(group, name, left, Trouble::from(&error));
                }
            }
        }
        self.start_links(group);
    }

    /// Volumes of a group that should be served and are not.
    pub(super) fn missing(&self, group: &GroupName, volumes: &Volumes) -> Volumes {
        let state = self.state();
        let served = state.groups.get(group).map(|group| &group.served);
        let is_served = |name: &VolumeName| served.is_some_and(|served| served.contains_key(name));
        let missing = volumes
            .iter()
            .filter(|(name, entry)| entry.served && !is_served(name));
        missing.cloned().collect()
    }

    /// Remembers the number of a device that is not yet started.
    fn note_number(
        &self,
        volume: &VolumeName,
        id: Option<u32>,
    ) -> Result<(), blkrep_api::ApiError> {
        let change = |entries: &mut super::table::Entries| {
            if let Some(entry) = entries.volumes.get_mut(volume) {
                entry.device_id = id.or(entry.device_id);
            }
        };
        self.state()
            .table
            .update(change)
            .map_err(|error| super::errors::of_table(format!("volume {volume}"), &error))
    }

    fn tell_back(&self, group: &GroupName, volume: &VolumeName, left: bool, device: &str) {
        let (id, text) = if left {
            (
                EventId::VolumeRecovered,
                format!("{device} outlived its daemon and is served again"),
            )
        } else {
            (EventId::VolumeAttached, format!("served again as {device}"))
        };
        self.tell(NewEvent::new(id, text).group(group).volume(volume));
    }

    /// A volume is not served: said once for each reason.
    fn trouble(&self, group: &GroupName, volume: &VolumeName, left: bool, why: Trouble) {
        let mut state = self.state();
        let known: &mut Group = state.groups.entry(group.clone()).or_default();
        let before = known.troubles.insert(volume.clone(), why.clone());
        drop(state);
        if before.as_ref() == Some(&why) {
            return;
        }
        let id = if left {
            EventId::VolumeRecoveryFailed
        } else {
            EventId::VolumeAttachFailed
        };
        self.tell(
            NewEvent::new(id, why.to_string())
                .group(group)
                .volume(volume),
        );
    }
}
