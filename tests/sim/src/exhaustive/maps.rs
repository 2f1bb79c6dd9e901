//! The map files alone: what a crash leaves of a commit.
//!
//! Owns the maps' histories: bits set and cleared, one sector or two at once, committed as the
//! product commits them. A sector read back must be as it was before or after the commit in flight,
//! and exact once that was announced; one that rots must be seen.

use super::counts::Counts;
use super::flaw::Flaw;
use super::history::histories;
use super::medium::{Medium, SECTOR};
use blkrep_core::dirty::{Bits, MapLayout, SECTOR_BITS, SECTOR_WORDS};
use blkrep_core::persist::KeptMap;
use blkrep_log::map as source;
use blkrep_store::map as target;
use blkrep_types::{ByteLen, ExtentSize, Generation, Incarnation, Seq, WriteName};

const NAME: [u8; 16] = [7; 16];

/// Sectors of bits of the small map.
const SECTORS: u32 = 2;

type Words = [u64; SECTOR_WORDS];

/// Whose file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// Intent map or a link's dirty map: a head, then bits.
    Source,
    /// The replica's part: bits.
    Target,
}

#[derive(Debug, Clone, Copy)]
enum Update {
    /// A bit of the first sector.
    SetLow,
    /// The bits on both sides of the border.
    SetAcross,
    /// Everything is cleared.
    Clear,
    /// The head is to be written, with a newer floor.
    Floor,
}

/// What a file says: its floor, and each sector's bits; `None` where it cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    floor: Option<WriteName>,
    sectors: Vec<Option<Words>>,
}

fn floor(number: u64) -> WriteName {
    WriteName {
        generation: Generation::from_bytes([9; 16]),
        incarnation: Incarnation::new(1),
        seq: Seq::new(number),
    }
}

impl Format {
    fn offset(self, sector: u32) -> u64 {
        match self {
            Self::Source => source::sector_offset(sector),
            Self::Target => u64::from(sector) * target::MAP_SECTOR_BYTES as u64,
        }
    }

    fn encode(self, sector: u32, counter: u64, words: &Words) -> [u8; SECTOR] {
        let mut bytes = [0; SECTOR];
        match self {
            Self::Source => {
                let words = words.iter().copied();
                source::encode_sector(&NAME, sector, counter, words, &mut bytes);
            }
            Self::Target => {
                let bits: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                target::encode_sector(&target_name(sector), counter, &bits, &mut bytes);
            }
        }
        bytes
    }

    fn decode(self, sector: u32, bytes: &[u8]) -> Option<Words> {
        match self {
            Self::Source => source::decode_sector(&NAME, sector, bytes).ok(),
            Self::Target => {
                let (bits, _) = target::decode_sector(&target_name(sector), bytes).ok()?;
                let mut words = [0; SECTOR_WORDS];
                for (word, bytes) in words.iter_mut().zip(bits.chunks_exact(8)) {
                    *word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
                }
                Some(words)
            }
        }
    }

    fn head(self, counter: u64, floor: WriteName) -> Option<[u8; SECTOR]> {
        let mut bytes = [0; SECTOR];
        let sectors = SECTORS;
        source::encode_head(
            &NAME,
            counter,
            &source::Head {
                sectors,
                floor,
                promised: false,
            },
            &mut bytes,
        );
        (self == Self::Source).then_some(bytes)
    }

    fn read(self, file: &[u8]) -> Said {
        let bits = |sector| {
            let at = usize::try_from(self.offset(sector)).expect("64-bit platform");
            self.decode(sector, &file[at..at + SECTOR])
        };
        let head = || source::decode_head(&NAME, &file[..SECTOR]).ok();
        Said {
            floor: head()
                .map(|(head, _)| head.floor)
                .filter(|_| self == Self::Source),
            sectors: (0..SECTORS).map(bits).collect(),
        }
    }

    fn bytes(self) -> usize {
        usize::try_from(self.offset(SECTORS)).expect("64-bit platform")
    }
}

fn target_name(sector: u32) -> target::SectorName {
    target::SectorName {
        replica: NAME,
        sector,
    }
}

/// A map and its file.
struct Map<'a> {
    format: Format,
    medium: Medium,
    kept: KeptMap,
    counter: u64,
    floor: WriteName,
    /// What the file says for sure.
    before: Said,
    flaw: Flaw,
    counts: &'a mut Counts,
}

impl<'a> Map<'a> {
    /// A new file, empty and durable.
    fn new(format: Format, flaw: Flaw, counts: &'a mut Counts) -> Self {
        let len = ByteLen::new(u64::from(SECTORS) * SECTOR_BITS * 4096);
        let grain = ExtentSize::try_from(4096).expect("a legal grain");
        let layout = MapLayout::new([(len, grain)]);
        let kept = KeptMap::new(Bits::clear_of(layout.bits()), &layout);
        let mut medium = Medium::new(vec![0; format.bytes()]);
        for sector in 0..SECTORS {
            let bytes = format.encode(sector, 1, &[0; SECTOR_WORDS]);
            medium.write(format.offset(sector), &bytes);
        }
        if let Some(head) = format.head(1, floor(0)) {
            medium.write(0, &head);
        }
        medium.flush();
        let before = format.read(&medium.view());
        Self {
            format,
            medium,
            kept,
            counter: 1,
            floor: floor(0),
            before,
            flaw,
            counts,
        }
    }

