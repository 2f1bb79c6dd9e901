//! What the workers of a group share.
//!
//! Owns the state machine with its log behind one short mutex, the open files, each worker's
//! mailbox, and the superblock's facts behind a second mutex that is held across (rare, blocking)
//! writes of it. A worker's turn takes the first mutex once, hands in what happened, and takes out
//! what it is to do; no operation is made under it.

use super::adapter::{GroupLog, SharedWords};
use super::disk_queue::Queue;
use super::idle::IdleLinks;
use super::jobs::{CommitJob, Report};
use super::mail::Mail;
use super::metadata::{MapFile, SuperblockFile};
use super::{OpenError, SourceOptions};
use blkrep_core::identity::Place;
use blkrep_core::source::{
    Action, ContentPart, Gate, GroupEvent, LINKS_MAX, LinkIndex, LinkStatus, MapId, NewRequest,
    QueueJob, QueueStatus, RequestId, SourceGroup, ThrottleStatus, WorkerId, WriteLog,
};
use blkrep_io::{Host, Io, Op, Region, Slice};
use blkrep_log::superblock::Group;
use blkrep_log::{LogHandle, map};
use blkrep_types::{Errno, Extent, Generation, History, LinkName, Nanos, Seq, VolumeIndex};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

pub(super) type FileOf<H> = <<H as Host>::Io as Io>::File;
pub(super) type Core = SourceGroup<GroupLog, SharedWords>;

/// A volume's bytes within an open file.
#[derive(Debug, Clone)]
pub(super) struct VolumeFile<F> {
    pub(super) file: F,
    pub(super) offset: u64,
}

impl<F: Clone> VolumeFile<F> {
    pub(super) fn read<S>(&self, extent: Extent, slice: Slice) -> Op<F, S> {
        Op::Read {
            file: self.file.clone(),
            offset: self.offset + extent.offset().get(),
            slice,
        }
    }

    pub(super) fn write<S>(&self, extent: Extent, slice: Slice, durable: bool) -> Op<F, S> {
        Op::Write {
            file: self.file.clone(),
            offset: self.offset + extent.offset().get(),
            slice,
            durable,
        }
    }

    pub(super) fn zero<S>(&self, extent: Extent, free: bool) -> Op<F, S> {
        Op::Zero {
            file: self.file.clone(),
            offset: self.offset + extent.offset().get(),
            len: extent.len().get(),
            free,
        }
    }
}

/// What happened on a worker, for the next turn.
#[derive(Debug)]
pub(super) enum Event {
    Submit(NewRequest),
    /// A read that may have to wait, or that failed, with the memory it is to fill.
    Read(NewRequest, Slice),
    LocalDone(RequestId, Result<(), Errno>),
    ReadFailed(NewRequest, Slice, Errno),
    Report(Report),
    /// What a link needs cannot be read from the disk queue.
    AwayLost(LinkIndex, Seq, Errno),
}

pub(super) fn apply<F>(state: &mut State<F>, event: Event) {
    if let Event::Read(request, memory) | Event::ReadFailed(request, memory, _) = &event {
        state.lend(request.worker, request.tag, memory);
    }
    let group = &mut state.group;
    match event {
        Event::Submit(request) | Event::Read(request, _) => group.submit(request),
        Event::LocalDone(id, result) => group.local_done(id, result),
        Event::ReadFailed(request, _, errno) => group.read_failed(request, errno),
        Event::Report(Report::Flushed(volume, number, result)) => {
            group.flush_done(volume, number, result);
        }
        Event::Report(Report::Committed(map, result)) => group.commit_done(map, result),
        Event::Report(Report::Read(job, result)) => group.mirror_read_done(job, result),
        Event::Report(Report::Digested(job, result)) => group.mirror_digest_done(job, result),
        Event::Report(Report::WrittenOut(write, result)) => group.written_out(&write, result),
        Event::Report(Report::Cleared(sector)) => group.segment_cleared(sector),
        Event::Report(Report::ReadBack(..)) => unreachable!("a link's port takes these itself"),
        Event::AwayLost(link, seq, errno) => group.away_lost(link, seq, errno),
    }
}

/// What a turn leaves a worker to do.
#[derive(Debug)]
pub(super) struct Outbox<F> {
    pub(super) actions: Vec<Action>,
    pub(super) commits: Vec<CommitJob<F>>,
    pub(super) queue_jobs: Vec<QueueJob>,
    pub(super) deadline: Option<Nanos>,
    /// Entries were appended: links may have something to send.
    pub(super) appended: bool,
    wakes: Vec<Arc<Mail>>,
}

