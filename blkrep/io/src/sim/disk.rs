//! A disk that keeps what it promised and nothing more.
//!
//! Owns the bytes of one file or device, twice: as a reader sees them, and as a power cut leaves
//! them. Between the two lie completed writes that nobody flushed; a power cut keeps any subset of
//! their sectors. Pure: operations and chance enter, bytes and errors leave.

use super::fault::{FaultKind, Faults};
use super::pages::{Pages, SECTOR};
use super::random::SimRandom;
use blkrep_types::limits::SECTOR_BYTES;
use blkrep_types::{BlockSize, Errno};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

const _: () = assert!(SECTOR as u64 == SECTOR_BYTES);

/// A write on its way: its first byte, and its bytes.
pub(super) type Write = (u64, Arc<[u8]>);

/// A completed write that a power cut may lose, as whole sectors.
#[derive(Debug, Clone)]
struct Cached {
    order: u64,
    sector: usize,
    bytes: Arc<[u8]>,
}

/// What a simulated disk is.
#[derive(Debug, Clone, Copy)]
pub(super) struct DiskShape {
    /// A block device's minor number; `None` for a regular file.
    pub(super) device: Option<u32>,
    pub(super) block_size: BlockSize,
    pub(super) write_cache: bool,
}

/// The bytes of one file or device.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) shape: DiskShape,
    view: Pages,
    stable: Pages,
    cached: VecDeque<Cached>,
    /// Order of the last completed write.
    order: u64,
    pub(super) faults: Faults,
}

impl Disk {
    pub(super) fn new(shape: DiskShape, len: u64) -> Self {
        let len = as_usize(len);
        Self {
            shape,
            view: Pages::new(len),
            stable: Pages::new(len),
            cached: VecDeque::new(),
            order: 0,
            faults: Faults::default(),
        }
    }

    pub(super) fn len(&self) -> u64 {
        as_u64(self.view.len())
    }

    /// What a reader sees.
    pub(super) fn view(&self) -> &Pages {
        &self.view
    }

    /// What a power cut surely leaves.
    pub(super) fn stable(&self) -> &Pages {
        &self.stable
    }

    /// Order of the last completed write: what a flush that begins now will cover.
    pub(super) fn completed(&self) -> u64 {
        self.order
    }

    pub(super) fn read(
        &mut self,
        offset: u64,
        bytes: &mut [u8],
        random: &mut SimRandom,
    ) -> Result<(), Errno> {
        let range = self.range(offset, bytes.len());
        self.faults.error(FaultKind::Read, &range)?;
        if range.end > self.view.len() {
            return Err(Errno::EIO);
        }
        self.view.read(range.start, bytes);
        self.faults.falsify(&range, bytes, random);
        Ok(())
    }

    /// A write completes.
    pub(super) fn write(
        &mut self,
        offset: u64,
        bytes: &Arc<[u8]>,
        durable: bool,
        random: &mut SimRandom,
    ) -> Result<(), Errno> {
        let range = self.range(offset, bytes.len());
        if range.end > self.view.len() {
            if self.shape.device.is_some() {
                return Err(Errno::ENOSPC);
            }
            self.grow(range.end);
        }
        if let Err(errno) = self.faults.error(FaultKind::Write, &range) {
            if random.one_in(2) {
                self.write_torn(offset, bytes, random);
            }
            return Err(errno);
        }
        self.land(range.start, bytes, Some(bytes));
        if self.faults.loses(&range) {
            self.cached.pop_back();
        } else if durable || !self.shape.write_cache {
            let last = self.cached.pop_back().expect("just landed");
            self.keep(&last);
        }
        Ok(())
    }

    /// Some sectors of a write reach the medium, as when its writer dies or the disk fails.
    pub(super) fn write_torn(&mut self, offset: u64, bytes: &[u8], random: &mut SimRandom) {
        let start = as_usize(offset);
        let whole = random.one_in(3);
        let end = (start + bytes.len()).min(self.view.len());
        let mut at = start;
        while at < end {
            let next = ((at / SECTOR + 1) * SECTOR).min(end);
            if whole || random.one_in(2) {
                self.land(at, &bytes[at - start..next - start], None);
            }
            at = next;
        }
    }

    /// A flush completes that began when `upto` was the last completed write.
    pub(super) fn sync(&mut self, upto: u64, random: &mut SimRandom) -> Result<(), Errno> {
        let failed = self.faults.error(FaultKind::Sync, &(0..self.view.len()));
        match failed {
            Ok(()) => self.flush(upto),
            // Linux marks such pages clean: a later flush succeeds without having them.
            Err(_) => self
                .cached
                .retain(|cached| cached.order > upto || random.one_in(2)),
        }
        failed
    }

    /// What was written up to an order is durable.
    pub(super) fn flush(&mut self, upto: u64) {
        let mut left = VecDeque::with_capacity(self.cached.len());
        for cached in std::mem::take(&mut self.cached) {
            if cached.order > upto {
                left.push_back(cached);
            } else {
                self.keep(&cached);
            }
        }
        self.cached = left;
    }

