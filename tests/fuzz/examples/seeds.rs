//! Makes the corpus anew: one good input or a few for every target, from the product's own encoders and
//! golden files. What a fuzzer found and we keep has other names and is left alone.
//!
//! `cargo run --manifest-path tests/fuzz/Cargo.toml --example seeds`

use blkrep_fuzz::{disk, put_piece};
use blkrep_io::Region;
use blkrep_log::superblock::{Group, GroupLink, GroupVolume, TransmitHeld};
use blkrep_store::journal::{BATCH_BYTES_MIN, BatchPlan, JournalState, Placed, Space};
use blkrep_store::superblock::{Part, Replica, ReplicaRole, ReplicaVolume};
use blkrep_types::{BlockSize, ByteLen, ByteOffset, DataState, Extent, ExtentSize, Generation, GroupName, History, Incarnation, LinkName, LossPolicy, MirrorKind, Mode, NodeName, Record, RecordKind, Seq, VolumeIndex, VolumeName, WriteName};
use std::path::{Path, PathBuf};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (target, seeds) in [
        ("frames", frames()),
        ("handshake", handshake()),
        ("journal", vec![journal(false), journal(true)]),
        (
            "superblock_source",
            superblocks(
                &group().encode(7).expect("it fits"),
                &group().encode(8).expect("it fits"),
            ),
        ),
        (
            "superblock_target",
            superblocks(&replica().encode(7), &replica().encode(8)),
        ),
        ("maps", vec![maps(false), maps(true)]),
        ("memory_log", vec![memory_log(0), memory_log(3)]),
        ("config", config()),
        ("nbd", nbd()),
        ("fuse", vec![fuse()]),
    ] {
        let directory = root.join(target);
        std::fs::create_dir_all(&directory).expect("make a directory");
        for (number, seed) in (1..).zip(seeds) {
            let path = directory.join(format!("seed-{number}"));
            std::fs::write(&path, seed).expect("write a seed");
        }
    }
}

const V1: &str = include_str!("../../../blkrep/wire/tests/golden/v1.txt");
const V2: &str = include_str!("../../../blkrep/wire/tests/golden/v2.txt");

/// The frames of one of `blkrep-wire`'s golden files: kind and body.
fn golden(text: &str) -> Vec<(u8, Vec<u8>)> {
    let byte = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).expect("hex");
        u8::from_str_radix(text, 16).expect("hex")
    };
    text.lines()
        .map(|line| {
            let (_, hex) = line.split_once(' ').expect("a name and bytes");
            let bytes: Vec<_> = hex.as_bytes().chunks(2).map(byte).collect();
            (bytes[6], bytes[32..].to_vec())
        })
        .collect()
}

fn frames() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut all = vec![2, 1, 9, 30, 200];
    for (kind, body) in golden(V1) {
        let mut seed = vec![2, 3, 1, 4, 1];
        for out in [&mut seed, &mut all] {
            out.extend([kind, 0]);
            put_piece(out, &body);
        }
        seeds.push(seed);
    }
    seeds.push(all);
    seeds.push([&[3, 0, 0, 0, 0], b"BLKr".as_slice()].concat());
    // Packed: as it was made, and records that are packed by the target itself.
    let data = golden(V1).pop().expect("data is the last").1;
    for (flags, body) in [(8, &golden(V2)[1].1), (0, &data)] {
        let mut seed = vec![2, 3, 1, 4, 1, 14, flags];
        put_piece(&mut seed, body);
        seeds.push(seed);
    }
    seeds
}

fn handshake() -> Vec<Vec<u8>> {
    let golden = golden(V1);
    let body = |kind: u8| {
        let found = golden.iter().find(|(number, _)| *number == kind);
        found.expect("every kind is golden").1.clone()
    };
    [(0, 3), (1, 6), (2, 4), (3, 2)]
        .into_iter()
        .map(|(choice, kind)| {
            let mut seed = vec![7, choice];
            put_piece(&mut seed, &body(1));
            put_piece(&mut seed, &body(kind));
            seed
        })
        .collect()
}

fn name(seq: u64) -> WriteName {
    WriteName {
        generation: Generation::from_bytes([1; 16]),
        incarnation: Incarnation::new(1),
        seq: Seq::new(seq),
    }
}

