//! Settings in force: built-in defaults, below the configuration file, below `set`.
//!
//! Owns the values and the file `settings.toml` of the state directory in which `set` keeps them.
//! Text enters through the registry's checks; typed structs leave. A change is all or nothing: it
//! is checked whole, made durable, then put in force. Never applies a value to an engine itself.

mod folder;
mod registry;
mod view;

pub use folder::Folder;
pub use registry::{Applies, Key, Kind, Spec, Value};
pub use view::{GroupSettings, NodeSettings, OnBackingError};

use crate::files::replace_file;
use blkrep_api::{
    ApiError, ErrorCode, GetQuery, SCHEMA, SetRequest, SettingOrigin, SettingReply, SettingReport,
};
use blkrep_core::source::Throttle;
use blkrep_types::GroupName;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Name of the file below the state directory.
const FILE: &str = "settings.toml";

/// Largest `settings.toml` that is read: far above what all keys for all groups take.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Groups with settings of their own at most: bounds the file.
const GROUPS_MAX: usize = 4096;

type Table = BTreeMap<Key, Value>;

#[derive(Debug, Clone, Default)]
struct Layers {
    file: Table,
    node: Table,
    groups: BTreeMap<GroupName, Table>,
}

impl Layers {
    fn resolve(&self, key: Key, group: Option<&GroupName>) -> (Value, SettingOrigin) {
        let of_group = group.filter(|_| key.spec().per_group);
        let of_group = of_group.and_then(|name| self.groups.get(name)?.get(&key));
        if let Some(value) = of_group {
            (*value, SettingOrigin::Group)
        } else if let Some(value) = self.node.get(&key) {
            (*value, SettingOrigin::Node)
        } else if let Some(value) = self.file.get(&key) {
            (*value, SettingOrigin::File)
        } else {
            (key.default_value(), SettingOrigin::Default)
        }
    }

    /// Checks what no single value can show.
    fn check(&self) -> Result<(), String> {
        let groups = self.groups.keys().map(Some).chain([None]);
        for group in groups {
            let settings = view::Values(|key| self.resolve(key, group).0).group();
            if settings.heartbeat_timeout < settings.heartbeat_interval * 2 {
                return Err(
                    "link.heartbeat-timeout must be at least twice link.heartbeat-interval"
                        .to_owned(),
                );
            }
            let backwards = |throttle: Throttle| throttle.stop >= throttle.start;
            if settings.throttle.is_some_and(backwards) {
                return Err("group.throttle-stop must be below group.throttle-start".to_owned());
            }
            if settings.stream.mirror_low >= settings.stream.mirror_high {
                return Err("link.mirror-low-mark must be below link.mirror-high-mark".to_owned());
            }
            settings.check_schedule()?;
            settings.check_bandwidth()?;
            if settings.queue_segment > settings.queue_disk {
                return Err("queue.segment-size must not be above queue.disk-size".to_owned());
            }
        }
        Ok(())
    }

    /// Checks what only the machine can show, for the groups that a change concerns.
    fn check_queues(&self, of: Option<&GroupName>) -> Result<(), ApiError> {
        let all = self.groups.keys().filter(|_| of.is_none());
        for group in all.map(Some).chain([of]) {
            let settings = view::Values(|key| self.resolve(key, group).0).group();
            let Some(queue) = &settings.queue else {
                continue;
            };
            folder::check_usable(&queue.directory, settings.queue_least.get()).map_err(|why| {
                let action = "make the directory, let blkrepd's user write to it, or name another";
                ApiError::new(
                    ErrorCode::SettingInvalid,
                    "setting queue.directory",
                    why,
                    action,
                )
            })?;
        }
        Ok(())
    }

    fn to_toml(&self) -> String {
        let mut text = String::from("# Written by `blkctl set`. Do not edit while blkrepd runs.\n");
        let mut section = |head: String, table: &Table| {
            if !table.is_empty() {
                write!(text, "\n[{head}]\n").expect("a String takes all text");
                for (key, value) in table {
                    writeln!(text, "\"{}\" = \"{value}\"", key.name())
                        .expect("a String takes all text");
                }
            }
        };
        section("node".to_owned(), &self.node);
        for (group, table) in &self.groups {
            section(format!("groups.\"{group}\""), table);
        }
        text
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    #[serde(default)]
    node: BTreeMap<String, String>,
    #[serde(default)]
    groups: BTreeMap<GroupName, BTreeMap<String, String>>,
}

/// The settings of a running daemon.
#[derive(Debug)]
pub struct Settings {
    path: Option<PathBuf>,
    layers: Mutex<Layers>,
}

impl Settings {
    /// The settings of a node: those of its configuration file, and those `set` kept in
    /// `state_dir`. Also returns a sentence for each kept value that could not be used.
    ///
    /// # Errors
    /// The configuration file's values contradict one another.
    pub fn open(
        state_dir: &Path,
        file: BTreeMap<Key, Value>,
    ) -> Result<(Self, Vec<String>), String> {
        let path = state_dir.join(FILE);
        let mut layers = Layers {
            file,
            ..Layers::default()
        };
        layers.check()?;
        let mut troubles = Vec::new();
        match read_saved(&path) {
            Ok(saved) => {
                let (node, groups) = usable(saved, &mut troubles);
                let kept = Layers {
                    node,
                    groups,
                    ..layers.clone()
                };
                match kept.check() {
                    Ok(()) => layers = kept,
                    Err(why) => troubles.push(format!("{}: {why}", path.display())),
                }
            }
            Err(why) => troubles.push(format!("{}: {why}", path.display())),
        }
        let settings = Self {
            path: Some(path),
            layers: Mutex::new(layers),
        };
        Ok((settings, troubles))
    }

