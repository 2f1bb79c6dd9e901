//! Commands that only look.

use super::Session;
use crate::Outcome;
use crate::args::{Events, StatusArgs};
use crate::render;
use blkrep_api::{
    DoctorReport, EventPage, EventQuery, FindingLevel, FollowLine, ProblemLevel, Status,
    StatusQuery, route,
};
use std::time::Duration;

/// Time between two pictures of `status --watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Moves to the top left, and clears from there.
const REDRAW: &str = "\x1b[H\x1b[J";
/// Events shown unless told otherwise.
const EVENTS_SHOWN: usize = 50;

impl Session<'_> {
    pub(super) fn status(&self, status: &StatusArgs) -> anyhow::Result<Outcome> {
        let query = StatusQuery {
            group: status.group.clone(),
        };
        loop {
            let found: Status = self.client.get(route::STATUS, &query)?;
            if self.output.json {
                self.output.json(&found)?;
            } else {
                let text = render::status(self.output.painter, &found);
                let before = if status.watch { REDRAW } else { "" };
                self.output.data(&format!("{before}{text}"));
            }
            if !status.watch {
                return Ok(outcome_of(&found));
            }
            std::thread::sleep(WATCH_INTERVAL);
        }
    }

    pub(super) fn events(&self, events: &Events) -> anyhow::Result<Outcome> {
        let follow = events.follow;
        let unbounded = follow && events.after.is_some();
        let query = EventQuery {
            after: events.after,
            limit: events.limit.or((!unbounded).then_some(EVENTS_SHOWN)),
            severity: events.severity,
            group: events.group.clone(),
            id: events.id,
        };
        if follow {
            return self.follow(&query);
        }
        let page: EventPage = self.client.get(route::EVENTS, &query)?;
        if self.output.json {
            self.output.json(&page)?;
            return Ok(Outcome::Done);
        }
        if page.missed > 0 {
            self.output
                .talk(&format!("{} events before these are gone", page.missed));
        }
        for event in &page.events {
            self.output.data(&render::event(self.output.painter, event));
        }
        Ok(Outcome::Done)
    }

    fn follow(&self, query: &EventQuery) -> anyhow::Result<Outcome> {
        self.client.lines(route::EVENTS_FOLLOW, query, |line| {
            match &line {
                FollowLine::Idle => {}
                FollowLine::Missed { count } if !self.output.json => {
                    self.output.talk(&format!("{count} events are gone"));
                }
                FollowLine::Event(event) if !self.output.json => {
                    self.output.data(&render::event(self.output.painter, event));
                }
                FollowLine::Missed { .. } | FollowLine::Event(_) => {
                    let text = serde_json::to_string(&line)?;
                    self.output.data(&format!("{text}\n"));
                }
            }
            Ok(true)
        })?;
        self.output.talk("the daemon ended the stream");
        Ok(Outcome::Done)
    }

    pub(super) fn doctor(&self) -> anyhow::Result<Outcome> {
        let nothing = serde_json::json!({});
        let report: DoctorReport = self.client.get(route::DOCTOR, &nothing)?;
        if self.output.json {
            self.output.json(&report)?;
        } else {
            self.output
                .data(&render::doctor(self.output.painter, &report));
        }
        Ok(match report.worst() {
            FindingLevel::Error => Outcome::Condition,
            FindingLevel::Ok | FindingLevel::Note | FindingLevel::Warning => Outcome::Done,
        })
    }
}

/// A condition, if anything is worse than a note.
fn outcome_of(status: &Status) -> Outcome {
    let groups = status.groups.iter().flat_map(|group| &group.problems);
    let mut problems = groups.chain(&status.problems);
    if problems.any(|problem| problem.level > ProblemLevel::Note) {
        Outcome::Condition
    } else {
        Outcome::Done
    }
}
