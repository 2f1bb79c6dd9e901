//! One of every frame, with every field set that version 1 has.
#![allow(dead_code)]

use blkrep_io::Region;
use blkrep_types::{
    BlockSize, ByteLen, ByteOffset, DataState, Extent, ExtentIndex, ExtentSize, Generation,
    GroupName, History, Incarnation, LinkName, MirrorKind, Mode, NodeName, Record, RecordKind, Seq,
    VolumeIndex, VolumeName, WriteName,
};
use blkrep_wire::{
    Ack, Again, Applying, Codecs, DigestReply, Entry, Farewell, FarewellCode, Hello, HelloVolume,
    Join, MapEnd, MapPart, Message, PeerRole, Place, Refuse, RefuseCode, SessionId, Start, Welcome,
    WelcomeVolume,
};
use std::time::Duration;

fn generation(number: u8) -> Generation {
    Generation::from_bytes([number; 16])
}

fn history() -> History {
    let mut history = History::new();
    history.branch(generation(0xa1), Incarnation::new(0), Seq::ZERO);
    history.branch(generation(0xa2), Incarnation::new(3), Seq::new(77));
    history
}

fn name(seq: u64) -> WriteName {
    WriteName {
        generation: generation(0xa2),
        incarnation: Incarnation::new(4),
        seq: Seq::new(seq),
    }
}

fn extent(offset: u64, len: u64) -> Extent {
    Extent::new(ByteOffset::new(offset), ByteLen::new(len)).unwrap()
}

fn hello() -> Hello {
    let volume = |index, name: &str, block_size, path: &str| HelloVolume {
        index: VolumeIndex::new(index),
        name: VolumeName::new(name).unwrap(),
        len: ByteLen::new(1 << 30),
        block_size,
        extent_size: ExtentSize::DIRTY_DEFAULT,
        path: path.to_owned(),
    };
    Hello {
        versions: (1, 1),
        node: NodeName::new("north").unwrap(),
        group: GroupName::new("pg").unwrap(),
        link: LinkName::new("south").unwrap(),
        history: history(),
        incarnation: Incarnation::new(4),
        mode: Mode::Async,
        mirror: Some(MirrorKind::Checksum),
        overwrite: true,
        heartbeat: Duration::from_secs(1),
        timeout: Duration::from_secs(5),
        volumes: vec![
            volume(0, "pgdata", BlockSize::B4096, "/srv/replica/pgdata"),
            volume(1, "pgwal", BlockSize::B512, ""),
        ],
    }
}

fn welcome() -> Welcome {
    let volume = |index| WelcomeVolume {
        index: VolumeIndex::new(index),
        len: ByteLen::new(1 << 30),
    };
    Welcome {
        version: 1,
        node: NodeName::new("south").unwrap(),
        role: PeerRole::Target,
        data_state: DataState::Ok,
        history: history(),
        durable: name(1000),
        journal_used: ByteLen::new(4096),
        journal_capacity: ByteLen::new(256 << 20),
        codecs: Codecs::NONE,
        connections: 1,
        reads: false,
        session: SessionId::NONE,
        volumes: vec![volume(0), volume(1)],
    }
}

fn ack() -> Ack {
    Ack {
        received: name(1010),
        durable: name(1009),
        applied: name(1002),
        journal_used: ByteLen::new(8192),
        journal_capacity: ByteLen::new(256 << 20),
        data_state: DataState::Mirroring,
        applying: Applying::PausePending,
        held: true,
    }
}

fn digests() -> Vec<DigestReply> {
    let digest = |seq, digest| DigestReply {
        incarnation: Incarnation::new(4),
        seq: Seq::new(seq),
        volume: VolumeIndex::new(1),
        extent: extent(65536, 65536),
        digest,
    };
    vec![digest(1005, Some([0x5a; 32])), digest(1006, None)]
}

