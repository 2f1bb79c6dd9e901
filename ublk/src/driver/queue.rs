//! One hardware queue, on the ring of the thread that serves it.
//!
//! Owns the queue's memory and its hold on the device. Completions of the ring enter, requests
//! leave; answers enter, commands for the ring leave: one entry a request, no system call of its
//! own, no allocation. Which tag may do what is decided in [`Tags`].

use super::abi::{IoCommand, io_command};
use super::char_device::{CharDevice, Descriptors};
use super::request::Bounds;
use super::shared::Shared;
use super::tags::{Command, Commands, Tags};
use crate::front::{FRONT_TOKEN, FrontQueue, Request};
use blkrep_io::real::{RealSocket, UringIo};
use blkrep_io::{Completion, Io, Region, Slice, Token};
use blkrep_types::Errno;
use io_uring::opcode;
use io_uring::types::Fd;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use zerocopy::IntoBytes;

/// The token of a barrier; those of commands are the tag.
const BARRIER: Token = FRONT_TOKEN | 1 << 16;

/// What a queue is made of.
pub(super) struct Plan {
    pub(super) index: u16,
    pub(super) depth: u16,
    pub(super) bounds: Bounds,
    /// Processors that the serving thread is bound to; empty for no binding.
    pub(super) processors: Vec<usize>,
    /// The driver can take its commands back when the device is left to a successor.
    pub(super) can_quiesce: bool,
}

/// One queue of a ublk device.
#[derive(Debug)]
pub(super) struct UblkQueue {
    index: u16,
    depth: u16,
    tags: Tags,
    descriptors: Descriptors,
    device: Arc<CharDevice>,
    memory: Arc<Region>,
    slices: Vec<Slice>,
    processors: Vec<usize>,
    can_quiesce: bool,
    shared: Arc<Shared>,
    started: bool,
    said_drained: bool,
}

impl UblkQueue {
    /// A queue of an open device.
    ///
    /// # Errors
    /// What the driver says to the mapping; ENOMEM.
    pub(super) fn new(
        plan: Plan,
        device: &Arc<CharDevice>,
        shared: &Arc<Shared>,
    ) -> Result<Self, Errno> {
        let tag_bytes = usize::try_from(plan.bounds.request_bytes_max).expect("at most 1 MiB");
        let depth = usize::from(plan.depth);
        let memory = Region::anonymous(depth * tag_bytes)?;
        let slices = (0..depth)
            .map(|tag| memory.slice(tag * tag_bytes..(tag + 1) * tag_bytes))
            .collect();
        Ok(Self {
            index: plan.index,
            depth: plan.depth,
            tags: Tags::new(plan.depth, plan.bounds),
            descriptors: device.descriptors(plan.index, plan.depth)?,
            device: Arc::clone(device),
            memory,
            slices,
            processors: plan.processors,
            can_quiesce: plan.can_quiesce,
            shared: Arc::clone(shared),
            started: false,
            said_drained: false,
        })
    }

    fn split<'a>(&'a mut self, io: &'a mut UringIo) -> (&'a mut Tags, Ring<'a>) {
        let ring = Ring {
            io,
            file: self.device.raw(),
            queue: self.index,
            slices: &self.slices,
        };
        (&mut self.tags, ring)
    }

    fn look_around(&mut self, io: &UringIo) {
        let (leaving, refusing) = (self.shared.leaving(), self.shared.refusing());
        if self.said_drained || !(leaving || refusing) {
            return;
        }
        if leaving {
            self.tags.leave();
        } else {
            self.tags.refuse();
        }
        if self.tags.drained() {
            if leaving && !self.can_quiesce {
                keep_until_thread_ends(io);
            }
            self.say_drained();
        }
    }

    fn say_drained(&mut self) {
        if !self.said_drained {
            self.said_drained = true;
            self.shared.drained();
        }
    }

    /// Runs the calling thread where the requests of this queue are made.
    fn bind_thread(&self) {
        let mut set = CpuSet::new();
        for processor in &self.processors {
            if set.set(*processor).is_err() {
                return;
            }
        }
        if let Err(errno) = sched_setaffinity(Pid::from_raw(0), &set) {
            // A container may have other processors only; then the queue runs where it can.
            tracing::debug!(queue = self.index, %errno, "the queue's thread stays unbound");
        }
    }
}

impl FrontQueue<UringIo> for UblkQueue {
    fn depth(&self) -> u16 {
        self.depth
    }

