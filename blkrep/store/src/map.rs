//! The target's part of the dirty map, on disk.
//!
//! Owns the codec of one sector of `docs/format/target-superblock.md`, section "map", and the
//! arithmetic of which bit is in which sector. A sector checks itself, so it is the unit that is
//! written and the unit that is lost: a bad one reads as all bits set. Never holds the map itself.

use crate::error::FormatError;
use crate::layout::MapSector;
use blkrep_types::limits::COUNT_MAX;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const MAGIC: [u8; 4] = *b"BLKm";
const VERSION: u16 = 1;
const WHAT: &str = "sector of the dirty map";

/// Bytes of one sector.
pub const MAP_SECTOR_BYTES: usize = size_of::<MapSector>();

/// Bytes of bits in one sector.
pub const MAP_BITS_BYTES: usize = 464;

/// Bits in one sector.
pub const MAP_SECTOR_BITS: u64 = MAP_BITS_BYTES as u64 * 8;

/// Which sector of which replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectorName {
    /// The replica's random identity: a sector of another replica is not taken for one of ours.
    pub replica: [u8; 16],
    /// The sector's place in the file.
    pub sector: u32,
}

/// Writes a sector into `into`; `bits` are the extents from `sector * MAP_SECTOR_BITS`, the lowest
/// bit of a byte first. Missing bits are zero.
///
/// # Panics
/// If there are more bits than a sector has, or `into` is not one sector long.
pub fn encode_sector(name: &SectorName, counter: u64, bits: &[u8], into: &mut [u8]) {
    assert!(
        bits.len() <= MAP_BITS_BYTES,
        "a sector has {MAP_BITS_BYTES} bytes of bits"
    );
    assert_eq!(
        into.len(),
        MAP_SECTOR_BYTES,
        "a sector is {MAP_SECTOR_BYTES} bytes"
    );
    let mut sector = MapSector::new_zeroed();
    sector.magic = MAGIC;
    sector.version = U16::new(VERSION);
    sector.sector = U32::new(name.sector);
    sector.counter = U64::new(counter);
    sector.replica = name.replica;
    sector.bits[..bits.len()].copy_from_slice(bits);
    sector.crc = U32::new(crc(&sector));
    into.copy_from_slice(sector.as_bytes());
}

/// Reads a sector: its bits, and the counter of its last write.
///
/// # Errors
/// It is not a good sector of that name; then all its bits count as set.
pub fn decode_sector(
    name: &SectorName,
    bytes: &[u8],
) -> Result<([u8; MAP_BITS_BYTES], u64), FormatError> {
    let wrong = |field| FormatError::Field { what: WHAT, field };
    let Ok(sector) = MapSector::read_from_bytes(bytes) else {
        return Err(FormatError::Short { what: WHAT });
    };
    if sector.magic != MAGIC {
        return Err(FormatError::Magic { what: WHAT });
    }
    if crc(&sector) != sector.crc.get() {
        return Err(FormatError::Checksum { what: WHAT });
    }
    let found = u32::from(sector.version.get());
    if found > u32::from(VERSION) {
        let supported = u32::from(VERSION);
        return Err(FormatError::Newer {
            what: WHAT,
            found,
            supported,
        });
    }
    if found == 0 {
        return Err(wrong("version"));
    }
    if sector.replica != name.replica {
        return Err(wrong("replica"));
    }
    if sector.reserved.iter().any(|byte| *byte != 0) {
        return Err(wrong("reserved"));
    }
    if sector.counter.get() > COUNT_MAX {
        return Err(wrong("counter"));
    }
    if sector.sector.get() != name.sector {
        return Err(wrong("sector"));
    }
    Ok((sector.bits, sector.counter.get()))
}

/// Over everything but the checksum itself, which counts as zero.
fn crc(sector: &MapSector) -> u32 {
    let mut copy = *sector;
    copy.crc = U32::ZERO;
    crc32fast::hash(copy.as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::layout::put;
    use proptest::prelude::*;

    const NAME: SectorName = SectorName {
        replica: [7; 16],
        sector: 9,
    };

    fn sector(bits: &[u8]) -> [u8; MAP_SECTOR_BYTES] {
        let mut bytes = [0; MAP_SECTOR_BYTES];
        encode_sector(&NAME, 42, bits, &mut bytes);
        bytes
    }

    #[test]
    fn the_bytes_of_a_sector_are_golden() {
        let bytes = sector(&[0x81, 0x02]);
        assert_eq!(&bytes[..4], b"BLKm");
        assert_eq!(bytes[8..40], {
            let mut expected = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0];
            expected.extend([42, 0, 0, 0, 0, 0, 0, 0]);
            expected.extend([7; 8]);
            expected
        });
        assert_eq!(&bytes[48..51], &[0x81, 0x02, 0]);
        assert_eq!(crc32fast::hash(&bytes), GOLDEN_CRC);
    }

    /// Of the whole sector above; changes only with the version of the format.
    const GOLDEN_CRC: u32 = 3_811_007_996;

    proptest! {
        #[test]
        fn bits_are_read_as_they_were_written(bits in prop::collection::vec(any::<u8>(), 0..=464)) {
            let (read, counter) = decode_sector(&NAME, &sector(&bits)).unwrap();
            prop_assert_eq!(counter, 42);
            prop_assert_eq!(&read[..bits.len()], &bits[..]);
            prop_assert!(read[bits.len()..].iter().all(|byte| *byte == 0));
        }

        #[test]
        fn a_flipped_bit_is_never_accepted(bit in 0..MAP_SECTOR_BYTES * 8) {
            let mut bytes = sector(&[0xff; 100]);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode_sector(&NAME, &bytes).is_err());
        }
    }

    #[test]
    fn an_impossible_field_is_refused_by_its_name() {
        let changed = |field, value| {
            let mut bytes = sector(&[1]);
            put(&mut bytes, MapSector::FIELDS, field, value);
            let crc = crc(&MapSector::read_from_bytes(&bytes).unwrap());
            put(&mut bytes, MapSector::FIELDS, "crc", crc.into());
            decode_sector(&NAME, &bytes).unwrap_err()
        };
        for (field, value) in [
            ("version", 0),
            ("reserved", 1),
            ("counter", u64::MAX),
            ("sector", 8),
            ("replica", 1),
        ] {
            match changed(field, value) {
                FormatError::Field { field: named, .. } => assert_eq!(named, field),
                other => panic!("{field}: {other}"),
            }
        }
        assert!(changed("version", 2).is_newer());
    }

    #[test]
    fn a_sector_of_another_place_is_refused() {
        let bytes = sector(&[1]);
        for other in [
            SectorName {
                replica: [8; 16],
                ..NAME
            },
            SectorName { sector: 10, ..NAME },
        ] {
            assert!(decode_sector(&other, &bytes).is_err());
        }
        assert!(decode_sector(&NAME, &[0; MAP_SECTOR_BYTES]).is_err());
        assert!(decode_sector(&NAME, &bytes[1..]).is_err());
    }
}
