//! How records travel, and what ends or holds them.

use super::peer::{Script, ack, foreign, map_part};
use super::port::name;
use super::{LinkConnection, LinkEvent, Rig};
use blkrep_core::source::DownReason;
use blkrep_io::Worker as _;
use blkrep_types::{ByteLen, ByteOffset, Extent, Incarnation, Seq, VolumeIndex};
use blkrep_wire::{Ack, DigestReply, Farewell, FarewellCode, MapEnd, Message};
use std::num::NonZeroU64;

/// Lengths of all kinds, the largest included.
fn lens(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(|nth| match nth % 29 {
        3 => 1 << 20,
        5 | 15 => 65536,
        7 | 21 => 0,
        other => (other + 1) * 512,
    })
}

#[test]
fn records_arrive_in_order_and_whole() {
    for seed in 0..3 {
        let mut rig = Rig::new(100 + seed, []);
        for _ in 0..10 {
            rig.append(lens(30));
            rig.run(20);
        }
        rig.run(20_000);
        rig.assert_all_there();
        let digests = rig.group.with(|group| group.digests.len() as u64);
        assert!(digests > 0 && digests == rig.replica(|replica| replica.digests));
    }
}

#[test]
fn nothing_is_sent_whose_bytes_are_not_complete() {
    let mut rig = Rig::new(110, []);
    rig.append(lens(10));
    lens(10).for_each(|len| rig.group.append(len));
    rig.group.wake();
    rig.run(5_000);
    assert_eq!(rig.replica(|replica| replica.received), 10);
    rig.group.publish();
    rig.run(5_000);
    rig.assert_all_there();
}

#[test]
fn what_is_published_while_the_driver_goes_to_sleep_is_not_forgotten() {
    let mut rig = Rig::new(111, []);
    rig.run(100);
    rig.group.with(|group| group.look_again = true);
    rig.append(lens(10));
    rig.run(500);
    rig.assert_all_there();
}

#[test]
fn after_a_cut_the_stream_goes_on_exactly_where_it_was() {
    for seed in 0..5 {
        let mut rig = Rig::new(120 + seed, []);
        for round in 1..4 {
            rig.append(lens(60));
            rig.run(3 + 7 * seed);
            rig.cut();
            rig.append(lens(20));
            rig.run(8_000);
            assert_ne!(
                rig.snapshot().connection,
                LinkConnection::Up,
                "round {round}"
            );
            rig.heal();
            rig.run(30_000);
            rig.assert_all_there();
        }
        assert_eq!(rig.snapshot().connects, 4);
        let downs = rig.events();
        let downs = downs
            .iter()
            .filter(|event| matches!(event, LinkEvent::Down { .. }));
        assert_eq!(downs.count(), 3);
    }
}

#[test]
fn after_a_reset_the_stream_goes_on_exactly_where_it_was() {
    for seed in 0..5 {
        let mut rig = Rig::new(140 + seed, []);
        for _ in 0..5 {
            rig.append(lens(40));
            rig.run(2 + seed);
            rig.world.reset_connections(rig.source, rig.target);
            rig.run(10_000);
        }
        rig.assert_all_there();
        assert!(
            rig.group
                .with(|group| group.downs.iter().all(|down| *down == DownReason::Lost))
        );
    }
}

#[test]
fn an_idle_connection_lives_by_its_heartbeats() {
    let mut rig = Rig::new(150, []);
    rig.run(600_000);
    let snapshot = rig.snapshot();
    assert_eq!(
        (snapshot.connection, snapshot.connects),
        (LinkConnection::Up, 1)
    );
    assert!(snapshot.round_trip.unwrap().as_micros() > 50);
    let heard = rig.world.now().since(snapshot.last_heard.unwrap());
    assert!(heard.as_millis() < 2_000, "{heard:?}");
}

#[test]
fn a_dead_target_is_noticed_within_the_time_out() {
    let mut rig = Rig::new(151, []);
    rig.run(1_000);
    rig.world.cut(rig.target, rig.source);
    rig.run(7_000);
    assert_ne!(rig.snapshot().connection, LinkConnection::Up);
    assert!(matches!(&rig.events()[1], LinkEvent::Down { reason } if reason.contains("silent")));
}

