//! The format page says what the code does.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::frame::FrameKind;
use crate::handshake::RefuseCode;
use crate::limits::{FRAME_DATA_BYTES_MAX, FRAME_RECORDS_MAX, MAP_PART_BYTES_MAX};
use crate::read::data_state_number;
use crate::stream::FarewellCode;
use blkrep_types::DataState;
use std::fmt::Write as _;

const PAGE: &str = include_str!("../../../docs/format/wire.md");

type Fields = &'static [(&'static str, usize, usize)];

macro_rules! tables {
    ($($name:ident),+ $(,)?) => {
        &[$((stringify!($name), size_of::<$name>(), $name::FIELDS)),+]
    };
}

const TABLES: &[(&str, usize, Fields)] = tables![
    FrameHeader,
    Name,
    WriteNameBytes,
    AncestorBytes,
    HelloHead,
    HelloVolumeBytes,
    WelcomeHead,
    WelcomeVolumeBytes,
    RefuseHead,
    StartBody,
    MapPartHead,
    MapEndBody,
    DataHead,
    RecordHeader,
    PackedHead,
    AckBody,
    DigestsHead,
    DigestBytes,
    ContentHead,
    PulseBody,
    FarewellHead,
    JoinBody,
    JoinedBody,
    PlaceBody,
    AgainBody,
];

/// The first columns of the rows of the table after the line `after`.
fn rows(after: &str, columns: usize) -> Vec<String> {
    let mut lines = PAGE.lines().skip_while(|line| *line != after);
    assert!(lines.next().is_some(), "the page has the line '{after}'");
    let table = lines.skip_while(|line| !line.starts_with('|') || line.starts_with("|---"));
    let table = table.take_while(|line| line.starts_with('|'));
    let cells = |line: &str| {
        let cells = line.trim_matches('|').split('|').take(columns);
        cells
            .map(|cell| cell.trim().trim_matches('`'))
            .collect::<Vec<_>>()
            .join(" ")
    };
    table
        .filter(|line| !line.starts_with("|---") && !line.starts_with("| offset"))
        .map(cells)
        .collect()
}

#[test]
fn every_layout_is_on_the_page_with_its_offsets_and_sizes() {
    for (name, size, fields) in TABLES {
        let documented = rows(&format!("### `{name}` ({size} bytes)"), 3);
        let coded = fields
            .iter()
            .map(|(field, offset, len)| format!("{offset} {len} {field}"));
        assert_eq!(documented, coded.collect::<Vec<_>>(), "{name}");
    }
    assert_eq!(
        PAGE.matches("\n### `").count(),
        TABLES.len(),
        "no layout is on the page alone"
    );
}

fn numbers(head: &str, from: &[(String, u16)]) {
    let wanted: Vec<_> = from
        .iter()
        .map(|(word, number)| format!("{word} {number}"))
        .collect();
    assert_eq!(rows(head, 2), wanted, "{head}");
}

#[test]
fn every_number_is_on_the_page() {
    let codes = |codes: &[RefuseCode]| -> Vec<_> {
        codes
            .iter()
            .map(|code| (code.to_string(), code.number()))
            .collect()
    };
    numbers("| refusal | number |", &codes(RefuseCode::ALL));
    let farewells: Vec<_> = FarewellCode::ALL
        .iter()
        .map(|code| (code.to_string(), code.number()))
        .collect();
    numbers("| farewell | number |", &farewells);
    let states: Vec<_> = [
        DataState::Ok,
        DataState::Mirroring,
        DataState::MirrorRequired,
        DataState::RestoreRequired,
        DataState::NotReady,
        DataState::Reverted,
        DataState::Unknown,
    ]
    .iter()
    .map(|state| (state.to_string(), u16::from(data_state_number(*state))))
    .collect();
    numbers("| data state | number |", &states);
    let mut kinds = String::new();
    for kind in FrameKind::ALL {
        writeln!(kinds, "{kind} {} {}", kind.number(), kind.body_bytes_max()).unwrap();
    }
    let documented = rows("| kind | number | from | body bytes at most |", 4);
    let documented = documented.iter().fold(String::new(), |mut all, row| {
        let cells: Vec<_> = row.split(' ').collect();
        writeln!(all, "{} {} {}", cells[0], cells[1], cells[3]).unwrap();
        all
    });
    assert_eq!(documented, kinds);
}

#[test]
fn every_limit_is_on_the_page() {
    for limit in [
        format!("at most {FRAME_DATA_BYTES_MAX} in all"),
        format!("`record_count` | u32 | 1 to {FRAME_RECORDS_MAX} |"),
        format!("number of bits, 1 to {} |", MAP_PART_BYTES_MAX * 8),
        format!(
            "`digest_count` | u32 | 1 to {} |",
            crate::limits::DIGESTS_MAX
        ),
        format!(
            "`text_bytes` | u16 | 0 to {} |",
            crate::limits::TEXT_BYTES_MAX
        ),
        format!(
            "length of its path, 0 to {} |",
            crate::limits::PATH_BYTES_MAX
        ),
        format!(
            "at most {} bytes\nonce inflated",
            crate::limits::PACKED_PLAIN_MAX
        ),
        format!(
            "from version 3 on: 0, or 2 to {} |",
            crate::limits::CONNECTIONS_MAX
        ),
        format!(
            "at most {} bytes of a volume",
            crate::limits::CONTENT_BYTES_MAX
        ),
        format!("a body of at most {} bytes", crate::limits::JOINED_BODY_MAX),
        format!("at most {} unless", blkrep_types::limits::REQUEST_BYTES_MAX),
    ] {
        assert!(PAGE.contains(&limit), "{limit}");
    }
}
