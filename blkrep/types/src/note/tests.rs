#![allow(clippy::unwrap_used)]

use super::*;
use crate::{Generation, Incarnation, Seq, WriteName};

const PAGE: &str = include_str!("../../../../docs/format/note.md");

fn task(words: &[&str], description: &str) -> Result<TaskCommand, NoteError> {
    let words = words.iter().map(|word| (*word).to_owned()).collect();
    TaskCommand::new(words, description.to_owned())
}

fn notes() -> [Note; 2] {
    let command = task(&["snap", "--keep", "", "é"], "nightly").unwrap();
    let kinds = [
        NoteKind::Bookmark(BookmarkName::new("before-upgrade").unwrap()),
        NoteKind::Task(command),
    ];
    kinds.map(|kind| Note {
        id: NoteId::from_bytes([7; 16]),
        submitted: 0x0102_0304_0506_0708,
        kind,
    })
}

fn report() -> NoteReport {
    let name = WriteName {
        generation: Generation::from_bytes([3; 16]),
        incarnation: Incarnation::new(2),
        seq: Seq::new(99),
    };
    NoteReport {
        exit: Some(3),
        began: 5,
        ended: 6,
        output: "two\nlines".to_owned(),
        ..NoteReport::of(&notes()[1], name, NoteState::Failed)
    }
}

#[test]
fn what_is_written_is_read() {
    for note in notes() {
        assert_eq!(Note::decode(&note.encode()), Ok(note));
    }
    let report = report();
    assert_eq!(report.command, "snap --keep '' 'é'");
    assert_eq!(NoteReport::decode(&report.encode()), Ok(report));
}

#[test]
fn the_longest_command_fits_and_one_more_byte_does_not() {
    let long = "x".repeat(TASK_COMMAND_BYTES_MAX - 3);
    let note = Note {
        kind: NoteKind::Task(task(&["a", &long], &"d".repeat(200)).unwrap()),
        ..notes()[0].clone()
    };
    assert_eq!(Note::decode(&note.encode()), Ok(note));
    assert!(matches!(
        task(&["a", &format!("{long}x")], ""),
        Err(NoteError::Long(_))
    ));
    assert!(task(&["a"; TASK_WORDS_MAX], "").is_ok());
    assert!(task(&["a"; TASK_WORDS_MAX + 1], "").is_err());
}

#[test]
fn a_program_is_a_name_and_no_path() {
    for wrong in ["", "/bin/sh", "../sh", "a/b", ".", "..", ".hidden", "a\0b"] {
        assert!(task(&[wrong], "").is_err(), "{wrong:?}");
    }
    assert!(task(&["a", "b\0c"], "").is_err());
    assert!(task(&["a"], "two\nlines").is_err());
    assert!(task(&["a"], &"x".repeat(201)).is_err());
    assert!(
        task(&["-n"], "").is_ok(),
        "it is a file name like any other"
    );
}

#[test]
fn bytes_of_others_are_checked_and_never_panic() {
    for good in notes() {
        let bytes = good.encode();
        for at in 0..bytes.len() {
            for flip in [1, 0x80] {
                let mut wrong = bytes.clone();
                wrong[at] ^= flip;
                // What is read is legal, so it is written again as it was.
                if let Ok(read) = Note::decode(&wrong) {
                    assert_eq!(read.encode(), wrong, "byte {at}");
                }
            }
        }
        assert!(Note::decode(&bytes[..4095]).is_err());
    }
    let bytes = report().encode();
    for at in 0..bytes.len() {
        let mut wrong = bytes.clone();
        wrong[at] ^= 0x81;
        if let Ok(read) = NoteReport::decode(&wrong) {
            assert_eq!(read.encode(), wrong, "byte {at}");
        }
        assert!(NoteReport::decode(&bytes[..at]).is_err());
    }
}

#[test]
fn whatever_a_report_says_it_fits_and_can_be_read() {
    let report = NoteReport {
        text: "ü\n".repeat(500),
        command: "c\u{1b}[2J".repeat(900),
        output: "\0é\r\n".repeat(5000),
        ..report()
    };
    let bytes = report.encode();
    assert!(bytes.len() <= NOTE_REPORT_BYTES_MAX);
    let read = NoteReport::decode(&bytes).unwrap();
    assert!(!read.output.contains('\r') && read.output.contains('\n'));
}

/// First columns of the table under a heading.
fn rows(heading: &str) -> Vec<(usize, usize, String)> {
    let section = &PAGE[PAGE.find(heading).unwrap() + heading.len()..];
    let section = section.split("\n## ").next().unwrap();
    let cells = section.lines().filter_map(|line| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        Some((
            cells.get(1)?.parse().ok()?,
            cells.get(2)?.parse().ok()?,
            cells.get(3)?.trim_matches('`').to_owned(),
        ))
    });
    cells.collect()
}

#[test]
fn the_page_says_what_the_code_does() {
    let note = notes()[1].encode();
    let field = |rows: &[(usize, usize, String)], bytes: &[u8], name: &str| {
        let (at, len, _) = rows.iter().find(|(_, _, field)| field == name).unwrap();
        bytes[*at..at + len].to_vec()
    };
    let table = rows("## Note\n");
    assert_eq!(field(&table, &note, "magic"), b"BLKRnote");
    assert_eq!(field(&table, &note, "version"), [1, 0]);
    assert_eq!(field(&table, &note, "kind"), [2]);
    assert_eq!(field(&table, &note, "id"), [7; 16]);
    assert_eq!(field(&table, &note, "submitted"), [8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(field(&table, &note, "text_bytes"), [7, 0]);
    assert_eq!(field(&table, &note, "words"), [4, 0]);
    assert_eq!(field(&table, &note, "words_bytes"), [16, 0]);
    assert!(field(&table, &note, "text").starts_with(b"nightly\0"));
    assert!(field(&table, &note, "command").starts_with(b"snap\0--keep\0\0"));
    let report = report().encode();
    let of_report = rows("## Report\n");
    assert_eq!(field(&of_report, &report, "seq")[0], 99);
    assert_eq!(field(&of_report, &report, "began")[0], 5);
    assert_eq!(field(&of_report, &report, "ended")[0], 6);
    assert_eq!(field(&of_report, &report, "state"), [6]);
    assert_eq!(field(&of_report, &report, "task"), [1]);
    assert_eq!(field(&of_report, &report, "has_exit"), [1]);
    assert_eq!(field(&of_report, &report, "exit"), [3]);
    assert_eq!(field(&of_report, &report, "command_bytes")[0], 19);
    assert_eq!(field(&of_report, &report, "output_bytes"), [9, 0]);
    for (table, whole) in [(table, NOTE_BYTES), (of_report, 96)] {
        let mut at = 0;
        for (offset, len, field) in table {
            assert_eq!(offset, at, "{field}");
            at += len;
        }
        assert_eq!(at, whole, "no gaps");
    }
    for state in NoteState::ALL {
        let row = format!("| {state} | {} |", state.number());
        assert!(PAGE.contains(&row), "{row}");
    }
}
