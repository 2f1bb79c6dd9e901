//! The peers: rublk, DRBD, md over nbd, all in one kernel.
//!
//! Owns their set-up and removal. Disks enter, a device leaves. Never measures.

use super::mirror;
use super::stand::Stand;
use crate::boot::DRBD_SETUP;
use crate::plan::{Common, Contestant};
use anyhow::{Context, Result, bail};
use blkrep_tests::inside::shell::{run, try_run, wait_for};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Setting up or taking down takes well under a second; emulated on a busy machine, some.
const LIMIT: Duration = Duration::from_secs(60);

/// Processes of this name.
fn processes(name: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let id: Option<u32> = entry.file_name().to_str().and_then(|id| id.parse().ok());
        let called = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        found.extend(id.filter(|_| called.trim_end() == name));
    }
    Ok(found)
}

/// Ends every process of this name.
fn end_all(name: &str) -> Result<()> {
    for id in processes(name)? {
        let id = nix::unistd::Pid::from_raw(i32::try_from(id)?);
        // One that served a connection may be gone by now.
        let _ = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM);
    }
    wait_for(name, LIMIT, || Ok(processes(name)?.is_empty()))
}

/// Takes down whatever is up, in any state.
pub(super) fn sweep() {
    let drbd = |line: &str| try_run(&format!("{DRBD_SETUP} {line}"));
    let _ = drbd("secondary 0 --force");
    for (from, to) in [(NEAR_ADDRESS, FAR_ADDRESS), (FAR_ADDRESS, NEAR_ADDRESS)] {
        let _ = drbd(&format!("disconnect --force {from} {to}"));
    }
    for minor in 0..2 {
        let _ = drbd(&format!("detach --force {minor}"));
        let _ = drbd(&format!("del-minor {minor}"));
        let _ = drbd(&format!("del-resource r{minor}"));
    }
    let _ = try_run("mdadm --stop /dev/md0");
    let _ = try_run(&format!("nbd-client -d {NBD_DEVICE}"));
    let _ = end_all("nbd-server");
    let _ = end_all("rublk");
}

/// rublk's loop target.
#[derive(Debug)]
pub(super) struct Rublk {
    program: PathBuf,
    device: PathBuf,
    words: String,
}

/// Far from the numbers that a daemon takes by itself.
const RUBLK_NUMBER: u32 = 9;

impl Rublk {
    pub(super) fn raise(common: &Common, disk: &Path) -> Result<Self> {
        let program = common.rublk.clone().context("find rublk")?;
        let words = format!(
            "add loop -n {RUBLK_NUMBER} -q 1 -d 128 -f {}",
            disk.display()
        );
        run(&format!("{} {words}", program.display()))?;
        let rublk = Self {
            program,
            device: PathBuf::from(format!("/dev/ublkb{RUBLK_NUMBER}")),
            words,
        };
        wait_for("rublk's device", LIMIT, || Ok(rublk.device.exists()))?;
        Ok(rublk)
    }
}

impl Stand for Rublk {
    fn device(&self) -> &Path {
        &self.device
    }

    fn settings(&self) -> String {
        format!("rublk {}", self.words)
    }

    fn servers(&self) -> Result<Vec<u32>> {
        processes("rublk")
    }

    fn lower(self: Box<Self>) -> Result<()> {
        run(&format!("{} del -n {RUBLK_NUMBER}", self.program.display()))?;
        wait_for("rublk's end", LIMIT, || {
            Ok(!self.device.exists() && processes("rublk")?.is_empty())
        })
    }
}

/// DRBD: two resources of one kernel are each other's peer.
#[derive(Debug)]
pub(super) struct Drbd {
    device: PathBuf,
    protocol: char,
}

const NEAR_ADDRESS: &str = "ipv4:127.0.0.1:7701";
const FAR_ADDRESS: &str = "ipv4:127.0.0.1:7702";
/// More than the default of 2048, so that the receiver is never short of pages; a send buffer that the kernel sizes.
const NETWORK: &str = "--max-buffers=8000 --max-epoch-size=8000 --sndbuf-size=0 --rcvbuf-size=0";
/// A fixed rate far above the disks: the controller that adapts to a busy application would only slow it down.
const RESYNC: &str = "--c-plan-ahead=0 --resync-rate=4000000";

/// What the kernel calls on DRBD's events.
const USERMODE_HELPER: &str = "/sys/module/drbd/parameters/usermode_helper";

/// The kernel's words about each minor.
const STATES: &str = "/proc/drbd";

/// True if the kernel says this of a minor.
fn minor_is(minor: u32, words: &str) -> Result<bool> {
    let states = fs::read_to_string(STATES).context("read /proc/drbd")?;
    let head = format!("{minor}:");
    let mut lines = states.lines();
    let line = lines.find(|line| line.trim_start().starts_with(&head));
    Ok(line.is_some_and(|line| line.contains(words)))
}

fn setup(line: &str) -> Result<String> {
    run(&format!("{DRBD_SETUP} {line}"))
}

