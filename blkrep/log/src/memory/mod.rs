//! The write log in memory that outlives its daemon.
//!
//! Owns one piece of shared memory: a header, a ring of entries, a ring of bytes
//! (`docs/format/memory-log.md`). Entries enter at the head in order and leave at the tail in
//! order. Every change is a single store of a word after the words it covers, so a process that is
//! killed at any instruction leaves a log that its successor can read. One process writes it at a
//! time, under its group's mutex. Never talks to a disk or the network.

mod away;
mod handle;
mod holes;
mod layout;
mod marks;
mod recover;
mod state;
#[cfg(test)]
mod tests;

use away::Lent;
use blkrep_io::{PAGE_BYTES, Region, Slice};
use blkrep_types::limits::COUNT_MAX;
use blkrep_types::{
    ByteLen, ByteOffset, Extent, Generation, Incarnation, Record, RecordKind, Seq, VolumeIndex,
};
use holes::{Holes, Piece};
use layout::{
    ENTRY_BYTES, HEADER_BYTES, MAGIC, MARK_BYTES, MARKS, entry, header, pack_kind, unpack_kind,
};
use state::{AWAY, KEEPS_SLOT, LOCAL_DONE, PUBLISHED};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};

pub use away::Away;
pub use handle::LogHandle;
pub use marks::{FlushTroubles, Mark};

/// Bytes of data for each entry the ring has room for: the smallest write, so that entries never run
/// out before bytes do; and the disk queue has names for seven times as many writes of the usual 4 KiB
/// as memory has bytes.
const DATA_BYTES_PER_ENTRY: u64 = 512;
/// Fewest entries: a log of the smallest size still takes a queue full of small writes.
const ENTRIES_MIN: u64 = 1024;
/// Slots lent to operations at once.
const LENT: usize = 512;
/// The grain of slots: what a write to a disk must be aligned to.
const GRAIN: u64 = 512;

/// Sizes of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLogShape {
    entries: u64,
    data_bytes: u64,
}

impl MemoryLogShape {
    /// A log that holds `data` bytes, rounded up to whole pages.
    #[must_use]
    pub fn holding(data: ByteLen) -> Self {
        let page = u64::try_from(PAGE_BYTES).expect("64-bit platform");
        let data_bytes = data.get().max(1).next_multiple_of(page);
        let entries = (data_bytes / DATA_BYTES_PER_ENTRY).max(ENTRIES_MIN);
        Self {
            entries: entries.next_multiple_of(page / 64),
            data_bytes,
        }
    }

    /// Bytes of shared memory it takes.
    #[must_use]
    pub fn bytes(self) -> ByteLen {
        let entries = self.entries * u64::try_from(ENTRY_BYTES).expect("64-bit platform");
        ByteLen::new(
            u64::try_from(HEADER_BYTES).expect("64-bit platform") + entries + self.data_bytes,
        )
    }

    fn data_start(self) -> usize {
        HEADER_BYTES + usize_of(self.entries) * ENTRY_BYTES
    }
}

/// Which log this is: memory of another group or history is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLogName {
    /// The group's random identity.
    pub group: [u8; 16],
    /// The data history its entries belong to.
    pub generation: Generation,
}

/// A place in the order of one generation.
pub type Place = (Incarnation, Seq);

/// An entry to append.
#[derive(Debug, Clone, Copy)]
pub struct Append {
    /// What it does.
    pub kind: RecordKind,
    /// To which volume.
    pub volume: VolumeIndex,
    /// Where; present exactly if the kind has an extent.
    pub extent: Option<Extent>,
    /// The one link it is for, below 16; every link if `None`.
    pub link: Option<u8>,
    /// A local write belongs to it and is not done.
    pub local: bool,
}

/// Where an appended entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Its place.
    pub seq: Seq,
    /// First byte of its slot, for [`MemoryLog::data`]; 0 without data.
    pub position: usize,
}

/// An entry as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// What it does, where, with its name.
    pub record: Record,
    /// First byte of its slot; 0 without data.
    pub position: usize,
    /// The one link it is for.
    pub link: Option<u8>,
    /// Its bytes are complete.
    pub published: bool,
    /// No local write of it is outstanding.
    pub local_done: bool,
    /// Its bytes are there instead of in its slot.
    pub away: Option<Away>,
}

/// Memory that is not a usable log of that name, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the write log in shared memory cannot be used: {0}")]
pub struct Unusable(String);

