//! The application: writes blocks that describe themselves, reads them back, and keeps the record.
//!
//! Owns the record of one life of the source host (an *age*): what was issued and answered, in
//! order. A power cut of the source ends an age; the next begins with what the disks then hold.
//! Requests leave to the fronts, answers come back; every read is judged at once.

use super::age::{Age, Place};
use super::front::{Answer, Front, REQUEST_BYTES_MAX};
use blkrep_io::sim::SimRandom;
use blkrep_order::{Content, Event, Kind, SECTOR_BYTES, Stamp, decode, encode};
use blkrep_types::{ByteLen, ByteOffset, Errno, Extent};
use blkrep_ublk::{Request, RequestKind};
use std::collections::BTreeMap;
use std::ops::Range;

const SECTOR: u64 = SECTOR_BYTES as u64;

/// The one writer there is, as far as the record goes.
const WRITER: u16 = 0;

/// How the application behaves, in hundredths.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// Reads.
    pub reads: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards and write-zeroes.
    pub clears: u64,
    /// Of the writes, those with FUA.
    pub fua: u64,
    /// Of all, those that go to the same few blocks.
    pub hot: u64,
    /// Largest request, in blocks.
    pub blocks_max: u64,
}

#[derive(Debug, Clone)]
struct Issued {
    volume: usize,
    sectors: Range<u64>,
    /// Place in the record at which it was issued; a read has the place of the next line.
    submitted: u64,
    /// Name in the record, for all but reads.
    counter: Option<u64>,
}

/// A place where zeroes may not be mixed with other requests.
#[derive(Debug, Clone)]
struct Claim {
    volume: usize,
    sectors: Range<u64>,
    clears: bool,
}

#[derive(Debug, Clone, Copy)]
struct Written {
    counter: u64,
    clears: bool,
    submitted: u64,
    completed: Option<u64>,
}

/// The application and its record.
#[derive(Debug)]
pub struct App {
    random: SimRandom,
    habits: Habits,
    block_bytes: u64,
    fronts: Vec<Front>,
    age: Age,
    counter: u64,
    issued: Vec<BTreeMap<u16, Issued>>,
    claims: BTreeMap<u64, Claim>,
    /// Where an operation failed or its answer never came, nothing is known until the next age.
    retired: Vec<Claim>,
    /// For each sector of each volume, what was written there, in order of issue.
    written: Vec<BTreeMap<u64, Vec<Written>>>,
    /// Volumes it does not use for now, a bit for each.
    away: u32,
    /// Since which line of the record its device is fenced.
    fenced: Option<u64>,
    /// A write that was answered though it was.
    complaint: Option<String>,
    /// Answers that were errors.
    pub failures: u64,
    /// Requests issued in all.
    pub requests: u64,
    /// Of them, those that change something.
    pub writes: u64,
    /// Reads judged.
    pub reads: u64,
}

impl App {
    /// An application over volumes that hold `base`; `run` names its first age.
    #[must_use]
    pub fn new(
        random: SimRandom,
        (habits, block_bytes): (Habits, u64),
        fronts: Vec<Front>,
        run: u64,
        base: Vec<Vec<u8>>,
    ) -> Self {
        let volumes = fronts.len();
        let mut app = Self {
            random,
            habits,
            block_bytes,
            fronts,
            age: Age::default(),
            counter: 0,
            issued: vec![BTreeMap::new(); volumes],
            claims: BTreeMap::new(),
            retired: Vec::new(),
            written: Vec::new(),
            away: 0,
            fenced: None,
            complaint: None,
            failures: 0,
            requests: 0,
            writes: 0,
            reads: 0,
        };
        app.begin_age(run, base);
        app
    }

