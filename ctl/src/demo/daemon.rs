//! One `blkrepd` of the demonstration.
//!
//! Owns the process, its directory and its log. Commands enter; replies and errors with the end of
//! the log leave. Whatever happens, the process ends with the value.

use super::interrupt::Interrupt;
use crate::client::Client;
use crate::left_behind;
use anyhow::{Context as _, anyhow, bail};
use blkrep_api::{Status, StatusQuery, VersionReply, route};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A daemon answers in well under a second; emulated, or after waiting for a predecessor's claims,
/// much later.
const START_LIMIT: Duration = Duration::from_secs(90);
/// Longest command: a promotion that applies a whole journal.
const REPLY_LIMIT: Duration = Duration::from_secs(120);
/// An orderly stop; then it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// Lines of its log that an error quotes.
const QUOTED_LINES: usize = 6;

/// A node of the demonstration.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: &'static str,
    dir: PathBuf,
    process: Option<Child>,
    client: Client,
}

impl Daemon {
    /// Starts a daemon that keeps everything below `dir`.
    pub(crate) fn start(
        name: &'static str,
        dir: &Path,
        config: &str,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Self> {
        let dir = dir.join(name);
        fs::create_dir_all(dir.join("disks")).with_context(|| format!("make {}", dir.display()))?;
        fs::write(dir.join("blkrepd.toml"), config).context("write a configuration")?;
        let client = Client::new(&dir.join("control.sock"), Some(REPLY_LIMIT))?;
        let mut daemon = Self {
            name,
            dir,
            process: None,
            client,
        };
        daemon.launch(interrupt)?;
        Ok(daemon)
    }

    /// Starts the process, and waits until it answers.
    pub(crate) fn launch(&mut self, interrupt: &Interrupt) -> anyhow::Result<()> {
        assert!(self.process.is_none(), "one process at a time");
        let program = left_behind::program();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .context("open a daemon's log")?;
        let process = Command::new(&program)
            .arg("--config")
            .arg(self.dir.join("blkrepd.toml"))
            .arg("--state")
            .arg(self.dir.join("state"))
            .arg("--socket")
            .arg(self.dir.join("control.sock"))
            .args(["--listen", "127.0.0.1:0", "--node"])
            .arg(format!("demo-{}", self.name))
            .arg("--allow-replica-dir")
            .arg(self.disks())
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share a daemon's log")?)
            .stderr(log)
            // Ctrl-C at the terminal is for the demonstration, which then ends its daemons itself.
            .process_group(0)
            .spawn()
            .with_context(|| format!("run {}: is it installed?", program.display()))?;
        self.process = Some(process);
        let began = Instant::now();
        while let Err(error) = self.version() {
            if !self.alive()? {
                bail!("the {}'s daemon ended:\n{}", self.name, self.last_words());
            }
            if began.elapsed() > START_LIMIT {
                return Err(self.explained(error));
            }
            interrupt.sleep(Duration::from_millis(20))?;
        }
        Ok(())
    }

    /// Where its volumes are.
    pub(crate) fn disks(&self) -> PathBuf {
        self.dir.join("disks")
    }

    pub(crate) fn runs(&self) -> bool {
        self.process.is_some()
    }

    fn alive(&mut self) -> anyhow::Result<bool> {
        let Some(process) = &mut self.process else {
            return Ok(false);
        };
        let ended = process.try_wait().context("look after a daemon")?.is_some();
        if ended {
            self.process = None;
        }
        Ok(!ended)
    }

    fn version(&self) -> anyhow::Result<VersionReply> {
        self.client.get(route::VERSION, &serde_json::json!({}))
    }

    /// Where it listens for other nodes.
    pub(crate) fn listens(&self) -> anyhow::Result<SocketAddr> {
        let listen = self
            .version()
            .map_err(|error| self.explained(error))?
            .listen;
        let listen = listen.ok_or_else(|| anyhow!("the {} does not listen", self.name))?;
        listen.parse().context("read where a daemon listens")
    }

    pub(crate) fn status(&self) -> anyhow::Result<Status> {
        self.get(route::STATUS, &StatusQuery::default())
    }

    pub(crate) fn get<R: DeserializeOwned>(
        &self,
        path: &str,
        query: &impl Serialize,
    ) -> anyhow::Result<R> {
        let reply = self.client.get(path, query);
        reply.map_err(|error| self.explained(error))
    }

    pub(crate) fn post<R: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<R> {
        let reply = self.client.post(path, body);
        reply.map_err(|error| self.explained(error))
    }

    fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        error.context(format!("ask the {}", self.name))
    }

    /// `kill -9`, and waits for the end of the process.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        let Some(mut process) = self.process.take() else {
            bail!(
                "the {}'s daemon has ended by itself:\n{}",
                self.name,
                self.last_words()
            );
        };
        process.kill().context("kill a daemon")?;
        process.wait().context("wait for a killed daemon")?;
        Ok(())
    }

    /// The orderly stop; true if it was one.
    pub(crate) fn stop(&mut self) -> bool {
        let Some(mut process) = self.process.take() else {
            return true;
        };
        if let Ok(pid) = i32::try_from(process.id()) {
            // If it has gone already, the wait below says so.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let end = Instant::now() + STOP_LIMIT;
        while Instant::now() < end {
            match process.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                Ok(Some(status)) => return status.success(),
                Err(_) => break,
            }
        }
        let _ = process.kill();
        let _ = process.wait();
        false
    }

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let mut lines: Vec<&str> = log.lines().rev().take(QUOTED_LINES).collect();
        lines.reverse();
        lines.join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
