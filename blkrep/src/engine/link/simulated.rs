//! A target that is not there, for a link that sends nothing.
//!
//! Owns the answers of such a target and what would have been sent to it, measured. Records enter as they
//! would leave; acknowledgements come back at once. What it is said to hold, it does not: whoever shows a link's
//! state says so.

use super::control::LinkSettings;
use blkrep_core::meter::{Frame, Meter};
use blkrep_core::source::HelloFacts;
use blkrep_types::{ByteLen, DataState, Generation, History, Incarnation, Nanos, Seq, WriteName};
use blkrep_types::{NodeName, Note, NoteReport, NoteState, RecordKind};
use blkrep_wire::{
    Ack, Applying, Codecs, DigestReply, Entry, MapEnd, Message, PeerRole, SessionId, VERSION_MAX,
    Welcome, WelcomeVolume,
};
use std::collections::VecDeque;

/// Room that its journal is said to have: enough that no source waits for it.
const JOURNAL: ByteLen = ByteLen::new(1 << 40);

/// What it is called.
pub(super) const NAME: &str = "null";

/// One connection's worth of a target.
#[derive(Debug)]
pub(super) struct NullPeer {
    answers: VecDeque<Message>,
    /// The last record it was sent and has not acknowledged.
    last: Option<(Incarnation, Seq)>,
    digests: Vec<DigestReply>,
    /// Notes that it was sent, and has nothing to do about.
    notes: VecDeque<(Note, Incarnation, Seq)>,
    pub(super) meter: Meter,
}

impl NullPeer {
    /// Answers what a source says first. It holds what it has acknowledged before, as the group remembers it; if
    /// the group does not, it is new.
    pub(super) fn new(
        facts: &HelloFacts,
        held: WriteName,
        now: Nanos,
        settings: &LinkSettings,
        meter: Option<Meter>,
    ) -> Self {
        let volume = |volume: &blkrep_core::source::VolumeFacts| WelcomeVolume {
            index: volume.index,
            len: volume.len,
        };
        let known = held.seq > Seq::ZERO && held.generation == facts.history.current();
        let welcome = Welcome {
            version: VERSION_MAX,
            node: NodeName::new(NAME).expect("letters"),
            role: PeerRole::Target,
            data_state: DataState::Ok,
            history: match known {
                true => facts.history.clone(),
                false => History::new(),
            },
            durable: match known {
                true => held,
                false => WriteName::NONE,
            },
            journal_used: ByteLen::ZERO,
            journal_capacity: JOURNAL,
            codecs: Codecs::ZSTD,
            connections: 1,
            reads: false,
            session: SessionId::NONE,
            volumes: facts.volumes.iter().map(volume).collect(),
        };
        let end = MapEnd {
            part_count: 0,
            unknown: false,
        };
        Self {
            answers: [Message::Welcome(Box::new(welcome)), Message::MapEnd(end)].into(),
            last: None,
            digests: Vec::new(),
            notes: VecDeque::new(),
            meter: meter.unwrap_or_else(|| Meter::new(now, settings.simulated_rate)),
        }
    }

    /// These records would have been sent, as so many bytes.
    pub(super) fn takes(&mut self, now: Nanos, entries: &[Entry], framed: ByteLen) {
        let mut frame = Frame {
            writes: 0,
            mirror: 0,
            framed: framed.get(),
        };
        for entry in entries {
            let record = &entry.record;
            let len = entry.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
            match record.kind {
                RecordKind::Data { mirror: true } => frame.mirror += len,
                _ => frame.writes += len,
            }
            if record.kind == RecordKind::Compare
                && let Some(extent) = record.extent
            {
                // It cannot tell: what is compared counts as different.
                self.digests.push(DigestReply {
                    incarnation: record.incarnation,
                    seq: record.seq,
                    volume: record.volume,
                    extent,
                    digest: None,
                });
            }
            if let (RecordKind::Note { .. }, Some(bytes)) = (record.kind, &entry.bytes)
                && let Ok(note) = bytes.with(Note::decode)
            {
                self.notes.push_back((note, record.incarnation, record.seq));
            }
            self.last = Some((record.incarnation, record.seq));
        }
        self.meter.took(now, frame);
    }

    /// What it says next; acknowledgements only of a stream, which is of this generation.
    pub(super) fn says(&mut self, stream: Option<Generation>) -> Option<Message> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        if !self.digests.is_empty() {
            return Some(Message::Digests(std::mem::take(&mut self.digests)));
        }
        let generation = stream?;
        if let Some((note, incarnation, seq)) = self.notes.pop_front() {
            let name = WriteName {
                generation,
                incarnation,
                seq,
            };
            let mut report = NoteReport::of(&note, name, NoteState::Skipped);
            "the link sends nothing: there is no target".clone_into(&mut report.output);
            return Some(Message::Note(Box::new(report)));
        }
        let (incarnation, seq) = self.last.take()?;
        let name = WriteName {
            generation,
            incarnation,
            seq,
        };
        Some(Message::Ack(Ack {
            received: name,
            durable: name,
            applied: name,
            journal_used: ByteLen::ZERO,
            journal_capacity: JOURNAL,
            data_state: DataState::Ok,
            applying: Applying::Running,
            held: false,
        }))
    }
}
