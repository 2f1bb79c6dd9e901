//! The worker's side of a connection: who may connect, frames in, messages out.

use super::control::TargetEvent;
use super::journaling::SocketOf;
use super::session::{Beginning, Phase, Session, Waiting};
use super::worker::{Kind, Mode, TargetWorker, token};
use blkrep_core::target::{
    Adoption, DenialKind, Offer, Order, Shape, StreamOffer, Taken, begin_stream, check_volumes,
};
use blkrep_io::{Host, Io, Op};
use blkrep_types::{ByteLen, Generation, Nanos, WriteName, planted};
use blkrep_wire::limits::{CONNECTIONS_MAX, SOURCE_BODY_MAX};
use blkrep_wire::{
    Ack, Codecs, Decoder, FarewellCode, Frame, Hello, Message, PeerRole, RefuseCode, SessionId,
    Start, VERSION_CONNECTIONS, VERSION_NOTES, VERSION_PACKED, VERSION_READS, Welcome,
    WelcomeVolume,
};

impl<H: Host> TargetWorker<H> {
    /// A connection whose hello was read: it waits for its turn or is refused.
    pub(super) fn offered(
        &mut self,
        io: &mut H::Io,
        socket: SocketOf<H>,
        hello: Box<Hello>,
        version: u16,
    ) {
        if let Err((code, text)) = self.judge_hello(&hello) {
            self.refuse(io, socket, &hello.node, code, text);
            return;
        }
        if let Some(session) = &mut self.session {
            let text = "a newer connection of the link takes this one's place".to_owned();
            session.end(FarewellCode::Replaced, text);
        }
        if let Some((older, ..)) = self.next_session.replace((socket, hello, version)) {
            io.shutdown(&older);
        }
    }

    fn judge_hello(&self, hello: &Hello) -> Result<(), (RefuseCode, String)> {
        let unavailable = |text: &str| Err((RefuseCode::Unavailable, text.to_owned()));
        match self.mode {
            Mode::Serving => {}
            Mode::Recovering | Mode::Resetting => {
                return unavailable("the replica's journal is being recovered");
            }
            Mode::Promoting(_) => return unavailable("the replica is being promoted"),
            Mode::Stopping | Mode::Done => return unavailable("the target is stopping"),
        }
        if self.journaling.failed() {
            let text = "the target's journal cannot be written".to_owned();
            return Err((RefuseCode::Failed, text));
        }
        let theirs: Vec<Shape> = hello
            .volumes
            .iter()
            .map(|volume| (volume.len, volume.block_size, volume.extent_size))
            .collect();
        check_volumes(&self.files.shapes(), &theirs)
            .map_err(|denial| (RefuseCode::Volumes, denial.text))?;
        self.judge_link(hello)
    }

    /// A replica has one source and one link. Another one may take it over only with a newer
    /// generation of the same history, or when an operator says so.
    fn judge_link(&self, hello: &Hello) -> Result<(), (RefuseCode, String)> {
        let replica = self.files.replica();
        let ours = self.facts.history.current();
        let same = replica.source == hello.node && replica.link == hello.link;
        let known = ours != Generation::NONE && ours == hello.history.current();
        if same || hello.overwrite {
            return Ok(());
        }
        let other = self
            .session
            .as_ref()
            .filter(|session| session.phase() != Phase::Closing);
        if known || other.is_some() {
            return Err((
                RefuseCode::Busy,
                format!(
                    "group '{}' is replicated here by link '{}' of node '{}'; a replica has one link",
                    replica.group, replica.link, replica.source
                ),
            ));
        }
        Ok(())
    }

