#![allow(clippy::unwrap_used)]

use super::*;
use crate::error::FormatError;
use crate::layout::{AncestorEntry, GroupHead, LinkEntry, VolumeEntry, put};
use blkrep_types::OnLoss;
use blkrep_types::limits::COUNT_MAX;
use proptest::prelude::*;
use std::time::Duration;

fn group() -> Group {
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
    Group {
        id: [3; 16],
        name: GroupName::new("db").unwrap(),
        clean: true,
        distrust: false,
        history,
        incarnation: Incarnation::new(5),
        head: (Incarnation::new(5), Seq::new(1234)),
        log_id: [4; 16],
        log_bytes: ByteLen::new(64 << 20),
        newer: Generation::NONE,
        served_by: None,
        intent_map: [5; 16],
        volumes: vec![GroupVolume {
            index: VolumeIndex::new(0),
            name: VolumeName::new("pgdata").unwrap(),
            len: ByteLen::new(1 << 30),
            block_size: BlockSize::B512,
            extent_size: ExtentSize::DIRTY_DEFAULT,
        }],
        links: vec![GroupLink {
            place: 2,
            id: [6; 16],
            name: LinkName::new("dr").unwrap(),
            mode: Mode::Async,
            loss: LossPolicy::default(),
            transmit: TransmitHeld::Paused,
            overwrite: true,
            first_mirror: Some(MirrorKind::Checksum),
            wanted: true,
            peer: "127.0.0.1:7420".to_owned(),
            paths: vec!["/replica/pgdata".to_owned()],
        }],
    }
}

#[test]
fn a_superblock_is_read_as_it_was_written() {
    let bytes = group().encode(7).unwrap();
    assert_eq!(Group::decode(&bytes).unwrap(), (group(), 7));
    assert_eq!(&bytes[..8], b"BLKrGRUP");
    assert_eq!(crc32fast::hash(&bytes[..508]), GOLDEN_CRC);
}

/// Of the head above, which has the checksum of the rest; changes only with the version of the format.
const GOLDEN_CRC: u32 = 709_011_062;

#[test]
fn the_newer_good_copy_is_right() {
    let old = group().encode(6).unwrap();
    let new = Group {
        clean: false,
        ..group()
    }
    .encode(7)
    .unwrap();
    for (first, second) in [(&old, &new), (&new, &old)] {
        let Chosen::Good {
            group,
            counter: 7,
            repair: false,
        } = choose(first, second).unwrap()
        else {
            panic!("the newer copy is right");
        };
        assert!(!group.clean);
    }
    let mut torn = new.clone();
    torn[600] ^= 1;
    for (first, second) in [(&old, &torn), (&torn, &old)] {
        let chosen = choose(first, second).unwrap();
        assert!(matches!(
            chosen,
            Chosen::Good {
                counter: 6,
                repair: true,
                ..
            }
        ));
    }
    assert!(matches!(choose(&[0; 512], &[0; 512]), Ok(Chosen::Blank)));
    assert!(choose(&torn, &torn).is_err());
    assert!(
        matches!(choose(&torn, &[0; 512]), Ok(Chosen::Blank)),
        "the first write"
    );
}

#[test]
fn a_newer_version_is_left_alone() {
    let mut newer = group().encode(8).unwrap();
    newer[8] = 2;
    let crc = crc32fast::hash(&newer[..508]);
    newer[508..512].copy_from_slice(&crc.to_le_bytes());
    let error = choose(&newer, &group().encode(7).unwrap()).unwrap_err();
    assert!(matches!(
        error,
        FormatError::Newer {
            found: 2,
            supported: 1,
            ..
        }
    ));
}

/// A fuzzer's: two links in one place, sizes and numbers that overflow when they are counted on from, and
/// maps larger than any memory ended the daemon at its start.
#[test]
fn what_nobody_can_have_written_is_refused() {
    let change = |change: fn(&mut Group)| {
        let mut changed = group();
        change(&mut changed);
        Group::decode(&changed.encode(7).unwrap())
    };
    let refused = |found: Result<(Group, u64), FormatError>, expected: &str| match found {
        Err(FormatError::Field { field, .. }) => assert_eq!(field, expected),
        other => panic!("{expected}: {other:?}"),
    };
    refused(
        change(|group| group.links.push(group.links[0].clone())),
        "place",
    );
    refused(
        change(|group| group.log_bytes = ByteLen::new(u64::MAX)),
        "log_bytes",
    );
    refused(
        change(|group| group.incarnation = Incarnation::new(u64::MAX)),
        "incarnation",
    );
    refused(
        change(|group| group.head.1 = Seq::new(COUNT_MAX + 1)),
        "head_seq",
    );
    for len in [0, 513, 1 << 62] {
        let mut sized = group();
        sized.volumes[0].len = ByteLen::new(len);
        refused(Group::decode(&sized.encode(7).unwrap()), "len");
    }
    refused(Group::decode(&group().encode(u64::MAX).unwrap()), "counter");
}

/// Where in a superblock a field is.
#[derive(Debug, Clone, Copy)]
enum At {
    Head,
    Volume,
    Link,
}

