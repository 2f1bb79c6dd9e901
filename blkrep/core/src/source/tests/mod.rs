//! The group with a log in plain memory: what is promised at every step, whatever the order.
#![allow(clippy::unwrap_used)]

mod leaving;
mod limits;
mod lost;

use super::*;
use crate::dirty::Bits;
use crate::identity::Place;
use crate::intent::IntentOptions;
use blkrep_types::{
    ByteOffset, DataState, ExtentSize, Incarnation, MirrorKind, Mode, Record, RecordKind, WriteName,
};
use proptest::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;

const LEN: u64 = 16 << 20;
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
    let data = entry.record.extent.filter(|_| entry.record.kind.has_data());
    data.map_or(0, |extent| extent.len().get())
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
            self.used -= data_of(&gone);
            self.base = (RUN, gone.record.seq);
        }
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
    tag: u16,
    /// How syncs end.
    synced: Result<(), Errno>,
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

    /// A group with these regions open.
    fn without_log(on_backing_error: OnBackingError, open: impl FnOnce(&mut Bits)) -> Self {
        let volume = |size| MapLayout::new([(ByteLen::new(LEN), size)]);
        let regions = volume(ExtentSize::INTENT);
        let mut bits = Bits::clear_of(regions.bits());
        open(&mut bits);
        let intent = IntentMap::new(bits, regions, IntentOptions::default());
        let options = GroupOptions {
            on_backing_error,
            throttle_max: Duration::from_millis(100),
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
            tag: 0,
            synced: Ok(()),
        };
        rig.group.enter(queue, rig.now);
        rig
    }

    /// Makes a link of which a predecessor left `mark`.
    fn make_link(&mut self, index: usize, mark: Option<LinkMark>, floor: Option<WriteName>) {
        let bits = self.group.layout().bits();
        let words = || SeenWords(Rc::new(RefCell::new(vec![0; self.group.layout().words()])));
        let setup = LinkSetup {
            place: link(index),
            mode: Mode::Async,
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
        };
        self.group.welcome(link(index), &new).unwrap();
        assert!(self.group.begin_stream(link(index)).is_none(), "maps first");
        self.commit(true);
        self.group.begin_stream(link(index)).unwrap();
        self.take();
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
            .next_records(link(index), 100, usize::MAX, &mut out);
        if let Some(last) = out.last() {
            let seq = last.record.seq;
            self.group.release(link(index), seq);
            self.ack(index, seq);
        }
        self.take();
        out.iter().map(|outgoing| outgoing.record.kind).collect()
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
        };
        assert!(self.group.acked(link(index), &acks));
    }

    fn position(&self, index: usize) -> Position {
        self.group.link_status(link(index)).unwrap().position
    }
}

#[test]
fn a_write_without_a_link_starts_at_once_and_takes_no_place() {
    let mut rig = Rig::new(0, 0, OnBackingError::Pass);
    rig.write(extent(0, 4096));
    assert_eq!(rig.running.len(), 1);
    assert!(rig.running[0].2.is_none());
    rig.finish(0, Ok(()));
    assert_eq!(rig.answers, [(1, Ok(()))]);
    assert_eq!(rig.group.deadline(), None, "nothing to look after");
}

#[test]
fn a_write_starts_when_its_intent_is_durable_and_places_follow_the_order_of_arrival() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    rig.serve(0);
    rig.write(extent(0, 4096));
    rig.write(extent(8192, 4096));
    assert!(rig.running.is_empty(), "not before the commit");
    rig.commit(false);
    assert!(rig.running.is_empty(), "nor after one that failed");
    rig.pass(Duration::from_secs(2));
    rig.commit(true);
    let places: Vec<_> = rig
        .running
        .iter()
        .map(|(_, _, slot)| slot.unwrap().seq)
        .collect();
    assert_eq!(places.len(), 2);
    assert_eq!(places[0].next(), places[1]);
}

#[test]
fn a_failed_write_is_dirty_on_every_link_before_its_error_is_given() {
    let mut rig = Rig::new(2, 1 << 20, OnBackingError::Pass);
    rig.write(extent(65536, 4096));
    rig.commit(true);
    let (id, ..) = rig.running.pop().unwrap();
    rig.group.local_done(id, Err(Errno::EIO));
    assert!(
        rig.group
            .links
            .iter()
            .flatten()
            .all(|link| link.live.test(1))
    );
    rig.take();
    assert_eq!(rig.answers, [(1, Err(Errno::EIO))]);
}

