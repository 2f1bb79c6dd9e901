//! Notes in the order: their place, and what is known of them link by link.

use super::*;
use crate::source::{NOTES_KEPT, NoteDenied};
use blkrep_types::{BookmarkName, Note, NoteId, NoteKind, NoteReport, NoteState, TaskCommand};

fn note(number: u8, task: bool) -> Note {
    let command = || TaskCommand::new(vec!["snap".to_owned()], String::new());
    Note {
        id: NoteId::from_bytes([number; 16]),
        submitted: 1,
        kind: match task {
            true => NoteKind::Task(command().unwrap()),
            false => NoteKind::Bookmark(BookmarkName::new("here").unwrap()),
        },
    }
}

fn put(rig: &mut Rig, number: u8) -> Result<Seq, NoteDenied> {
    let slot = rig.group.add_note(&note(number, true))?;
    rig.group.publish_note(slot);
    Ok(slot.seq)
}

fn state(rig: &Rig, number: u8, index: usize) -> NoteState {
    let found = rig.group.note(NoteId::from_bytes([number; 16])).unwrap();
    let on = found.links.iter().find(|(of, _)| *of == link(index));
    on.unwrap().1.state
}

fn events(rig: &mut Rig) -> Vec<(LinkIndex, NoteState)> {
    let mut all = Vec::new();
    while let Some(event) = rig.group.take_event() {
        if let GroupEvent::Note { link, report } = event {
            all.push((link, report.state));
        }
    }
    all
}

#[test]
fn a_note_takes_the_next_place_and_its_way_is_told() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    let before = rig.group.log().unwrap().head().1;
    let seq = put(&mut rig, 1).unwrap();
    assert_eq!(seq, before.next());
    assert_eq!(state(&rig, 1, 0), NoteState::Queued);
    let mut out = Vec::new();
    rig.group
        .next_records(link(0), 16, 1 << 20, |_| None, &mut out);
    let sent = out.last().unwrap().record;
    assert_eq!(
        (sent.kind, sent.seq),
        (RecordKind::Note { task: true }, seq)
    );
    assert_eq!(state(&rig, 1, 0), NoteState::Sent);
    rig.serve(0);
    let name = WriteName {
        generation: GENERATION,
        incarnation: sent.incarnation,
        seq,
    };
    let acks = Acks {
        received: name,
        durable: name,
        data_state: DataState::Ok,
        journal: JournalFill::default(),
    };
    assert!(rig.group.acked(link(0), &acks));
    assert_eq!(state(&rig, 1, 0), NoteState::Waiting);
    let report = NoteReport::of(&note(1, true), name, NoteState::Done);
    rig.group.note_report(link(0), &report);
    rig.group.note_report(link(0), &report);
    assert_eq!(state(&rig, 1, 0), NoteState::Done);
    assert_eq!(events(&mut rig), [(link(0), NoteState::Done)], "told once");
}

/// The first link of a group was disconnected, and the place it had was asked for a link: the daemon
/// ended in a panic.
#[test]
fn a_note_is_for_the_links_that_are_left() {
    let mut rig = Rig::new(2, 1 << 20, OnBackingError::Pass);
    rig.group.link_down(link(0), DownReason::Asked);
    rig.group.remove_link(link(0));
    put(&mut rig, 1).unwrap();
    assert_eq!(state(&rig, 1, 1), NoteState::Queued);
    let found = rig.group.note(NoteId::from_bytes([1; 16])).unwrap();
    assert_eq!(found.links.len(), 1);
}

#[test]
fn what_the_log_gives_up_is_skipped_and_said_so() {
    let mut rig = Rig::new(1, 1 << 20, OnBackingError::Pass);
    put(&mut rig, 1).unwrap();
    rig.group.set_transmit(link(0), Transmit::Stopped);
    assert_eq!(state(&rig, 1, 0), NoteState::Skipped);
    assert_eq!(events(&mut rig), [(link(0), NoteState::Skipped)]);
    assert_eq!(put(&mut rig, 2), Err(NoteDenied::Behind));
    assert!(rig.group.note(NoteId::from_bytes([2; 16])).is_none());
}

#[test]
fn a_target_that_is_too_old_gets_nothing_in_its_place() {
    let mut rig = Rig::new(2, 1 << 20, OnBackingError::Pass);
    rig.group.takes_notes(link(0), false);
    let seq = put(&mut rig, 1).unwrap();
    for (index, kind) in [RecordKind::Void, RecordKind::Note { task: true }]
        .iter()
        .enumerate()
    {
        let mut out = Vec::new();
        rig.group
            .next_records(link(index), 16, 1 << 20, |_| None, &mut out);
        let sent = out.iter().find(|sent| sent.record.seq == seq).unwrap();
        assert_eq!(sent.record.kind, *kind);
    }
    assert_eq!(state(&rig, 1, 0), NoteState::Unable);
    assert_eq!(state(&rig, 1, 1), NoteState::Sent);
    rig.group.takes_notes(link(1), false);
    assert_eq!(put(&mut rig, 2), Err(NoteDenied::Unable));
}

#[test]
fn a_full_log_refuses_a_note_and_the_list_is_bounded() {
    let mut rig = Rig::new(1, 64 << 10, OnBackingError::Pass);
    let mut taken = 0;
    while put(&mut rig, 1).is_ok() {
        taken += 1;
    }
    assert!((1..=16).contains(&taken), "each takes 4 KiB: {taken}");
    assert_eq!(put(&mut rig, 1), Err(NoteDenied::Full));
    for number in 0..=255 {
        let told = NoteReport::of(&note(number, false), WriteName::NONE, NoteState::Set);
        rig.group.note_report(link(0), &told);
    }
    assert_eq!(rig.group.notes().len(), NOTES_KEPT);
}
