//! One thread's io_uring.
//!
//! Owns the ring, the operations in flight and the waker. Operations enter, completions leave, one
//! system call a turn. Memory and descriptors of an operation are kept until the kernel has
//! answered, also when the ring is dropped.

use super::alarm::{ALARM, Alarm};
use super::clock::{Clock, now};
use super::errno_of;
use super::file::RealFile;
use super::flight::{Asked, Flight, Job, Next};
use super::notice::{NOTICE, Notices, passes_messages};
use super::socket::RealSocket;
use super::wake::EventWake;
use crate::memory::{Region, Slice};
use crate::proactor::{Completion, Io, Op, Steering, Token, Waker};
use blkrep_types::{Congestion, Errno, Nanos};
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, Fd};
use io_uring::{IoUring, opcode};
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most entries of a submission queue; more operations than that are in flight all the same, they
/// only take more than one system call to submit.
const ENTRIES_MAX: u32 = 4096;

/// The answer of a time limit or a cancellation: nobody waits for it.
const NOBODY: u64 = u64::MAX;

/// A message of another ring: look.
const MESSAGE: u64 = u64::MAX - 1;

/// How long a dropped ring waits for the kernel to let go of memory; then that memory is leaked.
const DROP_WAIT: Duration = Duration::from_secs(30);

type Answer = Completion<RealSocket>;

/// The operations of one thread, on io_uring. Made and used on that thread only.
pub struct UringIo {
    ring: IoUring,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// Operations whose memory the kernel may touch, the waker's read excluded.
    in_flight: usize,
    /// Completed without the kernel.
    ready: VecDeque<Answer>,
    /// Answers taken out of the ring while it was full.
    stash: VecDeque<(u64, i32)>,
    wake: Arc<EventWake>,
    wake_memory: Slice,
    wake_armed: bool,
    /// The kernel passes messages from ring to ring, and answers only those that failed.
    messages: bool,
    alarm: Alarm,
    clock: Clock,
    notices: Notices,
    /// A single-issuer ring belongs to the thread that made it.
    here_only: PhantomData<*const ()>,
}

impl UringIo {
    /// A ring for the calling thread, with room for `entries` operations to be submitted at once.
    ///
    /// # Errors
    /// The kernel has no io_uring, or it is switched off (`kernel.io_uring_disabled`), or there
    /// is no memory.
    pub fn new(entries: u32) -> Result<Self, Errno> {
        let entries = entries.clamp(8, ENTRIES_MAX).next_power_of_two();
        let ring = build(entries).map_err(|error| Errno::from(&error))?;
        let room = usize::try_from(entries).expect("64-bit platform") * 2;
        let messages = passes_messages(&ring);
        let wake = Arc::new(EventWake::new(ring.as_raw_fd())?);
        let mut io = Self {
            ring,
            flights: Vec::with_capacity(room),
            free: Vec::with_capacity(room),
            in_flight: 0,
            ready: VecDeque::with_capacity(16),
            stash: VecDeque::new(),
            wake,
            wake_memory: Region::heap(8).whole(),
            wake_armed: false,
            messages,
            alarm: Alarm::new(),
            clock: Clock::new(),
            notices: Notices::default(),
            here_only: PhantomData,
        };
        io.arm_wake();
        Ok(io)
    }

    /// Starts an operation that a front end built itself. Its completion carries the kernel's
    /// number as it is: an error if it is negative. `entry`'s own user data is replaced.
    ///
    /// # Safety
    /// All memory and descriptors that `entry` names must stay valid until its completion or
    /// until this ring is dropped and the device behind the descriptor has let go of them.
    pub unsafe fn submit_raw(&mut self, token: Token, entry: Entry) {
        let index = self.keep(Flight::new(token, Job::Raw));
        self.push(&[entry.user_data(user_data(index))]);
    }