    fn begin_session(
        &mut self,
        io: &mut H::Io,
        socket: SocketOf<H>,
        hello: Box<Hello>,
        version: u16,
    ) {
        self.serial += 1;
        let (connections, id) = match version >= VERSION_CONNECTIONS {
            // Zero is no session.
            true => (CONNECTIONS_MAX, SessionId::new(io.random().max(1))),
            false => (1, SessionId::NONE),
        };
        let (receive, send) = self.session_buffers();
        let inflater = (version >= VERSION_PACKED)
            .then(|| self.inflater())
            .flatten();
        let volumes = self.files.bases.iter().zip(&self.files.replica().volumes);
        let welcome = Welcome {
            version,
            node: self.settings.node.clone(),
            role: PeerRole::Target,
            data_state: self.facts.state(),
            history: self.facts.history.clone(),
            durable: self.durable(),
            journal_used: ByteLen::new(self.journal.space.used()),
            journal_capacity: ByteLen::new(self.journal.space.capacity()),
            codecs: match inflater {
                Some(_) => Codecs::ZSTD,
                None => Codecs::NONE,
            },
            connections: u8::try_from(connections).expect("a few"),
            reads: version >= VERSION_READS,
            session: id,
            volumes: volumes
                .map(|(base, volume)| WelcomeVolume {
                    index: volume.index,
                    len: base.geometry.len,
                })
                .collect(),
        };
        let mut decoder = Decoder::new(receive, SOURCE_BODY_MAX);
        decoder.continue_after_first();
        decoder.agree(version);
        if let Some(inflater) = inflater {
            decoder.inflate_with(inflater);
        }
        self.session = Some(Session::new(Beginning {
            socket,
            hello,
            serial: self.serial,
            now: io.now(),
            decoder,
            version,
            id,
            out: send,
            takes_notes: version >= VERSION_NOTES,
            welcome: Message::Welcome(Box::new(welcome)),
        }));
    }

    /// Takes in what has come, says what there is to say, ends what has ended.
    pub(super) fn pump_session(&mut self, io: &mut H::Io) {
        if self.session.is_none() && self.next_session.is_some() {
            self.give_up_unplaced();
        }
        if self.session.is_none()
            && self.journaling.is_drained()
            && let Some((socket, hello, version)) = self.next_session.take()
        {
            // Much may have happened while it waited for its turn.
            match self.judge_hello(&hello) {
                Ok(()) => self.begin_session(io, socket, hello, version),
                Err((code, text)) => self.refuse(io, socket, &hello.node, code, text),
            }
        }
        self.take_frames();
        self.receive(io);
        self.pump_joined(io);
        self.say(io);
        self.close_if_done(io);
    }

    /// Frames that are whole, as long as their records find room.
    fn take_frames(&mut self) {
        loop {
            let used = self.consume();
            let heard = self.take_frame();
            if !self.take_joined() && !heard && !used {
                return;
            }
        }
    }

    /// The next frame of the first connection; true if there was one.
    fn take_frame(&mut self) -> bool {
        let Some(session) = &mut self.session else {
            return false;
        };
        if session.waiting.is_some() || session.phase() == Phase::Closing {
            return false;
        }
        match session.decoder.next() {
            Ok(None) => return false,
            // A source does not wait for the replica to be taken over: the frame does.
            Ok(Some(Frame::Data(frame))) => match session.phase() {
                Phase::Adopting | Phase::Streaming => {
                    let place = session.place.take();
                    if place.is_some() == session.order.is_some() {
                        self.received_bytes += frame.data_bytes() as u64;
                        session.waiting = Some(Waiting::new(frame, place));
                    } else {
                        let text = "a batch had no place".to_owned();
                        session.end(FarewellCode::Protocol, text);
                    }
                }
                Phase::Greeting | Phase::Awaiting | Phase::Closing => {
                    let text = "records came before the stream was begun".to_owned();
                    session.end(FarewellCode::Protocol, text);
                }
            },
            Ok(Some(Frame::Message(message))) => self.take_message(message),
            Err(error) => session.end(FarewellCode::Protocol, error.to_string()),
        }
        true
    }

    fn take_message(&mut self, message: Message) {
        let Some(session) = &mut self.session else {
            return;
        };
        match message {
            Message::Ping(stamp) => session.pong(stamp),
            Message::Pong(_) => {}
            Message::Start(start) if session.phase() == Phase::Awaiting => self.start_stream(start),
            Message::Place(place) if session.order.is_some() && session.place.is_none() => {
                session.place = Some(place);
            }
            Message::Error(farewell) | Message::Goodbye(farewell) => {
                session.drop_it(&farewell.text);
            }
            Message::Hello(_)
            | Message::Welcome(_)
            | Message::Refuse(_)
            | Message::MapPart(_)
            | Message::MapEnd(_)
            | Message::Start(_)
            | Message::Ack(_)
            | Message::Digests(_)
            | Message::Note(_)
            | Message::Join(_)
            | Message::Joined(_)
            | Message::Place(_)
            | Message::Again(_)
            | Message::Content(_) => {
                let text = format!("a frame '{}' has no place here", message.kind());
                session.end(FarewellCode::Protocol, text);
            }
        }
    }

