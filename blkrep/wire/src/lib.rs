//! What two nodes say to each other: frames, their checks, their versions and their
//! encryption.
//!
//! Owns the layouts of `docs/format/wire.md`. Messages and records enter and bytes leave, or the
//! other way round. A frame that is not exactly right is an error, never a guess: lengths are
//! bounded before anything is read, and a checksum stands over every byte. Never decides anything,
//! never touches a socket.
#![forbid(unsafe_code)]

mod connections;
mod content;
mod data;
mod decoder;
mod encoder;
mod error;
mod frame;
mod handshake;
mod layout;
pub mod limits;
mod packed;
mod read;
mod stream;
pub mod tls;
mod version;

pub use connections::{Again, Join, Place, SessionId};
pub use content::Content;
pub use data::{DataFrame, DataPlan, Entry, Received};
pub use decoder::Decoder;
pub use encoder::{Encoder, Written};
pub use error::WireError;
pub use frame::{Frame, FrameKind, Message};
pub use handshake::{
    Hello, HelloVolume, PeerRole, Refuse, RefuseCode, Start, Welcome, WelcomeVolume,
};
pub use layout::{FRAME_HEADER_BYTES, RECORD_HEADER_BYTES};
pub use packed::{Codecs, Inflater, Packer};
pub use stream::{Ack, Applying, DigestReply, Farewell, FarewellCode, MapEnd, MapPart};
pub use version::{
    HANDSHAKE_VERSION, VERSION_CONNECTIONS, VERSION_MAX, VERSION_MIN, VERSION_NOTES,
    VERSION_PACKED, VERSION_READS, negotiate,
};
