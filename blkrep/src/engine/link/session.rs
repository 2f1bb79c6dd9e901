//! One connection's course, frame by frame.
//!
//! Owns the stages of a connection and what is legal in each. Frames of the peer enter and become
//! calls of the group's port; the group's answers become frames. What the peer sends at the wrong
//! time, or about volumes that do not exist, ends the connection.
//!
//! ```text
//! Greeting --welcome--> Mapping --map-end--> Starting --begin--> Streaming
//! ```

use super::control::{LinkConnection, LinkEvent, LinkSnapshot, LinkWatch, PeerFacts, Refusal};
use super::outbox::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, Outbox};
use super::packing::Packing;
use super::progress::Progress;
use super::sides::Out;
use super::simulated::NullPeer;
use crate::engine::source::{Batch, LinkPort};
use blkrep_core::source::{
    Acks, ContentPart, DigestReply, DownReason, HelloFacts, JournalFill, PeerRole, Rejection,
    StreamStart, WelcomeFacts,
};
use blkrep_io::Io;
use blkrep_types::{
    ByteLen, ByteOffset, DataState, Extent, Generation, History, Nanos, NodeName, WriteName,
};
use blkrep_wire::{
    Ack, Again, Applying, Decoder, Encoder, Entry, Farewell, FarewellCode, Frame, Hello,
    HelloVolume, Join, MapEnd, MapPart, Message, Place, Refuse, RefuseCode, SessionId, Start,
    VERSION_MAX, VERSION_MIN, VERSION_NOTES, Welcome,
};
use std::sync::Arc;
use std::time::Duration;

/// Why a connection ends.
#[derive(Debug)]
pub(super) struct Ending {
    /// For the group.
    pub(super) reason: DownReason,
    /// For people.
    pub(super) text: String,
    /// What follows.
    pub(super) next: Next,
    /// What to tell the peer first, if it still listens.
    pub(super) farewell: Option<FarewellCode>,
}

/// What follows the end of a connection.
#[derive(Debug)]
pub(super) enum Next {
    /// Another attempt after the interval.
    Retry,
    /// Another attempt, later than usual: the target lives and does not work.
    Later,
    /// Nothing before somebody acts.
    Refused(Option<RefuseCode>),
}

impl Ending {
    pub(super) fn lost(text: impl Into<String>) -> Self {
        Self {
            reason: DownReason::Lost,
            text: text.into(),
            next: Next::Retry,
            farewell: None,
        }
    }

    pub(super) fn protocol(text: impl Into<String>) -> Self {
        Self {
            reason: DownReason::Protocol,
            text: text.into(),
            next: Next::Retry,
            farewell: Some(FarewellCode::Protocol),
        }
    }

    /// The target lives, and nothing moves.
    pub(super) fn stuck(span: Duration) -> Self {
        let text = format!(
            "the target answers, but made nothing durable of what it was sent for {} s, with room \
             in its journal: look at the disk of its journal, and at its blkrepd",
            span.as_secs()
        );
        Self {
            next: Next::Later,
            farewell: Some(FarewellCode::Timeout),
            ..Self::lost(text)
        }
    }

    pub(super) fn asked(text: &str, farewell: FarewellCode) -> Self {
        Self {
            reason: DownReason::Asked,
            text: text.to_owned(),
            next: Next::Retry,
            farewell: Some(farewell),
        }
    }

    fn refused(code: Option<RefuseCode>, text: String, farewell: Option<FarewellCode>) -> Self {
        Self {
            reason: DownReason::Asked,
            text,
            next: Next::Refused(code),
            farewell,
        }
    }
}

/// Both directions of the wire, and who wants to hear of it.
pub(super) struct Lines {
    pub(super) encoder: Encoder,
    pub(super) decoder: Decoder,
    pub(super) outbox: Outbox,
    /// Further connections.
    pub(super) sides: Vec<Out>,
    /// The version that was agreed on.
    pub(super) version: u16,
    pub(super) packing: Packing,
    /// The target of a link that sends nothing.
    pub(super) null: Option<NullPeer>,
    pub(super) snapshot: LinkSnapshot,
    pub(super) watch: Arc<dyn LinkWatch>,
    pub(super) batch: Batch,
    pub(super) entries: Vec<Entry>,
}

