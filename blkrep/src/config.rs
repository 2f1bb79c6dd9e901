//! The configuration of a daemon: flags above `blkrepd.toml` above built-in values.
//!
//! Owns the form of the file and of the flags. Text enters; a checked [`Config`] leaves, or one
//! error that names the file, the key and what is legal. Never touches what it names.

use crate::files::read_bounded;
use crate::settings::{Key, Value};
use anyhow::{Context as _, bail};
use blkrep_types::{NodeName, VolumeName};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

/// Where the file is looked for unless told otherwise.
pub const CONFIG_DEFAULT: &str = "/etc/blkrep/blkrepd.toml";
const STATE_DEFAULT: &str = "/var/lib/blkrep";
const LISTEN_DEFAULT: &str = "127.0.0.1:7420";
const LOG_DEFAULT: &str = "info";

/// Largest configuration file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Serves block devices and replicates them in write order to other nodes.
#[derive(Debug, Clone, Default, clap::Parser)]
#[command(name = "blkrepd", version, max_term_width = 100)]
pub struct Options {
    /// Configuration file; may be missing only at its default place.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory for what must outlive the daemon.
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Control socket.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Where other nodes connect to; port 0 takes any and prints it.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Name of this node; the host's name if not given.
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Directory that other nodes may place replicas in; repeatable.
    #[arg(long, value_name = "DIR")]
    pub allow_replica_dir: Vec<PathBuf>,
    /// What to log, as `info` or `blkrep=debug,warn`.
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// Take and make links without encryption with nodes that are not paired, on any address.
    #[arg(long)]
    pub insecure_plain: bool,
    /// Write one line to this open file descriptor when ready, then close it.
    #[arg(long, value_name = "N")]
    pub ready_fd: Option<RawFd>,
    /// Instead of serving: remove the device that a daemon which is gone for good left of this
    /// volume, and exit. With --state only that daemon's.
    #[arg(long, value_name = "VOLUME")]
    pub remove_left_behind: Option<VolumeName>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct NodeSection {
    name: Option<String>,
    state: Option<PathBuf>,
    socket: Option<PathBuf>,
    listen: Option<String>,
    log: Option<String>,
    #[serde(default)]
    allow_replica_dirs: Vec<PathBuf>,
    #[serde(default)]
    insecure_plain: bool,
}

type Section = BTreeMap<String, toml::Value>;

#[derive(Debug, Default, Deserialize)]
struct FileConfig {
    #[serde(default)]
    node: NodeSection,
    /// All others are of settings.
    #[serde(flatten)]
    settings: BTreeMap<String, Section>,
}

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of this node.
    pub name: NodeName,
    /// Directory for what must outlive the daemon.
    pub state_dir: PathBuf,
    /// Control socket.
    pub socket: PathBuf,
    /// Where other nodes connect to.
    pub listen: SocketAddr,
    /// Links without encryption are taken and made on every address.
    pub insecure_plain: bool,
    /// Directories that other nodes may place replicas in.
    pub replica_dirs: Vec<PathBuf>,
    /// What to log.
    pub log: String,
    /// Settings of the file.
    pub settings: BTreeMap<Key, Value>,
    /// Descriptor to write to when ready.
    pub ready_fd: Option<RawFd>,
}

impl Config {
    /// Reads the file and puts the flags above it.
    ///
    /// # Errors
    /// The file cannot be read or understood, or a value is not legal.
    pub fn load(options: Options) -> anyhow::Result<Self> {
        let file = match &options.config {
            Some(path) => read_file(path)?,
            None => read_default(Path::new(CONFIG_DEFAULT))?,
        };
        Self::merge(options, file, &host_name())
    }

    /// Reads the text of a file and puts the flags above it. A node without a name gets that of `host`.
    ///
    /// # Errors
    /// The text cannot be understood, or a value is not legal.
    pub fn from_text(options: Options, text: &str, host: &str) -> anyhow::Result<Self> {
        Self::merge(options, parse(text)?, host)
    }

    fn merge(options: Options, file: FileConfig, host: &str) -> anyhow::Result<Self> {
        let settings = settings_of(&file)?;
        let node = file.node;
        let name = options.node.or(node.name);
        let name = name.unwrap_or_else(|| name_from_host(host));
        let listen = options.listen.or(node.listen);
        let listen = listen.unwrap_or_else(|| LISTEN_DEFAULT.to_owned());
        let listen = resolve(&listen)?;
        let insecure = options.insecure_plain || node.insecure_plain;
        let mut replica_dirs = node.allow_replica_dirs;
        replica_dirs.extend(options.allow_replica_dir);
        for dir in &replica_dirs {
            if !dir.is_absolute() || dir.components().any(|part| part.as_os_str() == "..") {
                bail!(
                    "replica directory {}: use an absolute path without '..'",
                    dir.display()
                );
            }
        }
        let path = |flag: Option<PathBuf>, file: Option<PathBuf>, default: &str| {
            flag.or(file).unwrap_or_else(|| PathBuf::from(default))
        };
        Ok(Self {
            name: NodeName::new(&name)?,
            state_dir: path(options.state, node.state, STATE_DEFAULT),
            socket: path(options.socket, node.socket, blkrep_api::SOCKET_DEFAULT),
            listen,
            insecure_plain: insecure,
            replica_dirs,
            log: options
                .log
                .or(node.log)
                .unwrap_or_else(|| LOG_DEFAULT.to_owned()),
            settings,
            ready_fd: options.ready_fd,
        })
    }
}

fn read_file(path: &Path) -> anyhow::Result<FileConfig> {
    let text = read_bounded(path, FILE_BYTES_MAX)
        .with_context(|| format!("read configuration {}", path.display()))?;
    parse(&text).with_context(|| format!("read configuration {}", path.display()))
}

