//! Sessions of several connections: order, what a loss costs, and who may join.

use super::super::*;
use super::rig::Rig;
use super::source::{Book, extent};
use blkrep_io::sim::{Next, SimIo, SimSocket};
use blkrep_io::{Completion, Host as _, Io, Op, Region, Slice, Worker};
use blkrep_types::{
    ByteLen, Incarnation, LinkName, NodeName, Record, RecordKind, Seq, VolumeIndex, WriteName,
};
use blkrep_wire::limits::{HELLO_BODY_MAX, TARGET_BODY_MAX, buffer_bytes};
use blkrep_wire::{
    Ack, Again, Decoder, Encoder, Entry, FRAME_HEADER_BYTES, Frame, Join, Message, Place, Refuse,
    SessionId, Start, VERSION_CONNECTIONS, Welcome,
};
use std::collections::VecDeque;
use std::time::Duration;

/// One connection of a source that does as the test says.
struct Way {
    socket: Option<SimSocket>,
    encoder: Encoder,
    decoder: Decoder,
    out: VecDeque<Slice>,
    sending: bool,
    receiving: bool,
}

/// A source whose every frame is given by the test.
#[derive(Default)]
struct Hand {
    ways: Vec<Way>,
    peer: Option<std::net::SocketAddr>,
    welcome: Option<Welcome>,
    ack: Option<Ack>,
    again: Vec<Again>,
    joined: Vec<u8>,
    refused: Vec<Refuse>,
    farewell: Option<String>,
}

impl Hand {
    fn connect(&mut self, io: &mut SimIo) -> usize {
        let buffer = Region::heap(buffer_bytes(TARGET_BODY_MAX)).whole();
        self.ways.push(Way {
            socket: None,
            encoder: Encoder::new(),
            decoder: Decoder::new(buffer, TARGET_BODY_MAX),
            out: VecDeque::new(),
            sending: false,
            receiving: false,
        });
        let way = self.ways.len() - 1;
        let peer = self.peer.unwrap();
        io.submit(way as u64 * 4, Op::Connect { peer });
        way
    }

    fn say(&mut self, way: usize, message: &Message) {
        let slice = Region::heap(FRAME_HEADER_BYTES + HELLO_BODY_MAX).whole();
        let way = &mut self.ways[way];
        let len = way.encoder.message(message, &slice).unwrap();
        way.out.push_back(slice.part(0..len));
    }

    /// One write of 512 bytes of `seq` at its own sector, as a batch.
    fn batch(&mut self, way: usize, lap: u32, batch: u64, seq: u64) {
        self.say(way, &Message::Place(Place { lap, batch }));
        self.write(way, seq);
    }

    fn write(&mut self, way: usize, seq: u64) {
        let bytes = Region::heap(512).whole();
        bytes.with_mut(|bytes| bytes.fill(u8::try_from(seq).unwrap()));
        let entry = Entry {
            record: Record {
                incarnation: Incarnation::new(1),
                seq: Seq::new(seq),
                kind: RecordKind::Data { mirror: false },
                volume: VolumeIndex::new(0),
                extent: Some(extent(seq * 512, 512)),
            },
            bytes: Some(bytes),
        };
        let slice = Region::heap(4096).whole();
        let way = &mut self.ways[way];
        let len = way.encoder.data(&[entry], &slice).unwrap();
        way.out.push_back(slice.part(0..len));
    }

    fn heard(&mut self, at: usize) {
        while let Some(frame) = self.ways[at].decoder.next().unwrap() {
            let Frame::Message(message) = frame else {
                panic!("a target sends no records");
            };
            let agrees = matches!(message, Message::Welcome(_) | Message::Joined(_));
            match message {
                Message::Welcome(welcome) => self.welcome = Some(*welcome),
                Message::Joined(index) => self.joined.push(index),
                Message::Refuse(refuse) => self.refused.push(refuse),
                Message::Again(again) => self.again.push(again),
                Message::Ack(ack) => self.ack = Some(ack),
                Message::Error(bye) | Message::Goodbye(bye) => self.farewell = Some(bye.text),
                _ => {}
            }
            if agrees {
                self.ways[at].decoder.agree(VERSION_CONNECTIONS);
                self.ways[at].encoder.agree(VERSION_CONNECTIONS);
            }
        }
    }
}

