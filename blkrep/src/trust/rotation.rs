//! A new key for this node, which paired nodes accept because the old one vouches for it.
//!
//! Owns the order: the new key is durable first, then every paired node writes its certificate down
//! beside the old one, then this node uses it. A crash anywhere leaves a key that everybody accepts. A
//! node drops the old certificate when it first meets the new one.

use super::identity::OwnKey;
use super::pairing::Answer;
use super::roster::{Trust, lock};
use blkrep_api::{ApiError, CommandReply, ErrorCode, EventId, NewEvent};
use blkrep_types::NodeName;
use blkrep_wire::tls::{Door, Fingerprint};

impl Trust {
    /// Changes this node's key.
    ///
    /// # Errors
    /// A paired node was not reached, and `force` was not given: the old key stays in use.
    pub fn rotate(&self, force: bool) -> Result<CommandReply, ApiError> {
        if self.view().keys.is_none() {
            return Err(ApiError::new(
                ErrorCode::NotPaired,
                format!("node {}", self.name),
                "it has no key yet",
                "pair it first: blkctl node pair",
            ));
        }
        let made = OwnKey::make(&self.name)
            .map_err(|error| ApiError::internal(format!("make a key: {error:#}")))?;
        let mut next = None;
        self.update(|record| {
            // One that was announced before goes on being it.
            next = Some(record.next.get_or_insert(made).clone());
        })?;
        let next = next.ok_or_else(|| ApiError::internal("the new key is not there"))?;
        let identity = next
            .identity()
            .map_err(|error| ApiError::internal(format!("use the new key: {error:#}")))?;
        let fingerprint = identity.fingerprint();
        let nodes: Vec<NodeName> = self.view().nodes.keys().cloned().collect();
        let told = nodes
            .iter()
            .map(|node| (node, self.announce(node, fingerprint)));
        let (reached, missed): (Vec<_>, Vec<_>) = told.partition(|(_, told)| told.is_ok());
        let missed: Vec<String> = missed
            .into_iter()
            .filter_map(|(node, told)| Some(format!("node {node}: {}", told.err()?)))
            .collect();
        if !missed.is_empty() && !force {
            return Err(ApiError::new(
                ErrorCode::PeerUnreachable,
                format!("node {}", self.name),
                format!("its old key stays in use: {}", missed.join(", ")),
                "try again when they can be reached; or --force, and pair those nodes again",
            ));
        }
        self.update(|record| {
            record.own = Some(next);
            record.next = None;
        })?;
        // What is open was proven by the old key: links connect again by themselves.
        for (_, socket) in lock(&self.connections).drain(..) {
            socket.shutdown();
        }
        let text = format!("certificate {fingerprint}; {} nodes know it", reached.len());
        self.tell(NewEvent::new(EventId::KeyRotated, &text));
        let again = missed
            .into_iter()
            .map(|missed| format!("to be paired again: {missed}"));
        let notes = [format!("this node has a new key: {text}")];
        Ok(CommandReply {
            notes: notes.into_iter().chain(again).collect(),
        })
    }

    /// Tells a node of this one's next certificate.
    fn announce(&self, node: &NodeName, next: Fingerprint) -> Result<(), String> {
        let address = self.view().nodes.get(node).and_then(|known| known.address);
        let address = address.ok_or("its address is not known")?;
        let config = self.connecting(self.pins_of(node), Some(Door::Pair))?;
        match self.say_renewed(address, config, next) {
            Ok(Answer::Renewed) => Ok(()),
            Ok(Answer::Refused(error)) => Err(error.to_string()),
            Ok(Answer::Paired { .. }) => Err("it answers something else".to_owned()),
            Err(error) => Err(super::pairing::words(&error)),
        }
    }

    /// A node announces its next certificate, proven by the one that is pinned.
    pub(super) fn renew(&self, shown: &Fingerprint, next: Fingerprint) -> Result<(), ApiError> {
        let (name, holder) = {
            let view = self.view();
            let holder = view.by_certificate.get(&next).cloned();
            (view.by_certificate.get(shown).cloned(), holder)
        };
        let refuse = |happened: String| {
            let text = format!("a new key: {happened}");
            self.tell(NewEvent::new(EventId::PairRefused, text));
            let action = "pair the two nodes again";
            ApiError::new(
                ErrorCode::NotPaired,
                format!("node {}", self.name),
                happened,
                action,
            )
        };
        let name = name.ok_or_else(|| refuse(format!("certificate {shown} is not pinned here")))?;
        if holder.is_some_and(|holder| holder != name) {
            return Err(refuse(format!("certificate {next} is another node's")));
        }
        self.update(|record| {
            if let Some(known) = record.nodes.get_mut(&name)
                && known.certificate != next
            {
                known.next = Some(next);
            }
        })
    }

    /// A node has used its new key: the old one means nothing any more.
    pub fn settle(&self, node: &NodeName) {
        let mut settled = None;
        let written = self.update(|record| {
            if let Some(known) = record.nodes.get_mut(node)
                && let Some(next) = known.next.take()
            {
                known.certificate = next;
                settled = Some(next);
            }
        });
        match (written, settled) {
            (Ok(()), Some(certificate)) => {
                let text = format!("node {node} has a new key: certificate {certificate}");
                self.tell(NewEvent::new(EventId::NodeRenewed, text));
            }
            (Ok(()), None) => {}
            (Err(error), _) => tracing::error!(%node, %error, "take over a node's new key"),
        }
    }
}
