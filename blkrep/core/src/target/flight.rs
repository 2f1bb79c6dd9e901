//! Records whose operation on the base has not completed.
//!
//! A fixed number of places: the table is searched for overlaps, so it is kept short, and the disk
//! below has no use for more.

use super::incoming::Place;
use blkrep_types::{Extent, Record, VolumeIndex, WriteName};

/// Operations on the base at once: the depth at which common disks are saturated.
pub const FLIGHTS_MAX: usize = 64;

/// One of the places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlightId(u8);

impl FlightId {
    /// The place with this number.
    #[must_use]
    pub fn new(index: usize) -> Option<Self> {
        (index < FLIGHTS_MAX).then(|| Self(u8::try_from(index).expect("few places")))
    }

    /// Its number, for indexing.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::from(self.0)
    }
}

/// One record on its way.
#[derive(Debug, Clone, Copy)]
pub struct Flight {
    /// The record.
    pub record: Record,
    /// The batch that holds it.
    pub batch: u64,
    /// Its number in that batch.
    pub index: usize,
    /// The record before it.
    pub(super) before: WriteName,
    extent: Extent,
    volume: VolumeIndex,
    place: Place,
}

/// The table of places.
#[derive(Debug)]
pub(super) struct Flights {
    places: Vec<Option<Flight>>,
    count: usize,
}

impl Flights {
    pub(super) fn new() -> Self {
        Self {
            places: vec![None; FLIGHTS_MAX],
            count: 0,
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) const fn len(&self) -> usize {
        self.count
    }

    pub(super) const fn is_full(&self) -> bool {
        self.count == FLIGHTS_MAX
    }

    pub(super) fn overlaps(&self, volume: VolumeIndex, extent: Extent) -> bool {
        self.iter()
            .any(|flight| flight.volume == volume && flight.extent.overlaps(extent))
    }

    fn iter(&self) -> impl Iterator<Item = &Flight> {
        self.places.iter().flatten()
    }

    /// Takes a place for a record with an extent.
    pub(super) fn begin(
        &mut self,
        record: Record,
        (batch, index): (u64, usize),
        before: WriteName,
    ) -> FlightId {
        let free = self
            .places
            .iter()
            .position(Option::is_none)
            .expect("checked by is_full");
        let extent = record.extent.expect("only records with an extent fly");
        let place = (record.incarnation, record.seq);
        let volume = record.volume;
        self.places[free] = Some(Flight {
            record,
            batch,
            index,
            before,
            extent,
            volume,
            place,
        });
        self.count += 1;
        FlightId::new(free).expect("within the table")
    }

    pub(super) fn get(&self, id: FlightId) -> &Flight {
        self.places[id.as_usize()]
            .as_ref()
            .expect("the flight is under way")
    }

    pub(super) fn end(&mut self, id: FlightId) -> Flight {
        self.count -= 1;
        self.places[id.as_usize()]
            .take()
            .expect("the flight is under way")
    }

    /// The earliest one in the order.
    pub(super) fn first(&self) -> Option<&Flight> {
        self.iter().min_by_key(|flight| flight.place)
    }

    /// The oldest batch that one of them needs.
    pub(super) fn oldest_batch(&self) -> Option<u64> {
        self.iter().map(|flight| flight.batch).min()
    }
}
