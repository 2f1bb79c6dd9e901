//! Links of source groups: making them, driving them, ending them.
//!
//! Owns each link's thread with its control. Commands enter; what a link is lives in its group's
//! superblock. Never decides what is sent.

use super::state::{Engine, Group};
use super::superseded::{Own, Teller};
use super::threads::WorkerThread;
use super::{Inner, errors};
use crate::engine::link::{
    LinkConnection, LinkControl, LinkEvent, LinkSettings, LinkWatch, LinkWorker, Refusal,
};
use crate::engine::source::{InitialMap, LinkSpec, SourceShared};
use crate::events::Events;
use blkrep_api::{
    ApiError, CommandReply, ConnectReply, ConnectRequest, DisconnectReply, DisconnectRequest,
    ErrorCode, EventId, MirrorAction, MirrorRequest, NewEvent, TransmitAction, TransmitRequest,
};
use blkrep_core::source::{MirrorPhase, Transmit};
use blkrep_io::real::RealHost;
use blkrep_types::{GroupName, History, LinkName, MirrorKind};
use blkrep_wire::RefuseCode;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Operations of a link's ring: a send, a receive, and the reads of a mirror.
const RING_ENTRIES: u32 = 256;
/// How long `connect` waits to see whether the target says no.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
const ANSWER_POLL: Duration = Duration::from_millis(20);
/// The link of a promoted group that tracks what its former source lacks.
pub(super) const FORMER_SOURCE: &str = "former-source";

/// A link's thread.
#[derive(Debug)]
pub(super) struct LinkDriver {
    pub(super) control: LinkControl,
    thread: WorkerThread,
}

impl LinkDriver {
    pub(super) fn end(self) {
        self.control.stop();
        self.thread.join();
    }

    pub(super) fn alive(&self) -> bool {
        self.thread.alive()
    }
}

impl Group {
    pub(super) fn end_links(&mut self) {
        for (_, driver) in std::mem::take(&mut self.links) {
            driver.end();
        }
    }
}

/// Puts a link's events into the event log.
struct Watch {
    events: Events,
    teller: Arc<Teller>,
    engine: Weak<SourceShared<RealHost>>,
    group: GroupName,
    link: LinkName,
}

impl Watch {
    fn foreign(&self, history: &History) {
        if let Some(engine) = self.engine.upgrade() {
            let (own, link) = (Own::of(&engine), Some(&self.link));
            self.teller
                .tell(&self.group, link, &own, history, "the target");
        }
    }
}

impl LinkWatch for Watch {
    fn event(&self, event: &LinkEvent) {
        let (id, text) = match event {
            LinkEvent::Up { peer, .. } => (EventId::LinkUp, format!("connected to node {peer}")),
            LinkEvent::Down { reason } => (EventId::LinkDown, reason.clone()),
            LinkEvent::Refused(refusal) => (EventId::LinkRefused, refusal.text.clone()),
            LinkEvent::Foreign { history } => return self.foreign(history),
            LinkEvent::Stale { newer } => (
                EventId::LinkRefused,
                format!("the target has the newer generation {newer}"),
            ),
        };
        self.events
            .publish(NewEvent::new(id, text).group(&self.group).link(&self.link));
    }
}

fn unreachable(subject: &str, to: &str, why: impl std::fmt::Display) -> ApiError {
    ApiError::new(
        ErrorCode::PeerUnreachable,
        subject,
        format!("target address {to}: {why}"),
        "give address and port of the target's blkrepd, such as 127.0.0.1:7420",
    )
}

fn address(subject: &str, to: &str) -> Result<SocketAddr, ApiError> {
    let mut found = to
        .to_socket_addrs()
        .map_err(|error| unreachable(subject, to, error))?;
    found
        .next()
        .ok_or_else(|| unreachable(subject, to, "no such host"))
}

