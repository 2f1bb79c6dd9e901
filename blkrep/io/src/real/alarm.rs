//! The ring's alarm clock.
//!
//! Owns which alarm is set. A deadline enters; an entry for the ring leaves if no alarm rings soon
//! enough already. An alarm names an instant and not a span, so that a thread with a deadline goes
//! to sleep without reading the clock; a deadline that moves later leaves the old alarm to ring in
//! vain once. Never sleeps itself.

use blkrep_types::Nanos;
use io_uring::opcode;
use io_uring::squeue::Entry;
use io_uring::types::{TimeoutFlags, Timespec};
use std::time::Duration;

/// Names with this bit belong to alarms.
pub(super) const ALARM: u64 = 1 << 62;

/// The alarm of one ring.
#[derive(Debug)]
pub(super) struct Alarm {
    /// The alarm that rings first, if one is set: when, and its name.
    set: Option<(Nanos, u64)>,
    made: u64,
    /// The kernel reads this when the entry is submitted.
    time: Box<Timespec>,
}

impl Alarm {
    pub(super) fn new() -> Self {
        Self {
            set: None,
            made: 0,
            time: Box::new(Timespec::new()),
        }
    }

    /// What must be submitted, before anything else is asked of this alarm, for the ring to answer
    /// at `deadline`.
    pub(super) fn at(&mut self, deadline: Nanos) -> Option<Entry> {
        if self.set.is_some_and(|(at, _)| at <= deadline) {
            return None;
        }
        self.made = (self.made + 1) & (ALARM - 1);
        let name = ALARM | self.made;
        self.set = Some((deadline, name));
        // The monotonic clock's zero is the kernel's.
        *self.time = Timespec::from(Duration::from_nanos(deadline.get()));
        let entry = opcode::Timeout::new(&raw const *self.time);
        Some(entry.flags(TimeoutFlags::ABS).build().user_data(name))
    }

    /// An alarm rang.
    pub(super) fn rang(&mut self, name: u64) {
        if self.set.is_some_and(|(_, set)| set == name) {
            self.set = None;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_is_set_only_if_none_rings_soon_enough() {
        let mut alarm = Alarm::new();
        let first = alarm.at(Nanos::new(50)).unwrap().get_user_data();
        assert!(alarm.at(Nanos::new(50)).is_none());
        assert!(alarm.at(Nanos::new(80)).is_none());
        let second = alarm.at(Nanos::new(20)).unwrap().get_user_data();
        assert_ne!(first, second);
        alarm.rang(second);
        assert!(alarm.at(Nanos::new(80)).is_some());
        alarm.rang(first);
        assert!(
            alarm.at(Nanos::new(80)).is_none(),
            "an older alarm is not the one that is set"
        );
    }
}
