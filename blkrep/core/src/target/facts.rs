//! What a replica's superblock says, and every legal change of it.
//!
//! A change is made in memory and marked; the owner writes it down before it does anything else,
//! because [`super::Applier`] gives out nothing but [`super::Step::Persist`] until it is told that
//! it is durable.

use super::part::Part;
use blkrep_types::{DataState, Extent, Generation, History, VolumeIndex, WriteName, planted};

/// The durable facts of a replica.
///
/// ```text
///               mirror begins                 mirror ends, all known differences sent
///  not-ready ──────────────────► mirroring ─────────────────────────────► ok
///  unknown ─┘        ▲    │                                                │
///  reverted ┘        │    │ a difference is found                          │ full mirror begins,
///                    │    ▼                                                │ or a held one outgrows
///               mirror-required ◄──────────────────────────────────────────┘ the journal: mirroring
/// ```
#[derive(Debug, Clone)]
pub struct Facts {
    /// The generations of the data, the current one last.
    pub history: History,
    state: DataState,
    part: Part,
    merged: Option<WriteName>,
    /// Volumes whose base may lose what reads back, a bit each: a flush failed, and what it covered is
    /// not all written anew.
    doubtful: u64,
    /// The last write before those that the journal can name.
    pub base: WriteName,
    paused: bool,
    /// A promotion applies all the same; never written down.
    pause_lifted: bool,
    unsaved: bool,
}

/// True if `next` may follow `state`.
const fn may_become(state: DataState, next: DataState) -> bool {
    use DataState::{MirrorRequired, Mirroring, NotReady, Ok, RestoreRequired, Reverted, Unknown};
    match (state, next) {
        (Ok | MirrorRequired | NotReady | Reverted | Unknown, Mirroring)
        | (Mirroring | MirrorRequired, Ok)
        | (Ok | Mirroring, MirrorRequired) => true,
        (Ok | Mirroring | MirrorRequired | NotReady | Reverted | Unknown, NotReady | Unknown)
        | (_, RestoreRequired | Reverted)
        | (NotReady | Reverted | Unknown, Ok | MirrorRequired)
        | (RestoreRequired, _)
        | (Ok, Ok)
        | (Mirroring, Mirroring)
        | (MirrorRequired, MirrorRequired) => false,
    }
}

impl Facts {
    /// The facts as they were read, or those of a new replica.
    #[must_use]
    pub const fn new(
        history: History,
        state: DataState,
        part: Part,
        merged: Option<WriteName>,
        base: WriteName,
        paused: bool,
    ) -> Self {
        Self {
            history,
            state,
            part,
            merged,
            doubtful: 0,
            base,
            paused,
            pause_lifted: false,
            unsaved: false,
        }
    }

    /// The same, with volumes whose base is doubtful: bit 0 is the first one's.
    #[must_use]
    pub const fn doubting(mut self, volumes: u64) -> Self {
        self.doubtful = volumes;
        self
    }

    /// What the data is worth.
    #[must_use]
    pub const fn state(&self) -> DataState {
        self.state
    }

    /// Extents known to differ.
    #[must_use]
    pub const fn part(&self) -> &Part {
        &self.part
    }

    /// A mirror that ends after this write has sent all of the part.
    #[must_use]
    pub const fn merged(&self) -> Option<WriteName> {
        self.merged
    }

    /// Volumes whose base may lose what reads back; bit 0 is the first one's.
    #[must_use]
    pub const fn doubtful(&self) -> u64 {
        self.doubtful
    }

    /// True if what reads back of a volume's base says nothing: a comparison of it finds nothing equal.
    #[must_use]
    pub fn is_doubtful(&self, volume: VolumeIndex) -> bool {
        self.doubtful & bit_of(volume) != 0
    }

    /// True if what a base holds there is what the source wrote: nothing of it was lost, and no mirror is being
    /// applied.
    #[must_use]
    pub fn can_tell(&self, volume: VolumeIndex, extent: Extent) -> bool {
        let prefix = match self.state {
            DataState::Ok | DataState::MirrorRequired => true,
            DataState::Mirroring
            | DataState::RestoreRequired
            | DataState::NotReady
            | DataState::Reverted
            | DataState::Unknown => false,
        };
        prefix && !self.is_doubtful(volume) && !self.part.touches(volume, extent)
    }

    /// Applying was paused by command.
    #[must_use]
    pub const fn paused(&self) -> bool {
        self.paused
    }

    /// Nothing is applied.
    #[must_use]
    pub const fn holds_back(&self) -> bool {
        self.paused && !self.pause_lifted
    }

    /// True while memory is ahead of the disk.
    #[must_use]
    pub const fn unsaved(&self) -> bool {
        self.unsaved
    }

    /// Memory and disk agree.
    pub const fn saved(&mut self) {
        self.unsaved = false;
    }

    /// Something outside of them changed that is written down with them.
    pub const fn changed(&mut self) {
        self.unsaved = true;
    }

    fn become_state(&mut self, next: DataState) {
        assert!(
            may_become(self.state, next),
            "a replica that is {} does not become {next}",
            self.state
        );
        self.state = next;
        self.unsaved = true;
    }

    /// From here what is applied is no prefix.
    pub(super) fn mirror_begins(&mut self) {
        if self.state != DataState::Mirroring {
            self.become_state(DataState::Mirroring);
        }
    }

