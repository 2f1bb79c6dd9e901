//! The simulator's campaign as every change gets it.

use blkrep_sim::campaign;
use blkrep_sim::minimize::Less;
use blkrep_sim::plan::Plan;

/// Seeds that have been kept for long: a change that breaks one of them broke it now.
#[test]
fn the_first_seeds_keep_every_promise() {
    let totals = campaign::seeds(0..100, campaign::all_processors());
    assert!(totals.failed.is_empty(), "{}", totals.complaints());
    assert!(totals.writes_min >= Some(200), "{:?}", totals.writes_min);
}

#[test]
fn a_seed_is_one_run() {
    for seed in [3, 4, 5] {
        assert_eq!(campaign::seed(seed), campaign::seed(seed), "seed {seed}");
    }
}

/// The whole chain of judges judged: where flushes do nothing, promises must be seen to break.
#[test]
fn disks_that_lie_about_flushes_are_caught() {
    let broken = (0..20).filter(|seed| {
        let mut plan = Plan::of(*seed);
        plan.options.sync_lies = true;
        campaign::carry_out(plan, false).is_err()
    });
    let broken = broken.count();
    assert!(broken >= 5, "{broken} of 20 runs complained");
}

/// A head of a target's journal could not be written while nothing was to be freed: when it might be tried
/// again nobody did, and the target took one turn after another.
#[test]
fn a_head_that_fails_while_nothing_is_freed_keeps_no_processor_busy() {
    let without = ["fault1", "command1", "probe1", "takeover0"];
    let less = Less {
        without: without.map(str::to_owned).to_vec(),
        requests: Some(309),
    };
    let plan = less.of(&Plan::of(1_882_502_467_682_737));
    let result = plan.and_then(|plan| campaign::carry_out(plan, false));
    assert!(result.is_ok(), "{result:?}");
}
