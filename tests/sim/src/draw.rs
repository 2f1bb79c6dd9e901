//! What a seed means: a plan drawn from it.
//!
//! Owns the draw. A seed enters, a plan leaves. Never acts.

use super::app::Habits;
use super::plan::{
    Command, Fault, GroupPlan, Hold, Place, Plan, Probe, QueuePlan, Takeover, TakeoverReason,
};
use super::theme::{self, Theme};
use blkrep_core::compression::Compression;
use blkrep_core::source::{StreamLimits, Throttle};
use blkrep_core::target::RetryPolicy;
use blkrep_io::sim::{Crash, FaultKind, LieKind, SimOptions, SimRandom};
use blkrep_types::{ByteLen, Errno, LossPolicy, MirrorKind, Mode, OnLoss};
use std::time::Duration;

/// Requests of a run, of all groups together, without those of its takeovers: at least 200 writes.
pub(super) const REQUESTS: u64 = 360;

/// Faults in the load.
const FAULTS: u64 = 3;

impl Plan {
    /// The plan of a seed: the same for ever as long as this file does not change.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        // Apart from the world's own draws, which begin at the seed itself.
        let mut random = SimRandom::new(seed ^ 0x0070_6c61_6e00_0000);
        let random = &mut random;
        let nodes = *pick(random, &[2, 2, 2, 3, 3, 4]);
        let count = *pick(random, &[1, 1, 1, 2, 3]);
        let groups: Vec<_> = (0..count).map(|_| group(random, nodes)).collect();
        let mut faults = at_requests(random, FAULTS, |random| fault(random, nodes));
        let rests = rests(random, &mut faults);
        let commands = 1 + random.below(3);
        let mut plan = Self {
            seed,
            theme: None,
            options: options(random),
            clocks: clocks(random, nodes),
            nodes,
            write_cache: !random.one_in(5),
            reissues: !random.one_in(4),
            requests: REQUESTS,
            rests,
            faults,
            commands: at_requests(random, commands, |random| command(random, nodes)),
            probes: at_requests(random, 2, probe),
            moments: Vec::new(),
            takeovers: takeovers(random),
            groups,
            older: None,
        };
        dress_links(&mut plan);
        dress_retries(&mut plan);
        dress_connections(&mut plan);
        theme::dress(&mut plan);
        if matches!(plan.theme, None | Some(Theme::Served)) {
            dress_queues(&mut plan);
        }
        dress_notes(&mut plan);
        plan
    }
}

/// A target that gives up at once what its base did not take.
const AT_ONCE: RetryPolicy = RetryPolicy {
    limit: Some(0),
    delay: Duration::from_secs(1),
};

/// Says how targets try writes again that their bases did not take, that an operator says something else, and how much
/// links may have under way. Drawn apart, as below.
fn dress_retries(plan: &mut Plan) {
    let mut random = SimRandom::new(plan.seed ^ 0x7265_7472_7900_0000);
    let random = &mut random;
    for group in &mut plan.groups {
        group.retry = retry(random);
        if random.one_in(2) {
            group.stream = stream(random);
        }
    }
    if random.one_in(4) {
        let at = random.between(5, REQUESTS - 20);
        let command = Command::SetRetry {
            group: random.index(3),
            link: random.index(2),
            retry: retry(random),
        };
        plan.commands.push((at, command));
        plan.commands.sort_by_key(|(at, _)| *at);
    }
}

/// Little enough to be reached by what a run writes; less than one request on purpose.
fn stream(random: &mut SimRandom) -> StreamLimits {
    let high = random.between(2, 100);
    let percent = |percent| u8::try_from(percent).expect("a percentage");
    StreamLimits {
        in_flight: ByteLen::new(512 << random.below(12)),
        mirror_in_flight: ByteLen::new(512 << random.below(12)),
        mirror_ratio: u32::try_from(random.between(1, 50)).expect("small"),
        mirror_high: percent(high),
        mirror_low: percent(random.between(1, high - 1)),
    }
}

fn retry(random: &mut SimRandom) -> RetryPolicy {
    let limit = match random.below(4) {
        0 => Some(0),
        1 => Some(u32::try_from(random.between(1, 4)).expect("small")),
        _ => None,
    };
    let delay = Duration::from_millis(random.between(100, 3_000));
    RetryPolicy { limit, delay }
}