    /// Built-in defaults, kept nowhere.
    #[must_use]
    pub fn defaults() -> Self {
        Self {
            path: None,
            layers: Mutex::default(),
        }
    }

    fn layers(&self) -> MutexGuard<'_, Layers> {
        // A panic cannot leave the layers half changed: they are replaced whole.
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in force for a group.
    #[must_use]
    pub fn group(&self, group: &GroupName) -> GroupSettings {
        let layers = self.layers();
        view::Values(|key| layers.resolve(key, Some(group)).0).group()
    }

    /// What is in force for groups without values of their own.
    #[must_use]
    pub fn any_group(&self) -> GroupSettings {
        let layers = self.layers();
        view::Values(|key| layers.resolve(key, None).0).group()
    }

    /// True if a group has a value of its own for one of these.
    #[must_use]
    pub fn has_own(&self, group: &GroupName, keys: &[Key]) -> bool {
        let layers = self.layers();
        let own = layers.groups.get(group);
        own.is_some_and(|own| keys.iter().any(|key| own.contains_key(key)))
    }

    /// What is in force for the node.
    #[must_use]
    pub fn node(&self) -> NodeSettings {
        let layers = self.layers();
        view::Values(|key| layers.resolve(key, None).0).node()
    }

    /// Answers `get`.
    ///
    /// # Errors
    /// No setting of that name.
    pub fn get(&self, query: &GetQuery) -> Result<SettingReply, ApiError> {
        let keys: Vec<Key> = match &query.key {
            Some(name) => vec![find(name)?],
            None => Key::ALL.to_vec(),
        };
        let layers = self.layers();
        Ok(reply(&layers, &keys, query.group.as_ref()))
    }

    /// Carries out `set`.
    ///
    /// # Errors
    /// An unknown name, an illegal value, or values that could not be made durable; nothing is
    /// changed then.
    pub fn set(&self, request: &SetRequest) -> Result<SettingReply, ApiError> {
        let mut layers = self.layers();
        let mut changed = layers.clone();
        let mut keys = Vec::new();
        let group = request.group.as_ref();
        for assignment in &request.assignments {
            let key = find(&assignment.key)?;
            let value = assignment.value.as_deref();
            let value = value.map(|text| parse(key, text)).transpose()?;
            assign(&mut changed, key, value, group)?;
            keys.push(key);
        }
        changed.groups.retain(|_, table| !table.is_empty());
        changed.check().map_err(|why| {
            let action = "change both settings in one command";
            ApiError::new(ErrorCode::SettingInvalid, "settings", why, action)
        })?;
        let of_queues = [
            Key::QueueDirectory,
            Key::QueueFreeSpace,
            Key::QueueSegmentSize,
        ];
        if keys.iter().any(|key| of_queues.contains(key)) {
            changed.check_queues(group)?;
        }
        if let Some(path) = &self.path {
            replace_file(path, changed.to_toml().as_bytes())
                .map_err(|error| not_kept(path, &error))?;
        }
        *layers = changed;
        Ok(reply(&layers, &keys, group))
    }

    /// Drops the settings of a group that is gone; what cannot be removed from the file now is
    /// removed by the next `set`.
    pub fn forget_group(&self, group: &GroupName) {
        let mut layers = self.layers();
        if layers.groups.remove(group).is_some()
            && let Some(path) = &self.path
            && let Err(error) = replace_file(path, layers.to_toml().as_bytes())
        {
            tracing::warn!(%group, %error, "settings of a forgotten group stay in the file");
        }
    }
}

fn read_saved(path: &Path) -> Result<Saved, String> {
    let text = match crate::files::read_bounded(path, FILE_BYTES_MAX) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error.to_string()),
    };
    toml::from_str(&text).map_err(|error| error.message().to_owned())
}

