//! What is measured: contestants, points, and the plan that a guest is given.
//!
//! Owns their names. Options of the command line enter, one word of JSON leaves for the guest. Never measures.

use blkrep_types::Mode;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A way to store a block.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Contestant {
    /// The RAM disk itself: the ceiling.
    Ram,
    /// rublk's loop target on a RAM disk.
    Rublk,
    /// A blkrep volume without a link.
    Volume,
    /// A blkrep volume with an asynchronous link to a second daemon, over loopback.
    Async,
    /// The same in `memory` mode.
    Memory,
    /// The same in `sync` mode.
    Sync,
    /// DRBD, protocol A, over loopback.
    DrbdA,
    /// DRBD, protocol B, over loopback.
    DrbdB,
    /// DRBD, protocol C, over loopback.
    DrbdC,
    /// md RAID1 of a RAM disk and an NBD export, over loopback.
    MdNbd,
}

impl Contestant {
    /// Its name in tables.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Ram => "RAM disk",
            Self::Rublk => "rublk loop",
            Self::Volume => "blkrep, no link",
            Self::Async => "blkrep, async",
            Self::Memory => "blkrep, memory",
            Self::Sync => "blkrep, sync",
            Self::DrbdA => "DRBD A",
            Self::DrbdB => "DRBD B",
            Self::DrbdC => "DRBD C",
            Self::MdNbd => "md RAID1 + nbd",
        }
    }

    /// The mode of its link, if it is ours and has one.
    pub(crate) const fn mode(self) -> Option<Mode> {
        match self {
            Self::Async => Some(Mode::Async),
            Self::Memory => Some(Mode::Memory),
            Self::Sync => Some(Mode::Sync),
            _ => None,
        }
    }
}

/// One load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    /// Its name.
    pub(crate) name: &'static str,
    /// fio's word for the pattern.
    pub(crate) pattern: &'static str,
    /// Bytes of a request, in fio's words.
    pub(crate) block: &'static str,
    /// Requests at once.
    pub(crate) depth: u32,
    /// It writes.
    pub(crate) writes: bool,
    /// Its figure is bytes and not requests.
    pub(crate) in_bytes: bool,
}

/// The loads, in the order they are run in.
pub(crate) const POINTS: [Point; 5] = [
    random("write 4k d1", "randwrite", 1, true),
    random("write 4k d32", "randwrite", 32, true),
    random("read 4k d1", "randread", 1, false),
    random("read 4k d32", "randread", 32, false),
    Point {
        name: "write 128k d8",
        pattern: "write",
        block: "128k",
        depth: 8,
        writes: true,
        in_bytes: true,
    },
];

const fn random(name: &'static str, pattern: &'static str, depth: u32, writes: bool) -> Point {
    Point {
        name,
        pattern,
        block: "4k",
        depth,
        writes,
        in_bytes: false,
    }
}

/// The point of this name.
pub(crate) fn point(name: &str) -> Option<&'static Point> {
    POINTS.iter().find(|point| point.name == name)
}

/// What every measurement in a guest needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Common {
    /// How often everything is repeated.
    pub(crate) rounds: u32,
    /// Length of one point after its ramp.
    pub(crate) seconds: u32,
    /// Bytes of the disks that are used, in MiB.
    pub(crate) size_mib: u64,
    /// Who takes part.
    pub(crate) only: Vec<Contestant>,
    /// The reference server, if there is one.
    pub(crate) rublk: Option<PathBuf>,
    /// Settings of both daemons that differ from the defaults, `section.name=value`.
    pub(crate) settings: Vec<String>,
    /// Time in the guest follows instructions, and the machine's own is not seen.
    pub(crate) virtual_time: bool,
}

/// What a guest does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Work {
    /// Every contestant over every point.
    Points,
    /// Full mirrors on disks with a limit.
    Mirror {
        /// The disks' limit.
        limit_mib: u32,
        /// Their size.
        disk_mib: u64,
    },
    /// Memory of a source with its link down, over so many times its log.
    Memory {
        /// Written bytes, in sizes of the log.
        logs: u32,
    },
    /// System calls, switches and processor time of the servers for each request.
    Profile,
}

/// A guest's orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// What it does.
    pub(crate) work: Work,
    /// How.
    pub(crate) common: Common,
}

impl Plan {
    /// How long a guest may take at most, in seconds of its own clock: points with set-up and quiescing, generously.
    pub(crate) fn limit_seconds(&self) -> u64 {
        let common = &self.common;
        let contestants = u64::try_from(common.only.len()).unwrap_or(u64::MAX);
        let points = u64::try_from(POINTS.len()).unwrap_or(u64::MAX);
        let one = points * (u64::from(common.seconds) + 15) + 60;
        u64::from(common.rounds) * contestants.max(1) * one + 300
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn plan_is_one_word_and_reads_back() {
        let plan = Plan {
            work: Work::Mirror {
                limit_mib: 200,
                disk_mib: 600,
            },
            common: Common {
                rounds: 3,
                seconds: 2,
                size_mib: 200,
                only: vec![Contestant::Async, Contestant::DrbdA],
                rublk: Some(PathBuf::from("/usr/bin/rublk")),
                settings: vec!["group.log-memory=128MiB".to_owned()],
                virtual_time: false,
            },
        };
        let word = serde_json::to_string(&plan).unwrap();
        assert_eq!(
            word.split_whitespace().count(),
            1,
            "the harness splits at blanks"
        );
        assert_eq!(serde_json::from_str::<Plan>(&word).unwrap(), plan);
    }

    #[test]
    fn points_are_those_of_the_comparison() {
        assert!(
            POINTS
                .iter()
                .all(|p| p.writes == p.pattern.ends_with("write"))
        );
        assert_eq!(point("write 4k d32").map(|p| p.depth), Some(32));
        assert_eq!(point("write 4k d2"), None);
    }
}
