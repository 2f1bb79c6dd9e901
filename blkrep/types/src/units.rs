//! Byte units: positions, lengths and block sizes as different types.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A value that is not a legal unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnitError {
    /// A block size other than 512 or 4096.
    #[error("block size {0} is not supported: use 512 or 4096")]
    BlockSize(u64),
    /// Text that is not a size.
    #[error(
        "'{0}' is not a size: use a whole number with an optional unit, such as 64KiB or 10GiB"
    )]
    Size(String),
    /// Text that is not a rate.
    #[error("'{0}' is not a rate: use bytes or bits a second, such as 100MiB/s or 100Mbit/s")]
    Rate(String),
    /// Text that is not a span of time.
    #[error(
        "'{0}' is not a time: use a whole number with a unit, such as 500ms, 5s, 10m, 2h or 7d"
    )]
    Span(String),
}

/// A position in a volume, backing or file, in bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ByteOffset(u64);

impl ByteOffset {
    /// The position `bytes` from the start.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The position as a number of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A length in bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ByteLen(u64);

impl ByteLen {
    /// No bytes.
    pub const ZERO: Self = Self(0);

    /// A length of `bytes`.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The length as a number of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The length as a `usize`; every platform blkrep runs on has 64-bit addresses.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).expect("64-bit platform")
    }
}

impl fmt::Display for ByteLen {
    /// Writes the largest binary unit that divides the length exactly, as `parse_size` reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] = [
            (1 << 40, "TiB"),
            (1 << 30, "GiB"),
            (1 << 20, "MiB"),
            (1 << 10, "KiB"),
        ];
        for (bytes, unit) in UNITS {
            if self.0 >= bytes && self.0.is_multiple_of(bytes) {
                return write!(f, "{}{unit}", self.0 / bytes);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// The logical block size of a volume: the grain of its requests, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub enum BlockSize {
    /// 512 bytes.
    B512,
    /// 4096 bytes.
    B4096,
}

impl BlockSize {
    /// The size in bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }

    /// The size as a power of two.
    #[must_use]
    pub const fn shift(self) -> u8 {
        match self {
            Self::B512 => 9,
            Self::B4096 => 12,
        }
    }
}

impl TryFrom<u64> for BlockSize {
    type Error = UnitError;

    fn try_from(bytes: u64) -> Result<Self, UnitError> {
        match bytes {
            512 => Ok(Self::B512),
            4096 => Ok(Self::B4096),
            other => Err(UnitError::BlockSize(other)),
        }
    }
}

impl From<BlockSize> for u64 {
    fn from(size: BlockSize) -> Self {
        size.get()
    }
}

/// Reads `64KiB`, `10GiB`, `1TiB`, `512`, `512B`; binary units only.
///
/// # Errors
/// Text that is no size, or one over 2^64 bytes.
pub fn parse_size(text: &str) -> Result<ByteLen, UnitError> {
    let wrong = || UnitError::Size(text.to_owned());
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" | "K" => 10,
        "MiB" | "M" => 20,
        "GiB" | "G" => 30,
        "TiB" | "T" => 40,
        "PiB" | "P" => 50,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(1 << shift)
        .map(ByteLen)
        .ok_or_else(wrong)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_printed() {
        for text in ["64KiB", "10GiB", "1TiB", "513B", "0B", "3MiB"] {
            assert_eq!(parse_size(text).unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "KiB",
            "1.5GiB",
            "-1",
            "10 apples",
            "99999999999999999999",
            "20000000TiB",
        ] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_two_block_sizes_are_legal() {
        assert_eq!(BlockSize::try_from(512), Ok(BlockSize::B512));
        assert_eq!(BlockSize::try_from(4096), Ok(BlockSize::B4096));
        assert!(BlockSize::try_from(1024).is_err());
    }
}
