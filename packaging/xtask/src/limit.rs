//! A command that ends in time, whatever hangs in it.
//!
//! Owns a process group and its deadline. A command enters, its exit leaves. A killed command has failed, and says so.

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// A command that runs in a process group of its own, which is killed at the deadline.
pub(crate) struct Limited {
    pub(crate) child: Child,
    /// Dropped once the command has ended.
    ended: Sender<()>,
}

impl Limited {
    pub(crate) fn spawn(command: &mut Command, limit: Duration) -> Result<Self> {
        let child = command.process_group(0).spawn().context("run cargo")?;
        let group = Pid::from_raw(i32::try_from(child.id()).context("a process id")?);
        let (ended, ending) = channel();
        std::thread::spawn(move || {
            if ending.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                let minutes = limit.as_secs().div_ceil(60);
                println!("killed: it ran for {minutes} minutes, so something in it hangs");
                // It may have ended this moment, which is what was wanted.
                let _gone = killpg(group, Signal::SIGKILL);
            }
        });
        Ok(Self { child, ended })
    }

    pub(crate) fn wait(mut self) -> Result<ExitStatus> {
        let status = self.child.wait().context("wait for cargo")?;
        drop(self.ended);
        Ok(status)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_hangs_is_killed_with_its_children_and_has_failed() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & sleep 1000"]);
        let run = Limited::spawn(&mut command, Duration::from_millis(50)).unwrap();
        assert!(!run.wait().unwrap().success());
        let quick = Limited::spawn(&mut Command::new("true"), Duration::from_secs(60)).unwrap();
        assert!(quick.wait().unwrap().success());
    }
}
