//! Power cuts of a pair whose link is in `sync` mode: what was answered is on the target, however both ends die.
//!
//! Owns the two campaigns: one over honest disks, in which a promoted target lacks nothing that was answered, and one over a disk
//! of the target that flushes nothing of its journal, in which it must be seen to. Never judges an image itself.

use super::Context;
use super::cuts_pair::{Campaign, Ending, Phase, Round};
use super::pair::QUIET_LIMIT;
use crate::order::{Keep, Random};
use anyhow::{Result, ensure};

/// Marks of a round: with the cut of both at its end, so many instants and one. The guest has room for as many images.
const MARKS: u32 = 7;
/// Rounds of the whole campaign: more than a hundred cuts.
const WHOLE_ROUNDS: u32 = 13;

fn rounds(count: u32) -> Vec<Round> {
    let round = Round {
        phase: Phase::Stream,
        marks: MARKS,
        ending: Ending::Both,
    };
    (0..count).map(|_| round).collect()
}

/// Nobody goes on without the target: `block`.
fn connect(campaign: &mut Campaign<'_>) -> Result<()> {
    let words = campaign.pair.connect_words();
    let line = format!("{words} --mirror full --mode sync --on-loss block --wait");
    campaign.pair.source.ctl_within(QUIET_LIMIT, &line)?;
    campaign.pair.until_quiet(QUIET_LIMIT).map(drop)
}

pub(super) fn answered_is_on_the_target(context: &Context) -> Result<String> {
    let random = Random::new(if context.full { 4 } else { 3 });
    let mut campaign = Campaign::new(context, random, Keep::Completed)?;
    connect(&mut campaign)?;
    campaign.play_all(rounds(context.times(1, WHOLE_ROUNDS)))?;
    campaign.end()
}

pub(super) fn journal_without_flushes_is_caught(context: &Context) -> Result<String> {
    let mut campaign = Campaign::new(context, Random::new(5), Keep::Completed)?;
    campaign.target.lie_about_state()?;
    connect(&mut campaign)?;
    let ended = campaign.play_all(rounds(1));
    // The devices of this body are not to be in the way of the next one's.
    if ended.is_ok() {
        campaign.pair.stop()?;
    } else {
        campaign.pair.source.kill()?;
        campaign.pair.source.forced_detach(&["one", "two"])?;
    }
    let counts = &campaign.counts;
    ensure!(
        counts.wrong() > 0,
        "a journal that is never flushed went unnoticed: {counts}, {ended:?}"
    );
    Ok(format!(
        "{} of {} promoted replicas wrong",
        counts.wrong(),
        counts.cuts()
    ))
}
