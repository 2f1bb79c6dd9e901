//! Bytes to facts; nothing is taken that could not have been written.

use super::encode::encode_state;
use super::{
    COPY_BYTES, MAGIC, PATH_BYTES_MAX, Part, Replica, ReplicaRole, ReplicaVolume, VERSION, WHAT,
};
use crate::error::FormatError;
use crate::layout::{AncestorEntry, ReplicaHead, TextName, VolumeEntry, head_crc};
use blkrep_types::limits::{COUNT_MAX, GENERATION_HISTORY_MAX, GROUP_VOLUMES_MAX};
use blkrep_types::{
    Ancestor, BlockSize, ByteLen, DataState, ExtentSize, Generation, History, Incarnation,
    NameError, Seq, VolumeIndex, planted,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use zerocopy::{FromBytes, IntoBytes};

const HEAD_BYTES: usize = size_of::<ReplicaHead>();

const fn wrong(field: &'static str) -> FormatError {
    FormatError::Field { what: WHAT, field }
}

impl Replica {
    /// Reads one copy with its counter; `bytes` begins with it and may be longer.
    ///
    /// # Errors
    /// It is blank, corrupt, of a newer version, or has a field that cannot be.
    pub fn decode(bytes: &[u8]) -> Result<(Self, u64), FormatError> {
        let head = checked_head(bytes)?;
        let len = head.bytes.get() as usize;
        let body = bytes
            .get(HEAD_BYTES..len)
            .ok_or(FormatError::Short { what: WHAT })?;
        if crc32fast::hash(body) != head.body_crc.get() {
            return Err(FormatError::Checksum { what: WHAT });
        }
        let generation_count = usize::from(head.generation_count.get());
        let volume_count = usize::from(head.volume_count.get());
        if generation_count > GENERATION_HISTORY_MAX {
            return Err(wrong("generation_count"));
        }
        if volume_count == 0 || volume_count > GROUP_VOLUMES_MAX {
            return Err(wrong("volume_count"));
        }
        let (history, rest) = read_history(body, generation_count)?;
        let volumes = read_volumes(rest, volume_count)?;
        let replica = Self {
            id: head.replica,
            group: read_name(&head.group, "group")?,
            source: read_name(&head.source, "source")?,
            link: read_name(&head.link, "link")?,
            role: match head.role {
                1 => ReplicaRole::Target,
                2 => ReplicaRole::Promoted,
                _ => return Err(wrong("role")),
            },
            data_state: decode_state(head.data_state).ok_or(wrong("data_state"))?,
            part: match head.part {
                1 => Part::Empty,
                2 => Part::Map,
                3 => Part::Everything,
                _ => return Err(wrong("part")),
            },
            paused: match head.paused {
                0 => false,
                1 => true,
                _ => return Err(wrong("paused")),
            },
            history,
            base: head.base.into(),
            merged: head.merged.into(),
            journal: head.journal,
            doubtful: match head.doubtful.get() {
                mask if volumes.len() < 64 && mask >> volumes.len() != 0 => {
                    return Err(wrong("doubtful"));
                }
                mask => mask,
            },
            volumes,
        };
        Ok((replica, head.counter.get()))
    }

    /// Chooses between the two copies: the newer good one with its counter, and what is wrong with
    /// the other. A blank one is nothing wrong.
    ///
    /// # Errors
    /// Neither is good, or one is of a newer version. Blank if one was never written.
    pub fn choose(
        first: &[u8],
        second: &[u8],
    ) -> Result<(Self, u64, Option<FormatError>), FormatError> {
        match (Self::decode(first), Self::decode(second)) {
            (Err(error), _) | (_, Err(error)) if error.is_newer() => Err(error),
            (Ok(a), Ok(b)) => {
                let (replica, counter) = if a.1 > b.1 && !planted!(SecondReplicaRecordChosen) {
                    a
                } else {
                    b
                };
                Ok((replica, counter, None))
            }
            (Ok((replica, counter)), Err(error)) | (Err(error), Ok((replica, counter))) => {
                let blank = matches!(error, FormatError::Blank { .. });
                Ok((replica, counter, (!blank).then_some(error)))
            }
            // One was never written: the power went in the very first write.
            (Err(blank @ FormatError::Blank { .. }), Err(_))
            | (Err(_), Err(blank @ FormatError::Blank { .. })) => Err(blank),
            (Err(error), Err(_)) => Err(error),
        }
    }
}

fn checked_head(bytes: &[u8]) -> Result<ReplicaHead, FormatError> {
    let Ok((head, _)) = ReplicaHead::read_from_prefix(bytes) else {
        return Err(FormatError::Short { what: WHAT });
    };
    if head.as_bytes().iter().all(|byte| *byte == 0) {
        return Err(FormatError::Blank { what: WHAT });
    }
    if head.magic != MAGIC {
        return Err(FormatError::Magic { what: WHAT });
    }
    if head_crc(head.as_bytes()) != head.crc.get() {
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
    if found == 0 {
        return Err(wrong("version"));
    }
    if head.counter.get() > COUNT_MAX {
        return Err(wrong("counter"));
    }
    if u64::from(head.bytes.get()) > COPY_BYTES {
        return Err(wrong("bytes"));
    }
    if head.reserved.iter().any(|byte| *byte != 0) {
        return Err(wrong("reserved"));
    }
    Ok(head)
}

fn read_history(body: &[u8], count: usize) -> Result<(History, &[u8]), FormatError> {
    let short = FormatError::Short { what: WHAT };
    let (entries, rest) =
        <[AncestorEntry]>::ref_from_prefix_with_elems(body, count).map_err(|_| short)?;
    let ancestors = entries
        .iter()
        .map(|entry| Ancestor {
            generation: Generation::from_bytes(entry.generation),
            parent: Generation::from_bytes(entry.parent),
            branch_incarnation: Incarnation::new(entry.branch_incarnation.get()),
            branch_seq: Seq::new(entry.branch_seq.get()),
        })
        .collect();
    let history = History::from_oldest(ancestors).ok_or(wrong("generations"))?;
    Ok((history, rest))
}

fn read_volumes(body: &[u8], count: usize) -> Result<Vec<ReplicaVolume>, FormatError> {
    let short = || FormatError::Short { what: WHAT };
    let (entries, mut paths) =
        <[VolumeEntry]>::ref_from_prefix_with_elems(body, count).map_err(|_| short())?;
    let mut volumes = Vec::with_capacity(count);
    for (place, entry) in entries.iter().enumerate() {
        let path_bytes = usize::from(entry.path_bytes.get());
        if path_bytes == 0 || path_bytes > PATH_BYTES_MAX {
            return Err(wrong("path_bytes"));
        }
        let (path, rest) = paths.split_at_checked(path_bytes).ok_or_else(short)?;
        paths = rest;
        if usize::from(entry.index.get()) != place {
            return Err(wrong("index"));
        }
        if entry.reserved.iter().any(|byte| *byte != 0) {
            return Err(wrong("reserved"));
        }
        let block_size = BlockSize::try_from(u64::from(entry.block_bytes.get()))
            .map_err(|_| wrong("block_bytes"))?;
        let len = entry.len.get();
        if len == 0 || len > i64::MAX as u64 || !len.is_multiple_of(block_size.get()) {
            return Err(wrong("len"));
        }
        volumes.push(ReplicaVolume {
            index: VolumeIndex::new(entry.index.get()),
            name: read_name(&entry.name, "name")?,
            len: ByteLen::new(len),
            block_size,
            extent_size: ExtentSize::try_from(u64::from(entry.extent_bytes.get()))
                .map_err(|_| wrong("extent_bytes"))?,
            path: PathBuf::from(OsStr::from_bytes(path)),
        });
    }
    let sizes = volumes
        .iter()
        .map(|volume| (volume.len, volume.extent_size));
    if !ExtentSize::fit_a_map(sizes) {
        return Err(wrong("len"));
    }
    if paths.is_empty() {
        Ok(volumes)
    } else {
        Err(wrong("bytes"))
    }
}

fn read_name<T>(name: &TextName, field: &'static str) -> Result<T, FormatError>
where
    T: TryFrom<String, Error = NameError>,
{
    let text = name
        .bytes
        .get(..usize::from(name.len.get()))
        .ok_or(wrong(field))?;
    if name.bytes[text.len()..].iter().any(|byte| *byte != 0) {
        return Err(wrong(field));
    }
    let text = String::from_utf8(text.to_vec()).map_err(|_| wrong(field))?;
    T::try_from(text).map_err(|_| wrong(field))
}

fn decode_state(number: u8) -> Option<DataState> {
    DataState::ALL
        .iter()
        .copied()
        .find(|state| encode_state(*state) == number)
}
