//! The ring's alarm clock.
//!
//! Owns which alarms are set. A deadline enters; an entry for the ring leaves if no alarm rings soon
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

/// More alarms than a thread usually has set at once.
const SET_USUAL: usize = 16;

/// The alarms of one ring.
#[derive(Debug)]
pub(super) struct Alarm {
    /// Alarms that have not rung: when, and their names, the first to ring last. Each was set because
    /// none of the others rings soon enough, so they are few.
    set: Vec<(Nanos, u64)>,
    made: u64,
    /// The kernel reads this when the entry is submitted.
    time: Box<Timespec>,
}

impl Alarm {
    pub(super) fn new() -> Self {
        Self {
            set: Vec::with_capacity(SET_USUAL),
            made: 0,
            time: Box::new(Timespec::new()),
        }
    }

    /// What must be submitted, before anything else is asked of this alarm, for the ring to answer
    /// at `deadline`.
    pub(super) fn at(&mut self, deadline: Nanos) -> Option<Entry> {
        if self.set.last().is_some_and(|(at, _)| *at <= deadline) {
            return None;
        }
        self.made = (self.made + 1) & (ALARM - 1);
        let name = ALARM | self.made;
        self.set.push((deadline, name));
        // The monotonic clock's zero is the kernel's.
        *self.time = Timespec::from(Duration::from_nanos(deadline.get()));
        let entry = opcode::Timeout::new(&raw const *self.time);
        Some(entry.flags(TimeoutFlags::ABS).build().user_data(name))
    }

    /// An alarm rang.
    pub(super) fn rang(&mut self, name: u64) {
        self.set.retain(|(_, set)| *set != name);
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
        assert!(alarm.at(Nanos::new(80)).is_none(), "the first still rings");
        assert!(alarm.at(Nanos::new(40)).is_some());
        alarm.rang(first);
        assert!(
            alarm.at(Nanos::new(80)).is_none(),
            "an older alarm is not the only one that is set"
        );
    }
}
