//! Many bodies over as few boots as their results allow.
//!
//! Owns the choice of bodies and booting anew after a failure. Names enter, one result each leaves. Never runs a body itself.

use super::job::{Entry, Job, TestResult};
use super::{Guest, Kind, Spec, log_of};
use crate::inside::{BODIES, Body, TOOLS};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// What to run where.
#[derive(Debug, Clone)]
pub struct Campaign {
    /// In which kind of guest.
    pub kind: Kind,
    /// Where the programs are.
    pub programs: PathBuf,
    /// Bodies by name; all that belong to a plain run if empty.
    pub names: Vec<String>,
    /// Campaigns whole.
    pub full: bool,
}

const MEMORY_MIB: u32 = 2048;
const CPUS: u32 = 2;

/// The spec of a guest that runs these bodies.
#[must_use]
pub fn spec(kind: Kind, programs: &Path, full: bool, tests: Vec<Entry>) -> Spec {
    let job = Job {
        tests,
        full,
        ..Job::default()
    };
    let tools = TOOLS.iter().map(|tool| (*tool).to_owned()).collect();
    let (memory_mib, cpus) = (MEMORY_MIB, CPUS);
    Spec {
        kind,
        programs: programs.to_owned(),
        tools,
        job,
        disks: Vec::new(),
        memory_mib,
        cpus,
        virtual_time: false,
    }
}

/// A body's place in a job.
#[must_use]
pub fn entry(body: &Body, full: bool) -> Entry {
    let (part, whole) = body.timeout_s;
    Entry {
        name: body.name.to_owned(),
        timeout_s: if full { whole } else { part },
    }
}

impl Campaign {
    fn entries(&self) -> Result<Vec<Entry>> {
        if self.names.is_empty() {
            let plain = BODIES.iter().filter(|body| !body.on_request);
            return Ok(plain.map(|body| entry(body, self.full)).collect());
        }
        let find = |name: &String| {
            let body = BODIES.iter().find(|body| body.name == name);
            let body = body.with_context(|| {
                format!("find a body called {name}; `cargo xtask guest --list` names them")
            })?;
            Ok(entry(body, self.full))
        };
        self.names.iter().map(find).collect()
    }

    /// Runs them all; a line on standard output for each, and the console's part for those that failed.
    ///
    /// # Errors
    /// A guest cannot even be started. A body that failed is a result.
    pub fn run(&self) -> Result<Vec<TestResult>> {
        let mut left = self.entries()?;
        let mut results = Vec::new();
        while !left.is_empty() {
            let guest = Guest::boot(&spec(self.kind, &self.programs, self.full, left.clone()))?;
            let (log, kind) = (guest.log().to_owned(), self.kind.name());
            let outcome = guest.wait(|result| {
                println!("{kind}: {result}");
                if !result.ok {
                    let said = log_of(&log, &result.name);
                    println!(
                        "{}",
                        said.unwrap_or_else(|error| format!("  | no log: {error}"))
                    );
                }
            })?;
            if let Some(words) = &outcome.ready {
                println!("{kind}: booted: {words}; console in {}", log.display());
            }
            ensure!(
                outcome.unreached.len() < left.len(),
                "a boot of {kind} brought no result; see {}",
                log.display()
            );
            results.extend(outcome.results);
            left = outcome.unreached;
        }
        Ok(results)
    }
}
