//! Who may connect, what a replica may be made of, and what a source may do to it.

use super::super::*;
use super::rig::{Daemon, REPLICAS, Rig, STATE, base};
use super::source::{Book, VOLUME_BYTES, extent, generation};
use blkrep_core::target::PromoteRefusal;
use blkrep_types::{
    BlockSize, ByteLen, DataState, GroupName, Incarnation, LinkName, MirrorKind, NodeName, Seq,
    VolumeIndex,
};
use blkrep_wire::RefuseCode;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// A replica that has followed its source for a while.
fn followed(seed: u64) -> Rig {
    let mut rig = Rig::new(seed);
    rig.book.borrow_mut().write(0, 3, 5, 0x11, false);
    rig.settle();
    rig
}

fn some_writes(rig: &Rig, count: u8) {
    let mut book = rig.book.borrow_mut();
    for round in 0..count {
        let at = u64::from(round) * 3 % 120;
        book.write(u16::from(round % 2), at, 4, 0x20 + round, false);
    }
}

fn refusal(rig: &mut Rig) -> (RefuseCode, String) {
    assert!(
        rig.wait(|rig| rig.book.borrow().refused.is_some()),
        "it is refused"
    );
    let refuse = rig.book.borrow_mut().refused.take().unwrap();
    (refuse.code, refuse.text)
}

fn farewell(rig: &mut Rig) -> String {
    assert!(
        rig.wait(|rig| rig.book.borrow().farewell.is_some()),
        "it is told why"
    );
    rig.book.borrow_mut().farewell.take().unwrap()
}

#[test]
fn a_new_replica_is_made_mirrored_and_follows() {
    let mut rig = followed(1);
    assert_eq!(rig.status().data_state, DataState::Ok);
    some_writes(&rig, 20);
    rig.book.borrow_mut().zero(1, 9, 7, true);
    rig.book.borrow_mut().zero(0, 9, 7, false);
    rig.book.borrow_mut().void();
    rig.settle();
    rig.check_equal();
    assert_eq!(
        rig.bases()[0].len() as u64,
        VOLUME_BYTES,
        "made at the source's size"
    );
    let events = rig.events.all();
    assert!(
        matches!(events[0], TargetEvent::Created { .. }),
        "{events:?}"
    );
    assert!(rig.events.any(|event| {
        *event
            == TargetEvent::State {
                from: DataState::Mirroring,
                to: DataState::Ok,
            }
    }));
}

#[test]
fn a_path_outside_the_allowed_ones_is_refused_and_nothing_is_made() {
    let mut rig = Rig::new(2);
    rig.book.borrow_mut().paths[1] = "/etc/passwd".to_owned();
    let (code, text) = refusal(&mut rig);
    assert_eq!(code, RefuseCode::Path);
    assert!(
        text.contains("/etc/passwd") && text.contains("replica directories"),
        "{text}"
    );
    let paths = rig.world.paths(rig.target);
    assert!(
        !paths.iter().any(|path| path.starts_with("/etc")),
        "{paths:?}"
    );
    rig.book.borrow_mut().paths = vec![format!("{REPLICAS}/same"); 2];
    rig.book.borrow_mut().connect = true;
    rig.poke();
    assert_eq!(
        refusal(&mut rig).0,
        RefuseCode::Path,
        "two volumes to one path"
    );
}

fn device(rig: &Rig, bytes: u64, block_size: BlockSize) {
    let path = Path::new("/dev/target");
    rig.world
        .add_device(rig.target, path, ByteLen::new(bytes), block_size, true);
    rig.book.borrow_mut().paths[0] = "/dev/target".to_owned();
}

