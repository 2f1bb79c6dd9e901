//! A connection as a worker holds it.

use super::channel::Channel;
use blkrep_io::LineFacts;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A connection or listener, plain or encrypted; clones share it. It can move to another thread's
/// ring when no operation of it is under way.
pub struct Line<S> {
    raw: S,
    channel: Option<Arc<Mutex<Channel<S>>>>,
}

impl<S: Clone> Clone for Line<S> {
    fn clone(&self) -> Self {
        Self {
            raw: self.raw.clone(),
            channel: self.channel.clone(),
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for Line<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.channel.is_some() { "" } else { "plain " };
        write!(f, "{kind}{:?}", self.raw)
    }
}

impl<S: 'static> Line<S> {
    /// A socket as it is: a listener, or a connection that is not encrypted.
    pub const fn plain(raw: S) -> Self {
        Self { raw, channel: None }
    }

    pub(super) fn with(raw: S, channel: Channel<S>) -> Self {
        let channel = Some(Arc::new(Mutex::new(channel)));
        Self { raw, channel }
    }

    /// The socket below.
    pub const fn raw(&self) -> &S {
        &self.raw
    }

    /// What is known of the other end.
    #[must_use]
    pub fn facts(&self) -> LineFacts {
        let channel = self.channel.as_ref().map(|channel| lock(channel));
        channel.map_or_else(LineFacts::default, |channel| channel.facts())
    }

    pub(super) const fn channel(&self) -> Option<&Arc<Mutex<Channel<S>>>> {
        self.channel.as_ref()
    }
}

/// A channel is left whole by every call, so it is usable even if a holder panicked.
pub(super) fn lock<S>(channel: &Mutex<Channel<S>>) -> MutexGuard<'_, Channel<S>> {
    channel.lock().unwrap_or_else(PoisonError::into_inner)
}
