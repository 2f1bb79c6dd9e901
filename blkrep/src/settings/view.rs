//! Settings in force, as plain typed structs for the engines.

use super::registry::BANDWIDTH_MIN;
use super::{Key, Value};
use crate::engine::source::QueueSpec;
use blkrep_core::compression::Compression;
use blkrep_core::source::{StreamLimits, Throttle};
use blkrep_core::target::RetryPolicy;
use blkrep_types::{
    ByteLen, Congestion, ExtentSize, Limit, Rate, WeeklyRates, WeeklyWindow, format_rate, rate_text,
};
use jiff::civil::DateTime;
use std::path::PathBuf;
use std::time::Duration;

/// What a volume does when its backing fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnBackingError {
    /// The application gets the error.
    Pass,
    /// Requests wait until someone acts.
    Freeze,
    /// They wait until a target can serve the group, which it does from then on.
    Target,
}

/// The settings of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSettings {
    /// Requests in flight for each hardware queue.
    pub queue_depth: u16,
    /// Hardware queues of a device.
    pub queues: u16,
    /// Largest request of a device.
    pub request_bytes: ByteLen,
    /// Grain of the dirty maps.
    pub extent_size: ExtentSize,
    /// When an idle volume's intent map is empty at the latest.
    pub intent_idle_time: Duration,
    /// What a failing backing does.
    pub on_backing_error: OnBackingError,
    /// Memory of the write log.
    pub log_memory: ByteLen,
    /// How writers are slowed before it is full.
    pub throttle: Option<Throttle>,
    /// Links the group may have.
    pub links_max: u16,
    /// Time between heartbeats.
    pub heartbeat_interval: Duration,
    /// Silence after which a peer is gone.
    pub heartbeat_timeout: Duration,
    /// Time without progress after which a peer that lives loses its connection.
    pub progress_timeout: Duration,
    /// Limit of connecting and handshake.
    pub connect_timeout: Duration,
    /// Connect again by itself.
    pub reconnect: bool,
    /// Time between two attempts.
    pub reconnect_interval: Duration,
    /// Whether what is sent is compressed.
    pub compression: Compression,
    /// How hard.
    pub compression_level: u8,
    /// TCP connections of a link.
    pub connections: u8,
    /// How they share the line.
    pub congestion: Congestion,
    /// Bytes a second of the line that simulated links are measured against.
    pub simulated_rate: ByteLen,
    /// Sent and not acknowledged at most.
    pub stream: StreamLimits,
    /// Bytes a second that the line carries, as was stated.
    pub line_rate: Rate,
    /// What links may send.
    pub bandwidth: Limit,
    /// What holds instead by day and time.
    pub bandwidth_schedule: WeeklyRates,
    /// Links have a connection in sessions only.
    pub schedule: bool,
    /// Times outside which there is no session; empty: none.
    pub window: WeeklyWindow,
    /// When the first session begins.
    pub session_start: Option<DateTime>,
    /// From one planned start to the next.
    pub session_interval: Option<Duration>,
    /// A queue that starts a session.
    pub session_queue: Option<ByteLen>,
    /// The same in percent of the write log.
    pub session_queue_percent: Option<u8>,
    /// The most that a session sends.
    pub session_bytes: Option<ByteLen>,
    /// The longest that it is.
    pub session_time: Option<Duration>,
    /// Size of the target's journal.
    pub journal_size: ByteLen,
    /// What a target does about writes that its disk does not take.
    pub target_retry: RetryPolicy,
    /// Where the programs are that tasks may run; `None`: tasks are off.
    pub task_directory: Option<PathBuf>,
    /// How long a task may run.
    pub task_timeout: Duration,
    /// The disk queue.
    pub queue: Option<QueueSpec>,
    /// Bytes that stay free on its filesystem, and of one segment.
    pub queue_least: ByteLen,
    /// Bytes of a segment, whether there is a queue or not.
    pub queue_segment: ByteLen,
    /// Bytes that a queue takes at most.
    pub queue_disk: ByteLen,
}