#[test]
fn a_filesystem_is_never_overwritten_unless_told() {
    let mut rig = Rig::new(3);
    device(&rig, 1 << 20, BlockSize::B512);
    rig.world
        .corrupt(rig.target, Path::new("/dev/target"), 0x438, &[0x53, 0xef]);
    let (code, text) = refusal(&mut rig);
    assert_eq!(code, RefuseCode::Occupied);
    assert!(
        text.contains("ext4") && text.contains("--overwrite"),
        "{text}"
    );
    rig.book.borrow_mut().overwrite = true;
    rig.book.borrow_mut().connect = true;
    rig.settle();
    let image = rig.world.image(rig.target, Path::new("/dev/target"));
    let len = usize::try_from(VOLUME_BYTES).unwrap();
    assert!(image[..len] == rig.book.borrow().images[0]);
}

#[test]
fn a_base_that_is_too_small_or_of_larger_blocks_is_refused() {
    let mut rig = Rig::new(4);
    device(&rig, VOLUME_BYTES - 4096, BlockSize::B512);
    let (code, text) = refusal(&mut rig);
    assert_eq!(code, RefuseCode::TooSmall);
    assert!(text.contains("60KiB") && text.contains("64KiB"), "{text}");
    let mut rig = Rig::new(5);
    device(&rig, 1 << 20, BlockSize::B4096);
    assert_eq!(refusal(&mut rig).0, RefuseCode::Volumes);
}

#[test]
fn a_second_link_to_the_same_replica_is_refused_and_harms_nothing() {
    let mut rig = followed(6);
    let mut second = Book::new(rig.book.borrow().peer);
    second.link = LinkName::new("other").unwrap();
    second.history = rig.book.borrow().history.clone();
    let second = Rc::new(RefCell::new(second));
    rig.add_source(Rc::clone(&second));
    assert!(rig.wait(|_| second.borrow().refused.is_some()));
    let refuse = second.borrow_mut().refused.take().unwrap();
    assert_eq!(refuse.code, RefuseCode::Busy);
    assert!(refuse.text.contains("to-beta"), "{}", refuse.text);
    some_writes(&rig, 5);
    rig.settle();
    rig.check_equal();
    assert_eq!(rig.book.borrow().sessions, 1, "the first was not disturbed");
}

#[test]
fn a_newer_connection_of_the_same_link_takes_the_place_of_a_dead_one() {
    let mut rig = followed(7);
    // The first connection hangs; the source's host has forgotten it and connects again.
    rig.book.borrow_mut().silent = true;
    let mut again = Book::new(rig.book.borrow().peer);
    again.history = rig.book.borrow().history.clone();
    again.seq = rig.book.borrow().seq;
    again.log = rig.book.borrow().log.clone();
    again.images = rig.book.borrow().images.clone();
    rig.book.borrow_mut().connect = false;
    let again = Rc::new(RefCell::new(again));
    rig.add_source(Rc::clone(&again));
    assert!(rig.wait(|_| again.borrow().sessions == 1), "it is taken");
}

#[test]
fn another_group_rubbish_and_an_unknown_version_are_told_no() {
    let mut rig = Rig::new(8);
    rig.book.borrow_mut().group = GroupName::new("other").unwrap();
    assert_eq!(refusal(&mut rig).0, RefuseCode::Group);
    rig.book.borrow_mut().versions = (7, 9);
    rig.book.borrow_mut().connect = true;
    rig.poke();
    let (code, text) = refusal(&mut rig);
    assert_eq!(code, RefuseCode::Version);
    assert!(text.contains("7 to 9"), "{text}");
    rig.book.borrow_mut().versions = (1, 1);
    rig.book.borrow_mut().rubbish = Some(b"GET / HTTP/1.1\r\n\r\n".to_vec());
    rig.book.borrow_mut().connect = true;
    rig.poke();
    assert!(
        rig.wait(|rig| !rig.rubbish.lock().unwrap().is_empty()),
        "it is noticed"
    );
    rig.book.borrow_mut().rubbish = None;
    rig.book.borrow_mut().group = GroupName::new("db").unwrap();
    rig.book.borrow_mut().write(0, 0, 1, 1, false);
    rig.settle();
    rig.check_equal();
}

