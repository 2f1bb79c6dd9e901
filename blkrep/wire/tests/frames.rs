//! Frames survive the way there unchanged, and nothing else survives it.
#![allow(clippy::unwrap_used, missing_docs)]

mod samples;

use blkrep_io::Region;
use blkrep_types::{ByteLen, ByteOffset};
use blkrep_types::{Extent, Incarnation, Record, RecordKind, Seq, VolumeIndex};
use blkrep_wire::limits::{TARGET_BODY_MAX, buffer_bytes};
use blkrep_wire::{DataPlan, Decoder, Encoder, Entry, Frame, FrameKind, Message, WireError};
use proptest::prelude::*;
use samples::{data_entries, messages, messages_of_3};

fn encode(message: &Message) -> Vec<u8> {
    let region = Region::heap(1 << 20);
    let len = Encoder::new().message(message, &region.whole()).unwrap();
    region.slice(0..len).with(<[u8]>::to_vec)
}

fn encode_data(entries: &[Entry]) -> Vec<u8> {
    let region = Region::heap(1 << 20);
    let len = Encoder::new().data(entries, &region.whole()).unwrap();
    region.slice(0..len).with(<[u8]>::to_vec)
}

fn frames_of_1() -> Vec<(String, Vec<u8>)> {
    let mut frames: Vec<_> = messages()
        .iter()
        .map(|message| (message.kind().to_string(), encode(message)))
        .collect();
    frames.push(("data".to_owned(), encode_data(&data_entries())));
    frames
}

fn every_frame() -> Vec<(String, Vec<u8>)> {
    let mut frames = frames_of_1();
    let more = messages_of_3();
    let more = more.iter();
    frames.extend(more.map(|message| (message.kind().to_string(), encode(message))));
    frames
}

/// For bodies that every sample fits in.
fn decoder() -> Decoder {
    const BODY_BYTES_MAX: usize = 8 << 10;
    Decoder::new(
        Region::heap(buffer_bytes(BODY_BYTES_MAX)).whole(),
        BODY_BYTES_MAX,
    )
}

fn feed(decoder: &mut Decoder, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let space = decoder.space();
        let (now, later) = bytes.split_at(bytes.len().min(space.len()));
        space.write(0, now);
        decoder.received(now.len());
        bytes = later;
    }
}

#[test]
fn every_message_arrives_as_it_was_sent() {
    let region = Region::heap(1 << 20);
    let (mut encoder, mut decoder) = (Encoder::new(), decoder());
    let all: Vec<_> = messages().into_iter().chain(messages_of_3()).collect();
    for message in &all {
        let len = encoder.message(message, &region.whole()).unwrap();
        feed(&mut decoder, &region.slice(0..len).with(<[u8]>::to_vec));
        match decoder.next().unwrap().unwrap() {
            Frame::Message(found) => assert_eq!(found, *message),
            Frame::Data(data) => panic!("{data:?} where {message:?} was sent"),
        }
        assert!(decoder.next().unwrap().is_none() && decoder.is_empty());
    }
    let covered: Vec<_> = all.iter().map(Message::kind).collect();
    let all = FrameKind::ALL.iter().filter(|kind| {
        use FrameKind::{Content, Data, Note, Packed};
        ![Data, Packed, Note, Content].contains(kind)
    });
    assert!(
        all.clone().all(|kind| covered.contains(kind)),
        "every kind has a sample"
    );
}