impl GroupSettings {
    /// Checks limits that are a part of the line.
    pub(super) fn check_bandwidth(&self) -> Result<(), String> {
        let limits = self.bandwidth_schedule.limits().chain([self.bandwidth]);
        for part in limits.filter(|limit| limit.is_part()) {
            let Some(rate) = part.of(self.line_rate) else {
                return Err(format!(
                    "a bandwidth of {part} needs link.line-rate: what the line carries, such as 100Mbit/s"
                ));
            };
            if rate.get() < BANDWIDTH_MIN {
                return Err(format!(
                    "{part} of link.line-rate is {}, which is less than {}",
                    rate_text(Some(rate)),
                    format_rate(ByteLen::new(BANDWIDTH_MIN))
                ));
            }
        }
        Ok(())
    }

    /// Checks what no single setting of a schedule can show.
    pub(super) fn check_schedule(&self) -> Result<(), String> {
        if !self.schedule {
            return Ok(());
        }
        if self.session_interval.is_some() && self.session_start.is_none() {
            let why = "link.session-interval needs link.session-start: when the first one begins";
            return Err(why.to_owned());
        }
        let again = self.session_start.is_some()
            || self.session_queue.is_some()
            || self.session_queue_percent.is_some()
            || !self.window.is_empty();
        let limited = self.session_bytes.is_some() || self.session_time.is_some();
        if limited && !again {
            let why = "a schedule with link.session-bytes or link.session-time needs something that begins the next \
                       session: link.session-start, link.session-queue or link.window";
            return Err(why.to_owned());
        }
        Ok(())
    }
}

/// The settings of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSettings {
    /// Events kept in memory.
    pub events_kept: usize,
    /// Size at which the event log file is rotated.
    pub events_file_size: ByteLen,
    /// Event log files kept.
    pub events_files: u16,
    /// Clients of each role at once.
    pub connections: usize,
    /// Limit of receiving a request.
    pub request_timeout: Duration,
    /// Limit of waiting for a command.
    pub operation_timeout: Duration,
}

/// Values by key; a key of another kind than asked for is a fault of the registry.
pub(super) struct Values<F: Fn(Key) -> Value>(pub(super) F);

impl<F: Fn(Key) -> Value> Values<F> {
    fn size(&self, key: Key) -> ByteLen {
        match (self.0)(key) {
            Value::Size(bytes) => bytes,
            other => unreachable!("{} is a size, not {other}", key.name()),
        }
    }

    fn count<N: TryFrom<u64>>(&self, key: Key) -> N {
        match (self.0)(key) {
            Value::Count(count) => N::try_from(count)
                .unwrap_or_else(|_| unreachable!("{}: range is too wide", key.name())),
            other => unreachable!("{} is a count, not {other}", key.name()),
        }
    }

    fn time(&self, key: Key) -> Duration {
        match (self.0)(key) {
            Value::Time(span) => span,
            other => unreachable!("{} is a time, not {other}", key.name()),
        }
    }

    fn switch(&self, key: Key) -> bool {
        match (self.0)(key) {
            Value::Switch(on) => on,
            other => unreachable!("{} is a switch, not {other}", key.name()),
        }
    }

    /// The setting, if it has a value.
    fn given(&self, key: Key) -> Option<Key> {
        ((self.0)(key) != Value::None).then_some(key)
    }

