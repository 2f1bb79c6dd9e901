//! What a power cut may take from volumes, though readers see it.
//!
//! Owns the list: places that differ from what is durable, and places of writes that nobody flushed, of
//! which a cut leaves any. Disks enter, places leave.

use super::age::Place;
use super::cluster::Cluster;
use blkrep_io::sim::Unflushed;
use blkrep_order::SECTOR_BYTES;

const SECTOR: u64 = SECTOR_BYTES as u64;

/// Where a power cut now may leave something else than readers see of a group's volumes on a node.
#[must_use]
pub fn unflushed(cluster: &Cluster, node: usize, group: usize) -> Vec<Place> {
    let durable = cluster.durable_images(node, group);
    let mut places = differing_sectors(&cluster.images(node, group), &durable);
    let backings = cluster.backings(group);
    for write in cluster.world.unflushed(cluster.hosts[node]) {
        let Unflushed::Write {
            path, offset, len, ..
        } = write
        else {
            continue;
        };
        let mut volumes = (0_u16..).zip(&backings);
        if let Some((volume, _)) = volumes.find(|(_, backing)| **backing == path) {
            let sectors = offset / SECTOR..(offset + len).div_ceil(SECTOR);
            places.push((volume, sectors));
        }
    }
    places
}

/// Sectors, by volume, that differ.
fn differing_sectors(ones: &[Vec<u8>], others: &[Vec<u8>]) -> Vec<Place> {
    let mut places = Vec::new();
    for (volume, (one, other)) in (0_u16..).zip(ones.iter().zip(others)) {
        let sectors = one.chunks(SECTOR_BYTES).zip(other.chunks(SECTOR_BYTES));
        let differ = (0_u64..)
            .zip(sectors)
            .filter(|(_, (one, other))| one != other);
        places.extend(differ.map(|(sector, _)| (volume, sector..sector + 1)));
    }
    places
}
