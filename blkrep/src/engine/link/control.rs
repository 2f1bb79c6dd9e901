//! What the control plane can say to a link's driver and see of it.
//!
//! Owns a small shared record behind a mutex that is held for a copy at most. Commands are flags
//! that the driver takes at its next turn; what it shows is replaced at the end of each.

use super::pacing::Pace;
use blkrep_core::compression::{Compression, Packing};
use blkrep_core::meter::Meter;
use blkrep_core::source::StreamStart;
use blkrep_io::Waker;
use blkrep_types::{
    ByteLen, Congestion, CongestionName, Generation, History, Nanos, NodeName, WriteName,
};
use blkrep_wire::{Applying, RefuseCode};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What an operator can set of a link's connection; all of it live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSettings {
    /// This node's name, as the peer will show it.
    pub node: NodeName,
    /// Where the target listens; used from the next attempt on.
    pub peer: SocketAddr,
    /// An idle connection says something this often.
    pub heartbeat: Duration,
    /// Silence longer than this ends a connection.
    pub timeout: Duration,
    /// An attempt to connect is given up after this.
    pub connect_timeout: Duration,
    /// A target that lives and makes nothing durable of what it was sent, for longer than this,
    /// loses its connection, and gets no other one for as long.
    pub progress_timeout: Duration,
    /// After a connection was lost, try again.
    pub reconnect: bool,
    /// How long after.
    pub reconnect_interval: Duration,
    /// The limit of bandwidth it keeps to.
    pub pace: Pace,
    /// Whether batches are packed.
    pub compression: Compression,
    /// How hard the compressor tries.
    pub compression_level: u8,
    /// How many connections a session is to have, if the target grants them; used from the next one on.
    pub connections: u8,
    /// How its connections share the line; living ones change as well.
    pub congestion: Congestion,
    /// Nothing is sent: what would be is measured. `peer` means nothing then.
    pub simulated: bool,
    /// Bytes a second of the line that a simulated link is measured against.
    pub simulated_rate: ByteLen,
}

/// What a link's connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinkConnection {
    /// None; the next attempt waits for its time or for a command.
    #[default]
    Down,
    /// An attempt is being made.
    Connecting,
    /// Both ends talk, the stream has not begun.
    Negotiating,
    /// The stream flows.
    Up,
    /// The peer or the group said no; nothing is tried before somebody acts.
    Refused,
    /// Ended by command.
    Stopped,
}

/// Why peer or group said no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of reason; `None` if this node's group refused because of the two histories.
    pub code: Option<RefuseCode>,
    /// In words, with what to do.
    pub text: String,
}

/// What the peer said of itself last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerFacts {
    /// Its name.
    pub node: NodeName,
    /// The last write applied to its base.
    pub applied: WriteName,
    /// Bytes its journal holds.
    pub journal_used: ByteLen,
    /// Bytes its journal can hold.
    pub journal_capacity: ByteLen,
    /// What applying does there.
    pub applying: Applying,
    /// It holds a mirror in its journal.
    pub held: bool,
}

/// What a status shows of a link's connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkSnapshot {
    /// What it does.
    pub connection: LinkConnection,
    /// Since when the stream flows.
    pub connected_since: Option<Nanos>,
    /// When the peer was last heard.
    pub last_heard: Option<Nanos>,
    /// Time a heartbeat took there and back, last.
    pub round_trip: Option<Duration>,
    /// Bytes sent on the wire since the driver began, frames and all.
    pub wire_bytes_sent: u64,
    /// Bytes received since the driver began.
    pub wire_bytes_received: u64,
    /// What was measured, of a link that sends nothing.
    pub meter: Option<Meter>,
    /// Connections that batches go over; none while the stream does not flow.
    pub connections: usize,
    /// Times one of several was lost, since the driver began.
    pub connections_lost: u64,
    /// How its connections share the line; `None` before the first.
    pub congestion: Option<CongestionName>,
    /// Why that is not what was set: in words and, after `; `, what to do.
    pub congestion_refused: Option<String>,
    /// What it does about compression.
    pub packing: Packing,
    /// Times the stream began.
    pub connects: u64,
    /// The peer; `None` before its first welcome.
    pub peer: Option<PeerFacts>,
    /// The node that is proven to be at the other end; `None` without encryption.
    pub proven: Option<NodeName>,
    /// Why there is no connection, or was none before this one, in words.
    pub last_error: Option<String>,
    /// Why nothing is tried.
    pub refusal: Option<Refusal>,
    /// What the peer said no with for now; it is tried again all the same.
    pub denied: Option<Refusal>,
}

