//! A device without a kernel: the front end of simulated volumes.
//!
//! Owns the requests that the application has outstanding, beyond the life of the daemon that
//! serves them, as the kernel's block layer does. Requests enter from the application, answers
//! leave to it. A device that reissues gives its outstanding requests to the daemon's successor;
//! another one fails them.

use blkrep_io::sim::SimIo;
use blkrep_io::{Completion, Region, Slice, Waker};
use blkrep_types::Errno;
use blkrep_ublk::{FrontQueue, Request};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Requests a simulated queue has outstanding at most.
pub const DEPTH: u16 = 12;

/// Largest request of a simulated device, in bytes.
pub const REQUEST_BYTES_MAX: usize = 128 << 10;

type SimSocket = blkrep_io::sim::SimSocket;

#[derive(Debug)]
struct Outstanding {
    request: Request,
    /// What the application writes; kept here because a successor gets it again.
    bytes: Vec<u8>,
}

/// What the queue and the application share.
struct Shared {
    outstanding: BTreeMap<u16, Outstanding>,
    /// Not yet taken by the daemon.
    fresh: Vec<u16>,
    /// Taken by the daemon and not answered.
    taken: usize,
    answers: Vec<Answer>,
    stopping: bool,
    /// That of the daemon that serves; what is issued before is in `outstanding`.
    memory: Option<Slice>,
    waker: Option<Waker>,
}

/// An answer to the application.
#[derive(Debug)]
pub struct Answer {
    /// The request's tag.
    pub tag: u16,
    /// How it ended.
    pub result: Result<(), Errno>,
    /// What a read brought.
    pub bytes: Vec<u8>,
}

/// The application's side of a device.
#[derive(Clone)]
pub struct Front(Arc<Mutex<Shared>>);

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Front({} outstanding)", self.lock().outstanding.len())
    }
}

/// Little of it is ever touched.
fn memory() -> Slice {
    let region = Region::anonymous(usize::from(DEPTH) * REQUEST_BYTES_MAX);
    region.expect("there is memory for a simulation").whole()
}

impl Front {
    /// A device that nobody serves yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Shared {
            outstanding: BTreeMap::new(),
            fresh: Vec::new(),
            taken: 0,
            answers: Vec::new(),
            stopping: false,
            memory: None,
            waker: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A queue for a daemon that begins to serve: outstanding requests are issued again, with
    /// their bytes, in memory that no earlier daemon has.
    #[must_use]
    pub fn serve(&self) -> SimFront {
        let mut shared = self.lock();
        let memory = memory();
        shared.memory = Some(memory.clone());
        shared.stopping = false;
        shared.waker = None;
        shared.fresh = shared.outstanding.keys().copied().collect();
        shared.taken = 0;
        for (tag, outstanding) in &shared.outstanding {
            data_of(&memory, *tag).write(0, &outstanding.bytes);
        }
        drop(shared);
        SimFront {
            front: self.clone(),
            memory,
            finished: false,
        }
    }

    /// Fails everything outstanding: the device is gone with its daemon.
    pub fn fail_outstanding(&self) {
        let mut shared = self.lock();
        for (tag, _) in std::mem::take(&mut shared.outstanding) {
            shared.answers.push(Answer {
                tag,
                result: Err(Errno::EIO),
                bytes: Vec::new(),
            });
        }
        shared.fresh.clear();
    }

    /// Forgets everything outstanding: the application died with its host.
    pub fn forget(&self) {
        let mut shared = self.lock();
        shared.outstanding.clear();
        shared.fresh.clear();
        shared.answers.clear();
    }

    /// A tag that is free; `None` if the queue is full.
    #[must_use]
    pub fn free_tag(&self) -> Option<u16> {
        let shared = self.lock();
        (0..DEPTH).find(|tag| !shared.outstanding.contains_key(tag))
    }

    /// Issues a request with the bytes of a write.
    pub fn issue(&self, request: Request, bytes: Vec<u8>) {
        let waker = {
            let mut shared = self.lock();
            if let Some(memory) = &shared.memory {
                data_of(memory, request.tag).write(0, &bytes);
            }
            let old = shared
                .outstanding
                .insert(request.tag, Outstanding { request, bytes });
            assert!(old.is_none(), "a tag has one request at a time");
            shared.fresh.push(request.tag);
            shared.waker.clone()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes the answers that came.
    #[must_use]
    pub fn answers(&self) -> Vec<Answer> {
        std::mem::take(&mut self.lock().answers)
    }

    /// Requests not yet answered.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.lock().outstanding.len()
    }

    /// Has the daemon leave the device: its queue finishes when what it took is answered.
    pub fn stop(&self) {
        let waker = {
            let mut shared = self.lock();
            shared.stopping = true;
            shared.waker.clone()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Default for Front {
    fn default() -> Self {
        Self::new()
    }
}

fn data_of(memory: &Slice, tag: u16) -> Slice {
    let start = usize::from(tag) * REQUEST_BYTES_MAX;
    memory.part(start..start + REQUEST_BYTES_MAX)
}

/// A daemon's side of a device.
#[derive(Debug)]
pub struct SimFront {
    front: Front,
    memory: Slice,
    finished: bool,
}

impl FrontQueue<SimIo> for SimFront {
    fn depth(&self) -> u16 {
        DEPTH
    }

    fn start(&mut self, io: &mut SimIo) -> Result<(), Errno> {
        let waker = blkrep_io::Io::waker(io);
        waker.wake();
        self.front.lock().waker = Some(waker);
        Ok(())
    }

    fn data(&self, tag: u16) -> Slice {
        data_of(&self.memory, tag)
    }

    fn on_completion(
        &mut self,
        _: &mut SimIo,
        completion: Completion<SimSocket>,
        _: &mut Vec<Request>,
    ) {
        panic!("a simulated front end submits nothing, yet {completion:?} came");
    }

    fn on_turn(&mut self, io: &mut SimIo, requests: &mut Vec<Request>) {
        if !io.alive() {
            return;
        }
        let mut shared = self.front.lock();
        // What comes after the order to stop waits for a successor.
        if !shared.stopping {
            let fresh = std::mem::take(&mut shared.fresh);
            shared.taken += fresh.len();
            requests.extend(fresh.iter().map(|tag| shared.outstanding[tag].request));
        }
        self.finished = shared.stopping && shared.taken == 0;
    }

    fn complete(&mut self, io: &mut SimIo, tag: u16, result: Result<(), Errno>) {
        // What a process does after its death reaches nobody.
        if !io.alive() {
            return;
        }
        let mut shared = self.front.lock();
        let done = shared.outstanding.remove(&tag);
        let done = done.unwrap_or_else(|| panic!("tag {tag} was completed without a request"));
        let bytes = match (done.request.kind, done.request.extent, result) {
            (blkrep_ublk::RequestKind::Read, Some(extent), Ok(())) => {
                let data = data_of(&self.memory, tag);
                data.part(0..extent.len().as_usize()).with(<[u8]>::to_vec)
            }
            _ => Vec::new(),
        };
        shared.answers.push(Answer { tag, result, bytes });
        shared.taken -= 1;
        self.finished = shared.stopping && shared.taken == 0;
    }

    fn finished(&self) -> bool {
        self.finished
    }

    fn ending(&self) -> bool {
        self.front.lock().stopping
    }

    fn abandon(&mut self, io: &mut SimIo) {
        if io.alive() {
            self.front.lock().taken = 0;
            self.finished = true;
        }
    }
}