impl Drbd {
    /// Connected, with both ends as they come: nothing is known to be equal.
    pub(super) fn raise(contestant: Contestant, near: &Path, far: &Path) -> Result<Self> {
        let protocol = match contestant {
            Contestant::DrbdA => 'A',
            Contestant::DrbdB => 'B',
            Contestant::DrbdC => 'C',
            other => bail!("{} is not DRBD", other.title()),
        };
        let drbd = Self {
            device: PathBuf::from("/dev/drbd0"),
            protocol,
        };
        // DRBD asks a helper before each resync and drops the connection if that one, knowing no configuration, fails.
        fs::write(USERMODE_HELPER, "/bin/true").context("silence DRBD's helper")?;
        for (minor, disk) in [near, far].into_iter().enumerate() {
            let disk = disk.display();
            run(&format!(
                "drbdmeta --force {minor} v08 {disk} internal create-md"
            ))?;
            setup(&format!("new-resource r{minor}"))?;
            setup(&format!("new-minor r{minor} {minor} 0"))?;
            setup(&format!("attach {minor} {disk} {disk} internal {RESYNC}"))?;
        }
        for (minor, from, to) in [
            (0, NEAR_ADDRESS, FAR_ADDRESS),
            (1, FAR_ADDRESS, NEAR_ADDRESS),
        ] {
            setup(&format!(
                "connect r{minor} {from} {to} --protocol={protocol} {NETWORK}"
            ))?;
        }
        // Each end must know the other's state: an order that crosses it can be forgotten by one of them.
        for minor in 0..2 {
            let known = wait_for("both ends of DRBD to be connected", LIMIT, || {
                minor_is(
                    minor,
                    "cs:Connected ro:Secondary/Secondary ds:Inconsistent/Inconsistent",
                )
            });
            known.with_context(|| fs::read_to_string(STATES).unwrap_or_default())?;
        }
        Ok(drbd)
    }

    /// Both ends hold the same bytes: no mirror is needed.
    pub(super) fn assume_equal(self) -> Result<Self> {
        setup("new-current-uuid --clear-bitmap 0")?;
        self.wait_until("ds:UpToDate/UpToDate")?;
        setup("primary 0")?;
        self.wait_until("ro:Primary/Secondary")?;
        Ok(self)
    }

    /// Mirrors everything from the near end; returns its seconds.
    pub(super) fn mirror(&self) -> Result<f64> {
        let started = Instant::now();
        setup("primary 0 --force")?;
        let seconds = mirror::ended(started, || self.is("ds:UpToDate/UpToDate"));
        seconds.with_context(|| fs::read_to_string(STATES).unwrap_or_default())
    }

    fn is(&self, words: &str) -> Result<bool> {
        minor_is(0, words)
    }

    fn wait_until(&self, words: &str) -> Result<()> {
        let waited = wait_for(words, LIMIT, || self.is(words));
        waited.with_context(|| fs::read_to_string(STATES).unwrap_or_default())
    }
}

impl Stand for Drbd {
    fn device(&self) -> &Path {
        &self.device
    }

    fn settings(&self) -> String {
        format!(
            "protocol {}, {NETWORK} (0: sized by the kernel), internal metadata on the RAM disks, flushes on; resync {RESYNC}",
            self.protocol
        )
    }

    fn servers(&self) -> Result<Vec<u32>> {
        Ok(Vec::new())
    }

    fn lower(self: Box<Self>) -> Result<()> {
        setup("secondary 0")?;
        for (from, to) in [(NEAR_ADDRESS, FAR_ADDRESS), (FAR_ADDRESS, NEAR_ADDRESS)] {
            setup(&format!("disconnect {from} {to}"))?;
        }
        for minor in 0..2 {
            setup(&format!("detach {minor}"))?;
            setup(&format!("del-minor {minor}"))?;
            setup(&format!("del-resource r{minor}"))?;
        }
        Ok(())
    }
}

/// md RAID1 of a disk and an NBD export.
#[derive(Debug)]
pub(super) struct Mirrored {
    device: PathBuf,
}

const NBD_PORT: u16 = 10810;
const NBD_DEVICE: &str = "/dev/nbd0";
const NBD_CONFIG: &str = "/run/bench-nbd.conf";

impl Mirrored {
    pub(super) fn raise(near: &Path, far: &str) -> Result<Self> {
        fs::write(
            NBD_CONFIG,
            format!(
                "[generic]\nallowlist=true\nport={NBD_PORT}\nlistenaddr=127.0.0.1\n\
                 [far]\nexportname={far}\nflush=true\nfua=true\n"
            ),
        )?;
        run(&format!("nbd-server -C {NBD_CONFIG}"))?;
        wait_for("the NBD export", LIMIT, || {
            let asked = try_run(&format!(
                "nbd-client -N far 127.0.0.1 {NBD_PORT} {NBD_DEVICE}"
            ))?;
            Ok(asked.status.success())
        })?;
        run(&format!(
            "mdadm --create /dev/md0 --run --assume-clean --level=1 --bitmap=none --raid-devices=2 {} {NBD_DEVICE}",
            near.display()
        ))?;
        Ok(Self {
            device: PathBuf::from("/dev/md0"),
        })
    }
}

impl Stand for Mirrored {
    fn device(&self) -> &Path {
        &self.device
    }

    fn settings(&self) -> String {
        "mdadm --level=1 --bitmap=none over a RAM disk and nbd-client of nbd-server, one connection"
            .to_owned()
    }

    fn servers(&self) -> Result<Vec<u32>> {
        processes("nbd-server")
    }

    fn lower(self: Box<Self>) -> Result<()> {
        run("mdadm --stop /dev/md0")?;
        run(&format!("nbd-client -d {NBD_DEVICE}"))?;
        end_all("nbd-server")
    }
}