#[test]
fn a_stranger_that_says_nothing_is_sent_away_and_others_are_served() {
    let mut rig = Rig::new(9);
    rig.book.borrow_mut().rubbish = Some(b"BLKr".to_vec());
    rig.run(Duration::from_secs(30));
    rig.book.borrow_mut().rubbish = None;
    rig.settle();
    assert_eq!(rig.status().data_state, DataState::Ok);
}

#[test]
fn other_volumes_than_those_held_are_refused() {
    let mut rig = followed(10);
    rig.book.borrow_mut().connect = false;
    rig.poke();
    assert!(rig.wait(|rig| {
        rig.daemon
            .as_ref()
            .unwrap()
            .worker
            .as_ref()
            .unwrap()
            .1
            .session
            .is_none()
    }));
    rig.book.borrow_mut().volume_bytes = 2 * VOLUME_BYTES;
    rig.book.borrow_mut().connect = true;
    rig.poke();
    let (code, text) = refusal(&mut rig);
    assert_eq!(code, RefuseCode::Volumes);
    assert!(text.contains("128KiB"), "{text}");
}

#[test]
fn a_gap_and_a_record_outside_its_volume_end_the_connection() {
    let mut rig = followed(11);
    rig.book.borrow_mut().twist = Some(|entry| {
        entry.record.seq = Seq::new(entry.record.seq.get() + 1);
    });
    some_writes(&rig, 2);
    rig.poke();
    let text = farewell(&mut rig);
    assert!(text.contains("gap"), "{text}");
    rig.book.borrow_mut().twist = Some(|entry| entry.record.volume = VolumeIndex::new(9));
    let text = farewell(&mut rig);
    assert!(text.contains("volume"), "{text}");
    rig.book.borrow_mut().twist = Some(|entry| {
        entry.record.extent = Some(extent(VOLUME_BYTES, 512 * 4));
    });
    let text = farewell(&mut rig);
    assert!(text.contains("does not fit"), "{text}");
    rig.book.borrow_mut().twist = None;
    rig.settle();
    rig.check_equal();
}

#[test]
fn a_resumed_stream_skips_what_is_there_and_mirrors_nothing() {
    let mut rig = followed(12);
    let mirrored = rig.book.borrow().mirror_bytes;
    for round in 1..10 {
        some_writes(&rig, round);
        rig.poke();
        rig.run(Duration::from_micros(200_000 + u64::from(round) * 700));
        rig.world.reset_connections(rig.source_node, rig.target);
    }
    rig.settle();
    rig.check_equal();
    assert_eq!(rig.book.borrow().mirror_bytes, mirrored);
    assert!(rig.book.borrow().sessions > 5);
}

#[test]
fn a_source_that_was_set_back_cannot_give_the_same_names_again() {
    let mut rig = followed(13);
    some_writes(&rig, 8);
    rig.settle();
    let before = rig.bases();
    // It resumes as if nothing had happened, with names that it has given already.
    rig.book.borrow_mut().start_twist = Some(|start| {
        start.head.seq = Seq::new(start.head.seq.get() - 4);
    });
    rig.world.reset_connections(rig.source_node, rig.target);
    let text = farewell(&mut rig);
    assert!(text.contains("set back"), "{text}");
    assert_eq!(rig.differs(&before), None);
    // It knows better: a new run, everything compared.
    let mut book = rig.book.borrow_mut();
    book.start_twist = None;
    book.seq = Seq::new(3);
    book.incarnation = Incarnation::new(2);
    book.log.clear();
    drop(book);
    rig.book.borrow_mut().write(0, 1, 1, 0x77, false);
    rig.settle();
    rig.check_equal();
    assert_eq!(rig.status().data_state, DataState::Ok);
}

