//! One link of a group.
//!
//! Owns a link's state on its axes (connection, position, transmission, mirror), its maps, and what
//! it has got. Never sends anything: its driver takes records and reports acknowledgements.

use super::mirror::Mirror;
use super::mirror_pace::InFlight;
use super::request::{RequestOp, Stage};
use super::{
    Connection, LinkIndex, LinkMark, LinkStatus, MirrorPhase, Position, Protection, SourceGroup,
    Transmit, WorkerId, WriteLog,
};
use crate::dirty::{Bits, MapLayout, Words};
use crate::identity::Place;
use crate::persist::{CommitNo, KeptMap};
use blkrep_types::{
    ByteLen, DataState, Incarnation, LossPolicy, MirrorKind, Mode, Nanos, Seq, VolumeIndex,
    WriteName, planted,
};
use std::time::Duration;

/// What a link is to be.
#[derive(Debug, Clone, Copy)]
pub struct LinkSetup {
    /// Its place among the group's links, and in the memory log's marks.
    pub place: LinkIndex,
    /// When writes complete.
    pub mode: Mode,
    /// What happens to writes when it is lost, where the mode asks for an acknowledgement.
    pub loss: LossPolicy,
    /// What holds transmission.
    pub transmit: Transmit,
    /// What the target holds may be overwritten, until the first acknowledgement.
    pub overwrite: bool,
    /// The mirror asked for, until the first acknowledgement.
    pub first_mirror: Option<MirrorKind>,
}

/// What a link begins with.
#[derive(Debug)]
pub struct LinkStart<W> {
    /// Extents to send, in memory that outlives the process.
    pub live: Bits<W>,
    /// Extents to compare, in memory that outlives the process.
    pub compare: Bits<W>,
    /// The durable map as it was read.
    pub kept: Bits,
    /// The name from which on the durable map covers every difference.
    pub floor: Option<WriteName>,
    /// The record says that nothing completed without what the mode asks for.
    pub promised: bool,
    /// Nobody noted until now which writes may not be durable.
    pub unnoted: bool,
    /// What a predecessor left, if its memory is intact.
    pub mark: Option<LinkMark>,
}

/// How the dirtying rate is measured.
pub(super) const RATE_WINDOW: Duration = Duration::from_secs(10);

/// Bytes in the current window and in the one before.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Rate {
    since: Nanos,
    current: u64,
    before: u64,
}

impl Rate {
    pub(super) fn add(&mut self, now: Nanos, bytes: ByteLen) {
        self.roll(now);
        self.current += bytes.get();
    }

    fn roll(&mut self, now: Nanos) {
        let age = now.since(self.since);
        if age >= 2 * RATE_WINDOW {
            (self.before, self.current, self.since) = (0, 0, now);
        } else if age >= RATE_WINDOW {
            (self.before, self.current) = (self.current, 0);
            self.since = self.since.after(RATE_WINDOW);
        }
    }

    /// Bytes in about one window up to now.
    pub(super) fn bytes(&mut self, now: Nanos) -> u64 {
        self.roll(now);
        self.before.max(self.current)
    }
}