impl<F> Outbox<F> {
    pub(super) const fn new() -> Self {
        Self {
            actions: Vec::new(),
            commits: Vec::new(),
            queue_jobs: Vec::new(),
            deadline: None,
            appended: false,
            wakes: Vec::new(),
        }
    }
}

/// What is known of a link besides its state machine.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LinkMeta {
    pub(super) wanted: bool,
    pub(super) refused: bool,
}

/// What is behind the short mutex.
#[derive(Debug)]
pub(super) struct State<F> {
    pub(super) group: Core,
    pub(super) volumes: Vec<VolumeFile<F>>,
    pub(super) intent: Option<MapFile<F>>,
    pub(super) queue: Queue<F>,
    pub(super) links: [Option<MapFile<F>>; LINKS_MAX],
    pub(super) metas: [LinkMeta; LINKS_MAX],
    pub(super) mails: Vec<Arc<Mail>>,
    /// By worker and tag, where what a target answers goes: as long as the read is under way there.
    pub(super) lent: Vec<Vec<Option<Slice>>>,
    /// The first worker's place was made with the group and is not taken yet.
    pub(super) first_free: bool,
}

impl<F> State<F> {
    /// Remembers where the answer of a read goes.
    fn lend(&mut self, worker: WorkerId, tag: u16, memory: &Slice) {
        let (worker, tag) = (worker.as_usize(), usize::from(tag));
        if self.lent.len() <= worker {
            self.lent.resize_with(worker + 1, Vec::new);
        }
        let tags = &mut self.lent[worker];
        if tags.len() <= tag {
            tags.resize(tag + 1, None);
        }
        tags[tag] = Some(memory.clone());
    }

    /// Takes a part of a target's answer; false if it answers nothing that was asked.
    pub(super) fn content(&mut self, link: LinkIndex, part: &ContentPart, bytes: &[u8]) -> bool {
        let lent = &self.lent;
        self.group.content(link, part, |worker, tag, at| {
            let memory = lent[worker.as_usize()][usize::from(tag)].as_ref();
            memory.expect("a read has its memory").write(at, bytes);
        })
    }
}

impl<F: Clone> State<F> {
    /// Begins the commit of a map: the sectors as they are now, in runs.
    pub(super) fn build_commit(&mut self, which: MapId) -> Option<CommitJob<F>> {
        let file = match which {
            MapId::Intent => self.intent.as_mut()?,
            MapId::Link(link) => self.links[link.as_usize()].as_mut()?,
        };
        file.counter += 1;
        let mut bytes = Vec::new();
        let mut runs: Vec<(u64, usize)> = Vec::new();
        let head = self.group.begin_commit(which, |sector, words| {
            let offset = map::sector_offset(sector);
            let at = bytes.len();
            let joins = runs.last().is_some_and(|(first, from)| {
                first + u64::try_from(at - from).expect("64-bit platform") == offset
            });
            if !joins {
                runs.push((offset, at));
            }
            bytes.resize(at + map::SECTOR_BYTES, 0);
            map::encode_sector(&file.name, sector, file.counter, words, &mut bytes[at..]);
        });
        if let Some(head) = head {
            runs.push((0, bytes.len()));
            bytes.extend_from_slice(&file.head(head));
        }
        let memory = Region::heap(bytes.len().max(map::SECTOR_BYTES)).whole();
        memory.write(0, &bytes);
        let ends = runs.iter().skip(1).map(|(_, at)| *at).chain([bytes.len()]);
        let writes = runs
            .iter()
            .zip(ends)
            .map(|((offset, from), to)| (*offset, memory.part(*from..to)))
            .collect();
        Some(CommitJob {
            map: which,
            file: file.file.clone(),
            writes,
        })
    }
}

/// The superblock and its facts.
#[derive(Debug)]
pub(super) struct Admin<H: Host> {
    pub(super) superblock: SuperblockFile<H>,
    pub(super) record: Group,
}

/// A source group as its workers share it.
#[derive(Debug)]
pub struct SourceShared<H: Host> {
    pub(super) host: H,
    pub(super) directory: PathBuf,
    pub(super) options: SourceOptions,
    state: Mutex<State<FileOf<H>>>,
    admin: Mutex<Admin<H>>,
    log: OnceLock<LogHandle>,
    gate: AtomicU8,
    idle_links: IdleLinks,
    /// A newer generation that could not be remembered yet.
    pub(super) fence_due: Mutex<Option<Generation>>,
}

const GATE_OPEN: u8 = 0;
const GATE_SERVED: u8 = 3;

