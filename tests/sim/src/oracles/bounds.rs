//! No queue is longer than its limit (I8).

use super::Pair;
use crate::cluster::Cluster;
use blkrep_types::ByteLen;

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
    let journal = ByteLen::new(plan.journal_bytes);
    let (used, capacity) = (pair.replica.journal_used, pair.replica.journal_capacity);
    if used > capacity || capacity > journal {
        return Err(format!(
            "the journal has {used} of {capacity}, and may have {journal}"
        ));
    }
    Ok(())
}
