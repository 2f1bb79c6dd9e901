//! What failures, fences and restarts leave behind: nothing that may differ is forgotten.

use super::*;
use blkrep_types::OnLoss;

/// What may be durable on neither side stays open for the comparison after a crash of the host.
fn open(rig: &Rig) -> usize {
    rig.group.intent.open_count()
}

/// Time in which every region is closed that may be.
fn idle(rig: &mut Rig) {
    for _ in 0..60 {
        rig.pass(Duration::from_secs(1));
        rig.commit(true);
        (0..rig.drivers.len()).for_each(|index| drop(rig.serve(index)));
    }
}

fn name(seq: u64) -> WriteName {
    WriteName {
        generation: GENERATION,
        incarnation: RUN,
        seq: Seq::new(seq),
    }
}

/// A zero that must be durable was done and acknowledged, so its entry was freed; then its flush
/// failed, and the group froze. It is told at once: a newer generation that comes then finds nothing
/// of it, and nothing is answered twice.
#[test]
fn a_fence_finds_nothing_of_a_durable_zero_whose_flush_failed() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Freeze);
    rig.serve(0);
    let zero = RequestOp::Zero {
        fua: true,
        free: false,
    };
    let tag = rig.submit(zero, Some(extent(0, 4096)));
    rig.commit(true);
    rig.serve(0);
    rig.synced = Err(Errno::EIO);
    rig.finish(0, Ok(()));
    rig.take();
    assert_eq!((rig.group.gate(), rig.answers.len()), (Gate::Frozen, 1));
    rig.group.fence(Generation::from_bytes([2; 16]));
    rig.take();
    assert_eq!(rig.answers, [(tag, Err(Errno::EIO))]);
}

/// A write that waited for an operator counted as in flight for ever after a fence.
#[test]
fn a_fence_leaves_no_region_in_flight() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Freeze);
    rig.serve(0);
    rig.write(extent(0, 4096));
    rig.commit(true);
    rig.finish(0, Err(Errno::EIO));
    rig.group.fence(Generation::from_bytes([2; 16]));
    rig.take();
    idle(&mut rig);
    assert_eq!(open(&rig), 0, "its extent is durable dirt");
}

/// A flush failed; the daemon was restarted, a flush of its own succeeded, and regions whose
/// writes the failed one had lost were closed: the host's next crash compared them no more.
#[test]
fn a_failed_flush_is_remembered_by_the_successor() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    rig.serve(0);
    rig.write(extent(0, 4096));
    rig.commit(true);
    rig.finish(0, Ok(()));
    rig.synced = Err(Errno::EIO);
    for _ in 0..30 {
        rig.pass(Duration::from_secs(1));
    }
    let troubles = rig.group.log.as_ref().unwrap().troubles;
    let mut next = Rig::without_log(OnBackingError::Pass, |regions| {
        regions.set(0, 1);
    });
    next.group.set_log(PlainLog {
        troubles,
        ..PlainLog::after(Seq::new(9), 1 << 20)
    });
    let mark = LinkMark {
        following: true,
        held: Seq::new(9),
        acked: (RUN, Seq::new(9)),
        acked_known: true,
        ..LinkMark::default()
    };
    next.drivers.push(next.group.add_worker());
    next.make_link(0, Some(mark), None);
    idle(&mut next);
    assert_eq!(open(&next), 2, "a later success brings nothing back");
    let flush = next.submit(RequestOp::Flush, None);
    next.take();
    assert_eq!(next.answers, [(flush, Err(Errno::EIO))], "nobody was told");
    let flush = next.submit(RequestOp::Flush, None);
    next.take();
    assert_eq!(next.answers[1], (flush, Ok(())));
    assert_eq!(next.group.log.as_ref().unwrap().troubles.untold, 0);
}

/// A daemon was killed after a write was acknowledged and before the link's map said so. Its
/// successor closed the region at once; a target put back to before that write, but not before what
/// the map said, would have been compared without it after a crash of the host.
#[test]
fn regions_found_open_are_closed_only_when_the_map_on_disk_says_what_was_acknowledged() {
    let mut rig = Rig::without_log(OnBackingError::Pass, |regions| {
        regions.set(0, 0);
    });
    rig.group.set_log(PlainLog::after(Seq::new(7), 1 << 20));
    let mark = LinkMark {
        following: true,
        held: Seq::new(7),
        acked: (RUN, Seq::new(7)),
        acked_known: true,
        ..LinkMark::default()
    };
    rig.drivers.push(rig.group.add_worker());
    rig.make_link(0, Some(mark), Some(name(3)));
    for _ in 0..40 {
        rig.pass(Duration::from_secs(1));
        while let Some(map) = rig.group.next_commit() {
            rig.group.begin_commit(map, |_, words| {
                assert_eq!(words.count(), crate::dirty::SECTOR_WORDS);
            });
            let result = match map {
                MapId::Intent => Ok(()),
                MapId::Link(_) => Err(Errno::EIO),
            };
            rig.group.commit_done(map, result);
        }
    }
    assert_eq!(open(&rig), 1, "the map on disk says 3");
    idle(&mut rig);
    assert_eq!(open(&rig), 0);
}

