//! What a run says while it is replayed.
//!
//! Owns a switch. Steps and events of the engine enter; lines on stderr leave, each with its
//! virtual time, when somebody wants to read them.

use blkrep::engine::link::{LinkEvent, LinkWatch};
use blkrep_io::sim::SimWorld;
use std::fmt::Debug;

/// Says what happens, or keeps quiet.
#[derive(Debug, Clone)]
pub struct Told {
    world: SimWorld,
    aloud: bool,
}

impl Told {
    /// Says things at the times of `world` if `aloud`.
    #[must_use]
    pub fn new(world: &SimWorld, aloud: bool) -> Self {
        Self {
            world: world.clone(),
            aloud,
        }
    }

    /// Says one thing.
    pub fn say(&self, what: &dyn Debug) {
        if self.aloud {
            eprintln!("{:>12} {what:?}", self.world.now().get() / 1000);
        }
    }
}

impl LinkWatch for Told {
    fn event(&self, event: &LinkEvent) {
        self.say(event);
    }
}
