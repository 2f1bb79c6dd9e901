//! Golden bytes, round trips, and the rule that a torn or damaged copy never costs the other.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::error::FormatError;
use crate::layout::{AncestorEntry, ReplicaHead, VolumeEntry, head_crc, put};
use blkrep_types::limits::COUNT_MAX;
use blkrep_types::{Generation, Incarnation, Seq};
use proptest::prelude::*;
use twox_hash::XxHash3_64;

fn replica(volumes: u16, generations: u8) -> Replica {
    let mut history = History::new();
    for number in 1..=generations {
        history.branch(
            Generation::from_bytes([number; 16]),
            Incarnation::new(2),
            Seq::new(7),
        );
    }
    let name = WriteName {
        generation: history.current(),
        incarnation: Incarnation::new(3),
        seq: Seq::new(1000),
    };
    Replica {
        id: [9; 16],
        group: GroupName::new("db").unwrap(),
        source: NodeName::new("alpha").unwrap(),
        link: LinkName::new("alpha-beta").unwrap(),
        role: ReplicaRole::Target,
        data_state: DataState::Ok,
        part: Part::Empty,
        paused: false,
        history,
        base: name,
        merged: WriteName::NONE,
        doubtful: 0,
        journal: [5; 16],
        volumes: (0..volumes).map(volume).collect(),
    }
}

fn volume(index: u16) -> ReplicaVolume {
    ReplicaVolume {
        index: VolumeIndex::new(index),
        name: VolumeName::new(&format!("v{index}")).unwrap(),
        len: ByteLen::new(1 << 30),
        block_size: BlockSize::B4096,
        extent_size: ExtentSize::DIRTY_DEFAULT,
        path: PathBuf::from(format!("/replicas/v{index}")),
    }
}

#[test]
fn the_bytes_of_a_superblock_are_golden() {
    let bytes = replica(2, 1).encode(3);
    assert_eq!(&bytes[..8], b"BLKrREPL");
    assert_eq!(bytes.len() % 512, 0);
    assert_eq!(bytes[8..12], [1, 0, 0, 0]);
    assert_eq!(&bytes[40..42], b"db");
    assert_eq!(
        XxHash3_64::oneshot(&bytes),
        GOLDEN_SUM,
        "a changed layout needs a new version"
    );
}

/// Of the superblock above; changes only with the version of the format. No CRC32: it would be the same
/// whatever the head says, which ends with its own.
const GOLDEN_SUM: u64 = 7_078_445_981_508_481_077;

#[test]
fn the_largest_superblock_fits_its_place() {
    let mut large = replica(64, 64);
    for volume in &mut large.volumes {
        volume.path = PathBuf::from("/".repeat(PATH_BYTES_MAX));
    }
    let bytes = large.encode(1);
    assert!(bytes.len() as u64 <= COPY_BYTES);
    assert_eq!(Replica::decode(&bytes).unwrap(), (large, 1));
}

#[test]
fn the_newer_good_copy_is_chosen_and_the_bad_one_named() {
    let (old, mut new) = (replica(1, 1), replica(1, 2));
    new.data_state = DataState::Mirroring;
    let (a, b) = (old.encode(4), new.encode(5));
    assert_eq!(Replica::choose(&a, &b).unwrap(), (new.clone(), 5, None));
    assert_eq!(
        Replica::choose(&a, &[0; 512]).unwrap(),
        (old.clone(), 4, None)
    );
    let mut bad = b;
    bad[600] ^= 1;
    let (chosen, counter, error) = Replica::choose(&a, &bad).unwrap();
    assert_eq!((chosen, counter), (old, 4));
    assert!(matches!(error, Some(FormatError::Checksum { .. })));
    assert!(Replica::choose(&bad, &bad).is_err());
    assert!(matches!(
        Replica::choose(&[0; 512], &[0; 512]),
        Err(FormatError::Blank { .. })
    ));
}

#[test]
fn a_newer_version_is_refused_even_beside_a_good_copy() {
    let good = replica(1, 1).encode(1);
    let mut newer = replica(1, 1).encode(2);
    newer[8] = 2;
    let crc = crate::layout::head_crc(&newer[..512]);
    newer[508..512].copy_from_slice(&crc.to_le_bytes());
    let error = Replica::choose(&good, &newer).unwrap_err();
    assert!(error.is_newer(), "{error}");
}

