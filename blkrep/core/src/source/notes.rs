//! Notes: bookmarks and tasks that the source puts into its order.
//!
//! Owns where each of the last notes stands, link by link: places and positions say how far it is on its
//! way, the target's reports what became of it. Notes enter with their place, reports as they come; a
//! list leaves. Never looks at what a task would run.

use super::{Gate, GroupEvent, LinkIndex, NewEntry, Slot, SourceGroup, WriteLog};
use crate::dirty::Words;
use blkrep_types::{Note, NoteId, NoteReport, NoteState, RecordKind, Seq, VolumeIndex, WriteName};
use std::collections::VecDeque;

/// Notes that are remembered: more than people look at, and small. The oldest go first; a target still
/// does what it was sent.
pub const NOTES_KEPT: usize = 128;

/// Why a note gets no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoteDenied {
    /// The group has no links: nobody would hear of it.
    NoLinks,
    /// Every link is behind: what is sent next is a mirror, in which no place means anything.
    Behind,
    /// No link's target takes notes.
    Unable,
    /// The log has no room just now.
    Full,
    /// The group is frozen or fenced.
    Closed,
}

/// What is known of a note on one link.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// Its place says how far it is.
    OnItsWay,
    /// It is not sent any more.
    Dropped(NoteState, &'static str),
    /// What the target said last.
    Told(NoteReport),
}

/// A note and its fates.
#[derive(Debug)]
struct Kept {
    report: NoteReport,
    links: Vec<(LinkIndex, Fate)>,
}

/// The notes of a group.
#[derive(Debug, Default)]
pub(super) struct Notes(VecDeque<Kept>);

/// A note as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteOnLinks {
    /// What it is; its state is of no meaning.
    pub note: NoteReport,
    /// What became of it on each link that it was put in for.
    pub links: Vec<(LinkIndex, NoteReport)>,
}

const OVERRUN: &str = "the link fell behind before it was there: a mirror follows, in which its place means \
                       nothing";
const TOO_OLD: &str =
    "the target's blkrepd is too old for bookmarks and tasks: install a newer one there";

impl Notes {
    fn push(&mut self, kept: Kept) {
        while self.0.len() >= NOTES_KEPT {
            self.0.pop_front();
        }
        self.0.push_back(kept);
    }

    /// Drops what is on its way on a link between two places; those of them.
    fn drop_between(
        &mut self,
        link: LinkIndex,
        (after, through): (Seq, Seq),
        state: NoteState,
        why: &'static str,
    ) -> Vec<NoteReport> {
        let mut dropped = Vec::new();
        for kept in &mut self.0 {
            let within = kept.report.name.seq > after && kept.report.name.seq <= through;
            let fates = kept
                .links
                .iter_mut()
                .filter(|(of, _)| *of == link && within);
            for (_, fate) in fates.filter(|(_, fate)| *fate == Fate::OnItsWay) {
                *fate = Fate::Dropped(state, why);
                dropped.push(NoteReport {
                    state,
                    output: why.to_owned(),
                    ..kept.report.clone()
                });
            }
        }
        dropped
    }

