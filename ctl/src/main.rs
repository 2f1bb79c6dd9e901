//! `blkctl`: administers a `blkrepd` through its control API.
//!
//! Owns the process: arguments in, data on standard output, talk on standard error, exit code out:
//! 0 done, 1 a condition was found, 2 error. Never reaches into the daemon's files.
#![forbid(unsafe_code)]

mod args;
mod client;
mod commands;
mod demo;
mod left_behind;
mod output;
mod progress;
mod reference;
mod render;

use args::Arguments;
use clap::Parser as _;
use output::Output;
use std::process::ExitCode;

/// What a command found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Done, and all is well.
    Done,
    /// Done, and a condition was found that the caller may act on.
    Condition,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            // A closed terminal or pipe cannot be told anything.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let output = Output::new(&arguments.global);
    match commands::run(&arguments, &output) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Condition) => ExitCode::from(1),
        Err(error) => {
            output.error(&error);
            ExitCode::from(2)
        }
    }
}