    /// Everything a crash now can leave is what was, or what is being written.
    fn point(&mut self, after: &Said) -> Result<(), String> {
        let (format, before) = (self.format, &self.before);
        self.medium.losses(self.counts, |file| {
            let said = format.read(file);
            let sectors = before.sectors.iter().zip(&after.sectors);
            let legal = said
                .sectors
                .iter()
                .zip(sectors)
                .all(|(now, (before, after))| now.is_some() && (now == before || now == after));
            if legal && (said.floor == before.floor || said.floor == after.floor) {
                return Ok(());
            }
            Err(format!(
                "a crash left {said:?} between {before:?} and {after:?}"
            ))
        })
    }

    fn update(&mut self, step: u64, update: Update) -> Result<(), String> {
        match update {
            Update::SetLow => {
                self.kept.set(step, step);
            }
            Update::SetAcross => {
                self.kept.set(SECTOR_BITS - 1 - step, SECTOR_BITS + step);
            }
            Update::Clear => self.kept.clear(0, 2 * SECTOR_BITS - 1),
            Update::Floor => {
                self.floor = floor(step + 1);
                self.kept.touch_header();
            }
        }
        if self.kept.wants_commit(true) {
            self.commit()?;
        }
        Ok(())
    }

    /// Writes what changed, with the head, in any order, then flushes.
    fn commit(&mut self) -> Result<(), String> {
        self.counter += 1;
        let changed = self.kept.begin().to_vec();
        let mut after = self.before.clone();
        after.floor = after.floor.map(|_| self.floor);
        for sector in changed {
            let mut words = [0; SECTOR_WORDS];
            words
                .iter_mut()
                .zip(self.kept.sector(sector))
                .for_each(|(into, word)| *into = word);
            let bytes = self.format.encode(sector, self.counter, &words);
            self.medium.write(self.format.offset(sector), &bytes);
            let at = usize::try_from(sector).expect("64-bit platform");
            after.sectors[at] = Some(words);
            self.point(&after)?;
        }
        if let Some(head) = self.format.head(self.counter, self.floor) {
            self.medium.write(0, &head);
            self.point(&after)?;
        }
        if self.flaw == Flaw::CommitAnnouncedEarly {
            self.before = after.clone();
            self.point(&after)?;
        }
        self.medium.flush();
        self.kept.finish(true);
        self.before = after.clone();
        self.point(&after)
    }

    /// Each sector in turn loses a bit, all of itself, or is another one: it is not believed.
    fn rot(&mut self) -> Result<(), String> {
        let good = self.medium.view();
        let said = self.format.read(&good);
        for at in (0..good.len()).step_by(SECTOR) {
            let mut wrong: Vec<Vec<u8>> = Vec::new();
            for byte in 0..SECTOR {
                let mut flipped = good[at..at + SECTOR].to_vec();
                flipped[byte] ^= 1 << (byte % 8);
                wrong.push(flipped);
            }
            wrong.push(vec![0; SECTOR]);
            let other = (at + SECTOR) % good.len();
            wrong.push(good[other..other + SECTOR].to_vec());
            for sector in wrong {
                let mut file = good.clone();
                file[at..at + SECTOR].copy_from_slice(&sector);
                let now = self.format.read(&file);
                let lost = now.sectors.iter().filter(|sector| sector.is_none()).count();
                let lost = lost + usize::from(now.floor.is_none() && said.floor.is_some());
                let rest = now.sectors.iter().zip(&said.sectors);
                if lost != 1 || rest.clone().any(|(now, then)| now.is_some() && now != then) {
                    return Err(format!("rot at byte {at} of the map is read as {now:?}"));
                }
            }
            self.counts.rotten += 1;
        }
        Ok(())
    }
}

/// Goes through every history of up to `longest` updates of both formats.
///
/// # Errors
/// A state that a crash or rot leaves and that must not be.
pub fn explore(longest: usize, flaw: Flaw) -> Result<Counts, String> {
    let mut counts = Counts::default();
    let alphabet = [
        Update::SetLow,
        Update::SetAcross,
        Update::Clear,
        Update::Floor,
    ];
    // A target's map has no head, and no floor.
    for (format, letters) in [(Format::Source, 4), (Format::Target, 3)] {
        for history in histories(&alphabet[..letters], longest) {
            counts.histories += 1;
            let mut map = Map::new(format, flaw, &mut counts);
            for (step, update) in (0..).zip(&history) {
                map.update(step, *update)
                    .map_err(|why| format!("{format:?} {history:?}: {why}"))?;
            }
            map.rot()
                .map_err(|why| format!("{format:?} {history:?}: {why}"))?;
        }
    }
    Ok(counts)
}
