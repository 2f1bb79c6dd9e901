//! How a connection begins, and how it does not.

use super::peer::{Script, map_part, welcome};
use super::port::{VOLUME_BYTES, history};
use super::{LinkConnection, LinkEvent, LinkSettings, Rig};
use blkrep_core::source::DownReason;
use blkrep_types::{ByteLen, Congestion};
use blkrep_wire::{MapEnd, Message, PeerRole, RefuseCode, VERSION_MAX, Welcome};

fn end(part_count: u32) -> MapEnd {
    MapEnd {
        part_count,
        unknown: false,
    }
}

#[test]
fn a_hello_says_what_the_group_is_and_the_stream_begins_where_the_group_says() {
    let mut rig = Rig::new(1, []);
    rig.run(100);
    let hello = rig.replica(|replica| replica.hello.clone()).unwrap();
    assert_eq!(
        (
            hello.node.as_str(),
            hello.group.as_str(),
            hello.volumes.len()
        ),
        ("north", "pg", 2)
    );
    let start = rig.replica(|replica| replica.starts.clone());
    assert_eq!(start.len(), 1);
    assert!(!start[0].adopt, "the target has this history already");
    let snapshot = rig.snapshot();
    assert_eq!(
        (snapshot.connection, snapshot.connects),
        (LinkConnection::Up, 1)
    );
    assert_eq!(snapshot.peer.unwrap().node.as_str(), "south");
    assert!(snapshot.connected_since.is_some() && snapshot.last_error.is_none());
    assert!(matches!(&rig.events()[..], [LinkEvent::Up { .. }]));
}

#[test]
fn a_target_without_history_adopts_the_sources() {
    let fresh = Welcome {
        history: history(&[]),
        durable: blkrep_types::WriteName::NONE,
        ..welcome(0)
    };
    let mut rig = Rig::new(2, [Script::Welcome(Box::new(fresh))]);
    rig.run(100);
    assert!(rig.replica(|replica| replica.starts[0].adopt));
}

#[test]
fn a_target_with_a_write_that_was_never_made_here_is_taken_over() {
    let newer = Welcome {
        durable: welcome(1_000_000).durable,
        ..welcome(0)
    };
    let mut rig = Rig::new(2, [Script::Welcome(Box::new(newer))]);
    rig.run(100);
    assert!(rig.replica(|replica| replica.starts[0].adopt));
}

#[test]
fn the_targets_map_reaches_the_group_as_extents_within_the_volume() {
    let extents = VOLUME_BYTES.div_ceil(65536);
    let parts = vec![
        map_part(0, 0, 10, &[0b1110_0001, 0b11]),
        map_part(1, extents - 2, 2, &[0b11]),
    ];
    let mut rig = Rig::new(
        3,
        [Script::Map(
            parts,
            MapEnd {
                part_count: 2,
                unknown: true,
            },
        )],
    );
    rig.run(100);
    rig.group.with(|group| {
        let last = (extents - 2) * 65536;
        let wanted = [
            (0, 0, 65536),
            (0, 5 * 65536, 5 * 65536),
            (1, last, VOLUME_BYTES - last),
        ];
        assert_eq!(group.map, wanted);
        assert!(group.map_unknown);
    });
    assert_eq!(rig.snapshot().connection, LinkConnection::Up);
}

#[test]
fn a_map_that_cannot_be_is_a_breach_of_protocol() {
    let extents = VOLUME_BYTES.div_ceil(65536);
    for (parts, end, words) in [
        (vec![map_part(2, 0, 1, &[1])], end(1), "map of volume 2"),
        (
            vec![map_part(0, extents - 1, 2, &[3])],
            end(1),
            "longer than the volume",
        ),
        (vec![map_part(0, 0, 1, &[1])], end(2), "1 parts where 2"),
    ] {
        let mut rig = Rig::new(4, [Script::Map(parts, end)]);
        rig.run(1000);
        assert!(rig.last_error().contains(words), "{}", rig.last_error());
        assert_eq!(
            rig.group.with(|group| group.downs.clone()),
            [DownReason::Protocol]
        );
        assert!(
            rig.group.with(|group| group.starts.is_empty()),
            "no stream after it"
        );
        assert!(
            rig.replica(|r| matches!(r.goodbyes[..], [Message::Error(_)])),
            "and is told so"
        );
    }
}