/// Data bytes that are asked of the log at a time where there are several connections.
const BATCH_BYTES_OF_SEVERAL: usize = BATCH_BYTES_MAX / 4;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// `Hello` is said; the peer's answer is awaited.
    Greeting,
    /// The peer's map comes; so many parts so far.
    Mapping(u32),
    /// Both maps are here; the group makes them durable.
    Starting,
    /// Records flow, of this generation.
    Streaming(Generation),
}

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    hello: HelloFacts,
    stage: Stage,
    /// The last write that is durable at the peer, once it said it, with the current generation of
    /// its data.
    held: WriteName,
    /// How many connections it is to have: what was wished for, then what both agreed on.
    connections: u8,
    /// What further connections name.
    id: SessionId,
    /// The version that was agreed on.
    version: u16,
    /// Where the next batch belongs.
    place: Place,
    /// Connections that the target has no more, a bit for each.
    pub(super) lost_there: u16,
    pub(super) progress: Progress,
}

impl Session {
    /// Queues what is said first.
    pub(super) fn greet(
        hello: HelloFacts,
        message: Hello,
        connections: u8,
        lines: &mut Lines,
    ) -> Self {
        let queued = lines
            .outbox
            .message(&mut lines.encoder, &Message::Hello(Box::new(message)));
        assert!(queued, "the outbox of a new connection is empty");
        lines.snapshot.connection = LinkConnection::Negotiating;
        Self {
            hello,
            stage: Stage::Greeting,
            held: WriteName::NONE,
            connections,
            id: SessionId::NONE,
            version: VERSION_MIN,
            place: Place::default(),
            lost_there: 0,
            progress: Progress::default(),
        }
    }

    /// The peer has answered. Before that nothing but `Hello` is said of our own accord, so that
    /// whoever takes it at the target holds nothing else.
    pub(super) fn is_answered(&self) -> bool {
        self.stage != Stage::Greeting
    }

    pub(super) fn is_streaming(&self) -> bool {
        matches!(self.stage, Stage::Streaming(_))
    }

    /// How many connections it is to have.
    pub(super) const fn connections(&self) -> u8 {
        self.connections
    }

    /// What a further connection says first.
    pub(super) fn join(&self, node: &NodeName, index: u8) -> Join {
        Join {
            version: self.version,
            index,
            session: self.id,
            node: node.clone(),
            group: self.hello.group.clone(),
            link: self.hello.link.clone(),
        }
    }

    /// Where the next batch belongs.
    pub(super) const fn place(&self) -> Place {
        self.place
    }

    /// A batch may be lost: what was not acknowledged as received is sent again, as the next lap.
    pub(super) fn go_back<I: Io, P: LinkPort<I>>(&mut self, io: &mut I, port: &mut P) {
        self.place = Place {
            lap: self
                .place
                .lap
                .checked_add(1)
                .expect("fewer losses than that"),
            batch: 0,
        };
        port.again(io);
    }

    /// The target has lost a batch of this lap.
    fn on_again<I: Io, P: LinkPort<I>>(&mut self, io: &mut I, port: &mut P, again: Again) {
        self.lost_there |= again.lost;
        if again.lap == self.place.lap {
            self.go_back(io, port);
        }
    }

    /// Takes what a target says that is not there; true if it said something.
    pub(super) fn hear_null<I: Io, P: LinkPort<I>>(
        &mut self,
        io: &mut I,
        port: &mut P,
        lines: &mut Lines,
    ) -> Result<bool, Ending> {
        let mut heard = false;
        loop {
            let stream = match self.stage {
                Stage::Streaming(generation) => Some(generation),
                Stage::Greeting | Stage::Mapping(_) | Stage::Starting => None,
            };
            let said = lines.null.as_mut().and_then(|null| null.says(stream));
            let Some(message) = said else {
                return Ok(heard);
            };
            heard = true;
            self.on_frame(io, port, lines, Frame::Message(message))?;
        }
    }

