//! Whom this node knows.
//!
//! Owns the durable record and a copy of it that every thread can look at without waiting for a disk.

use super::identity::OwnKey;
use super::invite::Invites;
use super::keeper::{Errand, Told};
use super::record::{FORM, Known, NODES_MAX, Record};
use super::token::Token;
use crate::events::Events;
use crate::twin::{Twin, TwinError};
use blkrep_api::{
    ApiError, CommandReply, ErrorCode, EventId, NewEvent, NodeInviteReply, NodeList, NodeReport,
    NodeRole, SCHEMA,
};
use blkrep_io::real::WeakSocket;
use blkrep_types::NodeName;
use blkrep_wire::tls::{
    Door, Fingerprint, Identity, Pins, any_client, client_config, server_config,
};
use jiff::Timestamp;
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::{ClientConfig, ServerConfig};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// Visitors that nobody has looked after yet; one more is sent away.
const ERRANDS_MAX: usize = 32;

/// What trust is made from.
#[derive(Debug)]
pub struct TrustPlan {
    /// Name of this node.
    pub name: NodeName,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Connections without encryption are taken and made on every address.
    pub insecure_plain: bool,
    /// Where the record is kept.
    pub state_dir: PathBuf,
    /// Where to tell what happens.
    pub events: Events,
}

/// What a node may do here by remote control, and since when that is so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    /// The node.
    pub node: NodeName,
    /// Its role.
    pub role: NodeRole,
}

/// A key in use, with how connections are accepted by it.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) identity: Identity,
    pub(super) links: Arc<ServerConfig>,
    pub(super) pairs: Arc<ServerConfig>,
    pub(super) controls: Arc<ServerConfig>,
}

/// What every thread can look at.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) keys: Option<Arc<Keys>>,
    pub(super) nodes: BTreeMap<NodeName, Known>,
    pub(super) by_certificate: BTreeMap<Fingerprint, NodeName>,
}

/// Trust of one node.
pub struct Trust {
    pub(super) name: NodeName,
    pub(super) listen: SocketAddr,
    pub(super) insecure_plain: bool,
    pub(super) events: Events,
    /// Held while a disk writes; never on a data-plane thread.
    record: Mutex<Twin<Record>>,
    view: Arc<RwLock<View>>,
    invites: Mutex<Invites>,
    pub(super) connections: Mutex<Vec<(NodeName, WeakSocket)>>,
    pub(super) told: Mutex<Told>,
    changed: watch::Sender<u64>,
    pub(super) errands: mpsc::Sender<Errand>,
    waiting: Mutex<Option<mpsc::Receiver<Errand>>>,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trust({})", self.name)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Trust {
    /// Reads what is written down.
    ///
    /// # Errors
    /// Both copies are damaged, are of a newer version, or cannot be read.
    pub fn open(plan: TrustPlan) -> anyhow::Result<Arc<Self>> {
        let (record, bad) = Twin::load(&FORM, &plan.state_dir)?;
        if let Some(bad) = bad {
            let text = format!(
                "{}: {bad}; the other copy is used and the next change repairs it",
                FORM.what
            );
            plan.events
                .publish(NewEvent::new(EventId::StateCorrupt, text));
        }
        let (errands, waiting) = mpsc::channel(ERRANDS_MAX);
        let trust = Arc::new(Self {
            name: plan.name,
            listen: plan.listen,
            insecure_plain: plan.insecure_plain,
            events: plan.events,
            view: Arc::default(),
            invites: Mutex::default(),
            connections: Mutex::default(),
            told: Mutex::default(),
            changed: watch::Sender::new(0),
            errands,
            waiting: Mutex::new(Some(waiting)),
            record: Mutex::new(record),
        });
        let record = lock(&trust.record);
        trust.show(record.value())?;
        drop(record);
        Ok(trust)
    }

    /// What is left to the control plane: those who come to be paired or to command. Given once.
    #[must_use]
    pub fn take_errands(&self) -> Option<mpsc::Receiver<Errand>> {
        lock(&self.waiting).take()
    }

    /// Says when a role or a pairing has changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts what is durable in force.
    fn show(&self, record: &Record) -> anyhow::Result<()> {
        let keys = match &record.own {
            Some(own) => Some(Arc::new(self.keys(own)?)),
            None => None,
        };
        let mut by_certificate = BTreeMap::new();
        for (name, known) in &record.nodes {
            for fingerprint in known.next.iter().chain([&known.certificate]) {
                by_certificate.insert(*fingerprint, name.clone());
            }
        }
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        *view = View {
            keys,
            nodes: record.nodes.clone(),
            by_certificate,
        };
        drop(view);
        self.changed.send_modify(|number| *number += 1);
        Ok(())
    }

