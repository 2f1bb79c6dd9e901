//! Judging images by the record.
//!
//! Owns the questions: is this replica a prefix, is this source what a power cut may leave, are
//! these two equal. Records and images enter, complaints leave.

use super::age::{Age, Place};
use blkrep_order::{
    Findings, History, Judgement, Keep, SECTOR_BYTES, Seen, Verdict, judge, judge_replica, scan,
};
use std::collections::BTreeSet;

/// Judges images by one age.
#[must_use]
pub fn by_age(age: &Age, images: &[Vec<u8>], judgement: Judgement, keep: Keep) -> Verdict {
    let history = age.history();
    if judgement == Judgement::PowerLoss && !age.unflushed.is_empty() {
        let (mut seen, findings) = looked_at(age, &history, &without_unflushed(age, images));
        hide(&mut seen, &age.unflushed);
        return judge(&history, &seen, judgement, keep, findings);
    }
    let (seen, findings) = looked_at(age, &history, images);
    judge(&history, &seen, judgement, keep, findings)
}

/// Judges a replica by one age, of which it must have the requests of `owed`.
#[must_use]
pub fn owing(age: &Age, images: &[Vec<u8>], owed: &BTreeSet<u64>) -> Verdict {
    let history = age.history();
    let (seen, findings) = looked_at(age, &history, images);
    let operations = history.operations.iter();
    let must: Vec<bool> = operations.map(|op| owed.contains(&op.counter)).collect();
    judge_replica(&history, &seen, &must, findings)
}

/// What every sector shows; nothing where nothing can be said.
fn looked_at(age: &Age, history: &History, images: &[Vec<u8>]) -> (Vec<Vec<Seen>>, Findings) {
    let mut findings = Findings::default();
    let mut seen = Vec::new();
    for (volume, image) in (0_u16..).zip(images) {
        let mut base = age.base[usize::from(volume)].as_slice();
        let mut bytes = image.as_slice();
        let scanned = scan(history, volume, &mut bytes, Some(&mut base), &mut findings);
        seen.push(scanned.expect("memory can be read"));
    }
    hide(&mut seen, &age.failed_sectors());
    (seen, findings)
}

/// Images with what the age began with, where a power cut may have left what was there before.
fn without_unflushed(age: &Age, images: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut images = images.to_vec();
    for (volume, sectors) in &age.unflushed {
        let byte = |sector: u64| usize::try_from(sector).expect("64-bit platform") * SECTOR_BYTES;
        let bytes = byte(sectors.start)..byte(sectors.end);
        let volume = usize::from(*volume);
        images[volume][bytes.clone()].copy_from_slice(&age.base[volume][bytes]);
    }
    images
}

/// Nothing can be said of these places.
fn hide(seen: &mut [Vec<Seen>], places: &[Place]) {
    for (volume, sectors) in places {
        for sector in sectors.clone() {
            let sector = usize::try_from(sector).expect("64-bit platform");
            seen[usize::from(*volume)][sector] = Seen::Unusable;
        }
    }
}

/// A replica must be a prefix of some age: the newest it has come to.
///
/// # Errors
/// Why it is none of any age.
pub fn replica(ages: &[&Age], images: &[Vec<u8>]) -> Result<(), String> {
    let mut why = String::new();
    for age in ages.iter().rev() {
        let verdict = by_age(age, images, Judgement::Replica, Keep::Nothing);
        if verdict.legal {
            return Ok(());
        }
        why.push_str(&format!("by age {}: {verdict}", age.run));
    }
    Err(format!("the replica is no prefix of any age\n{why}"))
}

/// A source's own images while its host has not lost power: everything completed is there.
///
/// # Errors
/// What is not.
pub fn source(age: &Age, images: &[Vec<u8>]) -> Result<(), String> {
    legal(
        &by_age(age, images, Judgement::Replica, Keep::Completed),
        "the source lost a write",
    )
}

/// A source's images after a power cut.
///
/// # Errors
/// What a flush had promised and is gone.
pub fn after_power_loss(age: &Age, images: &[Vec<u8>]) -> Result<(), String> {
    let verdict = by_age(age, images, Judgement::PowerLoss, Keep::Nothing);
    legal(&verdict, "the power cut took what was flushed")
}

fn legal(verdict: &Verdict, otherwise: &str) -> Result<(), String> {
    if verdict.legal {
        Ok(())
    } else {
        Err(format!("{otherwise}\n{verdict}"))
    }
}

/// Both ends are the same.
///
/// # Errors
/// Where they first differ.
pub fn equal(source: &[Vec<u8>], target: &[Vec<u8>]) -> Result<(), String> {
    for (volume, (one, other)) in source.iter().zip(target).enumerate() {
        if one == other {
            continue;
        }
        let sectors = one.chunks(SECTOR_BYTES).zip(other.chunks(SECTOR_BYTES));
        let differ: Vec<usize> = sectors
            .enumerate()
            .filter(|(_, (one, other))| one != other)
            .map(|(sector, _)| sector)
            .collect();
        let first = differ.first().copied().unwrap_or_default();
        return Err(format!(
            "volume {volume} differs in {} sectors, first {first}: lengths {} and {}",
            differ.len(),
            one.len(),
            other.len()
        ));
    }
    Ok(())
}
