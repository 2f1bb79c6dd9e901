//! Calling other programs, with their words in the log and a limit on their time.
//!
//! Owns starting and awaiting children. A command line enters, its output leaves. Never interprets it.

use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What a program left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A program that runs beside the body. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    words: String,
    child: Child,
    stdout: File,
    stderr: File,
    since: Instant,
}

const POLL: Duration = Duration::from_millis(10);
/// No single command of a body needs longer, unless it says so.
const LIMIT: Duration = Duration::from_secs(100);

/// A command from one line of words; none of them has blanks.
#[must_use]
pub fn command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// Starts a program.
///
/// # Errors
/// It cannot be started.
pub fn spawn(mut command: Command) -> Result<Running> {
    let words = describe(&command);
    println!("+ {words}");
    let scratch = || tempfile::tempfile().context("make a scratch file");
    let (stdout, stderr) = (scratch()?, scratch()?);
    command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?);
    let child = command.spawn().with_context(|| format!("start {words}"))?;
    Ok(Running {
        words,
        child,
        stdout,
        stderr,
        since: Instant::now(),
    })
}

fn describe(command: &Command) -> String {
    let words = [command.get_program()]
        .into_iter()
        .chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

impl Running {
    /// True while it runs.
    ///
    /// # Errors
    /// The kernel does not know it.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it without a word and waits until it is gone.
    ///
    /// # Errors
    /// It was not gone in a minute: it hangs in the kernel.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.is_running()? {
            ensure!(
                Instant::now() < deadline,
                "{} hangs in the kernel a minute after kill -9",
                self.words
            );
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// What it has said so far on standard error.
    ///
    /// # Errors
    /// Its output cannot be read.
    pub fn stderr(&mut self) -> Result<String> {
        read(&mut self.stderr)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It runs longer than `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<Finished> {
        while self.is_running()? {
            if self.since.elapsed() > limit {
                let said = format!("{}{}", read(&mut self.stdout)?, read(&mut self.stderr)?);
                let _ = self.child.kill();
                bail!("{} still runs after {limit:?}: {said}", self.words);
            }
            std::thread::sleep(POLL);
        }
        let status = self.child.wait()?;
        let (stdout, stderr) = (read(&mut self.stdout)?, read(&mut self.stderr)?);
        Ok(Finished {
            status,
            stdout,
            stderr,
        })
    }

    /// Waits for its end and demands success.
    ///
    /// # Errors
    /// It failed or runs longer than `limit`.
    pub fn succeed(self, limit: Duration) -> Result<String> {
        let words = self.words.clone();
        let done = self.finish(limit)?;
        ensure!(
            done.status.success(),
            "{words}: {}: {}{}",
            done.status,
            done.stdout,
            done.stderr
        );
        Ok(done.stdout)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // Not awaited: it may hang in the kernel, and the first process reaps it.
    }
}

fn read(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Runs a line of words to its end and returns its standard output.
///
/// # Errors
/// It failed, or ran for too long.
pub fn run(line: &str) -> Result<String> {
    spawn(command(line))?.succeed(LIMIT)
}

/// Runs a line of words that may fail.
///
/// # Errors
/// It could not be started, or ran for too long.
pub fn try_run(line: &str) -> Result<Finished> {
    spawn(command(line))?.finish(LIMIT)
}

/// Asks again until `condition` holds.
///
/// # Errors
/// It did not within `limit`.
pub fn wait_for(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !condition()? {
        ensure!(Instant::now() < deadline, "waited {limit:?} for {what}");
        std::thread::sleep(POLL);
    }
    Ok(())
}
