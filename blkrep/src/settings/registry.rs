//! The registry of settings: every name with its kind, range, default and meaning.
//!
//! Owns the one table that `blkrepd.toml`, `set`, `get` and the reference page come from. Never
//! holds a value that is in force.

use super::folder::Folder;
use blkrep_types::{
    ByteLen, Congestion, Limit, PERIODS_MAX, Rate, WeeklyRates, WeeklyWindow, format_span,
    parse_size, parse_span, rate_of, rate_text,
};
use jiff::civil::DateTime;
use std::fmt;
use std::time::Duration;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SECOND_MS: u64 = 1000;
const DAY_MS: u64 = 24 * 60 * 60 * SECOND_MS;
const TIB: u64 = 1 << 40;

/// How a date and a time of day are written.
const MOMENT: &str = "%Y-%m-%d %H:%M";
/// That there is no value.
const NONE: &str = "none";

/// What values a setting takes.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Bytes from `min` to `max`, in steps of `step`, or only powers of two.
    Size {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
        /// A divisor of every legal value.
        step: u64,
        /// Only powers of two.
        power: bool,
    },
    /// A number from `min` to `max`.
    Count {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// Time from `min_ms` to `max_ms`.
    Time {
        /// Shortest, in milliseconds.
        min_ms: u64,
        /// Longest, in milliseconds.
        max_ms: u64,
    },
    /// `on` or `off`.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Bytes or bits a second, at least so many bytes.
    Rate {
        /// Lowest.
        min: u64,
    },
    /// The same, a part of what the line carries, or `unlimited`.
    Limit {
        /// Lowest.
        min: u64,
    },
    /// Rates by day and time, none lower than this.
    Rates {
        /// Lowest.
        min: u64,
    },
    /// Times of the week.
    Window,
    /// A date and a time of day.
    Moment,
    /// A value of this kind, or `none`.
    Maybe(&'static Self),
    /// A directory, or `none`.
    Folder,
    /// The name of a congestion control, `auto` or `system`.
    Congestion,
}

/// When a change takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applies {
    /// At once.
    Live,
    /// When a volume is attached the next time.
    Attach,
    /// When a volume is attached for the first time.
    FirstAttach,
    /// When the group is loaded the next time: at the start, or after all its volumes were detached.
    Load,
    /// When a link is made or its target is loaded the next time.
    Connect,
    /// When the daemon starts the next time.
    Start,
}

impl Applies {
    /// In words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "at once",
            Self::Attach => "at the next attach",
            Self::FirstAttach => "for volumes attached later",
            Self::Load => "when the group is loaded the next time",
            Self::Connect => "when the link or target is loaded the next time",
            Self::Start => "at the next start of the daemon",
        }
    }
}

/// A checked value.
// There are as many as there are settings: what one of them takes does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// Bytes.
    Size(ByteLen),
    /// A number.
    Count(u64),
    /// A span of time.
    Time(Duration),
    /// On or off.
    Switch(bool),
    /// A word of the setting's list.
    Choice(&'static str),
    /// Bytes a second.
    Rate(Rate),
    /// A limit of bandwidth.
    Limit(Limit),
    /// Rates by day and time.
    Rates(WeeklyRates),
    /// Times of the week.
    Window(WeeklyWindow),
    /// A date and a time of day.
    Moment(DateTime),
    /// No value.
    None,
    /// A directory, or none.
    Folder(Folder),
    /// A congestion control.
    Congestion(Congestion),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(bytes) => bytes.fmt(f),
            Self::Count(count) => count.fmt(f),
            Self::Time(span) => f.write_str(&format_span(*span)),
            Self::Switch(on) => f.write_str(if *on { "on" } else { "off" }),
            Self::Choice(word) => f.write_str(word),
            Self::Rate(rate) => f.write_str(&rate_text(*rate)),
            Self::Limit(limit) => limit.fmt(f),
            Self::Rates(rates) => rates.fmt(f),
            Self::Window(window) => window.fmt(f),
            Self::Moment(moment) => write!(f, "{}", moment.strftime(MOMENT)),
            Self::None => f.write_str(NONE),
            Self::Folder(folder) => folder.fmt(f),
            Self::Congestion(congestion) => congestion.fmt(f),
        }
    }
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// `section.name`.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// The built-in value, as text.
    pub default: &'static str,
    /// When a change takes effect.
    pub applies: Applies,
    /// May differ between groups.
    pub per_group: bool,
    /// What it does and why the default is what it is.
    pub help: &'static str,
}

