//! A running daemon, as the scheduler sees it: one process with its workers and their rings.
//!
//! Owns the workers while the process lives. Turns enter; whatever the workers do goes to the
//! world. Dropping it is what becomes of a dead process's memory.

use blkrep_io::sim::{ProcessId, RingId, SimHost, SimIo};
use blkrep_io::{Host, HostError, Io, Worker};
use blkrep_types::LinkName;

/// What a worker works for; all of one task's workers are waited for together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Taking connections.
    Accept,
    /// The queue of a group's volume that is served here.
    Serve(usize, usize),
    /// A link of such a group.
    Link(usize, LinkName),
    /// The replica of a group.
    Receive(usize),
}

/// A worker with its ring.
struct Seat {
    io: SimIo,
    task: Task,
    worker: Box<dyn Worker<SimIo>>,
}

/// One process and its workers.
pub struct Program {
    host: SimHost,
    seats: Vec<Seat>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Program({:?}, {} workers)",
            self.host.process(),
            self.seats.len()
        )
    }
}

impl Program {
    /// A process without workers.
    #[must_use]
    pub fn new(host: SimHost) -> Self {
        Self {
            host,
            seats: Vec::new(),
        }
    }

    /// Its host, for blocking calls.
    #[must_use]
    pub fn host(&self) -> &SimHost {
        &self.host
    }

    /// Its name.
    #[must_use]
    pub fn process(&self) -> ProcessId {
        self.host.process()
    }

    /// Starts a worker on a ring of its own.
    ///
    /// # Errors
    /// The process has died.
    pub fn spawn(
        &mut self,
        task: Task,
        mut worker: Box<dyn Worker<SimIo>>,
    ) -> Result<(), HostError> {
        let mut io = self.host.ring(256)?;
        io.begin(&mut *worker);
        self.seats.push(Seat { io, task, worker });
        Ok(())
    }

    /// Gives the worker of a ring its turn; false if the ring is not of this process. A worker
    /// that has finished is gone, as its thread would be.
    pub fn turn(&mut self, ring: RingId) -> bool {
        let Some(index) = self.seats.iter().position(|seat| seat.io.id() == ring) else {
            return false;
        };
        let Seat { io, worker, .. } = &mut self.seats[index];
        io.turn(&mut **worker);
        if worker.finished() {
            self.seats.remove(index);
        }
        true
    }

    /// Wakes every worker, as one thread wakes another.
    pub fn wake_all(&self) {
        self.seats.iter().for_each(|seat| seat.io.waker().wake());
    }

    /// True when every worker has finished.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.seats.is_empty()
    }

    /// True when every worker of a task has finished.
    #[must_use]
    pub fn has_done(&self, task: &Task) -> bool {
        !self.seats.iter().any(|seat| seat.task == *task)
    }

    /// True when no worker of a group that is served here is left.
    #[must_use]
    pub fn has_left(&self, group: usize) -> bool {
        let serves =
            |task: &Task| matches!(task, Task::Serve(of, _) | Task::Link(of, _) if *of == group);
        !self.seats.iter().any(|seat| serves(&seat.task))
    }
}
