//! Volumes that come and go while a group has no link.
//!
//! Owns growing and shrinking a group. Without a link there is no log and no map, so nothing has to
//! be remembered of a volume but its lock. With one, a volume has its place in maps and stream, and
//! the set stays as it is.

use super::{FlushState, SourceGroup, Volume, WriteLog, blocks};
use crate::dirty::{MapLayout, Words};
use crate::intent::IntentMap;
use crate::range::RangeLock;
use blkrep_types::ByteLen;

impl<L: WriteLog, W: Words> SourceGroup<L, W> {
    /// Sets the volumes of a group without links: those that were there keep their places, new
    /// ones follow, missing ones at the end are gone.
    ///
    /// # Panics
    /// If the group has a log, or a volume that goes has requests under way.
    pub fn set_volumes(&mut self, volumes: &[ByteLen], layout: MapLayout, intent: IntentMap) {
        assert!(self.log.is_none(), "the volumes of a group with links stay");
        assert_eq!(
            volumes.len(),
            layout.volumes(),
            "the layout is of these volumes"
        );
        for gone in volumes.len()..self.volumes.len() {
            let idle = self
                .requests
                .iter()
                .all(|request| request.new.volume.as_usize() != gone);
            assert!(idle, "a volume that goes is idle");
        }
        self.volumes.truncate(volumes.len());
        let capacity = self.options.requests_max;
        for (index, len) in volumes.iter().enumerate() {
            match self.volumes.get_mut(index) {
                Some(volume) => volume.len = *len,
                None => self.volumes.push(Volume {
                    lock: RangeLock::with_capacity(capacity + blocks::JOBS_MAX),
                    flush: FlushState::with_capacity(capacity),
                    len: *len,
                    ended: false,
                }),
            }
        }
        self.layout = layout;
        self.intent = intent;
    }
}
