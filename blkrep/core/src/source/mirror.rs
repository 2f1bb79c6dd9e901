//! Mirrors: bringing one link's target to equality while writes go on.
//!
//! Owns the phases of a mirror and the commands that change them; driven by acknowledgements,
//! reports of its blocks, and time. A block is read under the range lock and enters the same
//! ordered stream; its dirty bit is cleared when it gets its place, for from then on its log entry
//! covers it. Never takes more than half of the log.
//!
//! ```text
//! Idle -> Waiting -> Running -> Ending -> Idle
//!            ^          |         |
//!            +--overflow+---------+      Paused: by an operator, from any
//! ```

use super::mirror_pace::{InFlight, MirrorPace};
use super::{
    Connection, GroupEvent, LinkIndex, MirrorPhase, MirrorProgress, NewEntry, Position, Slot,
    SourceGroup, Transmit, WriteLog, link,
};
use crate::dirty::Words;
use blkrep_types::{ByteLen, Extent, MirrorKind, Nanos, RecordKind, Seq, VolumeIndex};
use std::time::Duration;

/// Digests of one link that were asked for and not answered.
pub(super) const COMPARES_MAX: usize = 256;

/// A source that has not dirtied anything for this long counts as idle.
const CALM: Duration = Duration::from_secs(1);

/// Overflows in a row after which a mirror is said not to converge.
const OVERFLOWS_TOLERATED: u32 = 2;

#[derive(Debug, Clone, Copy)]
pub(super) struct Compare {
    pub(super) seq: Seq,
    pub(super) volume: VolumeIndex,
    pub(super) extent: Extent,
    pub(super) bit: u64,
    pub(super) ours: Option<[u8; 32]>,
    pub(super) theirs: Option<Option<[u8; 32]>>,
}

#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) phase: MirrorPhase,
    kind: Option<MirrorKind>,
    /// The kind that the next beginning announces.
    pub(super) wanted: Option<MirrorKind>,
    /// Begins by itself when there is something to do.
    automatic: bool,
    /// Begun at the target and not ended in the stream.
    pub(super) open: bool,
    pub(super) begun_at: Option<Seq>,
    end: Option<Seq>,
    pub(super) cursor: u64,
    pub(super) compare_cursor: u64,
    pub(super) compares: Vec<Compare>,
    pub(super) jobs: usize,
    pub(super) sent: u64,
    pub(super) skipped: u64,
    overflows: u32,
    pub(super) retry_at: Nanos,
    not_converging: bool,
    /// That is told.
    told: bool,
    pub(super) pace: MirrorPace,
}

impl Mirror {
    pub(super) fn new(open: bool) -> Self {
        Self {
            phase: MirrorPhase::Idle,
            kind: None,
            wanted: open.then_some(MirrorKind::Difference),
            automatic: true,
            open,
            begun_at: None,
            end: None,
            cursor: 0,
            compare_cursor: 0,
            compares: Vec::with_capacity(COMPARES_MAX),
            jobs: 0,
            sent: 0,
            skipped: 0,
            overflows: 0,
            retry_at: Nanos::default(),
            not_converging: false,
            told: false,
            pace: MirrorPace::default(),
        }
    }

    pub(super) fn go(&mut self, next: MirrorPhase) {
        assert!(
            self.phase.may_become(next),
            "a mirror goes from {:?} to {next:?}",
            self.phase
        );
        self.phase = next;
    }

    pub(super) const fn progress(&self, remaining: ByteLen) -> MirrorProgress {
        MirrorProgress {
            phase: self.phase,
            kind: self.kind,
            sent: ByteLen::new(self.sent),
            skipped: ByteLen::new(self.skipped),
            remaining,
            not_converging: self.not_converging,
            held_back: self.pace.held_back && self.open,
        }
    }

    pub(super) fn overflowed(&mut self, now: Nanos) {
        self.overflows += 1;
        self.retry_at = now.after(link::RATE_WINDOW);
        self.not_converging |= self.overflows > OVERFLOWS_TOLERATED;
    }

    /// Answers to what was asked are no longer expected; it will be asked again.
    pub(super) fn forget_compares(&mut self) {
        self.compares.clear();
        self.compare_cursor = 0;
    }

    /// New extents are to be compared.
    pub(super) const fn restart_compare(&mut self) {
        self.compare_cursor = 0;
    }

