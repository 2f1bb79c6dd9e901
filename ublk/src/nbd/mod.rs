//! The NBD server: a volume for everybody who has a client.
//!
//! Owns the fixed newstyle protocol on a unix socket, and on TCP within this machine. Enters: a
//! [`DeviceSpec`] and clients that may say anything. Leaves: a device whose requests come through
//! a mailbox, one queue whatever the number of connections. Never serves another host: there is
//! neither encryption nor a password.

mod connection;
mod device;
mod handshake;
mod outbox;
mod parts;
mod protocol;
mod socket;

use crate::front::{DeviceSpec, FrontEnd, FrontError, FrontKind, Made};
use crate::sync;
use blkrep_io::Io;
use device::NbdDevice;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Connections of one device: enough for a client per core of a large host; each may cost two
/// threads. A further one is closed at once.
pub const NBD_CONNECTIONS_MAX: u16 = 64;

/// Where and for whom the NBD front end listens.
#[derive(Debug, Clone)]
pub struct NbdOptions {
    /// Directory of the sockets, made if it is missing: `VOLUME.sock`.
    pub directory: PathBuf,
    /// Rights of the sockets. 0600 by default: who may connect may read and write the volume.
    pub mode: u32,
    /// Also listen here; a loopback address only. Every local user can then connect.
    pub tcp: Option<SocketAddr>,
}

impl NbdOptions {
    /// Sockets in `directory`, for the daemon's own user, and no TCP.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            mode: 0o600,
            tcp: None,
        }
    }
}

/// Makes devices that clients reach by the network block device protocol.
#[derive(Debug)]
pub struct NbdFrontEnd {
    options: NbdOptions,
}

impl NbdFrontEnd {
    /// A front end with these sockets.
    #[must_use]
    pub fn new(options: NbdOptions) -> Self {
        Self { options }
    }
}

impl<I: Io> FrontEnd<I> for NbdFrontEnd {
    fn kind(&self) -> FrontKind {
        FrontKind::Nbd
    }

    /// Sockets are everywhere: it always works.
    fn available(&self) -> Result<(), FrontError> {
        Ok(())
    }

    /// Makes the device with exactly one queue, of `spec.depth` tags.
    fn make(&self, spec: &DeviceSpec) -> Result<Made<I>, FrontError> {
        let (device, queue) = NbdDevice::make(&self.options, spec)?;
        Ok((Box::new(device), vec![Box::new(queue)]))
    }
}
