//! The orderly end of a group.
//!
//! Owns what makes a run clean: backings flushed, what the log holds durable as dirt too, regions
//! closed, the last name recorded. All workers have ended; everything is blocking.

use super::OpenError;
use super::group::{SourceShared, State};
use super::jobs::CommitJob;
use blkrep_core::source::{MapId, WriteLog};
use blkrep_io::{Host, HostError};
use blkrep_types::VolumeIndex;

impl<H: Host> SourceShared<H> {
    /// Ends the group after its workers have ended. With `detached`, nobody watches the backings
    /// from now on: the next connection compares everything. The shared memory stays: a successor
    /// of the same boot goes on with it.
    ///
    /// # Errors
    /// A backing or the state could not be written: the run does not count as clean, and the next
    /// start compares what was open.
    pub fn stop(&self, detached: bool) -> Result<(), OpenError> {
        let mut state = self.lock();
        let quiet = state.group.requests_in_flight() == 0;
        let files: Vec<_> = state
            .volumes
            .iter()
            .map(|volume| volume.file.clone())
            .collect();
        let lost = state.group.is_lost();
        state.group.prepare_stop();
        drop(state);
        if !lost {
            self.flush(&files)?;
        }
        self.commit_all()?;
        let mut state = self.lock();
        let closed = state.group.close_all();
        let head = state.group.log().map(WriteLog::head);
        drop(state);
        self.commit_all()?;
        if detached || self.lock().group.queue_is_idle() {
            self.remove_queue();
        }
        let clean = quiet && closed;
        self.record(|record| {
            record.clean = clean;
            record.distrust |= detached;
            if let Some(head) = head {
                record.head = head;
            }
        })
    }

    /// Flushes every backing. What a failed flush may have lost is remembered: the application's next
    /// one may succeed without it.
    fn flush(&self, files: &[super::group::FileOf<H>]) -> Result<(), HostError> {
        let mut flushed = Ok(());
        for (volume, file) in (0..).map(VolumeIndex::new).zip(files) {
            if let Err(error) = self.host.sync(file) {
                self.lock().group.flush_was_lost(volume, error.errno);
                flushed = flushed.and(Err(error));
            }
        }
        flushed
    }

    /// Writes every changed map.
    pub(super) fn commit_all(&self) -> Result<(), OpenError> {
        loop {
            let mut state = self.lock();
            let Some(map) = state.group.next_changed_map() else {
                return Ok(());
            };
            let job = State::build_commit(&mut state, map);
            drop(state);
            let result = job.map_or(Ok(()), |job| self.write(&job));
            let told = match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(error.errno),
            };
            self.lock().group.commit_done(map, told);
            result?;
        }
    }

    fn write(&self, job: &CommitJob<super::group::FileOf<H>>) -> Result<(), HostError> {
        debug_assert!(
            matches!(job.map, MapId::Intent | MapId::Link(_)),
            "a map of ours"
        );
        for (offset, slice) in &job.writes {
            slice.with(|bytes| self.host.write_at(&job.file, *offset, bytes))?;
        }
        self.host.sync(&job.file)
    }
}
