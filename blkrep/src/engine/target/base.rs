//! The bases: what holds a replica's volumes.

use super::policy::{TargetError, TargetPolicy};
use super::signature::{PROBE_BYTES, probe};
use blkrep_io::{Access, Geometry, Host, HostError, Io};
use blkrep_types::{BlockSize, ByteLen, Errno, VolumeName, planted};
use std::path::{Path, PathBuf};

/// What a volume needs of its base.
#[derive(Debug, Clone)]
pub struct BaseShape {
    /// The volume.
    pub name: VolumeName,
    /// Its size.
    pub len: ByteLen,
    /// The grain of its requests.
    pub block_size: BlockSize,
}

type File<H> = <<H as Host>::Io as Io>::File;

/// Opens with the exclusive claim, past the page cache where that works.
pub(super) fn open_claimed<H: Host>(
    host: &H,
    path: &Path,
    create: Option<ByteLen>,
) -> Result<File<H>, HostError> {
    let access = Access {
        read_only: false,
        direct: true,
        claim: !planted!(TargetBeforeClaim),
        create,
    };
    match host.open(path, access) {
        Err(error) if error.errno == Errno::EINVAL => host.open(
            path,
            Access {
                direct: false,
                ..access
            },
        ),
        other => other,
    }
}

/// Opens the base of a new replica and looks at what it holds. A path that is made goes to `made`.
pub(super) fn open_new<H: Host>(
    host: &H,
    policy: &TargetPolicy,
    path: &Path,
    shape: &BaseShape,
    overwrite: bool,
    made: &mut Vec<PathBuf>,
) -> Result<(File<H>, Geometry), TargetError> {
    policy.check(path)?;
    let file = match open_claimed(host, path, None) {
        Err(error) if error.errno == Errno::new(ENOENT) => {
            if !policy.may_make(path) {
                let path = path.to_owned();
                return Err(TargetError::Missing { path });
            }
            let file = open_claimed(host, path, Some(shape.len)).map_err(TargetError::from_open)?;
            made.push(path.to_owned());
            host.sync(&file)?;
            file
        }
        Err(error) => return Err(TargetError::from_open(error)),
        Ok(file) => {
            if !overwrite {
                refuse_occupied(host, path, &file)?;
            }
            file
        }
    };
    let geometry = check_shape(host, path, &file, shape)?;
    Ok((file, geometry))
}

/// Removes bases that a replica would have had.
pub(super) fn unmake<H: Host>(host: &H, made: &[PathBuf]) {
    for path in made {
        if let Err(error) = host.remove(path) {
            tracing::warn!(%error, "remove a base that was made in vain");
        }
    }
}

const ENOENT: i32 = 2;

/// Opens the base of a replica that is known.
pub(super) fn open_known<H: Host>(
    host: &H,
    path: &Path,
    shape: &BaseShape,
) -> Result<(File<H>, Geometry), TargetError> {
    let file = open_claimed(host, path, None).map_err(TargetError::from_open)?;
    let geometry = check_shape(host, path, &file, shape)?;
    Ok((file, geometry))
}

fn check_shape<H: Host>(
    host: &H,
    path: &Path,
    file: &File<H>,
    shape: &BaseShape,
) -> Result<Geometry, TargetError> {
    let geometry = host.geometry(file)?;
    if geometry.read_only {
        return Err(TargetError::ReadOnly {
            path: path.to_owned(),
        });
    }
    if geometry.len < shape.len {
        return Err(TargetError::TooSmall {
            path: path.to_owned(),
            volume: shape.name.clone(),
            have: geometry.len,
            need: shape.len,
        });
    }
    if geometry.block_size.get() > shape.block_size.get() {
        return Err(TargetError::Blocks {
            path: path.to_owned(),
            volume: shape.name.clone(),
            have: geometry.block_size.get(),
            need: shape.block_size.get(),
        });
    }
    Ok(geometry)
}

fn refuse_occupied<H: Host>(host: &H, path: &Path, file: &File<H>) -> Result<(), TargetError> {
    let len = host.geometry(file)?.len;
    let probed = len.get().min(PROBE_BYTES) & !(BlockSize::B4096.get() - 1);
    let mut first = vec![0; ByteLen::new(probed).as_usize()];
    let mut last = first.clone();
    host.read_at(file, 0, &mut first)?;
    let end = len.get() & !(BlockSize::B512.get() - 1);
    // The last bytes of a device whose size is no multiple of 4 KiB are read by sectors.
    host.read_at(file, end - probed, &mut last)?;
    match probe(&first, &last, ByteLen::new(end)) {
        None => Ok(()),
        Some(found) => Err(TargetError::Occupied {
            path: path.to_owned(),
            what: found.what(),
        }),
    }
}
