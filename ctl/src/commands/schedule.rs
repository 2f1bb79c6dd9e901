//! `transmit schedule`: sessions in which links transmit.

use super::Session;
use crate::Outcome;
use crate::args::{Set, TransmitSchedule};
use crate::render;
use blkrep_api::{GetQuery, SettingReply, Status, StatusQuery, route};
use std::fmt::Write as _;

const SWITCH: &str = "link.schedule";
const QUEUE: &str = "link.session-queue";
const PERCENT: &str = "link.session-queue-percent";
const WINDOW: &str = "link.window";
const START: &str = "link.session-start";
const INTERVAL: &str = "link.session-interval";
const BYTES: &str = "link.session-bytes";
const TIME: &str = "link.session-time";

/// In the order in which they are shown.
const ALL: [&str; 8] = [SWITCH, WINDOW, START, INTERVAL, QUEUE, PERCENT, BYTES, TIME];
const NONE: &str = "none";

/// What holds, strongest first.
const PRECEDENCE: &str = "\
What holds, strongest first:
  1. blkctl transmit pause or stop
  2. the schedule is off: everything is transmitted at once
  3. outside the window nothing is transmitted
  4. before the first start nothing is transmitted, unless blkctl transmit start asks for a session
  5. a session ends when its time or its bytes are used up; if a start or the queue began it, also when nothing is left
  6. a session begins at a planned start, or when enough waits; with neither it begins with the window";

impl Session<'_> {
    pub(super) fn schedule(&self, schedule: &TransmitSchedule) -> anyhow::Result<Outcome> {
        let assignments = assignments(schedule);
        if assignments.is_empty() {
            return self.show_schedule(schedule);
        }
        self.set(&Set {
            assignments,
            group: Some(schedule.group.clone()),
        })
    }

    fn show_schedule(&self, schedule: &TransmitSchedule) -> anyhow::Result<Outcome> {
        let group = Some(schedule.group.clone());
        let status = StatusQuery {
            group: group.clone(),
        };
        let found: Status = self.client.get(route::STATUS, &status)?;
        let query = GetQuery { key: None, group };
        let mut reply: SettingReply = self.client.get(route::SETTINGS, &query)?;
        let place = |key: &str| ALL.iter().position(|known| *known == key);
        reply
            .settings
            .retain(|setting| place(&setting.key).is_some());
        reply.settings.sort_by_key(|setting| place(&setting.key));
        if self.output.json {
            self.output.json(&reply)?;
            return Ok(Outcome::Done);
        }
        let mut text = render::settings(self.output.painter, &reply);
        text.push_str(PRECEDENCE);
        text.push('\n');
        for link in found.groups.iter().flat_map(|group| &group.links) {
            writeln!(text, "link {}: {}", link.name, render::schedule(link))?;
        }
        self.output.data(&text);
        Ok(Outcome::Done)
    }
}

/// The settings that are to be changed.
fn assignments(schedule: &TransmitSchedule) -> Vec<(String, String)> {
    let mut all: Vec<(&str, &str)> = Vec::new();
    if schedule.on || schedule.off {
        all.push((SWITCH, if schedule.on { "on" } else { "off" }));
    }
    if schedule.clear {
        all.extend(ALL[1..].iter().map(|key| (*key, NONE)));
    }
    for (key, value) in [
        (WINDOW, &schedule.window),
        (START, &schedule.start),
        (INTERVAL, &schedule.interval),
        (BYTES, &schedule.bytes),
        (TIME, &schedule.time),
    ] {
        all.extend(value.as_deref().map(|value| (key, value)));
    }
    match schedule.queue.as_deref() {
        None => {}
        Some(NONE) => all.extend([(QUEUE, NONE), (PERCENT, NONE)]),
        Some("") => all.extend([(QUEUE, ""), (PERCENT, "")]),
        Some(queue) => all.push(match queue.strip_suffix('%') {
            Some(percent) => (PERCENT, percent),
            None => (QUEUE, queue),
        }),
    }
    let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    all.into_iter().map(own).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::args::{Arguments, Command, TransmitCommand};
    use clap::Parser as _;

    fn made(words: &str) -> Vec<String> {
        let words = ["blkctl", "transmit", "schedule", "db"]
            .into_iter()
            .chain(words.split_whitespace());
        let Command::Transmit(TransmitCommand::Schedule(schedule)) =
            Arguments::try_parse_from(words).unwrap().command
        else {
            panic!("another command");
        };
        let made = assignments(&schedule).into_iter();
        made.map(|(key, value)| format!("{key}={value}")).collect()
    }

    #[test]
    fn options_become_settings_and_none_shows_them() {
        assert!(made("").is_empty());
        assert_eq!(
            made("--on --queue 40% --bytes 10MiB --interval 30m"),
            [
                "link.schedule=on",
                "link.session-interval=30m",
                "link.session-bytes=10MiB",
                "link.session-queue-percent=40"
            ]
        );
        assert_eq!(made("--queue 500MiB"), ["link.session-queue=500MiB"]);
        assert_eq!(made("--queue none").len(), 2);
        let cleared = made("--off --clear");
        assert_eq!(cleared.len(), ALL.len());
        assert!(cleared.iter().skip(1).all(|text| text.ends_with("=none")));
    }
}
