//! The ordered stream: what a link is handed, what it acknowledges, what the log lets go.
//!
//! Owns positions in the log and overflow. Acknowledgements enter, records leave. An entry is
//! freed in order, when its local write is done, its bytes are complete, and every link that
//! follows has it durably.

use super::link::Link;
use super::mirror_pace::InFlight;
use super::{
    Acks, Connection, GroupEvent, LinkIndex, LogEntry, MirrorPhase, Outgoing, Position,
    SourceGroup, Transmit, WriteLog, upkeep,
};
use crate::dirty::Words;
use crate::identity::{Place, place};
use blkrep_types::{ByteLen, Generation, Record, RecordKind, Seq, VolumeIndex, planted};

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// Appends the next records for a link, at most `records_max` with `bytes_max` bytes but at
    /// least one; stops before the first whose bytes are not complete, or are away and not where `read`
    /// says. True if more are there.
    pub fn next_records(
        &mut self,
        index: LinkIndex,
        records_max: usize,
        bytes_max: usize,
        read: impl Fn(Seq) -> Option<usize>,
        out: &mut Vec<Outgoing>,
    ) -> bool {
        let before = self
            .link(index)
            .map(|link| (link.notes, link.last_handed_out()));
        let more = self.hand_out(index, records_max, bytes_max, read, out);
        if let Some((false, after)) = before {
            let through = self.link(index).map_or(after, Link::last_handed_out);
            self.notes_not_sent(index, after, through);
        }
        more
    }

    fn hand_out(
        &mut self,
        index: LinkIndex,
        records_max: usize,
        bytes_max: usize,
        read: impl Fn(Seq) -> Option<usize>,
        out: &mut Vec<Outgoing>,
    ) -> bool {
        let Some((log, link)) = self.log.as_ref().zip(
            self.links
                .get_mut(index.as_usize())
                .and_then(Option::as_mut),
        ) else {
            return false;
        };
        let flows = link.connection == Connection::Up && link.transmit == Transmit::Started;
        if !flows || !link.is_following() {
            return false;
        }
        let (head, limit) = (log.head().1, self.options.stream.in_flight);
        let (mut records, mut bytes) = (0, 0);
        while link.cursor() <= head {
            let entry = log.entry(link.cursor());
            if !entry.published {
                return false;
            }
            let record = record_for(&entry, index, link.notes);
            let len = data_len(&record);
            let away = len > 0 && entry.away.is_some() && !planted!(AwayTakenFromMemory);
            let position = match away {
                true => read(record.seq),
                false => Some(entry.position),
            };
            let Some(position) = position else {
                return false;
            };
            if records == records_max || (records > 0 && bytes + len > bytes_max) {
                return true;
            }
            let wire = u64::try_from(len).expect("64-bit platform");
            // What is handed out again is under way already.
            if link.again.is_none() && !link.in_flight.allows(wire, limit) {
                return false;
            }
            records += 1;
            bytes += len;
            if link.again.is_none() {
                link.in_flight.add(wire);
            }
            link.sent_bytes += wire;
            link.advance();
            out.push(Outgoing {
                record,
                position,
                away,
            });
        }
        false
    }

    /// True if a link could be handed something now; as [`SourceGroup::next_records`].
    #[must_use]
    pub fn has_records(&self, index: LinkIndex, read: impl Fn(Seq) -> Option<usize>) -> bool {
        self.link(index).is_some_and(|link| {
            let flows = link.connection == Connection::Up && link.transmit == Transmit::Started;
            let there = link.cursor() <= self.log_ref().head().1;
            let follows = flows && link.is_following() && there;
            follows && {
                let entry = self.log_ref().entry(link.cursor());
                let unable = !link.notes && matches!(entry.record.kind, RecordKind::Note { .. });
                let ours = entry.link.is_none_or(|owner| owner == index) && !unable;
                let here = entry.away.is_none() || !ours || read(link.cursor()).is_some();
                let bytes = data_len(&record_for(&entry, index, link.notes)) as u64;
                let limit = self.options.stream.in_flight;
                let may = link.again.is_some() || link.in_flight.allows(bytes, limit);
                entry.published && here && may
            }
        })
    }

    /// The driver no longer reads the bytes of records up to `through`, which took so many on the wire.
    pub fn release(&mut self, index: LinkIndex, through: Seq, framed: ByteLen) {
        let Some(link) = self.link_mut(index) else {
            return;
        };
        link.framed_bytes += framed.get();
        link.released = link.released.max(through.min(link.last_read()));
        self.free_and_go_on();
    }

    /// What was handed out in this connection and is not acknowledged as received may be lost: it is handed
    /// out again, from the first on. The driver reads nothing now.
    pub fn send_again(&mut self, index: LinkIndex) {
        let Some(link) = self.link_mut(index) else {
            return;
        };
        let flows = link.connection == Connection::Up && link.is_following();
        let from = link.received.max(link.held);
        if !flows || from >= link.last_handed_out() || planted!(LostBatchesNotSentAgain) {
            return;
        }
        link.again = Some(from.next());
        link.released = from;
        let base = self.log_ref().base().1;
        assert!(from >= base, "the log holds what the target may lack");
    }

    /// Takes an acknowledgement. False if it names a write that was not sent.
    pub fn acked(&mut self, index: LinkIndex, acks: &Acks) -> bool {
        let Some(durable) = self.check_ack(index, acks.durable) else {
            return false;
        };
        let Some(received) = self.check_ack(index, acks.received) else {
            return false;
        };
        let durable = if planted!(FreeLogAtReceived) {
            received
        } else {
            durable
        };
        let now = self.now;
        let drained = self.log_ref().used();
        self.count_received(index, received.max(durable).unwrap_or_default());
        self.target_journal(index, &acks.journal);
        let Some(link) = self.link_mut(index) else {
            return true;
        };
        link.data_state = acks.data_state;
        link.received = link.received.max(received.unwrap_or_default());
        let mut permits = false;
        if acks.durable.generation != Generation::NONE {
            link.acked = link.acked.max(Some(place(acks.durable)));
        }
        if let Some(seq) = durable
            && link.is_following()
            && seq > link.held
        {
            link.held = seq;
            if planted!(AckOneTooFar) {
                link.held = seq.next().min(link.last_handed_out());
            }
            link.progress_at = now;
            permits = link.mirror.begun_at.is_some_and(|begun| seq >= begun);
        }
        let got = link.received.max(link.held);
        link.need_not_again(got);
        link.mirror.pace.acked(got);
        if planted!(ClearDirtyAtAck) && durable.is_some_and(|seq| seq >= link.last_handed_out()) {
            link.live.clear_all();
        }
        if permits {
            link.first_mirror = None;
            link.overwrite = false;
        }
        self.store_mark(index);
        self.free();
        let freed = drained.get() - self.log_ref().used().get().min(drained.get());
        if let Some(link) = self.link_mut(index) {
            link.draining.add(now, ByteLen::new(freed));
        }
        self.mirror_acked(index);
        self.look_after_promises();
        self.go_on();
        true
    }

    /// `None` if the name is wrong; `Some(None)` if it is right and old.
    #[allow(clippy::option_option)]
    fn check_ack(&self, index: LinkIndex, name: blkrep_types::WriteName) -> Option<Option<Seq>> {
        if name.generation == Generation::NONE {
            return Some(None);
        }
        let link = self.link(index)?;
        let peer = link.peer.as_ref()?;
        let at = place(name);
        let known_old = name == peer.durable || link.acked == Some(at);
        if name.generation != self.history.current() {
            return known_old.then_some(None);
        }
        if name.seq <= link.last_handed_out() && self.name_at(name.seq) == Some(at) {
            return Some(Some(name.seq));
        }
        let sent = name.seq <= link.last_handed_out() && at <= self.log_ref().base();
        let old = known_old || sent;
        old.then_some(None)
    }

    /// The place of the entry with this number, or of the base.
    pub(super) fn name_at(&self, seq: Seq) -> Option<Place> {
        let log = self.log_ref();
        let (base, head) = (log.base(), log.head());
        if seq == base.1 {
            return Some(base);
        }
        (seq > base.1 && seq <= head.1).then(|| (log.entry(seq).record.incarnation, seq))
    }

    /// Frees what nobody needs any more; writes and mirrors that waited for room go on.
    pub(super) fn free_and_go_on(&mut self) {
        if self.free() {
            self.go_on();
        }
    }

    /// There may be room: those who waited for it go on, on every link.
    pub(super) fn go_on(&mut self) {
        self.room_freed();
        self.ask();
        for index in self.link_indices() {
            self.mirror_step(index);
        }
    }

    /// Frees what nobody needs any more; true if that was something.
    pub(super) fn free(&mut self) -> bool {
        let Some(log) = self.log.as_mut() else {
            return false;
        };
        let holders = self.links.iter().flatten();
        let limit = holders.map(super::link::Link::holds_after).min();
        let limit = limit.unwrap_or(Seq::new(u64::MAX)).min(log.head().1);
        let (base, mut seq) = (log.base().1, log.base().1);
        let mut away = 0;
        while seq < limit {
            let entry = log.entry(seq.next());
            if !(entry.local_done && entry.published) {
                break;
            }
            if entry.away.is_some() {
                away += entry.record.data_len().get();
            }
            seq = seq.next();
        }
        if seq > base {
            log.free_through(seq);
            upkeep::forget_ages(&mut self.ages, seq);
            self.note_gone(away);
            self.drain_queue();
        }
        seq > base
    }

    /// True if the oldest entry is held by a local operation or a driver, not by what a link has
    /// not got: there will be room soon without giving anything up.
    pub(super) fn tail_is_ours(&self) -> bool {
        let log = self.log_ref();
        let tail = log.base().1.next();
        if tail > log.head().1 {
            return false;
        }
        let entry = log.entry(tail);
        let read = self
            .links
            .iter()
            .flatten()
            .any(|link| !link.is_following() && link.holds_after() < tail);
        !entry.local_done || !entry.published || read
    }

    /// The log cannot take the next write: gives up keeping for the slowest link.
    pub(super) fn overflow(&mut self) {
        let index = self.slowest().expect("somebody follows");
        self.turn_behind(index);
        let now = self.now;
        let link = self.link_mut(index).expect("just found");
        link.overflows += 1;
        link.mirror.overflowed(now);
        self.event(GroupEvent::Behind { link: index });
        self.tell_convergence(index);
        self.free();
        self.look_after_promises();
    }

    /// All that a link has not durably got becomes dirt, for all volumes at once; from now on
    /// writes only set its dirty bits.
    pub(super) fn turn_behind(&mut self, index: LinkIndex) {
        assert!(
            self.serving() != Some(index) || !self.has_joined(index),
            "what the target that serves lacks is nowhere but in the log"
        );
        let head = self.log_ref().head().1;
        let last = Seq::new(head.get() - u64::from(planted!(DropTailOnOverflow)));
        let log = self.log.as_ref().expect("a group with links has a log");
        let link = self.links[index.as_usize()].as_mut().expect("it exists");
        let followed = link.is_following().then_some(link.held);
        let mut seq = link.held.next();
        while link.is_following() && seq <= last {
            let entry = log.entry(seq);
            let ours = entry.link.is_none_or(|owner| owner == index)
                && !(planted!(OverflowOneVolume) && entry.record.volume.get() > 0);
            let changes = matches!(
                entry.record.kind,
                RecordKind::Data { .. } | RecordKind::Zero { .. }
            );
            let ours = ours && !(planted!(OverflowForgetsAway) && entry.away.is_some());
            if let Some(extent) = entry.record.extent.filter(|_| ours && changes) {
                let (first, last) = self.layout.bits_of(entry.record.volume, extent);
                link.mark_dirty(first, last);
            }
            seq = seq.next();
        }
        link.set_position(Position::Behind);
        link.dirt_through = head;
        link.in_flight = InFlight::begins_after(link.last_handed_out());
        link.mirror.pace.forget();
        link.mirror.forget_compares();
        match link.mirror.phase {
            MirrorPhase::Running | MirrorPhase::Ending => link.mirror.go(MirrorPhase::Waiting),
            MirrorPhase::Idle | MirrorPhase::Waiting | MirrorPhase::Paused => {}
        }
        if let Some(held) = followed {
            self.notes_overrun(index, held);
        }
        self.store_mark(index);
        self.want_mirror(index);
    }
}

/// What a link is handed of an entry: of another link's, and of a note that its target does not know,
/// nothing but its place.
pub(super) fn record_for(entry: &LogEntry, index: LinkIndex, notes: bool) -> Record {
    let mut record = entry.record;
    let unable = !notes && matches!(record.kind, RecordKind::Note { .. });
    if unable || entry.link.is_some_and(|owner| owner != index) {
        record.kind = RecordKind::Void;
        record.extent = None;
        record.volume = VolumeIndex::default();
    }
    record
}

pub(super) fn data_len(record: &Record) -> usize {
    record.data_len().as_usize()
}
