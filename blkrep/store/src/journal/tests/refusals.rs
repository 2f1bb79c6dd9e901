//! What nobody can have written is refused by the name of its field, although every checksum is right.

use super::*;
use crate::layout::{BatchHead, JournalHead, RecordEntry, head_crc, put};
use blkrep_types::limits::REQUEST_BYTES_MAX;

const HEAD: usize = size_of::<BatchHead>();
const ENTRY: usize = size_of::<RecordEntry>();

fn refused<T: std::fmt::Debug>(found: Result<T, FormatError>, expected: &str) {
    match found {
        Err(FormatError::Field { field, .. }) => assert_eq!(field, expected),
        other => panic!("{expected}: {other:?}"),
    }
}

/// A good head of a journal, with one field changed.
fn head(field: &str, value: u64) -> Vec<u8> {
    let state = Journal::new().state;
    let mut block = vec![0; ByteLen::new(JOURNAL_BLOCK_BYTES).as_usize()];
    state.encode(&mut block);
    put(&mut block, JournalHead::FIELDS, field, value);
    let end = size_of::<JournalHead>();
    let crc = head_crc(&block[..end]);
    block[end - 4..end].copy_from_slice(&crc.to_le_bytes());
    block
}

#[test]
fn a_head_with_an_impossible_field_is_refused_by_its_name() {
    for (field, value) in [
        ("version", 0),
        ("bytes", 255),
        ("capacity", 0),
        ("capacity", JOURNAL_BLOCK_BYTES + 1),
        ("capacity", 1 << 61),
        ("position", 1),
        ("position", 1 << 63),
        ("number", 0),
        ("reserved", 1),
    ] {
        refused(JournalState::decode(&head(field, value)), field);
    }
    let good = head("version", 1);
    assert!(
        JournalState::decode(&good).is_ok(),
        "only the change is wrong"
    );
    assert!(matches!(
        JournalState::decode(&good[..100]),
        Err(FormatError::Short { .. })
    ));
}

#[test]
fn a_journal_of_a_newer_program_is_left_alone() {
    let error = JournalState::choose(&head("version", 1), &head("version", 2)).unwrap_err();
    assert!(error.is_newer(), "{error}");
}

/// What [`batch`] changes.
enum Change<'a> {
    Head(&'a str, u64),
    Entry(usize, &'a str, u64),
}
use Change::{Entry, Head};

/// A good batch of two records with data and one without, with some fields changed.
fn batch(changes: &[Change<'_>]) -> Result<Batch, FormatError> {
    let records = [data(1, 512), data(2, 512), bare(3, RecordKind::Void)];
    let sealed = Journal::new().seal(&records).unwrap();
    let mut bytes = sealed.slice().with(<[u8]>::to_vec);
    for change in changes {
        match change {
            Head(field, value) => put(&mut bytes, BatchHead::FIELDS, field, *value),
            Entry(index, field, value) => {
                let entry = &mut bytes[HEAD + index * ENTRY..];
                put(entry, RecordEntry::FIELDS, field, *value);
            }
        }
    }
    let table = crc32fast::hash(&bytes[HEAD..HEAD + 3 * ENTRY]);
    put(&mut bytes, BatchHead::FIELDS, "table_crc", table.into());
    let crc = head_crc(&bytes[..HEAD]);
    put(&mut bytes, BatchHead::FIELDS, "crc", crc.into());
    let position = sealed.info().position;
    let slice = buffer().part(0..bytes.len());
    slice.write(0, &bytes);
    Batch::read(slice, Vec::new(), &ID, position)
}

#[test]
fn a_batch_with_an_impossible_field_is_refused_by_its_name() {
    assert_eq!(
        batch(&[]).unwrap().records().len(),
        3,
        "the checksums are right"
    );
    for (field, value) in [
        ("journal", 1),
        ("position", 1 << 40),
        ("number", u64::MAX),
        ("record_count", 0),
        ("record_count", 1 << 30),
        ("bytes", 513),
        ("bytes", 0),
        ("bytes", 3 * JOURNAL_BLOCK_BYTES),
        ("reserved", 1),
        ("first_seq", 2),
    ] {
        refused(batch(&[Head(field, value)]), field);
    }
    refused(batch(&[Head("last_seq", 4)]), "first_seq");
    let error = batch(&[Head("version", 2)]).unwrap_err();
    assert!(error.is_newer(), "{error}");
}

#[test]
fn a_batch_with_an_impossible_record_is_refused_whole() {
    for change in [
        Entry(0, "kind", 9),
        Entry(0, "argument", 2),
        Entry(0, "len", 0),
        Entry(0, "len", REQUEST_BYTES_MAX + 512),
        Entry(0, "offset", u64::MAX),
        Entry(2, "offset", 512),
        Entry(2, "data_crc", 1),
        // Between two good names, and not between them.
        Entry(1, "seq", 1),
        Entry(1, "seq", 3),
        Entry(1, "incarnation", 2),
    ] {
        refused(batch(&[change]), "table");
    }
}

#[test]
fn a_batch_that_is_cut_off_is_refused() {
    let slice = Journal::new().seal(&[data(1, 512)]).unwrap().slice();
    for len in [HEAD - 1, HEAD + ENTRY - 1] {
        let cut = Batch::read(slice.part(0..len), Vec::new(), &ID, 0);
        assert!(matches!(cut, Err(FormatError::Short { .. })), "{cut:?}");
    }
}
