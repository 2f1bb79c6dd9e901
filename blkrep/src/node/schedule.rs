//! Schedules of transmission: when links may have a connection.
//!
//! Owns what each link's schedule has done so far. Settings, the clock on the wall and the queue enter, once a second;
//! orders to links' drivers and events leave. Never decides by itself: `blkrep_core::schedule` does.

use super::Inner;
use super::clock;
use super::state::Engine;
use crate::settings::GroupSettings;
use blkrep_api::{EventId, NewEvent, ScheduleHold, ScheduleStatus};
use blkrep_core::schedule::{Facts, Held, Rules, Schedule, Verdict};
use blkrep_core::source::{LinkStatus, MirrorPhase, Position};
use blkrep_types::{ByteLen, GroupName, LinkName, WeekMinute};
use jiff::civil::DateTime;
use jiff::{ToSpan as _, Zoned};
use std::collections::BTreeMap;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What the schedule of a link says, and has done.
#[derive(Debug, Clone, Copy)]
struct Timetable {
    schedule: Schedule,
    verdict: Verdict,
}

/// The schedules of a node's links.
#[derive(Debug, Default)]
pub(super) struct Timetables(BTreeMap<(GroupName, LinkName), Timetable>);

/// The rules that settings make.
fn rules(settings: &GroupSettings) -> Rules {
    let percent = settings.session_queue_percent;
    let part = percent.map(|percent| {
        let log = u128::from(settings.log_memory.get());
        ByteLen::new(u64::try_from(log * u128::from(percent) / 100).unwrap_or(u64::MAX))
    });
    Rules {
        on: settings.schedule,
        timed: settings.session_start.is_some(),
        queue: settings.session_queue.into_iter().chain(part).min(),
        bytes: settings.session_bytes,
        time: settings.session_time,
    }
}

/// True if the window is open at this time.
fn window(settings: &GroupSettings, now: &Zoned) -> bool {
    settings.window.is_empty() || settings.window.at(week_minute(now)).is_some()
}

/// The minute of the week that the clock on the wall shows.
pub(super) fn week_minute(now: &Zoned) -> WeekMinute {
    let part = |value: i8| u8::try_from(value).unwrap_or_default();
    let day = now.weekday().to_monday_zero_offset();
    WeekMinute::new(part(day), part(now.hour()), part(now.minute()))
        .expect("a time of day is one of a week")
}

/// The last planned start that has come, by the second since 1970 that it was in: whole days by the calendar, so that
/// the hour stays where the clock is changed; other intervals by the time that passes.
fn last_start(first: DateTime, interval: Option<Duration>, now: &Zoned) -> Option<u64> {
    let zone = now.time_zone();
    let begin = first.to_zoned(zone.clone()).ok()?;
    if *now < begin {
        return None;
    }
    let second = |at: &Zoned| u64::try_from(at.timestamp().as_second()).unwrap_or_default();
    let Some(interval) = interval.filter(|interval| *interval >= Duration::from_secs(1)) else {
        return Some(second(&begin));
    };
    let whole_days = interval.as_secs().is_multiple_of(DAY.as_secs());
    if !whole_days {
        let passed = second(now).saturating_sub(second(&begin));
        return Some(second(&begin) + passed / interval.as_secs() * interval.as_secs());
    }
    let step = i64::try_from(interval.as_secs() / DAY.as_secs()).ok()?;
    let days = i64::from(first.date().until(now.date()).ok()?.get_days());
    let on = |number: i64| {
        let date = first.checked_add((number * step).days()).ok()?;
        date.to_zoned(zone.clone()).ok()
    };
    let latest = on(days / step).filter(|at| at <= now);
    latest
        .or_else(|| on((days / step).saturating_sub(1)))
        .map(|at| second(&at))
}

/// How things are with a link.
fn facts(settings: &GroupSettings, link: &LinkStatus, now: &Zoned) -> Facts {
    let start = settings.session_start;
    let waiting = link
        .queued_bytes
        .get()
        .saturating_add(link.dirty_bytes.get());
    let done = link.position == Position::Following
        && link.mirror.phase == MirrorPhase::Idle
        && link.queued_ops == 0;
    Facts {
        now: clock::now(),
        window: window(settings, now),
        start: start.and_then(|first| last_start(first, settings.session_interval, now)),
        waiting: ByteLen::new(waiting),
        sent: link.framed_bytes.get(),
        done,
    }
}

