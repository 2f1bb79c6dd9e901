//! Packed frames become what they were made of, or nothing.
#![allow(clippy::unwrap_used, missing_docs)]

mod samples;

use blkrep_io::{Region, Slice};
use blkrep_wire::limits::{PACKED_PLAIN_MAX, SOURCE_BODY_MAX, buffer_bytes};
use blkrep_wire::{
    Codecs, Decoder, Encoder, Entry, FRAME_HEADER_BYTES, Frame, FrameKind, Inflater, Message,
    Packer, VERSION_PACKED, WireError, Written,
};
use samples::{data_entries, messages};

const HEAD: usize = 16;

/// Records of every kind, several times, so that packing them pays.
fn entries() -> Vec<Entry> {
    let mut seq = 0;
    let mut entries = Vec::new();
    for _ in 0..8 {
        for mut entry in data_entries() {
            seq += 1;
            entry.record.seq = blkrep_types::Seq::new(seq);
            entries.push(entry);
        }
    }
    entries
}

fn packed(level: i32) -> Vec<u8> {
    let (plain, to) = (Region::heap(1 << 20).whole(), Region::heap(1 << 20).whole());
    let mut packer = Packer::new(level).unwrap();
    let written = Encoder::new()
        .packed(&entries(), &mut packer, &plain, &to)
        .unwrap();
    let Written::Packed(len) = written else {
        panic!("the samples get smaller: {written:?}");
    };
    to.part(0..len).with(<[u8]>::to_vec)
}

fn decoder() -> Decoder {
    let buffer = Region::heap(buffer_bytes(SOURCE_BODY_MAX)).whole();
    let mut decoder = Decoder::new(buffer, SOURCE_BODY_MAX);
    decoder.inflate_with(Inflater::new(Region::heap(PACKED_PLAIN_MAX).whole()).unwrap());
    decoder
}

fn feed(decoder: &mut Decoder, bytes: &[u8]) {
    decoder.space().write(0, bytes);
    decoder.received(bytes.len());
}

type Told = (blkrep_types::Record, Option<Vec<u8>>, u32);

fn told(frame: Frame) -> Vec<Told> {
    let Frame::Data(frame) = frame else {
        panic!("records were sent");
    };
    let bytes = |slice: Slice| slice.with(<[u8]>::to_vec);
    let entries = frame.entries();
    entries
        .map(|entry| (entry.record, entry.bytes.map(bytes), entry.data_crc))
        .collect()
}

fn sent() -> Vec<Told> {
    let told = |entry: Entry| {
        let bytes = entry.bytes.map(|slice| slice.with(<[u8]>::to_vec));
        let crc = bytes.as_deref().map_or(0, crc32fast::hash);
        (entry.record, bytes, crc)
    };
    entries().into_iter().map(told).collect()
}

/// A frame around a body, with right checksums.
fn frame(body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).unwrap().to_le_bytes();
    let mut bytes = b"BLKr".to_vec();
    bytes.extend(1_u16.to_le_bytes());
    bytes.extend(FrameKind::Packed.number().to_le_bytes());
    bytes.extend(len);
    bytes.extend(len);
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend(crc32fast::hash(body).to_le_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes.extend(body);
    bytes
}

fn body(plain: usize, checked: usize, crc: u32, codec: u8, zstd: &[u8]) -> Vec<u8> {
    let narrow = |len: usize| u32::try_from(len).unwrap().to_le_bytes();
    let mut body = [narrow(plain), narrow(checked), crc.to_le_bytes()].concat();
    body.extend([codec, 0, 0, 0]);
    body.extend(zstd);
    body
}

fn refused(bytes: &[u8]) -> WireError {
    let mut decoder = decoder();
    feed(&mut decoder, bytes);
    let error = decoder.next().expect_err("it is refused");
    assert_eq!(decoder.next().unwrap_err(), error, "and not forgotten");
    error
}

const fn field(field: &'static str) -> WireError {
    WireError::Field {
        kind: FrameKind::Packed,
        field,
    }
}

#[test]
fn records_arrive_as_they_were_packed_at_every_level() {
    let plain: usize = sent()
        .iter()
        .map(|(_, bytes, _)| bytes.as_ref().map_or(0, Vec::len))
        .sum();
    for level in 1..=9 {
        let bytes = packed(level);
        assert!(bytes.len() < plain / 4, "{} of {plain}", bytes.len());
        let mut decoder = decoder();
        feed(&mut decoder, &bytes);
        assert_eq!(told(decoder.next().unwrap().unwrap()), sent());
        assert!(decoder.next().unwrap().is_none() && decoder.is_empty());
    }
}

