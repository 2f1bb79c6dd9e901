//! The target's part of the dirty map: extents in which it knows that it differs.

use crate::dirty::{Bits, MapLayout, SECTOR_WORDS};
use blkrep_types::{ByteLen, Extent, VolumeIndex};

/// How the part is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartKind {
    /// Nothing differs.
    Empty,
    /// What the bits say.
    Map,
    /// Anything may.
    Everything,
}

/// The part, in memory.
#[derive(Debug, Clone)]
pub struct Part {
    layout: MapLayout,
    bits: Bits,
    kind: PartKind,
}

impl Part {
    /// Nothing differs.
    #[must_use]
    pub fn empty(layout: MapLayout) -> Self {
        let bits = Bits::clear_of(layout.bits());
        Self {
            layout,
            bits,
            kind: PartKind::Empty,
        }
    }

    /// Anything may differ.
    #[must_use]
    pub fn everything(layout: MapLayout) -> Self {
        let mut part = Self::empty(layout);
        part.set_everything();
        part
    }

    /// What was read from a map file: the bits of each sector, `None` for one that was not good.
    /// True if all of them were.
    pub fn read<'a>(
        layout: MapLayout,
        sectors: impl Iterator<Item = Option<&'a [u8]>>,
    ) -> (Self, bool) {
        let mut part = Self::empty(layout);
        part.kind = PartKind::Map;
        let mut whole = true;
        let mut read = 0;
        for (sector, bytes) in sectors.enumerate() {
            read = sector + 1;
            whole &= bytes.is_some();
            for word in 0..SECTOR_WORDS {
                let index = sector * SECTOR_WORDS + word;
                if index >= part.bits.word_count() {
                    break;
                }
                let bits = bytes.and_then(|bytes| bytes.get(word * 8..word * 8 + 8));
                let bits = bits.map_or(u64::MAX, |bits| {
                    u64::from_le_bytes(bits.try_into().expect("eight bytes"))
                });
                part.bits.set_word(index, bits);
            }
        }
        assert_eq!(
            read as u64,
            part.layout.sectors(),
            "every sector is accounted for"
        );
        part.layout.trim(&mut part.bits);
        (part, whole)
    }

    /// The bits of one sector, as its file has them.
    #[must_use]
    pub fn sector(&self, sector: u64) -> [u8; SECTOR_WORDS * 8] {
        let mut bytes = [0; SECTOR_WORDS * 8];
        let first = usize::try_from(sector).expect("64-bit platform") * SECTOR_WORDS;
        for (word, into) in bytes.chunks_exact_mut(8).enumerate() {
            if first + word < self.bits.word_count() {
                into.copy_from_slice(&self.bits.word(first + word).to_le_bytes());
            }
        }
        bytes
    }

    /// How it is recorded.
    #[must_use]
    pub const fn kind(&self) -> PartKind {
        self.kind
    }

    /// Which bit stands for which extent.
    #[must_use]
    pub const fn layout(&self) -> &MapLayout {
        &self.layout
    }

    /// The bits; all set if anything may differ.
    #[must_use]
    pub const fn bits(&self) -> &Bits {
        &self.bits
    }

    /// Bytes in extents that may differ.
    #[must_use]
    pub fn bytes(&self) -> ByteLen {
        self.layout.bytes(&self.bits)
    }

    /// True if nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kind == PartKind::Empty
    }

    /// The extents that may differ, one a bit.
    #[must_use]
    pub fn extents(&self) -> Vec<(VolumeIndex, Extent)> {
        let mut extents = Vec::new();
        let mut from = 0;
        while let Some(bit) = self.bits.next(from) {
            from = bit + 1;
            extents.extend(self.layout.locate(bit));
        }
        extents
    }

    /// `extent` differs. True if that was not known.
    pub fn set(&mut self, volume: VolumeIndex, extent: Extent) -> bool {
        let (first, last) = self.layout.bits_of(volume, extent);
        let more = self.bits.set(first, last) > 0;
        if self.kind == PartKind::Empty {
            self.kind = PartKind::Map;
        }
        more
    }

    /// True if part of `extent` may differ.
    #[must_use]
    pub fn touches(&self, volume: VolumeIndex, extent: Extent) -> bool {
        let (first, last) = self.layout.bits_of(volume, extent);
        self.bits.next(first).is_some_and(|bit| bit <= last)
    }

    /// Everything that differs in `other`, of the same layout, differs here too.
    pub fn merge(&mut self, other: &Self) {
        match (self.kind, other.kind) {
            (_, PartKind::Empty) | (PartKind::Everything, _) => {}
            (_, PartKind::Everything) => self.set_everything(),
            (PartKind::Empty | PartKind::Map, PartKind::Map) => {
                for index in 0..self.bits.word_count() {
                    let word = self.bits.word(index) | other.bits.word(index);
                    self.bits.set_word(index, word);
                }
                self.kind = PartKind::Map;
            }
        }
    }

    /// Anything may differ.
    pub fn set_everything(&mut self) {
        self.layout.fill(&mut self.bits);
        self.kind = PartKind::Everything;
    }

    /// Any extent of `volume` may differ.
    pub fn set_volume(&mut self, volume: VolumeIndex) {
        let (first, last) = self.layout.volume_bits(volume);
        self.bits.set(first, last);
        if self.kind == PartKind::Empty {
            self.kind = PartKind::Map;
        }
    }

    /// Nothing differs any more.
    pub fn clear(&mut self) {
        self.bits.clear_all();
        self.kind = PartKind::Empty;
    }
}