/// Says what links pack, which node is of an older version and whose writers are slowed. Drawn apart, so that the rest of a
/// plan is what it was before there was anything to pack.
fn dress_links(plan: &mut Plan) {
    let mut random = SimRandom::new(plan.seed ^ 0x7061_636b_6564_0000);
    let random = &mut random;
    for group in &mut plan.groups {
        group.compression = *pick(
            random,
            &[
                Compression::On,
                Compression::On,
                Compression::Adaptive,
                Compression::Off,
            ],
        );
    }
    if random.one_in(6) {
        plan.older = Some(random.index(plan.nodes));
    }
    for group in &mut plan.groups {
        group.throttle = random.one_in(3).then(|| throttle(random));
    }
}

/// Gives links of most plans several connections, of which single ones are lost. Drawn apart, as above.
fn dress_connections(plan: &mut Plan) {
    let mut random = SimRandom::new(plan.seed ^ 0x6a6f_696e_6564_0000);
    let random = &mut random;
    for group in &mut plan.groups {
        group.connections = *pick(random, &[1, 2, 2, 3, 4]);
    }
    if plan.groups.iter().all(|group| group.connections == 1) {
        return;
    }
    let nodes = plan.nodes;
    let count = random.below(5);
    plan.faults.extend(at_requests(random, count, |random| {
        let one = random.index(nodes);
        Fault::Sever {
            one,
            other: (one + 1 + random.index(nodes - 1)) % nodes,
            which: random.index(8),
            silent: random.one_in(3),
        }
    }));
    plan.faults.sort_by_key(|(at, _)| *at);
}

/// Levels low enough for the little that is ever in a log.
fn throttle(random: &mut SimRandom) -> Throttle {
    let stop = random.between(1, 5);
    let level = |percent| u8::try_from(percent).expect("a percentage");
    Throttle {
        always: random.one_in(4),
        start: level(stop + random.between(1, 10)),
        stop: level(stop),
        delay_max: Duration::from_millis(random.between(1, 50)),
    }
}

/// Gives groups of every third plan a disk queue behind a small log, large writes, a link that does not
/// drain for a while, and what may happen to the queue. Drawn apart, as above.
fn dress_queues(plan: &mut Plan) {
    let mut random = SimRandom::new(plan.seed ^ 0x7175_6575_6500_0000);
    let random = &mut random;
    if !random.one_in(3) {
        return;
    }
    let mut homes = Vec::new();
    for group in &mut plan.groups {
        group.log_bytes = 1 << 20;
        group.queue = Some(queue(random));
        group.habits.blocks_max = group.habits.blocks_max.max(random.between(24, 64));
        homes.push(group.home);
    }
    for (group, node) in homes.into_iter().enumerate() {
        let at = random.between(5, REQUESTS / 2);
        plan.commands.push((
            at,
            Command::HoldTransmission {
                group,
                link: random.index(2),
                how: Hold::Pause,
                span: Duration::from_millis(random.between(50, 8_000)),
            },
        ));
        if random.one_in(2) {
            let fault = queue_fault(random, node);
            plan.faults
                .push((at + random.between(10, REQUESTS / 2 - 20), fault));
        }
        if random.one_in(3) {
            let queue = (!random.one_in(3)).then(|| queue(random));
            let command = Command::SetQueue { group, queue };
            plan.commands
                .push((random.between(5, REQUESTS - 20), command));
        }
    }
    plan.faults.sort_by_key(|(at, _)| *at);
    plan.commands.sort_by_key(|(at, _)| *at);
}

/// Puts bookmarks and tasks into the order of every second plan's groups, and has some of the targets crash
/// while they may run one. Drawn apart, as above.
fn dress_notes(plan: &mut Plan) {
    let mut random = SimRandom::new(plan.seed ^ 0x6e6f_7465_7300_0000);
    let random = &mut random;
    if !random.one_in(2) {
        return;
    }
    for (group, of) in plan.groups.iter().enumerate() {
        for _ in 0..random.between(2, 8) {
            let at = random.between(20, REQUESTS - 20);
            let task = (!random.one_in(3)).then(|| !random.one_in(6));
            let crashes = task == Some(true) && random.one_in(4);
            let longest = if crashes { 8_000 } else { 1_000 };
            let lasts = Duration::from_millis(random.below(3) * random.between(0, longest) / 2);
            plan.commands
                .push((at, Command::Note { group, task, lasts }));
            if crashes {
                let fault = Fault::Crash {
                    node: *pick(random, &of.targets),
                    crash: crash(random),
                    calls: random.one_in(2).then(|| small(random, 60)),
                    down: Duration::from_millis(random.between(5, 2_000)),
                };
                plan.faults.push((at + random.below(20), fault));
            }
        }
    }
    plan.faults.sort_by_key(|(at, _)| *at);
    plan.commands.sort_by_key(|(at, _)| *at);
}