impl Inner {
    /// The open engine of a source group.
    pub(super) fn source(&self, group: &GroupName) -> Result<Engine, ApiError> {
        let state = self.state();
        if let Some(engine) = state.engine(group) {
            return Ok(engine);
        }
        if state.replica_is_here(group) {
            return Err(ApiError::new(
                ErrorCode::WrongRole,
                format!("group {group}"),
                "this node is its target, not its source",
                format!("promote it first: blkctl promote {group}"),
            ));
        }
        let known = state
            .table
            .entries()
            .volumes
            .values()
            .any(|entry| entry.group == *group);
        if known {
            return Err(ApiError::new(
                ErrorCode::GroupBusy,
                format!("group {group}"),
                "its volumes are not served",
                "attach them first; blkctl status says more",
            ));
        }
        Err(errors::no_group(group))
    }

    /// Makes a link, or connects one again, then waits a moment for the answer. Other commands go on
    /// meanwhile.
    pub(super) fn connect(&self, request: &ConnectRequest) -> Result<ConnectReply, ApiError> {
        let turn = self.turn_of(&request.group)?;
        let (name, new) = self.begin_link(request)?;
        drop(turn);
        self.await_answer(request, &name, new)
    }

    /// The link's name, and whether it is new.
    fn begin_link(&self, request: &ConnectRequest) -> Result<(LinkName, bool), ApiError> {
        let subject = format!("group {}", request.group);
        let engine = self.source(&request.group)?;
        if request.trust_map {
            return Err(ApiError::new(
                ErrorCode::NotSupported,
                subject,
                "maps of a backing that nobody watched cannot be trusted yet",
                "connect without --trust-map: both ends are compared by digest, and only what differs travels",
            ));
        }
        let peer = address(&subject, &request.to)?;
        let known = engine.links();
        let same_peer = known.iter().find(|link| link.peer == peer.to_string());
        let named = request
            .link
            .as_ref()
            .map(|name| known.iter().find(|link| link.name == *name))
            .unwrap_or(same_peer);
        let former = known
            .iter()
            .find(|link| link.name.as_str() == FORMER_SOURCE);
        let former = former.filter(|link| request.link.is_none() && link.peer.is_empty());
        let again = named.or(former).map(|link| link.name.clone());
        let name = match (&again, &request.link) {
            (Some(name), _) | (None, Some(name)) => name.clone(),
            (None, None) => free_name(&known.iter().map(|link| &link.name).collect::<Vec<_>>()),
        };
        match &again {
            Some(_) => self.connect_again(&engine, request, &name, peer)?,
            None => self.add_link(&engine, request, &name, peer)?,
        }
        self.start_link(&request.group, &engine, &name)?;
        Ok((name, again.is_none()))
    }

    fn add_link(
        &self,
        engine: &Engine,
        request: &ConnectRequest,
        name: &LinkName,
        peer: SocketAddr,
    ) -> Result<(), ApiError> {
        let subject = format!("group {}", request.group);
        let limit = usize::from(self.settings.group(&request.group).links_max);
        if engine.links().len() >= limit {
            return Err(ApiError::new(
                ErrorCode::GroupFull,
                subject,
                format!("it has {limit} links"),
                "disconnect one with --forget, or raise group.links-max",
            ));
        }
        let takes_over = request.mirror == Some(MirrorKind::Checksum) && request.confirmed;
        let spec = LinkSpec {
            name: name.clone(),
            peer: peer.to_string(),
            paths: self.target_paths(engine, request)?,
            mode: request.mode,
            // Said to be equal is compared all the same: that costs reading and sends no data.
            first_mirror: if request.no_mirror {
                Some(MirrorKind::Checksum)
            } else {
                request.mirror
            },
            overwrite: request.overwrite || takes_over,
            wanted: true,
            initial: InitialMap::Everything,
        };
        engine
            .add_link(&spec)
            .map_err(|error| errors::of_engine(&subject, &error))?;
        let text = format!("to {peer}");
        self.tell(
            NewEvent::new(EventId::LinkCreated, text)
                .group(&request.group)
                .link(name),
        );
        Ok(())
    }

