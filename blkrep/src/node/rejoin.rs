//! An old source becomes the target of a newer history of its group.
//!
//! Owns the order, so that a crash or a refusal at any moment leaves the one or the other. The source
//! is closed, and everything that names it stays; the replica is made on its backings; the replica's
//! record is the decision. Only then what the source was goes: its own record first, the table's
//! entries last. A start that finds both goes on; one that finds no replica has a source as before.

use super::attach::ATTACH_PATIENCE;
use super::claim::Volumes;
use super::router::{another_command, refuse};
use super::serve::end;
use super::state::Trouble;
use super::{Inner, NetHost, backing, errors};
use crate::engine::target::{Opened, Route, TargetPolicy, promoted_record, recorded_role};
use blkrep_api::{ApiError, ErrorCode, EventId, NewEvent};
use blkrep_store::superblock::ReplicaRole;
use blkrep_types::{GroupName, VolumeName};
use blkrep_ublk::Stop;
use blkrep_wire::{Hello, RefuseCode};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// How long the disks of a group that was just closed are waited for, and how often they are tried.
const OWN_DISKS_WAIT: Duration = Duration::from_secs(3);
const OWN_DISKS_RETRY: Duration = Duration::from_millis(50);

/// How long what a refused rejoin closed stays closed after the last attempt. The newer side tries
/// every second unless it was told otherwise.
const LEFT_CLOSED: Duration = Duration::from_secs(10);

/// A volume this node had as its source, and its backing.
pub(super) type OwnBase = (VolumeName, PathBuf);

impl Inner {
    /// Makes a superseded source a target: its backings become the replica's bases. The operator has
    /// said so at the newer source, by name. On a refusal it is what it was.
    pub(super) fn become_target(&self, hello: &Hello) -> Result<(), Route> {
        let Some(_turn) = self.try_command() else {
            return Err(another_command());
        };
        let group = &hello.group;
        let volumes = self.volumes_of(group);
        let own: Vec<OwnBase> = volumes
            .iter()
            .map(|(name, entry)| (name.clone(), entry.backing.clone()))
            .collect();
        let made = self.may_rejoin(hello, &volumes).and_then(|()| {
            let closed = self.close_source(group);
            closed.and_then(|()| self.make_on_own(hello, &own))
        });
        match &made {
            // It is tried again, every second or so: devices that come and go would help nobody.
            Err(Route::Refuse { code, text, .. }) if code.passes() => {
                self.leave_closed(hello, &volumes, text);
            }
            Err(_) => self.bring_up(group, ATTACH_PATIENCE),
            Ok(_) => {}
        }
        let opened = made.inspect_err(|refusal| self.tell_not_rejoined(hello, refusal))?;
        self.conclude_rejoin(group)
            .map_err(|error| refuse(RefuseCode::Unavailable, error.to_string()))?;
        self.begin_replica(group, opened)
    }

    /// A rejoin that was refused for now: what it closed stays closed as long as it is tried again.
    fn leave_closed(&self, hello: &Hello, volumes: &Volumes, text: &str) {
        let missing = self.missing(&hello.group, volumes);
        if missing.is_empty() {
            return;
        }
        let why = Trouble {
            code: ErrorCode::GroupBusy,
            what: format!("node {} is to overwrite it, and cannot: {text}", hello.node),
            action: format!(
                "do what that says, or disconnect the link on node {}; a device that returns errors is back a little later",
                hello.node
            ),
        };
        let mut state = self.state();
        let until = Instant::now() + LEFT_CLOSED;
        state.left_closed.insert(hello.group.clone(), until);
        let known = state.groups.entry(hello.group.clone()).or_default();
        for (name, _) in missing {
            known.troubles.insert(name, why.clone());
        }
    }

    /// Said once for each reason: the newer side tries again.
    fn tell_not_rejoined(&self, hello: &Hello, refusal: &Route) {
        let Route::Refuse { text, .. } = refusal else {
            return;
        };
        let mut state = self.state();
        let before = state.not_rejoined.insert(hello.group.clone(), text.clone());
        drop(state);
        if before.as_ref() == Some(text) {
            return;
        }
        let text = format!(
            "node {} was to overwrite it: {text}; it stays what it was",
            hello.node
        );
        self.tell(NewEvent::new(EventId::LinkRefused, text).group(&hello.group));
    }

