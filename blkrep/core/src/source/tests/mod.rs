//! The group with a log in plain memory: what is promised at every step, whatever the order.
#![allow(clippy::unwrap_used)]

mod again;
mod any_order;
mod disk_queue;
mod leaving;
mod limits;
mod links;
mod lost;
mod mirror;
mod notes;
mod pace;
mod promise;
mod requests;
mod served;
mod throttle;
mod volumes;

use super::*;
use crate::dirty::Bits;
use crate::identity::Place;
use crate::intent::IntentOptions;
use blkrep_types::{
    ByteOffset, DataState, ExtentSize, Incarnation, LossPolicy, MirrorKind, Mode, Record,
    RecordKind, WriteName,
};
use std::cell::RefCell;
use std::rc::Rc;

const LEN: u64 = 16 << 20;
/// Bytes of a write where that does not matter.
const WRITE: u64 = 4096;
const VOLUME: VolumeIndex = VolumeIndex::new(0);
const RUN: Incarnation = Incarnation::new(1);
const GENERATION: Generation = Generation::from_bytes([1; 16]);

/// Words that a test can see while the group has them.
#[derive(Debug, Clone)]
struct SeenWords(Rc<RefCell<Vec<u64>>>);

impl Words for SeenWords {
    fn count(&self) -> usize {
        self.0.borrow().len()
    }

    fn load(&self, index: usize) -> u64 {
        self.0.borrow()[index]
    }

    fn store(&mut self, index: usize, word: u64) {
        self.0.borrow_mut()[index] = word;
    }
}

/// A log that keeps entries in a deque and counts bytes.
#[derive(Debug)]
struct PlainLog {
    base: Place,
    entries: VecDeque<LogEntry>,
    capacity: u64,
    used: u64,
    /// What an operation writes out; all of these have [`WRITE`] bytes.
    lent: Vec<Seq>,
    troubles: FlushTroubles,
    /// The extents to send of each link, in the order of their places.
    live: Vec<SeenWords>,
}

impl PlainLog {
    fn at(&self, seq: Seq) -> usize {
        usize::try_from(seq.get() - self.base.1.get() - 1).unwrap()
    }
}

fn data_of(entry: &LogEntry) -> u64 {
    entry.record.data_len().get()
}

impl WriteLog for PlainLog {
    fn head(&self) -> Place {
        let last = self.entries.back();
        last.map_or(self.base, |entry| (RUN, entry.record.seq))
    }

    fn base(&self) -> Place {
        self.base
    }

    fn append(&mut self, new: &NewEntry) -> Option<Slot> {
        let entry = LogEntry {
            record: Record {
                incarnation: RUN,
                seq: self.head().1.next(),
                kind: new.kind,
                volume: new.volume,
                extent: new.extent,
            },
            position: 0,
            link: new.link,
            published: !new.kind.has_data(),
            local_done: !new.local,
            away: None,
        };
        if self.used + data_of(&entry) > self.capacity {
            return None;
        }
        self.used += data_of(&entry);
        self.entries.push_back(entry);
        let seq = entry.record.seq;
        Some(Slot { seq, position: 0 })
    }

    fn entry(&self, seq: Seq) -> LogEntry {
        self.entries[self.at(seq)]
    }

    fn publish(&mut self, seq: Seq) {
        let at = self.at(seq);
        self.entries[at].published = true;
        // A daemon that is killed now leaves this: what was not read has to be dirt already.
        let entry = self.entries[at];
        if let (RecordKind::Void, Some(owner), Some(extent)) =
            (entry.record.kind, entry.link, entry.record.extent)
        {
            let bit = extent.offset().get() >> 16;
            let word = self.live[owner.as_usize()].load(0);
            assert!(word >> bit & 1 == 1, "nothing to send and not dirty either");
        }
    }

    fn replace_kind(&mut self, seq: Seq, kind: RecordKind) {
        let at = self.at(seq);
        self.used -= data_of(&self.entries[at]);
        self.entries[at].record.kind = kind;
        self.used += data_of(&self.entries[at]);
    }

    fn set_local_done(&mut self, seq: Seq) {
        let at = self.at(seq);
        self.entries[at].local_done = true;
    }