    /// Where the target is to keep each volume, in the group's order.
    fn target_paths(
        &self,
        engine: &Engine,
        request: &ConnectRequest,
    ) -> Result<Vec<String>, ApiError> {
        let volumes = engine.volumes();
        let unknown = request
            .map
            .keys()
            .find(|name| !volumes.iter().any(|v| v.name == **name));
        if let Some(name) = unknown {
            return Err(errors::no_volume(name));
        }
        let path = |volume: &blkrep_log::superblock::GroupVolume| {
            request
                .map
                .get(&volume.name)
                .map(|path| path.display().to_string())
                .unwrap_or_default()
        };
        Ok(volumes.iter().map(path).collect())
    }

    fn connect_again(
        &self,
        engine: &Engine,
        request: &ConnectRequest,
        name: &LinkName,
        peer: SocketAddr,
    ) -> Result<(), ApiError> {
        let subject = format!("group {} link {name}", request.group);
        let wrap = |error| errors::of_engine(&subject, &error);
        let running = self.link_control(&request.group, name);
        let up = running.is_some_and(|control| control.snapshot().connection == LinkConnection::Up);
        if up {
            return Err(ApiError::new(
                ErrorCode::LinkExists,
                subject,
                "it is connected already",
                "to mirror again: blkctl mirror start; to end it: blkctl disconnect",
            ));
        }
        let paths = if request.map.is_empty() {
            None
        } else {
            Some(self.target_paths(engine, request)?)
        };
        engine
            .retarget_link(name, peer.to_string(), paths)
            .map_err(wrap)?;
        engine.set_mode(name, request.mode).map_err(wrap)?;
        let takes_over = request.mirror == Some(MirrorKind::Checksum) && request.confirmed;
        if takes_over || request.overwrite {
            let kind = request.mirror.unwrap_or(MirrorKind::Full);
            engine.allow_overwrite(name, kind).map_err(wrap)?;
        } else if let Some(kind) = request.mirror {
            engine.start_mirror(name, kind).map_err(wrap)?;
        }
        engine.set_wanted(name, true).map_err(wrap)
    }

    /// Waits a moment, so that a refusal is the answer of the command and not found out later. A new
    /// link that is refused is not kept, whatever the reason: somebody reads the answer.
    fn await_answer(
        &self,
        request: &ConnectRequest,
        name: &LinkName,
        new: bool,
    ) -> Result<ConnectReply, ApiError> {
        let reply = |note: String| ConnectReply {
            link: name.clone(),
            notes: vec![note],
        };
        let Some(control) = self.link_control(&request.group, name) else {
            return Ok(reply(
                "the link will connect when its group is served".to_owned(),
            ));
        };
        let end = Instant::now() + ANSWER_WAIT;
        loop {
            let snapshot = control.snapshot();
            let passes = |refusal: &Refusal| refusal.code == Some(RefuseCode::Unavailable);
            let denied = snapshot.denied.filter(|denied| new && !passes(denied));
            if let Some(refusal) = snapshot.refusal.or(denied) {
                if new {
                    self.drop_link(&request.group, name);
                }
                return Err(refused(&request.group, &refusal));
            }
            if snapshot.connection == LinkConnection::Up {
                let peer = snapshot
                    .peer
                    .map(|peer| peer.node.to_string())
                    .unwrap_or_default();
                return Ok(reply(format!(
                    "connected to node {peer}; blkctl status shows progress"
                )));
            }
            if Instant::now() >= end || snapshot.connection == LinkConnection::Stopped {
                let why = snapshot
                    .last_error
                    .unwrap_or_else(|| "no answer yet".to_owned());
                return Ok(reply(format!(
                    "not connected yet ({why}); it is tried again by itself, and changes are tracked"
                )));
            }
            thread::sleep(ANSWER_POLL);
        }
    }

