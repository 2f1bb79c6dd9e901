//! Forgetting a group for good.
//!
//! Owns removing what a group left on disk and in shared memory. The group must not be open: its
//! superblock holds the claim. Never touches a backing.

use super::OpenError;
use super::metadata::{SuperblockFile, intent_path, link_path};
use super::recover::{link_memory_name, log_name};
use blkrep_io::Host;
use blkrep_types::GroupName;
use std::path::Path;

/// Removes everything that is remembered of a group.
///
/// # Errors
/// It is open, or a file cannot be removed. An unreadable superblock is removed too: then shared
/// memory may be left until the host's next boot.
pub fn forget_group<H: Host>(
    host: &H,
    directory: &Path,
    group: &GroupName,
) -> Result<(), OpenError> {
    let record = match SuperblockFile::open(host, directory, group) {
        Ok((_, record)) => record,
        Err(OpenError::State { .. }) => None,
        Err(error) => return Err(error),
    };
    if let Some(record) = &record {
        for link in &record.links {
            host.remove(&link_path(directory, group, &link.id))?;
            host.forget_shared_memory(&link_memory_name(record, &link.id))?;
        }
        host.forget_shared_memory(&log_name(record))?;
    }
    host.remove(&intent_path(directory, group))?;
    host.remove(&directory.join(format!("{group}.group")))?;
    Ok(())
}
