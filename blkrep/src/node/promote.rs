//! `promote` and `demote`: who has the right to write.
//!
//! Owns the order of a promotion, so that a crash at any moment leaves either a replica or a source:
//! the table says what is to be served, then the replica's superblock says that it is promoted, then
//! the engine opens with the new history, then what the former source lacks is tracked, and only then
//! a device serves. A start that finds the first without the second takes it back; one that finds
//! both goes on.

use super::claim::CLAIM_WAIT;
use super::frontends::pick;
use super::links::FORMER_SOURCE;
use super::state::Engine;
use super::table::{Entries, GroupEntry, VolumeEntry};
use super::{Inner, errors};
use crate::engine::source::{InitialMap, LinkSpec, forget_group, history_of_closed};
use crate::engine::target::{Promotion, TargetCommandError, TargetStatus, promoted_record};
use blkrep_api::{
    ApiError, CommandReply, DemoteRequest, DetachRequest, ErrorCode, EventId, FrontendKind,
    NewEvent, PromoteRequest,
};
use blkrep_core::target::PromoteRefusal;
use blkrep_types::{
    ByteOffset, GroupName, History, LinkName, LossPolicy, MirrorKind, Mode, VolumeName,
};
use std::time::Duration;

/// An answer of a replica's worker, in the words of the control API.
pub(super) fn of_command(group: &GroupName, error: &TargetCommandError) -> ApiError {
    let code = match error {
        TargetCommandError::Promote(PromoteRefusal::SourceAlive) => ErrorCode::SourceAlive,
        TargetCommandError::Promote(PromoteRefusal::NotOk(_) | PromoteRefusal::Nothing)
        | TargetCommandError::Unwritable(_) => ErrorCode::ReplicaNotOk,
        TargetCommandError::Promoting | TargetCommandError::Closing => ErrorCode::GroupBusy,
        TargetCommandError::Failed(_) => ErrorCode::StateFull,
    };
    let text = error.to_string();
    let (happened, action) = text
        .rsplit_once("; ")
        .unwrap_or((&text, "see blkctl status"));
    ApiError::new(code, format!("group {group}"), happened, action)
}

/// A promotion is waited for however long the journal takes to apply: once asked for it cannot be
/// taken back. The client hears meanwhile that it goes on.
const PROMOTION_WAIT: Duration = Duration::MAX;

impl Inner {
    pub(super) fn promote(&self, request: &PromoteRequest) -> Result<CommandReply, ApiError> {
        let group = &request.group;
        let status = self.replica_status(group)?;
        let kind = request.frontend.unwrap_or(FrontendKind::Auto);
        let chosen = pick(kind, &self.run_dir).map_err(|why| {
            let subject = format!("group {group}");
            let action = "use another --frontend; blkctl doctor says what is missing";
            ApiError::new(ErrorCode::FrontendUnavailable, subject, why, action)
        })?;
        if self.has_record(group) {
            // Left by a crash of a time when the group was a source here: it would be taken for ours.
            forget_group(&self.host, &self.groups_dir, group)
                .map_err(|error| errors::of_engine(format!("group {group}"), &error))?;
        }
        self.write_entries(group, &status, chosen.kind)?;
        let (force, inconsistent) = (request.force, request.inconsistent);
        let promoted: Result<Box<Promotion>, ApiError> =
            self.ask(group, PROMOTION_WAIT, |control, reply| {
                control.promote(force, inconsistent, reply)
            });
        let promotion = match promoted {
            Ok(promotion) => promotion,
            Err(error) => {
                self.take_back(group);
                self.tell(NewEvent::new(EventId::PromoteRefused, error.to_string()).group(group));
                return Err(error);
            }
        };
        let replica = self.state().replicas.remove(group);
        if let Some(replica) = replica {
            replica.join();
        }
        let generation = promotion.history.current();
        self.tell(
            NewEvent::new(EventId::Promoted, format!("generation {generation} begins"))
                .group(group),
        );
        self.bring_up(group, CLAIM_WAIT);
        Ok(CommandReply {
            notes: self.devices(group),
        })
    }

    fn replica_status(&self, group: &GroupName) -> Result<TargetStatus, ApiError> {
        let state = self.state();
        let replica = state.replicas.get(group);
        if let Some(trouble) = state.unopened.get(group) {
            return Err(super::replicas::not_opened(group, trouble));
        }
        let is_source = state
            .table
            .entries()
            .volumes
            .values()
            .any(|entry| entry.group == *group);
        match replica.map(|replica| replica.control.status()) {
            Some(Some(status)) => Ok(status),
            Some(None) => Err(ApiError::new(
                ErrorCode::GroupBusy,
                format!("group {group}"),
                "its replica is being opened",
                "try again in a moment",
            )),
            None if is_source => Err(ApiError::new(
                ErrorCode::WrongRole,
                format!("group {group}"),
                "this node serves it already",
                "nothing to do; see blkctl status",
            )),
            None => Err(errors::no_group(group)),
        }
    }

