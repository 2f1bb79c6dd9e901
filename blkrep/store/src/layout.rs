//! The bytes, field by field.
//!
//! Owns the fixed layouts of `docs/format/journal.md`, `notes.md` and `target-superblock.md`; all
//! integers are little-endian. Sizes are asserted here, offsets are compared with the pages by a
//! test. Never interprets a field.

use blkrep_types::{Generation, Incarnation, Seq, WriteName};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Declares a layout, its size and, for the format pages, its fields.
macro_rules! layout {
    ($(#[$doc:meta])* $name:ident: $size:literal { $($field:ident: $type:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub(crate) struct $name { $(pub(crate) $field: $type),+ }

        const _: () = assert!(size_of::<$name>() == $size);

        impl $name {
            #[cfg(test)]
            pub(crate) const FIELDS: &[(&'static str, usize, usize)] = &[
                $((stringify!($field), core::mem::offset_of!($name, $field), size_of::<$type>())),+
            ];
        }
    };
}

layout! {
    /// The full name of a write.
    NameBytes: 32 { generation: [u8; 16], incarnation: U64, seq: U64 }
}
layout! {
    /// One copy of the journal's own superblock.
    JournalHead: 256 {
        magic: [u8; 8], version: U32, bytes: U32, journal: [u8; 16], counter: U64, capacity: U64,
        position: U64, number: U64, before: NameBytes, durable: U64, last: NameBytes,
        reserved: [u8; 116], crc: U32,
    }
}
layout! {
    /// What every batch begins with.
    BatchHead: 128 {
        magic: [u8; 8], version: U32, bytes: U32, journal: [u8; 16], number: U64, position: U64,
        generation: [u8; 16], first_incarnation: U64, first_seq: U64, last_incarnation: U64,
        last_seq: U64, record_count: U32, table_crc: U32, data_sum: U64, reserved: [u8; 12],
        crc: U32,
    }
}
layout! {
    /// One record of a batch's table.
    RecordEntry: 40 {
        incarnation: U64, seq: U64, offset: U64, len: U64, data_crc: U32, volume: U16, kind: u8,
        argument: u8,
    }
}
layout! {
    /// One page of the file of notes.
    NotePage: 4096 {
        magic: [u8; 8], version: U16, report_bytes: U16, crc: U32, replica: [u8; 16], counter: U64,
        reserved: [u8; 8], report: [u8; 4048],
    }
}
layout! {
    /// A name of at most 64 bytes; the rest is zero.
    TextName: 66 { bytes: [u8; 64], len: U16 }
}
layout! {
    /// One copy of a replica's superblock, before its generations, volumes and paths.
    ReplicaHead: 512 {
        magic: [u8; 8], version: U32, bytes: U32, counter: U64, replica: [u8; 16],
        group: TextName, source: TextName, link: TextName, role: u8, data_state: u8, part: u8,
        paused: u8, generation_count: U16, volume_count: U16, base: NameBytes,
        merged: NameBytes, journal: [u8; 16], doubtful: U64, reserved: [u8; 170],
        body_crc: U32, crc: U32,
    }
}
layout! {
    /// One generation of a history.
    AncestorEntry: 48 {
        generation: [u8; 16], parent: [u8; 16], branch_incarnation: U64, branch_seq: U64,
    }
}
layout! {
    /// One volume of a replica; its path follows after all volumes.
    VolumeEntry: 96 {
        name: TextName, index: U16, len: U64, extent_bytes: U32, block_bytes: U16,
        path_bytes: U16, reserved: [u8; 12],
    }
}
layout! {
    /// One sector of a map.
    MapSector: 512 {
        magic: [u8; 4], crc: U32, version: U16, reserved: [u8; 10], sector: U32, counter: U64,
        replica: [u8; 16], bits: [u8; 464],
    }
}

impl From<WriteName> for NameBytes {
    fn from(name: WriteName) -> Self {
        Self {
            generation: *name.generation.as_bytes(),
            incarnation: U64::new(name.incarnation.get()),
            seq: U64::new(name.seq.get()),
        }
    }
}

impl From<NameBytes> for WriteName {
    fn from(bytes: NameBytes) -> Self {
        Self {
            generation: Generation::from_bytes(bytes.generation),
            incarnation: Incarnation::new(bytes.incarnation.get()),
            seq: Seq::new(bytes.seq.get()),
        }
    }
}

/// The checksum of a structure whose last four bytes are that checksum.
pub(crate) fn head_crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(&bytes[..bytes.len() - 4])
}

/// Overwrites the first bytes of a field, at most eight of them, of a structure that `bytes` begin with.
#[cfg(test)]
pub(crate) fn put(bytes: &mut [u8], fields: &[(&str, usize, usize)], field: &str, value: u64) {
    let named = |(name, _, _): &&(&str, usize, usize)| *name == field;
    let (_, at, len) = fields.iter().find(named).expect("a field of that name");
    let len = (*len).min(8);
    bytes[*at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
}