/// The superblock above with one field changed, and right checksums.
fn with(at: At, field: &str, value: u64) -> Result<(Group, u64), FormatError> {
    let mut bytes = group().encode(7).unwrap();
    let said = u32::from_le_bytes(bytes[12..16].try_into().unwrap());
    let said = usize::try_from(said).unwrap();
    let volumes = size_of::<GroupHead>() + 2 * size_of::<AncestorEntry>();
    let links = volumes + size_of::<VolumeEntry>();
    match at {
        At::Head => put(&mut bytes, GroupHead::FIELDS, field, value),
        At::Volume => put(&mut bytes[volumes..], VolumeEntry::FIELDS, field, value),
        At::Link => put(&mut bytes[links..], LinkEntry::FIELDS, field, value),
    }
    let body = crc32fast::hash(&bytes[512..said]);
    put(&mut bytes, GroupHead::FIELDS, "body_crc", body.into());
    let crc = crc32fast::hash(&bytes[..508]);
    put(&mut bytes, GroupHead::FIELDS, "crc", crc.into());
    Group::decode(&bytes)
}

#[test]
fn an_impossible_field_is_refused_by_its_name() {
    assert!(
        with(At::Head, "version", 1).is_ok(),
        "the checksums are right"
    );
    for (at, field, value) in [
        (At::Head, "version", 0),
        (At::Head, "generation_count", 65),
        (At::Head, "volume_count", 0),
        (At::Head, "link_count", 17),
        (At::Head, "reserved", 1),
        (At::Head, "bytes", COPY_BYTES + 1),
        (At::Head, "bytes", 511),
        (At::Head, "group", 0),
        (At::Head, "clean", 2),
        (At::Head, "distrust", 2),
        (At::Volume, "index", 1),
        (At::Volume, "block_bytes", 3),
        (At::Volume, "extent_bytes", 5),
        (At::Volume, "name", 0),
        (At::Link, "mode", 4),
        (At::Link, "on_loss", 0),
        (At::Link, "transmit", 0),
        (At::Link, "overwrite", 2),
        (At::Link, "first_mirror", 4),
        (At::Link, "wanted", 2),
        (At::Link, "peer_bytes", 0xffff),
        (At::Link, "name", 0),
    ] {
        match with(at, field, value) {
            Err(FormatError::Field { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{at:?} {field} {value}: {other:?}"),
        }
    }
    for (at, field, value, named) in [
        (At::Volume, "reserved", 1, "index"),
        (At::Link, "reserved", 1, "text_bytes"),
        (At::Link, "place", 16, "text_bytes"),
        // A peer that is two bytes shorter makes the length of the path that of other bytes.
        (At::Link, "peer_bytes", 12, "path"),
        (At::Head, "link_count", 0, "bytes"),
    ] {
        match with(at, field, value) {
            Err(FormatError::Field { field: found, .. }) => assert_eq!(found, named),
            other => panic!("{at:?} {field} {value}: {other:?}"),
        }
    }
}

/// All kinds of link there are, in one superblock.
#[test]
fn every_setting_of_a_link_is_read_as_it_was_written() {
    let mut whole = group();
    let one = whole.links.remove(0);
    let modes = [Mode::Async, Mode::Memory, Mode::Sync, Mode::Sync];
    let held = [
        TransmitHeld::Started,
        TransmitHeld::Paused,
        TransmitHeld::Stopped,
        TransmitHeld::Started,
    ];
    let mirrors = [
        None,
        Some(MirrorKind::Full),
        Some(MirrorKind::Difference),
        Some(MirrorKind::Checksum),
    ];
    let losses = [OnLoss::Continue, OnLoss::Block, OnLoss::Fail, OnLoss::Block];
    let kinds = modes.into_iter().zip(held).zip(mirrors).zip(losses);
    for (place, (((mode, transmit), first_mirror), on_loss)) in (0..).zip(kinds) {
        let timeout = Duration::from_millis(u64::from(place) * u64::from(u32::MAX / 3));
        whole.links.push(GroupLink {
            place,
            mode,
            loss: LossPolicy { on_loss, timeout },
            transmit,
            first_mirror,
            overwrite: place % 2 == 0,
            ..one.clone()
        });
    }
    let bytes = whole.encode(8).unwrap();
    assert_eq!(Group::decode(&bytes).unwrap(), (whole, 8));
}

#[test]
fn more_paths_than_fit_are_refused() {
    let mut large = group();
    large.links[0].paths = vec!["x".repeat(4096); 300];
    assert!(matches!(large.encode(1), Err(FormatError::Room { .. })));
}

proptest! {
    #[test]
    fn a_flipped_bit_is_never_accepted(bit in any::<prop::sample::Index>()) {
        let mut bytes = group().encode(7).unwrap();
        let said = u32::from_le_bytes(bytes[12..16].try_into().unwrap());
        let bit = bit.index(usize::try_from(said).unwrap() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Group::decode(&bytes).is_err());
    }

    #[test]
    fn rubbish_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(Group::decode(&bytes).is_err());
    }
}
