//! The source side of a group on a simulated host, against a target in memory.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod front;
mod handover;
mod replica;
mod rig;
mod storm;

use super::{SourceShared, distrust_group, fence_closed, history_of_closed};
use blkrep_core::source::{Gate, GroupEvent, PeerRole, Position};
use blkrep_io::sim::{DiskFault, FaultKind};
use blkrep_types::{
    ByteLen, DataState, Errno, Generation, GroupName, Incarnation, MirrorKind, Mode, Seq,
    VolumeIndex,
};
use blkrep_ublk::RequestKind;
use rig::{LEN, Rig, backing, extent, link};
use std::path::Path;

fn mirrored(seed: u64, kind: MirrorKind) -> Rig {
    let mut rig = Rig::new(seed);
    rig.start();
    rig.load(60);
    rig.connect(kind, Mode::Async);
    rig.load(60);
    rig.settle();
    rig
}

fn failing_writes() -> DiskFault {
    DiskFault {
        kind: FaultKind::Write,
        errno: Errno::EIO,
        bytes: None,
        times: u32::MAX,
    }
}

fn mirror_bytes(rig: &Rig) -> u64 {
    rig.replica.lock().unwrap().mirror_bytes
}

#[test]
fn without_a_link_requests_reach_the_backing_and_no_map_is_made() {
    let mut rig = Rig::new(1);
    rig.start();
    let write = RequestKind::Write { fua: false };
    rig.fronts[0].issue(write, Some(extent(4096, 1024)), 7);
    rig.fronts[0].issue(RequestKind::Read, Some(extent(1 << 20, 512)), 0);
    rig.run(50);
    rig.fronts[0].issue(RequestKind::Read, Some(extent(4096, 1024)), 0);
    rig.fronts[0].issue(RequestKind::Flush, None, 0);
    rig.run(50);
    let answers = rig.fronts[0].answers();
    assert_eq!(answers.len(), 4);
    assert!(answers.iter().all(|(_, result, _)| result.is_ok()));
    assert!(answers.iter().any(|(_, _, bytes)| *bytes == vec![7; 1024]));
    let durable = rig.world.durable_image(rig.node, &backing(0));
    assert!(durable[4096..5120].iter().all(|byte| *byte == 7), "flushed");
    let paths = rig.world.paths(rig.node);
    assert!(
        !paths
            .iter()
            .any(|path| path.to_string_lossy().contains("intent"))
    );
}

#[test]
fn a_new_link_is_mirrored_while_writes_go_on_and_then_follows() {
    for kind in [MirrorKind::Full, MirrorKind::Checksum] {
        let mut rig = mirrored(2, kind);
        let sent = mirror_bytes(&rig);
        rig.load(100);
        rig.settle();
        assert_eq!(mirror_bytes(&rig), sent, "a following link needs no mirror");
    }
}

#[test]
fn a_killed_daemon_goes_on_with_the_stream_and_mirrors_nothing() {
    let mut rig = mirrored(3, MirrorKind::Full);
    let sent = mirror_bytes(&rig);
    for _ in 0..10 {
        rig.load(40);
        rig.kill();
        rig.run(10);
        rig.start();
        assert!(rig.daemon().report.memory_kept && rig.daemon().report.crashed);
        rig.load(10);
    }
    rig.settle();
    assert_eq!(mirror_bytes(&rig), sent);
}

#[test]
fn a_cut_that_the_log_absorbs_costs_no_mirror() {
    let mut rig = mirrored(4, MirrorKind::Full);
    let sent = mirror_bytes(&rig);
    rig.replica.lock().unwrap().reachable = false;
    rig.load(100);
    rig.run(3000);
    assert_eq!(rig.link_status().position, Position::Following);
    rig.replica.lock().unwrap().reachable = true;
    rig.settle();
    assert_eq!(mirror_bytes(&rig), sent);
}

#[test]
fn a_cut_longer_than_the_log_costs_the_extents_written_meanwhile() {
    let mut rig = mirrored(5, MirrorKind::Full);
    let sent = mirror_bytes(&rig);
    rig.replica.lock().unwrap().reachable = false;
    rig.write_extents(10, 100, 9);
    rig.write_extents(10, 100, 8);
    let status = rig.link_status();
    assert_eq!(status.position, Position::Behind);
    assert_eq!(status.dirty_bytes, ByteLen::new(100 * 65536));
    assert!(
        rig.events
            .iter()
            .any(|event| matches!(event, GroupEvent::Behind { .. }))
    );
    rig.replica.lock().unwrap().reachable = true;
    rig.settle();
    assert!(mirror_bytes(&rig) - sent <= 100 * 65536);
}

