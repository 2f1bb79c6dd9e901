//! The file of a group's disk queue.
//!
//! Owns how it is made, found again by a successor, replaced and removed. Settings enter by command,
//! never on a request's way; a file that holds something is replaced once it is drained. What is
//! written to it and read from it is decided by the group and done by workers.

use super::OpenError;
use super::group::{FileOf, SourceShared, State};
use super::jobs::{Jobs, Report};
use super::open::random_id;
use blkrep_core::queue::QueueLimits;
use blkrep_core::source::{QueueJob, WriteOut};
use blkrep_io::{Access, Host, HostError, Io};
use blkrep_log::queue::{HEAD_BYTES, Head};
use blkrep_log::superblock::Group;
use blkrep_types::{ByteLen, Errno, GroupName};
use std::path::{Path, PathBuf};

/// The file is claimed: the kernel keeps the claim of a killed predecessor until its last write to it
/// has landed. Nothing of it need be durable, so it goes through the page cache, which is memory that
/// the kernel takes back.
const QUEUE_FILE: Access = Access {
    read_only: false,
    direct: false,
    claim: true,
    create: None,
};

/// A disk queue as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSpec {
    /// Where its file lies: a directory that exists.
    pub directory: PathBuf,
    /// Bytes of a segment.
    pub segment_bytes: ByteLen,
    /// Bytes on disk at most.
    pub bytes_max: ByteLen,
    /// Bytes that stay free on its filesystem.
    pub free_min: ByteLen,
    /// The alert level, in percent of the most.
    pub alert_percent: u8,
}

impl QueueSpec {
    const fn limits(&self) -> QueueLimits {
        QueueLimits {
            bytes_max: self.bytes_max,
            alert_percent: self.alert_percent,
        }
    }

    /// True if a file of one can be used for the other.
    fn same_file(&self, other: &Self) -> bool {
        (&self.directory, self.segment_bytes) == (&other.directory, other.segment_bytes)
    }
}

/// An open file.
#[derive(Debug)]
pub(super) struct QueueFile<F> {
    pub(super) file: F,
    path: PathBuf,
    number: u64,
    spec: QueueSpec,
}

/// A group's queue: the file in use, and the one that is to be used once that is drained.
#[derive(Debug)]
pub(super) struct Queue<F> {
    pub(super) file: Option<QueueFile<F>>,
    /// `Some(None)`: no file at all.
    next: Option<Option<QueueFile<F>>>,
}

impl<F> Default for Queue<F> {
    fn default() -> Self {
        Self {
            file: None,
            next: None,
        }
    }
}

impl<F> Queue<F> {
    /// What the group should have in the end.
    fn wanted(&self) -> Option<&QueueFile<F>> {
        match &self.next {
            Some(next) => next.as_ref(),
            None => self.file.as_ref(),
        }
    }
}

fn prefix(group: &GroupName) -> String {
    format!("{group}.queue-")
}

fn path_of(directory: &Path, group: &GroupName, number: u64) -> PathBuf {
    directory.join(format!("{}{number:016x}", prefix(group)))
}

/// Makes an empty file.
fn make<H: Host>(
    host: &H,
    record: &Group,
    spec: &QueueSpec,
) -> Result<QueueFile<FileOf<H>>, HostError> {
    let id = random_id(host);
    let number = u64::from_le_bytes(id[..8].try_into().expect("eight bytes")) | 1;
    let path = path_of(&spec.directory, &record.name, number);
    let access = Access {
        create: Some(ByteLen::new(HEAD_BYTES)),
        ..QUEUE_FILE
    };
    let file = host.open(&path, access)?;
    let head = Head {
        file: number,
        log: record.log_id,
        segment_bytes: spec.segment_bytes,
    };
    let file = QueueFile {
        file,
        path,
        number,
        spec: spec.clone(),
    };
    if let Err(error) = host.write_at(&file.file, 0, &head.encode()) {
        // The error says what happened; an empty file is removed by the next start.
        let _ = host.remove(&file.path);
        return Err(error);
    }
    Ok(file)
}

