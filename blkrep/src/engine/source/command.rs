//! What an operator can do to a group: links, mirrors, transmission.
//!
//! Owns the order of durable and visible: a link is in the superblock, with a durable map, before
//! anything relies on it. Commands enter; workers are woken for what follows.

use super::group::{FileOf, LinkMeta, SourceShared};
use super::metadata::{MapFile, intent_path, link_path, make_map};
use super::open::{dirty_layout, intent_layout, random_id};
use super::recover::{link_memory, link_memory_name, make_log, setup_of};
use super::{GroupLinkPort, OpenError, adapter::GroupLog};
use blkrep_core::dirty::{Bits, MapLayout};
use blkrep_core::source::{LINKS_MAX, LinkIndex, LinkStart, Transmit};
use blkrep_io::Host;
use blkrep_log::MemoryLog;
use blkrep_log::superblock::{Group, GroupLink, PATH_BYTES_MAX, PEER_BYTES_MAX, TransmitHeld};
use blkrep_types::{Extent, LinkName, LossPolicy, MirrorKind, Mode, VolumeIndex, planted};
use std::sync::Arc;

/// What is known to differ when a link is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitialMap {
    /// Nothing is known: everything may.
    Everything,
    /// These extents, and writes from now on: a promoted replica against its former source.
    Extents(Vec<(VolumeIndex, Extent)>),
}

/// A link to make.
#[derive(Debug, Clone)]
pub struct LinkSpec {
    /// Its name, unique in the group.
    pub name: LinkName,
    /// Address and port of the target.
    pub peer: String,
    /// Where the target keeps each volume, by index; empty text: the target chooses.
    pub paths: Vec<String>,
    /// When writes complete.
    pub mode: Mode,
    /// What happens to writes when it is lost.
    pub loss: LossPolicy,
    /// The mirror to begin with.
    pub first_mirror: Option<MirrorKind>,
    /// What the target holds may be overwritten.
    pub overwrite: bool,
    /// It is to be connected at once.
    pub wanted: bool,
    /// What is known to differ.
    pub initial: InitialMap,
}

fn refuse<T>(text: impl Into<String>) -> Result<T, OpenError> {
    Err(OpenError::Command(text.into()))
}

/// The place of a new link; `is_free` says where nothing is written for one that is gone.
fn check(
    record: &Group,
    spec: &LinkSpec,
    is_free: impl Fn(LinkIndex) -> bool,
) -> Result<u8, OpenError> {
    if record.links.iter().any(|link| link.name == spec.name) {
        return refuse(format!(
            "group {} has a link named {} already: use another name, or disconnect --forget it",
            record.name, spec.name
        ));
    }
    let long = spec.paths.iter().any(|path| path.len() > PATH_BYTES_MAX);
    if long || spec.peer.len() > PEER_BYTES_MAX {
        return refuse("the address or a path at the target is too long");
    }
    if spec.paths.len() != record.volumes.len() {
        return refuse("a link names a path for each volume, or an empty one");
    }
    let place = (0..LINKS_MAX).find(|place| {
        let taken = |link: &GroupLink| usize::from(link.place) == *place;
        !record.links.iter().any(taken) && is_free(LinkIndex::new(*place))
    });
    match place {
        Some(place) => Ok(u8::try_from(place).expect("below 16")),
        None => refuse(format!("a group has at most {LINKS_MAX} links")),
    }
}

/// The bits of a new link's durable map.
fn kept_bits(layout: &MapLayout, initial: &InitialMap) -> Bits {
    let mut kept = Bits::clear_of(layout.bits());
    match initial {
        InitialMap::Everything => layout.fill(&mut kept),
        InitialMap::Extents(extents) => {
            for (volume, extent) in extents {
                let (from, to) = layout.bits_of(*volume, *extent);
                kept.set(from, to);
            }
        }
    }
    kept
}

type FirstLink<H> = (MapFile<FileOf<H>>, MemoryLog);