fn read_default(path: &Path) -> anyhow::Result<FileConfig> {
    match std::fs::exists(path) {
        Ok(false) => Ok(FileConfig::default()),
        _ => read_file(path),
    }
}

fn parse(text: &str) -> anyhow::Result<FileConfig> {
    Ok(toml::from_str(text)?)
}

fn settings_of(file: &FileConfig) -> anyhow::Result<BTreeMap<Key, Value>> {
    let mut settings = BTreeMap::new();
    for (section, values) in &file.settings {
        let section_of = |key: &Key| key.name().split_once('.').map(|(section, _)| section);
        let here = |key: &&Key| section_of(key) == Some(section);
        let names: Vec<_> = Key::ALL.iter().filter(here).map(|key| key.name()).collect();
        if names.is_empty() {
            let mut sections: Vec<_> = Key::ALL.iter().filter_map(section_of).collect();
            sections.dedup();
            bail!(
                "unknown section [{section}]; known are node, {}",
                sections.join(", ")
            );
        }
        for (name, value) in values {
            let name = format!("{section}.{name}");
            let Some(key) = Key::from_name(&name) else {
                bail!("unknown setting {name}; known are {}", names.join(", "));
            };
            let text = match value {
                toml::Value::String(text) => text.clone(),
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(on) => on.to_string(),
                other => bail!("setting {name}: '{other}' is no single value"),
            };
            let value = key.parse(&text).map_err(|why| {
                anyhow::anyhow!("setting {name}: {why}; use {}", key.spec().kind.range())
            })?;
            settings.insert(key, value);
        }
    }
    Ok(settings)
}

fn resolve(listen: &str) -> anyhow::Result<SocketAddr> {
    let found = listen.to_socket_addrs().ok().and_then(|mut all| all.next());
    found.with_context(|| format!("'{listen}' is no address to listen on: use ADDR:PORT"))
}

fn host_name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The part of the host's name before the first dot, without what a node's name cannot hold.
fn name_from_host(host: &str) -> String {
    let first = host.split('.').next().unwrap_or_default();
    let legal = first
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-');
    let name: String = legal.take(blkrep_types::limits::NAME_BYTES_MAX).collect();
    let name = name.trim_start_matches('-');
    if name.is_empty() { "node" } else { name }.to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn load(options: Options, text: &str) -> anyhow::Result<Config> {
        Config::from_text(options, text, "db1.example.net")
    }

    #[test]
    fn flags_beat_the_file_beat_the_defaults() {
        let text = "[node]\nstate = '/s'\nlisten = '127.0.0.1:1'\nallow-replica-dirs = ['/r']\n\
                    [group]\nlog-memory = '128MiB'\n[link]\nreconnect = false\n\
                    [volume]\nqueues = 2";
        let options = Options {
            listen: Some("127.0.0.1:0".to_owned()),
            allow_replica_dir: vec!["/q".into()],
            ..Options::default()
        };
        let config = load(options, text).unwrap();
        assert_eq!(config.name.as_str(), "db1");
        assert_eq!(config.listen.port(), 0);
        assert_eq!(config.state_dir, Path::new("/s"));
        assert_eq!(config.replica_dirs, [Path::new("/r"), Path::new("/q")]);
        assert_eq!(config.settings[&Key::LinkReconnect], Value::Switch(false));
        assert_eq!(config.settings[&Key::VolumeQueues], Value::Count(2));
    }

    /// Sections were a list of their own once, and `[queue]` and `[task]` were not on it.
    #[test]
    fn every_setting_may_stand_in_the_file() {
        for key in Key::ALL {
            let (section, name) = key.name().split_once('.').unwrap();
            let value = key.default_value();
            let text = format!("[{section}]\n{name} = '{value}'");
            let config = load(Options::default(), &text).unwrap();
            assert_eq!(config.settings[key], value, "{text}");
        }
    }

    #[test]
    fn what_is_not_known_or_not_legal_is_refused_with_its_name() {
        for (text, part) in [
            (
                "[nodes]",
                "known are node, volume, group, link, queue, target, task",
            ),
            ("[node]\nstat = '/s'", "stat"),
            ("[group]\nlog-memry = '1MiB'", "group.log-memry"),
            ("[group]\nlog-memory = '1KiB'", "1MiB to 256GiB"),
            ("[group]\nlog-memory = [1]", "no single value"),
            ("[node]\nname = '../x'", "not a legal node name"),
            ("[node]\nlisten = 'here'", "ADDR:PORT"),
            ("[node]\nallow-replica-dirs = ['r']", "absolute"),
            ("[node]\nallow-replica-dirs = ['/r/../etc']", "absolute"),
            ("[node", "TOML"),
        ] {
            let error = format!("{:#}", load(Options::default(), text).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
        for (line, insecure) in [("", false), ("insecure-plain = true", true)] {
            let text = format!("[node]\nlisten = '0.0.0.0:7420'\n{line}");
            let config = load(Options::default(), &text).unwrap();
            assert_eq!(config.insecure_plain, insecure);
        }
    }

    #[test]
    fn the_configuration_of_the_first_steps_is_legal() {
        let page = include_str!("../../docs/start.md");
        let example = page.split("```toml\n").nth(1).unwrap();
        let config = load(Options::default(), example.split("```").next().unwrap()).unwrap();
        assert_eq!(config.name.as_str(), "db2");
        assert_eq!(config.replica_dirs.len(), 2);
    }

    #[test]
    fn a_host_name_becomes_a_legal_node_name() {
        for host in ["", "-", "ü", "db1.example", "a_b", &"x".repeat(300)] {
            assert!(NodeName::new(&name_from_host(host)).is_ok(), "{host}");
        }
    }
}
