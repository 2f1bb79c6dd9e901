//! What passes from one node to another worse than usual.
//!
//! Owns, by direction, how bytes under way are changed past every checksum of TCP's, by how much
//! they are late, and how many connections arrive twice. Draws no chance where nothing is wrong.

use crate::sim::random::SimRandom;
use crate::sim::world::NodeId;
use std::collections::BTreeMap;

/// How bytes under way are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Garble {
    /// Not at all.
    Never,
    /// In one delivery of so many, one bit.
    OneIn(u64),
    /// One bit in each of the next so many bytes.
    Bytes(u64),
}

type Way = (NodeId, NodeId);

/// All directions in which something is wrong.
#[derive(Debug, Default)]
pub(in crate::sim) struct Weather {
    garbles: BTreeMap<Way, Garble>,
    /// Nanoseconds on top of the usual delay, from and to.
    late: BTreeMap<Way, (u64, u64)>,
    doubles: BTreeMap<Way, u32>,
}

impl Weather {
    pub(in crate::sim) fn set_garble(&mut self, way: Way, garble: Garble) {
        self.garbles.insert(way, garble);
    }

    pub(in crate::sim) fn set_late(&mut self, way: Way, nanos: (u64, u64)) {
        self.late.insert(way, nanos);
    }

    pub(in crate::sim) fn set_doubles(&mut self, way: Way, times: u32) {
        self.doubles.insert(way, times);
    }

    /// How much later than usual something is.
    pub(super) fn late(&self, way: Way, random: &mut SimRandom) -> u64 {
        match self.late.get(&way) {
            None | Some((_, 0)) => 0,
            Some((low, high)) => random.between(*low, *high),
        }
    }

    /// True if this connection arrives a second time.
    pub(super) fn doubles(&mut self, way: Way) -> bool {
        let left = self.doubles.get_mut(&way);
        let Some(left) = left.filter(|left| **left > 0) else {
            return false;
        };
        *left -= 1;
        true
    }

    /// Changes what is delivered.
    pub(super) fn garble(&mut self, way: Way, bytes: &mut [u8], random: &mut SimRandom) {
        match self.garbles.get_mut(&way) {
            None | Some(Garble::Never) => {}
            Some(Garble::OneIn(times)) => {
                if random.one_in(*times) && !bytes.is_empty() {
                    bytes[random.index(bytes.len())] ^= 1 << random.below(8);
                }
            }
            Some(Garble::Bytes(left)) => {
                let count =
                    usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                for byte in &mut bytes[..count] {
                    *byte ^= 1 << random.below(8);
                    *left -= 1;
                }
            }
        }
    }
}
