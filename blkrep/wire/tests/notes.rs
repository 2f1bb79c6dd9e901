//! Version 3: notes in the stream, and what a target says of them.
#![allow(clippy::unwrap_used, missing_docs)]

use blkrep_io::{Region, Slice};
use blkrep_types::{
    BookmarkName, Incarnation, NOTE_BYTES, Note, NoteId, NoteKind, NoteReport, NoteState, Record,
    RecordKind, Seq, VolumeIndex, WriteName,
};
use blkrep_wire::limits::buffer_bytes;
use blkrep_wire::{
    Decoder, Encoder, Entry, Frame, Message, VERSION_NOTES, VERSION_PACKED, WireError,
};

fn note() -> Note {
    Note {
        id: NoteId::from_bytes([7; 16]),
        submitted: 5,
        kind: NoteKind::Bookmark(BookmarkName::new("monday").unwrap()),
    }
}

fn report() -> Message {
    let report = NoteReport::of(&note(), WriteName::NONE, NoteState::Set);
    Message::Note(Box::new(report))
}

fn decoder(version: u16, bytes: &Slice) -> Decoder {
    let mut decoder = Decoder::new(Region::heap(buffer_bytes(64 << 10)).whole(), 64 << 10);
    decoder.agree(version);
    decoder.space().write(0, &bytes.with(<[u8]>::to_vec));
    decoder.received(bytes.len());
    decoder
}

fn encoder(version: u16) -> Encoder {
    let mut encoder = Encoder::new();
    encoder.agree(version);
    encoder
}

#[test]
fn what_became_of_a_note_arrives_as_it_was_sent() {
    let region = Region::heap(8192);
    let len = encoder(VERSION_NOTES)
        .message(&report(), &region.whole())
        .unwrap();
    let mut decoder = decoder(VERSION_NOTES, &region.slice(0..len));
    match decoder.next().unwrap().unwrap() {
        Frame::Message(found) => assert_eq!(found, report()),
        Frame::Data(data) => panic!("{data:?}"),
    }
}

#[test]
fn before_version_3_nobody_says_what_became_of_a_note() {
    let region = Region::heap(8192);
    let len = encoder(VERSION_PACKED)
        .message(&report(), &region.whole())
        .unwrap();
    let error = decoder(VERSION_PACKED, &region.slice(0..len))
        .next()
        .unwrap_err();
    assert_eq!(error, WireError::Kind { found: 15 });
}

#[test]
fn a_report_that_makes_no_sense_is_refused() {
    let region = Region::heap(8192);
    let len = encoder(VERSION_NOTES)
        .message(&report(), &region.whole())
        .unwrap();
    let good = region.slice(0..len).with(<[u8]>::to_vec);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let region = Region::heap(8192);
        region.whole().write(0, &bad);
        let read = decoder(VERSION_NOTES, &region.slice(0..len)).next();
        assert!(read.is_err() || matches!(read, Ok(None)), "byte {at}");
    }
}

#[test]
fn a_note_in_the_stream_arrives_with_its_bytes() {
    let bytes = Region::heap(NOTE_BYTES);
    bytes.whole().write(0, &note().encode());
    for task in [false, true] {
        let record = Record {
            incarnation: Incarnation::new(1),
            seq: Seq::new(9),
            kind: RecordKind::Note { task },
            volume: VolumeIndex::default(),
            extent: None,
        };
        let entry = Entry {
            record,
            bytes: Some(bytes.whole()),
        };
        let region = Region::heap(16 << 10);
        let len = encoder(VERSION_NOTES)
            .data(&[entry], &region.whole())
            .unwrap();
        let mut decoder = decoder(VERSION_NOTES, &region.slice(0..len));
        let Some(Frame::Data(frame)) = decoder.next().unwrap() else {
            panic!("data was sent");
        };
        let found = frame.entries().next().unwrap();
        assert_eq!(found.record, record);
        assert_eq!(found.bytes.unwrap().with(Note::decode), Ok(note()));
    }
}
