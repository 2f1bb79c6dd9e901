//! The bytes of files, field by field.
//!
//! Owns the fixed layouts of `docs/format/source-superblock.md`, `docs/format/source-maps.md` and
//! `docs/format/disk-queue.md`;
//! all integers are little-endian. Sizes are asserted here, offsets are compared with the pages by
//! a test. Never interprets a field.

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
    /// One sector of bits.
    MapSector: 512 {
        magic: [u8; 4], crc: U32, version: U16, reserved: [u8; 10], sector: U32, counter: U64,
        map: [u8; 16], bits: [u8; 464],
    }
}
layout! {
    /// The first sector of a map file.
    MapHead: 512 {
        magic: [u8; 4], crc: U32, version: U16, promised: u8, reserved: [u8; 9], sectors: U32, counter: U64,
        map: [u8; 16], floor: NameBytes, reserved_end: [u8; 432],
    }
}
layout! {
    /// A name of at most 64 bytes; the rest is zero.
    TextName: 66 { bytes: [u8; 64], len: U16 }
}
layout! {
    /// One copy of a group's superblock, before its generations, volumes, links and texts.
    GroupHead: 512 {
        magic: [u8; 8], version: U32, bytes: U32, counter: U64, group_id: [u8; 16],
        group: TextName, clean: u8, distrust: u8, generation_count: U16, volume_count: U16,
        link_count: U16, incarnation: U64, head_incarnation: U64, head_seq: U64, log_id: [u8; 16],
        log_bytes: U64, newer: [u8; 16], intent_map: [u8; 16], served_by: u8, reserved: [u8; 309],
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
    /// One volume of a group.
    VolumeEntry: 96 {
        name: TextName, index: U16, len: U64, extent_bytes: U32, block_bytes: U16,
        reserved: [u8; 14],
    }
}
layout! {
    /// One link of a group; the texts of all links follow after all links.
    LinkEntry: 128 {
        name: TextName, link_id: [u8; 16], place: u8, mode: u8, transmit: u8, overwrite: u8,
        first_mirror: u8, wanted: u8, peer_bytes: U16, text_bytes: U32, on_loss: u8,
        loss_timeout_ms: U32, reserved: [u8; 29],
    }
}

layout! {
    /// The head of a disk queue's file.
    QueueHead: 512 {
        magic: [u8; 8], version: U32, crc: U32, file: U64, log: [u8; 16], segment_bytes: U64,
        reserved: [u8; 464],
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

/// Overwrites the first bytes of a field, at most eight of them, of a structure that `bytes` begin with.
#[cfg(test)]
pub(crate) fn put(bytes: &mut [u8], fields: &[(&str, usize, usize)], field: &str, value: u64) {
    let named = |(name, _, _): &&(&str, usize, usize)| *name == field;
    let (_, at, len) = fields.iter().find(named).expect("a field of that name");
    let len = (*len).min(8);
    bytes[*at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
}