impl<H: Host> SourceShared<H> {
    /// Makes a link. From now on every write is tracked for it.
    ///
    /// # Errors
    /// The name is taken, there are too many links, or the state could not be written.
    pub fn add_link(&self, spec: &LinkSpec) -> Result<(), OpenError> {
        self.refuse_lost("no link can be made, which would have to be mirrored", None)?;
        let mut admin = self.admin();
        let place = check(&admin.record, spec, |place| {
            self.lock().group.is_free(place)
        })?;
        let link = GroupLink {
            place,
            id: random_id(&self.host),
            name: spec.name.clone(),
            mode: spec.mode,
            loss: spec.loss,
            transmit: TransmitHeld::Started,
            overwrite: spec.overwrite,
            first_mirror: spec.first_mirror,
            wanted: spec.wanted,
            peer: spec.peer.clone(),
            paths: spec.paths.clone(),
        };
        // A promoted replica knows what its former source lacks, and was flushed.
        let unnoted = spec.initial == InitialMap::Everything && !planted!(UnnotedWritesForgotten);
        let (intent, log) = self.first_link(&admin.record, unnoted)?.unzip();
        if unnoted && admin.record.links.is_empty() && log.is_none() {
            self.command(|state| state.group.doubt_all());
            self.commit_all()?;
        }
        let layout = dirty_layout(&admin.record.volumes);
        let kept = kept_bits(&layout, &spec.initial);
        let path = link_path(&self.directory, &admin.record.name, &link.id);
        let map = make_map(&self.host, &path, link.id, &layout, &kept)?;
        let words = layout.words();
        let (live, compare, _) = link_memory(&self.host, &admin.record, &link.id, words, false)?;
        let (mut live, mut compare) = (Bits::new(live), Bits::new(compare));
        let first = match spec.first_mirror {
            Some(MirrorKind::Checksum) => &mut compare,
            Some(MirrorKind::Full | MirrorKind::Difference) | None => &mut live,
        };
        for word in 0..words {
            first.set_word(word, kept.word(word));
        }
        let mut record = admin.record.clone();
        record.links.push(link.clone());
        admin.superblock.save(&record)?;
        admin.record = record;
        let start = LinkStart {
            live,
            compare,
            kept,
            floor: None,
            promised: false,
            unnoted,
            mark: None,
        };
        if let Some(log) = &log {
            self.set_log_handle(log.handle());
        }
        self.command(|state| {
            if let Some(log) = log {
                state.group.set_log(GroupLog(log));
                Self::remember_queue(state);
                state.intent = intent;
            }
            state.links[usize::from(place)] = Some(map);
            state.metas[usize::from(place)] = LinkMeta {
                wanted: link.wanted,
                refused: false,
            };
            state.group.add_link(&setup_of(&link), start);
        });
        Ok(())
    }

    /// What a group needs for its first link: an intent map and a log. `unnoted`: what was written before may
    /// not be durable.
    fn first_link(&self, record: &Group, unnoted: bool) -> Result<Option<FirstLink<H>>, OpenError> {
        if !record.links.is_empty() || self.lock().group.log().is_some() {
            return Ok(None);
        }
        let layout = intent_layout(&record.volumes);
        let path = intent_path(&self.directory, &record.name);
        let mut bits = Bits::clear_of(layout.bits());
        if unnoted {
            layout.fill(&mut bits);
        }
        let intent = make_map(&self.host, &path, record.intent_map, &layout, &bits)?;
        Ok(Some((intent, make_log(&self.host, record)?)))
    }

    /// Forgets a link: nothing is tracked for it any more. Its driver must have ended.
    ///
    /// # Errors
    /// There is none of that name, or the state could not be written.
    pub fn forget_link(&self, name: &LinkName) -> Result<(), OpenError> {
        let index = self.find(name)?;
        self.refuse_lost("the link cannot be removed", Some(index))?;
        let mut admin = self.admin();
        let mut record = admin.record.clone();
        record.links.retain(|link| link.name != *name);
        admin.superblock.save(&record)?;
        let gone = std::mem::replace(&mut admin.record, record);
        self.command(|state| {
            state.group.remove_link(index);
            state.links[index.as_usize()] = None;
            state.metas[index.as_usize()] = LinkMeta::default();
        });
        for link in gone.links.iter().filter(|link| link.name == *name) {
            self.host
                .remove(&link_path(&self.directory, &gone.name, &link.id))?;
            self.host
                .forget_shared_memory(&link_memory_name(&gone, &link.id))?;
        }
        Ok(())
    }

    pub(super) fn find(&self, name: &LinkName) -> Result<LinkIndex, OpenError> {
        let admin = self.admin();
        let link = admin.record.links.iter().find(|link| link.name == *name);
        match link {
            Some(link) => Ok(LinkIndex::new(usize::from(link.place))),
            None => refuse(format!(
                "group {} has no link named {name}",
                admin.record.name
            )),
        }
    }

    /// The links as they are recorded.
    #[must_use]
    pub fn links(&self) -> Vec<GroupLink> {
        self.admin().record.links.clone()
    }

    /// A port for the driver of a link.
    ///
    /// # Errors
    /// There is no link of that name.
    pub fn link_port(self: &Arc<Self>, name: &LinkName) -> Result<GroupLinkPort<H>, OpenError> {
        let index = self.find(name)?;
        Ok(GroupLinkPort::new(self, name.clone(), index))
    }

    fn change_link(
        &self,
        name: &LinkName,
        change: impl FnOnce(&mut GroupLink),
    ) -> Result<LinkIndex, OpenError> {
        let index = self.find(name)?;
        self.record(|record| {
            if let Some(link) = record.links.iter_mut().find(|link| link.name == *name) {
                change(link);
            }
        })?;
        Ok(index)
    }

