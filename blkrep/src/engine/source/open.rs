//! From a specification and what is on disk to a group that can serve.
//!
//! Owns the order of a start: claim the backings, read the superblock, recover log and maps, make
//! the new run durable. Nothing is served before all of it is done.

use super::disk_queue::{self, Queue, QueueSpec};
use super::group::{Admin, FileOf, SourceShared, State, VolumeFile};
use super::mail::Mail;
use super::metadata::{MapFile, SuperblockFile, intent_path, read_map};
use super::recover::Recovery;
use blkrep_core::dirty::{Bits, MapLayout};
use blkrep_core::intent::{IntentMap, IntentOptions};
use blkrep_core::source::{
    Gate, GroupOptions, LINKS_MAX, OnBackingError, SourceGroup, StreamLimits, Throttle,
};
use blkrep_io::{Access, Host, HostError};
use blkrep_log::FormatError;
use blkrep_log::superblock::{Group, GroupVolume};
use blkrep_types::limits::GROUP_EXTENTS_MAX;
use blkrep_types::{
    BlockSize, ByteLen, Errno, ExtentSize, Generation, GroupName, History, Incarnation, Seq,
    VolumeIndex, VolumeName, planted,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Smallest memory log: the largest request fits.
const LOG_BYTES_MIN: u64 = 1 << 20;

/// Settings of a group's engine.
#[derive(Debug, Clone, Copy)]
pub struct SourceOptions {
    /// What happens when a backing fails.
    pub on_backing_error: OnBackingError,
    /// How long a write waits at most for a draining link before the log is given up.
    pub throttle_max: Duration,
    /// How writers are slowed before the log is full.
    pub throttle: Option<Throttle>,
    /// How much links may have under way.
    pub stream: StreamLimits,
    /// When regions of the intent map are closed.
    pub intent: IntentOptions,
    /// Data bytes of the memory log; at least 1 MiB.
    pub log_bytes: ByteLen,
    /// Requests that can be outstanding over all queues of the group.
    pub requests_max: usize,
    /// The front end issues requests again that were in flight when the last run died.
    pub reissues: bool,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            on_backing_error: OnBackingError::Pass,
            throttle_max: Duration::from_secs(1),
            throttle: None,
            stream: StreamLimits::default(),
            intent: IntentOptions::default(),
            log_bytes: ByteLen::new(64 << 20),
            requests_max: 256,
            reissues: false,
        }
    }
}

/// One volume to serve.
#[derive(Debug, Clone)]
pub struct VolumeSpec {
    /// Its name.
    pub name: VolumeName,
    /// The block device or file with its data.
    pub backing: PathBuf,
    /// Its first byte there.
    pub offset: u64,
    /// Its size; `None`: all of the backing from `offset`.
    pub len: Option<ByteLen>,
    /// Its block size; `None`: that of the backing.
    pub block_size: Option<BlockSize>,
    /// The grain of its dirty maps.
    pub extent_size: ExtentSize,
    /// No write will be made.
    pub read_only: bool,
}

/// A group to open.
#[derive(Debug, Clone)]
pub struct GroupSpec {
    /// Its name.
    pub name: GroupName,
    /// Its volumes in their order.
    pub volumes: Vec<VolumeSpec>,
    /// The data history to begin with if the group is new here: that of a promoted replica. Else
    /// a first generation is made.
    pub history: Option<History>,
    /// Settings.
    pub options: SourceOptions,
    /// The disk queue; none if `None`.
    pub queue: Option<QueueSpec>,
}

/// Why a group cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A backing or the group's state is claimed elsewhere, perhaps by writes of a killed
    /// predecessor that have not landed: worth trying again for a while.
    #[error("{} is in use: stop what has it open, or wait until writes of a killed daemon have landed", path.display())]
    Busy {
        /// What is in use.
        path: PathBuf,
    },
    /// The host refuses.
    #[error(transparent)]
    Host(HostError),
    /// State on disk cannot be used.
    #[error("{}: {source}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: FormatError,
    },
    /// A volume does not fit its backing, or is not what it was.
    #[error("volume {volume}: {problem}")]
    Volume {
        /// The volume.
        volume: VolumeName,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A command cannot be carried out.
    #[error("{0}")]
    Command(String),
}

impl From<HostError> for OpenError {
    fn from(error: HostError) -> Self {
        if error.errno == Errno::EBUSY || error.errno == Errno::EAGAIN {
            Self::Busy { path: error.path }
        } else {
            Self::Host(error)
        }
    }
}

impl OpenError {
    /// True if it may pass by itself.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }
}

/// What a start found.
#[derive(Debug, Clone, Default)]
pub struct OpenReport {
    /// The group was made.
    pub created: bool,
    /// The last run did not end in order.
    pub crashed: bool,
    /// The memory of the last run was intact.
    pub memory_kept: bool,
    /// Regions that were open and will be compared if the memory was lost.
    pub open_regions: usize,
    /// Sectors of maps that were bad and count as dirty.
    pub bad_sectors: u32,
    /// Writes whose local part was not known to be complete: dirty now.
    pub doubtful_writes: usize,
    /// One copy of the group's record was bad and has been written again.
    pub repaired: bool,
    /// In words, what was wrong with the memory log.
    pub log_problem: Option<String>,
    /// In words, why there is no disk queue although there should be one.
    pub queue_problem: Option<String>,
}

