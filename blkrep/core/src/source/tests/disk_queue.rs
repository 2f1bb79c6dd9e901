//! The disk queue: what leaves memory, in which order it is sent, and what its failure costs.

use super::*;
use crate::ahead::AwayRecord;
use crate::queue::{QueueChange, QueueLimits};

const SEGMENT: u64 = 64 << 10;

/// A file of a queue: what was written to it, by sector.
type File = std::collections::BTreeMap<u32, (Seq, u32)>;

struct Queued {
    rig: Rig,
    file: File,
    events: Vec<GroupEvent>,
    next: u64,
}

impl Queued {
    /// A log of 64 writes, and a link that is down.
    fn new(bytes_max: u64) -> Self {
        let mut rig = Rig::new(1, 64 * WRITE, OnBackingError::Pass);
        rig.serve(0);
        rig.group.link_down(link(0), DownReason::Lost);
        rig.group.open_queue(ByteLen::new(SEGMENT));
        rig.group.limit_queue(Some(QueueLimits {
            bytes_max: ByteLen::new(bytes_max),
            alert_percent: 50,
        }));
        Self {
            rig,
            file: File::new(),
            events: Vec::new(),
            next: 0,
        }
    }

    fn sum(seq: Seq) -> u32 {
        u32::try_from(seq.get()).unwrap().wrapping_mul(0x9e37_79b9)
    }

    /// Does what the queue wants done.
    fn work(&mut self, result: Result<(), Errno>) {
        while let Some(job) = self.rig.group.next_queue_job() {
            self.end(job, result);
        }
    }

    fn end(&mut self, job: QueueJob, result: Result<(), Errno>) {
        match job {
            QueueJob::Write(mut write) => {
                for part in &mut write.parts {
                    part.crc = Self::sum(part.seq);
                    assert_eq!(part.len, 4096);
                    let first = u64::from(part.sector) * 512;
                    assert_eq!(first / SEGMENT, (first + WRITE - 1) / SEGMENT, "split");
                    if result.is_ok() {
                        let taken = self.file.insert(part.sector, (part.seq, part.crc));
                        assert!(taken.is_none(), "sector {} has something", part.sector);
                    }
                }
                self.rig.group.written_out(&write, result);
            }
            QueueJob::Clear { sector, bytes } => {
                let end = sector + u32::try_from(bytes.get() / 512).unwrap();
                self.file.retain(|at, _| !(sector..end).contains(at));
                self.rig.group.segment_cleared(sector);
            }
        }
        while let Some(event) = self.rig.group.take_event() {
            self.events.push(event);
        }
    }

    fn write(&mut self) {
        let place = self.next % 4096;
        self.next += 1;
        self.rig.write(extent(place * WRITE, WRITE));
        self.rig.commit(true);
        while !self.rig.running.is_empty() {
            self.rig.finish(0, Ok(()));
        }
    }

    /// Hands the link what it can get, checking that what is away is what was written; the places.
    fn serve(&mut self, most: usize) -> Vec<Seq> {
        let mut known = Vec::new();
        let group = &self.rig.group;
        let _ = group.look_ahead(link(0), Seq::ZERO, |record| {
            known.push(*record);
            true
        });
        let file = &self.file;
        let read = |seq: Seq| {
            let at = known.iter().position(|record| record.seq == seq)?;
            let record: &AwayRecord = &known[at];
            assert_eq!(file.get(&record.sector), Some(&(seq, record.crc)));
            assert_eq!(record.crc, Self::sum(seq));
            Some(at)
        };
        let mut out = Vec::new();
        let group = &mut self.rig.group;
        group.next_records(link(0), most, usize::MAX, read, &mut out);
        let seqs: Vec<_> = out.iter().map(|outgoing| outgoing.record.seq).collect();
        if let Some(last) = seqs.last() {
            group.release(link(0), *last, ByteLen::ZERO);
            self.rig.ack(0, *last);
        }
        self.rig.take();
        seqs
    }

    fn come_back(&mut self) {
        let acked = self.rig.acked(0);
        self.rig.come_back(0, acked);
        assert_eq!(self.rig.position(0), Position::Following, "nothing is dirt");
    }

    fn status(&self) -> LinkStatus {
        self.rig.group.link_status(link(0)).unwrap()
    }

    fn has(&self, change: QueueChange) -> bool {
        self.events.contains(&GroupEvent::Queue { change })
    }
}

#[test]
fn memory_keeps_the_oldest_and_the_rest_leaves_in_order() {
    let mut queued = Queued::new(1 << 30);
    for _ in 0..1000 {
        queued.write();
        queued.work(Ok(()));
    }
    let status = queued.rig.group.queue_status();
    assert!(status.memory.0 <= status.memory.1, "{status:?}");
    assert!(status.disk.get() > 900 * WRITE, "{status:?}");
    let first = queued.rig.group.log_ref().base().1.next();
    assert!(queued.rig.group.log_ref().entry(first).away.is_none());
    let head = queued.rig.group.log_ref().head().1;
    queued.come_back();
    let mut last = Seq::new(first.get() - 1);
    while last < head {
        let seqs = queued.serve(7);
        assert!(!seqs.is_empty(), "stuck after {last}");
        for seq in seqs {
            assert_eq!(seq, last.next(), "in order, none twice");
            last = seq;
        }
        queued.work(Ok(()));
    }
    assert!(queued.rig.group.queue_is_idle() && queued.file.is_empty());
    let status = queued.status();
    assert_eq!((status.overflows, status.dirty_bytes), (0, ByteLen::ZERO));
    for change in [QueueChange::Spilling, QueueChange::Drained] {
        assert!(queued.has(change), "{change:?}");
    }
}

