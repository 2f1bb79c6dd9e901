//! The first process of a guest.
//!
//! Owns mounting, loading modules, running the job's bodies one after another, cleaning up between them, and powering off.
//! The job file enters, result lines leave. Never judges.

use super::shell::{run, try_run};
use crate::guest::job::{
    Answer, JOB_FILE, Job, RECORD_CHANNEL, RESULT_CHANNEL, SHARE_ARGUMENT, SHARE_MOUNT,
    SHARE_VARIABLE, TestResult,
};
use anyhow::{Context, Result, ensure};
use nix::fcntl::OFlag;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Where a body leaves its closing words.
pub const DETAIL_FILE: &str = "/run/blkrep-detail";
/// Each body's own directory.
pub const WORK_DIR: &str = "/run/work";
/// Where write logs are: a file system of our own, on the machine itself too.
const SHARED_MEMORY: &str = "/dev/shm";
/// Environment variable with the path of the record channel.
pub const RECORD_VARIABLE: &str = "BLKREP_RECORD";
/// Environment variable that asks for whole campaigns.
pub const FULL_VARIABLE: &str = "BLKREP_FULL";
/// Environment variable with the job's words for the bodies.
pub const ARGUMENTS_VARIABLE: &str = "BLKREP_ARGUMENTS";

struct Channels {
    answers: File,
    record: PathBuf,
    job: Job,
}

/// Runs the job and powers off; as an ordinary process of the machine itself, returns instead.
///
/// # Errors
/// The guest cannot be set up, or its answers cannot be given.
pub fn main() -> Result<()> {
    let share = std::env::var_os(SHARE_VARIABLE).map(PathBuf::from);
    let is_guest = share.is_none();
    let done = match share {
        Some(share) => on_host(&share),
        None => in_guest(),
    };
    if let Err(error) = &done {
        println!("guest init failed: {error:#}");
    }
    if is_guest {
        nix::unistd::sync();
        reboot(RebootMode::RB_POWER_OFF).context("power off")?;
    }
    done
}

fn on_host(share: &Path) -> Result<()> {
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )?;
    let bytes = fs::read(share.join(JOB_FILE)).context("read the job")?;
    let answers = OpenOptions::new()
        .append(true)
        .open(share.join(RESULT_CHANNEL))?;
    mount_at("tmpfs", "tmpfs", "/run")?;
    mount_at("tmpfs", "tmpfs", "/mnt")?;
    mount_at("tmpfs", "tmpfs", SHARED_MEMORY)?;
    for module in [
        "ublk_drv",
        "brd",
        "null_blk",
        "nbd",
        "dm_flakey",
        "dm_delay",
        "loop",
        "fuse",
    ] {
        try_run(&format!("modprobe {module}"))?;
    }
    serve(Channels {
        answers,
        record: share.join(RECORD_CHANNEL),
        job: serde_json::from_slice(&bytes)?,
    })
}

fn in_guest() -> Result<()> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount_at(kind, kind, at)?;
    }
    for (kind, at) in [
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/mnt"),
        ("tmpfs", SHARED_MEMORY),
        ("devpts", "/dev/pts"),
    ] {
        let _ = fs::create_dir(at);
        mount_at(kind, kind, at)?;
    }
    load_modules()?;
    // Absent where it is a module that was not listed; bodies that need it will say so.
    let _ = mount_at("configfs", "configfs", "/sys/kernel/config");
    let arguments = fs::read_to_string("/proc/cmdline")?;
    let prefix = format!("{SHARE_ARGUMENT}=");
    let share = arguments
        .split_whitespace()
        .find_map(|word| word.strip_prefix(&prefix));
    let channels = match share {
        Some(share) => over_hostfs(share)?,
        None => over_ports()?,
    };
    serve(channels)
}

fn mount_at(source: &str, kind: &str, at: &str) -> Result<()> {
    let done = mount(Some(source), at, Some(kind), MsFlags::empty(), None::<&str>);
    done.with_context(|| format!("mount {kind} at {at}"))
}

fn load_modules() -> Result<()> {
    let Ok(order) = fs::read_to_string("/modules/order") else {
        return Ok(());
    };
    for name in order.lines() {
        let file = File::open(Path::new("/modules").join(name))?;
        let parameters = match name {
            "brd.ko" => c"rd_nr=4 rd_size=262144",
            "null_blk.ko" => c"nr_devices=0",
            "nbd.ko" => c"nbds_max=4",
            _ => c"",
        };
        // One that does not load on this kernel shows in the bodies that need it.
        if let Err(error) = finit_module(&file, parameters, ModuleInitFlags::empty()) {
            println!("guest init: load {name}: {error}");
        }
    }
    Ok(())
}

fn over_hostfs(share: &str) -> Result<Channels> {
    fs::create_dir(SHARE_MOUNT).context("create the share's directory")?;
    mount(
        Some("none"),
        SHARE_MOUNT,
        Some("hostfs"),
        MsFlags::empty(),
        Some(share),
    )
    .context("mount hostfs")?;
    let at = Path::new(SHARE_MOUNT);
    let bytes = fs::read(at.join(JOB_FILE)).context("read the job")?;
    // Synchronous, since a killed guest takes its page cache along.
    let answers = OpenOptions::new()
        .append(true)
        .custom_flags(OFlag::O_SYNC.bits())
        .open(at.join(RESULT_CHANNEL))
        .context("open the answers")?;
    Ok(Channels {
        answers,
        record: at.join(RECORD_CHANNEL),
        job: serde_json::from_slice(&bytes)?,
    })
}

