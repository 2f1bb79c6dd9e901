//! The worker of one queue of a volume's device.
//!
//! Owns the queue's requests from their coming to their answer, and local reads and writes. Reads
//! bypass the group while its gate is open. All other requests and all completions of a turn are
//! handed to the group under one lock. Never decides an order itself.

use super::group::{Event, FileOf, Outbox, SourceShared, VolumeFile, apply};
use super::jobs::{JOB_TOKEN, Jobs};
use super::mail::Mail;
use blkrep_core::source::{Action, NewRequest, RequestId, RequestOp, WorkerId};
use blkrep_io::{Completion, Host, Io, Slice, Token, Worker};
use blkrep_types::{Errno, Extent, Nanos, VolumeIndex};
use blkrep_ublk::{FRONT_TOKEN, FrontQueue, Request, RequestKind};
use std::sync::Arc;

/// Tokens of reads: the tag below. All others that are neither the front end's nor jobs are
/// writes: the request's number.
const READ_TOKEN: Token = 1 << 60;

/// A queue at work.
#[derive(Debug)]
pub struct QueueWorker<H: Host, F: FrontQueue<H::Io> + ?Sized> {
    shared: Arc<SourceShared<H>>,
    id: WorkerId,
    mail: Arc<Mail>,
    volume: VolumeIndex,
    file: VolumeFile<FileOf<H>>,
    requests: Vec<Request>,
    /// The extent of the read that a tag has under way.
    reads: Vec<Option<Extent>>,
    events: Vec<Event>,
    outbox: Outbox<FileOf<H>>,
    jobs: Jobs<FileOf<H>>,
    /// Requests taken and not answered.
    outstanding: usize,
    /// Local operations in flight.
    in_flight: usize,
    broken: bool,
    /// Requests that wait for an operator were given up, because the device ends.
    abandoned: bool,
    front: Box<F>,
}

impl<H: Host, F: FrontQueue<H::Io> + ?Sized> QueueWorker<H, F> {
    /// The worker of `front`, a queue of `volume`.
    #[must_use]
    pub fn new(shared: &Arc<SourceShared<H>>, volume: VolumeIndex, front: Box<F>) -> Self {
        let (id, mail) = shared.add_worker();
        let depth = usize::from(front.depth());
        Self {
            shared: Arc::clone(shared),
            id,
            mail,
            volume,
            file: shared.volume_file(volume),
            requests: Vec::with_capacity(depth),
            reads: vec![None; depth],
            events: Vec::with_capacity(2 * depth),
            outbox: Outbox::new(),
            jobs: Jobs::new(),
            outstanding: 0,
            in_flight: 0,
            broken: false,
            abandoned: false,
            front,
        }
    }

    /// The front end's queue.
    #[must_use]
    pub fn front(&self) -> &F {
        &self.front
    }

    /// The front end's queue, to drive one that has no thread of its own.
    pub fn front_mut(&mut self) -> &mut F {
        &mut self.front
    }

    fn take_requests(&mut self, io: &mut H::Io) {
        let mut requests = std::mem::take(&mut self.requests);
        for request in requests.drain(..) {
            self.outstanding += 1;
            let op = match request.kind {
                RequestKind::Read => RequestOp::Read,
                RequestKind::Write { fua } => RequestOp::Write { fua },
                RequestKind::Flush => RequestOp::Flush,
                RequestKind::Discard => RequestOp::Zero {
                    fua: false,
                    free: true,
                },
                RequestKind::WriteZeroes { fua, may_free } => RequestOp::Zero {
                    fua,
                    free: may_free,
                },
            };
            let new = self.new_request(request.tag, op, request.extent);
            match (op, request.extent) {
                (RequestOp::Read, Some(extent)) if self.shared.gate_is_open() => {
                    self.read(io, request.tag, extent);
                }
                (RequestOp::Read, Some(extent)) => {
                    let memory = self.memory(request.tag, extent);
                    self.events.push(Event::Read(new, memory));
                }
                _ => self.events.push(Event::Submit(new)),
            }
        }
        self.requests = requests;
    }

    const fn new_request(&self, tag: u16, op: RequestOp, extent: Option<Extent>) -> NewRequest {
        NewRequest {
            worker: self.id,
            tag,
            volume: self.volume,
            op,
            extent,
        }
    }

    fn memory(&self, tag: u16, extent: Extent) -> Slice {
        self.front.data(tag).part(0..extent.len().as_usize())
    }

    fn read(&mut self, io: &mut H::Io, tag: u16, extent: Extent) {
        let slice = self.memory(tag, extent);
        self.reads[usize::from(tag)] = Some(extent);
        self.in_flight += 1;
        io.submit(READ_TOKEN | Token::from(tag), self.file.read(extent, slice));
    }

    fn read_done(&mut self, io: &mut H::Io, token: Token, result: Result<(), Errno>) {
        let tag = u16::try_from(token & !READ_TOKEN).expect("a tag of ours");
        let extent = self.reads[usize::from(tag)].take();
        match result {
            Ok(()) => self.answer(io, tag, Ok(())),
            Err(errno) => {
                let new = self.new_request(tag, RequestOp::Read, extent);
                let extent = extent.expect("a read that ended had begun");
                let memory = self.memory(tag, extent);
                self.events.push(Event::ReadFailed(new, memory, errno));
            }
        }
    }

    fn answer(&mut self, io: &mut H::Io, tag: u16, result: Result<(), Errno>) {
        self.outstanding -= 1;
        self.front.complete(io, tag, result);
    }