    fn keys(&self, own: &OwnKey) -> anyhow::Result<Keys> {
        let identity = own.identity()?;
        let server = |pins, door| server_config(&identity, pins, door);
        Ok(Keys {
            links: server(self.paired(), None)?,
            controls: server(self.paired(), Some(Door::Control))?,
            pairs: server(any_client(), Some(Door::Pair))?,
            identity,
        })
    }

    /// Every certificate that is pinned.
    pub(super) fn paired(&self) -> Pins {
        let view = Arc::clone(&self.view);
        Arc::new(move |fingerprint| {
            let view = view.read().unwrap_or_else(PoisonError::into_inner);
            view.by_certificate.contains_key(fingerprint)
        })
    }

    /// The certificates that are pinned for one node.
    pub(super) fn pins_of(&self, node: &NodeName) -> Pins {
        let (view, node) = (Arc::clone(&self.view), node.clone());
        Arc::new(move |fingerprint| {
            let view = view.read().unwrap_or_else(PoisonError::into_inner);
            view.by_certificate.get(fingerprint) == Some(&node)
        })
    }

    /// How to connect to whom `pins` accept.
    ///
    /// # Errors
    /// This node has no key yet, or one that is of no use.
    pub(super) fn connecting(
        &self,
        pins: Pins,
        door: Option<Door>,
    ) -> Result<Arc<ClientConfig>, String> {
        let keys = self.view().keys.clone();
        let keys = keys.ok_or("this node has no key yet; pair it: blkctl node pair")?;
        client_config(&keys.identity, pins, door).map_err(|error| error.to_string())
    }

    /// Changes the record durably, then puts it in force.
    pub(super) fn update(&self, change: impl FnOnce(&mut Record)) -> Result<(), ApiError> {
        let mut record = lock(&self.record);
        record.update(change).map_err(|error| of_twin(&error))?;
        self.show(record.value())
            .map_err(|error| ApiError::internal(format!("use the node's key: {error:#}")))
    }

    /// This node's key, made if there is none.
    pub(super) fn need_keys(&self) -> Result<Arc<Keys>, ApiError> {
        if let Some(keys) = self.view().keys.clone() {
            return Ok(keys);
        }
        let made = OwnKey::make(&self.name)
            .map_err(|error| ApiError::internal(format!("make a key: {error:#}")))?;
        self.update(|record| {
            // Another command may have made one just now.
            record.own.get_or_insert(made);
        })?;
        let keys = self.view().keys.clone();
        let keys = keys.ok_or_else(|| ApiError::internal("the key that was made is not there"))?;
        let text = format!("certificate {}", keys.identity.fingerprint());
        self.tell(NewEvent::new(EventId::KeyMade, text));
        Ok(keys)
    }

    pub(super) fn tell(&self, event: NewEvent) {
        self.events.publish(event);
    }

