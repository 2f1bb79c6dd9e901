//! The world's handle: what a scheduler and a test do to it from outside.
//!
//! Owns the words of the simulation (hosts, processes, rings, options) and the handle through
//! which hosts are added, processes started and killed, power and network cut, disks broken.
//! Never runs a worker itself.

use super::backup::Backup;
use super::disk::{DiskShape, as_usize};
use super::event::Event;
use super::fault::{DiskFault, DiskLie};
use super::host::SimHost;
use super::loss::Unflushed;
use super::net::Garble;
use super::random::SimRandom;
use super::state::State;
use blkrep_types::{BlockSize, ByteLen, Nanos};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// A simulated host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(pub(super) usize);

impl NodeId {
    /// The address others reach it by.
    ///
    /// # Panics
    /// After 250 hosts.
    #[must_use]
    pub fn address(self) -> IpAddr {
        let last = u8::try_from(self.0 + 1).expect("a simulation has few hosts");
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
    }
}

/// One run of a program on a host. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ProcessId(pub(super) usize);

/// One ring of a process. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RingId(pub(super) u64);

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// It is killed: its kernel goes on, what it had in flight may land later.
    Process,
    /// Its host loses power.
    Power,
}

/// Where in a call a process stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// Before the call's effect.
    Before,
    /// After it: what was written by a blocking call is in the cache, what was submitted is under
    /// way.
    After,
}

/// How the world behaves. Times are virtual nanoseconds, from and to.
#[derive(Debug, Clone)]
pub struct SimOptions {
    /// A read or write of a disk.
    pub disk_nanos: (u64, u64),
    /// A flush.
    pub sync_nanos: (u64, u64),
    /// A packet, one way.
    pub net_nanos: (u64, u64),
    /// One operation in so many is a hundred times slower; 0 for none.
    pub slow_one_in: u64,
    /// Bytes under way or unread in one direction of a connection.
    pub window_bytes: usize,
    /// How much later than otherwise a killed process's writes may land.
    pub ghost_nanos_max: u64,
    /// Flushes are answered and do nothing: what a test of the judges wants, and some real disks do.
    pub sync_lies: bool,
    /// Panic when the memory of a write changed before it completed.
    pub check_memory: bool,
    /// The order of events has no chance in it: of several ready rings the oldest has its turn,
    /// and a turn takes all that is ready. For worlds that go through every case in turn.
    pub steady: bool,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            disk_nanos: (20_000, 300_000),
            sync_nanos: (200_000, 3_000_000),
            net_nanos: (50_000, 400_000),
            slow_one_in: 100,
            window_bytes: 64 << 10,
            ghost_nanos_max: 3_000_000_000,
            sync_lies: false,
            check_memory: true,
            steady: false,
        }
    }
}

/// What the scheduler does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This ring has something: give its worker a turn.
    Ring(RingId),
    /// The time given has come; nothing happened before it that a worker must see.
    Until,
}

/// A simulated world; clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct SimWorld(Arc<Mutex<State>>);

impl SimWorld {
    /// The world of `seed`.
    #[must_use]
    pub fn new(seed: u64, options: SimOptions) -> Self {
        Self(Arc::new(Mutex::new(State::new(seed, options))))
    }

