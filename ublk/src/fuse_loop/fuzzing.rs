//! The dialogue with FUSE over any descriptor, for a fuzzer that plays the kernel.
//!
//! Owns nothing of its own: the filesystem and the mailbox are those that ship. Exists only in builds
//! of the fuzz targets.

use super::filesystem::{Ask, OneFile};
use crate::front::{DeviceSpec, FrontQueue};
use crate::mailbox::Mailbox;
use blkrep_io::Io;
use blkrep_types::Errno;
use fuser::{Config, Session, SessionACL};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// One volume as the file that the kernel would be shown.
#[derive(Debug)]
pub struct Shown {
    mailbox: Arc<Mailbox<Ask>>,
    spec: DeviceSpec,
}

impl Shown {
    /// The file of a volume, and the queue of its requests.
    ///
    /// # Errors
    /// The shape makes no sense, or there is no memory.
    pub fn new<I: Io>(spec: &DeviceSpec) -> Result<(Self, Box<dyn FrontQueue<I>>), Errno> {
        let request_bytes = usize::try_from(spec.request_bytes_max).expect("64-bit platform");
        let (mailbox, queue) = Mailbox::new(spec.depth, request_bytes)?;
        let spec = spec.clone();
        Ok((Self { mailbox, spec }, Box::new(queue)))
    }

    /// Answers requests, one a message, until the other end closes or sends what is none.
    ///
    /// # Errors
    /// How the session ended.
    pub fn serve(&self, kernel: OwnedFd) -> io::Result<()> {
        let file = OneFile::new(Arc::clone(&self.mailbox), &self.spec);
        Session::from_fd(file, kernel, SessionACL::Owner, Config::default())?.run()
    }
}
