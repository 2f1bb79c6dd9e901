//! `attach`: from a backing to a device.
//!
//! Owns the order: check, claim, record, serve; and taking everything back if a step fails.

use super::backing::{self, Identity, Taken};
use super::claim::volume_spec;
use super::frontends::{caveat, pick};
use super::state::{Engine, Group, Trouble};
use super::table::VolumeEntry;
use super::{Inner, errors};
use crate::engine::source::distrust_group;
use blkrep_api::{ApiError, AttachReply, AttachRequest, ErrorCode, EventId, NewEvent};
use blkrep_types::limits::GROUP_VOLUMES_MAX;
use blkrep_types::{BlockSize, ByteLen, Extent, GroupName, VolumeIndex, VolumeName};
use std::time::Duration;

/// How long `attach` waits for a backing that is claimed: it might be our own detach, just done.
pub(super) const ATTACH_PATIENCE: Duration = Duration::from_millis(500);

impl Inner {
    pub(super) fn attach(&self, request: &AttachRequest) -> Result<AttachReply, ApiError> {
        if let Some(entry) = self.known(request)? {
            return self.attach_again(&request.volume, entry);
        }
        let (entry, share) = self.plan(request)?;
        let chosen = pick(entry.frontend, &self.run_dir).map_err(|why| {
            ApiError::new(
                ErrorCode::FrontendUnavailable,
                format!("volume {}", request.volume),
                why,
                "use another --frontend; blkctl doctor says what is missing",
            )
        })?;
        let mut entry = VolumeEntry {
            frontend: chosen.kind,
            ..entry
        };
        let engine = self.join(&request.volume, &mut entry, share)?;
        let served = self.serve_new(&request.volume, &entry, &engine);
        if served.is_err() {
            self.leave(&request.volume, &entry.group);
        }
        let mut reply = served?;
        reply.notes = chosen.notes;
        Ok(reply)
    }

    /// The entry of a volume that is in the table and not served.
    fn known(&self, request: &AttachRequest) -> Result<Option<VolumeEntry>, ApiError> {
        let subject = format!("volume {}", request.volume);
        let state = self.state();
        let group = request
            .group
            .clone()
            .unwrap_or_else(|| own_group(&request.volume));
        if state.replica_is_here(&group) {
            return Err(ApiError::new(
                ErrorCode::WrongRole,
                format!("group {group}"),
                "this node is its target",
                format!("promote it: blkctl promote {group}; or use another --group"),
            ));
        }
        state.refuse_ending(&group)?;
        let Some(entry) = state.table.entries().volumes.get(&request.volume) else {
            return Ok(None);
        };
        state.refuse_ending(&entry.group)?;
        let known = state.groups.get(&entry.group);
        let served = known.and_then(|group| group.served.get(&request.volume));
        let exists = |happened: String, action: String| {
            Err(ApiError::new(
                ErrorCode::VolumeExists,
                subject,
                happened,
                action,
            ))
        };
        if let Some(served) = served.filter(|_| entry.backing == request.backing) {
            return exists(
                format!("it is served already, as {}", served.device.path()),
                "use that; or choose another name for another backing".to_owned(),
            );
        }
        if served.is_some() || entry.backing != request.backing {
            let forget = format!("blkctl forget {}", entry.group);
            return exists(
                format!("it exists already, on {}", entry.backing.display()),
                format!("use another name; or give that one up: blkctl detach, then {forget}"),
            );
        }
        Ok(Some(entry.clone()))
    }

    /// Serves a volume that the table knows.
    fn attach_again(
        &self,
        volume: &VolumeName,
        mut entry: VolumeEntry,
    ) -> Result<AttachReply, ApiError> {
        let group = &entry.group;
        if !entry.served && self.state().engine(group).is_none() {
            // Nobody watched the backing meanwhile, however the detach ended.
            distrust_group(&self.host, &self.groups_dir, group)
                .map_err(|error| errors::of_engine(format!("group {group}"), &error))?;
        }
        entry.served = true;
        self.state()
            .table
            .update(|entries| drop(entries.volumes.insert(volume.clone(), entry.clone())))
            .map_err(|error| errors::of_table(format!("volume {volume}"), &error))?;
        self.bring_up(&entry.group, ATTACH_PATIENCE);
        let state = self.state();
        let group = state.groups.get(&entry.group);
        let served = group.and_then(|group| group.served.get(volume));
        match served {
            Some(served) => Ok(AttachReply {
                device: served.device.path(),
                frontend: entry.frontend,
                notes: caveat(entry.frontend)
                    .map(str::to_owned)
                    .into_iter()
                    .collect(),
                size_bytes: entry.len,
            }),
            None => {
                let why = group.and_then(|group| group.troubles.get(volume));
                let why = why.cloned().unwrap_or_else(|| Trouble {
                    code: ErrorCode::BackingFailing,
                    what: "it could not be served".to_owned(),
                    action: "see blkctl events".to_owned(),
                });
                let action = format!("{}; it is tried again by itself", why.action);
                let subject = format!("volume {volume}");
                Err(ApiError::new(why.code, subject, why.what, action))
            }
        }
    }

