//! A link's side of its group.
//!
//! Owns the translation between the driver of a connection and the state machine, and the reads
//! that a mirror needs, on the driver's ring. Never talks to the network.

use super::group::{Event, FileOf, Outbox, SourceShared, apply};
use super::jobs::{JOB_TOKEN, Jobs, Report};
use super::mail::Mail;
use super::read_back::ReadBack;
use super::{Batch, LinkPort, PORT_TOKEN};
use blkrep_core::source::{
    Acks, Action, ContentPart, DigestReply, DownReason, HelloFacts, LinkIndex, LinkStatus,
    Outgoing, Rejection, StreamStart, VolumeFacts, WelcomeFacts, WorkerId,
};
use blkrep_io::{Completion, Host, Io, Slice};
use blkrep_types::{ByteLen, Extent, LinkName, MirrorKind, Nanos, NoteReport, Seq, VolumeIndex};
use std::sync::Arc;

/// One link's port.
#[derive(Debug)]
pub struct GroupLinkPort<H: Host> {
    shared: Arc<SourceShared<H>>,
    name: LinkName,
    link: LinkIndex,
    id: WorkerId,
    mail: Arc<Mail>,
    events: Vec<Event>,
    outbox: Outbox<FileOf<H>>,
    jobs: Jobs<FileOf<H>>,
    ahead: ReadBack,
}

impl<H: Host> GroupLinkPort<H> {
    pub(super) fn new(shared: &Arc<SourceShared<H>>, name: LinkName, link: LinkIndex) -> Self {
        let (id, mail) = shared.add_worker();
        Self {
            shared: Arc::clone(shared),
            name,
            link,
            id,
            mail,
            events: Vec::new(),
            outbox: Outbox::new(),
            jobs: Jobs::new(),
            ahead: ReadBack::default(),
        }
    }

    /// One turn, with what happened since the last one.
    fn turn<R>(
        &mut self,
        io: &mut H::Io,
        body: impl FnOnce(&mut super::group::State<FileOf<H>>) -> R,
    ) -> R {
        let events = &mut self.events;
        let result = self.shared.turn(self.id, io, &mut self.outbox, |state| {
            for event in events.drain(..) {
                apply(state, event);
            }
            body(state)
        });
        self.act(io);
        result
    }

    fn act(&mut self, io: &mut H::Io) {
        let mut actions = std::mem::take(&mut self.outbox.actions);
        for action in actions.drain(..) {
            match action {
                Action::MirrorRead {
                    job,
                    volume,
                    extent,
                    slot,
                } => {
                    let file = self.shared.volume_file(volume);
                    let log = self.shared.log();
                    self.jobs
                        .read(&mut Marked(io), job, &file, extent, slot, log);
                }
                Action::MirrorDigest {
                    job,
                    volume,
                    extent,
                } => {
                    let file = self.shared.volume_file(volume);
                    self.jobs.digest(&mut Marked(io), job, &file, extent);
                }
                Action::Sync { volume, number } => {
                    let file = self.shared.volume_file(volume);
                    self.jobs.flush(&mut Marked(io), volume, number, &file);
                }
                Action::Write { .. }
                | Action::Keep { .. }
                | Action::Zero { .. }
                | Action::Read { .. }
                | Action::Complete { .. } => unreachable!("requests belong to queues"),
            }
        }
        self.outbox.actions = actions;
        for commit in self.outbox.commits.drain(..) {
            self.jobs.commit(&mut Marked(io), commit);
        }
        self.do_queue_jobs(io);
        if std::mem::take(&mut self.outbox.appended) {
            self.shared.wake_links(io, &mut self.outbox);
        }
    }

    /// Does what the disk queue wants done.
    fn do_queue_jobs(&mut self, io: &mut H::Io) {
        for job in self.outbox.queue_jobs.drain(..) {
            let over = self
                .shared
                .begin_queue_job(&mut Marked(io), &mut self.jobs, job);
            self.events.extend(over.map(Event::Report));
        }
    }

    /// Begins to read what is only on disk and will be needed.
    fn read_ahead(&mut self, io: &mut H::Io) {
        if !self.ahead.has_asked() {
            return;
        }
        let Some(file) = self.shared.queue_file() else {
            // What was asked for was given up a moment ago, and its file is gone.
            return self.ahead.forget();
        };
        while let Some((read, memory)) = self.ahead.next_read() {
            self.jobs.read_back(&mut Marked(io), &file, &read, memory);
        }
    }

