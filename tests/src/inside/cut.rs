//! Power cuts after the fact: a device that logs what reaches the disk and when, and images of the disk at chosen instants.
//!
//! Owns a dm-log-writes device, its log and the replay. Writes enter through the device; for each mark an image leaves, as a
//! disk with a volatile cache would have kept it: everything flushed, nothing promised, and of the rest any part.
//!
//! The kernel puts a write into the log when a flush that covers it completes
//! (Documentation/admin-guide/device-mapper/log-writes.rst). So the log up to a mark is what the disk was certain to hold then.
//! What follows up to the end of the next flush was in the cache at most: the replay adds a random part of it.
//!
//! A FUA write it logs at once, ahead of older writes that still wait for their flush, so a replay would put the older one on top
//! (seen at overlapping writes). A loop device above it has no FUA: the block layer makes of it a write and a flush, which are
//! logged in their order.

use super::disk::{Lent, Memory, bytes_of, read_direct};
use super::shell::{command, run, spawn};
use crate::order::Random;
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt as _};
use std::path::Path;
use std::time::Duration;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLAG_FLUSH: u64 = 1;
const FLAG_DISCARD: u64 = 4;
const FLAG_MARK: u64 = 8;
/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 18;
/// A header longer than this is not one.
const DATA_BYTES_MAX: u64 = 64 << 20;

/// A disk whose every write is logged.
#[derive(Debug)]
pub struct Logged {
    name: String,
    // Taken down in this order.
    lent: Option<Lent>,
    log: Memory,
    below: Memory,
    mapped: bool,
}

/// One entry of the log.
#[derive(Debug, Clone, Copy)]
struct Entry {
    sector: u64,
    sectors: u64,
    flags: u64,
    /// Where its data or its words are in the log, and how long they are.
    data: u64,
    data_len: u64,
}

impl Logged {
    /// A disk of `size_mib` with room for `log_mib` of writes.
    ///
    /// # Errors
    /// The kernel lacks null_blk or dm-log-writes.
    pub fn new(name: &str, size_mib: u64, log_mib: u64) -> Result<Self> {
        let below = Memory::new(&format!("{name}-disk"), size_mib, 512)?;
        Self::over(name, below, log_mib)
    }

    /// A disk that begins as `image` is, which is of whole MiB: a disk that came back after a cut.
    ///
    /// # Errors
    /// As `new`, or the image cannot be read.
    pub fn of_image(name: &str, image: &File, log_mib: u64) -> Result<Self> {
        let size_mib = image.metadata()?.len() >> 20;
        let below = Memory::new(&format!("{name}-disk"), size_mib, 512)?;
        let disk = File::options().write(true).open(below.path())?;
        copy_sparsely(image, &disk, size_mib << 20)?;
        disk.sync_all()?;
        Self::over(name, below, log_mib)
    }

    fn over(name: &str, below: Memory, log_mib: u64) -> Result<Self> {
        let log = Memory::new(&format!("{name}-log"), log_mib, 512)?;
        let sectors = bytes_of(below.path())? / 512;
        let table = format!(
            "0 {sectors} log-writes {} {}",
            below.path().display(),
            log.path().display()
        );
        let mut create = command(&format!("dmsetup --noudevsync --noudevrules create {name}"));
        create.args(["--table", &table]);
        spawn(create)?.succeed(Duration::from_secs(30))?;
        run(&format!("dmsetup mknodes {name}"))?;
        let mut logged = Self {
            name: name.to_owned(),
            lent: None,
            log,
            below,
            mapped: true,
        };
        logged.lent = Some(Lent::new(&Path::new("/dev/mapper").join(name), true)?);
        // A loop device keeps what an earlier test told its queue.
        set_cache(logged.path()?, "write back")?;
        Ok(logged)
    }

    /// The device to write to.
    ///
    /// # Errors
    /// The logging has ended.
    pub fn path(&self) -> Result<&Path> {
        Ok(self
            .lent
            .as_ref()
            .context("the logged disk is stopped")?
            .path())
    }

    /// Puts a mark into the log: everything certain at this instant stands before it.
    ///
    /// # Errors
    /// The device does not take it.
    pub fn mark(&self, word: &str) -> Result<()> {
        run(&format!("dmsetup message {} 0 mark {word}", self.name)).map(drop)
    }

    /// Writes to `image`, which is all zeroes, what the disk holds now: as after the death of everything that uses it, while the
    /// power stays.
    ///
    /// # Errors
    /// The disk cannot be read, or the image not be written.
    pub fn copy_to(&self, image: &File) -> Result<()> {
        let bytes = bytes_of(self.below.path())?;
        image.set_len(bytes)?;
        for offset in (0..bytes).step_by(COPY_BYTES) {
            // Past the cache of a device that others write below.
            let chunk = read_direct(self.below.path(), offset, COPY_BYTES)?;
            if chunk.iter().any(|byte| *byte != 0) {
                image.write_all_at(&chunk, offset)?;
            }
        }
        Ok(())
    }

    /// Makes the kernel believe that there is no cache, so that it sends no flush and no FUA any more: the log then never
    /// hears of one.
    ///
    /// # Errors
    /// The queue cannot be set.
    pub fn lie_about_cache(&self) -> Result<()> {
        set_cache(self.path()?, "write through")
    }

    /// Ends the logging.
    ///
    /// # Errors
    /// Someone holds the device.
    pub fn stop(&mut self) -> Result<Log<'_>> {
        self.lent = None;
        run(&format!(
            "dmsetup --noudevsync remove --retry {}",
            self.name
        ))?;
        self.mapped = false;
        Log::read(&self.log, bytes_of(self.below.path())?)
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        self.lent = None;
        if self.mapped {
            let _ = run(&format!(
                "dmsetup --noudevsync remove --force {}",
                self.name
            ));
        }
    }
}

