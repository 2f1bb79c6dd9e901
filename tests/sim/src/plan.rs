//! What a seed means: the group, the load, three faults, a command and an ending.
//!
//! Owns the draw. A seed enters, a plan leaves; the same for ever as long as this file does not
//! change. Never acts.

use super::app::Habits;
use blkrep_io::sim::{Crash, FaultKind, SimOptions, SimRandom};
use blkrep_types::{Errno, MirrorKind, Mode};
use std::time::Duration;

/// Writes and other requests of a run without its last, quiet part.
pub const REQUESTS: u64 = 320;

/// Which of the two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The source.
    Source,
    /// The target.
    Target,
}

/// Something that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A node's daemon is killed or its host loses power, at once or inside one of its next
    /// calls, and comes back after a while.
    Crash {
        /// Whose.
        side: Side,
        /// How.
        crash: Crash,
        /// After so many of its calls; at once if `None`.
        calls: Option<u32>,
        /// How long it is away.
        down: Duration,
    },
    /// Nothing passes from a side to the other, or both ways if `both`.
    Cut {
        /// From here.
        from: Side,
        /// And the other way.
        both: bool,
        /// How long.
        span: Duration,
    },
    /// Every connection is reset.
    Reset,
    /// A data disk answers with errors.
    Disk {
        /// Whose.
        side: Side,
        /// What fails.
        kind: FaultKind,
        /// With what.
        errno: Errno,
        /// How often.
        times: u32,
    },
    /// A data disk answers late.
    Stall {
        /// Whose.
        side: Side,
        /// How long.
        span: Duration,
    },
}

/// What an operator does in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Stops applying on the target for a while.
    PauseTarget(Duration),
    /// Asks for a mirror.
    Mirror(MirrorKind),
    /// Stops and starts a node's daemon in order.
    Restart(Side),
    /// Ends the connection and makes it again.
    Reconnect(Duration),
}

/// How the run ends, after everything is whole again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Both ends are quiet and equal.
    Quiet,
    /// The source dies under load and the target is promoted.
    PromoteDead,
    /// The target is promoted behind a cut while the source goes on; then they hear of each other.
    PromoteCut,
}

/// A run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What it was drawn from.
    pub seed: u64,
    /// How the world behaves.
    pub options: SimOptions,
    /// Length of each volume in bytes.
    pub volumes: Vec<u64>,
    /// Block size of the volumes.
    pub block_bytes: u64,
    /// Grain of the dirty maps.
    pub extent_bytes: u64,
    /// Data bytes of the source's memory log.
    pub log_bytes: u64,
    /// Bytes of the target's journal.
    pub journal_bytes: u64,
    /// The backings may lose unflushed writes.
    pub write_cache: bool,
    /// When writes complete.
    pub mode: Mode,
    /// The mirror that the link begins with.
    pub first_mirror: MirrorKind,
    /// The front end gives requests in flight to a killed daemon's successor.
    pub reissues: bool,
    /// How the application behaves.
    pub habits: Habits,
    /// Requests it has outstanding at most.
    pub outstanding_max: usize,
    /// How long it thinks between requests, at most.
    pub think_nanos_max: u64,
    /// What goes wrong, at which request.
    pub faults: Vec<(u64, Fault)>,
    /// What the operator does, at which request.
    pub command: (u64, Command),
    /// At which requests the target's disks are copied to another world, where the replica is
    /// promoted by itself; with the power cut first, or only the daemon killed.
    pub probes: Vec<(u64, Crash)>,
    /// How it ends.
    pub ending: Ending,
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        // Apart from the world's own draws, which begin at the seed itself.
        let mut random = SimRandom::new(seed ^ 0x0070_6c61_6e00_0000);
        let block_bytes = if random.one_in(3) { 4096 } else { 512 };
        let volumes = (0..random.between(1, 3))
            .map(|_| 4096 * random.between(16, 96))
            .collect();
        let mut faults: Vec<(u64, Fault)> = (0..3)
            .map(|_| (random.between(10, REQUESTS - 20), fault(&mut random)))
            .collect();
        faults.sort_by_key(|(at, _)| *at);
        Self {
            seed,
            options: options(&mut random),
            volumes,
            block_bytes,
            extent_bytes: 4096 << random.below(3),
            log_bytes: 4 << 20,
            journal_bytes: if random.one_in(3) { 4 << 20 } else { 16 << 20 },
            write_cache: !random.one_in(5),
            mode: Mode::Async,
            first_mirror: if random.one_in(3) {
                MirrorKind::Checksum
            } else {
                MirrorKind::Full
            },
            reissues: !random.one_in(4),
            habits: Habits {
                reads: random.between(5, 30),
                flushes: random.between(1, 8),
                clears: random.between(0, 8),
                fua: random.between(0, 20),
                hot: random.between(0, 70),
                blocks_max: if random.one_in(4) {
                    128
                } else {
                    random.between(1, 16)
                },
            },
            outstanding_max: usize::try_from(random.between(1, 20)).expect("small"),
            think_nanos_max: if random.one_in(2) { 200_000 } else { 5_000_000 },
            faults,
            probes: probes(&mut random),
            command: (random.between(10, REQUESTS - 20), command(&mut random)),
            ending: match random.below(4) {
                0 | 1 => Ending::Quiet,
                2 => Ending::PromoteDead,
                _ => Ending::PromoteCut,
            },
        }
    }
}