/// Every message, in order of its number.
pub(crate) fn messages() -> Vec<Message> {
    let farewell = |code, text: &str| Farewell {
        code,
        text: text.to_owned(),
    };
    vec![
        Message::Hello(Box::new(hello())),
        Message::Welcome(Box::new(welcome())),
        Message::Refuse(Refuse {
            versions: (1, 1),
            code: RefuseCode::NewerGeneration,
            history: history(),
            text: "group 'pg' was promoted here".to_owned(),
        }),
        Message::MapPart(MapPart {
            volume: VolumeIndex::new(1),
            extent_size: ExtentSize::DIRTY_DEFAULT,
            first: ExtentIndex::new(8),
            bit_count: 11,
            bits: vec![0b1000_0001, 0b101],
        }),
        Message::MapEnd(MapEnd {
            part_count: 1,
            unknown: false,
        }),
        Message::Start(Start {
            after: name(1000),
            head: name(1200),
            generation: generation(0xa2),
            adopt: true,
            connections: 1,
        }),
        Message::Ack(ack()),
        Message::Digests(digests()),
        Message::Ping(0x0102_0304_0506_0708),
        Message::Pong(9),
        Message::Error(farewell(
            FarewellCode::Order,
            "write 12 came after write 10",
        )),
        Message::Goodbye(farewell(FarewellCode::Stopping, "daemon stops")),
    ]
}

/// What version 3 has beside them, in order of its number, after what it changes.
pub(crate) fn messages_of_3() -> Vec<Message> {
    let session = SessionId::new(0x1122_3344_5566_7788);
    let mut welcome = welcome();
    (welcome.version, welcome.connections, welcome.session) = (3, 16, session);
    let mut able = welcome.clone();
    able.reads = true;
    vec![
        Message::Welcome(Box::new(welcome)),
        Message::Start(Start {
            after: name(1000),
            head: name(1200),
            generation: generation(0xa2),
            adopt: false,
            connections: 4,
        }),
        Message::Join(Box::new(Join {
            version: 3,
            index: 2,
            session,
            node: NodeName::new("north").unwrap(),
            group: GroupName::new("pg").unwrap(),
            link: LinkName::new("south").unwrap(),
        })),
        Message::Joined(2),
        Message::Place(Place {
            lap: 3,
            batch: 0x0102_0304_0506,
        }),
        Message::Again(Again { lap: 3, lost: 6 }),
        Message::Welcome(Box::new(able)),
    ]
}

/// Records of every kind.
pub(crate) fn data_entries() -> Vec<Entry> {
    let region = Region::heap(8192);
    region.whole().with_mut(|bytes| {
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::try_from(at % 251).unwrap();
        }
    });
    let kinds = [
        (RecordKind::Data { mirror: false }, Some(extent(4096, 512))),
        (RecordKind::Data { mirror: true }, Some(extent(0, 1024))),
        (
            RecordKind::Zero {
                mirror: false,
                free: true,
            },
            Some(extent(1 << 20, 8 << 20)),
        ),
        (
            RecordKind::Zero {
                mirror: true,
                free: false,
            },
            Some(extent(512, 512)),
        ),
        (RecordKind::Void, None),
        (RecordKind::Compare, Some(extent(65536, 65536))),
        (RecordKind::MirrorBegin(MirrorKind::Difference), None),
        (RecordKind::MirrorEnd, None),
    ];
    let entry = |(seq, (kind, extent)): (u64, (RecordKind, Option<Extent>))| {
        let len = extent.map_or(0, |extent| extent.len().as_usize());
        Entry {
            record: Record {
                incarnation: Incarnation::new(4),
                seq: Seq::new(seq),
                kind,
                volume: VolumeIndex::new(u16::from(kind.has_extent())),
                extent,
            },
            bytes: kind.has_data().then(|| region.slice(512..512 + len)),
        }
    };
    (1001..).zip(kinds).map(entry).collect()
}
