//! The frames that begin a connection.
//!
//! Owns what source and target tell each other before the first record: versions, names, histories,
//! volumes, and where the stream begins. What follows from it is decided elsewhere.

use crate::connections::SessionId;
use crate::error::WireError;
use crate::frame::FrameKind;
use crate::layout::{
    HelloHead, HelloVolumeBytes, RefuseHead, StartBody, WelcomeHead, WelcomeVolumeBytes,
};
use crate::limits::{CONNECTIONS_MAX, PATH_BYTES_MAX, TEXT_BYTES_MAX};
use crate::packed::Codecs;
use crate::read::{
    Body, clean, count, count_from_history, data_state_number, mirror_from, mirror_number,
    name_bytes, write_history,
};
use crate::version::{VERSION_CONNECTIONS, VERSION_PACKED, VERSION_READS};
use blkrep_types::limits::GROUP_VOLUMES_MAX;
use blkrep_types::{
    BlockSize, ByteLen, DataState, ExtentSize, Generation, GroupName, History, Incarnation,
    LinkName, MirrorKind, Mode, NodeName, VolumeIndex, VolumeName, WriteName,
};
use std::time::Duration;
use zerocopy::IntoBytes;

/// One volume that a source wants to replicate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloVolume {
    /// Its place in the group.
    pub index: VolumeIndex,
    /// Its name.
    pub name: VolumeName,
    /// Its size.
    pub len: ByteLen,
    /// The grain of its requests.
    pub block_size: BlockSize,
    /// The grain of its dirty map.
    pub extent_size: ExtentSize,
    /// Where the target shall keep it; empty: where it keeps it already, or its own choice.
    pub path: String,
}

/// Source: who I am, what I want to replicate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Lowest and highest version the source speaks.
    pub versions: (u16, u16),
    /// The source's name.
    pub node: NodeName,
    /// The group's name at the target.
    pub group: GroupName,
    /// The link's name.
    pub link: LinkName,
    /// The source's data history.
    pub history: History,
    /// Its run.
    pub incarnation: Incarnation,
    /// When writes complete towards the application.
    pub mode: Mode,
    /// The mirror that was asked for, if one was.
    pub mirror: Option<MirrorKind>,
    /// The operator agreed that the target's data is overwritten, whatever it is.
    pub overwrite: bool,
    /// The source says something at least this often.
    pub heartbeat: Duration,
    /// Silence longer than this ends the connection.
    pub timeout: Duration,
    /// The group's volumes, by index.
    pub volumes: Vec<HelloVolume>,
}

const OVERWRITE: u8 = 1;

impl Hello {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let head = HelloHead {
            version_min: self.versions.0.into(),
            version_max: self.versions.1.into(),
            generation_count: count_from_history(&self.history).into(),
            volume_count: count(self.volumes.len()).into(),
            incarnation: self.incarnation.get().into(),
            node: name_bytes(self.node.as_str()),
            group: name_bytes(self.group.as_str()),
            link: name_bytes(self.link.as_str()),
            mode: match self.mode {
                Mode::Async => 1,
                Mode::Memory => 2,
                Mode::Sync => 3,
            },
            mirror: self.mirror.map_or(0, mirror_number),
            flags: if self.overwrite { OVERWRITE } else { 0 },
            reserved: [0; 7],
            heartbeat_ms: millis(self.heartbeat).into(),
            timeout_ms: millis(self.timeout).into(),
            reserved_end: 0.into(),
        };
        out.extend_from_slice(head.as_bytes());
        write_history(&self.history, out);
        for volume in &self.volumes {
            assert!(
                volume.path.len() <= PATH_BYTES_MAX,
                "a path is bounded where it is set"
            );
            let bytes = HelloVolumeBytes {
                len: volume.len.get().into(),
                extent_bytes: u32::try_from(volume.extent_size.get())
                    .expect("1 MiB")
                    .into(),
                block_bytes: u16::try_from(volume.block_size.get()).expect("4096").into(),
                index: volume.index.get().into(),
                path_bytes: count(volume.path.len()).into(),
                name: name_bytes(volume.name.as_str()),
                reserved: [0; 4],
            };
            out.extend_from_slice(bytes.as_bytes());
        }
        for volume in &self.volumes {
            out.extend_from_slice(volume.path.as_bytes());
        }
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut body = Body::new(FrameKind::Hello, bytes);
        let head: HelloHead = body.take("head")?;
        body.reserved(&head.reserved, "reserved")?;
        body.check(head.reserved_end.get() == 0, "reserved_end")?;
        body.check(head.flags & !OVERWRITE == 0, "flags")?;
        body.check(
            head.timeout_ms.get() > head.heartbeat_ms.get(),
            "timeout_ms",
        )?;
        body.check(head.heartbeat_ms.get() > 0, "heartbeat_ms")?;
        let history = body.history(head.generation_count.get())?;
        let volumes = read_hello_volumes(&mut body, head.volume_count.get())?;
        let hello = Self {
            versions: (head.version_min.get(), head.version_max.get()),
            node: body.name(&head.node, "node")?,
            group: body.name(&head.group, "group")?,
            link: body.name(&head.link, "link")?,
            history,
            incarnation: Incarnation::new(head.incarnation.get()),
            mode: match head.mode {
                1 => Mode::Async,
                2 => Mode::Memory,
                3 => Mode::Sync,
                _ => return Err(body.wrong("mode")),
            },
            mirror: match head.mirror {
                0 => None,
                number => Some(mirror_from(number).ok_or_else(|| body.wrong("mirror"))?),
            },
            overwrite: head.flags & OVERWRITE != 0,
            heartbeat: Duration::from_millis(u64::from(head.heartbeat_ms.get())),
            timeout: Duration::from_millis(u64::from(head.timeout_ms.get())),
            volumes,
        };
        body.end()?;
        Ok(hello)
    }
}