/// A fuzzer's: a map of 2^58 bits was asked for, which ended the daemon, and the next counter overflowed.
#[test]
fn what_nobody_can_have_written_is_refused() {
    let mut large = replica(2, 1);
    large.volumes[1].len = ByteLen::new(1 << 50);
    assert!(Replica::decode(&large.encode(1)).is_err());
    large.volumes[1].len = ByteLen::new(1 << 47);
    assert!(Replica::decode(&large.encode(1)).is_ok());
    assert!(Replica::decode(&replica(1, 1).encode(u64::MAX)).is_err());
}

/// A superblock of two volumes with one field changed, in its head or in the entry of its last volume, and
/// right checksums.
fn with(volume: bool, field: &str, value: u64) -> Result<(Replica, u64), FormatError> {
    let mut bytes = replica(2, 1).encode(1);
    let len = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let entries = 512 + size_of::<AncestorEntry>();
    if volume {
        let entry = &mut bytes[entries + size_of::<VolumeEntry>()..];
        put(entry, VolumeEntry::FIELDS, field, value);
    } else {
        put(&mut bytes, ReplicaHead::FIELDS, field, value);
    }
    let body = crc32fast::hash(&bytes[512..len]);
    put(&mut bytes, ReplicaHead::FIELDS, "body_crc", body.into());
    let crc = head_crc(&bytes[..512]);
    put(&mut bytes, ReplicaHead::FIELDS, "crc", crc.into());
    Replica::decode(&bytes)
}

#[test]
fn an_impossible_field_is_refused_by_its_name() {
    assert!(with(false, "version", 1).is_ok(), "the checksums are right");
    for (volume, field, value) in [
        (false, "version", 0),
        (false, "bytes", COPY_BYTES + 1),
        (false, "reserved", 1),
        (false, "generation_count", 65),
        (false, "volume_count", 0),
        (false, "volume_count", 65),
        (false, "group", 0),
        (false, "role", 3),
        (false, "data_state", 200),
        (false, "part", 0),
        (false, "paused", 2),
        (false, "doubtful", 0b100),
        (true, "path_bytes", 0),
        (true, "path_bytes", 0xffff),
        (true, "index", 0),
        (true, "reserved", 1),
        (true, "block_bytes", 3),
        (true, "extent_bytes", 5),
        (true, "len", 0),
        (true, "len", 4095),
    ] {
        match with(volume, field, value) {
            Err(FormatError::Field { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{field} {value}: {other:?}"),
        }
    }
    // A path that is shorter than its entry says ends another one's, or leaves bytes over.
    let shorter = with(true, "path_bytes", 5);
    assert!(matches!(
        shorter,
        Err(FormatError::Field { field: "bytes", .. })
    ));
    assert!(matches!(
        with(true, "path_bytes", 500),
        Err(FormatError::Short { .. })
    ));
    assert!(matches!(
        with(false, "magic", 1),
        Err(FormatError::Magic { .. })
    ));
    assert!(matches!(
        Replica::decode(&replica(1, 1).encode(1)[..100]),
        Err(FormatError::Short { .. })
    ));
}

fn states() -> impl Strategy<Value = (DataState, Part, bool, u16, u8)> {
    (
        prop::sample::select(DataState::ALL.to_vec()),
        prop::sample::select(vec![Part::Empty, Part::Map, Part::Everything]),
        any::<bool>(),
        1_u16..=64,
        0_u8..=64,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn facts_are_read_as_they_were_written(
        (data_state, part, paused, volumes, generations) in states(),
        counter in 0..=COUNT_MAX,
    ) {
        let doubtful = counter & (u64::MAX >> (64 - volumes));
        let facts = Replica { data_state, part, paused, doubtful, ..replica(volumes, generations) };
        prop_assert_eq!(Replica::decode(&facts.encode(counter)).unwrap(), (facts, counter));
    }

    #[test]
    fn a_flipped_bit_is_never_accepted(at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let facts = replica(3, 5);
        let mut bytes = facts.encode(1);
        let used = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
        bytes[at.index(used)] ^= 1 << bit;
        prop_assert!(Replica::decode(&bytes).is_err());
    }

    #[test]
    fn a_write_cut_off_at_any_sector_keeps_the_old_facts(sectors in any::<prop::sample::Index>()) {
        let old = replica(40, 3);
        let older = replica(64, 1).encode(6);
        let a = old.encode(7);
        let new = Replica { data_state: DataState::Mirroring, ..replica(40, 4) }.encode(8);
        let mut torn = older;
        torn.resize(torn.len().max(new.len()), 0);
        let cut = sectors.index(new.len() / 512) * 512;
        torn[..cut].copy_from_slice(&new[..cut]);
        let (chosen, counter, _) = Replica::choose(&torn, &a).unwrap();
        prop_assert_eq!((chosen, counter), (old, 7));
    }
}
