//! `blkrepd`: serves block devices and replicates them in write order to other nodes.
//!
//! Owns the process: flags in, exit code out. Everything else is in the library.
#![forbid(unsafe_code)]

use blkrep::config::{Config, Options};
use blkrep::node::LiveNode;
use blkrep::{daemon, logging};
use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("blkrepd: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(mut options: Options) -> anyhow::Result<()> {
    if let Some(volume) = options.remove_left_behind.take() {
        for line in blkrep::left_behind::remove(&volume, options.state.as_deref())? {
            println!("{line}");
        }
        return Ok(());
    }
    let config = Config::load(options)?;
    logging::start(&config.log)?;
    daemon::run(config, LiveNode::open)
}
