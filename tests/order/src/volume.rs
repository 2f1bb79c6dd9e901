//! What a load writes to: a device, a file, or an NBD address.
//!
//! Owns how each kind of operation is asked of each kind of place. An operation enters, its result leaves. Never chooses one.

use super::record::Kind;
use super::remote::{self, Address, Connection};
use super::sector::SECTOR_BYTES;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// No operation is larger: the record's counts and a disk's limits stay far away.
pub(super) const OPERATION_BYTES_MAX: u32 = 8 << 20;

pub(super) struct Volume {
    pub(super) index: u16,
    pub(super) path: PathBuf,
    pub(super) sectors: u64,
    /// Larger writes would be split on their way, and be two.
    pub(super) bytes_max: u32,
    place: Place,
}

enum Place {
    Local(Local),
    Remote(Address),
}

struct Local {
    is_device: bool,
    plain: File,
    fua: File,
}

/// A writer's own way to a volume.
pub(super) enum Port {
    /// Descriptors are shared by all writers.
    Local,
    /// A connection; `None` after a failure, until the next operation makes a new one.
    Remote(Option<Box<Connection>>),
}

impl Volume {
    pub(super) fn open(index: u16, path: PathBuf) -> io::Result<Self> {
        if let Some(address) = Address::parse(&path) {
            let address = address?;
            let bytes = address.connect()?.bytes();
            let place = Place::Remote(address);
            return Ok(Self::of(index, path, bytes, remote::WRITE_BYTES_MAX, place));
        }
        let open = |flags: OFlag| {
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(flags.bits())
                .open(&path);
            opened.map_err(|error| super::named(&path, &error))
        };
        let plain = open(OFlag::O_DIRECT)?;
        let fua = open(OFlag::O_DIRECT | OFlag::O_DSYNC)?;
        let bytes = (&plain).seek(SeekFrom::End(0))?;
        let metadata = plain.metadata()?;
        let is_device = metadata.file_type().is_block_device();
        let bytes_max = if is_device {
            whole_bytes_max(metadata.rdev())?
        } else {
            OPERATION_BYTES_MAX
        };
        let local = Local {
            is_device,
            plain,
            fua,
        };
        Ok(Self::of(index, path, bytes, bytes_max, Place::Local(local)))
    }

    fn of(index: u16, path: PathBuf, bytes: u64, bytes_max: u32, place: Place) -> Self {
        Self {
            index,
            path,
            sectors: bytes / SECTOR_BYTES as u64,
            bytes_max,
            place,
        }
    }

    pub(super) fn is_remote(&self) -> bool {
        matches!(self.place, Place::Remote(_))
    }

    /// A way to it for one writer, not connected yet.
    pub(super) fn port(&self) -> Port {
        match self.place {
            Place::Local(_) => Port::Local,
            Place::Remote(_) => Port::Remote(None),
        }
    }

    pub(super) fn perform(
        &self,
        port: &mut Port,
        kind: Kind,
        first: u64,
        bytes: &[u8],
        len: u64,
    ) -> io::Result<()> {
        let offset = first * SECTOR_BYTES as u64;
        match (&self.place, port) {
            (Place::Local(local), Port::Local) => {
                local.perform(&self.path, kind, offset, bytes, len)
            }
            (Place::Remote(address), Port::Remote(kept)) => {
                let mut connection = match kept.take() {
                    Some(connection) => connection,
                    None => Box::new(address.connect()?),
                };
                perform_remote(&mut connection, kind, offset, bytes, len)?;
                *kept = Some(connection);
                Ok(())
            }
            (Place::Local(_), Port::Remote(_)) | (Place::Remote(_), Port::Local) => {
                unreachable!("a port is made by its own volume")
            }
        }
    }
}

fn perform_remote(
    connection: &mut Connection,
    kind: Kind,
    offset: u64,
    bytes: &[u8],
    len: u64,
) -> io::Result<()> {
    match kind {
        Kind::Write => connection.write(bytes, offset),
        Kind::WriteFua => {
            connection.write(bytes, offset)?;
            connection.flush()
        }
        Kind::Flush => connection.flush(),
        Kind::Discard => connection.trim(offset, len),
        Kind::Zeroes => Err(io::ErrorKind::Unsupported.into()),
    }
}

impl Local {
    fn perform(
        &self,
        path: &Path,
        kind: Kind,
        offset: u64,
        bytes: &[u8],
        len: u64,
    ) -> io::Result<()> {
        let (start, length) = (offset.cast_signed(), len.cast_signed());
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match kind {
            Kind::Write => self.plain.write_all_at(bytes, offset),
            Kind::WriteFua => self.fua.write_all_at(bytes, offset),
            Kind::Flush => self.plain.sync_data(),
            Kind::Discard if self.is_device => discard(path, offset, len),
            Kind::Zeroes if self.is_device => {
                let zero =
                    FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                Ok(fallocate(&self.plain, zero, start, length)?)
            }
            Kind::Zeroes | Kind::Discard => Ok(fallocate(&self.plain, hole, start, length)?),
        }
    }
}

/// The discard call needs an ioctl; util-linux has it, and `-f` since others hold the device open.
fn discard(path: &Path, offset: u64, len: u64) -> io::Result<()> {
    let mut command = Command::new("blkdiscard");
    command
        .args(["-f", "-o", &offset.to_string(), "-l", &len.to_string()])
        .arg(path);
    let done = command.output()?;
    if done.status.success() {
        return Ok(());
    }
    Err(io::Error::other(
        String::from_utf8_lossy(&done.stderr).trim().to_owned(),
    ))
}

/// The largest write that reaches a device as one request: its sectors, and its segments of a page each.
fn whole_bytes_max(device: u64) -> io::Result<u32> {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let node = format!("/sys/dev/block/{major}:{minor}");
    let limit = |name: &str| {
        let whole = std::fs::read_to_string(format!("{node}/queue/{name}"));
        let text = whole.or_else(|_| std::fs::read_to_string(format!("{node}/../queue/{name}")))?;
        text.trim().parse::<u32>().map_err(io::Error::other)
    };
    let sectors = limit("max_sectors_kb")?.saturating_mul(1024);
    Ok(sectors
        .min(limit("max_segments")?.saturating_mul(4096))
        .min(OPERATION_BYTES_MAX))
}
