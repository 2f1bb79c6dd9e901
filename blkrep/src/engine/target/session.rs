//! One connection of a source, from its hello to its end.
//!
//! Owns what is said and in which order: the answer, the map, acknowledgements, digests, farewell.
//! One send and one receive are under way at most; what is to be said is made when the send before
//! it is done, so that it is as new as it can be.

use super::contents::Contents;
use super::joined::Joined;
use blkrep_core::target::{Order, Part, Turn};
use blkrep_io::Slice;
use blkrep_types::{ExtentIndex, Nanos, NoteReport, Record, VolumeIndex, planted};
use blkrep_wire::limits::{DIGESTS_MAX, MAP_PART_BYTES_MAX};
use blkrep_wire::{
    Again, DataFrame, Decoder, DigestReply, Encoder, Farewell, FarewellCode, Hello, MapEnd,
    MapPart, Message, Place, SessionId,
};
use std::collections::VecDeque;

/// Where a connection is.
///
/// ```text
///   Greeting ──► Awaiting ──► Adopting ──► Streaming
///      │            │  └──────────────────────▲ │
///      └────────────┴──────► Closing ◄──────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Answer and map are being sent.
    Greeting,
    /// They are; the source decides.
    Awaiting,
    /// The replica is being taken over.
    Adopting,
    /// Records come.
    Streaming,
    /// The farewell is being said; then nothing more.
    Closing,
}

impl Phase {
    const fn may_become(self, next: Self) -> bool {
        match (self, next) {
            (Self::Greeting, Self::Awaiting)
            | (Self::Awaiting, Self::Adopting | Self::Streaming)
            | (Self::Adopting, Self::Streaming)
            | (Self::Greeting | Self::Awaiting | Self::Adopting | Self::Streaming, Self::Closing) => {
                true
            }
            (Self::Greeting, Self::Greeting | Self::Adopting | Self::Streaming)
            | (Self::Awaiting, Self::Greeting | Self::Awaiting)
            | (Self::Adopting, Self::Greeting | Self::Awaiting | Self::Adopting)
            | (
                Self::Streaming,
                Self::Greeting | Self::Awaiting | Self::Adopting | Self::Streaming,
            )
            | (Self::Closing, _) => false,
        }
    }
}

/// A batch that is not used up.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) frame: DataFrame,
    /// How many of its records are.
    pub(super) used: usize,
    /// Among the batches of all connections, where there are several.
    place: Option<Place>,
}

