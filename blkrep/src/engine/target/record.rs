//! A replica's record, read without the rest of it: what it is, and what it was when it was promoted.
//!
//! Owns looking at the superblock and the dirty map. Everything is claimed while it is read. Never
//! writes, and never touches a base.

use super::files::FileOf;
use super::policy::TargetError;
use crate::engine::copies::read_copies;
use blkrep_core::dirty::MapLayout;
use blkrep_core::target::Part as DirtyPart;
use blkrep_io::{Access, Host, HostError};
use blkrep_store::FormatError;
use blkrep_store::map::{MAP_SECTOR_BYTES, SectorName, decode_sector};
use blkrep_store::superblock::{COPY_BYTES, Part, Replica, ReplicaRole, ReplicaVolume};
use blkrep_types::{ByteLen, Errno, Extent, History, VolumeIndex};
use std::path::Path;

/// What a superblock says.
#[derive(Debug)]
pub(super) struct Record<H: Host> {
    pub(super) superblock: FileOf<H>,
    pub(super) replica: Replica,
    pub(super) counter: u64,
    /// What is wrong with the other copy.
    pub(super) bad: Option<FormatError>,
    /// Both copies say the same.
    pub(super) alike: bool,
}

/// A replica that was promoted, as its record has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromotedRecord {
    /// The generations, that of the promotion last.
    pub history: History,
    /// Extents that the former source had acknowledged and that are not in the bases.
    pub lacking: Vec<(VolumeIndex, Extent)>,
}

pub(super) fn layout_of(volumes: &[ReplicaVolume]) -> MapLayout {
    MapLayout::new(
        volumes
            .iter()
            .map(|volume| (volume.len, volume.extent_size)),
    )
}

/// Opens a file of the directory, claimed.
pub(super) fn open_state<H: Host>(
    host: &H,
    path: &Path,
    create: Option<ByteLen>,
) -> Result<FileOf<H>, HostError> {
    let access = Access {
        read_only: false,
        direct: false,
        claim: true,
        create,
    };
    let file = host.open(path, access)?;
    if create.is_some() {
        host.sync(&file)?;
    }
    Ok(file)
}

/// Reads the superblock; `None` if there is none, or it was never written.
pub(super) fn read_record<H: Host>(
    host: &H,
    directory: &Path,
) -> Result<Option<Record<H>>, TargetError> {
    let path = directory.join("superblock");
    let superblock = match open_state(host, &path, None) {
        Err(error) if error.errno == Errno::new(2) => return Ok(None),
        other => other.map_err(TargetError::from_open)?,
    };
    let half = ByteLen::new(COPY_BYTES).as_usize();
    let is_good = |bytes: &[u8]| Replica::decode(bytes).is_ok();
    let copies = read_copies(host, &superblock, [0, COPY_BYTES], half, is_good)?;
    match Replica::choose(&copies[0], &copies[1]) {
        Ok((replica, counter, bad)) => Ok(Some(Record {
            superblock,
            replica,
            counter,
            bad,
            alike: copies[0] == copies[1],
        })),
        Err(FormatError::Blank { .. }) => Ok(None),
        Err(error) if error.is_newer() => Err(TargetError::Newer { path, error }),
        Err(error) => Err(TargetError::Corrupt { path, error }),
    }
}

/// What a superblock says, durably: what a killed predecessor wrote can be read before it is.
fn read_durable<H: Host>(host: &H, directory: &Path) -> Result<Option<Replica>, TargetError> {
    let Some(record) = read_record(host, directory)? else {
        return Ok(None);
    };
    host.sync(&record.superblock)?;
    Ok(Some(record.replica))
}

pub(super) fn sector_name(replica: [u8; 16], sector: u64) -> SectorName {
    SectorName {
        replica,
        sector: u32::try_from(sector).expect("a map has fewer sectors"),
    }
}

/// Reads a map: its bits, whether every sector was good, and the newest counter. A sector that
/// cannot be read is all set.
pub(super) fn read_map<H: Host>(
    host: &H,
    map: &FileOf<H>,
    replica: [u8; 16],
    layout: MapLayout,
) -> (DirtyPart, bool, u64) {
    let mut sectors: Vec<Option<[u8; 464]>> = Vec::new();
    let mut bytes = [0; MAP_SECTOR_BYTES];
    let mut newest = 0;
    for sector in 0..layout.sectors() {
        let read = host.read_at(map, sector * MAP_SECTOR_BYTES as u64, &mut bytes);
        let good = read
            .ok()
            .and_then(|()| decode_sector(&sector_name(replica, sector), &bytes).ok());
        if let Some((_, counter)) = &good {
            newest = newest.max(*counter);
        }
        sectors.push(good.map(|(bits, _)| bits));
    }
    let bits = sectors
        .iter()
        .map(|sector| sector.as_ref().map(<[u8; 464]>::as_slice));
    let (part, whole) = DirtyPart::read(layout, bits);
    (part, whole, newest)
}

/// What the replica of a directory is; `None` if none was made there.
///
/// # Errors
/// Its superblock is damaged, of a newer version, in use, or the disk fails.
pub fn recorded_role<H: Host>(
    host: &H,
    directory: &Path,
) -> Result<Option<ReplicaRole>, TargetError> {
    Ok(read_durable(host, directory)?.map(|replica| replica.role))
}

/// What a replica was when it was promoted; `None` if there is none, or it is still one.
///
/// # Errors
/// Its superblock is damaged, of a newer version, in use, or the disk fails.
pub fn promoted_record<H: Host>(
    host: &H,
    directory: &Path,
) -> Result<Option<PromotedRecord>, TargetError> {
    let Some(replica) = read_durable(host, directory)? else {
        return Ok(None);
    };
    if replica.role != ReplicaRole::Promoted {
        return Ok(None);
    }
    let layout = layout_of(&replica.volumes);
    let part = match replica.part {
        Part::Empty => DirtyPart::empty(layout),
        Part::Everything => DirtyPart::everything(layout),
        Part::Map => {
            let map = open_state(host, &directory.join("map"), None);
            read_map(
                host,
                &map.map_err(TargetError::from_open)?,
                replica.id,
                layout,
            )
            .0
        }
    };
    Ok(Some(PromotedRecord {
        history: replica.history,
        lacking: part.extents(),
    }))
}