    fn start_stream(&mut self, start: Start) {
        let Some(session) = &mut self.session else {
            return;
        };
        let several = start.connections > 1;
        if several && session.id == SessionId::NONE {
            let text = "it was not granted several connections".to_owned();
            session.end(FarewellCode::Protocol, text);
            return;
        }
        session.order = several.then(Order::default);
        let offer = Offer {
            history: session.hello.history.clone(),
            incarnation: session.hello.incarnation,
            overwrite: session.hello.overwrite,
        };
        let stream = StreamOffer {
            after: start.after,
            head: start.head,
            generation: start.generation,
            adopt: start.adopt,
        };
        match begin_stream(&self.facts, self.incoming.last(), &offer, &stream) {
            Err(denial) => {
                let code = match denial.kind {
                    DenialKind::Newer => FarewellCode::Promoted,
                    DenialKind::Malformed => FarewellCode::Protocol,
                    DenialKind::Volumes | DenialKind::Unrelated => FarewellCode::Order,
                };
                session.end(code, denial.text);
            }
            Ok(Adoption::Adopt) => {
                session.become_phase(Phase::Adopting);
                self.adopting = Some(start);
            }
            Ok(Adoption::Continue) => {
                self.facts.handed_over(start.head);
                self.stream_begins();
            }
        }
    }

    /// Takes the replica over once nothing is under way.
    pub(super) fn adopt_if_asked(&mut self) {
        if !self.adopts() {
            self.adopting = None;
            return;
        }
        self.give_up_waiting();
        let failing = self.persist_at.is_some_and(|at| self.now < at);
        if self.applier.is_flying() || !self.is_quiet() || failing {
            return;
        }
        let (Some(start), Some(session)) = (self.adopting.take(), &self.session) else {
            return;
        };
        let base = WriteName {
            generation: start.generation,
            ..start.after
        };
        let head = WriteName {
            generation: start.generation,
            ..start.head
        };
        let history = session.hello.history.clone();
        self.facts.adopt(history.clone(), base, head);
        self.begin_anew();
        if let Some(why) = self.trouble.clone() {
            if let Some(session) = &mut self.session {
                session.end(FarewellCode::Failed, why);
            }
            // The bases are given up already: what the old journal holds means nothing.
            self.mode = Mode::Resetting;
            self.journal.last = base;
            return;
        }
        self.event(&TargetEvent::Adopted { history });
        self.stream_begins();
    }

    fn stream_begins(&mut self) {
        let Some(session) = &mut self.session else {
            return;
        };
        session.become_phase(Phase::Streaming);
        session.ack_due = true;
        let (node, link) = (session.hello.node.clone(), session.hello.link.clone());
        if self.files.replica.source != node || self.files.replica.link != link {
            self.files.replica.source = node.clone();
            self.files.replica.link = link;
            self.facts.changed();
        }
        self.applier.connected(Some(self.incoming.last()));
        self.tell_notes();
        self.event(&TargetEvent::Connected { source: node });
    }

    /// Puts the records of the batch whose turn it is into the journal's next one, as many as fit. True if
    /// that was all of them.
    fn consume(&mut self) -> bool {
        let streaming = |session: &&mut Session<_>| session.phase() == Phase::Streaming;
        let Some(session) = self.session.as_mut().filter(streaming) else {
            return false;
        };
        let Some((from, mut batch)) = session.next_batch() else {
            return session.is_stuck();
        };
        let cursor = self.applier.cursor().batch;
        let used = batch.used;
        for (taken, received) in (used..).zip(batch.frame.entries().skip(used)) {
            if !self.journaling.can_take(&received.record, cursor) {
                batch.used = taken;
                session.put_back(from, batch);
                return false;
            }
            match self.incoming.take(&received.record) {
                Ok(Taken::New) => self.journaling.take(&received),
                Ok(Taken::Duplicate) => {}
                Err(error) => {
                    session.end(FarewellCode::Order, error.to_string());
                    return false;
                }
            }
        }
        if let Some(order) = &mut session.order {
            order.taken();
        }
        if session.hello.mode == blkrep_types::Mode::Memory {
            session.ack_due = true;
        }
        true
    }

