//! The filesystem of one file: what the kernel asks of it, as requests of a queue.
//!
//! Owns the dialogue with FUSE. Enters: reads, writes, fsync and fallocate of the file `volume`.
//! Leaves: requests in the mailbox; the worker's answer goes straight back to the kernel. Data is
//! never cached here or by the kernel: the file is opened for direct I/O.

use crate::front::{DeviceSpec, RequestKind};
use crate::mailbox::{Asker, Lease, Mailbox, Pieces};
use blkrep_types::{ByteLen, ByteOffset, Errno, Extent};
use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The name of the one file.
pub(super) const FILE_NAME: &str = "volume";

const FILE: INodeNo = INodeNo(2);

/// How long the kernel may believe names and attributes: they never change.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The filesystem's block size: what the loop driver takes as the grain of a discard.
const GRAIN_BYTES: u32 = 4096;

/// A filesystem that shows one volume as one file.
#[derive(Debug)]
pub(super) struct OneFile {
    mailbox: Arc<Mailbox<Ask>>,
    len: u64,
    block_bytes: u64,
    read_only: bool,
    discard: bool,
    made: SystemTime,
}

/// Who takes the answer of a request of the kernel. Dropped without an answer it says EIO.
#[derive(Debug)]
pub(super) enum Ask {
    Read(ReplyData, usize),
    Write(ReplyWrite, u32),
    Flush(ReplyEmpty),
    /// The rest of a range that is longer than one request.
    Walk(ReplyEmpty, RequestKind, Pieces),
}

impl Asker for Ask {
    fn answer(self, lease: Lease<Self>, result: Result<(), Errno>) {
        match (self, result) {
            (Self::Read(reply, len), Ok(())) => {
                lease.data().part(0..len).with(|bytes| reply.data(bytes));
            }
            (Self::Read(reply, _), Err(errno)) => reply.error(to_fuse(errno)),
            (Self::Write(reply, len), Ok(())) => reply.written(len),
            (Self::Write(reply, _), Err(errno)) => reply.error(to_fuse(errno)),
            (Self::Walk(reply, kind, mut rest), Ok(())) => match rest.next() {
                Some(piece) => lease.submit(kind, Some(piece), Self::Walk(reply, kind, rest)),
                None => reply.ok(),
            },
            (Self::Flush(reply), Ok(())) => reply.ok(),
            (Self::Flush(reply) | Self::Walk(reply, ..), Err(errno)) => {
                reply.error(to_fuse(errno));
            }
        }
    }
}

fn to_fuse(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.get())
}

