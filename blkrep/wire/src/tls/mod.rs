//! Encryption of connections: TLS 1.3 between a worker and its socket.
//!
//! Owns the layer that stands between bytes a worker sends or receives and the bytes on the network.
//! [`LineIo`] is a ring like the one below it, whose sockets ([`Line`]) are plain or encrypted; who
//! may be at the other end, and which connections are encrypted, is a [`Keeper`]'s. Bytes enter and
//! leave; a peer that is not proven gives none. Never knows a frame, never opens a file.
//!
//! There is no authority that signs certificates, and no name in one counts: a certificate is the
//! node it was pinned for, or it is nobody's. Nothing is resumed, and nothing is sent before the
//! other side is proven.

mod channel;
mod cipher;
mod config;
mod fingerprint;
mod host;
mod io;
mod keeper;
mod line;
mod sniff;
#[cfg(test)]
mod tests;
mod words;

pub use config::{Identity, Pins, any_client, client_config, server_config};
pub use fingerprint::Fingerprint;
pub use host::LineHost;
pub use io::LineIo;
pub use keeper::{Door, Failure, Keeper, Outgoing};
pub use line::Line;
pub use words::explain;
