//! The command that starts each kind of guest.
//!
//! Owns the arguments of QEMU, User-Mode Linux and namespaces. A spec and a shared directory enter, a command leaves.
//! Never waits for it.

use super::initramfs::{Archive, find_program};
use super::job::{JOB_FILE, RECORD_CHANNEL, RESULT_CHANNEL, SHARE_ARGUMENT, SHARE_VARIABLE};
use super::kernel::{Kernel, cache_dir, replace_file};
use super::{Guest, Job, Kind, Spec};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Programs that a guest gets if they have been built.
const PRODUCT: [&str; 4] = ["blkrep-guest", "blkrep-order", "blkrepd", "blkctl"];
/// Where they are in an initramfs.
const PRODUCT_DIR: &str = "/product";

/// QEMU with everything in an initramfs.
pub(super) fn qemu(spec: &Spec, share: &Path) -> Result<Command> {
    let kernel = Kernel::find()?;
    let initrd = share.join("initrd");
    fs::write(&initrd, pack(spec, &kernel)?)?;
    if spec.virtual_time {
        ensure!(
            spec.cpus == 1,
            "virtual time is kept for one processor only"
        );
        let mut command = qemu_command(spec, share, &kernel, &initrd, "tcg,thread=single");
        command.args(["-icount", "shift=1,sleep=off"]);
        return Ok(command);
    }
    let accelerator = accelerator(spec, &kernel)?;
    Ok(qemu_command(spec, share, &kernel, &initrd, accelerator))
}

fn qemu_command(
    spec: &Spec,
    share: &Path,
    kernel: &Kernel,
    initrd: &Path,
    accelerator: &str,
) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-nographic",
        "-no-reboot",
        "-machine",
        "q35",
    ]);
    command.args([
        "-accel",
        accelerator,
        "-cpu",
        "max",
        "-smp",
        &spec.cpus.to_string(),
    ]);
    command
        .args(["-m", &spec.memory_mib.to_string()])
        .arg("-kernel")
        .arg(&kernel.image);
    command.arg("-initrd").arg(initrd);
    command.args([
        "-append",
        "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic mitigations=off nokaslr",
    ]);
    // Without an event of its own, so that a line is in its file when the write of it returns: a record must not lag
    // behind the disks it speaks of when the power goes.
    command.args([
        "-serial",
        "stdio",
        "-device",
        "virtio-serial-pci,ioeventfd=off",
    ]);
    for channel in [RESULT_CHANNEL, RECORD_CHANNEL] {
        let path = share.join(channel);
        command
            .arg("-chardev")
            .arg(format!("file,id={channel},path={}", path.display()));
        command.arg("-device").arg(format!(
            "virtserialport,chardev={channel},name=blkrep.{channel}"
        ));
    }
    for (index, disk) in spec.disks.iter().enumerate() {
        let drive = format!(
            "file={},if=none,id=disk{index},format=raw,cache=writeback",
            disk.display()
        );
        command.arg("-drive").arg(drive);
        command
            .arg("-device")
            .arg(format!("virtio-blk-pci,drive=disk{index}"));
    }
    command
}

fn pack(spec: &Spec, kernel: &Kernel) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in [
        "/proc", "/sys", "/dev", "/run", "/tmp", "/mnt", "/root", "/etc", "/var/lib", "/var/log",
        "/modules",
    ] {
        archive.dir(Path::new(dir))?;
    }
    for name in PRODUCT {
        let program = spec.programs.join(name);
        if program.exists() {
            archive.program(&program, &Path::new(PRODUCT_DIR).join(name))?;
        }
    }
    archive.link(
        Path::new("/init"),
        &Path::new(PRODUCT_DIR).join("blkrep-guest"),
    )?;
    for tool in &spec.tools {
        archive.tool(tool)?;
    }
    let busybox = find_program("busybox").context("find busybox: install busybox-static")?;
    archive.program(&busybox, Path::new("/usr/bin/busybox"))?;
    let applets = Command::new(&busybox)
        .arg("--list")
        .output()
        .context("run busybox")?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines() {
        // Real tools were packed first, and an archive keeps the first of a name.
        archive.link(&Path::new("/usr/bin").join(applet), Path::new("busybox"))?;
    }
    for dir in ["/bin", "/sbin", "/usr/sbin"] {
        archive.link(Path::new(dir), Path::new("/usr/bin"))?;
    }
    archive.file(
        Path::new("/etc/passwd"),
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\n",
    )?;
    archive.file(Path::new("/etc/group"), 0o644, b"root:x:0:\n")?;
    let mut order = String::new();
    for module in &kernel.modules {
        let name = module
            .file_name()
            .and_then(|name| name.to_str())
            .context("name a module")?;
        archive.file(&Path::new("/modules").join(name), 0o644, &fs::read(module)?)?;
        order += &format!("{name}\n");
    }
    archive.file(Path::new("/modules/order"), 0o644, order.as_bytes())?;
    let mut job = spec.job.clone();
    job.program_dirs = vec![PRODUCT_DIR.to_owned()];
    archive.file(
        &Path::new("/").join(JOB_FILE),
        0o644,
        &serde_json::to_vec(&job)?,
    )?;
    archive.finish()
}