    /// Takes one frame.
    pub(super) fn on_frame<I: Io, P: LinkPort<I>>(
        &mut self,
        io: &mut I,
        port: &mut P,
        lines: &mut Lines,
        frame: Frame,
    ) -> Result<(), Ending> {
        let message = match frame {
            Frame::Message(message) => message,
            Frame::Data(_) => return Err(self.out_of_place("data")),
        };
        match (self.stage, message) {
            (_, Message::Ping(stamp)) => {
                // Without room the peer sees that we live by the bytes that fill it.
                let _ = lines
                    .outbox
                    .message(&mut lines.encoder, &Message::Pong(stamp));
                Ok(())
            }
            (_, Message::Pong(stamp)) => {
                lines.snapshot.round_trip = Some(io.exact_now().since(Nanos::new(stamp)));
                Ok(())
            }
            (_, Message::Error(farewell) | Message::Goodbye(farewell)) => {
                Err(Ending::lost(format!(
                    "the target ended the connection ({}): {}",
                    farewell.code, farewell.text
                )))
            }
            (Stage::Greeting, Message::Welcome(welcome)) => {
                self.on_welcome(io, port, lines, *welcome)
            }
            (Stage::Greeting, Message::Refuse(refuse)) => {
                Err(self.on_refuse(io, port, lines, refuse))
            }
            (Stage::Mapping(parts), Message::MapPart(part)) => {
                self.on_map_part(port, &part)?;
                self.stage = Stage::Mapping(parts.saturating_add(1));
                Ok(())
            }
            (Stage::Mapping(parts), Message::MapEnd(end)) => {
                self.on_map_end(io, port, lines, parts, end)
            }
            (Stage::Streaming(generation), Message::Ack(ack)) => {
                let ours = ack.received.generation == generation;
                self.progress.acked(io.now(), &ack, ours);
                on_ack(io, port, lines, generation, &ack)
            }
            (Stage::Streaming(_), Message::Digests(digests)) => on_digests(io, port, &digests),
            (Stage::Streaming(_), Message::Content(content)) => on_content(io, port, &content),
            (Stage::Streaming(_), Message::Note(report)) => {
                port.note(io, &report);
                Ok(())
            }
            (Stage::Streaming(_), Message::Again(again)) if self.connections > 1 => {
                self.on_again(io, port, again);
                Ok(())
            }
            (_, message) => Err(self.out_of_place(&message.kind().to_string())),
        }
    }

    fn out_of_place(&self, kind: &str) -> Ending {
        Ending::protocol(format!(
            "the target sent a frame '{kind}' during {:?}",
            self.stage
        ))
    }

    fn on_welcome<I: Io, P: LinkPort<I>>(
        &mut self,
        io: &mut I,
        port: &mut P,
        lines: &mut Lines,
        welcome: Welcome,
    ) -> Result<(), Ending> {
        if !(VERSION_MIN..=VERSION_MAX).contains(&welcome.version) {
            return Err(Ending::protocol(format!(
                "the target chose version {}, which was not offered",
                welcome.version
            )));
        }
        lines.version = welcome.version;
        self.connections = self.connections.min(welcome.connections);
        self.id = welcome.session;
        self.version = welcome.version;
        lines.encoder.agree(welcome.version);
        lines.decoder.agree(welcome.version);
        lines.packing.connected(welcome.codecs);
        lines.snapshot.denied = None;
        lines.snapshot.peer = Some(PeerFacts {
            node: welcome.node.clone(),
            applied: WriteName::NONE,
            journal_used: welcome.journal_used,
            journal_capacity: welcome.journal_capacity,
            applying: Applying::Running,
            held: false,
        });
        port.takes_notes(welcome.version >= VERSION_NOTES);
        let facts = WelcomeFacts {
            role: match welcome.role {
                blkrep_wire::PeerRole::Source => PeerRole::Source,
                blkrep_wire::PeerRole::Target if welcome.history.ancestors().is_empty() => {
                    PeerRole::New
                }
                blkrep_wire::PeerRole::Target => PeerRole::Replica,
            },
            data_state: welcome.data_state,
            history: welcome.history.clone(),
            durable: welcome.durable,
            reads: welcome.reads,
        };
        port.welcome(io, &facts)
            .map_err(|rejection| rejected(rejection, &facts.history, lines))?;
        if welcome.role == blkrep_wire::PeerRole::Target {
            self.check_volumes(&welcome)?;
        }
        self.held = WriteName {
            generation: welcome.history.current(),
            ..welcome.durable
        };
        self.stage = Stage::Mapping(0);
        Ok(())
    }