    pub(super) fn weak(&self) -> Weak<Mutex<State>> {
        Arc::downgrade(&self.0)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The virtual time.
    #[must_use]
    pub fn now(&self) -> Nanos {
        Nanos::new(self.lock().now)
    }

    /// What a host's own clock shows.
    #[must_use]
    pub fn clock(&self, node: NodeId) -> Nanos {
        let state = self.lock();
        Nanos::new(state.clock(node).local(state.now))
    }

    /// From now on a host's clock goes at this rate, in thousandths of the world's.
    ///
    /// # Panics
    /// If the rate is 0.
    pub fn set_clock_rate(&self, node: NodeId, rate: u32) {
        self.lock()
            .change_clock(node, |clock, now| clock.set_rate(now, rate));
    }

    /// A host's clock leaps forward, as after a pause of the whole host.
    pub fn leap_clock(&self, node: NodeId, span: Duration) {
        let nanos = Nanos::new(0).after(span).get();
        self.lock()
            .change_clock(node, |clock, now| clock.leap(now, nanos));
    }

    /// A generator drawn from the seed, for a part of the test.
    #[must_use]
    pub fn fork_random(&self) -> SimRandom {
        self.lock().random.fork()
    }

    /// A new host, switched on.
    #[must_use]
    pub fn add_node(&self) -> NodeId {
        self.lock().add_node()
    }

    /// A block device of a host, full of zeroes, that may lose unflushed writes if `write_cache`.
    pub fn add_device(
        &self,
        node: NodeId,
        path: &Path,
        len: ByteLen,
        block_size: BlockSize,
        write_cache: bool,
    ) {
        let mut state = self.lock();
        let minor = u32::try_from(state.storage.stores.len()).ok();
        let shape = DiskShape {
            device: minor,
            block_size,
            write_cache,
        };
        state.storage.place(node, path, shape, len.get());
    }

    /// Starts a process on a host, which is switched on if it was off.
    #[must_use]
    pub fn start(&self, node: NodeId) -> SimHost {
        let process = self.lock().start(node);
        SimHost::new(self.clone(), node, process)
    }

    /// True until the process was ended or crashed.
    #[must_use]
    pub fn alive(&self, process: ProcessId) -> bool {
        self.lock().alive(process)
    }

    /// Kills a process: its rings and sockets are gone, what it had in flight may land later.
    pub fn crash_process(&self, process: ProcessId) {
        self.lock().crash_process(process);
    }

    /// Kills a process, and says of each disk operation it has in flight, in order of time, by how
    /// much later than otherwise it finishes; `None` for one that never does.
    pub fn crash_process_with(
        &self,
        process: ProcessId,
        mut fate: impl FnMut(usize) -> Option<Duration>,
    ) {
        let nanos = |late: Duration| Nanos::new(0).after(late).get();
        self.lock()
            .crash_process_with(process, |index| fate(index).map(nanos));
    }

    /// A host loses power: all its processes, shared memory and unflushed sectors.
    pub fn power_loss(&self, node: NodeId) {
        self.lock().power_loss(node);
    }

    /// What a power cut of a host now would keep or lose: names of new files, and of each file
    /// its completed writes, oldest first, then those in flight, in order of time.
    #[must_use]
    pub fn unflushed(&self, node: NodeId) -> Vec<Unflushed> {
        self.lock().unflushed(node)
    }

    /// A host loses power and keeps what `keep` says, asked with an index into
    /// [`SimWorld::unflushed`] and a number below that one's [`Unflushed::sectors`].
    pub fn power_loss_keeping(&self, node: NodeId, mut keep: impl FnMut(usize, u64) -> bool) {
        self.lock().power_loss_keeping(node, &mut keep);
    }

    /// Crashes a process within one of its next calls: after `calls` blocking calls and submitted
    /// operations, before or after that one's effect.
    pub fn crash_after(&self, process: ProcessId, calls: u32, crash: Crash) {
        self.lock().crash_after(process, calls, crash);
    }

    /// Stops the process that makes the call of this number on a host, of all calls that were made
    /// there, before or after that call's effect. Nothing is decided by chance: what it has in flight
    /// stays so until [`SimWorld::crash_process`] or [`SimWorld::power_loss`] says what becomes of it.
    pub fn halt_at(&self, node: NodeId, call: u64, moment: Moment) {
        self.lock().halt_at(node, call, moment);
    }

    /// True if the process was stopped by [`SimWorld::halt_at`] and nothing was decided since.
    #[must_use]
    pub fn halted(&self, process: ProcessId) -> bool {
        self.lock().halted(process)
    }

    /// Blocking calls and submitted operations on a host so far.
    #[must_use]
    pub fn calls(&self, node: NodeId) -> u64 {
        self.lock().calls(node)
    }

    /// Forgets every crash that was asked for and has not happened.
    pub fn crash_no_more(&self) {
        self.lock().crash_no_more();
    }

    /// Runs the clock until a ring has something for its worker, or to `until`.
    ///
    /// # Panics
    /// If workers take turns without end at one instant: a worker that never waits.
    #[must_use]
    pub fn next(&self, until: Nanos) -> Next {
        let mut state = self.lock();
        loop {
            state.network.close_dropped();
            state.flush_network();
            if let Some(ring) = state.runnable() {
                return Next::Ring(ring);
            }
            if !state.advance(until.get()) {
                return Next::Until;
            }
        }
    }

    /// Wakes a ring after a while, as another thread would.
    pub fn wake_after(&self, ring: RingId, delay: Duration) {
        let mut state = self.lock();
        let at = Nanos::new(state.now).after(delay).get();
        state.events.add(at, Event::Wake(ring));
    }

    /// Stops bytes from one host to another; the other way is not touched.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.lock().network.cut(from, to);
    }

