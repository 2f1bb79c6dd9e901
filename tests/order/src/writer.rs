//! Writers that load volumes with blocks that describe themselves.
//!
//! Owns the load: threads, what they ask for, and the keeping of the record. Devices and a sink for the record enter; a summary
//! leaves. Never reads a volume back.
//!
//! Each thread has one operation in flight, so the number of threads is the depth. Writes bypass the page cache; a FUA write goes
//! through a descriptor opened for synchronous data, which the kernel turns into REQ_FUA. Several loads may share one record: a
//! later one has writers of other numbers, and what failed in an earlier one stays in doubt.

use super::record::{Event, History, Kind};
use super::recorder::{Claim, Claims, Recorder, lock};
use super::sector::{self, Random, SECTOR_BYTES, Stamp};
use super::volume::{OPERATION_BYTES_MAX, Port, Volume};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What to load, how much, and of what.
#[derive(Debug, Clone)]
pub struct Load {
    /// Devices, files or NBD addresses (`nbd+unix:///?socket=PATH`), in the order of the record.
    pub volumes: Vec<PathBuf>,
    /// Threads.
    pub writers: u16,
    /// Stop after this time.
    pub seconds: Option<f64>,
    /// Stop when this file exists.
    pub stop_file: Option<PathBuf>,
    /// Stop after this many operations.
    pub operations: Option<u64>,
    /// Largest write.
    pub max_bytes: u32,
    /// Logical block: every operation is a multiple of it.
    pub block_bytes: u32,
    /// Only the first bytes of each volume, so that writes meet each other.
    pub span_bytes: Option<u64>,
    /// Flushes in a hundred operations.
    pub flush_percent: u8,
    /// FUA writes in a hundred operations.
    pub fua_percent: u8,
    /// Write-zeroes in a hundred operations.
    pub zero_percent: u8,
    /// Discards in a hundred operations.
    pub discard_percent: u8,
    /// Write every block once, in order, before the load.
    pub prefill: bool,
    /// Pause between the operations of one writer.
    pub pause: Duration,
    /// Go on after a failed operation.
    pub keep_going: bool,
    /// The host outlives the crash, so the record need not be synced to its disk.
    pub host_survives: bool,
    /// Seed of what is asked for.
    pub seed: u64,
    /// Identity of the run; a load that goes on with a record has that of the record.
    pub run: u64,
}

/// What a load did.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Summary {
    /// Operations submitted.
    pub submitted: u64,
    /// Operations that failed.
    pub failed: u64,
    /// The first failure, in words.
    pub first_failure: Option<String>,
    /// Bytes of completed writes.
    pub bytes_written: u64,
    /// Longest single operation, in milliseconds: a stall shows here.
    pub latency_ms_max: u64,
    /// Seconds of load.
    pub seconds: f64,
}

/// Prefill writes are this large.
const PREFILL_BYTES: u32 = 256 << 10;
/// How often a writer looks for a place that is free before it takes another operation.
const PLACE_TRIES: u32 = 16;

struct Shared<'a> {
    load: &'a Load,
    /// Identity of the run.
    run: u64,
    /// Number of the first writer.
    base: u16,
    volumes: &'a [Volume],
    recorder: &'a Recorder,
    claims: Claims,
    stop: AtomicBool,
    taken: AtomicU64,
    deadline: Option<Instant>,
    summary: Mutex<Summary>,
}

/// Runs a load to its end, with a new record in `sink`.
///
/// # Errors
/// The load is not sensible, a volume cannot be opened, or the record cannot be kept. A failed operation is not an error but
/// in the summary.
pub fn write(load: &Load, sink: File) -> io::Result<Summary> {
    run(load, None, sink)
}

/// Runs a load to its end, going on with the record that `before` was read from; `sink` appends to it.
///
/// # Errors
/// As [`write`]; also if the volumes are of other sizes than on record, or all numbers of writers are used.
pub fn append(load: &Load, before: &History, sink: File) -> io::Result<Summary> {
    run(load, Some(before), sink)
}

fn run(load: &Load, before: Option<&History>, sink: File) -> io::Result<Summary> {
    let volumes = (0_u16..).zip(&load.volumes);
    let volumes: Vec<_> = volumes
        .map(|(i, path)| Volume::open(i, path.clone()))
        .collect::<Result<_, _>>()?;
    validate(load, &volumes)?;
    let sectors: Vec<u64> = volumes.iter().map(|volume| volume.sectors).collect();
    let base = before.map_or(Ok(0), |before| next_writer(before, &sectors, load.writers))?;
    let recorder = Recorder::new(sink, !load.host_survives)?;
    if before.is_none() {
        let run = load.run;
        recorder.note(&Event::Run { run, sectors });
        recorder.settle()?;
    }
    let started = Instant::now();
    let mut shared = Shared {
        load,
        run: before.map_or(load.run, |before| before.run),
        base,
        volumes: &volumes,
        recorder: &recorder,
        claims: before.map_or_else(Claims::default, in_doubt),
        stop: AtomicBool::new(false),
        taken: AtomicU64::new(0),
        deadline: None,
        summary: Mutex::default(),
    };
    if load.prefill {
        Writer::new(&shared, load.writers).prefill()?;
    }
    shared.deadline = load
        .seconds
        .map(|seconds| Instant::now() + Duration::from_secs_f64(seconds));
    run_writers(&shared)?;
    recorder.settle()?;
    let mut summary = lock(&shared.summary).clone();
    summary.seconds = started.elapsed().as_secs_f64();
    Ok(summary)
}

