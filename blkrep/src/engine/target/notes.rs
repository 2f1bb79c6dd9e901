//! Notes at a target: bookmarks remembered, tasks run.
//!
//! Owns what became of the last notes, in memory and in the file `notes`, and the one task that runs. A
//! task's place is reached when every write before it is durable in the bases; nothing behind it is
//! applied, and nothing flushed, until it is over. That it runs is durable before it does. The process
//! itself belongs to whoever watches the replica: the worker only waits for its end.

use super::control::TargetEvent;
use super::files::{FileOf, ReplicaFiles};
use super::record::open_state;
use super::worker::{Mode, TargetWorker};
use blkrep_io::{Host, HostError};
use blkrep_store::notes::{NOTE_PAGE_BYTES, NOTE_PAGES, decode_page, encode_page, page_offset};
use blkrep_types::{
    ByteLen, DataState, Nanos, NodeName, Note, NoteId, NoteKind, NoteReport, NoteState, RecordKind,
    TaskCommand, WriteName, planted,
};
use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Notes that are remembered: as many as the file has pages for.
const KEPT_MAX: usize = 256;
const _: () = assert!(KEPT_MAX as u64 == NOTE_PAGES, "a page for each");

const NOT_A_PREFIX: &str =
    "at its place the replica was no state of the source: a mirror was on its way";
const BEING_PROMOTED: &str = "the replica was being promoted before its place was reached";
const PASSED: &str = "its place had been passed before";
const CUT_SHORT: &str =
    "it was killed: the replica was stopped, promoted or taken over while it ran";
const WHILE_IT_RAN: &str =
    "blkrepd ended while it ran: what it did is not known; it is not run again";

/// A task that is to be run now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskOrder {
    /// Which one.
    pub id: NoteId,
    /// Its place: every write before it is in the bases, none behind it.
    pub name: WriteName,
    /// Who submitted it.
    pub source: NodeName,
    /// When, by the source's clock: nanoseconds since 1970.
    pub submitted: u64,
    /// What to run.
    pub command: TaskCommand,
    /// The bases, by the index of their volumes.
    pub bases: Vec<PathBuf>,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskEnd {
    /// [`NoteState::Done`], [`NoteState::Failed`] or [`NoteState::TimedOut`].
    pub state: NoteState,
    /// Its exit status, if it has one.
    pub exit: Option<u8>,
    /// The end of its output, or why there is none.
    pub output: String,
}

/// What is known of notes.
pub(super) struct Notes<H: Host> {
    /// The last state of each, oldest change first.
    kept: VecDeque<NoteReport>,
    file: Option<FileOf<H>>,
    counter: u64,
    /// The task that runs.
    running: Option<NoteReport>,
    /// How it ended: to be written down.
    over: Option<NoteReport>,
    /// Not before then something is written down again.
    retry_at: Option<Nanos>,
}

impl<H: Host> fmt::Debug for Notes<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Notes({}, running {:?})", self.kept.len(), self.running)
    }
}

impl<H: Host> Notes<H> {
    /// What the file of an open replica says. A page that cannot be read counts as empty.
    pub(super) fn open(files: &ReplicaFiles<H>) -> Self {
        let mut notes = Self {
            kept: VecDeque::new(),
            file: open_state(&files.host, &files.directory().join("notes"), None).ok(),
            counter: 0,
            running: None,
            over: None,
            retry_at: None,
        };
        let Some(file) = &notes.file else {
            return notes;
        };
        let mut pages = Vec::new();
        let mut page = vec![0; NOTE_PAGE_BYTES];
        for counter in 0..NOTE_PAGES {
            let read = files.host.read_at(file, page_offset(counter), &mut page);
            let good = read.ok().map(|()| decode_page(files.replica.id, &page));
            pages.extend(good.and_then(Result::ok));
        }
        pages.sort_by_key(|(counter, _)| *counter);
        for (counter, report) in pages {
            notes.counter = counter;
            notes.keep(report);
        }
        // Its end, if it was told, stands on a later page.
        let mut cut_off = notes.kept.iter_mut();
        if let Some(report) = cut_off.find(|report| report.state == NoteState::Running) {
            report.state = NoteState::Interrupted;
            WHILE_IT_RAN.clone_into(&mut report.output);
            notes.over = Some(report.clone());
        }
        notes
    }

