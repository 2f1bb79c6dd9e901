//! The word that says whether a thread sleeps.
//!
//! Owns that word and its three values. The sleeper looks at it after it said that it will sleep,
//! so no wake is lost between the two. Never sleeps and wakes nobody itself.
//!
//! ```text
//!  Awake --may_sleep--> Asleep
//!  Awake, Asleep --notice--> Noticed     (from Asleep: whoever did it must wake the thread)
//!  Asleep, Noticed --awake--> Awake
//! ```

use super::sync::{AtomicU8, Ordering};

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const NOTICED: u8 = 2;

/// Shared by a sleeper and whoever wakes it.
#[derive(Debug)]
pub(super) struct Sleep(AtomicU8);

impl Sleep {
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(AWAKE))
    }

    /// Says that the thread is about to sleep; false if it was woken already and must not.
    pub(super) fn may_sleep(&self) -> bool {
        self.0
            .compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// Leaves a notice; true if the thread sleeps and must be woken. What was stored before it is
    /// seen by the thread after its next [`Sleep::awake`].
    pub(super) fn notice(&self) -> bool {
        self.0.swap(NOTICED, Ordering::SeqCst) == ASLEEP
    }

    /// Says that the thread is awake; true if somebody left a notice.
    pub(super) fn awake(&self) -> bool {
        self.0.swap(AWAKE, Ordering::SeqCst) == NOTICED
    }
}

#[cfg(test)]
impl Sleep {
    pub(super) fn is_awake(&self) -> bool {
        self.0.load(Ordering::SeqCst) == AWAKE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_before_the_sleep_prevents_it() {
        let sleep = Sleep::new();
        assert!(!sleep.notice());
        assert!(!sleep.may_sleep());
        assert!(sleep.awake());
        assert!(sleep.may_sleep());
        assert!(sleep.notice());
        assert!(sleep.awake());
        assert!(!sleep.awake());
    }
}
