//! The blocks of a mirror: from an extent that may differ to its entry in the stream.
//!
//! Owns which extent is next, reads and digests under way, and what digests said. A block holds its
//! range from before its place is given until it was read. Reports of reads and the target's digests
//! enter; reads leave.

use super::mirror::{COMPARES_MAX, Compare};
use super::{
    Action, DigestReply, GroupEvent, LinkIndex, MirrorPhase, NewEntry, Slot, SourceGroup, WriteLog,
};
use crate::dirty::Words;
use blkrep_types::{ByteLen, ByteOffset, Errno, Extent, RecordKind, Seq, VolumeIndex, planted};
use std::time::Duration;

/// Blocks of one link that are locked or being read: enough to keep a disk busy.
const JOBS_PER_LINK: usize = 16;

/// Blocks of all links.
pub(super) const JOBS_MAX: usize = JOBS_PER_LINK * super::LINKS_MAX;

/// Adjacent dirty extents are read together up to this length: long enough for a disk's
/// throughput, short enough that a write waits little for the range.
pub(super) const BLOCK_BYTES_MAX: u64 = 256 << 10;

/// After an error or an overflow a mirror waits before it goes on.
const ERROR_PAUSE: Duration = Duration::from_secs(1);

/// A read or digest that a mirror has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobId(u32);

/// Holders of range locks with this bit are jobs.
const JOB_HOLDER: u32 = 1 << 31;

