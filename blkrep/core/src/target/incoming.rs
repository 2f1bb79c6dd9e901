//! The order of what arrives: each record is the next one, one we have already, or an error.

use blkrep_types::limits::REQUEST_BYTES_MAX;
use blkrep_types::{
    BlockSize, ByteLen, Generation, Incarnation, Record, RecordKind, Seq, WriteName,
};

/// A place in the order of one generation.
pub type Place = (Incarnation, Seq);

/// What a record's extent is held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeShape {
    /// Size of the volume.
    pub len: ByteLen,
    /// Grain of its requests.
    pub block_size: BlockSize,
}

/// What is done with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It goes into the journal.
    New,
    /// It was received before: skipped.
    Duplicate,
}

/// A record that is refused; the connection ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Not the one after the last one.
    #[error(
        "write {found} of run {run} came where write {expected} should have: the stream has a gap"
    )]
    Gap {
        /// The run of the record.
        run: u64,
        /// Its place.
        found: Seq,
        /// The place that is next.
        expected: Seq,
    },
    /// A volume that the group does not have.
    #[error("write {0} is to a volume that the group does not have")]
    Volume(Seq),
    /// Outside the volume, too long, or not whole blocks.
    #[error("write {0} does not fit its volume")]
    Extent(Seq),
}

/// The names received so far.
#[derive(Debug, Clone)]
pub struct Incoming {
    generation: Generation,
    last: Place,
    volumes: Vec<VolumeShape>,
}

impl Incoming {
    /// Everything up to `last` was received.
    #[must_use]
    pub const fn new(last: WriteName, volumes: Vec<VolumeShape>) -> Self {
        let WriteName {
            generation,
            incarnation,
            seq,
        } = last;
        Self {
            generation,
            last: (incarnation, seq),
            volumes,
        }
    }

    /// The last record received.
    #[must_use]
    pub const fn last(&self) -> WriteName {
        WriteName {
            generation: self.generation,
            incarnation: self.last.0,
            seq: self.last.1,
        }
    }

    /// Goes on after `last`, of another history or after records that were given up.
    pub const fn restart(&mut self, last: WriteName) {
        self.generation = last.generation;
        self.last = (last.incarnation, last.seq);
    }

    /// Checks the next record of the connection and takes note of its name.
    ///
    /// # Errors
    /// There is a gap before it, or it does not fit its volume.
    pub fn take(&mut self, record: &Record) -> Result<Taken, RecordError> {
        let place = (record.incarnation, record.seq);
        if place <= self.last {
            return Ok(Taken::Duplicate);
        }
        // Everything a mirror's begin jumps over is dirty at the source; nothing else may jump.
        let jumps = matches!(record.kind, RecordKind::MirrorBegin(_));
        let expected = Seq::new(self.last.1.get().saturating_add(1));
        if !jumps && record.seq != expected {
            return Err(RecordError::Gap {
                run: record.incarnation.get(),
                found: record.seq,
                expected,
            });
        }
        self.check_extent(record)?;
        self.last = place;
        Ok(Taken::New)
    }

    fn check_extent(&self, record: &Record) -> Result<(), RecordError> {
        let wrong = RecordError::Extent(record.seq);
        assert_eq!(
            record.kind.has_extent(),
            record.extent.is_some(),
            "records are well-formed"
        );
        let Some(extent) = record.extent else {
            return Ok(());
        };
        let volume = self.volumes.get(record.volume.as_usize());
        let volume = volume.ok_or(RecordError::Volume(record.seq))?;
        let block = volume.block_size.get();
        let whole =
            extent.offset().get().is_multiple_of(block) && extent.len().get().is_multiple_of(block);
        let bounded = matches!(record.kind, RecordKind::Zero { .. })
            || extent.len().get() <= REQUEST_BYTES_MAX;
        // A mirror's last extent may end inside a block only if the volume does, which it cannot.
        if !whole || !bounded || extent.end().get() > volume.len.get() {
            return Err(wrong);
        }
        Ok(())
    }
}
