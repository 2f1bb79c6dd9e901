//! Where the FUSE file appears, and what a killed predecessor left there.
//!
//! Owns the mount point of a device. Enters: a filesystem to serve. Leaves: a mount, or a clean
//! directory. Never unmounts what a living process serves.

use super::filesystem::{FILE_NAME, OneFile};
use super::loop_device;
use fuser::{BackgroundSession, Config, MountOption, Session};
use nix::mount::{MntFlags, umount2};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long a mount is asked whether somebody serves it.
const ALIVE_LIMIT: Duration = Duration::from_secs(5);

/// How long a loop device of a dead predecessor gets to let go.
const STALE_LIMIT: Duration = Duration::from_secs(5);

/// A mounted filesystem with the thread that serves it.
#[derive(Debug)]
pub(super) struct Mounted {
    point: PathBuf,
    session: BackgroundSession,
}

impl Mounted {
    /// Mounts at `point`, which is an empty directory, and serves.
    pub(super) fn new(
        point: &Path,
        name: &str,
        filesystem: OneFile,
        read_bytes_max: usize,
    ) -> io::Result<Self> {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(format!("blkrep:{name}")),
            MountOption::NoExec,
            MountOption::NoAtime,
            MountOption::CUSTOM(format!("max_read={read_bytes_max}")),
        ];
        let session = Session::new(filesystem, point, &config)?.spawn()?;
        Ok(Self {
            point: point.to_owned(),
            session,
        })
    }

    /// Ends the connection to the kernel and takes the mount away: what is in flight or comes later
    /// gets an error.
    pub(super) fn abort(&self) {
        abort_and_detach(&self.point);
    }

    /// Waits for the serving thread, after [`Mounted::abort`].
    pub(super) fn join(self) {
        if let Err(error) = self.session.umount_and_join() {
            tracing::warn!(%error, point = %self.point.display(), "a FUSE session ended badly");
        }
        remove_directory(&self.point);
    }
}

/// The file below a mount point.
pub(super) fn file_path(point: &Path) -> PathBuf {
    point.join(FILE_NAME)
}

/// Makes `point` an empty directory, clearing what a killed predecessor left: a mount that nobody
/// serves, and loop devices on its file.
///
/// # Errors
/// EBUSY if a living process serves there; else what the kernel says.
pub(super) fn prepare(point: &Path) -> io::Result<()> {
    if is_mounted(point)? {
        if is_alive(point)? {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        // By the file's name, which only shows while the mount is there.
        for number in loop_device::bound_to(&file_path(point)) {
            if loop_device::unbind(number, STALE_LIMIT) {
                tracing::info!(number, "freed a loop device of a killed daemon");
            } else {
                tracing::warn!(
                    number,
                    "a loop device of a killed daemon is still in use; it gives errors until its \
                     users close it"
                );
            }
        }
        abort_and_detach(point);
    }
    std::fs::create_dir_all(point)
}

/// Takes an empty mount point away.
pub(super) fn remove_directory(point: &Path) {
    if let Err(error) = std::fs::remove_dir(point) {
        tracing::debug!(%error, point = %point.display(), "left a mount point behind");
    }
}

/// `MNT_FORCE` ends the connection before anything is asked whether it is busy, so the thread that
/// serves it returns even if something still holds the filesystem.
fn abort_and_detach(point: &Path) {
    match umount2(point, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH) {
        // Somebody has unmounted it by hand.
        Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
        Err(error) => tracing::warn!(%error, point = %point.display(), "could not unmount"),
    }
}

fn is_mounted(point: &Path) -> io::Result<bool> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let wanted = point.to_str().map(escaped);
    Ok(table
        .lines()
        .any(|line| line.split(' ').nth(4) == wanted.as_deref()))
}

/// A path as `/proc/self/mountinfo` writes it.
fn escaped(path: &str) -> String {
    path.replace('\\', "\\134")
        .replace(' ', "\\040")
        .replace('\t', "\\011")
        .replace('\n', "\\012")
}

/// True if a process answers for the mount, or takes longer to say so than one that is gone.
fn is_alive(point: &Path) -> io::Result<bool> {
    let (sender, answer) = mpsc::channel();
    let path = file_path(point);
    thread::Builder::new()
        .name("fuse-probe".to_owned())
        .spawn(move || {
            // Nobody may be waiting for the answer any more.
            drop(sender.send(std::fs::metadata(path)));
        })?;
    Ok(match answer.recv_timeout(ALIVE_LIMIT) {
        Ok(Err(error)) => !matches!(
            error.raw_os_error(),
            Some(libc::ENOTCONN | libc::ECONNABORTED)
        ),
        Ok(Ok(_)) | Err(_) => true,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_compared_as_the_kernel_writes_them() {
        assert_eq!(escaped("/a b\\c"), "/a\\040b\\134c");
        assert!(is_mounted(Path::new("/")).unwrap());
        assert!(!is_mounted(Path::new("/no such place")).unwrap());
    }
}
