//! The program that runs inside a guest: `init` as its first process, `run NAME` for one body, `list` for their names.

#![forbid(unsafe_code)]

use anyhow::{Result, bail};
use blkrep_tests::inside::{BODIES, Context, init, run};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    // A kernel gives the first process arguments of its own choosing; it is known by its number.
    let done = match (words.next().as_deref(), words.next()) {
        _ if std::process::id() == 1 => init::main(),
        (Some("list"), None) => {
            BODIES.iter().for_each(|body| println!("{}", body.name));
            Ok(())
        }
        (Some("run"), Some(name)) => body(&name),
        _ => Err(anyhow::anyhow!(
            "usage: blkrep-guest list | run NAME; init runs as process 1 only"
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("blkrep-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn body(name: &str) -> Result<()> {
    let set = |name: &str| std::env::var(name).unwrap_or_default();
    let context = Context {
        full: !set(init::FULL_VARIABLE).is_empty(),
        dir: PathBuf::from(init::WORK_DIR),
        record: PathBuf::from(set(init::RECORD_VARIABLE)),
        arguments: set(init::ARGUMENTS_VARIABLE)
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
    };
    if !context.dir.is_dir() || context.record.as_os_str().is_empty() {
        bail!(
            "bodies change disks and kill processes: they run in a guest only (cargo xtask guest {name})"
        );
    }
    let ended = run(name, &context);
    let words = match &ended {
        Ok(words) => words.clone(),
        Err(error) => format!("{error:#}"),
    };
    std::fs::write(init::DETAIL_FILE, words)?;
    ended.map(drop)
}
