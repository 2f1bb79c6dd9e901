//! The kernel a QEMU guest boots.
//!
//! Owns finding, fetching and unpacking it into the cache. A package or the machine's own kernel enters; an ELF image and
//! a list of modules leave. Never boots it.

use super::initramfs::find_program;
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The modules that guests use, with what they depend on. A kernel that has one built in does not list it.
const MODULES: [&str; 22] = [
    "configfs",
    "ublk_drv",
    "nbd",
    "null_blk",
    "brd",
    "loop",
    "fuse",
    "dm_mod",
    "dm_flakey",
    "dm_log_writes",
    "dm_delay",
    "ext4",
    "xfs",
    "virtio_blk",
    "virtio_pci",
    "virtio_console",
    "raid1",
    "veth",
    "bridge",
    "sch_netem",
    "tcp_bbr",
    "drbd",
];

/// A kernel ready to boot.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// What QEMU boots.
    pub image: PathBuf,
    /// Decompressed modules, in the order to load them.
    pub modules: Vec<PathBuf>,
}

/// The directory that outlives builds and checkouts: `$XDG_CACHE_HOME/blkrep`.
///
/// # Errors
/// Neither `XDG_CACHE_HOME` nor `HOME` is set, or it cannot be made.
pub fn cache_dir() -> Result<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let root = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let dir = root
        .context("find the cache: set XDG_CACHE_HOME or HOME")?
        .join("blkrep");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

impl Kernel {
    /// Debian's packaged cloud kernel, through apt; the machine's own if apt offers none and it has ublk.
    ///
    /// # Errors
    /// There is neither.
    pub fn find() -> Result<Self> {
        if let Some(package) = newest_package()? {
            return Self::from_package(&package);
        }
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")
            .context("read the kernel's release")?;
        let release = release.trim();
        let image = PathBuf::from(format!("/boot/vmlinuz-{release}"));
        let modules = PathBuf::from(format!("/lib/modules/{release}"));
        if !image.exists() || !modules.join("modules.dep").exists() {
            bail!(
                "no kernel for guests: apt offers no linux-image-6.12…+deb12-cloud-amd64 (enable bookworm-security and \
                 run apt-get update), and {} or its modules are missing",
                image.display()
            );
        }
        let cache = cache_dir()?.join("kernel").join(release);
        Self::prepare(release, &image, &modules, &cache)
    }

    fn from_package(package: &str) -> Result<Self> {
        let dir = cache_dir()?.join("kernel").join(package);
        let whole = dir.join("complete");
        if !whole.exists() {
            // A half-unpacked one from an interrupted run is of no use.
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir)?;
            run(Command::new("apt-get")
                .args(["download", "-q", package])
                .current_dir(&dir))?;
            let files = fs::read_dir(&dir)?.filter_map(|entry| Some(entry.ok()?.path()));
            let deb = files
                .into_iter()
                .find(|path| path.extension().is_some_and(|e| e == "deb"));
            let deb =
                deb.with_context(|| format!("find what apt-get download {package} fetched"))?;
            run(Command::new("dpkg").arg("-x").arg(&deb).arg(&dir))?;
            fs::remove_file(&deb)?;
            let release = only_entry(&dir.join("lib/modules"))?;
            let depmod = find_program("depmod").context("find depmod: install kmod")?;
            run(Command::new(depmod).arg("-b").arg(&dir).arg(&release))?;
            fs::write(&whole, &release)?;
        }
        let release = only_entry(&dir.join("lib/modules"))?;
        let image = dir.join("boot").join(format!("vmlinuz-{release}"));
        Self::prepare(
            &release,
            &image,
            &dir.join("lib/modules").join(&release),
            &dir,
        )
    }

    fn prepare(release: &str, image: &Path, modules: &Path, cache: &Path) -> Result<Self> {
        fs::create_dir_all(cache.join("loadable"))?;
        let elf = cache.join("vmlinux");
        if !elf.exists() {
            extract_elf(image, &elf)?;
        }
        let mut loadable = Vec::new();
        for module in load_order(modules)? {
            let name = module
                .file_name()
                .and_then(|name| name.to_str())
                .context("name a module")?;
            let plain = name
                .trim_end_matches(".xz")
                .trim_end_matches(".zst")
                .trim_end_matches(".gz");
            let unpacked = cache.join("loadable").join(plain);
            if !unpacked.exists() {
                let packed = modules.join(&module);
                let bytes =
                    decompress(&packed).with_context(|| format!("unpack {}", packed.display()))?;
                replace_file(&unpacked, &bytes)?;
            }
            loadable.push(unpacked);
        }
        Ok(Self {
            release: release.to_owned(),
            image: elf,
            modules: loadable,
        })
    }
}

