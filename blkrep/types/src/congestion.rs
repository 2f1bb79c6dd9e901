//! Which congestion control a connection has.

use std::fmt;

/// Bytes of a name at most: what the kernel takes.
const NAME_BYTES_MAX: usize = 15;

/// The name of a congestion control, as the kernel knows it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CongestionName {
    bytes: [u8; NAME_BYTES_MAX],
    len: u8,
}

impl CongestionName {
    /// Checks and takes a name: letters, digits, '-' and '_'.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if name.is_empty() || !name.bytes().all(legal) {
            return None;
        }
        let mut bytes = [0; NAME_BYTES_MAX];
        bytes
            .get_mut(..name.len())?
            .copy_from_slice(name.as_bytes());
        let len = u8::try_from(name.len()).ok()?;
        Some(Self { bytes, len })
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl fmt::Display for CongestionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for CongestionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CongestionName({self})")
    }
}

/// What is wished for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Congestion {
    /// BBR where the kernel has it and there is a line to fill, else the system's.
    #[default]
    Auto,
    /// What the system gives every connection.
    System,
    /// This one.
    Named(CongestionName),
}

impl Congestion {
    const AUTO: &str = "auto";
    const SYSTEM: &str = "system";

    /// Reads a wish.
    ///
    /// # Errors
    /// A sentence that says what is legal.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            Self::AUTO => Ok(Self::Auto),
            Self::SYSTEM => Ok(Self::System),
            name => CongestionName::new(name).map(Self::Named).ok_or_else(|| {
                let name: String = name.chars().take(80).collect();
                format!(
                    "'{name}' is no name of a congestion control: 1 to {NAME_BYTES_MAX} letters, \
                     digits, '-' or '_'"
                )
            }),
        }
    }
}

impl fmt::Display for Congestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str(Self::AUTO),
            Self::System => f.write_str(Self::SYSTEM),
            Self::Named(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_reads_back_as_it_is_written() {
        for text in ["auto", "system", "bbr", "dctcp-reno", "a23456789012345"] {
            assert_eq!(Congestion::parse(text).unwrap().to_string(), text);
        }
        for wrong in ["", "b b", "../bbr", "a234567890123456", "bbr\0", "bbr\n"] {
            assert!(Congestion::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