    fn receive(&mut self, io: &mut H::Io) {
        let Some(session) = &mut self.session else {
            return;
        };
        let hungry = session.waiting.is_none() && session.phase() != Phase::Closing;
        if !hungry || session.receiving {
            return;
        }
        session.receiving = true;
        let op = Op::Recv {
            socket: session.socket.clone(),
            slice: session.decoder.space(),
        };
        let token = token(Kind::Receive, session.serial);
        self.submit(io, token, op);
    }

    pub(super) fn received(&mut self, serial: u64, result: Result<u32, blkrep_types::Errno>) {
        let now = self.now;
        let Some(session) = self
            .session
            .as_mut()
            .filter(|session| session.serial == serial)
        else {
            return self.joined_received(serial, result);
        };
        session.receiving = false;
        match result {
            Ok(0) => session.drop_it("the source closed the connection"),
            Ok(count) => {
                session.heard = now;
                self.last_heard = Some(now);
                if session.phase() != Phase::Closing {
                    session
                        .decoder
                        .received(usize::try_from(count).expect("64-bit platform"));
                }
            }
            Err(errno) => session.drop_it(&errno.to_string()),
        }
    }

    fn say(&mut self, io: &mut H::Io) {
        let Some(session) = &self.session else { return };
        if session.sending.is_some() || session.closed {
            return;
        }
        let ack = self.ack_message();
        let unknown = self.facts.part().kind() == blkrep_core::target::PartKind::Everything;
        let Some(session) = &mut self.session else {
            return;
        };
        let message = session.next_message(self.facts.part(), unknown, || ack);
        let Some(message) = message else { return };
        let len = session.encoder.message(&message, &session.out);
        let len = len.expect("every message of a target fits its buffer");
        if let Message::Welcome(welcome) = &message {
            session.encoder.agree(welcome.version);
        }
        session.said = self.now;
        let slice = session.out.part(0..len);
        session.sending = Some(slice.clone());
        let op = Op::Send {
            socket: session.socket.clone(),
            slice,
        };
        let token = token(Kind::Send, session.serial);
        self.submit(io, token, op);
    }

    pub(super) fn sent(
        &mut self,
        io: &mut H::Io,
        serial: u64,
        result: Result<u32, blkrep_types::Errno>,
    ) {
        let Some(session) = self
            .session
            .as_mut()
            .filter(|session| session.serial == serial)
        else {
            return self.joined_sent(io, serial, result);
        };
        let slice = session.sending.take().expect("a send was under way");
        match result {
            Ok(count) => {
                let count = usize::try_from(count).expect("64-bit platform");
                if count < slice.len() {
                    let rest = slice.part(count..slice.len());
                    session.sending = Some(rest.clone());
                    let op = Op::Send {
                        socket: session.socket.clone(),
                        slice: rest,
                    };
                    self.submit(io, token(Kind::Send, serial), op);
                }
            }
            Err(errno) => session.drop_it(&errno.to_string()),
        }
    }

    fn ack_message(&self) -> Message {
        Message::Ack(Ack {
            received: self.incoming.last(),
            durable: match planted!(AckReceivedAsDurable) {
                true => self.incoming.last(),
                false => self.durable(),
            },
            applied: self.applier.applied(),
            journal_used: ByteLen::new(self.journal.space.used()),
            journal_capacity: ByteLen::new(self.journal.space.capacity()),
            data_state: self.facts.state(),
            applying: self.applying_word(),
            held: self.applier.is_holding(),
        })
    }

    fn close_if_done(&mut self, io: &mut H::Io) {
        let Some(session) = &mut self.session else {
            return;
        };
        if session.phase() != Phase::Closing || !(session.closed || session.is_silent()) {
            return;
        }
        // Pending operations complete with an error or nothing.
        io.shutdown(&session.socket);
        session.closed = true;
        if session.receiving || session.sending.is_some() || !session.joined.is_empty() {
            return;
        }
        let event = TargetEvent::Disconnected {
            source: session.hello.node.clone(),
            reason: session.reason.clone(),
        };
        self.session = None;
        self.applier.connected(None);
        self.event(&event);
    }

    pub(super) fn streaming_since(&self) -> Option<Nanos> {
        let session = self.session.as_ref()?;
        (session.phase() == Phase::Streaming).then_some(session.since)
    }
}
