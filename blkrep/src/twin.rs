//! A small record of the control plane in two whole copies.
//!
//! Owns two files in the state directory, each a whole copy: a header line with version, counter and
//! CRC32, then JSON. A change goes to the older copy and is durable before it takes effect, so a
//! crash at any moment leaves the state before or after it. Enters: a value. Leaves: the value of the
//! newest good copy. Never guesses: two bad copies are an error. Nobody but the daemon's user can
//! read the files.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// What a record is called and how large it can be.
#[derive(Debug)]
pub(crate) struct TwinForm {
    /// First word of a copy.
    pub(crate) word: &'static str,
    /// Names of the copies.
    pub(crate) copies: [&'static str; 2],
    /// The version this program writes, and the newest it reads.
    pub(crate) version: u32,
    /// Largest copy that is read.
    pub(crate) bytes_max: u64,
    /// What it is, for people.
    pub(crate) what: &'static str,
    /// What to do without a good copy and without a backup.
    pub(crate) remedy: &'static str,
}

/// A record that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TwinError {
    /// The directory or a file in it cannot be used.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Neither copy is good.
    #[error(
        "both copies of the {what} in {} are corrupt ({why}); restore {first} from a backup of the state directory, or {remedy}",
        directory.display()
    )]
    Corrupt {
        /// What it is.
        what: &'static str,
        /// The state directory.
        directory: PathBuf,
        /// What is wrong with them.
        why: String,
        /// The first copy.
        first: &'static str,
        /// What to do without a backup.
        remedy: &'static str,
    },
    /// Written by a newer program.
    #[error(
        "the {what} {} has version {version}, this blkrepd reads up to {known}; start the newer blkrepd again",
        path.display()
    )]
    Newer {
        /// What it is.
        what: &'static str,
        /// The copy.
        path: PathBuf,
        /// Its version.
        version: u32,
        /// The newest that is read.
        known: u32,
    },
}

/// A record in its directory.
#[derive(Debug)]
pub(crate) struct Twin<T> {
    form: &'static TwinForm,
    directory: PathBuf,
    counter: u64,
    value: T,
}

enum Copy<T> {
    Missing,
    Bad(String),
    Good(u64, T),
}

impl<T: Serialize + DeserializeOwned + Default + Clone + PartialEq> Twin<T> {
    /// Reads the newest good copy; a directory without copies is a record of nothing. The second
    /// value names a copy that was bad, and that the next change repairs.
    ///
    /// # Errors
    /// Both copies are bad, one is of a newer version, or the directory cannot be read.
    pub(crate) fn load(
        form: &'static TwinForm,
        directory: &Path,
    ) -> Result<(Self, Option<String>), TwinError> {
        let mut good: Vec<(u64, T)> = Vec::new();
        let mut bad: Vec<String> = Vec::new();
        for name in form.copies {
            match read_copy(form, &directory.join(name))? {
                Copy::Missing => {}
                Copy::Bad(why) => bad.push(format!("{name}: {why}")),
                Copy::Good(counter, value) => good.push((counter, value)),
            }
        }
        let newest = good.into_iter().max_by_key(|(counter, _)| *counter);
        let (counter, value) = match newest {
            Some(newest) => newest,
            None if bad.is_empty() => (0, T::default()),
            None => {
                return Err(TwinError::Corrupt {
                    what: form.what,
                    directory: directory.to_owned(),
                    why: bad.join(", "),
                    first: form.copies[0],
                    remedy: form.remedy,
                });
            }
        };
        let twin = Self {
            form,
            directory: directory.to_owned(),
            counter,
            value,
        };
        Ok((twin, bad.pop()))
    }

    /// What it holds.
    #[must_use]
    pub(crate) const fn value(&self) -> &T {
        &self.value
    }

    /// Applies `change` and makes the result durable; on an error nothing has changed.
    ///
    /// # Errors
    /// The state directory is full or fails.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut T)) -> Result<(), TwinError> {
        let mut value = self.value.clone();
        change(&mut value);
        if value == self.value && self.counter > 0 {
            return Ok(());
        }
        let counter = self.counter + 1;
        let [mut first, mut second] = self.form.copies;
        if !counter.is_multiple_of(2) {
            std::mem::swap(&mut first, &mut second);
        }
        self.write_copy(first, counter, &value)?;
        // The other copy says the same from now on: if this one rots, no older truth comes back.
        if let Err(error) = self.write_copy(second, counter, &value) {
            tracing::warn!(%error, "write the second copy of the {}", self.form.what);
        }
        self.counter = counter;
        self.value = value;
        Ok(())
    }

    fn write_copy(&self, name: &str, counter: u64, value: &T) -> Result<(), TwinError> {
        let body = serde_json::to_vec_pretty(value).expect("strings and numbers are JSON");
        let path = self.directory.join(name);
        let temporary = self.directory.join(format!("{name}.new"));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed("create", &temporary))?;
        let (word, version) = (self.form.word, self.form.version);
        let header = format!(
            "{word} {version} {counter} {:08x}\n",
            crc32fast::hash(&body)
        );
        file.write_all(header.as_bytes())
            .and_then(|()| file.write_all(&body))
            .and_then(|()| file.sync_all())
            .map_err(failed("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(failed("replace", &path))?;
        let parent = File::open(&self.directory).map_err(failed("open", &self.directory))?;
        parent.sync_all().map_err(failed("sync", &self.directory))
    }
}

fn failed<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> TwinError + 'a {
    move |source| TwinError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

fn read_copy<T: DeserializeOwned>(form: &TwinForm, path: &Path) -> Result<Copy<T>, TwinError> {
    let text = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Copy::Missing),
        Err(error) => return Err(failed("examine", path)(error)),
        Ok(about) if about.len() > form.bytes_max => {
            let max = form.bytes_max;
            return Ok(Copy::Bad(format!("larger than {max} bytes")));
        }
        Ok(_) => fs::read(path).map_err(failed("read", path))?,
    };
    let Some((version, counter, crc, body)) = split_copy(form.word, &text) else {
        return Ok(Copy::Bad("no header".to_owned()));
    };
    if crc32fast::hash(body) != crc {
        return Ok(Copy::Bad("wrong checksum".to_owned()));
    }
    if version > form.version {
        return Err(TwinError::Newer {
            what: form.what,
            path: path.to_owned(),
            version,
            known: form.version,
        });
    }
    match serde_json::from_slice(body) {
        Ok(value) => Ok(Copy::Good(counter, value)),
        Err(error) => Ok(Copy::Bad(error.to_string())),
    }
}

fn split_copy<'a>(word: &str, bytes: &'a [u8]) -> Option<(u32, u64, u32, &'a [u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let header = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut words = header.strip_prefix(word)?.strip_prefix(' ')?.split(' ');
    let version = words.next()?.parse().ok()?;
    let counter = words.next()?.parse().ok()?;
    let crc = u32::from_str_radix(words.next()?, 16).ok()?;
    Some((version, counter, crc, &bytes[end + 1..]))
}
