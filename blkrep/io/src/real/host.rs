//! The rare, blocking calls on a running kernel.
//!
//! Owns how files are made (whole or not at all, durably), claimed and sized, and where shared
//! memory lives. Paths and lengths enter, open files and memory leave. Never on a request's way.

use super::device;
use super::errno_of;
use super::file::RealFile;
use super::ring::{UringIo, fill_random};
use super::socket::RealSocket;
use crate::host::{Access, Geometry, Host, HostError};
use crate::memory::{PAGE_BYTES, Region};
use blkrep_types::{ByteLen, Errno};
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::sys::statvfs::fstatvfs;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where Linux keeps memory that has a name and lasts until the next boot.
const SHARED_DIRECTORY: &str = "/dev/shm";

/// Bytes moved at a time through aligned memory when the caller's is not aligned.
const BOUNCE_BYTES: usize = 1 << 20;

/// Bytes of zeroes written at a time where a filesystem cannot allocate ahead.
const FILL_BYTES: usize = 1 << 20;

/// The machine this process runs on.
#[derive(Debug, Clone)]
pub struct RealHost {
    shared_prefix: Arc<str>,
}

impl RealHost {
    /// A host whose shared memory has names that begin with `shared_prefix`: one per state
    /// directory, so that two daemons of one machine never meet.
    ///
    /// # Panics
    /// If the prefix is empty or has a slash: it is made by the program, not by its user.
    #[must_use]
    pub fn new(shared_prefix: &str) -> Self {
        assert!(
            !shared_prefix.is_empty() && !shared_prefix.contains('/'),
            "a prefix of shared memory is a plain name"
        );
        Self {
            shared_prefix: shared_prefix.into(),
        }
    }

    fn shared_path(&self, name: &str) -> Result<PathBuf, HostError> {
        let path = Path::new(SHARED_DIRECTORY).join(format!("{}-{name}", self.shared_prefix));
        let plain = !name.is_empty() && !name.contains(['/', '\0']);
        plain
            .then_some(())
            .ok_or(Errno::EINVAL)
            .at("name shared memory", &path)?;
        Ok(path)
    }
}

/// Attaches what was tried, and to what.
trait At<T> {
    fn at(self, operation: &'static str, path: &Path) -> Result<T, HostError>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, operation: &'static str, path: &Path) -> Result<T, HostError> {
        self.map_err(|errno| HostError {
            operation,
            path: path.to_owned(),
            errno,
        })
    }
}

impl<T> At<T> for io::Result<T> {
    fn at(self, operation: &'static str, path: &Path) -> Result<T, HostError> {
        self.map_err(|error| Errno::from(&error))
            .at(operation, path)
    }
}

impl<T> At<T> for nix::Result<T> {
    fn at(self, operation: &'static str, path: &Path) -> Result<T, HostError> {
        self.map_err(errno_of).at(operation, path)
    }
}

impl Host for RealHost {
    type Io = UringIo;

    fn ring(&self, entries: u32) -> Result<UringIo, HostError> {
        UringIo::new(entries).at("set up io_uring", Path::new("ring"))
    }

    fn listen(&self, address: SocketAddr) -> Result<(RealSocket, SocketAddr), HostError> {
        RealSocket::listening(address).at("listen on", Path::new(&address.to_string()))
    }

    fn open(&self, path: &Path, access: Access) -> Result<RealFile, HostError> {
        match open_existing(path, access) {
            Err(error) if error.errno.get() == libc::ENOENT => match access.create {
                Some(len) => create(path, len, access),
                None => Err(error),
            },
            other => other,
        }
    }

    fn geometry(&self, file: &RealFile) -> Result<Geometry, HostError> {
        device::geometry(file.std(), file.direct()).at("ask the size of", file.path())
    }