pub(super) const fn job_of(holder: u32) -> Option<JobId> {
    if holder & JOB_HOLDER == 0 {
        None
    } else {
        Some(JobId(holder & !JOB_HOLDER))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Send,
    Compare,
}

#[derive(Debug)]
pub(super) struct Job {
    link: LinkIndex,
    purpose: Purpose,
    volume: VolumeIndex,
    extent: Extent,
    bits: (u64, u64),
    slot: Option<Slot>,
    /// Its link is gone.
    orphan: bool,
}

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// The next extent to look at, if another one may be begun now.
    pub(super) fn pick(&mut self, index: LinkIndex) -> Option<(Purpose, VolumeIndex, (u64, u64))> {
        if !self.flows(index) || !self.log_waiters.is_empty() {
            return None;
        }
        if !self.mirror_has_room() || !self.mirror_may_go(index) {
            return None;
        }
        let (now, layout) = (self.now, &self.layout);
        let link = self.links[index.as_usize()].as_mut()?;
        let mirror = &mut link.mirror;
        let runs = mirror.phase == MirrorPhase::Running && now >= mirror.retry_at;
        if !runs || mirror.jobs >= JOBS_PER_LINK {
            return None;
        }
        if mirror.compares.len() < COMPARES_MAX
            && let Some(bit) = link.compare.next(mirror.compare_cursor)
        {
            mirror.compare_cursor = bit + 1;
            let (volume, _) = layout.locate(bit).expect("only extents have bits");
            return Some((Purpose::Compare, volume, (bit, bit)));
        }
        let first = link.live.next_around(mirror.cursor)?;
        let (volume, _) = layout.locate(first).expect("only extents have bits");
        let grain = layout.size(volume).get();
        let most = (BLOCK_BYTES_MAX / grain)
            .max(1)
            .min(layout.volume_bits(volume).1 - first + 1);
        let more = (1..most)
            .take_while(|more| link.live.test(first + more))
            .count();
        let last = first + u64::try_from(more).expect("few extents");
        // A block that waits for its range keeps its bits: it is not begun twice.
        let locking = |job: &Job| job.slot.is_none() && job.link == index && !job.orphan;
        let begun = self
            .jobs
            .iter()
            .filter(|job| locking(job) && job.purpose == Purpose::Send)
            .any(|job| job.bits.0 <= last && first <= job.bits.1);
        if begun {
            return None;
        }
        mirror.cursor = last + 1;
        Some((Purpose::Send, volume, (first, last)))
    }

    /// True if the log takes another block of a mirror.
    pub(super) fn mirror_has_room(&self) -> bool {
        let (used, capacity) = (self.log_ref().used().get(), self.log_ref().capacity().get());
        used == 0 || used + BLOCK_BYTES_MAX <= capacity / 2
    }

    /// Begins a block. False if it was given up at once: there is no room for it now.
    pub(super) fn start_job(
        &mut self,
        index: LinkIndex,
        purpose: Purpose,
        volume: VolumeIndex,
        bits: (u64, u64),
    ) -> bool {
        let extent = self.extent_of(bits);
        let id = self.jobs.insert(Job {
            link: index,
            purpose,
            volume,
            extent,
            bits,
            slot: None,
            orphan: false,
        });
        self.link_mut(index).expect("it flows").mirror.jobs += 1;
        let lock = &mut self.volumes[volume.as_usize()].lock;
        let extent = match planted!(MirrorLocksOneSector) {
            true => Extent::new(extent.offset(), ByteLen::new(512)).expect("a sector of it"),
            false => extent,
        };
        !lock.acquire(id | JOB_HOLDER, extent) || self.job_locked(JobId(id))
    }

    fn extent_of(&self, bits: (u64, u64)) -> Extent {
        let (_, first) = self.layout.locate(bits.0).expect("only extents have bits");
        let (_, last) = self.layout.locate(bits.1).expect("only extents have bits");
        let len = last.end().get() - first.offset().get();
        Extent::new(ByteOffset::new(first.offset().get()), ByteLen::new(len))
            .expect("a run of extents is one")
    }

    /// A block's range is held: it gets its place, if it is still wanted and there is room.
    /// False if it was given up.
    pub(super) fn job_locked(&mut self, id: JobId) -> bool {
        let job = self.jobs.get(id.0);
        let (index, purpose, bits) = (job.link, job.purpose, job.bits);
        let (volume, extent, orphan) = (job.volume, job.extent, job.orphan);
        // What the backing holds may be stale once it is lost.
        let wanted = !orphan
            && !self.is_lost()
            && self.flows(index)
            && self.link(index).is_some_and(|link| {
                link.mirror.phase == MirrorPhase::Running
                    && match purpose {
                        Purpose::Send => (bits.0..=bits.1).all(|bit| link.live.test(bit)),
                        Purpose::Compare => link.compare.test(bits.0),
                    }
            });
        let kind = match purpose {
            Purpose::Send => RecordKind::Data { mirror: true },
            Purpose::Compare => RecordKind::Compare,
        };
        let entry = NewEntry {
            kind,
            volume,
            extent: Some(extent),
            link: Some(index),
            local: false,
        };
        if planted!(ClearDirtyBeforeEntry) && wanted && purpose == Purpose::Send {
            let link = self.link_mut(index).expect("it is wanted");
            link.live.clear(bits.0, bits.1);
        }
        let room = wanted && self.log_waiters.is_empty();
        let Some(slot) = room.then(|| self.log_mut().append(&entry)).flatten() else {
            self.abandon(id);
            return false;
        };
        self.note_age(slot.seq);
        self.jobs.get_mut(id.0).slot = Some(slot);
        let link = self.link_mut(index).expect("it is wanted");
        let worker = link.worker.expect("it flows");
        let action = match purpose {
            Purpose::Send => {
                link.recent.set(bits.0, bits.1);
                link.live.clear(bits.0, bits.1);
                link.mirror.pace.placed(slot.seq, extent.len());
                Action::MirrorRead {
                    job: id,
                    volume,
                    extent,
                    slot,
                }
            }
            Purpose::Compare => {
                link.mirror.compares.push(Compare {
                    seq: slot.seq,
                    volume,
                    extent,
                    bit: bits.0,
                    ours: None,
                    theirs: None,
                });
                Action::MirrorDigest {
                    job: id,
                    volume,
                    extent,
                }
            }
        };
        self.act(worker, action);
        true
    }

    /// A block is not begun after all; it will be picked again.
    fn abandon(&mut self, id: JobId) {
        let job = self.end_job(id);
        if let Some(link) = self.link_mut(job.link).filter(|_| !job.orphan) {
            match job.purpose {
                Purpose::Send => link.mirror.cursor = job.bits.0,
                Purpose::Compare => {
                    link.mirror.compare_cursor = link.mirror.compare_cursor.min(job.bits.0);
                }
            }
        }
        self.unlock(job.volume, id.0 | JOB_HOLDER);
    }

    fn end_job(&mut self, id: JobId) -> Job {
        let job = self.jobs.remove(id.0);
        if let Some(link) = self.link_mut(job.link).filter(|_| !job.orphan) {
            link.mirror.jobs -= 1;
        }
        job
    }

    /// A block was read into its slot, or could not be. `Ok(true)`: it is all zeroes.
    pub fn mirror_read_done(&mut self, id: JobId, result: Result<bool, Errno>) {
        let job = self.end_job(id);
        let slot = job.slot.expect("it was handed out");
        let now = self.now;
        if let Err(errno) = result
            && let Some(link) = self.link_mut(job.link).filter(|_| !job.orphan)
        {
            // Before its entry becomes nothing: a successor finds one or the other.
            link.mark_dirty(job.bits.0, job.bits.1);
            link.mirror.retry_at = now.after(ERROR_PAUSE);
            let link = job.link;
            self.event(GroupEvent::MirrorError { link, errno });
        }
        let log = self.log_mut();
        match result {
            Ok(true) if planted!(ZeroBlockNotSent) => log.replace_kind(slot.seq, RecordKind::Void),
            Ok(true) => log.replace_kind(
                slot.seq,
                RecordKind::Zero {
                    mirror: true,
                    free: false,
                },
            ),
            Ok(false) => {}
            Err(_) => log.replace_kind(slot.seq, RecordKind::Void),
        }
        log.publish(slot.seq);
        if let Some(link) = self.link_mut(job.link).filter(|_| !job.orphan) {
            match result {
                Ok(true) => link.mirror.skipped += job.extent.len().get(),
                Ok(false) => link.mirror.sent += job.extent.len().get(),
                Err(_) => {}
            }
        }
        self.unlock(job.volume, id.0 | JOB_HOLDER);
        self.free();
        self.go_on();
    }

    /// An extent's digest was computed, or it could not be read.
    pub fn mirror_digest_done(&mut self, id: JobId, result: Result<[u8; 32], Errno>) {
        let job = self.end_job(id);
        let slot = job.slot.expect("it was handed out");
        let now = self.now;
        let mut failed = None;
        if let Some(link) = self.link_mut(job.link).filter(|_| !job.orphan) {
            let compares = &mut link.mirror.compares;
            let place = compares.iter().position(|compare| compare.seq == slot.seq);
            match (result, place) {
                (Ok(digest), Some(place)) => compares[place].ours = Some(digest),
                (Err(errno), Some(place)) => {
                    // It is asked for again from the start when the pause is over.
                    compares.swap_remove(place);
                    link.mirror.compare_cursor = link.mirror.compare_cursor.min(job.bits.0);
                    link.mirror.retry_at = now.after(ERROR_PAUSE);
                    failed = Some(errno);
                }
                (_, None) => {}
            }
        }
        if let Some(errno) = failed {
            let link = job.link;
            self.event(GroupEvent::MirrorError { link, errno });
        }
        self.unlock(job.volume, id.0 | JOB_HOLDER);
        self.judge_compare(job.link, slot.seq);
        self.mirror_step(job.link);
    }

    /// Takes the target's digest. False if it was never asked at that place.
    ///
    /// A target may still be reading what an earlier run of ours asked for, and tell it to this one. Places
    /// are counted anew in every run, so that the same place may ask for the same extent: what was there
    /// then says nothing about what is there now.
    pub fn digest_reply(&mut self, index: LinkIndex, reply: &DigestReply) -> bool {
        let run = self.log_ref().head().0;
        if reply.incarnation != run {
            return reply.incarnation < run;
        }
        let Some(link) = self.link_mut(index) else {
            return true;
        };
        if reply.seq > link.last_handed_out() {
            return false;
        }
        let compare = link
            .mirror
            .compares
            .iter_mut()
            .find(|compare| compare.seq == reply.seq);
        if let Some(compare) = compare {
            if compare.volume != reply.volume || compare.extent != reply.extent {
                return false;
            }
            compare.theirs = Some(reply.digest);
            self.judge_compare(index, reply.seq);
            self.mirror_step(index);
        }
        true
    }

    /// With both digests known, an extent is equal, or dirty.
    fn judge_compare(&mut self, index: LinkIndex, seq: Seq) {
        let grain = &self.layout;
        let Some(link) = self
            .links
            .get_mut(index.as_usize())
            .and_then(Option::as_mut)
        else {
            return;
        };
        let compares = &mut link.mirror.compares;
        let Some(place) = compares.iter().position(|compare| compare.seq == seq) else {
            return;
        };
        let (Some(ours), Some(theirs)) = (compares[place].ours, compares[place].theirs) else {
            return;
        };
        let compare = compares.swap_remove(place);
        debug_assert!(grain.locate(compare.bit).is_some(), "an extent has its bit");
        if theirs == Some(ours) || planted!(UntoldDigestIsEqual) && theirs.is_none() {
            link.recent.set(compare.bit, compare.bit);
            link.mirror.skipped += compare.extent.len().get();
        } else {
            link.mark_dirty(compare.bit, compare.bit);
        }
        link.compare.clear(compare.bit, compare.bit);
    }

    /// The jobs of a removed link end for nobody.
    pub(super) fn drop_jobs(&mut self, index: LinkIndex) {
        for job in self.jobs.iter_mut() {
            job.orphan |= job.link == index;
        }
    }
}
