//! Notes: put into a group's order by command, and found again in its log by a successor.
//!
//! Owns the way of a note's bytes into their slot. Notes are rare: what is done here is done under the
//! group's mutex, as every change of the order is. Never looks at what a task would run.

use super::group::{SourceShared, State};
use blkrep_core::source::{NoteDenied, NoteOnLinks, WriteLog};
use blkrep_io::Host;
use blkrep_log::LogHandle;
use blkrep_types::{LinkName, NOTE_BYTES, Note, NoteId, NoteReport, RecordKind, Seq};

/// A note with the names of its links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteStatus {
    /// What it is; its state is of no meaning.
    pub note: NoteReport,
    /// What became of it on each link.
    pub links: Vec<(LinkName, NoteReport)>,
}

impl<H: Host> SourceShared<H> {
    /// Gives a note its place: behind every write that was completed before this call.
    ///
    /// # Errors
    /// It would reach nobody, or the log has no room for it.
    pub fn submit_note(&self, note: &Note) -> Result<Seq, NoteDenied> {
        let bytes = note.encode();
        self.command(|state| {
            let slot = state.group.add_note(note)?;
            self.log().data(slot.position, NOTE_BYTES).write(0, &bytes);
            state.group.publish_note(slot);
            Ok(slot.seq)
        })
    }

    /// The last notes, oldest first.
    #[must_use]
    pub fn notes(&self) -> Vec<NoteStatus> {
        let notes = self.lock().group.notes();
        notes
            .into_iter()
            .map(|note| self.with_names(note))
            .collect()
    }

    /// One of them.
    #[must_use]
    pub fn note(&self, id: NoteId) -> Option<NoteStatus> {
        let note = self.lock().group.note(id);
        note.map(|note| self.with_names(note))
    }

    fn with_names(&self, note: NoteOnLinks) -> NoteStatus {
        let known = self.links();
        let links = note.links.into_iter().filter_map(|(index, report)| {
            let link = known.iter();
            let mut link = link.filter(|link| usize::from(link.place) == index.as_usize());
            Some((link.next()?.name.clone(), report))
        });
        NoteStatus {
            note: note.note,
            links: links.collect(),
        }
    }
}

/// Notes that a predecessor left in its log, and that are complete and in memory.
pub(super) fn adopt_notes<F>(state: &mut State<F>, memory: &LogHandle) {
    let Some(log) = state.group.log() else {
        return;
    };
    let (mut seq, head) = (log.base().1, log.head().1);
    let mut found = Vec::new();
    while seq < head {
        seq = seq.next();
        let entry = log.entry(seq);
        let is_note = matches!(entry.record.kind, RecordKind::Note { .. });
        if is_note && entry.published && entry.away.is_none() {
            let note = memory.data(entry.position, NOTE_BYTES).with(Note::decode);
            found.extend(note.ok().map(|note| (note, seq)));
        }
    }
    for (note, seq) in found {
        state.group.adopt_note(&note, seq);
    }
}
