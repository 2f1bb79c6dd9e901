//! A host's clock: monotonic, and not quite as fast as the others.
//!
//! Owns how the world's time and a host's are turned into one another. Never goes back.

/// The rate of a clock that is right, in thousandths.
const TRUE: u32 = 1000;

/// One host's clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// The world's time at the last change, and the host's then.
    since: (u64, u64),
    /// How fast it goes, in thousandths of the world's clock.
    rate: u32,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            since: (0, 0),
            rate: TRUE,
        }
    }
}

impl Clock {
    /// The host's time at an instant of the world, not before the last change.
    pub(super) fn local(&self, world: u64) -> u64 {
        let passed = scale(world.saturating_sub(self.since.0), self.rate, TRUE);
        self.since.1.saturating_add(passed)
    }

    /// The first instant of the world at which the host's clock shows this time.
    pub(super) fn world(&self, local: u64) -> u64 {
        let Some(left) = local.checked_sub(self.since.1) else {
            return self.since.0;
        };
        let passed = scale(left, TRUE, self.rate);
        let early = u64::from(scale(passed, self.rate, TRUE) < left);
        self.since.0.saturating_add(passed).saturating_add(early)
    }

    /// From this instant of the world on, the clock goes at another rate.
    pub(super) fn set_rate(&mut self, world: u64, rate: u32) {
        assert!(rate > 0, "a clock never stands still");
        self.since = (world, self.local(world));
        self.rate = rate;
    }

    /// At this instant of the world, the clock leaps forward.
    pub(super) fn leap(&mut self, world: u64, nanos: u64) {
        self.since = (world, self.local(world).saturating_add(nanos));
    }
}

fn scale(number: u64, by: u32, of: u32) -> u64 {
    let scaled = u128::from(number) * u128::from(by) / u128::from(of);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_the_first_instant_that_shows_it() {
        for rate in [1, 7, 900, 999, 1000, 1001, 1100, 3000] {
            let mut clock = Clock::default();
            clock.set_rate(1_000_003, rate);
            for local in 1_000_003..1_000_403 {
                let at = clock.world(local);
                assert!(clock.local(at) >= local, "rate {rate}, {local}");
                assert!(at == 1_000_003 || clock.local(at - 1) < local);
            }
        }
    }

    #[test]
    fn a_clock_drifts_leaps_and_never_goes_back() {
        let mut clock = Clock::default();
        assert_eq!(clock.local(5_000), 5_000);
        clock.set_rate(5_000, 1100);
        assert_eq!(clock.local(6_000), 6_100);
        clock.leap(6_000, 50);
        assert_eq!(clock.local(6_000), 6_150);
        clock.set_rate(7_000, 900);
        assert_eq!((clock.local(7_000), clock.local(8_000)), (7_250, 8_150));
        assert_eq!(clock.world(u64::MAX), u64::MAX);
    }
}
