//! What a guest tells: samples and words, one JSON object a line on the record channel.
//!
//! Owns their shapes. Written inside, read outside. Never judges a figure.

use crate::plan::Contestant;
use serde::{Deserialize, Serialize};

/// One line of a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub(crate) enum Message {
    /// What happens now, for whoever waits.
    Progress {
        /// Words.
        text: String,
    },
    /// What the guest is.
    Machine {
        /// Release of its kernel.
        kernel: String,
        /// Processors.
        cpus: usize,
    },
    /// How a contestant was set up.
    Settings {
        /// Who.
        contestant: Contestant,
        /// Its settings.
        text: String,
    },
    /// One point of one round.
    Sample(Sample),
    /// One full mirror.
    Mirror(MirrorSample),
    /// Memory of a daemon.
    Memory(MemorySample),
    /// What requests cost a server.
    Cost(CostSample),
    /// A contestant that could not be measured; it takes no part any more.
    Failed {
        /// Who.
        contestant: Contestant,
        /// Why.
        reason: String,
    },
}

/// One point of one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Round, from 0.
    pub(crate) round: u32,
    /// Who.
    pub(crate) contestant: Contestant,
    /// The point's name.
    pub(crate) point: String,
    /// Completed requests a second, as the application sees them.
    pub(crate) iops: f64,
    /// Completed bytes a second, as the application sees them.
    pub(crate) bytes_per_second: f64,
    /// Mean completion latency.
    pub(crate) latency_mean_us: f64,
    /// 99th percentile of the completion latency.
    pub(crate) latency_p99_us: f64,
    /// What the target made of it, for writes through a link.
    pub(crate) replication: Option<Replication>,
}

/// Replication during one point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Replication {
    /// It was in state `replicating` at every look, and no byte went by mirror.
    pub(crate) never_left: bool,
    /// The first other state that was seen.
    pub(crate) left_for: Option<String>,
    /// How often it was looked at.
    pub(crate) looks: u32,
    /// Bytes written through the device, the ramp included; all of them durable on the target.
    pub(crate) durable_bytes: u64,
    /// From the first write to the last durable acknowledgement.
    pub(crate) seconds: f64,
    /// From the application's end to the last durable acknowledgement.
    pub(crate) drain_seconds: f64,
    /// Most bytes in the write log at a look.
    pub(crate) queue_bytes_max: u64,
}

/// One full mirror.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MirrorSample {
    /// Round, from 0.
    pub(crate) round: u32,
    /// Who.
    pub(crate) contestant: Contestant,
    /// Bytes of the volume.
    pub(crate) bytes: u64,
    /// From the command to equality.
    pub(crate) seconds: f64,
    /// What the disk itself reads a second, measured in the same round.
    pub(crate) disk_read: f64,
    /// What it writes.
    pub(crate) disk_write: f64,
}

/// Memory of a source over a run with its link down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MemorySample {
    /// Size of the group's log.
    pub(crate) log_bytes: u64,
    /// Bytes written with the link down.
    pub(crate) written_bytes: u64,
    /// `VmHWM` of the daemon before any load.
    pub(crate) idle_bytes: u64,
    /// `VmHWM` after the writes.
    pub(crate) down_bytes: u64,
    /// `VmHWM` after the target came back and got everything.
    pub(crate) peak_bytes: u64,
    /// Settings that grant memory, with their bytes.
    pub(crate) configured: Vec<(String, u64)>,
}

/// What one request cost a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CostSample {
    /// Who.
    pub(crate) contestant: Contestant,
    /// The point's name.
    pub(crate) point: String,
    /// Requests a second at full speed.
    pub(crate) iops: f64,
    /// Threads that did something, the busiest first.
    pub(crate) threads: Vec<ThreadCost>,
    /// System calls of all servers for each request, the most frequent first; counted in a second, slower run.
    pub(crate) calls: Vec<(String, f64)>,
}

/// One thread's part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ThreadCost {
    /// Its name.
    pub(crate) name: String,
    /// Processor time for each request.
    pub(crate) cpu_us: f64,
    /// How often it gave up the processor to wait, for each request.
    pub(crate) waits: f64,
    /// How often it was interrupted, for each request.
    pub(crate) preemptions: f64,
}
