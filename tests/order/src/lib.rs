//! The order checker: writers of blocks that describe themselves, and two judgements of what a crash left of them.
//!
//! Owns the block layout, the record, the writers, the judgements. Devices and a place for the record enter, verdicts leave.
//! Knows nothing of the product: a replica is judged from its bytes alone.

#![forbid(unsafe_code)]

mod judge;
#[cfg(test)]
mod model;
mod order_graph;
mod record;
mod recorder;
mod remote;
mod scan;
mod sector;
mod verdict;
mod volume;
mod writer;
#[cfg(test)]
mod writer_tests;

pub use judge::{Judgement, Keep, judge, judge_replica};
pub use record::{Event, History, Kind, Operation, RecordError};
pub use scan::{Seen, scan};
pub use sector::{Content, Random, SECTOR_BYTES, Stamp, decode, encode};
pub use verdict::{Finding, Findings, Sector, Span, Verdict};
pub use writer::{Load, Summary, append, write};

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A judgement of image files by a record file.
///
/// # Errors
/// A file cannot be read, or the record cannot be judged by.
pub fn check_files(
    record: &Path,
    images: &[PathBuf],
    bases: &[PathBuf],
    judgement: Judgement,
    keep: Keep,
) -> io::Result<Verdict> {
    let bytes = std::fs::read(record).map_err(|error| named(record, &error))?;
    let history = History::parse(&bytes).map_err(io::Error::other)?;
    check_images(&history, images, bases, judgement, keep)
}

/// A judgement of image files by a history.
///
/// # Errors
/// A file cannot be read, or there is not one for each volume.
pub fn check_images(
    history: &History,
    images: &[PathBuf],
    bases: &[PathBuf],
    judgement: Judgement,
    keep: Keep,
) -> io::Result<Verdict> {
    if images.len() != history.sectors.len() || !(bases.is_empty() || bases.len() == images.len()) {
        let wanted = history.sectors.len();
        return Err(io::Error::other(format!(
            "the record is of {wanted} volumes: name as many images"
        )));
    }
    let mut findings = Findings::default();
    let mut seen = Vec::new();
    for (volume, image) in (0_u16..).zip(images) {
        let mut file = File::open(image).map_err(|error| named(image, &error))?;
        let base = bases.get(usize::from(volume));
        let mut base = base
            .map(|path| File::open(path).map_err(|error| named(path, &error)))
            .transpose()?;
        let base = base.as_mut().map(|file| file as &mut dyn Read);
        let scanned = scan(history, volume, &mut file, base, &mut findings);
        seen.push(scanned.map_err(|error| named(image, &error))?);
    }
    Ok(judge(history, &seen, judgement, keep, findings))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
