//! When a link may transmit.
//!
//! Owns sessions: spans of time in which a link's connection is there. Rules, and once a second what the clock on the
//! wall and the queue say, enter; whether the connection may be there leaves. Never reads a clock and knows no dates:
//! whoever asks says which of the planned starts has come.
//!
//! What holds, strongest first:
//!
//! 1. a schedule that is off holds nothing back;
//! 2. outside the window nothing is transmitted;
//! 3. before the first start nothing is transmitted;
//! 4. a session that runs goes on until its time or its bytes are used up, or, if it had a reason to start, until
//!    nothing is left to send;
//! 5. a session starts at a planned start, or as soon as the queue is long enough; with neither it starts with the
//!    window.

use blkrep_types::{ByteLen, Nanos};
use std::time::Duration;

/// What an operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    /// The master switch.
    pub on: bool,
    /// Sessions have planned starts.
    pub timed: bool,
    /// As long as this the queue starts a session.
    pub queue: Option<ByteLen>,
    /// The most that a session sends.
    pub bytes: Option<ByteLen>,
    /// The longest that a session is.
    pub time: Option<Duration>,
}

/// How things are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The time.
    pub now: Nanos,
    /// The window is open.
    pub window: bool,
    /// The number of the last planned start that has come; `None` before the first.
    pub start: Option<u64>,
    /// Bytes that wait: in the queue, or in extents that differ.
    pub waiting: ByteLen,
    /// Bytes that the link has sent on its line, ever.
    pub sent: u64,
    /// Nothing is left to send.
    pub done: bool,
}

/// Why nothing is transmitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The window is closed.
    Window,
    /// The next start has not come.
    Start,
    /// The queue is not long enough.
    Queue,
    /// The time or the bytes of this window are used up.
    Limit,
}

/// A session that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Since when.
    pub since: Nanos,
    /// What had been sent by then.
    sent: u64,
}

/// Whether a link may transmit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The schedule is off.
    Free,
    /// A session runs.
    Session(Session),
    /// No.
    Held(Held),
}

/// The schedule of one link.
#[derive(Debug, Clone, Copy, Default)]
pub struct Schedule {
    session: Option<Session>,
    /// The planned start that the last session had.
    started: Option<u64>,
    /// The limits of this window are used up.
    spent: bool,
    /// Somebody asked for a session.
    asked: bool,
}

impl Schedule {
    /// A session begins as soon as the window allows, whatever else is asked for.
    pub const fn begin(&mut self) {
        self.asked = true;
    }

    /// What holds now.
    pub fn evaluate(&mut self, rules: &Rules, facts: &Facts) -> Verdict {
        if !rules.on {
            *self = Self::default();
            return Verdict::Free;
        }
        if !facts.window {
            self.session = None;
            self.spent = false;
            return Verdict::Held(Held::Window);
        }
        let reasons = rules.timed || rules.queue.is_some();
        if let Some(session) = self.session {
            let over = rules
                .time
                .is_some_and(|time| facts.now.since(session.since) >= time)
                || rules
                    .bytes
                    .is_some_and(|bytes| facts.sent.saturating_sub(session.sent) >= bytes.get());
            let done = facts.done && reasons;
            if !over && !done {
                return Verdict::Session(session);
            }
            self.session = None;
            self.spent = over;
        }
        if !self.starts(rules, facts) {
            return Verdict::Held(match (rules.timed, rules.queue) {
                (true, _) if facts.start.is_none() => Held::Start,
                (_, Some(_)) => Held::Queue,
                (true, None) => Held::Start,
                (false, None) => Held::Limit,
            });
        }
        let session = Session {
            since: facts.now,
            sent: facts.sent,
        };
        self.session = Some(session);
        Verdict::Session(session)
    }

    /// Is there a reason for a session? It is used up.
    fn starts(&mut self, rules: &Rules, facts: &Facts) -> bool {
        let asked = std::mem::take(&mut self.asked);
        let start = facts.start.filter(|_| rules.timed);
        let new = start.is_some_and(|start| self.started.replace(start) != Some(start));
        if asked || new {
            return true;
        }
        if rules.timed && start.is_none() {
            return false;
        }
        match rules.queue {
            Some(queue) => facts.waiting >= queue,
            None => !rules.timed && !self.spent,
        }
    }
}

