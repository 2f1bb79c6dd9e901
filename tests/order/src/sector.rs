//! A sector that says which write it belongs to.
//!
//! Owns the 512-byte layout. A write's description and its place in the write enter, bytes leave, and back. Never does I/O.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | magic |
//! | 8..16 | run |
//! | 16..18 | volume |
//! | 18..20 | writer |
//! | 20..24 | sectors of the write |
//! | 24..28 | index of this sector in the write |
//! | 28..32 | zero |
//! | 32..40 | counter of the writer |
//! | 40..48 | first sector of the write |
//! | 48..508 | noise made from the above |
//! | 508..512 | CRC-32 of all before |
//!
//! Every sector carries all of it, so that a write torn anywhere at the grain of a disk is seen.

/// The grain at which disks are atomic.
pub const SECTOR_BYTES: usize = 512;

const MAGIC: [u8; 8] = *b"blkrepO1";
const CRC_AT: usize = SECTOR_BYTES - 4;

/// What one sector says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Which run of the writers.
    pub run: u64,
    /// Index of the volume in the run.
    pub volume: u16,
    /// Which writer.
    pub writer: u16,
    /// The writer's own count of operations, from 1.
    pub counter: u64,
    /// First sector of the write.
    pub first: u64,
    /// Sectors of the write.
    pub count: u32,
    /// This sector's place in the write.
    pub index: u32,
}

/// What the bytes of a sector turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing but zeroes.
    Zero,
    /// A whole sector of some write.
    Stamp(Stamp),
    /// Neither: damaged, torn inside, or someone else's.
    Foreign,
}

/// Fills `sector` with the stamp, its noise and its checksum.
pub fn encode(stamp: &Stamp, sector: &mut [u8]) {
    assert_eq!(sector.len(), SECTOR_BYTES, "a sector is encoded whole");
    sector[0..8].copy_from_slice(&MAGIC);
    sector[8..16].copy_from_slice(&stamp.run.to_le_bytes());
    sector[16..18].copy_from_slice(&stamp.volume.to_le_bytes());
    sector[18..20].copy_from_slice(&stamp.writer.to_le_bytes());
    sector[20..24].copy_from_slice(&stamp.count.to_le_bytes());
    sector[24..28].copy_from_slice(&stamp.index.to_le_bytes());
    sector[28..32].fill(0);
    sector[32..40].copy_from_slice(&stamp.counter.to_le_bytes());
    sector[40..48].copy_from_slice(&stamp.first.to_le_bytes());
    let seed = crc32fast::hash(&sector[..48]);
    let mut noise = Random::new(u64::from(seed) << 16 ^ stamp.counter);
    for chunk in sector[48..CRC_AT].chunks_mut(8) {
        let bytes = noise.next().to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
    }
    let crc = crc32fast::hash(&sector[..CRC_AT]);
    sector[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
}

/// Reads what `sector` says about itself.
#[must_use]
pub fn decode(sector: &[u8]) -> Content {
    assert_eq!(sector.len(), SECTOR_BYTES, "a sector is decoded whole");
    if sector[..8] != MAGIC {
        let blank = sector.iter().all(|byte| *byte == 0);
        return if blank {
            Content::Zero
        } else {
            Content::Foreign
        };
    }
    if crc32fast::hash(&sector[..CRC_AT]) != u32::from_le_bytes(field(sector, CRC_AT)) {
        return Content::Foreign;
    }
    Content::Stamp(Stamp {
        run: u64::from_le_bytes(field(sector, 8)),
        volume: u16::from_le_bytes(field(sector, 16)),
        writer: u16::from_le_bytes(field(sector, 18)),
        count: u32::from_le_bytes(field(sector, 20)),
        index: u32::from_le_bytes(field(sector, 24)),
        counter: u64::from_le_bytes(field(sector, 32)),
        first: u64::from_le_bytes(field(sector, 40)),
    })
}

fn field<const N: usize>(sector: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&sector[at..at + N]);
    bytes
}

/// A small reproducible generator (SplitMix64): same seed, same load.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts at `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: u8) -> bool {
        self.below(100) < u64::from(percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        run: 7,
        volume: 1,
        writer: 3,
        counter: 99,
        first: 1 << 40,
        count: 8,
        index: 5,
    };

    #[test]
    fn a_sector_reads_back_as_written() {
        let mut sector = [0; SECTOR_BYTES];
        assert_eq!(decode(&sector), Content::Zero);
        encode(&STAMP, &mut sector);
        assert_eq!(decode(&sector), Content::Stamp(STAMP));
    }

    #[test]
    fn any_flipped_bit_makes_it_foreign() {
        let mut sector = [0; SECTOR_BYTES];
        encode(&STAMP, &mut sector);
        for bit in 0..SECTOR_BYTES * 8 {
            sector[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&sector), Content::Foreign, "bit {bit}");
            sector[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn halves_of_two_sectors_are_foreign() {
        let (mut one, mut two) = ([0; SECTOR_BYTES], [0; SECTOR_BYTES]);
        encode(&STAMP, &mut one);
        let newer = Stamp {
            counter: 100,
            ..STAMP
        };
        encode(&newer, &mut two);
        one[256..].copy_from_slice(&two[256..]);
        assert_eq!(decode(&one), Content::Foreign);
    }
}
