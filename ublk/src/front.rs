//! What every front end is to the engine above: a device and its queues.
//!
//! Owns the traits [`FrontQueue`], [`Device`] and [`FrontEnd`] and the words of a request. A queue
//! runs on the data-plane thread that owns its ring; a device is the rare, blocking side.

use blkrep_io::{Completion, Io, Slice, Token};
use blkrep_types::{BlockSize, ByteLen, Errno, Extent, VolumeName};
use std::fmt;

/// Tokens with this bit belong to the front end; the engine never uses it.
pub const FRONT_TOKEN: Token = 1 << 63;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// Read the extent into the tag's memory.
    Read,
    /// Write the tag's memory to the extent.
    Write {
        /// Durable before it completes.
        fua: bool,
    },
    /// Make every completed write durable.
    Flush,
    /// The bytes are no longer needed; they read as zeroes afterwards.
    Discard,
    /// The bytes read as zeroes afterwards.
    WriteZeroes {
        /// Durable before it completes.
        fua: bool,
        /// The storage below may be given back.
        may_free: bool,
    },
}

/// One request of an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Its place in the queue; free again when it is completed.
    pub tag: u16,
    /// What it asks for.
    pub kind: RequestKind,
    /// Where: within the volume and block-aligned, as the queue has checked. `None` for a flush.
    pub extent: Option<Extent>,
}

/// One queue of a device, on the thread of the ring `I`.
pub trait FrontQueue<I: Io>: fmt::Debug + Send {
    /// Requests it can have outstanding.
    fn depth(&self) -> u16;

    /// Begins to take requests; called once, on the thread that will run the queue.
    ///
    /// # Errors
    /// The kernel or socket refuses.
    fn start(&mut self, io: &mut I) -> Result<(), Errno>;

    /// The memory of a tag, as long as the largest request: holds the bytes of a write, takes the
    /// bytes of a read. Page-aligned. The engine may hand it to operations until it completes the tag.
    fn data(&self, tag: u16) -> Slice;

    /// Takes a completion whose token has [`FRONT_TOKEN`]; appends the requests it brought.
    fn on_completion(
        &mut self,
        io: &mut I,
        completion: Completion<I::Socket>,
        requests: &mut Vec<Request>,
    );

    /// Called at every turn; appends the requests that came by other ways than the ring.
    fn on_turn(&mut self, io: &mut I, requests: &mut Vec<Request>);

    /// Answers a request. After it the tag's memory belongs to the queue again.
    fn complete(&mut self, io: &mut I, tag: u16, result: Result<(), Errno>);

    /// True when the device is gone and no request will come any more.
    fn finished(&self) -> bool;

    /// True once the device has been told to end: what is not answered now will not be missed.
    fn ending(&self) -> bool;

    /// Gives up the requests that the engine has: it will complete none of them. A successor gets
    /// them again where the front end can do that; else whoever waits gets an error.
    fn abandon(&mut self, io: &mut I);
}

/// The kinds of front end, in the order `auto` tries them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrontKind {
    /// Linux's userspace block driver.
    Ublk,
    /// A loop device over a FUSE file.
    Loop,
    /// A network block device server.
    Nbd,
}

/// Who makes devices on this host: a daemon with one state directory. Another's device is never taken
/// for one's own, whatever its volume is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner(u32);

impl Owner {
    /// Bits that tell owners apart.
    pub(crate) const BITS: u32 = 24;

    /// The owner with this identity: text that no other daemon of the host has, and that a successor
    /// has again.
    #[must_use]
    pub fn of(identity: &str) -> Self {
        Self(crc32fast::hash(identity.as_bytes()) >> (u32::BITS - Self::BITS))
    }

    pub(crate) const fn get(self) -> u32 {
        self.0
    }
}

/// What a device is to look like.
#[derive(Debug, Clone)]
pub struct DeviceSpec {
    /// The volume it serves.
    pub volume: VolumeName,
    /// Who serves it.
    pub owner: Owner,
    /// Its size.
    pub len: ByteLen,
    /// Its logical block size.
    pub block_size: BlockSize,
    /// The backing's physical block size in bytes.
    pub physical_block_bytes: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// A completed write may be lost on a power cut unless flushed: flush and FUA are offered.
    pub write_cache: bool,
    /// Discard and write-zeroes are offered.
    pub discard: bool,
    /// Number of queues.
    pub queues: u16,
    /// Requests outstanding a queue.
    pub depth: u16,
    /// Largest request in bytes; larger ones are split by the kernel or refused.
    pub request_bytes_max: u32,
    /// The number wanted: `/dev/ublkb<N>`.
    pub device_id: Option<u32>,
    /// Take over the device with this number that a predecessor left behind.
    pub recover: bool,
}

/// Why a device could not be made, started or stopped, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}; {action}")]
pub struct FrontError {
    /// What failed, to what.
    pub what: String,
    /// The kernel's reason.
    pub source: Errno,
    /// What the operator can do.
    pub action: String,
}

/// How a device ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It disappears; what is open gets errors.
    Delete,
    /// It stays for a successor of this process, where the front end can do that.
    LeaveForSuccessor,
}

/// True while an application has a device open.
pub type Users = Box<dyn Fn() -> bool + Send>;

/// The blocking side of a device.
pub trait Device: fmt::Debug + Send {
    /// Its kind.
    fn kind(&self) -> FrontKind;

    /// Where an application finds it: `/dev/ublkb0`, `/dev/loop0`, `nbd+unix:///?socket=PATH`.
    fn path(&self) -> String;

    /// Its number, where it has one.
    fn id(&self) -> Option<u32>;

    /// Lets requests come; every queue has been started on its thread.
    ///
    /// # Errors
    /// What the kernel says, and what to do.
    fn start(&mut self) -> Result<(), FrontError>;

    /// Looks whether an application has it open. That may take long, so it can be done apart from
    /// the device, and without anybody's lock.
    fn users(&self) -> Users;

    /// True while an application has it open.
    fn in_use(&self) -> bool {
        (self.users())()
    }

    /// True if requests in flight at a crash are issued again to the successor.
    fn reissues(&self) -> bool;

    /// Ends it. Its queues finish. Idempotent.
    ///
    /// # Errors
    /// What the kernel says, and what to do.
    fn stop(&mut self, how: Stop) -> Result<(), FrontError>;
}

/// A device with its queues, before it is started.
pub type Made<I> = (Box<dyn Device>, Vec<Box<dyn FrontQueue<I>>>);

/// A way to make devices.
pub trait FrontEnd<I: Io>: fmt::Debug + Send {
    /// Its kind.
    fn kind(&self) -> FrontKind;

    /// Whether it works here, now; if not, why and what to do.
    ///
    /// # Errors
    /// The reason that it does not.
    fn available(&self) -> Result<(), FrontError>;

    /// Makes a device: not yet started, nothing served.
    ///
    /// # Errors
    /// What the kernel says, and what to do; nothing is left behind.
    fn make(&self, spec: &DeviceSpec) -> Result<Made<I>, FrontError>;
}
