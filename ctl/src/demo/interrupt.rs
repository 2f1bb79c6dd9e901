//! Ctrl-C and its kin: the demonstration then cleans up and ends.
//!
//! Owns the flag that signals set, and every wait, so that none outlasts a signal. Never cleans up
//! itself.

use anyhow::{Context as _, bail};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Time between two looks at what is waited for.
const POLL: Duration = Duration::from_millis(50);

/// Whether to go on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes SIGINT, SIGTERM and SIGHUP from now on, until the process ends.
    pub(crate) fn take() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("take signals")?;
        let flag = Self::default();
        let (interrupt, terminate, hang_up) = {
            let _inside = runtime.enter();
            let take = |kind| signal(kind).context("take a signal");
            (
                take(SignalKind::interrupt())?,
                take(SignalKind::terminate())?,
                take(SignalKind::hangup())?,
            )
        };
        let set = flag.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                let (mut interrupt, mut terminate, mut hang_up) = (interrupt, terminate, hang_up);
                runtime.block_on(async {
                    loop {
                        tokio::select! {
                            _ = interrupt.recv() => {}
                            _ = terminate.recv() => {}
                            _ = hang_up.recv() => {}
                        }
                        set.0.store(true, Ordering::Release);
                    }
                });
            })
            .context("take signals")?;
        Ok(flag)
    }

    /// An error once a signal came.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.0.load(Ordering::Acquire) {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Lets time pass.
    pub(crate) fn sleep(&self, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(POLL));
        }
    }

    /// Waits until `done` says so; an error if it does not within `limit`.
    pub(crate) fn wait(
        &self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + limit;
        while !done()? {
            if Instant::now() >= end {
                bail!("{what} did not happen within {} s", limit.as_secs());
            }
            self.sleep(POLL)?;
        }
        Ok(())
    }

    #[cfg(test)]
    fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn no_wait_outlasts_a_signal_or_its_limit() {
        let flag = Interrupt::default();
        let mut looks = 0;
        let counted = flag.wait("three looks", Duration::from_secs(20), || {
            looks += 1;
            Ok(looks == 3)
        });
        assert!(counted.is_ok());
        let late = flag.wait("a wonder", Duration::ZERO, || Ok(false));
        assert!(late.unwrap_err().to_string().contains("a wonder"));
        flag.set();
        let began = Instant::now();
        assert!(flag.sleep(Duration::from_secs(600)).is_err());
        assert!(
            flag.wait("nothing", Duration::from_secs(600), || Ok(false))
                .is_err()
        );
        assert!(began.elapsed() < Duration::from_secs(60));
    }
}
