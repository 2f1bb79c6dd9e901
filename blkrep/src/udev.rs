//! What the daemon tells udev: which devices are volumes, and which backings are in use.
//!
//! Owns small files that the packaged rule tests, and the request that the rule looks again. See
//! `docs/internals/udev.md`. Those below `/run/blkrep` are gone after a reboot, like the devices;
//! those below `/etc/blkrep/backing` hide the backings of persistent volumes at the next boot,
//! before the daemon runs. Failing to write one costs a name or a hint, never a volume: every
//! failure is only logged.

use blkrep_types::VolumeName;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const RUN: &str = "/run/blkrep";
const BOOT: &str = "/etc/blkrep/backing";

/// The files udev's rule tests.
#[derive(Debug, Clone)]
pub struct UdevHints {
    run: PathBuf,
    boot: PathBuf,
    sys: PathBuf,
}

impl Default for UdevHints {
    fn default() -> Self {
        Self::new()
    }
}

impl UdevHints {
    /// The hints of this machine.
    #[must_use]
    pub fn new() -> Self {
        Self {
            run: RUN.into(),
            boot: BOOT.into(),
            sys: "/sys".into(),
        }
    }

    /// Hints below another directory, with a tree of `/sys` of its own: for tests.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self {
            run: root.join("run"),
            boot: root.join("boot"),
            sys: root.join("sys"),
        }
    }

    /// Names a device `/dev/blkrep/VOLUME`. `device` is its path, such as `/dev/ublkb0`.
    /// To be called before the device appears, where its number is known.
    pub fn name_device(&self, device: &Path, volume: &VolumeName) {
        if let Some(kernel) = kernel_name(device) {
            let text = format!("BLKREP_VOLUME={volume}\n");
            self.put(&self.run.join("device").join(&kernel), &text);
            self.look_again(&self.sys.join("class/block").join(kernel));
        }
    }

    /// Takes the name back.
    pub fn forget_device(&self, device: &Path) {
        if let Some(kernel) = kernel_name(device) {
            self.remove(&self.run.join("device").join(&kernel));
            self.look_again(&self.sys.join("class/block").join(kernel));
        }
    }

    /// Hides a block device from automatic mounting, LVM scans and by-uuid names. To be called
    /// before the backing's volume is served. With `at_boot` it is hidden from the next boot on
    /// before anything can mount it: for volumes that are not transient.
    pub fn hide_backing(&self, major: u32, minor: u32, volume: &VolumeName, at_boot: bool) {
        let number = format!("{major}:{minor}");
        let text = backing_text(volume);
        let device = self.sys.join("dev/block").join(&number);
        if at_boot && let Some(identity) = identity_of(&device) {
            self.put(&self.boot.join(identity), &text);
        }
        self.put(&self.run.join("backing").join(&number), &text);
        self.look_again(&device);
    }

    /// Shows the backing of a detached volume again.
    pub fn show_backing(&self, major: u32, minor: u32, volume: &VolumeName) {
        // By content: what identifies the device may have changed since.
        let hints = fs::read_dir(&self.boot).into_iter().flatten().flatten();
        let text = backing_text(volume);
        for hint in hints.map(|hint| hint.path()) {
            if fs::read_to_string(&hint).is_ok_and(|found| found == text) {
                self.remove(&hint);
            }
        }
        let number = format!("{major}:{minor}");
        self.remove(&self.run.join("backing").join(&number));
        self.look_again(&self.sys.join("dev/block").join(number));
    }

    fn put(&self, path: &Path, text: &str) {
        let dir = path.parent().unwrap_or(&self.run);
        // Whole or not at all: the rule may read it at any moment.
        let new = dir.join(".new");
        let put = fs::create_dir_all(dir)
            .and_then(|()| fs::write(&new, text))
            .and_then(|()| fs::rename(&new, path));
        if let Err(error) = put {
            tracing::warn!(path = %path.display(), %error, "tell udev");
        }
    }

    fn remove(&self, path: &Path) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "tell udev");
            }
            _ => {}
        }
    }

    /// Makes the kernel announce the device again, with its partitions, so that the rule runs.
    fn look_again(&self, device: &Path) {
        let mut announced = vec![device.to_owned()];
        if let Ok(entries) = fs::read_dir(device) {
            let inner = entries.flatten().map(|entry| entry.path());
            announced.extend(inner.filter(|path| path.join("partition").exists()));
        }
        for path in announced {
            let uevent = path.join("uevent");
            match fs::OpenOptions::new()
                .write(true)
                .open(&uevent)
                .and_then(|mut file| io::Write::write_all(&mut file, b"change"))
            {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %uevent.display(), %error, "tell udev");
                }
                _ => {}
            }
        }
    }
}