    pub(super) fn invites(&self) -> MutexGuard<'_, Invites> {
        lock(&self.invites)
    }

    /// Opens an invitation.
    ///
    /// # Errors
    /// The record cannot be written, or there is no randomness.
    pub fn invite(&self, role: NodeRole, valid: Duration) -> Result<NodeInviteReply, ApiError> {
        let keys = self.need_keys()?;
        let mut token = Token {
            id: [0; 8],
            secret: [0; 16],
            inviter: keys.identity.fingerprint(),
        };
        let random = SystemRandom::new();
        random
            .fill(&mut token.id)
            .and_then(|()| random.fill(&mut token.secret))
            .map_err(|_| ApiError::internal("the system gives no random bytes"))?;
        self.invites()
            .open(token.id, token.secret, role, valid, Instant::now());
        let seconds = valid.as_secs();
        let text = format!("a token was made, for {seconds} s and role {role}");
        self.tell(NewEvent::new(EventId::InviteMade, text));
        Ok(NodeInviteReply {
            schema: SCHEMA,
            token: token.text(),
            valid_seconds: seconds,
            listen: self.listen.to_string(),
            fingerprint: keys.identity.fingerprint().to_string(),
        })
    }

    /// Every paired node.
    #[must_use]
    pub fn list(&self) -> NodeList {
        let view = self.view();
        let keys = view.keys.as_ref();
        NodeList {
            schema: SCHEMA,
            node: self.name.clone(),
            fingerprint: keys.map(|keys| keys.identity.fingerprint().to_string()),
            nodes: view
                .nodes
                .iter()
                .map(|(name, known)| report(name, known))
                .collect(),
        }
    }

    /// Trusts a node no longer; its connections end.
    ///
    /// # Errors
    /// It is not paired, or the record cannot be written.
    pub fn forget(&self, node: &NodeName) -> Result<CommandReply, ApiError> {
        self.known(node)?;
        self.update(|record| {
            record.nodes.remove(node);
        })?;
        self.cut(node);
        let text = format!("node {node} is trusted no longer; its connections were ended");
        self.tell(NewEvent::new(EventId::NodeForgotten, text.clone()));
        let there = format!(
            "node {node} still trusts this one: on it, run blkctl node forget {}",
            self.name
        );
        Ok(CommandReply {
            notes: vec![text, there],
        })
    }

    /// Gives a node another role for remote control.
    ///
    /// # Errors
    /// It is not paired, or the record cannot be written.
    pub fn set_role(&self, node: &NodeName, role: NodeRole) -> Result<CommandReply, ApiError> {
        let before = self.known(node)?.role;
        self.update(|record| {
            if let Some(known) = record.nodes.get_mut(node) {
                known.role = role;
            }
        })?;
        let text = format!("node {node} had the role {before} here and has {role} now");
        self.tell(NewEvent::new(EventId::NodeRoleChanged, text.clone()));
        Ok(CommandReply::note(text))
    }

    /// What a node may do here.
    #[must_use]
    pub fn rights(&self, node: &NodeName) -> Option<Rights> {
        let role = self.view().nodes.get(node)?.role;
        let node = node.clone();
        Some(Rights { node, role })
    }

    pub(super) fn known(&self, node: &NodeName) -> Result<Known, ApiError> {
        let known = self.view().nodes.get(node).cloned();
        known.ok_or_else(|| {
            ApiError::new(
                ErrorCode::NotPaired,
                format!("node {node}"),
                "it is not paired with this node",
                "see blkctl node list; pair it: blkctl node pair",
            )
        })
    }

    /// Pins a node's certificate. One that is pinned under the name already must be the same: a name
    /// is not taken over.
    pub(super) fn pin(
        &self,
        node: &NodeName,
        certificate: Fingerprint,
        address: Option<SocketAddr>,
        role: NodeRole,
    ) -> Result<NodeReport, ApiError> {
        let subject = format!("node {node}");
        let conflict = |why: String, action: String| {
            Err(ApiError::new(ErrorCode::NodeExists, &subject, why, action))
        };
        if *node == self.name {
            return conflict(
                "both nodes have that name".to_owned(),
                "give one of them another name: blkrepd --node".to_owned(),
            );
        }
        let (pinned, holder, count) = {
            let view = self.view();
            let pinned = view.nodes.get(node).map(|known| known.certificate);
            let holder = view.by_certificate.get(&certificate).cloned();
            (pinned, holder, view.nodes.len())
        };
        if pinned.is_some_and(|pinned| pinned != certificate) {
            return conflict(
                "another certificate is pinned for that name".to_owned(),
                format!("if it has a new key: blkctl node forget {node}, then pair it again"),
            );
        }
        if let Some(holder) = holder.filter(|holder| holder != node) {
            return conflict(
                format!("its certificate is pinned for node {holder}"),
                format!("if it was renamed: blkctl node forget {holder}, then pair it again"),
            );
        }
        if pinned.is_none() && count >= NODES_MAX {
            return Err(ApiError::new(
                ErrorCode::LimitReached,
                subject,
                format!("{NODES_MAX} nodes are paired"),
                "forget some: blkctl node forget",
            ));
        }
        let known = Known {
            certificate,
            next: None,
            address,
            role,
            paired: Timestamp::now(),
        };
        let reply = report(node, &known);
        self.update(|record| {
            record.nodes.insert(node.clone(), known);
        })?;
        let at = address.map_or_else(String::new, |address| format!(" at {address}"));
        let text = format!("node {node}{at}, certificate {certificate}, role {role}");
        self.tell(NewEvent::new(EventId::NodePaired, text));
        Ok(reply)
    }
}

fn report(name: &NodeName, known: &Known) -> NodeReport {
    NodeReport {
        name: name.clone(),
        fingerprint: known.certificate.to_string(),
        address: known.address.map(|address| address.to_string()),
        role: known.role,
        paired: known.paired,
    }
}

fn of_twin(error: &TwinError) -> ApiError {
    let code = match error {
        TwinError::Io { .. } => ErrorCode::StateFull,
        TwinError::Corrupt { .. } => ErrorCode::StateCorrupt,
        TwinError::Newer { .. } => ErrorCode::StateNewer,
    };
    let action = "make room in the state directory, or repair it; nothing was changed";
    ApiError::new(code, "record of trust", error.to_string(), action)
}