impl Worker<SimIo> for Hand {
    fn start(&mut self, _: &mut SimIo) {}

    fn on_completion(&mut self, _: &mut SimIo, completion: Completion<SimSocket>) {
        let at = usize::try_from(completion.token / 4).unwrap();
        let way = &mut self.ways[at];
        let count = completion.result.unwrap_or(0) as usize;
        match completion.token % 4 {
            0 => way.socket = completion.socket,
            1 => {
                way.sending = false;
                let slice = way.out.pop_front().unwrap();
                if count < slice.len() && count > 0 {
                    way.out.push_front(slice.part(count..slice.len()));
                }
            }
            _ => {
                way.receiving = false;
                way.decoder.received(count);
                if count == 0 {
                    way.socket = None;
                }
                self.heard(at);
            }
        }
    }

    fn on_turn(&mut self, io: &mut SimIo) {
        for (at, way) in (0..).zip(&mut self.ways) {
            let Some(socket) = way.socket.clone() else {
                continue;
            };
            if !way.receiving {
                way.receiving = true;
                let (socket, slice) = (socket.clone(), way.decoder.space());
                io.submit(at * 4 + 2, Op::Recv { socket, slice });
            }
            if let Some(slice) = way.out.front().cloned().filter(|_| !way.sending) {
                way.sending = true;
                io.submit(at * 4 + 1, Op::Send { socket, slice });
            }
        }
    }

    fn deadline(&self) -> Option<blkrep_types::Nanos> {
        None
    }

    fn finished(&self) -> bool {
        false
    }
}

struct Several {
    rig: Rig,
    io: SimIo,
    hand: Hand,
    _host: blkrep_io::sim::SimHost,
}

impl Several {
    /// A session of `connections`, joined by all of them, whose stream begins with write 2.
    fn new(seed: u64, connections: u8) -> Self {
        let mut rig = Rig::new(seed);
        rig.book.borrow_mut().write(0, 3, 1, 0x11, false);
        rig.settle();
        rig.book.borrow_mut().connect = false;
        rig.poke();
        rig.run(Duration::from_secs(1));
        let host = rig.world.start(rig.source_node);
        let io = host.ring(64).unwrap();
        let peer = rig.book.borrow().peer;
        let hand = Hand {
            peer: Some(peer),
            ..Hand::default()
        };
        let mut several = Self {
            rig,
            io,
            hand,
            _host: host,
        };
        several.io.begin(&mut several.hand);
        let main = several.hand.connect(&mut several.io);
        let hello = several.rig.book.borrow().hello();
        several.hand.say(main, &Message::Hello(Box::new(hello)));
        several.run();
        let welcome = several.hand.welcome.clone().unwrap();
        assert_eq!(welcome.connections, 16);
        let head = several.rig.book.borrow().head();
        assert_eq!(welcome.durable, head);
        let start = Start {
            after: head,
            head,
            generation: head.generation,
            adopt: false,
            connections,
        };
        several.hand.say(main, &Message::Start(start));
        for index in 1..connections {
            several.join(index, welcome.session);
        }
        several.run();
        assert_eq!(several.hand.joined.len(), usize::from(connections) - 1);
        several
    }

    fn join(&mut self, index: u8, session: SessionId) -> usize {
        let way = self.hand.connect(&mut self.io);
        let book = self.rig.book.borrow();
        let join = Join {
            version: VERSION_CONNECTIONS,
            index,
            session,
            node: book.node.clone(),
            group: book.group.clone(),
            link: book.link.clone(),
        };
        drop(book);
        self.hand.say(way, &Message::Join(Box::new(join)));
        way
    }