#[test]
fn behind_and_killed_is_still_only_what_was_written() {
    let mut rig = mirrored(6, MirrorKind::Full);
    let sent = mirror_bytes(&rig);
    rig.replica.lock().unwrap().reachable = false;
    rig.write_extents(0, 100, 9);
    rig.kill();
    rig.start();
    rig.write_extents(0, 100, 8);
    rig.kill();
    rig.replica.lock().unwrap().reachable = true;
    rig.start();
    rig.settle();
    assert!(mirror_bytes(&rig) - sent <= 100 * 65536);
}

#[test]
fn an_idle_volume_has_no_open_region_and_a_power_loss_then_compares_nothing() {
    let mut rig = mirrored(7, MirrorKind::Full);
    assert!(rig.status().open_regions > 0);
    rig.run(31_000);
    assert_eq!(rig.status().open_regions, 0);
    let sent = mirror_bytes(&rig);
    rig.run(5000);
    rig.power_loss();
    rig.start();
    assert!(!rig.daemon().report.memory_kept && rig.daemon().report.crashed);
    assert_eq!(rig.daemon().report.open_regions, 0);
    rig.settle();
    assert_eq!(mirror_bytes(&rig), sent);
    let status = rig.link_status();
    assert_eq!(status.mirror.skipped, ByteLen::ZERO, "nothing was compared");
}

#[test]
fn a_power_loss_under_load_compares_open_regions_and_sends_what_differs() {
    let mut rig = mirrored(8, MirrorKind::Full);
    rig.run(40_000);
    let sent = mirror_bytes(&rig);
    rig.write_extents(0, 20, 3);
    rig.power_loss();
    rig.start();
    assert_eq!(rig.daemon().report.open_regions, 1);
    rig.settle();
    assert!(
        mirror_bytes(&rig) - sent <= 4 << 20,
        "no more than the region"
    );
}

#[test]
fn an_orderly_end_is_clean_over_a_reboot() {
    let mut rig = mirrored(9, MirrorKind::Full);
    let sent = mirror_bytes(&rig);
    rig.stop(false);
    rig.power_loss();
    rig.start();
    assert!(!rig.daemon().report.crashed);
    assert_eq!(rig.daemon().report.open_regions, 0);
    rig.settle();
    assert_eq!(mirror_bytes(&rig), sent);
}

#[test]
fn what_the_log_held_at_an_orderly_end_is_dirt_after_a_reboot_and_stream_without_one() {
    for reboot in [false, true] {
        let mut rig = mirrored(10, MirrorKind::Full);
        let sent = mirror_bytes(&rig);
        rig.replica.lock().unwrap().reachable = false;
        rig.write_extents(5, 10, 4);
        rig.stop(false);
        if reboot {
            rig.power_loss();
        }
        rig.replica.lock().unwrap().reachable = true;
        rig.start();
        rig.settle();
        let mirror = mirror_bytes(&rig) - sent;
        assert!(if reboot {
            mirror <= 10 * 65536 && mirror > 0
        } else {
            mirror == 0
        });
    }
}

#[test]
fn a_detached_backing_that_somebody_changed_is_compared_whole() {
    let mut rig = mirrored(11, MirrorKind::Full);
    rig.stop(true);
    let mut image = rig.world.image(rig.node, &backing(1));
    image[12_345] ^= 0xff;
    rig.world.set_image(rig.node, &backing(1), &image);
    rig.start();
    rig.settle();
}

#[test]
fn what_was_changed_unwatched_is_compared_although_the_power_goes_at_once() {
    let mut rig = mirrored(18, MirrorKind::Full);
    rig.stop(false);
    let group = rig.world.start(rig.node);
    let distrusted = distrust_group(&group, Path::new("/state"), &GroupName::new("db").unwrap());
    assert!(distrusted.unwrap());
    rig.world.crash_process(group.process());
    let mut image = rig.world.image(rig.node, &backing(1));
    image[12_345] ^= 0xff;
    rig.world.set_image(rig.node, &backing(1), &image);
    rig.start();
    rig.power_loss();
    rig.start();
    rig.settle();
}

#[test]
fn a_failed_local_write_is_reported_and_its_extent_becomes_equal_again() {
    let mut rig = mirrored(12, MirrorKind::Full);
    rig.world.inject(rig.node, &backing(0), failing_writes());
    let write = RequestKind::Write { fua: false };
    rig.fronts[0].issue(write, Some(extent(0, 65536)), 0x55);
    rig.run(100);
    assert!(
        rig.fronts[0]
            .answers()
            .iter()
            .any(|(_, result, _)| *result == Err(Errno::EIO))
    );
    assert!(
        rig.events
            .iter()
            .any(|event| matches!(event, GroupEvent::BackingError { .. }))
    );
    rig.world.clear_faults(rig.node);
    rig.settle();
}

