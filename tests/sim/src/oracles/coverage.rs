//! No lost dirt (I4): an extent that differs is known of.

use super::Pair;
use crate::cluster::Cluster;
use blkrep_types::{ByteLen, ByteOffset, Extent, VolumeIndex};

/// True if there was something to judge.
pub(super) fn judge(pair: &Pair<'_>, cluster: &Cluster) -> Result<bool, String> {
    let replica = &pair.replica;
    let status = pair.served.engine().status();
    let link = status.links.iter().find(|(name, ..)| *name == pair.link);
    // What the target knows of itself it hands over. What its journal has it applies: all that it has
    // acknowledged must be in its bases. What it has not is in the log.
    let applied = link.is_some_and(|(_, _, link)| link.durable == replica.applied);
    if !applied || replica.dirty != ByteLen::ZERO {
        return Ok(false);
    }
    let grain = cluster.plan.groups[pair.group].extent_bytes;
    let differing = cluster.differing(pair.group, pair.home, pair.target);
    for (volume, ranges) in (0_u16..).zip(differing) {
        for range in ranges {
            let start = u64::try_from(range.start).expect("64-bit platform") / grain * grain;
            let len =
                grain.min(cluster.plan.groups[pair.group].volumes[usize::from(volume)] - start);
            let extent = Extent::new(ByteOffset::new(start), ByteLen::new(len));
            let extent = extent.expect("a part of a volume");
            let volume = VolumeIndex::new(volume);
            if !pair.served.engine().covers(&pair.link, volume, extent) {
                return Err(format!(
                    "{volume:?} differs in {extent:?}, and link {} does not know",
                    pair.link
                ));
            }
        }
    }
    Ok(true)
}