    /// Lets a second pass.
    fn run(&mut self) {
        self.rig
            .world
            .wake_after(self.io.id(), Duration::from_micros(1));
        let until = self.rig.world.now().after(Duration::from_secs(1));
        loop {
            match self.rig.world.next(until) {
                Next::Until => return,
                Next::Ring(ring) if ring == self.io.id() => self.io.turn(&mut self.hand),
                Next::Ring(ring) => self.rig.turn(ring),
            }
        }
    }

    /// The kernel tells both ends that a connection is no more.
    fn lose(&mut self, way: usize) {
        let socket = self.hand.ways[way].socket.take().unwrap();
        self.io.shutdown(&socket);
        drop(socket);
        self.run();
    }

    fn received(&self) -> u64 {
        let ack = self.hand.ack.unwrap();
        let own = |name: WriteName| name.incarnation == Incarnation::new(1);
        assert!(own(ack.received) && own(ack.durable));
        ack.received.seq.get()
    }

    fn first(&self) -> u64 {
        self.rig.book.borrow().head().seq.get() + 1
    }
}

/// Bytes that were acknowledged are in the base after all.
fn check(several: &mut Several, first: u64, count: u64) {
    several.run();
    let bases = several.rig.bases();
    for seq in first..first + count {
        let at = usize::try_from(seq * 512).unwrap();
        assert_eq!(bases[0][at], u8::try_from(seq).unwrap(), "write {seq}");
    }
}

#[test]
fn batches_of_several_connections_are_taken_in_their_order() {
    let mut several = Several::new(601, 3);
    let first = several.first();
    several.hand.batch(2, 0, 3, first + 3);
    several.hand.batch(1, 0, 1, first + 1);
    several.hand.batch(1, 0, 2, first + 2);
    several.run();
    assert_eq!(several.received(), first - 1, "the first one is not there");
    let status = several.rig.control().status().unwrap();
    assert_eq!(status.connections, 3);
    assert!(status.out_of_order > ByteLen::ZERO, "{status:?}");
    several.hand.batch(0, 0, 0, first);
    several.run();
    assert_eq!(several.received(), first + 3);
    check(&mut several, first, 4);
}

#[test]
fn what_was_on_a_connection_that_is_lost_is_asked_for_again() {
    let mut several = Several::new(602, 3);
    let first = several.first();
    several.hand.batch(0, 0, 0, first);
    several.hand.batch(1, 0, 2, first + 2);
    several.run();
    assert_eq!(several.received(), first);
    several.lose(2);
    assert_eq!(several.hand.again, [Again { lap: 0, lost: 4 }]);
    assert!(
        several
            .rig
            .events
            .any(|event| matches!(event, TargetEvent::ConnectionLost { index: 2, .. }))
    );
    // What is late of the lap that is over is not taken, whatever its number.
    several.hand.batch(0, 0, 1, first + 1);
    several.run();
    assert_eq!(several.received(), first);
    several.hand.batch(1, 1, 1, first + 2);
    several.hand.batch(0, 1, 0, first);
    several.run();
    assert_eq!(several.received(), first, "write 1 of the lap is a gap");
    assert!(several.hand.farewell.is_some(), "and that is the end of it");
}

#[test]
fn the_next_lap_goes_on_where_the_target_is() {
    let mut several = Several::new(603, 2);
    let first = several.first();
    several.hand.batch(0, 0, 0, first);
    several.hand.batch(0, 0, 2, first + 2);
    several.run();
    several.lose(1);
    assert_eq!(several.hand.again, [Again { lap: 0, lost: 2 }]);
    let session = several.hand.welcome.clone().unwrap().session;
    let again = several.join(1, session);
    several.run();
    several.hand.batch(again, 1, 1, first + 1);
    several.hand.batch(0, 1, 0, first);
    several.hand.batch(0, 1, 2, first + 2);
    several.run();
    assert_eq!(several.received(), first + 2);
    assert_eq!(several.hand.farewell, None);
    check(&mut several, first, 3);
}

