//! The source side of a group.

mod facts;

pub use facts::{
    Acks, Connection, DigestReply, DownReason, HelloFacts, LINKS_MAX, LinkIndex, LinkStatus,
    MirrorPhase, MirrorProgress, Outgoing, PeerRole, Position, Rejection, StreamStart, Transmit,
    VolumeFacts, WelcomeFacts,
};
