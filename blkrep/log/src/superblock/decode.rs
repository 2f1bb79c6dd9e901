//! Bytes to facts. Nothing is believed before its checksum.

use super::{
    COPY_BYTES, Group, GroupLink, GroupVolume, LOG_BYTES_MAX, MAGIC, PATH_BYTES_MAX,
    PEER_BYTES_MAX, TransmitHeld, VERSION, WHAT,
};
use crate::error::FormatError;
use crate::layout::{AncestorEntry, GroupHead, LinkEntry, TextName, VolumeEntry};
use blkrep_types::limits::{COUNT_MAX, GENERATION_HISTORY_MAX, GROUP_VOLUMES_MAX};
use blkrep_types::{
    Ancestor, BlockSize, ByteLen, ExtentSize, Generation, GroupName, History, Incarnation,
    LinkName, LossPolicy, MirrorKind, Mode, OnLoss, Seq, VolumeIndex, VolumeName, planted,
};
use std::time::Duration;
use zerocopy::FromBytes;

/// Links that a group can have.
const LINKS_MAX: usize = 16;

const fn wrong(field: &'static str) -> FormatError {
    FormatError::Field { what: WHAT, field }
}

const SHORT: FormatError = FormatError::Short { what: WHAT };

impl Group {
    /// Reads a copy; also the counter of its write.
    ///
    /// # Errors
    /// It is not a good copy, or of a newer version.
    pub fn decode(copy: &[u8]) -> Result<(Self, u64), FormatError> {
        let (head, rest) = GroupHead::read_from_prefix(copy).map_err(|_| SHORT)?;
        let body_bytes = check_head(&head, copy)?;
        let mut body = rest.get(..body_bytes).ok_or(SHORT)?;
        if crc32fast::hash(body) != head.body_crc.get() {
            return Err(FormatError::Checksum { what: WHAT });
        }
        let mut ancestors = Vec::new();
        for _ in 0..head.generation_count.get() {
            ancestors.push(ancestor(&take::<AncestorEntry>(&mut body)?));
        }
        let mut volumes = Vec::new();
        for index in 0..head.volume_count.get() {
            volumes.push(volume(&take::<VolumeEntry>(&mut body)?, index)?);
        }
        let sizes = volumes
            .iter()
            .map(|volume| (volume.len, volume.extent_size));
        if !ExtentSize::fit_a_map(sizes) {
            return Err(wrong("len"));
        }
        let mut entries = Vec::new();
        for _ in 0..head.link_count.get() {
            entries.push(take::<LinkEntry>(&mut body)?);
        }
        let mut links = Vec::new();
        for entry in &entries {
            let link = link(entry, &mut body, volumes.len())?;
            if links
                .iter()
                .any(|other: &GroupLink| other.place == link.place)
            {
                return Err(wrong("place"));
            }
            links.push(link);
        }
        if !body.is_empty() {
            return Err(wrong("bytes"));
        }
        let group = Self {
            id: head.group_id,
            name: name(&head.group, |text| GroupName::new(text).ok()).ok_or(wrong("group"))?,
            clean: flag(head.clean).ok_or(wrong("clean"))?,
            distrust: flag(head.distrust).ok_or(wrong("distrust"))?,
            history: History::from_oldest(ancestors).ok_or(wrong("generation"))?,
            incarnation: Incarnation::new(head.incarnation.get()),
            head: (
                Incarnation::new(head.head_incarnation.get()),
                Seq::new(head.head_seq.get()),
            ),
            log_id: head.log_id,
            log_bytes: ByteLen::new(head.log_bytes.get()),
            newer: Generation::from_bytes(head.newer),
            served_by: head.served_by.checked_sub(1),
            intent_map: head.intent_map,
            volumes,
            links,
        };
        Ok((group, head.counter.get()))
    }
}