/// Opens the file that the log names, if it is there and is what it should be.
fn find<H: Host>(
    host: &H,
    record: &Group,
    spec: &QueueSpec,
    number: u64,
) -> Result<Option<QueueFile<FileOf<H>>>, OpenError> {
    let path = path_of(&spec.directory, &record.name, number);
    let file = match host.open(&path, QUEUE_FILE).map_err(OpenError::from) {
        Ok(file) => file,
        Err(error) if error.is_busy() => return Err(error),
        Err(_) => return Ok(None),
    };
    let mut bytes = [0; 512];
    let read = host.read_at(&file, 0, &mut bytes).ok();
    let head = read.and_then(|()| Head::decode(&bytes).ok());
    let ours = |head: &Head| (head.file, head.log) == (number, record.log_id);
    Ok(head.filter(ours).map(|head| QueueFile {
        file,
        path,
        number,
        spec: QueueSpec {
            segment_bytes: head.segment_bytes,
            ..spec.clone()
        },
    }))
}

/// Removes files of the group that no log names any more.
fn remove_others<H: Host>(host: &H, group: &GroupName, directory: &Path, ours: &[u64]) {
    let prefix = prefix(group);
    let Ok(names) = host.list(directory) else {
        return;
    };
    for name in names {
        let number = name.strip_prefix(&prefix).filter(|rest| rest.len() == 16);
        let number = number.and_then(|rest| u64::from_str_radix(rest, 16).ok());
        if number.is_some_and(|number| !ours.contains(&number))
            && let Err(error) = host.remove(&directory.join(&name))
        {
            tracing::warn!(%error, "remove a disk queue that nobody needs");
        }
    }
}

/// Gives a group that is being opened its queue. In words, why it has none although it should.
pub(super) fn open<H: Host>(
    host: &H,
    record: &Group,
    spec: Option<&QueueSpec>,
    state: &mut State<FileOf<H>>,
) -> Result<Option<String>, OpenError> {
    let number = state.group.log().map_or(0, |log| log.0.queue_file());
    let found = match spec {
        Some(spec) if number != 0 => find(host, record, spec, number)?,
        Some(_) | None => None,
    };
    if state.group.log().is_some() {
        let segment = found.as_ref().map(|file| file.spec.segment_bytes);
        state.group.adopt_queue(segment);
    }
    let Some(spec) = spec else {
        state.group.remember_queue(0);
        return Ok(None);
    };
    let fits = found.as_ref().is_some_and(|file| file.spec.same_file(spec));
    let made = match fits {
        true => Ok(None),
        false => make(host, record, spec).map(Some),
    };
    let problem = made.as_ref().err().map(ToString::to_string);
    let made = made.ok().flatten();
    // After an attempt that showed the directory to be there: a listing would make it.
    if problem.is_none() {
        let ours: Vec<_> = [&found, &made].into_iter().flatten().collect();
        let ours: Vec<_> = ours.iter().map(|file| file.number).collect();
        remove_others(host, &record.name, &spec.directory, &ours);
    }
    match (found, made) {
        (Some(found), None) if fits => {
            state.queue.file = Some(found);
            state.group.limit_queue(Some(spec.limits()));
        }
        (Some(found), made) => {
            // Drained first.
            state.queue.file = Some(found);
            state.queue.next = Some(made);
        }
        (None, Some(made)) => {
            state.queue.next = Some(Some(made));
            exchange(state);
        }
        (None, None) => state.group.remember_queue(0),
    }
    Ok(problem)
}

/// Takes the next file into use if the one in use is drained; the file that may be removed.
fn exchange<F: Clone>(state: &mut State<F>) -> Option<PathBuf> {
    if state.queue.next.is_none() || !state.group.queue_is_idle() {
        return None;
    }
    let next = state.queue.next.take().flatten();
    match &next {
        Some(next) => {
            state.group.open_queue(next.spec.segment_bytes);
            state.group.limit_queue(Some(next.spec.limits()));
            state.group.remember_queue(next.number);
        }
        None => {
            state.group.close_queue();
            state.group.remember_queue(0);
        }
    }
    let gone = std::mem::replace(&mut state.queue.file, next);
    gone.map(|gone| gone.path)
}