/// A state machine and the file of its intent map.
type MadeGroup<H> = (super::group::Core, Option<MapFile<FileOf<H>>>);

type Opened<H> = (Vec<VolumeFile<FileOf<H>>>, Vec<GroupVolume>);

impl<H: Host> SourceShared<H> {
    /// Opens a group: after it, workers may serve.
    ///
    /// # Errors
    /// As [`OpenError`] says; nothing is held then.
    pub fn open(
        host: &H,
        directory: &Path,
        spec: &GroupSpec,
    ) -> Result<(Arc<Self>, OpenReport), OpenError> {
        let (files, volumes) = open_backings(host, spec)?;
        check_maps(&volumes)?;
        let (superblock, found) = SuperblockFile::open(host, directory, &spec.name)?;
        let mut report = OpenReport {
            created: found.is_none(),
            crashed: found.as_ref().is_some_and(|group| !group.clean),
            ..OpenReport::default()
        };
        // A bad copy is the write that a crash interrupted; or it was the newer one and has rotted,
        // and then the other does not know of the run that wrote it, nor of the names it gave.
        let repaired = superblock.repaired;
        report.repaired = repaired;
        let clean = found.as_ref().is_none_or(|group| group.clean) && !repaired;
        let mut record = match found {
            Some(group) => take_over(group, volumes)?,
            None => new_group(host, spec, volumes),
        };
        if !clean && !planted!(ReuseNamesAfterCrash) || report.created {
            record.incarnation = record.incarnation.next();
        }
        if repaired {
            record.incarnation = record.incarnation.next();
        }
        let mut admin = Admin { superblock, record };
        let (group, intent) =
            Self::make_group(host, directory, spec, &mut admin.record, &mut report)?;
        let mut state = State {
            group,
            volumes: files,
            intent,
            queue: Queue::default(),
            links: [const { None }; LINKS_MAX],
            metas: Default::default(),
            mails: vec![Arc::new(Mail::default())],
            lent: Vec::new(),
            first_free: true,
        };
        state.group.add_worker();
        let recovery = Recovery {
            host,
            directory,
            options: &spec.options,
            clean,
        };
        let log = recovery.run(&mut admin, &mut state, &mut report)?;
        let queue = spec.queue.as_ref();
        report.queue_problem = disk_queue::open(host, &admin.record, queue, &mut state)?;
        if admin.record.newer != Generation::NONE {
            state.group.fence(admin.record.newer);
            debug_assert_eq!(state.group.gate(), Gate::Fenced);
        }
        let (options, distrust) = (spec.options, admin.record.distrust);
        let shared = Self::assemble(host.clone(), directory.to_owned(), options, state, admin);
        if let Some(log) = log {
            shared.set_log_handle(log);
        }
        if distrust {
            shared.commit_all()?;
            shared.record(|record| record.distrust = false)?;
        }
        Ok((shared, report))
    }

    /// The state machine with its intent map, as found.
    fn make_group(
        host: &H,
        directory: &Path,
        spec: &GroupSpec,
        record: &mut Group,
        report: &mut OpenReport,
    ) -> Result<MadeGroup<H>, OpenError> {
        let lens: Vec<_> = record.volumes.iter().map(|volume| volume.len).collect();
        let dirty = dirty_layout(&record.volumes);
        let regions = intent_layout(&record.volumes);
        let (bits, file) = if record.links.is_empty() {
            (Bits::clear_of(regions.bits()), None)
        } else {
            let path = intent_path(directory, &record.name);
            let map = read_map(host, &path, record.intent_map, &regions)?;
            report.bad_sectors += map.bad;
            (map.bits, Some(map.file))
        };
        let intent = IntentMap::new(bits, regions, spec.options.intent);
        report.open_regions = intent.open_count();
        let options = GroupOptions {
            on_backing_error: spec.options.on_backing_error,
            throttle_max: spec.options.throttle_max,
            throttle: spec.options.throttle,
            stream: spec.options.stream,
            requests_max: spec.options.requests_max,
        };
        let history = record.history.clone();
        let group = SourceGroup::new(options, history, &lens, dirty, intent);
        Ok((group, file))
    }
}

pub(super) fn dirty_layout(volumes: &[GroupVolume]) -> MapLayout {
    MapLayout::new(
        volumes
            .iter()
            .map(|volume| (volume.len, volume.extent_size)),
    )
}

pub(super) fn intent_layout(volumes: &[GroupVolume]) -> MapLayout {
    MapLayout::new(
        volumes
            .iter()
            .map(|volume| (volume.len, ExtentSize::INTENT)),
    )
}

pub(super) fn random_id<H: Host>(host: &H) -> [u8; 16] {
    let mut id = [0; 16];
    host.random(&mut id);
    id
}

