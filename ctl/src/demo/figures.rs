//! What each step measured, and what was promised of it.
//!
//! Owns the figures of the summary and the promises they are held to. Numbers enter; sentences
//! about broken promises leave. Measures nothing itself.

use blkrep_api::{DataState, FrontendKind};
use serde::Serialize;

/// Says `what` unless `kept`.
fn promise(broken: &mut Vec<String>, kept: bool, what: impl FnOnce() -> String) {
    if !kept {
        broken.push(what());
    }
}

/// Figures that know what was promised of them.
pub(crate) trait Promised: Serialize {
    /// Every promise that they break.
    fn broken(&self) -> Vec<String>;
}

/// The volume is served.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Attached {
    pub(crate) frontend: FrontendKind,
    pub(crate) device: String,
    pub(crate) size_bytes: u64,
    /// Written through the device before there was a replica.
    pub(crate) filled_bytes: u64,
    pub(crate) failed: u64,
}

impl Promised for Attached {
    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let (size, filled) = (self.size_bytes, self.filled_bytes);
        promise(&mut broken, self.failed == 0, || failed(self.failed));
        promise(&mut broken, filled == size, || {
            format!("{filled} bytes of {size} were filled")
        });
        broken
    }
}

/// What a load did.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Written {
    pub(crate) operations: u64,
    pub(crate) failed: u64,
    pub(crate) bytes: u64,
    /// Longest single operation.
    pub(crate) latency_ms_max: u64,
}

/// What the link was seen to do during a step.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Seen {
    /// Mirrors that began.
    pub(crate) mirrors: u64,
    /// Of them, others than difference mirrors.
    pub(crate) whole_mirrors: u64,
    pub(crate) mirror_bytes_sent: u64,
    pub(crate) mirror_bytes_skipped: u64,
    /// Counted between the nodes, acknowledgements not included.
    pub(crate) wire_bytes: u64,
    pub(crate) lag_ms_max: u64,
    pub(crate) queue_bytes_max: u64,
    pub(crate) was_disconnected: bool,
    pub(crate) was_behind: bool,
    /// The target's replica was not consistent for a time.
    pub(crate) was_not_ok: bool,
}

fn failed(count: u64) -> String {
    format!("{count} operations of the application failed")
}

/// The first copy.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FullMirror {
    pub(crate) size_bytes: u64,
    pub(crate) written: Written,
    pub(crate) seen: Seen,
    pub(crate) data_state: DataState,
}

impl Promised for FullMirror {
    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let (seen, written) = (&self.seen, &self.written);
        promise(&mut broken, written.failed == 0, || failed(written.failed));
        promise(&mut broken, written.operations > 0, || {
            "nothing was written during the mirror".to_owned()
        });
        let looked_at = seen.mirror_bytes_sent + seen.mirror_bytes_skipped;
        promise(&mut broken, looked_at >= self.size_bytes, || {
            format!(
                "the mirror covered {looked_at} bytes of {}",
                self.size_bytes
            )
        });
        promise(
            &mut broken,
            seen.wire_bytes >= seen.mirror_bytes_sent,
            || "fewer bytes travelled than the mirror sent".to_owned(),
        );
        promise(&mut broken, self.data_state == DataState::Ok, || {
            format!("the replica is {} after the mirror", self.data_state)
        });
        broken
    }
}

/// Work over an undisturbed link.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Workload {
    pub(crate) written: Written,
    pub(crate) seen: Seen,
}

impl Promised for Workload {
    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let (seen, written) = (&self.seen, &self.written);
        promise(&mut broken, written.failed == 0, || failed(written.failed));
        promise(&mut broken, written.bytes > 0, || {
            "nothing was written".to_owned()
        });
        no_mirror(&mut broken, seen);
        promise(&mut broken, seen.wire_bytes >= written.bytes, || {
            "fewer bytes travelled than were written".to_owned()
        });
        promise(&mut broken, !seen.was_not_ok, || {
            "the replica was not consistent for a time".to_owned()
        });
        broken
    }
}

fn no_mirror(broken: &mut Vec<String>, seen: &Seen) {
    let bytes = seen.mirror_bytes_sent + seen.mirror_bytes_skipped;
    promise(broken, seen.mirrors == 0 && bytes == 0, || {
        format!(
            "{} mirrors with {bytes} bytes; none was promised",
            seen.mirrors
        )
    });
    promise(broken, !seen.was_behind, || "the log overflowed".to_owned());
}

/// A cut that the log absorbs.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ShortCut {
    pub(crate) cut_ms: u64,
    pub(crate) log_bytes: u64,
    pub(crate) written: Written,
    pub(crate) seen: Seen,
}

impl Promised for ShortCut {
    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let (seen, written) = (&self.seen, &self.written);
        promise(&mut broken, written.failed == 0, || failed(written.failed));
        promise(&mut broken, seen.was_disconnected, || {
            "the link did not notice the cut".to_owned()
        });
        promise(&mut broken, seen.queue_bytes_max > 0, || {
            "nothing waited in the log".to_owned()
        });
        no_mirror(&mut broken, seen);
        promise(&mut broken, !seen.was_not_ok, || {
            "the replica was not consistent for a time".to_owned()
        });
        broken
    }
}

/// A cut that the log does not hold.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LongCut {
    pub(crate) cut_ms: u64,
    pub(crate) log_bytes: u64,
    pub(crate) written: Written,
    /// Extents that were written to, in bytes.
    pub(crate) touched_bytes: u64,
    /// Data that a held difference mirror may have on the target.
    pub(crate) journal_bytes: u64,
    pub(crate) seen: Seen,
}