fn queue(random: &mut SimRandom) -> QueuePlan {
    QueuePlan {
        second: random.one_in(2),
        segments: random.between(1, 6),
        alert_percent: u8::try_from(random.between(1, 100)).expect("a percentage"),
    }
}

fn queue_fault(random: &mut SimRandom, node: usize) -> Fault {
    let place = Place::Queues;
    match random.below(6) {
        0 | 1 => Fault::Disk {
            node,
            kind: *pick(random, &[FaultKind::Read, FaultKind::Write]),
            errno: *pick(random, &[Errno::EIO, Errno::ENOSPC]),
            times: 1 + small(random, 4),
            place,
        },
        2 => Fault::Stall {
            node,
            place,
            span: span(random),
        },
        3 | 4 => Fault::Rot { node, place },
        _ => Fault::Full {
            node,
            span: span(random),
        },
    }
}

fn pick<'a, T>(random: &mut SimRandom, all: &'a [T]) -> &'a T {
    &all[random.index(all.len())]
}

/// So many of them, each at a request of the load, in the order of these.
fn at_requests<T>(
    random: &mut SimRandom,
    count: u64,
    mut draw: impl FnMut(&mut SimRandom) -> T,
) -> Vec<(u64, T)> {
    let mut all: Vec<_> = (0..count)
        .map(|_| (random.between(5, REQUESTS - 20), draw(random)))
        .collect();
    all.sort_by_key(|(at, _)| *at);
    all
}

/// Before some of the faults everything rests, long enough for what is lazy to be written down and
/// closed; half of these faults come when it begins to move again.
fn rests(random: &mut SimRandom, faults: &mut [(u64, Fault)]) -> Vec<(u64, Duration)> {
    let mut rests = Vec::new();
    for (at, _) in faults.iter_mut() {
        if random.one_in(4) {
            rests.push((*at, Duration::from_millis(random.between(1_000, 30_000))));
            *at += random.below(2) * random.between(1, 4);
        }
    }
    faults.sort_by_key(|(at, _)| *at);
    rests
}

fn group(random: &mut SimRandom, nodes: usize) -> GroupPlan {
    let home = random.index(nodes);
    let mut others: Vec<usize> = (0..nodes).filter(|node| *node != home).collect();
    let mut targets = vec![others.swap_remove(random.index(others.len()))];
    if !others.is_empty() && random.one_in(2) {
        targets.push(others.swap_remove(random.index(others.len())));
    }
    let habits = Habits {
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
    };
    GroupPlan {
        home,
        modes: modes(random, targets.len()),
        losses: (0..targets.len()).map(|_| loss(random)).collect(),
        compression: Compression::Off,
        connections: 1,
        throttle: None,
        hands_over: false,
        targets,
        volumes: (0..random.between(1, 3)).map(|_| volume(random)).collect(),
        block_bytes: if random.one_in(3) { 4096 } else { 512 },
        extent_bytes: 4096 << random.below(3),
        stream: StreamLimits::default(),
        log_bytes: 4 << 20,
        queue: None,
        retry: AT_ONCE,
        journal_bytes: if random.one_in(3) { 4 << 20 } else { 16 << 20 },
        first_mirror: if random.one_in(3) {
            MirrorKind::Checksum
        } else {
            MirrorKind::Full
        },
        habits,
        outstanding_max: usize::try_from(random.between(1, 20)).expect("small"),
        think_nanos_max: if random.one_in(2) { 200_000 } else { 5_000_000 },
    }
}

/// Mostly small: writes meet more often, and less time goes into comparing what nobody wrote.
fn volume(random: &mut SimRandom) -> u64 {
    let pages = if random.one_in(8) {
        random.between(33, 96)
    } else {
        random.between(8, 32)
    };
    4096 * pages
}

