//! The control plane: HTTP and JSON on a unix socket.
//!
//! Owns the socket, the clients' roles and the limits of what they may cost. Requests enter; the
//! trait [`node::Node`] carries them out in threads that may block; JSON leaves. Whatever bytes a
//! client sends, the worst that happens is an error to that client. Never touches block data.

mod advice;
mod commands;
mod doors;
mod follow;
mod forward;
mod http;
pub mod node;
mod nodes;
mod peer;
mod server;
mod socket;

pub use peer::{ADMIN_GROUP, Judge, MONITOR_GROUP, Peer, Role, SystemJudge};
pub use server::{Control, Limits, Served};
pub use socket::ControlSocket;
