//! A pair whose line is long, loses packets, or is limited: how much of it replication gets.
//!
//! Owns what is measured, and against what: what the line carries, and what a plain TCP stream gets of it, in the same run.

use super::Context;
use super::disk::{Memory, bytes_of, write_direct};
use super::line::{Line, MBIT, has_bbr, per_second};
use super::pair::{CONFIG, Pair, Placed, Plan};
use crate::order::Random;
use anyhow::{Context as _, Result, ensure};
use std::path::Path;
use std::time::{Duration, Instant};

/// MiB of the volume.
const SIZE_MIB: u64 = 64;
const MIB: u64 = 1 << 20;
/// What is written at once and then has to get over: enough for some seconds, and the log has room for it.
const BURST: u64 = 56 * MIB;
/// From the end of the writing: connections have found out what the line carries.
const BURST_BEGIN: Duration = Duration::from_millis(500);
/// How long it is watched, or until so much is left.
const BURST_SPAN: Duration = Duration::from_secs(4);
const BURST_LEFT: u64 = 4 * MIB;
/// Plain streams that fill the line together, where nothing is lost.
const FILLING: usize = 8;
/// Rounds of each loss; odd, for a median.
const ROUNDS: u32 = 3;
/// A burst is over by then, at the slowest that could be right.
const BURST_LIMIT: Duration = Duration::from_secs(60);
/// TCP payload of a full line: 1448 bytes of 1514.
const PAYLOAD: f64 = 1448.0 / 1514.0;
/// Connections where every one of them backs off for a lost packet.
const CONNECTIONS: u32 = 16;
/// The limit that is kept to: less than a slow guest replicates without one.
const LIMIT_MIB: u64 = 1;
/// What is written at once while it holds: more than it lets through while it is looked at.
const LIMITED_MIB: u64 = 24;

/// A pair over the line, connected; the volume's disks go with it.
struct Long {
    // Before the disks and the line: they stand on them.
    pair: Pair,
    line: Line,
    random: Random,
    _disks: [Memory; 2],
}

impl Long {
    fn new(context: &Context) -> Result<Self> {
        let line = Line::new()?;
        let disks = [
            Memory::new("backing", SIZE_MIB, 512)?,
            Memory::new("replica", SIZE_MIB, 512)?,
        ];
        let placed = Placed::new("one", disks[0].path(), disks[1].path());
        let plan = Plan {
            far: Some(line.far().clone()),
            config: CONFIG.replace("[link]", "[link]\ncompression = 'off'"),
            ..Plan::new(context, vec![placed])
        };
        let mut pair = Pair::start(plan)?;
        if !has_bbr() {
            let group = &pair.plan.group;
            let line = format!("set --group {group} link.connections={CONNECTIONS}");
            pair.source.ctl(&line)?;
        }
        pair.connect()?;
        Ok(Self {
            pair,
            line,
            random: Random::new(1),
            _disks: disks,
        })
    }

    fn write(&mut self, len: u64) -> Result<()> {
        write_noise(&self.pair.devices()[0], len, &mut self.random)
    }

    fn queued(&mut self) -> Result<u64> {
        Ok(self.pair.link()?.queue.memory_bytes.get())
    }

    /// What replication gets of the line, in bytes a second: of a burst that waits in the log, what became durable on the target
    /// in some seconds in its middle.
    fn burst(&mut self) -> Result<f64> {
        self.write(BURST)?;
        std::thread::sleep(BURST_BEGIN);
        let (began, before) = (Instant::now(), self.queued()?);
        let (mut took, mut after) = (Duration::ZERO, before);
        while took < BURST_SPAN && after > BURST_LEFT {
            std::thread::sleep(Duration::from_millis(200));
            (took, after) = (began.elapsed(), self.queued()?);
        }
        ensure!(
            after < before,
            "{before} bytes waited after the burst, {after} at its end"
        );
        self.pair.until_quiet(BURST_LIMIT)?;
        Ok(per_second(before - after, took))
    }