/// Most groups are as most users have them; the others wait for a target, or for several.
fn modes(random: &mut SimRandom, targets: usize) -> Vec<Mode> {
    let waits = random.one_in(3);
    let one = |_| match waits {
        true => mode(random),
        false => Mode::Async,
    };
    (0..targets).map(one).collect()
}

/// Most go on without a link that is lost.
fn loss(random: &mut SimRandom) -> LossPolicy {
    LossPolicy {
        on_loss: *pick(
            random,
            &[
                OnLoss::Continue,
                OnLoss::Continue,
                OnLoss::Continue,
                OnLoss::Block,
                OnLoss::Block,
                OnLoss::Fail,
            ],
        ),
        timeout: *pick(
            random,
            &[
                Duration::ZERO,
                Duration::from_millis(300),
                LossPolicy::TIMEOUT,
            ],
        ),
    }
}

fn mode(random: &mut SimRandom) -> Mode {
    *pick(random, &[Mode::Async, Mode::Memory, Mode::Sync, Mode::Sync])
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

/// Mostly right, and else wrong by up to a twentieth.
fn clocks(random: &mut SimRandom, nodes: usize) -> Vec<u32> {
    let drift = random.one_in(3);
    let one = |_| match drift {
        true => 950 + small(random, 101),
        false => 1000,
    };
    (0..nodes).map(one).collect()
}

fn crash(random: &mut SimRandom) -> Crash {
    if random.one_in(2) {
        Crash::Process
    } else {
        Crash::Power
    }
}

fn probe(random: &mut SimRandom) -> Probe {
    Probe {
        group: random.index(6),
        link: random.index(2),
        crash: if random.one_in(3) {
            Crash::Process
        } else {
            Crash::Power
        },
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

fn small(random: &mut SimRandom, below: u64) -> u32 {
    u32::try_from(random.below(below)).expect("small")
}

fn fault(random: &mut SimRandom, nodes: usize) -> Fault {
    let node = random.index(nodes);
    let other = (node + 1 + random.index(nodes - 1)) % nodes;
    match random.below(20) {
        0..=7 => Fault::Crash {
            node,
            crash: crash(random),
            calls: random.one_in(2).then(|| small(random, 60)),
            down: span(random),
        },
        8..=10 => Fault::Cut {
            from: node,
            to: other,
            both: !random.one_in(3),
            span: span(random),
        },
        11 => Fault::Reset { one: node, other },
        12 | 13 => Fault::Disk {
            node,
            kind: *pick(
                random,
                &[FaultKind::Read, FaultKind::Write, FaultKind::Sync],
            ),
            errno: *pick(random, &[Errno::EIO, Errno::ENOSPC]),
            times: 1 + small(random, 3),
            place: Place::Any,
        },
        14 => Fault::Stall {
            node,
            place: Place::Any,
            span: span(random),
        },
        15 | 16 => weather(random, node, other),
        _ => bad_host(random, node),
    }
}

fn weather(random: &mut SimRandom, from: usize, to: usize) -> Fault {
    let span = span(random);
    match random.below(5) {
        0..=2 => Fault::Garble {
            from,
            to,
            bytes: random.one_in(2).then(|| random.between(1, 20)),
            span,
        },
        3 => Fault::Delay {
            from,
            to,
            most: Duration::from_millis(random.between(2, 900)),
            span,
        },
        _ => Fault::Double {
            from,
            to,
            times: 1 + small(random, 3),
        },
    }
}

fn bad_host(random: &mut SimRandom, node: usize) -> Fault {
    let span = span(random);
    match random.below(8) {
        0 => Fault::Leap { node, span },
        1 => Fault::Full { node, span },
        2 | 3 => Fault::Unreadable { node },
        4 => Fault::Rot {
            node,
            place: Place::Any,
        },
        5 | 6 => Fault::Lie {
            node,
            kind: *pick(random, &[LieKind::FlippedRead, LieKind::StaleRead]),
        },
        _ => Fault::OldBackup { node, span },
    }
}

fn command(random: &mut SimRandom, nodes: usize) -> Command {
    let (group, link, span) = (random.index(6), random.index(2), span(random));
    match random.below(17) {
        0 => Command::PauseTarget { group, link, span },
        1 | 2 => Command::Mirror {
            group,
            link,
            kind: *pick(
                random,
                &[
                    MirrorKind::Full,
                    MirrorKind::Difference,
                    MirrorKind::Checksum,
                ],
            ),
        },
        3 => Command::StopMirror { group, link },
        4 => Command::PauseMirror { group, link, span },
        5 => Command::HoldTransmission {
            group,
            link,
            how: *pick(random, &[Hold::Stop, Hold::Pause, Hold::Schedule]),
            span,
        },
        6 | 7 => Command::Restart {
            node: random.index(nodes),
        },
        8 => Command::Reconnect { group, link, span },
        9 => Command::Relink { group, link, span },
        11 | 12 => Command::Detach {
            group,
            volume: random.one_in(2).then_some(link),
            force: random.one_in(2),
            written: random.one_in(2),
            span,
        },
        13 => Command::Freeze { group, span },
        14 => Command::SetPatience {
            group,
            link,
            short: random.one_in(2),
        },
        15 => Command::SetLoss {
            group,
            link,
            policy: loss(random),
        },
        10 => Command::SetMode {
            group,
            link,
            mode: mode(random),
        },
        _ => Command::Reboot {
            node: random.index(nodes),
        },
    }
}

fn takeovers(random: &mut SimRandom) -> Vec<Takeover> {
    let count = *pick(random, &[0, 1, 1, 2]);
    let group = random.index(6);
    let one = |random: &mut SimRandom| Takeover {
        group,
        link: random.index(2),
        why: *pick(
            random,
            &[
                TakeoverReason::Killed,
                TakeoverReason::PowerLost,
                TakeoverReason::Cut,
                TakeoverReason::Cut,
            ],
        ),
        crash: random.one_in(2).then(|| (crash(random), small(random, 80))),
        crash_old: random.one_in(2).then(|| (crash(random), small(random, 40))),
    };
    (0..count).map(|_| one(random)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::mem::discriminant;

    #[test]
    fn a_few_hundred_seeds_meet_every_fault_command_and_shape() {
        let plans: Vec<Plan> = (0..600).map(Plan::of).collect();
        let queued = plans.iter().filter(|plan| plan.groups[0].queue.is_some());
        assert!((100..250).contains(&queued.count()));
        let faults = plans.iter().flat_map(|plan| &plan.faults);
        let kinds: HashSet<_> = faults.map(|(_, fault)| discriminant(fault)).collect();
        assert_eq!(kinds.len(), 16);
        let commands = plans.iter().flat_map(|plan| &plan.commands);
        let kinds: HashSet<_> = commands.map(|(_, command)| discriminant(command)).collect();
        assert_eq!(kinds.len(), 17);
        let shapes: HashSet<_> = plans
            .iter()
            .map(|plan| (plan.nodes, plan.groups.len(), plan.takeovers.len()))
            .collect();
        assert_eq!(shapes.len(), 27);
        for plan in &plans {
            assert!(plan.faults.is_sorted_by_key(|(at, _)| *at));
            for group in &plan.groups {
                assert!(!group.targets.contains(&group.home));
            }
        }
    }

    #[test]
    fn a_third_of_the_seeds_has_a_theme_and_loses_nothing_by_it() {
        let plans: Vec<Plan> = (0..2000).map(Plan::of).collect();
        let themed: Vec<_> = plans.iter().filter(|plan| plan.theme.is_some()).collect();
        assert!((500..750).contains(&themed.len()), "{}", themed.len());
        let themes: HashSet<_> = themed.iter().filter_map(|plan| plan.theme).collect();
        assert_eq!(themes.len(), theme::THEMES.len() + 1);
        for plan in themed {
            assert!(plan.faults.len() >= 3 && !plan.commands.is_empty());
            assert!(plan.faults.is_sorted_by_key(|(at, _)| *at));
            assert!(plan.commands.is_sorted_by_key(|(at, _)| *at));
            assert!(plan.rests.is_sorted_by_key(|(at, _)| *at));
            let last = plan.faults.last().map(|(at, _)| *at);
            assert!(last < Some(plan.requests), "it comes to all of them");
        }
    }

    #[test]
    fn a_seed_is_one_plan() {
        assert_eq!(format!("{:?}", Plan::of(5)), format!("{:?}", Plan::of(5)));
    }
}