    /// The power fails: of what was not flushed, and of the writes in flight, each sector is kept
    /// or lost by chance. What is left is all there is.
    pub(super) fn power_loss(&mut self, in_flight: &[Write], random: &mut SimRandom) {
        for (offset, bytes) in in_flight {
            self.write_torn(*offset, bytes, random);
        }
        // Chance of a sector to survive, in quarters: from none to all.
        let kept = random.below(5);
        for cached in std::mem::take(&mut self.cached) {
            let whole = random.one_in(3);
            let survives = random.below(4) < kept;
            for (index, sector) in cached.bytes.chunks(SECTOR).enumerate() {
                let one = if whole {
                    survives
                } else {
                    random.below(4) < kept
                };
                if one {
                    self.keep_sector(cached.sector + index, cached.order, sector);
                }
            }
        }
        self.view = self.stable.clone();
    }

    /// First byte and length of each completed write that a power cut may lose.
    pub(super) fn unflushed(&self) -> impl Iterator<Item = (u64, u64)> {
        let loose = self.cached.iter().filter(|cached| self.loose(cached));
        loose.map(|cached| (as_u64(cached.sector * SECTOR), as_u64(cached.bytes.len())))
    }

    fn loose(&self, cached: &Cached) -> bool {
        let sectors = cached.sector..cached.sector + cached.bytes.len().div_ceil(SECTOR);
        sectors
            .into_iter()
            .any(|sector| self.stable.order(sector) < cached.order)
    }

    /// The power fails, and `keep` says which sectors are kept of the unflushed writes, and then
    /// of those in flight; how many writes there were.
    pub(super) fn power_loss_keeping(
        &mut self,
        in_flight: &[Write],
        mut keep: impl FnMut(usize, u64) -> bool,
    ) -> usize {
        let mut writes = std::mem::take(&mut self.cached);
        writes.retain(|cached| self.loose(cached));
        for (offset, bytes) in in_flight {
            let start = as_usize(*offset).min(self.view.len());
            let len = bytes.len().min(self.view.len() - start);
            self.land(start, &bytes[..len], None);
        }
        writes.append(&mut self.cached);
        for (index, cached) in writes.iter().enumerate() {
            for (at, sector) in cached.bytes.chunks(SECTOR).enumerate() {
                if keep(index, as_u64(at)) {
                    self.keep_sector(cached.sector + at, cached.order, sector);
                }
            }
        }
        self.view = self.stable.clone();
        writes.len()
    }

    /// Changes bytes behind everybody's back, durably, wherever the disk has them: a bad medium,
    /// or a test's preparation.
    pub(super) fn poke(&mut self, offset: u64, bytes: &[u8]) {
        let range = self.range(offset, bytes.len());
        self.view.poke(range.start, bytes);
        self.stable.poke(range.start, bytes);
        for cached in &mut self.cached {
            let start = cached.sector * SECTOR;
            let met = range.start.max(start)..range.end.min(start + cached.bytes.len());
            if !met.is_empty() {
                let from = &bytes[met.start - range.start..met.end - range.start];
                Arc::make_mut(&mut cached.bytes)[met.start - start..met.end - start]
                    .copy_from_slice(from);
            }
        }
    }

    pub(super) fn poke_all(&mut self, bytes: &[u8]) {
        let mut all = Pages::new(bytes.len());
        all.write(0, bytes, 0);
        self.restore(all, self.order);
    }

    /// Other bytes, durably, whose last write had this order; what was written before has no part
    /// in them.
    pub(super) fn restore(&mut self, bytes: Pages, order: u64) {
        self.order = self.order.max(order);
        self.stable = bytes.clone();
        self.view = bytes;
        self.cached.clear();
        // A stale read would bring bytes that are newer than these.
        self.faults.forget_lies();
    }

    fn range(&self, offset: u64, len: usize) -> Range<usize> {
        let start = as_usize(offset);
        start..start.saturating_add(len)
    }

    fn grow(&mut self, len: usize) {
        self.view.grow(len);
        self.stable.grow(len);
    }

    /// Puts bytes where readers see them and remembers their sectors as not yet safe. `whole` is
    /// the same bytes, to be shared if they are whole sectors.
    fn land(&mut self, start: usize, bytes: &[u8], whole: Option<&Arc<[u8]>>) {
        let end = start + bytes.len();
        self.order += 1;
        self.faults.written(&(start..end));
        self.view.write(start, bytes, self.order);
        let first = start / SECTOR;
        let last = (end.div_ceil(SECTOR) * SECTOR).min(self.view.len());
        let bytes = match whole {
            Some(whole) if (start, end) == (first * SECTOR, last) => Arc::clone(whole),
            _ => self.view.bytes(first * SECTOR..last).into(),
        };
        self.cached.push_back(Cached {
            order: self.order,
            sector: first,
            bytes,
        });
    }

    fn keep(&mut self, cached: &Cached) {
        for (index, sector) in cached.bytes.chunks(SECTOR).enumerate() {
            self.keep_sector(cached.sector + index, cached.order, sector);
        }
    }