fn backing_text(volume: &VolumeName) -> String {
    format!("BLKREP_BACKING_OF={volume}\n")
}

/// The name by which the rule finds a device at boot, from what udev knows of it.
fn identity_of(device: &Path) -> Option<String> {
    let real = fs::canonicalize(device).ok()?;
    let kernel = real.file_name()?.to_str()?;
    let partition = fs::read_to_string(device.join("partition")).ok();
    let asked = Command::new("udevadm")
        .args(["info", "--query=property", "--path"])
        .arg(&real)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    // Without udev there is no rule either; the kernel's name is what is left.
    let known = asked.map(|output| output.stdout).unwrap_or_default();
    let known = String::from_utf8_lossy(&known);
    Some(identity(
        &known,
        kernel,
        partition.as_deref().map(str::trim),
    ))
}

fn identity(properties: &str, kernel: &str, partition: Option<&str>) -> String {
    let value = |name: &str| {
        let mut lines = properties.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.filter(|value| !value.is_empty() && !value.contains('/'))
    };
    match (value("DM_NAME"), value("ID_PATH"), partition) {
        (Some(name), _, _) => format!("dm:{name}"),
        (None, Some(path), Some(number)) => format!("path:{path}-part{number}"),
        (None, Some(path), None) => format!("path:{path}"),
        (None, None, _) => format!("kernel:{kernel}"),
    }
}

fn kernel_name(device: &Path) -> Option<String> {
    let name = device.strip_prefix("/dev").ok()?.to_str()?;
    (!name.is_empty() && !name.contains('/')).then(|| name.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn hints_come_and_go_and_the_device_and_its_partitions_are_announced() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let device = root.join("sys/dev/block/4095:16");
        let partition = device.join("sdb1");
        fs::create_dir_all(&partition).unwrap();
        fs::write(partition.join("partition"), "1").unwrap();
        for path in [&device, &partition] {
            fs::write(path.join("uevent"), "").unwrap();
        }
        let hints = UdevHints::below(root);
        let volume = VolumeName::new("pgdata").unwrap();
        hints.hide_backing(4095, 16, &volume, true);
        let file = root.join("run/backing/4095:16");
        assert_eq!(read(&file), "BLKREP_BACKING_OF=pgdata\n");
        let boot = root.join("boot/kernel:4095:16");
        assert_eq!(read(&boot), read(&file));
        for path in [&device, &partition] {
            assert_eq!(read(&path.join("uevent")), "change");
        }
        let other = VolumeName::new("other").unwrap();
        hints.show_backing(4095, 17, &other);
        assert!(boot.exists() && file.exists());
        hints.show_backing(4095, 16, &volume);
        assert!(!boot.exists() && !file.exists());
        hints.hide_backing(4095, 16, &volume, false);
        assert!(!boot.exists() && file.exists());

        hints.name_device(Path::new("/dev/ublkb3"), &volume);
        let file = root.join("run/device/ublkb3");
        assert_eq!(read(&file), "BLKREP_VOLUME=pgdata\n");
        hints.forget_device(Path::new("/dev/ublkb3"));
        assert!(!file.exists());
    }

    #[test]
    fn a_device_is_known_at_boot_by_what_does_not_change() {
        for (properties, partition, name) in [
            ("DM_NAME=vg-lv\nID_PATH=x", None, "dm:vg-lv"),
            ("ID_PATH=pci-0000:00:02.0\n", None, "path:pci-0000:00:02.0"),
            ("ID_PATH=pci-1", Some("2"), "path:pci-1-part2"),
            ("ID_PATH_TAG=pci_1", None, "kernel:sdb"),
            ("DM_NAME=../../etc/passwd", None, "kernel:sdb"),
            ("", Some("1"), "kernel:sdb"),
        ] {
            assert_eq!(identity(properties, "sdb", partition), name);
        }
    }

    #[test]
    fn what_is_no_device_gets_no_name() {
        let root = tempfile::tempdir().unwrap();
        let hints = UdevHints::below(root.path());
        let volume = VolumeName::new("pgdata").unwrap();
        for path in [
            "nbd+unix:///x",
            "/dev/",
            "/dev/../etc/passwd",
            "/etc/passwd",
        ] {
            hints.name_device(Path::new(path), &volume);
        }
        assert!(!root.path().join("run/device").exists());
    }
}