    fn keep(&mut self, report: NoteReport) {
        self.kept.retain(|known| known.id != report.id);
        while self.kept.len() >= KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(report);
    }

    fn knows(&self, id: NoteId) -> bool {
        self.kept.iter().any(|known| known.id == id)
    }

    /// True if a note of this place, or of a later one, has been reached.
    fn is_behind(&self, name: WriteName) -> bool {
        let place = |name: WriteName| (name.incarnation, name.seq);
        let last = self.kept.back().map(|last| last.name);
        last.is_some_and(|last| last.generation == name.generation && place(name) <= place(last))
    }

    /// True while a task runs.
    pub(super) const fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// When it wants a turn at the latest.
    pub(super) const fn due(&self) -> Option<Nanos> {
        self.retry_at
    }

    /// Everything that is known, oldest first.
    pub(super) fn all(&self) -> impl Iterator<Item = &NoteReport> {
        self.kept.iter()
    }

    /// Writes a state down, durably.
    fn write(&mut self, files: &ReplicaFiles<H>, report: &NoteReport) -> Result<(), HostError> {
        let file = match &self.file {
            Some(file) => file,
            None => {
                let bytes = ByteLen::new(NOTE_PAGES * NOTE_PAGE_BYTES as u64);
                let path = files.directory().join("notes");
                self.file
                    .insert(open_state(&files.host, &path, Some(bytes))?)
            }
        };
        let counter = self.counter + 1;
        let page = encode_page(files.replica.id, counter, report);
        files.host.write_at(file, page_offset(counter), &page)?;
        files.host.sync(file)?;
        self.counter = counter;
        Ok(())
    }
}

impl<H: Host> TargetWorker<H> {
    /// Writes a state of a note down and tells it. False if that failed: it is tried again.
    fn save_note(&mut self, report: &NoteReport) -> bool {
        if self.notes.retry_at.is_some_and(|at| self.now < at) {
            return false;
        }
        if let Err(error) = self.notes.write(&self.files, report) {
            let fresh = self.notes.retry_at.is_none();
            self.notes.retry_at = Some(self.now.after(self.applying.retries.policy().delay));
            if fresh {
                let reason = format!("notes: {error}; nothing is applied before it works");
                self.event(&TargetEvent::StateFailed { reason });
            }
            return false;
        }
        self.note_known(report.clone());
        true
    }

    fn note_known(&mut self, report: NoteReport) {
        self.notes.retry_at = None;
        self.notes.keep(report.clone());
        self.show_notes();
        if let Some(session) = &mut self.session {
            session.note(report.clone());
        }
        let report = Box::new(report);
        self.event(&TargetEvent::Note { report });
    }

    pub(super) fn show_notes(&self) {
        let all: Vec<_> = self.notes.all().cloned().collect();
        self.control.show_notes(Arc::new(all));
    }

    /// The note at the cursor is reached, a record of the batch in hand. True if applying goes on at once.
    pub(super) fn reach_note(&mut self, index: usize) -> bool {
        if self.notes.is_running() || !self.save_end() {
            return false;
        }
        let number = self.applier.cursor().batch;
        let cached = self.journaling.cached(number);
        let batch = &cached.expect("the batch is in hand").batch;
        let record = batch.records()[index].record;
        let task = matches!(record.kind, RecordKind::Note { task: true });
        if task && self.applying.is_busy() {
            // A flush that fails would have writes applied again, under the task.
            return false;
        }
        let name = WriteName {
            generation: self.facts.history.current(),
            incarnation: record.incarnation,
            seq: record.seq,
        };
        let note = batch.data(index).with(Note::decode);
        let settled = match note {
            Ok(note) if note.kind.is_task() == task => self.do_note(&note, name),
            Ok(_) | Err(_) => {
                self.event(&TargetEvent::NoteUnreadable { name });
                true
            }
        };
        if settled {
            self.applier.note_settled(number, &record);
        }
        settled
    }

