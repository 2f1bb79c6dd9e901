//! The reply to `doctor`: what the node's surroundings lack.

use serde::{Deserialize, Serialize};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingLevel {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// Works, with a drawback.
    Warning,
    /// Something blkrep offers does not work here.
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// A stable kebab-case name of the check.
    pub check: String,
    /// How much it matters.
    pub level: FindingLevel,
    /// What was found.
    pub what: String,
    /// What that means; empty when all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub meaning: String,
    /// What to do; empty when there is nothing to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub action: String,
}

/// Everything that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorReport {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// One per check.
    pub findings: Vec<Finding>,
}

impl DoctorReport {
    /// The worst level found; `Ok` when nothing was looked at.
    #[must_use]
    pub fn worst(&self) -> FindingLevel {
        let levels = self.findings.iter().map(|finding| finding.level);
        levels.max().unwrap_or(FindingLevel::Ok)
    }
}
