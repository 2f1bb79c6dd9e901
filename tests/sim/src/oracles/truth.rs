//! Status tells the truth: where both ends say that nothing is missing, nothing is.

use super::Pair;
use crate::cluster::Cluster;
use crate::judge;
use blkrep_core::source::{Connection, MirrorPhase, Position};
use blkrep_types::{ByteLen, DataState};

pub(super) fn judge(pair: &Pair<'_>, cluster: &Cluster, outstanding: usize) -> Result<(), String> {
    let status = pair.served.engine().status();
    let link = status.links.iter().find(|(name, ..)| *name == pair.link);
    let Some((_, _, link)) = link else {
        return Ok(());
    };
    let source_is_calm = outstanding == 0
        && status.requests == 0
        && link.connection == Connection::Up
        && link.position == Position::Following
        && link.mirror.phase == MirrorPhase::Idle
        && link.dirty_bytes == ByteLen::ZERO
        && link.queued_ops == 0;
    let replica = &pair.replica;
    let target_is_calm = replica.data_state == DataState::Ok
        && replica.applied == replica.received
        && replica.durable == link.durable
        && replica.dirty == ByteLen::ZERO;
    if !source_is_calm || !target_is_calm {
        return Ok(());
    }
    let differing = cluster.differing(pair.group, pair.home, pair.target);
    if differing.iter().all(Vec::is_empty) {
        return Ok(());
    }
    let images = |node| cluster.images(node, pair.group);
    judge::equal(&images(pair.home), &images(pair.target))
        .map_err(|why| format!("both ends say that nothing is missing: {why}"))
}
