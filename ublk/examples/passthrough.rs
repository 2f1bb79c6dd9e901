//! A device that passes every request on to a file or block device: the least a server can be.
//!
//! It shows how the parts of the ublk front end are put together, and it is the baseline that the
//! engine is measured against. It orders nothing: overlapping writes in flight may land in any
//! order, as on any disk.
//!
//! ```text
//! passthrough BACKING [--id N] [--recover] [--queues N] [--depth N] [--block 512|4096]
//! passthrough list
//! passthrough remove ID
//! passthrough in-use ID
//! ```
//!
//! SIGTERM leaves the device to a successor (`--recover --id N`), SIGINT deletes it.

use blkrep_io::real::{RealFile, RealHost, RealSocket, UringIo, process};
use blkrep_io::{Access, Completion, Host, Io, Op, Worker, run};
use blkrep_types::{BlockSize, Errno, Nanos, VolumeName};
use blkrep_ublk::driver::Ublk;
use blkrep_ublk::{
    DeviceSpec, FRONT_TOKEN, FrontEnd, FrontQueue, Owner, Request, RequestKind, Stop,
};
use nix::sys::signal::{SigSet, Signal};
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a successor waits for its predecessor's claim on the backing.
const CLAIM_WAIT: Duration = Duration::from_secs(60);

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Serves one queue: a request becomes an operation with the tag as its token.
#[derive(Debug)]
struct Passthrough {
    front: Box<dyn FrontQueue<UringIo>>,
    file: RealFile,
    requests: Vec<Request>,
    in_flight: usize,
}

impl Passthrough {
    fn new(front: Box<dyn FrontQueue<UringIo>>, file: RealFile) -> Self {
        let requests = Vec::with_capacity(usize::from(front.depth()));
        Self {
            front,
            file,
            requests,
            in_flight: 0,
        }
    }

    fn operation(&self, request: &Request) -> Op<RealFile, RealSocket> {
        let file = self.file.clone();
        let Some(extent) = request.extent else {
            return Op::Sync { file };
        };
        let (offset, len) = (extent.offset().get(), extent.len());
        let slice = || self.front.data(request.tag).part(0..len.as_usize());
        match request.kind {
            RequestKind::Read => Op::Read {
                file,
                offset,
                slice: slice(),
            },
            RequestKind::Write { fua } => Op::Write {
                file,
                offset,
                slice: slice(),
                durable: fua,
            },
            RequestKind::Flush => Op::Sync { file },
            RequestKind::Discard => Op::Zero {
                file,
                offset,
                len: len.get(),
                free: true,
            },
            RequestKind::WriteZeroes { may_free, .. } => Op::Zero {
                file,
                offset,
                len: len.get(),
                free: may_free,
            },
        }
    }

    fn submit(&mut self, io: &mut UringIo) {
        let mut requests = std::mem::take(&mut self.requests);
        for request in requests.drain(..) {
            self.in_flight += 1;
            io.submit(u64::from(request.tag), self.operation(&request));
        }
        self.requests = requests;
    }
}

impl Worker<UringIo> for Passthrough {
    fn start(&mut self, io: &mut UringIo) {
        if let Err(error) = self.front.start(io) {
            eprintln!("passthrough: start a queue: {error}");
        }
    }

    fn on_completion(&mut self, io: &mut UringIo, completion: Completion<RealSocket>) {
        if completion.token & FRONT_TOKEN != 0 {
            self.front.on_completion(io, completion, &mut self.requests);
            return self.submit(io);
        }
        let tag = u16::try_from(completion.token).expect("our tokens are tags");
        self.in_flight -= 1;
        self.front.complete(io, tag, completion.result.map(|_| ()));
    }

    fn on_turn(&mut self, io: &mut UringIo) {
        self.front.on_turn(io, &mut self.requests);
        self.submit(io);
    }

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn finished(&self) -> bool {
        self.in_flight == 0 && self.front.finished()
    }
}

struct Arguments {
    backing: String,
    id: Option<u32>,
    recover: bool,
    queues: u16,
    depth: u16,
    block: BlockSize,
}

