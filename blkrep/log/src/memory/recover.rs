//! Taking over the log of a process that is dead.
//!
//! Owns what is believed of memory that another run wrote: its name, its ends, each of its entries.
//! Never changes an entry.

use super::layout::{MAGIC, header};
use super::{
    Holes, LENT, MemoryLog, MemoryLogName, MemoryLogShape, Place, Unusable, static_crc, u64_of,
    usize_of, words_of,
};
use blkrep_io::Region;
use blkrep_types::limits::COUNT_MAX;
use blkrep_types::{Incarnation, Seq};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

impl MemoryLog {
    /// Takes over the log of a predecessor. Entries appended from now on belong to `incarnation`.
    ///
    /// # Errors
    /// The memory holds no log, one of another name or shape, or one that contradicts itself.
    pub fn recover(
        region: Arc<Region>,
        shape: MemoryLogShape,
        name: &MemoryLogName,
        incarnation: Incarnation,
    ) -> Result<Self, Unusable> {
        let wrong = |why: &str| Err(Unusable(why.to_owned()));
        if u64_of(region.len()) < shape.bytes().get() {
            return wrong("its memory is too small");
        }
        if region.load(header::MAGIC, Acquire) != MAGIC {
            return wrong("it was never made, or only half");
        }
        let same = region.load(header::STATIC_CRC, Relaxed) == static_crc(shape, name)
            && region.load(header::ENTRIES, Relaxed) == shape.entries
            && region.load(header::DATA_BYTES, Relaxed) == shape.data_bytes
            && words_of(&name.group, header::GROUP)
                .all(|(at, word)| region.load(at, Relaxed) == word);
        if !same {
            return wrong("it has another size or belongs to another group or history");
        }
        let base = read_base(&region);
        let head = Seq::new(region.load(header::HEAD, Acquire));
        let held = head.get().wrapping_sub(base.1.get());
        if head < base.1 || held > shape.entries || head.get() > COUNT_MAX {
            return wrong("its head and tail contradict each other");
        }
        if base.0 > incarnation {
            return wrong("it is of a later run than this one, whose record must be an old copy");
        }
        let mut log = Self {
            region,
            shape,
            incarnation,
            head: base,
            base,
            holes: Holes::all(shape.data_bytes),
            lent: Vec::with_capacity(LENT),
        };
        log.find_ends(head)?;
        log.region
            .store(header::INCARNATION, incarnation.get(), Release);
        Ok(log)
    }

    /// Walks all entries: checks them, and finds the holes between their slots.
    fn find_ends(&mut self, head: Seq) -> Result<(), Unusable> {
        let mut slots = Vec::new();
        let mut last = self.base;
        let mut seq = self.base.1;
        while seq < head {
            seq = seq.next();
            let Some((held, piece)) = self.decode(seq) else {
                return Err(Unusable(format!("entry {seq} is corrupt")));
            };
            let place = (held.record.incarnation, seq);
            if held.record.incarnation < last.0 {
                return Err(Unusable(format!(
                    "entry {seq} is of an older run than the one before"
                )));
            }
            last = place;
            slots.extend(piece);
        }
        self.holes = Holes::around(self.shape.data_bytes, slots)
            .ok_or_else(|| Unusable("the bytes of two entries overlap".to_owned()))?;
        self.head = last;
        Ok(())
    }
}

fn read_base(region: &Region) -> Place {
    let choice = region.load(header::BASE_CHOICE, Acquire) % 2;
    let at = header::BASES + usize_of(choice) * 16;
    (
        Incarnation::new(region.load(at, Relaxed)),
        Seq::new(region.load(at + 8, Relaxed)),
    )
}
