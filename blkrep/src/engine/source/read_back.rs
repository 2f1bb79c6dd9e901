//! A link's memory for what it reads back of the disk queue.
//!
//! Owns that memory, made when something is on disk for the first time, and the sums of what comes.
//! What the group has on disk enters; reads to begin, and bytes that are right, leave. Never reads.

use super::group::Core;
use blkrep_core::ahead::{Read, ReadAhead};
use blkrep_core::source::LinkIndex;
use blkrep_io::{Region, Slice};
use blkrep_log::queue::sum;
use blkrep_types::{Errno, Seq};

/// Memory of one link: as much as a fast line takes while a slow disk finds its place.
const AHEAD_BYTES: usize = 4 << 20;

/// What a read of the queue that brought something else than was written answers.
const WRONG_SUM: Errno = Errno::new(74);

/// What a link reads ahead.
#[derive(Debug, Default)]
pub(super) struct ReadBack(Option<(ReadAhead, Slice)>);

impl ReadBack {
    /// Looks for what the link will need.
    pub(super) fn look(&mut self, link: LinkIndex, group: &Core) {
        if !group.has_away() {
            return;
        }
        let make = || {
            (
                ReadAhead::new(AHEAD_BYTES),
                Region::heap(AHEAD_BYTES).whole(),
            )
        };
        let (ahead, _) = self.0.get_or_insert_with(make);
        // What was given up meanwhile is not wanted either.
        ahead.passed(group.released(link));
        let looked = group.look_ahead(link, ahead.looked(), |record| ahead.ask(record));
        ahead.look_after(looked);
    }

    /// True if reads are to be begun.
    pub(super) fn has_asked(&self) -> bool {
        self.0.as_ref().is_some_and(|(ahead, _)| ahead.has_asked())
    }

    /// The next read to begin, with the memory.
    pub(super) fn next_read(&mut self) -> Option<(Read, &Slice)> {
        let (ahead, memory) = self.0.as_mut()?;
        Some((ahead.next_read()?, memory))
    }

    /// A read has ended. The first operation that is wanted and cannot be had, and why.
    pub(super) fn done(&mut self, id: u64, result: Result<(), Errno>) -> Result<(), (Seq, Errno)> {
        let (ahead, memory) = self.0.as_mut().expect("a read was begun");
        let right = |at: usize, len: usize| memory.part(at..at + len).with(sum);
        let errno = result.err().unwrap_or(WRONG_SUM);
        ahead
            .done(id, result.is_ok(), right)
            .map_err(|seq| (seq, errno))
    }

    /// Where the bytes of an operation are, if they are here.
    pub(super) fn place_of(&self, seq: Seq) -> Option<usize> {
        self.0.as_ref()?.0.place_of(seq)
    }

    /// The bytes at such a place.
    pub(super) fn bytes(&self, at: usize, len: usize) -> Slice {
        let (_, memory) = self.0.as_ref().expect("it was read");
        memory.part(at..at + len)
    }

    /// Nothing up to here is needed any more.
    pub(super) fn passed(&mut self, through: Seq) {
        if let Some((ahead, _)) = &mut self.0 {
            ahead.passed(through);
        }
    }

    /// The connection has ended: the next one begins anywhere.
    pub(super) fn forget(&mut self) {
        if let Some((ahead, _)) = &mut self.0 {
            ahead.forget(Seq::ZERO);
        }
    }
}
