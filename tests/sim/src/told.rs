//! What a run says while it is replayed.
//!
//! Owns a switch. Steps and events of the engine enter; lines on stderr leave, each with its
//! virtual time and whose it is, when somebody wants to read them.

use blkrep::engine::link::{LinkEvent, LinkWatch};
use blkrep::engine::target::{TargetEvent, TargetWatch};
use blkrep_io::sim::SimWorld;
use blkrep_types::GroupName;
use std::fmt::Debug;

/// Says what happens, or keeps quiet.
#[derive(Debug, Clone)]
pub struct Told {
    world: SimWorld,
    aloud: bool,
    whose: String,
}

impl Told {
    /// Says things at the times of `world` if `aloud`.
    #[must_use]
    pub fn new(world: &SimWorld, aloud: bool) -> Self {
        Self {
            world: world.clone(),
            aloud,
            whose: String::new(),
        }
    }

    /// Says what is of a node, or of a group or link there.
    #[must_use]
    pub fn of(&self, whose: impl Into<String>) -> Self {
        Self {
            whose: whose.into(),
            ..self.clone()
        }
    }

    /// Says one thing.
    pub fn say(&self, what: &dyn Debug) {
        if self.aloud {
            let micros = self.world.now().get() / 1000;
            let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
            eprintln!("{seconds:>6}.{micros:06} {:<14} {what:?}", self.whose);
        }
    }
}

impl LinkWatch for Told {
    fn event(&self, event: &LinkEvent) {
        self.say(event);
    }
}

impl TargetWatch for Told {
    fn event(&self, _: &GroupName, event: &TargetEvent) {
        self.say(event);
    }
}