fn newest_package() -> Result<Option<String>> {
    let Some(apt) = find_program("apt-cache") else {
        return Ok(None);
    };
    let pattern = r"^linux-image-6\.12\.[0-9]+\+deb12-cloud-amd64$";
    let found = Command::new(apt)
        .args(["search", "--names-only", pattern])
        .output();
    let found = found.context("run apt-cache")?;
    let text = String::from_utf8_lossy(&found.stdout);
    let number = |name: &str| {
        name.split('.')
            .nth(2)?
            .split('+')
            .next()?
            .parse::<u32>()
            .ok()
    };
    let names = text
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    Ok(names.max_by_key(|name| number(name)).map(str::to_owned))
}

fn only_entry(dir: &Path) -> Result<String> {
    let mut entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let entry = entries
        .next()
        .with_context(|| format!("{} is empty", dir.display()))??;
    entry
        .file_name()
        .into_string()
        .ok()
        .context("read a name as text")
}

/// Paths relative to the module directory, each after what it depends on.
fn load_order(modules: &Path) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string(modules.join("modules.dep")).context("read modules.dep")?;
    let stem = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.split(".ko").next().unwrap_or(file).replace('-', "_")
    };
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let known: HashMap<String, (&str, &str)> = lines
        .map(|(path, deps)| (stem(path), (path, deps)))
        .collect();
    let mut order: Vec<PathBuf> = Vec::new();
    for name in MODULES {
        let Some((path, dependencies)) = known.get(name) else {
            continue;
        };
        // depmod lists what must be loaded first last.
        for needed in dependencies.split_whitespace().rev().chain([*path]) {
            let needed = PathBuf::from(needed);
            if !order.contains(&needed) {
                order.push(needed);
            }
        }
    }
    Ok(order)
}

/// The ELF image inside a bzImage: it boots without the decompressor, which takes seconds where instructions are emulated.
fn extract_elf(image: &Path, elf: &Path) -> Result<()> {
    let bytes = fs::read(image).with_context(|| format!("read {}", image.display()))?;
    let word = |at: usize| -> Result<usize> {
        let field = bytes.get(at..at + 4).context("read the boot header")?;
        Ok(usize::try_from(u32::from_le_bytes(field.try_into()?))?)
    };
    ensure!(
        bytes.get(0x202..0x206) == Some(b"HdrS"),
        "{} is no bzImage",
        image.display()
    );
    let setup_sectors = match bytes[0x1f1] {
        0 => 4,
        count => usize::from(count),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    let payload = bytes
        .get(start..start + word(0x24c)?)
        .context("find the payload")?;
    let unpacked = decompress_bytes(payload)?;
    ensure!(
        unpacked.starts_with(b"\x7fELF"),
        "the payload of {} is no ELF image",
        image.display()
    );
    replace_file(elf, &unpacked)
}

fn decompress(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path)?;
    if bytes.starts_with(b"\x7fELF") {
        Ok(bytes)
    } else {
        decompress_bytes(&bytes)
    }
}

fn decompress_bytes(packed: &[u8]) -> Result<Vec<u8>> {
    // A payload has its length appended, so "trailing garbage" is expected and the output is checked by the caller.
    let command: &[&str] = match packed {
        [0xfd, b'7', b'z', ..] => &["xz", "-dc", "--single-stream"],
        [0x28, 0xb5, 0x2f, 0xfd, ..] => &["zstd", "-dcq"],
        [0x1f, 0x8b, ..] => &["gzip", "-dc"],
        [0x02, 0x21, 0x4c, 0x18, ..] => &["lz4", "-dc"],
        _ => bail!("unknown compression"),
    };
    let mut input = tempfile::tempfile()?;
    std::io::Write::write_all(&mut input, packed)?;
    std::io::Seek::rewind(&mut input)?;
    let done = Command::new(command[0])
        .args(&command[1..])
        .stdin(input)
        .output();
    let done = done.with_context(|| format!("run {}: is it installed?", command[0]))?;
    ensure!(
        !done.stdout.is_empty(),
        "{}: {}",
        command[0],
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(done.stdout)
}

/// Writes beside and renames, so that an interrupted run leaves no half file in the cache.
pub(super) fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension(format!("new{}", std::process::id()));
    fs::write(&beside, bytes).with_context(|| format!("write {}", beside.display()))?;
    fs::rename(&beside, path).with_context(|| format!("rename to {}", path.display()))
}

pub(super) fn run(command: &mut Command) -> Result<()> {
    let done = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(
        done.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&done.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_loaded_after_what_they_need() {
        let dir = tempfile::tempdir().unwrap();
        let dep = "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko.xz\n\
                   kernel/fs/jbd2/jbd2.ko.xz:\nkernel/drivers/md/dm-mod.ko.xz:\nkernel/lib/other.ko.xz:\n";
        fs::write(dir.path().join("modules.dep"), dep).unwrap();
        let order = load_order(dir.path()).unwrap();
        let names: Vec<_> = order
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["dm-mod.ko.xz", "crc16.ko.xz", "jbd2.ko.xz", "ext4.ko.xz"]
        );
    }
}