/// Claims every backing, before anything else is looked at.
fn open_backings<H: Host>(host: &H, spec: &GroupSpec) -> Result<Opened<H>, OpenError> {
    let mut files: Vec<VolumeFile<FileOf<H>>> = Vec::new();
    let mut volumes = Vec::new();
    for (index, volume) in spec.volumes.iter().enumerate() {
        // Volumes at different offsets of one backing share its claim.
        let earlier = spec.volumes[..index]
            .iter()
            .position(|other| other.backing == volume.backing);
        let share = earlier.map(|earlier| files[earlier].file.clone());
        let (file, mut facts) = open_backing(host, volume, share)?;
        facts.index = VolumeIndex::new(u16::try_from(index).expect("checked by its limit"));
        files.push(file);
        volumes.push(facts);
    }
    Ok((files, volumes))
}

/// Refuses volumes whose maps would take more memory than a group may.
fn check_maps(volumes: &[GroupVolume]) -> Result<(), OpenError> {
    let sizes = volumes
        .iter()
        .map(|volume| (volume.len, volume.extent_size));
    if ExtentSize::fit_a_map(sizes) {
        return Ok(());
    }
    let last = volumes.last().expect("a group has a volume");
    Err(OpenError::Volume {
        volume: last.name.clone(),
        problem: format!(
            "the group's volumes have more than {GROUP_EXTENTS_MAX} extents of {}, more than a map holds: set a larger volume.extent-size, or put fewer volumes in one group",
            ByteLen::new(last.extent_size.get()),
        ),
    })
}

/// Claims one backing, or shares the claim that `share` has on it.
pub(super) fn open_backing<H: Host>(
    host: &H,
    volume: &VolumeSpec,
    share: Option<FileOf<H>>,
) -> Result<(VolumeFile<FileOf<H>>, GroupVolume), OpenError> {
    let access = Access {
        read_only: volume.read_only,
        direct: true,
        claim: !planted!(ServeBeforeClaim),
        create: None,
    };
    let file = match share {
        Some(file) => file,
        None => host.open(&volume.backing, access)?,
    };
    let geometry = host.geometry(&file)?;
    let problem = |problem: String| OpenError::Volume {
        volume: volume.name.clone(),
        problem,
    };
    let block_size = volume.block_size.unwrap_or(geometry.block_size);
    let rest = geometry.len.get().saturating_sub(volume.offset);
    let len = volume.len.map_or(rest, ByteLen::get);
    let len = len - len % block_size.get();
    if len == 0 || len > rest {
        return Err(problem(format!(
            "{} has {} bytes from offset {}, {len} are needed: use a larger backing or a smaller size",
            volume.backing.display(),
            rest,
            volume.offset,
        )));
    }
    if !volume.offset.is_multiple_of(block_size.get())
        || block_size.get() < geometry.block_size.get()
    {
        return Err(problem(format!(
            "offset {} and block size {} do not fit the backing's blocks of {} bytes",
            volume.offset,
            block_size.get(),
            geometry.block_size.get(),
        )));
    }
    let file = VolumeFile {
        file,
        offset: volume.offset,
    };
    let facts = GroupVolume {
        index: VolumeIndex::default(),
        name: volume.name.clone(),
        len: ByteLen::new(len),
        block_size,
        extent_size: volume.extent_size,
    };
    Ok((file, facts))
}

/// A known group is opened with the volumes it had: its maps are of these. Without links there is
/// no map and they may differ.
fn take_over(mut group: Group, volumes: Vec<GroupVolume>) -> Result<Group, OpenError> {
    if !group.links.is_empty() && group.volumes != volumes {
        let changed = group
            .volumes
            .iter()
            .chain(&volumes)
            .find(|volume| !(group.volumes.contains(volume) && volumes.contains(volume)));
        let volume = changed.map_or_else(|| volumes[0].name.clone(), |volume| volume.name.clone());
        return Err(OpenError::Volume {
            volume,
            problem: format!(
                "the volumes of group {} are not those it is replicated with: restore their order, names, sizes and grains, or disconnect with --forget first",
                group.name
            ),
        });
    }
    group.volumes = volumes;
    Ok(group)
}

fn new_group<H: Host>(host: &H, spec: &GroupSpec, volumes: Vec<GroupVolume>) -> Group {
    let history = spec.history.clone().unwrap_or_else(|| {
        let mut history = History::new();
        let generation = Generation::from_bytes(random_id(host));
        history.branch(generation, Incarnation::default(), Seq::ZERO);
        history
    });
    Group {
        id: random_id(host),
        name: spec.name.clone(),
        clean: false,
        distrust: false,
        served_by: None,
        history,
        incarnation: Incarnation::default(),
        head: (Incarnation::default(), Seq::ZERO),
        log_id: random_id(host),
        log_bytes: ByteLen::new(spec.options.log_bytes.get().max(LOG_BYTES_MIN)),
        newer: Generation::NONE,
        intent_map: random_id(host),
        volumes,
        links: Vec::new(),
    }
}
