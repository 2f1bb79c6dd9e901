//! A daemon under test, and its command line.
//!
//! Owns one `blkrepd` process with its socket. Commands enter, their output leaves. Never looks into the daemon's files.

use super::line::Far;
use super::shell::{Running, command, spawn, wait_for};
use anyhow::{Context, Result, ensure};
use blkrep_api::{GroupStatus, Status};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A daemon that answers takes well under a second, emulated or not; recovery of a device a little more.
const START_LIMIT: Duration = Duration::from_secs(40);
const CONTROL_LIMIT: Duration = Duration::from_secs(60);

/// What a daemon is told at its start.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    /// Its name.
    pub(super) name: String,
    /// Where other nodes connect to.
    pub(super) listen: String,
    /// Directories in which it takes replicas.
    pub(super) replica_dirs: Vec<PathBuf>,
    /// Its `blkrepd.toml`.
    pub(super) config: String,
    /// The network namespace that it is in, if it is not the guest's own.
    pub(super) far: Option<Far>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            name: "guest".to_owned(),
            listen: "127.0.0.1:0".to_owned(),
            replica_dirs: Vec::new(),
            config: String::new(),
            far: None,
        }
    }
}

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    dir: PathBuf,
    state: PathBuf,
    setup: Setup,
    daemon: Running,
}

impl Node {
    /// Starts a daemon with its socket in `dir` and what it must not forget in `state`.
    pub(super) fn start(dir: &Path, state: &Path) -> Result<Self> {
        Self::start_as(dir, state, Setup::default())
    }

    /// The same, told more.
    pub(super) fn start_as(dir: &Path, state: &Path, setup: Setup) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        std::fs::create_dir_all(state)?;
        std::fs::write(dir.join("blkrepd.toml"), &setup.config)?;
        let daemon = launch(dir, state, &setup)?;
        let mut node = Self {
            dir: dir.to_owned(),
            state: state.to_owned(),
            setup,
            daemon,
        };
        node.wait_until_it_answers()?;
        Ok(node)
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        wait_for("the daemon to answer", START_LIMIT, || {
            ensure!(
                self.daemon.is_running()?,
                "the daemon ended: {}",
                self.daemon.stderr()?
            );
            if !self.socket().exists() {
                return Ok(false);
            }
            let asked = spawn(self.control("status --json"))?.finish(CONTROL_LIMIT)?;
            // 1 says that something is wrong with a volume, which is an answer.
            Ok(asked.status.code().is_some_and(|code| code < 2))
        })
        .with_context(|| self.daemon.stderr().unwrap_or_default())
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    fn control(&self, line: &str) -> std::process::Command {
        command(&format!(
            "blkctl --socket {} {line}",
            self.socket().display()
        ))
    }

    /// Runs a command of `blkctl` that must succeed.
    pub(super) fn ctl(&mut self, line: &str) -> Result<String> {
        self.ctl_within(CONTROL_LIMIT, line)
    }

    /// The same, of a command that may take its time.
    pub(super) fn ctl_within(&mut self, limit: Duration, line: &str) -> Result<String> {
        let done = spawn(self.control(line))?.succeed(limit);
        done.with_context(|| format!("daemon: {}", self.daemon.stderr().unwrap_or_default()))
    }

    /// Begins a command that takes its time.
    pub(super) fn begin(&self, line: &str) -> Result<Running> {
        spawn(self.control(line))
    }

    /// Asks for the status, which may say that something is wrong.
    pub(super) fn status(&mut self) -> Result<Status> {
        let asked = spawn(self.control("status --json"))?.finish(CONTROL_LIMIT)?;
        ensure!(
            asked.status.code().is_some_and(|code| code < 2),
            "status: {}{}; daemon: {}",
            asked.stdout,
            asked.stderr,
            self.daemon.stderr()?
        );
        serde_json::from_str(&asked.stdout).context("read the status")
    }

    /// What the daemon has logged since its start.
    pub(super) fn log(&mut self) -> Result<String> {
        self.daemon.stderr()
    }

    /// The state of one group.
    pub(super) fn group(&mut self, name: &str) -> Result<GroupStatus> {
        let groups = self.status()?.groups;
        let found = groups.into_iter().find(|group| group.name.as_str() == name);
        found.with_context(|| format!("find group {name} in the status"))
    }

