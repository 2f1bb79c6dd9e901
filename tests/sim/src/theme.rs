//! Plans with a theme: what must come together for some mistakes to show comes together more often.
//!
//! Owns the themes. A plan as it was drawn enters, and in one of four seeds leaves with a theme: its
//! cluster and times are made to fit, and episodes take the place of some of its faults and commands.
//! When within an episode what happens, and how often, is still drawn. The draws are apart from those
//! of the plan: a seed without a theme means what it meant. Never acts.

use super::draw::REQUESTS;
use super::plan::{Command, Deed, Fault, GroupPlan, Hold, Moment, Place, Plan, Probe};
use blkrep_io::sim::{Crash, FaultKind, SimRandom};
use blkrep_types::{Errno, MirrorKind, Mode};
use std::time::Duration;

/// One in so many plans has a theme.
const THEMED_ONE_IN: u64 = 4;

/// And one in so many of the others is served by a target: apart, so that the others are what they were.
const SERVED_ONE_IN: u64 = 10;

/// Faults of a plan at least.
const FAULTS_MIN: usize = 3;

/// Long after everything else of an episode.
const FOR_LONG: Duration = Duration::from_secs(60);

/// What is likely to come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Theme {
    /// A flush of the source's backing, or of a target's base, fails, and the power goes after it.
    FailedFlush,
    /// Everything rests while a target cannot be reached, and the power goes after it.
    RestBehindCut,
    /// A target that has fallen behind is mirrored, and is looked at or killed meanwhile.
    MirrorBehind,
    /// Large writes, all at once, fill the log while a mirror begins.
    FullLog,
    /// Large writes fill the journal of a target that holds a mirror.
    FullJournal,
    /// A target comes back with a name of an earlier run of the source, or from before its link turned behind.
    OldNames,
    /// Maps and journals rot where they say something, or one copy of a record is not written.
    Rot,
    /// In `sync` mode, while a target's journal is slow, both ends lose their power.
    BothDie,
    /// A group is without any link for a while and never flushed, and its source loses power soon after it has one again.
    FirstLink,
    /// The backings of a source fail for good, or once, and a target serves it, whatever else goes wrong.
    Served,
}

/// Each of them, but for the one that is drawn apart.
pub const THEMES: [Theme; 9] = [
    Theme::FailedFlush,
    Theme::RestBehindCut,
    Theme::MirrorBehind,
    Theme::FullLog,
    Theme::FullJournal,
    Theme::OldNames,
    Theme::Rot,
    Theme::BothDie,
    Theme::FirstLink,
];

/// An episode: one group, its source and one of its targets.
struct Stage<'a> {
    plan: &'a mut Plan,
    random: &'a mut SimRandom,
    home: usize,
    link: usize,
    target: usize,
}

/// Gives a plan the theme of its seed, if it has one.
pub(super) fn dress(plan: &mut Plan) {
    let mut random = SimRandom::new(plan.seed ^ 0x7468_656d_6500_0000);
    if random.one_in(THEMED_ONE_IN) {
        let theme = THEMES[random.index(THEMES.len())];
        return play(plan, &mut random, theme);
    }
    let mut random = SimRandom::new(plan.seed ^ 0x7365_7276_6564_0000);
    if random.one_in(SERVED_ONE_IN) {
        play(plan, &mut random, Theme::Served);
    }
}

fn play(plan: &mut Plan, random: &mut SimRandom, theme: Theme) {
    plan.theme = Some(theme);
    plan.groups.truncate(1);
    let faults = std::mem::take(&mut plan.faults);
    let commands = std::mem::take(&mut plan.commands);
    plan.rests.clear();
    fit(plan, random, theme);
    let link = random.index(plan.groups[0].targets.len());
    let mut stage = Stage {
        home: plan.groups[0].home,
        target: plan.groups[0].targets[link],
        plan,
        random,
        link,
    };
    match theme {
        Theme::FailedFlush => stage.twice(Stage::failed_flush),
        Theme::RestBehindCut => stage.twice(Stage::rest_behind_cut),
        Theme::MirrorBehind => stage.twice(Stage::mirror_behind),
        Theme::FullLog => stage.twice(Stage::full_log),
        Theme::FullJournal => stage.twice(Stage::full_journal),
        Theme::OldNames => stage.old_names(),
        Theme::Rot => stage.twice(Stage::rot),
        Theme::BothDie => stage.twice(Stage::both_die),
        Theme::FirstLink => stage.twice(Stage::first_link),
        Theme::Served => {
            stage.served();
            let (faults, commands) = (around_served(faults), around_served_commands(commands));
            plan.faults.extend(faults.into_iter().take(2));
            plan.commands.extend(commands);
            return in_order(plan);
        }
    }
    let missing = FAULTS_MIN.saturating_sub(plan.faults.len());
    plan.faults.extend(faults.into_iter().take(missing));
    let missing = usize::from(plan.commands.is_empty());
    plan.commands.extend(commands.into_iter().take(missing));
    in_order(plan);
}

