//! A group whose backings were changed behind its back.
//!
//! Owns one fact in the superblock: no map can be trusted. The group must not be open.

use super::OpenError;
use super::metadata::SuperblockFile;
use blkrep_io::Host;
use blkrep_types::GroupName;
use std::path::Path;

/// The next start of the group compares everything with every target. Durable when it returns;
/// false if nothing is remembered of the group, so that there is nothing to compare with.
///
/// # Errors
/// The group is open, or its superblock cannot be read or written.
pub fn distrust_group<H: Host>(
    host: &H,
    directory: &Path,
    group: &GroupName,
) -> Result<bool, OpenError> {
    let (mut superblock, record) = SuperblockFile::open(host, directory, group)?;
    let Some(mut record) = record else {
        return Ok(false);
    };
    record.distrust = true;
    superblock.save(&record)?;
    Ok(!record.links.is_empty())
}
