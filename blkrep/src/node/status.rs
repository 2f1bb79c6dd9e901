//! `status`: what is, on orthogonal axes.
//!
//! Owns gathering states of engines, devices and links into the API's words. What they mean and
//! what to do about them is put into words by the control plane. Never changes anything.

use super::serve::outlived;
use super::state::Group;
use super::table::VolumeEntry;
use super::{Inner, errors};
use blkrep_api::{
    ApiError, GroupStatus, Problem, ProblemLevel, Role, StatusQuery, ThrottleStatus, VolumeState,
    VolumeStatus,
};
use blkrep_core::source::{Gate, ThrottleStatus as Throttling};
use blkrep_types::{Generation, GroupName, VolumeName};
use std::collections::BTreeSet;

impl Inner {
    pub(super) fn status(&self, query: &StatusQuery) -> Result<Vec<GroupStatus>, ApiError> {
        let mut names: Vec<GroupName> = {
            let state = self.state();
            let entries = state.table.entries();
            entries
                .volumes
                .values()
                .map(|entry| entry.group.clone())
                .collect()
        };
        names.sort();
        names.dedup();
        let mut groups: Vec<GroupStatus> =
            names.iter().map(|name| self.source_status(name)).collect();
        self.add_replicas(&mut groups);
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        match &query.group {
            None => Ok(groups),
            Some(name) => {
                groups.retain(|group| group.name == *name);
                if groups.is_empty() {
                    Err(errors::no_group(name))
                } else {
                    Ok(groups)
                }
            }
        }
    }

    fn source_status(&self, name: &GroupName) -> GroupStatus {
        let volumes = self.volumes_of(name);
        let engine = self.state().engine(name);
        let engine_status = engine.as_ref().map(|engine| engine.status());
        let links = engine
            .as_ref()
            .map(|engine| self.link_statuses(name, engine));
        // Asks the driver, which may take long: not under the lock.
        let missing = self.missing(name, &volumes);
        let missing = missing.iter();
        let waiting: BTreeSet<&VolumeName> = missing
            .filter(|(volume, entry)| outlived(self.owner, volume, entry))
            .map(|(volume, _)| volume)
            .collect();
        let state = self.state();
        let entry = state.table.entries().groups.get(name);
        let promoted = entry.is_some_and(|entry| entry.promoted);
        let none = Group::default();
        let group = state.groups.get(name).unwrap_or(&none);
        let gate = engine_status.as_ref().map(|status| status.gate);
        let throttle = engine_status.as_ref().map(|status| status.throttle);
        let problems = group.troubles.iter().map(|(volume, why)| {
            Problem::new(
                ProblemLevel::Error,
                format!("volume {volume} is not served: {}", why.what),
                "what uses it waits or gets errors",
                format!("{}; it is tried again by itself", why.action),
            )
        });
        GroupStatus {
            name: name.clone(),
            role: if promoted {
                Role::Promoted
            } else {
                Role::Source
            },
            generation: engine_status.map_or(Generation::NONE, |status| status.generation),
            volumes: volumes
                .iter()
                .map(|(volume, entry)| {
                    let waits = waiting.contains(volume);
                    volume_status((volume, entry), group, gate, waits)
                })
                .collect(),
            links: links.unwrap_or_default(),
            throttle: throttle.and_then(throttle_status),
            served_by: engine.and_then(|engine| engine.served_by()),
            target: None,
            problems: problems.collect(),
        }
    }
}

fn throttle_status(throttle: Throttling) -> Option<ThrottleStatus> {
    let delay = throttle.delay.as_micros();
    let status = ThrottleStatus {
        delay_us: u64::try_from(delay).unwrap_or(u64::MAX),
        delayed_writes: throttle.delayed,
    };
    (delay > 0 || throttle.delayed > 0).then_some(status)
}

/// `waits`: a device that outlived its daemon waits for us.
fn volume_status(
    (name, entry): (&VolumeName, &VolumeEntry),
    group: &Group,
    gate: Option<Gate>,
    waits: bool,
) -> VolumeStatus {
    let served = group.served.get(name);
    let state = match (served, gate) {
        (Some(_), Some(Gate::Frozen)) => VolumeState::Frozen,
        (Some(_), Some(Gate::Fenced)) => VolumeState::Fenced,
        (Some(_), Some(Gate::Served)) => VolumeState::ServedByTarget,
        (Some(_), Some(Gate::Open) | None) if group.failing => VolumeState::Failing,
        (Some(_), Some(Gate::Open) | None) => VolumeState::Served,
        (None, _) if waits => VolumeState::Recovering,
        (None, _) => VolumeState::Offline,
    };
    VolumeStatus {
        name: name.clone(),
        device: served
            .map(|served| served.device.path())
            .unwrap_or_default(),
        frontend: Some(entry.frontend),
        backing: entry.backing.display().to_string(),
        size_bytes: entry.len,
        state,
        read_only: entry.read_only,
        transient: entry.transient_boot.is_some(),
    }
}
