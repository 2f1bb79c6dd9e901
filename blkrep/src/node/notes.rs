//! `task` and `point`: bookmarks and tasks in a group's order of writes.
//!
//! Owns the commands, the events they leave and their words. Never runs anything itself.

use super::{Inner, clock};
use crate::engine::source::NoteStatus as OnLinks;
use blkrep_api::{
    ApiError, BookmarkRequest, ErrorCode, EventId, GroupStatus, NewEvent, NoteList, NoteOnLink,
    NoteProgress, NoteQuery, NoteReply, NoteSort, NoteStatus, SCHEMA, TaskRequest,
};
use blkrep_core::source::NoteDenied;
use blkrep_io::Host as _;
use blkrep_types::{
    GroupName, LinkName, Note, NoteId, NoteKind, NoteReport, NoteState, TaskCommand,
};
use jiff::Timestamp;

/// How far a note is, as the API says it.
fn progress(state: NoteState) -> NoteProgress {
    match state {
        NoteState::Queued => NoteProgress::Queued,
        NoteState::Sent => NoteProgress::Sent,
        NoteState::Waiting => NoteProgress::Waiting,
        NoteState::Running => NoteProgress::Running,
        NoteState::Done => NoteProgress::Done,
        NoteState::Failed => NoteProgress::Failed,
        NoteState::TimedOut => NoteProgress::TimedOut,
        NoteState::Refused => NoteProgress::Refused,
        NoteState::Skipped => NoteProgress::Skipped,
        NoteState::Interrupted => NoteProgress::Interrupted,
        NoteState::Unable => NoteProgress::Unable,
        NoteState::Set => NoteProgress::Set,
    }
}

fn sort(task: bool) -> NoteSort {
    if task {
        NoteSort::Task
    } else {
        NoteSort::Bookmark
    }
}

/// The event of a note that is somewhere else.
pub(super) fn event_of(report: &NoteReport) -> (EventId, String) {
    let what = if report.task {
        &report.command
    } else {
        &report.text
    };
    let id = match report.state {
        NoteState::Set => EventId::BookmarkSet,
        NoteState::Running => EventId::TaskStarted,
        NoteState::Done => EventId::TaskDone,
        NoteState::Failed => EventId::TaskFailed,
        NoteState::TimedOut => EventId::TaskTimedOut,
        NoteState::Refused => EventId::TaskRefused,
        NoteState::Interrupted => EventId::TaskInterrupted,
        NoteState::Skipped
        | NoteState::Unable
        | NoteState::Queued
        | NoteState::Sent
        | NoteState::Waiting => EventId::NoteSkipped,
    };
    let exit = report.exit.filter(|_| report.state == NoteState::Failed);
    let exit = exit.map_or_else(String::new, |exit| format!(", exit status {exit}"));
    let said = report.state != NoteState::Done && !report.output.is_empty();
    let last = report.output.lines().last().filter(|_| said);
    let last = last.map_or_else(String::new, |last| format!(": {last}"));
    let sort = if report.task { "task" } else { "bookmark" };
    let (id_text, seq) = (report.id, report.name.seq);
    let text = format!("{sort} {id_text} at write {seq}: {what}{exit}{last}");
    (id, text)
}

fn when(nanos: u64) -> Option<Timestamp> {
    let at = Timestamp::from_nanosecond(i128::from(nanos)).ok();
    at.filter(|_| nanos > 0)
}

fn on_link(link: Option<LinkName>, report: &NoteReport) -> NoteOnLink {
    NoteOnLink {
        link,
        state: progress(report.state),
        exit_status: report.exit,
        began: when(report.began),
        ended: when(report.ended),
        output: report.output.clone(),
    }
}

fn shown(note: &NoteReport, links: Vec<NoteOnLink>) -> NoteStatus {
    NoteStatus {
        id: note.id,
        kind: sort(note.task),
        text: note.text.clone(),
        command: note.command.clone(),
        generation: note.name.generation,
        incarnation: note.name.incarnation.get(),
        seq: note.name.seq,
        submitted: when(note.submitted).unwrap_or(Timestamp::UNIX_EPOCH),
        links,
    }
}

fn of_source(note: &OnLinks) -> NoteStatus {
    let links = note.links.iter();
    let links = links.map(|(link, report)| on_link(Some(link.clone()), report));
    shown(&note.note, links.collect())
}

