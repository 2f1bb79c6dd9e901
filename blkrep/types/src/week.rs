//! Limits of bandwidth and windows by day and time, as people write them.
//!
//! Owns the text forms `mon-fri 08:00-18:00 2MiB/s, sat,sun 00:00-24:00 unlimited` and `mon-fri 22:00-04:00`. Text
//! enters, checked periods leave, and the other way round. Times are those of the clock on the wall: whoever asks says
//! which minute of the week it is. Never reads a clock.

use crate::{ByteLen, Limit, UnitError, format_rate, parse_rate};
use std::fmt;
use std::num::NonZeroU64;

/// Periods there can be: three a day for the days of a week that differ from one another.
pub const PERIODS_MAX: usize = 21;

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const DAY_MINUTES: u16 = 24 * 60;
const WEEK_MINUTES: u16 = 7 * DAY_MINUTES;

/// Bytes a second; `None`: no limit.
pub type Rate = Option<NonZeroU64>;

/// A minute of a week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WeekMinute(u16);

impl WeekMinute {
    /// The minute `minute` of the hour `hour` of a day, 0 for Monday; `None` if there is none such.
    #[must_use]
    pub fn new(day: u8, hour: u8, minute: u8) -> Option<Self> {
        let good = day < 7 && hour < 24 && minute < 60;
        let at = u16::from(day) * DAY_MINUTES + u16::from(hour) * 60 + u16::from(minute);
        good.then_some(Self(at))
    }
}

/// What holds in a period.
pub trait Weekly: Copy + Default {
    /// A period of it, as people write it.
    const EXAMPLE: &'static str;

    /// Reads what follows the times.
    ///
    /// # Errors
    /// A sentence that says what is wrong; `None` if it is not even a period's form.
    fn read(text: Option<&str>) -> Result<Self, Option<String>>;

    /// Writes it as it is read, after a blank if it is something.
    fn write(&self) -> String;
}

impl Weekly for Limit {
    const EXAMPLE: &'static str = "mon-fri 08:00-18:00 2MiB/s";

    fn read(text: Option<&str>) -> Result<Self, Option<String>> {
        Self::parse(text.ok_or(None)?).map_err(|error| Some(error.to_string()))
    }

    fn write(&self) -> String {
        format!(" {self}")
    }
}

/// A window is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Open;

impl Weekly for Open {
    const EXAMPLE: &'static str = "mon-fri 22:00-04:00";

    fn read(text: Option<&str>) -> Result<Self, Option<String>> {
        text.map_or(Ok(Self), |_| Err(None))
    }

    fn write(&self) -> String {
        String::new()
    }
}

/// On some days, from a minute to another, the next day's if that is not later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Period<T> {
    /// A bit for each day, Monday the lowest.
    days: u8,
    from: u16,
    until: u16,
    what: T,
}

impl<T> Period<T> {
    fn len(&self) -> u16 {
        if self.until > self.from {
            self.until - self.from
        } else {
            DAY_MINUTES - self.from + self.until
        }
    }

    fn holds(&self, at: u16) -> bool {
        (0..7).filter(|day| self.days >> day & 1 == 1).any(|day| {
            let from = day * DAY_MINUTES + self.from;
            (at + WEEK_MINUTES - from) % WEEK_MINUTES < self.len()
        })
    }
}

/// What holds by day and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Week<T> {
    periods: [Period<T>; PERIODS_MAX],
    count: usize,
}

/// Limits by day and time.
pub type WeeklyRates = Week<Limit>;

/// Times at which a window is open.
pub type WeeklyWindow = Week<Open>;

impl WeeklyRates {
    /// The limits of all periods.
    pub fn limits(&self) -> impl Iterator<Item = Limit> {
        self.periods[..self.count].iter().map(|period| period.what)
    }
}

impl<T: Weekly> Week<T> {
    /// True if there is no period.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What holds in this minute; `None` if no period has it.
    #[must_use]
    pub fn at(&self, minute: WeekMinute) -> Option<T> {
        let mut periods = self.periods[..self.count].iter();
        let period = periods.find(|period| period.holds(minute.0));
        period.map(|period| period.what)
    }