/// The same of a link that is behind: its durable dirt covers what was written.
#[test]
fn regions_found_open_are_closed_when_a_link_that_is_behind_has_them_as_durable_dirt() {
    let mut rig = Rig::without_log(OnBackingError::Pass, |regions| {
        regions.set(0, 0);
    });
    rig.group.set_log(PlainLog::after(Seq::new(7), 1 << 20));
    rig.drivers.push(rig.group.add_worker());
    rig.make_link(0, Some(LinkMark::default()), Some(name(3)));
    idle(&mut rig);
    assert_eq!(open(&rig), 0);
}

/// With one link behind and another following, regions were never closed: the place of a write
/// counted for both, although the dirty bit stands for it on the first.
#[test]
fn regions_are_closed_while_one_link_follows_and_another_is_behind() {
    let mut rig = Rig::new(2, 1 << 20, OnBackingError::Pass);
    rig.serve(0);
    rig.serve(1);
    rig.group.set_transmit(link(0), Transmit::Stopped);
    rig.write(extent(0, 4096));
    rig.commit(true);
    rig.finish(0, Ok(()));
    idle(&mut rig);
    assert_eq!(open(&rig), 0, "durable dirt stands in for the stopped link");
}

/// A mirror's block that could not be read became nothing in the log before it became dirt again:
/// a daemon killed in between forgot it. The log of this test looks when it is published.
#[test]
fn a_block_that_cannot_be_read_is_dirt_before_it_is_nothing_in_the_stream() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    rig.serve(0);
    rig.serve(0);
    rig.group.start_mirror(link(0), MirrorKind::Full);
    rig.take();
    let reads = std::mem::take(&mut rig.mirror);
    assert!(!reads.is_empty(), "a mirror reads");
    for action in reads {
        if let Action::MirrorRead { job, .. } = action {
            rig.group.mirror_read_done(job, Err(Errno::EIO));
        }
    }
}

/// A peer acknowledged a write that it was never sent: one that another link had already got.
#[test]
fn an_acknowledgement_of_what_only_another_link_was_sent_is_refused() {
    let mut rig = Rig::new(2, 1 << 20, OnBackingError::Pass);
    rig.serve(0);
    rig.serve(1);
    rig.group.set_transmit(link(0), Transmit::Stopped);
    for at in 0..10 {
        rig.write(extent(at * 4096, 4096));
        rig.commit(true);
        rig.finish(0, Ok(()));
        rig.serve(1);
    }
    let base = rig.group.log().unwrap().base().1;
    let last = rig.group.link(link(0)).unwrap().last_handed_out();
    assert!(last < base, "the other link has more");
    let acks = Acks {
        received: name(base.get()),
        durable: name(base.get()),
        data_state: DataState::Ok,
        journal: JournalFill::default(),
    };
    assert!(!rig.group.acked(link(0), &acks));
}

/// The simulator's seed 52731: a target had answered and was to go on from the log; before the stream
/// began, transmission was stopped, the log was freed, and going on ended the daemon.
#[test]
fn a_stream_that_was_to_go_on_from_a_log_that_was_given_up_goes_on_from_the_map() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    rig.serve(0);
    rig.serve(0);
    let durable = rig.group.link(link(0)).unwrap().acked.unwrap();
    for at in 0..10 {
        rig.write(extent(at * 4096, 4096));
        rig.commit(true);
        rig.finish(0, Ok(()));
    }
    rig.group.link_down(link(0), DownReason::Lost);
    rig.group.negotiating(link(0));
    let peer = WelcomeFacts {
        role: PeerRole::Replica,
        data_state: DataState::Ok,
        history: rig.group.history().clone(),
        durable: name(durable.1.get()),
        reads: true,
    };
    rig.group.welcome(link(0), &peer).unwrap();
    rig.group.set_transmit(link(0), Transmit::Stopped);
    assert_eq!(
        rig.group.log().unwrap().base(),
        rig.group.log().unwrap().head()
    );
    let start = rig.group.begin_stream(link(0)).unwrap();
    assert_eq!(start.reason, "the dirty map has everything since");
    for at in 0..10 {
        assert!(rig.group.covers(link(0), VOLUME, extent(at * 4096, 4096)));
    }
}