    fn read_at(&self, file: &RealFile, offset: u64, bytes: &mut [u8]) -> Result<(), HostError> {
        let done = if file.direct() && !aligned(bytes) {
            bounced(file, offset, bytes)
        } else {
            file.std().read_exact_at(bytes, offset)
        };
        match done {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(Errno::EIO).at("read past the end of", file.path())
            }
            other => other.at("read", file.path()),
        }
    }

    fn write_at(&self, file: &RealFile, offset: u64, bytes: &[u8]) -> Result<(), HostError> {
        if !file.direct() || aligned(bytes) {
            return file
                .std()
                .write_all_at(bytes, offset)
                .at("write", file.path());
        }
        let bounce = Region::heap(bytes.len().clamp(1, BOUNCE_BYTES)).whole();
        let mut at = offset;
        for piece in bytes.chunks(BOUNCE_BYTES) {
            bounce.write(0, piece);
            bounce
                .part(0..piece.len())
                .with(|aligned| file.std().write_all_at(aligned, at))
                .at("write", file.path())?;
            at += u64::try_from(piece.len()).expect("64-bit platform");
        }
        Ok(())
    }

    fn sync(&self, file: &RealFile) -> Result<(), HostError> {
        file.std().sync_data().at("flush", file.path())
    }

    fn free_space(&self, file: &RealFile) -> Result<ByteLen, HostError> {
        let found = fstatvfs(file.std()).at("ask the free space of", file.path())?;
        let bytes = found.blocks_available() * found.fragment_size();
        Ok(ByteLen::new(bytes))
    }

    fn remove(&self, path: &Path) -> Result<(), HostError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).at("remove", path),
            Ok(()) => sync_parent(path),
        }
    }

    fn list(&self, directory: &Path) -> Result<Vec<String>, HostError> {
        if !directory.is_dir() {
            fs::create_dir_all(directory).at("make directory", directory)?;
            sync_parent(directory)?;
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(directory).at("list", directory)? {
            let name = entry.at("list", directory)?.file_name();
            let name = name.into_string().map_err(|_| Errno::EINVAL);
            let name = name.at("read a name (it is not UTF-8) in", directory)?;
            // A name with a dot is a file that was not yet whole when its maker died.
            if !name.starts_with('.') {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn shared_memory(&self, name: &str, len: ByteLen) -> Result<(Arc<Region>, bool), HostError> {
        let path = self.shared_path(name)?;
        let file = match open_shared(&path) {
            Ok(file) if shared_matches(&file, len, &path)? => Some(file),
            Ok(_) => {
                fs::remove_file(&path).at("remove shared memory of another size", &path)?;
                None
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).at("open shared memory", &path),
        };
        let found = file.is_some();
        let file = match file {
            Some(file) => file,
            None => make_shared(&path, len)?,
        };
        let region = Region::shared(&file, len.as_usize()).at("map shared memory", &path)?;
        Ok((region, found))
    }

    fn forget_shared_memory(&self, name: &str) -> Result<(), HostError> {
        let path = self.shared_path(name)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).at("remove shared memory", &path)
            }
            _ => Ok(()),
        }
    }

    fn random(&self, bytes: &mut [u8]) {
        fill_random(bytes);
    }
}

fn options(access: Access) -> (OpenOptions, i32) {
    let mut options = OpenOptions::new();
    options.read(true).write(!access.read_only).mode(0o600);
    let direct = if access.direct { libc::O_DIRECT } else { 0 };
    (options, libc::O_CLOEXEC | direct)
}

/// Opens what is there and claims it if told to.
fn open_existing(path: &Path, access: Access) -> Result<RealFile, HostError> {
    let (mut options, mut flags) = options(access);
    let block = fs::metadata(path)
        .at("open", path)?
        .file_type()
        .is_block_device();
    if block && access.claim {
        // Without O_CREAT, O_EXCL on a block device means: nobody else has claimed it (a mount,
        // LVM, another daemon), and nobody can while it is open.
        flags |= libc::O_EXCL;
    }
    let opened = options.custom_flags(flags).open(path);
    let what = match &opened {
        Err(error) if access.direct && error.raw_os_error() == Some(libc::EINVAL) => {
            "open past the page cache (O_DIRECT, which its filesystem does not offer)"
        }
        _ => "open",
    };
    let file = opened.at(what, path)?;
    if access.claim && !block {
        claim(&file).at("claim", path)?;
    }
    Ok(RealFile::new(file, path, access.direct))
}

/// Takes the exclusive lock of a regular file; EBUSY if somebody has it.
fn claim(file: &File) -> Result<(), Errno> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(fs::TryLockError::WouldBlock) => Err(Errno::EBUSY),
        Err(fs::TryLockError::Error(error)) => Err(Errno::from(&error)),
    }
}