    /// Reads `none`, or periods with commas between them.
    ///
    /// # Errors
    /// A sentence that says which period is wrong, or that two hold in one minute.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut all = Self::default();
        if text == "none" {
            return Ok(all);
        }
        for part in split(text) {
            let place = all.periods.get_mut(all.count);
            *place.ok_or(format!("there are at most {PERIODS_MAX} periods"))? = period(&part)?;
            all.count += 1;
        }
        let periods = &all.periods[..all.count];
        let twice =
            (0..WEEK_MINUTES).find(|at| periods.iter().filter(|p| p.holds(*at)).count() > 1);
        match twice {
            None => Ok(all),
            Some(at) => Err(format!(
                "two periods hold on {} at {}",
                DAYS[usize::from(at / DAY_MINUTES)],
                clock(at % DAY_MINUTES)
            )),
        }
    }
}

/// The periods of a text: days may have commas between them, too.
fn split(text: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut whole = true;
    for piece in text.split(',').map(str::trim) {
        match parts.last_mut().filter(|_| !whole) {
            Some(last) => {
                last.push(',');
                last.push_str(piece);
            }
            None => parts.push(piece.to_owned()),
        }
        whole = piece.contains(' ');
    }
    parts
}

fn period<T: Weekly>(text: &str) -> Result<Period<T>, String> {
    let wrong = || format!("'{text}' is no period: write `{}`", T::EXAMPLE);
    let words: Vec<&str> = text.split_whitespace().collect();
    let (days, times, what) = match words[..] {
        [days, times] => (days, times, None),
        [days, times, what] => (days, times, Some(what)),
        _ => return Err(wrong()),
    };
    let (from, until) = times.split_once('-').ok_or_else(wrong)?;
    let (from, until) = (
        minute(from).ok_or_else(wrong)?,
        minute(until).ok_or_else(wrong)?,
    );
    if from == until || from == DAY_MINUTES {
        return Err(wrong());
    }
    Ok(Period {
        days: days_of(days).ok_or_else(wrong)?,
        from,
        until,
        what: T::read(what).map_err(|why| why.unwrap_or_else(wrong))?,
    })
}

fn days_of(text: &str) -> Option<u8> {
    let number = |name: &str| DAYS.iter().position(|day| *day == name);
    let mut days = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut day, last) = (number(first)?, number(last)?);
        loop {
            days |= 1 << day;
            if day == last {
                break;
            }
            day = (day + 1) % 7;
        }
    }
    Some(days)
}

/// `00:00` to `24:00`.
fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let two = |text: &str| text.parse::<u16>().ok().filter(|_| text.len() == 2);
    let (hour, minute) = (two(hour)?, two(minute).filter(|minute| *minute < 60)?);
    let at = hour * 60 + minute;
    (at <= DAY_MINUTES).then_some(at)
}

/// Reads `2MiB/s`, or `unlimited`.
///
/// # Errors
/// It is neither, or nothing a second.
pub fn rate_of(text: &str) -> Result<Rate, UnitError> {
    if text == "unlimited" {
        return Ok(None);
    }
    let rate = NonZeroU64::new(parse_rate(text)?.get());
    rate.map_or_else(
        || Err(UnitError::Rate(text.to_owned())),
        |rate| Ok(Some(rate)),
    )
}

/// Writes a rate as [`rate_of`] reads it.
#[must_use]
pub fn rate_text(rate: Rate) -> String {
    rate.map_or_else(
        || "unlimited".to_owned(),
        |rate| format_rate(ByteLen::new(rate.get())),
    )
}

fn clock(at: u16) -> String {
    format!("{:02}:{:02}", at / 60, at % 60)
}