macro_rules! registry {
    ($( $key:ident = $name:literal, $kind:expr, $default:literal, $applies:ident, $per_group:literal, $help:literal; )+) => {
        /// The identity of a setting.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Key { $( #[doc = $help] $key ),+ }

        impl Key {
            /// Every setting, by name within its section.
            pub const ALL: &[Self] = &[$(Self::$key),+];

            /// What it is.
            #[must_use]
            pub const fn spec(self) -> Spec {
                match self {
                    $( Self::$key => Spec {
                        name: $name, kind: $kind, default: $default, applies: Applies::$applies,
                        per_group: $per_group, help: $help,
                    } ),+
                }
            }
        }
    };
}

/// Bytes without further demands than a step.
const fn size(min: u64, max: u64, step: u64) -> Kind {
    Kind::Size {
        min,
        max,
        step,
        power: false,
    }
}

const fn time(min_ms: u64, max_ms: u64) -> Kind {
    Kind::Time { min_ms, max_ms }
}

const fn count(min: u64, max: u64) -> Kind {
    Kind::Count { min, max }
}

/// Less is no bandwidth that a session could live with.
pub(super) const BANDWIDTH_MIN: u64 = 16 * KIB;
const LINE_RATE: Kind = Kind::Rate { min: BANDWIDTH_MIN };
const SESSION_QUEUE: Kind = size(4 * KIB, 16 * TIB, 1);
const SESSION_PERCENT: Kind = count(1, 100);
const SESSION_BYTES: Kind = size(64 * KIB, 1024 * TIB, 1);
const SESSION_INTERVAL: Kind = time(60 * SECOND_MS, 366 * DAY_MS);
const SESSION_TIME: Kind = time(10 * SECOND_MS, 366 * DAY_MS);

