//! Map files: the durable copies of the intent map and of the links' dirty maps.
//!
//! Owns the codec of `docs/format/source-maps.md`. A sector checks itself, so it is the unit that
//! is written and the unit that is lost: a bad one reads as all bits set. The first sector names
//! the map and, for a link, the write from which on the map covers every difference. Bits enter
//! and bytes leave, or the other way round; never holds a map itself.

use crate::error::FormatError;
use crate::layout::{MapHead, MapSector, NameBytes};
use blkrep_types::limits::COUNT_MAX;
use blkrep_types::{WriteName, planted};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const MAGIC: [u8; 4] = *b"BLKb";
const HEAD_MAGIC: [u8; 4] = *b"BLKh";
const VERSION: u16 = 1;
const WHAT: &str = "sector of the map";
const WHAT_HEAD: &str = "head of the map";

/// Bytes of one sector.
pub const SECTOR_BYTES: usize = size_of::<MapSector>();

/// Words of bits in one sector.
pub const SECTOR_WORDS: usize = 58;

/// A map's random identity: a sector of another map is not taken for one of it.
pub type MapName = [u8; 16];

/// Where a sector of bits lies in the file, in bytes: behind the head.
#[must_use]
pub const fn sector_offset(sector: u32) -> u64 {
    (sector as u64 + 1) * SECTOR_BYTES as u64
}

/// Bytes of a file with this many sectors of bits.
#[must_use]
pub const fn file_bytes(sectors: u32) -> u64 {
    sector_offset(sectors)
}

/// Writes a sector of bits into `into`.
///
/// # Panics
/// If `words` are not those of one sector or `into` is not one sector long.
pub fn encode_sector(
    map: &MapName,
    sector: u32,
    counter: u64,
    words: impl Iterator<Item = u64>,
    into: &mut [u8],
) {
    let mut encoded = MapSector::new_zeroed();
    encoded.magic = MAGIC;
    encoded.version = U16::new(VERSION);
    encoded.sector = U32::new(sector);
    encoded.counter = U64::new(counter);
    encoded.map = *map;
    let mut count = 0;
    for (word, place) in words.zip(encoded.bits.chunks_exact_mut(8)) {
        place.copy_from_slice(&word.to_le_bytes());
        count += 1;
    }
    assert_eq!(count, SECTOR_WORDS, "a sector is whole");
    encoded.crc = U32::new(crc(encoded.as_bytes()));
    into.copy_from_slice(encoded.as_bytes());
}

/// Reads a sector of bits.
///
/// # Errors
/// It is not a good sector of that map and place; then all its bits count as set.
pub fn decode_sector(
    map: &MapName,
    sector: u32,
    bytes: &[u8],
) -> Result<[u64; SECTOR_WORDS], FormatError> {
    let wrong = |field| FormatError::Field { what: WHAT, field };
    let found = MapSector::read_from_bytes(bytes).map_err(|_| FormatError::Short { what: WHAT })?;
    check(WHAT, found.magic == MAGIC, bytes, found.version)?;
    if found.map != *map {
        return Err(wrong("map"));
    }
    if found.sector.get() != sector {
        return Err(wrong("sector"));
    }
    if found.reserved.iter().any(|byte| *byte != 0) {
        return Err(wrong("reserved"));
    }
    let mut words = [0; SECTOR_WORDS];
    for (word, bytes) in words.iter_mut().zip(found.bits.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    }
    Ok(words)
}

/// What the head of a map file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Sectors of bits.
    pub sectors: u32,
    /// The map covers every difference to a target that has everything up to this write;
    /// [`WriteName::NONE`] if to none.
    pub floor: WriteName,
    /// Nothing completes without what the link's mode asks for.
    pub promised: bool,
}

/// Writes the head of a map file into `into`.
///
/// # Panics
/// If `into` is not one sector long.
pub fn encode_head(map: &MapName, counter: u64, head: &Head, into: &mut [u8]) {
    let mut encoded = MapHead::new_zeroed();
    encoded.magic = HEAD_MAGIC;
    encoded.version = U16::new(VERSION);
    encoded.sectors = U32::new(head.sectors);
    encoded.counter = U64::new(counter);
    encoded.map = *map;
    encoded.promised = u8::from(head.promised);
    encoded.floor = NameBytes::from(head.floor);
    encoded.crc = U32::new(crc(encoded.as_bytes()));
    into.copy_from_slice(encoded.as_bytes());
}

/// Reads the head of a map file, with the counter of its last write.
///
/// # Errors
/// It is not the head of that map; then the floor is unknown.
pub fn decode_head(map: &MapName, bytes: &[u8]) -> Result<(Head, u64), FormatError> {
    let wrong = |field| FormatError::Field {
        what: WHAT_HEAD,
        field,
    };
    let found =
        MapHead::read_from_bytes(bytes).map_err(|_| FormatError::Short { what: WHAT_HEAD })?;
    check(WHAT_HEAD, found.magic == HEAD_MAGIC, bytes, found.version)?;
    if found.map != *map {
        return Err(wrong("map"));
    }
    if found.counter.get() > COUNT_MAX {
        return Err(wrong("counter"));
    }
    let mut reserved = found.reserved.iter().chain(&found.reserved_end);
    if reserved.any(|byte| *byte != 0) {
        return Err(wrong("reserved"));
    }
    let head = Head {
        sectors: found.sectors.get(),
        floor: WriteName::from(found.floor),
        promised: match found.promised {
            0 => false,
            1 => true,
            _ => return Err(wrong("promised")),
        },
    };
    Ok((head, found.counter.get()))
}