fn run_writers(shared: &Shared<'_>) -> io::Result<()> {
    let ended: Vec<io::Result<()>> = std::thread::scope(|scope| {
        let spawn = |writer| scope.spawn(move || Writer::new(shared, writer).run());
        let threads: Vec<_> = (0..shared.load.writers).map(spawn).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, io::Result<()>>| {
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a writer panicked")))
        };
        threads.into_iter().map(join).collect()
    });
    ended.into_iter().collect()
}

/// The first number that no writer on record has.
fn next_writer(before: &History, sectors: &[u64], writers: u16) -> io::Result<u16> {
    if before.sectors != sectors {
        let (then, now) = (&before.sectors, sectors);
        return Err(io::Error::other(format!(
            "the record is of volumes of {then:?} sectors, these have {now:?}"
        )));
    }
    let last = before.operations.iter().map(|op| op.writer).max();
    let next = last.map_or(Some(0), |last| last.checked_add(1));
    // One more than the writers is the prefill's; the last number marks claims without a writer.
    next.filter(|next| {
        next.checked_add(writers)
            .is_some_and(|end| end < u16::MAX - 1)
    })
    .ok_or_else(|| io::Error::other("the record has used all numbers of writers"))
}

/// What failed or never came back may still happen: nothing may clear there, or be written over what was to be cleared.
fn in_doubt(before: &History) -> Claims {
    let claims = Claims::default();
    let open = before
        .operations
        .iter()
        .filter(|op| op.completed.is_none() && op.count > 0);
    for operation in open {
        claims.keep(Claim {
            writer: u16::MAX,
            volume: operation.volume,
            first: operation.first,
            end: operation.sectors().end,
            clears: operation.kind.clears(),
        });
    }
    claims
}

fn validate(load: &Load, volumes: &[Volume]) -> io::Result<()> {
    let bad = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, what.to_owned()));
    let percents = [
        load.flush_percent,
        load.fua_percent,
        load.zero_percent,
        load.discard_percent,
    ];
    let block = load.block_bytes;
    if volumes.is_empty() || load.writers == 0 || load.writers >= u16::MAX - 1 {
        return bad("name a volume and a writer");
    }
    if percents
        .iter()
        .map(|percent| u32::from(*percent))
        .sum::<u32>()
        > 100
    {
        return bad("percentages add up to more than 100");
    }
    if !block.is_power_of_two() || block < 512 || load.max_bytes < block {
        return bad(
            "the block is a power of two from 512, and the largest write at least one block",
        );
    }
    if load.max_bytes > OPERATION_BYTES_MAX {
        return bad("the largest write is at most 8MiB");
    }
    if volumes.iter().any(Volume::is_remote) && load.zero_percent > 0 {
        return bad("an NBD address takes no write-zeroes here: use discards");
    }
    if volumes
        .iter()
        .any(|volume| volume.is_remote() && volume.bytes_max < load.max_bytes)
    {
        return bad("the largest write to an NBD address is 64KiB: a larger one may be split");
    }
    if volumes
        .iter()
        .any(|volume| volume.sectors < u64::from(load.max_bytes / 512))
    {
        return bad("a volume is smaller than the largest write");
    }
    Ok(())
}

struct Writer<'a> {
    shared: &'a Shared<'a>,
    id: u16,
    counter: u64,
    random: Random,
    buffer: Vec<u8>,
    /// One for each volume.
    ports: Vec<Port>,
}

impl<'a> Writer<'a> {
    /// The writer of this place among the load's.
    fn new(shared: &'a Shared<'a>, place: u16) -> Self {
        let id = shared.base + place;
        let seed = shared.load.seed ^ (u64::from(id) + 1).wrapping_mul(0x9e37_79b9);
        let room = shared.load.max_bytes.max(PREFILL_BYTES) as usize + 4096;
        Self {
            shared,
            id,
            counter: 0,
            random: Random::new(seed),
            buffer: vec![0; room],
            ports: shared.volumes.iter().map(Volume::port).collect(),
        }
    }

    fn prefill(&mut self) -> io::Result<()> {
        let shared = self.shared;
        for volume in shared.volumes {
            let mut first = 0;
            while first < volume.sectors {
                let most = u64::from(PREFILL_BYTES.min(volume.bytes_max) / shared.load.block_bytes);
                let most = most * u64::from(shared.load.block_bytes / 512);
                let count = (volume.sectors - first).min(most);
                self.operate(
                    volume,
                    Kind::Write,
                    first,
                    u32::try_from(count).unwrap_or(u32::MAX),
                )?;
                first += count;
            }
            self.operate(volume, Kind::Flush, 0, 0)?;
        }
        Ok(())
    }

