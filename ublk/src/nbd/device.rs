//! An NBD device: its listener, its clients and how it ends.
//!
//! Owns the accepting thread and the list of connections. Enters: `start` and `stop`. Leaves:
//! threads that serve clients. Stopping finishes what clients have asked for, then closes.

use super::connection::{Export, House, serve};
use super::outbox::Ask;
use super::protocol::Shape;
use super::socket::{Accepted, Listeners, Stream, refusal};
use super::{NBD_CONNECTIONS_MAX, NbdOptions};
use crate::front::{Device, DeviceSpec, FrontError, FrontKind, Stop, Users};
use crate::mailbox::{Mailbox, MailboxQueue};
use blkrep_types::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long `stop` lets clients take the answers they wait for, before it cuts them off.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How long the accepting thread rests when the process has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One volume on its sockets.
#[derive(Debug)]
pub(super) struct NbdDevice {
    clients: Arc<Clients>,
    path: PathBuf,
    options: NbdOptions,
    stop: Arc<EventFd>,
    accepting: Option<JoinHandle<()>>,
    /// Bound by `make`, moved to the accepting thread by `start`.
    listeners: Option<Listeners>,
}

/// The connections of a device.
#[derive(Debug)]
struct Clients {
    export: Export,
    connections_max: usize,
    state: Mutex<ClientsState>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct ClientsState {
    streams: HashMap<u64, Arc<Stream>>,
    next: u64,
    stopping: bool,
}

impl House for Clients {
    /// Every connection has the same share, so that one that stalls never holds another's.
    fn share(&self) -> usize {
        let connections = self.lock().streams.len().max(1);
        (usize::from(self.export.mailbox.depth()) / connections).max(1)
    }

    fn stopping(&self) -> bool {
        self.lock().stopping
    }
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, ClientsState> {
        self.state.lock().expect("no panic under the clients' lock")
    }

    /// Takes a client in, unless there are too many or the device stops.
    fn admit(&self, stream: Stream) -> Option<(u64, Arc<Stream>)> {
        let mut state = self.lock();
        if state.stopping || state.streams.len() >= self.connections_max {
            return None;
        }
        let id = state.next;
        state.next += 1;
        let stream = Arc::new(stream);
        state.streams.insert(id, Arc::clone(&stream));
        Some((id, stream))
    }

    fn forget(&self, id: u64) {
        self.lock().streams.remove(&id);
        self.left.notify_all();
    }

    fn shutdown_all(&self, how: Shutdown) {
        for stream in self.lock().streams.values() {
            stream.shutdown(how);
        }
    }

    /// Waits until nobody is connected; false if `limit` has passed before.
    fn wait_empty(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while !state.streams.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .left
                .wait_timeout(state, left)
                .expect("no panic under the clients' lock")
                .0;
        }
        true
    }
}

/// Takes a client off the list however its thread ends.
struct Leaving<'a>(&'a Clients, u64);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.forget(self.1);
    }
}

impl NbdDevice {
    pub(super) fn make(
        options: &NbdOptions,
        spec: &DeviceSpec,
    ) -> Result<(Self, MailboxQueue<Ask>), FrontError> {
        let volume = &spec.volume;
        let request_bytes = usize::try_from(spec.request_bytes_max).expect("64-bit platform");
        let (mailbox, queue) = Mailbox::new(spec.depth, request_bytes).map_err(|source| {
            let what = format!("make the request memory of {volume}");
            refusal(what, source, "ask for fewer or smaller requests")
        })?;
        let directory = &options.directory;
        std::fs::create_dir_all(directory).map_err(|error| {
            let what = format!("make the directory {}", directory.display());
            refusal(
                what,
                Errno::from(&error),
                "see that its parent can be written",
            )
        })?;
        let path = directory.join(format!("{volume}.sock"));
        let listeners = Listeners::bind(&path, options.mode, options.tcp)?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let stop = stop.map_err(|errno| {
            let what = format!("make an event for {volume}");
            refusal(
                what,
                Errno::new(errno as i32),
                "raise the limit on open files",
            )
        })?;
        let clients = Clients {
            export: Export {
                name: volume.as_str().to_owned(),
                shape: Shape {
                    len: spec.len.get(),
                    block_bytes: spec.block_size.get(),
                    read_only: spec.read_only,
                    write_cache: spec.write_cache,
                    discard: spec.discard,
                },
                mailbox,
            },
            connections_max: usize::from(NBD_CONNECTIONS_MAX.min(spec.depth)),
            state: Mutex::default(),
            left: Condvar::new(),
        };
        let device = Self {
            clients: Arc::new(clients),
            path,
            options: NbdOptions {
                tcp: listeners.tcp_address(),
                ..options.clone()
            },
            stop: Arc::new(stop),
            accepting: None,
            listeners: Some(listeners),
        };
        Ok((device, queue))
    }
}

