//! Writes that the base did not take, and when they are tried again.
//!
//! Owns how often each failed and since when. A failed write keeps its place among the flights, so that
//! the journal keeps its bytes and nothing that overlaps passes it; while any is left nothing new is
//! begun. Failures and time enter; what is tried now, or given up, leaves. Never says what a write that
//! was given up means: that is dirt, and [`super::Applier::completed`] makes it so.

use super::flight::{FLIGHTS_MAX, FlightId};
use blkrep_types::{Errno, Nanos, VolumeIndex};
use std::time::Duration;

/// Why a base takes no write, as far as an operator would do something else about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WriteTrouble {
    /// There is no space, or a quota is used up.
    Full,
    /// Somebody else has it.
    Busy,
    /// It is read-only, or rights are missing.
    Denied,
    /// Anything else: mostly a disk that fails.
    Unknown,
}

impl WriteTrouble {
    /// What an error number says.
    #[must_use]
    pub const fn of(errno: Errno) -> Self {
        match errno.get() {
            // ENOSPC, EFBIG, EDQUOT.
            28 | 27 | 122 => Self::Full,
            // EBUSY, EAGAIN, ETXTBSY.
            16 | 11 | 26 => Self::Busy,
            // EACCES, EPERM, EROFS.
            13 | 1 | 30 => Self::Denied,
            _ => Self::Unknown,
        }
    }

    /// In a word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Busy => "busy",
            Self::Denied => "denied",
            Self::Unknown => "unknown",
        }
    }
}

/// What is done about failed writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often a write is tried again before its extent counts as different; `None`: for ever.
    pub limit: Option<u32>,
    /// How long after a failure.
    pub delay: Duration,
}

/// Failures without a success of all of them in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trouble {
    /// Why the last write failed.
    pub why: WriteTrouble,
    /// The same as the kernel says it.
    pub errno: Errno,
    /// The volume whose base it was.
    pub volume: VolumeIndex,
    /// When the first one failed.
    pub since: Nanos,
    /// How often writes failed since.
    pub failures: u64,
}

/// What becomes of a write that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It is tried again; true if nobody was told yet of such a trouble.
    Again(bool),
    /// It was tried often enough.
    GivenUp,
}

/// The writes that failed.
#[derive(Debug)]
pub struct Retries {
    policy: RetryPolicy,
    /// Tried again when the time has come, all together.
    waiting: Vec<FlightId>,
    /// Its time has come.
    ready: Vec<FlightId>,
    at: Option<Nanos>,
    failures: [u32; FLIGHTS_MAX],
    /// Flights that have failed and not ended.
    failing: usize,
    trouble: Option<Trouble>,
}

impl Retries {
    /// None yet.
    #[must_use]
    pub fn new(policy: RetryPolicy) -> Self {
        Self {
            policy,
            waiting: Vec::with_capacity(FLIGHTS_MAX),
            ready: Vec::with_capacity(FLIGHTS_MAX),
            at: None,
            failures: [0; FLIGHTS_MAX],
            failing: 0,
            trouble: None,
        }
    }

    /// What is in force.
    #[must_use]
    pub const fn policy(&self) -> RetryPolicy {
        self.policy
    }

    /// Another policy, from now on; what waits longer than it says is tried sooner.
    pub fn set_policy(&mut self, policy: RetryPolicy, now: Nanos) {
        self.policy = policy;
        self.at = self.at.map(|at| at.min(now.after(policy.delay)));
    }

    /// A write failed.
    pub fn failed(
        &mut self,
        id: FlightId,
        volume: VolumeIndex,
        errno: Errno,
        now: Nanos,
    ) -> Failure {
        let failures = &mut self.failures[id.as_usize()];
        self.failing += usize::from(*failures == 0);
        *failures += 1;
        if self.policy.limit.is_some_and(|limit| *failures > limit) {
            self.end(id);
            return Failure::GivenUp;
        }
        let why = WriteTrouble::of(errno);
        let told = self.trouble.is_some_and(|trouble| trouble.why == why);
        let before = self.trouble;
        self.trouble = Some(Trouble {
            why,
            errno,
            volume,
            since: before.map_or(now, |trouble| trouble.since),
            failures: before.map_or(0, |trouble| trouble.failures) + 1,
        });
        self.waiting.push(id);
        self.at.get_or_insert(now.after(self.policy.delay));
        Failure::Again(!told)
    }

    /// A write succeeded; the trouble that is over by that.
    pub fn succeeded(&mut self, id: FlightId) -> Option<Trouble> {
        if self.failures[id.as_usize()] == 0 {
            return None;
        }
        let trouble = self.trouble;
        self.end(id);
        trouble.filter(|_| self.failing == 0)
    }

    fn end(&mut self, id: FlightId) {
        self.failures[id.as_usize()] = 0;
        self.failing -= 1;
        if self.failing == 0 {
            (self.trouble, self.at) = (None, None);
        }
    }

    /// A write to be tried now, if there is one; [`Retries::begun`] says that it is.
    pub fn next(&mut self, now: Nanos) -> Option<FlightId> {
        if self.at.is_some_and(|at| now >= at) {
            self.at = None;
            self.ready.append(&mut self.waiting);
        }
        self.ready.last().copied()
    }

    /// That write is on its way again.
    ///
    /// # Panics
    /// If it is not the one that [`Retries::next`] named.
    pub fn begun(&mut self, id: FlightId) {
        assert_eq!(self.ready.pop(), Some(id), "it was next");
    }

    /// Everything that waits is tried at once.
    pub fn hurry(&mut self, now: Nanos) {
        self.at = self.at.map(|_| now);
    }

    /// One that waits is not tried again.
    pub fn give_up_one(&mut self) -> Option<FlightId> {
        let id = self.ready.pop().or_else(|| self.waiting.pop())?;
        self.end(id);
        Some(id)
    }

    /// Nothing waits any more; what was under way is gone with its journal.
    pub fn clear(&mut self) {
        *self = Self::new(self.policy);
    }

    /// How often the write failed.
    #[must_use]
    pub fn failures(&self, id: FlightId) -> u32 {
        self.failures[id.as_usize()]
    }

    /// True while a write that failed has not ended: nothing new is begun.
    #[must_use]
    pub const fn holds_back(&self) -> bool {
        self.failing > 0
    }

    /// How many of the flights have no operation under way.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.waiting.len() + self.ready.len()
    }

    /// When something is to be tried.
    #[must_use]
    pub const fn due(&self) -> Option<Nanos> {
        self.at
    }

    /// What is wrong, if something is.
    #[must_use]
    pub const fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }
}