/// What happened to a link's connection, for events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// The stream flows.
    Up {
        /// The peer.
        peer: NodeName,
        /// Where it began, and why there.
        start: StreamStart,
    },
    /// A link that sends nothing began to measure.
    Simulated,
    /// One of several connections was lost, or could not be made; the stream goes on over the others.
    ConnectionLost {
        /// Which one.
        index: usize,
        /// Why, in words.
        reason: String,
    },
    /// It is there again.
    ConnectionRestored {
        /// Which one.
        index: usize,
    },
    /// The congestion control that was set is not to be had; connections have the system's.
    CongestionRefused {
        /// Why, in words and, after `; `, what to do.
        reason: String,
    },
    /// A connection whose stream flowed ended.
    Down {
        /// Why, in words.
        reason: String,
    },
    /// Peer or group said no.
    Refused(Refusal),
    /// The peer's data has another history than the source's: why it says no, or is told no.
    Foreign {
        /// The peer's generations.
        history: History,
    },
    /// The peer knows a newer generation: the group is fenced.
    Stale {
        /// The peer's generation.
        newer: Generation,
    },
}

/// Hears of a link's events. Called on the link's thread: it must not block.
pub trait LinkWatch: Send + Sync {
    /// Something happened.
    fn event(&self, event: &LinkEvent);
}

struct Shared {
    settings: LinkSettings,
    waker: Option<Waker>,
    connect: bool,
    stop: bool,
    held: bool,
    snapshot: LinkSnapshot,
}

/// A handle on a link's driver for other threads.
#[derive(Clone)]
pub struct LinkControl(Arc<Mutex<Shared>>);

/// What was said to the driver since it last looked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Orders {
    /// Try now, whatever was refused.
    pub(super) connect: bool,
    /// End the connection and finish.
    pub(super) stop: bool,
    /// There is to be no connection for now.
    pub(super) held: bool,
}

impl LinkControl {
    /// For a driver that is yet to be made.
    #[must_use]
    pub fn new(settings: LinkSettings) -> Self {
        Self(Arc::new(Mutex::new(Shared {
            settings,
            waker: None,
            connect: false,
            stop: false,
            held: false,
            snapshot: LinkSnapshot::default(),
        })))
    }

    /// Uses other settings from now on.
    pub fn set(&self, settings: LinkSettings) {
        self.tell(|shared| shared.settings = settings);
    }

    /// The settings in use.
    #[must_use]
    pub fn settings(&self) -> LinkSettings {
        self.lock().settings.clone()
    }

    /// Tries to connect now, also after a refusal or with reconnecting switched off. A refusal that
    /// is shown from now on is an answer to this.
    pub fn connect(&self) {
        self.tell(|shared| {
            shared.connect = true;
            shared.snapshot.refusal = None;
        });
    }

    /// Ends the connection in order; the driver finishes.
    pub fn stop(&self) {
        self.tell(|shared| shared.stop = true);
    }

    /// Held: the connection ends in order, and there is none before it is let go.
    pub fn hold(&self, held: bool) {
        if self.lock().held != held {
            self.tell(|shared| shared.held = held);
        }
    }

    /// True if there is to be no connection for now.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.lock().held
    }

    /// What the driver showed at its last turn.
    #[must_use]
    pub fn snapshot(&self) -> LinkSnapshot {
        self.lock().snapshot.clone()
    }

    pub(super) fn started(&self, waker: Waker) {
        self.lock().waker = Some(waker);
    }

    pub(super) fn take_orders(&self, settings: &mut LinkSettings) -> Orders {
        let mut shared = self.lock();
        if *settings != shared.settings {
            settings.clone_from(&shared.settings);
        }
        Orders {
            connect: std::mem::take(&mut shared.connect),
            stop: shared.stop,
            held: shared.held,
        }
    }

    pub(super) fn show(&self, snapshot: &LinkSnapshot) {
        let mut shared = self.lock();
        if shared.snapshot != *snapshot {
            shared.snapshot.clone_from(snapshot);
        }
        if shared.connect {
            // The driver has not heard yet that what was refused is asked for again.
            shared.snapshot.refusal = None;
        }
    }

    fn tell(&self, say: impl FnOnce(&mut Shared)) {
        let waker = {
            let mut shared = self.lock();
            say(&mut shared);
            shared.waker.clone()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The record is replaced field by field with plain values, so it is whole even if a holder
    /// of the lock panicked.
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LinkControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkControl({})", self.lock().settings.peer)
    }
}