fn in_order(plan: &mut Plan) {
    plan.rests.sort_by_key(|(at, _)| *at);
    plan.faults.sort_by_key(|(at, _)| *at);
    plan.commands.sort_by_key(|(at, _)| *at);
    plan.probes.sort_by_key(|(at, _)| *at);
}

/// What may go wrong beside it: not at the disks of the target, which is the only copy then.
fn around_served(mut faults: Vec<(u64, Fault)>) -> Vec<(u64, Fault)> {
    faults.retain(|(_, fault)| fault.fails_disks_of().is_none());
    faults
}

/// What is done beside it: nobody writes to a backing that means nothing any more.
fn around_served_commands(mut commands: Vec<(u64, Command)>) -> Vec<(u64, Command)> {
    let fits = |command: &Command| match command {
        Command::Detach { written, .. } => !written,
        _ => true,
    };
    commands.retain(|(_, command)| fits(command));
    commands
}

/// Makes cluster and times fit.
fn fit(plan: &mut Plan, random: &mut SimRandom, theme: Theme) {
    let group = &mut plan.groups[0];
    if theme != Theme::Served {
        group.modes.fill(Mode::Async);
    }
    match theme {
        Theme::FailedFlush => {
            plan.write_cache = true;
            group.habits.flushes = random.between(3, 8);
        }
        Theme::RestBehindCut => {
            group.volumes = (0..2).map(|_| 4096 * random.between(48, 96)).collect();
        }
        Theme::MirrorBehind => {
            group.volumes = (0..3).map(|_| 4096 * random.between(32, 96)).collect();
            group.think_nanos_max = random.between(2_000_000, 20_000_000);
            slow_network(plan, random);
        }
        Theme::FullLog => {
            large_writes(group, random, (192, 256));
            group.think_nanos_max = 200_000;
            plan.takeovers.clear();
            plan.options.window_bytes = 64 << 10;
            plan.options.net_nanos = (1_000_000, 20_000_000);
        }
        Theme::FullJournal => {
            large_writes(group, random, (96, 160));
            group.extent_bytes = 4096;
            group.think_nanos_max = 5_000_000;
            plan.takeovers.clear();
        }
        Theme::OldNames => group.think_nanos_max = 50_000_000,
        Theme::Rot => group.journal_bytes = 4 << 20,
        Theme::BothDie => {
            group.modes.fill(Mode::Sync);
            group.think_nanos_max = random.between(1_000_000, 20_000_000);
        }
        Theme::FirstLink => {
            plan.write_cache = true;
            plan.takeovers.clear();
            group.targets.truncate(1);
            group.habits.flushes = 0;
            group.habits.fua = 0;
            group.think_nanos_max = random.between(1_000_000, 20_000_000);
        }
        Theme::Served => {
            group.hands_over = true;
            group.habits.reads = random.between(15, 40);
            group.habits.flushes = random.between(5, 15);
            group.habits.fua = random.between(0, 40);
            if !random.one_in(3) {
                group.targets.truncate(1);
            }
            group.think_nanos_max = random.between(200_000, 20_000_000);
            // One of an older version cannot serve.
            plan.older = plan.older.filter(|_| random.one_in(6));
        }
    }
}

fn large_writes(group: &mut GroupPlan, random: &mut SimRandom, (low, high): (u64, u64)) {
    let volume = |random: &mut SimRandom| 4096 * random.between(low, high);
    group.volumes = (0..3).map(|_| volume(random)).collect();
    group.block_bytes = 4096;
    group.habits.blocks_max = random.between(48, 96);
    group.habits.reads = 5;
    group.outstanding_max = 20;
    group.journal_bytes = 4 << 20;
}

/// Mostly slow enough that a mirror lasts for many requests.
fn slow_network(plan: &mut Plan, random: &mut SimRandom) {
    if !random.one_in(4) {
        plan.options.window_bytes = 64 << 10;
        plan.options.net_nanos = (1_000_000, 20_000_000);
    }
}

fn millis(random: &mut SimRandom, low: u64, high: u64) -> Duration {
    Duration::from_millis(random.between(low, high))
}

