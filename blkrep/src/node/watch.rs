//! What nobody asked for and must be done all the same.
//!
//! Owns one thread: it takes engines' events to the event log, and tries again to serve volumes
//! that could not be. Never changes what an operator decided.

use super::Inner;
use super::claim::CLAIM_WAIT;
use super::state::Trouble;
use crate::engine::source::SourceShared;
use blkrep_api::{EventId, NewEvent};
use blkrep_core::queue::QueueChange;
use blkrep_core::source::{GroupEvent, QueueStatus};
use blkrep_io::real::RealHost;
use blkrep_types::{Errno, GroupName, VolumeIndex, VolumeName};
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How soon an event is in the log.
const TURN: Duration = Duration::from_millis(200);
/// How often a volume that could not be served is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How often schedules are looked at.
const SCHEDULE: Duration = Duration::from_secs(1);

/// The thread.
#[derive(Debug)]
pub(super) struct Watcher {
    stop: Sender<()>,
    handle: JoinHandle<()>,
}

impl Watcher {
    pub(super) fn start(inner: &Arc<Inner>) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let inner = Arc::downgrade(inner);
        let handle = thread::Builder::new()
            .name("watcher".to_owned())
            .spawn(move || {
                let started = Instant::now();
                let mut retried = Instant::now();
                let mut scheduled = Instant::now();
                while stopped.recv_timeout(TURN) == Err(RecvTimeoutError::Timeout) {
                    let Some(inner) = Weak::upgrade(&inner) else {
                        return;
                    };
                    inner.take_events();
                    inner.pace_links();
                    if scheduled.elapsed() >= SCHEDULE {
                        inner.schedule_links(None);
                        scheduled = Instant::now();
                    }
                    if retried.elapsed() >= RETRY {
                        inner.retry(|_| true);
                        inner.retry_queues();
                        retried = Instant::now();
                    } else if started.elapsed() < CLAIM_WAIT {
                        inner.retry(Trouble::may_pass_soon);
                    }
                }
            })?;
        Ok(Self { stop, handle })
    }

    pub(super) fn stop(self) {
        // It may have ended already.
        let _ = self.stop.send(());
        if self.handle.join().is_err() {
            tracing::error!("the watcher panicked");
        }
    }
}

impl Inner {
    /// Takes what engines have to tell.
    fn take_events(&self) {
        let engines: Vec<_> = {
            let state = self.state();
            let groups = state.groups.iter();
            groups
                .filter_map(|(name, group)| Some((name.clone(), group.engine.clone()?)))
                .collect()
        };
        for (name, engine) in engines {
            for event in engine.take_events() {
                self.group_event(&name, &engine, &event);
            }
            self.serve_from_target(&name, &engine);
            engine.tend_queue();
            if let Err(error) = engine.remember_fence() {
                tracing::debug!(group = %name, %error, "remember the newer generation");
            }
        }
    }

