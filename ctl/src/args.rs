//! The command line: every command and option, with its help.
//!
//! Owns the form. Text enters; checked values leave. The reference page, man pages and completions
//! are made from this.

use blkrep_api::{
    EventId, FrontendKind, MirrorKind, Mode, NodeRole, OnLoss, SOCKET_DEFAULT, Severity,
};
use blkrep_types::{
    BookmarkName, ByteLen, ByteOffset, ExtentSize, GroupName, LinkName, NodeName, NoteId,
    VolumeName, parse_size, parse_span,
};
use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Administers block volumes that blkrepd serves and replicates.
#[derive(Debug, Parser)]
#[command(
    name = "blkctl",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Sizes: 64KiB, 10GiB. Times: 5s, 10m, 7d. Exit codes: 0 done, 1 a condition was \
                  found, 2 error."
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Control socket of the daemon.
    #[arg(long, global = true, value_name = "PATH", default_value = SOCKET_DEFAULT, env = "BLKREP_SOCKET", hide_env_values = true)]
    pub(crate) socket: PathBuf,
    /// A paired node that carries the command out, in place of this one.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) node: Option<NodeName>,
    /// Address and port of that node, if not those it was paired with.
    #[arg(long, global = true, value_name = "ADDR:PORT", requires = "node")]
    pub(crate) address: Option<SocketAddr>,
    /// Print JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Do what destroys data without asking.
    #[arg(long, global = true)]
    pub(crate) yes: bool,
    /// Print without colours.
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
    /// Give up waiting for the daemon, or with `--wait` for the end, after this time.
    #[arg(long, global = true, value_name = "TIME", value_parser = span)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a backing as a device; prints the device.
    Attach(Attach),
    /// Stop serving a volume; its backing is the plain data.
    Detach(Detach),
    /// Create a link to a target and start to mirror and replicate.
    Connect(Connect),
    /// End a link; changes are tracked further.
    Disconnect(Disconnect),
    /// Change how a link is used.
    #[command(subcommand)]
    Link(LinkCommand),
    /// Show the state: what is wrong, what it means, what to do.
    Status(StatusArgs),
    /// Bring a target to equality.
    #[command(subcommand)]
    Mirror(MirrorCommand),
    /// Control transmission.
    #[command(subcommand)]
    Transmit(TransmitCommand),
    /// On the target: stop and resume applying.
    #[command(subcommand)]
    Target(TargetCommand),
    /// Run commands on targets, exactly where they stand in the order of writes.
    #[command(subcommand)]
    Task(TaskCommand),
    /// Give places in the order of writes a name.
    #[command(subcommand)]
    Point(PointCommand),
    /// Put another disk in the place of a volume's; links stay.
    Replace(Replace),
    /// Give this target the right to write: it serves the group from now on.
    Promote(Promote),
    /// Stop serving a promoted group.
    Demote(GroupArg),
    /// Trust between nodes: what links and remote control need.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Drop what this node remembers of a group; data is not touched.
    Forget(GroupArg),
    /// Change settings, all or none.
    Set(Set),
    /// Show settings with value, default and range.
    Get(Get),
    /// Show what happened.
    Events(Events),
    /// Look for what this machine lacks; exit 1 if something does not work.
    Doctor,
    /// Show it all on this machine, in a minute: two nodes, a mirror, cuts, a crash, a takeover.
    Demo(Demo),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write man pages into a directory.
    #[command(hide = true)]
    Man {
        /// The directory.
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Name of the volume.
    pub(crate) volume: VolumeName,
    /// Block device or file with its data.
    #[arg(long, value_name = "PATH")]
    pub(crate) backing: PathBuf,
    /// Group it belongs to; one of its own name if not given.
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<GroupName>,
    /// What serves it: auto, ublk, loop or nbd.
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub(crate) frontend: FrontendKind,
    /// Number of the device; any free one if not given.
    #[arg(long, value_name = "N")]
    pub(crate) device_id: Option<u32>,
    /// First byte of the backing that belongs to the volume.
    #[arg(long, value_name = "SIZE", value_parser = offset, default_value = "0")]
    pub(crate) offset: ByteOffset,
    /// Bytes that belong to it; up to the end if not given.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) size: Option<ByteLen>,
    /// Grain of its dirty maps, 4KiB to 1MiB.
    #[arg(long, value_name = "SIZE", value_parser = extent_size)]
    pub(crate) extent_size: Option<ExtentSize>,
    /// Refuse writes.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Forget it at the next start of the host.
    #[arg(long)]
    pub(crate) transient: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Detach {
    /// Name of the volume.
    pub(crate) volume: VolumeName,
    /// Even while it is open: its users get errors.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Connect {
    /// The group.
    pub(crate) group: GroupName,
    /// Address and port of the target; `null`: send nothing, and measure what a real link would need.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) to: String,
    /// Name of the link.
    #[arg(long = "as", value_name = "NAME")]
    pub(crate) link: Option<LinkName>,
    /// Where a volume goes on the target; repeatable.
    #[arg(long, value_name = "VOLUME=PATH", value_parser = mapping)]
    pub(crate) map: Vec<(VolumeName, PathBuf)>,
    /// When the application gets its completion: async (a new link's), memory or sync.
    #[arg(long)]
    pub(crate) mode: Option<Mode>,
    #[command(flatten)]
    pub(crate) loss: Loss,
    /// Spread what is sent over so many TCP connections, 1 to 16: sets `link.connections` of the group.
    #[arg(long, value_name = "COUNT")]
    pub(crate) connections: Option<u8>,
    /// Copy nothing that is there already: both ends hold the same, which is checked by digest.
    #[arg(long, conflicts_with = "mirror")]
    pub(crate) no_mirror: bool,
    /// What to mirror: full, difference or checksum.
    #[arg(long, value_name = "KIND")]
    pub(crate) mirror: Option<MirrorKind>,
    /// Replace whatever the target's path holds.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Trust the maps though the backing was unwatched; not possible yet.
    #[arg(long)]
    pub(crate) trust_map: bool,
    /// Show progress until the target is equal.
    #[arg(long)]
    pub(crate) wait: bool,
}

/// What happens to writes when a link in `memory` or `sync` mode is lost.
#[derive(Debug, Args)]
pub(crate) struct Loss {
    /// What happens to writes when a link in memory or sync mode is lost: continue without it
    /// (a new link's), block until it is back, or fail.
    #[arg(long, value_name = "POLICY")]
    pub(crate) on_loss: Option<OnLoss>,
    /// How long they wait for it before they continue or fail, up to 10m; 2s for a new link.
    #[arg(long, value_name = "TIME", value_parser = millis)]
    pub(crate) loss_timeout: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LinkCommand {
    /// Change the mode, or what happens when the link is lost; at once.
    Set {
        #[command(flatten)]
        on: OnLink,
        /// When the application gets its completion: async, memory or sync.
        #[arg(long, required_unless_present_any = ["on_loss", "loss_timeout"])]
        mode: Option<Mode>,
        #[command(flatten)]
        loss: Loss,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Disconnect {
    /// The group.
    pub(crate) group: GroupName,
    /// The link; needed if there are several.
    #[arg(long, value_name = "NAME")]
    pub(crate) link: Option<LinkName>,
    /// Track changes no longer: the next connect needs a full or checksum mirror.
    #[arg(long)]
    pub(crate) forget: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Only this group.
    pub(crate) group: Option<GroupName>,
    /// Show it again every second until interrupted.
    #[arg(long)]
    pub(crate) watch: bool,
}

/// A group and perhaps one of its links.
#[derive(Debug, Args)]
pub(crate) struct OnLink {
    /// The group.
    pub(crate) group: GroupName,
    /// The link; every one if not given.
    #[arg(long, value_name = "NAME")]
    pub(crate) link: Option<LinkName>,
}

#[derive(Debug, Args)]
pub(crate) struct GroupArg {
    /// The group.
    pub(crate) group: GroupName,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MirrorCommand {
    /// Begin.
    Start {
        #[command(flatten)]
        on: OnLink,
        /// What to compare and send: full, difference or checksum.
        #[arg(long, value_name = "KIND")]
        kind: Option<MirrorKind>,
        /// Show progress until it is done.
        #[arg(long)]
        wait: bool,
    },
    /// End; the dirty extents are kept.
    Stop(OnLink),
    /// Hold; the position is kept.
    Pause(OnLink),
    /// Go on.
    Resume {
        #[command(flatten)]
        on: OnLink,
        /// Show progress until it is done.
        #[arg(long)]
        wait: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TransmitCommand {
    /// Send, after `stop`.
    Start(OnLink),
    /// Send nothing; changes are tracked as dirty extents.
    Stop(OnLink),
    /// Send nothing; writes are kept in the log.
    Pause(OnLink),
    /// Send, after `pause`.
    Resume(OnLink),
    /// Limit the bandwidth of a group's links; as `set --group GROUP link.bandwidth=RATE`.
    Limit {
        /// The group.
        group: GroupName,
        /// Such as 10MiB/s, 20Mbit/s, 70% of the line, or unlimited; the node's limit again if empty.
        #[arg(value_name = "RATE", required_unless_present_any = ["schedule", "line"])]
        rate: Option<String>,
        /// What the line carries, such as 100Mbit/s, which a limit in percent is a part of; or none.
        #[arg(long, value_name = "RATE")]
        line: Option<String>,
        /// What holds instead by day and time: `mon-fri 08:00-18:00 2MiB/s` or `30%`, several with commas, or none.
        #[arg(long, value_name = "PERIODS")]
        schedule: Option<String>,
    },
    /// Transmit in sessions: show what holds, or change it.
    Schedule(TransmitSchedule),
}

/// What begins and ends sessions; each as `set --group GROUP link...=VALUE`, empty for the node's value.
#[derive(Debug, Args)]
pub(crate) struct TransmitSchedule {
    /// The group.
    pub(crate) group: GroupName,
    /// The schedule counts.
    #[arg(long, conflicts_with = "off")]
    pub(crate) on: bool,
    /// It does not, and its settings wait.
    #[arg(long)]
    pub(crate) off: bool,
    /// Nothing outside these times: `mon-fri 22:00-04:00`, several with commas, or none.
    #[arg(long, value_name = "TIMES")]
    pub(crate) window: Option<String>,
    /// When the first session begins: `2027-01-31 22:00`, or none.
    #[arg(long, value_name = "MOMENT")]
    pub(crate) start: Option<String>,
    /// From one start to the next, such as 1d or 30m, or none.
    #[arg(long, value_name = "TIME")]
    pub(crate) interval: Option<String>,
    /// What must wait for a session to begin: a size, a part of the log such as 40%, or none.
    #[arg(long, value_name = "SIZE|PERCENT%")]
    pub(crate) queue: Option<String>,
    /// What a session sends at most, or none.
    #[arg(long, value_name = "SIZE")]
    pub(crate) bytes: Option<String>,
    /// How long it is at most, or none.
    #[arg(long, value_name = "TIME")]
    pub(crate) time: Option<String>,
    /// No window, start, interval, threshold and limit.
    #[arg(long, conflicts_with_all = ["window", "start", "interval", "queue", "bytes", "time"])]
    pub(crate) clear: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TargetCommand {
    /// Stop applying; the journal goes on receiving.
    Pause(GroupArg),
    /// Apply again.
    Resume(GroupArg),
}

#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// Have every target run a command when it has applied all that was written before; prints the
    /// task's id. At most once, and only programs of the target's task.directory.
    Submit {
        /// The group.
        group: GroupName,
        /// What it is for; shown with it.
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// Wait until it is over on every link; exit 1 if it did not end well.
        #[arg(long)]
        wait: bool,
        /// The program's name in the target's task.directory, and its arguments.
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Show the last tasks and what became of them; on source or target.
    List(GroupArg),
    /// Show a task with the end of its output; on source or target.
    Show {
        /// The group.
        group: GroupName,
        /// Its id.
        #[arg(value_parser = note_id)]
        id: NoteId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PointCommand {
    /// Name this place: all that was written before it, over all volumes of the group, and nothing
    /// behind it. Prints its id.
    Bookmark {
        /// The group.
        group: GroupName,
        /// The name.
        name: BookmarkName,
        /// Wait until every target remembers it; exit 1 if one does not.
        #[arg(long)]
        wait: bool,
    },
    /// Show the last bookmarks; on source or target.
    List(GroupArg),
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Make a one-time token with --invite, or use one of another node.
    Pair(NodePair),
    /// Show this node's certificate and the nodes it is paired with.
    List,
    /// Trust a node no longer; its connections end.
    Forget {
        /// The node.
        name: NodeName,
    },
    /// Give this node a new key, which paired nodes accept by the old one.
    Rotate {
        /// Although paired nodes are not reached: they must be paired again.
        #[arg(long)]
        force: bool,
    },
    /// Say what a node may do here by remote control.
    Role {
        /// The node.
        name: NodeName,
        /// none, monitor (reads) or admin (does everything).
        role: NodeRole,
    },
}

#[derive(Debug, Args)]
pub(crate) struct NodePair {
    /// Address and port of the node that made the token.
    #[arg(
        value_name = "ADDR:PORT",
        conflicts_with = "invite",
        required_unless_present = "invite"
    )]
    pub(crate) at: Option<String>,
    /// The token.
    #[arg(
        long,
        conflicts_with = "invite",
        required_unless_present = "invite",
        env = "BLKREP_TOKEN",
        hide_env_values = true
    )]
    pub(crate) token: Option<String>,
    /// Make a token, to be used once on the other node.
    #[arg(long)]
    pub(crate) invite: bool,
    /// How long the token can be used, up to a day.
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "10m", requires = "invite")]
    pub(crate) valid: Duration,
    /// What the other node may do here by remote control: none, monitor or admin.
    #[arg(long, default_value = "none")]
    pub(crate) role: NodeRole,
}

#[derive(Debug, Args)]
pub(crate) struct Replace {
    /// The group.
    pub(crate) group: GroupName,
    /// The volume and the disk or file that holds it from now on; the path of before, if another
    /// disk is there now.
    #[arg(long, value_name = "VOLUME=PATH", value_parser = mapping)]
    pub(crate) map: (VolumeName, PathBuf),
    /// On a target: replace whatever the path holds.
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Promote {
    /// The group.
    pub(crate) group: GroupName,
    /// Although the source is alive.
    #[arg(long)]
    pub(crate) force: bool,
    /// Although the replica is not consistent; needs --yes.
    #[arg(long)]
    pub(crate) inconsistent: bool,
    /// What serves its volumes: auto, ublk, loop or nbd.
    #[arg(long, value_name = "KIND")]
    pub(crate) frontend: Option<FrontendKind>,
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    /// What to change; `KEY=` takes back what `set` changed.
    #[arg(required = true, value_name = "KEY=VALUE", value_parser = assignment)]
    pub(crate) assignments: Vec<(String, String)>,
    /// For this group only.
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<GroupName>,
}

#[derive(Debug, Args)]
pub(crate) struct Get {
    /// Only this setting.
    pub(crate) key: Option<String>,
    /// As they hold for this group.
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<GroupName>,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Show them as they happen until interrupted.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Only those after this cursor.
    #[arg(long, value_name = "CURSOR")]
    pub(crate) after: Option<u64>,
    /// The newest so many.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Only those at least so severe: info, warning or error.
    #[arg(long)]
    pub(crate) severity: Option<Severity>,
    /// Only those of this group.
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<GroupName>,
    /// Only those with this number or name.
    #[arg(long, value_name = "EVENT")]
    pub(crate) id: Option<EventId>,
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// What serves the volume: auto, ublk, loop or nbd.
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub(crate) frontend: FrontendKind,
    /// Size of the volume, from 64MiB.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "256MiB")]
    pub(crate) size: ByteLen,
    /// In a virtual machine with ublk; needs the source tree.
    #[arg(long, conflicts_with_all = ["frontend", "keep"])]
    pub(crate) guest: bool,
    /// Keep the directory with disks, record and logs.
    #[arg(long)]
    pub(crate) keep: bool,
}

fn size(text: &str) -> Result<ByteLen, String> {
    parse_size(text).map_err(|error| error.to_string())
}

fn note_id(text: &str) -> Result<NoteId, String> {
    NoteId::from_hex(text).ok_or_else(|| format!("'{text}' is no id: blkctl task list shows them"))
}

fn offset(text: &str) -> Result<ByteOffset, String> {
    size(text).map(|bytes| ByteOffset::new(bytes.get()))
}

fn extent_size(text: &str) -> Result<ExtentSize, String> {
    ExtentSize::try_from(size(text)?.get()).map_err(|error| error.to_string())
}

fn span(text: &str) -> Result<Duration, String> {
    parse_span(text).map_err(|error| error.to_string())
}

fn millis(text: &str) -> Result<u32, String> {
    let span = span(text)?.as_millis();
    u32::try_from(span).map_err(|_| format!("'{text}' is too long"))
}

fn mapping(text: &str) -> Result<(VolumeName, PathBuf), String> {
    let pair = text.split_once('=');
    let (volume, path) = pair.ok_or_else(|| format!("'{text}' is not VOLUME=PATH"))?;
    let volume = VolumeName::new(volume).map_err(|error| error.to_string())?;
    if path.starts_with('/') {
        Ok((volume, path.into()))
    } else {
        Err(format!("'{path}' is no absolute path"))
    }
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=');
    let (key, value) = pair.ok_or_else(|| format!("'{text}' is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
