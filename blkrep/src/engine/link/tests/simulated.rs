//! A link that sends nothing: it runs as others do, and what it would send is measured.

use super::{LinkConnection, LinkEvent, LinkSettings, Rig};
use blkrep_io::Worker as _;
use blkrep_types::ByteLen;
use std::time::Duration;

fn rig(seed: u64) -> Rig {
    let mut rig = Rig::new(seed, []);
    rig.cut();
    let settings = rig.control.settings();
    rig.control.set(LinkSettings {
        simulated: true,
        compression: super::Compression::Adaptive,
        simulated_rate: ByteLen::new(100_000),
        ..settings
    });
    // The attempt that had begun before it was set is given up.
    rig.run(10_000);
    rig
}

fn assert_all_taken(rig: &Rig) {
    let len = rig.group.with(|group| group.log.len()) as u64;
    rig.group
        .with(|group| assert_eq!((group.durable, group.released), (len, len)));
    assert_eq!(rig.snapshot().connection, LinkConnection::Up);
}

#[test]
fn everything_is_taken_at_once_and_nothing_is_sent() {
    let mut rig = rig(300);
    for _ in 0..10 {
        rig.append((0..60).map(|nth| [4096, 0, 65_536, 512, 1 << 20][nth % 5]));
        rig.run(100);
        assert_all_taken(&rig);
    }
    // No heartbeat is missed either.
    rig.run(60_000);
    assert_all_taken(&rig);
    let snapshot = rig.snapshot();
    assert_eq!((snapshot.wire_bytes_sent, snapshot.connects), (0, 1));
    assert_eq!(rig.replica(|replica| replica.connections), 0);
    let events = rig.events();
    assert_eq!(events, [LinkEvent::Simulated]);
    let digests = rig.group.with(|group| group.digests.len());
    assert_eq!(digests, 10 * 12, "each comparison has its answer");
}

#[test]
fn what_would_be_sent_is_measured_as_it_would_be_packed() {
    let mut rig = rig(301);
    rig.append((0..40).map(|_| 65_536));
    rig.run(2_000);
    let (writes, mirror) = rig.group.with(|group| {
        let bytes = group.log.iter().map(|(record, bytes)| {
            let len = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
            let mirror = matches!(record.kind, blkrep_types::RecordKind::Data { mirror: true });
            if mirror { (0, len) } else { (len, 0) }
        });
        bytes.fold((0, 0), |sum, each| (sum.0 + each.0, sum.1 + each.1))
    });
    let meter = rig.snapshot().meter.expect("it measures");
    let needs = meter.needs(rig.world.now());
    assert_eq!(
        (needs.writes.plain.get(), needs.mirror.plain.get()),
        (writes, mirror)
    );
    let framed = rig.group.with(|group| group.framed);
    let measured = needs.writes.framed.get() + needs.mirror.framed.get();
    assert_eq!(measured, framed);
    assert!(framed * 10 < writes + mirror, "{framed}");
    assert!(needs.queue.get() > 0 && needs.queue <= needs.writes.framed);
    assert!(needs.mirror_time > Duration::ZERO);
}

#[test]
fn it_goes_on_where_it_was_and_can_be_stopped() {
    let mut rig = rig(302);
    rig.append((0..10).map(|_| 4096));
    rig.run(100);
    let before = rig.snapshot().meter.expect("it measures");
    rig.group.with(|group| group.wanted = false);
    rig.group.wake();
    rig.run(3_000);
    assert_eq!(rig.snapshot().connection, LinkConnection::Down);
    rig.append((0..10).map(|_| 4096));
    rig.group.with(|group| group.wanted = true);
    rig.group.wake();
    rig.run(3_000);
    assert_all_taken(&rig);
    let after = rig.snapshot().meter.expect("it measures");
    let plain = |meter: &blkrep_core::meter::Meter| meter.needs(rig.world.now()).writes.plain.get();
    assert!(plain(&after) > plain(&before), "what was measured is kept");
    rig.control.stop();
    rig.run(10);
    assert!(rig.worker.finished());
}