/// The ordered memory of a group.
pub struct MemoryLog {
    region: Arc<Region>,
    shape: MemoryLogShape,
    incarnation: Incarnation,
    head: Place,
    base: Place,
    holes: Holes,
    /// Slots that operations read.
    lent: Vec<Lent>,
}

fn usize_of(value: u64) -> usize {
    usize::try_from(value).expect("64-bit platform")
}

fn u64_of(value: usize) -> u64 {
    u64::try_from(value).expect("64-bit platform")
}

impl MemoryLog {
    /// An empty log over zeroed or stale memory: the next entry follows `base`.
    ///
    /// # Panics
    /// If the region is smaller than the shape.
    #[must_use]
    pub fn create(
        region: Arc<Region>,
        shape: MemoryLogShape,
        name: &MemoryLogName,
        incarnation: Incarnation,
        base: Place,
    ) -> Self {
        assert!(
            u64_of(region.len()) >= shape.bytes().get(),
            "the memory holds the log"
        );
        region.store(header::MAGIC, 0, Release);
        region.store(header::ENTRIES, shape.entries, Relaxed);
        region.store(header::DATA_BYTES, shape.data_bytes, Relaxed);
        for (offset, word) in words_of(&name.group, header::GROUP) {
            region.store(offset, word, Relaxed);
        }
        for (offset, word) in words_of(name.generation.as_bytes(), header::GENERATION) {
            region.store(offset, word, Relaxed);
        }
        for link in 0..MARKS {
            let at = header::MARKS + link * MARK_BYTES;
            for word in (at..at + MARK_BYTES).step_by(8) {
                region.store(word, 0, Relaxed);
            }
        }
        region.store(header::FLUSH_FAILED, 0, Relaxed);
        region.store(header::FLUSH_UNTOLD, 0, Relaxed);
        region.store(header::QUEUE_FILE, 0, Relaxed);
        region.store(header::STATIC_CRC, static_crc(shape, name), Relaxed);
        let mut log = Self {
            region,
            shape,
            incarnation,
            head: base,
            base,
            holes: Holes::all(shape.data_bytes),
            lent: Vec::with_capacity(LENT),
        };
        log.region
            .store(header::INCARNATION, incarnation.get(), Relaxed);
        log.set_base(base);
        log.region.store(header::HEAD, base.1.get(), Release);
        log.region.store(header::MAGIC, MAGIC, Release);
        log
    }

    fn entry_at(&self, seq: Seq) -> usize {
        HEADER_BYTES + usize_of(seq.get() % self.shape.entries) * ENTRY_BYTES
    }

    fn word(&self, seq: Seq, offset: usize) -> u64 {
        self.region.load(self.entry_at(seq) + offset, Relaxed)
    }

    /// The entry and its slot with what is lost before it; `None` if its words make no sense.
    fn decode(&self, seq: Seq) -> Option<(Held, Option<Piece>)> {
        let what = self.word(seq, entry::WHAT);
        let kind = unpack_kind(what & 0xffff)?;
        // An entry that became nothing keeps its word; a record without an extent names no volume.
        let number = if kind.has_extent() {
            what >> 16 & 0xffff
        } else {
            0
        };
        let volume = VolumeIndex::new(u16::try_from(number).ok()?);
        let link = match what >> 32 {
            0 => None,
            number => Some(
                u8::try_from(number - 1)
                    .ok()
                    .filter(|link| usize::from(*link) < MARKS)?,
            ),
        };
        let offset = ByteOffset::new(self.word(seq, entry::OFFSET));
        let len = ByteLen::new(self.word(seq, entry::LEN));
        let extent = if kind.has_extent() {
            Some(Extent::new(offset, len).ok()?)
        } else {
            None
        };
        if kind.has_data() && kind.data_len(extent) != len {
            return None;
        }
        let state = state::read(&*self.region, self.entry_at(seq) + entry::STATE);
        let away = state & AWAY != 0;
        if away && len.get() > self.shape.data_bytes {
            // It was in a slot once.
            return None;
        }
        let has_slot = kind.has_data() && !away || state & KEEPS_SLOT != 0;
        let slot = match has_slot {
            true => Some(self.slot(self.word(seq, entry::DATA), len.get())?),
            false => None,
        };
        let incarnation = Incarnation::new(self.word(seq, entry::INCARNATION));
        let named = self.word(seq, entry::SEQ) == seq.get() && incarnation <= self.incarnation;
        let held = Held {
            record: Record {
                incarnation,
                seq,
                kind,
                volume,
                extent,
            },
            position: match slot {
                Some((_, start, _)) if kind.has_data() => usize_of(start),
                Some(_) | None => 0,
            },
            link,
            published: state & PUBLISHED != 0,
            local_done: state & LOCAL_DONE != 0,
            away: away.then(|| Away::unpack(self.word(seq, entry::AWAY))),
        };
        let piece = slot.map(|(from, _, to)| (from, to));
        (named && state::is_legal(state, kind.has_data())).then_some((held, piece))
    }