    fn free_through(&mut self, seq: Seq) {
        while self.base.1 < seq {
            let gone = self.entries.pop_front().unwrap();
            assert!(
                gone.published && gone.local_done,
                "nothing unfinished is freed"
            );
            if gone.away.is_none() && !self.lent.contains(&gone.record.seq) {
                self.used -= data_of(&gone);
            }
            self.base = (RUN, gone.record.seq);
        }
    }

    fn lend(&mut self, seq: Seq) {
        let entry = self.entry(seq);
        assert!(entry.published && entry.local_done && entry.away.is_none());
        self.lent.push(seq);
    }

    fn take_back(&mut self, seq: Seq, away: Option<Away>) {
        let at = self.lent.iter().position(|lent| *lent == seq).unwrap();
        self.lent.swap_remove(at);
        if seq <= self.base.1 {
            self.used -= WRITE;
        } else if away.is_some() {
            let at = self.at(seq);
            self.entries[at].away = away;
            self.used -= data_of(&self.entries[at]);
        }
    }

    fn remember_queue(&mut self, _: u64) {}

    fn is_out_of_entries(&self) -> bool {
        false
    }

    fn used(&self) -> ByteLen {
        ByteLen::new(self.used)
    }

    fn capacity(&self) -> ByteLen {
        ByteLen::new(self.capacity)
    }

    fn mark_link(&mut self, _: LinkIndex, _: &LinkMark) {}

    fn flush_troubles(&self) -> FlushTroubles {
        self.troubles
    }

    fn set_flush_troubles(&mut self, troubles: FlushTroubles) {
        self.troubles = troubles;
    }
}

impl PlainLog {
    fn after(base: Seq, capacity: u64) -> Self {
        Self {
            base: (RUN, base),
            entries: VecDeque::new(),
            capacity,
            used: 0,
            lent: Vec::new(),
            troubles: FlushTroubles::default(),
            live: Vec::new(),
        }
    }
}

type Group = SourceGroup<PlainLog, SeenWords>;

/// A group with its queue worker and the drivers of its links.
struct Rig {
    group: Group,
    queue: WorkerId,
    drivers: Vec<WorkerId>,
    now: Nanos,
    running: Vec<(RequestId, Extent, Option<Slot>)>,
    answers: Vec<(u16, Result<(), Errno>)>,
    mirror: Vec<Action>,
    /// Writes whose bytes went to the log and nowhere else.
    kept: Vec<RequestId>,
    tag: u16,
    /// How syncs end.
    synced: Result<(), Errno>,
    /// Links come to a group that noted nothing before.
    unnoted: bool,
}

fn extent(offset: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(offset), ByteLen::new(len)).unwrap()
}

fn link(index: usize) -> LinkIndex {
    LinkIndex::new(index)
}

impl Rig {
    fn new(links: usize, capacity: u64, on_backing_error: OnBackingError) -> Self {
        let mut rig = Self::without_log(on_backing_error, |_| ());
        if links > 0 {
            rig.group.set_log(PlainLog::after(Seq::ZERO, capacity));
        }
        for index in 0..links {
            rig.drivers.push(rig.group.add_worker());
            rig.add_link(index);
        }
        rig
    }

    /// A group whose log has no room for the last of 17 writes; none has ended.
    fn with_full_log() -> Self {
        let mut rig = Self::new(1, 64 << 10, OnBackingError::Pass);
        rig.serve(0);
        for index in 0..17 {
            rig.write(extent(index * 4096, 4096));
            rig.commit(true);
        }
        assert_eq!(rig.running.len(), 16, "one has no room");
        rig
    }

    /// A group with two links, and 200 writes since the first of them went.
    fn with_one_link_down(capacity: u64) -> Self {
        let mut rig = Self::new(2, capacity, OnBackingError::Pass);
        rig.serve(0);
        rig.serve(1);
        rig.group.link_down(link(0), DownReason::Lost);
        for index in 0..200 {
            rig.write(extent(index * 4096, 4096));
            rig.commit(true);
            rig.finish(0, Ok(()));
            rig.serve(1);
        }
        rig
    }