    fn keep_sector(&mut self, sector: usize, order: u64, bytes: &[u8]) {
        if order > self.stable.order(sector) {
            self.stable.write(sector * SECTOR, bytes, order);
        }
    }
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).expect("64-bit platform")
}

pub(super) fn as_usize(number: u64) -> usize {
    usize::try_from(number).expect("64-bit platform")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sim::fault::DiskFault;

    fn disk(write_cache: bool) -> Disk {
        let shape = DiskShape {
            device: Some(1),
            block_size: BlockSize::B512,
            write_cache,
        };
        Disk::new(shape, 64 * 512)
    }

    fn sector_of(disk: &Disk, sector: usize) -> u8 {
        disk.stable().bytes(sector * SECTOR..sector * SECTOR + 1)[0]
    }

    #[test]
    fn a_flushed_write_survives_and_an_unflushed_one_may_not() {
        let (mut lost, mut kept) = (0, 0);
        for seed in 0..200 {
            let mut random = SimRandom::new(seed);
            let mut disk = disk(true);
            disk.write(0, &[1; 1024].into(), false, &mut random)
                .unwrap();
            let upto = disk.completed();
            disk.write(1024, &[2; 1024].into(), false, &mut random)
                .unwrap();
            disk.sync(upto, &mut random).unwrap();
            disk.power_loss(&[], &mut random);
            assert_eq!(disk.view().bytes(0..1024), [1; 1024]);
            for sector in [2, 3] {
                match sector_of(&disk, sector) {
                    0 => lost += 1,
                    2 => kept += 1,
                    other => panic!("{other} was never written"),
                }
            }
        }
        assert!(lost > 50 && kept > 50, "{lost} lost, {kept} kept");
    }

    #[test]
    fn a_durable_write_is_not_undone_by_an_older_one_flushed_later() {
        let mut random = SimRandom::new(3);
        let mut disk = disk(true);
        disk.write(0, &[1; 512].into(), false, &mut random).unwrap();
        disk.write(0, &[2; 512].into(), true, &mut random).unwrap();
        assert_eq!(sector_of(&disk, 0), 2);
        disk.sync(disk.completed(), &mut random).unwrap();
        disk.power_loss(&[], &mut random);
        assert_eq!(sector_of(&disk, 0), 2);
    }

    #[test]
    fn a_write_in_flight_is_torn_only_between_sectors() {
        let mut torn = 0;
        for seed in 0..100 {
            let mut random = SimRandom::new(seed);
            let mut disk = disk(true);
            disk.power_loss(&[(512, [9; 4096].into())], &mut random);
            let marks: Vec<bool> = disk
                .view()
                .bytes(512..512 + 4096)
                .chunks(SECTOR)
                .map(|sector| {
                    assert!(sector.iter().all(|byte| *byte == sector[0]));
                    sector[0] == 9
                })
                .collect();
            torn += usize::from(marks.contains(&true) && marks.contains(&false));
            assert!(disk.view().bytes(0..512).iter().all(|byte| *byte == 0));
        }
        assert!(torn > 20, "{torn} torn");
    }

    #[test]
    fn without_a_cache_a_completed_write_is_safe() {
        let mut random = SimRandom::new(5);
        let mut disk = disk(false);
        disk.write(0, &[1; 512].into(), false, &mut random).unwrap();
        disk.power_loss(&[], &mut random);
        assert_eq!(sector_of(&disk, 0), 1);
    }

    #[test]
    fn after_a_failed_flush_the_next_one_proves_nothing() {
        let mut lost = 0;
        for seed in 0..50 {
            let mut random = SimRandom::new(seed);
            let mut disk = disk(true);
            disk.faults.inject(DiskFault {
                kind: FaultKind::Sync,
                errno: Errno::EIO,
                bytes: None,
                times: 1,
            });
            disk.write(0, &[1; 512].into(), false, &mut random).unwrap();
            assert_eq!(disk.sync(disk.completed(), &mut random), Err(Errno::EIO));
            disk.sync(disk.completed(), &mut random).unwrap();
            disk.power_loss(&[], &mut random);
            lost += usize::from(sector_of(&disk, 0) == 0);
        }
        assert!((5..45).contains(&lost), "{lost} of 50 lost");
    }

    #[test]
    fn a_fault_hits_its_bytes_as_often_as_told() {
        let mut random = SimRandom::new(5);
        let mut disk = disk(true);
        disk.faults.inject(DiskFault {
            kind: FaultKind::Write,
            errno: Errno::ENOSPC,
            bytes: Some(1024..1536),
            times: 1,
        });
        assert_eq!(
            disk.write(512, &[1; 512].into(), false, &mut random),
            Ok(())
        );
        assert_eq!(
            disk.write(512, &[1; 1024].into(), false, &mut random),
            Err(Errno::ENOSPC)
        );
        assert_eq!(
            disk.write(512, &[1; 1024].into(), false, &mut random),
            Ok(())
        );
        assert_eq!(
            disk.write(63 * 512, &[1; 1024].into(), false, &mut random),
            Err(Errno::ENOSPC)
        );
    }
}