#[test]
fn a_frozen_group_tries_again_when_thawed() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Freeze);
    rig.write(extent(0, 4096));
    rig.commit(true);
    rig.finish(0, Err(Errno::EIO));
    rig.write(extent(0, 4096));
    assert_eq!((rig.group.gate(), rig.answers.len()), (Gate::Frozen, 0));
    rig.group.thaw();
    rig.take();
    assert_eq!(rig.running.len(), 1, "the second overlaps and waits");
    rig.finish(0, Ok(()));
    rig.finish(0, Ok(()));
    assert_eq!(rig.answers, [(1, Ok(())), (2, Ok(()))]);
}

#[test]
fn a_flush_that_failed_is_told_although_the_operator_thaws_and_the_next_succeeds() {
    let mut rig = Rig::new(0, 1 << 20, OnBackingError::Freeze);
    rig.write(extent(0, 4096));
    rig.finish(0, Ok(()));
    rig.synced = Err(Errno::EIO);
    let lost = rig.submit(RequestOp::Flush, None);
    rig.take();
    assert_eq!((rig.group.gate(), rig.answers.len()), (Gate::Frozen, 1));
    rig.synced = Ok(());
    rig.group.thaw();
    rig.take();
    rig.take();
    assert_eq!(rig.answers.last(), Some(&(lost, Err(Errno::EIO))));
    let next = rig.submit(RequestOp::Flush, None);
    rig.take();
    assert_eq!(rig.answers.last(), Some(&(next, Ok(()))));
}

#[test]
fn a_full_log_waits_for_a_draining_link_and_then_gives_it_up() {
    let mut rig = Rig::new(1, 64 << 10, OnBackingError::Pass);
    rig.serve(0);
    for index in 0..17 {
        rig.write(extent(index * 4096, 4096));
        rig.commit(true);
    }
    assert_eq!(rig.running.len(), 16, "one has no room");
    while !rig.running.is_empty() {
        rig.finish(0, Ok(()));
    }
    assert_eq!(rig.position(0), Position::Following);
    rig.pass(Duration::from_millis(600));
    assert_eq!(rig.position(0), Position::Behind, "patience is over");
    assert_eq!(rig.running.len(), 1);
    assert!(rig.running[0].2.is_none(), "tracked, not logged");
    let status = rig.group.link_status(link(0)).unwrap();
    assert_eq!(status.dirty_bytes, ByteLen::new(2 * 65536));
    assert_eq!(status.overflows, 1);
}

#[test]
fn a_slow_link_does_not_take_a_fast_one_along_and_gets_its_own_mirror() {
    let mut rig = Rig::new(2, 512 << 10, OnBackingError::Pass);
    rig.serve(0);
    rig.serve(1);
    rig.group.link_down(link(0), DownReason::Lost);
    for index in 0..200 {
        rig.write(extent(index * 4096, 4096));
        rig.commit(true);
        rig.finish(0, Ok(()));
        rig.serve(1);
    }
    assert_eq!(
        (rig.position(0), rig.position(1)),
        (Position::Behind, Position::Following)
    );
    rig.group.negotiating(link(0));
    let peer = WelcomeFacts {
        role: PeerRole::Replica,
        data_state: DataState::Ok,
        history: rig.group.history().clone(),
        durable: WriteName {
            generation: GENERATION,
            incarnation: RUN,
            seq: rig.group.link(link(0)).unwrap().acked.unwrap().1,
        },
    };
    rig.group.welcome(link(0), &peer).unwrap();
    let start = rig.group.begin_stream(link(0)).unwrap();
    assert_eq!(start.mirror, Some(MirrorKind::Difference));
    assert!(!start.set_back, "it has all that it acknowledged");
    rig.pass(Duration::from_secs(3));
    let mut sent = [Vec::new(), Vec::new()];
    for _ in 0..50 {
        rig.take();
        for action in std::mem::take(&mut rig.mirror) {
            if let Action::MirrorRead { job, .. } = action {
                rig.group.mirror_read_done(job, Ok(false));
            }
        }
        for (index, kinds) in sent.iter_mut().enumerate() {
            kinds.extend(rig.serve(index));
        }
    }
    let [slow, fast] = sent;
    assert!(matches!(slow.first(), Some(RecordKind::MirrorBegin(_))));
    assert_eq!(slow.last(), Some(&RecordKind::MirrorEnd));
    let blocks = slow
        .iter()
        .filter(|kind| matches!(kind, RecordKind::Data { mirror: true }));
    assert!(blocks.count() >= 4, "200 writes of 4 KiB touch 13 extents");
    assert!(
        fast.iter().all(|kind| *kind == RecordKind::Void),
        "not meant for it"
    );
    let status = rig.group.link_status(link(0)).unwrap();
    assert_eq!(
        (status.dirty_bytes, status.mirror.phase),
        (ByteLen::ZERO, MirrorPhase::Idle)
    );
}

