//! A device without a kernel: requests of a test, answered by the worker.

use blkrep_io::sim::{SimIo, SimSocket};
use blkrep_io::{Completion, Io, Region, Slice, Waker};
use blkrep_types::{Errno, Extent};
use blkrep_ublk::{FrontQueue, Request, RequestKind};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

pub(super) const DEPTH: u16 = 16;
const BYTES_MAX: usize = 64 << 10;

#[derive(Debug)]
struct Shared {
    fresh: Vec<u16>,
    outstanding: BTreeMap<u16, (Request, Vec<u8>)>,
    answers: Vec<(u16, Result<(), Errno>, Vec<u8>)>,
    memory: Slice,
    waker: Option<Waker>,
    stopping: bool,
    holds_back: bool,
}

/// The test's side: outlives daemons, as the kernel does.
#[derive(Debug, Clone)]
pub(super) struct Front(Arc<Mutex<Shared>>);

fn memory() -> Slice {
    Region::heap(usize::from(DEPTH) * BYTES_MAX).whole()
}

fn data(memory: &Slice, tag: u16) -> Slice {
    let start = usize::from(tag) * BYTES_MAX;
    memory.part(start..start + BYTES_MAX)
}

impl Front {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Shared {
            fresh: Vec::new(),
            outstanding: BTreeMap::new(),
            answers: Vec::new(),
            memory: memory(),
            waker: None,
            stopping: false,
            holds_back: false,
        })))
    }

    /// Issues a request if there is a free tag.
    pub(super) fn issue(&self, kind: RequestKind, extent: Option<Extent>, byte: u8) -> Option<u16> {
        let mut shared = self.0.lock().unwrap();
        let tag = (0..DEPTH).find(|tag| !shared.outstanding.contains_key(tag))?;
        let len = extent.map_or(0, |extent| extent.len().as_usize());
        let bytes = match kind {
            RequestKind::Write { .. } => vec![byte; len],
            _ => Vec::new(),
        };
        data(&shared.memory, tag).write(0, &bytes);
        let request = Request { tag, kind, extent };
        shared.outstanding.insert(tag, (request, bytes));
        shared.fresh.push(tag);
        shared.waker.iter().for_each(Waker::wake);
        Some(tag)
    }

    pub(super) fn answers(&self) -> Vec<(u16, Result<(), Errno>, Vec<u8>)> {
        std::mem::take(&mut self.0.lock().unwrap().answers)
    }

    pub(super) fn outstanding(&self) -> usize {
        self.0.lock().unwrap().outstanding.len()
    }

    /// The application died with its host.
    pub(super) fn forget(&self) {
        let mut shared = self.0.lock().unwrap();
        shared.outstanding.clear();
        shared.fresh.clear();
        shared.holds_back = false;
    }

    /// From the next daemon on, what was outstanding when the last one died is not issued again.
    pub(super) fn hold_back(&self) {
        self.0.lock().unwrap().holds_back = true;
    }

    pub(super) fn stop(&self) {
        let mut shared = self.0.lock().unwrap();
        shared.stopping = true;
        shared.waker.iter().for_each(Waker::wake);
    }

    /// The queue of a daemon that begins to serve; outstanding requests are issued again.
    pub(super) fn serve(&self) -> Queue {
        let mut shared = self.0.lock().unwrap();
        shared.memory = memory();
        shared.stopping = false;
        shared.waker = None;
        let reissued = shared.outstanding.keys().filter(|_| !shared.holds_back);
        shared.fresh = reissued.copied().collect();
        for (tag, (_, bytes)) in &shared.outstanding {
            data(&shared.memory, *tag).write(0, bytes);
        }
        Queue {
            memory: shared.memory.clone(),
            front: self.clone(),
            abandoned: false,
        }
    }
}

/// The worker's side.
#[derive(Debug)]
pub(super) struct Queue {
    front: Front,
    memory: Slice,
    /// What is outstanding is left to a successor.
    abandoned: bool,
}

impl FrontQueue<SimIo> for Queue {
    fn depth(&self) -> u16 {
        DEPTH
    }

    fn start(&mut self, io: &mut SimIo) -> Result<(), Errno> {
        let waker = io.waker();
        waker.wake();
        self.front.0.lock().unwrap().waker = Some(waker);
        Ok(())
    }

    fn data(&self, tag: u16) -> Slice {
        data(&self.memory, tag)
    }

    fn on_completion(&mut self, _: &mut SimIo, _: Completion<SimSocket>, _: &mut Vec<Request>) {
        panic!("this front end submits nothing");
    }

    fn on_turn(&mut self, _: &mut SimIo, requests: &mut Vec<Request>) {
        let mut shared = self.front.0.lock().unwrap();
        for tag in std::mem::take(&mut shared.fresh) {
            requests.push(shared.outstanding[&tag].0);
        }
    }

    fn complete(&mut self, io: &mut SimIo, tag: u16, result: Result<(), Errno>) {
        if !io.alive() {
            return;
        }
        let mut shared = self.front.0.lock().unwrap();
        let (request, _) = shared.outstanding.remove(&tag).expect("answered once");
        let bytes = match (request.kind, request.extent) {
            (RequestKind::Read, Some(extent)) => {
                let data = data(&self.memory, tag).part(0..extent.len().as_usize());
                data.with(<[u8]>::to_vec)
            }
            _ => Vec::new(),
        };
        shared.answers.push((tag, result, bytes));
    }

    fn finished(&self) -> bool {
        let shared = self.front.0.lock().unwrap();
        shared.stopping && (self.abandoned || shared.outstanding.is_empty())
    }

    fn ending(&self) -> bool {
        self.front.0.lock().unwrap().stopping
    }

    fn abandon(&mut self, _: &mut SimIo) {
        self.abandoned = true;
    }
}
