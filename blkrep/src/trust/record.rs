//! What is written down of trust.

use super::identity::OwnKey;
use crate::twin::TwinForm;
use blkrep_api::NodeRole;
use blkrep_types::NodeName;
use blkrep_wire::tls::Fingerprint;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Two whole copies in the state directory.
pub(super) const FORM: TwinForm = TwinForm {
    word: "blkrep-trust",
    copies: ["trust.a", "trust.b"],
    version: 1,
    bytes_max: 4 << 20,
    what: "record of this node's key and of the nodes it trusts",
    remedy: "move both away and pair the nodes again, after `blkctl node forget` of this node on \
             each of them",
};

/// Nodes that can be paired: far more than anybody replicates to.
pub(super) const NODES_MAX: usize = 1024;

/// Everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// This node's key; `None` before it was first needed.
    pub(super) own: Option<OwnKey>,
    /// The key that takes its place when every node knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<OwnKey>,
    /// Paired nodes.
    pub(super) nodes: BTreeMap<NodeName, Known>,
}

/// A paired node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Known {
    /// Its certificate.
    #[serde(serialize_with = "write", deserialize_with = "read")]
    pub(super) certificate: Fingerprint,
    /// The one it announced; from its first use on the only one.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "write_some",
        deserialize_with = "read_some"
    )]
    pub(super) next: Option<Fingerprint>,
    /// Where it listens.
    pub(super) address: Option<SocketAddr>,
    /// What it may do here by remote control.
    pub(super) role: NodeRole,
    /// When it was paired.
    pub(super) paired: Timestamp,
}

fn write<S: Serializer>(fingerprint: &Fingerprint, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(fingerprint)
}

fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Fingerprint, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(serde::de::Error::custom)
}

fn write_some<S: Serializer>(fingerprint: &Option<Fingerprint>, to: S) -> Result<S::Ok, S::Error> {
    match fingerprint {
        Some(fingerprint) => to.collect_str(fingerprint),
        None => to.serialize_none(),
    }
}

fn read_some<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Fingerprint>, D::Error> {
    read(from).map(Some)
}
