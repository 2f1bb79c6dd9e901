//! What this node serves, kept over restarts.
//!
//! Owns the form of the entries; how they are kept is the twin's (`crate::twin`).

use crate::twin::{Twin, TwinError, TwinForm};
use blkrep_api::FrontendKind;
use blkrep_types::{BlockSize, ByteLen, ByteOffset, ExtentSize, GroupName, VolumeName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Two whole copies in the state directory.
const FORM: TwinForm = TwinForm {
    word: "blkrep-table",
    copies: ["table.a", "table.b"],
    version: 1,
    // About ten thousand volumes.
    bytes_max: 16 << 20,
    what: "volume table",
    remedy: "move both away and attach the volumes again (their data is not touched)",
};
#[cfg(test)]
const COPIES: [&str; 2] = FORM.copies;

/// A table that cannot be read or written.
pub(super) type TableError = TwinError;

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
pub(super) struct Table(Twin<Entries>);

impl Table {
    /// Reads the newest good copy; a directory without copies is an empty table. The second value
    /// names a copy that was bad, and that the next change repairs.
    ///
    /// # Errors
    /// Both copies are bad, one is of a newer version, or the directory cannot be read.
    pub(super) fn load(directory: &Path) -> Result<(Self, Option<String>), TableError> {
        let (twin, bad) = Twin::load(&FORM, directory)?;
        Ok((Self(twin), bad))
    }

    /// What it holds.
    #[must_use]
    pub(super) const fn entries(&self) -> &Entries {
        self.0.value()
    }

    /// Applies `change` and makes the result durable; on an error nothing has changed.
    ///
    /// # Errors
    /// The state directory is full or fails.
    pub(super) fn update(&mut self, change: impl FnOnce(&mut Entries)) -> Result<(), TableError> {
        self.0.update(change)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;

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