#[derive(Debug)]
pub(super) struct Link<W> {
    pub(super) mode: Mode,
    pub(super) loss: LossPolicy,
    pub(super) protection: Protection,
    /// Times that writes began to complete without it.
    pub(super) degradations: u64,
    pub(super) overwrite: bool,
    pub(super) first_mirror: Option<MirrorKind>,
    pub(super) connection: Connection,
    position: Position,
    pub(super) transmit: Transmit,
    pub(super) mirror: Mirror,
    pub(super) worker: Option<WorkerId>,
    /// The next place to hand out for the first time in this connection.
    pub(super) next: Seq,
    /// The next place to hand out again, before `next`: what was sent there may be lost.
    pub(super) again: Option<Seq>,
    /// Places up to here are no longer read by the driver.
    pub(super) released: Seq,
    /// Acknowledged as received.
    pub(super) received: Seq,
    /// What is on its way.
    pub(super) in_flight: InFlight,
    /// Nothing up to here is held for it.
    pub(super) held: Seq,
    /// The last name durable at the target, if known to this memory.
    pub(super) acked: Option<Place>,
    pub(super) data_state: DataState,
    pub(super) live: Bits<W>,
    pub(super) compare: Bits<W>,
    /// Extents put into the stream since the epoch began: their durable bits are still needed.
    pub(super) recent: Bits,
    pub(super) kept: KeptMap,
    /// The epoch ends when this place is acknowledged.
    pub(super) epoch: Option<Seq>,
    /// The durable floor, and as a place of this run.
    pub(super) floor: Option<WriteName>,
    pub(super) floor_seq: Seq,
    pub(super) floor_writing: Option<WriteName>,
    /// Writes up to here that were not acknowledged are dirt.
    pub(super) dirt_through: Seq,
    pub(super) plan: Option<crate::identity::Verdict>,
    /// The commit that must be done before the stream may begin.
    pub(super) prepared: Option<CommitNo>,
    pub(super) peer: Option<super::WelcomeFacts>,
    /// The peer that has answered lacks what it had acknowledged.
    pub(super) set_back: bool,
    pub(super) progress_at: Nanos,
    pub(super) dirtied_at: Nanos,
    pub(super) dirtying: Rate,
    pub(super) draining: Rate,
    pub(super) sent_bytes: u64,
    pub(super) framed_bytes: u64,
    pub(super) overflows: u64,
    /// Its target takes notes, as far as it has said.
    pub(super) notes: bool,
}

impl<W: Words> Link<W> {
    fn new(setup: &LinkSetup, start: LinkStart<W>, layout: &MapLayout, base: Place) -> Self {
        let mut recent = Bits::clear_of(layout.bits());
        layout.fill(&mut recent);
        let mark = start.mark;
        let known = mark.filter(|mark| mark.acked_known);
        Self {
            mode: setup.mode,
            loss: setup.loss,
            protection: if start.promised {
                Protection::Kept
            } else {
                Protection::Degraded
            },
            degradations: 0,
            overwrite: setup.overwrite,
            first_mirror: setup.first_mirror,
            connection: Connection::Down,
            position: match mark {
                Some(mark) if mark.following => Position::Following,
                _ => Position::Behind,
            },
            transmit: setup.transmit,
            mirror: Mirror::new(start.mark.is_some_and(|mark| mark.mirror_open)),
            worker: None,
            next: Seq::ZERO,
            again: None,
            released: Seq::ZERO,
            received: Seq::ZERO,
            in_flight: InFlight::default(),
            held: mark.map_or(base.1, |mark| mark.held),
            acked: known.map(|mark| mark.acked),
            data_state: DataState::Unknown,
            live: start.live,
            compare: start.compare,
            recent,
            kept: KeptMap::new(start.kept, layout),
            epoch: None,
            floor: start.floor,
            floor_seq: Seq::ZERO,
            floor_writing: None,
            dirt_through: Seq::ZERO,
            plan: None,
            prepared: None,
            peer: None,
            set_back: false,
            progress_at: Nanos::default(),
            dirtied_at: Nanos::default(),
            dirtying: Rate::default(),
            draining: Rate::default(),
            sent_bytes: 0,
            framed_bytes: 0,
            overflows: 0,
            notes: true,
        }
    }

    pub(super) fn is_following(&self) -> bool {
        self.position == Position::Following
    }

    pub(super) const fn set_position(&mut self, position: Position) {
        self.position = position;
    }

    pub(super) fn connect_to(&mut self, next: Connection) {
        assert!(
            self.connection.may_become(next),
            "a connection goes from {:?} to {next:?}",
            self.connection
        );
        self.connection = next;
    }

    /// These extents may differ; the durable map learns it with its next commit.
    pub(super) fn mark_dirty(&mut self, first: u64, last: u64) {
        let last = if planted!(DirtyFirstExtentOnly) {
            first
        } else {
            last
        };
        self.live.set(first, last);
        self.kept.set(first, last);
    }

    /// These extents are to be compared.
    pub(super) fn mark_compare(&mut self, first: u64, last: u64) {
        self.compare.set(first, last);
        self.kept.set(first, last);
    }

    pub(super) fn dirtied(&mut self, now: Nanos, bytes: ByteLen) {
        self.dirtied_at = now;
        self.dirtying.add(now, bytes);
    }