    /// Does what a note says. True if that is over.
    fn do_note(&mut self, note: &Note, name: WriteName) -> bool {
        if self.notes.knows(note.id) {
            return true;
        }
        let mut report = NoteReport::of(note, name, NoteState::Skipped);
        report.began = self.watch.now();
        report.ended = report.began;
        let exact = self.facts.state() == DataState::Ok && self.applier.is_exact();
        let why = if matches!(self.mode, Mode::Promoting(_)) && report.task {
            BEING_PROMOTED
        } else if self.notes.is_behind(name) {
            PASSED
        } else if !exact {
            NOT_A_PREFIX
        } else {
            return match &note.kind {
                NoteKind::Bookmark(_) => self.set_bookmark(report),
                NoteKind::Task(command) => self.begin_task(report, command),
            };
        };
        why.clone_into(&mut report.output);
        self.save_note(&report)
    }

    fn set_bookmark(&mut self, mut report: NoteReport) -> bool {
        report.state = NoteState::Set;
        if planted!(BookmarkOneLate) {
            report.name.seq = report.name.seq.next();
        }
        self.save_note(&report)
    }

    fn begin_task(&mut self, mut report: NoteReport, command: &TaskCommand) -> bool {
        let volumes = self.files.replica().volumes.iter();
        let order = TaskOrder {
            id: report.id,
            name: report.name,
            source: self.files.replica().source.clone(),
            submitted: report.submitted,
            command: command.clone(),
            bases: volumes.map(|volume| volume.path.clone()).collect(),
        };
        if let Err(why) = self.watch.admits(self.files.group(), &order) {
            report.state = NoteState::Refused;
            report.output = why;
            return self.save_note(&report);
        }
        report.state = NoteState::Running;
        report.ended = 0;
        if planted!(TaskRunTwice) {
            self.notes.keep(report.clone());
        } else if !self.save_note(&report) {
            return false;
        }
        let (id, control) = (report.id, self.control.clone());
        self.notes.running = Some(report);
        let done = Box::new(move |end| control.task_ended(id, end));
        self.watch.run(self.files.group(), order, done);
        false
    }

    /// The process of a task has ended.
    pub(super) fn task_ended(&mut self, id: NoteId, end: TaskEnd) {
        let ours = self.notes.running.take_if(|running| running.id == id);
        if let Some(report) = ours {
            self.notes.over = Some(NoteReport {
                state: end.state,
                exit: end.exit,
                output: end.output,
                ended: self.watch.now(),
                ..report
            });
            self.save_end();
        }
    }

    /// Writes down how the last task ended, if that is to be done. False if it failed.
    fn save_end(&mut self) -> bool {
        let Some(report) = self.notes.over.take() else {
            return true;
        };
        let saved = self.save_note(&report);
        if !saved {
            self.notes.over = Some(report);
        }
        saved
    }

    /// What runs is killed: the replica is stopped, promoted or taken over.
    pub(super) fn interrupt_task(&mut self) {
        if let Some(report) = self.notes.running.take() {
            self.watch.cancel(self.files.group(), report.id);
            self.notes.over = Some(NoteReport {
                state: NoteState::Interrupted,
                output: CUT_SHORT.to_owned(),
                ended: self.watch.now(),
                ..report
            });
            self.save_end();
        }
    }

    /// A stream has begun: the source hears what is known of every note.
    pub(super) fn tell_notes(&mut self) {
        if let Some(session) = &mut self.session {
            for report in self.notes.all() {
                session.note(report.clone());
            }
        }
    }

    /// What waits to be written down is, unless that failed a moment ago.
    pub(super) fn retry_notes(&mut self) {
        if self.notes.over.is_some() {
            self.save_end();
        }
    }
}
