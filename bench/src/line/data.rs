//! What is sent: pages as PostgreSQL writes them, and noise.
//!
//! Owns the making of both, from a seed. Lengths enter, memory leaves. Never repeats a page.

use blkrep_io::{Region, Slice};

/// Bytes of a page.
pub(crate) const PAGE: usize = 8192;

/// What kind of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Heap pages of a table of orders: headers, line pointers, tuples with numbers, dates, names, text.
    Pages,
    /// Nothing that gets smaller.
    Noise,
}

/// A generator of numbers that is good enough for noise.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).expect("64-bit platform");
        usize::try_from(self.next() % end).expect("64-bit platform")
    }
}

/// So many bytes of it; always the same ones.
pub(crate) fn make(kind: Kind, len: usize) -> Slice {
    let whole = Region::heap(len).whole();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    whole.with_mut(|bytes| match kind {
        Kind::Noise => {
            for chunk in bytes.chunks_mut(8) {
                chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
            }
        }
        Kind::Pages => {
            for (number, page) in (0..).zip(bytes.chunks_exact_mut(PAGE)) {
                heap_page(page, number, &mut random);
            }
        }
    });
    whole
}

const WORDS: [&str; 32] = [
    "the",
    "order",
    "was",
    "delivered",
    "customer",
    "asked",
    "for",
    "invoice",
    "with",
    "priority",
    "shipping",
    "returned",
    "damaged",
    "parcel",
    "refund",
    "pending",
    "warehouse",
    "north",
    "confirmed",
    "by",
    "telephone",
    "address",
    "changed",
    "to",
    "street",
    "number",
    "please",
    "call",
    "before",
    "noon",
    "standard",
    "express",
];

/// A page of `heap`, filled to about nine tenths: `PageHeaderData`, line pointers from the front, tuples from the end.
fn heap_page(page: &mut [u8], number: u32, random: &mut Random) {
    let lsn = (u64::from(number) << 13) + random.next() % 8192;
    page[0..8].copy_from_slice(&lsn.to_le_bytes());
    page[8..10].copy_from_slice(
        &u16::try_from(random.below(65_536))
            .expect("16 bits")
            .to_le_bytes(),
    );
    page[18..20].copy_from_slice(&0x2004_u16.to_le_bytes());
    let (mut lower, mut upper, mut item) = (24, PAGE, 0_u16);
    loop {
        let tuple = tuple(number, item, random);
        let len = tuple.len().next_multiple_of(8);
        if lower + 4 + len + PAGE / 12 > upper {
            break;
        }
        upper -= len;
        page[upper..upper + tuple.len()].copy_from_slice(&tuple);
        // Offset in 15 bits, two of flags, length in 15.
        let narrow = |value: usize| u32::try_from(value).expect("within a page");
        let pointer = narrow(upper) | 1 << 15 | narrow(tuple.len()) << 17;
        page[lower..lower + 4].copy_from_slice(&pointer.to_le_bytes());
        lower += 4;
        item += 1;
    }
    let narrow = |value: usize| u16::try_from(value).expect("within a page");
    page[12..14].copy_from_slice(&narrow(lower).to_le_bytes());
    page[14..16].copy_from_slice(&narrow(upper).to_le_bytes());
    page[16..18].copy_from_slice(&narrow(PAGE).to_le_bytes());
}

/// `HeapTupleHeaderData`, then id, customer, two timestamps, amount, digest of a token, and a remark.
fn tuple(page: u32, item: u16, random: &mut Random) -> Vec<u8> {
    let mut tuple = Vec::with_capacity(256);
    let xmin = 700_000 + page / 3;
    for word in [xmin, 0, u32::from(item) & 1, page] {
        tuple.extend(word.to_le_bytes());
    }
    for half in [item + 1, 8, 0x0902] {
        tuple.extend(half.to_le_bytes());
    }
    tuple.extend([24, 0]);
    let id = u64::from(page) * 60 + u64::from(item);
    let stamp = 770_000_000_000_000 + id * 1_000_000 + random.next() % 1_000_000;
    tuple.extend(id.to_le_bytes());
    tuple.extend((random.next() % 200_000).to_le_bytes());
    tuple.extend(stamp.to_le_bytes());
    tuple.extend((stamp + 86_400_000_000).to_le_bytes());
    tuple.extend((random.next() % 100_000).to_le_bytes());
    tuple.extend(random.next().to_le_bytes());
    for _ in 0..4 + random.below(12) {
        tuple.extend(WORDS[random.below(WORDS.len())].as_bytes());
        tuple.push(b' ');
    }
    tuple
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_pages_and_differ() {
        let pages = make(Kind::Pages, 64 * PAGE).with(<[u8]>::to_vec);
        let pages: Vec<_> = pages.chunks(PAGE).collect();
        for (number, page) in pages.iter().enumerate() {
            let half = |at: usize| usize::from(u16::from_le_bytes([page[at], page[at + 1]]));
            let (lower, upper) = (half(12), half(14));
            assert!(lower > 100 && upper - lower >= PAGE / 12 && upper < PAGE / 3);
            assert!(
                page[lower..upper].iter().all(|byte| *byte == 0),
                "the gap is empty"
            );
            assert!(pages[..number].iter().all(|other| other != page));
        }
    }
}