impl<H: Host> SourceShared<H> {
    pub(super) fn assemble(
        host: H,
        directory: PathBuf,
        options: SourceOptions,
        state: State<FileOf<H>>,
        admin: Admin<H>,
    ) -> Arc<Self> {
        let shared = Self {
            host,
            directory,
            options,
            state: Mutex::new(state),
            admin: Mutex::new(admin),
            log: OnceLock::new(),
            gate: AtomicU8::new(GATE_OPEN),
            idle_links: IdleLinks::default(),
            fence_due: Mutex::default(),
        };
        let state = shared.lock();
        shared.store_gate(&state.group);
        drop(state);
        Arc::new(shared)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State<FileOf<H>>> {
        // A worker that panicked under the mutex takes the process with it; tests may see this.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn admin(&self) -> MutexGuard<'_, Admin<H>> {
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store_gate(&self, group: &Core) {
        let gate = match group.gate() {
            Gate::Open => GATE_OPEN,
            Gate::Frozen => 1,
            Gate::Fenced => 2,
            Gate::Served => GATE_SERVED,
        };
        self.gate.store(gate, Ordering::Release);
    }

    /// True while reads may bypass the state machine.
    pub(super) fn gate_is_open(&self) -> bool {
        self.gate.load(Ordering::Acquire) == GATE_OPEN
    }

    /// True while requests wait for something that passes by itself: nobody has to be asked.
    pub(super) fn serves(&self) -> bool {
        matches!(self.gate.load(Ordering::Acquire), GATE_OPEN | GATE_SERVED)
    }

    /// True if all requests wait for a link for as long as it is lost.
    pub(super) fn waits_for_lost_links(&self) -> bool {
        self.lock().group.waits_for_lost_links()
    }

    /// Makes a worker's place and mailbox.
    pub(super) fn add_worker(&self) -> (WorkerId, Arc<Mail>) {
        let mut state = self.lock();
        let places = state.mails.iter().enumerate();
        let mut ended = places.filter(|(_, mail)| mail.is_retired());
        let again = ended.find_map(|(place, _)| state.group.reuse_worker(place));
        let id = if std::mem::take(&mut state.first_free) {
            state.group.first_worker()
        } else if let Some(id) = again {
            state.mails[id.as_usize()] = Arc::new(Mail::default());
            id
        } else {
            state.mails.push(Arc::new(Mail::default()));
            state.group.add_worker()
        };
        (id, Arc::clone(&state.mails[id.as_usize()]))
    }

    pub(super) fn set_log_handle(&self, handle: LogHandle) {
        // The group has one log as long as it is open.
        let _ = self.log.set(handle);
    }

    /// The log's memory.
    ///
    /// # Panics
    /// If the group never had a link.
    pub(super) fn log(&self) -> &LogHandle {
        self.log.get().expect("a group with links has a log")
    }

    /// One turn of a worker: hands in what happened, takes out what is to do. Time means nothing
    /// to a group that never had a link: the clock is not read for it.
    pub(super) fn turn<R>(
        &self,
        me: WorkerId,
        io: &mut H::Io,
        out: &mut Outbox<FileOf<H>>,
        body: impl FnOnce(&mut State<FileOf<H>>) -> R,
    ) -> R {
        let now = self.log.get().map(|_| io.now()).unwrap_or_default();
        let mut state = self.lock();
        let before = head(&state.group);
        state.group.enter(me, now);
        let result = body(&mut state);
        state.group.tick();
        while let Some(map) = state.group.next_commit() {
            let commit = state.build_commit(map);
            out.commits.extend(commit);
        }
        while let Some(job) = state.group.next_queue_job() {
            out.queue_jobs.push(job);
        }
        state.group.take_actions(me, &mut out.actions);
        for (index, mail) in state.mails.iter().enumerate() {
            if index != me.as_usize() && state.group.has_actions_at(index) {
                out.wakes.push(Arc::clone(mail));
            }
        }
        out.deadline = state.group.deadline();
        out.appended |= head(&state.group) != before;
        self.store_gate(&state.group);
        drop(state);
        for mail in out.wakes.drain(..) {
            mail.notify(io);
        }
        result
    }

    /// A small change by a worker between its turns: whoever has something to do by it is told.
    pub(super) fn nudge<R>(&self, body: impl FnOnce(&mut State<FileOf<H>>) -> R) -> R {
        let mut state = self.lock();
        let result = body(&mut state);
        let group = &state.group;
        let mails = state.mails.iter().enumerate();
        let waiting = mails.filter(|(index, _)| group.has_actions_at(*index));
        let waiting: Vec<_> = waiting.map(|(_, mail)| Arc::clone(mail)).collect();
        drop(state);
        waiting.iter().for_each(|mail| mail.send());
        result
    }

    /// A change from outside the workers: made at once; some worker does what follows.
    pub(super) fn command<R>(&self, body: impl FnOnce(&mut State<FileOf<H>>) -> R) -> R {
        let mut state = self.lock();
        let alive = state.mails.iter().position(|mail| mail.is_alive());
        state.group.enter_as(alive.unwrap_or(0));
        let result = body(&mut state);
        self.store_gate(&state.group);
        let mails = state.mails.clone();
        drop(state);
        mails.iter().for_each(|mail| mail.send());
        result
    }

    /// Something was published: wakes the links that wait for it.
    pub(super) fn wake_links(&self, io: &mut H::Io, out: &mut Outbox<FileOf<H>>) {
        if self.idle_links.take() {
            let state = self.lock();
            let mails = state.group.link_workers();
            let mails = mails.map(|worker| Arc::clone(&state.mails[worker.as_usize()]));
            out.wakes.extend(mails);
            drop(state);
            for mail in out.wakes.drain(..) {
                mail.notify(io);
            }
        }
    }

    /// A link found nothing to send and will wait. It must look once more after this.
    pub(super) fn link_waits(&self, link: LinkIndex) {
        self.idle_links.wait(link.as_usize());
    }

    /// Changes the superblock's facts, durably.
    ///
    /// # Errors
    /// It could not be written; nothing changed.
    pub(super) fn record(&self, change: impl FnOnce(&mut Group)) -> Result<(), OpenError> {
        let mut admin = self.admin();
        let mut record = admin.record.clone();
        change(&mut record);
        if record != admin.record {
            admin.superblock.save(&record)?;
            admin.record = record;
        }
        Ok(())
    }

    /// The group's data history.
    #[must_use]
    pub fn history(&self) -> History {
        self.lock().group.history().clone()
    }

    /// The last name given; `None` if the group never had a link, and names none.
    #[must_use]
    pub fn last_name(&self) -> Option<Place> {
        self.lock().group.log().map(WriteLog::head)
    }

    /// Whether requests are served.
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.lock().group.gate()
    }

    /// True if a difference of this extent at a link's target would be found, as far as this memory
    /// knows; see [`SourceGroup::covers`].
    #[must_use]
    pub fn covers(&self, link: &LinkName, volume: VolumeIndex, extent: Extent) -> bool {
        let place = {
            let admin = self.admin();
            let mut links = admin.record.links.iter();
            links
                .find(|other| other.name == *link)
                .map(|link| link.place)
        };
        let covers = |place: u8| {
            let link = LinkIndex::new(usize::from(place));
            self.lock().group.covers(link, volume, extent)
        };
        place.is_some_and(covers)
    }

    /// What happened since the last call, for the event log.
    #[must_use]
    pub fn take_events(&self) -> Vec<GroupEvent> {
        let mut state = self.lock();
        std::iter::from_fn(|| state.group.take_event()).collect()
    }

    /// What a status shows.
    #[must_use]
    pub fn status(&self) -> GroupStatus {
        let names: Vec<_> = {
            let admin = self.admin();
            let links = admin.record.links.iter();
            links
                .map(|link| (usize::from(link.place), link.name.clone(), link.wanted))
                .collect()
        };
        let state = self.lock();
        let statuses = state.group.link_statuses();
        let links = statuses.into_iter().filter_map(|(index, status)| {
            let place = |(place, _, _): &&(usize, LinkName, bool)| *place == index.as_usize();
            names
                .iter()
                .find(place)
                .map(|(_, name, wanted)| (name.clone(), *wanted, status))
        });
        GroupStatus {
            gate: state.group.gate(),
            generation: state.group.history().current(),
            links: links.collect(),
            open_regions: state.group.intent().open_count(),
            requests: state.group.requests_in_flight(),
            throttle: state.group.throttle_status(),
            queue: state.group.queue_status(),
        }
    }

    /// The operator says that the backing works again.
    pub fn thaw(&self) {
        self.command(|state| state.group.thaw());
    }

    /// The volume's file.
    pub(super) fn volume_file(&self, volume: VolumeIndex) -> VolumeFile<FileOf<H>> {
        self.lock().volumes[volume.as_usize()].clone()
    }
}

fn head(group: &Core) -> Seq {
    group.log().map_or(Seq::ZERO, |log| log.head().1)
}

/// What a status shows of a group.
#[derive(Debug, Clone)]
pub struct GroupStatus {
    /// Whether requests are served.
    pub gate: Gate,
    /// The current generation.
    pub generation: Generation,
    /// Its links: name, whether it is to be connected, state.
    pub links: Vec<(LinkName, bool, LinkStatus)>,
    /// Regions that would be compared after a crash of the host.
    pub open_regions: usize,
    /// Requests under way.
    pub requests: usize,
    /// How writers are slowed.
    pub throttle: ThrottleStatus,
    /// The write log in memory and on disk.
    pub queue: QueueStatus,
}
