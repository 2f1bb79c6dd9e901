//! A replica's superblock: whose data it is, of which history, and what it is worth.
//!
//! Owns the format of `docs/format/target-superblock.md`: two copies in one file, written in turn,
//! the one with the higher counter is right. Facts enter and bytes leave, or the other way round.
//! Never decides what a state allows.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

use blkrep_types::{
    BlockSize, ByteLen, DataState, ExtentSize, GroupName, History, LinkName, NodeName, VolumeIndex,
    VolumeName, WriteName,
};
use std::path::PathBuf;

/// Room of one copy: 64 volumes with the longest paths and a full history.
pub const COPY_BYTES: u64 = 512 << 10;

/// Bytes of the file.
pub const SUPERBLOCK_BYTES: u64 = 2 * COPY_BYTES;

/// Longest path of a base, as the kernel's `PATH_MAX` has it.
pub const PATH_BYTES_MAX: usize = 4096;

pub(crate) const VERSION: u32 = 1;
pub(crate) const MAGIC: [u8; 8] = *b"BLKrREPL";
pub(crate) const WHAT: &str = "superblock of the replica";

/// What the node is for the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaRole {
    /// It receives.
    Target,
    /// It was promoted: another engine serves and writes the bases; the journal is void.
    Promoted,
}

/// How the extents that differ are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// None does; the map file means nothing.
    Empty,
    /// Those whose bits are set in the map file.
    Map,
    /// Any may; the map file means nothing.
    Everything,
}

/// One volume of the replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaVolume {
    /// Its place in the group.
    pub index: VolumeIndex,
    /// Its name at the source.
    pub name: VolumeName,
    /// Its size at the source.
    pub len: ByteLen,
    /// Grain of its requests.
    pub block_size: BlockSize,
    /// Grain of its dirty map.
    pub extent_size: ExtentSize,
    /// The base.
    pub path: PathBuf,
}

/// Everything a superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Random, new whenever a replica is made: names its map file's sectors.
    pub id: [u8; 16],
    /// The group.
    pub group: GroupName,
    /// The node it came from last.
    pub source: NodeName,
    /// The link's name at that node.
    pub link: LinkName,
    /// What the node is for the group.
    pub role: ReplicaRole,
    /// What the data is worth.
    pub data_state: DataState,
    /// How the extents that differ are recorded.
    pub part: Part,
    /// Applying was paused by command.
    pub paused: bool,
    /// The generations of the data, the current one last.
    pub history: History,
    /// The last write before the journal's first, where the journal itself cannot say: the name at
    /// which this generation was taken over.
    pub base: WriteName,
    /// A mirror that ends after this write has sent every extent of the part; [`WriteName::NONE`]
    /// while no source has heard of all of them.
    pub merged: WriteName,
    /// Volumes whose base may lose what reads back, a bit each by index.
    pub doubtful: u64,
    /// The journal that belongs to it; another one is void.
    pub journal: [u8; 16],
    /// Its volumes, by index.
    pub volumes: Vec<ReplicaVolume>,
}