registry! {
    VolumeQueueDepth = "volume.queue-depth", count(1, 1024), "128", Attach, true,
        "Requests a hardware queue of a device has in flight at most. Each holds a buffer of `volume.request-size`.";
    VolumeQueues = "volume.queues", count(1, 64), "1", Attach, true,
        "Hardware queues of a device; each has a thread and a ring of its own.";
    VolumeRequestSize = "volume.request-size", Kind::Size { min: 64 * KIB, max: MIB, step: 4 * KIB, power: true }, "512KiB", Attach, true,
        "Largest request a device takes; the kernel splits larger ones.";
    VolumeExtentSize = "volume.extent-size", Kind::Size { min: 4 * KIB, max: MIB, step: 4 * KIB, power: true }, "64KiB", FirstAttach, true,
        "Grain of the dirty maps: smaller sends less after a break, larger needs less memory.";
    VolumeIntentIdleTime = "volume.intent-idle-time", time(1_000, 300_000), "30s", Live, true,
        "An idle volume's intent map is empty after this time at the latest, so that a crash then compares nothing.";
    VolumeOnBackingError = "volume.on-backing-error", Kind::Choice(&["pass", "freeze", "target"]), "pass", Live, true,
        "When the backing fails: `pass` the error to the application, `freeze` its requests until someone acts, or let a `target` serve the group: for good, until it is taken over there.";
    GroupLogMemory = "group.log-memory", size(MIB, 256 * GIB, 4 * KIB), "64MiB", Load, true,
        "Memory of the group's write log. It lives in shared memory and outlives a killed daemon. What it cannot hold while a link is down becomes dirty extents.";
    GroupThrottle = "group.throttle", Kind::Choice(&["off", "adaptive", "always"]), "off", Live, true,
        "Slow writers before the log is full: `adaptive` the more the fuller it is, while a link empties it; `always` every write by `group.throttle-delay`, for tests and to let a link catch up.";
    GroupThrottleStart = "group.throttle-start", count(2, 99), "80", Live, true,
        "Percent of the log that is full when writers begin to be slowed.";
    GroupThrottleStop = "group.throttle-stop", count(1, 98), "60", Live, true,
        "Percent at or below which they are slowed no longer. Below `group.throttle-start`.";
    GroupThrottleDelay = "group.throttle-delay", time(1, 1_000), "20ms", Live, true,
        "The longest that one write is delayed, when the log is full. Longer than a second, and applications take the device for dead.";
    GroupLinksMax = "group.links-max", count(1, 16), "8", Live, true,
        "Links one group may have; each keeps a position in the log and a dirty map.";
    LinkHeartbeatInterval = "link.heartbeat-interval", time(100, 60_000), "1s", Live, true,
        "An idle link sends a heartbeat this often.";
    LinkHeartbeatTimeout = "link.heartbeat-timeout", time(500, 600_000), "5s", Live, true,
        "A peer silent for this long counts as gone. At least twice the interval.";
    LinkProgressTimeout = "link.progress-timeout", time(10_000, 3_600_000), "2m", Live, true,
        "A target that answers, has room in its journal, and makes nothing durable of what it was sent for this long loses its connection; the next attempt waits as long. Writes that wait for its acknowledgement go on then.";
    LinkConnectTimeout = "link.connect-timeout", time(500, 120_000), "10s", Live, true,
        "An attempt to connect is given up after this time, and made again after `link.reconnect-interval`.";
    LinkReconnect = "link.reconnect", Kind::Switch, "on", Live, true,
        "Connect again by itself after the connection was lost.";
    LinkReconnectInterval = "link.reconnect-interval", time(100, 3_600_000), "1s", Live, true,
        "Time between two attempts to connect again.";
    LinkCompression = "link.compression", Kind::Choice(&["adaptive", "on", "off"]), "adaptive", Live, true,
        "Compress what is sent: `adaptive` where the line is the slower one and the data gets smaller, `on` always, for lines that are paid by the byte, or `off`. Needs a target that takes it.";
    LinkCompressionLevel = "link.compression-level", count(1, 9), "1", Live, true,
        "How hard zstd tries. A level above 1 takes more processor for a little less on the line; above 9 one batch would hold up acknowledgements for too long.";
    LinkConnections = "link.connections", count(1, 16), "1", Live, true,
        "TCP connections that a link spreads what it sends over, in order at the target. More than one helps where packets get lost: a line of 40 ms that loses one in a hundred gives a single connection a few Mbit/s, and sixteen nearly sixteen times that. Used from the next session on, if the target is new enough.";
    LinkCongestionControl = "link.congestion-control", Kind::Congestion, "auto", Live, true,
        "How a link's TCP connections share the line. `auto`: bbr if the kernel has it and the target is on another host, because it fills long lines that lose packets; else the system's, as with `system` (`net.ipv4.tcp_congestion_control`). One that the kernel refuses is told (`congestion-control-refused`), and the system's is taken.";
    LinkSimulatedRate = "link.simulated-rate", size(10 * KIB, 100 * GIB, 1), "12500000B", Live, true,
        "Bytes a second of the line that a simulated link (`connect --to null`) is measured against: the queue it would need, the time of a mirror. The default is 100 Mbit/s.";
    LinkInFlight = "link.in-flight", size(MIB, 4 * GIB, 4 * KIB), "16MiB", Live, true,
        "Bytes sent and not yet acknowledged as received, at most. More fills a longer line; it is memory of the target's receive path.";
    LinkMirrorInFlight = "link.mirror-in-flight", size(MIB, GIB, 4 * KIB), "4MiB", Live, true,
        "Bytes of mirror blocks in the stream and not acknowledged as received, at most, so that a mirror cannot crowd out the application's writes.";
    LinkMirrorRatio = "link.mirror-ratio", count(1, 65_535), "5", Live, true,
        "While writes wait to be sent, a mirror gets one byte for so many of theirs. When none waits it takes what the line gives.";
    LinkMirrorHighMark = "link.mirror-high-mark", count(2, 100), "75", Live, true,
        "Percent of the target's journal above which a mirror stands back, so that writes still have room there; 100: never. A mirror that the target holds in its journal until it is whole is not held back.";
    LinkMirrorLowMark = "link.mirror-low-mark", count(1, 99), "50", Live, true,
        "Percent at or below which it goes on. Below `link.mirror-high-mark`.";
    LinkLineRate = "link.line-rate", Kind::Maybe(&LINE_RATE), "none", Live, true,
        "What the line to the target carries, as you know it: what `link.bandwidth` in percent is a part of. It limits nothing itself.";
    LinkBandwidth = "link.bandwidth", Kind::Limit { min: BANDWIDTH_MIN }, "unlimited", Live, true,
        "What links may send, heartbeats and all: bytes or bits a second, or a part of `link.line-rate` in percent. Links to one target's address share it fairly; those of a group with a value of its own share that one.";
    LinkBandwidthSchedule = "link.bandwidth-schedule", Kind::Rates { min: BANDWIDTH_MIN }, "none", Live, true,
        "Limits that hold instead of `link.bandwidth` in these periods of the week, by this node's local time. A period that ends before it begins ends on the next day.";
    LinkSchedule = "link.schedule", Kind::Switch, "off", Live, true,
        "Links have a connection only in sessions, as `link.window` and `link.session-...` say: see `blkctl transmit schedule`. Off: always, and those settings wait.";
    LinkWindow = "link.window", Kind::Window, "none", Live, true,
        "Times of the week, by this node's local time, outside which a schedule lets nothing through. A period that ends before it begins ends on the next day.";
    LinkSessionStart = "link.session-start", Kind::Maybe(&Kind::Moment), "none", Live, true,
        "When the first session of a schedule begins, by this node's local time. Before it there is none, however long the queue.";
    LinkSessionInterval = "link.session-interval", Kind::Maybe(&SESSION_INTERVAL), "none", Live, true,
        "Time from one planned start of a session to the next. Whole days go by the calendar: the hour stays where the clock is changed.";
    LinkSessionQueue = "link.session-queue", Kind::Maybe(&SESSION_QUEUE), "none", Live, true,
        "A session begins when as many bytes wait, in the queue or in extents that differ.";
    LinkSessionQueuePercent = "link.session-queue-percent", Kind::Maybe(&SESSION_PERCENT), "none", Live, true,
        "The same as a part of `group.log-memory`; the smaller of the two counts.";
    LinkSessionBytes = "link.session-bytes", Kind::Maybe(&SESSION_BYTES), "none", Live, true,
        "A session ends when it has sent as many bytes, frames and all. It is looked at every second: what the line takes in one may come on top.";
    LinkSessionTime = "link.session-time", Kind::Maybe(&SESSION_TIME), "none", Live, true,
        "A session ends after this time.";
    QueueDirectory = "queue.directory", Kind::Folder, "none", Live, true,
        "Where the disk queue keeps what `group.log-memory` has no room for; `none`: nothing, and what memory cannot hold becomes dirty extents. The directory must exist; not on a device that is replicated. What the former one holds is sent first.";
    QueueDiskSize = "queue.disk-size", size(MIB, TIB, 4 * KIB), "4GiB", Live, true,
        "Bytes a group's disk queue takes at most. What does not fit becomes dirty extents. It has names for as many writes as `group.log-memory` has pieces of 512 bytes.";
    QueueFreeSpace = "queue.free-space", size(0, TIB, 4 * KIB), "256MiB", Live, true,
        "Bytes that stay free on the filesystem of the disk queue; it takes no further segment below that.";
    QueueAlert = "queue.alert", count(1, 100), "50", Live, true,
        "Percent of `queue.disk-size` at which an event tells that the disk queue fills, and another when it is ten percent below that again.";
    QueueSegmentSize = "queue.segment-size", Kind::Size { min: MIB, max: GIB, step: 4 * KIB, power: true }, "16MiB", Live, true,
        "Grain in which the disk queue takes space and gives it back. A change takes effect when what is queued is sent.";
    TargetJournalSize = "target.journal-size", size(16 * MIB, 4 * TIB, 4 * KIB), "256MiB", Connect, true,
        "Size of the target's journal. It takes what was received and not yet applied, and a difference mirror that fits is held there and applied whole.";
    TargetRetryLimit = "target.retry-limit", count(0, 65_536), "0", Live, true,
        "How often a write that the replica's disk did not take is tried again before its extents count as different and are mirrored anew; 0: for ever. While it is tried nothing new is applied: the replica stays at a state that can be promoted, and its journal goes on receiving. What is given up costs that until it is mirrored.";
    TargetRetryDelay = "target.retry-delay", time(100, 3_600_000), "3s", Live, true,
        "How long after such a failure, and after one of the journal's disk, it is tried again.";
    TaskDirectory = "task.directory", Kind::Folder, "none", Live, true,
        "On a target: the directory of the programs that tasks may run, by their names in it; it and they are root's. `none`: tasks are off.";
    TaskTimeout = "task.timeout", time(1_000, 86_400_000), "5m", Live, true,
        "On a target: a task that has not ended after this is killed with all that it started, and applying goes on.";
    EventsKept = "events.kept", count(100, 100_000), "1000", Start, false,
        "Events kept in memory for `blkctl events`.";
    EventsFileSize = "events.file-size", size(64 * KIB, GIB, 1), "4MiB", Live, false,
        "Size at which the event log file is rotated.";
    EventsFiles = "events.files", count(1, 100), "4", Live, false,
        "Event log files kept, the current one included.";
    ControlConnections = "control.connections", count(4, 1024), "64", Start, false,
        "Clients on the control socket at once. Administrators and monitors have this many each, so that monitors cannot lock administrators out.";
    ControlRequestTimeout = "control.request-timeout", time(1_000, 600_000), "10s", Start, false,
        "A client must have sent its whole request within this time.";
    ControlOperationTimeout = "control.operation-timeout", time(5_000, 3_600_000), "2m", Start, false,
        "A command that takes longer answers `still-running` and goes on.";
}