    /// Lets bytes pass again; what was held back arrives.
    pub fn heal(&self, from: NodeId, to: NodeId) {
        let mut state = self.lock();
        state.network.heal(from, to);
        state.flush_network();
    }

    /// Changes bytes on their way from one host to another, past every checksum of TCP's.
    pub fn garble(&self, from: NodeId, to: NodeId, garble: Garble) {
        self.lock().network.weather.set_garble((from, to), garble);
    }

    /// Everything from one host to another takes longer by a time between these; zeroes end it.
    pub fn delay(&self, from: NodeId, to: NodeId, more: (Duration, Duration)) {
        let nanos = |span| Nanos::new(0).after(span).get();
        let late = (nanos(more.0), nanos(more.1));
        self.lock().network.weather.set_late((from, to), late);
    }

    /// The next so many connections from one host to another arrive twice: the listener gets a
    /// second one that nobody speaks on.
    pub fn double_connections(&self, from: NodeId, to: NodeId, times: u32) {
        self.lock().network.weather.set_doubles((from, to), times);
    }

    /// Resets every connection between two hosts.
    pub fn reset_connections(&self, a: NodeId, b: NodeId) {
        let mut state = self.lock();
        state.network.reset(a, b);
        state.flush_network();
    }

    /// Resets one connection between two hosts, the one with this number counted from the oldest on and
    /// around; or, silently, nothing passes on it any more.
    pub fn sever_connection(&self, a: NodeId, b: NodeId, which: usize, silent: bool) {
        let mut state = self.lock();
        state.network.sever(a, b, which, silent);
        state.flush_network();
    }

    /// Makes a file's disk do something wrong.
    ///
    /// # Panics
    /// If the path does not exist.
    pub fn inject(&self, node: NodeId, path: &Path, fault: DiskFault) {
        self.lock()
            .disk(node, path, |disk| disk.faults.inject(fault));
    }

    /// Makes a file's disk do something wrong without saying so.
    ///
    /// # Panics
    /// If the path does not exist.
    pub fn deceive(&self, node: NodeId, path: &Path, lie: DiskLie) {
        self.lock().disk(node, path, |disk| {
            let now = disk.view().clone();
            disk.faults.deceive(lie, now);
        });
    }

    /// Makes the sectors of these bytes of a file unreadable until they are written.
    ///
    /// # Panics
    /// If the path does not exist.
    pub fn spoil(&self, node: NodeId, path: &Path, bytes: Range<u64>) {
        let bytes = as_usize(bytes.start)..as_usize(bytes.end);
        self.lock()
            .disk(node, path, |disk| disk.faults.spoil(&bytes));
    }

    /// Flips bits of one byte of a file, durably: rot.
    ///
    /// # Panics
    /// If the path does not exist or the byte is not within it.
    pub fn flip(&self, node: NodeId, path: &Path, offset: u64, bits: u8) {
        self.lock().disk(node, path, |disk| {
            let at = as_usize(offset);
            let byte = disk.view().bytes(at..at + 1)[0];
            disk.poke(offset, &[byte ^ bits]);
        });
    }

    /// Heals a file's disk; a missing file has nothing to heal.
    pub fn clear_faults(&self, node: NodeId) {
        for store in &mut self.lock().storage.stores {
            if store.node == node {
                store.disk.faults.clear();
            }
        }
    }

