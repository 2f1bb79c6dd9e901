//! The judges judged: a plain disk server without a fault, and the same with one fault each.
//!
//! A simulator that never complains proves nothing. Here the application runs over a server that
//! is right, and nobody may complain; then over servers that are wrong on purpose, and somebody
//! must.
#![allow(clippy::unwrap_used)]

use super::app::{App, Habits};
use super::front::{Front, SimFront};
use super::judge;
use blkrep_io::sim::{Next, NodeId, SimFile, SimHost, SimIo, SimOptions, SimSocket, SimWorld};
use blkrep_io::{Access, Completion, Host, Io, Op, Worker};
use blkrep_types::{BlockSize, ByteLen, Nanos};
use blkrep_ublk::{FrontQueue, Request, RequestKind};
use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

/// What the server does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// Every fifth write is answered and never made.
    Loses,
    /// Flushes are answered without a flush.
    FlushLies,
    /// FUA writes are plain.
    FuaLies,
    /// Every fifth write goes one block further.
    Misplaces,
    /// Discards do nothing.
    DiscardLies,
}

/// Serves one volume, one request at a time.
#[derive(Debug)]
struct Plain {
    front: SimFront,
    file: SimFile,
    flaw: Flaw,
    waiting: VecDeque<Request>,
    busy: Option<Request>,
    count: u64,
}

impl Plain {
    fn pump(&mut self, io: &mut SimIo) {
        while self.busy.is_none() {
            let Some(request) = self.waiting.pop_front() else {
                return;
            };
            self.count += 1;
            match self.operation(request) {
                Some(op) => {
                    self.busy = Some(request);
                    io.submit(1, op);
                }
                None => self.front.complete(io, request.tag, Ok(())),
            }
        }
    }

    fn operation(&self, request: Request) -> Option<Op<SimFile, SimSocket>> {
        let file = self.file.clone();
        let fifth = self.count.is_multiple_of(5);
        let (mut offset, len) = request
            .extent
            .map_or((0, 0), |extent| (extent.offset().get(), extent.len().get()));
        let slice = || {
            let len = usize::try_from(len).unwrap();
            self.front.data(request.tag).part(0..len)
        };
        match request.kind {
            RequestKind::Read => Some(Op::Read {
                file,
                offset,
                slice: slice(),
            }),
            RequestKind::Write { .. } if self.flaw == Flaw::Loses && fifth => None,
            RequestKind::Write { fua } => {
                if self.flaw == Flaw::Misplaces && fifth && offset > 0 {
                    offset -= 512;
                }
                let durable = fua && self.flaw != Flaw::FuaLies;
                Some(Op::Write {
                    file,
                    offset,
                    slice: slice(),
                    durable,
                })
            }
            RequestKind::Flush if self.flaw == Flaw::FlushLies => None,
            RequestKind::Flush => Some(Op::Sync { file }),
            RequestKind::Discard if self.flaw == Flaw::DiscardLies => None,
            RequestKind::Discard | RequestKind::WriteZeroes { .. } => Some(Op::Zero {
                file,
                offset,
                len,
                free: true,
            }),
        }
    }
}

impl Worker<SimIo> for Plain {
    fn start(&mut self, io: &mut SimIo) {
        self.front.start(io).unwrap();
    }

    fn on_completion(&mut self, io: &mut SimIo, completion: Completion<SimSocket>) {
        let request = self.busy.take().unwrap();
        self.front
            .complete(io, request.tag, completion.result.map(|_| ()));
    }

    fn on_turn(&mut self, io: &mut SimIo) {
        let mut requests = Vec::new();
        self.front.on_turn(io, &mut requests);
        self.waiting.extend(requests);
        self.pump(io);
    }

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn finished(&self) -> bool {
        self.front.finished()
    }
}

const BYTES: u64 = 64 << 10;
const HABITS: Habits = Habits {
    reads: 20,
    flushes: 5,
    clears: 5,
    fua: 20,
    hot: 50,
    blocks_max: 8,
};

fn path() -> &'static Path {
    Path::new("/dev/sda")
}

struct Bench {
    world: SimWorld,
    node: NodeId,
    host: SimHost,
    front: Front,
    app: App,
    io: SimIo,
    worker: Plain,
}

