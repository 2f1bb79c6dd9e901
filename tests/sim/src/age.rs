//! What an application did between two losses of power, as a record.
//!
//! Owns what images are judged by: what was issued and answered, in order, and what the volumes held
//! before. Never issues anything.

use blkrep_order::{Event, History, Kind};
use std::collections::BTreeMap;
use std::ops::Range;

/// Sectors of a volume.
pub type Place = (u16, Range<u64>);

/// The record of one age, enough to judge images by.
#[derive(Debug, Clone, Default)]
pub struct Age {
    /// What its sectors are stamped with.
    pub run: u64,
    /// The record.
    pub events: Vec<Event>,
    /// What the volumes held when it began.
    pub base: Vec<Vec<u8>>,
    /// Sectors, by volume, that a power cut may still turn into what was there before the age.
    pub unflushed: Vec<Place>,
}

impl Age {
    /// Sectors, by volume, of which nothing can be said: a failed write may have left any part of
    /// itself, and a failed flush may have lost any write before it for good, as the application
    /// was told.
    #[must_use]
    pub fn failed_sectors(&self) -> Vec<Place> {
        let mut places = BTreeMap::new();
        let mut failed = Vec::new();
        for event in &self.events {
            match event {
                Event::Submit {
                    counter,
                    kind,
                    volume,
                    first,
                    count,
                    ..
                } => {
                    let sectors = *first..first + u64::from(*count);
                    places.insert(*counter, (*kind, *volume, sectors));
                }
                Event::Complete { counter, errno, .. } if *errno != 0 => {
                    let Some((kind, volume, sectors)) = places.get(counter).cloned() else {
                        continue;
                    };
                    if kind == Kind::Flush {
                        let before = places.values().filter(|(_, other, _)| *other == volume);
                        failed
                            .extend(before.map(|(_, volume, sectors)| (*volume, sectors.clone())));
                    }
                    failed.push((volume, sectors));
                }
                _ => {}
            }
        }
        failed
    }

    /// The record as a history.
    ///
    /// # Panics
    /// If the record is not one: a fault of the simulation itself.
    #[must_use]
    pub fn history(&self) -> History {
        let mut text = String::new();
        for event in &self.events {
            event.append_to(&mut text);
        }
        History::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }
}