const EMULATION: &str = "tcg,thread=multi";
/// A KVM that works boots in two seconds; one that emulates its own processor crawls for minutes.
const KVM_LIMIT: Duration = Duration::from_secs(12);

/// KVM if a boot under it has been seen to work on this machine, since it was started.
fn accelerator(spec: &Spec, kernel: &Kernel) -> Result<&'static str> {
    let usable = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    if !usable {
        return Ok(EMULATION);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    let answer = cache_dir()?.join(format!("kvm-{}-{}", kernel.release, boot.trim()));
    if !answer.exists() {
        let works = kvm_boots(spec, kernel)?;
        replace_file(&answer, if works { b"works" } else { b"too slow" })?;
    }
    Ok(if fs::read(&answer)? == b"works" {
        "kvm"
    } else {
        EMULATION
    })
}

fn kvm_boots(spec: &Spec, kernel: &Kernel) -> Result<bool> {
    let probe = Spec {
        job: Job::default(),
        disks: Vec::new(),
        tools: Vec::new(),
        ..spec.clone()
    };
    let initrd = tempfile::NamedTempFile::new()?;
    fs::write(initrd.path(), pack(&probe, kernel)?)?;
    let make = |share: &Path| qemu_command(&probe, share, kernel, initrd.path(), "kvm");
    let mut guest = Guest::start(&probe, |share| Ok(make(share)))?;
    Ok(guest.wait_ready(KVM_LIMIT).is_ok())
}

/// User-Mode Linux with this machine's root read-only.
pub(super) fn uml(spec: &Spec, share: &Path) -> Result<Command> {
    let kernel = uml_kernel()?;
    let init = fs::canonicalize(spec.programs.join("blkrep-guest")).context("find blkrep-guest")?;
    let mut command = Command::new(kernel);
    command
        .arg(format!("mem={}M", spec.memory_mib))
        .arg(format!("ncpus={}", spec.cpus));
    // More than one processor needs seccomp mode.
    command.args([
        "seccomp=on",
        "root=/dev/root",
        "rootfstype=hostfs",
        "rootflags=/",
        "ro",
    ]);
    command.args([
        "con=null",
        "con0=null,fd:1",
        "ssl=null",
        "quiet",
        "loglevel=4",
        "panic=-1",
    ]);
    command.arg(format!("init={}", init.display()));
    command.arg(format!("{SHARE_ARGUMENT}={}", share.display()));
    for (index, disk) in spec.disks.iter().enumerate() {
        let letter = char::from(b'b' + u8::try_from(index).context("attach so many disks")?);
        command.arg(format!("ubd{letter}={}", disk.display()));
    }
    Ok(command)
}

fn uml_kernel() -> Result<PathBuf> {
    let named = std::env::var_os("BLKREP_UML").map(PathBuf::from);
    let named = named.context("find the User-Mode Linux kernel: BLKREP_UML is not set")?;
    if named.extension().is_none_or(|extension| extension != "xz") {
        return Ok(named);
    }
    let stamp = fs::metadata(&named).with_context(|| format!("find {}", named.display()))?;
    let age = stamp
        .modified()?
        .duration_since(std::time::UNIX_EPOCH)?
        .as_secs();
    let unpacked = cache_dir()?.join(format!("linux-uml-{}-{age}", stamp.len()));
    if !unpacked.exists() {
        let done = Command::new("xz")
            .arg("-dc")
            .arg(&named)
            .output()
            .context("run xz")?;
        ensure!(done.status.success(), "unpack {}", named.display());
        let beside = unpacked.with_extension(std::process::id().to_string());
        fs::write(&beside, done.stdout)?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o755))?;
        fs::rename(&beside, &unpacked)?;
    }
    Ok(unpacked)
}

/// The machine itself, in namespaces of its own, so that ending the guest ends all it started.
pub(super) fn host(spec: &Spec, share: &Path) -> Result<Command> {
    ensure!(
        spec.disks.is_empty(),
        "extra disks are for {} and {}",
        Kind::Qemu.name(),
        Kind::Uml.name()
    );
    let init = fs::canonicalize(spec.programs.join("blkrep-guest")).context("find blkrep-guest")?;
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .arg(init)
        .arg("init");
    command.env(SHARE_VARIABLE, share);
    Ok(command)
}
