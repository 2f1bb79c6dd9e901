//! Identity of data and of writes.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The place of a write in its group's order. Zero names no write: "before the first".
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seq(u64);

impl Seq {
    /// Before the first write.
    pub const ZERO: Self = Self(0);

    /// The `seq`-th write.
    #[must_use]
    pub const fn new(seq: u64) -> Self {
        Self(seq)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The next place.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(
            self.0
                .checked_add(1)
                .expect("2^64 writes outlive any incarnation"),
        )
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One run of a source's engine. Any start other than after a clean stop opens a new one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Incarnation(u64);

impl Incarnation {
    /// The `run`-th run; the first is 1, 0 means none.
    #[must_use]
    pub const fn new(run: u64) -> Self {
        Self(run)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The next run.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Identity of a group's data history; a new one starts at every promotion.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation([u8; 16]);

impl Generation {
    /// No data history yet.
    pub const NONE: Self = Self([0; 16]);

    /// The generation with these random bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Reads 32 hexadecimal digits, as `Display` writes them.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.is_ascii() {
            return None;
        }
        let mut bytes = [0; 16];
        for (byte, at) in bytes.iter_mut().zip((0..32).step_by(2)) {
            *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Generation {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Generation {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_hex(&text)
            .ok_or_else(|| serde::de::Error::custom("a generation is 32 hexadecimal digits"))
    }
}

/// The full name of a write. No name is ever used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WriteName {
    /// The data history it belongs to.
    pub generation: Generation,
    /// The run of the source that gave it its place.
    pub incarnation: Incarnation,
    /// Its place.
    pub seq: Seq,
}

impl WriteName {
    /// The name of no write, of no history.
    pub const NONE: Self = Self {
        generation: Generation::NONE,
        incarnation: Incarnation(0),
        seq: Seq::ZERO,
    };
}

impl fmt::Display for WriteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}",
            self.generation,
            self.incarnation.get(),
            self.seq
        )
    }
}

/// A volume's place in its group: the same number on source and target.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct VolumeIndex(u16);

impl VolumeIndex {
    /// The `index`-th volume of its group.
    #[must_use]
    pub const fn new(index: u16) -> Self {
        Self(index)
    }

    /// Its number, from zero.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Its number for indexing.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::from(self.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_read_as_it_is_printed() {
        let generation = Generation::from_bytes([0xab; 16]);
        assert_eq!(
            Generation::from_hex(&generation.to_string()),
            Some(generation)
        );
        assert_eq!(Generation::from_hex("zz"), None);
        assert_eq!(Generation::from_hex(&"é".repeat(16)), None);
    }

    #[test]
    fn order_of_places_is_numeric() {
        assert!(Seq::new(9) < Seq::new(10));
        assert_eq!(Seq::ZERO.next(), Seq::new(1));
    }
}
