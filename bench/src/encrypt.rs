//! What encryption costs over a line of a rate.
//!
//! Owns the measurement: data that does not compress, plain and encrypted in turns, A B A B. A table leaves.

use crate::line::data::{self, Kind};
use crate::line::{CASES, How, Run, send, spread};
use anyhow::Result;
use blkrep_core::compression::Compression;

/// Data that is made; longer runs send it again.
const DATA: usize = 64 << 20;

/// Measures everything and prints it.
pub(crate) fn measure(rounds: u32) -> Result<()> {
    println!(
        "| line | plain, MiB/s | TLS, MiB/s | TLS / plain | plain, CPU s/GiB | TLS, CPU s/GiB |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    let data = data::make(Kind::Noise, DATA);
    for case in &CASES {
        let mut runs: [Vec<Run>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (runs, encrypts) in runs.iter_mut().zip([false, true]) {
                let how = How {
                    compression: Compression::Off,
                    encrypts,
                };
                runs.push(send(case, &data, how)?);
            }
        }
        let [plain, tls] = &runs;
        let ratios = plain
            .iter()
            .zip(tls)
            .map(|(plain, tls)| tls.rate / plain.rate);
        println!(
            "| {} | {} | {} | {} | {} | {} |",
            case.line,
            spread(plain.iter().map(|run| run.rate)),
            spread(tls.iter().map(|run| run.rate)),
            spread(ratios),
            spread(plain.iter().map(|run| run.cpu)),
            spread(tls.iter().map(|run| run.cpu)),
        );
    }
    Ok(())
}