fn read_hello_volumes(body: &mut Body<'_>, count: u16) -> Result<Vec<HelloVolume>, WireError> {
    let count = usize::from(count);
    body.check((1..=GROUP_VOLUMES_MAX).contains(&count), "volume_count")?;
    let mut volumes = Vec::with_capacity(count);
    let mut path_lens = Vec::with_capacity(count);
    for index in 0..count {
        let bytes: HelloVolumeBytes = body.take("volumes")?;
        body.reserved(&bytes.reserved, "volumes.reserved")?;
        body.check(usize::from(bytes.index.get()) == index, "volumes.index")?;
        let block = BlockSize::try_from(u64::from(bytes.block_bytes.get()));
        let extent = ExtentSize::try_from(u64::from(bytes.extent_bytes.get()));
        let volume = HelloVolume {
            index: VolumeIndex::new(bytes.index.get()),
            name: body.name(&bytes.name, "volumes.name")?,
            len: ByteLen::new(bytes.len.get()),
            block_size: block.map_err(|_| body.wrong("volumes.block_bytes"))?,
            extent_size: extent.map_err(|_| body.wrong("volumes.extent_bytes"))?,
            path: String::new(),
        };
        let len = volume.len.get();
        let sized =
            len > 0 && len <= i64::MAX as u64 && len.is_multiple_of(volume.block_size.get());
        body.check(sized, "volumes.len")?;
        let path_len = usize::from(bytes.path_bytes.get());
        body.check(path_len <= PATH_BYTES_MAX, "volumes.path_bytes")?;
        path_lens.push(path_len);
        volumes.push(volume);
    }
    let sizes = volumes
        .iter()
        .map(|volume| (volume.len, volume.extent_size));
    body.check(ExtentSize::fit_a_map(sizes), "volumes.len")?;
    for (volume, len) in volumes.iter_mut().zip(path_lens) {
        volume.path = body.text(len, "paths")?;
    }
    Ok(volumes)
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// What a node is for the group it was asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    /// It holds a replica and takes writes of a source.
    Target,
    /// It is, or was last, a source of the group itself: promoted, or attached there.
    Source,
}

/// One volume that a target holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WelcomeVolume {
    /// Its place in the group.
    pub index: VolumeIndex,
    /// The size of what holds it; at least the volume's.
    pub len: ByteLen,
}

/// Target: who I am, what I have. The target's map follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The version both speak from now on.
    pub version: u16,
    /// The target's name.
    pub node: NodeName,
    /// What it is for the group.
    pub role: PeerRole,
    /// What its data is worth.
    pub data_state: DataState,
    /// The history of its data; empty if nothing was ever replicated.
    pub history: History,
    /// The last write that is durable there; [`WriteName::NONE`] if none is.
    pub durable: WriteName,
    /// Bytes its journal holds.
    pub journal_used: ByteLen,
    /// Bytes its journal can hold.
    pub journal_capacity: ByteLen,
    /// In which codecs it takes packed frames; none before version 2.
    pub codecs: Codecs,
    /// How many connections a session may have; 1 before version 3.
    pub connections: u8,
    /// It answers records `Read`; from version 3 on.
    pub reads: bool,
    /// What further connections name; none where there can be none.
    pub session: SessionId,
    /// Its volumes, by index.
    pub volumes: Vec<WelcomeVolume>,
}