impl<T: Weekly> fmt::Display for Week<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count == 0 {
            return f.write_str("none");
        }
        for (index, period) in self.periods[..self.count].iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let days = (0..7).filter(|day| period.days >> day & 1 == 1);
            let days: Vec<&str> = days.map(|day| DAYS[day]).collect();
            let (from, until) = (clock(period.from), clock(period.until));
            let what = period.what.write();
            write!(f, "{comma}{} {from}-{until}{what}", days.join(","))?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rates(text: &str) -> WeeklyRates {
        WeeklyRates::parse(text).unwrap()
    }

    fn at(rates: &WeeklyRates, day: u8, hour: u8, minute: u8) -> String {
        match rates.at(WeekMinute::new(day, hour, minute).unwrap()) {
            None => "no period".to_owned(),
            Some(limit) => limit.to_string(),
        }
    }

    #[test]
    fn a_period_holds_from_its_first_minute_to_before_its_last() {
        let week = rates("mon-fri 08:00-18:00 2MiB/s, sat,sun 00:00-24:00 unlimited");
        assert_eq!(at(&week, 0, 7, 59), "no period");
        assert_eq!(at(&week, 0, 8, 0), "2MiB/s");
        assert_eq!(at(&week, 4, 17, 59), "2MiB/s");
        assert_eq!(at(&week, 4, 18, 0), "no period");
        assert_eq!(at(&week, 5, 0, 0), "unlimited");
        assert_eq!(at(&week, 6, 23, 59), "unlimited");
    }

    #[test]
    fn a_period_over_midnight_belongs_to_the_day_on_which_it_begins() {
        let week = rates("sun,fri 21:00-04:00 1MiB/s");
        assert_eq!(at(&week, 4, 20, 59), "no period");
        assert_eq!(at(&week, 4, 21, 0), "1MiB/s");
        assert_eq!(at(&week, 5, 3, 59), "1MiB/s");
        assert_eq!(at(&week, 5, 4, 0), "no period");
        assert_eq!(at(&week, 0, 3, 59), "1MiB/s", "Sunday's");
        assert_eq!(at(&week, 5, 21, 0), "no period");
    }

    #[test]
    fn days_may_run_over_the_end_of_the_week() {
        let week = rates("sat-mon 10:00-11:00 1MiB/s");
        for (day, wanted) in [
            (5, "1MiB/s"),
            (6, "1MiB/s"),
            (0, "1MiB/s"),
            (1, "no period"),
        ] {
            assert_eq!(at(&week, day, 10, 30), wanted, "day {day}");
        }
    }

    #[test]
    fn what_is_printed_is_read_again() {
        for text in [
            "none",
            "mon,tue 08:00-18:00 2MiB/s",
            "mon 00:00-24:00 16KiB/s, wed,fri 22:00-06:00 unlimited",
            "mon 00:00-24:00 30%, wed,fri 22:00-06:00 10Mbit/s",
        ] {
            assert_eq!(rates(text).to_string(), text);
        }
    }

    #[test]
    fn a_window_has_periods_and_nothing_else() {
        let text = "mon,tue 22:00-04:00, sun 00:00-24:00";
        let window = WeeklyWindow::parse(text).unwrap();
        assert_eq!(window.to_string(), text);
        let open = |day, hour| window.at(WeekMinute::new(day, hour, 0).unwrap()).is_some();
        assert!(open(0, 22) && open(2, 3) && open(6, 12));
        assert!(!open(0, 4) && !open(2, 4) && !open(3, 3));
        assert!(WeeklyWindow::parse("none").unwrap().is_empty());
        let wrong = WeeklyWindow::parse("mon 22:00-04:00 2MiB/s").unwrap_err();
        assert!(wrong.contains("write `mon-fri 22:00-04:00`"), "{wrong}");
    }

    #[test]
    fn what_is_no_period_is_named() {
        for wrong in [
            "",
            "mon 08:00-18:00",
            "mon 8:00-18:00 1MiB/s",
            "mon 08:00-24:01 1MiB/s",
            "mon 24:00-01:00 1MiB/s",
            "mon 08:60-09:00 1MiB/s",
            "mon 08:00-08:00 1MiB/s",
            "day 08:00-18:00 1MiB/s",
            "mon 08:00-18:00 0B/s",
            "mon 08:00-18:00 fast",
        ] {
            assert!(WeeklyRates::parse(wrong).is_err(), "{wrong}");
        }
        let twice = WeeklyRates::parse("mon-fri 08:00-18:00 1MiB/s, wed 17:59-19:00 unlimited");
        assert_eq!(twice.unwrap_err(), "two periods hold on wed at 17:59");
        let many = vec!["mon 08:00-18:00 1MiB/s"; PERIODS_MAX + 1].join(", ");
        assert!(
            WeeklyRates::parse(&many)
                .unwrap_err()
                .contains("at most 21")
        );
    }
}
