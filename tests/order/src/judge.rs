//! The two judgements of an image set.
//!
//! Owns the question which operations an image set must hold. A history and what the sectors show enter, a verdict leaves.
//! Never reads a device.
//!
//! **Replica.** Legal if some order of all operations, in which one that completed before another was submitted comes first, has
//! a prefix whose result, over all volumes together, is the image set. Operations that overlap in time may take either order, so
//! the answer is computed, not guessed:
//!
//! 1. Held are the visible writes and all that completed before the latest visible one was submitted. Intervals of time make
//!    this the whole of what must be held; holding more would only add constraints.
//! 2. A cleared sector names no operation. No other operation there was in flight beside a clear (the record is refused
//!    otherwise), so clears have a fixed place among a sector's writes, and the earliest one that explains the zeroes is the least
//!    that must be held. Repeated until nothing is added: the least fixed point, contained in every legal prefix.
//! 3. At each sector every held operation precedes the visible one. These edges and the order of time must have no cycle.
//!
//! **Power loss.** Sectors stand alone. A write is kept if it completed as FUA or before a later completed flush of its volume was
//! submitted. A sector may show any of its writes that is not certainly older than a kept one, or its initial content if no
//! write there is kept.

use super::order_graph;
use super::record::{History, Kind};
use super::scan::Seen;
use super::verdict::{Findings, Sector, Verdict};

/// Which rule an image set is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// A prefix of the write order.
    Replica,
    /// A disk that lost power.
    PowerLoss,
}

/// What a replica must hold beside being a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// Any prefix will do.
    #[default]
    Nothing,
    /// Every write that a completed flush or FUA covers.
    Flushed,
    /// Every completed write.
    Completed,
}

/// The operations that cover each sector of each volume, in order of submission.
#[derive(Debug)]
pub(super) struct Cover(Vec<Vec<Vec<u32>>>);

impl Cover {
    fn new(history: &History) -> Self {
        let empty = |sectors: &u64| vec![Vec::new(); usize::try_from(*sectors).unwrap_or(0)];
        let mut cover: Vec<Vec<Vec<u32>>> = history.sectors.iter().map(empty).collect();
        for (index, operation) in (0_u32..).zip(&history.operations) {
            let volume = &mut cover[usize::from(operation.volume)];
            for sector in operation.sectors() {
                volume[usize::try_from(sector).expect("fits, as the volume does")].push(index);
            }
        }
        Self(cover)
    }

    /// Every sector that any operation covers, with what it shows.
    pub(super) fn each<'a>(
        &'a self,
        seen: &'a [Vec<Seen>],
    ) -> impl Iterator<Item = (Sector, Seen, &'a [u32])> {
        let volumes = (0_u16..).zip(self.0.iter().zip(seen));
        volumes.flat_map(|(volume, (covers, seen))| {
            let sectors = (0_u64..).zip(covers.iter().zip(seen));
            sectors.filter(|(_, (cover, _))| !cover.is_empty()).map(
                move |(sector, (cover, seen))| (Sector { volume, sector }, *seen, cover.as_slice()),
            )
        })
    }
}

/// Judges what `scan` saw of every volume, in order. `findings` are the scan's.
#[must_use]
pub fn judge(
    history: &History,
    seen: &[Vec<Seen>],
    judgement: Judgement,
    keep: Keep,
    findings: Findings,
) -> Verdict {
    match judgement {
        Judgement::Replica => {
            let must = match keep {
                Keep::Nothing => vec![false; history.operations.len()],
                Keep::Flushed => kept(history),
                Keep::Completed => {
                    let operations = history.operations.iter();
                    operations.map(|op| op.completed.is_some()).collect()
                }
            };
            judge_replica(history, seen, &must, findings)
        }
        Judgement::PowerLoss => verdict(history, seen, findings, |cover, _, findings| {
            power_loss(history, seen, cover, findings)
        }),
    }
}

/// Judges as a replica that must hold the operations that `must` says, by their place in the history.
#[must_use]
pub fn judge_replica(
    history: &History,
    seen: &[Vec<Seen>],
    must: &[bool],
    findings: Findings,
) -> Verdict {
    verdict(history, seen, findings, |cover, visible, findings| {
        replica(history, seen, cover, (visible, must), findings)
    })
}

