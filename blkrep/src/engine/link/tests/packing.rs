//! What is packed, for whom, and what is counted.

use super::peer::Script;
use super::{Compression, LinkConnection, LinkSettings, Packing, Rig};
use blkrep_types::Seq;
use blkrep_wire::{Codecs, Farewell, FarewellCode, Message};

fn set(rig: &Rig, compression: Compression) {
    let settings = rig.control.settings();
    rig.control.set(LinkSettings {
        compression,
        ..settings
    });
}

fn rig(seed: u64, compression: Compression, codecs: Codecs) -> Rig {
    let mut rig = Rig::new(seed, []);
    set(&rig, compression);
    rig.replica(|replica| replica.codecs = codecs);
    rig.run(1_000);
    assert_eq!(rig.snapshot().connection, LinkConnection::Up);
    rig
}

/// Bytes of data in the log, and what they became on the wire.
fn sent(rig: &Rig) -> (u64, u64) {
    rig.group.with(|group| {
        let bytes = group.log.iter().filter_map(|(_, bytes)| bytes.as_ref());
        (bytes.map(|bytes| bytes.len() as u64).sum(), group.framed)
    })
}

#[test]
fn a_target_that_takes_packed_frames_gets_them() {
    let mut rig = rig(200, Compression::On, Codecs::ZSTD);
    for _ in 0..5 {
        rig.append((0..30).map(|nth| [65_536, 512, 1 << 20][nth % 3]));
        rig.run(2_000);
    }
    rig.run(20_000);
    rig.assert_all_there();
    let (plain, framed) = sent(&rig);
    assert!(framed > 0 && framed * 10 < plain, "{framed} of {plain}");
    assert_eq!(rig.snapshot().packing, Packing::Packed);
    let wire = rig.snapshot().wire_bytes_sent;
    assert!((framed..framed + 4096).contains(&wire), "{wire} {framed}");
}

#[test]
fn a_target_that_takes_none_gets_plain_frames() {
    let mut rig = rig(201, Compression::On, Codecs::NONE);
    rig.append((0..30).map(|_| 65_536));
    rig.run(20_000);
    rig.assert_all_there();
    let (plain, framed) = sent(&rig);
    assert!(framed > plain, "{framed} of {plain}");
    assert_eq!(rig.snapshot().packing, Packing::NotTaken);
}

#[test]
fn small_batches_are_not_worth_it() {
    let mut rig = rig(202, Compression::On, Codecs::ZSTD);
    for _ in 0..20 {
        rig.append([512]);
        rig.run(100);
    }
    rig.assert_all_there();
    let (plain, framed) = sent(&rig);
    assert!(framed > plain, "{framed} of {plain}");
}

#[test]
fn what_is_set_holds_from_the_next_batch_on() {
    let mut rig = rig(203, Compression::Off, Codecs::ZSTD);
    let mut before = (0, 0);
    for compression in [Compression::Off, Compression::On, Compression::Off] {
        set(&rig, compression);
        rig.append((0..10).map(|_| 65_536));
        rig.run(5_000);
        rig.assert_all_there();
        let now = sent(&rig);
        let packed = now.1 - before.1 < now.0 - before.0;
        assert_eq!(packed, compression == Compression::On, "{compression:?}");
        before = now;
    }
}

/// Its successor, after an update that was taken back, takes none.
#[test]
fn each_connection_asks_anew() {
    let last = Message::Goodbye(Farewell {
        code: FarewellCode::Stopping,
        text: "daemon stops".to_owned(),
    });
    let mut rig = Rig::new(204, [Script::Then(30, last)]);
    set(&rig, Compression::On);
    rig.replica(|replica| replica.codecs = Codecs::ZSTD);
    rig.run(1_000);
    rig.append((0..30).map(|_| 65_536));
    rig.run(500);
    let (plain, framed) = sent(&rig);
    assert!(framed * 10 < plain, "{framed} of {plain}");
    rig.replica(|replica| replica.codecs = Codecs::NONE);
    rig.append((0..30).map(|_| 65_536));
    rig.run(20_000);
    rig.assert_all_there();
    assert_eq!(rig.snapshot().connects, 2);
    let (_, all) = sent(&rig);
    assert!(all - framed > 20 * 65_536, "{all} {framed}");
    rig.group
        .with(|group| assert_eq!(Seq::new(group.released), Seq::new(60)));
}

#[test]
fn adaptive_leaves_a_line_alone_that_takes_all_at_once() {
    let mut rig = rig(205, Compression::Adaptive, Codecs::ZSTD);
    rig.append((0..10).map(|_| 4096));
    rig.run(5_000);
    rig.assert_all_there();
    assert_eq!(rig.snapshot().packing, Packing::LineIdle);
    let (plain, framed) = sent(&rig);
    assert!(framed > plain);
}