    fn end(mut self) -> Result<()> {
        self.pair.images_equal()?;
        self.pair.stop()
    }
}

/// Noise from the beginning of a device on, in pieces that its queue has room for.
fn write_noise(device: &Path, len: u64, random: &mut Random) -> Result<()> {
    ensure!(len <= bytes_of(device)?, "more than the volume has");
    let mut bytes = vec![0; 1 << 20];
    for piece in 0..len / MIB {
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
        write_direct(device, piece * MIB, &bytes)?;
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn mbit(rate: f64) -> f64 {
    rate * 8.0 / 1e6
}

pub(super) fn is_filled(context: &Context) -> Result<String> {
    let mut long = Long::new(context)?;
    let control = long.pair.link()?.congestion_control;
    let control = control.context("the link says no congestion control")?;
    ensure!(
        (control == "bbr") == has_bbr(),
        "{control}, with {} in the kernel",
        if has_bbr() { "bbr" } else { "no bbr" }
    );
    let (mut lines, mut rare) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        long.line.lose("0")?;
        lines.push(long.line.plain_streams(FILLING)?);
        long.line.lose("0.01")?;
        rare.push(long.burst()?);
    }
    let nominal = f64::from(MBIT) / 8.0 * 1e6 * PAYLOAD;
    let (line, rare) = (median(lines).min(nominal), median(rare));
    let (mut plain, mut often) = (vec![], vec![]);
    long.line.lose("1")?;
    for _ in 0..ROUNDS {
        plain.push(long.line.plain_streams(1)?);
        often.push(long.burst()?);
    }
    let (plain, often) = (median(plain), median(often));
    let words = format!(
        "line {:.1} Mbit/s; 0.01 % lost: {:.1} with {control}; 1 % lost: {:.1} where one plain \
         stream gets {:.1}, {:.1} times that",
        mbit(line),
        mbit(rare),
        mbit(often),
        mbit(plain),
        often / plain
    );
    println!("{words}");
    ensure!(rare >= 0.7 * line, "less than 70 % of the line: {words}");
    ensure!(often >= 8.0 * plain, "less than eight times: {words}");
    long.end()?;
    Ok(words)
}

/// How long before what is measured begins: the first burst of a limit, and its connection, are over then.
const SETTLE: Duration = Duration::from_secs(2);
/// How long it is measured.
const MEASURED: Duration = Duration::from_secs(10);

pub(super) fn limit_holds(context: &Context) -> Result<String> {
    let mut long = Long::new(context)?;
    let group = long.pair.plan.group.clone();
    let limit = format!("transmit limit {group} {LIMIT_MIB}MiB/s");
    long.pair.source.ctl(&limit)?;
    long.write(LIMITED_MIB * MIB)?;
    std::thread::sleep(SETTLE);
    let (began, before) = (Instant::now(), Line::sent()?);
    std::thread::sleep(MEASURED);
    let (after, took) = (Line::sent()?, began.elapsed());
    let waits = long.pair.link()?.queue.memory_bytes.get();
    ensure!(waits > MIB, "nothing waited for the limit: {waits} bytes");
    let rate = per_second(after - before, took);
    #[allow(clippy::cast_precision_loss)]
    let off = (rate / (LIMIT_MIB * MIB) as f64 - 1.0) * 100.0;
    let words = format!(
        "{:.3} MiB/s over {:.1} s, {off:+.2} % of {LIMIT_MIB} MiB/s",
        rate / f64::from(1 << 20),
        took.as_secs_f64()
    );
    ensure!((-5.0..=2.0).contains(&off), "{words}");
    long.pair
        .source
        .ctl(&format!("transmit limit {group} unlimited"))?;
    long.pair.until_quiet(BURST_LIMIT)?;
    long.end()?;
    Ok(words)
}