#[test]
fn an_unrelated_history_is_refused_unless_the_operator_says_so() {
    let mut rig = followed(14);
    let before = rig.bases();
    let mut other = Book::new(rig.book.borrow().peer);
    other.history = blkrep_types::History::new();
    other
        .history
        .branch(generation(9), Incarnation::new(0), Seq::ZERO);
    other.write(0, 0, 100, 0xee, false);
    let other = Rc::new(RefCell::new(other));
    rig.book.borrow_mut().connect = false;
    rig.poke();
    rig.run(Duration::from_secs(1));
    rig.add_source(Rc::clone(&other));
    assert!(rig.wait(|_| other.borrow().farewell.is_some()));
    let text = other.borrow_mut().farewell.take().unwrap();
    assert!(text.contains("--mirror checksum --yes"), "{text}");
    assert_eq!(rig.differs(&before), None);
    other.borrow_mut().overwrite = true;
    rig.book = other;
    rig.settle();
    rig.check_equal();
    assert!(
        rig.events
            .any(|event| matches!(event, TargetEvent::Adopted { .. }))
    );
}

#[test]
fn a_source_whose_connection_waits_for_its_turn_is_alive() {
    let mut rig = followed(17);
    let journal = Path::new(STATE).join("journal");
    rig.world
        .stall(rig.target, &journal, Duration::from_secs(4));
    some_writes(&rig, 30);
    rig.poke();
    rig.run(Duration::from_millis(100));
    // The next connection waits until the journal has what came on this one.
    rig.world.reset_connections(rig.source_node, rig.target);
    rig.run(Duration::from_secs(2));
    assert!(rig.promote(false, false).is_err(), "its source is there");
    rig.settle();
    rig.check_equal();
    rig.world
        .stall(rig.target, &journal, Duration::from_secs(4));
    some_writes(&rig, 40);
    rig.poke();
    rig.run(Duration::from_millis(100));
    rig.world.reset_connections(rig.source_node, rig.target);
    rig.run(Duration::from_secs(2));
    assert!(rig.promote(true, false).is_ok(), "the operator insists");
}

#[test]
fn records_that_come_while_the_replica_is_taken_over_wait() {
    for seed in 0..20 {
        let mut rig = followed(200 + seed);
        let mut other = Book::new(rig.book.borrow().peer);
        other.history = blkrep_types::History::new();
        let start = (Incarnation::new(0), Seq::ZERO);
        other.history.branch(generation(9), start.0, start.1);
        other.overwrite = true;
        for round in 0..40 {
            other.write(0, round, 8, 0xee, false);
        }
        let other = Rc::new(RefCell::new(other));
        some_writes(&rig, 100);
        rig.poke();
        rig.run(Duration::from_millis(seed));
        rig.book.borrow_mut().connect = false;
        rig.add_source(Rc::clone(&other));
        assert!(rig.wait(|rig| {
            let adopted = |event: &TargetEvent| matches!(event, TargetEvent::Adopted { .. });
            rig.events.any(adopted)
        }));
        rig.book = other;
        rig.settle();
        rig.check_equal();
        let book = rig.book.borrow();
        assert_eq!((book.sessions, &book.farewell), (1, &None), "seed {seed}");
    }
}

#[test]
fn a_pause_stops_applying_and_not_receiving() {
    let mut rig = followed(15);
    rig.pause(true);
    let before = rig.bases();
    some_writes(&rig, 10);
    rig.poke();
    assert!(rig.wait(|rig| {
        let book = rig.book.borrow();
        book.ack.is_some_and(|ack| ack.durable == book.head())
    }));
    assert_eq!(rig.differs(&before), None);
    assert_eq!(rig.status().applying, blkrep_wire::Applying::Paused);
    rig.power_loss();
    rig.restart_target();
    rig.run(Duration::from_secs(1));
    assert_eq!(rig.differs(&before), None, "a pause outlives a restart");
    rig.pause(false);
    rig.settle();
    rig.check_equal();
}