    /// The target's volumes hold ours.
    fn check_volumes(&self, welcome: &Welcome) -> Result<(), Ending> {
        let (ours, theirs) = (&self.hello.volumes, &welcome.volumes);
        if ours.len() != theirs.len() {
            let text = format!(
                "the target holds {} volumes of the group, the source has {}; connect again with \
                 the volumes mapped",
                theirs.len(),
                ours.len()
            );
            let code = Some(RefuseCode::Volumes);
            return Err(Ending::refused(code, text, Some(FarewellCode::Failed)));
        }
        let small = ours
            .iter()
            .zip(theirs)
            .find(|(ours, theirs)| theirs.len < ours.len);
        small.map_or(Ok(()), |(ours, theirs)| {
            let text = format!(
                "volume '{}' has {} and its place at the target only {}; enlarge it there",
                ours.name, ours.len, theirs.len
            );
            let code = Some(RefuseCode::TooSmall);
            Err(Ending::refused(code, text, Some(FarewellCode::Failed)))
        })
    }

    fn on_refuse<I: Io, P: LinkPort<I>>(
        &self,
        io: &mut I,
        port: &mut P,
        lines: &mut Lines,
        refuse: Refuse,
    ) -> Ending {
        if refuse.code == RefuseCode::NewerGeneration {
            // The group decides from the history whether that is true; if so it is fenced.
            let facts = WelcomeFacts {
                role: PeerRole::Source,
                data_state: DataState::Unknown,
                history: refuse.history,
                durable: WriteName::NONE,
                reads: false,
            };
            if let Err(rejection @ Rejection::Stale { .. }) = port.welcome(io, &facts) {
                return rejected(rejection, &facts.history, lines);
            }
        }
        let text = format!("the target refused ({}): {}", refuse.code, refuse.text);
        if refuse.code.passes() {
            lines.snapshot.denied = Some(Refusal {
                code: Some(refuse.code),
                text: text.clone(),
            });
            Ending::lost(text)
        } else {
            Ending::refused(Some(refuse.code), text, None)
        }
    }

    fn on_map_part<I: Io, P: LinkPort<I>>(
        &self,
        port: &mut P,
        part: &MapPart,
    ) -> Result<(), Ending> {
        let volume = self.hello.volumes.get(part.volume.as_usize());
        let volume = volume.ok_or_else(|| {
            Ending::protocol(format!(
                "the target has a map of volume {}",
                part.volume.get()
            ))
        })?;
        let last = part.first.get() + u64::from(part.bit_count);
        if last > part.extent_size.count(volume.len) {
            return Err(Ending::protocol(format!(
                "the target's map of volume '{}' is longer than the volume",
                volume.name
            )));
        }
        let mut at = 0;
        while at < part.bit_count {
            let end = (at..part.bit_count)
                .find(|bit| !part.is_set(*bit))
                .unwrap_or(part.bit_count);
            if end > at {
                let size = part.extent_size.get();
                let start = (part.first.get() + u64::from(at)) * size;
                let stop = (part.first.get() + u64::from(end)) * size;
                let len = stop.min(volume.len.get()) - start;
                let extent = Extent::new(ByteOffset::new(start), ByteLen::new(len));
                let extent = extent.map_err(|error| Ending::protocol(error.to_string()))?;
                port.map_part(part.volume, extent);
            }
            at = end + 1;
        }
        Ok(())
    }

    fn on_map_end<I: Io, P: LinkPort<I>>(
        &mut self,
        io: &mut I,
        port: &mut P,
        lines: &mut Lines,
        parts: u32,
        end: MapEnd,
    ) -> Result<(), Ending> {
        if end.part_count != parts {
            return Err(Ending::protocol(format!(
                "the target's map has {parts} parts where {} were announced",
                end.part_count
            )));
        }
        if end.unknown {
            port.map_unknown();
        }
        self.stage = Stage::Starting;
        self.try_begin(io, port, lines)
    }