/// What a target comes back with after it had acknowledged up to `acked`, and lacks some of it.
fn comes_back_with(rig: &mut Rig, durable: WriteName) -> StreamStart {
    rig.group.link_down(link(0), DownReason::Lost);
    rig.come_back(0, durable)
}

/// A target that lost what it had acknowledged as durable, by whatever way, is told of, and gets it:
/// from the log as long as another link holds it there, else by a comparison of everything.
#[test]
fn a_target_that_lacks_what_it_acknowledged_is_never_taken_for_one_that_has_it() {
    for held_by_another in [true, false] {
        let mut rig = Rig::new(2, 1 << 20, OnBackingError::Pass);
        rig.serve(0);
        rig.serve(1);
        for at in 0..4 {
            rig.write(extent(at * 4096, 4096));
            rig.commit(true);
            rig.finish(0, Ok(()));
            rig.serve(0);
            if !held_by_another {
                rig.serve(1);
            }
        }
        let acked = rig.group.link(link(0)).unwrap().acked.unwrap().1;
        let start = comes_back_with(&mut rig, name(acked.get() - 2));
        assert!(start.set_back, "it is told");
        let next = rig.group.link(link(0)).unwrap().next;
        if held_by_another {
            assert_eq!((start.mirror, next.get()), (None, acked.get() - 1));
        } else {
            assert_eq!(start.mirror, Some(MirrorKind::Checksum));
        }
    }
}

/// A write of a dead daemon is in the log, which its target has already and which is to be issued again.
fn with_a_write_of_a_dead_daemon(promised: bool) -> Rig {
    let mut rig = Rig::without_log(OnBackingError::Pass, |_| ());
    let mut log = PlainLog::after(Seq::new(9), 64 << 10);
    let entry = NewEntry {
        kind: RecordKind::Data { mirror: false },
        volume: VOLUME,
        extent: Some(extent(0, 4096)),
        link: None,
        local: true,
    };
    let held = log.append(&entry).unwrap().seq;
    log.publish(held);
    rig.group.set_log(log);
    let mark = LinkMark {
        following: true,
        held,
        acked: (RUN, held),
        acked_known: true,
        ..LinkMark::default()
    };
    rig.drivers.push(rig.group.add_worker());
    rig.make_link_with(0, Some(mark), Some(name(held.get())), promised);
    rig
}

/// A write of a dead daemon that is to be issued again holds the log's oldest place; with the log
/// full, it would have waited for the room that it held itself.
#[test]
fn a_write_that_comes_again_does_not_wait_for_the_room_it_holds() {
    let mut rig = with_a_write_of_a_dead_daemon(false);
    rig.group.settle_entries(true);
    for at in 1..16 {
        rig.write(extent(at * 4096, 4096));
        rig.commit(true);
        rig.finish(0, Ok(()));
    }
    assert_eq!(
        rig.group.log.as_ref().unwrap().base.1,
        Seq::new(9),
        "awaited"
    );
    rig.write(extent(0, 4096));
    assert_eq!(rig.running.len(), 1, "it is written");
    let link = rig.group.link(link(0)).unwrap();
    assert!(
        link.live.test(0) && link.is_following(),
        "and dirt meanwhile"
    );
}

/// A daemon was killed while a write was under way here that its target had got already. It came again, but
/// the link was not back yet and its policy is `fail`: it was refused, and for a minute both ends said that
/// they were equal and were not.
#[test]
fn a_write_that_comes_again_and_is_refused_is_dirt() {
    let mut rig = with_a_write_of_a_dead_daemon(true);
    rig.group.settle_entries(true);
    let policy = LossPolicy {
        on_loss: OnLoss::Fail,
        timeout: Duration::ZERO,
    };
    rig.group.set_mode(link(0), Mode::Sync);
    rig.group.set_loss_policy(link(0), policy);
    for _ in 0..2 {
        rig.pass(Duration::from_secs(1));
        rig.take();
    }
    assert!(!rig.group.link(link(0)).unwrap().live.test(0));
    let refused = rig.write(extent(0, 8192));
    rig.take();
    assert_eq!(rig.answers, [(refused, Err(Errno::EIO))]);
    assert!(rig.group.link(link(0)).unwrap().live.test(0));
    let log = rig.group.log.as_ref().unwrap();
    assert_eq!(log.base(), log.head(), "nothing awaits it");
}