/// A promotion applies what a pause held back. It wrote down that nothing was paused before it was one: a crash in
/// between left a replica that applied against its operator's word.
#[test]
fn a_promotion_that_a_crash_interrupts_leaves_the_pause() {
    let mut interrupted = 0;
    for millis in 0..12 {
        let mut rig = followed(40 + millis);
        rig.pause(true);
        some_writes(&rig, 100);
        rig.poke();
        assert!(rig.wait(|rig| {
            let book = rig.book.borrow();
            book.ack.is_some_and(|ack| ack.durable == book.head())
        }));
        rig.control().promote(true, false, |_| ());
        rig.run(Duration::from_millis(millis));
        rig.power_loss();
        if let Err(error) = rig.try_start_target() {
            assert!(matches!(error, TargetError::Promoted(_)), "{error}");
            continue;
        }
        interrupted += 1;
        rig.book.borrow_mut().connect = false;
        rig.run(Duration::from_millis(500));
        assert_eq!(
            rig.status().applying,
            blkrep_wire::Applying::Paused,
            "{millis} ms"
        );
    }
    assert!(interrupted > 1, "no promotion was interrupted");
}

#[test]
fn a_promotion_applies_everything_and_starts_a_generation() {
    let mut rig = followed(16);
    some_writes(&rig, 12);
    rig.poke();
    assert!(rig.wait(|rig| {
        let book = rig.book.borrow();
        book.ack.is_some_and(|ack| ack.durable == book.head())
    }));
    let refused = rig.promote(false, false).unwrap_err();
    assert_eq!(
        refused,
        TargetCommandError::Promote(PromoteRefusal::SourceAlive)
    );
    let promotion = rig.promote(true, false).unwrap();
    assert_eq!(promotion.data_state, DataState::Ok);
    assert_eq!(promotion.history.ancestors().len(), 2);
    assert_eq!(
        promotion.history.ancestors()[1].branch_seq,
        rig.book.borrow().seq
    );
    assert!(promotion.part.is_empty() && promotion.volumes.len() == 2);
    rig.check_equal();
    assert!(
        rig.wait(|rig| rig.daemon.as_ref().unwrap().worker.is_none()),
        "the worker ends"
    );
    rig.kill();
    let error = rig.try_start_target().unwrap_err();
    assert!(matches!(error, TargetError::Promoted(_)), "{error}");
}

/// Applying was paused before the first mirror, whose end was durable in the journal: the source had its writes
/// answered by this replica in `sync` mode. When the source was lost, the promotion said that nothing had been
/// replicated here yet.
#[test]
fn a_promotion_applies_a_first_mirror_that_a_pause_held_back() {
    let mut rig = Rig::new(18);
    let streams = |rig: &Rig| rig.daemon.as_ref().is_some_and(Daemon::streams);
    assert!(rig.wait(|rig| streams(rig)), "the replica is made");
    rig.pause(true);
    let nothing = TargetCommandError::Promote(PromoteRefusal::Nothing);
    assert_eq!(rig.promote(true, false).unwrap_err(), nothing);
    rig.book.borrow_mut().write(0, 3, 5, 0x11, false);
    let mirrored = |rig: &mut Rig| {
        if streams(rig) {
            rig.book.borrow_mut().finish_mirror();
            rig.poke();
        }
        let book = rig.book.borrow();
        let told = book.ack.is_some_and(|ack| ack.durable == book.head());
        told && book.dirty.is_empty() && !book.mirroring && book.seq > Seq::ZERO
    };
    rig.poke();
    assert!(rig.wait(mirrored), "all of it is durable in the journal");
    assert_eq!(rig.status().data_state, DataState::NotReady);
    rig.power_loss();
    rig.restart_target();
    assert_eq!(rig.promote(true, false).unwrap().data_state, DataState::Ok);
    rig.check_equal();
}