    /// True if what the target has does not continue: it is of another generation, or it holds a
    /// write that was never named here (this source was set back to an earlier state), so that
    /// its names mean something else. The mirror that follows compares everything.
    fn adopts(&self, start: &StreamStart) -> bool {
        let place = |name: WriteName| (name.incarnation, name.seq);
        self.held.generation != start.generation || place(self.held) > place(start.head)
    }

    /// Begins the stream once the group has made the maps durable.
    pub(super) fn try_begin<I: Io, P: LinkPort<I>>(
        &mut self,
        io: &mut I,
        port: &mut P,
        lines: &mut Lines,
    ) -> Result<(), Ending> {
        if self.stage != Stage::Starting {
            return Ok(());
        }
        let Some(start) = port.begin(io) else {
            return Ok(());
        };
        let message = Message::Start(Start {
            after: start.after,
            head: start.head,
            generation: start.generation,
            adopt: self.adopts(&start),
            connections: self.connections,
        });
        if !lines.outbox.message(&mut lines.encoder, &message) {
            return Err(Ending::protocol(
                "the target does not take the start of the stream",
            ));
        }
        self.stage = Stage::Streaming(start.generation);
        lines.snapshot.connection = LinkConnection::Up;
        lines.snapshot.connected_since = Some(io.now());
        lines.snapshot.connects += 1;
        let peer = lines
            .snapshot
            .peer
            .as_ref()
            .expect("set by the welcome")
            .node
            .clone();
        lines.watch.event(&match lines.null {
            Some(_) => LinkEvent::Simulated,
            None => LinkEvent::Up { peer, start },
        });
        Ok(())
    }

    /// Moves records from the log to the outbox while both have some and there is room.
    pub(super) fn pump<I: Io, P: LinkPort<I>>(
        &mut self,
        io: &mut I,
        port: &mut P,
        lines: &mut Lines,
    ) {
        let bytes_max = match self.connections {
            1 => BATCH_BYTES_MAX,
            // What one of them has, all others wait for.
            _ => BATCH_BYTES_OF_SEVERAL,
        };
        while self.is_streaming()
            && let Some(way) = lines.way()
        {
            port.next(io, BATCH_RECORDS_MAX, bytes_max, &mut lines.batch);
            let Some(last) = lines.batch.records.last() else {
                if lines.batch.more {
                    // Published while the group went to sleep: nobody else will wake us for it.
                    io.waker().wake();
                }
                break;
            };
            let through = last.record.seq;
            self.progress.sent(io.now(), through);
            lines.entries.clear();
            lines
                .entries
                .extend(lines.batch.records.iter().map(|outgoing| {
                    Entry {
                        record: outgoing.record,
                        bytes: outgoing
                            .record
                            .kind
                            .has_data()
                            .then(|| port.bytes(outgoing)),
                    }
                }));
            let place = (self.connections > 1).then_some(self.place);
            self.place.batch += 1;
            let framed = lines.frame(io, way, place);
            lines.entries.clear();
            port.release(through, framed);
            if !lines.batch.more {
                break;
            }
        }
    }
}

/// The group said no.
fn rejected(rejection: Rejection, theirs: &History, lines: &Lines) -> Ending {
    lines.watch.event(&LinkEvent::Foreign {
        history: theirs.clone(),
    });
    match rejection {
        Rejection::Stale { newer } => {
            lines.watch.event(&LinkEvent::Stale { newer });
            let text = format!(
                "the target has newer data (generation {newer}): this source is stale and its \
                 device returns errors; connect it as a target of the newer side"
            );
            let code = Some(RefuseCode::NewerGeneration);
            Ending::refused(code, text, Some(FarewellCode::Promoted))
        }
        Rejection::Refused { reason } => {
            Ending::refused(None, reason, Some(FarewellCode::Disconnected))
        }
    }
}

