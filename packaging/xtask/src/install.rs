//! What the commands need on a fresh Debian machine, beside the Rust toolchain.
//!
//! Owns the list of programs and the packages they come from. Missing ones enter, installed ones leave. Never removes anything.

use anyhow::{Context, Result, bail, ensure};
use blkrep_tests::guest::find_program;
use std::process::Command;

/// Programs, and Debian's packages that have them.
const NEEDED: &[(&str, &str)] = &[
    ("cc", "gcc"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("modprobe", "kmod"),
    ("xz", "xz-utils"),
    ("ldd", "libc-bin"),
    ("dash", "dash"),
    ("fio", "fio"),
    ("ip", "iproute2"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("mount", "mount"),
    ("losetup", "mount"),
    ("blockdev", "util-linux"),
    ("blkdiscard", "util-linux"),
    ("blkid", "util-linux"),
    ("dmsetup", "dmsetup"),
    ("nbd-client", "nbd-client"),
    ("nbdcopy", "libnbd-bin"),
];

/// Installs what is missing.
pub(crate) fn all() -> Result<()> {
    let missing = || {
        NEEDED
            .iter()
            .filter(|(program, _)| find_program(program).is_none())
    };
    let mut packages: Vec<_> = missing().map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let words = packages.join(" ");
    if find_program("apt-get").is_none() {
        bail!("these packages (names of Debian) are missing and there is no apt-get here: {words}");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("packages are missing; install them as root: apt-get install {words}");
    }
    println!("installing {words}");
    apt(&["update", "-q"])?;
    let mut arguments = vec!["install", "-q", "-y", "--no-install-recommends"];
    arguments.extend(&packages);
    apt(&arguments)?;
    let still: Vec<_> = missing().map(|(program, _)| *program).collect();
    ensure!(
        still.is_empty(),
        "still missing after the installation: {}",
        still.join(" ")
    );
    Ok(())
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    let status = command.status().context("run apt-get")?;
    ensure!(
        status.success(),
        "apt-get {} failed ({status})",
        arguments.join(" ")
    );
    Ok(())
}
