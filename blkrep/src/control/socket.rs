//! The control socket's file: made, checked for a living owner, and removed.
//!
//! Owns the file while the daemon runs. The caller holds the state directory's lock, but another
//! daemon with another state directory may serve the same path: a socket that answers is never
//! replaced.

use anyhow::{Context as _, bail};
use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A bound control socket; its file goes when it is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    inode: (u64, u64),
}

impl ControlSocket {
    /// Binds the socket, in place of a stale one.
    ///
    /// # Errors
    /// A daemon answers there, something that is no socket is in the way, or the directory cannot
    /// be written.
    pub fn bind(path: &Path) -> anyhow::Result<(Self, UnixListener)> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)
                .with_context(|| format!("make directory {}", dir.display()))?;
        }
        clear_stale(path)?;
        let listener = UnixListener::bind(path)
            .with_context(|| format!("make control socket {}", path.display()))?;
        // Everyone may connect; what they may do is decided by their credentials, so that
        // monitors and administrators can be different groups.
        std::fs::set_permissions(path, Permissions::from_mode(0o666))
            .with_context(|| format!("open control socket {} to users", path.display()))?;
        listener
            .set_nonblocking(true)
            .context("make the control socket non-blocking")?;
        let found = std::fs::symlink_metadata(path)
            .with_context(|| format!("look at control socket {}", path.display()))?;
        let socket = Self {
            path: path.to_owned(),
            inode: (found.dev(), found.ino()),
        };
        Ok((socket, listener))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Only our own file: a successor may have put its socket there already.
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.inode);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "remove the control socket");
        }
    }
}

fn clear_stale(path: &Path) -> anyhow::Result<()> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| format!("look at {}", path.display()));
        }
    };
    if !found.file_type().is_socket() {
        bail!(
            "{} is in the way of the control socket and is no socket: remove it, or choose \
             another path with --socket",
            path.display()
        );
    }
    match UnixStream::connect(path) {
        Ok(_) => bail!(
            "blkrepd is already running: a daemon answers on {}. Stop it first, or choose another \
             path with --socket",
            path.display()
        ),
        // The only answer of the kernel that says nobody listens.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing a stale control socket");
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error)
                    .with_context(|| format!("remove stale control socket {}", path.display())),
                _ => Ok(()),
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("ask who serves control socket {}", path.display()))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/control.sock");
        let (socket, listener) = ControlSocket::bind(&path).unwrap();
        let error = ControlSocket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("already running"), "{error}");
        // Killed: the file stays, nobody listens.
        drop(listener);
        std::mem::forget(socket);
        let (socket, listener) = ControlSocket::bind(&path).unwrap();
        drop((socket, listener));
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(ControlSocket::bind(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn the_socket_of_a_successor_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let (first, _listener) = ControlSocket::bind(&path).unwrap();
        std::fs::rename(&path, dir.path().join("aside")).unwrap();
        let (_second, _listener) = ControlSocket::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }
}