/// A group whose backing fails, with one write that waits for an operator.
fn frozen(seed: u64) -> Rig {
    let mut rig = Rig::new(seed);
    rig.options.on_backing_error = blkrep_core::source::OnBackingError::Freeze;
    rig.start();
    rig.connect(MirrorKind::Full, Mode::Async);
    rig.settle();
    rig.world.inject(rig.node, &backing(0), failing_writes());
    let write = RequestKind::Write { fua: false };
    rig.fronts[0].issue(write, Some(extent(0, 4096)), 0x55);
    rig.run(100);
    rig
}

#[test]
fn a_frozen_group_waits_for_the_operator_and_loses_nothing() {
    let mut rig = frozen(13);
    rig.fronts[1].issue(RequestKind::Read, Some(extent(0, 4096)), 0);
    rig.run(100);
    assert_eq!(rig.status().gate, Gate::Frozen);
    assert!(rig.fronts.iter().all(|front| front.answers().is_empty()));
    rig.world.clear_faults(rig.node);
    rig.shared().thaw();
    rig.settle();
    assert!(
        rig.fronts
            .iter()
            .all(|front| front.answers().iter().all(|(_, r, _)| r.is_ok()))
    );
}

/// The daemon waited for answers that only an operator could bring about.
#[test]
fn a_frozen_group_can_be_stopped_and_its_successor_serves_what_waited() {
    let mut rig = frozen(20);
    let write = RequestKind::Write { fua: false };
    rig.fronts[0].issue(RequestKind::Flush, None, 0);
    rig.fronts[1].issue(write, Some(extent(4096, 4096)), 0x66);
    rig.run(100);
    assert_eq!(rig.status().gate, Gate::Frozen);
    rig.stop(false);
    assert!(rig.fronts.iter().all(|front| front.answers().is_empty()));
    rig.world.clear_faults(rig.node);
    rig.start();
    assert!(rig.daemon().report.crashed, "not everything was answered");
    rig.run(1000);
    let answers: Vec<_> = rig
        .fronts
        .iter()
        .flat_map(|front| front.answers())
        .collect();
    assert_eq!(answers.len(), 3);
    assert!(answers.iter().all(|(_, result, _)| result.is_ok()));
    rig.settle();
}

#[test]
fn a_group_that_is_not_open_hears_of_a_newer_generation_too() {
    let mut rig = mirrored(19, MirrorKind::Full);
    let (state, db) = (Path::new("/state"), GroupName::new("db").unwrap());
    let open = history_of_closed(&rig.daemon().host, state, &db);
    assert!(open.unwrap_err().is_busy(), "it is open");
    let history = rig.shared().history();
    rig.stop(false);
    let host = rig.world.start(rig.node);
    assert_eq!(history_of_closed(&host, state, &db).unwrap(), Some(history));
    let newer = Generation::from_bytes([0x55; 16]);
    fence_closed(&host, state, &db, newer).unwrap();
    let other = GroupName::new("other").unwrap();
    assert_eq!(history_of_closed(&host, state, &other).unwrap(), None);
    rig.world.crash_process(host.process());
    rig.start();
    assert_eq!(rig.status().gate, Gate::Fenced);
}

/// It was written to the log that it could not be remembered, and never tried again: the next start
/// served what it had refused to serve.
#[test]
fn a_fence_that_the_state_directory_did_not_take_is_remembered_when_it_does() {
    let mut rig = mirrored(21, MirrorKind::Full);
    rig.world
        .inject(rig.node, Path::new("/state/db.group"), failing_writes());
    let newer = Generation::from_bytes([0x77; 16]);
    assert!(rig.shared().fence(newer).is_err());
    assert_eq!(rig.status().gate, Gate::Fenced, "at once, all the same");
    assert!(rig.shared().remember_fence().is_err());
    rig.world.clear_faults(rig.node);
    assert!(rig.shared().remember_fence().unwrap());
    assert!(!rig.shared().remember_fence().unwrap(), "once");
    rig.kill();
    rig.start();
    assert_eq!(rig.status().gate, Gate::Fenced);
}