    fn group_event(&self, group: &GroupName, engine: &SourceShared<RealHost>, event: &GroupEvent) {
        let links = engine.links();
        let link_at = |link: &blkrep_core::source::LinkIndex| {
            let found = links
                .iter()
                .find(|known| usize::from(known.place) == link.as_usize());
            found.map(|link| link.name.clone())
        };
        let tell = |id: EventId, text: String| NewEvent::new(id, text).group(group);
        let of_link = |event: NewEvent, link: &blkrep_core::source::LinkIndex| match link_at(link) {
            Some(name) => event.link(&name),
            None => event,
        };
        let new = match event {
            GroupEvent::BackingError {
                volume,
                extent,
                errno,
            } => {
                if let Some(known) = self.state().groups.get_mut(group) {
                    known.failing = true;
                }
                let place = extent.map_or_else(
                    || "a flush".to_owned(),
                    |extent| format!("bytes {}+{}", extent.offset().get(), extent.len().get()),
                );
                let new = tell(EventId::BackingError, format!("{place}: {errno}"));
                match volume_name(engine, *volume) {
                    Some(name) => new.volume(&name),
                    None => new,
                }
            }
            GroupEvent::Frozen => tell(
                EventId::VolumeFrozen,
                "requests wait for an operator".to_owned(),
            ),
            GroupEvent::Thawed => tell(EventId::VolumeThawed, "requests go on".to_owned()),
            GroupEvent::Served { link } => of_link(
                tell(
                    EventId::ServedByTarget,
                    "its backing is lost; requests go to the target".to_owned(),
                ),
                link,
            ),
            GroupEvent::Fenced { newer } => tell(
                EventId::VolumeFenced,
                format!("generation {newer} is newer"),
            ),
            GroupEvent::LinkUp { link, start } => {
                let id = match start.mirror {
                    _ if start.set_back => EventId::TargetRestored,
                    None => EventId::LinkResumed,
                    Some(_) => EventId::LinkNotResumable,
                };
                of_link(
                    tell(id, format!("after {}: {}", start.after, start.reason)),
                    link,
                )
            }
            // Told by the link's driver, with the reason.
            GroupEvent::LinkDown { .. } | GroupEvent::Refused { .. } => return,
            GroupEvent::Behind { link } => of_link(
                tell(
                    EventId::LinkBehind,
                    "the log ran over; extents are tracked".to_owned(),
                ),
                link,
            ),
            GroupEvent::MirrorBegun { link, kind, bytes } => of_link(
                tell(
                    EventId::MirrorStarted,
                    format!("{kind}, {bytes} to look at"),
                ),
                link,
            ),
            GroupEvent::MirrorDone {
                link,
                sent,
                skipped,
            } => of_link(
                tell(
                    EventId::MirrorDone,
                    format!("{sent} sent, {skipped} equal or zero"),
                ),
                link,
            ),
            GroupEvent::NotConverging { link } => of_link(
                tell(
                    EventId::MirrorNotConverging,
                    "what is written becomes dirty faster than it is sent".to_owned(),
                ),
                link,
            ),
            GroupEvent::MirrorHeldBack {
                link,
                used,
                capacity,
            } => of_link(
                tell(
                    EventId::MirrorHeldBack,
                    format!("the target's journal holds {used} of {capacity}"),
                ),
                link,
            ),
            GroupEvent::MirrorGoesOn { link } => of_link(
                tell(
                    EventId::MirrorGoesOn,
                    "the target's journal has room".to_owned(),
                ),
                link,
            ),
            GroupEvent::MirrorError { link, errno } => of_link(
                tell(
                    EventId::MirrorFailed,
                    format!("read the backing: {errno}; tried again"),
                ),
                link,
            ),
            GroupEvent::Degraded { link } => of_link(
                tell(
                    EventId::LinkDegraded,
                    "writes complete without the target from now on".to_owned(),
                ),
                link,
            ),
            GroupEvent::Protected { link } => of_link(
                tell(
                    EventId::LinkProtected,
                    "the target has everything that completed".to_owned(),
                ),
                link,
            ),
            GroupEvent::Slowed { active: true } => tell(
                EventId::WritesSlowed,
                "the log fills up faster than its links empty it".to_owned(),
            ),
            GroupEvent::Slowed { active: false } => {
                tell(EventId::WritesFree, "the log has room again".to_owned())
            }
            GroupEvent::Queue { .. } | GroupEvent::QueueFailed { .. } => {
                let (id, text) = queue_event(event, &engine.status().queue);
                tell(id, text)
            }
            GroupEvent::QueueUnreadable { link, .. } => {
                let (id, text) = queue_event(event, &engine.status().queue);
                of_link(tell(id, text), link)
            }
            GroupEvent::Note { link, report } => {
                let (id, text) = super::notes::event_of(report);
                of_link(tell(id, text), link)
            }
            GroupEvent::MapError { errno } => tell(
                EventId::StateFull,
                format!("write a map: {errno}; writes to new regions wait, it is tried again"),
            ),
        };
        self.tell(new);
    }

    /// Tries to serve and to receive what could not be, for troubles that are `worth` it.
    fn retry(&self, worth: impl Fn(&Trouble) -> bool) {
        let (troubled, unopened): (Vec<GroupName>, Vec<GroupName>) = {
            let state = self.state();
            let groups = state.groups.iter();
            let troubled = groups.filter(|(_, group)| group.troubles.values().any(&worth));
            let unopened = state.unopened.iter().filter(|(_, why)| worth(why));
            (
                troubled.map(|(name, _)| name.clone()).collect(),
                unopened.map(|(name, _)| name.clone()).collect(),
            )
        };
        for group in troubled {
            let _turn = self.command();
            let mut state = self.state();
            if state.ending.contains(&group) || state.stays_closed(&group) {
                continue;
            }
            drop(state);
            self.bring_up(&group, Duration::ZERO);
        }
        for group in unopened {
            let _turn = self.command();
            // A command may have forgotten it meanwhile.
            if self.state().unopened.contains_key(&group) {
                self.open_replica(&group, Instant::now());
                self.decide_promotion(&group);
            }
        }
    }

