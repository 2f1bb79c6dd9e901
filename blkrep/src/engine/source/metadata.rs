//! A group's files in the state directory: superblock, intent map, dirty maps.
//!
//! Owns their names, their making, reading and blocking writing, for start, stop and changes of
//! role. What happens while requests are served is written by workers instead.

use super::OpenError;
use crate::engine::copies::{read_copies, write_copies};
use blkrep_core::dirty::{Bits, MapLayout, SECTOR_BITS, SECTOR_WORDS};
use blkrep_core::source::LinkHead;
use blkrep_io::{Access, Host, HostError, Io};
use blkrep_log::map::{self, Head, MapName};
use blkrep_log::superblock::{COPY_BYTES, Chosen, Group, SUPERBLOCK_BYTES, choose};
use blkrep_types::{ByteLen, GroupName, WriteName, planted};
use std::path::{Path, PathBuf};

type FileOf<H> = <<H as Host>::Io as Io>::File;

/// Each file is claimed by itself: the kernel keeps the claim of a killed predecessor until its
/// last write to that file has landed, which would otherwise undo a later one of ours.
const STATE_FILE: Access = Access {
    read_only: false,
    direct: false,
    claim: true,
    create: None,
};

/// Sectors of a map written by one blocking call.
const WRITE_SECTORS: u32 = 256;

