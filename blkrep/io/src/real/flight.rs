//! Operations in flight.
//!
//! Owns each operation's memory, file and progress from submission to completion, and says after
//! each answer of the kernel whether the operation is done or what is to be asked next. Never
//! enters the kernel itself.

use super::file::RealFile;
use super::socket::{RealSocket, address_of};
use super::wake::EventWake;
use super::zero::{ZeroWay, zeroes};
use crate::memory::Slice;
use crate::proactor::{Op, Token};
use blkrep_types::Errno;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, FsyncFlags, Timespec};
use io_uring::{opcode, types};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use std::sync::Arc;
use std::time::Duration;

/// How long a connection may take: longer than any round trip and a lost packet or two, shorter
/// than an operator's patience with an orderly stop.
pub(super) const CONNECT_WAIT: Duration = Duration::from_secs(10);

/// Most bytes asked for at a time; the kernel would cut a longer request itself.
const TRANSFER_BYTES_MAX: u64 = 1 << 30;

/// Times an operation is repeated in a row when the kernel says EAGAIN or EINTR without having
/// moved a byte. Then the error is passed on: a loop without a limit would hang the thread.
const REPEATS_MAX: u8 = 64;

/// What an operation does.
#[derive(Debug)]
pub(super) enum Job {
    /// Read to the last byte.
    Read {
        file: RealFile,
        offset: u64,
        slice: Slice,
    },
    /// Write to the last byte.
    Write {
        file: RealFile,
        offset: u64,
        slice: Slice,
        durable: bool,
    },
    /// Flush.
    Sync { file: RealFile },
    /// Zero.
    Zero {
        file: RealFile,
        offset: u64,
        len: u64,
        way: ZeroWay,
    },
    /// Connect, with what the kernel reads meanwhile.
    Connect {
        socket: RealSocket,
        address: Box<(SockaddrStorage, Timespec)>,
    },
    /// Accept.
    Accept { listener: RealSocket },
    /// Send a prefix.
    Send { socket: RealSocket, slice: Slice },
    /// Receive something.
    Recv { socket: RealSocket, slice: Slice },
    /// Read the ring's own eventfd.
    Wake { wake: Arc<EventWake>, slice: Slice },
    /// A front end's own operation: it answers for the memory.
    Raw,
}

/// One operation and how far it has come.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) token: Token,
    pub(super) job: Job,
    done: u64,
    repeats: u8,
}

/// What follows an answer of the kernel.
#[derive(Debug)]
pub(super) enum Next {
    /// The operation is complete.
    Done(Result<u32, Errno>, Option<RealSocket>),
    /// The operation goes on with its next request.
    Again,
}

/// What is to be asked of the kernel for an operation.
#[derive(Debug)]
pub(super) enum Asked {
    /// One request.
    One(Entry),
    /// A request and its time limit, which must be submitted together.
    Limited(Entry, Entry),
    /// Nothing: it is complete as it stands.
    Nothing(Result<u32, Errno>),
}

impl Flight {
    /// The flight of `op`.
    pub(super) fn of(token: Token, op: Op<RealFile, RealSocket>) -> Result<Self, Errno> {
        let job = match op {
            Op::Read {
                file,
                offset,
                slice,
            } => Job::Read {
                file,
                offset,
                slice,
            },
            Op::Write {
                file,
                offset,
                slice,
                durable,
            } => Job::Write {
                file,
                offset,
                slice,
                durable,
            },
            Op::Sync { file } => Job::Sync { file },
            Op::Zero {
                file,
                offset,
                len,
                free,
            } => {
                let way = ZeroWay::first(&file, free);
                Job::Zero {
                    file,
                    offset,
                    len,
                    way,
                }
            }
            Op::Connect { peer } => {
                let limit = Timespec::from(CONNECT_WAIT);
                Job::Connect {
                    socket: RealSocket::for_peer(&peer)?,
                    address: Box::new((*address_of(peer), limit)),
                }
            }
            Op::Accept { listener } => Job::Accept { listener },
            Op::Send { socket, slice } => Job::Send { socket, slice },
            Op::Recv { socket, slice } => Job::Recv { socket, slice },
        };
        Ok(Self::new(token, job))
    }

    /// A flight at its beginning.
    pub(super) fn new(token: Token, job: Job) -> Self {
        Self {
            token,
            job,
            done: 0,
            repeats: 0,
        }
    }