    /// The table says what will be served, before the replica says that it may be.
    fn write_entries(
        &self,
        group: &GroupName,
        status: &TargetStatus,
        frontend: FrontendKind,
    ) -> Result<(), ApiError> {
        let mut volumes: Vec<(VolumeName, VolumeEntry)> = Vec::new();
        for volume in &status.volumes {
            let entry = VolumeEntry {
                group: group.clone(),
                backing: volume.path.clone(),
                offset: ByteOffset::new(0),
                len: volume.len,
                block_size: volume.block_size,
                frontend,
                device_id: None,
                extent_size: volume.extent_size,
                read_only: false,
                transient_boot: None,
                index: volume.index.get(),
                served: true,
            };
            volumes.push((volume.name.clone(), entry));
        }
        let mut state = self.state();
        let taken = volumes
            .iter()
            .find(|(name, _)| state.table.entries().volumes.contains_key(name));
        if let Some((name, _)) = taken {
            return Err(ApiError::new(
                ErrorCode::VolumeExists,
                format!("volume {name}"),
                "this node has another volume of that name",
                "detach that one first",
            ));
        }
        let change = |entries: &mut Entries| {
            let promoted = GroupEntry {
                promoted: true,
                untracked: true,
            };
            entries.groups.insert(group.clone(), promoted);
            entries.volumes.extend(volumes.clone());
        };
        let updated = state.table.update(change);
        updated.map_err(|error| errors::of_table(format!("group {group}"), &error))
    }

    /// A promotion that did not happen leaves nothing in the table.
    pub(super) fn take_back(&self, group: &GroupName) {
        let change = |entries: &mut Entries| {
            entries.volumes.retain(|_, entry| entry.group != *group);
            entries.groups.remove(group);
        };
        if let Err(error) = self.state().table.update(change) {
            tracing::error!(%group, %error, "take back a promotion");
        }
    }

    /// The history a group was promoted with, which counts if it has not been opened as a source yet.
    pub(super) fn history_of_promotion(
        &self,
        group: &GroupName,
    ) -> Result<Option<History>, ApiError> {
        // A record that exists may be one that a crash left before its first word.
        let record = match promoted_record(&self.host, &self.replica_dir(group)) {
            Err(_) if self.has_history(group) => None,
            other => other.map_err(|error| super::replicas::of_target(group, &error))?,
        };
        Ok(record.map(|record| record.history))
    }

    /// True if the group was opened as a source.
    fn has_history(&self, group: &GroupName) -> bool {
        matches!(
            history_of_closed(&self.host, &self.groups_dir, group),
            Ok(Some(_))
        )
    }

    /// From the first write on, what the former source lacks is tracked: nothing is served before it
    /// is, or before it is written down that it cannot be. Then all is compared on the way back.
    ///
    /// # Errors
    /// The table cannot be written.
    pub(super) fn track_former_source(
        &self,
        group: &GroupName,
        engine: &Engine,
    ) -> Result<(), ApiError> {
        let entry = self.state().table.entries().groups.get(group).cloned();
        if !entry.is_some_and(|entry| entry.untracked) {
            return Ok(());
        }
        let name = LinkName::new(FORMER_SOURCE).expect("a legal name");
        if !engine.links().iter().any(|link| link.name == name) {
            self.add_former_source(group, engine, name);
        }
        let tracked = |entries: &mut Entries| {
            if let Some(entry) = entries.groups.get_mut(group) {
                entry.untracked = false;
            }
        };
        let updated = self.state().table.update(tracked);
        updated.map_err(|error| errors::of_table(format!("group {group}"), &error))
    }

    fn add_former_source(&self, group: &GroupName, engine: &Engine, name: LinkName) {
        let lacking = match promoted_record(&self.host, &self.replica_dir(group)) {
            Ok(Some(record)) => record.lacking,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%group, %error, "read what the former source lacks");
                return;
            }
        };
        let spec = LinkSpec {
            name,
            peer: String::new(),
            paths: vec![String::new(); engine.volumes().len()],
            mode: Mode::Async,
            loss: LossPolicy::default(),
            first_mirror: Some(MirrorKind::Checksum),
            overwrite: false,
            wanted: false,
            initial: InitialMap::Extents(lacking),
        };
        if let Err(error) = engine.add_link(&spec) {
            tracing::error!(%group, %error, "track what the former source lacks");
        }
    }

    /// The devices of a group, in sentences.
    fn devices(&self, group: &GroupName) -> Vec<String> {
        let state = self.state();
        let Some(known) = state.groups.get(group) else {
            return Vec::new();
        };
        let served = known.served.iter();
        let mut notes: Vec<String> = served
            .map(|(name, served)| format!("volume {name} is served as {}", served.device.path()))
            .collect();
        let troubles = known.troubles.iter();
        notes.extend(troubles.map(|(name, why)| format!("volume {name} is not served: {why}")));
        notes
    }

    pub(super) fn demote(&self, request: &DemoteRequest) -> Result<CommandReply, ApiError> {
        let group = &request.group;
        let entry = self.state().table.entries().groups.get(group).cloned();
        let promoted = entry.is_some_and(|entry| entry.promoted);
        if !promoted {
            self.source(group)?;
            return Err(ApiError::new(
                ErrorCode::WrongRole,
                format!("group {group}"),
                "it was not promoted here",
                "to stop serving a source's volumes: blkctl detach",
            ));
        }
        let open = self.open_devices(group, None).into_iter().next();
        if let Some(device) = open {
            return Err(ApiError::new(
                ErrorCode::DeviceOpen,
                format!("group {group}"),
                format!("{device} is open"),
                "unmount it or stop what uses it",
            ));
        }
        let mut notes = Vec::new();
        for (volume, entry) in self.volumes_of(group) {
            if entry.served {
                notes.extend(
                    self.detach_within(&DetachRequest {
                        volume,
                        force: false,
                    })?
                    .notes,
                );
            }
        }
        self.tell(NewEvent::new(EventId::Demoted, "it is served no longer").group(group));
        Ok(CommandReply { notes })
    }
}
