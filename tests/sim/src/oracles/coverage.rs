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
    let (here, there) = (
        cluster.images(pair.home, pair.group),
        cluster.images(pair.target, pair.group),
    );
    let grain = cluster.plan.groups[pair.group].extent_bytes;
    let grain = usize::try_from(grain).expect("small");
    for (volume, (here, there)) in (0_u16..).zip(here.iter().zip(&there)) {
        for (index, (one, other)) in here.chunks(grain).zip(there.chunks(grain)).enumerate() {
            if one == other {
                continue;
            }
            let extent = Extent::new(bytes_at(index * grain), len_of(one.len()));
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

fn bytes_at(offset: usize) -> ByteOffset {
    ByteOffset::new(u64::try_from(offset).expect("64-bit platform"))
}

fn len_of(len: usize) -> ByteLen {
    ByteLen::new(u64::try_from(len).expect("64-bit platform"))
}
