//! What this node serves, kept over restarts.
//!
//! Owns two files in the state directory, `table.a` and `table.b`, each a whole copy: a header line
//! with version, counter and CRC32, then JSON. A change goes to the older copy and is durable before
//! it takes effect, so a crash at any moment leaves the state before or after it. Enters: entries.
//! Leaves: the entries of the newest good copy. Never guesses: two bad copies are an error.

use blkrep_api::FrontendKind;
use blkrep_types::{BlockSize, ByteLen, ByteOffset, ExtentSize, GroupName, VolumeName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The version this program writes, and the newest it reads.
const VERSION: u32 = 1;
/// Largest table read: about ten thousand volumes.
const TABLE_BYTES_MAX: u64 = 16 << 20;
const COPIES: [&str; 2] = ["table.a", "table.b"];

/// A table that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum TableError {
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
        "both copies of the volume table in {} are corrupt ({why}); restore {first} from a backup of the state directory, or move both away and attach the volumes again (their data is not touched)",
        directory.display(), first = COPIES[0]
    )]
    Corrupt {
        /// The state directory.
        directory: PathBuf,
        /// What is wrong with them.
        why: String,
    },
    /// Written by a newer program.
    #[error(
        "the volume table {} has version {version}, this blkrepd reads up to {VERSION}; start the newer blkrepd again",
        path.display()
    )]
    Newer {
        /// The copy.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

/// One attached volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VolumeEntry {
    /// The group it belongs to.
    pub group: GroupName,
    /// Its backing, as the operator named it.
    pub backing: PathBuf,
    /// First byte of the backing that belongs to it.
    pub offset: ByteOffset,
    /// Its size.
    pub len: ByteLen,
    /// Its block size.
    pub block_size: BlockSize,
    /// The front end that was chosen; never `auto`.
    pub frontend: FrontendKind,
    /// Its device number, kept over restarts.
    pub device_id: Option<u32>,
    /// Grain of its dirty maps.
    pub extent_size: ExtentSize,
    /// Writes are refused.
    pub read_only: bool,
    /// The boot in which it was attached, if it must not outlive it.
    pub transient_boot: Option<String>,
    /// Its place in its group.
    pub index: u16,
    /// A device serves it. One that is not is kept because its group has links, whose maps and
    /// stream are of all its volumes.
    pub served: bool,
}

/// One group of this node's volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GroupEntry {
    /// It was promoted here from a replica.
    pub promoted: bool,
    /// It was never served since: what its former source lacks is still to be tracked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untracked: bool,
}

/// Everything the node serves as a source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entries {
    /// Groups by name.
    pub groups: BTreeMap<GroupName, GroupEntry>,
    /// Volumes by name.
    pub volumes: BTreeMap<VolumeName, VolumeEntry>,
}

/// The table in its directory.
#[derive(Debug)]
pub(super) struct Table {
    directory: PathBuf,
    counter: u64,
    entries: Entries,
}

enum Copy {
    Missing,
    Bad(String),
    Good(u64, Box<Entries>),
}

impl Table {
    /// Reads the newest good copy; a directory without copies is an empty table. The second value
    /// names a copy that was bad, and that the next change repairs.
    ///
    /// # Errors
    /// Both copies are bad, one is of a newer version, or the directory cannot be read.
    pub(super) fn load(directory: &Path) -> Result<(Self, Option<String>), TableError> {
        let mut good: Vec<(u64, Box<Entries>)> = Vec::new();
        let mut bad: Vec<String> = Vec::new();
        for name in COPIES {
            match read_copy(&directory.join(name))? {
                Copy::Missing => {}
                Copy::Bad(why) => bad.push(format!("{name}: {why}")),
                Copy::Good(counter, entries) => good.push((counter, entries)),
            }
        }
        let newest = good.into_iter().max_by_key(|(counter, _)| *counter);
        let (counter, entries) = match newest {
            Some((counter, entries)) => (counter, *entries),
            None if bad.is_empty() => (0, Entries::default()),
            None => {
                let directory = directory.to_owned();
                return Err(TableError::Corrupt {
                    directory,
                    why: bad.join(", "),
                });
            }
        };
        let table = Self {
            directory: directory.to_owned(),
            counter,
            entries,
        };
        Ok((table, bad.pop()))
    }

    /// What it holds.
    #[must_use]
    pub(super) const fn entries(&self) -> &Entries {
        &self.entries
    }

    /// Applies `change` and makes the result durable; on an error nothing has changed.
    ///
    /// # Errors
    /// The state directory is full or fails.
    pub(super) fn update(&mut self, change: impl FnOnce(&mut Entries)) -> Result<(), TableError> {
        let mut entries = self.entries.clone();
        change(&mut entries);
        if entries == self.entries && self.counter > 0 {
            return Ok(());
        }
        let counter = self.counter + 1;
        let [mut first, mut second] = COPIES;
        if !counter.is_multiple_of(2) {
            std::mem::swap(&mut first, &mut second);
        }
        write_copy(&self.directory, first, counter, &entries)?;
        // The other copy says the same from now on: if this one rots, no older truth comes back.
        if let Err(error) = write_copy(&self.directory, second, counter, &entries) {
            tracing::warn!(%error, "write the second copy of the table");
        }
        self.counter = counter;
        self.entries = entries;
        Ok(())
    }
}