    fn run(mut self) -> io::Result<()> {
        let shared = self.shared;
        while !shared.stop.load(Ordering::Relaxed) {
            let taken = shared.taken.fetch_add(1, Ordering::Relaxed);
            let done = shared.load.operations.is_some_and(|limit| taken >= limit);
            if done || shared.deadline.is_some_and(|end| Instant::now() >= end) {
                break;
            }
            if shared
                .load
                .stop_file
                .as_ref()
                .is_some_and(|path| path.exists())
            {
                break;
            }
            let pick = self.random.below(shared.volumes.len() as u64);
            let volume = &shared.volumes[usize::try_from(pick).unwrap_or(0)];
            let (kind, first, count) = self.choose(volume);
            self.operate(volume, kind, first, count)?;
            if !shared.load.pause.is_zero() {
                std::thread::sleep(shared.load.pause);
            }
        }
        Ok(())
    }

    /// The next operation, with its place claimed.
    fn choose(&mut self, volume: &Volume) -> (Kind, u64, u32) {
        let load = self.shared.load;
        let mut dice = u8::try_from(self.random.below(100)).unwrap_or(0);
        let kinds = [
            (load.flush_percent, Kind::Flush),
            (load.fua_percent, Kind::WriteFua),
            (load.zero_percent, Kind::Zeroes),
            (load.discard_percent, Kind::Discard),
        ];
        let mut kind = Kind::Write;
        for (percent, candidate) in kinds {
            if dice < percent {
                kind = candidate;
                break;
            }
            dice -= percent;
        }
        if kind == Kind::Flush {
            return (kind, 0, 0);
        }
        let block = u64::from(load.block_bytes / 512);
        let span = load
            .span_bytes
            .map_or(volume.sectors, |span| span / 512)
            .min(volume.sectors)
            / block;
        let most = u64::from(load.max_bytes / load.block_bytes)
            .min(span)
            .max(1);
        for _ in 0..PLACE_TRIES {
            // Small ones are more frequent than large ones, as in life.
            let largest = 1 + self.random.below(most);
            let blocks = 1 + self.random.below(largest);
            let first = self.random.below(span.saturating_sub(blocks) + 1) * block;
            let sectors = blocks * block;
            let (writer, clears) = (self.id, kind.clears());
            let claim = Claim {
                writer,
                volume: volume.index,
                first,
                end: first + sectors,
                clears,
            };
            if self.shared.claims.take(claim) {
                return (kind, first, u32::try_from(sectors).unwrap_or(u32::MAX));
            }
        }
        (Kind::Flush, 0, 0)
    }

    fn operate(&mut self, volume: &Volume, kind: Kind, first: u64, count: u32) -> io::Result<()> {
        self.counter += 1;
        let (writer, counter) = (self.id, self.counter);
        let len = count as usize * SECTOR_BYTES;
        let skip = self.buffer.as_ptr().align_offset(4096);
        let bytes = &mut self.buffer[skip..][..if kind.clears() { 0 } else { len }];
        for (index, sector) in (0_u32..).zip(bytes.chunks_exact_mut(SECTOR_BYTES)) {
            let (run, volume) = (self.shared.run, volume.index);
            sector::encode(
                &Stamp {
                    run,
                    volume,
                    writer,
                    counter,
                    first,
                    count,
                    index,
                },
                sector,
            );
        }
        let recorder = self.shared.recorder;
        recorder.note(&Event::Submit {
            writer,
            counter,
            kind,
            volume: volume.index,
            first,
            count,
        });
        recorder.settle()?;
        let started = Instant::now();
        let port = &mut self.ports[usize::from(volume.index)];
        let result = volume.perform(port, kind, first, bytes, len as u64);
        let elapsed = started.elapsed();
        let errno = result
            .as_ref()
            .err()
            .map_or(0, |error| error.raw_os_error().unwrap_or(5));
        recorder.note(&Event::Complete {
            writer,
            counter,
            errno,
        });
        if matches!(kind, Kind::Flush | Kind::WriteFua) {
            // What these promise is worth judging by, so it is not left to be lost with the next crash.
            recorder.settle()?;
        }
        self.shared.claims.release(writer, result.is_err());
        let mut summary = lock(&self.shared.summary);
        summary.submitted += 1;
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        summary.latency_ms_max = summary.latency_ms_max.max(millis);
        match result {
            Ok(()) if matches!(kind, Kind::Write | Kind::WriteFua) => {
                summary.bytes_written += len as u64
            }
            Ok(()) => {}
            Err(error) => {
                summary.failed += 1;
                let words = || format!("{kind:?} of {}: {error}", volume.path.display());
                summary.first_failure.get_or_insert_with(words);
                self.shared
                    .stop
                    .fetch_or(!self.shared.load.keep_going, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}
