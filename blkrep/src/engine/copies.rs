//! The two copies of a record, read and written one by one.
//!
//! Owns what a copy that cannot be read counts as: one that has rotted, if the other is good. Then the
//! record is used, and written anew. And the order of writing: one copy is good at every moment. Never
//! decides between two that were read.

use blkrep_io::{Host, HostError, Io};

/// Bytes that no copy begins with.
const UNREADABLE: u8 = 0xff;

/// Reads both copies.
///
/// # Errors
/// One cannot be read, and the other is none that could stand for both.
pub(super) fn read_copies<H: Host>(
    host: &H,
    file: &<H::Io as Io>::File,
    places: [u64; 2],
    len: usize,
    is_good: impl Fn(&[u8]) -> bool,
) -> Result<[Vec<u8>; 2], HostError> {
    let read = |place: u64| {
        let mut bytes = vec![0; len];
        host.read_at(file, place, &mut bytes).map(|()| bytes)
    };
    let lost = || vec![UNREADABLE; len];
    match places.map(read) {
        [Ok(first), Ok(second)] => Ok([first, second]),
        [Ok(first), Err(_)] if is_good(&first) => Ok([first, lost()]),
        [Err(_), Ok(second)] if is_good(&second) => Ok([lost(), second]),
        [Err(error), _] | [_, Err(error)] => Err(error),
    }
}

/// Writes the copy at the first of two places and makes it durable; if `flush` is not set, the caller
/// is broken on purpose. Then the other place says the same: if one copy rots, no older truth comes
/// back, and if the power fails neither is torn.
///
/// # Errors
/// The first could not be written, or made durable. What is durable is not undone by a failure of the
/// other.
pub(super) fn write_copies<H: Host>(
    host: &H,
    file: &<H::Io as Io>::File,
    [place, other]: [u64; 2],
    bytes: &[u8],
    flush: bool,
) -> Result<(), HostError> {
    let write = |at: u64| {
        host.write_at(file, at, bytes)?;
        if flush {
            host.sync(file)?;
        }
        Ok(())
    };
    write(place)?;
    let _ = write(other);
    Ok(())
}
