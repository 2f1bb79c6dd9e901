//! What the writers share: the sink of the record, and the ranges in flight.
//!
//! Owns the order of the record's lines and the rule that a clear overlaps nothing. Events enter, lines leave. Never does the I/O.

use super::record::Event;
use nix::sys::termios;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The record's sink. Lines are ordered by one short lock; whoever writes takes along what others have added meanwhile.
pub(super) struct Recorder {
    lines: Mutex<String>,
    sink: Mutex<File>,
    is_terminal: bool,
    syncs: bool,
}

impl Recorder {
    /// `syncs`: a record in a file must outlive the host.
    pub(super) fn new(sink: File, syncs: bool) -> io::Result<Self> {
        let is_terminal = termios::tcgetattr(&sink).is_ok();
        if is_terminal {
            let mut raw = termios::tcgetattr(&sink)?;
            termios::cfmakeraw(&mut raw);
            termios::tcsetattr(&sink, termios::SetArg::TCSANOW, &raw)?;
        }
        let syncs = syncs && sink.metadata()?.is_file();
        Ok(Self {
            lines: Mutex::default(),
            sink: Mutex::new(sink),
            is_terminal,
            syncs,
        })
    }

    pub(super) fn note(&self, event: &Event) {
        event.append_to(&mut lock(&self.lines));
    }

    /// Returns when all lines noted so far are where the crash does not reach.
    pub(super) fn settle(&self) -> io::Result<()> {
        let mut sink = lock(&self.sink);
        let lines = std::mem::take(&mut *lock(&self.lines));
        if lines.is_empty() {
            return Ok(());
        }
        sink.write_all(lines.as_bytes())?;
        if self.is_terminal {
            termios::tcdrain(&*sink)?;
        }
        if self.syncs { sink.sync_data() } else { Ok(()) }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Copy)]
pub(super) struct Claim {
    pub(super) writer: u16,
    pub(super) volume: u16,
    pub(super) first: u64,
    pub(super) end: u64,
    pub(super) clears: bool,
}

/// Ranges in flight. Writes may overlap each other; a clear overlaps nothing, or the record could not be judged.
#[derive(Default)]
pub(super) struct Claims(Mutex<Vec<Claim>>);

impl Claims {
    pub(super) fn take(&self, claim: Claim) -> bool {
        let mut claims = lock(&self.0);
        let clash = claims.iter().any(|other| {
            (other.clears || claim.clears)
                && other.volume == claim.volume
                && other.first < claim.end
                && claim.first < other.end
        });
        if !clash {
            claims.push(claim);
        }
        !clash
    }

    /// Adds a claim of an earlier load, whatever else is there.
    pub(super) fn keep(&self, claim: Claim) {
        lock(&self.0).push(claim);
    }

    /// A failed operation keeps its claim (under no writer's name): it may still happen.
    pub(super) fn release(&self, writer: u16, failed: bool) {
        let mut claims = lock(&self.0);
        if failed {
            claims
                .iter_mut()
                .filter(|c| c.writer == writer)
                .for_each(|c| c.writer = u16::MAX);
        } else {
            claims.retain(|claim| claim.writer != writer);
        }
    }
}
