//! Ranges of bytes that cannot be empty or overflow, and the grid of a dirty map.

use crate::limits::GROUP_EXTENTS_MAX;
use crate::{ByteLen, ByteOffset};
use serde::{Deserialize, Serialize};

/// A range or grid that is not legal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExtentError {
    /// A range of no bytes.
    #[error("range at {0} is empty")]
    Empty(u64),
    /// A range past the end of the address space.
    #[error("range at {offset} of {len} bytes overflows")]
    Overflow {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// An extent size outside the grid's limits.
    #[error("extent size {0} is not a power of two from 4KiB to 1MiB")]
    Size(u64),
}

/// A non-empty range of bytes whose end does not overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extent {
    offset: u64,
    len: u64,
}

impl Extent {
    /// The range of `len` bytes from `offset`.
    ///
    /// # Errors
    /// `len` is zero, or the end is past 2^63 bytes (what a kernel offset can hold).
    pub fn new(offset: ByteOffset, len: ByteLen) -> Result<Self, ExtentError> {
        let (offset, len) = (offset.get(), len.get());
        if len == 0 {
            return Err(ExtentError::Empty(offset));
        }
        match offset.checked_add(len) {
            Some(end) if end <= i64::MAX as u64 => Ok(Self { offset, len }),
            _ => Err(ExtentError::Overflow { offset, len }),
        }
    }

    /// First byte.
    #[must_use]
    pub const fn offset(self) -> ByteOffset {
        ByteOffset::new(self.offset)
    }

    /// Length in bytes; never zero.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub const fn len(self) -> ByteLen {
        ByteLen::new(self.len)
    }

    /// The byte after the last.
    #[must_use]
    pub const fn end(self) -> ByteOffset {
        ByteOffset::new(self.offset + self.len)
    }

    /// True if the two share a byte.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.offset < other.offset + other.len && other.offset < self.offset + self.len
    }

    /// True if `other` lies wholly within.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.offset <= other.offset && other.offset + other.len <= self.offset + self.len
    }

    /// The shared part, if any.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        let offset = self.offset.max(other.offset);
        let end = (self.offset + self.len).min(other.offset + other.len);
        (offset < end).then(|| Self {
            offset,
            len: end - offset,
        })
    }
}

/// The index of one extent of a dirty map or one region of an intent map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExtentIndex(u64);

impl ExtentIndex {
    /// The `index`-th extent.
    #[must_use]
    pub const fn new(index: u64) -> Self {
        Self(index)
    }

    /// Its number, from zero.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// The grain of a map: a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct ExtentSize {
    shift: u8,
}

impl ExtentSize {
    /// The default grain of a dirty map: 64 KiB.
    pub const DIRTY_DEFAULT: Self = Self { shift: 16 };
    /// The grain of an intent map: 4 MiB, so that a terabyte has 262,144 regions (32 KiB of bits).
    pub const INTENT: Self = Self { shift: 22 };

    /// Size in bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        1 << self.shift
    }

    /// How many extents cover `len` bytes.
    #[must_use]
    pub const fn count(self, len: ByteLen) -> u64 {
        len.get().div_ceil(1 << self.shift)
    }

    /// True if a map of volumes of these lengths, each with its grain, is within
    /// [`GROUP_EXTENTS_MAX`].
    #[must_use]
    pub fn fit_a_map(volumes: impl IntoIterator<Item = (ByteLen, Self)>) -> bool {
        let counts = volumes.into_iter().map(|(len, size)| size.count(len));
        counts.fold(0, u64::saturating_add) <= GROUP_EXTENTS_MAX
    }

    /// First and last index that `extent` touches.
    #[must_use]
    pub const fn touched(self, extent: Extent) -> (ExtentIndex, ExtentIndex) {
        (
            ExtentIndex(extent.offset >> self.shift),
            ExtentIndex((extent.offset + extent.len - 1) >> self.shift),
        )
    }

    /// The bytes of the extent at `index`, cut off at `volume_len`; `None` past the end.
    #[must_use]
    pub fn bytes_of(self, index: ExtentIndex, volume_len: ByteLen) -> Option<Extent> {
        let offset = index.0.checked_mul(self.get())?;
        let end = offset.checked_add(self.get())?.min(volume_len.get());
        (offset < end).then(|| Extent {
            offset,
            len: end - offset,
        })
    }
}

impl TryFrom<u64> for ExtentSize {
    type Error = ExtentError;

    fn try_from(bytes: u64) -> Result<Self, ExtentError> {
        if bytes.is_power_of_two() && (1 << 12..=1 << 20).contains(&bytes) {
            let shift = u8::try_from(bytes.trailing_zeros()).expect("below 64");
            Ok(Self { shift })
        } else {
            Err(ExtentError::Size(bytes))
        }
    }
}

impl From<ExtentSize> for u64 {
    fn from(size: ExtentSize) -> Self {
        size.get()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn extent(offset: u64, len: u64) -> Extent {
        Extent::new(ByteOffset::new(offset), ByteLen::new(len)).unwrap()
    }

    #[test]
    fn empty_and_overflowing_ranges_are_refused() {
        assert!(Extent::new(ByteOffset::new(1), ByteLen::ZERO).is_err());
        assert!(Extent::new(ByteOffset::new(u64::MAX), ByteLen::new(2)).is_err());
        assert!(Extent::new(ByteOffset::new(i64::MAX as u64), ByteLen::new(1)).is_err());
    }

    #[test]
    fn overlap_is_symmetric_and_touching_is_not_overlap() {
        let a = extent(0, 512);
        assert!(!a.overlaps(extent(512, 512)) && !extent(512, 512).overlaps(a));
        assert!(a.overlaps(extent(511, 1)) && extent(511, 1).overlaps(a));
        assert_eq!(
            extent(0, 100).intersection(extent(50, 100)),
            Some(extent(50, 50))
        );
        assert_eq!(a.intersection(extent(512, 1)), None);
    }

    #[test]
    fn a_grid_covers_the_last_partial_extent() {
        let size = ExtentSize::try_from(65536).unwrap();
        let volume = ByteLen::new(65536 + 512);
        assert_eq!(size.count(volume), 2);
        assert_eq!(
            size.bytes_of(ExtentIndex::new(1), volume),
            Some(extent(65536, 512))
        );
        assert_eq!(size.bytes_of(ExtentIndex::new(2), volume), None);
        assert_eq!(
            size.touched(extent(65535, 2)),
            (ExtentIndex::new(0), ExtentIndex::new(1))
        );
        assert!(ExtentSize::try_from(2048).is_err() && ExtentSize::try_from(3 << 16).is_err());
    }
}
