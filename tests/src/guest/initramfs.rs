//! An initramfs with programs, their libraries and modules.
//!
//! Owns the archive and what is in it. Files of this machine enter, one archive leaves. Never changes a file of the machine.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An archive in the making (`newc`, the format the kernel unpacks).
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    known: BTreeSet<PathBuf>,
    inode: u32,
}

const MODE_DIR: u32 = 0o040_755;
const MODE_FILE: u32 = 0o100_000;
const MODE_LINK: u32 = 0o120_777;

impl Archive {
    fn entry(&mut self, path: &Path, mode: u32, body: &[u8]) -> Result<()> {
        let name = path
            .to_str()
            .context("read a path as text")?
            .trim_start_matches('/');
        let size = u32::try_from(body.len()).context("pack a file of more than 4 GiB")?;
        self.inode += 1;
        let name_size = u32::try_from(name.len() + 1).context("pack a long name")?;
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        write!(self.bytes, "070701")?;
        fields
            .iter()
            .try_for_each(|field| write!(self.bytes, "{field:08x}"))?;
        write!(self.bytes, "{name}\0")?;
        self.pad();
        self.bytes.extend_from_slice(body);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// A directory, with those it lies in.
    pub(super) fn dir(&mut self, path: &Path) -> Result<()> {
        if path.parent().is_none() || !self.known.insert(path.to_owned()) {
            return Ok(());
        }
        self.dir(path.parent().context("find the parent")?)?;
        self.entry(path, MODE_DIR, &[])
    }

    /// A file with these bytes.
    pub(super) fn file(&mut self, path: &Path, mode: u32, body: &[u8]) -> Result<()> {
        self.dir(path.parent().context("find the parent")?)?;
        if self.known.insert(path.to_owned()) {
            self.entry(path, MODE_FILE | mode, body)?;
        }
        Ok(())
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, path: &Path, to: &Path) -> Result<()> {
        self.dir(path.parent().context("find the parent")?)?;
        if self.known.insert(path.to_owned()) {
            self.entry(path, MODE_LINK, to.as_os_str().as_encoded_bytes())?;
        }
        Ok(())
    }

    /// A program of this machine under the name `at`, with the libraries it is linked to.
    pub(super) fn program(&mut self, from: &Path, at: &Path) -> Result<()> {
        let real = fs::canonicalize(from).with_context(|| format!("find {}", from.display()))?;
        let body = fs::read(&real).with_context(|| format!("read {}", real.display()))?;
        let mode = fs::metadata(&real)?.permissions().mode() & 0o777;
        self.file(at, mode, &body)?;
        if body.starts_with(b"\x7fELF") {
            for library in libraries(&real)? {
                let body =
                    fs::read(&library).with_context(|| format!("read {}", library.display()))?;
                self.file(&library, 0o755, &body)?;
            }
        }
        Ok(())
    }

    /// A program looked up in the path, under the place it was found at.
    pub(super) fn tool(&mut self, name: &str) -> Result<()> {
        let found = find_program(name).with_context(|| format!("find the program {name}"))?;
        self.program(&found, &Path::new("/usr/bin").join(name))
    }

    /// The finished archive.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        self.inode = 0;
        self.entry(Path::new("TRAILER!!!"), 0, &[])?;
        Ok(self.bytes)
    }
}

/// Where a program is, in the usual places even if they are not in the path.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let dirs = std::env::split_paths(&path).chain(usual);
    dirs.map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = Command::new("ldd")
        .arg(program)
        .output()
        .context("run ldd")?;
    let text = String::from_utf8_lossy(&listed.stdout);
    if !listed.status.success() {
        let words = String::from_utf8_lossy(&listed.stderr);
        let is_static = words.contains("not a dynamic") || text.contains("statically linked");
        ensure!(
            is_static,
            "list the libraries of {}: {words}",
            program.display()
        );
        return Ok(Vec::new());
    }
    ensure!(
        !text.contains("not found"),
        "{} lacks a library: {text}",
        program.display()
    );
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn the_archive_unpacks_to_what_was_put_in() {
        let Some(cpio) = find_program("cpio") else {
            // busybox, which every guest needs, unpacks as well.
            assert!(
                find_program("busybox").is_some(),
                "neither cpio nor busybox is installed"
            );
            return;
        };
        let mut archive = Archive::default();
        archive
            .file(Path::new("/a/b/odd"), 0o600, b"12345")
            .unwrap();
        archive
            .file(Path::new("/a/b/odd"), 0o600, b"again")
            .unwrap();
        archive
            .link(Path::new("/a/link"), Path::new("b/odd"))
            .unwrap();
        let bytes = archive.finish().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(cpio);
        command
            .args(["-i", "--quiet"])
            .current_dir(dir.path())
            .stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(fs::read(dir.path().join("a/link")).unwrap(), b"12345");
    }
}
