//! The memory log and shared bitmaps, as the state machine wants them.
//!
//! Owns nothing but the translation between `blkrep-core`'s seams and `blkrep-log`'s formats.

use blkrep_core::dirty::Words;
use blkrep_core::identity::Place;
use blkrep_core::source::{
    Away, FlushTroubles, LinkIndex, LinkMark, LogEntry, NewEntry, Slot, WriteLog,
};
use blkrep_io::Region;
use blkrep_log::{Append, Mark, MemoryLog};
use blkrep_types::{ByteLen, Incarnation, RecordKind, Seq};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const FOLLOWING: u8 = 1;
const MIRROR_OPEN: u8 = 2;
const ACKED_KNOWN: u8 = 4;
/// Somebody has said something of the link: without it neither log nor bitmaps mean anything to it.
const WATCHED: u8 = 8;

fn link_byte(link: LinkIndex) -> u8 {
    u8::try_from(link.as_usize()).expect("few links")
}

/// A group's log.
#[derive(Debug)]
pub(super) struct GroupLog(pub(super) MemoryLog);

impl GroupLog {
    /// What a predecessor left of a link; `None` if it never came to say something of it.
    pub(super) fn mark(&self, link: LinkIndex) -> Option<LinkMark> {
        let mark = self.0.mark(link_byte(link));
        (mark.flags & WATCHED != 0).then_some(LinkMark {
            following: mark.flags & FOLLOWING != 0,
            mirror_open: mark.flags & MIRROR_OPEN != 0,
            held: mark.held,
            acked: mark.acked,
            acked_known: mark.flags & ACKED_KNOWN != 0,
        })
    }
}

impl WriteLog for GroupLog {
    fn head(&self) -> Place {
        self.0.head()
    }

    fn base(&self) -> Place {
        self.0.base()
    }

    fn append(&mut self, entry: &NewEntry) -> Option<Slot> {
        let appended = self.0.append(&Append {
            kind: entry.kind,
            volume: entry.volume,
            extent: entry.extent,
            link: entry.link.map(link_byte),
            local: entry.local,
        })?;
        Some(Slot {
            seq: appended.seq,
            position: appended.position,
        })
    }

    fn entry(&self, seq: Seq) -> LogEntry {
        let held = self.0.entry(seq);
        LogEntry {
            record: held.record,
            position: held.position,
            link: held.link.map(|link| LinkIndex::new(usize::from(link))),
            published: held.published,
            local_done: held.local_done,
            away: held.away.map(|away| Away {
                sector: away.sector,
                crc: away.crc,
            }),
        }
    }

    fn publish(&mut self, seq: Seq) {
        self.0.publish(seq);
    }

    fn replace_kind(&mut self, seq: Seq, kind: RecordKind) {
        self.0.replace_kind(seq, kind);
    }

    fn set_local_done(&mut self, seq: Seq) {
        self.0.set_local_done(seq);
    }

    fn free_through(&mut self, seq: Seq) {
        self.0.free_through(seq);
    }

    fn lend(&mut self, seq: Seq) {
        self.0.lend(seq);
    }

    fn take_back(&mut self, seq: Seq, away: Option<Away>) {
        let away = away.map(|away| blkrep_log::Away {
            sector: away.sector,
            crc: away.crc,
        });
        self.0.take_back(seq, away);
    }

    fn remember_queue(&mut self, file: u64) {
        self.0.set_queue_file(file);
    }

    fn is_out_of_entries(&self) -> bool {
        self.0.is_out_of_entries()
    }

    fn used(&self) -> ByteLen {
        self.0.used()
    }

    fn capacity(&self) -> ByteLen {
        self.0.capacity()
    }

    fn mark_link(&mut self, link: LinkIndex, mark: &LinkMark) {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let acked = if mark.acked_known {
            mark.acked
        } else {
            (Incarnation::default(), Seq::ZERO)
        };
        self.0.set_mark(
            link_byte(link),
            &Mark {
                flags: WATCHED
                    | flag(mark.following, FOLLOWING)
                    | flag(mark.mirror_open, MIRROR_OPEN)
                    | flag(mark.acked_known, ACKED_KNOWN),
                held: mark.held,
                acked,
            },
        );
    }

    fn flush_troubles(&self) -> FlushTroubles {
        let troubles = self.0.flush_troubles();
        FlushTroubles {
            failed: troubles.failed,
            untold: troubles.untold,
        }
    }

    fn set_flush_troubles(&mut self, troubles: FlushTroubles) {
        self.0.set_flush_troubles(blkrep_log::FlushTroubles {
            failed: troubles.failed,
            untold: troubles.untold,
        });
    }
}

/// Bits in memory that outlives the process.
#[derive(Debug)]
pub(super) struct SharedWords {
    region: Arc<Region>,
    first: usize,
    count: usize,
}

impl SharedWords {
    /// `count` words from the word `first`.
    pub(super) fn new(region: &Arc<Region>, first: usize, count: usize) -> Self {
        assert!(
            (first + count) * 8 <= region.len(),
            "the words are within the memory"
        );
        Self {
            region: Arc::clone(region),
            first,
            count,
        }
    }
}

impl Words for SharedWords {
    fn count(&self) -> usize {
        self.count
    }

    fn load(&self, index: usize) -> u64 {
        self.region
            .load((self.first + index) * 8, Ordering::Relaxed)
    }

    fn store(&mut self, index: usize, word: u64) {
        // Release: a successor that sees a later store of ours sees this one too.
        self.region
            .store((self.first + index) * 8, word, Ordering::Release);
    }
}
