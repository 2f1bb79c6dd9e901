//! What the daemon tells udev: which devices are volumes, and which backings are in use.
//!
//! Owns small files below `/run/blkrep`, which the packaged rule tests, and the request that the
//! rule looks again. See `docs/internals/udev.md`. They are gone after a reboot, like the devices.
//! Failing to write them costs a name or a hint, never a volume: every failure is only logged.

use blkrep_types::VolumeName;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const RUN: &str = "/run/blkrep";

/// The files udev's rule tests.
#[derive(Debug, Clone)]
pub struct UdevHints {
    run: PathBuf,
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
        Self::at(Path::new(RUN), Path::new("/sys"))
    }

    /// Hints below other directories, for tests.
    #[must_use]
    pub fn at(run: &Path, sys: &Path) -> Self {
        Self {
            run: run.to_owned(),
            sys: sys.to_owned(),
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
    /// before the backing's volume is served.
    pub fn hide_backing(&self, major: u32, minor: u32, volume: &VolumeName) {
        let number = format!("{major}:{minor}");
        let text = format!("BLKREP_BACKING_OF={volume}\n");
        self.put(&self.run.join("backing").join(&number), &text);
        self.look_again(&self.sys.join("dev/block").join(number));
    }

    /// Shows it again, after its volume was detached.
    pub fn show_backing(&self, major: u32, minor: u32) {
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

fn kernel_name(device: &Path) -> Option<String> {
    let name = device.strip_prefix("/dev").ok()?.to_str()?;
    (!name.is_empty() && !name.contains('/')).then(|| name.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn hints_come_and_go_and_the_device_and_its_partitions_are_announced() {
        let dir = tempfile::tempdir().unwrap();
        let (run, sys) = (dir.path().join("run"), dir.path().join("sys"));
        let partition = sys.join("dev/block/8:16/sdb1");
        fs::create_dir_all(&partition).unwrap();
        fs::write(partition.join("partition"), "1").unwrap();
        fs::write(partition.join("uevent"), "").unwrap();
        fs::write(sys.join("dev/block/8:16/uevent"), "").unwrap();
        let hints = UdevHints::at(&run, &sys);
        let volume = VolumeName::new("pgdata").unwrap();
        hints.hide_backing(8, 16, &volume);
        let file = run.join("backing/8:16");
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            "BLKREP_BACKING_OF=pgdata\n"
        );
        for uevent in [sys.join("dev/block/8:16/uevent"), partition.join("uevent")] {
            assert_eq!(fs::read_to_string(uevent).unwrap(), "change");
        }
        hints.show_backing(8, 16);
        assert!(!file.exists());
        hints.name_device(Path::new("/dev/ublkb3"), &volume);
        let file = run.join("device/ublkb3");
        assert_eq!(fs::read_to_string(&file).unwrap(), "BLKREP_VOLUME=pgdata\n");
        hints.forget_device(Path::new("/dev/ublkb3"));
        assert!(!file.exists());
    }

    #[test]
    fn what_is_no_device_gets_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let hints = UdevHints::at(dir.path(), dir.path());
        let volume = VolumeName::new("pgdata").unwrap();
        for path in [
            "nbd+unix:///x",
            "/dev/",
            "/dev/../etc/passwd",
            "/etc/passwd",
        ] {
            hints.name_device(Path::new(path), &volume);
        }
        assert!(!dir.path().join("device").exists());
    }
}
