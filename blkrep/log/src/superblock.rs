//! The superblock of a source's group: whose data it is, of which history, with which links.
//!
//! Owns the format of `docs/format/source-superblock.md`: two copies in one file, written in turn,
//! the one with the higher counter is right. Facts enter and bytes leave, or the other way round.
//! Never decides what a state allows.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

pub use decode::{Chosen, choose};

use blkrep_types::{
    BlockSize, ByteLen, ExtentSize, Generation, GroupName, History, Incarnation, LinkName,
    LossPolicy, MirrorKind, Mode, Seq, VolumeIndex, VolumeName,
};

/// Room of one copy: 16 links with a path of about a kilobyte for each of 64 volumes.
pub const COPY_BYTES: u64 = 1 << 20;

/// Bytes of the file.
pub const SUPERBLOCK_BYTES: u64 = 2 * COPY_BYTES;

/// Longest path at a target, as the kernel's `PATH_MAX` has it.
pub const PATH_BYTES_MAX: usize = 4096;

/// Longest address of a peer: a host name and a port.
pub const PEER_BYTES_MAX: usize = 300;

/// Most bytes of a memory log that are believed: more than any host has, and four times what can be set.
pub const LOG_BYTES_MAX: u64 = 1 << 40;

pub(crate) const VERSION: u32 = 1;
pub(crate) const MAGIC: [u8; 8] = *b"BLKrGRUP";
pub(crate) const WHAT: &str = "superblock of the group";

/// One volume of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupVolume {
    /// Its place in the group.
    pub index: VolumeIndex,
    /// Its name.
    pub name: VolumeName,
    /// Its size.
    pub len: ByteLen,
    /// Grain of its requests.
    pub block_size: BlockSize,
    /// Grain of its dirty maps.
    pub extent_size: ExtentSize,
}

/// What holds transmission, by command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransmitHeld {
    /// Nothing.
    #[default]
    Started,
    /// The log keeps.
    Paused,
    /// Extents are tracked.
    Stopped,
}

/// One link of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupLink {
    /// Its place among the group's links, below 16.
    pub place: u8,
    /// Random, new whenever a link is made: names its map and its memory.
    pub id: [u8; 16],
    /// Its name.
    pub name: LinkName,
    /// When writes complete.
    pub mode: Mode,
    /// What happens to writes when it is lost.
    pub loss: LossPolicy,
    /// What holds transmission.
    pub transmit: TransmitHeld,
    /// What the target holds may be overwritten, until its first acknowledgement.
    pub overwrite: bool,
    /// The mirror asked for, until the first acknowledgement.
    pub first_mirror: Option<MirrorKind>,
    /// It is to be connected.
    pub wanted: bool,
    /// Address and port of the target.
    pub peer: String,
    /// Where the target keeps each volume, by index; empty if the target is to choose.
    pub paths: Vec<String>,
}

/// Everything a superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Random, new whenever a group is made.
    pub id: [u8; 16],
    /// Its name.
    pub name: GroupName,
    /// The last run ended in order, with `head` as its last name.
    pub clean: bool,
    /// Nobody watched the backings since then: the next connection compares everything.
    pub distrust: bool,
    /// The generations of the data, the current one last.
    pub history: History,
    /// The run that is going on, or the last one.
    pub incarnation: Incarnation,
    /// The last name given, if the last run ended in order.
    pub head: (Incarnation, Seq),
    /// Names the memory log: one with another identity is not ours.
    pub log_id: [u8; 16],
    /// Bytes of data the memory log holds.
    pub log_bytes: ByteLen,
    /// The backings are lost: the group is served by the target of the link at this place, and no run
    /// touches a backing.
    pub served_by: Option<u8>,
    /// A newer generation that exists elsewhere; [`Generation::NONE`] if none was heard of. While
    /// it is known the group is fenced.
    pub newer: Generation,
    /// Names the intent map.
    pub intent_map: [u8; 16],
    /// Its volumes, by index.
    pub volumes: Vec<GroupVolume>,
    /// Its links.
    pub links: Vec<GroupLink>,
}