    /// Nothing on a file's disk completes for a while.
    ///
    /// # Panics
    /// If the path does not exist.
    pub fn stall(&self, node: NodeId, path: &Path, span: Duration) {
        let mut state = self.lock();
        let until = Nanos::new(state.now).after(span).get();
        let id = state
            .storage
            .find(node, path)
            .expect("a disk that stalls exists");
        state.storage.stores[id].stalled_until = until;
    }

    /// While a host is full, its files can neither be made nor grow; devices are not touched.
    pub fn set_full(&self, node: NodeId, full: bool) {
        self.lock().storage.set_full(node, full);
    }

    /// Bytes that a host can still give to new files.
    pub fn set_space(&self, node: NodeId, space: ByteLen) {
        self.lock().storage.set_space(node, space.get());
    }

    /// A file as a reader sees it now.
    ///
    /// # Panics
    /// If the path does not exist.
    #[must_use]
    pub fn image(&self, node: NodeId, path: &Path) -> Vec<u8> {
        self.lock()
            .disk(node, path, |disk| disk.view().bytes(0..disk.view().len()))
    }

    /// Where a file of one host differs from one of another, as readers see both now: ranges of whole pages.
    ///
    /// # Panics
    /// If a path does not exist, or the lengths differ.
    #[must_use]
    pub fn differing(&self, one: (NodeId, &Path), other: (NodeId, &Path)) -> Vec<Range<usize>> {
        let mut state = self.lock();
        let other = state.disk(other.0, other.1, |disk| disk.view().clone());
        state.disk(one.0, one.1, |disk| disk.view().differing(&other))
    }

    /// What a power cut now would surely leave of a file.
    ///
    /// # Panics
    /// If the path does not exist.
    #[must_use]
    pub fn durable_image(&self, node: NodeId, path: &Path) -> Vec<u8> {
        self.lock().disk(node, path, |disk| {
            disk.stable().bytes(0..disk.stable().len())
        })
    }

    /// Replaces a file's bytes durably: a restore from a backup.
    ///
    /// # Panics
    /// If the path does not exist.
    pub fn set_image(&self, node: NodeId, path: &Path, bytes: &[u8]) {
        self.lock().disk(node, path, |disk| disk.poke_all(bytes));
    }

    /// Changes some of a file's bytes durably and behind everybody's back: a bad medium.
    ///
    /// # Panics
    /// If the path does not exist or the bytes are not within it.
    pub fn corrupt(&self, node: NodeId, path: &Path, offset: u64, bytes: &[u8]) {
        self.lock()
            .disk(node, path, |disk| disk.poke(offset, bytes));
    }

    /// A copy of some of a host's files and devices, as a reader sees them now.
    #[must_use]
    pub fn backup(&self, node: NodeId, paths: &[PathBuf]) -> Backup {
        Backup::of(&self.lock().storage, node, paths)
    }

    /// Puts a copy back, durably, on this host or another; files that are gone are made again.
    /// Nobody should have them open.
    pub fn restore(&self, node: NodeId, backup: &Backup) {
        backup.restore(&mut self.lock().storage, node);
    }

    /// Copies all files and devices of a host of another world to a host of this one, as they are
    /// now, unflushed writes included: for asking what would become of them.
    ///
    /// # Panics
    /// If it is the same world.
    pub fn copy_files(&self, to: NodeId, other: &Self, from: NodeId) {
        assert!(
            !Arc::ptr_eq(&self.0, &other.0),
            "files are copied from another world"
        );
        self.lock().storage.copy(to, &other.lock().storage, from);
    }

    /// True unless the host has lost power and no process was started on it since.
    #[must_use]
    pub fn powered(&self, node: NodeId) -> bool {
        self.lock().powered(node)
    }

    /// Paths of a host's files and devices, sorted.
    #[must_use]
    pub fn paths(&self, node: NodeId) -> Vec<PathBuf> {
        let state = self.lock();
        state
            .storage
            .names(node)
            .map(|(path, _)| path.to_owned())
            .collect()
    }
}
