//! What happened on this node: kept in memory for clients, and in a rotating file for later.
//!
//! Owns the cursors, a bounded ring of records and the writer of `events.jsonl`. Events enter
//! through [`Events::publish`] from any thread, also of the data plane: it takes one short lock and
//! never waits for a disk. Records leave by cursor. A full disk or a damaged file costs records of
//! the file, never an event in memory and never the daemon.

mod file;

use blkrep_api::{EventId, EventPage, EventQuery, EventRecord, NewEvent, SCHEMA, Severity};
use blkrep_types::ByteLen;
use jiff::Timestamp;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::watch;

use file::RotatingFile;

/// Records waiting for the file's writer at most; more are kept in memory only.
const BACKLOG_MAX: usize = 1024;

/// Longest text of an event: what a log line can carry.
const TEXT_BYTES_MAX: usize = 2048;

/// Bounds of what is kept.
#[derive(Debug, Clone, Copy)]
pub struct EventLimits {
    /// Records in memory.
    pub kept: usize,
    /// Size at which the file is rotated.
    pub file_size: ByteLen,
    /// Files kept, the current one included.
    pub files: u16,
}

#[derive(Debug)]
struct Ring {
    records: VecDeque<EventRecord>,
    kept: usize,
    next: u64,
}

impl Ring {
    fn push(&mut self, event: NewEvent) -> EventRecord {
        let record = EventRecord::record(event, self.next, Timestamp::now());
        self.next += 1;
        if self.records.len() >= self.kept {
            self.records.pop_front();
        }
        self.records.push_back(record.clone());
        record
    }
}

enum ToFile {
    Record(Box<EventRecord>),
    Limits(ByteLen, u16),
}

#[derive(Debug)]
struct Shared {
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
    file: Mutex<Option<SyncSender<ToFile>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// The events of a node; clones share them.
#[derive(Debug, Clone)]
pub struct Events {
    shared: Arc<Shared>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that holds one of these locks can panic half way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Events {
    /// Events that are kept in memory only.
    #[must_use]
    pub fn in_memory(kept: usize) -> Self {
        Self::with(VecDeque::new(), kept, None)
    }

    /// Events kept in `events.jsonl` of `dir` as well; goes on after the last one there. A file
    /// that cannot be read is an event, not an error.
    #[must_use]
    pub fn open(dir: &Path, limits: EventLimits) -> Self {
        let (file, records, trouble) =
            RotatingFile::open(dir, limits.file_size, limits.files, limits.kept);
        let (sender, receiver) = sync_channel(BACKLOG_MAX);
        let events = Self::with(records, limits.kept, Some(sender));
        let ring = events.clone();
        let writer = std::thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || write_all(file, &receiver, &ring));
        match writer {
            Ok(handle) => *lock(&events.shared.writer) = Some(handle),
            Err(error) => {
                *lock(&events.shared.file) = None;
                events.trouble(&format!("the thread that writes events: {error}"));
            }
        }
        if let Some(why) = trouble {
            events.trouble(&why);
        }
        events
    }

    fn with(
        records: VecDeque<EventRecord>,
        kept: usize,
        sender: Option<SyncSender<ToFile>>,
    ) -> Self {
        let next = records.back().map_or(1, |last| last.cursor + 1);
        let ring = Ring {
            records,
            kept: kept.max(1),
            next,
        };
        Self {
            shared: Arc::new(Shared {
                ring: Mutex::new(ring),
                newest: watch::Sender::new(next - 1),
                file: Mutex::new(sender),
                writer: Mutex::new(None),
            }),
        }
    }

    /// Records an event, logs it, and wakes those who follow.
    pub fn publish(&self, event: NewEvent) {
        let mut event = event;
        if event.text.len() > TEXT_BYTES_MAX {
            event.text = event.text.chars().take(TEXT_BYTES_MAX / 4).collect();
        }
        let record = self.keep(event);
        let file = lock(&self.shared.file);
        if let Some(sender) = file.as_ref() {
            // Full: the disk is slower than the events come, or stuck. Memory has the record.
            let _ = sender.try_send(ToFile::Record(Box::new(record)));
        }
    }

    /// Records an event in memory only: about the file itself.
    fn trouble(&self, why: &str) {
        self.keep(NewEvent::new(EventId::EventLogTrouble, why));
    }

    fn keep(&self, event: NewEvent) -> EventRecord {
        let record = {
            let mut ring = lock(&self.shared.ring);
            ring.push(event)
        };
        log(&record);
        self.shared.newest.send_modify(|newest| {
            *newest = (*newest).max(record.cursor);
        });
        record
    }

    /// The records that match, at most the newest `limit` of them.
    #[must_use]
    pub fn page(&self, query: &EventQuery) -> EventPage {
        let ring = lock(&self.shared.ring);
        let first = ring.records.front().map_or(ring.next, |r| r.cursor);
        let after = query.after.unwrap_or(first - 1).min(ring.next - 1);
        let limit = query.limit.unwrap_or(usize::MAX);
        let matching = ring.records.iter().rev();
        let matching = matching.take_while(|record| record.cursor > after);
        let mut events: Vec<_> = matching
            .filter(|record| matches(record, query))
            .take(limit)
            .cloned()
            .collect();
        events.reverse();
        EventPage {
            schema: SCHEMA,
            events,
            next: ring.next - 1,
            missed: (first - 1).saturating_sub(after),
        }
    }

    /// Changes whenever an event was recorded.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.newest.subscribe()
    }

    /// Puts changed limits of the file in force.
    pub fn set_file_limits(&self, file_size: ByteLen, files: u16) {
        let file = lock(&self.shared.file);
        if let Some(sender) = file.as_ref() {
            // Full: the writer is stuck on its disk and has no use for limits now.
            let _ = sender.try_send(ToFile::Limits(file_size, files));
        }
    }

    /// Writes what is still to be written and closes the file. Events after this are kept in
    /// memory only.
    pub fn close(&self) {
        lock(&self.shared.file).take();
        let writer = lock(&self.shared.writer).take();
        if let Some(handle) = writer
            && handle.join().is_err()
        {
            tracing::error!("the thread that writes events has panicked");
        }
    }
}

fn matches(record: &EventRecord, query: &EventQuery) -> bool {
    query.severity.is_none_or(|least| record.severity >= least)
        && query.id.is_none_or(|id| record.name == id)
        && query
            .group
            .as_ref()
            .is_none_or(|group| record.group.as_ref() == Some(group))
}

fn log(record: &EventRecord) {
    let (event, text) = (record.number, &record.text);
    let name = record.name.name();
    match record.severity {
        Severity::Info => tracing::info!(event, "{name}: {text}"),
        Severity::Warning => tracing::warn!(event, "{name}: {text}"),
        Severity::Error => tracing::error!(event, "{name}: {text}"),
    }
}

/// Writes records until every sender is gone. Trouble is told once, until a write succeeds again.
fn write_all(mut file: RotatingFile, records: &Receiver<ToFile>, events: &Events) {
    let mut troubled = false;
    while let Ok(message) = records.recv() {
        match message {
            ToFile::Limits(file_size, files) => file.set_limits(file_size, files),
            ToFile::Record(record) => match file.append(&record) {
                Ok(()) => troubled = false,
                Err(error) if !troubled => {
                    troubled = true;
                    events.trouble(&format!("{}: {error}", file.path().display()));
                }
                Err(_) => {}
            },
        }
    }
    file.sync();
}

#[cfg(test)]
mod tests;
