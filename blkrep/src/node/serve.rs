//! From an open engine to a device that applications use.
//!
//! Owns making a device, the threads of its queues, and starting it; and taking all that back when
//! a step fails. A volume's entry enters; a device at work leaves. Never opens a backing.

use super::frontends::{Chosen, pick};
use super::state::{Engine, Served};
use super::table::VolumeEntry;
use super::threads::WorkerThread;
use super::{Inner, errors};
use crate::engine::source::QueueWorker;
use blkrep_api::{ApiError, ErrorCode};
use blkrep_io::real::UringIo;
use blkrep_types::{Errno, VolumeIndex, VolumeName};
use blkrep_ublk::driver::{Found, ServerState, Ublk};
use blkrep_ublk::{DeviceSpec, FrontError, FrontQueue, Owner, Stop};
use std::time::{Duration, Instant};

/// Operations of a queue's ring beyond one a request: flushes, map commits, the waker.
const RING_EXTRA: u32 = 64;
/// How long the threads of a device that has been stopped may take: it has waited for their requests
/// already, as long as a disk's own errors take.
const JOIN_WAIT: Duration = Duration::from_secs(10);

impl Inner {
    /// What is to be said of the device that `entry` should have.
    fn device_spec(
        &self,
        volume: &VolumeName,
        entry: &VolumeEntry,
        engine: &Engine,
        recover: bool,
    ) -> Result<DeviceSpec, ApiError> {
        let settings = self.settings.group(&entry.group);
        let geometry = engine
            .backing_geometry(VolumeIndex::new(entry.index))
            .map_err(|error| errors::of_engine(format!("volume {volume}"), &error))?;
        Ok(DeviceSpec {
            volume: volume.clone(),
            owner: self.owner,
            len: entry.len,
            block_size: entry.block_size,
            physical_block_bytes: geometry.physical_block_bytes,
            read_only: entry.read_only,
            write_cache: geometry.write_cache,
            discard: !entry.read_only,
            queues: settings.queues,
            depth: settings.queue_depth,
            request_bytes_max: u32::try_from(settings.request_bytes.get())
                .expect("the setting's range is below 4 GiB"),
            device_id: entry.device_id,
            recover,
        })
    }

    /// Makes the device of a volume and serves it. `placed` is told the device's number before any
    /// request can come.
    pub(super) fn serve(
        &self,
        volume: &VolumeName,
        entry: &VolumeEntry,
        engine: &Engine,
        recover: bool,
        placed: impl FnOnce(Option<u32>) -> Result<(), ApiError>,
    ) -> Result<(Served, Chosen), ApiError> {
        let chosen = pick(entry.frontend, &self.run_dir).map_err(|why| {
            ApiError::new(
                ErrorCode::FrontendUnavailable,
                format!("volume {volume}"),
                why,
                "use another --frontend; blkctl doctor says what is missing",
            )
        })?;
        let spec = self.device_spec(volume, entry, engine, recover)?;
        let (device, queues) = chosen
            .front_end
            .make(&spec)
            .map_err(|error| errors::of_front(volume, &error))?;
        let index = VolumeIndex::new(entry.index);
        let mut served = Served {
            index,
            device,
            threads: Vec::new(),
        };
        match self.start(volume, engine, &mut served, queues, &spec, placed) {
            Ok(()) => Ok((served, chosen)),
            Err(error) => {
                // A device that outlived a predecessor stays for the next try.
                let how = if recover {
                    Stop::LeaveForSuccessor
                } else {
                    Stop::Delete
                };
                if let Err(left) = end(engine, &mut served, how) {
                    tracing::error!(%volume, error = %left, "take back a device");
                }
                Err(error)
            }
        }
    }

    fn start(
        &self,
        volume: &VolumeName,
        engine: &Engine,
        served: &mut Served,
        queues: Vec<Box<dyn FrontQueue<UringIo>>>,
        spec: &DeviceSpec,
        placed: impl FnOnce(Option<u32>) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        engine.begin_volume(served.index);
        placed(served.device.id())?;
        self.hints
            .name_device(served.device.path().as_ref(), volume);
        for (number, queue) in queues.into_iter().enumerate() {
            let (engine, index) = (engine.clone(), served.index);
            let entries = u32::from(spec.depth) * 2 + RING_EXTRA;
            let thread = WorkerThread::start(
                &self.host,
                &format!("q{number}-{volume}"),
                entries,
                move |_| Ok(QueueWorker::new(&engine, index, queue)),
            );
            let thread = thread.map_err(|error| {
                ApiError::new(
                    ErrorCode::NoRights,
                    format!("volume {volume}"),
                    error.to_string(),
                    "see blkctl doctor for limits of memory and io_uring",
                )
            })?;
            served.threads.push(thread);
        }
        served
            .device
            .start()
            .map_err(|error| errors::of_front(volume, &error))
    }
}

/// The device that this daemon or a predecessor left of a volume, whatever its state. Asks the driver,
/// which may take long. A device of another daemon of this host is not ours, whatever its volume is
/// called.
///
/// # Errors
/// The driver refuses to say.
pub(super) fn left_device(
    owner: Owner,
    volume: &VolumeName,
    entry: &VolumeEntry,
) -> Result<Option<Found>, FrontError> {
    let by_driver = entry.frontend == blkrep_api::FrontendKind::Ublk;
    let Some(id) = entry.device_id.filter(|_| by_driver) else {
        return Ok(None);
    };
    let found = Ublk::default().find(id)?;
    Ok(found.filter(|found| found.belongs_to(owner, volume)))
}

/// True if a device of this volume outlived its daemon and waits for us.
pub(super) fn outlived(owner: Owner, volume: &VolumeName, entry: &VolumeEntry) -> bool {
    match left_device(owner, volume, entry) {
        Ok(left) => left.is_some_and(|found| found.server != ServerState::Dead),
        Err(error) => {
            tracing::warn!(%volume, %error, "look for a device that outlived its daemon");
            false
        }
    }
}

/// Ends a device and waits for its threads. What waits for anything but the disk gets an error if the
/// device is deleted; it is left to the successor otherwise.
///
/// # Errors
/// The disk has requests that it does not give back, or the kernel does not let the device go. It can
/// be tried again.
pub(super) fn end(engine: &Engine, served: &mut Served, how: Stop) -> Result<(), FrontError> {
    if how == Stop::Delete {
        engine.end_volume(served.index);
    }
    let stopped = served.device.stop(how);
    let end = Instant::now() + JOIN_WAIT;
    let mut running = Vec::new();
    for thread in served.threads.drain(..) {
        thread.wake();
        running.extend(thread.join_until(end).err());
    }
    served.threads = running;
    stopped?;
    if served.threads.is_empty() {
        return Ok(());
    }
    Err(FrontError {
        what: format!("end {}", served.device.path()),
        source: Errno::EBUSY,
        action: "its disk does not answer: bring it back or take it away, then detach again"
            .to_owned(),
    })
}
