//! A group that is not open: what is remembered of it, and what its next start is to know.
//!
//! Owns short looks at its superblock, under its claim. An open group holds that claim, so all of
//! this fails as busy then. Never touches a map or a backing.

use super::OpenError;
use super::metadata::SuperblockFile;
use blkrep_io::Host;
use blkrep_log::superblock::Group;
use blkrep_types::{Generation, GroupName, History};
use std::path::Path;

/// Reads, changes if told, and says what stands there then; `None` if nothing is remembered.
fn visit<H: Host>(
    host: &H,
    directory: &Path,
    group: &GroupName,
    change: impl FnOnce(&mut Group),
) -> Result<Option<Group>, OpenError> {
    let known = host.list(directory)?;
    if !known.contains(&format!("{group}.group")) {
        return Ok(None);
    }
    let (mut superblock, record) = SuperblockFile::open(host, directory, group)?;
    let Some(before) = record else {
        return Ok(None);
    };
    let mut after = before.clone();
    change(&mut after);
    if after != before {
        superblock.save(&after)?;
    }
    Ok(Some(after))
}

/// The next start of the group compares everything with every target. Durable when it returns;
/// false if the group has no link, so that there is nothing to compare with.
///
/// # Errors
/// The group is open, or its superblock cannot be read or written.
pub fn distrust_group<H: Host>(
    host: &H,
    directory: &Path,
    group: &GroupName,
) -> Result<bool, OpenError> {
    let record = visit(host, directory, group, |record| record.distrust = true)?;
    Ok(record.is_some_and(|record| !record.links.is_empty()))
}

/// The history of the group; `None` if nothing is remembered of it.
///
/// # Errors
/// The group is open, or its superblock cannot be read.
pub fn history_of_closed<H: Host>(
    host: &H,
    directory: &Path,
    group: &GroupName,
) -> Result<Option<History>, OpenError> {
    let record = visit(host, directory, group, |_| ())?;
    Ok(record.map(|record| record.history))
}

/// The group serves nothing at its next start: a newer generation is known. Durable when it
/// returns.
///
/// # Errors
/// The group is open, or its superblock cannot be read or written.
pub fn fence_closed<H: Host>(
    host: &H,
    directory: &Path,
    group: &GroupName,
    newer: Generation,
) -> Result<(), OpenError> {
    visit(host, directory, group, |record| record.newer = newer).map(drop)
}
