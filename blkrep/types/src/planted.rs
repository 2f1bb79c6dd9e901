//! Planted bugs: mistakes that people make, for the simulator to show that it notices each of them.
//!
//! Owns their list and the switch that turns one on, for one thread. The mistakes themselves stand
//! where somebody would make them, each behind `planted!(Name)`, which is `false` without the cargo
//! feature `planted`. No release has that feature: this file does not compile there.

use std::cell::Cell;

#[cfg(not(debug_assertions))]
compile_error!(
    "the feature `planted` makes mistakes on purpose and needs debug assertions, so that no release has it: \
     build with a profile for tests, or without the feature"
);

thread_local! {
    static ON: Cell<Option<Bug>> = const { Cell::new(None) };
}

macro_rules! bugs {
    ($(#[doc = $text:literal] $name:ident,)+) => {
        /// A mistake.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Bug {
            $(#[doc = $text] $name,)+
        }

        impl Bug {
            /// Each of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// What is done wrong.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

bugs! {
    // Admission and completion at the source.
    /// A write is submitted, and sent, before its intent is durable.
    SubmitBeforeIntent,
    /// Overlapping writes of the application run together.
    SkipRangeLock,
    /// A mirror that its target holds in the journal until it is whole stands back before that journal.
    HeldMirrorHeldBack,
    /// A mirror locks no more than the first sector of the block it reads.
    MirrorLocksOneSector,
    /// A FUA write is done as a plain one.
    FuaAsPlainWrite,
    /// A flush is answered by one that had begun before.
    FlushJoinsRunning,
    /// Discards and write-zeroes are done here and not sequenced.
    DiscardNotSequenced,
    /// Writes that were slowed wait on when nothing slows them any more.
    DelayedForGood,
    /// A write that failed is not made dirty.
    FailedWriteNotDirty,
    /// A failed flush that nobody waited for is told to nobody.
    FailedFlushForgotten,
    /// A failed flush closes the regions that it was to cover as if it had succeeded.
    FailedFlushClosesRegions,
    /// `sync` completes at the target's memory, as `memory` does.
    SyncWaitsForReceived,
    /// What is acknowledged while a mirror is open counts as if the target's state had it.
    AcksCountInMirror,
    // What is dirty, open, and covered.
    /// A group's first link does not reckon with writes that were complete before it and not durable.
    UnnotedWritesForgotten,
    /// A dirty bit is cleared before the block's entry is in the log, which may have no room.
    ClearDirtyBeforeEntry,
    /// A dirty bit is cleared again when the block is acknowledged, whatever happened since.
    ClearDirtyAtAck,
    /// Of a write over several extents only the first becomes dirty.
    DirtyFirstExtentOnly,
    /// A write behind the mirror's cursor does not become dirty.
    MirrorForgetsBehindCursor,
    /// The newest entry does not become dirty when the log runs over.
    DropTailOnOverflow,
    /// Only the first volume becomes dirty when the log runs over.
    OverflowOneVolume,
    /// A region is closed before its backing is flushed.
    ClearIntentBeforeFlush,
    /// A region is closed before the link has its writes.
    CloseRegionUncovered,
    /// A region of what was acknowledged above the floor is closed when the link is behind.
    CloseRegionAboveFloor,
    /// A durable dirty bit is cleared before what was sent is acknowledged.
    SweepBeforeAck,
    /// A map is taken for durable before it is flushed.
    MapCommitNotFlushed,
    // The stream.
    /// An entry leaves the log when the target has received it.
    FreeLogAtReceived,
    /// An acknowledgement counts for one entry more.
    AckOneTooFar,
    /// The target acknowledges as durable what it has received.
    AckReceivedAsDurable,
    /// A stream goes on one name too late.
    ResumeOneTooLate,
    /// A stream goes on at the closest number when the name is not known.
    ResumeClosest,
    /// A newer generation is ignored at the handshake.
    IgnoreNewerGeneration,
    /// The target's own dirty map is not handed over.
    TargetMapNotHandedOver,
    /// A block of zeroes is not sent by a mirror.
    ZeroBlockNotSent,
    /// An extent whose digest the target cannot tell counts as equal.
    UntoldDigestIsEqual,
    // Several connections.
    /// Batches are taken as they come over several connections.
    BatchesAsTheyCome,
    /// What was on a connection that was lost is not sent again.
    LostBatchesNotSentAgain,
    // The disk queue.
    /// A segment is given back when the first of its operations is needed no more.
    SegmentClearedEarly,
    /// What is read back from the disk queue is believed whatever its checksum.
    ReadBackUnchecked,
    /// What only the disk queue holds does not become dirty when that runs over.
    OverflowForgetsAway,
    /// An operation whose bytes are on disk is sent with what is in its slot now.
    AwayTakenFromMemory,
    // Served by a target.
    /// A target answers a read before what is earlier in the order is applied.
    ReadsBeforeBarrier,
    /// A start does not see on record that the backing is stale.
    StaleBackingServedAgain,
    /// A flush is answered when the target that serves has received what was before it.
    FlushNotAtTarget,
    // Notes.
    /// A bookmark is remembered one place late.
    BookmarkOneLate,
    /// A task runs before what was written earlier is applied.
    TaskBeforeItsWrites,
    /// That a task runs is not made durable before it does.
    TaskRunTwice,
    // Starts and stops of the source.
    /// A run after a crash takes no number of its own.
    ReuseNamesAfterCrash,
    /// The group's record is not flushed.
    RecordNotFlushed,
    /// The second copy of the group's record is believed, newer or not.
    SecondRecordChosen,
    /// The backing is served before it is claimed.
    ServeBeforeClaim,
    /// A write that a killed daemon had sent and not done here is not doubted.
    HalfWriteNotDoubted,
    /// A mirror's block that a killed daemon had not read is not dirty again.
    LostMirrorBlockForgotten,
    /// An orderly stop does not make dirty what the log still holds.
    StopForgetsQueued,
    // The target.
    /// A batch of the journal is acknowledged without being durable.
    AckBeforeSync,
    /// Records of a batch are applied last first.
    ApplyBatchBackwards,
    /// Overlapping records are applied together.
    ApplyOverlappingTogether,
    /// The journal is freed before the base is flushed.
    FreeJournalBeforeFlush,
    /// A failed flush of a base is forgotten.
    BaseFlushErrorIgnored,
    /// A failed flush of a base is tried again without writing again.
    BaseFlushRetriedOnly,
    /// A base write that failed is forgotten.
    BaseWriteErrorIgnored,
    /// A base write that failed and is to be tried again is not.
    FailedWriteNotRetried,
    /// A batch that is read back lacks its last record.
    ReplayStopsEarly,
    /// The torn end of the journal is taken for a batch.
    TornBatchTaken,
    /// A mirror that could be held is applied as it comes.
    HoldNotHeld,
    /// A hold that is given up leaves the replica `ok`.
    HoldGivenUpSilently,
    /// A full mirror of a good replica does not make it not-`ok`.
    FullMirrorStaysOk,
    /// Not-`ok` is not written down before the journal is freed that says so too.
    NotOkTooLate,
    /// A mirror's end makes the replica `ok` although it lost something meanwhile.
    OkDespiteDirt,
    /// The replica's record is not flushed.
    ReplicaRecordNotFlushed,
    /// The second copy of the replica's record is believed, newer or not.
    SecondReplicaRecordChosen,
    /// The target's files are used before they are claimed.
    TargetBeforeClaim,
    // What rots, or is changed on its way.
    /// The checksum of a write's bytes is not looked at when it comes from the network.
    DataChecksumIgnored,
    /// No checksum of a packed frame is looked at: what inflates is believed.
    PackedChecksumIgnored,
    /// A link packs what it sends, whatever the target takes.
    PackedUnasked,
    /// The checksum of a write's bytes is not looked at when it comes from the journal.
    JournalChecksumIgnored,
    /// The checksum of a sector of the source's maps is not looked at.
    MapChecksumIgnored,
}

impl Bug {
    /// True on a thread where it is on.
    #[must_use]
    pub fn is_on(self) -> bool {
        ON.get() == Some(self)
    }

    /// Does something with this mistake made on this thread.
    pub fn with<R>(self, body: impl FnOnce() -> R) -> R {
        /// Turns off also what ends in a panic.
        struct Off;
        impl Drop for Off {
            fn drop(&mut self) {
                ON.set(None);
            }
        }
        assert!(ON.get().is_none(), "one mistake at a time");
        ON.set(Some(self));
        let _off = Off;
        body()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planted;

    #[test]
    fn a_mistake_is_made_here_and_now_and_nowhere_else() {
        assert!(!planted!(SkipRangeLock));
        Bug::SkipRangeLock.with(|| {
            assert!(planted!(SkipRangeLock) && !planted!(AckOneTooFar));
            let elsewhere = std::thread::spawn(|| planted!(SkipRangeLock)).join();
            assert!(matches!(elsewhere, Ok(false)));
        });
        let panicked = std::panic::catch_unwind(|| Bug::AckOneTooFar.with(|| panic!("on purpose")));
        assert!(panicked.is_err() && !planted!(AckOneTooFar));
    }
}