fn options(random: &mut SimRandom) -> SimOptions {
    SimOptions {
        slow_one_in: if random.one_in(2) { 0 } else { 100 },
        window_bytes: 16 << (10 + random.below(4)),
        net_nanos: if random.one_in(4) {
            (1_000_000, 20_000_000)
        } else {
            (50_000, 400_000)
        },
        ghost_nanos_max: 3_000_000_000,
        ..SimOptions::default()
    }
}

fn probes(random: &mut SimRandom) -> Vec<(u64, Crash)> {
    let mut probes: Vec<(u64, Crash)> = (0..2)
        .map(|_| {
            let crash = if random.one_in(3) {
                Crash::Process
            } else {
                Crash::Power
            };
            (random.between(5, REQUESTS - 1), crash)
        })
        .collect();
    probes.sort_by_key(|(at, _)| *at);
    probes
}

fn side(random: &mut SimRandom) -> Side {
    if random.one_in(2) {
        Side::Source
    } else {
        Side::Target
    }
}

/// Short enough to be bridged, or long enough that both ends notice.
fn span(random: &mut SimRandom) -> Duration {
    let millis = if random.one_in(2) {
        random.between(5, 400)
    } else {
        random.between(400, 20_000)
    };
    Duration::from_millis(millis)
}

fn fault(random: &mut SimRandom) -> Fault {
    let side = side(random);
    match random.below(10) {
        0..=4 => Fault::Crash {
            side,
            crash: if random.one_in(2) {
                Crash::Process
            } else {
                Crash::Power
            },
            calls: random
                .one_in(2)
                .then(|| u32::try_from(random.below(60)).expect("small")),
            down: span(random),
        },
        5 | 6 => Fault::Cut {
            from: side,
            both: !random.one_in(3),
            span: span(random),
        },
        7 => Fault::Reset,
        8 => {
            let kind = match random.below(3) {
                0 => FaultKind::Read,
                1 => FaultKind::Write,
                _ => FaultKind::Sync,
            };
            let errno = if random.one_in(2) {
                Errno::EIO
            } else {
                Errno::ENOSPC
            };
            let times = u32::try_from(random.between(1, 3)).expect("small");
            Fault::Disk {
                side,
                kind,
                errno,
                times,
            }
        }
        _ => Fault::Stall {
            side,
            span: span(random),
        },
    }
}

fn command(random: &mut SimRandom) -> Command {
    match random.below(6) {
        0 => Command::PauseTarget(span(random)),
        1 => Command::Mirror(MirrorKind::Full),
        2 => Command::Mirror(MirrorKind::Difference),
        3 => Command::Mirror(MirrorKind::Checksum),
        4 => Command::Restart(side(random)),
        _ => Command::Reconnect(span(random)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::mem::discriminant;

    #[test]
    fn a_few_hundred_seeds_meet_every_fault_command_and_ending() {
        let plans: Vec<Plan> = (0..300).map(Plan::of).collect();
        let faults: Vec<_> = plans
            .iter()
            .flat_map(|plan| &plan.faults)
            .map(|(_, fault)| discriminant(fault))
            .collect();
        let kinds = faults
            .iter()
            .collect::<std::collections::HashSet<_>>()
            .len();
        assert_eq!(kinds, 5);
        let commands: BTreeSet<String> = plans
            .iter()
            .map(|plan| format!("{:?}", plan.command.1))
            .map(|text| text.split('(').next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(commands.len(), 4);
        for ending in [Ending::Quiet, Ending::PromoteDead, Ending::PromoteCut] {
            assert!(plans.iter().any(|plan| plan.ending == ending));
        }
        assert!(
            plans
                .iter()
                .all(|plan| plan.faults.is_sorted_by_key(|(at, _)| *at))
        );
    }

    #[test]
    fn a_seed_is_one_plan() {
        assert_eq!(format!("{:?}", Plan::of(5)), format!("{:?}", Plan::of(5)));
    }
}