impl<H: Host> SourceShared<H> {
    /// Changes the disk queue, or takes it away. What is in a file that is not to be used any more
    /// is sent first; meanwhile memory alone holds what is new.
    ///
    /// # Errors
    /// The new file cannot be made; nothing changed.
    pub fn set_queue(&self, spec: Option<&QueueSpec>) -> Result<(), OpenError> {
        let admin = self.admin();
        let kept = {
            let mut state = self.lock();
            let wanted = state.queue.wanted().map(|file| file.spec.clone());
            let kept = match (&wanted, spec) {
                (Some(wanted), Some(spec)) => wanted.same_file(spec),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            if let Some(spec) = spec.filter(|_| kept) {
                let waits = state.queue.next.is_some();
                let queue = &mut state.queue;
                let file = match &mut queue.next {
                    Some(next) => next.as_mut(),
                    None => queue.file.as_mut(),
                };
                file.expect("just seen").spec = spec.clone();
                if !waits {
                    state.group.limit_queue(Some(spec.limits()));
                }
            }
            kept
        };
        if kept {
            return Ok(());
        }
        let next = spec.map(|spec| make(&self.host, &admin.record, spec));
        let next = next.transpose()?;
        let mut state = self.lock();
        state.group.limit_queue(None);
        let unused = state.queue.next.replace(next).flatten();
        drop(state);
        drop(admin);
        if let Some(unused) = unused {
            self.host.remove(&unused.path)?;
        }
        self.tend_queue();
        Ok(())
    }

    /// Exchanges files once the old one is drained. To be called now and then, and not by workers.
    pub fn tend_queue(&self) {
        let gone = exchange(&mut self.lock());
        if let Some(path) = gone
            && let Err(error) = self.host.remove(&path)
        {
            tracing::warn!(%error, "remove a disk queue that is drained");
        }
    }

    /// True if the group has a disk queue, or will have one.
    #[must_use]
    pub fn has_queue(&self) -> bool {
        self.lock().queue.wanted().is_some()
    }

    /// Begins what the group wants done with the file. A write that there is no room for is over at once, which the
    /// next turn is to report.
    pub(super) fn begin_queue_job<I: Io<File = FileOf<H>>>(
        &self,
        io: &mut I,
        jobs: &mut Jobs<FileOf<H>>,
        job: QueueJob,
    ) -> Option<Report> {
        let file = self.queue_file().expect("it is not exchanged now");
        match job {
            QueueJob::Clear { sector, bytes } => jobs.clear(io, &file, sector, bytes.get()),
            QueueJob::Write(write) => match self.has_room_for(&write) {
                Ok(()) => jobs.write_out(io, &file, write, self.log()),
                Err(errno) => {
                    io.waker().wake();
                    return Some(Report::WrittenOut(write, Err(errno)));
                }
            },
        }
        None
    }

    /// True if there is room for a write to the queue's file, and its segment.
    fn has_room_for(&self, write: &WriteOut) -> Result<(), Errno> {
        if !write.fresh {
            return Ok(());
        }
        let (file, least) = {
            let state = self.lock();
            let queue = state.queue.file.as_ref().expect("it is written to");
            let least = queue.spec.free_min.get() + queue.spec.segment_bytes.get();
            (queue.file.clone(), least)
        };
        let left = self.host.free_space(&file).map_err(|error| error.errno)?;
        if left.get() < least {
            Err(Errno::ENOSPC)
        } else {
            Ok(())
        }
    }

    /// Remembers the file in the log that was just made.
    pub(super) fn remember_queue(state: &mut State<FileOf<H>>) {
        let number = state.queue.file.as_ref().map_or(0, |file| file.number);
        state.group.remember_queue(number);
    }

    /// The queue's file. There is one while the group waits for something to be done with it.
    pub(super) fn queue_file(&self) -> Option<FileOf<H>> {
        let state = self.lock();
        state.queue.file.as_ref().map(|queue| queue.file.clone())
    }

    /// The queue goes with the group: nothing of it is needed any more.
    pub(super) fn remove_queue(&self) {
        let mut state = self.lock();
        let queue = std::mem::take(&mut state.queue);
        drop(state);
        for file in [queue.file, queue.next.flatten()].into_iter().flatten() {
            if let Err(error) = self.host.remove(&file.path) {
                tracing::warn!(%error, "remove a disk queue");
            }
        }
    }
}
