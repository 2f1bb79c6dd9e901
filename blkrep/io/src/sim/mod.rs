//! The simulated twins: a world of hosts, disks and a network in one thread.
//!
//! Owns a virtual clock and everything that happens by it. One seed is one run: every latency,
//! every torn sector, every order of events is drawn from it. A scheduler asks [`SimWorld::next`]
//! which ring has something to do and gives that ring's worker its turn ([`SimIo::turn`]); between
//! turns it may kill processes, cut power, cut the network or break disks. What a worker sees is
//! what the real ring and host promise, no more: unflushed sectors survive a power cut by chance,
//! a killed process's writes land later, bytes arrive in pieces.

mod backup;
mod clock;
mod disk;
mod event;
mod fault;
mod host;
mod io;
mod loss;
mod net;
mod pages;
mod random;
mod rings;
mod state;
mod storage;
mod world;

pub use backup::Backup;
pub use fault::{DiskFault, DiskLie, FaultKind, LieKind};
pub use host::SimHost;
pub use io::SimIo;
pub use loss::Unflushed;
pub use net::{Garble, SimSocket};
pub use random::SimRandom;
pub use storage::SimFile;
pub use world::{Crash, Moment, Next, NodeId, ProcessId, RingId, SimOptions, SimWorld};