impl Welcome {
    /// What a node says that serves the group itself: it takes nothing.
    #[must_use]
    pub fn of_source(
        version: u16,
        node: NodeName,
        history: History,
        volumes: Vec<WelcomeVolume>,
    ) -> Self {
        Self {
            version,
            node,
            role: PeerRole::Source,
            data_state: DataState::Ok,
            durable: WriteName {
                generation: history.current(),
                ..WriteName::NONE
            },
            history,
            journal_used: ByteLen::ZERO,
            journal_capacity: ByteLen::ZERO,
            codecs: Codecs::NONE,
            connections: 1,
            reads: false,
            session: SessionId::NONE,
            volumes,
        }
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let head = WelcomeHead {
            version: self.version.into(),
            role: match self.role {
                PeerRole::Target => 1,
                PeerRole::Source => 2,
            },
            data_state: data_state_number(self.data_state),
            generation_count: count_from_history(&self.history).into(),
            volume_count: count(self.volumes.len()).into(),
            node: name_bytes(self.node.as_str()),
            reserved: [0; 6],
            durable: self.durable.into(),
            journal_used: self.journal_used.get().into(),
            journal_capacity: self.journal_capacity.get().into(),
            codecs: self.codecs.bits(),
            connections: match self.connections {
                // As it was before there could be more.
                0 | 1 => 0,
                more => more,
            },
            reads: u8::from(self.reads),
            reserved_end: [0; 5],
            session: self.session.get().into(),
        };
        out.extend_from_slice(head.as_bytes());
        write_history(&self.history, out);
        for volume in &self.volumes {
            let bytes = WelcomeVolumeBytes {
                len: volume.len.get().into(),
                index: volume.index.get().into(),
                reserved: [0; 6],
            };
            out.extend_from_slice(bytes.as_bytes());
        }
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut body = Body::new(FrameKind::Welcome, bytes);
        let head: WelcomeHead = body.take("head")?;
        body.reserved(&head.reserved, "reserved")?;
        body.reserved(&head.reserved_end, "reserved_end")?;
        let codecs = Codecs::from_bits(head.codecs).ok_or_else(|| body.wrong("codecs"))?;
        let known = head.version.get() >= VERSION_PACKED || codecs == Codecs::NONE;
        body.check(known, "codecs")?;
        let session = SessionId::new(head.session.get());
        let several = head.connections > 0;
        let known = head.version.get() >= VERSION_CONNECTIONS || !several;
        let right = match head.connections {
            0 => true,
            count => count > 1 && usize::from(count) <= CONNECTIONS_MAX,
        };
        body.check(known && right, "connections")?;
        let reads = body.flag(head.reads, "reads")?;
        let known = head.version.get() >= VERSION_READS || !reads;
        body.check(known, "reads")?;
        body.check(several == (session != SessionId::NONE), "session")?;
        let history = body.history(head.generation_count.get())?;
        let volume_count = usize::from(head.volume_count.get());
        body.check(volume_count <= GROUP_VOLUMES_MAX, "volume_count")?;
        let mut volumes = Vec::with_capacity(volume_count);
        for index in 0..volume_count {
            let bytes: WelcomeVolumeBytes = body.take("volumes")?;
            body.reserved(&bytes.reserved, "volumes.reserved")?;
            body.check(usize::from(bytes.index.get()) == index, "volumes.index")?;
            volumes.push(WelcomeVolume {
                index: VolumeIndex::new(bytes.index.get()),
                len: ByteLen::new(bytes.len.get()),
            });
        }
        let welcome = Self {
            version: head.version.get(),
            node: body.name(&head.node, "node")?,
            role: match head.role {
                1 => PeerRole::Target,
                2 => PeerRole::Source,
                _ => return Err(body.wrong("role")),
            },
            data_state: body.data_state(head.data_state)?,
            history,
            durable: head.durable.into(),
            journal_used: ByteLen::new(head.journal_used.get()),
            journal_capacity: ByteLen::new(head.journal_capacity.get()),
            codecs,
            connections: head.connections.max(1),
            reads,
            session,
            volumes,
        };
        body.end()?;
        Ok(welcome)
    }
}

