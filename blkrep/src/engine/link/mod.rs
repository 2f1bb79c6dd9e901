//! The source side of a link: the driver of its connection.
//!
//! Owns connecting, the handshake's course, framing, heartbeats, and what a status says of the
//! connection. Records and decisions come from the group through a
//! [`LinkPort`](crate::engine::source::LinkPort); bytes go to the peer and its acknowledgements
//! come back. Never decides what is sent or who may overwrite whom, never opens a file.

mod control;
mod line_port;
mod outbox;
mod pacing;
mod packing;
mod progress;
mod session;
mod sides;
mod simulated;
mod steering;
mod worker;

#[cfg(test)]
mod tests;

pub use control::{
    LinkConnection, LinkControl, LinkEvent, LinkSettings, LinkSnapshot, LinkWatch, PeerFacts,
    Refusal,
};
pub use line_port::LinePort;
pub use outbox::OUTBOX_BYTES;
pub use pacing::Pace;
pub use worker::{LINK_MEMORY_BYTES, LinkWorker};
