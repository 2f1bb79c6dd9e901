//! Daemons of blkrep: one that serves a volume, and a second one as its target.
//!
//! Owns their processes and a client of their control socket. Disks enter, a device and states leave. Never measures.

use super::disks::equal;
use super::stand::Stand;
use crate::plan::Common;
use anyhow::{Context, Result, ensure};
use blkrep_api::{
    ConnectionState, LinkStatus, MirrorState, ProtectionState, ReplicationState, SettingReply,
    Status, route,
};
use blkrep_tests::inside::shell::{Running, command, run, spawn, try_run, wait_for};
use blkrep_types::{DataState, Mode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

/// A daemon that answers takes well under a second, emulated or not.
const START_LIMIT: Duration = Duration::from_secs(60);
const CONTROL_LIMIT: Duration = Duration::from_secs(150);
/// A status of one group is a few kilobytes.
const REPLY_BYTES_MAX: usize = 1 << 20;
const VOLUME: &str = "bench";
const SOURCE_PORT: u16 = 7420;
const TARGET_PORT: u16 = 7421;

/// One daemon.
#[derive(Debug)]
pub(super) struct Daemon {
    name: &'static str,
    port: u16,
    dir: PathBuf,
    process: Running,
    runtime: Runtime,
}

impl Daemon {
    fn start(name: &'static str, port: u16, common: &Common) -> Result<Self> {
        let dir = Path::new("/run/bench").join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("state"))?;
        fs::write(dir.join("blkrepd.toml"), configuration(&common.settings)?)?;
        let process = launch(name, port, &dir)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut daemon = Self {
            name,
            port,
            dir,
            process,
            runtime,
        };
        daemon.wait_until_it_answers()?;
        Ok(daemon)
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        wait_for("the daemon to answer", START_LIMIT, || {
            ensure!(
                self.process.is_running()?,
                "the daemon ended: {}",
                self.process.stderr()?
            );
            Ok(self.status().is_ok())
        })
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// Runs a command of `blkctl`.
    pub(super) fn ctl(&mut self, line: &str) -> Result<String> {
        let line = format!("blkctl --socket {} {line}", self.socket().display());
        let done = spawn(command(&line))?.succeed(CONTROL_LIMIT);
        done.with_context(|| {
            format!(
                "daemon {}: {}",
                self.name,
                self.process.stderr().unwrap_or_default()
            )
        })
    }

    /// Asks without a process of its own: what polls must not take the processor from what is measured.
    fn get<R: DeserializeOwned>(&self, path: &str) -> Result<R> {
        let socket = self.socket();
        let path = path.to_owned();
        let exchange = async move {
            let stream = UnixStream::connect(&socket).await.context("connect")?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let connection = tokio::spawn(connection);
            let request = Request::get(path).header("host", "blkrep");
            let response = sender
                .send_request(request.body(Empty::<Bytes>::new())?)
                .await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), REPLY_BYTES_MAX).collect();
            let body = body.await.map_err(anyhow::Error::from_boxed)?.to_bytes();
            connection.abort();
            ensure!(
                status == StatusCode::OK,
                "{status}: {}",
                String::from_utf8_lossy(&body)
            );
            serde_json::from_slice(&body).context("read the reply")
        };
        self.runtime.block_on(async {
            tokio::time::timeout(CONTROL_LIMIT, exchange)
                .await
                .context("wait for the daemon")?
        })
    }

    pub(super) fn status(&self) -> Result<Status> {
        self.get(route::STATUS)
    }

    /// Bytes of a setting in force.
    pub(super) fn setting(&self, key: &str) -> Result<u64> {
        let reply: SettingReply = self.get(route::SETTINGS)?;
        let found = reply.settings.iter().find(|setting| setting.key == key);
        let value = &found
            .with_context(|| format!("find the setting {key}"))?
            .value;
        match value.parse() {
            Ok(count) => Ok(count),
            Err(_) => Ok(blkrep_types::parse_size(value)?.get()),
        }
    }

    /// What it has said so far.
    fn said(&mut self) -> Result<String> {
        Ok(format!("daemon {}:\n{}", self.name, self.process.stderr()?))
    }

    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    /// `kill -9`.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Its successor, on the same state and port.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.process = launch(self.name, self.port, &self.dir)?;
        self.wait_until_it_answers()
    }

    fn stop(&mut self) -> Result<()> {
        let id = nix::unistd::Pid::from_raw(i32::try_from(self.process.id())?);
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM)?;
        wait_for("the daemon to stop", START_LIMIT, || {
            Ok(!self.process.is_running()?)
        })
    }

    fn attach(&mut self, disk: &Path) -> Result<PathBuf> {
        let said = self.ctl(&format!(
            "attach {VOLUME} --backing {} --frontend ublk",
            disk.display()
        ))?;
        let last = said.lines().rev().find(|line| !line.trim().is_empty());
        let device = PathBuf::from(last.context("attach printed nothing")?.trim());
        ensure!(device.exists(), "attach printed {}", device.display());
        Ok(device)
    }
}

