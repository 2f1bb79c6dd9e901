//! `detach`, `forget`, and the orderly end of everything.
//!
//! Owns the order: device, threads, engine, table. A backing is the plain data as soon as its
//! claim is let go of.

use super::serve::{end, left_device};
use super::state::{Engine, Served};
use super::table::VolumeEntry;
use super::unfinished::remove_left;
use super::{Inner, errors};
use crate::engine::source::forget_group;
use blkrep_api::{
    ApiError, CommandReply, DetachRequest, ErrorCode, EventId, FrontendKind, NewEvent,
};
use blkrep_types::{GroupName, VolumeIndex, VolumeName};
use blkrep_ublk::driver::Ublk;
use blkrep_ublk::{FrontError, Stop};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// How long a status or the watcher may hold on to an engine that has ended.
const LOOK_WAIT: Duration = Duration::from_secs(5);
const LOOK_POLL: Duration = Duration::from_millis(2);

/// A detach under way: recorded, and its device not yet ended.
struct Detach {
    volume: VolumeName,
    entry: VolumeEntry,
    engine: Option<Engine>,
    served: Option<Served>,
    linked: bool,
    kept: bool,
    forced: bool,
}

impl Detach {
    fn end(&mut self, inner: &Inner) -> Result<(), FrontError> {
        match (&self.engine, &mut self.served) {
            (Some(engine), Some(served)) => end(engine, served, Stop::Delete),
            // A daemon that ended meanwhile may have left it.
            _ => remove_left(inner, &self.volume, &self.entry),
        }
    }
}

impl Inner {
    /// `detach`, which takes its turn itself: it also waits for requests that the disk has, which
    /// must not hold others up.
    pub(super) fn detach(&self, request: &DetachRequest) -> Result<CommandReply, ApiError> {
        let turn = self.command();
        let mut detach = self.begin_detach(request)?;
        drop(turn);
        let ended = detach.end(self);
        let _turn = self.command();
        self.finish_detach(detach, ended)
    }

    /// The same as a part of another command, whose turn it is.
    pub(super) fn detach_within(&self, request: &DetachRequest) -> Result<CommandReply, ApiError> {
        let mut detach = self.begin_detach(request)?;
        let ended = detach.end(self);
        self.finish_detach(detach, ended)
    }

    fn begin_detach(&self, request: &DetachRequest) -> Result<Detach, ApiError> {
        let volume = &request.volume;
        let found = self.state().table.entries().volumes.get(volume).cloned();
        let entry = found.ok_or_else(|| errors::no_volume(volume))?;
        self.state().refuse_ending(&entry.group)?;
        let mut open = self.open_devices(&entry.group, Some(volume));
        open.extend(self.open_left(volume, &entry));
        if let Some(device) = open.first().filter(|_| !request.force) {
            return Err(ApiError::new(
                ErrorCode::DeviceOpen,
                format!("volume {volume}"),
                format!("{device} is open"),
                "unmount it or stop what uses it; or detach --force: its users get errors",
            ));
        }
        // Recorded first: if that fails, nothing has changed.
        let linked = self.has_links(&entry.group);
        let kept = linked || self.has_state(&entry.group);
        self.drop_volume(volume)?;
        let served = self.take_served(volume, &entry);
        if let Some(served) = &served
            && entry.frontend == FrontendKind::Ublk
        {
            self.hints.forget_device(served.device.path().as_ref());
        }
        let mut state = self.state();
        state.ending.insert(entry.group.clone());
        Ok(Detach {
            volume: volume.clone(),
            engine: state.engine(&entry.group),
            entry,
            served,
            linked,
            kept,
            forced: !open.is_empty(),
        })
    }

    /// The device has ended, or could not.
    fn finish_detach(
        &self,
        detach: Detach,
        ended: Result<(), FrontError>,
    ) -> Result<CommandReply, ApiError> {
        let (volume, entry) = (&detach.volume, &detach.entry);
        self.state().ending.remove(&entry.group);
        if let Err(error) = ended {
            if let Some(served) = detach.served {
                let mut state = self.state();
                let group = state.groups.entry(entry.group.clone()).or_default();
                group.served.insert(volume.clone(), served);
            }
            return Err(errors::of_ending(volume, &error));
        }
        if self.stopping.load(Ordering::Acquire) {
            return Err(ApiError::new(
                ErrorCode::ShuttingDown,
                format!("volume {volume}"),
                "the daemon is stopping",
                "nothing: its device is gone, and the next start does the rest",
            ));
        }
        drop((detach.served, detach.engine));
        if !detach.kept {
            self.show(volume, entry);
        }
        let mut notes = Vec::new();
        self.settle(&entry.group, detach.linked, &mut notes)?;
        let id = if detach.forced {
            EventId::VolumeDetachForced
        } else {
            EventId::VolumeDetached
        };
        let text = format!("{} is served no longer", entry.backing.display());
        self.tell(NewEvent::new(id, text).group(&entry.group).volume(volume));
        if notes.is_empty() {
            notes.push(format!(
                "{} is the plain data again",
                entry.backing.display()
            ));
        }
        Ok(CommandReply { notes })
    }

