//! Compares the normative pages in `docs/format` with the layouts: offset, size and name of every
//! field, in order.

use crate::layout::{
    AncestorEntry, GroupHead, LinkEntry, MapHead, MapSector, NameBytes, QueueHead, TextName,
    VolumeEntry,
};

const MAPS: &str = include_str!("../../../docs/format/source-maps.md");
const QUEUE: &str = include_str!("../../../docs/format/disk-queue.md");
const SUPERBLOCK: &str = include_str!("../../../docs/format/source-superblock.md");

/// Rows `| offset | bytes | field | … |` of the first table under the heading `title`.
fn table(page: &str, title: &str) -> Vec<(String, usize, usize)> {
    let heading = format!("## {title}\n");
    let start = page
        .find(&heading)
        .unwrap_or_else(|| panic!("no section '{title}'"));
    let section = &page[start + heading.len()..];
    let section = section.split("\n## ").next().expect("the section itself");
    let table = section.lines().skip_while(|line| !line.starts_with('|'));
    let rows = table.take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let number = |cell: &str| cell.parse().unwrap_or_else(|_| panic!("number in '{row}'"));
        let field = cells[3].trim_matches('`').to_owned();
        (field, number(cells[1]), number(cells[2]))
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
fn the_map_page_says_what_the_code_does() {
    compare(MAPS, "Write name", NameBytes::FIELDS);
    compare(MAPS, "Head", MapHead::FIELDS);
    compare(MAPS, "Sector", MapSector::FIELDS);
}

#[test]
fn the_queue_page_says_what_the_code_does() {
    compare(QUEUE, "Head", QueueHead::FIELDS);
}

#[test]
fn the_superblock_page_says_what_the_code_does() {
    compare(SUPERBLOCK, "Name", TextName::FIELDS);
    compare(SUPERBLOCK, "Head", GroupHead::FIELDS);
    compare(SUPERBLOCK, "Generation", AncestorEntry::FIELDS);
    compare(SUPERBLOCK, "Volume", VolumeEntry::FIELDS);
    compare(SUPERBLOCK, "Link", LinkEntry::FIELDS);
}