impl Key {
    /// The setting of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|key| key.name() == name)
    }

    /// `section.name`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.spec().name
    }

    /// The built-in value.
    #[must_use]
    pub fn default_value(self) -> Value {
        let spec = self.spec();
        self.parse(spec.default)
            .expect("defaults are legal: a test parses each")
    }

    /// Reads and checks a value.
    ///
    /// # Errors
    /// A sentence that says what is legal.
    pub fn parse(self, text: &str) -> Result<Value, String> {
        let kind = self.spec().kind;
        let value = kind.read(text)?;
        if kind.allows(value) {
            Ok(value)
        } else {
            Err(format!("'{text}' is outside its range"))
        }
    }
}

impl Kind {
    /// Reads a value, whatever its range.
    fn read(self, text: &str) -> Result<Value, String> {
        Ok(match self {
            Self::Size { .. } => Value::Size(parse_size(text).map_err(|e| e.to_string())?),
            Self::Count { .. } => {
                let count = text.parse();
                Value::Count(count.map_err(|_| format!("'{text}' is not a whole number"))?)
            }
            Self::Time { .. } => Value::Time(parse_span(text).map_err(|e| e.to_string())?),
            Self::Switch => match text {
                "on" | "true" | "yes" => Value::Switch(true),
                "off" | "false" | "no" => Value::Switch(false),
                _ => return Err(format!("'{text}' is neither on nor off")),
            },
            Self::Choice(words) => {
                let word = words.iter().copied().find(|word| *word == text);
                Value::Choice(word.ok_or_else(|| format!("'{text}' is none of its words"))?)
            }
            Self::Rate { .. } => Value::Rate(rate_of(text).map_err(|e| e.to_string())?),
            Self::Limit { .. } => Value::Limit(Limit::parse(text).map_err(|e| e.to_string())?),
            Self::Rates { .. } => Value::Rates(WeeklyRates::parse(text)?),
            Self::Folder => Value::Folder(Folder::parse(text)?),
            Self::Congestion => Value::Congestion(Congestion::parse(text)?),
            Self::Window => Value::Window(WeeklyWindow::parse(text)?),
            Self::Moment => {
                // As it is written here, or as ISO 8601 does.
                let moment = DateTime::strptime(MOMENT, text.replace('T', " "));
                Value::Moment(moment.map_err(|_| format!("'{text}' is no date and time"))?)
            }
            Self::Maybe(_) if text == NONE => Value::None,
            Self::Maybe(kind) => kind.read(text)?,
        })
    }