#[test]
fn a_digest_that_differs_makes_the_extent_dirty_and_an_equal_one_does_not() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    rig.serve(0);
    rig.serve(0);
    rig.group.start_mirror(link(0), MirrorKind::Checksum);
    rig.take();
    let extents = LEN >> 16;
    let mut sent = 0;
    for _ in 0..extents * 4 {
        for action in std::mem::take(&mut rig.mirror) {
            match action {
                Action::MirrorDigest { job, .. } => {
                    rig.group.mirror_digest_done(job, Ok([7; 32]));
                }
                Action::MirrorRead { job, extent, .. } => {
                    sent += extent.len().get();
                    rig.group.mirror_read_done(job, Ok(false));
                }
                _ => {}
            }
        }
        let mut out = Vec::new();
        rig.group.next_records(link(0), 100, usize::MAX, &mut out);
        for outgoing in &out {
            let record = outgoing.record;
            if let (RecordKind::Compare, Some(extent)) = (record.kind, record.extent) {
                let equal = extent.offset().get() != 3 << 16;
                let reply = DigestReply {
                    seq: record.seq,
                    volume: record.volume,
                    extent,
                    digest: Some(if equal { [7; 32] } else { [8; 32] }),
                };
                assert!(rig.group.digest_reply(link(0), &reply));
            }
        }
        if let Some(last) = out.last() {
            rig.group.release(link(0), last.record.seq);
            rig.ack(0, last.record.seq);
        }
        rig.take();
    }
    assert_eq!(sent, 65536, "only what differs is sent");
    let status = rig.group.link_status(link(0)).unwrap();
    assert_eq!(
        (status.dirty_bytes, status.mirror.phase),
        (ByteLen::ZERO, MirrorPhase::Idle)
    );
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_is_refused() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    rig.serve(0);
    let name = WriteName {
        generation: GENERATION,
        incarnation: RUN,
        seq: Seq::new(1000),
    };
    let acks = Acks {
        received: name,
        durable: name,
        data_state: DataState::Ok,
    };
    assert!(!rig.group.acked(link(0), &acks));
}

proptest! {
    /// Whatever the order of requests, completions, commits and acknowledgements: overlapping
    /// writes never run together, each begins after its intent is durable, each is in the log or
    /// dirty on every link, and everything is answered in the end.
    #[test]
    fn promises_hold_in_any_order(
        links in 0_usize..3,
        steps in prop::collection::vec((0_u8..9, any::<prop::sample::Index>(), 1_u64..40), 1..250),
    ) {
        let mut rig = Rig::new(links, 128 << 10, OnBackingError::Pass);
        let mut issued = 0;
        for (what, index, sectors) in steps {
            let busy = rig.group.requests_in_flight() >= 60;
            let offset = u64::try_from(index.index(200)).unwrap() * 512;
            match what {
                0..=2 if !busy => {
                    rig.write(extent(offset, sectors * 512));
                    issued += 1;
                }
                3 if !busy => {
                    let op = RequestOp::Zero { fua: sectors > 20, free: true };
                    rig.submit(op, Some(extent(offset, sectors * 512)));
                    issued += 1;
                }
                4 if !busy => {
                    rig.submit(RequestOp::Flush, None);
                    issued += 1;
                }
                5 if !rig.running.is_empty() => {
                    let result = if sectors == 1 { Err(Errno::EIO) } else { Ok(()) };
                    rig.finish(index.index(rig.running.len()), result);
                }
                6 => rig.commit(sectors > 4),
                7 if links > 0 => drop(rig.serve(index.index(links))),
                8 => rig.pass(Duration::from_millis(sectors * 20)),
                _ => {}
            }
        }
        for _ in 0..200 {
            rig.pass(Duration::from_secs(1));
            rig.commit(true);
            while !rig.running.is_empty() {
                rig.finish(0, Ok(()));
            }
            for action in std::mem::take(&mut rig.mirror) {
                if let Action::MirrorRead { job, .. } = action {
                    rig.group.mirror_read_done(job, Ok(true));
                }
            }
            (0..links).for_each(|index| drop(rig.serve(index)));
        }
        prop_assert_eq!(rig.answers.len(), issued);
        prop_assert_eq!(rig.group.requests_in_flight(), 0);
        for index in 0..links {
            prop_assert!(rig.group.link_is_drained(link(index)), "{:?}", rig.group.link_status(link(index)));
        }
    }
}
