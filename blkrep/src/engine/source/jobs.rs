//! Operations that a worker does for its group.
//!
//! Owns flushes, map commits, mirror reads and digests from their start to their report, on the
//! ring of whichever worker was told. Completions enter, [`Report`]s leave. Never decides anything.

use super::group::VolumeFile;
use blkrep_core::ahead;
use blkrep_core::queue::SECTOR_BYTES;
use blkrep_core::source::{JobId, MapId, Slot, WriteOut};
use blkrep_io::{Completion, Io, Op, Region, Slice, Token};
use blkrep_log::LogHandle;
use blkrep_log::queue::{HEAD_BYTES, sum};
use blkrep_types::{Errno, Extent, VolumeIndex, planted};

/// Tokens with this bit are jobs.
pub(super) const JOB_TOKEN: Token = 1 << 61;

/// Blocks are compared with this much zeroes at a time.
static ZEROES: [u8; 4096] = [0; 4096];

/// What became of a job.
#[derive(Debug)]
pub(super) enum Report {
    Flushed(VolumeIndex, u64, Result<(), Errno>),
    Committed(MapId, Result<(), Errno>),
    Read(JobId, Result<bool, Errno>),
    Digested(JobId, Result<[u8; 32], Errno>),
    WrittenOut(WriteOut, Result<(), Errno>),
    Cleared(u32),
    ReadBack(u64, Result<(), Errno>),
}

/// Sectors of one map to write and make durable.
#[derive(Debug)]
pub(super) struct CommitJob<F> {
    pub(super) map: MapId,
    pub(super) file: F,
    /// Where each run of sectors goes.
    pub(super) writes: Vec<(u64, Slice)>,
}

#[derive(Debug)]
enum Job<F> {
    Flush(VolumeIndex, u64),
    Commit {
        map: MapId,
        file: F,
        left: usize,
        result: Result<(), Errno>,
        syncing: bool,
    },
    Read(JobId, Slice),
    Digest(JobId, Slice),
    WriteOut {
        write: WriteOut,
        left: usize,
        result: Result<(), Errno>,
    },
    Clear(u32),
    ReadBack(u64),
}

/// Where a sector of the disk queue lies in its file.
fn place_in_queue(sector: u32) -> u64 {
    HEAD_BYTES + u64::from(sector) * SECTOR_BYTES
}

/// The jobs of one worker.
#[derive(Debug)]
pub(super) struct Jobs<F> {
    jobs: Vec<Option<Job<F>>>,
    free: Vec<usize>,
    /// Memory for digests, used again.
    buffers: Vec<Slice>,
}

impl<F: Clone> Jobs<F> {
    pub(super) const fn new() -> Self {
        Self {
            jobs: Vec::new(),
            free: Vec::new(),
            buffers: Vec::new(),
        }
    }

    /// True while something is in flight.
    pub(super) const fn busy(&self) -> bool {
        self.jobs.len() > self.free.len()
    }

    fn insert(&mut self, job: Job<F>) -> Token {
        let index = self.free.pop().unwrap_or_else(|| {
            self.jobs.push(None);
            self.jobs.len() - 1
        });
        self.jobs[index] = Some(job);
        JOB_TOKEN | u64::try_from(index).expect("64-bit platform")
    }

    fn index(token: Token) -> usize {
        usize::try_from(token & !JOB_TOKEN).expect("64-bit platform")
    }

    fn remove(&mut self, index: usize) -> Job<F> {
        self.free.push(index);
        self.jobs[index].take().expect("a completion has its job")
    }

    pub(super) fn flush<I: Io<File = F>>(
        &mut self,
        io: &mut I,
        volume: VolumeIndex,
        number: u64,
        file: &VolumeFile<F>,
    ) {
        let token = self.insert(Job::Flush(volume, number));
        let file = file.file.clone();
        io.submit(token, Op::Sync { file });
    }

    pub(super) fn read<I: Io<File = F>>(
        &mut self,
        io: &mut I,
        job: JobId,
        file: &VolumeFile<F>,
        extent: Extent,
        slot: Slot,
        log: &LogHandle,
    ) {
        let slice = log.data(slot.position, extent.len().as_usize());
        let token = self.insert(Job::Read(job, slice.clone()));
        io.submit(token, file.read(extent, slice));
    }

    pub(super) fn digest<I: Io<File = F>>(
        &mut self,
        io: &mut I,
        job: JobId,
        file: &VolumeFile<F>,
        extent: Extent,
    ) {
        let len = extent.len().as_usize();
        let fits = self.buffers.iter().position(|buffer| buffer.len() >= len);
        let buffer = fits.map_or_else(
            || Region::heap(len.next_power_of_two()).whole(),
            |index| self.buffers.swap_remove(index),
        );
        let token = self.insert(Job::Digest(job, buffer.part(0..len)));
        io.submit(token, file.read(extent, buffer.part(0..len)));
    }

