//! Right checksums, by the offsets that the pages of `docs/format` state.
//!
//! Bytes enter that may be anything, the same bytes leave with checksums that match. What is too short
//! to have one stays as it is.

use crate::Input;

/// Bytes of a frame's header.
pub const FRAME_HEADER: usize = 32;

/// A frame with a right header, checksums included, whatever kind and body it has.
#[must_use]
pub fn frame(version: u16, kind: u16, number: u64, body: &[u8], checked: usize) -> Vec<u8> {
    let len = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes();
    let checked = checked.min(body.len());
    let mut bytes = b"BLKr".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(len(body.len()));
    bytes.extend(len(checked));
    bytes.extend(number.to_le_bytes());
    bytes.extend(crc32fast::hash(&body[..checked]).to_le_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Makes the bytes' checksums of a data frame's records right: as far as records and bytes go.
/// Returns how many bytes head and records have.
pub fn data_body(body: &mut [u8]) -> usize {
    const HEAD: usize = 8;
    const RECORD: usize = 40;
    let Some(count) = body.get(..4) else {
        return body.len();
    };
    let count = u32::from_le_bytes(count.try_into().expect("four bytes"));
    let count = usize::try_from(count).expect("64-bit platform").min(1024);
    let checked = HEAD + count * RECORD;
    if checked > body.len() {
        return body.len();
    }
    let (records, data) = body.split_at_mut(checked);
    let mut rest = &*data;
    for record in records[HEAD..].chunks_exact_mut(RECORD) {
        let is_data = record[38] == 1;
        let len = u64::from_le_bytes(record[24..32].try_into().expect("eight bytes"));
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if is_data && let Some((mine, others)) = rest.split_at_checked(len) {
            record[32..36].copy_from_slice(&crc32fast::hash(mine).to_le_bytes());
            rest = others;
        }
    }
    checked
}

/// A packed body that inflates to this body of a data frame, whose first `checked` bytes are under its
/// checksum; as it is if it does not compress.
#[must_use]
pub fn packed_body(plain: &[u8], checked: usize) -> Vec<u8> {
    let Ok(zstd) = zstd::bulk::compress(plain, 1) else {
        return plain.to_vec();
    };
    let len = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes();
    let crc = crc32fast::hash(&plain[..checked.min(plain.len())]);
    let head = [len(plain.len()), len(checked), crc.to_le_bytes(), [1, 0, 0, 0]];
    [head.concat(), zstd].concat()
}

/// Makes a checksum right that stands in the last four bytes of the first `head` bytes, over those
/// before it.
pub fn head(bytes: &mut [u8], head: usize) {
    if let Some(bytes) = bytes.get_mut(..head) {
        let (checked, crc) = bytes.split_at_mut(head - 4);
        crc.copy_from_slice(&crc32fast::hash(checked).to_le_bytes());
    }
}

/// Makes both checksums of a copy of a superblock right: the body's in the four bytes before the
/// head's, over as many bytes as the copy says it has.
pub fn superblock(copy: &mut [u8], head_bytes: usize) {
    let Some(len) = copy.get(12..16) else { return };
    let len = u32::from_le_bytes(len.try_into().expect("four bytes"));
    let len = usize::try_from(len).expect("64-bit platform");
    if let Some(body) = copy.get(head_bytes..len) {
        let crc = crc32fast::hash(body).to_le_bytes();
        copy[head_bytes - 8..head_bytes - 4].copy_from_slice(&crc);
    }
    head(copy, head_bytes);
}

/// Makes the checksum of a map's sector right: bytes 4 to 8, which count as zero.
pub fn map_sector(sector: &mut [u8]) {
    if sector.len() >= 8 {
        sector[4..8].fill(0);
        let crc = crc32fast::hash(sector);
        sector[4..8].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Makes head and table of a journal's batch right.
pub fn batch(block: &mut [u8]) {
    const HEAD: usize = 128;
    let Some(count) = block.get(96..100) else {
        return;
    };
    let count = u32::from_le_bytes(count.try_into().expect("four bytes"));
    let count = usize::try_from(count).expect("64-bit platform").min(1024);
    if let Some(table) = block.get(HEAD..HEAD + count * 40) {
        let crc = crc32fast::hash(table).to_le_bytes();
        block[100..104].copy_from_slice(&crc);
    }
    head(block, HEAD);
}

/// Both copies of a superblock with a head of `head` bytes. The input's first byte says which checksums stay
/// wrong, and whether there is a second copy at all.
#[must_use]
pub fn superblocks(input: &mut Input<'_>, head: usize) -> [Vec<u8>; 2] {
    const WRONG: [u8; 2] = [1, 2];
    const BLANK_SECOND: u8 = 4;
    let choice = input.byte();
    let mut copies = WRONG.map(|wrong| {
        let mut copy = input.piece().to_vec();
        // The place of a copy is longer than what is written there.
        copy.resize(copy.len().next_multiple_of(512) + 512, 0);
        if choice & wrong == 0 {
            superblock(&mut copy, head);
        }
        copy
    });
    if choice & BLANK_SECOND != 0 {
        copies[1].fill(0);
    }
    copies
}
