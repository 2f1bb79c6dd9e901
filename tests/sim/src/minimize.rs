//! A failing plan made smaller: what is not needed for the failure is left out.
//!
//! Owns the search and the words that name what is left. A plan that fails enters, a smaller one that
//! fails in the same way leaves, with the options that replay it.

use super::campaign::carry_out;
use super::plan::Plan;

/// What of a plan is carried out; everything, unless it says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Less {
    /// Rests, faults, commands, probes, moments and takeovers that are left out, by their places in the plan.
    pub without: Vec<String>,
    /// The load ends after so many requests.
    pub requests: Option<u64>,
}

impl Less {
    /// The plan without what is left out.
    ///
    /// # Errors
    /// A name that stands for nothing in it.
    pub fn of(&self, plan: &Plan) -> Result<Plan, String> {
        let mut less = plan.clone();
        less.requests = self.requests.unwrap_or(plan.requests);
        let known = names(plan);
        if let Some(unknown) = self.without.iter().find(|name| !known.contains(name)) {
            return Err(format!(
                "{unknown} is nothing of this seed; it has {}",
                known.join(", ")
            ));
        }
        let gone = |kind: &str, place: usize| self.without.contains(&format!("{kind}{place}"));
        retain(&mut less.rests, |place| !gone("rest", place));
        retain(&mut less.faults, |place| !gone("fault", place));
        retain(&mut less.commands, |place| !gone("command", place));
        retain(&mut less.probes, |place| !gone("probe", place));
        retain(&mut less.moments, |place| !gone("moment", place));
        retain(&mut less.takeovers, |place| !gone("takeover", place));
        Ok(less)
    }

    /// The options that carry it out again.
    #[must_use]
    pub fn options(&self) -> String {
        let mut text = String::new();
        for name in &self.without {
            text.push_str(&format!(" --without {name}"));
        }
        if let Some(requests) = self.requests {
            text.push_str(&format!(" --requests {requests}"));
        }
        text
    }
}

fn retain<T>(all: &mut Vec<T>, keep: impl Fn(usize) -> bool) {
    let mut place = 0..;
    all.retain(|_| keep(place.next().expect("it has no end")));
}

fn names(plan: &Plan) -> Vec<String> {
    let kinds = [
        ("rest", plan.rests.len()),
        ("fault", plan.faults.len()),
        ("command", plan.commands.len()),
        ("probe", plan.probes.len()),
        ("moment", plan.moments.len()),
        ("takeover", plan.takeovers.len()),
    ];
    let all = kinds.iter();
    all.flat_map(|(kind, count)| (0..*count).map(move |place| format!("{kind}{place}")))
        .collect()
}

/// What a complaint is about, without its numbers: the same failure elsewhere.
fn gist(complaint: &str) -> String {
    let line = complaint.lines().next().unwrap_or_default();
    line.chars()
        .filter(|letter| !letter.is_ascii_digit())
        .collect()
}

/// The smallest part of a plan found that fails as it does; `None` if it does not fail.
#[must_use]
pub fn minimize(plan: &Plan, start: &Less) -> Option<(Less, String)> {
    let fails = |less: &Less| carry_out(less.of(plan).ok()?, false).err();
    let mut why = fails(start)?;
    let wanted = gist(&why);
    let mut best = start.clone();
    for name in names(plan) {
        if best.without.contains(&name) {
            continue;
        }
        let mut tried = best.clone();
        tried.without.push(name);
        if let Some(other) = fails(&tried).filter(|other| gist(other) == wanted) {
            (best, why) = (tried, other);
        }
    }
    // Half of the requests, then half of what was left, up to where it no longer fails.
    let requests = |less: &Less| less.requests.unwrap_or(plan.requests);
    let mut step = requests(&best) / 2;
    while step > 0 && requests(&best) > 0 {
        let mut tried = best.clone();
        tried.requests = Some(requests(&best).saturating_sub(step));
        match fails(&tried).filter(|other| gist(other) == wanted) {
            Some(other) => (best, why) = (tried, other),
            None => step /= 2,
        }
    }
    Some((best, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_left_out_and_what_is_unknown_is_refused() {
        let plan = Plan::of(3);
        let less = Less {
            without: vec!["fault1".to_owned(), "command0".to_owned()],
            requests: Some(40),
        };
        let smaller = less.of(&plan).expect("names of this plan");
        assert_eq!(
            smaller.faults,
            [plan.faults[0].clone(), plan.faults[2].clone()]
        );
        assert_eq!(smaller.commands.len(), plan.commands.len() - 1);
        assert_eq!(smaller.requests, 40);
        assert_eq!(
            less.options(),
            " --without fault1 --without command0 --requests 40"
        );
        let less = Less {
            without: vec!["fault3".to_owned()],
            requests: None,
        };
        assert!(less.of(&plan).is_err());
    }

    /// Disks that lie about flushes need a loss of power and little else.
    #[test]
    fn a_failure_is_made_smaller_and_stays_what_it_is() {
        let lying = |seed| {
            let mut plan = Plan::of(seed);
            plan.options.sync_lies = true;
            plan
        };
        let fails = |plan: &Plan| carry_out(plan.clone(), false).is_err();
        let plan = (0..100).map(lying).find(fails).expect("one of them fails");
        let (less, why) = minimize(&plan, &Less::default()).expect("it fails");
        let smaller = less.of(&plan).expect("names of this plan");
        let parts = |plan: &Plan| names(plan).len();
        assert!(parts(&smaller) < parts(&plan), "{smaller:#?}");
        assert!(smaller.requests < plan.requests);
        assert_eq!(carry_out(smaller, false), Err(why));
    }
}
