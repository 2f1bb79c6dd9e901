//! What the fuzz targets share: a cursor over their input, a watch over memory, right checksums.
//!
//! Bytes of the fuzzer enter. A target spends the first of them on what it does (how a stream is cut,
//! which checksums are made right) and gives the rest to the product. A checksum that is random keeps
//! a fuzzer out for ever, so targets can ask for right ones; bytes with wrong ones are input too.
#![forbid(unsafe_code)]

pub mod disk;
pub mod ram;
pub mod sealed;

use peak_alloc::PeakAlloc;

/// Counts what the product holds. What libFuzzer itself holds is not counted: it is not Rust.
#[global_allocator]
static HELD: PeakAlloc = PeakAlloc;

/// Runs `body` and fails if it ever held more than `limit` bytes at once beyond what it began with.
///
/// # Panics
/// If it did.
pub fn within<R>(limit: usize, body: impl FnOnce() -> R) -> R {
    HELD.reset_peak_usage();
    let before = HELD.current_usage();
    let result = body();
    let held = HELD.peak_usage().saturating_sub(before);
    assert!(held <= limit, "held {held} bytes, the limit is {limit}");
    result
}

/// Takes a target's own choices off the front of its input. Past the end everything is zero.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// At most `count` bytes.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let taken = self.take(N);
        let mut bytes = [0; N];
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes, as a length.
    pub fn short(&mut self) -> usize {
        usize::from(u16::from_le_bytes(self.array()))
    }

    /// A word.
    pub fn word(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// True if nothing is left.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A piece that says its own length, in two bytes.
    pub fn piece(&mut self) -> &'a [u8] {
        let len = self.short();
        self.take(len)
    }
}

/// The other way round: a piece as [`Input::piece`] takes it.
///
/// # Panics
/// If it is longer than 65,535 bytes.
pub fn put_piece(into: &mut Vec<u8>, bytes: &[u8]) {
    let len = u16::try_from(bytes.len()).expect("seeds are small");
    into.extend(len.to_le_bytes());
    into.extend_from_slice(bytes);
}