    /// Where a slot's piece of memory begins, the slot itself, and the end of both; `None` if no
    /// slot can be there.
    fn slot(&self, word: u64, len: u64) -> Option<(u64, u64, u64)> {
        let (lost, place) = (word % GRAIN, word - word % GRAIN);
        let start = place % self.shape.data_bytes;
        let from = start.checked_sub(lost.checked_mul(GRAIN)?)?;
        let end = start.checked_add(len.checked_next_multiple_of(GRAIN)?)?;
        let fits = lost < u64_of(PAGE_BYTES) / GRAIN && end <= self.shape.data_bytes;
        (fits && place <= COUNT_MAX).then_some((from, start, end))
    }

    /// The slot of an entry with what is lost before it.
    fn piece(&self, seq: Seq) -> Option<Piece> {
        self.decode(seq).expect("our own entry makes sense").1
    }

    /// The last name given; the base if the log is empty.
    #[must_use]
    pub const fn head(&self) -> Place {
        self.head
    }

    /// The name directly before the oldest entry held.
    #[must_use]
    pub const fn base(&self) -> Place {
        self.base
    }

    /// Bytes held, padding included.
    #[must_use]
    pub fn used(&self) -> ByteLen {
        ByteLen::new(self.shape.data_bytes - self.holes.free())
    }

    /// Bytes it can hold.
    #[must_use]
    pub const fn capacity(&self) -> ByteLen {
        ByteLen::new(self.shape.data_bytes)
    }

    /// Appends an entry if there is room for it. One without data is published at once.
    pub fn append(&mut self, new: &Append) -> Option<Appended> {
        assert_eq!(
            new.kind.has_extent(),
            new.extent.is_some(),
            "an extent exactly if it needs one"
        );
        let held = self.head.1.get() - self.base.1.get();
        if held == self.shape.entries {
            return None;
        }
        let data = new.kind.data_len(new.extent);
        let (from, start) = match new.kind.has_data() {
            true => self.reserve(data.get())?,
            false => (0, 0),
        };
        let seq = self.head.1.next();
        let at = self.entry_at(seq);
        let link = new.link.map_or(0, |link| u64::from(link) + 1);
        let what = pack_kind(new.kind) | u64::from(new.volume.get()) << 16 | link << 32;
        let (offset, len) = new
            .extent
            .map_or((0, data.get()), |e| (e.offset().get(), e.len().get()));
        let published = if new.kind.has_data() { 0 } else { PUBLISHED };
        let local_done = if new.local { 0 } else { LOCAL_DONE };
        for (word, value) in [
            (entry::SEQ, seq.get()),
            (entry::INCARNATION, self.incarnation.get()),
            (entry::WHAT, what),
            (entry::OFFSET, offset),
            (entry::LEN, len),
            (entry::DATA, start + (start - from) / GRAIN),
            (entry::STATE, published | local_done),
        ] {
            self.region.store(at + word, value, Relaxed);
        }
        self.region.store(header::HEAD, seq.get(), Release);
        self.head = (self.incarnation, seq);
        Some(Appended {
            seq,
            position: usize_of(start),
        })
    }

    /// Takes the next slot of `len` bytes, contiguous and aligned for a disk: with what is lost
    /// before it, and without.
    fn reserve(&mut self, len: u64) -> Option<(u64, u64)> {
        let page = u64_of(PAGE_BYTES);
        let align = if len >= page { page } else { GRAIN };
        self.holes.take(round_up(len, GRAIN), align)
    }

    /// The entry at a place.
    ///
    /// # Panics
    /// If the log does not hold it.
    #[must_use]
    pub fn entry(&self, seq: Seq) -> Held {
        assert!(self.holds(seq), "entry {seq} is held");
        self.decode(seq).expect("our own entry makes sense").0
    }

