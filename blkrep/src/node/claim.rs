//! Opening a group's engine, also while writes of a killed predecessor still hold its backings.
//!
//! Owns the specification an engine is opened with and the patience: nothing is served before the
//! exclusive claim is held, and a claim that the kernel has not freed yet is waited for.

use super::state::Engine;
use super::table::VolumeEntry;
use super::{Inner, backing, errors};
use crate::engine::source::{GroupSpec, OpenReport, SourceOptions, SourceShared, VolumeSpec};
use crate::settings::{GroupSettings, OnBackingError};
use blkrep_api::{ApiError, EventId, NewEvent};
use blkrep_core::intent::IntentOptions;
use blkrep_core::source::OnBackingError as CorePolicy;
use blkrep_types::{GroupName, History, VolumeName};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// How long a claim is waited for at a start: a disk's own time-out is 30 s in most drivers; twice
/// that, and its retry is in.
pub(super) const CLAIM_WAIT: Duration = Duration::from_secs(60);
const CLAIM_RETRY: Duration = Duration::from_millis(50);
/// Requests of a group beyond those of its first queue: volumes may be added later.
const REQUESTS_MIN: usize = 1024;
/// A region closes this much before its volume counts as idle for too long, so that flush,
/// acknowledgement and commit fit in between.
const INTENT_MARGIN: Duration = Duration::from_secs(10);

/// The volumes of a group in their order.
pub(super) type Volumes = Vec<(VolumeName, VolumeEntry)>;

/// What an engine is to know of a volume.
pub(super) fn volume_spec(name: &VolumeName, entry: &VolumeEntry) -> VolumeSpec {
    VolumeSpec {
        name: name.clone(),
        backing: real_path(entry),
        offset: entry.offset.get(),
        len: Some(entry.len),
        block_size: Some(entry.block_size),
        extent_size: entry.extent_size,
        read_only: entry.read_only,
    }
}

/// Two names of one backing share its claim only if they are one path.
fn real_path(entry: &VolumeEntry) -> PathBuf {
    backing::identify(&entry.backing).map_or_else(|_| entry.backing.clone(), |(path, _)| path)
}

/// Settings as an engine wants them. `reissues`: every request in flight comes again.
pub(super) fn source_options(settings: &GroupSettings, reissues: bool) -> SourceOptions {
    let idle = settings.intent_idle_time;
    let queue = usize::from(settings.queue_depth) * usize::from(settings.queues);
    SourceOptions {
        on_backing_error: core_policy(settings.on_backing_error),
        intent: IntentOptions {
            idle: idle.saturating_sub(INTENT_MARGIN).max(idle / 2),
            ..IntentOptions::default()
        },
        throttle: settings.throttle,
        stream: settings.stream,
        log_bytes: settings.log_memory,
        requests_max: REQUESTS_MIN.max(4 * queue),
        reissues,
        ..SourceOptions::default()
    }
}

/// The policy in the engine's word.
pub(super) const fn core_policy(policy: OnBackingError) -> CorePolicy {
    match policy {
        OnBackingError::Pass => CorePolicy::Pass,
        OnBackingError::Freeze | OnBackingError::Target => CorePolicy::Freeze,
    }
}

impl Inner {
    /// Opens the engine of a group, waiting up to `patience` for claims. Tells what it found.
    pub(super) fn open_engine(
        &self,
        group: &GroupName,
        volumes: &Volumes,
        history: Option<History>,
        reissues: bool,
        patience: Duration,
    ) -> Result<Engine, ApiError> {
        let settings = self.settings.group(group);
        let spec = GroupSpec {
            name: group.clone(),
            volumes: volumes
                .iter()
                .map(|(name, entry)| volume_spec(name, entry))
                .collect(),
            history,
            options: source_options(&settings, reissues),
            queue: settings.queue,
        };
        let began = Instant::now();
        loop {
            match SourceShared::open(&self.host, &self.groups_dir, &spec) {
                Ok((engine, report)) => {
                    self.tell_opened(group, &report, began.elapsed());
                    return Ok(engine);
                }
                Err(error) if error.is_busy() && began.elapsed() < patience => {
                    thread::sleep(CLAIM_RETRY);
                }
                Err(error) => return Err(errors::of_engine(format!("group {group}"), &error)),
            }
        }
    }

    fn tell_opened(&self, group: &GroupName, report: &OpenReport, waited: Duration) {
        let tell = |id, text: String| self.tell(NewEvent::new(id, text).group(group));
        if waited > CLAIM_RETRY * 2 {
            let seconds = waited.as_secs_f64();
            tell(
                EventId::BackingWaited,
                format!("waited {seconds:.1} s for writes of the former daemon to land"),
            );
        }
        if report.crashed && !report.created {
            let memory = if report.memory_kept {
                "its log is intact"
            } else {
                "its log is lost"
            };
            tell(
                EventId::DaemonRecovered,
                format!(
                    "the last run did not end in order; {memory}, {} regions were open",
                    report.open_regions
                ),
            );
        }
        if report.repaired {
            tell(
                EventId::StateRepaired,
                format!("one copy of the record of group {group} was bad; it was written again"),
            );
        }
        if report.bad_sectors > 0 {
            tell(
                EventId::IntentMapUnreadable,
                format!(
                    "{} sectors of maps were bad and count as different",
                    report.bad_sectors
                ),
            );
        }
        if let Some(problem) = &report.log_problem {
            tell(EventId::StateCorrupt, problem.clone());
        }
        if let Some(problem) = &report.queue_problem {
            tell(EventId::QueueFailed, problem.clone());
        }
    }
}