/// Checks everything of a head but what it counts; the length of the body.
fn check_head(head: &GroupHead, copy: &[u8]) -> Result<usize, FormatError> {
    if head.magic != MAGIC {
        // Each byte as the one before it: compared as memory, since copies have megabytes.
        let blank = copy[0] == 0 && copy[1..] == copy[..copy.len() - 1];
        return Err(if blank {
            FormatError::Blank { what: WHAT }
        } else {
            FormatError::Magic { what: WHAT }
        });
    }
    if crc32fast::hash(&copy[..size_of::<GroupHead>() - 4]) != head.crc.get() {
        return Err(FormatError::Checksum { what: WHAT });
    }
    let found = head.version.get();
    if found > VERSION {
        return Err(FormatError::Newer {
            what: WHAT,
            found,
            supported: VERSION,
        });
    }
    let counts = [
        (found != 0, "version"),
        (
            usize::from(head.generation_count.get()) <= GENERATION_HISTORY_MAX,
            "generation_count",
        ),
        (
            (1..=GROUP_VOLUMES_MAX).contains(&usize::from(head.volume_count.get())),
            "volume_count",
        ),
        (
            usize::from(head.link_count.get()) <= LINKS_MAX,
            "link_count",
        ),
        (head.reserved.iter().all(|byte| *byte == 0), "reserved"),
        (u64::from(head.bytes.get()) <= COPY_BYTES, "bytes"),
        (head.counter.get() <= COUNT_MAX, "counter"),
        (head.incarnation.get() <= COUNT_MAX, "incarnation"),
        (head.head_incarnation.get() <= COUNT_MAX, "head_incarnation"),
        (head.head_seq.get() <= COUNT_MAX, "head_seq"),
        (head.log_bytes.get() <= LOG_BYTES_MAX, "log_bytes"),
    ];
    if let Some((_, field)) = counts.iter().find(|(good, _)| !good) {
        return Err(wrong(field));
    }
    let bytes = usize::try_from(head.bytes.get()).expect("64-bit platform");
    bytes
        .checked_sub(size_of::<GroupHead>())
        .ok_or(wrong("bytes"))
}

fn take<T: FromBytes>(body: &mut &[u8]) -> Result<T, FormatError> {
    let (entry, rest) = T::read_from_prefix(body).map_err(|_| SHORT)?;
    *body = rest;
    Ok(entry)
}

fn take_text(body: &mut &[u8], len: usize) -> Result<String, FormatError> {
    let (text, rest) = body.split_at_checked(len).ok_or(SHORT)?;
    *body = rest;
    String::from_utf8(text.to_vec()).map_err(|_| wrong("text"))
}

fn name<T>(bytes: &TextName, make: impl Fn(&str) -> Option<T>) -> Option<T> {
    let len = usize::from(bytes.len.get());
    let (text, rest) = bytes.bytes.split_at_checked(len)?;
    let padded = rest.iter().all(|byte| *byte == 0);
    make(std::str::from_utf8(text).ok()?).filter(|_| padded)
}