/// A group was attached again whose backing had been anybody's meanwhile. Its memory log was still there, and
/// the stream went on with what was written since, before the comparison had begun: a target that was promoted
/// then showed a state that the source never had, and called it `ok`.
#[test]
fn a_backing_that_nobody_watched_is_compared_before_the_stream_goes_on() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    rig.serve(0);
    rig.serve(0);
    let durable = rig.group.link(link(0)).unwrap().acked.unwrap();
    rig.group.link_down(link(0), DownReason::Lost);
    rig.group.distrust(link(0));
    rig.write(extent(0, 4096));
    rig.commit(true);
    rig.finish(0, Ok(()));
    let start = comes_back_with(&mut rig, name(durable.1.get()));
    assert_eq!(start.reason, "the dirty map has everything since");
    rig.pass(Duration::from_secs(3));
    rig.take();
    let sent = rig.serve(0);
    assert!(
        matches!(sent.first(), Some(RecordKind::MirrorBegin(_))),
        "{sent:?}"
    );
}

/// A target had acknowledged what was written; its link turned behind, and the regions were closed, because
/// the map was said to cover every write. It did not cover what had been acknowledged: the target was put
/// back from an old copy, which the floor on disk still counted, and what it lacked was not compared.
#[test]
fn regions_of_what_was_acknowledged_are_not_closed_before_the_floor_says_so() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    let write = |rig: &mut Rig| {
        rig.write(extent(0, 4096));
        rig.commit(true);
        rig.finish(0, Ok(()));
        rig.serve(0);
        rig.serve(0);
    };
    write(&mut rig);
    idle(&mut rig);
    let floor = |rig: &Rig| rig.group.link(link(0)).unwrap().floor.unwrap().seq;
    let before = floor(&rig);
    write(&mut rig);
    let acked = rig.group.link(link(0)).unwrap().acked.unwrap().1;
    assert!(acked > before);
    rig.group.set_transmit(link(0), Transmit::Stopped);
    idle(&mut rig);
    assert_eq!(open(&rig), 0, "an idle group has no region open");
    assert_eq!(floor(&rig), acked);
    rig.group.set_transmit(link(0), Transmit::Started);
    let start = comes_back_with(&mut rig, name(before.get()));
    assert!(start.set_back);
    let covered = rig.group.covers(link(0), VOLUME, extent(0, 4096));
    assert!(covered, "{}", start.reason);
}

/// The simulator's seed 8200000999: a link was forgotten, and writes completed that nobody noted and
/// nobody flushed; then it was made anew, its mirror read them, and the source lost power. It had them no
/// more, its target had, and no map named them.
#[test]
fn what_was_written_without_a_link_is_open_until_it_is_flushed() {
    let mut rig = Rig::new(0, 0, OnBackingError::Pass);
    rig.write(extent(0, 4096));
    rig.finish(0, Ok(()));
    let under_way = rig.write(extent(1 << 20, 4096));
    assert_eq!(open(&rig), 0, "nobody needs to know");
    rig.unnoted = true;
    rig.group.set_log(PlainLog::after(Seq::ZERO, 1 << 20));
    rig.drivers.push(rig.group.add_worker());
    rig.add_link(0);
    let all = open(&rig);
    assert!(all > 0, "any of it may go with the power");
    let compared = rig.group.link(link(0)).unwrap().compare.ones();
    assert_eq!(compared, 0, "a mirror is asked for once");
    for _ in 0..8 {
        rig.finish_mirror_reads(true);
        rig.serve(0);
        rig.commit(true);
    }
    rig.synced = Err(Errno::EIO);
    idle(&mut rig);
    assert_eq!(open(&rig), all, "it was not flushed");
    assert!(rig.answers.iter().all(|(tag, _)| *tag != under_way));
}

#[test]
fn what_was_written_without_a_link_is_closed_when_it_is_flushed_and_nothing_is_under_way() {
    let mut rig = Rig::new(0, 0, OnBackingError::Pass);
    rig.write(extent(0, 4096));
    rig.unnoted = true;
    rig.group.set_log(PlainLog::after(Seq::ZERO, 1 << 20));
    rig.drivers.push(rig.group.add_worker());
    rig.add_link(0);
    for _ in 0..8 {
        rig.finish_mirror_reads(true);
        rig.serve(0);
        rig.commit(true);
    }
    idle(&mut rig);
    assert_eq!(open(&rig), 1, "a write of before is under way");
    rig.finish(0, Ok(()));
    for _ in 0..4 {
        rig.finish_mirror_reads(true);
        rig.serve(0);
        rig.commit(true);
    }
    idle(&mut rig);
    assert_eq!(open(&rig), 0);
}
