//! The simulator's campaign: two nodes, a group, three faults and a command a seed.
//!
//! `BLKREP_SIM_SEED=N` replays one seed and tells every step; `BLKREP_SIM_SEEDS=N` and
//! `BLKREP_SIM_FIRST=N` choose how many and from where.

use blkrep_tests::sim::campaign;
use blkrep_tests::sim::plan::Plan;

/// Seeds of the gate.
const SEEDS: u64 = 1000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
    )
}

#[test]
fn every_promise_is_kept_through_faults() {
    if let Some(seed) = number("BLKREP_SIM_SEED") {
        let result = campaign::seed(seed, true);
        println!("seed {seed}: {result:#?}");
        assert!(result.is_ok(), "seed {seed} failed");
        return;
    }
    let first = number("BLKREP_SIM_FIRST").unwrap_or(0);
    let count = number("BLKREP_SIM_SEEDS").unwrap_or(SEEDS);
    let totals = campaign::seeds(first..first + count);
    println!(
        "{} of {count} seeds kept every promise: {:?}",
        totals.kept, totals.sum
    );
    assert!(
        totals.failed.is_empty(),
        "{} seeds failed\n{}",
        totals.failed.len(),
        totals.complaints()
    );
}

#[test]
fn a_seed_is_one_run() {
    for seed in [3, 4, 5] {
        assert_eq!(
            campaign::seed(seed, false),
            campaign::seed(seed, false),
            "seed {seed}"
        );
    }
}

/// The whole chain of judges judged: where flushes do nothing, promises must be seen to break.
#[test]
fn disks_that_lie_about_flushes_are_caught() {
    let broken = (0..60).filter(|seed| {
        let mut plan = Plan::of(*seed);
        plan.options.sync_lies = true;
        campaign::carry_out(plan, false).is_err()
    });
    let broken = broken.count();
    assert!(broken >= 10, "{broken} of 60 runs complained");
}