    /// True if the value, already of this kind, is in range.
    fn allows(self, value: Value) -> bool {
        match (self, value) {
            (
                Self::Size {
                    min,
                    max,
                    step,
                    power,
                },
                Value::Size(bytes),
            ) => {
                let bytes = bytes.get();
                (min..=max).contains(&bytes)
                    && bytes.is_multiple_of(step)
                    && (!power || bytes.is_power_of_two())
            }
            (Self::Count { min, max }, Value::Count(count)) => (min..=max).contains(&count),
            (Self::Time { min_ms, max_ms }, Value::Time(span)) => {
                (u128::from(min_ms)..=u128::from(max_ms)).contains(&span.as_millis())
            }
            (Self::Switch, Value::Switch(_))
            | (Self::Folder, Value::Folder(_))
            | (Self::Congestion, Value::Congestion(_)) => true,
            (Self::Choice(words), Value::Choice(word)) => words.contains(&word),
            (Self::Window, Value::Window(_)) | (Self::Moment, Value::Moment(_)) => true,
            (Self::Maybe(kind), value) => value == Value::None || kind.allows(value),
            (Self::Rate { min }, Value::Rate(rate)) => rate.is_some_and(|rate| rate.get() >= min),
            (Self::Limit { min }, Value::Limit(limit)) => is_at_least(limit, min),
            (Self::Rates { min }, Value::Rates(rates)) => {
                rates.limits().all(|limit| is_at_least(limit, min))
            }
            (
                Self::Size { .. }
                | Self::Count { .. }
                | Self::Time { .. }
                | Self::Switch
                | Self::Choice(_)
                | Self::Rate { .. }
                | Self::Limit { .. }
                | Self::Rates { .. }
                | Self::Window
                | Self::Moment
                | Self::Folder
                | Self::Congestion,
                _,
            ) => false,
        }
    }