#[test]
fn rubbish_is_refused_and_tried_again() {
    let wrong_version = [b"BLKr\x07\0\x02\0".as_slice(), &[0; 24]].concat();
    for rubbish in [
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        vec![0xff; 5000],
        wrong_version,
    ] {
        let mut rig = Rig::new(5, [Script::Rubbish(rubbish)]);
        rig.run(1500);
        assert_eq!(
            rig.group.with(|group| group.downs.clone()),
            [DownReason::Protocol]
        );
        assert_eq!(rig.snapshot().connection, LinkConnection::Down);
        assert!(rig.snapshot().last_error.is_some());
        rig.run(3000);
        assert_eq!(
            rig.snapshot().connection,
            LinkConnection::Up,
            "the next one is honest"
        );
    }
}

#[test]
fn a_version_that_was_not_offered_is_a_breach_of_protocol() {
    let newer = Welcome {
        version: VERSION_MAX + 1,
        ..welcome(0)
    };
    let mut rig = Rig::new(6, [Script::Welcome(Box::new(newer))]);
    rig.run(1000);
    assert!(
        rig.last_error().contains("which was not offered"),
        "{}",
        rig.last_error()
    );
}

#[test]
fn a_refusal_waits_for_somebody_to_act() {
    let mut rig = Rig::new(7, [Script::Refuse(RefuseCode::Occupied, history(&[]))]);
    rig.run(30_000);
    let snapshot = rig.snapshot();
    let snapshot_before = snapshot.clone();
    assert_eq!(snapshot.connection, LinkConnection::Refused);
    let refusal = snapshot.refusal.unwrap();
    assert_eq!(refusal.code, Some(RefuseCode::Occupied));
    assert!(
        refusal.text.contains("because of occupied"),
        "{}",
        refusal.text
    );
    assert_eq!(
        rig.replica(|replica| replica.connections),
        1,
        "nothing is tried by itself"
    );
    assert!(matches!(&rig.events()[..], [LinkEvent::Refused(_)]));
    // Who asks again and looks at once must not take the old refusal for the answer.
    rig.control.connect();
    assert_eq!(rig.snapshot().refusal, None);
    rig.control.show(&snapshot_before);
    assert_eq!(rig.snapshot().refusal, None);
    rig.run(1000);
    assert_eq!(rig.snapshot().connection, LinkConnection::Up);
    assert_eq!(rig.snapshot().refusal, None);
}

#[test]
fn a_refusal_that_passes_is_tried_again() {
    let busy = || Script::Refuse(RefuseCode::Busy, history(&[]));
    let mut rig = Rig::new(8, [busy(), busy()]);
    rig.run(1000);
    assert!(rig.last_error().contains("busy"));
    assert_eq!(rig.snapshot().connection, LinkConnection::Down);
    rig.run(10_000);
    assert_eq!(rig.snapshot().connection, LinkConnection::Up);
    assert_eq!(rig.replica(|replica| replica.connections), 3);
}

#[test]
fn a_newer_generation_fences_the_group_whichever_way_it_is_told() {
    let newer = history(&[1, 2]);
    let promoted = Welcome {
        role: PeerRole::Source,
        history: newer.clone(),
        volumes: vec![],
        ..welcome(0)
    };
    for script in [
        Script::Welcome(Box::new(promoted)),
        Script::Refuse(RefuseCode::NewerGeneration, newer.clone()),
    ] {
        let mut rig = Rig::new(9, [script]);
        rig.append([4096; 10]);
        rig.run(30_000);
        assert_eq!(rig.group.with(|group| group.fenced), Some(newer.current()));
        assert_eq!(rig.snapshot().connection, LinkConnection::Refused);
        assert!(rig.last_error().contains("stale"), "{}", rig.last_error());
        assert_eq!(
            rig.replica(|replica| (replica.received, replica.connections)),
            (0, 1)
        );
        let stale = LinkEvent::Stale {
            newer: newer.current(),
        };
        assert_eq!(
            rig.events().iter().filter(|event| **event == stale).count(),
            1
        );
    }
}

#[test]
fn a_claim_of_a_newer_generation_without_ours_in_it_fences_nothing() {
    let mut rig = Rig::new(
        10,
        [Script::Refuse(
            RefuseCode::NewerGeneration,
            history(&[7, 8]),
        )],
    );
    rig.run(1000);
    assert_eq!(rig.group.with(|group| group.fenced), None);
    assert_eq!(rig.snapshot().connection, LinkConnection::Refused);
}

