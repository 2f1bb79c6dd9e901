//! The bytes of a simulated disk, in pages that copies share.
//!
//! Owns which page is whose: a copy costs a count per page, a write copies the page it touches if
//! somebody else has it too, and a page that nobody wrote is not there and reads as zeroes. Keeps
//! beside each sector the order of the write that it has. Knows nothing of what is flushed.

use std::ops::Range;
use std::sync::Arc;

/// Small, so that a write of one sector copies little.
const PAGE: usize = 4096;
/// What a disk writes whole.
pub(super) const SECTOR: usize = 512;

#[derive(Debug, Clone)]
struct Page {
    bytes: [u8; PAGE],
    /// For each sector, the order of its last write.
    orders: [u64; PAGE / SECTOR],
}

const ZEROES: Page = Page {
    bytes: [0; PAGE],
    orders: [0; PAGE / SECTOR],
};

/// Bytes from 0 to a length.
#[derive(Debug, Clone)]
pub(super) struct Pages {
    len: usize,
    pages: Vec<Option<Arc<Page>>>,
}

impl Pages {
    /// Zeroes.
    pub(super) fn new(len: usize) -> Self {
        Self {
            len,
            pages: vec![None; len.div_ceil(PAGE)],
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds zeroes at the end.
    pub(super) fn grow(&mut self, len: usize) {
        assert!(len >= self.len, "a disk never becomes shorter");
        self.len = len;
        self.pages.resize(len.div_ceil(PAGE), None);
    }

    /// The order of the last write of a sector; 0 if there was none.
    pub(super) fn order(&self, sector: usize) -> u64 {
        let page = &self.pages[sector * SECTOR / PAGE];
        page.as_ref()
            .map_or(0, |page| page.orders[sector % (PAGE / SECTOR)])
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// If they are not within the length.
    pub(super) fn read(&self, start: usize, bytes: &mut [u8]) {
        self.check(start, bytes.len());
        for (index, within, part) in pieces(start, bytes.len()) {
            match &self.pages[index] {
                Some(page) => bytes[part].copy_from_slice(&page.bytes[within]),
                None => bytes[part].fill(0),
            }
        }
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> Vec<u8> {
        self.check(range.start, range.len());
        let mut bytes = Vec::with_capacity(range.len());
        for (index, within, part) in pieces(range.start, range.len()) {
            match &self.pages[index] {
                Some(page) => bytes.extend_from_slice(&page.bytes[within]),
                None => bytes.resize(part.end, 0),
            }
        }
        bytes
    }

    /// Copies bytes in, as the write of this order.
    ///
    /// # Panics
    /// If they are not within the length.
    pub(super) fn write(&mut self, start: usize, bytes: &[u8], order: u64) {
        self.check(start, bytes.len());
        for (index, within, part) in pieces(start, bytes.len()) {
            let page = self.page(index);
            let sectors = within.start / SECTOR..within.end.div_ceil(SECTOR);
            page.bytes[within].copy_from_slice(&bytes[part]);
            page.orders[sectors].fill(order);
        }
    }

    /// Changes bytes under the write that brought them.
    ///
    /// # Panics
    /// If they are not within the length.
    pub(super) fn poke(&mut self, start: usize, bytes: &[u8]) {
        self.check(start, bytes.len());
        for (index, within, part) in pieces(start, bytes.len()) {
            self.page(index).bytes[within].copy_from_slice(&bytes[part]);
        }
    }

    /// Where this differs from another of the same length: the pages' ranges.
    ///
    /// # Panics
    /// If the lengths differ.
    pub(super) fn differing(&self, other: &Self) -> Vec<Range<usize>> {
        assert_eq!(self.len, other.len, "what is compared has one length");
        let both = self.pages.iter().zip(&other.pages).enumerate();
        let differ = both.filter(|(_, pair)| match pair {
            (Some(one), Some(other)) => !Arc::ptr_eq(one, other) && one.bytes != other.bytes,
            (Some(page), None) | (None, Some(page)) => page.bytes != ZEROES.bytes,
            (None, None) => false,
        });
        let range = |index| index * PAGE..self.len.min((index + 1) * PAGE);
        differ.map(|(index, _)| range(index)).collect()
    }

    fn page(&mut self, index: usize) -> &mut Page {
        let page = self.pages[index].get_or_insert_with(|| Arc::new(ZEROES));
        Arc::make_mut(page)
    }

    fn check(&self, start: usize, len: usize) {
        assert!(
            start.checked_add(len).is_some_and(|end| end <= self.len),
            "bytes {start}+{len} are not within a disk of {} bytes",
            self.len
        );
    }
}

/// The pages of a range: each one's number, the bytes within it, and which of the range they are.
fn pieces(start: usize, len: usize) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = start + done;
        let within = at % PAGE;
        let piece = (PAGE - within).min(len - done);
        let part = done..done + piece;
        done += piece;
        (piece > 0).then_some((at / PAGE, within..within + piece, part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(one: &Pages, other: &Pages) -> usize {
        let both = one.pages.iter().zip(&other.pages);
        both.filter(|pair| match pair {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        })
        .count()
    }

    #[test]
    fn what_is_written_is_read_over_the_borders_of_pages() {
        let mut pages = Pages::new(5 * PAGE + 100);
        let bytes: Vec<u8> = (0..=250).cycle().take(2 * PAGE + 300).collect();
        pages.write(PAGE - 100, &bytes, 7);
        let mut expected = vec![0; 5 * PAGE + 100];
        expected[PAGE - 100..3 * PAGE + 200].copy_from_slice(&bytes);
        assert_eq!(pages.bytes(0..5 * PAGE + 100), expected);
        let orders: Vec<u64> = [6, 7, 8, 24, 25].map(|sector| pages.order(sector)).to_vec();
        assert_eq!(orders, [0, 7, 7, 7, 0]);
        pages.grow(6 * PAGE);
        assert_eq!(pages.bytes(5 * PAGE..6 * PAGE), [0; PAGE]);
    }

    #[test]
    fn a_copy_shares_what_neither_has_written_since() {
        let mut one = Pages::new(8 * PAGE);
        one.write(0, &[1; 3 * PAGE], 1);
        let mut other = one.clone();
        assert_eq!(shared(&one, &other), 8);
        other.write(PAGE + 5, &[2], 2);
        one.poke(7 * PAGE, &[3]);
        assert_eq!(shared(&one, &other), 6);
        assert_eq!((one.order(8), other.order(8)), (1, 2));
        assert_eq!(one.bytes(PAGE..2 * PAGE), [1; PAGE]);
        assert_eq!(other.bytes(PAGE + 4..PAGE + 7), [1, 2, 1]);
        assert_eq!(other.bytes(7 * PAGE..8 * PAGE), [0; PAGE]);
    }

    #[test]
    fn only_pages_with_other_bytes_differ() {
        let mut one = Pages::new(5 * PAGE + 100);
        one.write(0, &[1; 3 * PAGE], 1);
        let mut other = one.clone();
        other.write(PAGE, &[1; 10], 2);
        other.write(4 * PAGE, &[0; 10], 3);
        assert_eq!(one.differing(&other), []);
        other.poke(2 * PAGE + 5, &[2]);
        other.poke(4 * PAGE, &[2]);
        one.poke(5 * PAGE + 99, &[2]);
        let differ = [
            2 * PAGE..3 * PAGE,
            4 * PAGE..5 * PAGE,
            5 * PAGE..5 * PAGE + 100,
        ];
        assert_eq!(one.differing(&other), differ);
        assert_eq!(other.differing(&one), differ);
    }

    #[test]
    #[should_panic(expected = "not within")]
    fn bytes_past_the_end_are_refused() {
        Pages::new(100).write(99, &[1; 2], 1);
    }
}
