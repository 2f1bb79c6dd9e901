//! What the tests of front ends share: a volume in memory behind a real ring and worker thread.
//!
//! Owns the smallest engine that keeps the front ends' contract, with handles for the test to hold
//! requests back, to make a range fail and to see what was asked.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use blkrep_io::real::UringIo;
use blkrep_io::{Completion, Io, Worker, run};
use blkrep_types::{BlockSize, ByteLen, Errno, Extent, Nanos, VolumeName};
use blkrep_ublk::{Device, DeviceSpec, FrontEnd, FrontQueue, Owner, Request, RequestKind};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Longest that anything in these tests may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The volume's bytes and what the test wants of it.
#[derive(Debug)]
pub struct Ram {
    pub bytes: Vec<u8>,
    /// Everything that was asked, in order.
    pub asked: Vec<(RequestKind, Option<Extent>)>,
    /// Requests that touch it fail with EIO.
    pub bad: Option<Extent>,
    /// Requests are taken but not answered.
    pub held: bool,
    /// Requests taken and not answered.
    pub waiting: usize,
}

/// A running volume.
pub struct Volume {
    pub ram: Arc<Mutex<Ram>>,
    pub device: Box<dyn Device>,
    pub waker: blkrep_io::Waker,
    worker: Option<JoinHandle<()>>,
}

struct RamWorker {
    ram: Arc<Mutex<Ram>>,
    queue: Box<dyn FrontQueue<UringIo>>,
    requests: Vec<Request>,
    waiting: Vec<Request>,
}

impl RamWorker {
    fn perform(&self, ram: &mut Ram, request: Request) -> Result<(), Errno> {
        let Some(extent) = request.extent else {
            return Ok(());
        };
        if ram.bad.is_some_and(|bad| bad.overlaps(extent)) {
            return Err(Errno::EIO);
        }
        let start = usize::try_from(extent.offset().get()).unwrap();
        let len = extent.len().as_usize();
        let range = &mut ram.bytes[start..start + len];
        match request.kind {
            RequestKind::Read => self.queue.data(request.tag).write(0, range),
            RequestKind::Write { .. } => self.queue.data(request.tag).read(0, range),
            RequestKind::Discard | RequestKind::WriteZeroes { .. } => range.fill(0),
            RequestKind::Flush => {}
        }
        Ok(())
    }
}

impl Worker<UringIo> for RamWorker {
    fn start(&mut self, io: &mut UringIo) {
        self.queue.start(io).unwrap();
    }

    fn on_completion(&mut self, io: &mut UringIo, completion: Completion<<UringIo as Io>::Socket>) {
        self.queue.on_completion(io, completion, &mut self.requests);
    }

    fn on_turn(&mut self, io: &mut UringIo) {
        self.queue.on_turn(io, &mut self.requests);
        let ram = Arc::clone(&self.ram);
        let mut ram = ram.lock().unwrap();
        for request in self.requests.drain(..) {
            ram.asked.push((request.kind, request.extent));
            self.waiting.push(request);
        }
        if !ram.held {
            for request in std::mem::take(&mut self.waiting) {
                let result = self.perform(&mut ram, request);
                self.queue.complete(io, request.tag, result);
            }
        }
        ram.waiting = self.waiting.len();
    }

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn finished(&self) -> bool {
        self.queue.finished()
    }
}

/// The usual shape: 512-byte blocks, everything offered.
pub fn spec(bytes: u64) -> DeviceSpec {
    DeviceSpec {
        volume: VolumeName::new("data").unwrap(),
        owner: Owner::of("test"),
        len: ByteLen::new(bytes),
        block_size: BlockSize::B512,
        physical_block_bytes: 4096,
        read_only: false,
        write_cache: true,
        discard: true,
        queues: 1,
        depth: 64,
        request_bytes_max: 1 << 20,
        device_id: None,
        recover: false,
    }
}

impl Volume {
    /// Makes and starts a device of `front_end`; its bytes begin as zeroes.
    pub fn serve(front_end: &dyn FrontEnd<UringIo>, spec: &DeviceSpec) -> Self {
        front_end.available().unwrap();
        let (mut device, mut queues) = front_end.make(spec).unwrap();
        assert_eq!(queues.len(), 1);
        let ram = Arc::new(Mutex::new(Ram {
            bytes: vec![0; spec.len.as_usize()],
            asked: Vec::new(),
            bad: None,
            held: false,
            waiting: 0,
        }));
        let mut worker = RamWorker {
            ram: Arc::clone(&ram),
            queue: queues.remove(0),
            requests: Vec::new(),
            waiting: Vec::new(),
        };
        let (sender, waker) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let mut io = UringIo::new(64).unwrap();
            sender.send(io.waker()).unwrap();
            run(&mut io, &mut worker).unwrap();
        });
        let waker = waker.recv().unwrap();
        device.start().unwrap();
        Self {
            ram,
            device,
            waker,
            worker: Some(thread),
        }
    }

    pub fn ram(&self) -> MutexGuard<'_, Ram> {
        self.ram.lock().unwrap()
    }

    /// Takes requests without answering them.
    pub fn hold(&self) {
        self.ram().held = true;
    }

    /// Answers what was held, and goes on.
    pub fn let_go(&self) {
        self.ram().held = false;
        self.waker.wake();
    }

    /// Waits until `count` requests are taken and not answered.
    pub fn wait_held(&self, count: usize) {
        until("requests are held", || self.ram().waiting == count);
    }

    /// The kinds asked so far; forgets them.
    pub fn asked(&self) -> Vec<(RequestKind, Option<Extent>)> {
        std::mem::take(&mut self.ram().asked)
    }

    /// Stops the device and waits until its queue has finished.
    pub fn stop(mut self) {
        self.device.stop(blkrep_ublk::Stop::Delete).unwrap();
        let worker = self.worker.take().unwrap();
        until("the queue finishes", || worker.is_finished());
        worker.join().unwrap();
    }
}

/// Waits for `done`; fails after [`PATIENCE`].
pub fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a program to its end.
pub fn tool(name: &str, arguments: &[&str]) -> Output {
    Command::new("timeout")
        .arg("120")
        .arg(name)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("run {name}: {error}"))
}

/// Runs a program that must succeed, and returns what it printed.
pub fn tool_ok(name: &str, arguments: &[&str]) -> String {
    let output = tool(name, arguments);
    assert!(
        output.status.success(),
        "{name} {arguments:?} failed ({}; 127 means that it is not installed):\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
