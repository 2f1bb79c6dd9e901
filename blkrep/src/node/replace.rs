//! `replace`: another disk in the place of one that failed. Links stay.
//!
//! Owns the order: check, record that nothing of the volume is known to be equal, then the new
//! place. A source's disk is believed and its targets become equal to it; a target's gets all of
//! its volume from the source.

use super::attach::ATTACH_PATIENCE;
use super::backing::{self, Unusable};
use super::replicas::of_target;
use super::table::VolumeEntry;
use super::{Inner, errors};
use crate::engine::source::distrust_group;
use crate::engine::target::{Replacement, ReplicaFiles, TargetPolicy};
use blkrep_api::{ApiError, CommandReply, ErrorCode, EventId, NewEvent, ReplaceRequest};
use blkrep_types::Extent;
use std::time::Instant;

impl Inner {
    pub(super) fn replace(&self, request: &ReplaceRequest) -> Result<CommandReply, ApiError> {
        let ReplaceRequest { group, volume, .. } = request;
        if self.volumes_of(group).is_empty() {
            return self.replace_base(request);
        }
        let found = self.state().table.entries().volumes.get(volume).cloned();
        let entry = found.filter(|entry| entry.group == *group);
        self.replace_backing(request, entry.ok_or_else(|| errors::no_volume(volume))?)
    }

    /// On the source.
    fn replace_backing(
        &self,
        request: &ReplaceRequest,
        entry: VolumeEntry,
    ) -> Result<CommandReply, ApiError> {
        let ReplaceRequest { group, volume, .. } = request;
        if self.state().engine(group).is_some() {
            return Err(ApiError::new(
                ErrorCode::GroupBusy,
                format!("group {group}"),
                "its volumes are served, so its backings are in use",
                "detach all of them, replace, and attach them again: the links stay",
            ));
        }
        self.check_backing(request, &entry)
            .map_err(|error| errors::of_backing(volume, error))?;
        // First, so that a stop in between leaves a comparison too many instead of one too few.
        let linked = distrust_group(&self.host, &self.groups_dir, group)
            .map_err(|error| errors::of_engine(format!("group {group}"), &error))?;
        let replaced = VolumeEntry {
            backing: request.path.clone(),
            ..entry.clone()
        };
        self.state()
            .table
            .update(|entries| drop(entries.volumes.insert(volume.clone(), replaced)))
            .map_err(|error| errors::of_table(format!("volume {volume}"), &error))?;
        self.show(volume, &entry);
        let (old, new) = (entry.backing.display(), request.path.display());
        let text = format!("{new} instead of {old}");
        let event = NewEvent::new(EventId::BackingReplaced, text);
        self.tell(event.group(group).volume(volume));
        if entry.served {
            self.bring_up(group, ATTACH_PATIENCE);
        }
        let mut reply = CommandReply::note(format!("volume {volume} is on {new} now"));
        if linked {
            let note = "the next connection of each link compares everything, and makes the target equal to it";
            reply.notes.push(note.to_owned());
        }
        if !entry.served {
            let serve = format!("serve it: blkctl attach {volume} --backing {new}");
            reply.notes.push(serve);
        }
        Ok(reply)
    }

    /// The new backing holds the volume, and nobody else has it.
    fn check_backing(&self, request: &ReplaceRequest, entry: &VolumeEntry) -> Result<(), Unusable> {
        let (path, identity) = backing::identify(&request.path)?;
        let (len, block_size) = backing::measure(&path)?;
        let unsuitable = |what: String, action: &str| {
            let code = ErrorCode::BackingUnsuitable;
            let action = action.to_owned();
            Err(Unusable { code, what, action })
        };
        let end = entry.offset.get() + entry.len.get();
        let shown = path.display();
        let extent = Extent::new(entry.offset, entry.len)
            .ok()
            .filter(|_| len.get() >= end);
        let Some(extent) = extent else {
            return unsuitable(
                format!("{shown} has {len}; the volume needs {end} bytes of it"),
                "use a larger one",
            );
        };
        let (have, need) = (block_size.get(), entry.block_size.get());
        if have > need {
            return unsuitable(
                format!("{shown} has blocks of {have} bytes, the volume of {need}"),
                "use one with blocks that are not larger",
            );
        }
        let mut taken = self.taken();
        taken.retain(|(_, _, taken)| taken.volume != request.volume.as_str());
        let other = taken
            .iter()
            .find(|(owner, _, taken)| taken.identity == identity && *owner != request.group);
        if let Some((owner, _, taken)) = other {
            return Err(Unusable {
                code: ErrorCode::BackingAttached,
                what: format!("{shown} holds volume '{}' of group {owner}", taken.volume),
                action: "use another one".to_owned(),
            });
        }
        let taken: Vec<_> = taken.into_iter().map(|(_, _, taken)| taken).collect();
        backing::refuse_overlap(&path, identity, extent, &taken)?;
        backing::refuse_in_use(&path, identity)
    }

    /// On the target.
    fn replace_base(&self, request: &ReplaceRequest) -> Result<CommandReply, ApiError> {
        let ReplaceRequest { group, volume, .. } = request;
        let running = self.state().replicas.remove(group);
        let own = running
            .as_ref()
            .and_then(|replica| replica.control.status())
            .into_iter()
            .flat_map(|status| status.volumes)
            .filter(|own| own.name == *volume);
        let policy = TargetPolicy {
            directories: self.replica_dirs.clone(),
            paths: own.map(|own| own.path).collect(),
        };
        if let Some(replica) = running {
            replica.end();
        }
        let replacement = Replacement {
            volume,
            path: &request.path,
            overwrite: request.overwrite,
            policy: &policy,
        };
        let directory = self.replica_dir(group);
        let opened = ReplicaFiles::open_replacing(&self.net, &directory, &replacement);
        let opened = match opened {
            Ok(Some(opened)) => opened,
            Ok(None) => return Err(errors::no_group(group)),
            Err(error) => {
                // As it was before; what is wrong with that is told by status and events.
                self.open_replica(group, Instant::now() + ATTACH_PATIENCE);
                return Err(of_target(group, &error));
            }
        };
        self.start_replica(group, opened)?;
        self.state().unopened.remove(group);
        let new = request.path.display();
        let event = NewEvent::new(EventId::TargetReplaced, format!("{new} holds it now"));
        self.tell(event.group(group).volume(volume));
        let mut reply = CommandReply::note(format!("volume {volume} is on {new} now"));
        let note = "all of it counts as different: the source sends it when it connects; until then the replica cannot be promoted";
        reply.notes.push(note.to_owned());
        Ok(reply)
    }
}