    /// Waits, for a while, until no device is ending.
    pub(super) fn await_endings(&self, wait: Duration) {
        let end = Instant::now() + wait;
        while !self.state().ending.is_empty() && Instant::now() < end {
            thread::sleep(LOOK_POLL);
        }
    }

    /// The device that a daemon which ended left of a volume, if somebody has it open.
    fn open_left(&self, volume: &VolumeName, entry: &VolumeEntry) -> Option<String> {
        let served = {
            let state = self.state();
            let group = state.groups.get(&entry.group);
            group.is_some_and(|group| group.served.contains_key(volume))
        };
        let left = (!served).then(|| left_device(self.owner, volume, entry))?;
        // A driver that does not say so is told of when the device is to go.
        let open = left
            .ok()
            .flatten()
            .filter(|left| Ublk::default().in_use(left.id));
        open.map(|left| format!("/dev/ublkb{}", left.id))
    }

    /// Devices of a group, or of one volume of it, that somebody has open.
    pub(super) fn open_devices(&self, group: &GroupName, only: Option<&VolumeName>) -> Vec<String> {
        let devices: Vec<_> = {
            let state = self.state();
            let served = state.groups.get(group).map(|group| &group.served);
            let served = served.into_iter().flatten();
            served
                .filter(|(volume, _)| only.is_none_or(|only| only == *volume))
                .map(|(_, served)| (served.device.path(), served.device.users()))
                .collect()
        };
        // Looking asks the kernel for all open files, and may take long: not under the lock.
        let open = devices.into_iter().filter(|(_, users)| users());
        open.map(|(path, _)| path).collect()
    }

    /// Takes the device out of what is served.
    fn take_served(&self, volume: &VolumeName, entry: &VolumeEntry) -> Option<Served> {
        let mut state = self.state();
        let group = state.groups.get_mut(&entry.group)?;
        group.troubles.remove(volume);
        group.served.remove(volume)
    }

    /// A volume of a linked group stays in the table: maps and stream are of all its volumes.
    fn drop_volume(&self, volume: &VolumeName) -> Result<(), ApiError> {
        self.state()
            .table
            .update(|entries| {
                if let Some(entry) = entries.volumes.get_mut(volume) {
                    entry.served = false;
                }
            })
            .map_err(|error| errors::of_table(format!("volume {volume}"), &error))
    }

    /// True if the group is open and has links.
    pub(super) fn has_links(&self, group: &GroupName) -> bool {
        let engine = self.state().engine(group);
        engine.is_some_and(|engine| !engine.links().is_empty())
    }

    /// True if a group that is not open has links that are remembered.
    fn has_state(&self, group: &GroupName) -> bool {
        self.state().engine(group).is_none()
            && self.groups_dir.join(format!("{group}.intent")).exists()
    }

    /// Lets go of what a group no longer needs after one of its volumes ended.
    pub(super) fn settle(
        &self,
        group: &GroupName,
        linked: bool,
        notes: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let volumes = self.volumes_of(group);
        let any_served = volumes.iter().any(|(_, entry)| entry.served);
        if any_served {
            return self.shrink(group, linked, notes);
        }
        self.stop_links(group);
        let engine = self
            .state()
            .groups
            .remove(group)
            .and_then(|group| group.engine);
        if let Some(engine) = engine {
            self.stop_engine(group, engine, true);
        }
        for (name, entry) in &volumes {
            self.show(name, entry);
        }
        if linked || self.has_state(group) {
            notes.push(format!(
                "group {group} keeps its links; changes made to its backings from now on are not \
                 seen: the next connection compares everything"
            ));
            return Ok(());
        }
        self.forget_source(group)?;
        // If it was promoted here, the record of the replica that it was is left.
        self.remove_replica_files(group)
    }

    /// Drops a source that is closed. The table's entries go last: as long as they are there, what a
    /// crash left of the rest can be named and forgotten.
    pub(super) fn forget_source(&self, group: &GroupName) -> Result<(), ApiError> {
        forget_group(&self.host, &self.groups_dir, group)
            .map_err(|error| errors::of_engine(format!("group {group}"), &error))?;
        self.remove_entries(group)
    }

    /// Without links the volumes at the end of a group that are not served are let go of.
    fn shrink(
        &self,
        group: &GroupName,
        linked: bool,
        notes: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let held = "its backing stays claimed until the other volumes of its group are detached";
        let engine = self.state().engine(group);
        let Some(engine) = engine.filter(|engine| !linked && !engine.volumes_are_fixed()) else {
            notes.push(held.to_owned());
            return Ok(());
        };
        for (name, entry) in self.volumes_of(group).into_iter().rev() {
            if entry.served {
                break;
            }
            engine
                .remove_last_volume(VolumeIndex::new(entry.index))
                .map_err(|error| errors::of_engine(format!("volume {name}"), &error))?;
            self.state()
                .table
                .update(|entries| drop(entries.volumes.remove(&name)))
                .map_err(|error| errors::of_table(format!("volume {name}"), &error))?;
        }
        if self
            .volumes_of(group)
            .iter()
            .any(|(_, entry)| !entry.served)
        {
            notes.push(held.to_owned());
        }
        Ok(())
    }

