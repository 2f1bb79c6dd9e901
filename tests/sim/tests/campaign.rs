//! The simulator's campaign as every change gets it.

use blkrep_sim::campaign;
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
