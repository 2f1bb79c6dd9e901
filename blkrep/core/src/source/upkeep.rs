//! What is done in the background: commits of map files, closing of regions, floors, ages.
//!
//! Owns when a map file is written and when a durable bit may be cleared. Time and reports of
//! commits enter; commits and flushes leave.

use super::{GroupEvent, LinkIndex, LinkStatus, SourceGroup, WriteLog, link};
use crate::dirty::Words;
use crate::identity::Place;
use crate::intent::CloseRound;
use crate::persist::KeptMap;
use blkrep_types::{Errno, Nanos, Seq, VolumeIndex, WriteName, planted};
use std::collections::VecDeque;
use std::time::Duration;

/// How often the background is looked after while there is a link.
const TICK: Duration = Duration::from_millis(500);

/// A changed map that nobody waits for is written after this long.
const LAZY_COMMIT: Duration = Duration::from_secs(1);

/// A map file that could not be written is tried again after this long.
const COMMIT_RETRY: Duration = Duration::from_secs(1);

/// Samples of when a place was given; more would not make the lag more precise.
pub(super) const AGES_MAX: usize = 4096;

/// Places given within this span share a sample.
const AGE_GRAIN: Duration = Duration::from_millis(5);

/// A map file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapId {
    /// The intent map of the group.
    Intent,
    /// The dirty map of a link.
    Link(LinkIndex),
}

/// What the header of a link's map says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkHead {
    /// The best floor.
    pub floor: Option<WriteName>,
    /// Nothing completes without what the mode asks for.
    pub promised: bool,
}

