//! Several connections of one session.
//!
//! Owns how a further connection is made part of a session, and the place of a batch among those of
//! all connections. Who may join and what order means is decided elsewhere.

use crate::error::WireError;
use crate::frame::FrameKind;
use crate::layout::{AgainBody, JoinBody, JoinedBody, PlaceBody};
use crate::limits::CONNECTIONS_MAX;
use crate::read::{Body, name_bytes};
use blkrep_types::{GroupName, LinkName, NodeName};
use std::fmt;
use zerocopy::IntoBytes;

/// Tells a session of a target from every other one. Random, so that no earlier one has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SessionId(u64);

impl SessionId {
    /// A session that nothing can join.
    pub const NONE: Self = Self(0);

    /// The session with this number; zero is none.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Source: this connection is one more of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// The version that was agreed on.
    pub version: u16,
    /// Which of the session's connections it is; the first one is 0 and joins nothing.
    pub index: u8,
    /// The session, as `Welcome` named it.
    pub session: SessionId,
    /// The source's name.
    pub node: NodeName,
    /// The group's name at the target.
    pub group: GroupName,
    /// The link's name.
    pub link: LinkName,
}

impl Join {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let body = JoinBody {
            version: self.version.into(),
            index: self.index,
            reserved: [0; 5],
            session: self.session.get().into(),
            node: name_bytes(self.node.as_str()),
            group: name_bytes(self.group.as_str()),
            link: name_bytes(self.link.as_str()),
            reserved_end: [0; 2],
        };
        out.extend_from_slice(body.as_bytes());
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut body = Body::new(FrameKind::Join, bytes);
        let join: JoinBody = body.take("body")?;
        body.reserved(&join.reserved, "reserved")?;
        body.reserved(&join.reserved_end, "reserved_end")?;
        body.check(join.session.get() != 0, "session")?;
        let right = join.index > 0 && usize::from(join.index) < CONNECTIONS_MAX;
        body.check(right, "index")?;
        let join = Self {
            version: join.version.get(),
            index: join.index,
            session: SessionId::new(join.session.get()),
            node: body.name(&join.node, "node")?,
            group: body.name(&join.group, "group")?,
            link: body.name(&join.link, "link")?,
        };
        body.end()?;
        Ok(join)
    }
}

pub(crate) fn write_joined(index: u8, out: &mut Vec<u8>) {
    let body = JoinedBody {
        index,
        reserved: [0; 7],
    };
    out.extend_from_slice(body.as_bytes());
}

pub(crate) fn read_joined(bytes: &[u8]) -> Result<u8, WireError> {
    let mut body = Body::new(FrameKind::Joined, bytes);
    let joined: JoinedBody = body.take("body")?;
    body.reserved(&joined.reserved, "reserved")?;
    let right = joined.index > 0 && usize::from(joined.index) < CONNECTIONS_MAX;
    body.check(right, "index")?;
    body.end()?;
    Ok(joined.index)
}

/// Source: where the next batch belongs among those of all connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// Times that the stream has gone back in this session, because a connection was lost.
    pub lap: u32,
    /// Batches of the lap before this one.
    pub batch: u64,
}

impl Place {
    pub(crate) fn write(self, out: &mut Vec<u8>) {
        let body = PlaceBody {
            lap: self.lap.into(),
            reserved: 0.into(),
            batch: self.batch.into(),
        };
        out.extend_from_slice(body.as_bytes());
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut body = Body::new(FrameKind::Place, bytes);
        let place: PlaceBody = body.take("body")?;
        body.check(place.reserved.get() == 0, "reserved")?;
        body.end()?;
        Ok(Self {
            lap: place.lap.get(),
            batch: place.batch.get(),
        })
    }
}

/// Target: batches are lost; all that is not acknowledged has to be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Again {
    /// The lap of which one may be lost. A source in a later one has begun anew already.
    pub lap: u32,
    /// Connections that the target has no more, a bit for each index: nothing may be sent on them.
    pub lost: u16,
}

impl Again {
    pub(crate) fn write(self, out: &mut Vec<u8>) {
        let body = AgainBody {
            lap: self.lap.into(),
            lost: self.lost.into(),
            reserved: 0.into(),
        };
        out.extend_from_slice(body.as_bytes());
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut body = Body::new(FrameKind::Again, bytes);
        let again: AgainBody = body.take("body")?;
        body.check(again.reserved.get() == 0, "reserved")?;
        // The first connection is that on which this is said.
        body.check(again.lost.get() & 1 == 0, "lost")?;
        body.end()?;
        Ok(Self {
            lap: again.lap.get(),
            lost: again.lost.get(),
        })
    }
}
