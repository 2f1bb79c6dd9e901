//! Version 3: what a target's base holds, for a source that has lost its own.
#![allow(clippy::unwrap_used, missing_docs)]

use blkrep_io::{Region, Slice};
use blkrep_types::{ByteLen, ByteOffset, Extent, Incarnation, Seq, VolumeIndex};
use blkrep_wire::limits::{CONTENT_BYTES_MAX, TARGET_BODY_MAX, buffer_bytes};
use blkrep_wire::{Content, Decoder, Encoder, Frame, FrameKind, Message, VERSION_READS, WireError};

fn content(len: usize) -> Message {
    let len_bytes = ByteLen::new(u64::try_from(len).unwrap());
    Message::Content(Content {
        incarnation: Incarnation::new(3),
        seq: Seq::new(9),
        volume: VolumeIndex::new(2),
        extent: Extent::new(ByteOffset::new(1 << 40), len_bytes).unwrap(),
        bytes: Some((0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()),
    })
}

fn encode(version: u16, message: &Message) -> Slice {
    let region = Region::heap(TARGET_BODY_MAX);
    let mut encoder = Encoder::new();
    encoder.agree(version);
    let len = encoder.message(message, &region.whole()).unwrap();
    region.slice(0..len)
}

fn decoder(version: u16, bytes: &Slice) -> Decoder {
    let buffer = Region::heap(buffer_bytes(TARGET_BODY_MAX)).whole();
    let mut decoder = Decoder::new(buffer, TARGET_BODY_MAX);
    decoder.agree(version);
    decoder.space().write(0, &bytes.with(<[u8]>::to_vec));
    decoder.received(bytes.len());
    decoder
}

#[test]
fn the_largest_part_of_an_extent_arrives_as_it_was_sent() {
    let message = content(CONTENT_BYTES_MAX);
    let mut decoder = decoder(VERSION_READS, &encode(VERSION_READS, &message));
    match decoder.next().unwrap().unwrap() {
        Frame::Message(found) => assert_eq!(found, message),
        Frame::Data(data) => panic!("{data:?}"),
    }
}

#[test]
fn a_bit_that_flips_in_what_was_read_is_noticed() {
    let good = encode(VERSION_READS, &content(4096));
    for at in [32, 40, 64, 64 + 2000, 64 + 4095] {
        let mut bytes = good.with(<[u8]>::to_vec);
        bytes[at] ^= 0x10;
        good.write(0, &bytes);
        let found = decoder(VERSION_READS, &good).next().unwrap_err();
        assert!(matches!(found, WireError::BodyChecksum { .. }), "{found}");
        bytes[at] ^= 0x10;
        good.write(0, &bytes);
    }
}

#[test]
fn before_version_3_nobody_answers_reads() {
    let older = VERSION_READS - 1;
    let found = decoder(older, &encode(older, &content(512))).next();
    assert!(
        matches!(found, Err(WireError::Kind { found: 20 })),
        "{found:?}"
    );
}

#[test]
fn the_bytes_of_an_answer_never_change() {
    let bytes = encode(VERSION_READS, &content(1)).with(<[u8]>::to_vec);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        "424c4b7203001400210000002100000000000000000000005ae9375f48b6064d030000000000000009000000000000000000000000010000010000000200010000"
    );
}

/// What a field must not say, at its place in the body.
#[test]
fn an_answer_that_contradicts_itself_is_refused() {
    for (at, value, field) in [
        (23, 255, "offset"),
        (25, 255, "bytes"),
        (26, 1, "len"),
        (28, 64, "volume"),
        (30, 2, "known"),
        (30, 0, "end"),
        (31, 1, "reserved"),
    ] {
        let good = encode(VERSION_READS, &content(512));
        let mut bytes = good.with(<[u8]>::to_vec);
        bytes[32 + at] = value;
        let crc = crc32fast::hash(&bytes[32..]);
        bytes[24..28].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..28]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        good.write(0, &bytes);
        let found = decoder(VERSION_READS, &good).next().unwrap_err();
        let kind = FrameKind::Content;
        assert_eq!(found, WireError::Field { kind, field }, "{value} at {at}");
    }
}