    /// Ends the age, with what was in flight, and begins one with what the volumes hold now. No two
    /// ages of a group have one number.
    pub fn begin_age(&mut self, run: u64, base: Vec<Vec<u8>>) -> Age {
        let sectors = base
            .iter()
            .map(|bytes| to_u64(bytes.len()) / SECTOR)
            .collect();
        self.fronts.iter().for_each(Front::forget);
        self.issued.iter_mut().for_each(BTreeMap::clear);
        self.claims.clear();
        self.retired.clear();
        self.written = vec![BTreeMap::new(); base.len()];
        self.counter = 0;
        self.fenced = None;
        let events = vec![Event::Run { run, sectors }];
        let begun = Age {
            run,
            events,
            base,
            ..Age::default()
        };
        std::mem::replace(&mut self.age, begun)
    }

    /// The age began with these sectors, by volume, not yet safe from a power cut.
    pub fn begun_unflushed(&mut self, unflushed: Vec<Place>) {
        self.age.unflushed = unflushed;
    }

    /// The age so far.
    #[must_use]
    pub fn age(&self) -> &Age {
        &self.age
    }

    /// Its device returns errors from now on, or does not.
    pub fn set_fenced(&mut self, fenced: bool) {
        let now = to_u64(self.age.events.len());
        self.fenced = fenced.then(|| self.fenced.unwrap_or(now));
    }

    /// A write that was issued to a fenced device and answered as done.
    #[must_use]
    pub fn answered_though_fenced(&self) -> Option<&str> {
        self.complaint.as_deref()
    }