    fn remove_entries(&self, group: &GroupName) -> Result<(), ApiError> {
        self.state()
            .table
            .update(|entries| {
                entries.volumes.retain(|_, entry| entry.group != *group);
                entries.groups.remove(group);
            })
            .map_err(|error| errors::of_table(format!("group {group}"), &error))
    }

    /// Ends an engine in order and lets go of its claims.
    pub(super) fn stop_engine(&self, group: &GroupName, engine: Engine, detached: bool) {
        if let Err(error) = engine.stop(detached) {
            tracing::error!(%group, %error, "end the group in order");
            let text = format!("the group did not end in order: {error}");
            self.tell(NewEvent::new(EventId::StateFull, text).group(group));
        }
        // Somebody may just be looking at it.
        let end = Instant::now() + LOOK_WAIT;
        let mut engine = engine;
        while let Err(looked_at) = Arc::try_unwrap(engine) {
            engine = looked_at;
            if Instant::now() > end {
                tracing::error!(%group, "the group is still in use after its end");
                return;
            }
            thread::sleep(LOOK_POLL);
        }
    }

    /// A step of `attach` failed: the group is as it was before.
    pub(super) fn leave(&self, volume: &VolumeName, group: &GroupName) {
        let entry = self.state().table.entries().volumes.get(volume).cloned();
        let removed = self.state().table.update(|entries| {
            entries.volumes.remove(volume);
            if !entries.volumes.values().any(|entry| entry.group == *group) {
                entries.groups.remove(group);
            }
        });
        if let Err(error) = removed {
            tracing::error!(%volume, %error, "take back a failed attach");
        }
        if let Some(entry) = &entry {
            self.show(volume, entry);
        }
        let Some(engine) = self.state().engine(group) else {
            return;
        };
        // Volumes that are not served, for whatever trouble, are volumes all the same.
        let others = self.volumes_of(group);
        if others.iter().all(|(name, _)| name == volume) {
            self.state().groups.remove(group);
            self.stop_engine(group, engine, true);
            if let Err(error) = forget_group(&self.host, &self.groups_dir, group) {
                tracing::error!(%group, %error, "forget a group that was never served");
            }
        } else {
            let last = VolumeIndex::new(
                u16::try_from(engine.volumes().len() - 1).expect("a group has few volumes"),
            );
            if let Err(error) = engine.remove_last_volume(last) {
                tracing::error!(%volume, %error, "let go of a volume that was never served");
            }
        }
    }

    /// Drops what is remembered of a group that is neither served nor connected.
    pub(super) fn forget(&self, group: &GroupName) -> Result<CommandReply, ApiError> {
        if let Some(reply) = self.forget_replica(group)? {
            return Ok(reply);
        }
        let known = !self.volumes_of(group).is_empty()
            || self.groups_dir.join(format!("{group}.group")).exists()
            || self.replica_dir(group).join("superblock").exists();
        if !known {
            return Err(errors::no_group(group));
        }
        self.state().refuse_ending(group)?;
        let busy = self
            .state()
            .groups
            .get(group)
            .is_some_and(|group| !group.served.is_empty());
        if busy {
            return Err(ApiError::new(
                ErrorCode::GroupBusy,
                format!("group {group}"),
                "its volumes are served",
                "detach them first",
            ));
        }
        self.stop_links(group);
        let engine = self
            .state()
            .groups
            .remove(group)
            .and_then(|group| group.engine);
        if let Some(engine) = engine {
            self.stop_engine(group, engine, true);
        }
        for (name, entry) in self.volumes_of(group) {
            self.show(&name, &entry);
        }
        self.forget_source(group)?;
        // If it was promoted here, the record of the replica that it was is left.
        self.remove_replica_files(group)?;
        self.settings.forget_group(group);
        Ok(CommandReply::note(format!(
            "group {group} is forgotten; its data was not touched"
        )))
    }

    /// Ends everything so that a successor can go on: devices that can wait for it do.
    pub(super) fn stop_all(&self) {
        let groups = std::mem::take(&mut self.state().groups);
        for (name, mut group) in groups {
            let engine = group.engine.take();
            for served in group.served.values_mut() {
                let engine = engine.as_ref().expect("what is served has an engine");
                if let Err(error) = end(engine, served, Stop::LeaveForSuccessor) {
                    tracing::error!(group = %name, %error, "leave a device to a successor");
                }
            }
            group.end_links();
            if let Some(engine) = engine {
                self.stop_engine(&name, engine, false);
            }
        }
    }
}