    /// True if there is something that a mirror would look at.
    pub(super) const fn differs(&self) -> bool {
        self.live.ones() > 0 || self.compare.ones() > 0
    }

    /// What the log must keep for it: nothing after this place may be freed.
    pub(super) fn holds_after(&self) -> Seq {
        let read = if self.released < self.last_read() {
            self.released
        } else {
            Seq::new(u64::MAX)
        };
        if self.is_following() {
            self.held.min(read)
        } else {
            read
        }
    }

    /// The last place that the target may know of in this connection.
    pub(super) const fn last_handed_out(&self) -> Seq {
        Seq::new(self.next.get().saturating_sub(1))
    }

    /// The next place to hand out.
    pub(super) fn cursor(&self) -> Seq {
        self.again.unwrap_or(self.next)
    }

    /// The last place before it.
    pub(super) fn last_read(&self) -> Seq {
        Seq::new(self.cursor().get().saturating_sub(1))
    }

    /// One more was handed out.
    pub(super) fn advance(&mut self) {
        let after = self.cursor().next();
        if self.again.take().is_none() {
            self.next = after;
        } else if after < self.next {
            self.again = Some(after);
        }
    }

    /// The stream goes on there and not where it was.
    pub(super) const fn go_to(&mut self, next: Seq) {
        self.next = next;
        self.again = None;
    }

    /// The target has everything up to here: none of it is handed out again. The log may free it.
    pub(super) fn need_not_again(&mut self, through: Seq) {
        if self.again.is_some_and(|again| again <= through) {
            let after = through.next();
            self.again = (after < self.next).then_some(after);
            self.released = self.last_read();
        }
    }

