//! The bytes, field by field.
//!
//! Owns the fixed layouts of `docs/format/wire.md`; all integers are little-endian. Sizes are
//! asserted here, offsets are compared with the page by a test. Never interprets a field.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What every frame begins with: "BLKr".
pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"BLKr");

/// Declares a layout, its size and, for the format page, its fields.
macro_rules! layout {
    ($(#[$doc:meta])* $name:ident: $size:literal { $($field:ident: $type:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub(crate) struct $name { $(pub(crate) $field: $type),+ }

        const _: () = assert!(size_of::<$name>() == $size);

        impl $name {
            #[cfg(test)]
            #[allow(clippy::cast_possible_truncation)]
            pub(crate) const FIELDS: &[(&'static str, usize, usize)] = &[
                $((stringify!($field), core::mem::offset_of!($name, $field), size_of::<$type>())),+
            ];
        }
    };
}

layout! {
    /// Before every body.
    FrameHeader: 32 {
        magic: U32, version: U16, kind: U16, body_bytes: U32, checked_bytes: U32, number: U64,
        body_crc: U32, header_crc: U32,
    }
}
layout! {
    /// A name of at most 64 bytes; the rest is zero.
    Name: 66 { bytes: [u8; 64], len: U16 }
}
layout! {
    /// The full name of a write.
    WriteNameBytes: 32 { generation: [u8; 16], incarnation: U64, seq: U64 }
}
layout! {
    /// One generation of a history.
    AncestorBytes: 48 {
        generation: [u8; 16], parent: [u8; 16], branch_incarnation: U64, branch_seq: U64,
    }
}
layout! {
    /// Body of `Hello`, before its generations, volumes and paths.
    HelloHead: 240 {
        version_min: U16, version_max: U16, generation_count: U16, volume_count: U16,
        incarnation: U64, node: Name, group: Name, link: Name, mode: u8, mirror: u8, flags: u8,
        reserved: [u8; 7], heartbeat_ms: U32, timeout_ms: U32, reserved_end: U64,
    }
}
layout! {
    /// One volume in `Hello`; its path follows after all volumes.
    HelloVolumeBytes: 88 {
        len: U64, extent_bytes: U32, block_bytes: U16, index: U16, path_bytes: U16, name: Name,
        reserved: [u8; 4],
    }
}
layout! {
    /// Body of `Welcome`, before its generations and volumes.
    WelcomeHead: 144 {
        version: U16, role: u8, data_state: u8, generation_count: U16, volume_count: U16,
        node: Name, reserved: [u8; 6], durable: WriteNameBytes, journal_used: U64,
        journal_capacity: U64, codecs: u8, connections: u8, reads: u8, reserved_end: [u8; 5],
        session: U64,
    }
}
layout! {
    /// One volume in `Welcome`.
    WelcomeVolumeBytes: 16 { len: U64, index: U16, reserved: [u8; 6] }
}
layout! {
    /// Body of `Refuse`, before its generations and text.
    RefuseHead: 16 {
        version_min: U16, version_max: U16, code: U16, generation_count: U16, text_bytes: U16,
        reserved: [u8; 6],
    }
}
layout! {
    /// Body of `Start`.
    StartBody: 88 {
        after: WriteNameBytes, head: WriteNameBytes, generation: [u8; 16], flags: u8,
        connections: u8, reserved: [u8; 6],
    }
}
layout! {
    /// Body of `MapPart`, before its bits.
    MapPartHead: 24 {
        first: U64, bit_count: U32, extent_bytes: U32, volume: U16, reserved: [u8; 6],
    }
}
layout! {
    /// Body of `MapEnd`.
    MapEndBody: 8 { part_count: U32, unknown: u8, reserved: [u8; 3] }
}
layout! {
    /// Body of `Data`, before its records.
    DataHead: 8 { record_count: U32, reserved: U32 }
}
layout! {
    /// One record of `Data`; its bytes follow after all records.
    RecordHeader: 40 {
        incarnation: U64, seq: U64, offset: U64, len: U64, data_crc: U32, volume: U16, kind: u8,
        argument: u8,
    }
}
layout! {
    /// Body of `Packed`, before what the codec made.
    PackedHead: 16 {
        plain_bytes: U32, checked_bytes: U32, plain_crc: U32, codec: u8, reserved: [u8; 3],
    }
}
layout! {
    /// Body of `Ack`.
    AckBody: 128 {
        received: WriteNameBytes, durable: WriteNameBytes, applied: WriteNameBytes,
        journal_used: U64, journal_capacity: U64, data_state: u8, applying: u8, held: u8,
        reserved: [u8; 13],
    }
}
layout! {
    /// Body of `Digests`, before its entries.
    DigestsHead: 8 { digest_count: U32, reserved: U32 }
}
layout! {
    /// One entry of `Digests`.
    DigestBytes: 72 {
        incarnation: U64, seq: U64, offset: U64, len: U64, digest: [u8; 32], volume: U16,
        known: u8, reserved: [u8; 5],
    }
}
layout! {
    /// Body of `Content`, before its bytes.
    ContentHead: 32 {
        incarnation: U64, seq: U64, offset: U64, len: U32, volume: U16, known: u8, reserved: u8,
    }
}
layout! {
    /// Body of `Ping` and `Pong`.
    PulseBody: 8 { stamp: U64 }
}
layout! {
    /// Body of `Join`.
    JoinBody: 216 {
        version: U16, index: u8, reserved: [u8; 5], session: U64, node: Name, group: Name,
        link: Name, reserved_end: [u8; 2],
    }
}
layout! {
    /// Body of `Joined`.
    JoinedBody: 8 { index: u8, reserved: [u8; 7] }
}
layout! {
    /// Body of `Place`.
    PlaceBody: 16 { lap: U32, reserved: U32, batch: U64 }
}
layout! {
    /// Body of `Again`.
    AgainBody: 8 { lap: U32, lost: U16, reserved: U16 }
}
layout! {
    /// Body of `Error` and `Goodbye`, before its text.
    FarewellHead: 8 { code: U16, text_bytes: U16, reserved: U32 }
}

/// Bytes before every body.
pub const FRAME_HEADER_BYTES: usize = size_of::<FrameHeader>();

/// Bytes of one record in a data frame, without its data.
pub const RECORD_HEADER_BYTES: usize = size_of::<RecordHeader>();

/// Bytes of a data frame's body before its records.
pub(crate) const DATA_HEAD_BYTES: usize = size_of::<DataHead>();

/// Bytes of a packed frame's body before what the codec made.
pub(crate) const PACKED_HEAD_BYTES: usize = size_of::<PackedHead>();

/// Bytes of the header that its checksum covers: all before the checksum itself.
pub(crate) const HEADER_CHECKED_BYTES: usize = FRAME_HEADER_BYTES - size_of::<U32>();

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