    /// Checks everything that can be checked before the backing is claimed.
    fn plan(
        &self,
        request: &AttachRequest,
    ) -> Result<(VolumeEntry, Option<VolumeIndex>), ApiError> {
        let volume = &request.volume;
        let wrong = |error| errors::of_backing(volume, error);
        let group = request.group.clone().unwrap_or_else(|| own_group(volume));
        let (path, identity) = backing::identify(&request.backing).map_err(wrong)?;
        let (len, block_size) = backing::measure(&path).map_err(wrong)?;
        let extent = within(request, len, block_size)?;
        let taken = self.taken();
        let share = self
            .share(&group, identity, extent, &taken, &path)
            .map_err(wrong)?;
        backing::refuse_overlap(&path, identity, extent, &all(&taken)).map_err(wrong)?;
        if share.is_none() {
            backing::refuse_in_use(&path, identity).map_err(wrong)?;
        }
        let settings = self.settings.group(&group);
        let entry = VolumeEntry {
            group,
            backing: request.backing.clone(),
            offset: request.offset,
            len: extent.len(),
            block_size,
            frontend: request.frontend,
            device_id: request.device_id,
            extent_size: request.extent_size.unwrap_or(settings.extent_size),
            read_only: request.read_only,
            transient_boot: request.transient.then(|| self.boot.clone()),
            index: 0,
            served: true,
        };
        Ok((entry, share))
    }

    /// What volumes of this node already have.
    pub(super) fn taken(&self) -> Vec<(GroupName, VolumeIndex, Taken)> {
        let state = self.state();
        let volumes = state.table.entries().volumes.iter();
        volumes
            .filter_map(|(name, entry)| {
                let (_, identity) = backing::identify(&entry.backing).ok()?;
                let extent = Extent::new(entry.offset, entry.len).ok()?;
                let taken = Taken {
                    identity,
                    extent,
                    volume: name.to_string(),
                };
                Some((entry.group.clone(), VolumeIndex::new(entry.index), taken))
            })
            .collect()
    }

    /// The volume of the same group whose claim on the same backing can be shared.
    fn share(
        &self,
        group: &GroupName,
        identity: Identity,
        extent: Extent,
        taken: &[(GroupName, VolumeIndex, Taken)],
        path: &std::path::Path,
    ) -> Result<Option<VolumeIndex>, backing::Unusable> {
        match taken
            .iter()
            .find(|(_, _, taken)| taken.identity == identity)
        {
            None => Ok(None),
            Some((owner, index, _)) if owner == group => {
                Ok(self.state().engine(group).map(|_| *index))
            }
            Some((owner, _, taken)) => Err(backing::Unusable {
                code: ErrorCode::BackingAttached,
                what: format!(
                    "{} holds volume '{}' of group {owner}",
                    path.display(),
                    taken.volume
                ),
                action: if taken.extent.overlaps(extent) {
                    format!(
                        "use another backing, or detach volume '{}' first",
                        taken.volume
                    )
                } else {
                    format!("put both volumes into one group: --group {owner}")
                },
            }),
        }
    }

    /// Claims the backing within its group's engine, which is opened for it if need be.
    fn join(
        &self,
        volume: &VolumeName,
        entry: &mut VolumeEntry,
        share: Option<VolumeIndex>,
    ) -> Result<Engine, ApiError> {
        let group = entry.group.clone();
        let open = self.state().engine(&group);
        if let Some(engine) = open {
            if engine.volumes().len() >= GROUP_VOLUMES_MAX {
                return Err(ApiError::new(
                    ErrorCode::GroupFull,
                    format!("group {group}"),
                    format!("it has {GROUP_VOLUMES_MAX} volumes, the most a group can have"),
                    "use another group",
                ));
            }
            if engine.volumes_are_fixed() {
                return Err(ApiError::new(
                    ErrorCode::GroupBusy,
                    format!("group {group}"),
                    "it has a link, or had one since it was attached, which is of the volumes it has",
                    "use another group; or disconnect its links with --forget, detach all its \
                     volumes, and attach them together again",
                ));
            }
            let index = engine
                .add_volume(&volume_spec(volume, entry), share)
                .map_err(|error| errors::of_engine(format!("volume {volume}"), &error))?;
            entry.index = index.get();
            return Ok(engine);
        }
        let others = self.volumes_of(&group);
        if !others.is_empty() {
            return Err(ApiError::new(
                ErrorCode::GroupBusy,
                format!("group {group}"),
                "its other volumes are not served",
                format!("attach those first, or: blkctl forget {group}"),
            ));
        }
        let volumes = vec![(volume.clone(), entry.clone())];
        let engine = self.open_engine(&group, &volumes, None, false, ATTACH_PATIENCE)?;
        let mut state = self.state();
        state.groups.insert(
            group,
            Group {
                engine: Some(engine.clone()),
                ..Group::default()
            },
        );
        Ok(engine)
    }