/// Forgets when places up to `through` were given.
pub(super) fn forget_ages(ages: &mut VecDeque<(Seq, Nanos)>, through: Seq) {
    while ages.front().is_some_and(|(seq, _)| *seq <= through) {
        ages.pop_front();
    }
}

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// Remembers when a place was given. A sample stands for the places up to it.
    pub(super) fn note_age(&mut self, seq: Seq) {
        let full = self.ages.len() == AGES_MAX;
        if let Some((last, at)) = self.ages.back_mut()
            && (full || self.now.since(*at) < AGE_GRAIN)
        {
            *last = seq;
            return;
        }
        self.ages.push_back((seq, self.now));
    }

    /// When the group wants its next turn at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Nanos> {
        if !self.has_links() {
            return None;
        }
        // With its patience over, a write waits for an operation of ours: its end is a turn.
        let patience = self.log_wait_since.after(self.options.throttle_max);
        let waiting = (!self.log_waiters.is_empty() && patience > self.now).then_some(patience);
        let links = self.patience_with_links_ends();
        let links = links.filter(|end| *end > self.now);
        let delay = self.delay_ends().filter(|end| *end > self.now);
        let all = [Some(self.tick_at), waiting, links, delay];
        all.into_iter().flatten().min()
    }

    /// Looks after the background if it is time.
    pub fn tick(&mut self) {
        if !self.has_links() {
            return;
        }
        self.room_freed();
        let patience = self.patience_with_links_ends();
        if patience.is_some_and(|end| end <= self.now) {
            self.look_after_promises();
        }
        if self.now < self.tick_at {
            return;
        }
        self.tick_at = self.now.after(TICK);
        self.look_after_promises();
        self.look_after_awaited();
        let mut round = self.close_regions();
        if self.is_lost() {
            round.flush.clear();
        }
        for volume in &round.flush {
            self.flush_soon(*volume);
        }
        self.make_room_for_mirrors();
        for index in self.link_indices() {
            self.look_after_link(index, round.waits_for_links);
        }
        if self.now >= self.lazy_commit_at {
            self.lazy_commit_at = self.now.after(LAZY_COMMIT);
            self.note_due_commits(true);
        }
    }

    fn close_regions(&mut self) -> CloseRound {
        let (volumes, links, layout) = (&self.volumes, &self.links, &self.layout);
        let all = planted!(CloseRegionUncovered);
        let idle = self.stopping.then_some(Duration::ZERO);
        self.intent.close_idle(
            self.now,
            idle,
            |volume| match planted!(ClearIntentBeforeFlush) {
                true => u64::MAX,
                false => volumes[volume.as_usize()].flush.succeeded(),
            },
            |volume, extent, seq| {
                let (first, last) = layout.bits_of(volume, extent);
                let mut links = links.iter().flatten();
                all || links.all(|link| link.covers(first, last, seq))
            },
        )
    }

    fn look_after_link(&mut self, index: LinkIndex, waited_for: bool) {
        let named = self
            .link(index)
            .is_some_and(|link| link.acked.is_some() && self.name_at(link.held) == link.acked);
        let noted = self.intent.kept().is_done(self.doubted);
        let layout = &self.layout;
        let head = self.log.as_ref().map_or(Seq::ZERO, |log| log.head().1);
        let Some(link) = self
            .links
            .get_mut(index.as_usize())
            .and_then(Option::as_mut)
        else {
            return;
        };
        debug_assert_eq!(link.live.word_count(), layout.words(), "one layout");
        match link.epoch {
            // What the intent map is to stand for is durable there first.
            Some(_) if !noted => {}
            Some(through) if link.floor_seq >= through || planted!(SweepBeforeAck) => link.sweep(),
            Some(_) => {}
            None if link.is_following() && link.acked.is_some() && link.has_stale_bits() => {
                link.recent.clear_all();
                link.epoch = Some(head);
            }
            None => {}
        }
        let wanted = waited_for || link.epoch.is_some_and(|through| link.held >= through);
        let raised = match link.is_following() {
            true => named && link.held > link.floor_seq,
            false => link.plan.is_none() && link.acked_seq() > link.floor_seq,
        };
        if wanted && raised {
            link.kept.touch_header();
            link.kept.hurry();
        }
        self.want_mirror(index);
        self.mirror_step(index);
    }

    fn map(&self, map: MapId) -> Option<&KeptMap> {
        match map {
            MapId::Intent => Some(self.intent.kept()),
            MapId::Link(index) => self.link(index).map(|link| &link.kept),
        }
    }

    fn map_mut(&mut self, map: MapId) -> Option<&mut KeptMap> {
        match map {
            MapId::Intent => Some(self.intent.kept_mut()),
            MapId::Link(index) => self.link_mut(index).map(|link| &mut link.kept),
        }
    }

    fn note_due_commits(&mut self, lazily: bool) {
        let links = self.link_indices().map(MapId::Link);
        for map in links.chain([MapId::Intent]) {
            let due = self.map(map).is_some_and(|kept| kept.wants_commit(lazily));
            if due && !self.commits_due.contains(&map) {
                self.commits_due.push(map);
            }
        }
    }

    /// The next map file to write now. Whoever asks begins the commit and writes it.
    pub fn next_commit(&mut self) -> Option<MapId> {
        if self.log.is_none() || self.now < self.retry_commits_at {
            return None;
        }
        self.note_due_commits(false);
        self.commits_due.pop()
    }

    /// A map file that differs from its map, whether somebody waits or not.
    #[must_use]
    pub fn next_changed_map(&self) -> Option<MapId> {
        self.log.as_ref()?;
        let links = self.link_indices().map(MapId::Link);
        links
            .chain([MapId::Intent])
            .find(|map| self.map(*map).is_some_and(|kept| kept.wants_commit(true)))
    }

    /// Begins the commit of a map: `each` gets every sector to write, before anything else
    /// changes. What goes into the header of a link's map, which is written too.
    pub fn begin_commit(
        &mut self,
        map: MapId,
        mut each: impl FnMut(u32, &mut dyn Iterator<Item = u64>),
    ) -> Option<LinkHead> {
        let head = match map {
            MapId::Intent => None,
            MapId::Link(index) => Some(LinkHead {
                floor: self.next_floor(index),
                promised: self.link(index)?.promise_on_record(),
            }),
        };
        let kept = self.map_mut(map)?;
        let count = kept.begin().len();
        for place in 0..count {
            let sector = kept.writing()[place];
            each(sector, &mut kept.sector(sector));
        }
        head
    }

    /// The best floor known now; it becomes the link's when the commit succeeds. Of a link that is
    /// behind everything after the last acknowledgement is in the map already.
    fn next_floor(&mut self, index: LinkIndex) -> Option<WriteName> {
        let generation = self.history.current();
        let link = self.link(index)?;
        let known = link.is_following() || !planted!(CloseRegionAboveFloor);
        let acked = link.acked.filter(|_| known && link.plan.is_none());
        let named = |acked: &Place| self.name_at(link.held) == Some(*acked);
        let exact = acked.filter(|acked| !link.is_following() || named(acked));
        let floor = exact.map_or(link.floor, |(incarnation, seq)| {
            Some(WriteName {
                generation,
                incarnation,
                seq,
            })
        });
        let link = self.link_mut(index)?;
        link.floor_writing = exact.and(floor);
        floor
    }

    /// A commit has ended.
    pub fn commit_done(&mut self, map: MapId, result: Result<(), Errno>) {
        let now = self.now;
        if let MapId::Link(index) = map
            && self.leaving >> index.as_usize() & 1 == 1
        {
            self.leaving &= !(1 << index.as_usize());
            return;
        }
        let Some(kept) = self.map_mut(map) else {
            return;
        };
        kept.finish(result.is_ok());
        if let Err(errno) = result {
            kept.hurry();
            self.retry_commits_at = now.after(COMMIT_RETRY);
            self.tick_at = self.tick_at.min(self.retry_commits_at);
            self.event(GroupEvent::MapError { errno });
        }
        match map {
            MapId::Intent => {
                self.intents_committed();
                if !self.intent_waiters.is_empty() {
                    self.intent.kept_mut().hurry();
                }
            }
            MapId::Link(index) => {
                if let Some(link) = self.link_mut(index) {
                    let floor = link.floor_writing.take().filter(|_| result.is_ok());
                    if let Some(floor) = floor {
                        link.floor = Some(floor);
                        link.floor_seq = link.floor_seq.max(floor.seq);
                    }
                }
                self.look_after_promises();
            }
        }
    }

    /// An orderly end, with no request under way: what the log still holds becomes durable dirt
    /// too, for a successor that finds no memory, and every region may be closed.
    pub fn prepare_stop(&mut self) {
        self.stopping = true;
        for index in self.link_indices() {
            self.keep_queued(index);
        }
    }

    fn keep_queued(&mut self, index: LinkIndex) {
        let Some(log) = self.log.as_ref() else {
            return;
        };
        let Some(link) = self
            .links
            .get_mut(index.as_usize())
            .and_then(Option::as_mut)
        else {
            return;
        };
        let (mut seq, head) = (link.held.next(), log.head().1);
        while link.is_following() && seq <= head {
            let record = log.entry(seq).record;
            if let Some(extent) = record.extent.filter(|_| !planted!(StopForgetsQueued)) {
                let (first, last) = self.layout.bits_of(record.volume, extent);
                link.kept.set(first, last);
            }
            seq = seq.next();
        }
        link.dirt_through = head;
        link.kept.touch_header();
    }

    /// After [`SourceGroup::prepare_stop`], with every backing flushed and every link's map
    /// committed: closes what can be closed. True if nothing is left open.
    pub fn close_all(&mut self) -> bool {
        let (links, layout) = (&self.links, &self.layout);
        self.intent.close_idle(
            self.now,
            Some(Duration::ZERO),
            |_| u64::MAX - 1,
            |volume, extent, seq| {
                let (first, last) = layout.bits_of(volume, extent);
                links
                    .iter()
                    .flatten()
                    .all(|link| link.covers(first, last, seq))
            },
        );
        self.intent.open_count() == 0
    }

    /// What a status shows of every link.
    #[must_use]
    pub fn link_statuses(&self) -> Vec<(LinkIndex, LinkStatus)> {
        self.link_indices()
            .filter_map(|index| self.link_status(index).map(|status| (index, status)))
            .collect()
    }
}