/// Makes a file of `len` allocated bytes: under a temporary name until it is whole and durable,
/// so that a crash leaves all of it or nothing.
fn create(path: &Path, len: ByteLen, access: Access) -> Result<RealFile, HostError> {
    let name = path.file_name().ok_or(Errno::EINVAL).at("create", path)?;
    let mut unfinished = OsString::from(".");
    unfinished.push(name);
    unfinished.push(".new");
    let unfinished = path.with_file_name(unfinished);
    let made = fill_new(&unfinished, len)
        .and_then(|()| put_in_place(&unfinished, path).at("put in place", path));
    if made.is_err() {
        // Best effort: the error below says what happened, and the next attempt starts over.
        let _ = fs::remove_file(&unfinished);
    }
    made?;
    sync_parent(path)?;
    open_existing(path, access)
}

/// Gives a whole file its name, unless somebody else has taken that meanwhile: EEXIST then.
fn put_in_place(unfinished: &Path, path: &Path) -> io::Result<()> {
    let only_new = RenameFlags::RENAME_NOREPLACE;
    match renameat2(AT_FDCWD, unfinished, AT_FDCWD, path, only_new) {
        // A filesystem that cannot tell.
        Err(nix::Error::EINVAL | nix::Error::ENOSYS) if fs::symlink_metadata(path).is_err() => {
            fs::rename(unfinished, path)
        }
        other => Ok(other?),
    }
}

fn fill_new(path: &Path, len: ByteLen) -> Result<(), HostError> {
    let (mut options, flags) = options(Access {
        read_only: false,
        direct: false,
        claim: false,
        create: None,
    });
    let file = options
        .create(true)
        .truncate(true)
        .custom_flags(flags | libc::O_NOFOLLOW);
    let file = file.open(path).at("create", path)?;
    allocate(&file, len).at("allocate", path)?;
    file.sync_all().at("flush", path)
}

/// Allocates every byte, so that a later write cannot find the disk full.
fn allocate(file: &File, len: ByteLen) -> Result<(), Errno> {
    if len == ByteLen::ZERO {
        return Ok(());
    }
    let size = libc::off_t::try_from(len.get()).map_err(|_| Errno::EINVAL)?;
    match fallocate(file, FallocateFlags::empty(), 0, size).map_err(errno_of) {
        Err(errno) if errno == Errno::EOPNOTSUPP => {}
        other => return other,
    }
    // A filesystem that cannot allocate ahead allocates what is written.
    let zeroes = vec![0; FILL_BYTES];
    let mut at = 0;
    while at < len.get() {
        let rest = usize::try_from(len.get() - at).unwrap_or(FILL_BYTES);
        let piece = &zeroes[..rest.min(FILL_BYTES)];
        file.write_all_at(piece, at)
            .map_err(|error| Errno::from(&error))?;
        at += u64::try_from(piece.len()).expect("64-bit platform");
    }
    Ok(())
}

/// Makes the names in a path's directory durable.
fn sync_parent(path: &Path) -> Result<(), HostError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .at("flush directory", parent)
}

fn aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().addr().is_multiple_of(PAGE_BYTES)
}

/// Reads through aligned memory.
fn bounced(file: &RealFile, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    let bounce = Region::heap(bytes.len().clamp(1, BOUNCE_BYTES)).whole();
    let mut at = offset;
    for piece in bytes.chunks_mut(BOUNCE_BYTES) {
        let part = bounce.part(0..piece.len());
        part.with_mut(|aligned| file.std().read_exact_at(aligned, at))?;
        part.read(0, piece);
        at += u64::try_from(piece.len()).expect("64-bit platform");
    }
    Ok(())
}

fn open_shared(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
        .open(path)
}

/// True if this is memory of ours with the right length. Memory that somebody else could have
/// written is refused: it is trusted like a disk.
fn shared_matches(file: &File, len: ByteLen, path: &Path) -> Result<bool, HostError> {
    let found = file.metadata().at("look at shared memory", path)?;
    let ours = found.is_file()
        && found.uid() == nix::unistd::geteuid().as_raw()
        && found.mode() & 0o077 == 0;
    let refused = if ours {
        Ok(())
    } else {
        Err(Errno::new(libc::EPERM))
    };
    refused.at("trust shared memory (not this user's alone)", path)?;
    Ok(found.len() == len.get())
}

fn make_shared(path: &Path, len: ByteLen) -> Result<File, HostError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = options
        .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
        .open(path)
        .at("make shared memory", path)?;
    // Allocated now: a mapping without memory behind it would kill the process when touched.
    let made = allocate(&file, len).at("allocate shared memory", path);
    if made.is_err() {
        // Half of it is of no use to anybody.
        let _ = fs::remove_file(path);
    }
    made.map(|()| file)
}
