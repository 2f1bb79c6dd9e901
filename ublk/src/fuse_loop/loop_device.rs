//! Loop devices: finding a free one, binding it to a file, letting go of it.
//!
//! Owns the ioctls of `linux/loop.h` and what sysfs tells. Enters: an open file and a shape.
//! Leaves: the number of a loop device. Never mounts anything.

use blkrep_types::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const LOOP_CONTROL: &str = "/dev/loop-control";

/// How often a free number is asked for: another program may take it between two calls.
const TRIES_MAX: usize = 16;

/// How often sysfs is asked whether a loop device has let go.
const POLL_PAUSE: Duration = Duration::from_millis(5);

/// Nodes of new loop devices appear a moment after they are made.
const NODE_LIMIT: Duration = Duration::from_secs(5);

const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_ADD: libc::Ioctl = 0x4c80;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;

const FLAG_READ_ONLY: u32 = 1;
const FLAG_PARTITIONS: u32 = 8;
const FLAG_DIRECT_IO: u32 = 16;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232);
const _: () = assert!(size_of::<Config>() == 304);

/// What a loop device is to look like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) len: u64,
    pub(super) block_bytes: u32,
    pub(super) read_only: bool,
}

/// Whether loop devices can be made here.
pub(super) fn available() -> io::Result<()> {
    open_control().map(drop)
}

fn open_control() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(LOOP_CONTROL)
}

/// The device's node.
pub(super) fn node(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

/// Binds a loop device to `file`: number `wanted`, or a free one.
pub(super) fn bind(
    file: BorrowedFd<'_>,
    shape: Shape,
    name: &str,
    wanted: Option<u32>,
) -> io::Result<u32> {
    let control = open_control()?;
    if let Some(number) = wanted {
        add(&control, number)?;
        configure(number, file, shape, name)?;
        return Ok(number);
    }
    for _ in 0..TRIES_MAX {
        // SAFETY: this ioctl takes no argument.
        let free = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
        let number = u32::try_from(free).expect("checked not to be negative");
        match configure(number, file, shape, name) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            other => return other.map(|()| number),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

fn add(control: &File, number: u32) -> io::Result<()> {
    // SAFETY: this ioctl takes a plain number.
    let added = check(unsafe {
        libc::ioctl(
            control.as_raw_fd(),
            LOOP_CTL_ADD,
            libc::c_ulong::from(number),
        )
    });
    match added {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.map(drop),
    }
}

fn configure(number: u32, file: BorrowedFd<'_>, shape: Shape, name: &str) -> io::Result<()> {
    let device = open_node(number, !shape.read_only)?;
    let mut flags = FLAG_DIRECT_IO | FLAG_PARTITIONS;
    if shape.read_only {
        flags |= FLAG_READ_ONLY;
    }
    let mut file_name = [0; 64];
    // The last byte stays zero.
    for (to, from) in file_name[..63].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let config = Config {
        fd: u32::try_from(file.as_raw_fd()).expect("an open descriptor is not negative"),
        block_size: shape.block_bytes,
        info: Info {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: shape.len,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name,
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: the ioctl reads one `loop_config`, whose layout is asserted above, and takes its own
    // reference to the file.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) })?;
    Ok(())
}

/// Opens the node; it may appear a moment after the device.
fn open_node(number: u32, writable: bool) -> io::Result<File> {
    let deadline = Instant::now() + NODE_LIMIT;
    loop {
        match OpenOptions::new()
            .read(true)
            .write(writable)
            .open(node(number))
        {
            Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < deadline => {
                thread::sleep(POLL_PAUSE);
            }
            other => return other,
        }
    }
}

/// Lets go of the file, at once or when the last program has closed the device. True if it has
/// let go within `limit`.
pub(super) fn unbind(number: u32, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    let (sender, done) = mpsc::channel();
    // The call waits for requests in flight, which nobody may be there to answer.
    let clearing = thread::Builder::new()
        .name("loop-clear".to_owned())
        .spawn(move || {
            // A device that is not bound any more is what is wanted.
            drop(sender.send(clear(number)));
        });
    if let Err(error) = clearing {
        tracing::error!(%error, number, "no thread to clear a loop device");
        return false;
    }
    match done.recv_timeout(limit) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, number, "the loop device was free already"),
        Err(_) => return false,
    }
    while backing_file(number).is_some() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(POLL_PAUSE);
    }
    true
}

fn clear(number: u32) -> io::Result<()> {
    let device = OpenOptions::new().read(true).open(node(number))?;
    // SAFETY: this ioctl takes no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) })?;
    Ok(())
}

/// The file a loop device is bound to, as sysfs writes it.
pub(super) fn backing_file(number: u32) -> Option<String> {
    let path = format!("/sys/block/loop{number}/loop/backing_file");
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}

/// Loop devices that are bound to the file at `path`.
pub(super) fn bound_to(path: &Path) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let number: u32 = name.to_str()?.strip_prefix("loop")?.parse().ok()?;
            (Path::new(&backing_file(number)?) == path).then_some(number)
        })
        .collect()
}

/// True while a program has the device open, or a filesystem, swap or another device is on it.
///
/// Exact for claims (mounts, swap, LVM, partitions of it in use). For plain opens as exact as
/// `/proc` shows other processes' descriptors: all of them to root.
pub(super) fn in_use(number: u32) -> bool {
    let claimed = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(node(number));
    match claimed {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => true,
        Err(_) => false,
        Ok(device) => device
            .metadata()
            .is_ok_and(|metadata| opened_by_others(metadata.rdev())),
    }
}

fn opened_by_others(device: u64) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return false;
    };
    let own = std::process::id().to_string();
    processes.flatten().any(|process| {
        let name = process.file_name();
        let is_other = name
            .to_str()
            .is_some_and(|name| name != own && name.bytes().all(|byte| byte.is_ascii_digit()));
        is_other && has_open(&process.path().join("fd"), device)
    })
}

fn has_open(descriptors: &Path, device: u64) -> bool {
    // Where it points is read before it is followed: following goes through whatever filesystem
    // the file is on.
    std::fs::read_dir(descriptors).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let path = entry.path();
            std::fs::read_link(&path).is_ok_and(|target| target.starts_with("/dev"))
                && std::fs::metadata(&path).is_ok_and(|found| found.rdev() == device)
        })
    })
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// The number of an error of this module's calls.
pub(super) fn errno_of(error: &io::Error) -> Errno {
    Errno::from(error)
}