pub(super) fn hex(id: &[u8; 16]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The superblock file.
#[derive(Debug)]
pub(super) struct SuperblockFile<H: Host> {
    host: H,
    path: PathBuf,
    file: FileOf<H>,
    counter: u64,
    /// One copy was bad. It may have been the newer one.
    pub(super) repaired: bool,
}

impl<H: Host> SuperblockFile<H> {
    /// Opens or makes the file, which holds the claim on the group; what it says, if anything.
    pub(super) fn open(
        host: &H,
        directory: &Path,
        group: &GroupName,
    ) -> Result<(Self, Option<Group>), OpenError> {
        let path = directory.join(format!("{group}.group"));
        let access = Access {
            create: Some(ByteLen::new(SUPERBLOCK_BYTES)),
            ..STATE_FILE
        };
        let file = host.open(&path, access)?;
        let copy = usize::try_from(COPY_BYTES).expect("64-bit platform");
        let is_good = |bytes: &[u8]| Group::decode(bytes).is_ok();
        let [first, second] = read_copies(host, &file, [0, COPY_BYTES], copy, is_good)?;
        let chosen = choose(&first, &second).map_err(|source| OpenError::State {
            path: path.clone(),
            source,
        })?;
        let mut superblock = Self {
            host: host.clone(),
            path,
            file,
            counter: 0,
            repaired: false,
        };
        let Chosen::Good {
            group,
            counter,
            repair,
        } = chosen
        else {
            return Ok((superblock, None));
        };
        superblock.counter = counter;
        let is_blank = |copy: &[u8]| copy[..512].iter().all(|byte| *byte == 0);
        superblock.repaired = repair && ![&first, &second].into_iter().any(|copy| is_blank(copy));
        // A run that died between the two left the other place an older truth.
        if repair || first != second {
            superblock.save(&group)?;
        } else {
            // What a killed predecessor wrote can be read and is not durable yet.
            host.sync(&superblock.file)?;
        }
        Ok((superblock, Some(*group)))
    }

    /// Writes a copy and makes it durable.
    pub(super) fn save(&mut self, group: &Group) -> Result<(), OpenError> {
        let counter = self.counter + 1;
        let bytes = group.encode(counter).map_err(|source| OpenError::State {
            path: self.path.clone(),
            source,
        })?;
        let places = [counter, counter + 1].map(Group::copy_offset);
        let flush = !planted!(RecordNotFlushed);
        write_copies(&self.host, &self.file, places, &bytes, flush)?;
        self.counter = counter;
        Ok(())
    }
}

/// An open map file.
#[derive(Debug)]
pub(super) struct MapFile<F> {
    pub(super) file: F,
    pub(super) name: MapName,
    pub(super) sectors: u32,
    /// Counts the commits.
    pub(super) counter: u64,
}

impl<F> MapFile<F> {
    /// The head of the file.
    pub(super) fn head(&self, head: LinkHead) -> [u8; map::SECTOR_BYTES] {
        let mut bytes = [0; map::SECTOR_BYTES];
        let head = Head {
            sectors: self.sectors,
            floor: head.floor.unwrap_or(WriteName::NONE),
            promised: head.promised,
        };
        map::encode_head(&self.name, self.counter, &head, &mut bytes);
        bytes
    }
}

/// What the head of a map says that covers nothing.
const NOTHING: LinkHead = LinkHead {
    floor: None,
    promised: false,
};

pub(super) fn intent_path(directory: &Path, group: &GroupName) -> PathBuf {
    directory.join(format!("{group}.intent"))
}

pub(super) fn link_path(directory: &Path, group: &GroupName, id: &[u8; 16]) -> PathBuf {
    directory.join(format!("{group}.link-{}", hex(id)))
}

fn sectors_of(layout: &MapLayout) -> u32 {
    u32::try_from(layout.sectors()).expect("a map has fewer sectors than 2^32")
}

/// Makes a map file with these bits, durable.
pub(super) fn make_map<H: Host>(
    host: &H,
    path: &Path,
    name: MapName,
    layout: &MapLayout,
    bits: &Bits,
) -> Result<MapFile<FileOf<H>>, HostError> {
    let sectors = sectors_of(layout);
    host.remove(path)?;
    let access = Access {
        create: Some(ByteLen::new(map::file_bytes(sectors))),
        ..STATE_FILE
    };
    let file = host.open(path, access)?;
    let map = MapFile {
        file,
        name,
        sectors,
        counter: 1,
    };
    write_all(host, &map, bits, NOTHING)?;
    Ok(map)
}

/// Writes a whole map, durable.
pub(super) fn write_all<H: Host>(
    host: &H,
    map: &MapFile<FileOf<H>>,
    bits: &Bits,
    head: LinkHead,
) -> Result<(), HostError> {
    host.write_at(&map.file, 0, &map.head(head))?;
    let mut first = 0;
    while first < map.sectors {
        let last = (first + WRITE_SECTORS).min(map.sectors);
        let mut bytes = Vec::new();
        for sector in first..last {
            let from = usize::try_from(sector).expect("64-bit platform") * SECTOR_WORDS;
            let words = (from..from + SECTOR_WORDS).map(|word| bits.word(word));
            let at = bytes.len();
            bytes.resize(at + map::SECTOR_BYTES, 0);
            map::encode_sector(&map.name, sector, map.counter, words, &mut bytes[at..]);
        }
        host.write_at(&map.file, map::sector_offset(first), &bytes)?;
        first = last;
    }
    host.sync(&map.file)
}

/// What was read of a map.
#[derive(Debug)]
pub(super) struct ReadMap<F> {
    pub(super) file: MapFile<F>,
    pub(super) bits: Bits,
    pub(super) floor: Option<WriteName>,
    pub(super) promised: bool,
    /// Sectors that were bad: all their bits are set.
    pub(super) bad: u32,
}

/// Opens and reads a map. What cannot be read counts as all set and without a floor; a file that
/// is missing is made anew like that.
pub(super) fn read_map<H: Host>(
    host: &H,
    path: &Path,
    name: MapName,
    layout: &MapLayout,
) -> Result<ReadMap<FileOf<H>>, HostError> {
    let sectors = sectors_of(layout);
    let access = Access {
        create: Some(ByteLen::new(map::file_bytes(sectors))),
        ..STATE_FILE
    };
    let file = host.open(path, access)?;
    let mut sector = [0; map::SECTOR_BYTES];
    let head = host.read_at(&file, 0, &mut sector).ok();
    let head = head.and_then(|()| map::decode_head(&name, &sector).ok());
    let head = head.filter(|(head, _)| head.sectors == sectors);
    let found = head.map_or(NOTHING, |(head, _)| LinkHead {
        floor: Some(head.floor),
        promised: head.promised,
    });
    let mut bits = Bits::clear_of(layout.bits());
    let mut bad = 0;
    for index in 0..sectors {
        let read = host.read_at(&file, map::sector_offset(index), &mut sector);
        let words = read
            .ok()
            .and_then(|()| map::decode_sector(&name, index, &sector).ok());
        bad += u32::from(words.is_none());
        let words = words.unwrap_or([u64::MAX; SECTOR_WORDS]);
        let from = usize::try_from(u64::from(index) * SECTOR_BITS / 64).expect("64-bit platform");
        for (place, word) in words.into_iter().enumerate() {
            bits.set_word(from + place, word);
        }
    }
    layout.trim(&mut bits);
    let counter = head.map_or(0, |(_, counter)| counter) + 1;
    let file = MapFile {
        file,
        name,
        sectors,
        counter,
    };
    if bad > 0 || head.is_none() {
        write_all(host, &file, &bits, found)?;
    } else {
        // What a killed predecessor wrote can be read and is not durable yet.
        host.sync(&file.file)?;
    }
    Ok(ReadMap {
        file,
        bits,
        floor: found.floor.filter(|floor| *floor != WriteName::NONE),
        promised: found.promised,
        bad,
    })
}