    /// A group with these regions open.
    fn without_log(on_backing_error: OnBackingError, open: impl FnOnce(&mut Bits)) -> Self {
        let volume = |size| MapLayout::new([(ByteLen::new(LEN), size)]);
        let regions = volume(ExtentSize::INTENT);
        let mut bits = Bits::clear_of(regions.bits());
        open(&mut bits);
        let intent = IntentMap::new(bits, regions, IntentOptions::default());
        let options = GroupOptions {
            stream: StreamLimits::default(),
            on_backing_error,
            throttle_max: Duration::from_millis(100),
            throttle: None,
            requests_max: 64,
        };
        let mut history = History::new();
        history.branch(GENERATION, Incarnation::default(), Seq::ZERO);
        let dirty = volume(ExtentSize::DIRTY_DEFAULT);
        let mut group = Group::new(options, history, &[ByteLen::new(LEN)], dirty, intent);
        let queue = group.add_worker();
        let mut rig = Self {
            drivers: Vec::new(),
            group,
            queue,
            now: Nanos::default().after(Duration::from_secs(100)),
            running: Vec::new(),
            answers: Vec::new(),
            mirror: Vec::new(),
            kept: Vec::new(),
            tag: 0,
            synced: Ok(()),
            unnoted: false,
        };
        rig.group.enter(queue, rig.now);
        rig
    }

    /// Makes a link of which a predecessor left `mark`.
    fn make_link(&mut self, index: usize, mark: Option<LinkMark>, floor: Option<WriteName>) {
        self.make_link_with(index, mark, floor, false);
    }

    /// Makes a link whose map says that nothing completed without it.
    fn make_promised_link(&mut self, index: usize) {
        self.make_link_with(index, None, None, true);
    }

    fn make_link_with(
        &mut self,
        index: usize,
        mark: Option<LinkMark>,
        floor: Option<WriteName>,
        promised: bool,
    ) {
        let bits = self.group.layout().bits();
        let words = || SeenWords(Rc::new(RefCell::new(vec![0; self.group.layout().words()])));
        let setup = LinkSetup {
            place: link(index),
            mode: Mode::Async,
            loss: LossPolicy::default(),
            transmit: Transmit::Started,
            overwrite: false,
            first_mirror: mark.is_none().then_some(MirrorKind::Difference),
        };
        let live = words();
        let start = LinkStart {
            live: Bits::new(live.clone()),
            compare: Bits::new(words()),
            kept: Bits::clear_of(bits),
            floor,
            promised,
            unnoted: self.unnoted,
            mark,
        };
        self.group.log.as_mut().unwrap().live.push(live);
        self.group.add_link(&setup, start);
        self.group.drive_link(link(index), self.drivers[index]);
    }

    fn add_link(&mut self, index: usize) {
        self.make_link(index, None, None);
        self.group.negotiating(link(index));
        let new = WelcomeFacts {
            role: PeerRole::New,
            data_state: DataState::NotReady,
            history: History::new(),
            durable: WriteName::NONE,
            reads: true,
        };
        self.group.welcome(link(index), &new).unwrap();
        assert!(self.group.begin_stream(link(index)).is_none(), "maps first");
        self.commit(true);
        self.group.begin_stream(link(index)).unwrap();
        self.take();
    }

    /// A link's connection comes back to a replica that has what is durable there.
    fn come_back(&mut self, index: usize, durable: WriteName) -> StreamStart {
        self.group.negotiating(link(index));
        let peer = WelcomeFacts {
            role: PeerRole::Replica,
            data_state: DataState::Ok,
            history: self.group.history().clone(),
            durable,
            reads: true,
        };
        self.group.welcome(link(index), &peer).unwrap();
        if let Some(start) = self.group.begin_stream(link(index)) {
            return start;
        }
        self.commit(true);
        self.group.begin_stream(link(index)).unwrap()
    }

    /// The last write that a link's target has acknowledged.
    fn acked(&self, index: usize) -> WriteName {
        let (incarnation, seq) = self.group.link(link(index)).unwrap().acked.unwrap();
        WriteName {
            generation: GENERATION,
            incarnation,
            seq,
        }
    }

    /// Commits every map that wants it.
    fn commit(&mut self, success: bool) {
        while let Some(map) = self.group.next_commit() {
            self.group.begin_commit(map, |_, words| {
                assert_eq!(words.count(), crate::dirty::SECTOR_WORDS);
            });
            let result = if success { Ok(()) } else { Err(Errno::EIO) };
            self.group.commit_done(map, result);
        }
        self.take();
    }

    fn pass(&mut self, span: Duration) {
        self.now = self.now.after(span);
        self.group.enter(self.queue, self.now);
        self.group.tick();
        self.take();
    }

    fn submit(&mut self, op: RequestOp, extent: Option<Extent>) -> u16 {
        self.tag += 1;
        self.group.submit(NewRequest {
            worker: self.queue,
            tag: self.tag,
            volume: VOLUME,
            op,
            extent,
        });
        self.take();
        self.tag
    }

