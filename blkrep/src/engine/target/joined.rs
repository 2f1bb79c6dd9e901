//! A further connection of a session.
//!
//! Owns its socket, its buffers and the batch in hand whose turn has not come. Bytes enter, batches
//! with their places leave; all it says is that it lives. Its end is not that of the session.

use super::session::Waiting;
use blkrep_io::{Region, Slice};
use blkrep_types::{Errno, Nanos};
use blkrep_wire::limits::{JOINED_BODY_MAX, PACKED_PLAIN_MAX, buffer_bytes};
use blkrep_wire::{Decoder, Encoder, Frame, Inflater, Message, Place};

/// Bytes of what is said on it: small messages only.
const OUT_BYTES: usize = 4096;

/// Pings that wait for their answer; a source has one under way.
const PONGS_MAX: usize = 8;

/// What it receives into, inflates into and sends from.
#[derive(Debug, Clone)]
pub(super) struct JoinedBuffers {
    receive: Slice,
    inflate: Slice,
    out: Slice,
}

impl JoinedBuffers {
    /// Bytes that can be held until their turn comes.
    pub(super) const RECEIVE_BYTES: usize = buffer_bytes(JOINED_BODY_MAX);

    /// Pages that are not touched cost nothing.
    pub(super) fn new() -> Result<Self, Errno> {
        let memory = |bytes: usize| Region::anonymous(bytes).map(|region| region.whole());
        Ok(Self {
            receive: memory(Self::RECEIVE_BYTES)?,
            inflate: memory(PACKED_PLAIN_MAX)?,
            out: memory(OUT_BYTES)?,
        })
    }
}

/// A further connection.
#[derive(Debug)]
pub(super) struct Joined<S> {
    pub(super) socket: S,
    /// Which of the session's connections it is.
    pub(super) index: u8,
    /// Names its operations.
    pub(super) serial: u64,
    pub(super) heard: Nanos,
    said: Nanos,
    buffers: JoinedBuffers,
    decoder: Decoder,
    encoder: Encoder,
    pub(super) receiving: bool,
    /// What is left of the frame that is being sent.
    pub(super) sending: Option<Slice>,
    greeted: bool,
    version: u16,
    pongs: Vec<u64>,
    /// What the source said of the next batch.
    place: Option<Place>,
    /// The batch in hand.
    pub(super) waiting: Option<Waiting>,
    /// It is being shut, and why.
    pub(super) gone: Option<String>,
    pub(super) shut: bool,
    /// The lap is broken because of it.
    pub(super) counted: bool,
}

/// What came of a look at what was received.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing that is whole.
    Nothing,
    /// Something that needs nobody else.
    Taken,
    /// A batch; of so many bytes of data.
    Batch(u64),
}

impl<S> Joined<S> {
    pub(super) fn new(
        socket: S,
        (index, serial): (u8, u64),
        now: Nanos,
        version: u16,
        buffers: JoinedBuffers,
    ) -> Self {
        let mut decoder = Decoder::new(buffers.receive.clone(), JOINED_BODY_MAX);
        decoder.continue_after_first();
        decoder.agree(version);
        if let Some(inflater) = Inflater::new(buffers.inflate.clone()) {
            decoder.inflate_with(inflater);
        }
        Self {
            socket,
            index,
            serial,
            heard: now,
            said: now,
            buffers,
            decoder,
            encoder: Encoder::new(),
            receiving: false,
            sending: None,
            greeted: false,
            version,
            pongs: Vec::new(),
            place: None,
            waiting: None,
            gone: None,
            shut: false,
            counted: false,
        }
    }

    /// It is of no more use.
    pub(super) fn drop_it(&mut self, why: impl Into<String>) {
        self.waiting = None;
        self.place = None;
        self.gone.get_or_insert_with(|| why.into());
    }

    /// True if nothing of it is under way any more.
    pub(super) const fn is_over(&self) -> bool {
        self.gone.is_some() && self.shut && !self.receiving && self.sending.is_none()
    }

    pub(super) fn into_buffers(self) -> JoinedBuffers {
        self.buffers
    }

    /// Bytes that are held.
    pub(super) const fn held(&self) -> usize {
        self.decoder.held()
    }

    /// Where the next bytes go, if any are wanted now.
    pub(super) fn space(&mut self) -> Option<Slice> {
        let hungry = self.waiting.is_none() && !self.receiving && self.gone.is_none();
        hungry.then(|| self.decoder.space())
    }

    pub(super) fn received(&mut self, now: Nanos, result: Result<u32, Errno>) {
        self.receiving = false;
        match result {
            Ok(0) => self.drop_it("the source closed it"),
            Err(errno) => self.drop_it(errno.to_string()),
            Ok(count) => {
                self.heard = now;
                let count = usize::try_from(count).expect("64-bit platform");
                self.decoder.received(count);
            }
        }
    }

    /// Takes the next frame.
    pub(super) fn hear(&mut self) -> Heard {
        if self.waiting.is_some() || self.gone.is_some() {
            return Heard::Nothing;
        }
        match self.decoder.next() {
            Ok(None) => return Heard::Nothing,
            Ok(Some(Frame::Data(frame))) => {
                if let Some(place) = self.place.take() {
                    let bytes = frame.data_bytes() as u64;
                    self.waiting = Some(Waiting::new(frame, Some(place)));
                    return Heard::Batch(bytes);
                }
                self.drop_it("a batch had no place");
            }
            Ok(Some(Frame::Message(message))) => self.message(&message),
            Err(error) => self.drop_it(error.to_string()),
        }
        Heard::Taken
    }

    fn message(&mut self, message: &Message) {
        match message {
            // Without a batch behind it, it only says which lap the source is in.
            Message::Place(place) => self.place = Some(*place),
            Message::Ping(stamp) => {
                if self.pongs.len() < PONGS_MAX {
                    self.pongs.push(*stamp);
                }
            }
            Message::Pong(_) => {}
            Message::Error(farewell) | Message::Goodbye(farewell) => {
                self.drop_it(farewell.text.clone());
            }
            other => self.drop_it(format!("a frame '{}' has no place here", other.kind())),
        }
    }

    /// The lap that the source spoke of last.
    pub(super) fn lap(&self) -> Option<u32> {
        self.place.map(|place| place.lap)
    }

    /// What is said next, as bytes.
    pub(super) fn say(&mut self, now: Nanos, beats_at: Nanos) -> Option<Slice> {
        if self.sending.is_some() || self.gone.is_some() {
            return None;
        }
        let message = if !self.greeted {
            Message::Joined(self.index)
        } else if let Some(stamp) = self.pongs.pop() {
            Message::Pong(stamp)
        } else if now >= beats_at {
            Message::Ping(0)
        } else {
            return None;
        };
        let len = self.encoder.message(&message, &self.buffers.out);
        let len = len.expect("small messages fit");
        if !std::mem::replace(&mut self.greeted, true) {
            self.encoder.agree(self.version);
        }
        self.said = now;
        self.sending = Some(self.buffers.out.part(0..len));
        self.sending.clone()
    }

    pub(super) const fn said(&self) -> Nanos {
        self.said
    }

    /// The send ended; what is left of it.
    pub(super) fn sent(&mut self, result: Result<u32, Errno>) -> Option<Slice> {
        let slice = self.sending.take().expect("a send was under way");
        match result {
            Ok(count) => {
                let count = usize::try_from(count).expect("64-bit platform");
                if count < slice.len() && self.gone.is_none() {
                    self.sending = Some(slice.part(count..slice.len()));
                }
            }
            Err(errno) => self.drop_it(errno.to_string()),
        }
        self.sending.clone()
    }
}
