//! How a link's connections share the line with others.
//!
//! Owns the wish that the connections were told last, and what became of it. The settings enter; what a status
//! shows and an event leave. Never opens a connection.

use super::control::{LinkEvent, LinkSnapshot, LinkWatch};
use super::sides::Side;
use super::worker::LinkWorker;
use crate::engine::source::LinkPort;
use blkrep_io::{Io, Steering};
use blkrep_types::{Congestion, Errno};

/// The wish in force.
#[derive(Debug, Default)]
pub(super) struct Steered {
    wanted: Congestion,
    /// It was told that this one is not to be had.
    told: bool,
}

impl Steered {
    /// Another wish; true if living connections have to hear of it.
    pub(super) fn set(&mut self, wanted: Congestion) -> bool {
        let changed = self.wanted != wanted;
        if changed {
            *self = Self {
                wanted,
                told: false,
            };
        }
        changed
    }

    pub(super) const fn wanted(&self) -> Congestion {
        self.wanted
    }

    /// What became of the wish on one connection: all of a link are of one kernel and fare alike.
    pub(super) fn became(
        &mut self,
        steering: Steering,
        snapshot: &mut LinkSnapshot,
        watch: &dyn LinkWatch,
    ) {
        snapshot.congestion = steering.in_force;
        let refused = steering.refused.map(|errno| refusal(self.wanted, errno));
        if let Some(reason) = &refused
            && !std::mem::replace(&mut self.told, true)
        {
            let reason = reason.clone();
            watch.event(&LinkEvent::CongestionRefused { reason });
        }
        snapshot.congestion_refused = refused;
    }
}

impl<I: Io, P: LinkPort<I>> LinkWorker<I, P> {
    /// Says how a new connection is to share the line.
    pub(super) fn steer(&mut self, io: &I, socket: &I::Socket) {
        let steering = io.steer(socket, self.steered.wanted());
        let lines = &mut self.lines;
        self.steered
            .became(steering, &mut lines.snapshot, lines.watch.as_ref());
    }

    /// Says it to all that live, if it is another way than before.
    pub(super) fn steer_all(&mut self, io: &I) {
        if !self.steered.set(self.settings.congestion) {
            return;
        }
        self.lines.snapshot.congestion_refused = None;
        let first = self.first_socket().into_iter();
        let sockets = first.chain(self.sides.iter().filter_map(Side::socket));
        let sockets: Vec<_> = sockets.collect();
        sockets.iter().for_each(|socket| self.steer(io, socket));
    }
}

/// Why the one that was named is not to be had, and after `; ` what to do.
fn refusal(wanted: Congestion, errno: Errno) -> String {
    if errno == Errno::ENOENT {
        return format!(
            "this kernel has no congestion control '{wanted}'; load it (modprobe tcp_{wanted}), or set \
             link.congestion-control to auto or to one of net.ipv4.tcp_available_congestion_control"
        );
    }
    if errno == Errno::EPERM {
        return format!(
            "blkrepd may not use congestion control '{wanted}'; add it to \
             net.ipv4.tcp_allowed_congestion_control, or give blkrepd CAP_NET_ADMIN"
        );
    }
    format!(
        "congestion control '{wanted}' cannot be used: {errno}; set link.congestion-control to auto"
    )
}
