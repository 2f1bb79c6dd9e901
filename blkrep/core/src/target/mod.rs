//! A target group: what it may take, what its data is worth, what is applied when.
//!
//! Owns the rules of a replica. [`Incoming`] checks the names of records as they arrive;
//! [`Applier`] says which record touches the base next and what has to be durable before it;
//! [`Retries`] says when a write that failed is tried again; [`Facts`] is what the superblock says, with every legal change of it; [`admit`] and [`promote`]
//! are the decisions at a handshake and at a promotion. Records, completions and commands enter;
//! steps and verdicts leave. Never does I/O, never reads a clock.

mod admit;
mod apply;
mod facts;
mod flight;
mod incoming;
mod order;
mod part;
mod promote;
mod retry;
#[cfg(test)]
mod tests;

pub use admit::{
    Adoption, Denial, DenialKind, Offer, Shape, StreamOffer, begin_stream, check_volumes,
};
pub use apply::{Applier, Cursor, FlushMark, Records, Step};
pub use facts::Facts;
pub use flight::{FLIGHTS_MAX, Flight, FlightId};
pub use incoming::{Incoming, Place, RecordError, Taken, VolumeShape};
pub use order::{Order, Turn};
pub use part::{Part, PartKind};
pub use promote::{PromoteRefusal, PromoteRequest, check_promote};
pub use retry::{Failure, Retries, RetryPolicy, Trouble, WriteTrouble};