#[test]
fn every_record_arrives_with_its_bytes() {
    let entries = data_entries();
    let mut decoder = decoder();
    feed(&mut decoder, &encode_data(&entries));
    let Frame::Data(frame) = decoder.next().unwrap().unwrap() else {
        panic!("data was sent");
    };
    assert_eq!(frame.record_count(), entries.len());
    assert_eq!(frame.entries().len(), entries.len());
    let mut data_bytes = 0;
    for (found, sent) in frame.entries().zip(&entries) {
        assert_eq!(found.record, sent.record);
        let crc = |slice: &blkrep_io::Slice| slice.with(crc32fast::hash);
        assert_eq!(found.data_crc, sent.bytes.as_ref().map_or(0, crc));
        let found = found.bytes.map(|bytes| bytes.with(<[u8]>::to_vec));
        let sent = sent.bytes.as_ref().map(|bytes| bytes.with(<[u8]>::to_vec));
        data_bytes += sent.as_ref().map_or(0, Vec::len);
        assert_eq!(found, sent);
    }
    assert_eq!(frame.data_bytes(), data_bytes);
}

#[test]
fn the_bytes_of_version_1_never_change() {
    let golden = include_str!("golden/v1.txt");
    let mut found = String::new();
    for (name, bytes) in frames_of_1() {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        found += &format!("{name} {hex}\n");
    }
    assert!(golden == found, "the frames are now:\n{found}");
}

#[test]
fn the_bytes_of_version_3_never_change() {
    let golden = include_str!("golden/v3.txt");
    let mut found = String::new();
    for message in messages_of_3() {
        let bytes = encode(&message);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        found += &format!("{} {hex}\n", message.kind());
    }
    assert!(golden == found, "the frames are now:\n{found}");
}

/// What a field must not say, at its place in the body.
#[test]
fn what_no_session_can_have_is_refused() {
    let of = |kind| {
        let mut all = messages_of_3().into_iter();
        encode(&all.find(|message| message.kind() == kind).unwrap())
    };
    for (kind, at, value, field) in [
        (FrameKind::Join, 2, 0, "index"),
        (FrameKind::Join, 2, 16, "index"),
        (FrameKind::Joined, 0, 0, "index"),
        (FrameKind::Joined, 0, 16, "index"),
        (FrameKind::Welcome, 129, 1, "connections"),
        (FrameKind::Welcome, 129, 17, "connections"),
        (FrameKind::Welcome, 129, 0, "session"),
        (FrameKind::Welcome, 0, 2, "connections"),
        (FrameKind::Start, 81, 1, "connections"),
        (FrameKind::Start, 81, 17, "connections"),
        (FrameKind::Place, 4, 1, "reserved"),
        (FrameKind::Again, 4, 1, "lost"),
        (FrameKind::Again, 7, 1, "reserved"),
        (FrameKind::Welcome, 130, 2, "reads"),
    ] {
        let mut bytes = of(kind);
        bytes[32 + at] = value;
        let crc = crc32fast::hash(&bytes[32..]);
        bytes[24..28].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..28]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        let mut decoder = decoder();
        feed(&mut decoder, &bytes);
        let wrong = WireError::Field { kind, field };
        assert_eq!(decoder.next().unwrap_err(), wrong, "{value} at {at}");
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    for (name, good) in every_frame() {
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            let mut decoder = decoder();
            feed(&mut decoder, &bad);
            let error = decoder
                .next()
                .expect_err(&format!("{name}: bit in byte {at}"));
            assert_eq!(decoder.next().unwrap_err(), error, "and is not forgotten");
        }
    }
}

#[test]
fn every_truncated_frame_waits_for_the_rest() {
    for (name, good) in every_frame() {
        for len in (0..good.len()).step_by(7) {
            let mut decoder = decoder();
            feed(&mut decoder, &good[..len]);
            assert!(decoder.next().unwrap().is_none(), "{name} cut to {len}");
            feed(&mut decoder, &good[len..]);
            assert!(
                decoder.next().unwrap().is_some(),
                "{name} completed after {len}"
            );
        }
    }
}

