//! What a guest is told to do, and how it answers.
//!
//! Owns the job file and the result lines, the only things that both sides of a boot know. Never runs anything.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The job file's name, at the root of an initramfs and in a shared directory.
pub const JOB_FILE: &str = "job.json";
/// The result channel: the name of a virtio port, and of a file in a shared directory.
pub const RESULT_CHANNEL: &str = "result";
/// The channel for records that must outlive the guest.
pub const RECORD_CHANNEL: &str = "record";
/// Kernel argument that names the shared directory. The dot keeps the kernel from handing it to the first process.
pub const SHARE_ARGUMENT: &str = "blkrep.share";
/// Environment variable that names the shared directory where the machine itself is the guest.
pub const SHARE_VARIABLE: &str = "BLKREP_SHARE";
/// Where a guest finds the shared directory.
pub const SHARE_MOUNT: &str = "/run/share";

/// What a guest runs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Job {
    /// Bodies, in order.
    pub tests: Vec<Entry>,
    /// Campaigns whole, instead of their stated part.
    pub full: bool,
    /// Words for the bodies, such as what an earlier boot left behind.
    pub arguments: Vec<String>,
    /// Directories with the product's and the harness's programs, first in the path.
    pub program_dirs: Vec<String>,
}

/// One body to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// When it has failed by standing still, in seconds.
    pub timeout_s: u64,
}

/// One line of a guest's answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The guest is up: words about it.
    Ready(String),
    /// A body is being run.
    Begin(String),
    /// A body ended.
    Test(TestResult),
    /// The guest ends on its own account.
    Done,
}

/// How one body ended.
#[derive(Debug, Clone, PartialEq)]
pub struct TestResult {
    /// Its name.
    pub name: String,
    /// Whether its promise held.
    pub ok: bool,
    /// How long it took.
    pub seconds: f64,
    /// What it counted, or why it failed.
    pub detail: String,
}

impl fmt::Display for TestResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.ok { "ok" } else { "FAILED" };
        let detail = self.detail.replace(['\n', '\r'], "; ");
        write!(
            f,
            "GUEST-TEST {} {word} {:.1} {detail}",
            self.name, self.seconds
        )
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(words) => write!(f, "GUEST-READY {words}"),
            Self::Begin(name) => write!(f, "GUEST-BEGIN {name}"),
            Self::Test(result) => result.fmt(f),
            Self::Done => write!(f, "GUEST-DONE"),
        }
    }
}

impl Answer {
    /// Reads a line; anything else on the channel is not an answer.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let line = line.trim_end();
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "GUEST-READY" => Some(Self::Ready(rest.to_owned())),
            "GUEST-BEGIN" => Some(Self::Begin(rest.to_owned())),
            "GUEST-DONE" => Some(Self::Done),
            "GUEST-TEST" => {
                let mut words = rest.splitn(4, ' ');
                let name = words.next()?.to_owned();
                let ok = match words.next()? {
                    "ok" => true,
                    "FAILED" => false,
                    _ => return None,
                };
                let seconds = words.next()?.parse().ok()?;
                let detail = words.next().unwrap_or_default().to_owned();
                Some(Self::Test(TestResult {
                    name,
                    ok,
                    seconds,
                    detail,
                }))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn answers_read_back_and_noise_is_not_an_answer() {
        let result = TestResult {
            name: "a-b".into(),
            ok: false,
            seconds: 1.5,
            detail: "x y\nz".into(),
        };
        let line = Answer::Test(result.clone()).to_string();
        let expected = TestResult {
            detail: "x y; z".into(),
            ..result
        };
        assert_eq!(Answer::parse(&line), Some(Answer::Test(expected)));
        for answer in [
            Answer::Ready("6.12 2".into()),
            Answer::Begin("t".into()),
            Answer::Done,
        ] {
            assert_eq!(Answer::parse(&answer.to_string()), Some(answer));
        }
        for noise in [
            "",
            "[ 1.0] ublk: x",
            "GUEST-TEST a maybe 1.0",
            "GUEST-TEST a ok",
            "xGUEST-DONE",
        ] {
            assert_eq!(Answer::parse(noise), None, "{noise}");
        }
    }
}