#[test]
fn a_promotion_in_a_mirror_keeps_the_old_prefix_or_is_refused() {
    let mut rig = followed(17);
    let old = rig.bases();
    {
        let mut book = rig.book.borrow_mut();
        book.write(0, 8, 16, 0x33, true);
        book.write(1, 0, 8, 0x44, true);
        book.begin_mirror(MirrorKind::Difference);
        book.mirror_step();
    }
    rig.poke();
    assert!(
        rig.wait(|rig| rig.book.borrow().ack.is_some_and(|ack| ack.held)),
        "it is held"
    );
    rig.book.borrow_mut().connect = false;
    rig.poke();
    rig.run(Duration::from_secs(1));
    let promotion = rig.promote(false, false).unwrap();
    assert_eq!(rig.differs(&old), None, "the old prefix");
    assert!(
        promotion
            .part
            .touches(VolumeIndex::new(0), extent(8 * 512, 512))
    );
    let mut rig = Rig::new(18);
    let refused = {
        rig.book.borrow_mut().hold = true;
        assert!(rig.wait(|rig| rig.book.borrow().sessions == 1));
        rig.book.borrow_mut().connect = false;
        rig.poke();
        rig.run(Duration::from_secs(1));
        rig.promote(false, true).unwrap_err()
    };
    assert_eq!(
        refused,
        TargetCommandError::Promote(PromoteRefusal::Nothing)
    );
}

#[test]
fn a_full_mirror_is_not_promotable_unless_told() {
    let mut rig = Rig::new(19);
    assert!(rig.wait(|rig| rig.book.borrow().sessions == 1));
    for _ in 0..5 {
        rig.book.borrow_mut().mirror_step();
    }
    rig.poke();
    assert!(rig.wait(|rig| {
        rig.book
            .borrow()
            .ack
            .is_some_and(|ack| ack.data_state == DataState::Mirroring)
    }));
    rig.book.borrow_mut().connect = false;
    rig.poke();
    rig.run(Duration::from_secs(1));
    let refused = rig.promote(false, false).unwrap_err();
    let not_ok = PromoteRefusal::NotOk(DataState::Mirroring);
    assert_eq!(refused, TargetCommandError::Promote(not_ok));
    assert_eq!(
        rig.promote(false, true).unwrap().data_state,
        DataState::Mirroring
    );
}

#[test]
fn digests_are_those_of_the_place_in_the_stream() {
    let mut rig = followed(20);
    {
        let mut book = rig.book.borrow_mut();
        book.write(0, 0, 8, 0x61, false);
        book.compare(0, 0);
        book.write(0, 0, 8, 0x62, false);
        book.compare(1, 3);
    }
    rig.settle();
    assert!(rig.wait(|rig| rig.book.borrow().digests.len() == 2));
    let book = rig.book.borrow();
    let first = book
        .digests
        .iter()
        .find(|reply| reply.volume == VolumeIndex::new(0))
        .unwrap();
    assert_eq!(
        first.digest.unwrap(),
        *blake3::hash(&[0x61; 4096]).as_bytes()
    );
    let second = book
        .digests
        .iter()
        .find(|reply| reply.volume == VolumeIndex::new(1))
        .unwrap();
    assert_eq!(second.digest.unwrap(), *blake3::hash(&[0; 4096]).as_bytes());
}

#[test]
fn an_orderly_stop_keeps_what_was_received_and_names_the_reason() {
    let mut rig = followed(21);
    some_writes(&rig, 30);
    rig.poke();
    rig.run(Duration::from_millis(1));
    rig.stop();
    assert!(farewell(&mut rig).contains("stops"));
    rig.restart_target();
    rig.settle();
    rig.check_equal();
    assert!(rig.world.paths(rig.target).contains(&base(0)));
    let name = NodeName::new("alpha").unwrap();
    assert_eq!(rig.status().source, name);
}

/// A source that asked for digest after digest and took none filled the memory of its target.
#[test]
fn a_source_that_takes_none_of_its_digests_is_not_served_for_ever() {
    let mut rig = followed(60);
    {
        let mut book = rig.book.borrow_mut();
        book.deaf = true;
        (0..30_000).for_each(|at| book.compare(0, at % 16));
    }
    rig.poke();
    let ended = |event: &TargetEvent| matches!(event, TargetEvent::Disconnected { reason, .. } if reason.contains("digests"));
    assert!(
        rig.wait(|rig| rig.events.any(ended)),
        "{:?}",
        rig.events.all()
    );
}