    fn drop_link(&self, group: &GroupName, name: &LinkName) {
        let _turn = self.command();
        self.stop_link(group, name);
        // Without an engine another command has ended the group meanwhile; its record has the link.
        let Ok(engine) = self.source(group) else {
            return;
        };
        if let Err(error) = engine.forget_link(name) {
            tracing::error!(%group, link = %name, %error, "take back a refused link");
        }
    }

    pub(super) fn link_control(&self, group: &GroupName, link: &LinkName) -> Option<LinkControl> {
        let state = self.state();
        Some(state.groups.get(group)?.links.get(link)?.control.clone())
    }

    /// Starts the threads of a group's links that are to be connected.
    pub(super) fn start_links(&self, group: &GroupName) {
        let Some(engine) = self.state().engine(group) else {
            return;
        };
        for link in engine
            .links()
            .into_iter()
            .filter(|link| link.wanted && !link.peer.is_empty())
        {
            if let Err(error) = self.start_link(group, &engine, &link.name) {
                tracing::error!(%group, link = %link.name, %error, "start the link");
            }
        }
    }

    fn start_link(
        &self,
        group: &GroupName,
        engine: &Engine,
        name: &LinkName,
    ) -> Result<(), ApiError> {
        let settings = self.link_settings(group, engine, name)?;
        if let Some(control) = self.link_control(group, name) {
            control.set(settings);
            control.connect();
            return Ok(());
        }
        let subject = format!("group {group} link {name}");
        let port = engine
            .link_port(name)
            .map_err(|error| errors::of_engine(&subject, &error))?;
        let control = LinkControl::new(settings);
        let watch = Watch {
            events: self.events.clone(),
            teller: Arc::clone(&self.teller),
            engine: Arc::downgrade(engine),
            group: group.clone(),
            link: name.clone(),
        };
        let inner = control.clone();
        let thread =
            WorkerThread::start(&self.host, &format!("l-{group}"), RING_ENTRIES, move |_| {
                Ok(LinkWorker::new(port, inner, Arc::new(watch)))
            })
            .map_err(|error| {
                let action = "see blkctl doctor for limits of memory and io_uring";
                ApiError::new(ErrorCode::NoRights, &subject, error.to_string(), action)
            })?;
        let driver = LinkDriver { control, thread };
        let mut state = self.state();
        state
            .groups
            .entry(group.clone())
            .or_default()
            .links
            .insert(name.clone(), driver);
        Ok(())
    }

    fn link_settings(
        &self,
        group: &GroupName,
        engine: &Engine,
        name: &LinkName,
    ) -> Result<LinkSettings, ApiError> {
        let subject = format!("group {group} link {name}");
        let links = engine.links();
        let link = links.iter().find(|link| link.name == *name);
        let to = link.map(|link| link.peer.clone()).unwrap_or_default();
        let settings = self.settings.group(group);
        Ok(LinkSettings {
            node: self.name.clone(),
            peer: address(&subject, &to)?,
            heartbeat: settings.heartbeat_interval,
            timeout: settings.heartbeat_timeout,
            reconnect: settings.reconnect,
            reconnect_interval: settings.reconnect_interval,
        })
    }

    /// Settings were changed: links use them at once.
    pub(super) fn refresh_links(&self, group: &GroupName) {
        let Some(engine) = self.state().engine(group) else {
            return;
        };
        for link in engine.links() {
            let control = self.link_control(group, &link.name);
            if let (Some(control), Ok(settings)) =
                (control, self.link_settings(group, &engine, &link.name))
            {
                control.set(settings);
            }
        }
    }

    fn stop_link(&self, group: &GroupName, name: &LinkName) {
        let driver = {
            let mut state = self.state();
            state
                .groups
                .get_mut(group)
                .and_then(|group| group.links.remove(name))
        };
        if let Some(driver) = driver {
            driver.end();
        }
    }

