//! A replica's files: making, opening and recovering them, and writing its facts down.
//!
//! Owns the directory of one replica (`superblock`, `journal`, `map`) and its claimed bases.
//! Everything here is rare and blocking. What is opened is claimed first, so that what a killed
//! predecessor still had in flight has landed before anything is read.

use super::base::{BaseShape, open_claimed, open_known, open_new, unmake};
use super::control::TargetEvent;
use super::policy::{TargetError, TargetPolicy, TargetSettings};
use super::record::{Record, layout_of, open_state, read_map, read_record, sector_name};
use crate::engine::copies::write_copies;
use blkrep_core::target::{Facts, Part as DirtyPart, PartKind, Shape, VolumeShape};
use blkrep_io::{Geometry, Host, HostError, Io};
use blkrep_store::map::{MAP_SECTOR_BYTES, encode_sector};
use blkrep_store::superblock::{Part, Replica, ReplicaRole, ReplicaVolume, SUPERBLOCK_BYTES};
use blkrep_types::{
    ByteLen, DataState, GroupName, History, LinkName, NodeName, WriteName, planted,
};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

pub(super) type FileOf<H> = <<H as Host>::Io as Io>::File;

/// A replica that a source asks for.
#[derive(Debug, Clone)]
pub struct ReplicaRequest {
    /// The group.
    pub group: GroupName,
    /// The source's node.
    pub source: NodeName,
    /// Its link.
    pub link: LinkName,
    /// Its volumes; an empty path lets the target choose.
    pub volumes: Vec<ReplicaVolume>,
    /// What the bases hold may be overwritten.
    pub overwrite: bool,
}

/// One base, open and claimed.
#[derive(Debug)]
pub(super) struct Base<H: Host> {
    pub(super) file: FileOf<H>,
    pub(super) geometry: Geometry,
}

impl<H: Host> Base<H> {
    pub(super) fn of((file, geometry): (FileOf<H>, Geometry)) -> Self {
        Self { file, geometry }
    }
}

/// The files of one replica.
#[derive(Debug)]
pub struct ReplicaFiles<H: Host> {
    pub(super) host: H,
    directory: PathBuf,
    pub(super) replica: Replica,
    counter: u64,
    superblock: FileOf<H>,
    map: FileOf<H>,
    map_counter: u64,
    /// The bits as the map file has them; `None` if it means nothing.
    saved: Option<Vec<[u8; 464]>>,
    pub(super) journal: FileOf<H>,
    pub(super) bases: Vec<Base<H>>,
}

/// What opening found.
#[derive(Debug)]
pub struct Opened<H: Host> {
    /// The files.
    pub files: ReplicaFiles<H>,
    /// The facts, as the superblock has them.
    pub facts: Facts,
    /// What an operator should hear of.
    pub notes: Vec<TargetEvent>,
}

pub(super) fn shape_of(volume: &ReplicaVolume) -> BaseShape {
    BaseShape {
        name: volume.name.clone(),
        len: volume.len,
        block_size: volume.block_size,
    }
}

impl<H: Host> ReplicaFiles<H> {
    /// Makes a replica in `directory`, which becomes its own. A directory that holds one already
    /// is an error of the caller: see [`ReplicaFiles::open`]. The record is written last: without it
    /// there is no replica.
    ///
    /// # Errors
    /// A path is not allowed, too small, in use, or holds something else; or the disk fails. Bases
    /// that were made are removed again.
    pub fn create(
        host: &H,
        directory: &Path,
        policy: &TargetPolicy,
        settings: &TargetSettings,
        request: &ReplicaRequest,
    ) -> Result<Opened<H>, TargetError> {
        let mut made = Vec::new();
        Self::create_with(host, directory, policy, settings, request, &mut made)
            .inspect_err(|_| unmake(host, &made))
    }

