//! Compares the normative pages in `docs/format` with the layouts: offset, size and name of every
//! field, in order.

use crate::layout::{
    AncestorEntry, BatchHead, JournalHead, MapSector, NameBytes, NotePage, RecordEntry,
    ReplicaHead, TextName, VolumeEntry,
};

const JOURNAL: &str = include_str!("../../../docs/format/journal.md");
const SUPERBLOCK: &str = include_str!("../../../docs/format/target-superblock.md");

const NOTES: &str = include_str!("../../../docs/format/notes.md");

/// Rows `| offset | bytes | field | … |` of the first table under the heading that ends in `title`.
fn table(page: &str, title: &str) -> Vec<(String, usize, usize)> {
    let heading = format!("## {title}\n");
    let start = page
        .find(&heading)
        .unwrap_or_else(|| panic!("no section '{title}'"));
    let section = &page[start + heading.len()..];
    let section = section
        .split("\n## ")
        .next()
        .expect("at least the section itself");
    let table = section.lines().skip_while(|line| !line.starts_with('|'));
    let rows = table.take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let number = |cell: &str| cell.parse().unwrap_or_else(|_| panic!("number in '{row}'"));
        (
            cells[3].trim_matches('`').to_owned(),
            number(cells[1]),
            number(cells[2]),
        )
    })
    .collect()
}

fn compare(page: &str, title: &str, fields: &[(&str, usize, usize)]) {
    let expected: Vec<_> = fields
        .iter()
        .map(|(name, at, len)| ((*name).to_owned(), *at, *len))
        .collect();
    assert_eq!(table(page, title), expected, "section '{title}'");
}

#[test]
fn the_journal_page_says_what_the_code_does() {
    compare(JOURNAL, "Write name", NameBytes::FIELDS);
    compare(JOURNAL, "Head", JournalHead::FIELDS);
    compare(JOURNAL, "Batch", BatchHead::FIELDS);
    compare(JOURNAL, "Record", RecordEntry::FIELDS);
}

#[test]
fn the_superblock_page_says_what_the_code_does() {
    compare(SUPERBLOCK, "Name", TextName::FIELDS);
    compare(SUPERBLOCK, "Head", ReplicaHead::FIELDS);
    compare(SUPERBLOCK, "Generation", AncestorEntry::FIELDS);
    compare(SUPERBLOCK, "Volume", VolumeEntry::FIELDS);
    compare(SUPERBLOCK, "Map", MapSector::FIELDS);
}

#[test]
fn the_notes_page_says_what_the_code_does() {
    compare(NOTES, "Page", NotePage::FIELDS);
    assert!(NOTES.contains(&format!("{} pages", crate::notes::NOTE_PAGES)));
}