    /// Remembers that the target has taken over this generation.
    fn note_permits(&self) {
        let permits = self.shared.lock().group.link_permits(self.link);
        let name = &self.name;
        let noted = self.shared.record(|record| {
            if let Some(link) = record.links.iter_mut().find(|link| link.name == *name) {
                (link.first_mirror, link.overwrite) = permits;
            }
        });
        if let Err(error) = noted {
            tracing::warn!(link = %self.name, %error, "record that the target was taken over");
        }
    }
}

impl<H: Host> Drop for GroupLinkPort<H> {
    fn drop(&mut self) {
        self.mail.retire();
    }
}

/// A ring whose operations carry the port's mark.
struct Marked<'a, I>(&'a mut I);

impl<I: Io> Io for Marked<'_, I> {
    type File = I::File;
    type Socket = I::Socket;

    fn now(&self) -> Nanos {
        self.0.now()
    }

    fn exact_now(&self) -> Nanos {
        self.0.exact_now()
    }

    fn random(&mut self) -> u64 {
        self.0.random()
    }

    fn submit(&mut self, token: blkrep_io::Token, op: blkrep_io::Op<I::File, I::Socket>) {
        self.0.submit(token | PORT_TOKEN, op);
    }

    fn shutdown(&mut self, socket: &I::Socket) {
        self.0.shutdown(socket);
    }

    fn waker(&self) -> blkrep_io::Waker {
        self.0.waker()
    }

    fn notify(&mut self, waker: &blkrep_io::Waker) {
        self.0.notify(waker);
    }

    fn wait(
        &mut self,
        deadline: Option<Nanos>,
        out: &mut Vec<Completion<I::Socket>>,
    ) -> Result<(), blkrep_types::Errno> {
        self.0.wait(deadline, out)
    }
}

impl<H: Host> LinkPort<H::Io> for GroupLinkPort<H> {
    fn start(&mut self, io: &mut H::Io) {
        self.mail.register(io.waker());
        let (link, id) = (self.link, self.id);
        self.turn(io, |state| state.group.drive_link(link, id));
    }

    fn hello(&mut self) -> HelloFacts {
        let admin = self.shared.admin();
        let record = &admin.record;
        let link = record.links.iter().find(|link| link.name == self.name);
        let volumes = record.volumes.iter().enumerate().map(|(index, volume)| {
            let path = link.and_then(|link| link.paths.get(index));
            VolumeFacts {
                index: volume.index,
                name: volume.name.clone(),
                len: volume.len,
                block_size: volume.block_size,
                extent_size: volume.extent_size,
                target_path: path.cloned().unwrap_or_default(),
            }
        });
        let facts = HelloFacts {
            group: record.name.clone(),
            link: self.name.clone(),
            history: record.history.clone(),
            incarnation: record.incarnation,
            volumes: volumes.collect(),
            mode: link.map_or_else(Default::default, |link| link.mode),
            overwrite: link.is_some_and(|link| link.overwrite),
            first_mirror: link.and_then(|link| link.first_mirror),
        };
        drop(admin);
        self.shared.lock().group.negotiating(self.link);
        facts
    }

    fn wanted(&self) -> bool {
        let state = self.shared.lock();
        let meta = state.metas[self.link.as_usize()];
        let fenced = state.group.gate() == blkrep_core::source::Gate::Fenced;
        meta.wanted && !meta.refused && !fenced
    }

    fn welcome(&mut self, io: &mut H::Io, welcome: &WelcomeFacts) -> Result<(), Rejection> {
        let link = self.link;
        let answer = self.turn(io, |state| {
            let answer = state.group.welcome(link, welcome);
            if let Err(Rejection::Refused { .. }) = answer {
                state.metas[link.as_usize()].refused = true;
            }
            answer
        });
        if let Err(Rejection::Stale { newer }) = answer
            && let Err(error) = self.shared.remember_newer(newer)
        {
            tracing::error!(%newer, %error, "record that a newer generation exists");
        }
        answer
    }

    fn map_part(&mut self, volume: VolumeIndex, extent: Extent) {
        let link = self.link;
        self.shared
            .nudge(|state| state.group.map_part(link, volume, extent));
    }

    fn map_unknown(&mut self) {
        let link = self.link;
        self.shared.nudge(|state| state.group.map_unknown(link));
    }