    /// A replica that could not be opened at the start may have been promoted before it.
    fn decide_promotion(&self, group: &GroupName) {
        let (unopened, is_target) = {
            let state = self.state();
            let is_target = state.replicas.contains_key(group);
            (state.unopened.contains_key(group), is_target)
        };
        if unopened || self.volumes_of(group).is_empty() {
            return;
        }
        if is_target {
            self.settle_target(group);
        } else {
            self.bring_up(group, Duration::ZERO);
        }
    }

    /// True while every data-plane thread runs.
    pub(super) fn healthy(&self) -> bool {
        let state = self.state();
        let mut groups = state.groups.values();
        let volumes = &state.table.entries().volumes;
        // Threads of a device that could not be ended may end whenever its disk lets them.
        let wanted = |name| volumes.get(name).is_some_and(|entry| entry.served);
        let alive = groups.all(|group| {
            let served = group.served.iter().filter(|(name, _)| wanted(*name));
            let mut queues = served.flat_map(|(_, served)| &served.threads);
            let links = group.links.values().all(super::links::LinkDriver::alive);
            links && queues.all(super::threads::WorkerThread::alive)
        });
        alive && state.replicas.values().all(super::replicas::Replica::alive)
    }

    /// What applies live is put in force.
    pub(super) fn settings_changed(&self, group: Option<&GroupName>) {
        let groups: Vec<GroupName> = self.state().groups.keys().cloned().collect();
        for name in groups
            .iter()
            .filter(|name| group.is_none_or(|group| group == *name))
        {
            let engine = self.state().engine(name);
            if let Some(engine) = engine {
                let settings = self.settings.group(name);
                engine.set_policy(super::claim::core_policy(settings.on_backing_error));
                engine.set_throttle(settings.throttle);
                engine.set_stream_limits(settings.stream);
                if let Err(error) = engine.set_queue(settings.queue.as_ref()) {
                    let text = error.to_string();
                    self.tell(NewEvent::new(EventId::QueueFailed, text).group(name));
                }
            }
            self.refresh_links(name);
        }
        self.refresh_replicas(group);
        self.pace_links();
        self.schedule_links(group);
    }
}

impl Inner {
    /// Tries again to give groups their disk queues.
    fn retry_queues(&self) {
        let engines: Vec<_> = {
            let state = self.state();
            let groups = state.groups.iter();
            let open = groups.filter_map(|(name, group)| Some((name, group.engine.as_ref()?)));
            open.map(|(name, engine)| (name.clone(), Arc::clone(engine)))
                .collect()
        };
        for (name, engine) in engines {
            let queue = self.settings.group(&name).queue;
            if queue.is_some() && !engine.has_queue() {
                let _turn = self.command();
                match engine.set_queue(queue.as_ref()) {
                    Ok(()) => tracing::info!(group = %name, "the disk queue is there again"),
                    // Told when it failed first.
                    Err(error) => tracing::debug!(group = %name, %error, "make the disk queue"),
                }
            }
        }
    }
}

/// What an event of the disk queue says.
fn queue_event(event: &GroupEvent, queue: &QueueStatus) -> (EventId, String) {
    let most = queue.disk_max.unwrap_or_default();
    let fill = format!("{} of {most} on disk", queue.disk);
    match event {
        GroupEvent::Queue { change } => match change {
            QueueChange::Spilling => (EventId::QueueSpilling, fill),
            QueueChange::Drained => (EventId::QueueDrained, "memory holds what waits".to_owned()),
            QueueChange::Alert => (EventId::QueueAlert, fill),
            QueueChange::AlertOver => (EventId::QueueAlertOver, fill),
            QueueChange::Full => (EventId::QueueFull, fill),
        },
        GroupEvent::QueueUnreadable { errno, .. } => (
            EventId::QueueUnreadable,
            format!("read it back: {errno}; what is queued is tracked as extents"),
        ),
        GroupEvent::QueueFailed { errno } if *errno == Errno::ENOSPC => (
            EventId::QueueFull,
            "its filesystem has not enough free space".to_owned(),
        ),
        GroupEvent::QueueFailed { errno } => {
            (EventId::QueueFailed, format!("write to it: {errno}"))
        }
        other => unreachable!("{other:?} is not of the disk queue"),
    }
}

/// The name of a volume by its place.
pub(super) fn volume_name(
    engine: &SourceShared<RealHost>,
    index: VolumeIndex,
) -> Option<VolumeName> {
    let volumes = engine.volumes();
    volumes
        .into_iter()
        .find(|volume| volume.index == index)
        .map(|volume| volume.name)
}