fn over_ports() -> Result<Channels> {
    let port = |channel: &str| -> Result<PathBuf> {
        let wanted = format!("blkrep.{channel}");
        for entry in fs::read_dir("/sys/class/virtio-ports").context("list the ports")? {
            let entry = entry?;
            if fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == wanted)
            {
                return Ok(Path::new("/dev").join(entry.file_name()));
            }
        }
        anyhow::bail!("no port is called {wanted}")
    };
    let bytes = fs::read(Path::new("/").join(JOB_FILE)).context("read the job")?;
    let answers = OpenOptions::new()
        .write(true)
        .open(port(RESULT_CHANNEL)?)
        .context("open the answers")?;
    Ok(Channels {
        answers,
        record: port(RECORD_CHANNEL)?,
        job: serde_json::from_slice(&bytes)?,
    })
}

fn serve(mut channels: Channels) -> Result<()> {
    let kernel = nix::sys::utsname::uname()?
        .release()
        .to_string_lossy()
        .into_owned();
    let uptime = fs::read_to_string("/proc/uptime")?;
    let uptime = uptime
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned();
    let cpus = std::thread::available_parallelism()?;
    let path = channels.job.program_dirs.join(":");
    let path = format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin");
    run("ip link set lo up").or_else(|_| run("/usr/sbin/ip link set lo up"))?;
    channels.say(&Answer::Ready(format!(
        "kernel {kernel} cpus {cpus} uptime {uptime}"
    )))?;
    for entry in channels.job.tests.clone() {
        channels.say(&Answer::Begin(entry.name.clone()))?;
        let result = run_body(
            &channels,
            &entry.name,
            Duration::from_secs(entry.timeout_s),
            &path,
        )?;
        let failed = !result.ok;
        channels.say(&Answer::Test(result))?;
        clean_up();
        if failed {
            // What a failed body left in the kernel is nothing for the next one to stand on.
            break;
        }
    }
    channels.say(&Answer::Done)
}

impl Channels {
    fn say(&mut self, answer: &Answer) -> Result<()> {
        println!("{answer}");
        self.answers
            .write_all(format!("{answer}\n").as_bytes())
            .context("answer")
    }
}

fn run_body(channels: &Channels, name: &str, limit: Duration, path: &str) -> Result<TestResult> {
    let _ = fs::remove_file(DETAIL_FILE);
    let _ = fs::remove_dir_all(WORK_DIR);
    fs::create_dir_all(WORK_DIR)?;
    let started = Instant::now();
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["run", name])
        .env("PATH", path)
        .env("HOME", WORK_DIR)
        .current_dir(WORK_DIR);
    command
        .env(RECORD_VARIABLE, &channels.record)
        .env("RUST_BACKTRACE", "1");
    command.env(ARGUMENTS_VARIABLE, channels.job.arguments.join(" "));
    if channels.job.full {
        command.env(FULL_VARIABLE, "1");
    }
    let child = command.spawn().context("start the body")?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let mut end = None;
    while end.is_none() && started.elapsed() < limit {
        end = reap(Some(pid));
        std::thread::sleep(Duration::from_millis(10));
    }
    let said = fs::read_to_string(DETAIL_FILE).unwrap_or_default();
    let (ok, detail) = match end {
        Some(WaitStatus::Exited(_, 0)) => (true, said),
        Some(WaitStatus::Exited(_, _)) if !said.is_empty() => (false, said),
        Some(status) => (false, format!("{status:?} {said}")),
        None => {
            blocked_tasks();
            (false, format!("still ran after {limit:?}"))
        }
    };
    Ok(TestResult {
        name: name.to_owned(),
        ok,
        seconds: started.elapsed().as_secs_f64(),
        detail,
    })
}

/// Collects every child that ended, orphans included; the status of `awaited` if it is among them.
fn reap(awaited: Option<Pid>) -> Option<WaitStatus> {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        match status.pid() {
            None => break,
            pid if pid == awaited => return Some(status),
            Some(_) => {}
        }
    }
    None
}

/// Asks the kernel to say what every blocked task waits for.
fn blocked_tasks() {
    let _ = fs::write("/proc/sysrq-trigger", "w");
    std::thread::sleep(Duration::from_millis(200));
    if let Ok(done) = try_run("dmesg") {
        let lines: Vec<_> = done.stdout.lines().collect();
        lines[lines.len().saturating_sub(150)..]
            .iter()
            .for_each(|line| println!("{line}"));
    }
}

fn clean_up() {
    // As process 1 of our namespace this reaches all that bodies started, and nobody else.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline
        && waitpid(None, Some(WaitPidFlag::WNOHANG)) != Err(nix::Error::ECHILD)
    {
        std::thread::sleep(Duration::from_millis(10));
    }
    for done in [unmount_all(), empty_shared_memory()] {
        if let Err(error) = done {
            println!("guest init: clean up: {error:#}");
        }
    }
}

/// Write logs outlive their daemons, which is their purpose; a body's must not fill the memory of the next one.
fn empty_shared_memory() -> Result<()> {
    for entry in fs::read_dir(SHARED_MEMORY)? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

fn unmount_all() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let points = mounts
        .lines()
        .rev()
        .filter_map(|line| line.split_whitespace().nth(1));
    for point in points.filter(|point| point.starts_with("/mnt/") || point.starts_with("/run/work"))
    {
        nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH)?;
    }
    if !fs::read_dir("/sys/block")?
        .filter_map(Result::ok)
        .any(|e| e.file_name().to_string_lossy().starts_with("dm-"))
    {
        return Ok(());
    }
    let done = try_run("dmsetup remove_all --force")?;
    ensure!(
        done.status.success(),
        "remove mapped devices: {}",
        done.stderr
    );
    Ok(())
}
