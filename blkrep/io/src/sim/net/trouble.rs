//! How connections end, and what a test does to them.
//!
//! Owns shutdown, close, the death of processes and hosts, cuts and resets. The streams themselves
//! are the parent's.

use super::{End, NetEvent, Network, Segment, SocketId};
use crate::sim::world::{NodeId, ProcessId};
use blkrep_types::Errno;
use std::sync::PoisonError;

impl Network {
    pub(in crate::sim) fn shutdown(&mut self, socket: SocketId) {
        match socket {
            SocketId::End(id, end) => {
                let Some(ends) = self.connections.get_mut(&id) else {
                    return;
                };
                if std::mem::replace(&mut ends[end].shut, true) {
                    return;
                }
                self.transmit(id, end, Segment::Fin);
                self.pump_receives(id, end);
                self.pump_sends(id, end);
            }
            SocketId::Listener(node, port) => self.unlisten(node, port),
        }
    }

    fn unlisten(&mut self, node: NodeId, port: u16) {
        let Some(listener) = self.listeners.remove(&(node, port)) else {
            return;
        };
        for (caller, _) in listener.accepting {
            self.answer(caller, Err(Errno::EINVAL), None);
        }
        for id in listener.backlog {
            self.abandon(id, 1);
        }
    }

    /// Closes what lost its last handle.
    pub(in crate::sim) fn close_dropped(&mut self) {
        loop {
            let next = self
                .closed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            match next {
                Some(SocketId::End(id, end)) => self.abandon(id, end),
                Some(SocketId::Listener(node, port)) => self.unlisten(node, port),
                None => return,
            }
        }
    }

    /// An end is closed by its kernel: with a reset if bytes were not read, else in order.
    fn abandon(&mut self, id: u64, end: usize) {
        let Some(ends) = self.connections.get_mut(&id) else {
            return;
        };
        let me = &mut ends[end];
        if me.owner.take().is_none() {
            return;
        }
        let unread = !me.inbox.is_empty();
        let shut = std::mem::replace(&mut me.shut, true);
        me.receiving.clear();
        me.sending.clear();
        if unread {
            self.transmit(id, end, Segment::Reset);
        } else if !shut {
            self.transmit(id, end, Segment::Fin);
        }
        self.bury(id);
    }

    /// The process is gone; its kernel closes what it held.
    pub(in crate::sim) fn process_gone(&mut self, process: ProcessId) {
        let ports: Vec<(NodeId, u16)> = self
            .listeners
            .iter()
            .filter(|(_, listener)| listener.process == process)
            .map(|(at, _)| *at)
            .collect();
        for (node, port) in ports {
            self.unlisten(node, port);
        }
        for (id, end) in self.ends(|end| end.owner == Some(process)) {
            self.abandon(id, end);
        }
    }

    /// The host is gone without a word.
    pub(in crate::sim) fn host_gone(&mut self, node: NodeId) {
        self.down.insert(node);
        self.listeners.retain(|(at, _), _| *at != node);
        for (id, end) in self.ends(|end| end.node == node) {
            let ends = self.connections.get_mut(&id).expect("just listed");
            let node = ends[end].node;
            let fresh = End {
                owner: None,
                ..End::new(node, ProcessId::default())
            };
            ends[end] = fresh;
            self.bury(id);
        }
    }

    /// The host is there again, and knows no connection.
    pub(in crate::sim) fn host_back(&mut self, node: NodeId) {
        self.down.remove(&node);
        self.retry_stalled();
    }

    /// Bytes no longer pass from one node to the other.
    pub(in crate::sim) fn cut(&mut self, from: NodeId, to: NodeId) {
        self.cuts.insert((from, to));
    }

    /// Bytes pass again.
    pub(in crate::sim) fn heal(&mut self, from: NodeId, to: NodeId) {
        self.cuts.remove(&(from, to));
        self.retry_stalled();
    }

    /// The connections between two nodes, oldest first.
    fn between(&self, a: NodeId, b: NodeId) -> Vec<u64> {
        let between = self.connections.iter().filter(|(_, ends)| {
            (ends[0].node, ends[1].node) == (a, b) || (ends[0].node, ends[1].node) == (b, a)
        });
        between.map(|(id, _)| *id).collect()
    }

    /// One connection between two nodes is reset at both ends; or nothing passes on it any more, and
    /// neither end is told.
    pub(in crate::sim) fn sever(&mut self, a: NodeId, b: NodeId, which: usize, silent: bool) {
        let between = self.between(a, b);
        let Some(id) = between.get(which % between.len().max(1)) else {
            return;
        };
        if !silent {
            self.reset_these(&[*id]);
            return;
        }
        let ends = self.connections.get_mut(id).expect("just listed");
        for end in ends.iter_mut() {
            end.mute = true;
        }
    }

    /// Every connection between two nodes is reset at both ends.
    pub(in crate::sim) fn reset(&mut self, a: NodeId, b: NodeId) {
        let between = self.between(a, b);
        self.reset_these(&between);
    }

    fn reset_these(&mut self, between: &[u64]) {
        for id in between.iter().copied() {
            let ends = self.connections.get_mut(&id).expect("just listed");
            for end in ends.iter_mut() {
                end.reset = true;
                end.inbox.clear();
                end.wire.clear();
                end.wire_bytes = 0;
            }
            for end in [0, 1] {
                self.pump_receives(id, end);
                self.pump_sends(id, end);
            }
        }
    }

    fn retry_stalled(&mut self) {
        for (id, end) in self.ends(|end| end.stalled > 0) {
            let ends = self.connections.get_mut(&id).expect("just listed");
            for _ in 0..std::mem::take(&mut ends[end].stalled) {
                let delay = self.delay();
                self.later(delay, NetEvent::Deliver(id, end));
            }
        }
    }
}
