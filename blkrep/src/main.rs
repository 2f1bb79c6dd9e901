//! `blkrepd`: serves block devices and replicates them in write order to other nodes.
//!
//! Owns the process: flags in, exit code out. Everything else is in the library.
#![forbid(unsafe_code)]

use blkrep::config::{Config, Options};
use blkrep::control::EmptyNode;
use blkrep::{daemon, logging};
use clap::Parser as _;
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("blkrepd: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(options: Options) -> anyhow::Result<()> {
    let config = Config::load(options)?;
    logging::start(&config.log)?;
    daemon::run(config, |_context| Ok(Arc::new(EmptyNode)))
}
