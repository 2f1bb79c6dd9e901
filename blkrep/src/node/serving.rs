//! Groups whose backing failed and whose policy is `target`.
//!
//! Owns the trying: as long as such a group waits for its backing, each of its links is asked in turn
//! whether its target can serve it. What that means is the engine's. Told once for each reason.

use super::Inner;
use super::state::Engine;
use crate::settings::OnBackingError;
use blkrep_api::{EventId, NewEvent};
use blkrep_core::source::Gate;
use blkrep_types::GroupName;

impl Inner {
    /// Hands a group that waits for its backing to a target, if that is asked for and possible.
    pub(super) fn serve_from_target(&self, name: &GroupName, engine: &Engine) {
        if engine.gate() != Gate::Frozen {
            return;
        }
        if self.settings.group(name).on_backing_error != OnBackingError::Target {
            return;
        }
        let mut reasons = Vec::new();
        for link in engine.links() {
            match engine.serve_from(&link.name) {
                Ok(()) => return self.note_not_served(name, None),
                Err(why) => reasons.push(format!("link {}: {why}", link.name)),
            }
        }
        let text = match reasons.is_empty() {
            true => "it has no link".to_owned(),
            false => reasons.join("; "),
        };
        self.note_not_served(name, Some(text));
    }

    fn note_not_served(&self, name: &GroupName, why: Option<String>) {
        let mut state = self.state();
        let Some(group) = state.groups.get_mut(name) else {
            return;
        };
        if group.not_served == why {
            return;
        }
        group.not_served.clone_from(&why);
        drop(state);
        if let Some(why) = why {
            self.tell(NewEvent::new(EventId::NotServedByTarget, why).group(name));
        }
    }
}