    pub(super) fn commit<I: Io<File = F>>(&mut self, io: &mut I, commit: CommitJob<F>) {
        assert!(!commit.writes.is_empty(), "a commit writes something");
        let single = commit.writes.len() == 1;
        let token = self.insert(Job::Commit {
            map: commit.map,
            file: commit.file.clone(),
            left: commit.writes.len(),
            result: Ok(()),
            syncing: single || planted!(MapCommitNotFlushed),
        });
        for (offset, slice) in commit.writes {
            io.submit(
                token,
                Op::Write {
                    file: commit.file.clone(),
                    offset,
                    slice,
                    durable: single && !planted!(MapCommitNotFlushed),
                },
            );
        }
    }

    /// Writes operations from their slots to the disk queue: slots side by side by one operation.
    pub(super) fn write_out<I: Io<File = F>>(
        &mut self,
        io: &mut I,
        file: &F,
        mut write: WriteOut,
        log: &LogHandle,
    ) {
        let mut runs: Vec<(u32, usize, usize)> = Vec::new();
        for part in &mut write.parts {
            part.crc = log.data(part.position, part.len).with(sum);
            match runs.last_mut() {
                Some((_, from, len)) if *from + *len == part.position => *len += part.len,
                Some(_) | None => runs.push((part.sector, part.position, part.len)),
            }
        }
        let token = self.insert(Job::WriteOut {
            write,
            left: runs.len(),
            result: Ok(()),
        });
        for (sector, from, len) in runs {
            io.submit(
                token,
                Op::Write {
                    file: file.clone(),
                    offset: place_in_queue(sector),
                    slice: log.data(from, len),
                    durable: false,
                },
            );
        }
    }

    /// Gives a segment of the disk queue back to its filesystem.
    pub(super) fn clear<I: Io<File = F>>(&mut self, io: &mut I, file: &F, sector: u32, len: u64) {
        let token = self.insert(Job::Clear(sector));
        let zero = Op::Zero {
            file: file.clone(),
            offset: place_in_queue(sector),
            len,
            free: true,
        };
        io.submit(token, zero);
    }

    /// Reads operations of the disk queue.
    pub(super) fn read_back<I: Io<File = F>>(
        &mut self,
        io: &mut I,
        file: &F,
        read: &ahead::Read,
        memory: &Slice,
    ) {
        let token = self.insert(Job::ReadBack(read.id));
        let read = Op::Read {
            file: file.clone(),
            offset: place_in_queue(read.sector),
            slice: memory.part(read.at..read.at + read.bytes),
        };
        io.submit(token, read);
    }

    /// Takes a completion whose token has [`JOB_TOKEN`].
    pub(super) fn on_completion<I: Io<File = F>>(
        &mut self,
        io: &mut I,
        completion: &Completion<I::Socket>,
    ) -> Option<Report> {
        let index = Self::index(completion.token);
        let result = completion.result.map(|_| ());
        if let Some(Job::Commit {
            file,
            left,
            result: all,
            syncing,
            ..
        }) = self.jobs[index].as_mut()
        {
            *all = all.and(result);
            *left -= 1;
            if *left > 0 {
                return None;
            }
            if all.is_ok() && !*syncing {
                (*left, *syncing) = (1, true);
                let file = file.clone();
                io.submit(completion.token, Op::Sync { file });
                return None;
            }
        }
        if let Some(Job::WriteOut {
            left, result: all, ..
        }) = self.jobs[index].as_mut()
        {
            *all = all.and(result);
            *left -= 1;
            if *left > 0 {
                return None;
            }
        }
        Some(match self.remove(index) {
            Job::WriteOut { write, result, .. } => Report::WrittenOut(write, result),
            Job::Clear(sector) => Report::Cleared(sector),
            Job::ReadBack(id) => Report::ReadBack(id, result),
            Job::Flush(volume, number) => Report::Flushed(volume, number, result),
            Job::Commit { map, result, .. } => Report::Committed(map, result),
            Job::Read(job, slice) => Report::Read(job, result.map(|()| is_zero(&slice))),
            Job::Digest(job, slice) => {
                let digest = result.map(|()| slice.with(|bytes| *blake3::hash(bytes).as_bytes()));
                self.buffers.push(slice.region().whole());
                Report::Digested(job, digest)
            }
        })
    }
}

fn is_zero(slice: &Slice) -> bool {
    slice.with(|bytes| {
        bytes
            .chunks(ZEROES.len())
            .all(|chunk| chunk == &ZEROES[..chunk.len()])
    })
}