/// Some batches; with `gap`, the second is gone.
fn journal(gap: bool) -> Vec<u8> {
    let capacity = 16 * disk::BLOCK as u64;
    let mut file = vec![0; 18 * disk::BLOCK];
    let mut space = Space::new(capacity, 0, 0);
    let mut state = JournalState::new([3; 16], capacity, name(0));
    for counter in 0..2 {
        state.counter = counter;
        let at = counter as usize * disk::BLOCK;
        state.encode(&mut file[at..at + disk::BLOCK]);
    }
    for number in 1..=4_u64 {
        let region = Region::heap(ByteLen::new(BATCH_BYTES_MIN).as_usize());
        let mut plan = BatchPlan::new(region.whole(), Vec::new());
        let kinds = [
            (RecordKind::Data { mirror: false }, 512),
            (
                RecordKind::Zero {
                    mirror: false,
                    free: true,
                },
                8192,
            ),
            (RecordKind::MirrorEnd, 0),
        ];
        for (nth, (kind, len)) in (0..).zip(kinds) {
            let extent = Extent::new(ByteOffset::new(number * 4096), ByteLen::new(len)).ok();
            let record = Record {
                incarnation: Incarnation::new(1),
                seq: Seq::new(number * 3 + nth),
                kind,
                volume: VolumeIndex::new(0),
                extent: extent.filter(|_| kind.has_extent()),
            };
            let bytes = vec![5; if kind.has_data() { 512 } else { 0 }];
            let crc = if bytes.is_empty() {
                0
            } else {
                crc32fast::hash(&bytes)
            };
            assert!(plan.push(&record, &bytes, crc));
        }
        let position = space.place(plan.bytes()).expect("there is room");
        let batch = plan.seal(&Placed {
            journal: state.id,
            number,
            position,
            generation: name(0).generation,
        });
        let info = *batch.info();
        space.take(info.position, info.bytes);
        let at = usize::try_from(space.file_offset(info.position)).expect("small");
        let end = at + usize::try_from(info.bytes).expect("small");
        if !(gap && number == 2) {
            batch.slice().read(0, &mut file[at..end]);
        }
    }
    let mut seed = vec![0, 0];
    seed.extend(disk::pieces(&file));
    seed
}

fn history() -> History {
    let mut history = History::new();
    history.branch(
        Generation::from_bytes([1; 16]),
        Incarnation::new(0),
        Seq::ZERO,
    );
    history.branch(
        Generation::from_bytes([2; 16]),
        Incarnation::new(4),
        Seq::new(9),
    );
    history
}

fn group() -> Group {
    Group {
        id: [3; 16],
        name: GroupName::new("db").expect("a name"),
        clean: true,
        distrust: false,
        served_by: None,
        history: history(),
        incarnation: Incarnation::new(5),
        head: (Incarnation::new(5), Seq::new(1234)),
        log_id: [4; 16],
        log_bytes: ByteLen::new(64 << 20),
        newer: Generation::NONE,
        intent_map: [5; 16],
        volumes: vec![GroupVolume {
            index: VolumeIndex::new(0),
            name: VolumeName::new("pgdata").expect("a name"),
            len: ByteLen::new(1 << 30),
            block_size: BlockSize::B512,
            extent_size: ExtentSize::DIRTY_DEFAULT,
        }],
        links: [2, 3]
            .map(|place| GroupLink {
                place,
                id: [place; 16],
                name: LinkName::new(&format!("dr{place}")).expect("a name"),
                mode: Mode::Async,
                loss: LossPolicy::default(),
                transmit: TransmitHeld::Paused,
                overwrite: true,
                first_mirror: Some(MirrorKind::Checksum),
                wanted: true,
                peer: "127.0.0.1:7420".to_owned(),
                paths: vec!["/replica/pgdata".to_owned()],
            })
            .to_vec(),
    }
}

fn replica() -> Replica {
    Replica {
        id: [9; 16],
        group: GroupName::new("db").expect("a name"),
        source: NodeName::new("alpha").expect("a name"),
        link: LinkName::new("alpha-beta").expect("a name"),
        role: ReplicaRole::Target,
        data_state: DataState::Ok,
        part: Part::Map,
        paused: false,
        history: history(),
        base: name(1000),
        merged: WriteName::NONE,
        doubtful: 0,
        journal: [5; 16],
        volumes: (0..2)
            .map(|index| ReplicaVolume {
                index: VolumeIndex::new(index),
                name: VolumeName::new(&format!("v{index}")).expect("a name"),
                len: ByteLen::new(1 << 30),
                block_size: BlockSize::B4096,
                extent_size: ExtentSize::DIRTY_DEFAULT,
                path: PathBuf::from(format!("/replicas/v{index}")),
            })
            .collect(),
    }
}

