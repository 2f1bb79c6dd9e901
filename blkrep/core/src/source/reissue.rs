//! Writes of the last run that their front ends issue again.
//!
//! Owns what is awaited after a crash of the daemon: a write whose local part is not known to be
//! done. Targets may have it and the backing not. Until it came again, and is done, its entry stays
//! in the log, for yet another successor, and its regions stay open, for a crash of the host.
//! What does not come in time, or can not come, is dirt. Never waits for a device.

use super::{NewRequest, SourceGroup, WriteLog};
use crate::dirty::Words;
use blkrep_types::{Extent, Nanos, RecordKind, Seq, VolumeIndex};
use std::time::Duration;

/// How long writes are awaited. A device issues them again in the first moments of its new daemon,
/// or while an operator mends what freezes it; they hold room in the log meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

/// A write of the last run.
#[derive(Debug, Clone, Copy)]
struct Awaited {
    seq: Seq,
    volume: VolumeIndex,
    extent: Extent,
}

/// What is awaited.
#[derive(Debug, Default)]
pub(super) struct Reissues {
    awaited: Vec<Awaited>,
    /// When patience ends; known from the first turn on.
    until: Option<Nanos>,
}

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// Ends what a predecessor had under way, once every link is there and what is doubtful is dirt
    /// on it: bytes that never came leave nothing to send. A local write that is not known to be
    /// done is awaited if front ends issue it again (`reissues`).
    pub fn settle_entries(&mut self, reissues: bool) {
        let (mut seq, head) = (self.log_ref().base().1.next(), self.log_ref().head().1);
        while seq <= head {
            let entry = self.log_ref().entry(seq);
            // Without a backing what is published is done, whoever issues it again.
            let comes_again = reissues && entry.published && !entry.local_done && !self.is_lost();
            if let Some(extent) = entry.record.extent.filter(|_| comes_again) {
                let volume = entry.record.volume;
                self.intent.expect(volume, extent);
                let awaited = &mut self.reissues.awaited;
                awaited.push(Awaited {
                    seq,
                    volume,
                    extent,
                });
            } else {
                if !entry.published {
                    self.log_mut().replace_kind(seq, RecordKind::Void);
                    self.log_mut().publish(seq);
                }
                if !entry.local_done {
                    self.log_mut().set_local_done(seq);
                }
            }
            seq = seq.next();
        }
    }

    /// A write is done here: what is awaited within it came again, or is written over.
    pub(super) fn came_again(&mut self, volume: VolumeIndex, extent: Extent) {
        let within =
            |awaited: &Awaited| awaited.volume == volume && extent.contains(awaited.extent);
        while let Some(at) = self.reissues.awaited.iter().position(within) {
            let awaited = self.reissues.awaited.swap_remove(at);
            self.end_awaiting(&awaited);
        }
    }

    /// A request is refused: what is awaited within it came again, and is not done. A target may have it.
    pub(super) fn came_in_vain(&mut self, new: &NewRequest) {
        if let Some(extent) = new.extent {
            let volume = new.volume;
            let within = |each: &Awaited| each.volume == volume && extent.contains(each.extent);
            self.doubt_awaited(within);
        }
    }

    /// What is awaited of a volume will not come: targets have writes that the backing may lack.
    pub fn requests_are_lost(&mut self, volume: VolumeIndex) {
        self.doubt_awaited(|awaited| awaited.volume == volume);
    }

    /// Nothing that is awaited will be done.
    pub(super) fn await_nothing(&mut self) {
        self.doubt_awaited(|_| true);
    }

    /// The backing is lost: what is awaited is in the log, and nothing more is to be done for it here.
    pub(super) fn forget_awaited(&mut self) {
        while let Some(awaited) = self.reissues.awaited.pop() {
            self.end_awaiting(&awaited);
        }
    }

    /// Patience has an end.
    pub(super) fn look_after_awaited(&mut self) {
        if self.reissues.awaited.is_empty() {
            return;
        }
        let now = self.now;
        let until = self.reissues.until.get_or_insert(now.after(PATIENCE));
        if now >= *until {
            self.await_nothing();
        }
    }

    /// The log is full. True if its oldest entry was there for a write that is awaited, which may
    /// itself wait for room: it is dirt instead.
    pub(super) fn give_up_awaited_tail(&mut self) -> bool {
        let tail = self.log_ref().base().1.next();
        let is_tail = |awaited: &Awaited| awaited.seq == tail;
        let found = self.reissues.awaited.iter().any(is_tail);
        if found {
            self.doubt_awaited(is_tail);
        }
        found
    }

    /// Nobody knows whether these extents are what the log says: every link gets them again.
    fn doubt_awaited(&mut self, which: impl Fn(&Awaited) -> bool) {
        while let Some(at) = self.reissues.awaited.iter().position(&which) {
            let awaited = self.reissues.awaited.swap_remove(at);
            let (first, last) = self.layout.bits_of(awaited.volume, awaited.extent);
            for link in self.links.iter_mut().flatten() {
                link.mark_dirty(first, last);
            }
            for index in self.link_indices() {
                self.want_mirror(index);
            }
            self.end_awaiting(&awaited);
        }
    }

    fn end_awaiting(&mut self, awaited: &Awaited) {
        self.log_mut().set_local_done(awaited.seq);
        let flush = self.volumes[awaited.volume.as_usize()].flush.covering();
        let (volume, extent) = (awaited.volume, awaited.extent);
        self.intent.done(self.now, volume, extent, flush);
        self.free();
    }
}