impl Waiting {
    pub(super) const fn new(frame: DataFrame, place: Option<Place>) -> Self {
        Self {
            frame,
            used: 0,
            place,
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Session<S> {
    pub(super) socket: S,
    pub(super) hello: Box<Hello>,
    /// Names its operations, so that those of an earlier connection are not taken for them.
    pub(super) serial: u64,
    pub(super) since: Nanos,
    pub(super) heard: Nanos,
    pub(super) said: Nanos,
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    pub(super) receiving: bool,
    /// What is left of the frame that is being sent.
    pub(super) sending: Option<Slice>,
    pub(super) out: Slice,
    /// The batch in hand.
    pub(super) waiting: Option<Waiting>,
    /// What the source said of the next batch.
    pub(super) place: Option<Place>,
    /// The version that was agreed on.
    pub(super) version: u16,
    /// What further connections name.
    pub(super) id: SessionId,
    /// The order of batches, where there are several connections.
    pub(super) order: Option<Order>,
    pub(super) joined: Vec<Joined<S>>,
    /// The source is to hear that a batch is lost.
    again: Option<Again>,
    pub(super) pongs: Vec<u64>,
    digests: Vec<DigestReply>,
    contents: Contents,
    notes: VecDeque<NoteReport>,
    /// The source hears of notes.
    takes_notes: bool,
    pub(super) ack_due: bool,
    welcome: Option<Message>,
    map: MapCursor,
    farewell: Option<Message>,
    phase: Phase,
    pub(super) closed: bool,
    pub(super) reason: String,
}

#[derive(Debug)]
enum MapCursor {
    Next {
        volume: usize,
        first: u64,
        parts: u32,
    },
    Done,
}

/// Digests that wait to be sent. A source asks for a few hundred at a time and again at every
/// connection; one that leaves this many untaken does not listen.
const DIGESTS_WAITING_MAX: usize = 8 * DIGESTS_MAX;

/// Answers of reads that wait to be sent, those that cannot be told among them: more than a source asks
/// for at a time.
const CONTENTS_WAITING_MAX: usize = 1024;

/// Notes of which the source is to hear: as many as a target remembers.
const NOTES_WAITING_MAX: usize = 256;

/// Pings that wait for their answer; a source has one under way.
const PONGS_MAX: usize = 8;

/// What a connection begins with.
pub(super) struct Beginning<S> {
    pub(super) socket: S,
    pub(super) hello: Box<Hello>,
    pub(super) serial: u64,
    pub(super) now: Nanos,
    pub(super) decoder: Decoder,
    pub(super) out: Slice,
    pub(super) takes_notes: bool,
    pub(super) welcome: Message,
    pub(super) version: u16,
    pub(super) id: SessionId,
}

impl<S: Clone> Session<S> {
    pub(super) fn new(beginning: Beginning<S>) -> Self {
        Self {
            socket: beginning.socket,
            hello: beginning.hello,
            serial: beginning.serial,
            since: beginning.now,
            heard: beginning.now,
            said: beginning.now,
            decoder: beginning.decoder,
            encoder: Encoder::new(),
            receiving: false,
            sending: None,
            out: beginning.out,
            waiting: None,
            place: None,
            version: beginning.version,
            id: beginning.id,
            order: None,
            joined: Vec::new(),
            again: None,
            pongs: Vec::new(),
            digests: Vec::new(),
            contents: Contents::default(),
            notes: VecDeque::new(),
            takes_notes: beginning.takes_notes,
            ack_due: false,
            welcome: Some(beginning.welcome),
            map: MapCursor::Next {
                volume: 0,
                first: 0,
                parts: 0,
            },
            farewell: None,
            phase: Phase::Greeting,
            closed: false,
            reason: String::new(),
        }
    }

    pub(super) const fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn become_phase(&mut self, next: Phase) {
        assert!(
            self.phase.may_become(next),
            "{:?} does not become {next:?}",
            self.phase
        );
        self.phase = next;
    }

    /// Ends the connection, with a word to the source.
    pub(super) fn end(&mut self, code: FarewellCode, text: String) {
        if self.phase == Phase::Closing {
            return;
        }
        self.become_phase(Phase::Closing);
        self.waiting = None;
        self.reason.clone_from(&text);
        let farewell = Farewell { code, text };
        self.farewell = Some(match code {
            FarewellCode::Stopping | FarewellCode::Disconnected | FarewellCode::Replaced => {
                Message::Goodbye(farewell)
            }
            FarewellCode::Protocol
            | FarewellCode::Timeout
            | FarewellCode::Failed
            | FarewellCode::Promoted
            | FarewellCode::Order => Message::Error(farewell),
        });
    }

    /// Ends it without a word: nobody would hear it.
    pub(super) fn drop_it(&mut self, reason: &str) {
        if self.phase != Phase::Closing {
            self.become_phase(Phase::Closing);
            self.waiting = None;
            reason.clone_into(&mut self.reason);
        }
        self.farewell = None;
        self.closed = true;
    }

    /// The batch whose turn it is, with the number of its connection here. Those that come again are
    /// dropped.
    pub(super) fn next_batch(&mut self) -> Option<(usize, Waiting)> {
        let mut at: usize = 0;
        loop {
            let slot = match at.checked_sub(1) {
                None => &mut self.waiting,
                Some(index) => &mut self.joined.get_mut(index)?.waiting,
            };
            let turn = match (slot.as_ref().map(|waiting| waiting.place), &mut self.order) {
                (None, _) => Turn::Later,
                (Some(Some(place)), Some(order)) => order.turn(place.lap, place.batch),
                (Some(_), _) => Turn::Now,
            };
            match turn {
                Turn::Now => return slot.take().map(|waiting| (at, waiting)),
                Turn::Later => {}
                Turn::Stale => *slot = None,
                Turn::Repeated => {
                    let text = "two batches have the same place".to_owned();
                    self.end(FarewellCode::Protocol, text);
                    return None;
                }
            }
            at += 1;
        }
    }

    /// With no batch whose turn it is: if every connection that lives has one whose turn has not come, the one
    /// before them was on a connection that is lost, of a lap that nobody knew of then. True if so: all of them
    /// are stale now.
    pub(super) fn is_stuck(&mut self) -> bool {
        let mut living = self.joined.iter().filter(|each| each.gone.is_none());
        let stuck = self.order.is_some()
            && self.waiting.is_some()
            && living.all(|each| each.waiting.is_some());
        if stuck {
            self.break_lap();
        }
        stuck
    }

    /// What is left of a batch waits for room.
    pub(super) fn put_back(&mut self, at: usize, waiting: Waiting) {
        let slot = match at.checked_sub(1) {
            None => &mut self.waiting,
            Some(index) => &mut self.joined[index].waiting,
        };
        *slot = Some(waiting);
    }

    /// A batch of this lap may be lost.
    pub(super) fn break_lap(&mut self) {
        let Some(order) = &mut self.order else {
            return;
        };
        order.lose();
        // Whoever is not told which it is would go on sending there: its end may never be heard.
        let lives = |index: u8| {
            let mut all = self.joined.iter();
            all.any(|each| each.index == index && each.gone.is_none())
        };
        let gone = self.joined.iter().filter(|each| each.gone.is_some());
        let gone = gone.filter(|each| !lives(each.index));
        let lost = gone.fold(0, |lost, each| lost | 1 << each.index);
        let before = self.again.map_or(0, |again| again.lost);
        self.again = Some(Again {
            lap: order.lap(),
            lost: lost | before,
        });
    }

    /// Bytes that wait for their turn.
    pub(super) fn out_of_order(&self) -> usize {
        let main = self.order.and(self.waiting.as_ref());
        let main = main.map(|waiting| (waiting, self.decoder.held()));
        let joined = self.joined.iter();
        let joined = joined.filter_map(|each| Some((each.waiting.as_ref()?, each.held())));
        let all = joined.chain(main);
        all.map(|(waiting, behind)| waiting.frame.data_bytes() + behind)
            .sum()
    }

    pub(super) fn pong(&mut self, stamp: u64) {
        if self.pongs.len() < PONGS_MAX {
            self.pongs.push(stamp);
        }
    }

    /// Queues a digest. Whoever takes none of them is not waited for.
    pub(super) fn digest(&mut self, reply: DigestReply) {
        if self.phase != Phase::Streaming {
            return;
        }
        if self.digests.len() == DIGESTS_WAITING_MAX {
            self.drop_it("the source takes none of the digests it asked for");
            return;
        }
        self.digests.push(reply);
    }

    /// Queues what a read found, `None` if that cannot be told. What is not taken comes back.
    pub(super) fn content(&mut self, record: Record, whole: Option<Slice>) -> Option<Slice> {
        if self.phase != Phase::Streaming {
            return whole;
        }
        if self.contents.len() == CONTENTS_WAITING_MAX {
            self.drop_it("the source takes none of what it asked for");
            return whole;
        }
        self.contents.push(record, whole);
        None
    }

    /// Answers of reads that wait to be sent.
    pub(super) fn contents(&self) -> usize {
        self.contents.len()
    }

    /// Memory of answers that were sent.
    pub(super) fn take_said(&mut self) -> impl Iterator<Item = Slice> + use<S> {
        self.contents.take_said()
    }

    /// Queues what became of a note. What is too much is told at the next connection.
    pub(super) fn note(&mut self, report: NoteReport) {
        if self.phase == Phase::Streaming && self.takes_notes {
            self.notes.retain(|waiting| waiting.id != report.id);
            if self.notes.len() == NOTES_WAITING_MAX {
                self.notes.pop_front();
            }
            self.notes.push_back(report);
        }
    }

    /// True if everything that had to be said was.
    pub(super) const fn is_silent(&self) -> bool {
        self.sending.is_none() && self.farewell.is_none()
    }

    /// What is said next; `ack` is asked for only if nothing more urgent is.
    pub(super) fn next_message(
        &mut self,
        part: &Part,
        unknown: bool,
        ack: impl FnOnce() -> Message,
    ) -> Option<Message> {
        match self.phase {
            Phase::Greeting => Some(self.greet(part, unknown)),
            Phase::Closing => self.farewell.take(),
            Phase::Awaiting | Phase::Adopting | Phase::Streaming => {
                if let Some(stamp) = self.pongs.pop() {
                    return Some(Message::Pong(stamp));
                }
                if let Some(again) = self.again.take() {
                    return Some(Message::Again(again));
                }
                if !self.digests.is_empty() {
                    let count = self.digests.len().min(DIGESTS_MAX);
                    return Some(Message::Digests(self.digests.drain(..count).collect()));
                }
                if let Some(content) = self.contents.next() {
                    return Some(Message::Content(content));
                }
                if let Some(report) = self.notes.pop_front() {
                    return Some(Message::Note(Box::new(report)));
                }
                if !std::mem::take(&mut self.ack_due) {
                    return None;
                }
                // Before the stream begins there is nothing to acknowledge but that we live.
                Some(if self.phase == Phase::Streaming {
                    ack()
                } else {
                    Message::Ping(0)
                })
            }
        }
    }

    fn greet(&mut self, part: &Part, unknown: bool) -> Message {
        if let Some(welcome) = self.welcome.take() {
            return welcome;
        }
        while let MapCursor::Next {
            volume,
            first,
            parts,
        } = self.map
        {
            let unsaid = planted!(TargetMapNotHandedOver);
            if unknown || unsaid || volume == part.layout().volumes() {
                self.map = MapCursor::Done;
                self.become_phase(Phase::Awaiting);
                return Message::MapEnd(MapEnd {
                    part_count: parts,
                    unknown,
                });
            }
            let index = VolumeIndex::new(u16::try_from(volume).expect("few volumes"));
            let (begin, last) = part.layout().volume_bits(index);
            if begin + first > last {
                self.map = MapCursor::Next {
                    volume: volume + 1,
                    first: 0,
                    parts,
                };
                continue;
            }
            let count = (last + 1 - begin - first).min(MAP_PART_BYTES_MAX as u64 * 8);
            self.map = MapCursor::Next {
                volume,
                first: first + count,
                parts,
            };
            if let Some(message) = map_part(part, index, begin, first, count) {
                self.map = MapCursor::Next {
                    volume,
                    first: first + count,
                    parts: parts + 1,
                };
                return Message::MapPart(message);
            }
        }
        unreachable!("the greeting ends with the map's end")
    }
}

/// A stretch of the map, if it has a bit. Volumes begin at a word, stretches too.
fn map_part(
    part: &Part,
    volume: VolumeIndex,
    begin: u64,
    first: u64,
    count: u64,
) -> Option<MapPart> {
    let start = begin + first;
    let end = start + count;
    part.bits().next(start).filter(|bit| *bit < end)?;
    assert!(start.is_multiple_of(64), "a stretch begins at a word");
    let word = |index: u64| usize::try_from(index / 64).expect("64-bit platform");
    let words = word(start)..word(end.next_multiple_of(64));
    let mut bits: Vec<u8> = words
        .flat_map(|index| part.bits().word(index).to_le_bytes())
        .collect();
    bits.truncate(usize::try_from(count.div_ceil(8)).expect("64-bit platform"));
    if let Some(last) = bits.last_mut()
        && !count.is_multiple_of(8)
    {
        *last &= !(0xff << (count % 8));
    }
    Some(MapPart {
        volume,
        extent_size: part.layout().size(volume),
        first: ExtentIndex::new(first),
        bit_count: u32::try_from(count).expect("a part is bounded"),
        bits,
    })
}
