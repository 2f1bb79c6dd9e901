//! The kernel's error numbers, as values that a pure state machine can carry.

use std::fmt;

/// A Linux error number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    /// Operation not permitted.
    pub const EPERM: Self = Self(1);
    /// No such file, or other thing of a name.
    pub const ENOENT: Self = Self(2);
    /// Input/output error.
    pub const EIO: Self = Self(5);
    /// Try again.
    pub const EAGAIN: Self = Self(11);
    /// Device or resource busy.
    pub const EBUSY: Self = Self(16);
    /// No such device.
    pub const ENODEV: Self = Self(19);
    /// Invalid argument.
    pub const EINVAL: Self = Self(22);
    /// No space left on device.
    pub const ENOSPC: Self = Self(28);
    /// Read-only file system or device.
    pub const EROFS: Self = Self(30);
    /// Operation not supported.
    pub const EOPNOTSUPP: Self = Self(95);
    /// Connection reset by peer.
    pub const ECONNRESET: Self = Self(104);
    /// Connection refused.
    pub const ECONNREFUSED: Self = Self(111);
    /// Operation timed out.
    pub const ETIMEDOUT: Self = Self(110);
    /// Operation cancelled.
    pub const ECANCELED: Self = Self(125);

    /// The error with this positive number.
    #[must_use]
    pub const fn new(number: i32) -> Self {
        Self(number)
    }

    /// The positive number.
    #[must_use]
    pub const fn get(self) -> i32 {
        self.0
    }
}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

impl From<&std::io::Error> for Errno {
    /// The error's own number, or EIO where it has none.
    fn from(error: &std::io::Error) -> Self {
        error.raw_os_error().map_or(Self::EIO, Self)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl std::error::Error for Errno {}
