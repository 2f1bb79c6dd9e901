//! Spans of time and rates as people write them.
//!
//! Owns the text forms `500ms`, `5s`, `10m`, `2h`, `7d` and `100MiB/s`. Text enters, a checked value
//! leaves, and the other way round. Never reads a clock.

use crate::{ByteLen, UnitError, parse_size};
use std::time::Duration;

/// Units of time with their length in milliseconds, largest first.
const SPAN_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Reads `500ms`, `5s`, `10m`, `2h`, `7d`.
///
/// # Errors
/// Text that is no span of time: a bare number has no unit and is refused too.
pub fn parse_span(text: &str) -> Result<Duration, UnitError> {
    let wrong = || UnitError::Span(text.to_owned());
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let (_, millis) = SPAN_UNITS
        .iter()
        .find(|(name, _)| *name == unit.trim())
        .ok_or_else(wrong)?;
    number
        .checked_mul(*millis)
        .map(Duration::from_millis)
        .ok_or_else(wrong)
}

/// Writes the largest unit that divides the span exactly, as [`parse_span`] reads it. What is
/// shorter than a millisecond is cut off.
#[must_use]
pub fn format_span(span: Duration) -> String {
    let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    for (unit, length) in SPAN_UNITS {
        if millis >= length && millis.is_multiple_of(length) {
            return format!("{}{unit}", millis / length);
        }
    }
    "0s".to_owned()
}

/// Reads `100MiB/s` as bytes per second.
///
/// # Errors
/// Text that is no size followed by `/s`.
pub fn parse_rate(text: &str) -> Result<ByteLen, UnitError> {
    text.strip_suffix("/s")
        .and_then(|size| parse_size(size).ok())
        .ok_or_else(|| UnitError::Rate(text.to_owned()))
}

/// Writes bytes per second as [`parse_rate`] reads them.
#[must_use]
pub fn format_rate(bytes_per_second: ByteLen) -> String {
    format!("{bytes_per_second}/s")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_they_are_printed() {
        for text in ["500ms", "5s", "10m", "2h", "7d", "1500ms", "0s"] {
            assert_eq!(format_span(parse_span(text).unwrap()), text);
        }
        for wrong in ["", "5", "s", "-1s", "1.5s", "5 weeks", "99999999999999999d"] {
            assert!(parse_span(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates_are_read_as_they_are_printed() {
        for text in ["100MiB/s", "1GiB/s", "513B/s"] {
            assert_eq!(format_rate(parse_rate(text).unwrap()), text);
        }
        for wrong in ["", "100MiB", "/s", "fast/s", "1MiB/m"] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }
}
