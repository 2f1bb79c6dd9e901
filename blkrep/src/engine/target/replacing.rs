//! Another base for one volume of a replica.
//!
//! Owns the order: the new base is claimed and looked at, then it and the loss of all that the old
//! one held become durable in one step. The link is not touched: its source hears what is lost when
//! it connects, and sends it.

use super::base::{open_known, open_new, unmake};
use super::files::{Base, Opened, ReplicaFiles, shape_of};
use super::policy::{TargetError, TargetPolicy};
use blkrep_io::Host;
use blkrep_store::superblock::Replica;
use blkrep_types::{VolumeIndex, VolumeName};
use std::path::Path;

/// A base that takes the place of another.
#[derive(Debug, Clone, Copy)]
pub struct Replacement<'a> {
    /// The volume.
    pub volume: &'a VolumeName,
    /// What holds it from now on; the path of before, if another disk is there now.
    pub path: &'a Path,
    /// What it holds may be overwritten.
    pub overwrite: bool,
    /// Where bases may be.
    pub policy: &'a TargetPolicy,
}

impl<H: Host> ReplicaFiles<H> {
    /// Opens the replica with another base for one of its volumes; the old one is not looked for.
    /// All of that volume counts as different, durably, before this returns.
    ///
    /// # Errors
    /// As [`ReplicaFiles::open`]; there is no such volume; or the path is not allowed, too small,
    /// in use, or holds something else. Then nothing was changed.
    pub fn open_replacing(
        host: &H,
        directory: &Path,
        replacement: &Replacement<'_>,
    ) -> Result<Option<Opened<H>>, TargetError> {
        let mut replaced = VolumeIndex::new(0);
        let mut made = Vec::new();
        let opened = Self::open_with(host, directory, |replica| {
            let at = place(replica, replacement)?;
            replaced = replica.volumes[at].index;
            let mut bases = Vec::with_capacity(replica.volumes.len());
            for (index, volume) in replica.volumes.iter_mut().enumerate() {
                let shape = shape_of(volume);
                bases.push(Base::of(if index == at {
                    replacement.path.clone_into(&mut volume.path);
                    let (policy, overwrite) = (replacement.policy, replacement.overwrite);
                    open_new(host, policy, &volume.path, &shape, overwrite, &mut made)?
                } else {
                    open_known(host, &volume.path, &shape)?
                }));
            }
            Ok(bases)
        });
        let opened = opened.inspect_err(|_| unmake(host, &made))?;
        let Some((mut opened, _)) = opened else {
            return Ok(None);
        };
        opened.facts.replaced(replaced);
        opened.files.persist(&mut opened.facts)?;
        Ok(Some(opened))
    }
}

/// Which volume is meant; no other may be at the new path.
fn place(replica: &Replica, replacement: &Replacement<'_>) -> Result<usize, TargetError> {
    let mut at = None;
    for (index, volume) in replica.volumes.iter().enumerate() {
        if volume.name == *replacement.volume {
            at = Some(index);
        } else if volume.path == replacement.path {
            let path = replacement.path.to_owned();
            return Err(TargetError::SamePath { path });
        }
    }
    at.ok_or_else(|| TargetError::NoVolume(replacement.volume.clone()))
}
