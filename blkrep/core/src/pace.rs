//! A limit of bandwidth that several links share.
//!
//! Owns when how many bytes may go. Rate, time and what a link wants to send enter; what it may send now, or
//! when to ask again, leaves. A link has its share of the rate for as long as it has something to send: what
//! others do not use is its own a moment later. Never sends anything, never reads a clock.

use blkrep_types::Nanos;
use std::num::NonZeroU64;
use std::time::Duration;

/// A link that asked within this time has something to send.
const ACTIVE: Duration = Duration::from_millis(100);

/// What is granted at once lasts about this long: smooth enough for queues on the way, long enough that a
/// fast line is not asked for every packet.
const GRAIN: Duration = Duration::from_millis(10);

/// Less is not granted: a packet's worth.
const GRANT_MIN: Fine = 1460;

/// Whoever comes late, because the line was late, may make up for so much time.
const CATCH_UP: Duration = Duration::from_millis(20);

/// Whoever waited for the limit and was woken late may make up for that, up to so much: on a busy host, or in a virtual one,
/// a timer of 10 ms takes 60. More would be a burst.
const LATE_MAX: Duration = Duration::from_millis(100);

/// A link's place at a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat(usize);

/// Whether bytes may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// So many, now; more than none.
    Bytes(usize),
    /// None before this time.
    NotBefore(Nanos),
}

/// Bytes times nanoseconds a second: what a rate of so many bytes a second gives in a nanosecond is one.
type Fine = i128;

const SECOND: Fine = 1_000_000_000;

#[derive(Debug, Clone, Copy, Default)]
struct Place {
    taken: bool,
    asked_at: Option<Nanos>,
    /// What was granted and has not gone yet at the link's share of the rate; below zero what it may make up
    /// for.
    debt: Fine,
    /// When it was told to ask again, if it was told to wait.
    due: Option<Nanos>,
}

impl Place {
    /// Pays what it owes by the time that went by since it asked before.
    fn pay(&mut self, now: Nanos, before: Option<Nanos>, share: Fine) {
        let since = now.since(before.unwrap_or_default());
        let woken_late = self.due.take().map_or(Duration::ZERO, |due| now.since(due));
        let late = woken_late.clamp(CATCH_UP, LATE_MAX);
        // What it may make up for already stays so.
        let floor = self.debt.min(-(share * fine(late.as_nanos())));
        self.debt = (self.debt - share * fine(since.as_nanos())).max(floor);
    }
}

/// A limit.
#[derive(Debug, Clone, Default)]
pub struct Pacer {
    rate: Option<NonZeroU64>,
    places: Vec<Place>,
}

fn fine(value: impl TryInto<u64>) -> Fine {
    Fine::from(value.try_into().unwrap_or(u64::MAX))
}

impl Pacer {
    /// Bytes a second from now on, over all links; `None`: no limit.
    pub const fn set_rate(&mut self, rate: Option<NonZeroU64>) {
        self.rate = rate;
    }

    /// Bytes a second over all links; `None`: no limit.
    #[must_use]
    pub const fn rate(&self) -> Option<NonZeroU64> {
        self.rate
    }

    /// A place for one more link.
    pub fn sit(&mut self) -> Seat {
        let free = self.places.iter().position(|place| !place.taken);
        let seat = free.unwrap_or(self.places.len());
        let place = Place {
            taken: true,
            ..Place::default()
        };
        match self.places.get_mut(seat) {
            Some(old) => *old = place,
            None => self.places.push(place),
        }
        Seat(seat)
    }

    /// Gives a place back.
    pub fn leave(&mut self, seat: Seat) {
        self.places[seat.0] = Place::default();
    }

    /// A link has `want` bytes to send, more than none.
    ///
    /// # Panics
    /// If it wants none.
    pub fn ask(&mut self, seat: Seat, now: Nanos, want: usize) -> Grant {
        assert!(want > 0, "who asks has something to send");
        let Some(rate) = self.rate else {
            return Grant::Bytes(want);
        };
        let before = self.places[seat.0].asked_at.replace(now);
        let share = (fine(rate.get()) / self.active(now)).max(1);
        let place = &mut self.places[seat.0];
        place.pay(now, before, share);
        if place.debt > 0 {
            let wait = u64::try_from((place.debt + share - 1) / share).unwrap_or(u64::MAX);
            let then = now.after(Duration::from_nanos(wait));
            place.due = Some(then);
            return Grant::NotBefore(then);
        }
        let grain = share * fine(GRAIN.as_nanos()) / SECOND;
        let bytes = fine(want).min(grain.max(GRANT_MIN));
        place.debt += bytes * SECOND;
        Grant::Bytes(usize::try_from(bytes).expect("no more than it wants"))
    }

    /// How many links have something to send.
    fn active(&self, now: Nanos) -> Fine {
        let asked = self.places.iter().filter_map(|place| place.asked_at);
        fine(asked.filter(|asked| now.since(*asked) <= ACTIVE).count()).max(1)
    }