    /// What values are legal, in words.
    #[must_use]
    pub fn range(self) -> String {
        let bytes = ByteLen::new;
        let span = |ms| format_span(Duration::from_millis(ms));
        match self {
            Self::Size {
                min,
                max,
                power: true,
                ..
            } => format!("{} to {}, a power of two", bytes(min), bytes(max)),
            Self::Size {
                min, max, step: 1, ..
            } => format!("{} to {}", bytes(min), bytes(max)),
            Self::Size { min, max, step, .. } => {
                let (min, max, step) = (bytes(min), bytes(max), bytes(step));
                format!("{min} to {max}, a multiple of {step}")
            }
            Self::Count { min, max } => format!("{min} to {max}"),
            Self::Time { min_ms, max_ms } => format!("{} to {}", span(min_ms), span(max_ms)),
            Self::Switch => "on, off".to_owned(),
            Self::Folder => "none, or the absolute path of a directory".to_owned(),
            Self::Congestion => {
                "auto, system, or a name of the kernel's such as bbr, cubic, reno".to_owned()
            }
            Self::Choice(words) => words.join(", "),
            Self::Rate { min } => format!("{}/s and more, such as 100Mbit/s", bytes(min)),
            Self::Limit { min } => format!(
                "{}/s and more, or a part of `link.line-rate` such as 70%, or unlimited",
                bytes(min)
            ),
            Self::Rates { min } => format!(
                "none, or up to {PERIODS_MAX} periods such as `mon-fri 08:00-18:00 2MiB/s`, {}/s and more, a part of \
                 `link.line-rate` or unlimited",
                bytes(min)
            ),
            Self::Window => {
                format!("none, or up to {PERIODS_MAX} periods such as `mon-fri 22:00-04:00`")
            }
            Self::Moment => "such as `2027-01-31 22:00`".to_owned(),
            Self::Maybe(kind) => format!("none, or {}", kind.range()),
        }
    }