impl LongCut {
    /// What the stream may need beside data: frames, records, the log's part of the stream.
    fn wire_allowance(&self) -> u64 {
        self.touched_bytes + self.touched_bytes / 20 + (1 << 20)
    }
}

impl Promised for LongCut {
    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let (seen, written) = (&self.seen, &self.written);
        let touched = self.touched_bytes;
        promise(&mut broken, written.failed == 0, || failed(written.failed));
        promise(&mut broken, written.bytes > self.log_bytes, || {
            format!("{} bytes were written: the log holds that", written.bytes)
        });
        promise(&mut broken, seen.was_behind, || {
            "the log did not overflow".to_owned()
        });
        promise(
            &mut broken,
            seen.mirrors == 1 && seen.whole_mirrors == 0,
            || {
                let (all, whole) = (seen.mirrors, seen.whole_mirrors);
                format!(
                    "{all} mirrors, {whole} of them not of differences; one of differences was promised"
                )
            },
        );
        let sent = seen.mirror_bytes_sent;
        promise(&mut broken, sent > 0 && sent <= touched, || {
            format!("the mirror sent {sent} bytes, {touched} bytes of extents were written to")
        });
        let (wire, most) = (seen.wire_bytes, self.wire_allowance());
        promise(&mut broken, wire <= most, || {
            format!("{wire} bytes travelled, at most {most} were promised")
        });
        promise(
            &mut broken,
            touched > self.journal_bytes || !seen.was_not_ok,
            || {
                "the replica was not consistent for a time, though the mirror fits the journal"
                    .to_owned()
            },
        );
        broken
    }
}

/// The source's daemon was killed and started again.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Crash {
    /// The application's device stayed open and waited.
    pub(crate) device_survives: bool,
    /// From the kill to the device being served again.
    pub(crate) away_ms: u64,
    pub(crate) before: Written,
    pub(crate) after: Written,
    /// Extents of operations that the kill left in doubt, in bytes.
    pub(crate) doubt_bytes: u64,
    pub(crate) seen: Seen,
}

impl Promised for Crash {
    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let seen = &self.seen;
        promise(
            &mut broken,
            self.before.bytes > 0 && self.after.bytes > 0,
            || "nothing was written before or after the kill".to_owned(),
        );
        let before = self.before.failed;
        promise(&mut broken, !self.device_survives || before == 0, || {
            failed(before)
        });
        promise(&mut broken, self.after.failed == 0, || {
            failed(self.after.failed)
        });
        promise(&mut broken, seen.whole_mirrors == 0, || {
            format!("{} whole mirrors; none was promised", seen.whole_mirrors)
        });
        let (sent, doubt) = (
            seen.mirror_bytes_sent + seen.mirror_bytes_skipped,
            if self.device_survives {
                0
            } else {
                self.doubt_bytes
            },
        );
        promise(&mut broken, sent <= doubt, || {
            format!("the mirror looked at {sent} bytes, at most {doubt} were in doubt")
        });
        broken
    }
}

/// The source is gone; the target serves.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Takeover {
    /// From the kill to the device being served by the target.
    pub(crate) away_ms: u64,
    pub(crate) frontend: FrontendKind,
    pub(crate) device: String,
    pub(crate) promoted: bool,
    /// A history of its own began.
    pub(crate) new_generation: bool,
    /// Until the source was lost.
    pub(crate) written: Written,
}

impl Promised for Takeover {
    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        promise(&mut broken, self.promoted && self.new_generation, || {
            "the target did not become the source of a new generation".to_owned()
        });
        promise(&mut broken, self.written.bytes > 0, || {
            "nothing was written before the takeover".to_owned()
        });
        broken
    }
}

/// The application on the promoted volume.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct GoneOn {
    pub(crate) written: Written,
}

impl Promised for GoneOn {
    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let Written {
            failed: count,
            bytes,
            ..
        } = self.written;
        promise(&mut broken, count == 0, || failed(count));
        promise(&mut broken, bytes > 0, || {
            "nothing was written to the promoted volume".to_owned()
        });
        broken
    }
}

/// The promoted image, judged from its bytes alone.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Checked {
    pub(crate) legal: bool,
    /// On record, over the whole demonstration.
    pub(crate) operations: u64,
    pub(crate) completed: u64,
    /// That the image must hold, visible or overwritten.
    pub(crate) held: u64,
    /// Completed and not held: what asynchronous replication lost with the source.
    pub(crate) lost: u64,
    /// The same image with one sector of an older write: must be found illegal.
    pub(crate) forgery_found: bool,
    pub(crate) findings: Vec<String>,
}

impl Promised for Checked {
    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        promise(&mut broken, self.legal, || {
            let first = self
                .findings
                .first()
                .map_or("no reason given", String::as_str);
            format!("the promoted image is no prefix of what was written: {first}")
        });
        promise(&mut broken, self.held > 0, || {
            "the image holds nothing".to_owned()
        });
        promise(&mut broken, self.forgery_found, || {
            "the checker took a forged image for a legal one".to_owned()
        });
        broken
    }
}

/// What is left behind.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct CleanedUp {
    pub(crate) stopped_in_order: bool,
    pub(crate) kept: Option<String>,
    pub(crate) left: Vec<String>,
}

impl Promised for CleanedUp {
    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        promise(&mut broken, self.stopped_in_order, || {
            "a daemon had to be killed".to_owned()
        });
        broken.extend(self.left.iter().cloned());
        broken
    }
}

#[cfg(test)]
mod tests;