fn usable(saved: Saved, troubles: &mut Vec<String>) -> (Table, BTreeMap<GroupName, Table>) {
    let mut table = |texts: BTreeMap<String, String>| -> Table {
        let mut values = Table::new();
        for (name, text) in texts {
            match Key::from_name(&name).map(|key| (key, key.parse(&text))) {
                Some((key, Ok(value))) => {
                    values.insert(key, value);
                }
                Some((_, Err(why))) => troubles.push(format!("setting {name}: {why}")),
                None => troubles.push(format!("setting {name} is not known")),
            }
        }
        values
    };
    let node = table(saved.node);
    let groups = saved.groups.into_iter();
    let groups = groups.map(|(group, texts)| (group, table(texts))).collect();
    (node, groups)
}

fn assign(
    layers: &mut Layers,
    key: Key,
    value: Option<Value>,
    group: Option<&GroupName>,
) -> Result<(), ApiError> {
    let table = match group {
        None => &mut layers.node,
        Some(_) if !key.spec().per_group => {
            return Err(ApiError::new(
                ErrorCode::SettingInvalid,
                format!("setting {}", key.name()),
                "it holds for the whole node and cannot differ between groups",
                format!("set it without a group: blkctl set {}=VALUE", key.name()),
            ));
        }
        Some(name) => {
            if layers.groups.len() >= GROUPS_MAX && !layers.groups.contains_key(name) {
                return Err(ApiError::new(
                    ErrorCode::LimitReached,
                    format!("group {name}"),
                    format!("{GROUPS_MAX} groups have settings of their own already"),
                    "set values for the whole node where groups do not differ",
                ));
            }
            layers.groups.entry(name.clone()).or_default()
        }
    };
    match value {
        Some(value) => table.insert(key, value),
        None => table.remove(&key),
    };
    Ok(())
}

fn find(name: &str) -> Result<Key, ApiError> {
    Key::from_name(name).ok_or_else(|| {
        let name: String = name.chars().take(80).collect();
        ApiError::new(
            ErrorCode::NoSuchSetting,
            format!("setting {name}"),
            "there is no setting of that name",
            "list all with: blkctl get",
        )
    })
}

fn parse(key: Key, text: &str) -> Result<Value, ApiError> {
    key.parse(text).map_err(|why| {
        ApiError::new(
            ErrorCode::SettingInvalid,
            format!("setting {}", key.name()),
            why,
            format!("use {}", key.spec().kind.range()),
        )
    })
}

fn not_kept(path: &Path, error: &std::io::Error) -> ApiError {
    let code = match error.kind() {
        std::io::ErrorKind::StorageFull => ErrorCode::StateFull,
        std::io::ErrorKind::PermissionDenied => ErrorCode::NoRights,
        _ => ErrorCode::Internal,
    };
    ApiError::new(
        code,
        path.display().to_string(),
        format!("the change could not be made durable and was not made: {error}"),
        "free space on, or repair, the state directory; then try again",
    )
}

fn reply(layers: &Layers, keys: &[Key], group: Option<&GroupName>) -> SettingReply {
    let settings = keys.iter().map(|key| {
        let spec = key.spec();
        let (value, origin) = layers.resolve(*key, group);
        SettingReport {
            key: spec.name.to_owned(),
            value: value.to_string(),
            origin,
            default: spec.default.to_owned(),
            range: spec.kind.range(),
            unit: spec.kind.unit().to_owned(),
            applies: spec.applies.as_str().to_owned(),
            per_group: spec.per_group,
            help: spec.help.to_owned(),
        }
    });
    SettingReply {
        schema: SCHEMA,
        settings: settings.collect(),
    }
}

/// The reference page of the settings.
#[must_use]
pub fn settings_markdown() -> String {
    let mut page = String::from(
        "# Settings\n\nGenerated from the code. In `blkrepd.toml` a setting `section.name` stands \
         as `name = \"value\"` below `[section]`;\n`blkctl set section.name=value` changes it on a \
         running node and beats the file, `blkctl set section.name=` takes that back.\n\
         With `--group G` the value holds for one group. `blkctl get` shows what is in force and \
         where it comes from.\nSizes are written `64KiB`, times `5s`, switches `on` and `off`.\n\n\
         | setting | default | range | per group | applies | meaning |\n|---|---|---|---|---|---|\n",
    );
    for key in Key::ALL {
        let spec = key.spec();
        writeln!(
            page,
            "| `{}` | `{}` | {} | {} | {} | {} |",
            spec.name,
            spec.default,
            spec.kind.range(),
            if spec.per_group { "yes" } else { "no" },
            spec.applies.as_str(),
            spec.help
        )
        .expect("a String takes all text");
    }
    page
}

#[cfg(test)]
mod tests;