    /// Gives up what waits for an operator, or for a link without an end to it, once the device has been
    /// told to end: nobody would ever answer it here.
    fn give_up(&mut self, io: &mut H::Io) {
        if self.outstanding == 0 || self.abandoned || self.is_at_work() || !self.front.ending() {
            return;
        }
        if self.shared.serves() && !self.shared.waits_for_lost_links() {
            return;
        }
        self.abandoned = true;
        self.outstanding = 0;
        self.front.abandon(io);
    }

    /// Hands in what happened, and does what follows.
    fn hand_in(&mut self, io: &mut H::Io) {
        let events = &mut self.events;
        self.shared.turn(self.id, io, &mut self.outbox, |state| {
            for event in events.drain(..) {
                apply(state, event);
            }
        });
        self.act(io);
    }

    /// True if an operation of the disk runs, or its end has not been told to the group.
    fn is_at_work(&self) -> bool {
        self.in_flight > 0 || self.jobs.busy() || !self.events.is_empty()
    }

    /// Does what the disk queue wants done.
    fn do_queue_jobs(&mut self, io: &mut H::Io) {
        for job in self.outbox.queue_jobs.drain(..) {
            let over = self.shared.begin_queue_job(io, &mut self.jobs, job);
            self.events.extend(over.map(Event::Report));
        }
    }

    /// Does what the group wants done.
    fn act(&mut self, io: &mut H::Io) {
        let mut actions = std::mem::take(&mut self.outbox.actions);
        let mut published = std::mem::take(&mut self.outbox.appended);
        for action in actions.drain(..) {
            match action {
                // The requests are not ours any more, and a successor may have them already.
                Action::Write { .. }
                | Action::Keep { .. }
                | Action::Zero { .. }
                | Action::Read { .. }
                | Action::Complete { .. }
                    if self.abandoned => {}
                Action::Write {
                    id,
                    tag,
                    extent,
                    slot,
                    durable,
                    copied,
                    ..
                } => {
                    let mut slice = self.front.data(tag).part(0..extent.len().as_usize());
                    if let Some(slot) = slot {
                        let log = self.shared.log();
                        let place = log.data(slot.position, slice.len());
                        if !copied {
                            place.copy_from(&slice);
                            log.publish(slot.seq);
                            published = true;
                        }
                        slice = place;
                    }
                    self.in_flight += 1;
                    io.submit(Token::from(id), self.file.write(extent, slice, durable));
                }
                Action::Keep {
                    id,
                    tag,
                    extent,
                    slot,
                } => {
                    let slice = self.memory(tag, extent);
                    let log = self.shared.log();
                    log.data(slot.position, slice.len()).copy_from(&slice);
                    log.publish(slot.seq);
                    published = true;
                    self.events.push(Event::LocalDone(id, Ok(())));
                }
                Action::Zero {
                    id, extent, free, ..
                } => {
                    self.in_flight += 1;
                    io.submit(Token::from(id), self.file.zero(extent, free));
                }
                Action::Read { tag, extent } => self.read(io, tag, extent),
                Action::Complete { tag, result } => self.answer(io, tag, result),
                Action::Sync { volume, number } => {
                    let file = self.shared.volume_file(volume);
                    self.jobs.flush(io, volume, number, &file);
                }
                Action::MirrorRead { .. } | Action::MirrorDigest { .. } => {
                    unreachable!("mirror reads belong to links")
                }
            }
        }
        self.outbox.actions = actions;
        for commit in self.outbox.commits.drain(..) {
            self.jobs.commit(io, commit);
        }
        self.do_queue_jobs(io);
        if published {
            self.shared.wake_links(io, &mut self.outbox);
        }
    }
}

impl<H: Host, F: FrontQueue<H::Io> + ?Sized> Worker<H::Io> for QueueWorker<H, F> {
    fn start(&mut self, io: &mut H::Io) {
        self.mail.register(io.waker());
        if let Err(errno) = self.front.start(io) {
            tracing::error!(volume = ?self.volume, %errno, "start the queue of a device");
            self.broken = true;
        }
        self.on_turn(io);
    }

    fn on_completion(&mut self, io: &mut H::Io, completion: Completion<<H::Io as Io>::Socket>) {
        let token = completion.token;
        if token & FRONT_TOKEN != 0 {
            self.front.on_completion(io, completion, &mut self.requests);
            return;
        }
        if token & JOB_TOKEN != 0 {
            let report = self.jobs.on_completion(io, &completion);
            self.events.extend(report.map(Event::Report));
            return;
        }
        self.in_flight -= 1;
        let result = completion.result.map(|_| ());
        if token & READ_TOKEN != 0 {
            self.read_done(io, token, result);
        } else {
            let id = RequestId::try_from(token).expect("a request of ours");
            self.events.push(Event::LocalDone(id, result));
        }
    }

    fn on_turn(&mut self, io: &mut H::Io) {
        self.front.on_turn(io, &mut self.requests);
        self.take_requests(io);
        let mail = self.mail.take();
        let due = self.outbox.deadline.is_some_and(|due| due <= io.now());
        if self.events.is_empty() && !mail && !due {
            return self.give_up(io);
        }
        self.hand_in(io);
        // What only had to be copied into the log is done.
        while !self.events.is_empty() {
            self.hand_in(io);
        }
        self.give_up(io);
    }

    fn deadline(&self) -> Option<Nanos> {
        self.outbox.deadline
    }

    fn finished(&self) -> bool {
        let over = self.broken || self.front.finished();
        // Requests that wait for an operator wait for nobody once the device is gone.
        let answered = self.outstanding == 0 || !self.shared.serves();
        over && !self.is_at_work() && answered
    }
}

impl<H: Host, F: FrontQueue<H::Io> + ?Sized> Drop for QueueWorker<H, F> {
    fn drop(&mut self) {
        self.mail.retire();
    }
}
