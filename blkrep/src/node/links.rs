//! Links of source groups while they are driven.
//!
//! Owns each link's thread with its control, and which links a command means. What a link is lives
//! in its group's superblock. Never decides what is sent.

use super::state::{Engine, Group};
use super::superseded::{Own, Teller};
use super::threads::WorkerThread;
use super::{Inner, errors};
use crate::engine::link::{LinePort, LinkControl, LinkEvent, LinkSettings, LinkWatch, LinkWorker};
use crate::engine::source::SourceShared;
use crate::events::Events;
use blkrep_api::{ApiError, ErrorCode, EventId, NewEvent};
use blkrep_io::real::RealHost;
use blkrep_types::{GroupName, History, LinkName};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Weak};

/// Operations of a link's ring: a send, a receive, and the reads of a mirror.
const RING_ENTRIES: u32 = 256;
/// The link of a promoted group that tracks what its former source lacks.
pub(super) const FORMER_SOURCE: &str = "former-source";

/// Where a link leads that sends nothing.
pub(super) const NULL: &str = "null";

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
            LinkEvent::Simulated => {
                let text = "what it would send is measured; it protects nothing";
                (EventId::LinkSimulated, text.to_owned())
            }
            LinkEvent::ConnectionLost { index, reason } => (
                EventId::ConnectionLost,
                format!("connection {index}: {reason}"),
            ),
            LinkEvent::ConnectionRestored { index } => {
                (EventId::ConnectionRestored, format!("connection {index}"))
            }
            LinkEvent::CongestionRefused { reason } => {
                (EventId::CongestionControlRefused, reason.clone())
            }
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

pub(super) fn address(subject: &str, to: &str) -> Result<SocketAddr, ApiError> {
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

    pub(super) fn start_link(
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
        let links = engine.status().links;
        let status = links.into_iter().find(|(known, ..)| known == name);
        let held = status.is_some_and(|(.., status)| !self.schedule_link(group, name, &status));
        control.hold(held);
        let inner = control.clone();
        let thread =
            WorkerThread::start(&self.net, &format!("l-{group}"), RING_ENTRIES, move |_| {
                Ok(LinkWorker::new(LinePort(port), inner, Arc::new(watch)))
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
        let peer = match to == NULL {
            true => SocketAddr::from(([0, 0, 0, 0], 0)),
            false => address(&subject, &to)?,
        };
        Ok(LinkSettings {
            node: self.name.clone(),
            peer,
            pace: self.pace_of(group, peer.ip()),
            heartbeat: settings.heartbeat_interval,
            timeout: settings.heartbeat_timeout,
            connect_timeout: settings.connect_timeout,
            progress_timeout: settings.progress_timeout,
            reconnect: settings.reconnect,
            reconnect_interval: settings.reconnect_interval,
            compression: settings.compression,
            compression_level: settings.compression_level,
            connections: settings.connections,
            congestion: settings.congestion,
            simulated: to == NULL,
            simulated_rate: settings.simulated_rate,
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

    pub(super) fn stop_link(&self, group: &GroupName, name: &LinkName) {
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
    pub(super) fn meant(
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
}