    fn serve_new(
        &self,
        volume: &VolumeName,
        entry: &VolumeEntry,
        engine: &Engine,
    ) -> Result<AttachReply, ApiError> {
        self.hide(volume, entry);
        let record = |device_id: Option<u32>| {
            let entry = VolumeEntry {
                device_id,
                ..entry.clone()
            };
            self.state()
                .table
                .update(|entries| {
                    entries.groups.entry(entry.group.clone()).or_default();
                    entries.volumes.insert(volume.clone(), entry);
                })
                .map_err(|error| errors::of_table(format!("volume {volume}"), &error))
        };
        let (served, chosen) = self.serve(volume, entry, engine, false, record)?;
        // A loop device has its number only now.
        record(served.device.id())?;
        let device = served.device.path();
        let mut state = self.state();
        let group = state.groups.entry(entry.group.clone()).or_default();
        group.served.insert(volume.clone(), served);
        group.troubles.remove(volume);
        drop(state);
        let text = format!("{} is served as {device}", entry.backing.display());
        self.tell(
            NewEvent::new(EventId::VolumeAttached, text)
                .group(&entry.group)
                .volume(volume),
        );
        Ok(AttachReply {
            device,
            frontend: chosen.kind,
            notes: Vec::new(),
            size_bytes: entry.len,
        })
    }

    /// Hides a backing from everybody who mounts or scans by himself.
    pub(super) fn hide(&self, volume: &VolumeName, entry: &VolumeEntry) {
        if let Some((major, minor)) = device_number(entry) {
            self.hints
                .hide_backing(major, minor, volume, entry.transient_boot.is_none());
        }
    }

    /// Shows it again.
    pub(super) fn show(&self, volume: &VolumeName, entry: &VolumeEntry) {
        if let Some((major, minor)) = device_number(entry) {
            self.hints.show_backing(major, minor, volume);
        }
    }

    /// The volumes of a group that the table knows, in their order.
    pub(super) fn volumes_of(&self, group: &GroupName) -> super::claim::Volumes {
        let state = self.state();
        let all = state.table.entries().volumes.iter();
        let mut volumes: Vec<_> = all
            .filter(|(_, entry)| entry.group == *group)
            .map(|(name, entry)| (name.clone(), entry.clone()))
            .collect();
        volumes.sort_by_key(|(_, entry)| entry.index);
        volumes
    }
}

fn all(taken: &[(GroupName, VolumeIndex, Taken)]) -> Vec<Taken> {
    taken.iter().map(|(_, _, taken)| taken.clone()).collect()
}

/// A volume without a group is its own.
fn own_group(volume: &VolumeName) -> GroupName {
    GroupName::new(volume.as_str()).expect("volume and group names have one rule")
}

fn device_number(entry: &VolumeEntry) -> Option<(u32, u32)> {
    match backing::identify(&entry.backing) {
        Ok((_, Identity::Device { major, minor })) => {
            Some((u32::try_from(major).ok()?, u32::try_from(minor).ok()?))
        }
        _ => None,
    }
}

/// The bytes of the backing that the request asks for.
fn within(request: &AttachRequest, backing: ByteLen, block: BlockSize) -> Result<Extent, ApiError> {
    let wrong = |happened: String, action: &str| {
        let subject = format!("volume {}", request.volume);
        ApiError::new(ErrorCode::BackingUnsuitable, subject, happened, action)
    };
    let offset = request.offset.get();
    if !offset.is_multiple_of(block.get()) {
        return Err(wrong(
            format!(
                "offset {offset} is not a multiple of its blocks of {} bytes",
                block.get()
            ),
            "give an aligned --offset",
        ));
    }
    let rest = backing.get().saturating_sub(offset);
    let len = request.size.map_or(rest, ByteLen::get);
    let whole = len - len % block.get();
    if whole == 0 || len > rest {
        return Err(wrong(
            format!("the backing has {rest} bytes from offset {offset}, {len} are asked for"),
            "use a larger backing, or a smaller --offset and --size",
        ));
    }
    if request.size.is_some() && whole != len {
        return Err(wrong(
            format!(
                "size {len} is not a multiple of its blocks of {} bytes",
                block.get()
            ),
            "give an aligned --size",
        ));
    }
    Extent::new(request.offset, ByteLen::new(whole))
        .map_err(|error| wrong(error.to_string(), "give a smaller --offset and --size"))
}