    fn write(&mut self, extent: Extent) -> u16 {
        self.submit(RequestOp::Write { fua: false }, Some(extent))
    }

    /// Takes all actions; every promise of a local write is checked when it is handed out.
    fn take(&mut self) {
        let mut actions = Vec::new();
        self.group.take_actions(self.queue, &mut actions);
        for action in actions {
            match action {
                Action::Write {
                    id, extent, slot, ..
                } => {
                    self.check_start(extent);
                    if let Some(slot) = slot {
                        self.group.log.as_mut().unwrap().publish(slot.seq);
                    }
                    self.running.push((id, extent, slot));
                }
                Action::Keep { id, slot, .. } => {
                    self.group.log.as_mut().unwrap().publish(slot.seq);
                    self.kept.push(id);
                }
                Action::Zero { id, extent, .. } => {
                    self.check_start(extent);
                    let slot = self.group.requests.get(id).slot;
                    self.running.push((id, extent, slot));
                }
                Action::Complete { tag, result } => self.answers.push((tag, result)),
                Action::Sync { volume, number } => {
                    self.group.flush_done(volume, number, self.synced);
                }
                Action::Read { .. } => {}
                Action::MirrorRead { .. } | Action::MirrorDigest { .. } => {
                    panic!("mirror reads belong to drivers")
                }
            }
        }
        for driver in self.drivers.clone() {
            let mut actions = Vec::new();
            self.group.take_actions(driver, &mut actions);
            self.mirror.extend(actions);
        }
        self.check_covered();
    }

    fn check_start(&self, extent: Extent) {
        let alone = self
            .running
            .iter()
            .all(|(_, other, _)| !other.overlaps(extent));
        assert!(alone, "overlapping writes never run together");
        if self.group.has_links() {
            let kept = self.group.intent.kept();
            let (first, last) = (extent.offset().get() >> 22, (extent.end().get() - 1) >> 22);
            assert!((first..=last).all(|bit| kept.bits().test(bit)), "intended");
            assert!(kept.is_done(kept.commit_of(first, last)), "durably");
        }
    }

    /// Every local write under way is in the log of a link that follows, or dirty on it.
    fn check_covered(&self) {
        for (_, extent, slot) in &self.running {
            let (first, last) = self.group.layout.bits_of(VOLUME, *extent);
            for link in self.group.links.iter().flatten() {
                let logged = link.is_following() && slot.is_some_and(|slot| slot.seq > link.held);
                let acked = slot.is_some_and(|slot| slot.seq <= link.held);
                let dirty = (first..=last).all(|bit| link.live.test(bit));
                assert!(logged || acked || dirty || slot.is_none() && link.is_following());
            }
        }
    }

    fn finish(&mut self, index: usize, result: Result<(), Errno>) {
        let (id, ..) = self.running.swap_remove(index);
        self.group.local_done(id, result);
        self.take();
    }

    /// Hands a link all it can get and acknowledges it; the kinds that were sent.
    fn serve(&mut self, index: usize) -> Vec<RecordKind> {
        let mut out = Vec::new();
        self.group
            .next_records(link(index), 100, usize::MAX, |_| None, &mut out);
        if let Some(last) = out.last() {
            let seq = last.record.seq;
            self.group.release(link(index), seq, ByteLen::ZERO);
            self.ack(index, seq);
        }
        self.take();
        out.iter().map(|outgoing| outgoing.record.kind).collect()
    }

    /// The reads that mirrors wait for end well; they found nothing but zeroes, or not.
    fn finish_mirror_reads(&mut self, zeroes: bool) {
        for action in std::mem::take(&mut self.mirror) {
            if let Action::MirrorRead { job, .. } = action {
                self.group.mirror_read_done(job, Ok(zeroes));
            }
        }
    }

    fn ack(&mut self, index: usize, seq: Seq) {
        let name = WriteName {
            generation: GENERATION,
            incarnation: RUN,
            seq,
        };
        let acks = Acks {
            received: name,
            durable: name,
            data_state: DataState::Ok,
            journal: JournalFill::default(),
        };
        assert!(self.group.acked(link(index), &acks));
    }

    fn position(&self, index: usize) -> Position {
        self.group.link_status(link(index)).unwrap().position
    }
}
