//! What one run of a daemon leaves to the next, whatever interrupts the handing over.

use super::front::Front;
use super::rig::{Rig, VOLUMES, backing, extent, link};
use super::{SourceShared, mirrored};
use crate::engine::source::metadata::SuperblockFile;
use crate::engine::source::open::dirty_layout;
use crate::engine::source::recover::{link_memory, make_log};
use crate::engine::source::{InitialMap, LinkSpec};
use blkrep_io::sim::{DiskFault, FaultKind, Unflushed};
use blkrep_io::{Access, Host};
use blkrep_log::superblock::COPY_BYTES;
use blkrep_types::{Errno, LossPolicy, MirrorKind, Mode, Seq, VolumeIndex};
use blkrep_ublk::RequestKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn failing_syncs() -> DiskFault {
    DiskFault {
        kind: FaultKind::Sync,
        errno: Errno::EIO,
        bytes: None,
        times: u32::MAX,
    }
}

/// What the application's flush is answered.
fn flushed(rig: &mut Rig) -> Result<(), Errno> {
    rig.fronts[0].answers();
    rig.fronts[0].issue(RequestKind::Flush, None, 0);
    rig.run(200);
    rig.fronts[0].answers()[0].1
}

/// A replicated group in which the flush for the intent map failed after writes to some extents.
fn with_a_failed_flush(seed: u64, extents: u64) -> Rig {
    let mut rig = mirrored(seed, MirrorKind::Full);
    rig.run(40_000);
    rig.write_extents(0, extents, 7);
    rig.world.inject(rig.node, &backing(0), failing_syncs());
    rig.run(25_000);
    rig.world.clear_faults(rig.node);
    rig
}

/// A flush for the intent map failed and the daemon was killed. Its successor's flush succeeded, the
/// regions were closed, and the power loss that took what the failed flush had not kept was
/// followed by a comparison of nothing.
#[test]
fn what_a_failed_flush_may_have_lost_is_compared_though_the_daemon_was_restarted() {
    for stop in [false, true] {
        let mut rig = with_a_failed_flush(31, 100);
        if stop {
            rig.stop(false);
        } else {
            rig.kill();
        }
        rig.start();
        rig.run(60_000);
        rig.power_loss();
        rig.start();
        rig.settle();
    }
}

/// A source whose flush had failed became a target: what it held was compared with the newer side and
/// found equal, and the next power loss took it.
#[test]
fn what_a_failed_flush_may_have_lost_is_made_durable_before_it_is_compared() {
    let lost = |secure: bool| {
        let mut rig = with_a_failed_flush(33, 100);
        if secure {
            rig.shared().secure().unwrap();
        }
        let before = rig.world.image(rig.node, &backing(0));
        rig.power_loss();
        before != rig.world.image(rig.node, &backing(0))
    };
    assert!(lost(false), "nothing was lost, so nothing is tested");
    assert!(!lost(true));
}

/// The application flushed after a restart and was told that all is well, although an earlier flush,
/// of which it had heard nothing, had failed.
#[test]
fn a_failed_flush_that_nobody_heard_of_is_told_after_a_restart() {
    let mut rig = with_a_failed_flush(32, 4);
    rig.kill();
    rig.start();
    let told = [flushed(&mut rig), flushed(&mut rig)];
    assert_eq!(told, [Err(Errno::EIO), Ok(())]);
}

/// The simulator's seed 30304: the flush of an orderly stop failed. The next daemon's flush succeeded, and
/// the application's data that the first one had lost was gone after a power cut.
#[test]
fn a_flush_that_failed_at_the_stop_is_told_after_the_restart() {
    let mut rig = mirrored(34, MirrorKind::Full);
    rig.write_extents(0, 4, 7);
    rig.world.inject(rig.node, &backing(0), failing_syncs());
    rig.end();
    rig.world.clear_faults(rig.node);
    rig.start();
    let told = [flushed(&mut rig), flushed(&mut rig)];
    assert_eq!(told, [Err(Errno::EIO), Ok(())]);
}