#[test]
fn contexts_serve_one_frame_after_the_other() {
    let (plain, to) = (Region::heap(1 << 20).whole(), Region::heap(1 << 20).whole());
    let (mut encoder, mut decoder) = (Encoder::new(), decoder());
    let mut packer = Packer::new(1).unwrap();
    for turn in 0..20 {
        packer.set_level(1 + turn % 3);
        let all = entries();
        let some = &all[usize::try_from(turn).unwrap()..];
        let written = encoder.packed(some, &mut packer, &plain, &to).unwrap();
        let Written::Packed(len) = written else {
            panic!("{written:?}");
        };
        feed(&mut decoder, &to.part(0..len).with(<[u8]>::to_vec));
        let found = told(decoder.next().unwrap().unwrap());
        assert_eq!(found, sent()[usize::try_from(turn).unwrap()..]);
    }
}

#[test]
fn what_does_not_get_smaller_goes_plain() {
    let noise = Region::heap(1 << 16);
    let mut state = 1_u64;
    noise.whole().with_mut(|bytes| {
        for byte in bytes {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *byte = state.to_le_bytes()[7];
        }
    });
    let mut entry = data_entries().swap_remove(0);
    let extent = blkrep_types::Extent::new(
        blkrep_types::ByteOffset::new(0),
        blkrep_types::ByteLen::new(1 << 16),
    );
    entry.record.extent = Some(extent.unwrap());
    entry.bytes = Some(noise.whole());
    let (plain, to) = (Region::heap(1 << 20).whole(), Region::heap(1 << 20).whole());
    let mut encoder = Encoder::new();
    let mut packer = Packer::new(1).unwrap();
    let entries = [entry];
    let written = encoder.packed(&entries, &mut packer, &plain, &to);
    let Some(Written::Plain(len)) = written else {
        panic!("{written:?}");
    };
    let again = Region::heap(1 << 20).whole();
    assert_eq!(Encoder::new().data(&entries, &again), Some(len));
    let bytes = plain.part(0..len).with(<[u8]>::to_vec);
    assert!(
        again.part(0..len).with(|again| again == bytes),
        "as if it was never tried"
    );
}

#[test]
fn who_does_not_take_packed_frames_refuses_them() {
    let buffer = Region::heap(buffer_bytes(SOURCE_BODY_MAX)).whole();
    let mut decoder = Decoder::new(buffer, SOURCE_BODY_MAX);
    feed(&mut decoder, &packed(1)[..FRAME_HEADER_BYTES]);
    assert_eq!(decoder.next().unwrap_err(), WireError::Kind { found: 14 });
}

#[test]
fn every_flipped_bit_is_noticed() {
    let good = packed(1);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        refused(&bad);
    }
}

/// Bits that change before the frame's own checksum is made: in memory, or in a codec that is wrong.
#[test]
fn every_bit_that_was_wrong_before_the_checksum_is_noticed_too() {
    let good = packed(1)[FRAME_HEADER_BYTES..].to_vec();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let mut decoder = decoder();
        feed(&mut decoder, &frame(&bad));
        if let Ok(Some(found)) = decoder.next() {
            // Some bits of the codec's format mean nothing.
            assert_eq!(told(found), sent(), "bit {bit}");
        }
    }
}

#[test]
fn what_inflates_to_more_or_less_than_it_says_is_refused() {
    let good = packed(1)[FRAME_HEADER_BYTES..].to_vec();
    let number = |at: usize| {
        let bytes: [u8; 4] = good[at..at + 4].try_into().unwrap();
        bytes
    };
    let plain = usize::try_from(u32::from_le_bytes(number(0))).unwrap();
    let checked = usize::try_from(u32::from_le_bytes(number(4))).unwrap();
    let crc = u32::from_le_bytes(number(8));
    let zstd = &good[HEAD..];
    assert_eq!(frame(&body(plain, checked, crc, 1, zstd)), packed(1));
    for (plain, checked, codec, error) in [
        (plain + 1, checked, 1, WireError::Inflate),
        (plain - 1, checked, 1, WireError::Inflate),
        (PACKED_PLAIN_MAX, checked, 1, WireError::Inflate),
        (PACKED_PLAIN_MAX + 1, checked, 1, field("plain_bytes")),
        (4 << 20, checked, 1, field("plain_bytes")),
        (good.len(), 8, 1, field("plain_bytes")),
        (plain, 7, 1, field("checked_bytes")),
        (plain, plain + 1, 1, field("checked_bytes")),
        (plain, checked, 0, field("codec")),
        (plain, checked, 2, field("codec")),
        (
            plain,
            checked + 40,
            1,
            WireError::BodyChecksum {
                kind: FrameKind::Packed,
            },
        ),
    ] {
        let bad = frame(&body(plain, checked, crc, codec, zstd));
        assert_eq!(refused(&bad), error, "{plain} {checked} {codec}");
    }
    let mut bad = body(plain, checked, crc, 1, zstd);
    bad[13] = 1;
    assert_eq!(refused(&frame(&bad)), field("reserved"));
    assert_eq!(refused(&frame(&[0; 12])), field("head"));
}