impl OneFile {
    pub(super) fn new(mailbox: Arc<Mailbox<Ask>>, spec: &DeviceSpec) -> Self {
        Self {
            mailbox,
            len: spec.len.get(),
            block_bytes: spec.block_size.get(),
            read_only: spec.read_only,
            discard: spec.discard,
            made: SystemTime::now(),
        }
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0o700, 0),
            FILE if self.read_only => (FileType::RegularFile, 0o400, self.len),
            FILE => (FileType::RegularFile, 0o600, self.len),
            _ => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size.div_ceil(512),
            atime: self.made,
            mtime: self.made,
            ctime: self.made,
            crtime: self.made,
            kind,
            perm,
            nlink: 1,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            rdev: 0,
            blksize: GRAIN_BYTES,
            flags: 0,
        })
    }

    /// The checked range of a request.
    fn range(&self, offset: u64, len: u64) -> Result<Extent, Errno> {
        let aligned =
            offset.is_multiple_of(self.block_bytes) && len.is_multiple_of(self.block_bytes);
        let extent = Extent::new(ByteOffset::new(offset), ByteLen::new(len));
        match extent {
            Ok(extent) if aligned && extent.end().get() <= self.len => Ok(extent),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The checked range of a read or write, which must fit a tag.
    fn moved(&self, offset: u64, len: usize) -> Result<Extent, Errno> {
        if len > self.mailbox.request_bytes() {
            return Err(Errno::EINVAL);
        }
        self.range(offset, u64::try_from(len).expect("bounded"))
    }

    fn zeroing(&self, mode: i32) -> Result<RequestKind, Errno> {
        use libc::{FALLOC_FL_KEEP_SIZE as KEEP, FALLOC_FL_PUNCH_HOLE as HOLE};
        let zero = libc::FALLOC_FL_ZERO_RANGE;
        if self.read_only {
            return Err(Errno::EROFS);
        }
        match mode {
            _ if !self.discard => Err(Errno::EOPNOTSUPP),
            // Discarded ranges read as zeroes, so both meanings that the loop driver gives to a
            // hole (discard, write zeroes that may free) are met.
            _ if mode == HOLE | KEEP => Ok(RequestKind::Discard),
            _ if mode == zero | KEEP || mode == zero => Ok(RequestKind::WriteZeroes {
                fua: false,
                may_free: false,
            }),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }
}

impl Filesystem for OneFile {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let bytes = u32::try_from(self.mailbox.request_bytes())
            .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        // Each has a limit of the kernel's or the library's, which it answers with.
        if let Err(most) = config.set_max_write(bytes) {
            tracing::warn!(bytes, most, "FUSE takes smaller writes only");
            let _previous = config.set_max_write(most);
        }
        if let Err(most) = config.set_max_readahead(bytes) {
            let _previous = config.set_max_readahead(most);
        }
        let _previous = config.set_max_background(self.mailbox.depth());
        if config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).is_err() {
            tracing::warn!("this kernel's FUSE has no asynchronous direct I/O: expect depth 1");
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = parent == INodeNo::ROOT && name == FILE_NAME;
        match self.attributes(FILE).filter(|_| found) {
            Some(attributes) => reply.entry(&LIFETIME, &attributes, Generation(0)),
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn getattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&LIFETIME, &attributes),
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = [
            (inode, FileType::Directory, "."),
            (inode, FileType::Directory, ".."),
            (FILE, FileType::RegularFile, FILE_NAME),
        ];
        for (place, (inode, kind, name)) in (1..).zip(entries) {
            if place > offset && reply.add(inode, place, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn open(&self, _request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if inode != FILE {
            return reply.error(fuser::Errno::EISDIR);
        }
        if self.read_only && flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(fuser::Errno::EROFS);
        }
        let direct = FopenFlags::FOPEN_DIRECT_IO
            | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
            | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(0), direct);
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let left = self.len.saturating_sub(offset);
        let len = usize::try_from(u64::from(size).min(left)).expect("64-bit platform");
        if len == 0 {
            return reply.data(&[]);
        }
        match (self.moved(offset, len), self.mailbox.lease()) {
            (Err(errno), _) => reply.error(to_fuse(errno)),
            (_, None) => reply.error(fuser::Errno::EIO),
            (Ok(extent), Some(lease)) => {
                lease.submit(RequestKind::Read, Some(extent), Ask::Read(reply, len));
            }
        }
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if self.read_only {
            return reply.error(fuser::Errno::EROFS);
        }
        match (self.moved(offset, data.len()), self.mailbox.lease()) {
            (Err(errno), _) => reply.error(to_fuse(errno)),
            (_, None) => reply.error(fuser::Errno::EIO),
            (Ok(extent), Some(lease)) => {
                lease.data().write(0, data);
                let len = u32::try_from(data.len()).expect("fits a tag");
                let kind = RequestKind::Write { fua: false };
                lease.submit(kind, Some(extent), Ask::Write(reply, len));
            }
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Of a closed descriptor, not of data: nothing is cached here.
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        match self.mailbox.lease() {
            Some(lease) => lease.submit(RequestKind::Flush, None, Ask::Flush(reply)),
            None => reply.error(fuser::Errno::EIO),
        }
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        let blocks = self.len / u64::from(GRAIN_BYTES);
        reply.statfs(blocks, 0, 0, 1, 0, GRAIN_BYTES, 255, GRAIN_BYTES);
    }

    fn fallocate(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let checked = self
            .zeroing(mode)
            .and_then(|kind| Ok((kind, self.range(offset, length)?)));
        let (kind, extent) = match checked {
            Err(errno) => return reply.error(to_fuse(errno)),
            Ok(checked) => checked,
        };
        let piece = u64::try_from(self.mailbox.request_bytes()).expect("bounded");
        let mut rest = Pieces::new(extent, piece);
        let first = rest.next();
        match self.mailbox.lease() {
            Some(lease) => lease.submit(kind, first, Ask::Walk(reply, kind, rest)),
            None => reply.error(fuser::Errno::EIO),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::front::Owner;
    use blkrep_types::{BlockSize, VolumeName};

    fn one_file(read_only: bool, discard: bool) -> OneFile {
        let spec = DeviceSpec {
            volume: VolumeName::new("data").unwrap(),
            owner: Owner::of("test"),
            len: ByteLen::new(1 << 20),
            block_size: BlockSize::B4096,
            physical_block_bytes: 4096,
            read_only,
            write_cache: true,
            discard,
            queues: 1,
            depth: 2,
            request_bytes_max: 65536,
            device_id: None,
            recover: false,
        };
        let (mailbox, _queue) = Mailbox::new(spec.depth, 65536).unwrap();
        OneFile::new(mailbox, &spec)
    }

    #[test]
    fn ranges_outside_unaligned_or_too_long_are_refused() {
        let file = one_file(false, true);
        assert!(file.range(4096, 8192).is_ok());
        assert!(file.range((1 << 20) - 4096, 4096).is_ok());
        for (offset, len) in [
            (512, 4096),
            (0, 512),
            (0, 0),
            (1 << 20, 4096),
            (u64::MAX, 1),
        ] {
            assert_eq!(
                file.range(offset, len),
                Err(Errno::EINVAL),
                "{offset}+{len}"
            );
        }
        assert!(file.moved(0, 65536).is_ok());
        assert_eq!(file.moved(0, 65536 + 4096), Err(Errno::EINVAL));
    }

    #[test]
    fn holes_are_discards_and_zeroed_ranges_keep_their_storage() {
        let file = one_file(false, true);
        assert_eq!(file.zeroing(3), Ok(RequestKind::Discard));
        let zeroes = RequestKind::WriteZeroes {
            fua: false,
            may_free: false,
        };
        assert_eq!(file.zeroing(0x11), Ok(zeroes));
        assert_eq!(file.zeroing(0), Err(Errno::EOPNOTSUPP));
        assert_eq!(one_file(false, false).zeroing(3), Err(Errno::EOPNOTSUPP));
        assert_eq!(one_file(true, true).zeroing(3), Err(Errno::EROFS));
    }
}