    fn begin(&mut self, io: &mut H::Io) -> Option<StreamStart> {
        let link = self.link;
        self.turn(io, |state| state.group.begin_stream(link))
    }

    fn down(&mut self, io: &mut H::Io, reason: DownReason) {
        let link = self.link;
        self.turn(io, |state| state.group.link_down(link, reason));
        self.ahead.forget();
    }

    fn next(&mut self, io: &mut H::Io, records_max: usize, bytes_max: usize, batch: &mut Batch) {
        batch.records.clear();
        let link = self.link;
        let records = &mut batch.records;
        let mut state = self.shared.lock();
        state.group.enter(self.id, io.now());
        let ahead = &mut self.ahead;
        batch.more = state.group.next_records(
            link,
            records_max,
            bytes_max,
            |seq| ahead.place_of(seq),
            records,
        );
        ahead.look(link, &state.group);
        let waits = !batch.more && state.group.link_flows(link);
        drop(state);
        self.read_ahead(io);
        if !waits {
            return;
        }
        // Look again after saying so: what was published in between would wake nobody.
        self.shared.link_waits(link);
        let ahead = &self.ahead;
        let state = self.shared.lock();
        batch.more = state.group.has_records(link, |seq| ahead.place_of(seq));
    }

    fn bytes(&self, record: &Outgoing) -> Slice {
        let len = record.record.data_len().as_usize();
        if record.away {
            return self.ahead.bytes(record.position, len);
        }
        let log = self.shared.log();
        log.data(record.position, len)
    }

    fn release(&mut self, through: Seq, framed: ByteLen) {
        let link = self.link;
        self.shared
            .nudge(|state| state.group.release(link, through, framed));
        self.ahead.passed(through);
    }

    fn again(&mut self, _io: &mut H::Io) {
        let link = self.link;
        self.shared.nudge(|state| state.group.send_again(link));
        self.ahead.forget();
    }

    fn acked(&mut self, io: &mut H::Io, acks: &Acks) -> bool {
        let link = self.link;
        let (right, changed) = self.turn(io, |state| {
            let before = state.group.link_permits(link);
            let right = state.group.acked(link, acks);
            (right, state.group.link_permits(link) != before)
        });
        if changed {
            self.note_permits();
        }
        right
    }

    fn digest(&mut self, io: &mut H::Io, reply: &DigestReply) -> bool {
        let link = self.link;
        self.turn(io, |state| state.group.digest_reply(link, reply))
    }

    fn content(&mut self, io: &mut H::Io, part: &ContentPart, bytes: &[u8]) -> bool {
        let link = self.link;
        self.turn(io, |state| state.content(link, part, bytes))
    }

    fn takes_notes(&mut self, able: bool) {
        let link = self.link;
        self.shared
            .nudge(|state| state.group.takes_notes(link, able));
    }

    fn note(&mut self, io: &mut H::Io, report: &NoteReport) {
        let link = self.link;
        self.turn(io, |state| state.group.note_report(link, report));
    }

    fn on_completion(&mut self, io: &mut H::Io, mut completion: Completion<<H::Io as Io>::Socket>) {
        completion.token &= !PORT_TOKEN;
        debug_assert!(
            completion.token & JOB_TOKEN != 0,
            "a port has jobs in flight only"
        );
        let report = self.jobs.on_completion(&mut Marked(io), &completion);
        match report {
            Some(Report::ReadBack(id, result)) => {
                if let Err((seq, errno)) = self.ahead.done(id, result) {
                    self.events.push(Event::AwayLost(self.link, seq, errno));
                }
            }
            report => self.events.extend(report.map(Event::Report)),
        }
    }

    fn on_turn(&mut self, io: &mut H::Io) {
        let mail = self.mail.take();
        let due = self.outbox.deadline.is_some_and(|due| due <= io.now());
        if mail || due || !self.events.is_empty() {
            self.turn(io, |_| ());
        }
    }

    fn deadline(&self) -> Option<Nanos> {
        self.outbox.deadline
    }

    fn busy(&self) -> bool {
        self.jobs.busy() || !self.events.is_empty()
    }

    fn status(&self, now: Nanos) -> LinkStatus {
        let mut state = self.shared.lock();
        state.group.enter(self.id, now);
        state
            .group
            .link_status(self.link)
            .expect("a port's link exists")
    }

    fn mirror(&mut self, io: &mut H::Io, kind: MirrorKind) {
        let link = self.link;
        self.turn(io, |state| state.group.start_mirror(link, kind));
    }
}