fn launch(name: &str, port: u16, dir: &Path) -> Result<Running> {
    let dir = dir.display();
    // Replicas go to device nodes, so these are the directory that is allowed.
    spawn(command(&format!(
        "blkrepd --config {dir}/blkrepd.toml --state {dir}/state --socket {dir}/control.sock \
         --listen 127.0.0.1:{port} --node {name} --allow-replica-dir /dev"
    )))
}

/// Removes the device of a volume whose daemon is gone: it went when what held it was dropped.
pub(super) fn sweep() {
    let source = "/run/bench/source";
    let _ = try_run(&format!(
        "blkctl --socket {source}/control.sock detach {VOLUME} --force --yes"
    ));
}

/// A configuration file with these settings.
fn configuration(settings: &[String]) -> Result<String> {
    let mut file = String::new();
    for setting in settings {
        let (key, value) = setting.split_once('=').context("a setting is KEY=VALUE")?;
        let (section, name) = key
            .split_once('.')
            .context("a setting's key is section.name")?;
        let header = format!("[{section}]\n");
        let line = format!("{name} = \"{value}\"\n");
        match file.find(&header) {
            Some(at) => file.insert_str(at + header.len(), &line),
            None => file += &format!("{header}{line}"),
        }
    }
    Ok(file)
}

fn words(common: &Common, rest: &str) -> String {
    let settings = if common.settings.is_empty() {
        "defaults".to_owned()
    } else {
        common.settings.join(" ")
    };
    format!("{settings}; {rest}")
}

/// A volume without a link.
#[derive(Debug)]
pub(super) struct Volume {
    daemon: Daemon,
    device: PathBuf,
    words: String,
}

impl Volume {
    pub(super) fn raise(common: &Common, disk: &Path) -> Result<Self> {
        let mut daemon = Daemon::start("source", SOURCE_PORT, common)?;
        let device = daemon.attach(disk)?;
        let words = words(common, "state in a tmpfs");
        Ok(Self {
            daemon,
            device,
            words,
        })
    }
}

impl Stand for Volume {
    fn device(&self) -> &Path {
        &self.device
    }

    fn settings(&self) -> String {
        self.words.clone()
    }

    fn servers(&self) -> Result<Vec<u32>> {
        Ok(vec![self.daemon.id()])
    }

    fn lower(mut self: Box<Self>) -> Result<()> {
        self.daemon.ctl(&format!("detach {VOLUME} --yes"))?;
        self.daemon.stop()
    }
}

/// A volume with a link to a target in the same kernel.
#[derive(Debug)]
pub(super) struct Pair {
    /// The source.
    pub(super) source: Daemon,
    /// The target.
    pub(super) target: Daemon,
    device: PathBuf,
    near: PathBuf,
    far: PathBuf,
    size_mib: u64,
    mode: Mode,
    words: String,
}

impl Pair {
    /// Both ends hold the same bytes: connected without a mirror.
    pub(super) fn raise(common: &Common, mode: Mode, near: &Path, far: &Path) -> Result<Self> {
        let mut pair = Self::apart(common, mode, near, far)?;
        pair.connect("--no-mirror")?;
        // A mirror that goes on would be part of what is measured.
        wait_for("replication to begin", CONTROL_LIMIT, || pair.is_equal())
            .with_context(|| pair.describe())?;
        Ok(pair)
    }

