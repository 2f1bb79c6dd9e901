//! The kinds of frame and what each carries.
//!
//! Owns the split between [`Message`], small and owned, and [`DataFrame`], whose bytes stay in the
//! buffer they were received in.

use crate::connections::{Again, Join, Place};
use crate::content::Content;
use crate::data::DataFrame;
use crate::handshake::{Hello, Refuse, Start, Welcome};
use crate::layout::DATA_HEAD_BYTES;
use crate::limits::{FRAME_DATA_BYTES_MAX, PACKED_PLAIN_MAX, SOURCE_BODY_MAX, TARGET_BODY_MAX};
use crate::stream::{Ack, DigestReply, Farewell, MapEnd, MapPart};
use blkrep_types::{NOTE_REPORT_BYTES_MAX, NoteReport};
use std::fmt;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal $text:literal),+ $(,)?) => {
        /// The kind of a frame, as its header says it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum FrameKind { $($(#[$doc])* $name = $number),+ }

        impl FrameKind {
            /// Every kind, in order of its number.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The kind with this number, if there is one.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }

            /// The number in the header.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self { $(Self::$name => $number),+ }
            }
        }

        impl fmt::Display for FrameKind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $text),+ })
            }
        }
    };
}

kinds! {
    /// Source: who I am, what I want to replicate.
    Hello = 1 "hello",
    /// Target: who I am, what I have.
    Welcome = 2 "welcome",
    /// Target: no, and why.
    Refuse = 3 "refuse",
    /// Target: extents in which I know I differ.
    MapPart = 4 "map-part",
    /// Target: that was all of my map.
    MapEnd = 5 "map-end",
    /// Source: the stream begins after this write.
    Start = 6 "start",
    /// Source: records of the stream.
    Data = 7 "data",
    /// Target: how far I am.
    Ack = 8 "ack",
    /// Target: digests that were asked for in the stream.
    Digests = 9 "digests",
    /// Either: are you there?
    Ping = 10 "ping",
    /// Either: I am.
    Pong = 11 "pong",
    /// Either: I cannot go on, and why.
    Error = 12 "error",
    /// Either: I end this in order, and why.
    Goodbye = 13 "goodbye",
    /// Source: records of the stream, packed.
    Packed = 14 "packed",
    /// Target: what became of a note.
    Note = 15 "note",
    /// Source: this connection is one more of a session.
    Join = 16 "join",
    /// Target: it is.
    Joined = 17 "joined",
    /// Source: where the next batch belongs among those of all connections.
    Place = 18 "place",
    /// Target: what was sent since this lap began has to be sent again.
    Again = 19 "again",
    /// Target: what an extent held that was asked for in the stream.
    Content = 20 "content",
}

impl FrameKind {
    /// The longest body of this kind.
    #[must_use]
    pub const fn body_bytes_max(self) -> usize {
        match self {
            Self::Data => SOURCE_BODY_MAX,
            // Packing makes smaller.
            Self::Packed => PACKED_PLAIN_MAX,
            Self::Hello => crate::limits::HELLO_BODY_MAX,
            Self::Welcome
            | Self::Refuse
            | Self::MapPart
            | Self::MapEnd
            | Self::Start
            | Self::Ack
            | Self::Digests
            | Self::Ping
            | Self::Pong
            | Self::Error
            | Self::Goodbye
            | Self::Join
            | Self::Joined
            | Self::Place
            | Self::Again
            | Self::Content => TARGET_BODY_MAX,
            Self::Note => NOTE_REPORT_BYTES_MAX,
        }
    }

    /// True if the lengths of a body and of its part under the body's checksum can be right: all
    /// of it, but for the bytes of records, which have checksums of their own.
    #[must_use]
    pub(crate) const fn lengths_fit(self, body: usize, checked: usize) -> bool {
        let right = match self {
            Self::Data => {
                checked >= DATA_HEAD_BYTES
                    && checked <= body
                    && body - checked <= FRAME_DATA_BYTES_MAX
            }
            _ => checked == body,
        };
        right && body <= self.body_bytes_max()
    }
}

/// A frame that is small and owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Source: who I am, what I want to replicate.
    Hello(Box<Hello>),
    /// Target: who I am, what I have.
    Welcome(Box<Welcome>),
    /// Target: no, and why.
    Refuse(Refuse),
    /// Target: extents in which I know I differ.
    MapPart(MapPart),
    /// Target: that was all of my map.
    MapEnd(MapEnd),
    /// Source: the stream begins after this write.
    Start(Start),
    /// Target: how far I am.
    Ack(Ack),
    /// Target: digests that were asked for in the stream.
    Digests(Vec<DigestReply>),
    /// Target: what became of a note; from version 3 on.
    Note(Box<NoteReport>),
    /// Either: are you there? The stamp comes back.
    Ping(u64),
    /// Either: I am. The stamp of the ping.
    Pong(u64),
    /// Either: I cannot go on, and why.
    Error(Farewell),
    /// Either: I end this in order, and why.
    Goodbye(Farewell),
    /// Source: this connection is one more of a session.
    Join(Box<Join>),
    /// Target: it is, with this index.
    Joined(u8),
    /// Source: where the next batch belongs among those of all connections.
    Place(Place),
    /// Target: a batch is lost; all that is not acknowledged has to be sent again.
    Again(Again),
    /// Target: what an extent held that was asked for in the stream; from version 3 on.
    Content(Content),
}

impl Message {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> FrameKind {
        match self {
            Self::Hello(_) => FrameKind::Hello,
            Self::Welcome(_) => FrameKind::Welcome,
            Self::Refuse(_) => FrameKind::Refuse,
            Self::MapPart(_) => FrameKind::MapPart,
            Self::MapEnd(_) => FrameKind::MapEnd,
            Self::Start(_) => FrameKind::Start,
            Self::Ack(_) => FrameKind::Ack,
            Self::Digests(_) => FrameKind::Digests,
            Self::Note(_) => FrameKind::Note,
            Self::Ping(_) => FrameKind::Ping,
            Self::Pong(_) => FrameKind::Pong,
            Self::Error(_) => FrameKind::Error,
            Self::Goodbye(_) => FrameKind::Goodbye,
            Self::Join(_) => FrameKind::Join,
            Self::Joined(_) => FrameKind::Joined,
            Self::Place(_) => FrameKind::Place,
            Self::Again(_) => FrameKind::Again,
            Self::Content(_) => FrameKind::Content,
        }
    }
}

/// A frame that was received whole and checked.
#[derive(Debug)]
pub enum Frame {
    /// Small and owned.
    Message(Message),
    /// Records of the stream, with their bytes where they were received, or where they were inflated.
    Data(DataFrame),
}

impl Frame {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> FrameKind {
        match self {
            Self::Message(message) => message.kind(),
            Self::Data(_) => FrameKind::Data,
        }
    }
}
