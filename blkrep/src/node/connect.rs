//! `connect` and `disconnect`: a link is made, connected again, or ended.
//!
//! Owns what `connect` answers: it waits a moment for the target's word, so that a refusal is the
//! answer of the command. Never drives a link.

use super::link_options::{change_one, changed, check_timeout};
use super::links::{FORMER_SOURCE, NULL, address};
use super::state::Engine;
use super::{Inner, errors};
use crate::engine::link::{LinkConnection, Refusal};
use crate::engine::source::{InitialMap, LinkSpec};
use blkrep_api::{
    ApiError, ConnectReply, ConnectRequest, DisconnectReply, DisconnectRequest, ErrorCode, EventId,
    NewEvent,
};
use blkrep_types::{GroupName, LinkName, LossPolicy, MirrorKind, Mode};
use blkrep_wire::RefuseCode;
use std::thread;
use std::time::{Duration, Instant};

/// How long `connect` waits to see whether the target says no.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
const ANSWER_POLL: Duration = Duration::from_millis(20);

impl Inner {
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
        check_timeout(&subject, request.loss_timeout_ms)?;
        if request.trust_map {
            return Err(ApiError::new(
                ErrorCode::NotSupported,
                subject,
                "maps of a backing that nobody watched cannot be trusted yet",
                "connect without --trust-map: both ends are compared by digest, and only what differs travels",
            ));
        }
        let simulated = request.to == NULL;
        let peer = match simulated {
            true => simulation(&subject, request)?,
            false => {
                let peer = address(&subject, &request.to)?;
                self.trust.judge_target(peer)?;
                peer.to_string()
            }
        };
        let known = engine.links();
        let same_peer = known.iter().find(|link| link.peer == peer);
        let named = request
            .link
            .as_ref()
            .map(|name| known.iter().find(|link| link.name == *name))
            .unwrap_or(same_peer);
        let former = known
            .iter()
            .find(|link| link.name.as_str() == FORMER_SOURCE);
        let wanted = request.link.is_none() && !simulated;
        let former = former.filter(|link| wanted && link.peer.is_empty());
        let again = named.or(former);
        // A simulated link takes everything for sent: what it tracks is worth nothing to another.
        if let Some(link) = again.filter(|link| simulated != (link.peer == NULL)) {
            return Err(ApiError::new(
                ErrorCode::LinkExists,
                format!("{subject} link {}", link.name),
                "a simulated link cannot become a real one, nor a real one simulated",
                "give the new link another name: --as NAME",
            ));
        }
        let again = again.map(|link| link.name.clone());
        let name = match (&again, &request.link) {
            (Some(name), _) | (None, Some(name)) => name.clone(),
            (None, None) => free_name(&known.iter().map(|link| &link.name).collect::<Vec<_>>()),
        };
        match &again {
            Some(_) => self.connect_again(&engine, request, &name, &peer)?,
            None => self.add_link(&engine, request, &name, &peer)?,
        }
        self.start_link(&request.group, &engine, &name)?;
        Ok((name, again.is_none()))
    }

    fn add_link(
        &self,
        engine: &Engine,
        request: &ConnectRequest,
        name: &LinkName,
        peer: &str,
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
            peer: peer.to_owned(),
            paths: self.target_paths(engine, request)?,
            mode: request.mode.unwrap_or_default(),
            loss: changed(
                LossPolicy::default(),
                request.on_loss,
                request.loss_timeout_ms,
            ),
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
        peer: &str,
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
            .retarget_link(name, peer.to_owned(), paths)
            .map_err(wrap)?;
        let loss = (request.on_loss, request.loss_timeout_ms);
        change_one(engine, name, request.mode, loss).map_err(wrap)?;
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
        if control.is_held() {
            return Ok(reply(format!(
                "held by its schedule: it connects in its next session; see blkctl transmit schedule {}",
                request.group
            )));
        }
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
            if snapshot.connection == LinkConnection::Up && request.to == NULL {
                return Ok(reply(format!(
                    "simulated: nothing is sent and nothing is protected; blkctl status {} shows what a real link \
                     would need",
                    request.group
                )));
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
}

/// What a link may not be that sends nothing.
fn simulation(subject: &str, request: &ConnectRequest) -> Result<String, ApiError> {
    let wrong = |happened: &str, action: &str| {
        Err(ApiError::new(
            ErrorCode::BadRequest,
            subject,
            happened,
            action,
        ))
    };
    if request.mode.is_some_and(|mode| mode != Mode::Async) {
        return wrong(
            "a simulated link confirms nothing, so no write may wait for it",
            "connect to null without --mode, or with --mode async",
        );
    }
    if !request.map.is_empty() || request.overwrite {
        return wrong(
            "a simulated link has no target: there is no place to map and nothing to overwrite",
            "connect to null without --map and --overwrite",
        );
    }
    Ok(NULL.to_owned())
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
        Some(RefuseCode::Untrusted) => {
            (ErrorCode::NotPaired, "pair the two nodes: blkctl node pair")
        }
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