    /// Both daemons and the volume, not connected.
    pub(super) fn apart(common: &Common, mode: Mode, near: &Path, far: &Path) -> Result<Self> {
        let target = Daemon::start("target", TARGET_PORT, common)?;
        let mut source = Daemon::start("source", SOURCE_PORT, common)?;
        let device = source.attach(near)?;
        Ok(Self {
            source,
            target,
            device,
            near: near.to_owned(),
            far: far.to_owned(),
            size_mib: common.size_mib,
            mode,
            words: words(
                common,
                &format!("mode {mode}, loopback; states and journal in a tmpfs"),
            ),
        })
    }

    /// Makes the link.
    pub(super) fn connect(&mut self, how: &str) -> Result<()> {
        let (far, mode) = (self.far.display(), self.mode);
        let line = format!(
            "connect {VOLUME} --to 127.0.0.1:{TARGET_PORT} --map {VOLUME}={far} --mode {mode} {how} --overwrite --yes"
        );
        self.source.ctl(&line).map(drop)
    }

    /// Makes the link with a full mirror that is held before it has got far.
    pub(super) fn connect_held(&mut self) -> Result<()> {
        self.connect("--mirror full")?;
        self.source.ctl(&format!("mirror pause {VOLUME}"))?;
        let held = wait_for("the mirror to be held", CONTROL_LIMIT, || {
            let link = self.link()?;
            Ok(link.connection == ConnectionState::Connected
                && link.mirror.state == MirrorState::Paused
                && link.queue.ops == 0)
        });
        held.with_context(|| self.describe())
    }

    /// Mirrors everything.
    pub(super) fn mirror(&mut self) -> Result<()> {
        let line = format!("mirror start {VOLUME} --kind full");
        self.source.ctl(&line).map(drop)
    }

    /// The link as the source sees it.
    pub(super) fn link(&self) -> Result<LinkStatus> {
        let status = self.source.status()?;
        let mut links = status.groups.into_iter().flat_map(|group| group.links);
        links.next().context("find the link in the status")
    }

    /// Everything is on the target, and durable there.
    pub(super) fn is_equal(&self) -> Result<bool> {
        let link = self.link()?;
        Ok(link.replication == ReplicationState::Replicating
            && link.data_state == DataState::Ok
            && link.queue.ops == 0
            && link.dirty_bytes.get() == 0
            && matches!(
                link.protection,
                ProtectionState::NotAsked | ProtectionState::Kept
            ))
    }

    /// What both daemons have said so far.
    pub(super) fn said(&mut self) -> Result<String> {
        Ok(self.source.said()? + &self.target.said()?)
    }

    /// The state in words, for an error.
    pub(super) fn describe(&mut self) -> String {
        let said = self.source.ctl("status --json");
        said.unwrap_or_else(|error| format!("{error:#}"))
    }
}

impl Stand for Pair {
    fn device(&self) -> &Path {
        &self.device
    }

    fn settings(&self) -> String {
        self.words.clone()
    }

    fn servers(&self) -> Result<Vec<u32>> {
        Ok(vec![self.source.id(), self.target.id()])
    }

    fn pair(&mut self) -> Option<&mut Pair> {
        Some(self)
    }

    fn lower(mut self: Box<Self>) -> Result<()> {
        wait_for("the ends to be equal", CONTROL_LIMIT, || self.is_equal())
            .with_context(|| self.describe())?;
        self.source
            .ctl(&format!("disconnect {VOLUME} --forget --yes"))?;
        self.source.ctl(&format!("detach {VOLUME} --yes"))?;
        self.source.stop()?;
        // An orderly stop applies what the journal holds, or leaves it there: then the disk says so.
        self.target.stop()?;
        equal(&self.near, &self.far, self.size_mib << 20)?;
        run("rm -rf /run/bench").map(drop)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_one_section_stand_together() {
        let settings = [
            "group.log-memory=1GiB",
            "target.journal-size=64MiB",
            "group.links-max=2",
        ];
        let file = configuration(&settings.map(str::to_owned)).unwrap();
        assert_eq!(
            file,
            "[group]\nlinks-max = \"2\"\nlog-memory = \"1GiB\"\n[target]\njournal-size = \"64MiB\"\n"
        );
        assert!(configuration(&["log-memory=1".to_owned()]).is_err());
        assert!(configuration(&["group.log-memory".to_owned()]).is_err());
    }
}
