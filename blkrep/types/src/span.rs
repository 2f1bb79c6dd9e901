//! Spans of time and rates as people write them.
//!
//! Owns the text forms `500ms`, `5s`, `10m`, `2h`, `7d` `100MiB/s` and `100Mbit/s`. Text enters, a checked value
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

/// Units of lines with their bits, largest first: powers of ten, as those who lay lines count.
const BIT_UNITS: [(&str, u64); 3] = [
    ("Gbit", 1_000_000_000),
    ("Mbit", 1_000_000),
    ("kbit", 1_000),
];

/// Reads `100MiB/s`, or `100Mbit/s`, as bytes per second.
///
/// # Errors
/// Text that is no size, or number of bits, followed by `/s`.
pub fn parse_rate(text: &str) -> Result<ByteLen, UnitError> {
    text.strip_suffix("/s")
        .and_then(|size| bits(size).or_else(|| parse_size(size).ok()))
        .ok_or_else(|| UnitError::Rate(text.to_owned()))
}

/// Reads `100Mbit` as bytes.
fn bits(text: &str) -> Option<ByteLen> {
    let units = BIT_UNITS.iter();
    let (number, unit) = units
        .filter_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))
        .next()?;
    let number: u64 = number.parse().ok()?;
    Some(ByteLen::new(number.checked_mul(*unit)? / 8))
}

/// Writes bytes per second as [`parse_rate`] reads them.
#[must_use]
pub fn format_rate(bytes_per_second: ByteLen) -> String {
    let bytes = bytes_per_second.get();
    // What is whole in bits and not in KiB was written in bits.
    let whole = |(_, unit): &&(&str, u64)| bytes > 0 && bytes.is_multiple_of(unit / 8);
    match BIT_UNITS.iter().find(whole) {
        Some((name, unit)) if !bytes.is_multiple_of(1024) => {
            format!("{}{name}/s", bytes / (unit / 8))
        }
        _ => format!("{bytes_per_second}/s"),
    }
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
        for text in [
            "100MiB/s",
            "1GiB/s",
            "513B/s",
            "100Mbit/s",
            "1Gbit/s",
            "1544kbit/s",
        ] {
            assert_eq!(format_rate(parse_rate(text).unwrap()), text);
        }
        for wrong in [
            "",
            "100MiB",
            "/s",
            "fast/s",
            "1MiB/m",
            "100Mbit",
            "Mbit/s",
            "-1Mbit/s",
            "99999999999Gbit/s",
        ] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }
}