    /// The next request to the kernel.
    pub(super) fn ask(&self) -> Asked {
        match &self.job {
            Job::Read {
                file,
                offset,
                slice,
            } => {
                let Some((at, len)) = self.rest(slice) else {
                    return Asked::Nothing(Ok(0));
                };
                let read = opcode::Read::new(Fd(file.raw()), at, len);
                Asked::One(read.offset(offset + self.done).build())
            }
            Job::Write {
                file,
                offset,
                slice,
                durable,
            } => {
                let Some((at, len)) = self.rest(slice) else {
                    return Asked::Nothing(Ok(0));
                };
                let write = opcode::Write::new(Fd(file.raw()), at, len);
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                Asked::One(write.offset(offset + self.done).rw_flags(flags).build())
            }
            Job::Sync { file } => {
                let sync = opcode::Fsync::new(Fd(file.raw()));
                Asked::One(sync.flags(FsyncFlags::DATASYNC).build())
            }
            Job::Zero {
                file,
                offset,
                len,
                way,
            } => self.ask_zero(file, *offset, *len, *way),
            Job::Connect { socket, address } => {
                let (peer, limit) = &**address;
                let connect = opcode::Connect::new(Fd(socket.raw()), peer.as_ptr(), peer.len());
                Asked::Limited(
                    connect.build().flags(Flags::IO_LINK),
                    opcode::LinkTimeout::new(limit).build(),
                )
            }
            Job::Accept { listener } => {
                let nobody = std::ptr::null_mut();
                let accept = opcode::Accept::new(Fd(listener.raw()), nobody, std::ptr::null_mut());
                Asked::One(accept.flags(libc::SOCK_CLOEXEC).build())
            }
            Job::Send { socket, slice } => {
                let Some((at, len)) = self.rest(slice) else {
                    return Asked::Nothing(Ok(0));
                };
                let send = opcode::Send::new(Fd(socket.raw()), at, len);
                Asked::One(send.flags(libc::MSG_NOSIGNAL).build())
            }
            Job::Recv { socket, slice } => {
                let Some((at, len)) = self.rest(slice) else {
                    return Asked::Nothing(Ok(0));
                };
                Asked::One(opcode::Recv::new(Fd(socket.raw()), at, len).build())
            }
            Job::Wake { wake, slice } => {
                Asked::One(opcode::Read::new(types::Fd(wake.raw()), slice.as_ptr(), 8).build())
            }
            Job::Raw => Asked::Nothing(Err(Errno::EINVAL)),
        }
    }

    fn ask_zero(&self, file: &RealFile, offset: u64, len: u64, way: ZeroWay) -> Asked {
        let rest = len - self.done;
        if rest == 0 {
            return Asked::Nothing(Ok(0));
        }
        let at = offset + self.done;
        let fd = Fd(file.raw());
        Asked::One(match way.mode() {
            Some(mode) => opcode::Fallocate::new(fd, rest)
                .offset(at)
                .mode(mode)
                .build(),
            None => {
                let slice = zeroes(rest);
                let len = u32::try_from(slice.len()).expect("a chunk of zeroes is small");
                opcode::Write::new(fd, slice.as_ptr(), len)
                    .offset(at)
                    .build()
            }
        })
    }

    /// Address and length of what is left of a transfer.
    fn rest(&self, slice: &Slice) -> Option<(*mut u8, u32)> {
        let done = usize::try_from(self.done).expect("progress is within the slice");
        let rest = slice.part(done..slice.len());
        let len = u64::try_from(rest.len())
            .expect("64-bit platform")
            .min(TRANSFER_BYTES_MAX);
        (len > 0).then(|| (rest.as_ptr(), u32::try_from(len).expect("bounded above")))
    }

    /// Takes the kernel's answer.
    pub(super) fn answered(&mut self, result: i32) -> Next {
        let errno = Errno::new(result.wrapping_neg());
        if result < 0 {
            return self.failed(errno);
        }
        self.repeats = 0;
        let bytes = u64::from(result.unsigned_abs());
        match &self.job {
            Job::Read { slice, .. } | Job::Write { slice, .. } => {
                let len = u64::try_from(slice.len()).expect("64-bit platform");
                self.moved(bytes, len)
            }
            Job::Zero { len, way, .. } => {
                let (len, whole) = (*len, way.mode().is_some());
                if whole {
                    // Its answer counts nothing, and the range may be longer than any count.
                    self.done = len;
                    return Next::Done(Ok(0), None);
                }
                match self.moved(bytes, len) {
                    Next::Done(result, socket) if self.done < len => Next::Done(result, socket),
                    Next::Done(_, socket) => Next::Done(Ok(0), socket),
                    Next::Again => Next::Again,
                }
            }
            Job::Sync { .. } => Next::Done(Ok(0), None),
            Job::Connect { socket, .. } => Next::Done(Ok(0), Some(socket.clone())),
            Job::Accept { .. } => match RealSocket::accepted(result) {
                Ok(socket) => Next::Done(Ok(0), Some(socket)),
                Err(errno) => Next::Done(Err(errno), None),
            },
            Job::Send { .. } | Job::Recv { .. } | Job::Wake { .. } | Job::Raw => {
                Next::Done(Ok(result.unsigned_abs()), None)
            }
        }
    }

    /// Counts bytes of a transfer that must become whole. No byte moved means that there is none:
    /// past the end of the file, or a device that shrank.
    fn moved(&mut self, bytes: u64, len: u64) -> Next {
        if bytes == 0 {
            return Next::Done(Err(Errno::EIO), None);
        }
        self.done += bytes;
        assert!(
            self.done <= len,
            "the kernel moves no more than it was asked to"
        );
        if self.done < len {
            return Next::Again;
        }
        Next::Done(u32::try_from(len).map_err(|_| Errno::EINVAL), None)
    }

    fn failed(&mut self, errno: Errno) -> Next {
        let again = matches!(errno.get(), libc::EAGAIN | libc::EINTR);
        if again && self.repeats < REPEATS_MAX && !matches!(self.job, Job::Raw) {
            self.repeats += 1;
            return Next::Again;
        }
        match &mut self.job {
            Job::Zero { file, way, .. } if errno == Errno::EOPNOTSUPP => match way.next(file) {
                Some(next) => {
                    *way = next;
                    Next::Again
                }
                None => Next::Done(Err(errno), None),
            },
            // The linked time limit cancels the connection.
            Job::Connect { .. } if errno == Errno::ECANCELED => {
                Next::Done(Err(Errno::ETIMEDOUT), None)
            }
            _ => Next::Done(Err(errno), None),
        }
    }
}