    /// Requests not yet answered.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.issued.iter().map(BTreeMap::len).sum()
    }

    /// Leaves these volumes alone, a bit for each, until told otherwise.
    pub fn stay_away(&mut self, volumes: u32) {
        self.away = volumes;
    }

    /// Volumes it leaves alone.
    #[must_use]
    pub fn away(&self) -> u32 {
        self.away
    }

    /// True if it has no request on these volumes, a bit for each.
    #[must_use]
    pub fn has_left(&self, volumes: u32) -> bool {
        let mut issued = self.issued.iter().enumerate();
        issued.all(|(volume, issued)| volumes >> volume & 1 == 0 || issued.is_empty())
    }

    /// Issues one request somewhere, if there is room; true if it did.
    pub fn issue(&mut self) -> bool {
        let volume = self.random.index(self.fronts.len());
        if self.away >> volume & 1 == 1 || self.fronts[volume].free_tag().is_none() {
            return false;
        }
        let Some((kind, sectors)) = self.choose(volume) else {
            return false;
        };
        self.issue_this(volume, kind, &sectors)
    }

    /// Issues this request, if there is room; true if it did.
    pub fn issue_this(&mut self, volume: usize, kind: RequestKind, sectors: &Range<u64>) -> bool {
        let Some(tag) = self.fronts[volume].free_tag() else {
            return false;
        };
        self.requests += 1;
        let recorded = record_kind(kind);
        self.writes += u64::from(recorded.is_some_and(|kind| kind != Kind::Flush));
        let counter = recorded.map(|_| {
            self.counter += 1;
            self.counter
        });
        let submitted = to_u64(self.age.events.len());
        let mut bytes = Vec::new();
        if let (Some(recorded), Some(counter)) = (recorded, counter) {
            self.record(recorded, volume, sectors, counter);
            if matches!(kind, RequestKind::Write { .. }) {
                bytes = self.stamped(volume, sectors, counter);
            }
        }
        let extent = (!sectors.is_empty()).then(|| extent_of(sectors));
        let issued = Issued {
            volume,
            sectors: sectors.clone(),
            submitted,
            counter,
        };
        self.issued[volume].insert(tag, issued);
        self.fronts[volume].issue(Request { tag, kind, extent }, bytes);
        true
    }

    fn record(&mut self, kind: Kind, volume: usize, sectors: &Range<u64>, counter: u64) {
        let submitted = to_u64(self.age.events.len());
        self.age.events.push(Event::Submit {
            writer: WRITER,
            counter,
            kind,
            volume: volume_number(volume),
            first: sectors.start,
            count: count_of(sectors),
        });
        let clears = matches!(kind, Kind::Zeroes | Kind::Discard);
        for sector in sectors.clone() {
            let written = Written {
                counter,
                clears,
                submitted,
                completed: None,
            };
            self.written[volume]
                .entry(sector)
                .or_default()
                .push(written);
        }
        let claim = Claim {
            volume,
            sectors: sectors.clone(),
            clears,
        };
        self.claims.insert(counter, claim);
    }

    fn choose(&mut self, volume: usize) -> Option<(RequestKind, Range<u64>)> {
        let dice = self.random.below(100);
        let Habits {
            reads,
            flushes,
            clears,
            fua,
            ..
        } = self.habits;
        if dice < flushes {
            return Some((RequestKind::Flush, 0..0));
        }
        let sectors = self.place(volume);
        let kind = if dice < flushes + reads {
            RequestKind::Read
        } else if dice < flushes + reads + clears {
            match self.random.below(3) {
                0 => RequestKind::Discard,
                other => {
                    let fua = self.random.below(100) < fua;
                    RequestKind::WriteZeroes {
                        fua,
                        may_free: other == 1,
                    }
                }
            }
        } else {
            RequestKind::Write {
                fua: self.random.below(100) < fua,
            }
        };
        self.allowed(kind, volume, &sectors)
            .then_some((kind, sectors))
    }

    fn place(&mut self, volume: usize) -> Range<u64> {
        let grain = self.block_bytes / SECTOR;
        let blocks = to_u64(self.age.base[volume].len()) / self.block_bytes;
        let hot = self.random.below(100) < self.habits.hot;
        let span = if hot { blocks.min(8) } else { blocks };
        let most = self
            .habits
            .blocks_max
            .min(to_u64(REQUEST_BYTES_MAX) / self.block_bytes);
        // Small ones are more frequent than large ones, as in life.
        let largest = 1 + self.random.below(most.min(span));
        let count = 1 + self.random.below(largest);
        let first = self.random.below(span - count + 1);
        first * grain..(first + count) * grain
    }

    /// Zeroes carry no name: they are not mixed with other writes to the same place.
    pub fn allowed(&self, kind: RequestKind, volume: usize, sectors: &Range<u64>) -> bool {
        let Some(recorded) = record_kind(kind) else {
            return true;
        };
        let clears = matches!(recorded, Kind::Zeroes | Kind::Discard);
        let clash = |claim: &Claim| {
            (clears || claim.clears)
                && claim.volume == volume
                && claim.sectors.start < sectors.end
                && sectors.start < claim.sectors.end
        };
        !self.claims.values().any(clash) && !self.retired.iter().any(clash)
    }

    fn stamped(&self, volume: usize, sectors: &Range<u64>, counter: u64) -> Vec<u8> {
        let count = count_of(sectors);
        let mut bytes = vec![0; to_usize(sectors.end - sectors.start) * SECTOR_BYTES];
        for (index, sector) in (0..count).zip(bytes.chunks_exact_mut(SECTOR_BYTES)) {
            let stamp = Stamp {
                run: self.age.run,
                volume: volume_number(volume),
                writer: WRITER,
                counter,
                first: sectors.start,
                count,
                index,
            };
            encode(&stamp, sector);
        }
        bytes
    }

    /// Takes every answer that came.
    ///
    /// # Errors
    /// What is wrong with a read.
    pub fn take_answers(&mut self) -> Result<(), String> {
        for volume in 0..self.fronts.len() {
            for answer in self.fronts[volume].answers() {
                self.answered(volume, answer)?;
            }
        }
        Ok(())
    }

    fn answered(&mut self, volume: usize, answer: Answer) -> Result<(), String> {
        let issued = self.issued[volume].remove(&answer.tag);
        let issued = issued.ok_or_else(|| format!("tag {} was answered twice", answer.tag))?;
        if answer.result.is_err() {
            self.failures += 1;
        } else if issued.counter.is_some()
            && self.fenced.is_some_and(|line| issued.submitted >= line)
        {
            // A read has no line of its own: when it was issued cannot be told from here.
            let what = format!("a request of line {} was answered", issued.submitted);
            self.complaint = Some(format!("{what} by a fenced source"));
        }
        match issued.counter {
            Some(counter) => self.completed(&issued, counter, answer.result),
            None if answer.result.is_ok() => {
                self.reads += 1;
                return self.judge_read(&issued, &answer.bytes);
            }
            None => {}
        }
        Ok(())
    }

    fn completed(&mut self, issued: &Issued, counter: u64, result: Result<(), Errno>) {
        let at = to_u64(self.age.events.len());
        let errno = result.err().map_or(0, Errno::get);
        self.age.events.push(Event::Complete {
            writer: WRITER,
            counter,
            errno,
        });
        let claim = self
            .claims
            .remove(&counter)
            .expect("claimed when it was issued");
        if result.is_err() {
            self.retired.push(claim);
            return;
        }
        for sector in issued.sectors.clone() {
            let all = self.written[issued.volume]
                .get_mut(&sector)
                .expect("noted when issued");
            let written = all.iter_mut().find(|written| written.counter == counter);
            written.expect("noted when issued").completed = Some(at);
        }
    }

    fn judge_read(&self, read: &Issued, bytes: &[u8]) -> Result<(), String> {
        for (sector, shown) in read.sectors.clone().zip(bytes.chunks_exact(SECTOR_BYTES)) {
            let none = Vec::new();
            let written = self.written[read.volume].get(&sector).unwrap_or(&none);
            if self.may_show(read, sector, shown, written) {
                continue;
            }
            return Err(format!(
                "a read of volume {} at sector {sector}, issued at line {}, shows {:?}; written \
                 there: {written:?}",
                read.volume,
                read.submitted,
                decode(shown)
            ));
        }
        Ok(())
    }

    /// True if a read that was issued then and answered now may show this.
    fn may_show(&self, read: &Issued, sector: u64, shown: &[u8], written: &[Written]) -> bool {
        let done_before = |write: &&Written| {
            write
                .completed
                .is_some_and(|completed| completed < read.submitted)
        };
        // The latest issue among the writes that were complete: what completed before it is gone.
        let newest = written
            .iter()
            .filter(done_before)
            .map(|write| write.submitted)
            .max();
        let alive = |write: &&Written| {
            write.completed.is_none_or(|completed| {
                newest.is_none_or(|newest| completed > newest || write.submitted == newest)
            })
        };
        let candidates = || written.iter().filter(alive);
        let initial = || {
            let start = to_usize(sector) * SECTOR_BYTES;
            newest.is_none() && self.age.base[read.volume][start..start + SECTOR_BYTES] == *shown
        };
        match decode(shown) {
            Content::Stamp(stamp) if stamp.run == self.age.run => {
                let here = usize::from(stamp.volume) == read.volume
                    && stamp.first + u64::from(stamp.index) == sector;
                here && candidates().any(|write| write.counter == stamp.counter && !write.clears)
            }
            Content::Zero => candidates().any(|write| write.clears) || initial(),
            Content::Stamp(_) | Content::Foreign => initial(),
        }
    }
}

fn record_kind(kind: RequestKind) -> Option<Kind> {
    match kind {
        RequestKind::Read => None,
        RequestKind::Write { fua: false } => Some(Kind::Write),
        RequestKind::Write { fua: true } => Some(Kind::WriteFua),
        RequestKind::Flush => Some(Kind::Flush),
        RequestKind::Discard => Some(Kind::Discard),
        RequestKind::WriteZeroes { .. } => Some(Kind::Zeroes),
    }
}

fn extent_of(sectors: &Range<u64>) -> Extent {
    let offset = ByteOffset::new(sectors.start * SECTOR);
    let len = ByteLen::new((sectors.end - sectors.start) * SECTOR);
    Extent::new(offset, len).expect("a request has at least a block")
}

fn count_of(sectors: &Range<u64>) -> u32 {
    u32::try_from(sectors.end - sectors.start).expect("a request is small")
}

fn volume_number(volume: usize) -> u16 {
    u16::try_from(volume).expect("a group has few volumes")
}

fn to_u64(number: usize) -> u64 {
    u64::try_from(number).expect("64-bit platform")
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).expect("64-bit platform")
}