fn parse(backing: String, mut rest: std::env::Args) -> Outcome<Arguments> {
    let mut arguments = Arguments {
        backing,
        id: None,
        recover: false,
        queues: 1,
        depth: 128,
        block: BlockSize::B512,
    };
    while let Some(option) = rest.next() {
        let mut value = || rest.next().ok_or_else(|| format!("{option} wants a value"));
        match option.as_str() {
            "--id" => arguments.id = Some(value()?.parse()?),
            "--recover" => arguments.recover = true,
            "--queues" => arguments.queues = value()?.parse()?,
            "--depth" => arguments.depth = value()?.parse()?,
            "--block" => arguments.block = BlockSize::try_from(value()?.parse::<u64>()?)?,
            _ => return Err(format!("unknown option {option}").into()),
        }
    }
    Ok(arguments)
}

/// Opens the backing with the exclusive claim. A killed predecessor's claim lasts until its last
/// write has landed: serving before that would let an old write overtake a new one.
fn claim(host: &RealHost, path: &Path) -> Outcome<RealFile> {
    let access = Access {
        read_only: false,
        direct: true,
        claim: true,
        create: None,
    };
    let end = Instant::now() + CLAIM_WAIT;
    loop {
        match host.open(path, access) {
            Err(error) if error.errno == Errno::EBUSY && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return Ok(other?),
        }
    }
}

fn serve(arguments: &Arguments) -> Outcome<()> {
    for warning in [process::set_io_flusher(), process::lock_memory()] {
        if let Err(error) = warning {
            eprintln!("passthrough: {error}");
        }
    }
    let host = RealHost::new("passthrough");
    let file = claim(&host, Path::new(&arguments.backing))?;
    let geometry = host.geometry(&file)?;
    let spec = DeviceSpec {
        volume: VolumeName::new("passthrough")?,
        owner: Owner::of("passthrough"),
        len: geometry.len,
        block_size: arguments.block,
        physical_block_bytes: geometry.physical_block_bytes,
        read_only: geometry.read_only,
        write_cache: true,
        discard: true,
        queues: arguments.queues,
        depth: arguments.depth,
        request_bytes_max: 1 << 20,
        device_id: arguments.id,
        recover: arguments.recover,
    };
    // Threads inherit the mask, so that the signals come to `wait` below only.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block()?;
    let (mut device, queues) = Ublk::default().make(&spec)?;
    let threads: Vec<_> = queues
        .into_iter()
        .map(|queue| spawn(queue, &host, &file))
        .collect();
    device.start()?;
    println!("ready {}", device.path());
    let how = match signals.wait()? {
        Signal::SIGINT => Stop::Delete,
        _ => Stop::LeaveForSuccessor,
    };
    device.stop(how)?;
    for thread in threads {
        thread.join().map_err(|_| "a queue's thread panicked")??;
    }
    println!("stopped {}", device.path());
    Ok(())
}

type QueueThread = std::thread::JoinHandle<Result<(), String>>;

fn spawn(front: Box<dyn FrontQueue<UringIo>>, host: &RealHost, file: &RealFile) -> QueueThread {
    let (host, file) = (host.clone(), file.clone());
    std::thread::spawn(move || {
        let entries = u32::from(front.depth()) * 2;
        // Declared before the ring, dropped after it: the driver may use a queue's memory until
        // the ring is closed.
        let mut worker = Passthrough::new(front, file);
        let mut io = host.ring(entries).map_err(|error| error.to_string())?;
        run(&mut io, &mut worker).map_err(|error| error.to_string())
    })
}

fn main() -> Outcome<()> {
    let mut arguments = std::env::args();
    let _program = arguments.next();
    let usage = "usage: passthrough BACKING [--id N] [--recover] [--queues N] [--depth N] \
                 [--block 512|4096] | list | remove ID | in-use ID";
    match arguments.next().ok_or(usage)?.as_str() {
        "list" => {
            for found in Ublk::default().list()? {
                println!("{} {:?} {:?}", found.id, found.server, found.pid);
            }
            Ok(())
        }
        "remove" => {
            let id = arguments.next().ok_or(usage)?.parse()?;
            Ok(Ublk::default().remove_left_behind(id)?)
        }
        "in-use" => {
            let id = arguments.next().ok_or(usage)?.parse()?;
            println!("{}", Ublk::default().in_use(id));
            Ok(())
        }
        backing => serve(&parse(backing.to_owned(), arguments)?),
    }
}
