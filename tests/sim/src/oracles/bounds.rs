//! No queue is longer than its limit (I8).

use super::Pair;
use crate::cluster::Cluster;
use crate::served::QUEUE_SEGMENT;
use blkrep_types::ByteLen;

/// Segments of the largest disk queue that a plan or an operator has.
const QUEUE_SEGMENTS_MAX: u64 = 6;

pub(super) fn judge(pair: &Pair<'_>, cluster: &Cluster) -> Result<(), String> {
    let plan = &cluster.plan.groups[pair.group];
    let status = pair.served.engine().status();
    let log = ByteLen::new(plan.log_bytes);
    for (name, _, link) in &status.links {
        if link.queued_bytes > log {
            return Err(format!(
                "link {name} has {} queued, and the log holds {log}",
                link.queued_bytes
            ));
        }
    }
    let queue = status.queue;
    if queue.memory.0 > log || queue.disk.get() > QUEUE_SEGMENTS_MAX * QUEUE_SEGMENT {
        return Err(format!(
            "the log and its disk queue hold more than they may: {queue:?}"
        ));
    }
    let journal = ByteLen::new(plan.journal_bytes);
    let (used, capacity) = (pair.replica.journal_used, pair.replica.journal_capacity);
    if used > capacity || capacity > journal {
        return Err(format!(
            "the journal has {used} of {capacity}, and may have {journal}"
        ));
    }
    Ok(())
}