    /// Of what was granted, so many bytes were not sent.
    pub fn give_back(&mut self, seat: Seat, bytes: usize) {
        self.places[seat.0].debt -= fine(bytes) * SECOND;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GRANT_MIN: u64 = 1460;
    const SECOND: u64 = 1_000_000_000;

    fn at(nanos: u64) -> Nanos {
        Nanos::new(100 * SECOND + nanos)
    }

    fn limited(rate: u64) -> Pacer {
        let mut pacer = Pacer::default();
        pacer.set_rate(NonZeroU64::new(rate));
        pacer
    }

    /// What each link sent until `end`, asked in turns; each comes late by `late` nanoseconds.
    fn run(pacer: &mut Pacer, seats: &[Seat], from: u64, end: u64, late: u64) -> Vec<u64> {
        let mut due = vec![from; seats.len()];
        let mut sent = vec![0; seats.len()];
        loop {
            let next = (0..seats.len()).min_by_key(|link| due[*link]).unwrap();
            let now = due[next];
            if now >= end {
                return sent;
            }
            match pacer.ask(seats[next], at(now), 256 << 10) {
                Grant::Bytes(bytes) => sent[next] += u64::try_from(bytes).unwrap(),
                Grant::NotBefore(then) => {
                    assert!(then > at(now), "time goes on");
                    due[next] = then.get() - at(0).get() + late;
                }
            }
        }
    }

    /// The limit is exact but for what may be made up for and one grant.
    fn assert_about(sent: u64, wanted: u64, rate: u64) {
        let slack = rate / 25 + 2 * GRANT_MIN;
        assert!(sent.abs_diff(wanted) <= slack, "{sent}, not {wanted}");
    }

    proptest! {
        #[test]
        fn the_rate_is_kept_whoever_comes_late(
            rate in (16_u64 << 10)..(4 << 30), late in 0_u64..10_000_000,
        ) {
            let mut pacer = limited(rate);
            let seat = pacer.sit();
            let sent = run(&mut pacer, &[seat], 0, 10 * SECOND, late);
            assert_about(sent[0], 10 * rate, rate);
        }

        #[test]
        fn links_share_the_rate(rate in (1_u64 << 20)..(1 << 30), links in 2_usize..6) {
            let mut pacer = limited(rate);
            let seats: Vec<_> = (0..links).map(|_| pacer.sit()).collect();
            let sent = run(&mut pacer, &seats, 0, 10 * SECOND, 0);
            assert_about(sent.iter().sum(), 10 * rate, 2 * rate);
            let fair = 10 * rate / u64::try_from(links).unwrap();
            for one in sent {
                prop_assert!(one.abs_diff(fair) <= fair / 20, "{one}, not {fair}");
            }
        }
    }

    /// A guest's timers took 60 ms for 10: a limit of 4 MiB/s gave 0.7.
    #[test]
    fn timers_that_are_late_cost_nothing_and_idle_time_is_not_made_up_for() {
        let rate = 4 << 20;
        for late in [30, 60, 89] {
            let mut pacer = limited(rate);
            let seat = pacer.sit();
            let sent = run(&mut pacer, &[seat], 0, 10 * SECOND, late * SECOND / 1000)[0];
            assert!(sent >= rate * 95 / 10, "{sent} bytes, {late} ms late");
            assert!(sent <= rate * 102 / 10, "{sent} bytes, {late} ms late");
        }
        let mut pacer = limited(rate);
        let seat = pacer.sit();
        run(&mut pacer, &[seat], 0, SECOND, 0);
        let after = run(&mut pacer, &[seat], 5 * SECOND, 5 * SECOND + 1, 0)[0];
        // It may have been told to wait, and had nothing to send when that was over.
        assert!(
            after <= rate / 8,
            "{after} bytes at once after idle seconds"
        );
    }

    #[test]
    fn nobody_waits_without_a_limit() {
        let mut pacer = Pacer::default();
        let seat = pacer.sit();
        assert_eq!(pacer.ask(seat, at(0), 1 << 30), Grant::Bytes(1 << 30));
        assert_eq!(pacer.ask(seat, at(0), 1), Grant::Bytes(1));
    }

    #[test]
    fn what_others_do_not_use_is_had_a_moment_later() {
        let mut pacer = limited(10 << 20);
        let seats = [pacer.sit(), pacer.sit()];
        run(&mut pacer, &seats, 0, SECOND, 0);
        let alone = run(&mut pacer, &seats[..1], SECOND, 2 * SECOND, 0);
        assert!(alone[0] > 9 << 20, "{alone:?}");
        pacer.leave(seats[1]);
        assert_eq!(pacer.sit(), seats[1], "places are used again");
    }

    #[test]
    fn another_rate_holds_at_once_and_what_was_not_sent_is_not_counted() {
        let mut pacer = limited(16 << 10);
        let seat = pacer.sit();
        run(&mut pacer, &[seat], 0, SECOND, 0);
        pacer.set_rate(NonZeroU64::new(100 << 20));
        let fast = run(&mut pacer, &[seat], SECOND, 2 * SECOND, 0);
        assert!(fast[0] > 95 << 20, "{fast:?}");
        let mut pacer = limited(1 << 20);
        let seat = pacer.sit();
        let mut sent = 0;
        for milli in 0..10_000 {
            if let Grant::Bytes(bytes) = pacer.ask(seat, at(milli * SECOND / 1000), 64 << 10) {
                pacer.give_back(seat, bytes - bytes / 3);
                sent += bytes / 3;
            }
        }
        assert_about(u64::try_from(sent).unwrap(), 10 << 20, 2 << 20);
    }
}