    /// The kind in one word.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Size { .. } => "size",
            Self::Count { .. } => "count",
            Self::Time { .. } => "time",
            Self::Switch => "switch",
            Self::Choice(_) => "choice",
            Self::Rate { .. } | Self::Limit { .. } => "rate",
            Self::Rates { .. } => "rates",
            Self::Window => "window",
            Self::Moment => "moment",
            Self::Maybe(kind) => kind.unit(),
            Self::Folder => "directory",
            Self::Congestion => "congestion control",
        }
    }
}

/// A part of a line is checked with the line.
fn is_at_least(limit: Limit, min: u64) -> bool {
    match limit {
        Limit::Unlimited | Limit::Percent(_) => true,
        Limit::Rate(rate) => rate.get() >= min,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_legal_and_printed_as_it_is_written() {
        for key in Key::ALL {
            assert_eq!(key.default_value().to_string(), key.spec().default);
            assert_eq!(Key::from_name(key.name()), Some(*key));
        }
    }

    #[test]
    fn values_outside_their_range_are_refused() {
        for (key, wrong) in [
            (Key::GroupLogMemory, "512KiB"),
            (Key::GroupLogMemory, "1025KiB"),
            (Key::GroupLogMemory, "lots"),
            (Key::VolumeExtentSize, "96KiB"),
            (Key::VolumeQueueDepth, "0"),
            (Key::VolumeQueueDepth, "-1"),
            (Key::LinkHeartbeatInterval, "1"),
            (Key::LinkReconnect, "perhaps"),
            (Key::VolumeOnBackingError, "panic"),
            (Key::LinkBandwidth, "15KiB/s"),
            (Key::LinkBandwidth, "10MiB"),
            (Key::LinkBandwidth, "0%"),
            (Key::LinkBandwidth, "101%"),
            (Key::LinkBandwidth, "100kbit/s"),
            (Key::LinkLineRate, "unlimited"),
            (Key::LinkLineRate, "70%"),
            (Key::LinkLineRate, "64kbit/s"),
            (Key::LinkBandwidthSchedule, "mon 08:00-09:00 15KiB/s"),
            (Key::LinkBandwidthSchedule, "always"),
            (Key::LinkWindow, "mon 08:00-09:00 15KiB/s"),
            (Key::LinkSessionStart, "22:00"),
            (Key::LinkSessionStart, "2027-02-29 22:00"),
            (Key::LinkSessionInterval, "59s"),
            (Key::LinkSessionQueuePercent, "101"),
            (Key::LinkSessionBytes, "unlimited"),
            (Key::QueueDirectory, "relative/path"),
            (Key::QueueDirectory, "/a\"b"),
            (Key::QueueAlert, "0"),
            (Key::QueueAlert, "101"),
            (Key::QueueSegmentSize, "3MiB"),
            (Key::QueueDiskSize, "512KiB"),
            (Key::LinkCongestionControl, "b b"),
            (Key::LinkCongestionControl, ""),
            (Key::LinkCongestionControl, "longer-than-the-kernel-takes"),
        ] {
            assert!(key.parse(wrong).is_err(), "{} = {wrong}", key.name());
        }
    }
}
