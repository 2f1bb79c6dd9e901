//! Messages from this ring to others.
//!
//! Owns which worker a message was for, so that one that the kernel refused is made good by the
//! worker's eventfd. A message names the other ring by its descriptor. If that ring is gone, its
//! worker has ended and needs no waking; if its number belongs to another ring by then, that one's
//! thread looks once in vain.

use super::wake::EventWake;
use crate::proactor::Waker;
use io_uring::IoUring;

/// Names with this bit belong to messages that failed.
pub(super) const NOTICE: u64 = 1 << 61;

/// The workers that messages were sent to.
#[derive(Debug, Default)]
pub(super) struct Notices {
    to: Vec<Waker>,
}

impl Notices {
    /// The number of a worker.
    pub(super) fn name(&mut self, waker: &Waker) -> usize {
        if let Some(known) = self.to.iter().position(|known| known.is(waker)) {
            return known;
        }
        // The place of a worker that nobody else can wake any more.
        match self.to.iter().position(Waker::is_last) {
            Some(free) => {
                self.to[free] = waker.clone();
                free
            }
            None => {
                self.to.push(waker.clone());
                self.to.len() - 1
            }
        }
    }

    /// The message to this worker was refused: wakes it after all.
    pub(super) fn failed(&self, name: u64) {
        let place = usize::try_from(name).expect("64-bit platform");
        let wake = self.to[place].inner().downcast_ref::<EventWake>();
        wake.expect("messages go to rings").write();
    }
}

/// True if messages between rings are used here: from Linux 6.12 on. Older kernels know them too, but
/// nobody has tried them on rings that put their work off; there a wake is a system call.
pub(super) fn passes_messages(ring: &IoUring) -> bool {
    // Of the same release.
    ring.params().is_feature_min_timeout()
}