    pub(super) fn group(&self) -> GroupSettings {
        let extent = self.size(Key::VolumeExtentSize).get();
        GroupSettings {
            queue_depth: self.count(Key::VolumeQueueDepth),
            queues: self.count(Key::VolumeQueues),
            request_bytes: self.size(Key::VolumeRequestSize),
            extent_size: ExtentSize::try_from(extent).expect("the range is that of ExtentSize"),
            intent_idle_time: self.time(Key::VolumeIntentIdleTime),
            on_backing_error: match (self.0)(Key::VolumeOnBackingError) {
                Value::Choice("freeze") => OnBackingError::Freeze,
                Value::Choice("target") => OnBackingError::Target,
                _ => OnBackingError::Pass,
            },
            log_memory: self.size(Key::GroupLogMemory),
            throttle: match (self.0)(Key::GroupThrottle) {
                Value::Choice("off") => None,
                how => Some(Throttle {
                    always: how == Value::Choice("always"),
                    start: self.count(Key::GroupThrottleStart),
                    stop: self.count(Key::GroupThrottleStop),
                    delay_max: self.time(Key::GroupThrottleDelay),
                }),
            },
            links_max: self.count(Key::GroupLinksMax),
            heartbeat_interval: self.time(Key::LinkHeartbeatInterval),
            heartbeat_timeout: self.time(Key::LinkHeartbeatTimeout),
            progress_timeout: self.time(Key::LinkProgressTimeout),
            connect_timeout: self.time(Key::LinkConnectTimeout),
            reconnect: self.switch(Key::LinkReconnect),
            reconnect_interval: self.time(Key::LinkReconnectInterval),
            compression: match (self.0)(Key::LinkCompression) {
                Value::Choice("off") => Compression::Off,
                Value::Choice("on") => Compression::On,
                _ => Compression::Adaptive,
            },
            compression_level: self.count(Key::LinkCompressionLevel),
            connections: self.count(Key::LinkConnections),
            congestion: match (self.0)(Key::LinkCongestionControl) {
                Value::Congestion(congestion) => congestion,
                other => unreachable!("a congestion control is one, not {other}"),
            },
            simulated_rate: self.size(Key::LinkSimulatedRate),
            stream: StreamLimits {
                in_flight: self.size(Key::LinkInFlight),
                mirror_in_flight: self.size(Key::LinkMirrorInFlight),
                mirror_ratio: self.count(Key::LinkMirrorRatio),
                mirror_high: self.count(Key::LinkMirrorHighMark),
                mirror_low: self.count(Key::LinkMirrorLowMark),
            },
            line_rate: match (self.0)(Key::LinkLineRate) {
                Value::Rate(rate) => rate,
                _ => None,
            },
            bandwidth: match (self.0)(Key::LinkBandwidth) {
                Value::Limit(limit) => limit,
                other => unreachable!("a bandwidth is a limit, not {other}"),
            },
            bandwidth_schedule: match (self.0)(Key::LinkBandwidthSchedule) {
                Value::Rates(rates) => rates,
                other => unreachable!("a schedule has rates, not {other}"),
            },
            schedule: self.switch(Key::LinkSchedule),
            window: match (self.0)(Key::LinkWindow) {
                Value::Window(window) => window,
                other => unreachable!("a window has times, not {other}"),
            },
            session_start: match (self.0)(Key::LinkSessionStart) {
                Value::Moment(moment) => Some(moment),
                _ => None,
            },
            session_interval: self
                .given(Key::LinkSessionInterval)
                .map(|key| self.time(key)),
            session_queue: self.given(Key::LinkSessionQueue).map(|key| self.size(key)),
            session_queue_percent: self
                .given(Key::LinkSessionQueuePercent)
                .map(|key| self.count(key)),
            session_bytes: self.given(Key::LinkSessionBytes).map(|key| self.size(key)),
            session_time: self.given(Key::LinkSessionTime).map(|key| self.time(key)),
            journal_size: self.size(Key::TargetJournalSize),
            target_retry: RetryPolicy {
                limit: Some(self.count(Key::TargetRetryLimit)).filter(|limit| *limit > 0),
                delay: self.time(Key::TargetRetryDelay),
            },
            task_directory: match (self.0)(Key::TaskDirectory) {
                Value::Folder(folder) => folder.path(),
                other => unreachable!("a directory is one, not {other}"),
            },
            task_timeout: self.time(Key::TaskTimeout),
            queue: self.queue(),
            queue_segment: self.size(Key::QueueSegmentSize),
            queue_disk: self.size(Key::QueueDiskSize),
            queue_least: ByteLen::new(
                self.size(Key::QueueFreeSpace).get() + self.size(Key::QueueSegmentSize).get(),
            ),
        }
    }

    fn queue(&self) -> Option<QueueSpec> {
        let directory = match (self.0)(Key::QueueDirectory) {
            Value::Folder(folder) => folder.path()?,
            other => unreachable!("a directory is one, not {other}"),
        };
        Some(QueueSpec {
            directory,
            segment_bytes: self.size(Key::QueueSegmentSize),
            bytes_max: self.size(Key::QueueDiskSize),
            free_min: self.size(Key::QueueFreeSpace),
            alert_percent: self.count(Key::QueueAlert),
        })
    }

    pub(super) fn node(&self) -> NodeSettings {
        NodeSettings {
            events_kept: self.count(Key::EventsKept),
            events_file_size: self.size(Key::EventsFileSize),
            events_files: self.count(Key::EventsFiles),
            connections: self.count(Key::ControlConnections),
            request_timeout: self.time(Key::ControlRequestTimeout),
            operation_timeout: self.time(Key::ControlOperationTimeout),
        }
    }
}