/// A header with these fields and a right checksum.
fn header(version: u16, kind: u16, body: u32, checked: u32, number: u64) -> Vec<u8> {
    let mut bytes = b"BLKr".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(body.to_le_bytes());
    bytes.extend(checked.to_le_bytes());
    bytes.extend(number.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

#[test]
fn a_wrong_header_is_refused_before_its_body_is_waited_for() {
    let body = u32::try_from(TARGET_BODY_MAX).unwrap();
    let kind = FrameKind::Ack;
    for (bytes, expected) in [
        (
            header(2, 8, 128, 128, 0),
            WireError::Version {
                found: 2,
                expected: 1,
            },
        ),
        (header(1, 99, 128, 128, 0), WireError::Kind { found: 99 }),
        (
            header(1, 8, 128, 128, 1),
            WireError::Number {
                found: 1,
                expected: 0,
            },
        ),
        (
            header(1, 8, body + 1, body + 1, 0),
            WireError::Length {
                kind,
                len: u64::from(body) + 1,
            },
        ),
        (
            header(1, 8, u32::MAX, u32::MAX, 0),
            WireError::Length {
                kind,
                len: u32::MAX.into(),
            },
        ),
        (
            header(1, 8, 128, 127, 0),
            WireError::Length { kind, len: 128 },
        ),
        (
            b"GET / HTTP/1.1".to_vec(),
            WireError::Magic {
                found: u32::from_le_bytes(*b"GET "),
            },
        ),
        (
            b"G".to_vec(),
            WireError::Magic {
                found: u32::from(b'G'),
            },
        ),
    ] {
        let mut decoder = Decoder::new(
            Region::heap(buffer_bytes(TARGET_BODY_MAX)).whole(),
            TARGET_BODY_MAX,
        );
        feed(&mut decoder, &bytes);
        assert_eq!(decoder.next().unwrap_err(), expected);
    }
}

#[test]
fn a_refusal_is_understood_whatever_version_was_agreed_on() {
    let refusal = messages()
        .into_iter()
        .find(|m| m.kind() == FrameKind::Refuse)
        .unwrap();
    let mut decoder = decoder();
    decoder.agree(7);
    feed(&mut decoder, &encode(&refusal));
    assert!(matches!(
        decoder.next().unwrap(),
        Some(Frame::Message(Message::Refuse(_)))
    ));
}

/// A fuzzer's: the target made a map for a volume of eight exabytes, and ended for want of memory.
#[test]
fn a_hello_whose_map_no_memory_holds_is_refused() {
    for (len, fits) in [(1_u64 << 47, true), (1 << 49, false), (1 << 62, false)] {
        let Some(Message::Hello(mut hello)) = messages().into_iter().next() else {
            panic!("a hello is the first message");
        };
        hello.volumes[0].len = ByteLen::new(len);
        let mut decoder = decoder();
        feed(&mut decoder, &encode(&Message::Hello(hello)));
        assert_eq!(decoder.next().is_ok(), fits, "{len}");
    }
}

#[test]
fn another_decoder_goes_on_after_the_first_frame() {
    let region = Region::heap(1 << 20);
    let (mut encoder, mut first, mut second) = (Encoder::new(), decoder(), decoder());
    second.continue_after_first();
    for decoder in [&mut first, &mut second] {
        let len = encoder.message(&Message::Ping(1), &region.whole()).unwrap();
        feed(decoder, &region.slice(0..len).with(<[u8]>::to_vec));
        assert!(matches!(
            decoder.next(),
            Ok(Some(Frame::Message(Message::Ping(1))))
        ));
        assert!(decoder.is_empty());
    }
}

#[test]
fn a_frame_takes_what_its_plan_says_and_no_more() {
    let record = |seq: u64, len: u64| Record {
        incarnation: Incarnation::new(1),
        seq: Seq::new(seq),
        kind: RecordKind::Data { mirror: false },
        volume: VolumeIndex::new(0),
        extent: Some(Extent::new(ByteOffset::new(0), ByteLen::new(len)).unwrap()),
    };
    let mut plan = DataPlan::default();
    assert!(plan.add(&record(1, 4096), 32 + 8 + 40 + 4096));
    assert!(
        !plan.add(&record(2, 512), 32 + 8 + 40 + 4096),
        "the buffer is full"
    );
    assert_eq!((plan.records(), plan.data_bytes()), (1, 4096));
    let mut plan = DataPlan::default();
    let taken = (1..)
        .take_while(|seq| plan.add(&record(*seq, 512), usize::MAX))
        .count();
    assert_eq!(taken, blkrep_wire::limits::FRAME_RECORDS_MAX);
    let mut plan = DataPlan::default();
    let taken = (1..)
        .take_while(|seq| plan.add(&record(*seq, 1 << 20), usize::MAX))
        .count();
    assert_eq!(taken, 4);
    let region = Region::heap(8192);
    let bytes = Some(region.slice(0..4096));
    let entries = [Entry {
        record: record(1, 4096),
        bytes,
    }];
    let mut encoder = Encoder::new();
    assert_eq!(encoder.data(&entries, &region.slice(0..4096)), None);
    assert_eq!(encoder.data(&[], &region.whole()), None);
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1_usize..5000, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_stream_cut_into_any_pieces_arrives_whole(pieces in pieces(), order in prop::collection::vec(0_usize..14, 1..20)) {
        let region = Region::heap(1 << 20);
        let mut encoder = Encoder::new();
        let (messages, entries) = (messages(), data_entries());
        let mut stream = Vec::new();
        for index in &order {
            let len = match messages.get(*index) {
                Some(message) => encoder.message(message, &region.whole()).unwrap(),
                None => encoder.data(&entries, &region.whole()).unwrap(),
            };
            stream.extend(region.slice(0..len).with(<[u8]>::to_vec));
        }
        // A buffer of one frame forces the partial frames to move.
        let body = 64 << 10;
        let mut decoder = Decoder::new(Region::heap(body + 32).whole(), body);
        let mut rest = &stream[..];
        let mut frames = 0;
        let mut cuts = pieces.iter().cycle();
        while !rest.is_empty() {
            let space = decoder.space();
            prop_assert!(!space.is_empty());
            let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()).min(space.len()));
            space.write(0, now);
            decoder.received(now.len());
            rest = later;
            while let Some(frame) = decoder.next().unwrap() {
                let kind = messages.get(order[frames]).map_or(FrameKind::Data, Message::kind);
                prop_assert_eq!(frame.kind(), kind);
                frames += 1;
            }
        }
        prop_assert_eq!(frames, order.len());
        prop_assert!(decoder.is_empty());
    }

    #[test]
    fn rubbish_never_becomes_a_frame(bytes in prop::collection::vec(any::<u8>(), 0..4096), lead in 0_usize..5) {
        let mut stream = b"BLKr"[..lead.min(4)].to_vec();
        stream.extend(bytes);
        let mut decoder = Decoder::new(Region::heap(buffer_bytes(8192)).whole(), 8192);
        feed(&mut decoder, &stream);
        prop_assert!(!matches!(decoder.next(), Ok(Some(_))));
    }

    #[test]
    fn any_body_under_right_checksums_is_taken_or_refused(kind in 1_u16..19, body in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), any::<u8>()], 0..600), checked in 0_usize..600) {
        let data = kind == FrameKind::Data.number();
        let checked = if data { checked.min(body.len()) } else { body.len() };
        let mut bytes = header(1, kind, u32::try_from(body.len()).unwrap(), u32::try_from(checked).unwrap(), 0);
        bytes[24..28].copy_from_slice(&crc32fast::hash(&body[..checked]).to_le_bytes());
        let crc = crc32fast::hash(&bytes[..28]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        bytes.extend(&body);
        let mut decoder = decoder();
        feed(&mut decoder, &bytes);
        // Taken means: it is exactly what this side would have sent.
        if let Ok(Some(Frame::Message(message))) = decoder.next() {
            prop_assert_eq!(encode(&message), bytes);
        }
    }
}
