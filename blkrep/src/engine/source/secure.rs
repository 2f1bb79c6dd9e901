//! What a failed flush may have lost, made durable.
//!
//! Owns writing a backing's doubtful regions again. After a flush failed they still read back as they
//! were written, and a later flush that succeeds does not say that the disk has them. Who compares
//! such a backing with another one finds nothing, and a power cut then takes what was equal. All
//! workers have ended; everything is blocking.

use super::OpenError;
use super::group::SourceShared;
use blkrep_core::source::WriteLog;
use blkrep_io::{Host, HostError, Region, Slice};
use blkrep_types::{Errno, Extent, VolumeIndex};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Bytes read and written at once.
const PIECE: usize = 1 << 20;

impl<H: Host> SourceShared<H> {
    /// Writes again, and flushes, every open region of a volume of which a flush has failed since the
    /// host started. A group whose flushes all went well costs nothing.
    ///
    /// # Errors
    /// A backing cannot be read, written or flushed: what reads back cannot be relied upon.
    pub fn secure(&self) -> Result<(), OpenError> {
        let state = self.lock();
        let failed = state
            .group
            .log()
            .map_or(0, |log| log.flush_troubles().failed);
        let doubtful = |volume: VolumeIndex| failed >> volume.get() & 1 == 1;
        let open = state.group.intent().open_extents();
        let open: Vec<_> = open.filter(|(volume, _)| doubtful(*volume)).collect();
        drop(state);
        if open.is_empty() {
            return Ok(());
        }
        // Aligned as direct I/O wants it.
        let memory = Region::anonymous(PIECE).map_err(no_memory)?.whole();
        for (volume, extent) in &open {
            self.write_again(*volume, *extent, &memory)?;
        }
        let volumes: BTreeSet<_> = open.iter().map(|(volume, _)| *volume).collect();
        for volume in volumes {
            self.host.sync(&self.volume_file(volume).file)?;
        }
        Ok(())
    }

    fn write_again(
        &self,
        volume: VolumeIndex,
        extent: Extent,
        memory: &Slice,
    ) -> Result<(), HostError> {
        let backing = self.volume_file(volume);
        let (mut at, end) = (extent.offset().get(), extent.end().get());
        while at < end {
            let len = usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE));
            let place = backing.offset + at;
            memory.part(0..len).with_mut(|bytes| {
                self.host.read_at(&backing.file, place, bytes)?;
                self.host.write_at(&backing.file, place, bytes)
            })?;
            at += u64::try_from(len).expect("64-bit platform");
        }
        Ok(())
    }
}

fn no_memory(errno: Errno) -> HostError {
    HostError {
        operation: "get memory for",
        path: PathBuf::from("writing a backing again"),
        errno,
    }
}