    /// Connects or disconnects a link; tracking goes on. Connecting again after a refusal tries
    /// again.
    ///
    /// # Errors
    /// There is no link of that name, or the state could not be written.
    pub fn set_wanted(&self, name: &LinkName, wanted: bool) -> Result<(), OpenError> {
        if !wanted {
            let index = self.find(name)?;
            self.refuse_lost("the link cannot be ended", Some(index))?;
        }
        let index = self.change_link(name, |link| link.wanted = wanted)?;
        self.command(|state| {
            state.metas[index.as_usize()] = LinkMeta {
                wanted,
                refused: false,
            };
        });
        Ok(())
    }

    /// Says where a link's target is, and where it keeps the volumes. The driver learns it from
    /// whoever runs it.
    ///
    /// # Errors
    /// There is no link of that name, a name is too long, or the state could not be written.
    pub fn retarget_link(
        &self,
        name: &LinkName,
        peer: String,
        paths: Option<Vec<String>>,
    ) -> Result<(), OpenError> {
        let long = paths
            .iter()
            .flatten()
            .any(|path| path.len() > PATH_BYTES_MAX);
        if long || peer.len() > PEER_BYTES_MAX {
            return refuse("the address or a path at the target is too long: use a shorter one");
        }
        self.change_link(name, |link| {
            link.peer = peer;
            if let Some(paths) = paths.filter(|paths| paths.len() == link.paths.len()) {
                link.paths = paths;
            }
        })?;
        Ok(())
    }

    /// Allows what the target holds to be overwritten, and says by which mirror, once.
    ///
    /// # Errors
    /// There is no link of that name, or the state could not be written.
    pub fn allow_overwrite(&self, name: &LinkName, kind: MirrorKind) -> Result<(), OpenError> {
        let index = self.change_link(name, |link| {
            link.overwrite = true;
            link.first_mirror = Some(kind);
        })?;
        self.command(|state| {
            state.group.permit(index, Some(kind), true);
            state.metas[index.as_usize()].refused = false;
        });
        Ok(())
    }

    /// Holds or frees transmission.
    ///
    /// # Errors
    /// There is no link of that name, or the state could not be written.
    pub fn set_transmit(&self, name: &LinkName, transmit: Transmit) -> Result<(), OpenError> {
        let held = match transmit {
            Transmit::Started => TransmitHeld::Started,
            Transmit::Paused => TransmitHeld::Paused,
            Transmit::Stopped => TransmitHeld::Stopped,
        };
        if transmit == Transmit::Stopped {
            let index = self.find(name)?;
            self.refuse_lost("transmission cannot be stopped, only paused", Some(index))?;
        }
        let index = self.change_link(name, |link| link.transmit = held)?;
        self.command(|state| state.group.set_transmit(index, transmit));
        Ok(())
    }

    /// Says when writes complete.
    ///
    /// # Errors
    /// There is no link of that name, or the state could not be written.
    pub fn set_mode(&self, name: &LinkName, mode: Mode) -> Result<(), OpenError> {
        let index = self.change_link(name, |link| link.mode = mode)?;
        self.command(|state| state.group.set_mode(index, mode));
        Ok(())
    }

    /// Says what happens to writes when a link is lost.
    ///
    /// # Errors
    /// There is no link of that name, the time-out is out of range, or the state could not be written.
    pub fn set_loss_policy(&self, name: &LinkName, policy: LossPolicy) -> Result<(), OpenError> {
        let index = self.change_link(name, |link| link.loss = policy)?;
        self.command(|state| state.group.set_loss_policy(index, policy));
        Ok(())
    }

    /// Starts a mirror.
    ///
    /// # Errors
    /// There is no link of that name.
    pub fn start_mirror(&self, name: &LinkName, kind: MirrorKind) -> Result<(), OpenError> {
        let index = self.find(name)?;
        self.refuse_lost("nothing can be mirrored", None)?;
        self.command(|state| state.group.start_mirror(index, kind));
        Ok(())
    }

    /// Holds a mirror; its position is kept.
    ///
    /// # Errors
    /// There is no link of that name, or its target serves the group.
    pub fn pause_mirror(&self, name: &LinkName) -> Result<(), OpenError> {
        let index = self.find(name)?;
        self.refuse_lost(
            "its mirror cannot be held, which says where the stream goes on",
            Some(index),
        )?;
        self.command(|state| state.group.pause_mirror(index));
        Ok(())
    }

    /// Goes on with a held mirror.
    ///
    /// # Errors
    /// There is no link of that name.
    pub fn resume_mirror(&self, name: &LinkName) -> Result<(), OpenError> {
        let index = self.find(name)?;
        self.command(|state| state.group.resume_mirror(index));
        Ok(())
    }

    /// Ends a mirror; what differs stays dirty.
    ///
    /// # Errors
    /// There is no link of that name, or its target serves the group.
    pub fn stop_mirror(&self, name: &LinkName) -> Result<(), OpenError> {
        let index = self.find(name)?;
        self.refuse_lost(
            "its mirror cannot be stopped, which says where the stream goes on",
            Some(index),
        )?;
        self.command(|state| state.group.stop_mirror(index));
        Ok(())
    }
}
