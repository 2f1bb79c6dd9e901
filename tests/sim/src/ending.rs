//! How runs end: promotions, and two nodes that both think they serve.
//!
//! Owns the last act. A run that is whole and equal enters; complaints leave.

use super::judge;
use super::plan::Side;
use super::run::Run;
use blkrep_core::source::Gate;
use blkrep_types::DataState;
use std::time::Duration;

/// How long a promotion may take once everything is whole.
const PROMOTE_MAX: Duration = Duration::from_secs(120);

/// Requests under which the last act happens.
const LAST_REQUESTS: u64 = 60;

impl Run {
    /// The source dies under load; the replica must be promotable, and a prefix.
    pub(super) fn promote_dead(&mut self) -> Result<(), String> {
        let until = self.app.requests + LAST_REQUESTS;
        while self.app.requests < until {
            self.maybe_issue();
            self.step(self.issue_time())?;
        }
        let power = self.random.one_in(2);
        self.source_dies_for_good(power);
        self.promote()
    }

    /// The replica is promoted behind a cut; the image is a prefix, and what the old source wrote
    /// meanwhile changes nothing of it.
    pub(super) fn promote_cut(&mut self) -> Result<(), String> {
        let [source, target] = self.nodes;
        self.world.cut(source, target);
        self.world.cut(target, source);
        let until = self.app.requests + LAST_REQUESTS;
        while self.app.requests < until {
            self.maybe_issue();
            self.step(self.issue_time())?;
        }
        self.promote()?;
        let promoted = self.images(Side::Target);
        self.world.heal(source, target);
        self.world.heal(target, source);
        let end = self.world.now().after(Duration::from_secs(20));
        let until = self.app.requests + LAST_REQUESTS;
        while self.world.now() < end {
            let mut next = end;
            if self.app.requests < until {
                self.maybe_issue();
                next = self.issue_time().min(end);
            }
            self.step(next)?;
        }
        // Nobody serves the promoted group here: nothing may have touched its bytes.
        judge::equal(&promoted, &self.images(Side::Target))
            .map_err(|why| format!("a promoted image was changed: {why}"))?;
        match self.source.as_ref().map(super::source::Source::gate) {
            Some(Gate::Fenced) => Ok(()),
            other => Err(format!(
                "the old source heard of a promotion and is {other:?}"
            )),
        }
    }

    /// Promotes and judges what comes of it.
    fn promote(&mut self) -> Result<(), String> {
        let Some(target) = &self.target else {
            return Err("there is no target".to_owned());
        };
        target.promote(true);
        let end = self.world.now().after(PROMOTE_MAX);
        let answer = loop {
            let soon = self.world.now().after(Duration::from_millis(100));
            self.step(soon)?;
            let answer = self
                .target
                .as_ref()
                .and_then(super::target::Target::promoted);
            if let Some(answer) = answer {
                break answer;
            }
            if self.world.now() > end {
                return Err(format!("a promotion is not answered: {:#?}", self.target));
            }
        };
        match answer {
            Ok(promotion) => {
                self.report.promotions += 1;
                if promotion.data_state != DataState::Ok {
                    return Err(format!("promoted although {}", promotion.data_state));
                }
                judge::replica(&self.ages(), &self.images(Side::Target))
            }
            // Everything was whole before: the replica can be anything but not promotable.
            Err(error) => Err(format!("a promotion was refused: {error}")),
        }
    }
}
