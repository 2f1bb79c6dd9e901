//! Trust between nodes: who this node is, and whom it knows.
//!
//! Owns the node's key and certificate, the certificates that are pinned for other nodes with their
//! addresses and roles, the tokens that are open, and the decision whether a connection is encrypted.
//! Certificates, tokens and addresses enter; configurations of TLS, names and refusals leave. Never
//! touches a stream's bytes.

mod identity;
mod invite;
mod keeper;
mod pairing;
mod record;
mod remote;
mod roster;
mod rotation;
#[cfg(test)]
mod tests;
mod token;

pub use keeper::{Errand, Visitor};
pub use pairing::receive;
pub use roster::{Rights, Trust, TrustPlan};