/// Does what both judgements have in common; `judge` says which operations are held.
fn verdict(
    history: &History,
    seen: &[Vec<Seen>],
    mut findings: Findings,
    judge: impl FnOnce(&Cover, &[bool], &mut Findings) -> Vec<bool>,
) -> Verdict {
    assert_eq!(
        seen.len(),
        history.sectors.len(),
        "every volume of the run has been scanned"
    );
    let cover = Cover::new(history);
    let mut visible = vec![false; history.operations.len()];
    for sector in seen.iter().flatten() {
        if let Seen::Write(index) = sector {
            visible[*index as usize] = true;
        }
    }
    unexplained_zeroes(history, seen, &cover, &mut findings);
    let held = judge(&cover, &visible, &mut findings);
    let completed = history
        .operations
        .iter()
        .filter(|op| op.completed.is_some());
    let absent = (held.iter().zip(&visible).zip(&history.operations))
        .filter(|((held, visible), op)| {
            !**held && !**visible && op.completed.is_some() && op.count > 0
        })
        .count();
    Verdict {
        legal: findings.is_empty(),
        operations: history.operations.len(),
        completed: completed.count(),
        visible: visible.iter().filter(|seen| **seen).count(),
        held: held.iter().filter(|held| **held).count(),
        absent,
        findings: findings.into_list(),
    }
}

/// Zeroes where there were none before the run, and that no operation could have left.
fn unexplained_zeroes(
    history: &History,
    seen: &[Vec<Seen>],
    cover: &Cover,
    findings: &mut Findings,
) {
    for (volume, (covers, seen)) in (0_u16..).zip(cover.0.iter().zip(seen)) {
        for (sector, (covering, seen)) in (0_u64..).zip(covers.iter().zip(seen)) {
            let cleared = |index: &u32| history.operations[*index as usize].kind.clears();
            if *seen == Seen::Zero && !covering.iter().any(cleared) {
                let reason = || "zeroes that nothing wrote".to_owned();
                findings.add("zeroed", Sector { volume, sector }, reason);
            }
        }
    }
}

/// Which operations are durable: completed as FUA, or before a completed flush of the same volume was submitted.
fn kept(history: &History) -> Vec<bool> {
    let mut flushed = vec![0; history.sectors.len()];
    for flush in history
        .operations
        .iter()
        .filter(|op| op.kind == Kind::Flush)
    {
        if flush.completed.is_some() {
            let last = &mut flushed[usize::from(flush.volume)];
            *last = flush.submitted.max(*last);
        }
    }
    let durable = history
        .operations
        .iter()
        .map(|op| match (op.kind, op.completed) {
            (Kind::Flush, _) | (_, None) => false,
            (Kind::WriteFua, Some(_)) => true,
            (_, Some(done)) => done < flushed[usize::from(op.volume)],
        });
    durable.collect()
}

fn power_loss(
    history: &History,
    seen: &[Vec<Seen>],
    cover: &Cover,
    findings: &mut Findings,
) -> Vec<bool> {
    let kept = kept(history);
    let operations = &history.operations;
    for (at, seen, covering) in cover.each(seen) {
        let durable = covering.iter().filter(|index| kept[**index as usize]);
        // A write that completed before the latest-submitted kept one was submitted is certainly gone.
        let Some(newest) = durable.max_by_key(|index| operations[**index as usize].submitted)
        else {
            continue;
        };
        let newest = &operations[*newest as usize];
        let may_show = |index: &u32| !operations[*index as usize].before(newest);
        let cleared = |index: &&u32| operations[**index as usize].kind.clears();
        let legal = match seen {
            Seen::Unusable => true,
            Seen::Write(index) => may_show(&index),
            Seen::Initial => false,
            Seen::Zero | Seen::InitialOrZero => covering.iter().filter(cleared).any(may_show),
        };
        if !legal {
            findings.add("lost", at, || {
                format!(
                    "{newest} was made durable; shown is {}",
                    describe(history, seen)
                )
            });
        }
    }
    kept
}

/// Words for what a sector shows.
pub(super) fn describe(history: &History, seen: Seen) -> String {
    match seen {
        Seen::Write(index) => history.operations[index as usize].to_string(),
        Seen::Initial => "what was there before the run".to_owned(),
        Seen::Zero | Seen::InitialOrZero => "zeroes".to_owned(),
        Seen::Unusable => "no legal content".to_owned(),
    }
}

