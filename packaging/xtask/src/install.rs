//! What the commands need on a fresh Debian machine, beside the Rust toolchain.
//!
//! Owns the list of programs and the packages they come from. Missing ones enter, installed ones leave. Never asks for
//! anything to be removed; where a package manager gives one of them up for another, it comes back in the version that fits.

use anyhow::{Context, Result, bail, ensure};
use blkrep_tests::guest::find_program;
use std::process::Command;

/// Programs, and Debian's packages that have them.
const NEEDED: &[Need] = &[
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
    ("tc", "iproute2"),
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

/// Rounds of installation: a package that a first one pushed out comes back in the second.
const ROUNDS: usize = 3;

/// What libFuzzer is built with.
const FUZZING: &[Need] = &[("c++", "g++")];

/// Installs what is missing for tests and demonstrations.
pub(crate) fn all() -> Result<()> {
    these(NEEDED)
}

/// Installs what is missing for fuzzing.
pub(crate) fn fuzzing() -> Result<()> {
    these(FUZZING)
}

fn these(needs: &[Need]) -> Result<()> {
    let missing = || {
        let needs = needs.iter().copied();
        needs
            .filter(|(program, _)| find_program(program).is_none())
            .collect()
    };
    complete(missing, install)
}

/// A program, and the package that has it.
type Need = (&'static str, &'static str);

/// Installs until nothing is missing. A distribution's package may push out one that came from elsewhere (its backports):
/// what was there before the first round can be missing after it.
fn complete(
    missing: impl Fn() -> Vec<Need>,
    mut install: impl FnMut(&[&str]) -> Result<()>,
) -> Result<()> {
    let mut tried: Vec<Vec<Need>> = Vec::new();
    loop {
        let absent = missing();
        if absent.is_empty() {
            return Ok(());
        }
        if tried.len() == ROUNDS || tried.contains(&absent) {
            let programs: Vec<_> = absent.iter().map(|(program, _)| *program).collect();
            bail!(
                "still missing after the installation: {}",
                programs.join(" ")
            );
        }
        let mut packages: Vec<_> = absent.iter().map(|(_, package)| *package).collect();
        packages.dedup();
        install(&packages)?;
        tried.push(absent);
    }
}

fn install(packages: &[&str]) -> Result<()> {
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
    arguments.extend(packages);
    apt(&arguments)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    const EMULATOR: Need = ("emulator", "system");
    const TOOL: Need = ("tool", "utils");

    /// Installs on a machine where `installs` says what a package brings and pushes out.
    fn on(
        present: &[&'static str],
        installs: impl Fn(&str, &mut BTreeSet<&'static str>),
    ) -> Result<usize> {
        let machine = RefCell::new(present.iter().copied().collect::<BTreeSet<_>>());
        let mut rounds = 0;
        let missing = || {
            let machine = machine.borrow();
            let absent = |(program, _): &Need| !machine.contains(program);
            [EMULATOR, TOOL].into_iter().filter(absent).collect()
        };
        complete(missing, |packages| {
            rounds += 1;
            for package in packages {
                installs(package, &mut machine.borrow_mut());
            }
            Ok(())
        })?;
        Ok(rounds)
    }

    fn bring(package: &str, machine: &mut BTreeSet<&'static str>) {
        machine.insert(if package == EMULATOR.1 {
            EMULATOR.0
        } else {
            TOOL.0
        });
    }

    #[test]
    fn nothing_is_installed_where_nothing_is_missing() {
        assert_eq!(on(&[EMULATOR.0, TOOL.0], bring).unwrap(), 0);
        assert_eq!(on(&[], bring).unwrap(), 1);
    }

    #[test]
    fn what_an_installation_pushes_out_comes_back() {
        let rounds = on(&[TOOL.0], |package, machine| {
            if package == EMULATOR.1 {
                machine.remove(TOOL.0);
            }
            bring(package, machine);
        });
        assert_eq!(rounds.unwrap(), 2);
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        let error = on(&[TOOL.0], |_, _| {}).unwrap_err().to_string();
        assert!(error.contains("emulator") && !error.contains("tool"));
        let hostile = |package: &str, machine: &mut BTreeSet<_>| {
            machine.clear();
            bring(package, machine);
        };
        assert!(
            on(&[TOOL.0], hostile).is_err(),
            "two that exclude each other"
        );
    }
}
