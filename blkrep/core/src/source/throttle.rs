//! Slowing writers before the log runs over.
//!
//! Owns who waits for its delay, and how long that is: nothing while the log has room, more the fuller it is. Writes
//! that have everything but their place in the order enter, in the order in which they came they leave. Never delays
//! where that cannot help: if nothing is drained, or no link is kept in the log.

use super::request::Stage;
use super::{GroupEvent, RequestId, SourceGroup, WriteLog};
use crate::dirty::Words;
use blkrep_types::{Nanos, planted};
use std::collections::VecDeque;
use std::time::Duration;

/// Parts of the log that are told apart.
const PERMILLE: u64 = 1000;

/// That writers are slowed is told this often at most.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// When and how much writers are slowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttle {
    /// Always, by the longest delay; else while the log is full enough.
    pub always: bool,
    /// It begins when so much of the log is full, in percent.
    pub start: u8,
    /// It ends when no more than this is. Below `start`.
    pub stop: u8,
    /// The longest that a write is delayed.
    pub delay_max: Duration,
}

/// What a status shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ThrottleStatus {
    /// What a write is delayed by now.
    pub delay: Duration,
    /// Writes that were, since the group is open.
    pub delayed: u64,
}

/// Who waits.
#[derive(Debug, Default)]
pub(super) struct Throttling {
    throttle: Option<Throttle>,
    /// The log was full enough, and is not empty enough yet.
    active: bool,
    /// In the order in which they came, with when.
    waiters: VecDeque<(Nanos, RequestId)>,
    delayed: u64,
    told_at: Option<Nanos>,
    /// That it began was told.
    told: bool,
}

impl Throttling {
    pub(super) fn with_capacity(throttle: Option<Throttle>, capacity: usize) -> Self {
        Self {
            throttle,
            waiters: VecDeque::with_capacity(capacity),
            ..Self::default()
        }
    }

    /// Takes out those whose device goes away.
    pub(super) fn retain(&mut self, mut stays: impl FnMut(&RequestId) -> bool) {
        self.waiters.retain(|(_, id)| stays(id));
    }
}

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// Slows writers so from now on; `None`: never.
    pub fn set_throttle(&mut self, throttle: Option<Throttle>) {
        self.throttling.throttle = throttle;
        self.slow_down();
        self.let_delayed_go();
    }

    /// What a status shows.
    #[must_use]
    pub fn throttle_status(&self) -> ThrottleStatus {
        ThrottleStatus {
            delay: self.delay(),
            delayed: self.throttling.delayed,
        }
    }

    /// A write's intent is durable: it is given its place at once, or after its delay.
    pub(super) fn intended(&mut self, id: RequestId) {
        self.slow_down();
        if self.throttling.waiters.is_empty() && self.delay().is_zero() {
            return self.enter_order(id);
        }
        self.requests.get_mut(id).become_stage(Stage::Queued);
        self.throttling.delayed += 1;
        self.throttling.waiters.push_back((self.now, id));
    }

    /// Gives places to those whose delay is over.
    pub(super) fn let_delayed_go(&mut self) {
        while let Some((since, id)) = self.throttling.waiters.front().copied() {
            self.slow_down();
            let delay = self.delay();
            let stuck = planted!(DelayedForGood) && delay.is_zero();
            if self.now.since(since) < delay || stuck {
                return;
            }
            self.throttling.waiters.pop_front();
            self.enter_order(id);
        }
    }

    /// When the first delay is over.
    pub(super) fn delay_ends(&self) -> Option<Nanos> {
        let (since, _) = self.throttling.waiters.front()?;
        Some(since.after(self.delay()))
    }

    /// How much of the log is full, in memory and on disk, in thousandths; nothing if emptying it depends on more
    /// than time.
    fn fill(&self) -> u64 {
        let drains = self.slowest().is_some_and(|index| self.drains(index));
        if !drains {
            return 0;
        }
        let queue = self.queue_status();
        let disk_max = queue.disk_max.filter(|_| queue.failed.is_none());
        let disk = disk_max.map_or((0, 0), |most| (queue.disk.get(), most.get()));
        let used = queue.memory.0.get().saturating_add(disk.0);
        let capacity = queue.memory.1.get().saturating_add(disk.1);
        used.saturating_mul(PERMILLE) / capacity.max(1)
    }

    /// Begins or ends to slow writers, as the log fills and empties.
    fn slow_down(&mut self) {
        let Some(throttle) = self.throttling.throttle else {
            return self.slowed(false);
        };
        let fill = self.fill();
        let level = match self.throttling.active {
            true => throttle.stop,
            false => throttle.start,
        };
        self.slowed(!throttle.always && fill > u64::from(level) * 10);
    }

    fn slowed(&mut self, active: bool) {
        if std::mem::replace(&mut self.throttling.active, active) == active {
            return;
        }
        let lately = self.throttling.told_at;
        let lately = lately.is_some_and(|at| self.now.since(at) < TOLD_EVERY);
        let tell = if active {
            !lately
        } else {
            self.throttling.told
        };
        if active && tell {
            self.throttling.told_at = Some(self.now);
        }
        self.throttling.told = active && tell;
        if tell {
            self.event(GroupEvent::Slowed { active });
        }
    }

    /// What a write is delayed by now.
    fn delay(&self) -> Duration {
        let Some(throttle) = self.throttling.throttle.filter(|_| self.has_links()) else {
            return Duration::ZERO;
        };
        if throttle.always {
            return throttle.delay_max;
        }
        if !self.throttling.active {
            return Duration::ZERO;
        }
        let stop = u64::from(throttle.stop) * 10;
        let above = self.fill().clamp(stop, PERMILLE) - stop;
        let part = u32::try_from(above).unwrap_or(u32::MAX);
        let whole = u32::try_from(PERMILLE - stop).unwrap_or(u32::MAX).max(1);
        throttle.delay_max * part / whole
    }
}