    /// Operations submitted and not yet completed, raw ones excluded.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn arm_wake(&mut self) {
        let (wake, slice) = (Arc::clone(&self.wake), self.wake_memory.clone());
        self.wake_armed = true;
        self.launch(Flight::new(0, Job::Wake { wake, slice }));
    }

    fn keep(&mut self, flight: Flight) -> usize {
        if !matches!(flight.job, Job::Raw | Job::Wake { .. }) {
            self.in_flight += 1;
        }
        if let Some(index) = self.free.pop() {
            self.flights[index] = Some(flight);
            return index;
        }
        self.flights.push(Some(flight));
        self.flights.len() - 1
    }

    fn launch(&mut self, flight: Flight) {
        let index = self.keep(flight);
        self.ask(index);
    }

    fn ask(&mut self, index: usize) {
        let flight = self.flights[index]
            .as_ref()
            .expect("asked for a flight that is kept");
        let name = user_data(index);
        match flight.ask() {
            Asked::One(entry) => self.push(&[entry.user_data(name)]),
            Asked::Limited(entry, limit) => {
                self.push(&[entry.user_data(name), limit.user_data(NOBODY)]);
            }
            Asked::Nothing(result) => {
                let flight = self.land(index);
                self.ready.push_back(answer(flight.token, result, None));
            }
        }
    }

    fn land(&mut self, index: usize) -> Flight {
        let flight = self.flights[index]
            .take()
            .expect("an operation completes once");
        self.free.push(index);
        if !matches!(flight.job, Job::Raw | Job::Wake { .. }) {
            self.in_flight -= 1;
        }
        flight
    }

    /// Queues entries that must be submitted together.
    fn push(&mut self, entries: &[Entry]) {
        loop {
            {
                let mut queue = self.ring.submission();
                // SAFETY: every entry names memory and descriptors that its flight owns until the
                // kernel's answer, or that a front end answers for (`submit_raw`).
                if unsafe { queue.push_multiple(entries) }.is_ok() {
                    return;
                }
            }
            // Full: let the kernel take what is queued. It can only refuse while its own backlog
            // of answers is too long, and then making room for them lets it go on.
            let submitted = self.ring.submit();
            if let Err(error) = submitted {
                let number = error.raw_os_error().unwrap_or(libc::EIO);
                assert!(
                    matches!(number, libc::EBUSY | libc::EAGAIN | libc::EINTR),
                    "a ring that refuses its own queue is broken: {error}"
                );
                self.set_aside();
            }
        }
    }

    /// Takes answers out of the ring, to make room.
    fn set_aside(&mut self) {
        let answers = self.ring.completion();
        self.stash
            .extend(answers.map(|entry| (entry.user_data(), entry.result())));
    }

    /// Takes all answers that are there; true if somebody woke this thread.
    fn reap(&mut self, out: &mut Vec<Answer>) -> bool {
        self.set_aside();
        let mut woken = false;
        while let Some((name, result)) = self.stash.pop_front() {
            if name == NOBODY {
                continue;
            }
            if name == MESSAGE {
                woken = true;
                continue;
            }
            if name & NOTICE != 0 {
                self.notices.failed(name & !NOTICE);
                continue;
            }
            if name & ALARM != 0 {
                self.alarm.rang(name);
                self.clock.forget();
                continue;
            }
            let index = usize::try_from(name).expect("a name is an index");
            let flight = self.flights[index]
                .as_mut()
                .expect("an answer has its operation");
            match flight.answered(result) {
                Next::Again => self.ask(index),
                Next::Done(result, socket) => {
                    let flight = self.land(index);
                    if matches!(flight.job, Job::Wake { .. }) {
                        self.wake_armed = false;
                        woken = true;
                    } else {
                        out.push(answer(flight.token, result, socket));
                    }
                }
            }
        }
        out.extend(self.ready.drain(..));
        woken
    }

    /// Submits what is queued and, if `block`, waits for an answer.
    fn enter(&mut self, block: bool) -> Result<(), Errno> {
        let (queued, idle) = {
            let queue = self.ring.submission();
            (!queue.is_empty(), !queue.taskrun() && !queue.cq_overflow())
        };
        if !block && !queued && idle {
            return Ok(());
        }
        let entered = if block {
            self.ring.submit_and_wait(1)
        } else {
            self.ring.submit()
        };
        match entered.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO)) {
            Ok(_) | Err(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            Err(number) => Err(Errno::new(number)),
        }
    }

    /// Submits what is queued and waits for an answer, at the latest until `deadline`.
    fn sleep(&mut self, deadline: Option<Nanos>) -> Result<(), Errno> {
        let alarm = deadline.and_then(|deadline| self.alarm.at(deadline));
        if let Some(entry) = alarm {
            self.push(&[entry]);
        }
        self.enter(true)
    }
}

impl Io for UringIo {
    type File = RealFile;
    type Socket = RealSocket;

    fn now(&self) -> Nanos {
        self.clock.recent()
    }

    fn exact_now(&self) -> Nanos {
        self.clock.exact()
    }