    /// The kind of the mirror that is about to begin.
    pub(super) const fn kind_if_due(&self) -> Option<MirrorKind> {
        self.wanted
    }
}

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// A command: mirror now.
    pub fn start_mirror(&mut self, index: LinkIndex, kind: MirrorKind) {
        let layout = &self.layout;
        let Some(link) = self
            .links
            .get_mut(index.as_usize())
            .and_then(Option::as_mut)
        else {
            return;
        };
        match kind {
            MirrorKind::Full => {
                layout.fill(&mut link.live);
                link.keep_all(layout);
            }
            MirrorKind::Checksum => {
                layout.fill(&mut link.compare);
                link.keep_all(layout);
                link.mirror.restart_compare();
            }
            MirrorKind::Difference => {}
        }
        link.mirror.automatic = true;
        link.mirror.wanted = Some(kind);
        link.mirror.retry_at = self.now;
        match link.mirror.phase {
            MirrorPhase::Paused => link.mirror.go(MirrorPhase::Idle),
            MirrorPhase::Running => link.mirror.go(MirrorPhase::Waiting),
            MirrorPhase::Idle | MirrorPhase::Waiting | MirrorPhase::Ending => {}
        }
        self.want_mirror(index);
        self.mirror_step(index);
    }

    /// A command: hold the mirror; its position is kept.
    pub fn pause_mirror(&mut self, index: LinkIndex) {
        if let Some(link) = self.link_mut(index) {
            if link.mirror.phase == MirrorPhase::Idle {
                link.mirror.go(MirrorPhase::Waiting);
            }
            if link.mirror.phase != MirrorPhase::Paused {
                link.mirror.go(MirrorPhase::Paused);
            }
        }
    }

    /// A command: go on with a held mirror.
    pub fn resume_mirror(&mut self, index: LinkIndex) {
        let now = self.now;
        if let Some(link) = self.link_mut(index)
            && link.mirror.phase == MirrorPhase::Paused
        {
            link.mirror.go(MirrorPhase::Idle);
            link.mirror.retry_at = now;
            if link.mirror.open {
                link.mirror.wanted.get_or_insert(MirrorKind::Difference);
            }
        }
        self.want_mirror(index);
        self.mirror_step(index);
    }

    /// A command: end the mirror. What differs stays dirty and is not mirrored by itself.
    pub fn stop_mirror(&mut self, index: LinkIndex) {
        if let Some(link) = self.link_mut(index) {
            link.mirror.automatic = false;
            link.mirror.wanted = None;
            match link.mirror.phase {
                MirrorPhase::Waiting | MirrorPhase::Running | MirrorPhase::Paused => {
                    link.mirror.go(MirrorPhase::Idle);
                }
                MirrorPhase::Idle | MirrorPhase::Ending => {}
            }
        }
    }

    /// A mirror is due if something differs or the log does not keep.
    pub(super) fn want_mirror(&mut self, index: LinkIndex) {
        if let Some(link) = self.link_mut(index)
            && link.mirror.phase == MirrorPhase::Idle
            && link.mirror.automatic
            && (link.differs() || !link.is_following() || link.mirror.wanted.is_some())
        {
            link.mirror.go(MirrorPhase::Waiting);
        }
    }

    /// Takes a link's mirror as far as it can go now.
    pub(super) fn mirror_step(&mut self, index: LinkIndex) {
        let phase = self.link(index).map(|link| link.mirror.phase);
        if !self.may_mirror(index)
            || !matches!(phase, Some(MirrorPhase::Waiting | MirrorPhase::Running))
        {
            return;
        }
        self.begin_mirror(index);
        while let Some((purpose, volume, bits)) = self.pick(index) {
            if !self.start_job(index, purpose, volume, bits) {
                break;
            }
        }
        self.end_mirror(index);
    }

    /// True if a link is connected and nothing holds transmission.
    #[must_use]
    pub fn link_flows(&self, index: LinkIndex) -> bool {
        self.flows(index)
    }

    pub(super) fn flows(&self, index: LinkIndex) -> bool {
        self.link(index).is_some_and(|link| {
            link.connection == Connection::Up
                && link.transmit == Transmit::Started
                && link.worker.is_some()
        })
    }

    /// A mirror that does not converge is told of, once.
    pub(super) fn tell_convergence(&mut self, index: LinkIndex) {
        if let Some(link) = self.link_mut(index)
            && link.mirror.not_converging
            && !std::mem::replace(&mut link.mirror.told, true)
        {
            self.event(GroupEvent::NotConverging { link: index });
        }
    }

    fn begin_mirror(&mut self, index: LinkIndex) {
        if !self.flows(index) {
            return;
        }
        let calm = self.calm(index);
        self.tell_convergence(index);
        if !calm {
            return;
        }
        let link = self.link(index).expect("it flows");
        if link.mirror.phase != MirrorPhase::Waiting || link.mirror.jobs > 0 {
            return;
        }
        let kind = link.mirror.wanted.unwrap_or(MirrorKind::Difference);
        let Some(slot) = self.append_marker(index, RecordKind::MirrorBegin(kind)) else {
            return;
        };
        let link = self.link_mut(index).expect("it flows");
        let before = Seq::new(slot.seq.get() - 1);
        if !link.is_following() {
            if link.released == link.last_read() {
                link.released = before;
            }
            link.go_to(slot.seq);
            link.held = before;
            link.in_flight = InFlight::begins_after(before);
            link.set_position(Position::Following);
        }
        let mirror = &mut link.mirror;
        if let Some(kind) = mirror.wanted.take() {
            mirror.kind = Some(kind);
            (mirror.sent, mirror.skipped) = (0, 0);
        } else if !mirror.open {
            mirror.kind = Some(MirrorKind::Difference);
            (mirror.sent, mirror.skipped) = (0, 0);
        }
        mirror.open = true;
        mirror.begun_at = Some(slot.seq);
        mirror.end = None;
        mirror.forget_compares();
        mirror.go(MirrorPhase::Running);
        self.store_mark(index);
        let link = self.link(index).expect("it flows");
        let bytes = self.layout.bytes(&link.live).get() + self.layout.bytes(&link.compare).get();
        self.event(GroupEvent::MirrorBegun {
            link: index,
            kind: link.mirror.kind.unwrap_or(MirrorKind::Difference),
            bytes: ByteLen::new(bytes),
        });
    }

    /// A link that is behind waits until the source is idle or drains faster than it is dirtied;
    /// the first attempt is made at once.
    fn calm(&mut self, index: LinkIndex) -> bool {
        let now = self.now;
        let Some(link) = self.link_mut(index) else {
            return false;
        };
        if link.mirror.overflows == 0 || now.since(link.dirtied_at) >= CALM {
            return now >= link.mirror.retry_at || link.mirror.overflows > 0;
        }
        if now < link.mirror.retry_at {
            return false;
        }
        let (drain, dirt) = (link.draining.bytes(now), link.dirtying.bytes(now));
        let calm = drain == 0 || drain > dirt;
        link.mirror.not_converging |= !calm;
        if !calm {
            link.mirror.retry_at = now.after(link::RATE_WINDOW);
        }
        calm
    }

    fn append_marker(&mut self, index: LinkIndex, kind: RecordKind) -> Option<Slot> {
        // Without a backing those who wait for room wait for this.
        if !self.log_waiters.is_empty() && !self.is_lost() {
            return None;
        }
        let slot = self.log_mut().append(&NewEntry {
            kind,
            volume: VolumeIndex::default(),
            extent: None,
            link: Some(index),
            local: false,
        })?;
        self.note_age(slot.seq);
        Some(slot)
    }

    fn end_mirror(&mut self, index: LinkIndex) {
        let ready = self.flows(index)
            && self.link(index).is_some_and(|link| {
                link.mirror.phase == MirrorPhase::Running
                    && !link.differs()
                    && link.mirror.jobs == 0
            });
        if !ready {
            return;
        }
        if let Some(slot) = self.append_marker(index, RecordKind::MirrorEnd) {
            let link = self.link_mut(index).expect("it flows");
            link.mirror.end = Some(slot.seq);
            link.mirror.open = false;
            link.mirror.go(MirrorPhase::Ending);
            self.store_mark(index);
        }
    }

    /// A mirror takes no more than half of the log. Where another link that gets nothing holds
    /// that much, the mirror would wait for as long as the application is idle: that link's queue
    /// becomes dirt.
    pub(super) fn make_room_for_mirrors(&mut self) {
        let waits = |index: &LinkIndex| {
            self.flows(*index)
                && self
                    .link(*index)
                    .is_some_and(|link| link.mirror.phase == MirrorPhase::Running && link.differs())
        };
        let Some(mirror) = self
            .link_indices()
            .find(waits)
            .filter(|_| !self.is_lost() && self.pinned.is_none())
        else {
            return;
        };
        let Some(slowest) = self.slowest().filter(|slowest| *slowest != mirror) else {
            return;
        };
        if self.mirror_has_room() || self.tail_is_ours() || self.drains(slowest) {
            return;
        }
        self.overflow();
        self.go_on();
    }

    /// An acknowledgement may have ended the mirror.
    pub(super) fn mirror_acked(&mut self, index: LinkIndex) {
        let Some(link) = self.link_mut(index) else {
            return;
        };
        let ended = link.mirror.end.is_some_and(|end| link.held >= end);
        if link.mirror.phase == MirrorPhase::Ending && ended {
            link.mirror.go(MirrorPhase::Idle);
            link.mirror.overflows = 0;
            (link.mirror.not_converging, link.mirror.told) = (false, false);
            let event = GroupEvent::MirrorDone {
                link: index,
                sent: ByteLen::new(link.mirror.sent),
                skipped: ByteLen::new(link.mirror.skipped),
            };
            self.event(event);
        }
        self.want_mirror(index);
    }
}