    /// True if the entry at that place is held.
    #[must_use]
    pub fn holds(&self, seq: Seq) -> bool {
        seq > self.base.1 && seq <= self.head.1
    }

    /// The bytes at a slot's position.
    ///
    /// # Panics
    /// If they are not within the log.
    #[must_use]
    pub fn data(&self, position: usize, len: usize) -> Slice {
        self.handle().data(position, len)
    }

    /// What a thread needs that fills slots.
    #[must_use]
    pub fn handle(&self) -> LogHandle {
        LogHandle {
            region: Arc::clone(&self.region),
            shape: self.shape,
        }
    }

    fn add_state(&self, seq: Seq, bit: u64) {
        assert!(self.holds(seq), "entry {seq} is held");
        state::add(&*self.region, self.entry_at(seq) + entry::STATE, bit);
    }

    /// The bytes of an entry are complete. To be called after they were copied.
    pub fn publish(&mut self, seq: Seq) {
        self.add_state(seq, PUBLISHED);
    }

    /// The local write of an entry is done.
    pub fn set_local_done(&mut self, seq: Seq) {
        self.add_state(seq, LOCAL_DONE);
    }

    /// Changes what an unpublished entry does, such as to zero what was found to be zeroes, or to
    /// nothing. Its slot stays reserved until it is freed.
    ///
    /// # Panics
    /// If it is published.
    pub fn replace_kind(&mut self, seq: Seq, kind: RecordKind) {
        let held = self.entry(seq);
        assert!(!held.published, "what may have been sent never changes");
        let at = self.entry_at(seq) + entry::WHAT;
        let what = self.region.load(at, Relaxed) & !0xffff;
        self.region.store(at, what | pack_kind(kind), Release);
        if held.record.kind.has_data() && !kind.has_data() {
            // After the kind: a successor never finds a slot kept that the entry has by its kind.
            self.add_state(seq, KEEPS_SLOT);
        }
    }

    /// Forgets every entry up to `seq`.
    ///
    /// # Panics
    /// If `seq` was never given.
    pub fn free_through(&mut self, seq: Seq) {
        assert!(seq <= self.head.1, "only what was given is freed");
        if seq <= self.base.1 {
            return;
        }
        let incarnation = self.entry(seq).record.incarnation;
        let (mut gone, mut run) = (self.base.1, None::<Piece>);
        while gone < seq {
            gone = gone.next();
            let lent = !self.lent.is_empty() && self.is_lent(gone);
            let Some((from, to)) = self.piece(gone).filter(|_| !lent) else {
                continue;
            };
            // Slots of neighbours are neighbours mostly.
            run = match run {
                Some((first, end)) if end == from => Some((first, to)),
                Some(other) => {
                    self.holes.give(other);
                    Some((from, to))
                }
                None => Some((from, to)),
            };
        }
        if let Some(run) = run {
            self.holes.give(run);
        }
        self.set_base((incarnation, seq));
    }

    fn set_base(&mut self, base: Place) {
        let choice = 1 - self.region.load(header::BASE_CHOICE, Relaxed) % 2;
        let at = header::BASES + usize_of(choice) * 16;
        self.region.store(at, base.0.get(), Relaxed);
        self.region.store(at + 8, base.1.get(), Relaxed);
        self.region.store(header::BASE_CHOICE, choice, Release);
        self.base = base;
    }
}

impl fmt::Debug for MemoryLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "MemoryLog({}..={}, {} of {})",
            self.base.1,
            self.head.1,
            self.used(),
            self.capacity()
        )
    }
}

const fn round_up(value: u64, to: u64) -> u64 {
    value.next_multiple_of(to)
}

fn words_of(bytes: &[u8; 16], at: usize) -> impl Iterator<Item = (usize, u64)> {
    let word = |range: std::ops::Range<usize>| {
        u64::from_le_bytes(bytes[range].try_into().expect("eight bytes"))
    };
    [(at, word(0..8)), (at + 8, word(8..16))].into_iter()
}

fn static_crc(shape: MemoryLogShape, name: &MemoryLogName) -> u64 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&shape.entries.to_le_bytes());
    hasher.update(&shape.data_bytes.to_le_bytes());
    hasher.update(&name.group);
    hasher.update(name.generation.as_bytes());
    u64::from(hasher.finalize())
}
