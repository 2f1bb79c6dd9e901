//! Instants of the engines as times of day.
//!
//! Owns the one translation that people need: an engine's monotonic nanoseconds into a timestamp.

use blkrep_types::Nanos;
use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// The engines' clock now.
pub(super) fn now() -> Nanos {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the monotonic clock can be read");
    let seconds = u64::try_from(time.tv_sec()).expect("the clock began before now");
    let nanos = u64::try_from(time.tv_nsec()).expect("a part of a second");
    Nanos::new(seconds * 1_000_000_000 + nanos)
}

/// The clock on the wall: nanoseconds since 1970.
pub(super) fn since_1970() -> u64 {
    u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or_default()
}

/// When an engine's instant was.
pub(super) fn timestamp(at: Nanos) -> Timestamp {
    let ago = now().since(at);
    Timestamp::now()
        .checked_sub(ago)
        .unwrap_or(Timestamp::UNIX_EPOCH)
}
