//! A connection's bytes, cut anywhere, into the decoder of a running stream.
//!
//! Promises: no panic, no frame that the encoder would not have made of it, no more memory than a frame
//! may have, and the same end however the stream was cut.
#![no_main]

use blkrep_fuzz::{Input, sealed, within};
use blkrep_io::{Region, Slice};
use blkrep_wire::limits::{PACKED_PLAIN_MAX, SOURCE_BODY_MAX, TARGET_BODY_MAX, buffer_bytes};
use blkrep_wire::{
    Decoder, Encoder, Entry, FRAME_HEADER_BYTES, Frame, FrameKind, Inflater, WireError,
};
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;

/// Owned parts of one message, its list of names included: several times the largest body that has any.
const HELD_MAX: usize = 4 << 20;

/// Buffers are made once, as a connection's are.
struct Buffers {
    source: Decoder,
    target: Decoder,
    sent: Slice,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::new(Buffers {
        source: source(),
        target: Decoder::new(Region::heap(buffer_bytes(TARGET_BODY_MAX)).whole(), TARGET_BODY_MAX),
        sent: Region::heap(buffer_bytes(SOURCE_BODY_MAX)).whole(),
    });
}

/// The decoder of a target, with all it takes.
fn source() -> Decoder {
    let buffer = Region::heap(buffer_bytes(SOURCE_BODY_MAX)).whole();
    let mut decoder = Decoder::new(buffer, SOURCE_BODY_MAX);
    let inflater = Inflater::new(Region::heap(PACKED_PLAIN_MAX).whole());
    decoder.inflate_with(inflater.expect("memory for a context"));
    decoder
}

const RAW: u8 = 1;
const TO_TARGET: u8 = 2;
const WRONG_NUMBER: u8 = 1;
const WRONG_VERSION: u8 = 2;
const WRONG_DATA: u8 = 4;
const RAW_PACKED: u8 = 8;

/// Frames with right checksums, `(kind, flags, piece)` each, unless the input is to be taken as it is.
fn stream(input: &mut Input<'_>, choice: u8) -> Vec<u8> {
    if choice & RAW != 0 {
        return input.rest().to_vec();
    }
    let mut stream = Vec::new();
    let mut number = 0;
    while !input.is_empty() {
        let (kind, flags) = (u16::from(input.byte()), input.byte());
        let mut body = input.piece().to_vec();
        let mut checked = body.len();
        if kind == FrameKind::Data.number() && flags & WRONG_DATA == 0 {
            checked = sealed::data_body(&mut body);
        }
        if kind == FrameKind::Packed.number() && flags & RAW_PACKED == 0 {
            let inner = sealed::data_body(&mut body);
            body = sealed::packed_body(&body, inner);
            checked = body.len();
        }
        let version = if flags & WRONG_VERSION == 0 { 1 } else { 2 };
        let wrong = u64::from(flags & WRONG_NUMBER);
        stream.extend(sealed::frame(version, kind, number + wrong, &body, checked));
        number += 1;
    }
    stream
}

/// What the encoder makes of a frame that was taken.
fn again(encoder: &mut Encoder, frame: &Frame, to: &Slice) -> usize {
    match frame {
        Frame::Message(message) => encoder.message(message, to).expect("it fits"),
        Frame::Data(data) => {
            let entries: Vec<_> = data
                .entries()
                .map(|received| Entry {
                    record: received.record,
                    bytes: received.bytes,
                })
                .collect();
            encoder.data(&entries, to).expect("it fits")
        }
    }
}

/// Bytes of the frame at the front, if it is a packed one. A compressor may make others of the same.
fn packed_bytes(stream: &[u8]) -> Option<usize> {
    let kind = u16::from_le_bytes(stream.get(6..8)?.try_into().ok()?);
    let body = u32::from_le_bytes(stream.get(8..12)?.try_into().ok()?);
    let body = usize::try_from(body).expect("64-bit platform");
    (kind == FrameKind::Packed.number()).then_some(FRAME_HEADER_BYTES + body)
}

/// Feeds a stream in pieces; how many bytes were taken as frames, and the error at the end.
fn feed(
    decoder: &mut Decoder,
    sent: &Slice,
    stream: &[u8],
    cuts: &[u8],
) -> (usize, Option<WireError>) {
    decoder.reset();
    let mut encoder = Encoder::new();
    let mut rest = stream;
    let mut taken = 0;
    let mut cut = cuts.iter().cycle();
    while !rest.is_empty() {
        let space = decoder.space();
        assert!(!space.is_empty(), "there is always room for the next bytes");
        let wanted = cut
            .next()
            .map_or(usize::MAX, |cut| 1 + usize::from(*cut) * 7);
        let (now, later) = rest.split_at(wanted.min(rest.len()).min(space.len()));
        space.write(0, now);
        decoder.received(now.len());
        rest = later;
        loop {
            match decoder.next() {
                Ok(Some(frame)) => {
                    let len = again(&mut encoder, &frame, sent);
                    if let Some(packed) = packed_bytes(&stream[taken..]) {
                        assert!(len <= FRAME_HEADER_BYTES + PACKED_PLAIN_MAX, "{len} bytes");
                        taken += packed;
                        continue;
                    }
                    let same = sent
                        .part(0..len)
                        .with(|bytes| stream[taken..].starts_with(bytes));
                    assert!(same, "what was taken is what this side would have sent");
                    taken += len;
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next().unwrap_err(), error, "it is not forgotten");
                    return (taken, Some(error));
                }
            }
        }
    }
    (taken, None)
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let choice = input.byte();
    let cuts = input.take(4);
    let stream = stream(&mut input, choice);
    BUFFERS.with_borrow_mut(|buffers| {
        let decoder = match choice & TO_TARGET {
            0 => &mut buffers.target,
            _ => &mut buffers.source,
        };
        let whole = within(HELD_MAX, || feed(decoder, &buffers.sent, &stream, &[]));
        let cut = within(HELD_MAX, || feed(decoder, &buffers.sent, &stream, cuts));
        // The bytes that an error shows depend on how many had come.
        let end = |(taken, error): (usize, Option<WireError>)| {
            (taken, error.map(|e| std::mem::discriminant(&e)))
        };
        assert_eq!(end(whole), end(cut), "however it was cut");
    });
});
