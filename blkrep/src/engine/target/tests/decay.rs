//! What rots at rest: the end of a journal that was acknowledged.

use super::super::*;
use super::rig::{Rig, STATE};
use blkrep_io::sim::Crash;
use blkrep_types::DataState;
use blkrep_wire::Applying;
use std::path::Path;
use std::time::Duration;

/// Writes that are acknowledged and not applied, one batch each; the place of the last batch.
fn journal_six(rig: &mut Rig) {
    rig.book.borrow_mut().write(0, 3, 5, 0x11, false);
    rig.settle();
    rig.pause(true);
    // The head of what came before is written, and none is due for long.
    rig.run(Duration::from_secs(3));
    for round in 0..6 {
        let mut book = rig.book.borrow_mut();
        book.write(0, u64::from(round) * 8, 8, 0x70 + round, false);
        drop(book);
        rig.poke();
        assert!(rig.wait(|rig| {
            let book = rig.book.borrow();
            book.ack.is_some_and(|ack| ack.durable == book.head())
        }));
    }
    rig.book.borrow_mut().connect = false;
    rig.poke();
}

/// Flips a byte of the last write where the journal has it.
fn rot(rig: &Rig) {
    let journal = Path::new(STATE).join("journal");
    let image = rig.world.image(rig.target, &journal);
    let blocks = (0..image.len() / 4096).map(|block| block * 4096);
    let last = blocks
        .filter(|at| image[*at..*at + 8] == *b"BLKrBTCH" && image.get(*at + 4096) == Some(&0x75));
    let last: Vec<_> = last.collect();
    assert_eq!(last.len(), 1, "one batch has the last write");
    rig.world
        .corrupt(rig.target, &journal, last[0] as u64 + 4096 + 100, &[0]);
}

/// The journal of a paused target ended in a batch that had been acknowledged and rotted. The next
/// start took it for one that a crash had torn: acknowledged writes were gone without a word, and
/// the source, which had freed them, was asked to go on before them.
#[test]
fn a_last_batch_that_rots_was_acknowledged_all_the_same() {
    for end in 0..3 {
        let mut rig = Rig::new(140 + end);
        journal_six(&mut rig);
        let acked = rig.book.borrow().head();
        match end {
            0 => {
                rig.run(Duration::from_secs(3));
                rig.power_loss();
            }
            1 => {
                rig.run(Duration::from_secs(3));
                rig.kill();
            }
            _ => rig.stop(),
        }
        rot(&rig);
        rig.restart_target();
        let corrupt = |event: &TargetEvent| matches!(event, TargetEvent::JournalCorrupt { .. });
        assert!(rig.events.any(corrupt), "end {end}");
        rig.run(Duration::from_secs(2));
        let status = rig.status();
        assert_eq!(status.data_state, DataState::MirrorRequired);
        assert_eq!(
            status.durable, acked,
            "what was acknowledged is not forgotten"
        );
        let mirrored = rig.book.borrow().mirror_bytes;
        rig.book.borrow_mut().connect = true;
        rig.settle();
        rig.check_equal();
        assert_eq!(rig.book.borrow().mirror_bytes - mirrored, 4096);
    }
}

/// A daemon was killed between the write of the replica's facts and their flush. Its successor read
/// them, went on as if they were durable, and a power loss brought the older ones back: a replica that
/// had said that it is no prefix any more said `ok` again.
#[test]
fn facts_that_a_killed_predecessor_did_not_flush_are_durable_before_they_count() {
    let (mut seen, mut kept) = (0, 0);
    for seed in 0..160 {
        let mut rig = Rig::new(1000 + seed);
        rig.book.borrow_mut().write(0, 3, 5, 0x11, false);
        rig.settle();
        rig.run(Duration::from_secs(3));
        let process = rig.process();
        let calls = u32::try_from(seed % 8).unwrap();
        rig.world.crash_after(process, calls, Crash::Process);
        rig.control().pause(true, |_| ());
        rig.run(Duration::from_secs(3));
        rig.restart_target();
        if rig.status().applying != Applying::Paused {
            continue;
        }
        seen += 1;
        rig.power_loss();
        rig.restart_target();
        kept += usize::from(rig.status().applying == Applying::Paused);
    }
    assert!(seen > 20, "{seen} were paused");
    assert_eq!(kept, seen, "what was read has to stay");
}
