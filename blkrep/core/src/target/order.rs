//! The order of batches that come over several connections.
//!
//! Owns the lap of the stream and the number of the batch whose turn it is. Places enter, turns leave.
//! Never sees a record: that each of them is the next one is looked at again when the batch is taken.

use blkrep_types::planted;
use std::cmp::Ordering;

/// What is done with a batch now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It is the next one.
    Now,
    /// Others come before it.
    Later,
    /// It is of a lap that is over, or broken: it comes again.
    Stale,
    /// Another one had this place.
    Repeated,
}

/// The order of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Order {
    lap: u32,
    next: u64,
    /// A batch of the lap is lost.
    broken: bool,
}

impl Order {
    /// The source is in this lap: the laps before are over.
    pub fn reach(&mut self, lap: u32) {
        if lap > self.lap {
            *self = Self {
                lap,
                ..Self::default()
            };
        }
    }

    /// What is done with a batch. One of a later lap ends the laps before.
    pub fn turn(&mut self, lap: u32, batch: u64) -> Turn {
        self.reach(lap);
        if lap < self.lap || self.broken {
            return Turn::Stale;
        }
        if planted!(BatchesAsTheyCome) {
            return Turn::Now;
        }
        match batch.cmp(&self.next) {
            Ordering::Equal => Turn::Now,
            Ordering::Greater => Turn::Later,
            Ordering::Less => Turn::Repeated,
        }
    }

    /// The batch whose turn it was is taken whole.
    pub const fn taken(&mut self) {
        self.next += 1;
    }

    /// A batch of this lap may be lost: nothing more of it is taken.
    pub const fn lose(&mut self) {
        self.broken = true;
    }

    /// The lap.
    #[must_use]
    pub const fn lap(&self) -> u32 {
        self.lap
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn batches_have_their_turn_in_order_whenever_they_come() {
        let mut order = Order::default();
        assert_eq!(order.turn(0, 1), Turn::Later);
        assert_eq!(order.turn(0, 0), Turn::Now);
        assert_eq!(order.turn(0, 0), Turn::Now, "until it is taken whole");
        order.taken();
        assert_eq!(order.turn(0, 1), Turn::Now);
        order.taken();
        assert_eq!(order.turn(0, 1), Turn::Repeated);
        assert_eq!(order.turn(0, 3), Turn::Later);
    }

    #[test]
    fn a_lap_that_the_source_speaks_of_ends_those_before() {
        let mut order = Order::default();
        order.reach(2);
        assert_eq!(order.turn(1, 0), Turn::Stale);
        assert_eq!(order.turn(2, 0), Turn::Now);
        order.taken();
        order.reach(1);
        order.reach(2);
        assert_eq!(order.turn(2, 1), Turn::Now, "it goes on where it was");
    }

    #[test]
    fn a_lap_that_lost_a_batch_is_over_and_the_next_one_begins_anew() {
        let mut order = Order::default();
        order.taken();
        order.lose();
        assert_eq!(order.lap(), 0);
        assert_eq!(order.turn(0, 1), Turn::Stale);
        assert_eq!(order.turn(0, 0), Turn::Stale);
        assert_eq!(order.turn(1, 2), Turn::Later);
        assert_eq!(order.turn(0, 2), Turn::Stale, "a straggler");
        assert_eq!(order.turn(1, 0), Turn::Now);
        order.taken();
        order.lose();
        assert_eq!(order.turn(1, 1), Turn::Stale);
        assert_eq!(order.turn(3, 0), Turn::Now, "a lap may be without a batch");
    }
}