    /// What can be seen before anything is touched.
    fn may_rejoin(&self, hello: &Hello, volumes: &Volumes) -> Result<(), Route> {
        // A replica has its path from the first byte on: what stands before a volume is not ours.
        if let Some((name, entry)) = volumes.iter().find(|(_, entry)| entry.offset.get() != 0) {
            let text = format!(
                "volume '{name}' begins {} bytes into {} there, where a replica cannot be; forget the group there and map its volumes to paths of their own",
                entry.offset.get(),
                entry.backing.display()
            );
            return Err(refuse(RefuseCode::Path, text));
        }
        let policy = TargetPolicy {
            directories: self.replica_dirs.clone(),
            paths: volumes.iter().map(|(_, e)| e.backing.clone()).collect(),
        };
        for volume in &hello.volumes {
            let own = volumes.iter().find(|(name, _)| *name == volume.name);
            let path = match own {
                Some((_, entry)) if volume.path.is_empty() => entry.backing.clone(),
                _ => PathBuf::from(&volume.path),
            };
            // Without a path the target chooses, among those that are allowed.
            if !path.as_os_str().is_empty() {
                policy
                    .check(&path)
                    .map_err(|error| refuse(error.code(), error.to_string()))?;
            }
            // One that is missing is not made anew: its disk may come back.
            if volumes.iter().any(|(_, entry)| entry.backing == path) {
                backing::identify(&path)
                    .map_err(|error| refuse(RefuseCode::Failed, error.to_string()))?;
            }
        }
        match self.open_devices(&hello.group, None).first() {
            None => Ok(()),
            Some(device) => {
                let text = format!(
                    "{device} is open on node {}; unmount it or stop what uses it there",
                    self.name
                );
                Err(refuse(RefuseCode::Busy, text))
            }
        }
    }

    /// Ends devices, links and engine of a source. All that is recorded of it stays.
    fn close_source(&self, group: &GroupName) -> Result<(), Route> {
        let unavailable = |error: ApiError| {
            let text = format!("{error}; {}", error.action);
            refuse(RefuseCode::Unavailable, text)
        };
        self.state().refuse_ending(group).map_err(unavailable)?;
        self.stop_links(group);
        let Some(mut known) = self.state().groups.remove(group) else {
            return Ok(());
        };
        let Some(engine) = known.engine.take() else {
            return Ok(());
        };
        while let Some((volume, mut served)) = known.served.pop_first() {
            self.hints.forget_device(served.device.path().as_ref());
            if let Err(error) = end(&engine, &mut served, Stop::Delete) {
                let error = errors::of_ending(&volume, &error);
                known.served.insert(volume, served);
                known.engine = Some(engine);
                self.state().groups.insert(group.clone(), known);
                return Err(unavailable(error));
            }
        }
        // What is compared with the newer side must be what the disk has.
        if let Err(error) = engine.secure() {
            let text = format!(
                "a flush failed on node {}, and what it may have lost cannot be written again: {error}; see to that disk",
                self.name
            );
            // The next attempt begins here again.
            known.engine = Some(engine);
            self.state().groups.insert(group.clone(), known);
            return Err(refuse(RefuseCode::Unavailable, text));
        }
        drop(known);
        self.stop_engine(group, engine, true);
        Ok(())
    }

    fn make_on_own(&self, hello: &Hello, own: &[OwnBase]) -> Result<Opened<NetHost>, Route> {
        self.drop_promoted(&hello.group)
            .map_err(|error| refuse(RefuseCode::Failed, error.to_string()))?;
        // Whoever looks at the disks now that nobody claims them (udev, say) is soon done.
        let end = Instant::now() + OWN_DISKS_WAIT;
        loop {
            match self.make_replica(hello, own) {
                Err(Route::Refuse {
                    code: RefuseCode::Busy,
                    ..
                }) if Instant::now() < end => thread::sleep(OWN_DISKS_RETRY),
                made => return made,
            }
        }
    }

    /// A group that was promoted here once has a record of its own since: that of the replica it was
    /// would be in the way.
    fn drop_promoted(&self, group: &GroupName) -> Result<(), ApiError> {
        let promoted = promoted_record(&self.host, &self.replica_dir(group))
            .map_err(|error| super::replicas::of_target(group, &error))?;
        match promoted {
            Some(_) if self.has_record(group) => self.remove_replica_files(group),
            _ => Ok(()),
        }
    }

    /// True if something is recorded of the group as a source.
    pub(super) fn has_record(&self, group: &GroupName) -> bool {
        self.groups_dir.join(format!("{group}.group")).exists()
    }

    /// True if the group is to be a target although the table has it as a source.
    pub(super) fn rejoin_is_decided(&self, group: &GroupName) -> bool {
        let role = recorded_role(&self.host, &self.replica_dir(group));
        matches!(role, Ok(Some(ReplicaRole::Target)))
    }

    /// A rejoin that was decided and not concluded is now.
    pub(super) fn go_on_as_target(&self, hello: &Hello) -> Result<(), Route> {
        let opened = self.make_replica(hello, &[])?;
        self.conclude_rejoin(&hello.group)
            .map_err(|error| refuse(RefuseCode::Unavailable, error.to_string()))?;
        self.begin_replica(&hello.group, opened)
    }

    /// The replica is there: what the source was goes.
    pub(super) fn conclude_rejoin(&self, group: &GroupName) -> Result<(), ApiError> {
        let volumes = self.volumes_of(group);
        self.forget_source(group)?;
        let mut state = self.state();
        state.not_rejoined.remove(group);
        state.left_closed.remove(group);
        drop(state);
        for (name, entry) in volumes {
            self.show(&name, &entry);
            let text = format!(
                "{} holds a replica of the newer data from now on",
                entry.backing.display()
            );
            let event = NewEvent::new(EventId::VolumeDetached, text);
            self.tell(event.group(group).volume(&name));
        }
        Ok(())
    }
}