/// The simulator's seed 40073: a link was forgotten while its map was being written, another took its
/// place, and the report of the write ended the daemon.
#[test]
fn a_link_that_is_forgotten_while_its_map_is_written_leaves_its_place_later() {
    let mut rig = mirrored(35, MirrorKind::Full);
    let other = |name: &str| LinkSpec {
        name: name.parse().unwrap(),
        peer: "10.0.0.3:7420".to_owned(),
        paths: vec![String::new(); VOLUMES],
        mode: Mode::Async,
        loss: LossPolicy::default(),
        first_mirror: Some(MirrorKind::Full),
        overwrite: false,
        wanted: false,
        initial: InitialMap::Extents(Vec::new()),
    };
    let before = rig.world.paths(rig.node);
    rig.shared().add_link(&other("other")).unwrap();
    let made = rig.world.paths(rig.node);
    let map = made.iter().find(|path| !before.contains(path)).unwrap();
    rig.world.stall(rig.node, map, Duration::from_secs(60));
    rig.write_extents(0, 50, 7);
    rig.run(20_000);
    rig.shared().forget_link(&"other".parse().unwrap()).unwrap();
    rig.shared().add_link(&other("again")).unwrap();
    let place = |rig: &Rig, name: &str| {
        let links = rig.shared().links();
        let link = links.iter().find(|link| link.name.as_str() == name);
        link.map(|link| link.place)
    };
    assert_eq!(
        place(&rig, "again"),
        Some(2),
        "1 is still being written for"
    );
    rig.run(60_000);
    rig.shared().add_link(&other("third")).unwrap();
    assert_eq!(place(&rig, "third"), Some(1));
    rig.settle();
}

/// One sector of the disk could not be read, and with it one of two copies of the group's record: the
/// group could not be opened.
#[test]
fn a_copy_of_the_record_that_cannot_be_read_counts_as_a_rotten_one() {
    for copy in [0, COPY_BYTES] {
        let mut rig = mirrored(36, MirrorKind::Full);
        rig.stop(false);
        let paths = rig.world.paths(rig.node);
        let is_record = |path: &&PathBuf| path.extension().is_some_and(|kind| kind == "group");
        let record = paths.iter().find(is_record).unwrap();
        rig.world.spoil(rig.node, record, copy..copy + 512);
        rig.start();
        rig.load(20);
        rig.settle();
        rig.stop(false);
        rig.start();
    }
}

/// The second copy of a record was left to the kernel's cache, for as long as nothing flushed the file: a
/// power cut tore it, and a sector of the first that could not be read then kept the group from being opened.
#[test]
fn no_copy_of_the_record_is_left_for_a_power_cut_to_tear() {
    let mut rig = mirrored(37, MirrorKind::Full);
    let record = rig.world.paths(rig.node).into_iter();
    let record = record.filter(|path| path.extension().is_some_and(|kind| kind == "group"));
    let record: Vec<PathBuf> = record.collect();
    assert_eq!(record.len(), 1);
    let torn = |rig: &Rig| {
        let parts = rig.world.unflushed(rig.node).into_iter();
        let parts = parts
            .filter(|part| matches!(part, Unflushed::Write { path, .. } if *path == record[0]));
        parts.count()
    };
    assert_eq!(torn(&rig), 0, "after a link and its first mirror");
    rig.stop(false);
    assert_eq!(torn(&rig), 0, "after a stop");
    rig.start();
    assert_eq!(torn(&rig), 0, "after a start");
    rig.world.power_loss(rig.node);
    rig.world.spoil(rig.node, &record[0], 0..512);
    rig.start();
}

/// A daemon was killed while a mirror read; the next one found a file of the group still claimed and
/// tried again. The first attempt had already made nothing of the blocks that were not read, so the
/// second found nothing to send again.
#[test]
fn a_start_that_fails_half_way_forgets_no_block_of_a_mirror() {
    let mut rig = Rig::new(33);
    rig.start();
    rig.write_extents(0, 256, 7);
    rig.connect(MirrorKind::Full, Mode::Async);
    while super::mirror_bytes(&rig) < 4 << 20 {
        rig.run(1);
    }
    rig.kill();
    rig.run(2000);
    let map = rig.world.paths(rig.node).into_iter();
    let map = map.filter(|path| path.to_string_lossy().contains("link-"));
    let claimant = rig.world.start(rig.node);
    let access = Access {
        read_only: false,
        direct: false,
        claim: true,
        create: None,
    };
    let held: Vec<_> = map
        .map(|path| claimant.open(&path, access).unwrap())
        .collect();
    assert_eq!(held.len(), 1);
    let host = rig.world.start(rig.node);
    let attempt = SourceShared::open(&host, Path::new("/state"), &rig.spec());
    assert!(attempt.unwrap_err().is_busy(), "the link's map is claimed");
    drop(held);
    rig.world.crash_process(claimant.process());
    rig.world.crash_process(host.process());
    rig.start();
    let report = rig.daemon().report.clone();
    rig.settle();
    assert!(report.memory_kept);
    assert!(report.doubtful_writes > 0, "reads were under way");
}

