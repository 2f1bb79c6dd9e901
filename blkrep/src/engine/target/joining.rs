//! The worker's side of a session's further connections.
//!
//! Owns who may join, and that a connection which is lost breaks the lap: the source is told, and sends
//! again what was not acknowledged.

use super::control::TargetEvent;
use super::joined::{Heard, Joined, JoinedBuffers};
use super::journaling::SocketOf;
use super::session::Phase;
use super::worker::{Kind, TargetWorker, token};
use blkrep_io::{Host, Io, Op};
use blkrep_types::Errno;
use blkrep_wire::{Join, RefuseCode};

impl<H: Host> TargetWorker<H> {
    /// A connection that says it is one more of the session.
    pub(super) fn join(&mut self, io: &mut H::Io, socket: SocketOf<H>, join: &Join) {
        if let Err(why) = self.judge_join(join) {
            self.refuse(io, socket, &join.node, RefuseCode::Unavailable, why.into());
            return;
        }
        let buffers = match self.joined_buffers.pop() {
            Some(buffers) => Ok(buffers),
            None => JoinedBuffers::new(),
        };
        let Ok(buffers) = buffers else {
            let why = "there is no memory for another connection".to_owned();
            self.refuse(io, socket, &join.node, RefuseCode::Failed, why);
            return;
        };
        self.serial += 1;
        let names = (join.index, self.serial);
        let joined = Joined::new(socket, names, self.now, join.version, buffers);
        let session = self.session.as_mut().expect("it was judged");
        let same = |each: &&mut Joined<_>| each.index == join.index;
        for older in session.joined.iter_mut().filter(same) {
            older.drop_it("a newer connection takes its place");
        }
        session.joined.push(joined);
    }

    fn judge_join(&self, join: &Join) -> Result<(), &'static str> {
        let gone = "the session it wants to join is over";
        let session = self.session.as_ref().ok_or(gone)?;
        let phase = session.phase();
        let lives = matches!(phase, Phase::Awaiting | Phase::Adopting | Phase::Streaming);
        let hello = &session.hello;
        let ours = hello.node == join.node && hello.link == join.link;
        let id = session.id == join.session && session.version == join.version;
        if !lives || !ours || !id {
            return Err(gone);
        }
        // Those that are being replaced have not gone yet.
        if session.joined.len() >= 2 * blkrep_wire::limits::CONNECTIONS_MAX {
            return Err("too many connections of the session are ending");
        }
        Ok(())
    }

    /// Takes in what has come over further connections; true if there was something.
    pub(super) fn take_joined(&mut self) -> bool {
        let Some(session) = &mut self.session else {
            return false;
        };
        if !matches!(session.phase(), Phase::Adopting | Phase::Streaming) {
            return false;
        }
        let mut moved = false;
        for joined in &mut session.joined {
            if session.order.is_none() {
                joined.drop_it("the session has one connection");
            }
            match joined.hear() {
                Heard::Nothing => {}
                Heard::Taken => {
                    moved = true;
                    if let (Some(order), Some(lap)) = (&mut session.order, joined.lap()) {
                        order.reach(lap);
                    }
                }
                Heard::Batch(bytes) => {
                    self.received_bytes += bytes;
                    moved = true;
                }
            }
        }
        moved
    }

    /// Receives, says that they live, and ends those that have ended.
    pub(super) fn pump_joined(&mut self, io: &mut H::Io) {
        let Some(session) = &mut self.session else {
            return;
        };
        let (now, heartbeat) = (self.now, session.hello.heartbeat);
        let silent = session.hello.timeout;
        let ends = session.phase() == Phase::Closing;
        let listens = matches!(session.phase(), Phase::Adopting | Phase::Streaming);
        let mut ops = std::mem::take(&mut self.joined_ops);
        for joined in &mut session.joined {
            if ends {
                joined.drop_it("the session ended");
            }
            if !joined.receiving {
                // It is we who do not listen, while a batch waits for its turn: that is not silence.
                joined.heard = now;
            }
            if now >= joined.heard.after(silent) {
                joined.drop_it("nothing was heard on it for too long");
            }
            if joined.gone.is_some() && !joined.shut {
                joined.shut = true;
                io.shutdown(&joined.socket);
            }
            if let Some(slice) = listens.then(|| joined.space()).flatten() {
                joined.receiving = true;
                let socket = joined.socket.clone();
                let token = token(Kind::Receive, joined.serial);
                ops.push((token, Op::Recv { socket, slice }));
            }
            if let Some(slice) = joined.say(now, joined.said().after(heartbeat)) {
                let socket = joined.socket.clone();
                let token = token(Kind::Send, joined.serial);
                ops.push((token, Op::Send { socket, slice }));
            }
        }
        for (token, op) in ops.drain(..) {
            self.submit(io, token, op);
        }
        self.joined_ops = ops;
        self.bury_joined();
    }

    /// Lets go of further connections that are over; each was part of the lap.
    fn bury_joined(&mut self) {
        let Some(session) = &mut self.session else {
            return;
        };
        let mut all = session.joined.iter();
        let lost = all.any(|each| each.gone.is_some() && !each.counted);
        if lost && session.phase() != Phase::Closing {
            session.break_lap();
            for each in &mut session.joined {
                each.counted |= each.gone.is_some();
            }
        }
        while let Some(session) = &mut self.session
            && let Some(at) = session.joined.iter().position(Joined::is_over)
        {
            let joined = session.joined.swap_remove(at);
            let event = TargetEvent::ConnectionLost {
                source: session.hello.node.clone(),
                index: joined.index,
                reason: joined.gone.clone().unwrap_or_default(),
            };
            let told = session.phase() != Phase::Closing;
            self.joined_buffers.push(joined.into_buffers());
            if told {
                self.event(&event);
            }
        }
    }

    /// A receive of a further connection has ended.
    pub(super) fn joined_received(&mut self, serial: u64, result: Result<u32, Errno>) {
        let now = self.now;
        if result.is_ok_and(|count| count > 0) {
            self.last_heard = Some(now);
        }
        self.joined_mut(serial).received(now, result);
    }

    /// A send of a further connection has ended.
    pub(super) fn joined_sent(&mut self, io: &mut H::Io, serial: u64, result: Result<u32, Errno>) {
        let joined = self.joined_mut(serial);
        let socket = joined.socket.clone();
        if let Some(slice) = joined.sent(result) {
            self.submit(io, token(Kind::Send, serial), Op::Send { socket, slice });
        }
    }

    fn joined_mut(&mut self, serial: u64) -> &mut Joined<SocketOf<H>> {
        let session = self.session.as_mut();
        let joined = session.and_then(|session| {
            let mut all = session.joined.iter_mut();
            all.find(|joined| joined.serial == serial)
        });
        joined.expect("a connection stays until its operations are done")
    }
}