impl Inner {
    /// Lets links transmit, or not, as their schedules say now. `group`: only its links.
    pub(super) fn schedule_links(&self, group: Option<&GroupName>) {
        let groups: Vec<(GroupName, Engine)> = {
            let state = self.state();
            let all = state.groups.iter();
            let meant = all.filter(|(name, _)| group.is_none_or(|group| group == *name));
            meant
                .filter_map(|(name, known)| Some((name.clone(), known.engine.clone()?)))
                .collect()
        };
        for (name, engine) in &groups {
            let on = self.settings.group(name).schedule;
            let known = self.timetables().0.keys().any(|(group, _)| group == name);
            if !on && !known {
                continue;
            }
            let links = engine.status().links;
            for (link, _, status) in &links {
                self.schedule_link(name, link, status);
            }
            // Those that are off were let go just now.
            let stays = |link: &LinkName| on && links.iter().any(|(known, ..)| known == link);
            let mut tables = self.timetables();
            tables
                .0
                .retain(|(group, link), _| group != name || stays(link));
        }
        if group.is_none() {
            let there = |gone: &GroupName| groups.iter().any(|(name, _)| name == gone);
            self.timetables().0.retain(|(group, _), _| there(group));
        }
    }

    /// The same of one link. True if it may transmit.
    pub(super) fn schedule_link(
        &self,
        group: &GroupName,
        link: &LinkName,
        status: &LinkStatus,
    ) -> bool {
        let settings = self.settings.group(group);
        let facts = facts(&settings, status, &Zoned::now());
        let (before, after) = {
            let mut tables = self.timetables();
            let new = || Timetable {
                schedule: Schedule::default(),
                verdict: Verdict::Free,
            };
            let key = (group.clone(), link.clone());
            let table = tables.0.entry(key).or_insert_with(new);
            let after = table.schedule.evaluate(&rules(&settings), &facts);
            (std::mem::replace(&mut table.verdict, after), after)
        };
        let held = matches!(after, Verdict::Held(_));
        if let Some(control) = self.link_control(group, link) {
            control.hold(held);
        }
        let told = match (before, after) {
            (Verdict::Session(old), Verdict::Session(new)) if old == new => None,
            (_, Verdict::Session(_)) => Some((EventId::SessionStarted, "by schedule".to_owned())),
            (Verdict::Session(session), _) => {
                let sent = session.sent(facts.sent);
                Some((EventId::SessionEnded, format!("{sent} sent")))
            }
            (_, Verdict::Free | Verdict::Held(_)) => None,
        };
        if let Some((id, text)) = told {
            self.tell(NewEvent::new(id, text).group(group).link(link));
        }
        !held
    }

    /// A session of the link begins now, if its window is open.
    pub(super) fn begin_session(&self, group: &GroupName, link: &LinkName) {
        let mut tables = self.timetables();
        let table = tables.0.get_mut(&(group.clone(), link.clone()));
        if let Some(table) = table.filter(|table| matches!(table.verdict, Verdict::Held(_))) {
            table.schedule.begin();
        }
    }

