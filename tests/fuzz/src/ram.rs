//! A volume in memory behind a front end: the smallest engine that keeps its contract.
//!
//! A queue enters, its requests are answered on a thread of their own for as long as the process runs.
//! What a front end hands over must be what it promises: within the volume, whole blocks, no longer than
//! a tag. Every sixteenth block fails, so that errors are answered too.

use blkrep_io::real::UringIo;
use blkrep_io::{Completion, Io, Worker, run};
use blkrep_types::{BlockSize, ByteLen, Errno, Nanos, VolumeName};
use blkrep_ublk::{DeviceSpec, FrontQueue, Owner, Request, RequestKind};
use std::thread;

/// Bytes of the volume.
pub const LEN: u64 = 1 << 20;

/// A block that cannot be read or written, in blocks.
const BAD_BLOCK: u64 = 16;

/// A small volume with small tags, so that requests are cut into pieces.
#[must_use]
pub fn spec() -> DeviceSpec {
    DeviceSpec {
        volume: VolumeName::new("data").expect("a name"),
        owner: Owner::of("fuzz"),
        len: ByteLen::new(LEN),
        block_size: BlockSize::B512,
        physical_block_bytes: 4096,
        read_only: false,
        write_cache: true,
        discard: true,
        queues: 1,
        depth: 8,
        request_bytes_max: 16 << 10,
        device_id: None,
        recover: false,
    }
}

struct Ram {
    queue: Box<dyn FrontQueue<UringIo>>,
    bytes: Vec<u8>,
    requests: Vec<Request>,
}

impl Ram {
    fn perform(&mut self, request: Request) -> Result<(), Errno> {
        let Some(extent) = request.extent else {
            assert_eq!(
                request.kind,
                RequestKind::Flush,
                "only a flush has no range"
            );
            return Ok(());
        };
        let (offset, len) = (extent.offset().get(), extent.len().get());
        assert!(
            offset.is_multiple_of(512) && len.is_multiple_of(512),
            "whole blocks"
        );
        assert!(extent.end().get() <= LEN, "within the volume");
        assert!(len <= 16 << 10, "no longer than a tag");
        if (offset / 512..extent.end().get() / 512).contains(&BAD_BLOCK) {
            return Err(Errno::EIO);
        }
        let start = usize::try_from(offset).expect("64-bit platform");
        let range = &mut self.bytes[start..start + extent.len().as_usize()];
        match request.kind {
            RequestKind::Read => self.queue.data(request.tag).write(0, range),
            RequestKind::Write { .. } => self.queue.data(request.tag).read(0, range),
            RequestKind::Discard | RequestKind::WriteZeroes { .. } => range.fill(0),
            RequestKind::Flush => panic!("a flush has no range"),
        }
        Ok(())
    }
}

impl Worker<UringIo> for Ram {
    fn start(&mut self, io: &mut UringIo) {
        self.queue.start(io).expect("start a queue");
    }

    fn on_completion(&mut self, io: &mut UringIo, completion: Completion<<UringIo as Io>::Socket>) {
        self.queue.on_completion(io, completion, &mut self.requests);
    }

    fn on_turn(&mut self, io: &mut UringIo) {
        self.queue.on_turn(io, &mut self.requests);
        for request in std::mem::take(&mut self.requests) {
            let result = self.perform(request);
            self.queue.complete(io, request.tag, result);
        }
    }

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn finished(&self) -> bool {
        self.queue.finished()
    }
}

/// Answers the requests of a queue.
///
/// # Panics
/// If there is no ring to be had.
pub fn answer(queue: Box<dyn FrontQueue<UringIo>>) {
    thread::spawn(move || {
        let mut io = UringIo::new(64).expect("make a ring");
        let bytes = vec![0; usize::try_from(LEN).expect("64-bit platform")];
        let mut ram = Ram {
            queue,
            bytes,
            requests: Vec::new(),
        };
        run(&mut io, &mut ram).expect("run a queue");
    });
}
