//! One writer (I6): a source that has heard of a newer one answers no write.

use crate::run::Run;
use blkrep_core::source::Gate;

impl Run {
    /// Notes which applications are on a fenced source, and complains of what was answered to them since.
    pub(super) fn one_writer(&mut self, group: usize) -> Result<(), String> {
        let nodes = &self.nodes;
        for life in self.groups[group].lives_mut() {
            let gate = nodes[life.node].daemon.as_ref();
            let gate = gate.and_then(|daemon| daemon.gate(group));
            // One that is killed before it has written that down hears it anew.
            life.app.set_fenced(gate == Some(Gate::Fenced));
            if let Some(why) = life.app.answered_though_fenced() {
                return Err(format!("group {group} on node {}: {why}", life.node));
            }
        }
        Ok(())
    }
}