    /// What a status shows of a link's schedule; `None` if it is off.
    pub(super) fn schedule_of(
        &self,
        group: &GroupName,
        link: &LinkName,
        status: &LinkStatus,
    ) -> Option<ScheduleStatus> {
        let tables = self.timetables();
        let table = tables.0.get(&(group.clone(), link.clone()))?;
        match table.verdict {
            Verdict::Free => None,
            Verdict::Session(session) => Some(ScheduleStatus {
                held_by: None,
                session_since: Some(clock::timestamp(session.since)),
                session_bytes: session.sent(status.framed_bytes.get()),
            }),
            Verdict::Held(held) => Some(ScheduleStatus {
                held_by: Some(match held {
                    Held::Window => ScheduleHold::Window,
                    Held::Start => ScheduleHold::Start,
                    Held::Queue => ScheduleHold::Queue,
                    Held::Limit => ScheduleHold::Limit,
                }),
                session_since: None,
                session_bytes: ByteLen::ZERO,
            }),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use blkrep_api::{SetRequest, SettingAssignment};
    use blkrep_types::Nanos;
    use jiff::civil::date;
    use jiff::tz::TimeZone;

    fn settings(assignments: &[(&str, &str)]) -> GroupSettings {
        let settings = Settings::defaults();
        let group = GroupName::new("db").unwrap();
        let assign = |(key, value): &(&str, &str)| SettingAssignment {
            key: format!("link.{key}"),
            value: Some((*value).to_owned()),
        };
        let on = [("schedule", "on")];
        let request = SetRequest {
            group: Some(group.clone()),
            assignments: on.iter().chain(assignments).map(assign).collect(),
        };
        settings.set(&request).unwrap();
        settings.group(&group)
    }

    /// A link whose application writes, and whose line takes, so many bytes a minute.
    #[derive(Clone, Copy)]
    struct Flow {
        writes: u64,
        line: u64,
    }

    /// The sessions of two weeks from midnight of a day on: when each began by the clock on the wall, and how many
    /// minutes it was.
    fn sessions(
        settings: &GroupSettings,
        flow: Flow,
        zone: &str,
        (year, month, day): (i16, i8, i8),
    ) -> Vec<(String, u32)> {
        let zone = TimeZone::get(zone).unwrap();
        let begin = date(year, month, day).to_zoned(zone.clone()).unwrap();
        let end = begin.date().checked_add(14.days()).unwrap();
        let end = end.to_zoned(zone).unwrap();
        let rules = rules(settings);
        let mut schedule = Schedule::default();
        let (mut queue, mut sent) = (0, 0);
        let mut found: Vec<(Nanos, String, u32)> = Vec::new();
        let mut now = begin.clone();
        while now < end {
            queue += flow.writes;
            let second = (now.timestamp() - begin.timestamp()).get_seconds();
            let first = settings.session_start;
            let facts = Facts {
                now: Nanos::new(u64::try_from(second).unwrap() * 1_000_000_000),
                window: window(settings, &now),
                start: first.and_then(|first| last_start(first, settings.session_interval, &now)),
                waiting: ByteLen::new(queue),
                sent,
                // What this minute brought does not count.
                done: queue <= flow.writes,
            };
            if let Verdict::Session(session) = schedule.evaluate(&rules, &facts) {
                match found
                    .last_mut()
                    .filter(|(since, ..)| *since == session.since)
                {
                    Some((.., minutes)) => *minutes += 1,
                    None => {
                        let text = now.strftime("%a %H:%M").to_string();
                        found.push((session.since, text, 1));
                    }
                }
                let takes = flow.line.min(queue);
                queue -= takes;
                sent += takes;
            }
            now = now.checked_add(1.minute()).unwrap();
        }
        found
            .into_iter()
            .map(|(_, text, minutes)| (text, minutes))
            .collect()
    }

    /// Nothing is written while it is sent: the queue is empty after a while.
    const NIGHTLY: Flow = Flow {
        writes: 1,
        line: 100,
    };

    #[test]
    fn a_daily_start_keeps_its_hour_where_the_clock_is_changed() {
        let nightly = settings(&[
            ("session-start", "2026-01-01 22:00"),
            ("session-interval", "1d"),
            ("session-time", "20m"),
        ]);
        for (month, day) in [(3, 16), (10, 12), (6, 1)] {
            let found = sessions(&nightly, NIGHTLY, "Europe/Berlin", (2026, month, day));
            // The daemon began at midnight: what it may have missed of the evening before comes at once.
            let (first, nights) = found.split_first().unwrap();
            assert!(first.0.ends_with("00:00"), "{first:?}");
            assert_eq!(nights.len(), 14, "{nights:?}");
            for (at, minutes) in nights {
                assert!(at.ends_with("22:00"), "{nights:?}");
                assert!((14..=20).contains(minutes), "{nights:?}");
            }
        }
        // An hour that does not exist on one day is the next there.
        let early = settings(&[
            ("session-start", "2026-03-20 02:30"),
            ("session-interval", "1d"),
        ]);
        let found = sessions(&early, NIGHTLY, "Europe/Berlin", (2026, 3, 20));
        let at: Vec<&str> = found.iter().map(|(at, _)| at.as_str()).collect();
        assert_eq!(at.len(), 14);
        let moved: Vec<&&str> = at.iter().filter(|at| !at.ends_with("02:30")).collect();
        assert_eq!(moved, [&"Sun 03:30"]);
    }

    #[test]
    fn an_interval_begins_the_next_session_by_the_time_that_passes() {
        let often = settings(&[
            ("session-start", "2026-06-01 22:00"),
            ("session-interval", "30m"),
        ]);
        let found = sessions(&often, NIGHTLY, "UTC", (2026, 6, 1));
        // It is emptied after a quarter of an hour, and begins again after half of one.
        assert_eq!(found[0].0, "Mon 22:00");
        assert_eq!(found[1].0, "Mon 22:30");
        assert!(found[0].1 > 10 && found[1].1 < 3, "{:?}", &found[..2]);
        assert_eq!(found.len(), 2 * (14 * 24 - 22));
    }

    #[test]
    fn the_window_beats_every_start() {
        let never = settings(&[
            ("session-start", "2026-01-01 05:00"),
            ("session-interval", "1d"),
            ("window", "mon-sun 21:00-04:00"),
        ]);
        let found = sessions(&never, NIGHTLY, "UTC", (2026, 6, 1));
        // A start outside the window is made up for when it opens.
        assert!(
            found
                .iter()
                .all(|(at, _)| { at.ends_with("21:00") || at.as_str() == "Mon 00:00" }),
            "{found:?}"
        );
        let busy = Flow {
            writes: 10,
            line: 1,
        };
        let open = settings(&[("window", "mon-sun 21:00-04:00")]);
        let minutes = |month, day| -> u32 {
            let found = sessions(&open, busy, "Europe/Berlin", (2026, month, day));
            found.iter().map(|(_, minutes)| minutes).sum()
        };
        assert_eq!(minutes(6, 1), 14 * 7 * 60);
        assert_eq!(minutes(3, 16), (14 * 7 - 1) * 60, "an hour is left out");
        assert_eq!(minutes(10, 12), (14 * 7 + 1) * 60, "an hour comes twice");
    }

    #[test]
    fn a_queue_begins_a_session_and_bytes_end_it() {
        let metered = settings(&[("session-queue", "10MiB"), ("session-bytes", "10MiB")]);
        let flow = Flow {
            writes: 1 << 20,
            line: 100 << 20,
        };
        let found = sessions(&metered, flow, "UTC", (2026, 6, 1));
        // Every ten minutes, for one.
        assert_eq!(found.len(), 14 * 24 * 6);
        assert_eq!(found[0], ("Mon 00:09".to_owned(), 1));
        assert!(found.iter().all(|(_, minutes)| *minutes == 1));
    }

    #[test]
    fn a_part_of_the_log_and_bytes_are_two_thresholds_of_which_the_smaller_counts() {
        let both = settings(&[("session-queue", "10MiB"), ("session-queue-percent", "50")]);
        let log = both.log_memory.get();
        assert_eq!(rules(&both).queue, Some(ByteLen::new(10 << 20)));
        let part = settings(&[("session-queue-percent", "40")]);
        assert_eq!(rules(&part).queue.unwrap().get(), log * 40 / 100);
    }

    #[test]
    fn a_schedule_that_can_never_go_on_is_refused() {
        let refused = |assignments: &[(&str, &str)]| {
            let assign = |(key, value): &(&str, &str)| SettingAssignment {
                key: format!("link.{key}"),
                value: Some((*value).to_owned()),
            };
            let request = SetRequest {
                group: None,
                assignments: assignments.iter().map(assign).collect(),
            };
            Settings::defaults().set(&request).unwrap_err().happened
        };
        let why = refused(&[("schedule", "on"), ("session-time", "1h")]);
        assert!(
            why.contains("something that begins the next session"),
            "{why}"
        );
        let why = refused(&[("schedule", "on"), ("session-interval", "1h")]);
        assert!(why.contains("needs link.session-start"), "{why}");
    }
}
