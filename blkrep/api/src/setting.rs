//! Settings as `get` shows them and `set` takes them.

use serde::{Deserialize, Serialize};

/// One `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingAssignment {
    /// Name of the setting.
    pub key: String,
    /// Its new value as text; `None` takes back what `set` changed.
    #[serde(default)]
    pub value: Option<String>,
}

/// Where a value comes from; a later one beats an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SettingOrigin {
    /// Built in.
    Default,
    /// The configuration file.
    File,
    /// `set` for the node.
    Node,
    /// `set` for the group.
    Group,
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingReport {
    /// Its name, `section.name`.
    pub key: String,
    /// The value in force.
    pub value: String,
    /// Where it comes from.
    pub origin: SettingOrigin,
    /// The built-in value.
    pub default: String,
    /// What values are legal, in words.
    pub range: String,
    /// What a value is: `size`, `count`, `time`, `switch`, `choice`.
    pub unit: String,
    /// When a change takes effect, in words.
    pub applies: String,
    /// May differ between groups.
    pub per_group: bool,
    /// What it does.
    pub help: String,
}

/// The reply to `get` and `set`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingReply {
    /// [`crate::SCHEMA`].
    pub schema: u32,
    /// The settings asked for or changed.
    pub settings: Vec<SettingReport>,
}