#[test]
fn a_queue_that_is_full_is_dirt_and_no_error() {
    let mut queued = Queued::new(4 * SEGMENT);
    for _ in 0..400 {
        queued.write();
        queued.work(Ok(()));
        assert!(queued.file.len() <= 64, "no more than its limit");
    }
    assert_eq!(queued.rig.answers.len(), 400, "no write waits or fails");
    assert!(queued.rig.answers.iter().all(|(_, result)| result.is_ok()));
    assert_eq!(queued.rig.position(0), Position::Behind);
    let status = queued.status();
    // Every write of the 400, whether it was in memory, away, or came later.
    assert_eq!(status.dirty_bytes, ByteLen::new(25 * 65536));
    assert!(queued.has(QueueChange::Full) && queued.has(QueueChange::Alert));
    assert!(queued.has(QueueChange::AlertOver) && queued.has(QueueChange::Drained));
    assert!(queued.rig.group.queue_is_idle() && queued.file.is_empty());
}

#[test]
fn a_disk_that_fails_is_dirt_once_memory_is_full() {
    let mut queued = Queued::new(1 << 30);
    for _ in 0..200 {
        queued.write();
        queued.work(Err(Errno::EIO));
    }
    assert_eq!(queued.rig.position(0), Position::Behind);
    assert_eq!(queued.status().dirty_bytes, ByteLen::new(13 * 65536));
    let failed = GroupEvent::QueueFailed { errno: Errno::EIO };
    let told = queued.events.iter().filter(|event| **event == failed);
    assert_eq!(told.count(), 1, "once");
    assert!(queued.rig.answers.iter().all(|(_, result)| result.is_ok()));
    assert_eq!(queued.rig.answers.len(), 200);
}

#[test]
fn a_disk_that_hangs_holds_up_a_write_for_its_patience_only() {
    let mut queued = Queued::new(1 << 30);
    let mut hanging = None;
    for _ in 0..65 {
        queued.write();
        hanging = hanging.or_else(|| queued.rig.group.next_queue_job());
    }
    assert_eq!(queued.rig.answers.len(), 64, "one waits for room");
    queued.rig.pass(Duration::from_millis(101));
    queued.rig.finish(0, Ok(()));
    assert_eq!(queued.rig.answers.len(), 65, "patience is over");
    assert_eq!(queued.rig.position(0), Position::Behind);
    queued.end(hanging.expect("memory was full"), Ok(()));
    queued.work(Ok(()));
    assert!(queued.rig.group.queue_is_idle() && queued.file.is_empty());
    assert_eq!(queued.rig.group.queue_status().disk, ByteLen::ZERO);
}

#[test]
fn bytes_that_cannot_be_read_back_are_dirt_with_all_that_follows() {
    let mut queued = Queued::new(1 << 30);
    for _ in 0..200 {
        queued.write();
        queued.work(Ok(()));
    }
    queued.come_back();
    let (seq, _) = *queued.file.values().next().unwrap();
    queued.rig.group.away_lost(link(0), seq, Errno::EIO);
    queued.rig.take();
    let status = queued.status();
    assert_eq!(status.overflows, 1);
    let kind = status.mirror.kind;
    assert_eq!(
        kind,
        Some(MirrorKind::Difference),
        "never more than what differs"
    );
    let looked = status.dirty_bytes.get() + 65536 * queued.rig.mirror.len() as u64;
    assert_eq!(looked, 13 * 65536);
    queued.work(Ok(()));
    assert!(queued.file.is_empty(), "nobody needs the rest");
}

#[test]
fn a_successor_goes_on_with_what_is_on_disk_or_has_it_as_dirt() {
    for kept in [true, false] {
        let mut queued = Queued::new(1 << 30);
        for _ in 0..200 {
            queued.write();
            queued.work(Ok(()));
        }
        // What a successor has: the log, and the links as they are.
        queued.rig.group.queue = DiskQueue::default();
        let segment = kept.then_some(ByteLen::new(SEGMENT));
        queued.rig.group.adopt_queue(segment);
        if !kept {
            assert_eq!(queued.rig.position(0), Position::Behind);
            assert_eq!(queued.status().dirty_bytes, ByteLen::new(13 * 65536));
            continue;
        }
        queued.rig.group.limit_queue(Some(QueueLimits {
            bytes_max: ByteLen::new(1 << 30),
            alert_percent: 50,
        }));
        for _ in 0..200 {
            queued.write();
            queued.work(Ok(()));
        }
        queued.come_back();
        let mut sent = 0;
        while sent < 400 {
            let now = queued.serve(50).len();
            assert!(now > 0, "stuck after {sent}");
            sent += now;
            queued.work(Ok(()));
        }
        assert!(queued.rig.group.queue_is_idle() && queued.file.is_empty());
    }
}