/// The host crashed; the first start after it made the log anew and failed. The next one found that
/// log and took it for a predecessor's, with links that need nothing.
#[test]
fn a_log_whose_links_were_never_opened_says_nothing_of_them() {
    let mut rig = mirrored(34, MirrorKind::Full);
    rig.run(40_000);
    rig.write_extents(0, 20, 9);
    rig.power_loss();
    // As a start leaves it that is killed when it has made log and bitmaps, and nothing else.
    let host = rig.world.start(rig.node);
    let state = Path::new("/state");
    let opened = SuperblockFile::open(&host, state, &rig.spec().name).unwrap();
    let (mut superblock, mut record) = (opened.0, opened.1.unwrap());
    record.incarnation = record.incarnation.next();
    record.head = (record.incarnation, Seq::ZERO);
    superblock.save(&record).unwrap();
    make_log(&host, &record).unwrap();
    let words = dirty_layout(&record.volumes).words();
    link_memory(&host, &record, &record.links[0].id, words, false).unwrap();
    rig.world.crash_process(host.process());
    rig.replica.lock().unwrap().reachable = false;
    rig.start();
    rig.run(30_000);
    rig.replica.lock().unwrap().reachable = true;
    rig.settle();
}

/// Each connection command gives a link a new driver with a place among the workers; places were
/// never given back, with the memory that each has.
#[test]
fn the_places_of_drivers_that_ended_are_used_again() {
    let mut rig = mirrored(35, MirrorKind::Full);
    for _ in 0..50 {
        drop(rig.shared().link_port(&link()).unwrap());
    }
    let workers = rig.shared().lock().mails.len();
    assert!(workers <= 8, "{workers} places for two queues and a link");
    let write = RequestKind::Write { fua: false };
    rig.fronts[0].issue(write, Some(extent(0, 4096)), 3);
    rig.settle();
}

/// A device did not come back with its daemon: writes that were under way had reached the target
/// and not the backing, were never issued again, and nobody compared them.
#[test]
fn requests_that_never_come_again_are_dirt() {
    for seed in 0..40 {
        let mut rig = mirrored(3000 + seed, MirrorKind::Full);
        rig.load(30);
        rig.kill();
        rig.fronts.iter().for_each(Front::forget);
        rig.run(5000);
        rig.start();
        for volume in 0..VOLUMES {
            let volume = VolumeIndex::new(u16::try_from(volume).unwrap());
            rig.shared().requests_are_lost(volume);
        }
        rig.settle();
    }
}

/// A replicated group whose backings did not take some writes that the target has, while its
/// daemon was killed. Some of them the disks never get.
fn killed_with_writes_in_flight(seed: u64) -> Rig {
    let mut rig = mirrored(seed, MirrorKind::Full);
    let write = RequestKind::Write { fua: false };
    for volume in 0..VOLUMES {
        let stall = Duration::from_secs(1);
        rig.world.stall(rig.node, &backing(volume), stall);
        for index in 0..8 {
            rig.fronts[volume].issue(write, Some(extent(index * 65536, 4096)), 0x77);
        }
    }
    rig.run(100);
    rig.kill();
    rig.run(5000);
    rig
}

/// The host crashed after its daemon had been killed and before the devices had issued again what
/// was in flight: the successor had closed the regions of these writes by then, and what a target
/// had of them was compared with nothing.
#[test]
fn what_is_not_issued_again_before_the_host_crashes_is_compared() {
    for kills in [1, 2] {
        let mut rig = killed_with_writes_in_flight(36);
        rig.fronts.iter().for_each(Front::hold_back);
        for kill in 1..=kills {
            rig.start();
            if kill < kills {
                rig.run(5000);
                rig.kill();
            }
        }
        rig.run(30_000);
        rig.power_loss();
        rig.start();
        rig.settle();
    }
}

/// What a device never issues again holds up neither the log nor the regions for ever: it is dirt.
#[test]
fn what_is_awaited_for_too_long_is_dirt() {
    let mut rig = killed_with_writes_in_flight(37);
    rig.fronts.iter().for_each(Front::hold_back);
    rig.start();
    rig.run(30_000);
    assert!(rig.status().open_regions > 0, "it is awaited");
    rig.run(90_000);
    assert_eq!(rig.status().open_regions, 0, "no more");
    rig.fronts.iter().for_each(Front::forget);
    rig.settle();
}

/// The simulator's seed 1001047: after a loss of power the stream of a group that a target serves began with a mirror
/// of nothing, which somebody stopped, and everybody waited for ever.
#[test]
fn the_mirror_that_begins_the_stream_of_a_served_group_cannot_be_stopped_or_held() {
    let rig = mirrored(37, MirrorKind::Full);
    let shared = rig.shared();
    shared.stop_mirror(&link()).unwrap();
    shared.record(|record| record.served_by = Some(0)).unwrap();
    for said in [shared.stop_mirror(&link()), shared.pause_mirror(&link())] {
        let error = said.unwrap_err().to_string();
        assert!(error.contains("where the stream goes on"), "{error}");
    }
}