fn denied(group: &GroupName, denied: NoteDenied) -> ApiError {
    let subject = format!("group {group}");
    let (code, happened, action) = match denied {
        NoteDenied::NoLinks => (
            ErrorCode::NoSuchLink,
            "it has no link: no target would hear of it",
            format!("connect it first: blkctl connect {group} --to ADDR:PORT"),
        ),
        NoteDenied::Behind => (
            ErrorCode::ReplicaNotOk,
            "its links are behind: a mirror comes next, in which no place means anything",
            "submit it again when blkctl status says that it replicates".to_owned(),
        ),
        NoteDenied::Unable => (
            ErrorCode::PeerIncompatible,
            "no target's blkrepd knows bookmarks and tasks",
            "install a newer blkrepd on the target".to_owned(),
        ),
        NoteDenied::Full => (
            ErrorCode::LimitReached,
            "the write log has no room for it just now",
            "submit it again in a moment; blkctl status shows what fills the log".to_owned(),
        ),
        NoteDenied::Closed => (
            ErrorCode::GroupBusy,
            "its volumes are frozen or fenced",
            "see blkctl status".to_owned(),
        ),
    };
    ApiError::new(code, subject, happened, action)
}

/// Adds what a replica knows of notes to its status.
pub(super) fn add_to(status: &mut GroupStatus, notes: &[NoteReport]) {
    if let Some(target) = &mut status.target {
        let running = |note: &&NoteReport| note.state == NoteState::Running;
        target.task = notes.iter().find(running).map(|note| note.command.clone());
        let set = notes.iter().filter(|note| note.state == NoteState::Set);
        target.bookmarks = set.count().try_into().expect("few notes");
    }
}

impl Inner {
    pub(super) fn submit_task(&self, request: &TaskRequest) -> Result<NoteReply, ApiError> {
        let command = TaskCommand::new(request.command.clone(), request.description.clone());
        let command = command.map_err(|error| {
            let text = error.to_string();
            let (happened, action) = text
                .split_once(": ")
                .unwrap_or((&text, "see blkctl task submit --help"));
            ApiError::new(ErrorCode::BadRequest, "task", happened, action)
        })?;
        self.submit(&request.group, NoteKind::Task(command))
    }

    pub(super) fn set_bookmark(&self, request: &BookmarkRequest) -> Result<NoteReply, ApiError> {
        self.submit(&request.group, NoteKind::Bookmark(request.name.clone()))
    }

    fn submit(&self, group: &GroupName, kind: NoteKind) -> Result<NoteReply, ApiError> {
        let engine = self.source(group)?;
        let mut id = [0; 16];
        self.host.random(&mut id);
        let note = Note {
            id: NoteId::from_bytes(id),
            submitted: clock::since_1970(),
            kind,
        };
        engine
            .submit_note(&note)
            .map_err(|why| denied(group, why))?;
        let found = engine.note(note.id).map(|note| of_source(&note));
        let found = found.ok_or_else(|| ApiError::internal("a note was not remembered"))?;
        let event = match found.kind {
            NoteSort::Task => EventId::TaskSubmitted,
            NoteSort::Bookmark => EventId::BookmarkSubmitted,
        };
        let what = match found.kind {
            NoteSort::Task => &found.command,
            NoteSort::Bookmark => &found.text,
        };
        let text = format!("{} {} at write {}: {what}", found.kind, found.id, found.seq);
        self.tell(NewEvent::new(event, text).group(group));
        let behind = found.links.iter().filter(|link| link.state.is_final());
        let notes = behind.map(|link| {
            let name = link.link.as_ref().map(ToString::to_string);
            format!("link {}: {}", name.unwrap_or_default(), link.output)
        });
        Ok(NoteReply {
            notes: notes.collect(),
            note: found,
        })
    }

    pub(super) fn notes(&self, query: &NoteQuery) -> Result<NoteList, ApiError> {
        let group = &query.group;
        let replica = {
            let state = self.state();
            let replica = state.replicas.get(group);
            replica.map(|replica| replica.control.notes())
        };
        let all: Vec<NoteStatus> = match replica {
            Some(notes) => {
                let one = |report: &NoteReport| shown(report, vec![on_link(None, report)]);
                notes.iter().map(one).collect()
            }
            None => {
                let engine = self.source(group)?;
                engine.notes().iter().map(of_source).collect()
            }
        };
        let asked = |note: &NoteStatus| {
            query.kind.is_none_or(|kind| kind == note.kind)
                && query.id.is_none_or(|id| id == note.id)
        };
        let notes: Vec<_> = all.into_iter().filter(asked).collect();
        if let (Some(id), true) = (query.id, notes.is_empty()) {
            return Err(ApiError::new(
                ErrorCode::NoSuchNote,
                format!("group {group}"),
                format!("no bookmark or task {id} is remembered here"),
                format!("see blkctl task list {group}; only the last ones are kept"),
            ));
        }
        Ok(NoteList {
            schema: SCHEMA,
            notes,
        })
    }
}
