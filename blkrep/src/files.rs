//! Small files of the control plane: read with a bound, replaced whole or not at all.
//!
//! Owns no file itself. Never touches block data.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Names a daemon by its state directory: no other of this boot of the host has it, and a successor has
/// it again.
///
/// # Errors
/// The directory cannot be examined.
pub(crate) fn identity_of(state_dir: &Path) -> io::Result<String> {
    let about = std::fs::metadata(state_dir)?;
    Ok(format!("blkrep-{:x}-{:x}", about.dev(), about.ino()))
}

/// Reads a text file of at most `bytes_max` bytes.
///
/// # Errors
/// It cannot be read, is larger, or is no UTF-8.
pub(crate) fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(bytes_max + 1)
        .read_to_string(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|len| len <= bytes_max) {
        Ok(text)
    } else {
        let why = format!("it is larger than {bytes_max} bytes");
        Err(io::Error::new(io::ErrorKind::InvalidData, why))
    }
}

/// Puts `bytes` in place of the file at `path`, durably: after a crash it holds the old or the new
/// bytes whole.
///
/// # Errors
/// The old file stays as it was.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&new, path));
    if let Err(error) = written {
        // What is left of the new file is of no use; if it cannot be removed, the next replaces it.
        let _ = std::fs::remove_file(&new);
        return Err(error);
    }
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
