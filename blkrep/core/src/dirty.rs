//! Bitmaps over the extents of a group's volumes.
//!
//! Owns [`Bits`], a counted bitmap over words that may lie in memory of any kind, and
//! [`MapLayout`], which gives every extent of every volume its bit. Extents enter and leave.
//! Never persists anything: that is `persist`.

use blkrep_types::{ByteLen, Extent, ExtentIndex, ExtentSize, VolumeIndex};

/// Words of bits in one sector of a map file.
pub const SECTOR_WORDS: usize = 58;

/// Bits in one sector of a map file.
pub const SECTOR_BITS: u64 = SECTOR_WORDS as u64 * 64;

/// Memory for bits.
pub trait Words {
    /// Number of words.
    fn count(&self) -> usize;
    /// The word at `index`.
    fn load(&self, index: usize) -> u64;
    /// Changes the word at `index`.
    fn store(&mut self, index: usize, word: u64);
}

impl Words for Vec<u64> {
    fn count(&self) -> usize {
        self.len()
    }

    fn load(&self, index: usize) -> u64 {
        self[index]
    }

    fn store(&mut self, index: usize, word: u64) {
        self[index] = word;
    }
}

fn word_of(bit: u64) -> usize {
    usize::try_from(bit / 64).expect("64-bit platform")
}

/// The bits of one word from `first` to `last`, both included and both in it.
const fn mask(first: u64, last: u64) -> u64 {
    (u64::MAX << (first % 64)) & (u64::MAX >> (63 - last % 64))
}

/// A bitmap that knows how many bits are set.
#[derive(Debug, Clone)]
pub struct Bits<W = Vec<u64>> {
    words: W,
    ones: u64,
}

impl Bits {
    /// `len` bits, all clear.
    #[must_use]
    pub fn clear_of(len: u64) -> Self {
        Self {
            words: vec![0; word_of(len.div_ceil(64) * 64)],
            ones: 0,
        }
    }
}

impl<W: Words> Bits<W> {
    /// The bits that `words` hold.
    #[must_use]
    pub fn new(words: W) -> Self {
        let ones = (0..words.count())
            .map(|index| u64::from(words.load(index).count_ones()))
            .sum();
        Self { words, ones }
    }

    /// How many bits are set.
    #[must_use]
    pub const fn ones(&self) -> u64 {
        self.ones
    }

    /// Number of words.
    #[must_use]
    pub fn word_count(&self) -> usize {
        self.words.count()
    }

    /// The word at `index`.
    #[must_use]
    pub fn word(&self, index: usize) -> u64 {
        self.words.load(index)
    }

    /// Replaces the word at `index`; true if it changed.
    pub fn set_word(&mut self, index: usize, word: u64) -> bool {
        let old = self.words.load(index);
        if old == word {
            return false;
        }
        self.ones = self.ones - u64::from(old.count_ones()) + u64::from(word.count_ones());
        self.words.store(index, word);
        true
    }

    /// True if `bit` is set.
    #[must_use]
    pub fn test(&self, bit: u64) -> bool {
        self.words.load(word_of(bit)) & mask(bit, bit) != 0
    }

    fn change(&mut self, first: u64, last: u64, set: bool) -> u64 {
        assert!(first <= last, "a range of bits is not empty");
        let before = self.ones;
        for index in word_of(first)..=word_of(last) {
            let base = u64::try_from(index).expect("64-bit platform") * 64;
            let part = mask(first.max(base) - base, last.min(base + 63) - base);
            let word = self.words.load(index);
            self.set_word(index, if set { word | part } else { word & !part });
        }
        before.abs_diff(self.ones)
    }

    /// Sets the bits from `first` to `last`, both included; how many were clear.
    pub fn set(&mut self, first: u64, last: u64) -> u64 {
        self.change(first, last, true)
    }

    /// Clears the bits from `first` to `last`, both included; how many were set.
    pub fn clear(&mut self, first: u64, last: u64) -> u64 {
        self.change(first, last, false)
    }

    /// Clears every bit.
    pub fn clear_all(&mut self) {
        for index in 0..self.words.count() {
            self.set_word(index, 0);
        }
    }

    /// The first set bit at or after `from`.
    #[must_use]
    pub fn next(&self, from: u64) -> Option<u64> {
        if self.ones == 0 {
            return None;
        }
        let first = word_of(from);
        (first..self.words.count()).find_map(|index| {
            let mut word = self.words.load(index);
            if index == first {
                word &= u64::MAX << (from % 64);
            }
            let base = u64::try_from(index).expect("64-bit platform") * 64;
            (word != 0).then(|| base + u64::from(word.trailing_zeros()))
        })
    }

    /// The first set bit at or after `from`, or from the start if there is none.
    #[must_use]
    pub fn next_around(&self, from: u64) -> Option<u64> {
        self.next(from).or_else(|| self.next(0))
    }
}

#[derive(Debug, Clone, Copy)]
struct Part {
    len: ByteLen,
    size: ExtentSize,
    first: u64,
    bits: u64,
}

/// Which bit stands for which extent: the volumes of a group one after the other, each from the
/// start of a sector of the map file.
#[derive(Debug, Clone)]
pub struct MapLayout {
    parts: Vec<Part>,
    bits: u64,
}