#[test]
fn a_target_without_room_holds_the_stream_but_not_the_connection() {
    let mut rig = Rig::new(152, [Script::Full(5)]);
    for _ in 0..25 {
        rig.append([1 << 20; 1]);
        rig.run(1_000);
    }
    rig.run(300_000);
    assert_eq!(
        (rig.snapshot().connection, rig.snapshot().connects),
        (LinkConnection::Up, 1)
    );
    let released = rig.group.with(|group| group.released);
    assert!(
        released < 12,
        "what the target does not take stays in the log: {released}"
    );
    rig.world.reset_connections(rig.source, rig.target);
    rig.run(120_000);
    rig.assert_all_there();
}

/// A target whose journal's disk hung answered every heartbeat: its link was shown as replicating,
/// and held up the writes of an application that waits for it, for ever.
#[test]
fn a_target_that_lives_and_makes_nothing_durable_loses_its_connection() {
    let mut rig = Rig::new(161, [Script::Stuck(5)]);
    rig.append([4096; 5]);
    rig.run(30_000);
    assert_eq!(
        rig.snapshot().connection,
        LinkConnection::Up,
        "it may be slow"
    );
    rig.run(40_000);
    assert_eq!(rig.snapshot().connection, LinkConnection::Down);
    let told = |event: &LinkEvent| matches!(event, LinkEvent::Down { reason } if reason.contains("nothing durable"));
    assert!(rig.events().iter().any(told), "{:?}", rig.events());
    rig.run(30_000);
    assert_eq!(rig.snapshot().connects, 1, "it is left alone for a while");
    rig.run(60_000);
    assert_eq!(rig.snapshot().connects, 2);
}

#[test]
fn what_a_target_may_not_say_ends_the_connection() {
    let digest = DigestReply {
        incarnation: Incarnation::new(1),
        seq: Seq::new(1),
        volume: VolumeIndex::new(0),
        extent: Extent::new(ByteOffset::new(0), ByteLen::new(512)).unwrap(),
        digest: None,
    };
    for (message, words) in [
        (ack(1_000_000), "not sent"),
        (Message::Digests(vec![digest]), "asked for none"),
        (
            Message::MapPart(map_part(0, 0, 1, &[1])),
            "'map-part' during",
        ),
        (
            Message::MapEnd(MapEnd {
                part_count: 0,
                unknown: true,
            }),
            "'map-end' during",
        ),
    ] {
        let mut rig = Rig::new(153, [Script::Then(10, message)]);
        rig.append(lens(10));
        rig.run(2_000);
        assert!(rig.last_error().contains(words), "{}", rig.last_error());
        assert_eq!(
            rig.group.with(|group| group.downs.clone()),
            [DownReason::Protocol]
        );
        rig.append(lens(10));
        rig.run(10_000);
        rig.assert_all_there();
    }
}

#[test]
fn an_acknowledgement_of_another_history_says_nothing_about_this_one() {
    let Message::Ack(honest) = ack(3) else {
        panic!("an acknowledgement")
    };
    let early = Ack {
        received: foreign(99),
        durable: foreign(99),
        applied: foreign(99),
        ..honest
    };
    let mut rig = Rig::new(154, [Script::Then(10, Message::Ack(early))]);
    rig.append(lens(10));
    rig.run(5_000);
    rig.assert_all_there();
    assert_eq!(
        rig.snapshot().peer.unwrap().applied,
        foreign(99),
        "but a status shows it"
    );
    assert_ne!(name(10), foreign(99));
}

#[test]
fn a_targets_last_words_are_shown_and_tried_again() {
    let words = Farewell {
        code: FarewellCode::Stopping,
        text: "going down for repair".to_owned(),
    };
    let mut rig = Rig::new(155, [Script::Then(10, Message::Goodbye(words))]);
    rig.append(lens(10));
    rig.run(1_500);
    assert!(
        rig.last_error().contains("going down for repair"),
        "{}",
        rig.last_error()
    );
    rig.append(lens(10));
    rig.run(10_000);
    rig.assert_all_there();
}

