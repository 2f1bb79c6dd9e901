//! What compression brings over a line of a rate, and what it costs.
//!
//! Owns the measurement: settings in turns, A B A B. And the processor time of packing and inflating, by level. Tables leave.

use crate::line::data::{self, Kind, PAGE};
use crate::line::{CASES, How, Run, processor_time, send, spread, target};
use anyhow::{Context, Result};
use blkrep_core::compression::Compression;
use blkrep_io::{Region, Slice};
use blkrep_types::{
    ByteLen, ByteOffset, Extent, Incarnation, Record, RecordKind, Seq, VolumeIndex,
};
use blkrep_wire::{Encoder, Entry, Packer, Written};

const MIB: usize = 1 << 20;

/// Data that is made; longer runs send it again. Far longer than what a codec remembers.
const DATA: usize = 64 * MIB;

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
                    let how = How {
                        compression,
                        encrypts: false,
                    };
                    runs.push(send(case, &data, how)?);
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
