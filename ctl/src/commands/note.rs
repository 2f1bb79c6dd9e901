//! `task` and `point`: bookmarks and tasks in the order of writes.

use super::Session;
use crate::args::{PointCommand, TaskCommand};
use crate::{Outcome, render};
use blkrep_api::{
    BookmarkRequest, NoteList, NoteQuery, NoteReply, NoteSort, NoteStatus, TaskRequest, route,
};
use blkrep_types::{GroupName, NoteId};
use std::time::{Duration, Instant};

/// Time between two looks at how far something is.
const POLL: Duration = Duration::from_millis(200);

impl Session<'_> {
    pub(super) fn task(&self, command: &TaskCommand) -> anyhow::Result<Outcome> {
        match command {
            TaskCommand::Submit {
                group,
                description,
                wait,
                command,
            } => {
                let request = TaskRequest {
                    group: group.clone(),
                    command: command.clone(),
                    description: description.clone().unwrap_or_default(),
                };
                let reply = self.client.post(route::TASK, &request)?;
                self.submitted(group, reply, *wait)
            }
            TaskCommand::List(of) => self.list(&of.group, Some(NoteSort::Task), None),
            TaskCommand::Show { group, id } => self.list(group, None, Some(*id)),
        }
    }

    pub(super) fn point(&self, command: &PointCommand) -> anyhow::Result<Outcome> {
        match command {
            PointCommand::Bookmark { group, name, wait } => {
                let request = BookmarkRequest {
                    group: group.clone(),
                    name: name.clone(),
                };
                let reply = self.client.post(route::BOOKMARK, &request)?;
                self.submitted(group, reply, *wait)
            }
            PointCommand::List(of) => self.list(&of.group, Some(NoteSort::Bookmark), None),
        }
    }

    fn submitted(
        &self,
        group: &GroupName,
        reply: NoteReply,
        wait: bool,
    ) -> anyhow::Result<Outcome> {
        for note in &reply.notes {
            self.output.talk(note);
        }
        if !wait {
            if self.output.json {
                self.output.json(&reply)?;
            } else {
                self.output.data(&format!("{}\n", reply.note.id));
            }
            return Ok(Outcome::Done);
        }
        let began = Instant::now();
        let limit = self.arguments.global.timeout;
        let mut note = reply.note;
        while !note.links.iter().all(|link| link.state.is_final()) {
            if limit.is_some_and(|limit| began.elapsed() > limit) {
                self.output
                    .talk("the time given is over; it stays where it is in the order of writes");
                break;
            }
            std::thread::sleep(POLL);
            note = self.look(group, note)?;
        }
        let good = !note.links.is_empty() && note.links.iter().all(|link| link.state.is_good());
        self.show(vec![note], true)?;
        Ok(if good {
            Outcome::Done
        } else {
            Outcome::Condition
        })
    }

    /// How far it is now.
    fn look(&self, group: &GroupName, note: NoteStatus) -> anyhow::Result<NoteStatus> {
        let query = NoteQuery {
            group: group.clone(),
            kind: None,
            id: Some(note.id),
        };
        let list: NoteList = self.client.get(route::NOTES, &query)?;
        Ok(list.notes.into_iter().next().unwrap_or(note))
    }

    fn list(
        &self,
        group: &GroupName,
        kind: Option<NoteSort>,
        id: Option<NoteId>,
    ) -> anyhow::Result<Outcome> {
        let query = NoteQuery {
            group: group.clone(),
            kind,
            id,
        };
        let list: NoteList = self.client.get(route::NOTES, &query)?;
        if self.output.json {
            self.output.json(&list)?;
        } else {
            self.show(list.notes, id.is_some())?;
        }
        Ok(Outcome::Done)
    }

    fn show(&self, notes: Vec<NoteStatus>, whole: bool) -> anyhow::Result<()> {
        if self.output.json {
            let schema = blkrep_api::SCHEMA;
            return self.output.json(&NoteList { schema, notes });
        }
        let mut text = String::new();
        for note in &notes {
            text.push_str(&render::note(self.output.painter, note, whole));
        }
        if notes.is_empty() {
            self.output.talk("none is remembered");
        }
        self.output.data(&text);
        Ok(())
    }
}