    fn create_with(
        host: &H,
        directory: &Path,
        policy: &TargetPolicy,
        settings: &TargetSettings,
        request: &ReplicaRequest,
        made: &mut Vec<PathBuf>,
    ) -> Result<Opened<H>, TargetError> {
        let volumes = placed(policy, request)?;
        let mut bases = Vec::with_capacity(volumes.len());
        for volume in &volumes {
            let shape = shape_of(volume);
            let base = open_new(host, policy, &volume.path, &shape, request.overwrite, made)?;
            bases.push(Base::of(base));
        }
        host.list(directory)?;
        let layout = layout_of(&volumes);
        let mut id = [0; 16];
        host.random(&mut id);
        let replica = Replica {
            id,
            group: request.group.clone(),
            source: request.source.clone(),
            link: request.link.clone(),
            role: ReplicaRole::Target,
            data_state: DataState::NotReady,
            part: Part::Everything,
            paused: false,
            history: History::new(),
            base: WriteName::NONE,
            merged: WriteName::NONE,
            doubtful: 0,
            journal: NO_JOURNAL,
            volumes,
        };
        let map_bytes = ByteLen::new(layout.sectors() * MAP_SECTOR_BYTES as u64);
        let journal_bytes = settings.journal_file_bytes();
        let mut files = Self {
            host: host.clone(),
            directory: directory.to_owned(),
            replica,
            counter: 0,
            map: open_state(host, &directory.join("map"), Some(map_bytes))?,
            map_counter: 0,
            saved: None,
            journal: make_journal(host, &directory.join("journal"), journal_bytes)?,
            superblock: open_state(
                host,
                &directory.join("superblock"),
                Some(ByteLen::new(SUPERBLOCK_BYTES)),
            )?,
            bases,
        };
        let part = DirtyPart::everything(layout);
        let mut facts = Facts::new(
            History::new(),
            DataState::NotReady,
            part,
            None,
            WriteName::NONE,
            false,
        );
        files.persist(&mut facts)?;
        let created = TargetEvent::Created {
            group: files.replica.group.clone(),
        };
        Ok(Opened {
            files,
            facts,
            notes: vec![created],
        })
    }

    /// Opens the replica in `directory`; `None` if none was made there.
    ///
    /// # Errors
    /// It is damaged, of a newer version, in use, was promoted, or the disk fails.
    pub fn open(host: &H, directory: &Path) -> Result<Option<Opened<H>>, TargetError> {
        let opened = Self::open_with(host, directory, |replica| {
            let known = |volume: &ReplicaVolume| {
                open_known(host, &volume.path, &shape_of(volume)).map(Base::of)
            };
            replica.volumes.iter().map(known).collect()
        })?;
        let Some((mut opened, to_repair)) = opened else {
            return Ok(None);
        };
        if to_repair {
            opened.files.persist(&mut opened.facts)?;
        }
        Ok(Some(opened))
    }

    /// Opens the replica with the bases that `open_bases` finds for it. True if its facts are to
    /// be written again, as one copy was damaged, is older or cannot be flushed: nothing is written here.
    pub(super) fn open_with(
        host: &H,
        directory: &Path,
        open_bases: impl FnOnce(&mut Replica) -> Result<Vec<Base<H>>, TargetError>,
    ) -> Result<Option<(Opened<H>, bool)>, TargetError> {
        let Some(record) = read_record(host, directory)? else {
            return Ok(None);
        };
        let Record {
            superblock,
            mut replica,
            counter,
            bad,
            alike,
        } = record;
        if replica.role == ReplicaRole::Promoted {
            return Err(TargetError::Promoted(replica.group));
        }
        let mut notes = Vec::new();
        let bases = open_bases(&mut replica)?;
        let open =
            |name| open_state(host, &directory.join(name), None).map_err(TargetError::from_open);
        let journal = open_claimed(host, &directory.join("journal"), None);
        let mut files = Self {
            map: open("map")?,
            map_counter: 0,
            saved: None,
            journal: journal.map_err(TargetError::from_open)?,
            host: host.clone(),
            directory: directory.to_owned(),
            counter,
            superblock,
            bases,
            replica,
        };
        let facts = files.read_facts(&mut notes)?;
        // What a killed predecessor wrote can be read and is not durable yet. Where that fails the
        // kernel may have forgotten it: it is written again.
        let durable = host.sync(&files.map).and(host.sync(&files.superblock));
        let to_repair = bad.is_some() || !alike || durable.is_err();
        notes.extend(bad.map(|error| TargetEvent::StateRepaired {
            what: error.to_string(),
        }));
        let opened = Opened {
            files,
            facts,
            notes,
        };
        Ok(Some((opened, to_repair)))
    }

    /// Reads what an open superblock means, the map included.
    fn read_facts(&mut self, notes: &mut Vec<TargetEvent>) -> Result<Facts, TargetError> {
        let layout = layout_of(&self.replica.volumes);
        let part = match self.replica.part {
            Part::Empty => DirtyPart::empty(layout),
            Part::Everything => DirtyPart::everything(layout),
            Part::Map => {
                let (part, whole, counter) =
                    read_map(&self.host, &self.map, self.replica.id, layout);
                self.map_counter = counter;
                if !whole {
                    let what = "a sector of the replica's dirty map was lost; its extents count as different".to_owned();
                    notes.push(TargetEvent::StateRepaired { what });
                }
                part
            }
        };
        let merged = Some(self.replica.merged).filter(|name| *name != WriteName::NONE);
        let facts = Facts::new(
            self.replica.history.clone(),
            self.replica.data_state,
            part,
            merged,
            self.replica.base,
            self.replica.paused,
        );
        Ok(facts.doubting(self.replica.doubtful))
    }