const fn flag(byte: u8) -> Option<bool> {
    match byte {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

const fn ancestor(entry: &AncestorEntry) -> Ancestor {
    Ancestor {
        generation: Generation::from_bytes(entry.generation),
        parent: Generation::from_bytes(entry.parent),
        branch_incarnation: Incarnation::new(entry.branch_incarnation.get()),
        branch_seq: Seq::new(entry.branch_seq.get()),
    }
}

fn volume(entry: &VolumeEntry, index: u16) -> Result<GroupVolume, FormatError> {
    if entry.index.get() != index || entry.reserved.iter().any(|byte| *byte != 0) {
        return Err(wrong("index"));
    }
    let block_size = BlockSize::try_from(u64::from(entry.block_bytes.get()))
        .map_err(|_| wrong("block_bytes"))?;
    let len = entry.len.get();
    if len == 0 || len > i64::MAX as u64 || !len.is_multiple_of(block_size.get()) {
        return Err(wrong("len"));
    }
    Ok(GroupVolume {
        index: VolumeIndex::new(index),
        name: name(&entry.name, |text| VolumeName::new(text).ok()).ok_or(wrong("name"))?,
        len: ByteLen::new(len),
        block_size,
        extent_size: ExtentSize::try_from(u64::from(entry.extent_bytes.get()))
            .map_err(|_| wrong("extent_bytes"))?,
    })
}

fn link(entry: &LinkEntry, texts: &mut &[u8], volumes: usize) -> Result<GroupLink, FormatError> {
    let text_bytes = usize::try_from(entry.text_bytes.get()).expect("64-bit platform");
    let (mut mine, rest) = texts.split_at_checked(text_bytes).ok_or(SHORT)?;
    *texts = rest;
    let peer_bytes = usize::from(entry.peer_bytes.get());
    if peer_bytes > PEER_BYTES_MAX {
        return Err(wrong("peer_bytes"));
    }
    let peer = take_text(&mut mine, peer_bytes)?;
    let mut paths = Vec::new();
    for _ in 0..volumes {
        let len: [u8; 2] = take(&mut mine)?;
        let len = usize::from(u16::from_le_bytes(len));
        if len > PATH_BYTES_MAX {
            return Err(wrong("path"));
        }
        paths.push(take_text(&mut mine, len)?);
    }
    let whole = mine.is_empty() && entry.reserved.iter().all(|byte| *byte == 0);
    if !whole || usize::from(entry.place) >= LINKS_MAX {
        return Err(wrong("text_bytes"));
    }
    Ok(GroupLink {
        place: entry.place,
        id: entry.link_id,
        name: name(&entry.name, |text| LinkName::new(text).ok()).ok_or(wrong("name"))?,
        mode: match entry.mode {
            1 => Mode::Async,
            2 => Mode::Memory,
            3 => Mode::Sync,
            _ => return Err(wrong("mode")),
        },
        loss: LossPolicy {
            on_loss: match entry.on_loss {
                1 => OnLoss::Continue,
                2 => OnLoss::Block,
                3 => OnLoss::Fail,
                _ => return Err(wrong("on_loss")),
            },
            timeout: Duration::from_millis(entry.loss_timeout_ms.get().into()),
        },
        transmit: match entry.transmit {
            1 => TransmitHeld::Started,
            2 => TransmitHeld::Paused,
            3 => TransmitHeld::Stopped,
            _ => return Err(wrong("transmit")),
        },
        overwrite: flag(entry.overwrite).ok_or(wrong("overwrite"))?,
        first_mirror: match entry.first_mirror {
            0 => None,
            1 => Some(MirrorKind::Full),
            2 => Some(MirrorKind::Difference),
            3 => Some(MirrorKind::Checksum),
            _ => return Err(wrong("first_mirror")),
        },
        wanted: flag(entry.wanted).ok_or(wrong("wanted"))?,
        peer,
        paths,
    })
}

/// What two copies say together.
#[derive(Debug)]
pub enum Chosen {
    /// Nothing was ever written.
    Blank,
    /// The superblock, the counter of its write, and whether the other copy is to be rewritten.
    Good {
        /// What it says.
        group: Box<Group>,
        /// The counter of its write.
        counter: u64,
        /// The other copy is bad.
        repair: bool,
    },
}

/// Decides which of two copies is right. A bad copy beside a good one is the write that a crash
/// interrupted.
///
/// # Errors
/// Both are bad, or one is of a newer version.
pub fn choose(first: &[u8], second: &[u8]) -> Result<Chosen, FormatError> {
    let copies = [Group::decode(first), Group::decode(second)];
    if let Some(newer) = copies.iter().find_map(|copy| match copy {
        Err(error @ FormatError::Newer { .. }) => Some(error.clone()),
        Ok(_) | Err(_) => None,
    }) {
        return Err(newer);
    }
    let good = |group: Group, counter, repair| Chosen::Good {
        group: Box::new(group),
        counter,
        repair,
    };
    Ok(match copies {
        [Ok((one, first)), Ok((two, second))] => {
            if first > second && !planted!(SecondRecordChosen) {
                good(one, first, false)
            } else {
                good(two, second, false)
            }
        }
        [Ok((one, counter)), Err(_)] | [Err(_), Ok((one, counter))] => good(one, counter, true),
        // If one was never written, the power went in the very first write.
        [Err(FormatError::Blank { .. }), Err(_)] | [Err(_), Err(FormatError::Blank { .. })] => {
            Chosen::Blank
        }
        [Err(error), Err(_)] => return Err(error),
    })
}