fn replica(
    history: &History,
    seen: &[Vec<Seen>],
    cover: &Cover,
    (visible, must): (&[bool], &[bool]),
    findings: &mut Findings,
) -> Vec<bool> {
    let mut prefix = Prefix::new(history, visible, must);
    while prefix.explain_zeroes(seen, cover) {}
    let shown = |at: Seen, covering: &[u32]| prefix.shown(at, covering);
    let before = findings.count();
    for (at, seen, covering) in cover.each(seen) {
        let last = shown(seen, covering);
        for index in covering
            .iter()
            .filter(|i| prefix.held[**i as usize] && Some(**i) != last)
        {
            let operation = &history.operations[*index as usize];
            let after = last.map(|last| &history.operations[last as usize]);
            if seen == Seen::Unusable || after.is_some_and(|after| !after.before(operation)) {
                continue;
            }
            let kind = if must[*index as usize] {
                "lost"
            } else if visible[*index as usize] {
                "torn"
            } else {
                "missing"
            };
            let because = prefix.latest_name(*index, visible, must);
            findings.add(kind, at, || {
                format!(
                    "{operation} must be held ({because}); shown is {}",
                    describe(history, seen)
                )
            });
        }
    }
    if findings.count() == before {
        order_graph::check(history, seen, cover, &prefix, findings);
    }
    prefix.held
}

/// The least set of operations that a legal prefix must hold.
#[derive(Debug)]
pub(super) struct Prefix<'a> {
    history: &'a History,
    /// Held, by place in the history.
    pub(super) held: Vec<bool>,
    /// The held operation submitted last.
    latest: Option<u32>,
}

impl<'a> Prefix<'a> {
    fn new(history: &'a History, visible: &[bool], must: &[bool]) -> Self {
        let held = vec![false; visible.len()];
        let mut prefix = Self {
            history,
            held,
            latest: None,
        };
        for (index, _) in (0_u32..)
            .zip(visible)
            .filter(|(i, v)| **v || must[*i as usize])
        {
            prefix.held[index as usize] = true;
            prefix.latest = Some(index);
        }
        prefix.close();
        prefix
    }

    /// Adds everything that completed before the latest held one was submitted.
    fn close(&mut self) {
        let Some(latest) = self.latest else { return };
        let latest = &self.history.operations[latest as usize];
        for (held, operation) in self.held.iter_mut().zip(&self.history.operations) {
            *held |= operation.before(latest);
        }
    }

    /// Holds the earliest clear that explains each zero sector; true if anything was added.
    fn explain_zeroes(&mut self, seen: &[Vec<Seen>], cover: &Cover) -> bool {
        let mut added = false;
        for (_, seen, covering) in cover.each(seen) {
            if !seen.may_be_cleared() {
                continue;
            }
            let clears = |index: &u32| self.history.operations[*index as usize].kind.clears();
            let last_held = covering
                .iter()
                .rposition(|index| self.held[*index as usize]);
            let explained = match last_held {
                None => seen == Seen::InitialOrZero,
                Some(at) => clears(&covering[at]),
            };
            let from = last_held.map_or(0, |at| at + 1);
            let clear = covering[from..].iter().find(|index| clears(index)).copied();
            if let (false, Some(clear)) = (explained, clear) {
                self.held[clear as usize] = true;
                self.latest = self.latest.max(Some(clear));
                added = true;
            }
        }
        if added {
            self.close();
        }
        added
    }

    /// The held operation whose content the sector shows; `None` for initial content.
    pub(super) fn shown(&self, seen: Seen, covering: &[u32]) -> Option<u32> {
        match seen {
            Seen::Write(index) => Some(index),
            Seen::Initial | Seen::Unusable => None,
            Seen::Zero | Seen::InitialOrZero => {
                let held = |index: &&u32| {
                    self.held[**index as usize]
                        && self.history.operations[**index as usize].kind.clears()
                };
                covering.iter().rev().find(held).copied()
            }
        }
    }

    fn latest_name(&self, index: u32, visible: &[bool], must: &[bool]) -> String {
        if must[index as usize] {
            return "it is to be kept".to_owned();
        }
        if visible[index as usize] {
            return "other sectors of it show".to_owned();
        }
        let latest = self
            .latest
            .map(|latest| &self.history.operations[latest as usize]);
        latest.map_or_else(String::new, |latest| {
            format!("complete before the held {latest}")
        })
    }
}