fn superblocks(first: &[u8], second: &[u8]) -> Vec<Vec<u8>> {
    [0, 3, 4]
        .map(|choice| {
            let mut seed = vec![choice];
            put_piece(&mut seed, first);
            put_piece(&mut seed, second);
            seed
        })
        .to_vec()
}

fn maps(source: bool) -> Vec<u8> {
    let mut seed = vec![1, 0xff, 0x7f, 10, 0];
    for index in 0..3 {
        let mut bytes = [0; 512];
        if source {
            let words = (0..blkrep_log::map::SECTOR_WORDS as u64).map(|word| 1 << (word % 64));
            blkrep_log::map::encode_sector(&[7; 16], index, 42, words, &mut bytes);
        } else {
            let name = blkrep_store::map::SectorName {
                replica: [7; 16],
                sector: index,
            };
            blkrep_store::map::encode_sector(&name, 42, &[0x81; 100], &mut bytes);
        }
        seed.push(0);
        put_piece(&mut seed, &bytes);
    }
    seed
}

/// A good log of so many entries: differences of nothing.
fn memory_log(entries: u8) -> Vec<u8> {
    let mut seed = vec![0; 16];
    seed.extend([entries, 0]);
    seed.resize(seed.len() + 8 + 32 + usize::from(entries) * 56, 0);
    seed.extend([1, 2, 3, 200, 255, 0, 7, 9]);
    seed
}

fn config() -> Vec<Vec<u8>> {
    let page = include_str!("../../../docs/start.md");
    let example = page
        .split("```toml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let all = "[node]\nname = 'n'\nstate = '/s'\nallow-replica-dirs = ['/r']\n[group]\nlog-memory = '128MiB'\n\
               [link]\nreconnect = false\n[volume]\nqueues = 2\n";
    let kept = "[node]\n\"link.heartbeat-interval\" = \"2s\"\n[groups.\"db\"]\n\"group.log-memory\" = \"8MiB\"\n";
    [example.unwrap_or(all), all]
        .map(|text| {
            let mut seed = Vec::new();
            put_piece(&mut seed, text.as_bytes());
            seed.extend_from_slice(kept.as_bytes());
            seed
        })
        .to_vec()
}

fn nbd() -> Vec<Vec<u8>> {
    let request = |out: &mut Vec<u8>, flags: u8, command: u8, block: u64, blocks: u64| {
        out.extend([flags, command, 9]);
        out.extend(block.to_le_bytes());
        out.extend(blocks.to_le_bytes());
        if command == 1 {
            put_piece(out, &[7; 600]);
        }
    };
    [0_u8, 4, 8, 6]
        .map(|choice| {
            let mut seed = vec![choice];
            if choice & 2 != 0 {
                seed.extend([2, 3]);
                put_piece(&mut seed, &[]);
                seed.push(6);
                put_piece(&mut seed, b"\0\0\0\x04data\0\x01\0\x01");
            }
            for (flags, command, block, blocks) in [
                (0, 0, 0, 8),
                (0, 1, 24, 3),
                (1, 1, 100, 60),
                (0, 3, 0, 0),
                (0, 4, 64, 60),
                (1, 6, 8, 4),
                (2, 6, 8, 4),
                (4, 0, 0, 63),
                (0, 0, 10, 20),
                (0, 0, 4000, 1),
                (0, 9, 0, 1),
                (0, 2, 0, 0),
            ] {
                request(&mut seed, flags, command, block, blocks);
            }
            seed
        })
        .to_vec()
}

fn fuse() -> Vec<u8> {
    let mut seed = Vec::new();
    let mut add = |opcode: u8, node: u8, words: &[u64], tail: &[u8]| {
        seed.extend([0, opcode, node]);
        let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        body.extend_from_slice(tail);
        put_piece(&mut seed, &body);
    };
    // By place in the target's list: lookup, open, read, write, fsync, fallocate, readdir, getattr.
    add(0, 1, &[], b"volume\0");
    add(2, 2, &[2], &[]);
    add(3, 2, &[0, 8192, 4096, 0, 0], &[]);
    add(4, 2, &[0, 512, 0, 0, 0], &[5; 1024]);
    add(7, 2, &[0, 0], &[]);
    add(13, 2, &[0, 4096, 65_536, 3], &[]);
    add(13, 2, &[0, 0, 512, 0x11], &[]);
    add(11, 1, &[0, 0, 4096, 0, 0], &[]);
    add(1, 2, &[0, 0], &[]);
    add(6, 1, &[], &[]);
    seed
}
