//! What an image shows: for every sector, which write it belongs to.
//!
//! Owns reading images and recognising sectors. Images and the history enter; one `Seen` a sector leaves, with every sector
//! that no order of the writes could explain. Never judges order.

use super::record::History;
use super::sector::{self, Content, SECTOR_BYTES, Stamp};
use super::verdict::{Findings, Sector};
use std::io::{self, Read};

/// What one sector shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The write at this place in the history.
    Write(u32),
    /// What was there before the run, and it is not zero.
    Initial,
    /// Zeroes, and something else was there before the run.
    Zero,
    /// Zeroes, as before the run: untouched or cleared.
    InitialOrZero,
    /// Already reported as no legal content at all.
    Unusable,
}

impl Seen {
    /// True if the sector may show a cleared range.
    #[must_use]
    pub const fn may_be_cleared(self) -> bool {
        matches!(self, Self::Zero | Self::InitialOrZero)
    }
}

const CHUNK_SECTORS: usize = 2048;

/// Reads one volume's image, and what it held before the run if that was not zeroes.
///
/// # Errors
/// The image cannot be read. An image that ends early is a finding, not an error.
pub fn scan(
    history: &History,
    volume: u16,
    image: &mut dyn Read,
    mut base: Option<&mut dyn Read>,
    findings: &mut Findings,
) -> io::Result<Vec<Seen>> {
    let sectors = history.sectors[usize::from(volume)];
    let mut seen = Vec::with_capacity(usize::try_from(sectors).unwrap_or(0));
    let chunk = usize::try_from(sectors).unwrap_or(usize::MAX);
    let chunk = chunk.min(CHUNK_SECTORS) * SECTOR_BYTES;
    let (mut bytes, mut before) = (vec![0; chunk], vec![0; chunk]);
    while (seen.len() as u64) < sectors {
        let wanted = usize::try_from(sectors - seen.len() as u64).unwrap_or(usize::MAX);
        let wanted = wanted.min(CHUNK_SECTORS) * SECTOR_BYTES;
        let got = read_full(image, &mut bytes[..wanted])?;
        if let Some(base) = base.as_deref_mut() {
            let held = read_full(base, &mut before[..wanted])?;
            before[held..wanted].fill(0);
        }
        let pairs = bytes[..got].chunks_exact(SECTOR_BYTES);
        for (now, initial) in pairs.zip(before.chunks_exact(SECTOR_BYTES)) {
            let at = Sector {
                volume,
                sector: seen.len() as u64,
            };
            seen.push(recognise(history, at, now, initial, findings));
        }
        if got < wanted {
            let at = Sector {
                volume,
                sector: seen.len() as u64,
            };
            findings.add("short-image", at, || {
                format!("the image ends before its {sectors} sectors")
            });
            seen.resize(
                usize::try_from(sectors).unwrap_or(usize::MAX),
                Seen::Unusable,
            );
        }
    }
    Ok(seen)
}

fn read_full(from: &mut dyn Read, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match from.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn recognise(
    history: &History,
    at: Sector,
    now: &[u8],
    initial: &[u8],
    findings: &mut Findings,
) -> Seen {
    let blank_before = initial.iter().all(|byte| *byte == 0);
    match sector::decode(now) {
        Content::Stamp(stamp) if stamp.run == history.run => {
            place(history, at, &stamp, findings).map_or(Seen::Unusable, Seen::Write)
        }
        Content::Zero if blank_before => Seen::InitialOrZero,
        Content::Zero => Seen::Zero,
        _ if now == initial => Seen::Initial,
        Content::Stamp(stamp) => {
            findings.add("stale-run", at, || {
                format!(
                    "shows run {:016x}, which is not what the volume held before",
                    stamp.run
                )
            });
            Seen::Unusable
        }
        Content::Foreign => {
            findings.add("foreign", at, || {
                "neither what was there before, nor a whole sector of any write".to_owned()
            });
            Seen::Unusable
        }
    }
}

/// The write a stamp names, if it is on record and belongs exactly here.
fn place(history: &History, at: Sector, stamp: &Stamp, findings: &mut Findings) -> Option<u32> {
    let (writer, counter) = (stamp.writer, stamp.counter);
    let Some(index) = history.find(writer, counter) else {
        findings.add("unrecorded", at, || {
            format!("shows {writer}/{counter}, never submitted")
        });
        return None;
    };
    let operation = &history.operations[index];
    let here = operation.volume == at.volume
        && operation.first == stamp.first
        && operation.count == stamp.count
        && stamp.volume == at.volume
        && stamp.first + u64::from(stamp.index) == at.sector;
    if !here {
        findings.add("misplaced", at, || {
            let home = stamp.first + u64::from(stamp.index);
            format!(
                "shows {operation}: its sector {home} of volume {}",
                stamp.volume
            )
        });
        return None;
    }
    Some(u32::try_from(index).expect("a record has fewer than 2^32 operations"))
}
