//! One node's disk, whose power can be cut again and again: a filesystem for the daemon's state, and two parts for volumes.
//!
//! Owns a logged disk, its parts under names that stay, and what the disk held when the log began. Marks enter; images of the
//! disk at the marks leave, and at a cut the disk comes back as the cut left it. Never starts a daemon and never judges.

use super::cut::{Log, Logged, copy_sparsely, set_cache};
use super::disk::{Lent, Mapped};
use super::power::parts;
use super::shell::{run, wait_for};
use crate::order::Random;
use anyhow::{Context as _, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// MiB of writes that one log takes, from one cut to the next.
const LOG_MIB: u64 = 384;
/// A filesystem is let go of soon after the last process that used it.
const RELEASE_LIMIT: Duration = Duration::from_secs(20);

/// How a disk is divided: its first part is for the state.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// Its name, which begins the names of its parts.
    pub(super) name: &'static str,
    /// The parts and their MiB.
    pub(super) parts: [(&'static str, u64); 3],
    /// Where its filesystem is mounted.
    pub(super) mount: PathBuf,
}

impl Layout {
    fn size_mib(&self) -> u64 {
        self.parts.iter().map(|(_, mib)| mib).sum()
    }

    /// The path of a part, the same after every cut.
    pub(super) fn part(&self, index: usize) -> PathBuf {
        Path::new("/dev/mapper").join(format!("{}-{}", self.name, self.parts[index].0))
    }

    /// The paths of the volumes' parts.
    pub(super) fn volumes(&self) -> [PathBuf; 2] {
        [self.part(1), self.part(2)]
    }
}

/// A disk whose power can be cut.
#[derive(Debug)]
pub(super) struct PowerDisk {
    /// How it is divided.
    pub(super) layout: Layout,
    // Taken down in this order.
    parts: Vec<Mapped>,
    logged: Option<Logged>,
    /// What the disk held when its log began.
    begin: File,
    mounted: bool,
    /// Flushes it took, over all its logs.
    flushes: usize,
}

/// A new file of zeroes.
pub(super) fn zeroes(path: &Path, bytes: u64) -> Result<File> {
    let options = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path);
    let file = options.with_context(|| format!("create {}", path.display()))?;
    file.set_len(bytes)?;
    Ok(file)
}

impl PowerDisk {
    /// A new disk with an empty filesystem.
    pub(super) fn new(dir: &Path, layout: Layout) -> Result<Self> {
        let size_mib = layout.size_mib();
        let mut disk = Self {
            parts: Vec::new(),
            logged: Some(Logged::new(layout.name, size_mib, LOG_MIB)?),
            begin: zeroes(&dir.join(format!("{}-begin", layout.name)), size_mib << 20)?,
            mounted: false,
            flushes: 0,
            layout,
        };
        disk.map()?;
        let state = disk.layout.part(0);
        run(&format!("mkfs.ext4 -q -F {}", state.display()))?;
        disk.mount()?;
        Ok(disk)
    }

    fn logged(&self) -> Result<&Logged> {
        self.logged.as_ref().context("the disk has no power")
    }

    fn map(&mut self) -> Result<()> {
        let prefix = format!("{}-", self.layout.name);
        self.parts = parts(self.logged()?.path()?, &prefix, &self.layout.parts)?;
        Ok(())
    }

    /// From now on nothing that is written to the state's filesystem is flushed: what a daemon makes durable there is so by
    /// luck, or because a volume's part was flushed after it.
    pub(super) fn lie_about_state(&self) -> Result<()> {
        set_cache(&self.layout.part(0), "write through")
    }

    fn mount(&mut self) -> Result<()> {
        fs::create_dir_all(&self.layout.mount)?;
        let (state, at) = (self.layout.part(0), &self.layout.mount);
        run(&format!("mount {} {}", state.display(), at.display()))?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        let line = format!("umount {}", self.layout.mount.display());
        wait_for("the filesystem to be let go of", RELEASE_LIMIT, || {
            Ok(super::shell::try_run(&line)?.status.success())
        })?;
        self.mounted = false;
        Ok(())
    }

    /// Puts a mark into the log: what is certain at this instant stands before it.
    pub(super) fn mark(&self, word: &str) -> Result<()> {
        self.logged()?.mark(word)
    }

    /// Flushes the filesystem and the disk.
    pub(super) fn flush(&self) -> Result<()> {
        let root = File::open(&self.layout.mount).context("open the state's filesystem")?;
        Ok(nix::unistd::syncfs(&root)?)
    }

    /// A copy as it is now, for a node whose processes all died, while the power stays.
    pub(super) fn copy_to(&self, image: &Path) -> Result<()> {
        self.flush()?;
        self.logged()?.copy_to(&zeroes(image, 0)?)
    }

    /// Ends the log; an image for each mark in `images` is made. Then the disk comes back as the instant of `cut` left it.
    /// Nothing of the node may run any more.
    pub(super) fn lose_power(
        &mut self,
        cut: &str,
        images: &[(String, PathBuf)],
        random: &mut Random,
    ) -> Result<()> {
        // What is written from here on has no part in any cut.
        self.flush()?;
        self.unmount()?;
        self.parts.clear();
        let mut logged = self.logged.take().context("the disk has no power")?;
        let log = logged.stop()?;
        self.flushes += log.flushes();
        for (mark, path) in images {
            self.image_at(&log, mark, path, random)?;
        }
        log.replay_onto(cut, &self.begin, random)?;
        drop(log);
        drop(logged);
        self.logged = Some(Logged::of_image(self.layout.name, &self.begin, LOG_MIB)?);
        self.map()?;
        self.mount()
    }

    fn image_at(&self, log: &Log<'_>, mark: &str, path: &Path, random: &mut Random) -> Result<()> {
        let bytes = self.layout.size_mib() << 20;
        let image = zeroes(path, bytes)?;
        copy_sparsely(&self.begin, &image, bytes)?;
        log.replay_onto(mark, &image, random)
    }

    /// Flushes that reached the disk in the logs that have ended.
    pub(super) const fn flushes(&self) -> usize {
        self.flushes
    }
}

impl Drop for PowerDisk {
    fn drop(&mut self) {
        if self.mounted {
            let _ = run(&format!("umount -l {}", self.layout.mount.display()));
        }
    }
}

/// An image of a disk that is used under the paths of the disk itself, in a mount namespace of the calling thread.
#[derive(Debug)]
pub(super) struct Shadow {
    mounts: Vec<PathBuf>,
    parts: Vec<Mapped>,
    _lent: Lent,
}

impl Shadow {
    /// Puts the image in the place of the disk, for the calling thread and what it starts from now on.
    pub(super) fn new(layout: &Layout, image: &Path) -> Result<Self> {
        use nix::mount::{MsFlags, mount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).context("leave the namespace")?;
        let alone = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, alone, None::<&str>)?;
        let lent = Lent::new(image, false)?;
        let mut shadow = Self {
            mounts: Vec::new(),
            parts: parts(lent.path(), "alone-", &layout.parts)?,
            _lent: lent,
        };
        fs::create_dir_all(&layout.mount)?;
        let state = shadow.parts[0].path();
        let kind = Some("ext4");
        mount(
            Some(&state),
            &layout.mount,
            kind,
            MsFlags::empty(),
            None::<&str>,
        )
        .context("mount the state as the cut left it")?;
        shadow.mounts.push(layout.mount.clone());
        for index in [1, 2] {
            let (own, place) = (shadow.parts[index].path(), layout.part(index));
            mount(
                Some(&own),
                &place,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .with_context(|| format!("put {} in the place of its part", own.display()))?;
            shadow.mounts.push(place);
        }
        Ok(shadow)
    }

    /// The volumes' parts of the image.
    pub(super) fn volumes(&self) -> [PathBuf; 2] {
        [self.parts[1].path(), self.parts[2].path()]
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        for at in self.mounts.drain(..).rev() {
            let _ = nix::mount::umount2(&at, nix::mount::MntFlags::empty());
        }
    }
}
