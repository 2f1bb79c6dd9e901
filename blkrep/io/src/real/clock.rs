//! The monotonic clock, asked seldom.
//!
//! Owns the last reading and how long it may be given again. Reading the clock is a system call
//! where the kernel has no clock source that a process can read by itself (User-Mode Linux, some
//! hypervisors), and a thread asks at every turn. The processor's cycle counter is used for one
//! question only, whether a reading is still fresh: whatever is wrong with the counter, a time that
//! is given was read from the kernel. Where there is no steady counter every question is a reading.

use blkrep_types::Nanos;
use std::cell::Cell;

/// A reading is fresh for so many cycles: 1.3 ms at 3 GHz, at most 4 ms on any processor that is
/// made (1 GHz and more).
const FRESH_CYCLES: u64 = 4_000_000;

/// One thread's clock.
#[derive(Debug)]
pub(super) struct Clock {
    steady: bool,
    /// The last reading, and the counter just before it.
    last: Cell<Option<(u64, Nanos)>>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            steady: counter_is_steady(),
            last: Cell::new(None),
        }
    }

    /// The time, or a reading that is still fresh.
    pub(super) fn recent(&self) -> Nanos {
        match self.last.get() {
            // A counter that went back makes a huge difference: not fresh.
            Some((at, time)) if self.steady && cycles().wrapping_sub(at) < FRESH_CYCLES => time,
            _ => self.exact(),
        }
    }

    /// The time.
    pub(super) fn exact(&self) -> Nanos {
        let at = if self.steady { cycles() } else { 0 };
        let time = now();
        self.last.set(Some((at, time)));
        time
    }

    /// What was read is known to be old.
    pub(super) fn forget(&self) {
        self.last.set(None);
    }
}

/// The monotonic clock.
pub(super) fn now() -> Nanos {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one `timespec` to a live exclusive reference.
    let asked = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    assert_eq!(asked, 0, "the monotonic clock can always be read");
    let seconds = u64::try_from(time.tv_sec).expect("the clock began before now");
    let nanos = u64::try_from(time.tv_nsec).expect("a part of a second");
    Nanos::new(seconds * 1_000_000_000 + nanos)
}

#[cfg(target_arch = "x86_64")]
fn cycles() -> u64 {
    // SAFETY: RDTSC is part of every x86-64 processor, and Linux lets processes use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// True if the counter runs at one rate, whatever the processor sleeps or saves.
#[cfg(target_arch = "x86_64")]
fn counter_is_steady() -> bool {
    use std::arch::x86_64::__cpuid;
    const LEAF_POWER: u32 = 0x8000_0007;
    const INVARIANT: u32 = 1 << 8;
    __cpuid(0x8000_0000).eax >= LEAF_POWER && __cpuid(LEAF_POWER).edx & INVARIANT != 0
}

#[cfg(not(target_arch = "x86_64"))]
const fn cycles() -> u64 {
    0
}

#[cfg(not(target_arch = "x86_64"))]
const fn counter_is_steady() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_recent_time_is_never_much_older_than_the_time() {
        let clock = Clock::new();
        let mut same = 0;
        let mut last = Nanos::default();
        for _ in 0..200_000 {
            let before = now();
            let recent = clock.recent();
            assert!(recent >= last, "time goes on");
            // One second stands for a machine that stops this thread between the two lines.
            assert!(before.since(recent) < Duration::from_secs(1));
            same += usize::from(recent == last);
            last = recent;
        }
        assert!(
            same > 0 || !clock.steady,
            "a fresh reading is given again where the counter is steady"
        );
    }

    #[test]
    fn what_is_forgotten_or_not_fresh_is_read_again() {
        let clock = Clock::new();
        let first = clock.recent();
        std::thread::sleep(Duration::from_millis(20));
        let second = clock.recent();
        assert!(second.since(first) >= Duration::from_millis(20));
        clock.forget();
        assert!(clock.recent() > second);
        let exact = clock.exact();
        assert!(clock.exact() > exact);
    }

    #[test]
    fn a_counter_that_went_back_makes_no_reading_fresh() {
        let clock = Clock::new();
        let old = Nanos::new(1);
        clock.last.set(Some((cycles().wrapping_add(1 << 40), old)));
        assert!(clock.recent() > old);
    }
}