    /// A link is gone.
    pub(super) fn forget_link(&mut self, link: LinkIndex) {
        for kept in &mut self.0 {
            kept.links.retain(|(of, _)| *of != link);
        }
    }
}

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// Gives a note its place, after every write that has one. Its bytes go into the slot; then
    /// [`SourceGroup::publish_note`].
    ///
    /// # Errors
    /// It would reach nobody, or there is no room.
    pub fn add_note(&mut self, note: &Note) -> Result<Slot, NoteDenied> {
        if self.gate() != Gate::Open {
            return Err(NoteDenied::Closed);
        }
        if !self.has_links() {
            return Err(NoteDenied::NoLinks);
        }
        if !self.any_following() {
            return Err(NoteDenied::Behind);
        }
        let mut links = self.links.iter().flatten();
        if !links.any(|link| link.is_following() && link.notes) {
            return Err(NoteDenied::Unable);
        }
        let entry = NewEntry {
            kind: RecordKind::Note {
                task: note.kind.is_task(),
            },
            volume: VolumeIndex::default(),
            extent: None,
            link: None,
            local: false,
        };
        let room = self.log_waiters.is_empty();
        let slot = room.then(|| self.log_mut().append(&entry)).flatten();
        let slot = slot.ok_or(NoteDenied::Full)?;
        self.note_age(slot.seq);
        self.keep_note(note, slot.seq);
        Ok(slot)
    }

    /// The bytes of a note are in its slot.
    pub fn publish_note(&mut self, slot: Slot) {
        self.log_mut().publish(slot.seq);
    }

    /// A note of the last run is in the log, after the links were added.
    pub fn adopt_note(&mut self, note: &Note, seq: Seq) {
        self.keep_note(note, seq);
    }

    fn keep_note(&mut self, note: &Note, seq: Seq) {
        let place = self.log_ref().entry(seq).record;
        let name = WriteName {
            generation: self.history().current(),
            incarnation: place.incarnation,
            seq,
        };
        let report = NoteReport::of(note, name, NoteState::Queued);
        let links = self.each_link().map(|(index, link)| {
            let fate = match link.is_following() {
                true => Fate::OnItsWay,
                false => Fate::Dropped(NoteState::Skipped, OVERRUN),
            };
            (index, fate)
        });
        let links = links.collect();
        self.notes.push(Kept { report, links });
    }

    /// The target of a link takes notes, or is too old for them.
    pub fn takes_notes(&mut self, index: LinkIndex, able: bool) {
        if let Some(link) = self.link_mut(index) {
            link.notes = able;
        }
    }

    /// A link is handed places up to here as nothing, because its target takes no notes.
    pub(super) fn notes_not_sent(&mut self, index: LinkIndex, after: Seq, through: Seq) {
        let state = NoteState::Unable;
        let dropped = self
            .notes
            .drop_between(index, (after, through), state, TOO_OLD);
        self.tell_notes(index, dropped);
    }

    /// What the log has for a link is given up.
    pub(super) fn notes_overrun(&mut self, index: LinkIndex, after: Seq) {
        let all = (after, Seq::new(u64::MAX));
        let dropped = self
            .notes
            .drop_between(index, all, NoteState::Skipped, OVERRUN);
        self.tell_notes(index, dropped);
    }

    fn tell_notes(&mut self, link: LinkIndex, dropped: Vec<NoteReport>) {
        for report in dropped {
            let report = Box::new(report);
            self.event(GroupEvent::Note { link, report });
        }
    }

    /// A target says what became of a note. What it said of one that is not known here is remembered too:
    /// it may be of a run before this one.
    pub fn note_report(&mut self, link: LinkIndex, report: &NoteReport) {
        let told = |fate: &Fate| match fate {
            Fate::Told(before) => Some(before.state),
            Fate::Dropped(state, _) => Some(*state),
            Fate::OnItsWay => None,
        };
        let found = self
            .notes
            .0
            .iter_mut()
            .find(|kept| kept.report.id == report.id);
        let Some(kept) = found else {
            let links = vec![(link, Fate::Told(report.clone()))];
            let report = report.clone();
            return self.notes.push(Kept { report, links });
        };
        let fate = kept.links.iter_mut().find(|(of, _)| *of == link);
        let before = fate.as_ref().and_then(|(_, fate)| told(fate));
        if before.is_some_and(|state| state == report.state) {
            return;
        }
        match fate {
            Some((_, fate)) => *fate = Fate::Told(report.clone()),
            None => kept.links.push((link, Fate::Told(report.clone()))),
        }
        let report = Box::new(report.clone());
        self.event(GroupEvent::Note { link, report });
    }

    /// The last notes, oldest first.
    #[must_use]
    pub fn notes(&self) -> Vec<NoteOnLinks> {
        let shown = self.notes.0.iter().map(|kept| self.shown(kept));
        shown.collect()
    }

    /// One of them.
    #[must_use]
    pub fn note(&self, id: NoteId) -> Option<NoteOnLinks> {
        let found = self.notes.0.iter().find(|kept| kept.report.id == id);
        found.map(|kept| self.shown(kept))
    }

    fn shown(&self, kept: &Kept) -> NoteOnLinks {
        let links = kept.links.iter().filter_map(|(index, fate)| {
            let link = self.link(*index)?;
            let seq = kept.report.name.seq;
            let report = match fate {
                Fate::Told(report) => report.clone(),
                Fate::Dropped(state, why) => NoteReport {
                    state: *state,
                    output: (*why).to_owned(),
                    ..kept.report.clone()
                },
                Fate::OnItsWay => NoteReport {
                    state: if seq <= link.held {
                        NoteState::Waiting
                    } else if seq <= link.last_handed_out() {
                        NoteState::Sent
                    } else {
                        NoteState::Queued
                    },
                    ..kept.report.clone()
                },
            };
            Some((*index, report))
        });
        NoteOnLinks {
            note: kept.report.clone(),
            links: links.collect(),
        }
    }
}