impl Session {
    /// What it has sent, of what the link has sent ever.
    #[must_use]
    pub const fn sent(&self, ever: u64) -> ByteLen {
        ByteLen::new(ever.saturating_sub(self.sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn facts(second: u64) -> Facts {
        Facts {
            now: Nanos::new(second * SECOND),
            window: true,
            start: None,
            waiting: ByteLen::ZERO,
            sent: 0,
            done: true,
        }
    }

    fn runs(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Session(_))
    }

    const ON: Rules = Rules {
        on: true,
        timed: false,
        queue: None,
        bytes: None,
        time: None,
    };

    #[test]
    fn a_schedule_that_is_off_holds_nothing_back_and_forgets() {
        let mut schedule = Schedule::default();
        let closed = Facts {
            window: false,
            ..facts(0)
        };
        assert_eq!(schedule.evaluate(&ON, &closed), Verdict::Held(Held::Window));
        let off = Rules { on: false, ..ON };
        assert_eq!(schedule.evaluate(&off, &closed), Verdict::Free);
    }

    #[test]
    fn a_window_alone_lets_everything_through_while_it_is_open() {
        let mut schedule = Schedule::default();
        assert!(runs(schedule.evaluate(&ON, &facts(0))));
        assert!(
            runs(schedule.evaluate(&ON, &facts(1))),
            "though nothing waits"
        );
    }

    #[test]
    fn a_limit_with_a_window_alone_is_one_of_each_opening() {
        let rules = Rules {
            time: Some(Duration::from_secs(10)),
            ..ON
        };
        let mut schedule = Schedule::default();
        assert!(runs(schedule.evaluate(&rules, &facts(0))));
        assert!(runs(schedule.evaluate(&rules, &facts(9))));
        let limit = Verdict::Held(Held::Limit);
        assert_eq!(schedule.evaluate(&rules, &facts(10)), limit);
        assert_eq!(schedule.evaluate(&rules, &facts(50)), limit);
        let closed = Facts {
            window: false,
            ..facts(60)
        };
        schedule.evaluate(&rules, &closed);
        assert!(runs(schedule.evaluate(&rules, &facts(61))), "it opens anew");
    }

    #[test]
    fn before_the_first_start_no_queue_is_long_enough() {
        let rules = Rules {
            timed: true,
            queue: Some(ByteLen::new(100)),
            ..ON
        };
        let full = Facts {
            waiting: ByteLen::new(1000),
            done: false,
            ..facts(0)
        };
        let mut schedule = Schedule::default();
        assert_eq!(schedule.evaluate(&rules, &full), Verdict::Held(Held::Start));
        let come = Facts {
            start: Some(0),
            ..full
        };
        assert!(runs(schedule.evaluate(&rules, &come)));
        let drained = Facts {
            start: Some(0),
            ..facts(5)
        };
        assert_eq!(
            schedule.evaluate(&rules, &drained),
            Verdict::Held(Held::Queue)
        );
        assert!(runs(schedule.evaluate(&rules, &come)), "the queue alone");
        schedule.evaluate(&rules, &drained);
        let next = Facts {
            start: Some(1),
            ..drained
        };
        assert!(
            runs(schedule.evaluate(&rules, &next)),
            "the next start alone"
        );
    }

    #[test]
    fn bytes_end_a_session_and_the_rest_waits_for_the_next() {
        let rules = Rules {
            timed: true,
            bytes: Some(ByteLen::new(500)),
            ..ON
        };
        let at = |second, start, sent| Facts {
            start: Some(start),
            sent,
            waiting: ByteLen::new(900),
            done: false,
            ..facts(second)
        };
        let mut schedule = Schedule::default();
        assert!(runs(schedule.evaluate(&rules, &at(0, 7, 300))));
        assert!(runs(schedule.evaluate(&rules, &at(1, 7, 799))));
        let held = schedule.evaluate(&rules, &at(2, 7, 800));
        assert_eq!(held, Verdict::Held(Held::Start));
        assert!(runs(schedule.evaluate(&rules, &at(3, 8, 800))));
    }

    #[test]
    fn who_asks_gets_a_session_inside_the_window_and_no_sooner() {
        let rules = Rules { timed: true, ..ON };
        let mut schedule = Schedule::default();
        schedule.begin();
        let closed = Facts {
            window: false,
            ..facts(0)
        };
        assert_eq!(
            schedule.evaluate(&rules, &closed),
            Verdict::Held(Held::Window)
        );
        let waiting = Facts {
            done: false,
            ..facts(1)
        };
        assert!(runs(schedule.evaluate(&rules, &waiting)));
        assert_eq!(
            schedule.evaluate(&rules, &facts(2)),
            Verdict::Held(Held::Start)
        );
    }

    proptest! {
        /// Whatever comes: nothing outside the window, no session longer than its time, nothing before the first
        /// start, and each start has one session.
        #[test]
        fn precedence_holds_whatever_comes(
            timed: bool,
            queue in proptest::option::of(1_u64..50),
            time in proptest::option::of(1_u64..20),
            steps in proptest::collection::vec((any::<bool>(), 0_u64..60, any::<bool>(), 0_u64..5), 1..200),
        ) {
            let rules = Rules {
                timed,
                queue: queue.map(ByteLen::new),
                time: time.map(Duration::from_secs),
                ..ON
            };
            let mut schedule = Schedule::default();
            let mut start = None;
            for (second, (window, waiting, done, next)) in (0_u64..).zip(steps) {
                if next == 0 {
                    start = Some(start.map_or(0, |start: u64| start + 1));
                }
                let now = Facts {
                    window,
                    start,
                    waiting: ByteLen::new(waiting),
                    done,
                    ..facts(second)
                };
                match schedule.evaluate(&rules, &now) {
                    Verdict::Free => prop_assert!(false, "it is on"),
                    Verdict::Session(session) => {
                        prop_assert!(window);
                        prop_assert!(!timed || start.is_some());
                        let age = now.now.since(session.since);
                        prop_assert!(time.is_none_or(|time| age < Duration::from_secs(time)));
                    }
                    Verdict::Held(Held::Window) => prop_assert!(!window),
                    Verdict::Held(_) => {
                        prop_assert!(window);
                        let enough = queue.is_some_and(|queue| waiting >= queue);
                        prop_assert!(!enough || timed && start.is_none());
                    }
                }
            }
        }
    }
}
