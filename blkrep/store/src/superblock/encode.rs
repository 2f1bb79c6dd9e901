//! Facts to bytes.

use super::{COPY_BYTES, MAGIC, PATH_BYTES_MAX, Part, Replica, ReplicaRole, VERSION};
use crate::layout::{AncestorEntry, ReplicaHead, TextName, VolumeEntry, head_crc};
use blkrep_types::{ByteLen, DataState};
use std::os::unix::ffi::OsStrExt;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

impl Replica {
    /// Where the copy with this counter goes in the file.
    #[must_use]
    pub const fn copy_offset(counter: u64) -> u64 {
        (counter % 2) * COPY_BYTES
    }

    /// The bytes of a copy: whole sectors, at most [`COPY_BYTES`].
    ///
    /// # Panics
    /// If a path is longer than [`PATH_BYTES_MAX`]: who takes a path checks it.
    #[must_use]
    pub fn encode(&self, counter: u64) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<ReplicaHead>()];
        for ancestor in self.history.ancestors() {
            let entry = AncestorEntry {
                generation: *ancestor.generation.as_bytes(),
                parent: *ancestor.parent.as_bytes(),
                branch_incarnation: U64::new(ancestor.branch_incarnation.get()),
                branch_seq: U64::new(ancestor.branch_seq.get()),
            };
            bytes.extend_from_slice(entry.as_bytes());
        }
        for volume in &self.volumes {
            let path = volume.path.as_os_str().as_bytes();
            assert!(
                path.len() <= PATH_BYTES_MAX,
                "a path is checked before it is recorded"
            );
            let mut entry = VolumeEntry::new_zeroed();
            entry.name = text_name(volume.name.as_str());
            entry.index = U16::new(volume.index.get());
            entry.len = U64::new(volume.len.get());
            entry.extent_bytes = U32::new(narrow(volume.extent_size.get()));
            entry.block_bytes = U16::new(narrow(volume.block_size.get()));
            entry.path_bytes = U16::new(narrow(path.len() as u64));
            bytes.extend_from_slice(entry.as_bytes());
        }
        for volume in &self.volumes {
            bytes.extend_from_slice(volume.path.as_os_str().as_bytes());
        }
        let head = self.head(counter, &bytes);
        bytes[..size_of::<ReplicaHead>()].copy_from_slice(head.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        assert!(
            bytes.len() <= ByteLen::new(COPY_BYTES).as_usize(),
            "a copy fits its place"
        );
        bytes
    }

    fn head(&self, counter: u64, bytes: &[u8]) -> ReplicaHead {
        let mut head = ReplicaHead::new_zeroed();
        head.magic = MAGIC;
        head.version = U32::new(VERSION);
        head.bytes = U32::new(narrow(bytes.len() as u64));
        head.counter = U64::new(counter);
        head.replica = self.id;
        head.group = text_name(self.group.as_str());
        head.source = text_name(self.source.as_str());
        head.link = text_name(self.link.as_str());
        head.role = match self.role {
            ReplicaRole::Target => 1,
            ReplicaRole::Promoted => 2,
        };
        head.data_state = encode_state(self.data_state);
        head.part = match self.part {
            Part::Empty => 1,
            Part::Map => 2,
            Part::Everything => 3,
        };
        head.paused = u8::from(self.paused);
        head.generation_count = U16::new(narrow(self.history.ancestors().len() as u64));
        head.volume_count = U16::new(narrow(self.volumes.len() as u64));
        head.base = self.base.into();
        head.merged = self.merged.into();
        head.journal = self.journal;
        head.doubtful = U64::new(self.doubtful);
        head.body_crc = U32::new(crc32fast::hash(&bytes[size_of::<ReplicaHead>()..]));
        head.crc = U32::new(head_crc(head.as_bytes()));
        head
    }
}

fn text_name(name: &str) -> TextName {
    let mut bytes = [0; 64];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    TextName {
        bytes,
        len: U16::new(narrow(name.len() as u64)),
    }
}

fn narrow<T: TryFrom<u64>>(value: u64) -> T {
    T::try_from(value)
        .ok()
        .expect("bounded by its type or by a check")
}

pub(super) const fn encode_state(state: DataState) -> u8 {
    match state {
        DataState::Ok => 1,
        DataState::Mirroring => 2,
        DataState::MirrorRequired => 3,
        DataState::RestoreRequired => 4,
        DataState::NotReady => 5,
        DataState::Reverted => 6,
        DataState::Unknown => 7,
    }
}