/// Tells the kernel which kind of cache a device has: `write back`, or `write through`, and then it sends no flush and no FUA.
///
/// # Errors
/// The queue cannot be set.
pub fn set_cache(device: &Path, kind: &str) -> Result<()> {
    let about =
        std::fs::metadata(device).with_context(|| format!("examine {}", device.display()))?;
    let number = about.rdev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let path = format!("/sys/dev/block/{major}:{minor}/queue/write_cache");
    std::fs::write(&path, kind).with_context(|| format!("set {path}"))?;
    let now = std::fs::read_to_string(&path)?;
    ensure!(now.trim() == kind, "{path} stays {now}");
    Ok(())
}

/// Copies the first `bytes` of one file onto zeroes of another, without writing zeroes.
///
/// # Errors
/// One cannot be read or the other not be written.
pub fn copy_sparsely(from: &File, to: &File, bytes: u64) -> Result<()> {
    let mut chunk = vec![0; COPY_BYTES];
    for offset in (0..bytes).step_by(COPY_BYTES) {
        let wanted = usize::try_from(bytes - offset)?.min(COPY_BYTES);
        from.read_exact_at(&mut chunk[..wanted], offset)?;
        if chunk[..wanted].iter().any(|byte| *byte != 0) {
            to.write_all_at(&chunk[..wanted], offset)?;
        }
    }
    Ok(())
}

/// The finished log of a disk.
#[derive(Debug)]
pub struct Log<'a> {
    file: File,
    entries: Vec<Entry>,
    disk_bytes: u64,
    _log: &'a Memory,
}

impl<'a> Log<'a> {
    fn read(log: &'a Memory, disk_bytes: u64) -> Result<Self> {
        let file = File::open(log.path())?;
        let word = |at: u64| -> Result<u64> {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at).context("read the log")?;
            Ok(u64::from_le_bytes(bytes))
        };
        ensure!(word(0)? == MAGIC, "the log has no superblock");
        let count = word(16)?;
        let sector_bytes = word(24)? & u64::from(u32::MAX);
        ensure!(
            (512..=4096).contains(&sector_bytes),
            "the log's sectors are of {sector_bytes} bytes"
        );
        let mut at = sector_bytes;
        let mut entries = Vec::new();
        for _ in 0..count {
            let (sector, sectors, flags, data_len) =
                (word(at)?, word(at + 8)?, word(at + 16)?, word(at + 24)?);
            let data = at
                + if flags & FLAG_MARK == 0 {
                    sector_bytes
                } else {
                    32
                };
            at += sector_bytes;
            if flags & (FLAG_DISCARD | FLAG_MARK) == 0 {
                at += sectors * sector_bytes;
            }
            ensure!(data_len <= DATA_BYTES_MAX, "an entry of {data_len} bytes");
            let scale = sector_bytes / 512;
            entries.push(Entry {
                sector: sector * scale,
                sectors: sectors * scale,
                flags,
                data,
                data_len,
            });
        }
        Ok(Self {
            file,
            entries,
            disk_bytes,
            _log: log,
        })
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if nothing was ever written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn place_of(&self, mark: &str) -> Result<usize> {
        for (place, entry) in self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, e)| e.flags & FLAG_MARK != 0)
        {
            let mut words = vec![0; usize::try_from(entry.data_len)?];
            self.file.read_exact_at(&mut words, entry.data)?;
            // The kernel keeps the word's terminator.
            if words.split(|byte| *byte == 0).next() == Some(mark.as_bytes()) {
                return Ok(place);
            }
        }
        bail!("no mark {mark} in the log")
    }

    /// Writes to `image` what a disk could hold whose power went at `mark`.
    ///
    /// # Errors
    /// There is no such mark, or the image cannot be written.
    pub fn replay(&self, mark: &str, image: &File, random: &mut Random) -> Result<()> {
        image.set_len(0)?;
        image.set_len(self.disk_bytes)?;
        self.replay_onto(mark, image, random)
    }

    /// The same onto what the disk held when its log began.
    ///
    /// # Errors
    /// As `replay`.
    pub fn replay_onto(&self, mark: &str, image: &File, random: &mut Random) -> Result<()> {
        let place = self.place_of(mark)?;
        for entry in &self.entries[..place] {
            self.apply(entry, image)?;
        }
        // What the next flush would have made certain may be there in part: any part, in the log's order where they overlap.
        let percent = u8::try_from(random.below(101)).unwrap_or(100);
        for entry in &self.entries[place..] {
            if random.chance(percent) {
                self.apply(entry, image)?;
            }
            if entry.flags & FLAG_FLUSH != 0 {
                break;
            }
        }
        Ok(())
    }

    fn apply(&self, entry: &Entry, image: &File) -> Result<()> {
        if entry.flags & FLAG_MARK != 0 || entry.sectors == 0 {
            return Ok(());
        }
        let mut bytes = vec![0; usize::try_from(entry.sectors * 512)?];
        if entry.flags & FLAG_DISCARD == 0 {
            self.file.read_exact_at(&mut bytes, entry.data)?;
        }
        let offset = entry.sector * 512;
        ensure!(
            offset + entry.sectors * 512 <= self.disk_bytes,
            "an entry past the disk's end"
        );
        Ok(image.write_all_at(&bytes, offset)?)
    }

    /// Flushes in the log.
    #[must_use]
    pub fn flushes(&self) -> usize {
        self.entries
            .iter()
            .filter(|entry| entry.flags & FLAG_FLUSH != 0)
            .count()
    }
}