    /// Runs a command that must be refused: the error, as JSON.
    pub(super) fn refusal(&mut self, line: &str) -> Result<Value> {
        let done = spawn(self.control(&format!("--json {line}")))?.finish(CONTROL_LIMIT)?;
        ensure!(
            !done.status.success(),
            "`{line}` was not refused: {}",
            done.stdout
        );
        ensure!(
            self.daemon.is_running()?,
            "`{line}` ended the daemon: {}",
            self.daemon.stderr()?
        );
        let body: Value = serde_json::from_str(&done.stdout).with_context(|| {
            format!("`{line}` answered no JSON: {}{}", done.stdout, done.stderr)
        })?;
        Ok(body["error"].clone())
    }

    /// Runs a command that must be refused with this error code, and not by an accident of another kind.
    pub(super) fn refuses(&mut self, line: &str, codes: &[&str]) -> Result<()> {
        let error = self.refusal(line)?;
        let code = error["code"].as_str().unwrap_or_default();
        ensure!(
            codes.contains(&code),
            "`{line}` was refused with {error}, not one of {codes:?}"
        );
        let action = error["action"].as_str().unwrap_or_default();
        ensure!(
            !action.is_empty(),
            "`{line}` was refused without a word on what to do: {error}"
        );
        Ok(())
    }

    /// Attaches a backing; the device's path, or an address for the NBD front end.
    pub(super) fn attach(
        &mut self,
        volume: &str,
        backing: &Path,
        options: &str,
    ) -> Result<PathBuf> {
        let said = self.ctl(&format!(
            "attach {volume} --backing {} {options}",
            backing.display()
        ))?;
        let last = said.lines().rev().find(|line| !line.trim().is_empty());
        Ok(PathBuf::from(
            last.context("attach printed nothing")?.trim(),
        ))
    }

    /// Stops serving a volume.
    pub(super) fn detach(&mut self, volume: &str) -> Result<()> {
        self.ctl(&format!("detach {volume} --yes")).map(drop)
    }

    /// Removes devices whose daemon is gone for good.
    pub(super) fn forced_detach(&self, volumes: &[&str]) -> Result<()> {
        for volume in volumes {
            spawn(self.control(&format!("detach {volume} --force --yes")))?
                .succeed(CONTROL_LIMIT)?;
        }
        Ok(())
    }

    /// The same where another daemon of this host left devices of these names too.
    pub(super) fn remove_left_behind(&self, volumes: &[&str]) -> Result<()> {
        for volume in volumes {
            let state = self.state.display();
            let line = format!("blkrepd --remove-left-behind {volume} --state {state}");
            spawn(command(&line))?.succeed(CONTROL_LIMIT)?;
        }
        Ok(())
    }

    /// The device of a volume, if the daemon knows it.
    pub(super) fn device_of(&mut self, volume: &str) -> Result<Option<PathBuf>> {
        let groups = self.status()?.groups;
        let mut volumes = groups.into_iter().flat_map(|group| group.volumes);
        let found = volumes.find(|found| found.name.as_str() == volume);
        Ok(found.map(|found| PathBuf::from(found.device)))
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.daemon.id())?);
        Ok(nix::sys::signal::kill(pid, signal)?)
    }

    /// `kill -9`.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.daemon.kill()
    }

    /// Starts the successor of a daemon that was killed or stopped.
    pub(super) fn restart(&mut self) -> Result<()> {
        ensure!(!self.daemon.is_running()?, "the predecessor still runs");
        self.daemon = launch(&self.dir, &self.state, &self.setup)?;
        self.wait_until_it_answers()
    }

    /// The orderly stop, by SIGTERM.
    pub(super) fn stop(&mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.daemon.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        wait_for("the daemon to stop", START_LIMIT, || {
            Ok(!self.daemon.is_running()?)
        })
    }

    /// Fails if the daemon is not there any more.
    pub(super) fn is_well(&mut self) -> Result<()> {
        ensure!(
            self.daemon.is_running()?,
            "the daemon ended: {}",
            self.daemon.stderr()?
        );
        Ok(())
    }
}

fn launch(dir: &Path, state: &Path, setup: &Setup) -> Result<Running> {
    let mut line = format!(
        "blkrepd --config {} --state {} --socket {} --listen {} --node {}",
        dir.join("blkrepd.toml").display(),
        state.display(),
        dir.join("control.sock").display(),
        setup.listen,
        setup.name
    );
    for allowed in &setup.replica_dirs {
        line += &format!(" --allow-replica-dir {}", allowed.display());
    }
    match &setup.far {
        None => spawn(command(&line)),
        Some(far) => far.run(move || spawn(command(&line))),
    }
}