#[test]
fn a_stop_says_goodbye_and_finishes() {
    let mut rig = Rig::new(156, []);
    rig.append(lens(10));
    rig.run(5_000);
    rig.control.stop();
    rig.run(3_000);
    assert!(rig.worker.finished());
    assert_eq!(rig.snapshot().connection, LinkConnection::Stopped);
    let goodbyes = rig.replica(|replica| replica.goodbyes.clone());
    assert!(matches!(&goodbyes[..], [Message::Goodbye(f)] if f.code == FarewellCode::Stopping));
    assert_eq!(
        rig.group.with(|group| group.downs.clone()),
        [DownReason::Asked]
    );
}

#[test]
fn a_stop_while_nothing_answers_finishes_too() {
    let mut rig = Rig::new(157, []);
    rig.cut();
    rig.run(3_000);
    rig.control.stop();
    rig.run(10);
    assert!(rig.worker.finished());
}

#[test]
fn the_group_ends_and_begins_the_connection() {
    let mut rig = Rig::new(158, []);
    rig.run(1_000);
    rig.group.with(|group| group.wanted = false);
    rig.group.wake();
    rig.run(10_000);
    assert_eq!(rig.snapshot().connection, LinkConnection::Down);
    assert_eq!(
        rig.replica(|replica| (replica.connections, replica.goodbyes.len())),
        (1, 1)
    );
    rig.group.with(|group| group.wanted = true);
    rig.append(lens(10));
    rig.run(10_000);
    rig.assert_all_there();
}

#[test]
fn without_reconnecting_a_lost_connection_waits_for_a_command() {
    let mut rig = Rig::new(159, []);
    let mut settings = rig.control.settings();
    settings.reconnect = false;
    rig.control.set(settings);
    rig.run(1_000);
    rig.world.reset_connections(rig.source, rig.target);
    rig.run(60_000);
    assert_eq!(rig.snapshot().connection, LinkConnection::Down);
    assert_eq!(rig.replica(|replica| replica.connections), 1);
    rig.control.connect();
    rig.run(2_000);
    assert_eq!(rig.snapshot().connection, LinkConnection::Up);
}

#[test]
fn a_target_that_is_not_there_is_named_and_tried_again() {
    let mut rig = Rig::new(160, []);
    rig.run(1_000);
    let mut settings = rig.control.settings();
    let there = settings.peer;
    settings.peer.set_port(7421);
    rig.control.set(settings.clone());
    rig.world.reset_connections(rig.source, rig.target);
    rig.run(10_000);
    let error = rig.last_error();
    assert!(error.contains("cannot connect to 10.0.0.2:7421"), "{error}");
    settings.peer = there;
    rig.control.set(settings);
    rig.run(10_000);
    assert_eq!(rig.snapshot().connection, LinkConnection::Up);
}

/// A minute of a limited line: exact in virtual time, and no reason to end the connection, though what was
/// handed over waits for longer than a target may make nothing durable.
#[test]
fn a_limit_of_bandwidth_is_kept_and_ends_no_connection() {
    for rate in [16 << 10, 256 << 10, 10 << 20] {
        let mut rig = Rig::new(130, [Script::Lively]);
        rig.run(1_000);
        let limit = NonZeroU64::new(rate);
        rig.control.settings().pace.set_rate(limit);
        let wanted = 100 * rate;
        rig.append((0..wanted.div_ceil(1 << 20) + 8).map(|_| 1 << 20));
        let before = rig.snapshot().wire_bytes_sent;
        rig.run(90_000);
        let sent = rig.snapshot().wire_bytes_sent - before;
        let exact = 90 * rate;
        let slack = exact / 100 + 4096;
        assert!(sent.abs_diff(exact) <= slack, "{sent} bytes, not {exact}");
        assert_eq!(rig.snapshot().connects, 1, "{:?}", rig.snapshot());
        rig.control.settings().pace.set_rate(None);
        rig.run(60_000);
        rig.assert_all_there();
    }
}