fn failed<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> TableError + 'a {
    move |source| TableError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

fn read_copy(path: &Path) -> Result<Copy, TableError> {
    let text = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Copy::Missing),
        Err(error) => return Err(failed("examine", path)(error)),
        Ok(about) if about.len() > TABLE_BYTES_MAX => {
            return Ok(Copy::Bad(format!("larger than {TABLE_BYTES_MAX} bytes")));
        }
        Ok(_) => fs::read(path).map_err(failed("read", path))?,
    };
    let Some((version, counter, crc, body)) = split_copy(&text) else {
        return Ok(Copy::Bad("no header".to_owned()));
    };
    if crc32fast::hash(body) != crc {
        return Ok(Copy::Bad("wrong checksum".to_owned()));
    }
    if version > VERSION {
        return Err(TableError::Newer {
            path: path.to_owned(),
            version,
        });
    }
    match serde_json::from_slice(body) {
        Ok(entries) => Ok(Copy::Good(counter, entries)),
        Err(error) => Ok(Copy::Bad(error.to_string())),
    }
}

fn split_copy(bytes: &[u8]) -> Option<(u32, u64, u32, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let header = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut words = header.strip_prefix("blkrep-table ")?.split(' ');
    let version = words.next()?.parse().ok()?;
    let counter = words.next()?.parse().ok()?;
    let crc = u32::from_str_radix(words.next()?, 16).ok()?;
    Some((version, counter, crc, &bytes[end + 1..]))
}

fn write_copy(
    directory: &Path,
    name: &str,
    counter: u64,
    entries: &Entries,
) -> Result<(), TableError> {
    let body = serde_json::to_vec_pretty(entries).expect("a table of strings and numbers is JSON");
    let path = directory.join(name);
    let temporary = directory.join(format!("{name}.new"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&temporary)
        .map_err(failed("create", &temporary))?;
    let header = format!(
        "blkrep-table {VERSION} {counter} {:08x}\n",
        crc32fast::hash(&body)
    );
    file.write_all(header.as_bytes())
        .and_then(|()| file.write_all(&body))
        .and_then(|()| file.sync_all())
        .map_err(failed("write", &temporary))?;
    fs::rename(&temporary, &path).map_err(failed("replace", &path))?;
    let parent = File::open(directory).map_err(failed("open", directory))?;
    parent.sync_all().map_err(failed("sync", directory))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn name(text: &str) -> GroupName {
        GroupName::new(text).unwrap()
    }

    fn add(table: &mut Table, group: &str) {
        table
            .update(|entries| {
                entries.groups.insert(name(group), GroupEntry::default());
            })
            .unwrap();
    }

    #[test]
    fn what_was_updated_is_loaded_again() {
        let directory = tempfile::tempdir().unwrap();
        let (mut table, bad) = Table::load(directory.path()).unwrap();
        assert!(bad.is_none() && table.entries().groups.is_empty());
        for group in ["a", "b", "c"] {
            add(&mut table, group);
        }
        let (again, bad) = Table::load(directory.path()).unwrap();
        assert_eq!(again.entries(), table.entries());
        assert!(bad.is_none());
    }

    #[test]
    fn one_corrupt_copy_is_survived_and_named_and_two_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (mut table, _) = Table::load(directory.path()).unwrap();
        add(&mut table, "a");
        add(&mut table, "b");
        // The older copy is lost: nothing is.
        fs::write(directory.path().join(COPIES[1]), b"rubbish").unwrap();
        let (survivor, bad) = Table::load(directory.path()).unwrap();
        assert_eq!(survivor.entries(), table.entries());
        assert!(bad.unwrap().contains("table.b"));
        let mut text = fs::read(directory.path().join(COPIES[0])).unwrap();
        *text.last_mut().unwrap() ^= 1;
        fs::write(directory.path().join(COPIES[0]), text).unwrap();
        let refusal = Table::load(directory.path()).unwrap_err().to_string();
        assert!(
            refusal.contains("both copies") && refusal.contains("attach"),
            "{refusal}"
        );
    }

    #[test]
    fn a_newer_version_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let body = b"{}";
        let text = format!("blkrep-table 9 1 {:08x}\n{{}}", crc32fast::hash(body));
        fs::write(directory.path().join(COPIES[0]), &text).unwrap();
        let refusal = Table::load(directory.path()).unwrap_err().to_string();
        assert!(refusal.contains("version 9"), "{refusal}");
        assert_eq!(
            fs::read(directory.path().join(COPIES[0])).unwrap(),
            text.as_bytes()
        );
    }

    #[test]
    fn a_failed_update_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (mut table, _) = Table::load(directory.path()).unwrap();
        add(&mut table, "a");
        let before = table.entries().clone();
        fs::create_dir(directory.path().join("table.a.new")).unwrap();
        let refusal = table.update(|entries| entries.groups.clear()).unwrap_err();
        assert!(refusal.to_string().contains("create"), "{refusal}");
        assert_eq!(table.entries(), &before);
        assert_eq!(Table::load(directory.path()).unwrap().0.entries(), &before);
    }
}