/// A few hundred bytes that would be 64 MiB.
#[test]
fn a_bomb_is_refused() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    assert!(bomb.len() < 16 << 10);
    for plain in [64 << 10, PACKED_PLAIN_MAX] {
        let error = refused(&frame(&body(plain, 48, 0, 1, &bomb)));
        assert_eq!(error, WireError::Inflate, "{plain}");
    }
    assert_eq!(
        refused(&frame(&body(64 << 20, 48, 0, 1, &bomb))),
        field("plain_bytes")
    );
}

/// What inflates to no data frame.
#[test]
fn what_is_inflated_is_checked_as_a_plain_body_is() {
    let inside = vec![0; 64 << 10];
    let zstd = zstd::bulk::compress(&inside, 1).unwrap();
    let crc = crc32fast::hash(&inside[..48]);
    let error = refused(&frame(&body(inside.len(), 48, crc, 1, &zstd)));
    assert_eq!(
        error,
        WireError::Field {
            kind: FrameKind::Data,
            field: "record_count"
        }
    );
}

#[test]
fn a_truncated_frame_waits_for_the_rest() {
    let good = packed(1);
    for len in (0..good.len()).step_by(11) {
        let mut decoder = decoder();
        feed(&mut decoder, &good[..len]);
        assert!(decoder.next().unwrap().is_none(), "cut to {len}");
        feed(&mut decoder, &good[len..]);
        assert!(decoder.next().unwrap().is_some(), "completed after {len}");
    }
}

fn welcome(version: u16, codecs: Codecs) -> Message {
    let welcome = messages().into_iter().find_map(|message| match message {
        Message::Welcome(welcome) => Some(welcome),
        _ => None,
    });
    let mut welcome = welcome.unwrap();
    (welcome.version, welcome.codecs) = (version, codecs);
    Message::Welcome(welcome)
}

fn encode(message: &Message) -> Vec<u8> {
    let region = Region::heap(1 << 20);
    let len = Encoder::new().message(message, &region.whole()).unwrap();
    region.slice(0..len).with(<[u8]>::to_vec)
}

#[test]
fn a_target_says_what_it_takes_only_in_a_version_that_has_it() {
    let taken = welcome(VERSION_PACKED, Codecs::ZSTD);
    let mut decoder = decoder();
    feed(&mut decoder, &encode(&taken));
    match decoder.next() {
        Ok(Some(Frame::Message(found))) => assert_eq!(found, taken),
        other => panic!("{other:?}"),
    }
    let wrong = WireError::Field {
        kind: FrameKind::Welcome,
        field: "codecs",
    };
    assert_eq!(refused(&encode(&welcome(1, Codecs::ZSTD))), wrong);
}

/// What a compressor makes may change with its version; what was once made is understood for ever.
#[test]
fn the_frames_of_version_2_are_understood_for_ever() {
    let golden = include_str!("golden/v2.txt");
    let lines: Vec<_> = golden.lines().collect();
    let bytes = |line: &str| -> Vec<u8> {
        let (_, hex) = line.split_once(' ').unwrap();
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(byte).collect()
    };
    let hex = |bytes: Vec<u8>| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
    let wanted = welcome(VERSION_PACKED, Codecs::ZSTD);
    let found = format!(
        "welcome {}\npacked {}",
        hex(encode(&wanted)),
        hex(packed(1))
    );
    assert_eq!(lines.len(), 2, "the frames are now:\n{found}");
    assert_eq!(bytes(lines[0]), encode(&wanted));
    let mut decoder = decoder();
    feed(&mut decoder, &bytes(lines[1]));
    assert_eq!(told(decoder.next().unwrap().unwrap()), sent());
}