impl MapLayout {
    /// The layout for volumes of these lengths, each with its grain.
    #[must_use]
    pub fn new(volumes: impl IntoIterator<Item = (ByteLen, ExtentSize)>) -> Self {
        let mut first = 0;
        let parts = volumes
            .into_iter()
            .map(|(len, size)| {
                let part = Part {
                    len,
                    size,
                    first,
                    bits: size.count(len),
                };
                first += part.bits.div_ceil(SECTOR_BITS).max(1) * SECTOR_BITS;
                part
            })
            .collect();
        Self { parts, bits: first }
    }

    /// Number of bits, those between volumes included.
    #[must_use]
    pub const fn bits(&self) -> u64 {
        self.bits
    }

    /// Number of sectors in a map file.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.bits / SECTOR_BITS
    }

    /// Number of words.
    #[must_use]
    pub fn words(&self) -> usize {
        word_of(self.bits)
    }

    /// Number of volumes.
    #[must_use]
    pub fn volumes(&self) -> usize {
        self.parts.len()
    }

    /// First and last bit of what `extent` touches.
    ///
    /// # Panics
    /// If the extent is not within the volume.
    #[must_use]
    pub fn bits_of(&self, volume: VolumeIndex, extent: Extent) -> (u64, u64) {
        let part = &self.parts[volume.as_usize()];
        assert!(
            extent.end().get() <= part.len.get(),
            "an extent is within its volume"
        );
        let (first, last) = part.size.touched(extent);
        (part.first + first.get(), part.first + last.get())
    }

    /// First and last bit of a volume.
    #[must_use]
    pub fn volume_bits(&self, volume: VolumeIndex) -> (u64, u64) {
        let part = &self.parts[volume.as_usize()];
        (part.first, part.first + part.bits - 1)
    }

    /// The grain of a volume.
    #[must_use]
    pub fn size(&self, volume: VolumeIndex) -> ExtentSize {
        self.parts[volume.as_usize()].size
    }

    /// The extent of a bit; `None` for one between volumes.
    #[must_use]
    pub fn locate(&self, bit: u64) -> Option<(VolumeIndex, Extent)> {
        let index = self.parts.partition_point(|part| part.first <= bit) - 1;
        let part = &self.parts[index];
        let extent = part
            .size
            .bytes_of(ExtentIndex::new(bit - part.first), part.len)?;
        let volume = VolumeIndex::new(u16::try_from(index).expect("few volumes"));
        Some((volume, extent))
    }

    /// Sets the bit of every extent.
    pub fn fill<W: Words>(&self, bits: &mut Bits<W>) {
        for part in &self.parts {
            bits.set(part.first, part.first + part.bits - 1);
        }
    }

    /// Clears what is between volumes, as bits read from a damaged file may have it set.
    pub fn trim<W: Words>(&self, bits: &mut Bits<W>) {
        for (index, part) in self.parts.iter().enumerate() {
            let end = self
                .parts
                .get(index + 1)
                .map_or(self.bits, |next| next.first);
            if part.first + part.bits < end {
                bits.clear(part.first + part.bits, end - 1);
            }
        }
    }

    /// Bytes of the extents whose bits are set; the last, shorter one of a volume counts whole.
    #[must_use]
    pub fn bytes<W: Words>(&self, bits: &Bits<W>) -> ByteLen {
        if let [part] = self.parts.as_slice() {
            return ByteLen::new((bits.ones() * part.size.get()).min(part.len.get()));
        }
        let sum = self.parts.iter().map(|part| {
            let words = word_of(part.first)..word_of(part.first + part.bits.next_multiple_of(64));
            let ones: u64 = words
                .map(|word| u64::from(bits.word(word).count_ones()))
                .sum();
            (ones * part.size.get()).min(part.len.get())
        });
        ByteLen::new(sum.sum())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use blkrep_types::ByteOffset;

    fn extent(offset: u64, len: u64) -> Extent {
        Extent::new(ByteOffset::new(offset), ByteLen::new(len)).unwrap()
    }

    #[test]
    fn ranges_over_word_borders_are_set_counted_found_and_cleared() {
        let mut bits = Bits::clear_of(300);
        assert_eq!(bits.set(60, 200), 141);
        assert_eq!(bits.set(0, 60), 60);
        assert_eq!(bits.ones(), 201);
        assert_eq!(bits.clear(1, 199), 199);
        assert_eq!((bits.next(1), bits.next(201)), (Some(200), None));
        assert_eq!(bits.next_around(201), Some(0));
        assert!(bits.test(200) && !bits.test(199));
    }

    #[test]
    fn each_volume_begins_at_a_sector_and_bits_between_volumes_mean_nothing() {
        let size = ExtentSize::DIRTY_DEFAULT;
        let layout = MapLayout::new([(ByteLen::new(65536 * 3 + 512), size); 2]);
        assert_eq!(layout.sectors(), 2);
        let second = VolumeIndex::new(1);
        assert_eq!(
            layout.bits_of(second, extent(65535, 2)),
            (SECTOR_BITS, SECTOR_BITS + 1)
        );
        assert_eq!(
            layout.locate(SECTOR_BITS + 3),
            Some((second, extent(196_608, 512)))
        );
        assert_eq!(layout.locate(SECTOR_BITS - 1), None);
        let mut bits = Bits::new(vec![u64::MAX; layout.words()]);
        layout.trim(&mut bits);
        let mut full = Bits::clear_of(layout.bits());
        layout.fill(&mut full);
        assert_eq!((bits.ones(), full.ones()), (8, 8));
        assert_eq!(layout.bytes(&full), ByteLen::new(2 * (65536 * 3 + 512)));
    }
}
