//! Bookmarks and tasks: at their place, at most once, and told to the source.

use super::super::*;
use super::rig::{Rig, settings};
use blkrep_types::{DataState, NoteId, NoteState, Seq};
use std::time::Duration;

fn id(number: u8) -> NoteId {
    NoteId::from_bytes([number; 16])
}

fn followed(seed: u64) -> Rig {
    let mut rig = Rig::new(seed);
    rig.book.borrow_mut().write(0, 3, 5, 0x11, false);
    rig.settle();
    rig
}

fn runs(rig: &Rig) -> Vec<NoteId> {
    let running = rig.events.running.lock().unwrap();
    running.iter().map(|(order, _)| order.id).collect()
}

/// Lets it go on until a task has begun.
fn begun(rig: &mut Rig, number: u8) {
    rig.poke();
    let began = rig.wait(|rig| runs(rig).last() == Some(&id(number)));
    assert!(began, "task {number} begins");
}

fn end(rig: &mut Rig, state: NoteState) {
    let (_, done) = rig.events.running.lock().unwrap().pop().unwrap();
    done(TaskEnd {
        state,
        exit: Some(0),
        output: "said".to_owned(),
    });
}

fn state(rig: &Rig, number: u8) -> Option<NoteState> {
    let notes = rig.control().notes();
    let found = notes.iter().find(|report| report.id == id(number));
    found.map(|report| report.state)
}

#[test]
fn a_task_sees_exactly_the_writes_before_it_and_nothing_is_applied_while_it_runs() {
    let mut rig = followed(41);
    let before = {
        let mut book = rig.book.borrow_mut();
        for round in 0..30 {
            book.write(
                u16::from(round % 2),
                u64::from(round) % 9,
                4,
                0x20 + round,
                false,
            );
        }
        book.note(1, Some("snap"));
        let images = book.images.clone();
        for round in 0..30 {
            book.write(
                u16::from(round % 2),
                u64::from(round) % 9,
                4,
                0x60 + round,
                false,
            );
        }
        images
    };
    begun(&mut rig, 1);
    assert_eq!(rig.differs(&before), None);
    rig.run(Duration::from_secs(20));
    assert_eq!(rig.differs(&before), None, "what came later waits");
    assert_eq!(state(&rig, 1), Some(NoteState::Running));
    {
        let book = rig.book.borrow();
        assert_eq!(
            book.ack.unwrap().durable,
            book.head(),
            "the journal goes on"
        );
        let running = rig.events.running.lock().unwrap();
        let order = &running.last().unwrap().0;
        assert_eq!(order.name.seq.get() + 30, book.seq.get());
        assert_eq!(order.bases.len(), 2);
    }
    end(&mut rig, NoteState::Done);
    rig.settle();
    rig.check_equal();
    let told = rig.book.borrow().told.clone();
    assert_eq!(
        told,
        [(id(1), NoteState::Running), (id(1), NoteState::Done)]
    );
    assert_eq!(runs(&rig), [], "it ran once");
}

#[test]
fn a_task_that_a_killed_daemon_was_running_is_interrupted_and_never_run_again() {
    for power in [false, true] {
        let mut rig = followed(42);
        rig.book.borrow_mut().note(1, Some("snap"));
        rig.book.borrow_mut().write(0, 3, 5, 0x33, false);
        begun(&mut rig, 1);
        if power {
            rig.power_loss();
        } else {
            rig.kill();
        }
        rig.events.running.lock().unwrap().clear();
        rig.run(Duration::from_secs(2));
        rig.restart_target();
        rig.settle();
        rig.check_equal();
        assert_eq!(runs(&rig), [], "not again");
        assert_eq!(state(&rig, 1), Some(NoteState::Interrupted));
        let told = rig.book.borrow().told.last().copied();
        assert_eq!(
            told,
            Some((id(1), NoteState::Interrupted)),
            "the source hears of it"
        );
        rig.stop();
        rig.restart_target();
        rig.settle();
        let interrupted = |event: &&TargetEvent| match event {
            TargetEvent::Note { report } => report.state == NoteState::Interrupted,
            _ => false,
        };
        let events = rig.events.all();
        assert_eq!(events.iter().filter(interrupted).count(), 1, "told once");
    }
}

