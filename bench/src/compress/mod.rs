//! What compression brings over a line of a rate, and what it costs.
//!
//! Owns the measurement: the link's own driver over loopback to a target that reads no faster than the
//! line; settings in turns, A B A B. And the processor time of packing and inflating, by level. Tables leave.

mod data;
mod port;
mod target;

use anyhow::{Context, Result, anyhow};
use blkrep::engine::link::{LinkControl, LinkEvent, LinkSettings, LinkWatch, LinkWorker, Pace};
use blkrep_core::compression::Compression;
use blkrep_io::real::RealHost;
use blkrep_io::{Host as _, Region, Slice, run};
use blkrep_types::{
    ByteLen, ByteOffset, Congestion, Extent, Incarnation, Record, RecordKind, Seq, VolumeIndex,
};
use blkrep_wire::{Encoder, Entry, Packer, Written};
use data::{Kind, PAGE};
use port::Writes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;
use target::Target;

const MIB: usize = 1 << 20;

/// Data that is made; longer runs send it again. Far longer than what a codec remembers.
const DATA: usize = 64 * MIB;

/// One line and what is sent over it.
struct Case {
    line: &'static str,
    /// Bytes a second.
    rate: Option<u64>,
    mib: u64,
}

const CASES: [Case; 3] = [
    Case {
        line: "100 Mbit/s",
        rate: Some(12_500_000),
        mib: 96,
    },
    Case {
        line: "1 Gbit/s",
        rate: Some(125_000_000),
        mib: 512,
    },
    Case {
        line: "loopback",
        rate: None,
        mib: 2048,
    },
];

struct Quiet;

impl LinkWatch for Quiet {
    fn event(&self, _event: &LinkEvent) {}
}

/// One run: MiB a second, and how much smaller it was on the line.
struct Run {
    rate: f64,
    ratio: f64,
}

/// Measures everything and prints it.
pub(crate) fn measure(rounds: u32) -> Result<()> {
    println!("| line | data | off, MiB/s | adaptive, MiB/s | adaptive / off | on the line |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for kind in [Kind::Pages, Kind::Noise] {
        let data = data::make(kind, DATA);
        for case in &CASES {
            let mut runs: [Vec<Run>; 2] = [Vec::new(), Vec::new()];
            for _ in 0..rounds {
                for (runs, compression) in runs
                    .iter_mut()
                    .zip([Compression::Off, Compression::Adaptive])
                {
                    runs.push(one(case, &data, compression)?);
                }
            }
            let ratios = runs[0]
                .iter()
                .zip(&runs[1])
                .map(|(off, on)| on.rate / off.rate);
            println!(
                "| {} | {} | {} | {} | {} | {} |",
                case.line,
                kind.title(),
                spread(runs[0].iter().map(|run| run.rate)),
                spread(runs[1].iter().map(|run| run.rate)),
                spread(ratios),
                spread(runs[1].iter().map(|run| run.ratio)),
            );
        }
    }
    levels(rounds)
}

impl Kind {
    const fn title(self) -> &'static str {
        match self {
            Self::Pages => "PostgreSQL-like pages",
            Self::Noise => "random",
        }
    }
}

/// Median, and in parentheses the least and the most.
fn spread(values: impl Iterator<Item = f64>) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (least, most) = (values[0], values[values.len() - 1]);
    format!("{:.2} ({least:.2}–{most:.2})", values[values.len() / 2])
}

#[allow(clippy::cast_precision_loss)]
fn one(case: &Case, data: &Slice, compression: Compression) -> Result<Run> {
    let target = Target::new(case.rate)?;
    let control = LinkControl::new(settings(target.address()?, compression)?);
    let framed = Arc::new(AtomicU64::new(0));
    let bytes = case.mib << 20;
    let count = bytes / u64::try_from(PAGE)?;
    let writes = Writes::new(data.clone(), count, Arc::clone(&framed));
    let driver = control.clone();
    let source = thread::spawn(move || -> Result<()> {
        let mut worker = LinkWorker::new(writes, driver, Arc::new(Quiet));
        let mut io = RealHost::new("blkrep-bench").ring(64)?;
        run(&mut io, &mut worker).map_err(|errno| anyhow!("the ring broke: {errno}"))
    });
    let took = target.take(count);
    control.stop();
    source
        .join()
        .map_err(|_| anyhow!("the driver ended by a panic"))??;
    Ok(Run {
        rate: case.mib as f64 / took?.as_secs_f64(),
        ratio: bytes as f64 / framed.load(Ordering::Relaxed) as f64,
    })
}

