//! A medium so small that everything a power cut may leave of it can be tried.
//!
//! Owns what is on it for sure and what was written since, sector by sector. Writes and flushes
//! enter; every different state that a power cut can leave leaves, once. Never knows what the bytes
//! mean.

use super::counts::Counts;

/// What is written whole or not at all.
pub(super) const SECTOR: usize = 512;

/// States of one crash point that are gone through; a protocol that has more is too large for this.
const STATES_MAX: usize = 1 << 16;

/// Bytes with a volatile cache before them.
#[derive(Debug, Clone)]
pub(super) struct Medium {
    stable: Vec<u8>,
    /// Sectors written and not flushed, in order.
    cached: Vec<(usize, Vec<u8>)>,
}

impl Medium {
    /// A medium that holds this for sure.
    pub(super) fn new(stable: Vec<u8>) -> Self {
        assert!(stable.len().is_multiple_of(SECTOR), "whole sectors");
        Self {
            stable,
            cached: Vec::new(),
        }
    }

    /// What a reader sees.
    pub(super) fn view(&self) -> Vec<u8> {
        let mut bytes = self.stable.clone();
        for (sector, content) in &self.cached {
            place(&mut bytes, *sector, content);
        }
        bytes
    }

    /// A write that is in flight, or done and in the cache: a power cut treats both alike.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let offset = usize::try_from(offset).expect("64-bit platform");
        assert!(offset.is_multiple_of(SECTOR) && bytes.len().is_multiple_of(SECTOR));
        for (index, content) in bytes.chunks(SECTOR).enumerate() {
            self.cached
                .push((offset / SECTOR + index, content.to_vec()));
        }
    }

    /// Everything written so far is safe.
    pub(super) fn flush(&mut self) {
        self.stable = self.view();
        self.cached.clear();
    }

    /// The last write of so many bytes at this place was durable and is done: it is safe, and so is
    /// what was written there before it.
    pub(super) fn finish_durable(&mut self, offset: u64, len: usize) {
        let first = usize::try_from(offset).expect("64-bit platform") / SECTOR;
        let range = first..first + len / SECTOR;
        for (sector, content) in &self.cached {
            if range.contains(sector) {
                place(&mut self.stable, *sector, content);
            }
        }
        self.cached.retain(|(sector, _)| !range.contains(sector));
    }

    /// Calls `look` with every different state that a power cut now can leave: of each sector what
    /// is safe, or any of the writes since.
    pub(super) fn losses<E>(
        &self,
        counts: &mut Counts,
        mut look: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        counts.crash_points += 1;
        counts.loss_subsets += 1 << self.cached.len().min(127);
        let versions = self.versions();
        let states: usize = versions
            .iter()
            .map(|(_, versions)| versions.len())
            .product();
        assert!(states <= STATES_MAX, "{states} states of one crash point");
        let mut bytes = self.stable.clone();
        for state in 0..states {
            let mut left = state;
            for (sector, versions) in &versions {
                place(&mut bytes, *sector, versions[left % versions.len()]);
                left /= versions.len();
            }
            counts.states += 1;
            look(&bytes)?;
        }
        Ok(())
    }

    /// The sectors that are not safe, each with its different contents.
    fn versions(&self) -> Vec<(usize, Vec<&[u8]>)> {
        let mut versions: Vec<(usize, Vec<&[u8]>)> = Vec::new();
        for (sector, content) in &self.cached {
            let at = versions.iter().position(|(other, _)| other == sector);
            let at = at.unwrap_or_else(|| {
                let safe = &self.stable[sector * SECTOR..][..SECTOR];
                versions.push((*sector, vec![safe]));
                versions.len() - 1
            });
            if !versions[at].1.contains(&content.as_slice()) {
                versions[at].1.push(content);
            }
        }
        versions.retain(|(_, contents)| contents.len() > 1);
        versions
    }
}

fn place(bytes: &mut [u8], sector: usize, content: &[u8]) {
    bytes[sector * SECTOR..][..SECTOR].copy_from_slice(content);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn states(medium: &Medium) -> (Counts, BTreeSet<Vec<u8>>) {
        let mut counts = Counts::default();
        let mut seen = BTreeSet::new();
        let looked: Result<(), ()> = medium.losses(&mut counts, |bytes| {
            let firsts = bytes.chunks(SECTOR).map(|sector| sector[0]).collect();
            assert!(seen.insert(firsts), "a state is looked at once");
            Ok(())
        });
        assert!(looked.is_ok());
        (counts, seen)
    }

    #[test]
    fn every_subset_of_what_is_not_flushed_is_a_state() {
        let mut medium = Medium::new(vec![0; 3 * SECTOR]);
        medium.write(0, &[1; 2 * SECTOR]);
        medium.write(512, &[2; SECTOR]);
        let (counts, seen) = states(&medium);
        let expected = [
            [0, 0, 0],
            [1, 0, 0],
            [0, 1, 0],
            [1, 1, 0],
            [0, 2, 0],
            [1, 2, 0],
        ];
        assert_eq!(seen, expected.map(Vec::from).into());
        assert_eq!((counts.loss_subsets, counts.states), (8, 6));
        medium.finish_durable(512, SECTOR);
        assert_eq!(
            states(&medium).1,
            [[0, 2, 0], [1, 2, 0]].map(Vec::from).into()
        );
        medium.flush();
        assert_eq!(states(&medium).1, [[1, 2, 0]].map(Vec::from).into());
    }
}