    fn random(&mut self) -> u64 {
        let mut bytes = [0; 8];
        fill_random(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn submit(&mut self, token: Token, op: Op<RealFile, RealSocket>) {
        match Flight::of(token, op) {
            Ok(flight) => self.launch(flight),
            Err(errno) => self.ready.push_back(answer(token, Err(errno), None)),
        }
    }

    fn steer(&self, socket: &RealSocket, wanted: Congestion) -> Steering {
        socket.steer(wanted)
    }

    fn shutdown(&mut self, socket: &RealSocket) {
        socket.shutdown();
    }

    fn waker(&self) -> Waker {
        Waker::new(self.wake.clone())
    }

    fn notify(&mut self, waker: &Waker) {
        let wake = waker.inner().downcast_ref::<EventWake>();
        let Some(wake) = wake.filter(|_| self.messages) else {
            return waker.wake();
        };
        if wake.notice() {
            let name = NOTICE | user_data(self.notices.name(waker));
            let ring = Fd(wake.ring());
            let message = opcode::MsgRingData::new(ring, 0, MESSAGE, None).build();
            self.push(&[message.flags(Flags::SKIP_SUCCESS).user_data(name)]);
        }
    }

    fn wait(&mut self, deadline: Option<Nanos>, out: &mut Vec<Answer>) -> Result<(), Errno> {
        let before = out.len();
        self.reap(out);
        if !self.wake_armed {
            self.arm_wake();
        }
        let block = out.len() == before && self.wake.may_sleep();
        loop {
            if block {
                self.sleep(deadline)?;
            } else {
                self.enter(false)?;
            }
            let woken = self.reap(out);
            if !block || woken || out.len() > before {
                break;
            }
            // An answer can be only a step of an operation (a short transfer, a limit that was
            // not needed) or an alarm that nobody needs any more: then sleep on.
            if deadline.is_some_and(|deadline| deadline <= self.clock.exact()) {
                break;
            }
        }
        self.wake.awake();
        Ok(())
    }
}

impl Drop for UringIo {
    fn drop(&mut self) {
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
        self.push(&[cancel.user_data(NOBODY)]);
        let end = Instant::now() + DROP_WAIT;
        let mut out = Vec::new();
        loop {
            let pending = self.in_flight > 0 || self.wake_armed;
            if !pending && self.enter(false).is_ok() {
                return;
            }
            let soon = now().after(Duration::from_millis(100));
            let broken = self.sleep(Some(soon)).is_err();
            self.reap(&mut out);
            if broken || Instant::now() > end {
                break;
            }
        }
        // The kernel may still write there: never give that memory to anybody else.
        std::mem::forget(std::mem::take(&mut self.flights));
    }
}

impl AsRawFd for UringIo {
    /// The ring's own file: who duplicates it keeps the ring alive in the kernel.
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl fmt::Debug for UringIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UringIo({} in flight)", self.in_flight)
    }
}

fn answer(token: Token, result: Result<u32, Errno>, socket: Option<RealSocket>) -> Answer {
    Completion {
        token,
        result,
        socket,
    }
}

fn user_data(index: usize) -> u64 {
    u64::try_from(index).expect("64-bit platform")
}

/// The best ring the kernel has: completions only when we ask for them (6.1), else without
/// interrupting us (5.19), else plain.
fn build(entries: u32) -> std::io::Result<IoUring> {
    let mut best = IoUring::builder();
    best.setup_cqsize(entries * 4)
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag();
    let mut good = IoUring::builder();
    good.setup_cqsize(entries * 4)
        .setup_coop_taskrun()
        .setup_taskrun_flag();
    let mut plain = IoUring::builder();
    plain.setup_cqsize(entries * 4);
    best.build(entries)
        .or_else(|_| good.build(entries))
        .or_else(|_| plain.build(entries))
}

/// Random bytes of the kernel, fit for identities.
pub(super) fn fill_random(mut bytes: &mut [u8]) {
    while !bytes.is_empty() {
        // SAFETY: the kernel writes at most `len` bytes to a live exclusive slice.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => bytes = &mut bytes[got..],
            Err(_) => assert_eq!(
                errno_of(nix::errno::Errno::last()).get(),
                libc::EINTR,
                "the kernel's random numbers can always be read"
            ),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    #[test]
    fn a_sleeping_thread_is_woken_through_the_ring_of_another() {
        const TIMES: usize = 3;
        let (tell, told) = mpsc::channel();
        let sleeper = thread::spawn(move || {
            let mut io = UringIo::new(8).unwrap();
            tell.send(io.waker()).unwrap();
            let (mut out, begun) = (Vec::new(), io.exact_now());
            for _ in 0..TIMES {
                let long = io.exact_now().after(Duration::from_secs(60));
                io.wait(Some(long), &mut out).unwrap();
                tell.send(io.waker()).unwrap();
            }
            assert!(out.is_empty());
            io.exact_now().since(begun)
        });
        let mut io = UringIo::new(8).unwrap();
        for _ in 0..TIMES {
            let waker = told.recv().unwrap();
            let wake = waker.inner().downcast_ref::<EventWake>().unwrap();
            while wake.is_awake() {
                thread::yield_now();
            }
            io.notify(&waker);
            io.notify(&waker);
            io.enter(false).unwrap();
        }
        assert!(sleeper.join().unwrap() < Duration::from_secs(30));
    }

    #[test]
    fn a_worker_whose_ring_takes_no_message_is_woken_by_its_eventfd() {
        let wake = Arc::new(EventWake::new(-1).unwrap());
        assert!(wake.may_sleep());
        let mut io = UringIo::new(8).unwrap();
        io.notify(&Waker::new(wake.clone()));
        io.enter(false).unwrap();
        io.reap(&mut Vec::new());
        assert_eq!(wake.written(), 1);
    }

    #[test]
    fn a_notice_that_was_not_taken_along_goes_with_the_end_of_the_ring() {
        let mut sleeper = UringIo::new(8).unwrap();
        assert!(sleeper.wake.may_sleep());
        let mut io = UringIo::new(8).unwrap();
        io.notify(&sleeper.waker());
        drop(io);
        sleeper.enter(true).unwrap();
        assert!(sleeper.reap(&mut Vec::new()));
    }
}