fn settings(peer: SocketAddr, compression: Compression) -> Result<LinkSettings> {
    Ok(LinkSettings {
        connections: 1,
        pace: Pace::default(),
        node: "source".to_owned().try_into().ok().context("a name")?,
        peer,
        heartbeat: Duration::from_secs(1),
        timeout: Duration::from_secs(10),
        connect_timeout: Duration::from_secs(10),
        progress_timeout: Duration::from_secs(60),
        reconnect: false,
        reconnect_interval: Duration::from_secs(1),
        compression,
        compression_level: 1,
        congestion: Congestion::Auto,
        simulated: false,
        simulated_rate: ByteLen::new(1 << 20),
    })
}

/// Batches of 1 MiB of pages.
fn batches(data: &Slice) -> Result<Vec<Vec<Entry>>> {
    let len = ByteLen::new(u64::try_from(PAGE)?);
    let entry = |number: usize| -> Result<Entry> {
        let at = number * PAGE;
        let seq = u64::try_from(number)? + 1;
        Ok(Entry {
            record: Record {
                incarnation: Incarnation::new(1),
                seq: Seq::new(seq),
                kind: RecordKind::Data { mirror: false },
                volume: VolumeIndex::new(0),
                extent: Some(Extent::new(ByteOffset::new(u64::try_from(at)?), len)?),
            },
            bytes: Some(data.part(at..at + PAGE)),
        })
    };
    let per_batch = MIB / PAGE;
    let batch = |batch: usize| {
        (batch * per_batch..(batch + 1) * per_batch)
            .map(entry)
            .collect()
    };
    (0..data.len() / MIB).map(batch).collect()
}

/// Processor time of this thread, in seconds. What is measured makes no system calls.
fn processor_time() -> Result<f64> {
    let path = "/proc/thread-self/schedstat";
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let nanos: u64 = text.split(' ').next().context("a time")?.parse()?;
    Ok(Duration::from_nanos(nanos).as_secs_f64())
}

/// Seconds of processor time for a GiB, of one level.
struct Cost {
    pack: f64,
    inflate: f64,
    ratio: f64,
}

fn levels(rounds: u32) -> Result<()> {
    println!("\n| frames | packing, s/GiB | checking and inflating, s/GiB | to 1 |");
    println!("| --- | --- | --- | --- |");
    let data = data::make(Kind::Pages, DATA);
    let batches = batches(&data)?;
    let steps: Vec<Option<i32>> = [None].into_iter().chain((1..=9).map(Some)).collect();
    let mut costs: Vec<Vec<Cost>> = steps.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (level, costs) in steps.iter().zip(&mut costs) {
            costs.push(cost(&batches, *level)?);
        }
    }
    for (level, costs) in steps.iter().zip(&costs) {
        let title = level.map_or("plain".to_owned(), |level| format!("level {level}"));
        println!(
            "| {title} | {} | {} | {:.2} |",
            spread(costs.iter().map(|cost| cost.pack)),
            spread(costs.iter().map(|cost| cost.inflate)),
            costs[0].ratio
        );
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss)]
fn cost(batches: &[Vec<Entry>], level: Option<i32>) -> Result<Cost> {
    let space = || Region::heap(2 * MIB).whole();
    let (mut plain, mut to) = (space(), space());
    let mut packer = Packer::new(level.unwrap_or(1)).context("memory for a context")?;
    let (mut encoder, mut decoder) = (Encoder::new(), target::decoder()?);
    let (mut pack, mut inflate, mut wire) = (0.0, 0.0, 0);
    for entries in batches {
        let begun = processor_time()?;
        let frame = match level {
            None => {
                let len = encoder.data(entries, &plain).context("a batch fits")?;
                plain.part(0..len)
            }
            Some(_) => match encoder.packed(entries, &mut packer, &plain, &to) {
                Some(Written::Packed(len)) => to.part(0..len),
                Some(Written::Plain(len)) => plain.part(0..len),
                None => anyhow::bail!("a batch did not fit"),
            },
        };
        pack += processor_time()? - begun;
        wire += frame.len();
        let mut rest = frame;
        let begun = processor_time()?;
        while !rest.is_empty() {
            let into = decoder.space();
            let len = rest.len().min(into.len());
            into.part(0..len).copy_from(&rest.part(0..len));
            decoder.received(len);
            rest = rest.part(len..rest.len());
            while decoder.next()?.is_some() {}
        }
        inflate += processor_time()? - begun;
        std::mem::swap(&mut plain, &mut to);
    }
    let gib = DATA as f64 / f64::from(1 << 30);
    Ok(Cost {
        pack: pack / gib,
        inflate: inflate / gib,
        ratio: DATA as f64 / wire as f64,
    })
}
