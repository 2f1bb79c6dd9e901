//! A limit of bandwidth as people write it: bytes or bits a second, or a part of what a line carries.
//!
//! Owns the text forms `2MiB/s`, `100Mbit/s`, `70%` and `unlimited`, which are kept as they were meant. Never knows the line.

use crate::{Rate, UnitError, rate_of, rate_text};
use std::fmt;
use std::num::NonZeroU64;

/// A limit of bandwidth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Limit {
    /// None.
    #[default]
    Unlimited,
    /// Bytes a second.
    Rate(NonZeroU64),
    /// Of what the line carries, in percent: 1 to 100.
    Percent(u8),
}

impl Limit {
    /// Reads a limit.
    ///
    /// # Errors
    /// It is none, or nothing a second.
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        let Some(percent) = text.strip_suffix('%') else {
            return Ok(rate_of(text)?.map_or(Self::Unlimited, Self::Rate));
        };
        let percent = percent.parse().ok();
        let percent = percent.filter(|percent| (1..=100).contains(percent));
        percent
            .map(Self::Percent)
            .ok_or_else(|| UnitError::Rate(text.to_owned()))
    }

    /// Bytes a second on a line that carries so many. A part of a line of which nobody said what it carries is no limit:
    /// settings refuse that.
    #[must_use]
    pub fn of(self, line: Rate) -> Rate {
        match self {
            Self::Unlimited => None,
            Self::Rate(rate) => Some(rate),
            Self::Percent(percent) => {
                let part = u128::from(line?.get()) * u128::from(percent) / 100;
                NonZeroU64::new(u64::try_from(part).unwrap_or(u64::MAX).max(1))
            }
        }
    }

    /// It needs a line that it is a part of.
    #[must_use]
    pub const fn is_part(self) -> bool {
        matches!(self, Self::Percent(_))
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.write_str(&rate_text(None)),
            Self::Rate(rate) => f.write_str(&rate_text(Some(*rate))),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_kept_as_it_was_meant_and_holds_on_the_line_that_was_stated() {
        let line = rate_of("100Mbit/s").unwrap();
        for (text, bytes) in [
            ("unlimited", None),
            ("2MiB/s", Some(2 << 20)),
            ("8Mbit/s", Some(1_000_000)),
            ("70%", Some(8_750_000)),
            ("100%", Some(12_500_000)),
        ] {
            let limit = Limit::parse(text).unwrap();
            assert_eq!(limit.to_string(), text);
            assert_eq!(limit.of(line).map(NonZeroU64::get), bytes, "{text}");
        }
        let most = NonZeroU64::new(u64::MAX);
        assert_eq!(Limit::Percent(100).of(most), most, "no overflow");
    }

    #[test]
    fn what_is_no_part_of_a_line_is_refused() {
        for wrong in [
            "0%", "101%", "-1%", "1.5%", "%", "70 %", "70%/s", "0bit/s", "1bit/s",
        ] {
            assert!(Limit::parse(wrong).is_err(), "{wrong}");
        }
    }
}