fn check(what: &'static str, magic: bool, bytes: &[u8], version: U16) -> Result<(), FormatError> {
    if !magic {
        return Err(FormatError::Magic { what });
    }
    if crc(bytes).to_le_bytes() != bytes[4..8] && !planted!(MapChecksumIgnored) {
        return Err(FormatError::Checksum { what });
    }
    match version.get() {
        0 => Err(FormatError::Field {
            what,
            field: "version",
        }),
        VERSION => Ok(()),
        newer => Err(FormatError::Newer {
            what,
            found: u32::from(newer),
            supported: u32::from(VERSION),
        }),
    }
}

/// Over everything but the checksum itself, which counts as zero.
fn crc(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..4]);
    hasher.update(&[0; 4]);
    hasher.update(&bytes[8..]);
    hasher.finalize()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::layout::put;
    use blkrep_types::{Generation, Incarnation, Seq};
    use proptest::prelude::*;

    const MAP: MapName = [7; 16];

    fn sector(words: [u64; SECTOR_WORDS]) -> [u8; SECTOR_BYTES] {
        let mut bytes = [0; SECTOR_BYTES];
        encode_sector(&MAP, 9, 42, words.into_iter(), &mut bytes);
        bytes
    }

    fn head() -> ([u8; SECTOR_BYTES], Head) {
        let head = Head {
            sectors: 3,
            floor: WriteName {
                generation: Generation::from_bytes([9; 16]),
                incarnation: Incarnation::new(2),
                seq: Seq::new(77),
            },
            promised: true,
        };
        let mut bytes = [0; SECTOR_BYTES];
        encode_head(&MAP, 5, &head, &mut bytes);
        (bytes, head)
    }

    #[test]
    fn the_bytes_of_a_sector_and_a_head_are_golden() {
        let mut words = [0; SECTOR_WORDS];
        words[0] = 0x281;
        let bytes = sector(words);
        assert_eq!(&bytes[..4], b"BLKb");
        assert_eq!(
            bytes[8..32],
            [
                1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 42, 0, 0, 0, 0, 0, 0, 0
            ]
        );
        assert_eq!(&bytes[48..51], &[0x81, 0x02, 0]);
        let golden = (crc32fast::hash(&bytes), crc32fast::hash(&head().0));
        assert_eq!(golden, GOLDEN_CRCS);
    }

    /// Of the whole sectors above; they change only with the version of the format.
    const GOLDEN_CRCS: (u32, u32) = (582_836_177, 2_104_114_377);

    proptest! {
        #[test]
        fn a_flipped_bit_is_never_accepted(bit in 0..SECTOR_BYTES * 8) {
            let mut bytes = sector([u64::MAX; SECTOR_WORDS]);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode_sector(&MAP, 9, &bytes).is_err());
            let mut bytes = head().0;
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode_head(&MAP, &bytes).is_err());
        }

        #[test]
        fn bits_are_read_as_they_were_written(seed in any::<u64>()) {
            let words = std::array::from_fn(|word| seed.rotate_left(u32::try_from(word).unwrap()));
            prop_assert_eq!(decode_sector(&MAP, 9, &sector(words)).unwrap(), words);
        }
    }

    /// Writes the right checksum over what was changed.
    fn sealed(mut bytes: [u8; SECTOR_BYTES], fields: Fields, field: &str, value: u64) -> Vec<u8> {
        put(&mut bytes, fields, field, value);
        let crc = crc(&bytes);
        put(&mut bytes, fields, "crc", crc.into());
        bytes.to_vec()
    }

    type Fields = &'static [(&'static str, usize, usize)];

    #[test]
    fn an_impossible_field_is_refused_by_its_name() {
        let named = |error, expected: &str| match error {
            FormatError::Field { field, .. } => assert_eq!(field, expected),
            other => panic!("{expected}: {other}"),
        };
        let sector = |field, value| {
            let bytes = sealed(sector([1; SECTOR_WORDS]), MapSector::FIELDS, field, value);
            decode_sector(&MAP, 9, &bytes).unwrap_err()
        };
        let head = |field, value| {
            let bytes = sealed(head().0, MapHead::FIELDS, field, value);
            decode_head(&MAP, &bytes).unwrap_err()
        };
        for (field, value) in [("version", 0), ("reserved", 1), ("sector", 8), ("map", 1)] {
            named(sector(field, value), field);
        }
        for (field, value) in [
            ("version", 0),
            ("promised", 2),
            ("reserved", 1),
            ("counter", u64::MAX),
        ] {
            named(head(field, value), field);
        }
        named(head("reserved_end", 1), "reserved");
        for newer in [sector("version", 2), head("version", 2)] {
            assert!(
                matches!(newer, FormatError::Newer { found: 2, .. }),
                "{newer}"
            );
        }
    }

    #[test]
    fn a_sector_of_another_place_or_map_is_refused() {
        let bytes = sector([1; SECTOR_WORDS]);
        assert!(decode_sector(&MAP, 8, &bytes).is_err());
        assert!(decode_sector(&[8; 16], 9, &bytes).is_err());
        assert!(decode_sector(&MAP, 0, &[0; SECTOR_BYTES]).is_err());
        assert!(decode_sector(&MAP, 9, &bytes[1..]).is_err());
        assert_eq!(decode_head(&MAP, &head().0).unwrap(), (head().1, 5));
        assert!(decode_head(&[8; 16], &head().0).is_err());
    }
}