macro_rules! codes {
    ($(#[$type_doc:meta])* $type:ident { $($(#[$doc:meta])* $name:ident = $number:literal $text:literal),+ $(,)? }) => {
        $(#[$type_doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $type { $($(#[$doc])* $name),+ }

        impl $type {
            /// Every code, in order of its number.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The word for status and events.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }

            pub(crate) const fn number(self) -> u16 {
                match self { $(Self::$name => $number),+ }
            }

            pub(crate) const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use codes;

codes! {
    /// Why a target says no.
    RefuseCode {
        /// No version in common.
        Version = 1 "version",
        /// The target has another group, or none it may take on, under that name.
        Group = 2 "group",
        /// A path that the target's configuration does not allow.
        Path = 3 "path",
        /// A path that holds something else: a filesystem, a partition table, other data.
        Occupied = 4 "occupied",
        /// A path that is smaller than the volume.
        TooSmall = 5 "too-small",
        /// Another link writes to that group or path, or the path is in use.
        Busy = 6 "busy",
        /// The target's data is newer: the source is the one to be overwritten.
        NewerGeneration = 7 "newer-generation",
        /// The target's data has nothing to do with the source's.
        Unrelated = 8 "unrelated",
        /// The hello itself made no sense.
        Malformed = 9 "malformed",
        /// The target's disk or state failed.
        Failed = 10 "failed",
        /// The target is stopping, or as many connect as it can serve.
        Unavailable = 11 "unavailable",
        /// The group's volumes are not those the target holds.
        Volumes = 12 "volumes",
        /// The two nodes are not paired, or the connection is not encrypted and must be.
        Untrusted = 13 "untrusted",
    }
}

impl RefuseCode {
    /// True if the reason can pass by itself, so that another attempt is worth making.
    #[must_use]
    pub const fn passes(self) -> bool {
        match self {
            Self::Busy | Self::Failed | Self::Unavailable | Self::Untrusted => true,
            Self::Version
            | Self::Group
            | Self::Path
            | Self::Occupied
            | Self::TooSmall
            | Self::NewerGeneration
            | Self::Unrelated
            | Self::Malformed
            | Self::Volumes => false,
        }
    }
}

/// Target: no, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refuse {
    /// Lowest and highest version the target speaks.
    pub versions: (u16, u16),
    /// The kind of reason.
    pub code: RefuseCode,
    /// The target's history, where that is the reason; else empty.
    pub history: History,
    /// The reason in words, and what to do.
    pub text: String,
}

impl Refuse {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let text = clean(&self.text, TEXT_BYTES_MAX);
        let head = RefuseHead {
            version_min: self.versions.0.into(),
            version_max: self.versions.1.into(),
            code: self.code.number().into(),
            generation_count: count_from_history(&self.history).into(),
            text_bytes: count(text.len()).into(),
            reserved: [0; 6],
        };
        out.extend_from_slice(head.as_bytes());
        write_history(&self.history, out);
        out.extend_from_slice(text.as_bytes());
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut body = Body::new(FrameKind::Refuse, bytes);
        let head: RefuseHead = body.take("head")?;
        body.reserved(&head.reserved, "reserved")?;
        let text_bytes = usize::from(head.text_bytes.get());
        body.check(text_bytes <= TEXT_BYTES_MAX, "text_bytes")?;
        let code = RefuseCode::from_number(head.code.get()).ok_or_else(|| body.wrong("code"))?;
        let refuse = Self {
            versions: (head.version_min.get(), head.version_max.get()),
            code,
            history: body.history(head.generation_count.get())?,
            text: body.text(text_bytes, "text")?,
        };
        body.end()?;
        Ok(refuse)
    }
}

/// Source: the stream begins after this write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The write directly before the first record of the stream.
    pub after: WriteName,
    /// The last write that the source had named when it took over the target's map: a mirror that
    /// ends after it has sent every extent of that map, one that ended before has not. At least
    /// `after`, and at least what the target holds, unless the data is adopted.
    pub head: WriteName,
    /// The source's current generation, which every record belongs to.
    pub generation: Generation,
    /// The target's data becomes a replica of the source's history, as `Hello` told it, whatever
    /// history it had: a mirror that makes it so follows at once.
    pub adopt: bool,
    /// How many connections the session is to have; 1 before version 3. With more than one every batch
    /// is told its place.
    pub connections: u8,
}

impl Start {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let body = StartBody {
            after: self.after.into(),
            head: self.head.into(),
            generation: *self.generation.as_bytes(),
            flags: u8::from(self.adopt),
            connections: match self.connections {
                0 | 1 => 0,
                more => more,
            },
            reserved: [0; 6],
        };
        out.extend_from_slice(body.as_bytes());
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut body = Body::new(FrameKind::Start, bytes);
        let start: StartBody = body.take("body")?;
        body.reserved(&start.reserved, "reserved")?;
        let generation = Generation::from_bytes(start.generation);
        body.check(generation != Generation::NONE, "generation")?;
        let adopt = body.flag(start.flags, "flags")?;
        let right = start.connections != 1 && usize::from(start.connections) <= CONNECTIONS_MAX;
        body.check(right, "connections")?;
        body.end()?;
        Ok(Self {
            after: start.after.into(),
            head: start.head.into(),
            generation,
            adopt,
            connections: start.connections.max(1),
        })
    }
}