    fn start(&mut self, io: &mut UringIo) -> Result<(), Errno> {
        assert!(!self.started, "a queue is started once");
        self.started = true;
        if !self.processors.is_empty() {
            self.bind_thread();
        }
        self.shared.started(io.waker());
        let (tags, mut ring) = self.split(io);
        tags.start(&mut ring);
        Ok(())
    }

    fn data(&self, tag: u16) -> Slice {
        self.slices[usize::from(tag)].clone()
    }

    fn on_completion(
        &mut self,
        io: &mut UringIo,
        completion: Completion<RealSocket>,
        requests: &mut Vec<Request>,
    ) {
        if completion.token == BARRIER {
            self.tags.barrier();
            return self.look_around(io);
        }
        let tag = u16::try_from(completion.token & !FRONT_TOKEN).expect("a token is a tag");
        match completion.result {
            Ok(_) => {
                let descriptor = self.descriptors.read(tag);
                let (tags, mut ring) = self.split(io);
                tags.arrived(&mut ring, tag, descriptor, requests);
            }
            Err(errno) => {
                // ENODEV is the driver's way to say that there is nothing more to fetch.
                if errno != Errno::ENODEV {
                    self.shared.fail(errno);
                }
                self.tags.gone(tag);
            }
        }
    }

    fn on_turn(&mut self, io: &mut UringIo, _requests: &mut Vec<Request>) {
        self.look_around(io);
    }

    fn complete(&mut self, io: &mut UringIo, tag: u16, result: Result<(), Errno>) {
        let (tags, mut ring) = self.split(io);
        tags.complete(&mut ring, tag, result);
        self.look_around(io);
    }

    fn finished(&self) -> bool {
        let no_more = !self.tags.driver_has_some()
            || self.shared.released()
            || self.shared.failure().is_some();
        self.started && self.tags.drained() && no_more
    }

    fn ending(&self) -> bool {
        self.shared.leaving()
    }

    fn abandon(&mut self, io: &mut UringIo) {
        self.tags.abandon();
        self.look_around(io);
    }
}

impl Drop for UblkQueue {
    fn drop(&mut self) {
        self.say_drained();
        if !self.started {
            // Whoever waits for the device to start would wait for ever.
            self.shared.fail(Errno::ECANCELED);
        }
        if self.tags.driver_has_some() {
            // The driver copies into this memory until the ring is closed. Whoever got these
            // addresses next would be overwritten: nobody may.
            std::mem::forget(Arc::clone(&self.memory));
        }
    }
}

/// Keeps the ring from being closed before its thread ends.
///
/// A driver that cannot quiesce (before 6.16) loses a request that comes between the last turn of
/// a ring and its closing by a living thread: it cancels the command below the pending request,
/// and the device hangs. At the end of a thread the kernel takes what is pending first.
fn keep_until_thread_ends(io: &UringIo) {
    // SAFETY: the ring is open as long as `io` lives, which is longer than this borrow.
    let ring = unsafe { BorrowedFd::borrow_raw(io.as_raw_fd()) };
    match ring.try_clone_to_owned() {
        // Never closed by us: the process ends soon, and its ring with it.
        Ok(copy) => std::mem::forget(copy),
        Err(error) => tracing::warn!(%error, "the ring is closed while requests may come"),
    }
}

/// The way of a queue's commands.
struct Ring<'a> {
    io: &'a mut UringIo,
    file: RawFd,
    queue: u16,
    slices: &'a [Slice],
}

impl Ring<'_> {
    fn send(&mut self, number: u32, command: &IoCommand) {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(command.as_bytes());
        let entry = opcode::UringCmd16::new(Fd(self.file), number)
            .cmd(bytes)
            .build();
        let token = FRONT_TOKEN | Token::from(command.tag);
        // SAFETY: the entry names the device's file and a tag's memory. The queue owns both as
        // long as the driver has a command, and leaks the memory where it goes before the ring.
        unsafe { self.io.submit_raw(token, entry) }
    }
}

impl Commands for Ring<'_> {
    fn submit(&mut self, command: Command) {
        let (number, tag, result) = match command {
            Command::Fetch { tag } => (io_command::FETCH, tag, 0),
            Command::Commit { tag, result } => (io_command::COMMIT_AND_FETCH, tag, result),
            Command::Barrier => {
                // SAFETY: the entry names neither memory nor a file.
                return unsafe { self.io.submit_raw(BARRIER, opcode::Nop::new().build()) };
            }
        };
        let addr = self.slices[usize::from(tag)].as_ptr() as u64;
        let command = IoCommand {
            queue: self.queue,
            tag,
            result,
            addr,
        };
        self.send(number, &command);
    }
}