    /// Ends the threads of all links of a group.
    pub(super) fn stop_links(&self, group: &GroupName) {
        let drivers = {
            let mut state = self.state();
            state
                .groups
                .get_mut(group)
                .map(|group| std::mem::take(&mut group.links))
        };
        for (_, driver) in drivers.into_iter().flatten() {
            driver.end();
        }
    }

    /// The links a command means: the named one, else all; `one` refuses to guess among several.
    fn meant(
        &self,
        group: &GroupName,
        engine: &Engine,
        name: Option<&LinkName>,
        one: bool,
    ) -> Result<Vec<LinkName>, ApiError> {
        let links: Vec<LinkName> = engine
            .links()
            .into_iter()
            .map(|link| link.name)
            .filter(|link| name.is_none_or(|name| name == link))
            .collect();
        let subject = format!("group {group}");
        if links.is_empty() {
            let happened = name.map_or_else(
                || "it has no link".to_owned(),
                |name| format!("it has no link named {name}"),
            );
            let action = "make one with: blkctl connect";
            return Err(ApiError::new(
                ErrorCode::NoSuchLink,
                subject,
                happened,
                action,
            ));
        }
        if one && links.len() > 1 {
            let names: Vec<_> = links.iter().map(ToString::to_string).collect();
            return Err(ApiError::new(
                ErrorCode::LinkAmbiguous,
                subject,
                format!("it has several links: {}", names.join(", ")),
                "name one with --link",
            ));
        }
        Ok(links)
    }

    pub(super) fn disconnect(
        &self,
        request: &DisconnectRequest,
    ) -> Result<DisconnectReply, ApiError> {
        let group = &request.group;
        let engine = self.source(group)?;
        let links = self.meant(group, &engine, request.link.as_ref(), true)?;
        for link in &links {
            let subject = format!("group {group} link {link}");
            let wrap = |error| errors::of_engine(&subject, &error);
            engine.set_wanted(link, false).map_err(wrap)?;
            self.stop_link(group, link);
            if request.forget {
                engine.forget_link(link).map_err(wrap)?;
            }
            let text = if request.forget {
                "forgotten"
            } else {
                "ended; changes are tracked"
            };
            self.tell(
                NewEvent::new(EventId::LinkRemoved, text)
                    .group(group)
                    .link(link),
            );
        }
        Ok(DisconnectReply {
            links,
            tracking: !request.forget,
        })
    }

    pub(super) fn mirror(&self, request: &MirrorRequest) -> Result<CommandReply, ApiError> {
        let group = &request.group;
        let engine = self.source(group)?;
        let mut notes = Vec::new();
        for link in self.meant(group, &engine, request.link.as_ref(), false)? {
            let subject = format!("group {group} link {link}");
            let wrap = |error| errors::of_engine(&subject, &error);
            let phase = phase_of(&engine, &link);
            let idle = matches!(phase, None | Some(MirrorPhase::Idle));
            if idle && request.action != MirrorAction::Start {
                return Err(ApiError::new(
                    ErrorCode::MirrorNotRunning,
                    subject,
                    "no mirror is running",
                    "start one with: blkctl mirror start",
                ));
            }
            let (id, note) = match request.action {
                MirrorAction::Start => {
                    let kind = request.kind.unwrap_or(MirrorKind::Difference);
                    engine.start_mirror(&link, kind).map_err(wrap)?;
                    (
                        EventId::MirrorStarted,
                        format!("{kind} mirror of link {link}"),
                    )
                }
                MirrorAction::Stop => {
                    engine.stop_mirror(&link).map_err(wrap)?;
                    (
                        EventId::MirrorStopped,
                        format!("mirror of link {link} is ended; what differs stays tracked"),
                    )
                }
                MirrorAction::Pause => {
                    engine.pause_mirror(&link).map_err(wrap)?;
                    (
                        EventId::MirrorPaused,
                        format!("mirror of link {link} is held"),
                    )
                }
                MirrorAction::Resume => {
                    engine.resume_mirror(&link).map_err(wrap)?;
                    (
                        EventId::MirrorStarted,
                        format!("mirror of link {link} goes on"),
                    )
                }
            };
            if request.action != MirrorAction::Start {
                self.tell(NewEvent::new(id, note.clone()).group(group).link(&link));
            }
            notes.push(note);
        }
        Ok(CommandReply { notes })
    }