impl Stage<'_> {
    /// An episode in each half of the load.
    fn twice(&mut self, episode: impl Fn(&mut Self, u64)) {
        for (low, high) in [(20, REQUESTS / 3), (REQUESTS / 2, REQUESTS * 3 / 4)] {
            let at = self.random.between(low, high);
            episode(self, at);
        }
    }

    fn rest(&mut self, at: u64, span: Duration) {
        self.plan.rests.push((at, span));
    }

    fn fault(&mut self, at: u64, fault: Fault) {
        self.plan.faults.push((at, fault));
    }

    fn moment(&mut self, after: u64, steps: u64, deed: Deed) {
        self.plan.moments.push(Moment {
            after,
            group: 0,
            link: self.link,
            steps,
            deed,
        });
    }

    /// A crash at once, or within one of the first calls that follow.
    fn crash(&mut self, node: usize, crash: Crash) -> Fault {
        let soon = self.random.one_in(3);
        let calls = soon.then(|| u32::try_from(self.random.below(20)).expect("small"));
        Fault::Crash {
            node,
            crash,
            calls,
            down: millis(self.random, 5, 400),
        }
    }

    fn power_cut(&mut self, node: usize, at: u64) {
        let fault = self.crash(node, Crash::Power);
        self.fault(at, fault);
    }

    fn power_cut_of_source(&mut self, at: u64) {
        self.power_cut(self.home, at);
    }

    fn cut(&mut self, span: Duration) -> Fault {
        Fault::Cut {
            from: self.home,
            to: self.target,
            both: self.random.one_in(2),
            span,
        }
    }

    /// The target falls behind: transmission is stopped for a while, and everything written is dirt.
    fn fall_behind(&mut self, at: u64, span: Duration) {
        let hold = Command::HoldTransmission {
            group: 0,
            link: self.link,
            how: Hold::Stop,
            span,
        };
        self.plan.commands.push((at, hold));
    }

    /// What is under way ends first: the replica is whole.
    fn calm_before(&mut self, at: u64) {
        let span = millis(self.random, 2_000, 4_000);
        self.rest(at - 1, span);
    }

    /// Both sides find each other again before anything else is written.
    fn calm_after(&mut self, at: u64) {
        let span = millis(self.random, 3_000, 8_000);
        self.rest(at + 1, span);
    }

    fn failed_flush(&mut self, at: u64) {
        let node = *self.pick(&[self.home, self.home, self.target]);
        if node == self.home {
            let pause = millis(self.random, 200, 600);
            self.rest(at, pause);
        }
        let disk = Fault::Disk {
            node,
            kind: FaultKind::Sync,
            errno: Errno::EIO,
            times: 1,
            place: Place::Backings,
        };
        self.fault(at + 1, disk);
        let span = millis(self.random, 8_000, 25_000);
        self.rest(at + 1, span);
        let wait = match self.random.one_in(2) {
            true => 1,
            false => self.random.between(2, 60),
        };
        self.power_cut(node, at + 1 + wait);
        self.calm_after(at + 1 + wait);
    }

    /// Completed is what the target's journal has, which takes its time.
    fn both_die(&mut self, at: u64) {
        let wait = self.random.between(3, 30);
        let stall = Fault::Stall {
            node: self.target,
            place: Place::Journals,
            span: millis(self.random, 20, 300),
        };
        self.fault(at + wait - 1, stall);
        for _ in 0..3 {
            let probe = Probe {
                group: 0,
                link: self.link,
                crash: Crash::Power,
            };
            let at = at + wait + self.random.below(6);
            self.plan.probes.push((at, probe));
        }
        let last = at + wait + 6;
        self.power_cut(self.home, last);
        self.power_cut(self.target, last);
        self.calm_after(last);
    }

    /// The backings fail while the target has everything, or hardly, and then either side dies.
    fn served(&mut self) {
        let at = self.random.between(20, 120);
        if !self.random.one_in(5) {
            self.calm_before(at);
        }
        let lost = Fault::Lost {
            node: self.home,
            group: 0,
            times: if self.random.one_in(6) { 1 } else { u32::MAX },
            span: millis(self.random, 15_000, 40_000),
        };
        self.fault(at, lost);
        let mut at = at + self.random.between(1, 40);
        for _ in 0..self.random.between(2, 4) {
            match self.random.below(5) {
                0 | 1 => self.both_lose_power(at),
                2 => {
                    let span = millis(self.random, 50, 8_000);
                    let cut = self.cut(span);
                    self.fault(at, cut);
                }
                _ => {
                    let node = *self.pick(&[self.home, self.target]);
                    let crash = *self.pick(&[Crash::Process, Crash::Power]);
                    let crash = self.crash(node, crash);
                    self.fault(at, crash);
                }
            }
            at += self.random.between(5, 60);
        }
    }

    /// At once, while the target's journal may be slow.
    fn both_lose_power(&mut self, at: u64) {
        if !self.random.one_in(4) {
            let stall = Fault::Stall {
                node: self.target,
                place: Place::Journals,
                span: millis(self.random, 200, 2_000),
            };
            self.fault(at - 1, stall);
        }
        let last = at + self.random.between(2, 16);
        for node in [self.target, self.home] {
            let crash = Fault::Crash {
                node,
                crash: Crash::Power,
                calls: None,
                down: millis(self.random, 5, 400),
            };
            self.fault(last, crash);
        }
    }

    fn first_link(&mut self, at: u64) {
        let span = millis(self.random, 50, 500);
        let relink = Command::Relink {
            group: 0,
            link: 0,
            span,
        };
        self.plan.commands.push((at, relink));
        let wait = self.random.between(5, 40);
        let mirrored = millis(self.random, 500, 3_000);
        self.rest(at + wait, span + mirrored);
        self.power_cut_of_source(at + wait + 1);
        self.calm_after(at + wait + 1);
    }

    fn rest_behind_cut(&mut self, at: u64) {
        self.calm_before(at);
        let wait = self.random.between(3, 30);
        let span = if self.random.one_in(2) {
            let span = millis(self.random, 7_000, 25_000);
            let more = millis(self.random, 500, 3_000);
            let cut = self.cut(span + more);
            self.fault(at, cut);
            span
        } else {
            let behind = millis(self.random, 6_000, 12_000);
            self.fall_behind(at, behind);
            let span = millis(self.random, 4_000, 14_000);
            let cut = self.cut(span);
            let steps = self.random.below(20);
            self.moment(at, steps, Deed::Strike(cut));
            behind + millis(self.random, 3_000, 10_000)
        };
        self.rest(at + wait, span);
        let moved = self.random.between(1, 2);
        self.power_cut_of_source(at + wait + moved);
        self.calm_after(at + wait + moved);
    }

    fn mirror_behind(&mut self, at: u64) {
        self.calm_before(at);
        let span = millis(self.random, 100, 800);
        self.fall_behind(at, span);
        let wait = self.random.between(10, 60);
        let more = millis(self.random, 0, 600);
        self.rest(at + wait, span + more);
        if !self.random.one_in(3) {
            let kind = *self.pick(&[MirrorKind::Full, MirrorKind::Full, MirrorKind::Checksum]);
            let wait = self.random.between(2, 20);
            self.mirror(at + wait, kind);
        }
        self.look_into_mirror(at, 1_000);
        let calls = Some(u32::try_from(self.random.below(30)).expect("small"));
        let down = millis(self.random, 5, 400);
        let (home, target) = (self.home, self.target);
        let crash = |node, crash| Fault::Crash {
            node,
            crash,
            calls,
            down,
        };
        let (steps, deed) = match self.random.below(4) {
            0 | 1 => (0, Deed::Strike(crash(home, Crash::Process))),
            2 => (100, Deed::Strike(crash(target, Crash::Process))),
            _ => (30, Deed::Operate(self.pause_mirror())),
        };
        let steps = self.random.below(steps + 1);
        self.moment(at, steps, deed);
    }

    fn pick<'b, T>(&mut self, all: &'b [T]) -> &'b T {
        &all[self.random.index(all.len())]
    }

    fn pause_mirror(&mut self) -> Command {
        Command::PauseMirror {
            group: 0,
            link: self.link,
            span: millis(self.random, 500, 5_000),
        }
    }

    /// The replica is promoted alone while a mirror runs, so many steps after it began at most.
    fn look_into_mirror(&mut self, at: u64, steps: u64) {
        for _ in 0..3 {
            let steps = self.random.below(steps);
            let crash = match self.random.one_in(3) {
                true => Crash::Process,
                false => Crash::Power,
            };
            let probe = Probe {
                group: 0,
                link: self.link,
                crash,
            };
            self.moment(at, steps, Deed::Look(probe));
        }
    }

    fn full_log(&mut self, at: u64) {
        self.calm_before(at);
        let span = millis(self.random, 20, 300);
        self.fall_behind(at, span);
        let wait = self.random.between(10, 60);
        let more = millis(self.random, 30, 500);
        self.rest(at + wait, span + more);
        if self.random.one_in(2) {
            self.mirror(at + wait / 2, MirrorKind::Full);
        }
        let stall = Fault::Stall {
            node: self.home,
            place: Place::Backings,
            span: span + more + millis(self.random, 10, 200),
        };
        let before = self.random.between(1, 8);
        self.fault(at + wait - before, stall);
    }

    fn full_journal(&mut self, at: u64) {
        self.calm_before(at);
        let span = millis(self.random, 20, 100);
        self.fall_behind(at, span);
        let wait = self.random.between(2, 10);
        self.mirror(at + wait, MirrorKind::Checksum);
        let deed = Deed::Operate(self.pause_mirror());
        let steps = self.random.below(100);
        self.moment(at, steps, deed);
        self.look_into_mirror(at, 1_500);
        // What says that the replica is not `ok` any more may be written once only.
        if !self.random.one_in(4) {
            self.half_a_record(at, self.target);
        }
    }

    fn mirror(&mut self, at: u64, kind: MirrorKind) {
        let mirror = Command::Mirror {
            group: 0,
            link: self.link,
            kind,
        };
        self.plan.commands.push((at, mirror));
    }

    /// A target acknowledges, turns behind, and comes back with an old copy when all is at rest.
    fn set_back_behind(&mut self, at: u64) {
        // Long enough that the intent map is empty, and the floor on disk where the target is.
        let idle = millis(self.random, 8_000, 20_000);
        self.rest(at - 1, idle);
        let rest = millis(self.random, 4_000, 12_000);
        let backup = Fault::OldBackup {
            node: self.target,
            span: rest,
        };
        self.fault(at, backup);
        let wait = self.random.between(5, 60);
        let behind = millis(self.random, 1_500, 8_000);
        self.fall_behind(at + wait, behind);
        if self.random.one_in(2) {
            let span = millis(self.random, 2_000, 8_000);
            let cut = self.cut(span);
            let steps = self.random.below(40);
            self.moment(at, steps, Deed::Strike(cut));
        }
        self.rest(at + wait + 1, rest);
        self.calm_after(at + wait + 1);
    }

    fn old_names(&mut self) {
        let at = self.random.between(80, 180);
        if self.random.one_in(2) {
            return self.set_back_behind(at);
        }
        let backup = Fault::OldBackup {
            node: self.target,
            span: millis(self.random, 2_500, 5_000),
        };
        self.fault(at, backup);
        let wait = self.random.between(1, 20);
        self.power_cut_of_source(at + wait);
        let held = self.random.between(20, 80);
        let hold = Command::HoldTransmission {
            group: 0,
            link: self.random.index(2),
            how: Hold::Pause,
            span: FOR_LONG,
        };
        self.plan.commands.push((at + wait + held, hold));
    }

    /// The next write of one copy of a node's record fails.
    fn half_a_record(&mut self, at: u64, node: usize) {
        let error = Fault::Disk {
            node,
            kind: FaultKind::Write,
            errno: Errno::EIO,
            times: 1,
            place: Place::Records,
        };
        self.fault(at, error);
    }

    /// One copy of the source's record is not written, and the next daemon reads it.
    fn old_record(&mut self, mut at: u64) {
        self.half_a_record(at, self.home);
        for crash in [Crash::Process, Crash::Power] {
            at += self.random.between(5, 30);
            let crash = self.crash(self.home, crash);
            self.fault(at, crash);
        }
    }

    fn rot(&mut self, at: u64) {
        if self.random.one_in(3) {
            return self.old_record(at);
        }
        let wait = self.random.between(10, 50);
        let (node, place, crash) = if self.random.one_in(2) {
            let span = millis(self.random, 1_500, 4_000);
            let more = millis(self.random, 500, 2_000);
            self.fall_behind(at, span + more);
            self.rest(at + wait, span);
            self.calm_after(at + wait + 1);
            (self.home, Place::Maps, Crash::Power)
        } else {
            let pause = Command::PauseTarget {
                group: 0,
                link: self.link,
                span: FOR_LONG,
            };
            self.plan.commands.push((at, pause));
            let crash = *self.pick(&[Crash::Power, Crash::Process]);
            (self.target, Place::Journals, crash)
        };
        for _ in 0..self.random.between(2, 4) {
            self.fault(at + wait + 1, Fault::Rot { node, place });
        }
        let down = millis(self.random, 5, 400);
        let crash = Fault::Crash {
            node,
            crash,
            calls: None,
            down,
        };
        self.fault(at + wait + 1, crash);
    }
}