    /// Writes the facts down: durable when it returns. On an error the disk has the old ones, or
    /// these, and the same call may be tried again.
    ///
    /// # Errors
    /// The state directory is full or fails.
    pub fn persist(&mut self, facts: &mut Facts) -> Result<(), HostError> {
        if facts.part().kind() == PartKind::Map {
            self.save_map(facts.part())?;
        }
        self.replica.data_state = facts.state();
        self.replica.part = match facts.part().kind() {
            PartKind::Empty => Part::Empty,
            PartKind::Map => Part::Map,
            PartKind::Everything => Part::Everything,
        };
        self.replica.paused = facts.paused();
        self.replica.doubtful = facts.doubtful();
        self.replica.history.clone_from(&facts.history);
        self.replica.base = facts.base;
        self.replica.merged = facts.merged().unwrap_or(WriteName::NONE);
        self.save()?;
        if facts.part().kind() != PartKind::Map {
            self.saved = None;
        }
        facts.saved();
        Ok(())
    }

    /// Writes the superblock as it is in memory. The same copy is written again after a failure,
    /// so that the good one is never touched.
    pub(super) fn save(&mut self) -> Result<(), HostError> {
        let counter = self.counter + 1;
        let bytes = self.replica.encode(counter);
        let places = [counter, counter + 1].map(Replica::copy_offset);
        let flush = !planted!(ReplicaRecordNotFlushed);
        write_copies(&self.host, &self.superblock, places, &bytes, flush)?;
        self.counter = counter;
        Ok(())
    }

    /// Makes the journal's file anew. What is in it must mean nothing, durably.
    pub(super) fn renew_journal(&mut self, bytes: ByteLen) -> Result<(), HostError> {
        let path = self.directory.join("journal");
        self.host.remove(&path)?;
        self.journal = open_claimed(&self.host, &path, Some(bytes))?;
        self.host.sync(&self.journal)
    }

    fn save_map(&mut self, part: &DirtyPart) -> Result<(), HostError> {
        let count = part.layout().sectors();
        self.map_counter += 1;
        let mut next = Vec::new();
        let mut bytes = [0; MAP_SECTOR_BYTES];
        for sector in 0..count {
            let bits = part.sector(sector);
            let at = usize::try_from(sector).expect("64-bit platform");
            let known = self.saved.as_ref().and_then(|saved| saved.get(at));
            if known != Some(&bits) {
                encode_sector(
                    &sector_name(self.replica.id, sector),
                    self.map_counter,
                    &bits,
                    &mut bytes,
                );
                self.host
                    .write_at(&self.map, sector * MAP_SECTOR_BYTES as u64, &bytes)?;
            }
            next.push(bits);
        }
        self.host.sync(&self.map)?;
        self.saved = Some(next);
        Ok(())
    }

    /// The group.
    #[must_use]
    pub const fn group(&self) -> &GroupName {
        &self.replica.group
    }

    /// What the superblock says.
    #[must_use]
    pub const fn replica(&self) -> &Replica {
        &self.replica
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What records are held against.
    pub(super) fn volume_shapes(&self) -> Vec<VolumeShape> {
        let shape = |volume: &ReplicaVolume| VolumeShape {
            len: volume.len,
            block_size: volume.block_size,
        };
        self.replica.volumes.iter().map(shape).collect()
    }

    /// What a source's volumes are compared with.
    pub(super) fn shapes(&self) -> Vec<Shape> {
        let shape = |volume: &ReplicaVolume| (volume.len, volume.block_size, volume.extent_size);
        self.replica.volumes.iter().map(shape).collect()
    }
}

/// In the superblock: the journal's file means nothing, a new one begins at the base name.
pub(super) const NO_JOURNAL: [u8; 16] = [0; 16];

/// The volumes of a request, each with a path of its own.
fn placed(
    policy: &TargetPolicy,
    request: &ReplicaRequest,
) -> Result<Vec<ReplicaVolume>, TargetError> {
    let mut volumes = request.volumes.clone();
    let mut paths = HashSet::new();
    for volume in &mut volumes {
        if volume.path.as_os_str().is_empty() {
            volume.path = policy.choose(&request.group, &volume.name)?;
        }
        if !paths.insert(volume.path.clone()) {
            let path = volume.path.clone();
            return Err(TargetError::SamePath { path });
        }
    }
    Ok(volumes)
}

fn make_journal<H: Host>(host: &H, path: &Path, bytes: ByteLen) -> Result<FileOf<H>, TargetError> {
    let file = open_claimed(host, path, Some(bytes)).map_err(TargetError::from_open)?;
    if host.geometry(&file)?.len == bytes {
        host.sync(&file)?;
        return Ok(file);
    }
    // Left behind by an attempt with another size.
    drop(file);
    host.remove(path)?;
    let file = open_claimed(host, path, Some(bytes)).map_err(TargetError::from_open)?;
    host.sync(&file)?;
    Ok(file)
}
