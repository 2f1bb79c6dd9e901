//! Tests of the protocol's bytes.

#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

const SHAPE: Shape = Shape {
    len: 1 << 20,
    block_bytes: 512,
    read_only: false,
    write_cache: true,
    discard: true,
};

fn request(command: u16, flags: u16, offset: u64, len: u32) -> RawRequest {
    RawRequest {
        flags,
        command,
        cookie: 7,
        offset,
        len,
    }
}

#[test]
fn a_request_is_read_as_the_protocol_lays_it_out() {
    let mut bytes = [0; REQUEST_BYTES];
    bytes[0..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
    bytes[5] = 1;
    bytes[7] = 6;
    bytes[15] = 9;
    bytes[22..24].copy_from_slice(&[2, 0]);
    bytes[26..28].copy_from_slice(&[4, 0]);
    let raw = RawRequest::parse(&bytes).unwrap();
    let expected = RawRequest {
        flags: 1,
        command: 6,
        cookie: 9,
        offset: 512,
        len: 1024,
    };
    assert_eq!(raw, expected);
    bytes[0] = 0x26;
    assert_eq!(RawRequest::parse(&bytes), None);
}

#[test]
fn ranges_outside_unaligned_or_empty_are_refused() {
    let check = |command, offset, len| request(command, 0, offset, len).check(SHAPE, false);
    assert_eq!(
        check(command::READ, 512, 512),
        Ok(Command::Read { whole: false })
    );
    for (offset, len) in [(1, 512), (0, 511), (0, 0), (1 << 20, 512), (u64::MAX, 512)] {
        assert_eq!(
            check(command::READ, offset, len),
            Err(Errno::EINVAL),
            "{offset}+{len}"
        );
    }
    assert_eq!(check(command::WRITE, 1 << 20, 512), Err(Errno::ENOSPC));
    assert_eq!(
        check(command::TRIM, (1 << 20) - 512, 1024),
        Err(Errno::ENOSPC)
    );
    let huge = Shape {
        len: 1 << 40,
        ..SHAPE
    };
    let too_long = PAYLOAD_BYTES_MAX + 512;
    let read = request(command::READ, 0, 0, too_long);
    assert_eq!(read.check(huge, false), Err(Errno::EINVAL));
    let zeroes = request(command::WRITE_ZEROES, 0, 0, too_long);
    assert!(zeroes.check(huge, false).is_ok());
}

#[test]
fn flags_and_commands_that_were_not_offered_are_refused() {
    let check = |command, flags| request(command, flags, 0, 512).check(SHAPE, false);
    assert_eq!(check(5, 0), Err(Errno::EINVAL), "cache");
    assert_eq!(check(7, 0), Err(Errno::EINVAL), "block status");
    assert_eq!(check(command::WRITE_ZEROES, 1 << 4), Err(Errno::EINVAL));
    assert_eq!(check(command::READ, command::FLAG_DF), Err(Errno::EINVAL));
    let no_hole = command::FLAG_NO_HOLE | command::FLAG_FUA;
    let zeroes = Command::WriteZeroes {
        fua: true,
        may_free: false,
    };
    assert_eq!(check(command::WRITE_ZEROES, no_hole), Ok(zeroes));
    let read_only = Shape {
        read_only: true,
        ..SHAPE
    };
    let write = request(command::WRITE, 0, 0, 512).check(read_only, false);
    assert_eq!(write, Err(Errno::EROFS));
    assert_eq!(
        wire_error(Errno::EROFS),
        1,
        "the protocol has no EROFS, but EPERM"
    );
}

#[test]
fn flags_tell_what_the_export_can_do() {
    assert_eq!(SHAPE.flags(false), 0b1_0110_1101);
    let read_only = Shape {
        read_only: true,
        write_cache: false,
        ..SHAPE
    };
    assert_eq!(read_only.flags(true), 0b1_1000_0011);
}

#[test]
fn replies_are_laid_out_as_the_protocol_says() {
    let mut out = Vec::new();
    put_simple(&mut out, 3, Err(Errno::EIO));
    assert_eq!(
        out,
        [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 3]
    );
    out.clear();
    put_data_chunk(&mut out, 3, true, 512, 16);
    let head = [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1];
    assert_eq!(out[..8], head);
    assert_eq!(out[16..20], [0, 0, 0, 24]);
    assert_eq!(out[20..], [0, 0, 0, 0, 0, 0, 2, 0]);
    out.clear();
    put_error_chunk(&mut out, 3, false, Errno::EIO, Some(512));
    assert_eq!(out[4..8], [0, 0, 0x80, 2]);
    assert_eq!(
        out[16..],
        [0, 0, 0, 14, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]
    );
}

proptest! {
    #[test]
    fn what_is_accepted_lies_within_the_export(
        bytes in proptest::array::uniform28(any::<u8>()),
        command in 0_u16..9,
        blocks in 0_u64..3000,
        len in 0_u32..(64 << 20),
        aligned in any::<bool>(),
        structured in any::<bool>(),
    ) {
        let mut bytes = bytes;
        bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        let flags = u16::from(bytes[5]) & 7;
        bytes[4..6].copy_from_slice(&flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&command.to_be_bytes());
        let len = if aligned { len & !511 } else { len };
        bytes[16..24].copy_from_slice(&(blocks * 512).to_be_bytes());
        bytes[24..28].copy_from_slice(&len.to_be_bytes());
        let raw = RawRequest::parse(&bytes).unwrap();
        if let Ok(accepted) = raw.check(SHAPE, structured) {
            let no_range = matches!(accepted, Command::Flush | Command::Disconnect);
            let end = raw.offset.saturating_add(u64::from(raw.len));
            prop_assert!(no_range || (raw.len > 0 && end <= SHAPE.len));
            prop_assert!(no_range || (raw.len.is_multiple_of(512) && raw.offset.is_multiple_of(512)));
        }
    }
}
