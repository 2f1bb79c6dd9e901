//! `--wait`: shows how a mirror goes on until it is done, or cannot.
//!
//! Owns the bars, on standard error and only for people at a terminal; others get a line now and
//! then. Polls `status`; ending it ends only the waiting.

use crate::Outcome;
use crate::commands::Session;
use anyhow::bail;
use blkrep_api::{ConnectionState, DataState, LinkStatus, MirrorState, Status, StatusQuery, route};
use blkrep_types::{GroupName, LinkName};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time between two looks.
const POLL: Duration = Duration::from_millis(200);
/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// How far one link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Done,
    Running,
    /// Nothing happens before someone acts.
    Stuck(&'static str),
}

fn progress_of(link: &LinkStatus) -> Progress {
    match (link.connection, link.mirror.state) {
        (ConnectionState::Refused, _) => Progress::Stuck("the link is refused"),
        (ConnectionState::Simulated, MirrorState::Idle) => {
            Progress::Stuck("the link is simulated: nothing was sent")
        }
        (ConnectionState::Disconnected, _) => Progress::Stuck("the link was ended"),
        (_, MirrorState::Paused) => Progress::Stuck("the mirror is paused"),
        (ConnectionState::Connected, MirrorState::Idle) => match link.data_state {
            DataState::Ok => Progress::Done,
            DataState::MirrorRequired | DataState::NotReady | DataState::RestoreRequired => {
                Progress::Stuck("the mirror was ended before it was done")
            }
            // The target's word is still on its way.
            DataState::Mirroring | DataState::Reverted | DataState::Unknown => Progress::Running,
        },
        (
            ConnectionState::Connected
            | ConnectionState::Connecting
            | ConnectionState::Down
            | ConnectionState::Simulated,
            _,
        ) => Progress::Running,
    }
}

/// Waits until every named link's target is equal.
pub(crate) fn wait_for_mirror(
    session: &Session<'_>,
    group: &GroupName,
    link: Option<&LinkName>,
) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    let mut view = View::new(session.output.json);
    loop {
        let links = look(session, group, link)?;
        view.show(&links);
        let states: Vec<_> = links.iter().map(progress_of).collect();
        if let Some((link, why)) = links
            .iter()
            .zip(&states)
            .find_map(|(link, state)| match state {
                Progress::Stuck(why) => Some((link, why)),
                Progress::Done | Progress::Running => None,
            })
        {
            view.end();
            let reason = link.refusal.as_deref().map(|text| format!(": {text}"));
            session.output.talk(&format!(
                "link {}: {why}{}; see: blkctl status {group}",
                link.name,
                reason.unwrap_or_default()
            ));
            return Ok(Outcome::Condition);
        }
        if states.iter().all(|state| *state == Progress::Done) {
            view.end();
            for link in &links {
                session.output.talk(&summary(link, began.elapsed()));
            }
            return Ok(Outcome::Done);
        }
        if session
            .arguments
            .global
            .timeout
            .is_some_and(|limit| began.elapsed() > limit)
        {
            view.end();
            session
                .output
                .talk("the time given is over; the mirror goes on");
            return Ok(Outcome::Condition);
        }
        std::thread::sleep(POLL);
    }
}

fn look(
    session: &Session<'_>,
    group: &GroupName,
    link: Option<&LinkName>,
) -> anyhow::Result<Vec<LinkStatus>> {
    let query = StatusQuery {
        group: Some(group.clone()),
    };
    let status: Status = session.client.get(route::STATUS, &query)?;
    let groups = status
        .groups
        .into_iter()
        .filter(|found| found.name == *group);
    let mut links: Vec<_> = groups.flat_map(|group| group.links).collect();
    links.retain(|found| link.is_none_or(|name| found.name == *name));
    if links.is_empty() {
        bail!("group {group} has no such link any more");
    }
    Ok(links)
}

fn summary(link: &LinkStatus, elapsed: Duration) -> String {
    let mirror = &link.mirror;
    format!(
        "link {}: equal; {} sent, {} not needed, in {:.1} s",
        link.name,
        indicatif::BinaryBytes(mirror.bytes_sent.get()),
        indicatif::BinaryBytes(mirror.bytes_skipped.get()),
        elapsed.as_secs_f64()
    )
}

/// Bars for a terminal, lines for others, nothing beside JSON.
struct View {
    bars: MultiProgress,
    shown: BTreeMap<LinkName, ProgressBar>,
    terminal: bool,
    quiet: bool,
    last_line: Option<Instant>,
}

impl View {
    fn new(quiet: bool) -> Self {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let target = if terminal && !quiet {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            bars: MultiProgress::with_draw_target(target),
            shown: BTreeMap::new(),
            terminal,
            quiet,
            last_line: None,
        }
    }

    fn show(&mut self, links: &[LinkStatus]) {
        for link in links {
            let mirror = &link.mirror;
            let done = mirror
                .bytes_sent
                .get()
                .saturating_add(mirror.bytes_skipped.get());
            let bar = self.shown.entry(link.name.clone()).or_insert_with(|| {
                let bar = self.bars.add(ProgressBar::new(0));
                bar.set_style(style());
                bar.set_prefix(link.name.to_string());
                bar
            });
            bar.set_length(done.saturating_add(mirror.bytes_remaining.get()));
            bar.set_position(done);
            bar.set_message(mirror.state.as_str());
        }
        let due = self
            .last_line
            .is_none_or(|last| last.elapsed() >= LINE_INTERVAL);
        if !self.terminal && !self.quiet && due {
            self.last_line = Some(Instant::now());
            for link in links {
                eprintln!("{}", line(link));
            }
        }
    }

    fn end(&self) {
        for bar in self.shown.values() {
            bar.finish_and_clear();
        }
    }
}

fn line(link: &LinkStatus) -> String {
    let remaining = indicatif::BinaryBytes(link.mirror.bytes_remaining.get());
    format!(
        "link {}: {} {:.1} %, {remaining} to go",
        link.name, link.mirror.state, link.mirror.percent
    )
}

fn style() -> ProgressStyle {
    let form = "{prefix} {msg} [{bar:30}] {percent:>3} % {binary_bytes}/{binary_total_bytes} \
                {binary_bytes_per_sec}, {eta} left";
    ProgressStyle::with_template(form)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
