//! A small file that a fuzzer can write: blocks of it, the rest zero.

use crate::Input;

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// Builds a file of `blocks` blocks from pieces `(block, bytes)`, until the input ends.
pub fn file(input: &mut Input<'_>, blocks: usize) -> Vec<u8> {
    let mut file = vec![0; blocks * BLOCK];
    while !input.is_empty() {
        let at = usize::from(input.byte()) % blocks * BLOCK;
        let bytes = input.piece();
        let len = bytes.len().min(file.len() - at);
        file[at..at + len].copy_from_slice(&bytes[..len]);
    }
    file
}

/// The other way round: the pieces that [`file()`] makes this file of, without what is zero.
#[must_use]
pub fn pieces(file: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, block) in file.chunks(BLOCK).enumerate() {
        let len = block.iter().rposition(|byte| *byte != 0);
        if let Some(last) = len {
            out.push(u8::try_from(at).expect("few blocks"));
            crate::put_piece(&mut out, &block[..=last]);
        }
    }
    out
}