#[test]
fn what_the_group_refuses_is_not_overwritten() {
    let unrelated = Welcome {
        history: history(&[5]),
        ..welcome(0)
    };
    let mut rig = Rig::new(11, [Script::Welcome(Box::new(unrelated))]);
    rig.append([4096; 10]);
    rig.run(10_000);
    let refusal = rig.snapshot().refusal.unwrap();
    assert_eq!(
        (refusal.code, refusal.text.as_str()),
        (None, "the target's data is unrelated")
    );
    assert_eq!(rig.replica(|replica| replica.received), 0);
}

#[test]
fn a_target_whose_volumes_do_not_fit_is_refused_in_words() {
    let mut small = welcome(0);
    small.volumes[1].len = ByteLen::new(VOLUME_BYTES - 512);
    let mut one = welcome(0);
    one.volumes.pop();
    for (welcome, words) in [(small, "volume 'v1' has"), (one, "holds 1 volumes")] {
        let mut rig = Rig::new(12, [Script::Welcome(Box::new(welcome))]);
        rig.run(10_000);
        let refusal = rig.snapshot().refusal.unwrap();
        assert!(refusal.text.contains(words), "{}", refusal.text);
        assert_eq!(rig.replica(|replica| replica.connections), 1);
    }
}

#[test]
fn a_target_that_is_silent_in_the_handshake_is_given_up() {
    let mut rig = Rig::new(13, [Script::Silent]);
    rig.run(4_000);
    assert_eq!(rig.snapshot().connection, LinkConnection::Negotiating);
    rig.run(4_000);
    assert!(rig.last_error().contains("silent"), "{}", rig.last_error());
    rig.run(4_000);
    assert_eq!(rig.snapshot().connection, LinkConnection::Up);
    assert!(
        !rig.events()
            .iter()
            .any(|event| matches!(event, LinkEvent::Down { .. }))
    );
}

#[test]
fn a_handshake_that_never_ends_is_given_up_although_the_target_lives() {
    let mut rig = Rig::new(14, [Script::Mute]);
    rig.run(50_000);
    assert_eq!(rig.snapshot().connection, LinkConnection::Negotiating);
    rig.run(20_000);
    assert!(
        rig.last_error().contains("did not finish"),
        "{}",
        rig.last_error()
    );
    assert_eq!(rig.snapshot().connection, LinkConnection::Up);
}

#[test]
fn the_stream_waits_until_the_group_has_made_its_maps_durable() {
    let mut rig = Rig::new(15, []);
    rig.group.with(|group| group.maps_pending = true);
    rig.append([4096; 10]);
    rig.run(3_000);
    assert_eq!(rig.snapshot().connection, LinkConnection::Negotiating);
    assert_eq!(
        rig.replica(|replica| (replica.starts.len(), replica.received)),
        (0, 0)
    );
    rig.group.with(|group| group.maps_pending = false);
    rig.group.wake();
    rig.run(3_000);
    rig.assert_all_there();
}

#[test]
fn connections_share_the_line_as_is_set_also_when_that_changes_and_a_refusal_is_told_once() {
    let mut rig = Rig::new(3, []);
    rig.run(100);
    let in_force = |rig: &Rig| rig.snapshot().congestion.unwrap().to_string();
    let set = |rig: &mut Rig, wanted: &str| {
        rig.control.set(LinkSettings {
            congestion: Congestion::parse(wanted).unwrap(),
            ..rig.control.settings()
        });
        rig.run(100);
    };
    assert_eq!(in_force(&rig), "bbr", "a simulated kernel has it");
    set(&mut rig, "reno");
    assert_eq!(
        (in_force(&rig).as_str(), rig.snapshot().connects),
        ("reno", 1)
    );
    set(&mut rig, "vegas");
    assert_eq!(in_force(&rig), "cubic", "the system's");
    let why = rig.snapshot().congestion_refused.unwrap();
    assert!(why.contains("modprobe tcp_vegas"), "{why}");
    // The next connection fares no better, and nobody has to hear of it again.
    rig.cut();
    rig.run(10_000);
    rig.heal();
    rig.run(10_000);
    assert_eq!(
        (in_force(&rig).as_str(), rig.snapshot().connects),
        ("cubic", 2)
    );
    let refused = |event: &&LinkEvent| matches!(event, LinkEvent::CongestionRefused { .. });
    assert_eq!(rig.events().iter().filter(refused).count(), 1);
    set(&mut rig, "system");
    assert_eq!(rig.snapshot().congestion_refused, None);
}