fn serve(host: &SimHost, front: &Front, flaw: Flaw) -> (SimIo, Plain) {
    let access = Access {
        read_only: false,
        direct: true,
        claim: true,
        create: None,
    };
    let file = host.open(path(), access).unwrap();
    let mut io = host.ring(8).unwrap();
    let (front, waiting) = (front.serve(), VecDeque::new());
    let mut worker = Plain {
        front,
        file,
        flaw,
        waiting,
        busy: None,
        count: 0,
    };
    io.begin(&mut worker);
    (io, worker)
}

fn bench(seed: u64, flaw: Flaw) -> Bench {
    let world = SimWorld::new(seed, SimOptions::default());
    let node = world.add_node();
    world.add_device(node, path(), ByteLen::new(BYTES), BlockSize::B512, true);
    let host = world.start(node);
    let front = Front::new();
    let base = vec![world.image(node, path())];
    let app = App::new(
        world.fork_random(),
        (HABITS, 512),
        vec![front.clone()],
        1,
        base,
    );
    let (io, worker) = serve(&host, &front, flaw);
    Bench {
        world,
        node,
        host,
        front,
        app,
        io,
        worker,
    }
}

impl Bench {
    /// Runs until so many requests were issued; if `drain`, until they are answered.
    fn work(&mut self, requests: u64, drain: bool) -> Result<(), String> {
        let end = self.app.requests + requests;
        let limit = self.world.now().after(Duration::from_secs(60));
        while self.app.requests < end || (drain && self.app.outstanding() > 0) {
            if self.app.requests < end {
                self.app.issue();
            }
            match self.world.next(limit) {
                Next::Ring(_) => self.io.turn(&mut self.worker),
                Next::Until => return Err("nothing happens any more".to_owned()),
            }
            self.app.take_answers()?;
        }
        Ok(())
    }

    fn images(&self) -> Vec<Vec<u8>> {
        vec![self.world.image(self.node, path())]
    }
}

/// Reads, a kill, more reads, the whole image, a power cut.
fn complaint(seed: u64, flaw: Flaw) -> Result<(), String> {
    let mut bench = bench(seed, flaw);
    bench.work(100, false)?;
    bench.world.crash_process(bench.host.process());
    bench.host = bench.world.start(bench.node);
    let access = Access {
        read_only: false,
        direct: true,
        claim: true,
        create: None,
    };
    while bench.host.open(path(), access).is_err() {
        let soon = bench.world.now().after(Duration::from_millis(100));
        assert_eq!(bench.world.next(soon), Next::Until);
    }
    (bench.io, bench.worker) = serve(&bench.host, &bench.front, flaw);
    bench.work(100, true)?;
    judge::source(bench.app.age(), &bench.images())?;
    bench.work(60, false)?;
    bench.world.power_loss(bench.node);
    judge::after_power_loss(bench.app.age(), &bench.images())
}

#[test]
fn a_right_server_is_never_complained_of() {
    for seed in 0..100 {
        complaint(seed, Flaw::None).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn every_wrong_server_is_caught() {
    let flaws = [
        Flaw::Loses,
        Flaw::FlushLies,
        Flaw::FuaLies,
        Flaw::Misplaces,
        Flaw::DiscardLies,
    ];
    for flaw in flaws {
        let caught = (0..40)
            .filter(|seed| complaint(*seed, flaw).is_err())
            .count();
        assert!(caught >= 5, "{flaw:?} was caught in {caught} of 40 runs");
    }
}

#[test]
fn a_replica_that_reorders_is_caught() {
    let mut bench = bench(7, Flaw::None);
    bench.work(200, true).unwrap();
    let now = bench.images();
    judge::replica(&[bench.app.age()], &now).unwrap();
    judge::replica(&[bench.app.age()], &bench.app.age().base).unwrap();
    // The newest of everything but for one old sector in the middle of it.
    let mut caught = 0;
    for sector in 0..16 {
        let mut torn = now.clone();
        torn[0][sector * 512..][..512].fill(0);
        caught += usize::from(judge::replica(&[bench.app.age()], &torn).is_err());
    }
    assert!(caught >= 12, "{caught} of 16");
    assert!(judge::equal(&now, &bench.app.age().base).is_err());
}