    pub(super) fn mark(&self) -> LinkMark {
        LinkMark {
            following: self.is_following(),
            mirror_open: self.mirror.open,
            held: self.held,
            acked: self.acked.unwrap_or((Incarnation::default(), Seq::ZERO)),
            acked_known: self.acked.is_some(),
        }
    }
}

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// Gives the group its log, before the first link.
    ///
    /// # Panics
    /// If it has one.
    pub fn set_log(&mut self, log: L) {
        assert!(self.log.is_none(), "a group has one log");
        self.log = Some(log);
        self.adopt_flush_troubles();
    }

    /// Adds a link. What a predecessor left of it is taken over; what the maps say is covered.
    ///
    /// # Panics
    /// If its place is taken or there is no log.
    pub fn add_link(&mut self, setup: &LinkSetup, start: LinkStart<W>) {
        let (base, head) = (self.log_ref().base(), self.log_ref().head().1);
        let unnoted = start.unnoted;
        let mark = start.mark;
        let mark = mark.filter(|mark| !mark.following || mark.held >= base.1);
        let remembered = mark.is_some();
        let start = LinkStart { mark, ..start };
        let mut link = Link::new(setup, start, &self.layout, base);
        if !link.is_following() {
            // What its maps say now covers every write up to here.
            link.dirt_through = head;
        }
        let fresh = !self.has_links();
        for request in self.requests.iter() {
            let changes = request.new.extent.filter(|_| request.slot.is_none());
            if let Some(extent) = changes {
                let (first, last) = self.layout.bits_of(request.new.volume, extent);
                link.mark_dirty(first, last);
            }
        }
        let index = setup.place.as_usize();
        while self.links.len() <= index {
            self.links.push(None);
        }
        assert!(self.links[index].is_none(), "a link has its own place");
        // Bits of a predecessor that only its memory had become durable again.
        for word in 0..link.live.word_count() {
            let bits = link.live.word(word) | link.compare.word(word);
            for_each_run(bits, word, |first, last| {
                link.kept.set(first, last);
            });
        }
        // Without a predecessor's memory nobody knows what the durable map's extents and open
        // regions differ in. The durable map has both from now on, so that regions may be closed.
        if !remembered {
            for word in 0..link.compare.word_count() {
                let doubtful = link.kept.bits().word(word) & !link.live.word(word);
                let all = link.compare.word(word) | doubtful;
                link.compare.set_word(word, all);
            }
            for (volume, extent) in self.intent.open_extents() {
                let (first, last) = self.layout.bits_of(volume, extent);
                link.mark_compare(first, last);
            }
        }
        if fresh && unnoted {
            // Not before: nothing of that differs as long as nobody loses power.
            self.doubt_all();
        }
        link.kept.touch_header();
        self.links[index] = Some(link);
        if fresh {
            self.adopt_entries();
        }
        self.store_mark(setup.place);
        self.want_mirror(setup.place);
    }

    /// The regions that a predecessor left open stay open until what was written there is
    /// acknowledged, and until the maps on disk say so: of what the log holds no more, only that it
    /// came before is known.
    fn adopt_entries(&mut self) {
        let base = self.log_ref().base().1;
        self.intent.adopt_open(base);
        let (mut seq, head) = (self.log_ref().base().1.next(), self.log_ref().head().1);
        while seq <= head {
            let entry = self.log_ref().entry(seq);
            if let (Some(extent), None) = (entry.record.extent, entry.link) {
                self.intent.adopt(entry.record.volume, extent, seq);
            }
            seq = seq.next();
        }
    }

    /// Every region may have a write that is complete and not durable, or under way: without a link nobody
    /// notes that, and what a mirror reads may go with the power. Regions are closed as always.
    pub fn doubt_all(&mut self) {
        let volumes = &self.volumes;
        let covering = |volume: VolumeIndex| volumes[volume.as_usize()].flush.covering();
        self.doubted = self.intent.open_all(self.now, covering);
        for id in self.requests.ids() {
            let request = *self.requests.get(id);
            let changes = matches!(
                request.new.op,
                RequestOp::Write { .. } | RequestOp::Zero { .. }
            );
            let begun = request.stage == Stage::Local || request.stage == Stage::Parked;
            if changes && begun && !request.intent && self.holds_range(id, &request) {
                self.intent.expect(request.new.volume, request.extent());
                self.requests.get_mut(id).intent = true;
            }
        }
    }

    /// Ends a link for good: nothing is tracked for it any more.
    pub fn remove_link(&mut self, index: LinkIndex) {
        let gone = self.links[index.as_usize()].take();
        if gone.is_some_and(|link| link.kept.in_flight()) {
            self.leaving |= 1 << index.as_usize();
        }
        if !self.has_links() {
            self.await_nothing();
        }
        self.log_mut().mark_link(index, &LinkMark::default());
        self.drop_jobs(index);
        self.notes.forget_link(index);
        self.free();
        self.look_after_promises();
        self.room_freed();
        if !self.has_links() {
            // Nobody needs their intents, and nobody looks after the map any more.
            self.intent_commits.clear();
            for id in std::mem::take(&mut self.intent_waiters) {
                self.intended(id);
            }
        }
    }

    /// True if a link may be added there: there is none, and nothing is written for one that is gone.
    #[must_use]
    pub fn is_free(&self, place: LinkIndex) -> bool {
        self.link(place).is_none() && self.leaving >> place.as_usize() & 1 == 0
    }

    /// The worker that drives a link.
    pub fn drive_link(&mut self, index: LinkIndex, worker: WorkerId) {
        if let Some(link) = self.link_mut(index) {
            link.worker = Some(worker);
        }
    }

    /// Compares everything once: nobody has watched the backing. The stream does not go on before: what
    /// is written now follows a state that the target may never have had.
    pub fn distrust(&mut self, index: LinkIndex) {
        if self.is_lost() {
            // Whatever was done to the backing means nothing any more.
            return;
        }
        if self.link(index).is_some_and(Link::is_following) {
            self.turn_behind(index);
        }
        // Whoever wrote meanwhile may not have flushed it.
        self.doubt_all();
        let layout = self.layout.clone();
        let Some(link) = self.link_mut(index) else {
            return;
        };
        for volume in 0..layout.volumes() {
            let volume = VolumeIndex::new(u16::try_from(volume).expect("few volumes"));
            let (first, last) = layout.volume_bits(volume);
            link.mark_compare(first, last);
        }
        self.want_mirror(index);
    }

    pub(super) fn link_mut(&mut self, index: LinkIndex) -> Option<&mut Link<W>> {
        self.links
            .get_mut(index.as_usize())
            .and_then(Option::as_mut)
    }

    pub(super) fn store_mark(&mut self, index: LinkIndex) {
        if let Some(mark) = self.link(index).map(Link::mark) {
            self.log_mut().mark_link(index, &mark);
        }
    }

    pub(super) fn any_following(&self) -> bool {
        self.links.iter().flatten().any(Link::is_following)
    }

    /// The following link that has got least.
    pub(super) fn slowest(&self) -> Option<LinkIndex> {
        self.each_link()
            .filter(|(_, link)| link.is_following())
            .min_by_key(|(_, link)| link.held)
            .map(|(index, _)| index)
    }

    /// Holds or frees transmission. Stopping turns what is queued into dirt.
    pub fn set_transmit(&mut self, index: LinkIndex, transmit: Transmit) {
        let Some(link) = self.link_mut(index) else {
            return;
        };
        link.transmit = transmit;
        if transmit == Transmit::Stopped && link.is_following() {
            self.turn_behind(index);
            self.free();
            self.room_freed();
        }
        self.look_after_promises();
        self.want_mirror(index);
        self.mirror_step(index);
    }

    /// When writes complete.
    pub fn set_mode(&mut self, index: LinkIndex, mode: Mode) {
        if let Some(link) = self.link_mut(index) {
            link.mode = mode;
        }
        self.look_after_promises();
    }

    /// What a status shows.
    #[must_use]
    pub fn link_status(&self, index: LinkIndex) -> Option<LinkStatus> {
        let link = self.link(index)?;
        let head = self.log_ref().head().1;
        let queued = if link.is_following() {
            head.get() - link.held.get().min(head.get())
        } else {
            0
        };
        let oldest = self.ages.iter().find(|(seq, _)| *seq > link.held);
        let acked = link.acked.unwrap_or_default();
        let remaining =
            self.layout.bytes(&link.live).get() + self.layout.bytes(&link.compare).get();
        Some(LinkStatus {
            connection: link.connection,
            position: link.position,
            transmit: link.transmit,
            protection: link.protection,
            degradations: link.degradations,
            mirror: link.mirror.progress(ByteLen::new(remaining)),
            data_state: link.data_state,
            durable: WriteName {
                generation: self.history.current(),
                incarnation: acked.0,
                seq: acked.1,
            },
            queued_ops: queued,
            queued_bytes: if queued == 0 {
                ByteLen::ZERO
            } else {
                self.log_ref().used()
            },
            queued_disk_bytes: if queued == 0 {
                ByteLen::ZERO
            } else {
                self.queue_status().disk
            },
            oldest: oldest.filter(|_| queued > 0).map(|(_, at)| *at),
            dirty_bytes: ByteLen::new(remaining),
            sent_bytes: ByteLen::new(link.sent_bytes),
            framed_bytes: ByteLen::new(link.framed_bytes),
            overflows: link.overflows,
        })
    }

    /// The first mirror and leave to overwrite, as they stand: `None` and `false` once the target
    /// has acknowledged something of this generation.
    #[must_use]
    pub fn link_permits(&self, index: LinkIndex) -> (Option<MirrorKind>, bool) {
        self.link(index)
            .map_or((None, false), |link| (link.first_mirror, link.overwrite))
    }

    /// An operator allows, or takes back, a first mirror and overwriting.
    pub fn permit(&mut self, index: LinkIndex, first: Option<MirrorKind>, overwrite: bool) {
        if let Some(link) = self.link_mut(index) {
            link.first_mirror = first;
            link.overwrite = overwrite;
        }
    }

    /// True if nothing is queued, dirty or being compared for a link.
    #[must_use]
    pub fn link_is_drained(&self, index: LinkIndex) -> bool {
        self.link(index).is_none_or(|link| {
            let all = link.is_following() && link.held == self.log_ref().head().1;
            all && !link.differs() && link.mirror.phase == MirrorPhase::Idle
        })
    }
}

/// Calls `each` with the first and last bit of every run of set bits in a word.
pub(super) fn for_each_run(mut word: u64, index: usize, mut each: impl FnMut(u64, u64)) {
    let base = u64::try_from(index).expect("64-bit platform") * 64;
    while word != 0 {
        let first = word.trailing_zeros();
        let len = (!(word >> first)).trailing_zeros().min(64 - first);
        each(base + u64::from(first), base + u64::from(first + len - 1));
        if first + len == 64 {
            return;
        }
        word &= u64::MAX << (first + len);
    }
}