#[test]
fn a_newer_generation_fences_the_group_also_after_a_restart() {
    let mut rig = mirrored(14, MirrorKind::Full);
    rig.replica.lock().unwrap().reachable = false;
    rig.run(200);
    {
        let mut replica = rig.replica.lock().unwrap();
        let newer = Generation::from_bytes([0x77; 16]);
        replica
            .history
            .branch(newer, Incarnation::new(1), Seq::new(9));
        replica.role = PeerRole::Source;
        replica.reachable = true;
    }
    let before = rig.replica.lock().unwrap().images.clone();
    rig.load(20);
    rig.run(1000);
    for restart in [false, true] {
        if restart {
            rig.kill();
            rig.start();
        }
        assert_eq!(rig.status().gate, Gate::Fenced);
        rig.fronts.iter().for_each(|front| drop(front.answers()));
        rig.fronts[0].issue(RequestKind::Read, Some(extent(0, 512)), 0);
        rig.fronts[0].issue(RequestKind::Write { fua: false }, Some(extent(0, 512)), 1);
        rig.run(1000);
        let answers = rig.fronts[0].answers();
        assert!(answers.len() >= 2 && answers.iter().all(|(_, r, _)| *r == Err(Errno::EIO)));
    }
    assert_eq!(
        rig.replica.lock().unwrap().images,
        before,
        "never overwritten"
    );
}

#[test]
fn an_unrelated_target_is_refused_until_somebody_allows_it() {
    let mut rig = Rig::new(15);
    rig.start();
    rig.load(40);
    {
        let mut replica = rig.replica.lock().unwrap();
        replica.history.branch(
            Generation::from_bytes([9; 16]),
            Incarnation::new(0),
            Seq::ZERO,
        );
        replica.role = PeerRole::Replica;
        replica.state = DataState::Ok;
    }
    rig.connect(MirrorKind::Full, Mode::Async);
    rig.run(2000);
    let refused = |event: &GroupEvent| matches!(event, GroupEvent::Refused { .. });
    assert!(rig.events.iter().any(refused));
    assert!(
        rig.replica.lock().unwrap().images[0]
            .iter()
            .all(|byte| *byte == 0xee)
    );
    rig.shared()
        .allow_overwrite(&link(), MirrorKind::Checksum)
        .unwrap();
    rig.settle();
    assert!(!rig.shared().links()[0].overwrite, "allowed once");
}

#[test]
fn what_the_target_lost_is_sent_again() {
    let mut rig = mirrored(16, MirrorKind::Full);
    rig.replica.lock().unwrap().reachable = false;
    rig.run(200);
    {
        let mut replica = rig.replica.lock().unwrap();
        replica.images[1][65536..131_072].fill(0x11);
        replica.lost = vec![(VolumeIndex::new(1), extent(65536, 65536))];
        replica.merged = None;
        replica.state = DataState::MirrorRequired;
        replica.reachable = true;
    }
    rig.settle();
    assert_eq!(rig.replica.lock().unwrap().state, DataState::Ok);
}

#[test]
fn a_target_set_back_to_an_old_copy_becomes_equal() {
    let mut rig = mirrored(17, MirrorKind::Full);
    let (name, images) = {
        let replica = rig.replica.lock().unwrap();
        (replica.name, replica.images.clone())
    };
    rig.load(200);
    rig.settle();
    rig.run(40_000);
    rig.replica.lock().unwrap().reachable = false;
    rig.run(200);
    {
        let mut replica = rig.replica.lock().unwrap();
        (replica.name, replica.images) = (name, images);
        replica.reachable = true;
    }
    rig.settle();
}

#[test]
fn a_sync_write_waits_for_the_target_and_a_cut_degrades_it() {
    let mut rig = Rig::new(18);
    rig.start();
    rig.connect(MirrorKind::Full, Mode::Sync);
    rig.settle();
    let write = RequestKind::Write { fua: false };
    rig.fronts[0].issue(write, Some(extent(LEN - 512, 512)), 0x42);
    rig.run_until("the answer", |rig| !rig.fronts[0].answers().is_empty());
    let last = usize::try_from(LEN).unwrap() - 1;
    assert_eq!(rig.replica.lock().unwrap().images[0][last], 0x42);
    rig.replica.lock().unwrap().reachable = false;
    rig.run(200);
    rig.fronts[0].issue(write, Some(extent(0, 512)), 0x43);
    rig.run_until("the answer", |rig| !rig.fronts[0].answers().is_empty());
}

#[test]
fn damaged_maps_make_more_dirt_never_less() {
    let mut rig = mirrored(19, MirrorKind::Full);
    rig.replica.lock().unwrap().reachable = false;
    rig.write_extents(0, 100, 9);
    rig.run(3000);
    rig.power_loss();
    for path in rig.world.paths(rig.node) {
        let name = path.to_string_lossy().into_owned();
        if name.contains("intent") || name.contains("link-") {
            rig.world.corrupt(rig.node, &path, 512, &[0x5a; 512]);
        }
    }
    rig.replica.lock().unwrap().reachable = true;
    rig.start();
    assert!(rig.daemon().report.bad_sectors >= 2);
    rig.settle();
}