    pub(super) fn transmit(&self, request: &TransmitRequest) -> Result<CommandReply, ApiError> {
        let group = &request.group;
        let engine = self.source(group)?;
        let (transmit, id, what) = match request.action {
            TransmitAction::Start | TransmitAction::Resume => (
                Transmit::Started,
                EventId::TransmitStarted,
                "writes are sent",
            ),
            TransmitAction::Pause => (
                Transmit::Paused,
                EventId::TransmitPaused,
                "writes are held in the log",
            ),
            TransmitAction::Stop => (
                Transmit::Stopped,
                EventId::TransmitStopped,
                "changes are tracked as extents",
            ),
        };
        let mut notes = Vec::new();
        for link in self.meant(group, &engine, request.link.as_ref(), false)? {
            engine
                .set_transmit(&link, transmit)
                .map_err(|error| errors::of_engine(format!("group {group} link {link}"), &error))?;
            self.tell(NewEvent::new(id, what).group(group).link(&link));
            notes.push(format!("link {link}: {what}"));
        }
        Ok(CommandReply { notes })
    }
}

fn phase_of(engine: &Engine, link: &LinkName) -> Option<MirrorPhase> {
    let status = engine.status();
    let found = status.links.into_iter().find(|(name, _, _)| name == link);
    found.map(|(_, _, status)| status.mirror.phase)
}

/// A refusal in the words of the control API.
fn refused(group: &GroupName, refusal: &Refusal) -> ApiError {
    let (code, otherwise) = match refusal.code {
        Some(RefuseCode::Version) => (
            ErrorCode::PeerIncompatible,
            "upgrade the older of the two nodes",
        ),
        Some(RefuseCode::Path) => (
            ErrorCode::TargetPathDenied,
            "map the volume to a path that the target allows: --map VOLUME=PATH",
        ),
        Some(RefuseCode::Occupied) => (
            ErrorCode::TargetHoldsData,
            "if it may be overwritten, connect with --overwrite",
        ),
        Some(RefuseCode::TooSmall) => (ErrorCode::TargetTooSmall, "use a larger target"),
        Some(RefuseCode::NewerGeneration) => (
            ErrorCode::RestoreRequired,
            "use the data there; blkctl status says what to do with this node's",
        ),
        Some(RefuseCode::Unrelated) | None => (
            ErrorCode::GenerationUnknown,
            "to overwrite the target, connect with --mirror checksum --yes",
        ),
        Some(RefuseCode::Busy) => (
            ErrorCode::TargetPathTaken,
            "map the volume to a path of its own: --map VOLUME=PATH; or see blkctl status there",
        ),
        Some(
            RefuseCode::Group
            | RefuseCode::Volumes
            | RefuseCode::Malformed
            | RefuseCode::Failed
            | RefuseCode::Unavailable,
        ) => (
            ErrorCode::PeerRefused,
            "blkctl status and blkctl events on the target say more",
        ),
    };
    let text = &refusal.text;
    let (happened, action) = text.split_once("; ").unwrap_or((text, otherwise));
    ApiError::new(code, format!("group {group}"), happened, action)
}

/// `link1`, `link2`, … whichever is free.
fn free_name(taken: &[&LinkName]) -> LinkName {
    (1..=taken.len() + 1)
        .map(|number| LinkName::new(&format!("link{number}")).expect("letters and digits"))
        .find(|name| !taken.contains(&name))
        .expect("one more name than there are links")
}