impl<W: Words> link::Link<W> {
    /// True if extents written up to `seq` are durable at the target below the durable floor, or
    /// durable dirt. What was acknowledged above the floor is neither: should the target be put back
    /// to the floor, the intent map alone knows of it.
    fn covers(&self, first: u64, last: u64, seq: Seq) -> bool {
        let floorless =
            self.floor.is_none() && self.floor_writing.is_none() || planted!(CloseRegionAboveFloor);
        let dirt = seq <= self.dirt_through && (seq > self.acked_seq() || floorless);
        (seq <= self.floor_seq || dirt) && self.kept.is_done(self.kept.commit_of(first, last))
    }

    /// The last place durable at the target, if this memory knows one.
    fn acked_seq(&self) -> Seq {
        self.acked.map_or(Seq::ZERO, |(_, seq)| seq)
    }

    /// True if durable bits are set that nothing needs.
    fn has_stale_bits(&self) -> bool {
        (0..self.live.word_count()).any(|word| {
            let needed = self.live.word(word) | self.compare.word(word);
            self.kept.bits().word(word) & !needed != 0
        })
    }

    /// Ends an epoch: clears durable bits of what was put into the stream before it began, all of
    /// which is acknowledged below the durable floor.
    fn sweep(&mut self) {
        for word in 0..self.live.word_count() {
            let needed = self.live.word(word) | self.compare.word(word) | self.recent.word(word);
            self.kept.retain_word(word, needed);
        }
        self.epoch = None;
    }

    /// Every extent has its durable bit.
    pub(super) fn keep_all(&mut self, layout: &crate::dirty::MapLayout) {
        for volume in 0..layout.volumes() {
            let volume = VolumeIndex::new(u16::try_from(volume).expect("few volumes"));
            let (first, last) = layout.volume_bits(volume);
            self.kept.set(first, last);
        }
    }
}