impl Device for NbdDevice {
    fn kind(&self) -> FrontKind {
        FrontKind::Nbd
    }

    fn path(&self) -> String {
        unix_uri(&self.path)
    }

    fn id(&self) -> Option<u32> {
        None
    }

    fn start(&mut self) -> Result<(), FrontError> {
        let Some(listeners) = self.listeners.take() else {
            return Ok(());
        };
        if let Some(address) = self.options.tcp {
            tracing::info!(%address, "serving NBD on TCP to every local user");
        }
        let (clients, stop) = (Arc::clone(&self.clients), Arc::clone(&self.stop));
        let thread = thread::Builder::new()
            .name("nbd-accept".to_owned())
            .spawn(move || accept_all(&clients, &listeners, &stop));
        self.accepting = Some(thread.map_err(|error| {
            let what = format!("start a thread for {}", self.path.display());
            refusal(what, Errno::from(&error), "raise the limit on threads")
        })?);
        Ok(())
    }

    fn users(&self) -> Users {
        let clients = Arc::clone(&self.clients);
        Box::new(move || !clients.lock().streams.is_empty())
    }

    fn reissues(&self) -> bool {
        false
    }

    /// Both ways are the same: clients get their answers, then a closed connection. A client that
    /// reconnects finds the successor under the same name.
    fn stop(&mut self, _how: Stop) -> Result<(), FrontError> {
        self.clients.lock().stopping = true;
        self.listeners = None;
        // The counter holds one a stop; it cannot be full.
        if let Err(error) = self.stop.write(1) {
            tracing::error!(%error, "could not wake the accepting thread");
        }
        if let Some(thread) = self.accepting.take()
            && thread.join().is_err()
        {
            tracing::error!("the accepting thread of an NBD device panicked");
        }
        self.clients.shutdown_all(Shutdown::Read);
        if !self.clients.wait_empty(STOP_LIMIT) {
            tracing::warn!(
                path = %self.path.display(),
                "NBD clients did not take their answers in time and are cut off"
            );
            self.clients.shutdown_all(Shutdown::Both);
        }
        self.clients.export.mailbox.close();
        Ok(())
    }
}

impl Drop for NbdDevice {
    fn drop(&mut self) {
        if let Err(error) = self.stop(Stop::Delete) {
            tracing::error!(%error, "could not stop an NBD device");
        }
    }
}

fn accept_all(clients: &Arc<Clients>, listeners: &Listeners, stop: &EventFd) {
    loop {
        match listeners.accept(stop) {
            Ok(Accepted::Stopped) => return,
            Ok(Accepted::Client(stream)) => welcome(clients, stream),
            Err(error) => {
                // Most likely no descriptors: those who are connected go on, others wait.
                tracing::warn!(%error, "cannot accept an NBD client");
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

fn welcome(clients: &Arc<Clients>, stream: Stream) {
    let Some((id, stream)) = clients.admit(stream) else {
        tracing::warn!(
            volume = clients.export.name,
            connections = clients.connections_max,
            "an NBD client was sent away: too many connections"
        );
        return;
    };
    let house = Arc::clone(clients);
    let spawned = thread::Builder::new()
        .name("nbd-receive".to_owned())
        .spawn(move || {
            let _leaving = Leaving(&house, id);
            if let Err(reason) = serve(&house.export, &*house, &stream) {
                tracing::info!(volume = house.export.name, %reason, "an NBD connection ended");
            }
            stream.shutdown(Shutdown::Both);
        });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread for an NBD client");
        clients.forget(id);
    }
}

/// The address of a unix socket as NBD clients read it.
fn unix_uri(path: &Path) -> String {
    let mut uri = "nbd+unix:///?socket=".to_owned();
    for byte in path.as_os_str().as_bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"/-_.~".contains(byte);
        if plain {
            uri.push(char::from(*byte));
        } else {
            write!(uri, "%{byte:02X}").expect("writing to a string succeeds");
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_odd_characters_is_still_one_address() {
        let path = Path::new("/var/lib/a b/50%?&.sock");
        assert_eq!(
            unix_uri(path),
            "nbd+unix:///?socket=/var/lib/a%20b/50%25%3F%26.sock"
        );
    }
}