#[test]
fn what_a_target_knew_of_notes_it_knows_after_a_restart_and_says_again() {
    let mut rig = followed(43);
    "tasks are off".clone_into(&mut rig.events.refuses.lock().unwrap());
    rig.book.borrow_mut().note(1, None);
    rig.book.borrow_mut().write(0, 3, 5, 0x33, false);
    rig.book.borrow_mut().note(2, Some("snap"));
    rig.settle();
    let place = |rig: &Rig| rig.control().notes()[0].name.seq;
    let before = place(&rig);
    assert_eq!(before.get() + 2, rig.book.borrow().seq.get());
    rig.book.borrow_mut().told.clear();
    rig.power_loss();
    rig.restart_target();
    rig.settle();
    assert_eq!(state(&rig, 1), Some(NoteState::Set));
    assert_eq!(state(&rig, 2), Some(NoteState::Refused));
    assert_eq!(place(&rig), before);
    assert!(rig.wait(|rig| rig.book.borrow().told.len() == 2));
    let told = rig.book.borrow().told.clone();
    assert_eq!(told, [(id(1), NoteState::Set), (id(2), NoteState::Refused)]);
}

#[test]
fn a_pause_holds_a_task_back_and_a_stop_interrupts_it() {
    let mut rig = followed(44);
    rig.pause(true);
    rig.book.borrow_mut().note(1, Some("snap"));
    rig.poke();
    rig.run(Duration::from_secs(5));
    assert_eq!((runs(&rig), state(&rig, 1)), (vec![], None));
    rig.pause(false);
    begun(&mut rig, 1);
    rig.stop();
    assert_eq!(*rig.events.cancelled.lock().unwrap(), [id(1)]);
    rig.events.running.lock().unwrap().clear();
    rig.restart_target();
    rig.settle();
    assert_eq!(state(&rig, 1), Some(NoteState::Interrupted));
}

#[test]
fn a_promotion_does_not_wait_for_tasks_and_runs_none() {
    let mut rig = followed(45);
    rig.book.borrow_mut().note(1, Some("snap"));
    rig.book.borrow_mut().write(0, 3, 5, 0x33, false);
    rig.book.borrow_mut().note(2, Some("snap"));
    rig.book.borrow_mut().note(3, None);
    begun(&mut rig, 1);
    rig.run(Duration::from_secs(1));
    let control = rig.control();
    rig.promote(true, false).unwrap();
    rig.check_equal();
    assert_eq!(*rig.events.cancelled.lock().unwrap(), [id(1)]);
    let states: Vec<_> = control.notes().iter().map(|report| report.state).collect();
    let wanted = [NoteState::Interrupted, NoteState::Skipped, NoteState::Set];
    assert_eq!(states, wanted);
}

#[test]
fn within_a_mirror_nothing_is_set_and_nothing_runs() {
    let mut rig = followed(46);
    {
        let mut book = rig.book.borrow_mut();
        book.write(0, 3, 5, 0x33, true);
        book.write(1, 20, 5, 0x34, true);
        book.begin_mirror(blkrep_types::MirrorKind::Difference);
        book.mirror_step();
        book.note(1, Some("snap"));
        book.note(2, None);
    }
    rig.settle();
    rig.check_equal();
    assert_eq!(state(&rig, 1), Some(NoteState::Skipped));
    assert_eq!(state(&rig, 2), Some(NoteState::Skipped));
    assert_eq!(runs(&rig), []);
    assert_eq!(rig.status().data_state, DataState::Ok);
}

#[test]
fn a_state_that_cannot_be_written_down_holds_applying_and_is_tried_again() {
    let mut rig = Rig::with(47, settings());
    rig.settle();
    rig.world.set_full(rig.target, true);
    rig.book.borrow_mut().note(1, Some("snap"));
    rig.book.borrow_mut().write(0, 3, 5, 0x33, false);
    rig.poke();
    rig.run(Duration::from_secs(5));
    assert_eq!(runs(&rig), [], "not before it is durable that it runs");
    rig.world.set_full(rig.target, false);
    begun(&mut rig, 1);
    end(&mut rig, NoteState::Failed);
    rig.settle();
    assert_eq!(state(&rig, 1), Some(NoteState::Failed));
}

#[test]
fn an_old_source_and_an_old_target_exchange_no_word_of_notes() {
    let mut rig = Rig::new(48);
    rig.book.borrow_mut().versions = (1, 2);
    rig.book.borrow_mut().write(0, 3, 5, 0x11, false);
    rig.settle();
    // It would break the rules; a target takes it for what it is, and says nothing of it.
    rig.book.borrow_mut().note(1, None);
    rig.settle();
    assert_eq!(rig.book.borrow().told, []);
    assert_ne!(rig.book.borrow().seq, Seq::ZERO);
}