fn on_ack<I: Io, P: LinkPort<I>>(
    io: &mut I,
    port: &mut P,
    lines: &mut Lines,
    generation: Generation,
    ack: &Ack,
) -> Result<(), Ending> {
    if let Some(peer) = &mut lines.snapshot.peer {
        peer.applied = ack.applied;
        peer.journal_used = ack.journal_used;
        peer.journal_capacity = ack.journal_capacity;
        peer.applying = ack.applying;
        peer.held = ack.held;
    }
    if ack.received.generation != generation {
        // Nothing of this stream has reached the target yet.
        return Ok(());
    }
    let acks = Acks {
        received: ack.received,
        durable: ack.durable,
        data_state: ack.data_state,
        journal: JournalFill {
            used: ack.journal_used,
            capacity: ack.journal_capacity,
            held: ack.held,
        },
    };
    if port.acked(io, &acks) {
        Ok(())
    } else {
        Err(Ending::protocol(format!(
            "the target acknowledged {}, which was not sent",
            ack.received
        )))
    }
}

fn on_digests<I: Io, P: LinkPort<I>>(
    io: &mut I,
    port: &mut P,
    digests: &[blkrep_wire::DigestReply],
) -> Result<(), Ending> {
    for reply in digests {
        let known = port.digest(
            io,
            &DigestReply {
                incarnation: reply.incarnation,
                seq: reply.seq,
                volume: reply.volume,
                extent: reply.extent,
                digest: reply.digest,
            },
        );
        if !known {
            return Err(Ending::protocol(format!(
                "the target sent a digest for write {}, which asked for none",
                reply.seq
            )));
        }
    }
    Ok(())
}

fn on_content<I: Io, P: LinkPort<I>>(
    io: &mut I,
    port: &mut P,
    content: &blkrep_wire::Content,
) -> Result<(), Ending> {
    let part = ContentPart {
        incarnation: content.incarnation,
        seq: content.seq,
        volume: content.volume,
        extent: content.extent,
        known: content.bytes.is_some(),
    };
    let bytes = content.bytes.as_deref().unwrap_or_default();
    if port.content(io, &part, bytes) {
        Ok(())
    } else {
        Err(Ending::protocol(format!(
            "the target answered a read at {}, which asked for something else",
            content.seq
        )))
    }
}

/// What the source says first, as a frame.
pub(super) fn hello_message(facts: &HelloFacts, settings: &super::control::LinkSettings) -> Hello {
    let volume = |volume: &blkrep_core::source::VolumeFacts| HelloVolume {
        index: volume.index,
        name: volume.name.clone(),
        len: volume.len,
        block_size: volume.block_size,
        extent_size: volume.extent_size,
        path: volume.target_path.clone(),
    };
    Hello {
        versions: (VERSION_MIN, VERSION_MAX),
        node: settings.node.clone(),
        group: facts.group.clone(),
        link: facts.link.clone(),
        history: facts.history.clone(),
        incarnation: facts.incarnation,
        mode: facts.mode,
        mirror: facts.first_mirror,
        overwrite: facts.overwrite,
        heartbeat: settings.heartbeat,
        timeout: settings.timeout,
        volumes: facts.volumes.iter().map(volume).collect(),
    }
}

impl Lines {
    /// Queues the last words; false if there is no room for them.
    pub(super) fn farewell(&mut self, code: FarewellCode, text: &str) -> bool {
        let farewell = Farewell {
            code,
            text: text.to_owned(),
        };
        let message = match code {
            FarewellCode::Stopping | FarewellCode::Disconnected | FarewellCode::Promoted => {
                Message::Goodbye(farewell)
            }
            FarewellCode::Protocol
            | FarewellCode::Timeout
            | FarewellCode::Failed
            | FarewellCode::Order
            | FarewellCode::Replaced => Message::Error(farewell),
        };
        self.outbox.message(&mut self.encoder, &message)
    }

    /// Remembers why peer or group said no.
    pub(super) fn refuse(&mut self, code: Option<RefuseCode>, text: String) {
        let refusal = Refusal { code, text };
        self.watch.event(&LinkEvent::Refused(refusal.clone()));
        self.snapshot.refusal = Some(refusal);
    }
}