/// A connection was lost that carried a batch of a lap of which the target had heard nothing yet. It waited for that
/// batch on another connection, and behind it stood the lap that would have told it (simulator, seed 201371).
#[test]
fn a_lap_that_is_spoken_of_elsewhere_ends_the_wait_for_one_that_is_over() {
    let mut several = Several::new(605, 3);
    let first = several.first();
    several.lose(2);
    assert_eq!(several.hand.again, [Again { lap: 0, lost: 4 }]);
    several.hand.batch(0, 1, 1, first + 1);
    several.hand.batch(0, 2, 0, first);
    several.hand.batch(0, 2, 1, first + 1);
    several.run();
    assert_eq!(
        several.received(),
        first - 1,
        "write 0 of lap 1 may still come"
    );
    several
        .hand
        .say(1, &Message::Place(Place { lap: 2, batch: 0 }));
    several.run();
    assert_eq!(several.received(), first + 1);
    several.hand.batch(1, 2, 2, first + 2);
    several.run();
    assert_eq!(several.received(), first + 2, "what follows has its place");
    assert_eq!(several.hand.farewell, None);
    check(&mut several, first, 3);
}

#[test]
fn a_batch_that_no_living_connection_can_bring_is_asked_for_again() {
    let mut several = Several::new(606, 2);
    let first = several.first();
    several.lose(1);
    several.hand.batch(0, 1, 1, first + 1);
    several.run();
    let asked = several.hand.again.last().unwrap();
    assert_eq!((several.hand.again.len(), asked.lap), (2, 1));
    several.hand.batch(0, 2, 0, first);
    several.hand.batch(0, 2, 1, first + 1);
    several.run();
    assert_eq!(several.received(), first + 1);
    check(&mut several, first, 2);
}

/// A refusal that the kernel did not take at once was cut there: whoever was refused never heard why.
#[test]
fn a_connection_that_names_another_session_or_source_is_refused() {
    let mut several = Several::new(604, 2);
    let session = several.hand.welcome.clone().unwrap().session;
    several.join(1, SessionId::new(session.get() ^ 1));
    let way = several.hand.connect(&mut several.io);
    let book = Book::new(several.hand.peer.unwrap());
    let join = Join {
        version: VERSION_CONNECTIONS,
        index: 1,
        session,
        node: NodeName::new("mallory").unwrap(),
        group: book.group.clone(),
        link: LinkName::new("to-beta").unwrap(),
    };
    several.hand.say(way, &Message::Join(Box::new(join)));
    several.run();
    assert_eq!(several.hand.refused.len(), 2);
    assert_eq!(several.hand.joined, [1]);
    let refused = |event: &TargetEvent| matches!(event, TargetEvent::Refused { .. });
    let count = several
        .rig
        .events
        .all()
        .iter()
        .filter(|e| refused(e))
        .count();
    assert_eq!(count, 2);
    let first = several.first();
    several.hand.batch(1, 0, 1, first + 1);
    several.hand.batch(0, 0, 0, first);
    several.run();
    assert_eq!(several.received(), first + 1, "the session goes on");
}

/// A batch without a place, or one place twice: nothing of it is taken.
#[test]
fn a_source_that_does_not_say_its_places_loses_its_session() {
    for (seed, twice) in [(605, false), (606, true)] {
        let mut several = Several::new(seed, 2);
        let first = several.first();
        if twice {
            several.hand.batch(0, 0, 0, first);
            several.run();
            several.hand.batch(0, 0, 0, first + 1);
        } else {
            several.hand.write(0, first);
        }
        several.run();
        assert!(several.hand.farewell.is_some());
        let taken = if twice { first } else { first - 1 };
        assert_eq!(several.received(), taken);
    }
}
