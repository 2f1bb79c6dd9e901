//! What a power cut takes, chosen instead of drawn.
//!
//! Owns the list of sectors of a host that can be read and are not safe, and its subsets. Never
//! decides which are tried beyond what a limit leaves out.

use super::medium::SECTOR;
use blkrep_io::sim::{NodeId, SimRandom, SimWorld};
use std::path::{Path, PathBuf};

/// Sectors of which all subsets are tried.
pub(super) const ALL_OF: usize = 10;

/// Subsets drawn where there are more sectors than that.
const DRAWN: usize = 64;

const ZEROES: [u8; SECTOR] = [0; SECTOR];

/// A file with sectors that are not safe.
#[derive(Debug)]
struct Unsafe {
    path: PathBuf,
    stable: Vec<u8>,
    view: Vec<u8>,
    sectors: Vec<usize>,
}

/// What a power cut now may take of a host.
#[derive(Debug)]
pub(super) struct Losses {
    node: NodeId,
    files: Vec<Unsafe>,
}

impl Losses {
    pub(super) fn of(world: &SimWorld, node: NodeId) -> Self {
        let mut files = Vec::new();
        for path in world.paths(node) {
            let view = world.image(node, &path);
            let stable = world.durable_image(node, &path);
            let pairs = view.chunks(SECTOR).zip(stable.chunks(SECTOR)).enumerate();
            let differ = pairs.filter(|(_, (view, stable))| view != stable);
            let sectors: Vec<usize> = differ.map(|(sector, _)| sector).collect();
            if !sectors.is_empty() {
                files.push(Unsafe {
                    path,
                    stable,
                    view,
                    sectors,
                });
            }
        }
        Self { node, files }
    }

    /// How many sectors.
    pub(super) fn len(&self) -> usize {
        self.files.iter().map(|file| file.sectors.len()).sum()
    }

    /// Names the state that is left if of a world where `nothing` is kept these sectors are.
    pub(super) fn state(&self, nothing: u128, keep: &[bool]) -> u128 {
        let mut keep = keep.iter();
        let mut state = nothing;
        for file in &self.files {
            for (sector, _) in file
                .sectors
                .iter()
                .zip(keep.by_ref())
                .filter(|(_, keep)| **keep)
            {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                for bytes in [&file.stable, &file.view] {
                    state ^= of_sector(self.node, &file.path, *sector, &bytes[range.clone()]);
                }
            }
        }
        state
    }

    /// The host of another world, which was a copy of this one, lost power and keeps of these
    /// sectors those that `keep` names.
    pub(super) fn apply(&self, world: &SimWorld, node: NodeId, keep: &[bool]) {
        let mut keep = keep.iter();
        let there = world.paths(node);
        for file in &self.files {
            let mut bytes = file.stable.clone();
            for (sector, keep) in file.sectors.iter().zip(keep.by_ref()) {
                if *keep {
                    let at = sector * SECTOR;
                    bytes[at..at + SECTOR].copy_from_slice(&file.view[at..at + SECTOR]);
                }
            }
            if there.contains(&file.path) {
                world.set_image(node, &file.path, &bytes);
            }
        }
    }
}

/// A number for some bytes; no two that differ have the same.
pub(super) fn digest(bytes: &[u8]) -> u128 {
    let hash = blake3::hash(bytes);
    let half = hash.as_bytes().first_chunk().expect("it has 32 bytes");
    u128::from_le_bytes(*half)
}

fn of_sector(node: NodeId, path: &Path, sector: usize, bytes: &[u8]) -> u128 {
    if bytes == ZEROES {
        return 0;
    }
    let name = format!("{node:?} {} {sector} ", path.display());
    digest(&[name.as_bytes(), bytes].concat())
}

/// Names the state of all disks: the sum of their sectors, so that a change is told from the sectors
/// that change.
pub(super) fn fingerprint(world: &SimWorld, hosts: &[NodeId]) -> u128 {
    let mut sum = 0;
    for host in hosts {
        for path in world.paths(*host) {
            let image = world.image(*host, &path);
            for (sector, bytes) in image.chunks(SECTOR).enumerate() {
                sum ^= of_sector(*host, &path, sector, bytes);
            }
        }
    }
    sum
}

/// All subsets of `len` things; if they are more than 2^[`ALL_OF`], those of up to two and of all
/// but up to two, and as many drawn ones. True if they are all.
pub(super) fn subsets(len: usize) -> (Vec<Vec<bool>>, bool) {
    if len <= ALL_OF {
        let bits = |number: usize| (0..len).map(|bit| number >> bit & 1 == 1).collect();
        return ((0..1_usize << len).map(bits).collect(), true);
    }
    let mut some = Vec::new();
    for kept in [false, true] {
        some.push(vec![!kept; len]);
        for one in 0..len {
            for other in one..len {
                let mut subset = vec![!kept; len];
                (subset[one], subset[other]) = (kept, kept);
                some.push(subset);
            }
        }
    }
    let mut random = SimRandom::new(u64::try_from(len).expect("small"));
    some.extend((0..DRAWN).map(|_| (0..len).map(|_| random.one_in(2)).collect()));
    (some, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn all_subsets_are_there_once_and_of_many_the_extremes() {
        let (all, whole) = subsets(4);
        let different: BTreeSet<_> = all.iter().collect();
        assert_eq!((all.len(), different.len(), whole), (16, 16, true));
        let (some, whole) = subsets(12);
        let kept = |subset: &Vec<bool>| subset.iter().filter(|keep| **keep).count();
        let of = |count| {
            some[..some.len() - DRAWN]
                .iter()
                .filter(|s| kept(s) == count)
                .count()
        };
        let sizes = [0, 1, 2, 10, 11, 12].map(of);
        assert_eq!((sizes, whole), ([1, 12, 66, 66, 12, 1], false));
    }
}
