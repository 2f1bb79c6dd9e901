//! Which front end serves a volume.
//!
//! Owns the list of front ends of this build and the choice among them. Enters: what the operator
//! asked for. Leaves: a front end, and sentences about why it was chosen and what it cannot promise.

use blkrep_api::FrontendKind;
use blkrep_io::real::UringIo;
use blkrep_ublk::auto::choose;
use blkrep_ublk::driver::Ublk;
use blkrep_ublk::fuse_loop::LoopFrontEnd;
use blkrep_ublk::nbd::{NbdFrontEnd, NbdOptions};
use blkrep_ublk::{FrontEnd, FrontKind};
use std::path::Path;

/// A front end and what is to be said about it.
#[derive(Debug)]
pub(super) struct Chosen {
    /// It.
    pub front_end: Box<dyn FrontEnd<UringIo>>,
    /// Its kind; never `auto`.
    pub kind: FrontendKind,
    /// Why it was chosen, and what it cannot promise.
    pub notes: Vec<String>,
}

/// The word of a kind.
#[must_use]
pub(super) const fn word(kind: FrontKind) -> FrontendKind {
    match kind {
        FrontKind::Ublk => FrontendKind::Ublk,
        FrontKind::Loop => FrontendKind::Loop,
        FrontKind::Nbd => FrontendKind::Nbd,
    }
}

/// What a front end cannot promise, in a sentence.
#[must_use]
pub(super) const fn caveat(kind: FrontendKind) -> Option<&'static str> {
    match kind {
        FrontendKind::Auto | FrontendKind::Ublk => None,
        FrontendKind::Loop => Some(
            "a loop device cannot outlive blkrepd: if the daemon is killed, open files get errors",
        ),
        FrontendKind::Nbd => {
            Some("an NBD client sees its connection end if blkrepd stops, and must connect again")
        }
    }
}

fn front_end(kind: FrontendKind, run_dir: &Path) -> Option<Box<dyn FrontEnd<UringIo>>> {
    Some(match kind {
        FrontendKind::Auto => return None,
        FrontendKind::Ublk => Box::new(Ublk::default()),
        FrontendKind::Loop => Box::new(LoopFrontEnd::new(run_dir.join("loop"))),
        FrontendKind::Nbd => Box::new(NbdFrontEnd::new(NbdOptions::new(run_dir.join("nbd")))),
    })
}

/// The front end of `kind`, or for `auto` the best that works here. `run_dir` takes sockets and
/// mount points.
///
/// # Errors
/// It does not work here: why, and what to do.
pub(super) fn pick(kind: FrontendKind, run_dir: &Path) -> Result<Chosen, String> {
    let notes_of = |kind| caveat(kind).map(str::to_owned);
    if let Some(front_end) = front_end(kind, run_dir) {
        front_end
            .available()
            .map_err(|error| format!("front end {kind}: {error}"))?;
        return Ok(Chosen {
            front_end,
            kind,
            notes: notes_of(kind).into_iter().collect(),
        });
    }
    let all = [FrontendKind::Ublk, FrontendKind::Loop, FrontendKind::Nbd];
    let mut list: Vec<_> = all
        .into_iter()
        .filter_map(|kind| front_end(kind, run_dir))
        .collect();
    let choice = choose(&list);
    let mut notes: Vec<String> = choice
        .skipped
        .iter()
        .map(|skipped| format!("{} is not used: {}", word(skipped.kind), skipped.reason))
        .collect();
    let Some(index) = choice.chosen else {
        return Err(format!("no front end works here: {}", notes.join("; ")));
    };
    let front_end = list.swap_remove(index);
    let kind = word(front_end.kind());
    notes.extend(notes_of(kind));
    Ok(Chosen {
        front_end,
        kind,
        notes,
    })
}