    /// True if a mirror that ends with this write makes the replica equal: it has sent all that is
    /// known to differ.
    pub(super) fn may_end(&self, end: WriteName) -> bool {
        let started = matches!(self.state, DataState::Mirroring | DataState::MirrorRequired);
        let after = |merged: WriteName| {
            merged.generation == end.generation
                && (merged.incarnation, merged.seq) < (end.incarnation, end.seq)
        };
        started
            && (self.part.is_empty() || planted!(OkDespiteDirt) || self.merged.is_some_and(after))
    }

    pub(super) fn mirror_ends(&mut self) {
        self.become_state(DataState::Ok);
        self.part.clear();
        self.merged = None;
        self.doubtful = 0;
    }

    fn differs(&mut self) {
        self.merged = None;
        self.unsaved = true;
        if matches!(self.state, DataState::Ok | DataState::Mirroring) {
            self.become_state(DataState::MirrorRequired);
        }
    }

    /// `extent` is not what was acknowledged.
    pub fn lost(&mut self, volume: VolumeIndex, extent: Extent) {
        self.part.set(volume, extent);
        self.differs();
    }

    fn lost_volume(&mut self, volume: VolumeIndex) {
        self.part.set_volume(volume);
        self.differs();
    }

    /// Flushes of a volume's base failed, and what they covered is not to be had again: any extent may not be what
    /// was acknowledged, whatever reads back, until a mirror has written all of it anew.
    pub fn flush_lost(&mut self, volume: VolumeIndex) {
        self.doubtful |= bit_of(volume);
        self.lost_volume(volume);
    }

    /// Another base is in a volume's place: it has nothing of the volume, and what reads back of it stays.
    pub fn replaced(&mut self, volume: VolumeIndex) {
        self.doubtful &= !bit_of(volume);
        self.lost_volume(volume);
    }

    /// Any extent may not be what was acknowledged.
    pub fn lost_everything(&mut self) {
        self.part.set_everything();
        self.differs();
    }

    /// The extents of `held` were acknowledged and will not be applied; the base stays the prefix
    /// it is. Only at a promotion, after which another engine tracks them.
    pub(super) fn set_aside(&mut self, held: &Part) {
        self.part.merge(held);
        self.unsaved = true;
    }

    /// A source has taken over the whole part when it had named `head`.
    pub fn handed_over(&mut self, head: WriteName) {
        if !self.part.is_empty() {
            self.merged = Some(head);
            self.unsaved = true;
        }
    }

    /// Another history takes this replica over after `base`: nothing it holds is known to be equal.
    pub fn adopt(&mut self, history: History, base: WriteName, head: WriteName) {
        self.history = history;
        self.base = base;
        if !matches!(self.state, DataState::NotReady) {
            self.state = DataState::MirrorRequired;
        }
        self.part.set_everything();
        self.merged = Some(head);
        self.unsaved = true;
    }

    /// Pauses or resumes applying.
    pub fn set_paused(&mut self, paused: bool) {
        self.unsaved |= self.paused != paused;
        self.paused = paused;
    }

    /// Applies although paused, or does so no longer. The pause outlives a crash.
    pub const fn lift_pause(&mut self, lifted: bool) {
        self.pause_lifted = lifted;
    }

    /// A new generation begins after the last write that is in the base.
    pub fn promoted(&mut self, generation: Generation, applied: WriteName) {
        self.history
            .branch(generation, applied.incarnation, applied.seq);
        self.base = WriteName {
            generation,
            ..applied
        };
        self.merged = None;
        self.paused = false;
        self.unsaved = true;
    }
}

fn bit_of(volume: VolumeIndex) -> u64 {
    1 << volume.as_usize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::MapLayout;
    use blkrep_types::{ByteLen, ByteOffset, ExtentSize};

    #[test]
    fn a_replica_becomes_ok_only_through_a_mirror() {
        for state in DataState::ALL {
            let ok = may_become(*state, DataState::Ok);
            let mirrored = matches!(state, DataState::Mirroring | DataState::MirrorRequired);
            assert_eq!(ok, mirrored, "{state}");
        }
        assert!(!may_become(
            DataState::RestoreRequired,
            DataState::Mirroring
        ));
    }

    #[test]
    fn what_was_lost_cannot_be_told_and_the_rest_can() {
        let len = ByteLen::new(1 << 20);
        let layout = MapLayout::new([(len, ExtentSize::DIRTY_DEFAULT)]);
        let part = Part::empty(layout);
        let ok = |state| {
            Facts::new(
                History::new(),
                state,
                part.clone(),
                None,
                WriteName::NONE,
                false,
            )
        };
        let volume = VolumeIndex::new(0);
        let at = |offset| Extent::new(ByteOffset::new(offset), ByteLen::new(4096)).expect("small");
        let mut facts = ok(DataState::Ok);
        assert!(facts.can_tell(volume, at(0)));
        facts.lost(volume, at(0));
        assert!(!facts.can_tell(volume, at(0)) && facts.can_tell(volume, at(128 << 10)));
        facts.flush_lost(volume);
        assert!(
            !facts.can_tell(volume, at(128 << 10)),
            "what reads back may go"
        );
        assert!(
            !ok(DataState::Mirroring).can_tell(volume, at(0)),
            "no prefix"
        );
    }
}
