//! Frames of records, packed where that pays.
//!
//! Owns the compressor of a link and the policy that says when it is used. Batches enter, frames go to
//! the outbox; what packing took and gave, and what the line took, go to the policy. Never decides
//! what is sent.

use super::control::LinkSettings;
use super::session::Lines;
use blkrep_core::compression::{Compression, Packing as State, Policy};
use blkrep_io::{Io, Slice};
use blkrep_types::{ByteLen, Nanos, planted};
use blkrep_wire::{Codecs, Packer, Place};

/// Compression of one link.
#[derive(Debug, Default)]
pub(super) struct Packing {
    policy: Policy,
    level: i32,
    /// Made when the first batch is to be packed.
    packer: Option<Packer>,
}

impl Packing {
    /// Uses these settings from now on.
    pub(super) fn set(&mut self, settings: &LinkSettings) {
        self.policy.set(match settings.compression {
            // No line says how fast it is: what a real one would carry is to be known.
            Compression::Adaptive if settings.simulated => Compression::On,
            set => set,
        });
        self.level = i32::from(settings.compression_level);
    }

    /// A target has said what it takes.
    pub(super) fn connected(&mut self, codecs: Codecs) {
        self.policy
            .connected(codecs.has_zstd() || planted!(PackedUnasked));
    }

    pub(super) fn state(&self, now: Nanos) -> State {
        self.policy.packing(now)
    }

    /// The line took a buffer.
    pub(super) fn line_took(&mut self, now: Nanos, taken: &super::outbox::Taken) {
        self.policy
            .line_took(now, taken.bytes, taken.waited, taken.pressed);
    }

    fn packer(&mut self, now: Nanos, bytes: usize) -> Option<&mut Packer> {
        if !self.policy.wants(now, bytes) {
            return None;
        }
        if self.packer.is_none() {
            // Without memory for it frames are plain.
            self.packer = Packer::new(self.level);
        }
        let packer = self.packer.as_mut()?;
        packer.set_level(self.level);
        Some(packer)
    }
}

impl Lines {
    /// Queues a frame of the entries on this connection, with its place where there are several; its bytes
    /// on the wire.
    pub(super) fn frame<I: Io>(&mut self, io: &I, way: usize, place: Option<Place>) -> ByteLen {
        let lens = self.entries.iter().filter_map(|entry| entry.bytes.as_ref());
        let plain: usize = lens.map(Slice::len).sum();
        let now = io.now();
        let (outbox, encoder) = match way.checked_sub(1) {
            None => (&mut self.outbox, &mut self.encoder),
            Some(at) => {
                let side = &mut self.sides[at];
                (&mut side.outbox, &mut side.encoder)
            }
        };
        let framed = match self.packing.packer(now, plain) {
            None => outbox.data(encoder, place, &self.entries),
            Some(packer) => {
                let begun = io.exact_now();
                let framed = outbox.packed(encoder, place, &self.entries, packer);
                let spent = io.exact_now().since(begun);
                self.packing.policy.packed(now, spent, plain, framed);
                framed
            }
        };
        let framed = ByteLen::new(framed as u64);
        if let Some(null) = &mut self.null {
            null.takes(now, &self.entries, framed);
        }
        framed
    }
}
