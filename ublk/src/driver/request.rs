//! From the driver's descriptor of a request to a [`Request`].
//!
//! A descriptor enters, a checked request leaves, or the error to answer it with. What the kernel
//! says is not trusted: a request outside the volume or its memory is never handed on. Pure.

use super::abi::{Descriptor, SECTOR_SHIFT, operation};
use crate::front::{Request, RequestKind};
use blkrep_types::{ByteLen, ByteOffset, Errno, Extent};

/// What a request may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) volume_len: ByteLen,
    pub(super) block_bytes: u64,
    pub(super) request_bytes_max: u64,
    pub(super) read_only: bool,
}

/// Reads a descriptor.
///
/// # Errors
/// EOPNOTSUPP for an operation that was not offered, EROFS for a change of a read-only volume,
/// EIO for a range that is not within the volume, not whole blocks, or too long.
pub(super) fn decode(descriptor: Descriptor, tag: u16, bounds: &Bounds) -> Result<Request, Errno> {
    let fua = descriptor.op_flags & operation::FUA != 0;
    let kind = match descriptor.op_flags & operation::MASK {
        operation::READ => RequestKind::Read,
        operation::WRITE => RequestKind::Write { fua },
        operation::FLUSH => RequestKind::Flush,
        operation::DISCARD => RequestKind::Discard,
        operation::WRITE_ZEROES => RequestKind::WriteZeroes {
            fua,
            may_free: descriptor.op_flags & operation::NO_UNMAP == 0,
        },
        _ => return Err(Errno::EOPNOTSUPP),
    };
    let extent = match kind {
        RequestKind::Flush => None,
        _ => Some(extent_of(descriptor, bounds)?),
    };
    if bounds.read_only && !matches!(kind, RequestKind::Read | RequestKind::Flush) {
        return Err(Errno::EROFS);
    }
    Ok(Request { tag, kind, extent })
}

fn extent_of(descriptor: Descriptor, bounds: &Bounds) -> Result<Extent, Errno> {
    let offset = descriptor
        .start_sector
        .checked_mul(1 << SECTOR_SHIFT)
        .ok_or(Errno::EIO)?;
    let len = u64::from(descriptor.sectors) << SECTOR_SHIFT;
    let aligned = (offset | len).is_multiple_of(bounds.block_bytes);
    if !aligned || len > bounds.request_bytes_max {
        return Err(Errno::EIO);
    }
    let extent = Extent::new(ByteOffset::new(offset), ByteLen::new(len)).map_err(|_| Errno::EIO)?;
    if extent.end().get() > bounds.volume_len.get() {
        return Err(Errno::EIO);
    }
    Ok(extent)
}

/// The number that answers a request: bytes moved, or the negated error.
pub(super) fn result_code(request: &Request, result: Result<(), Errno>) -> i32 {
    match result {
        Err(errno) => -errno.get(),
        Ok(()) => match (request.kind, request.extent) {
            (RequestKind::Read | RequestKind::Write { .. }, Some(extent)) => {
                i32::try_from(extent.len().get()).expect("a request is at most 1 MiB")
            }
            _ => 0,
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds {
        volume_len: ByteLen::new(1 << 20),
        block_bytes: 4096,
        request_bytes_max: 64 << 10,
        read_only: false,
    };

    fn descriptor(op_flags: u32, start_sector: u64, sectors: u32) -> Descriptor {
        Descriptor {
            op_flags,
            sectors,
            start_sector,
            addr: 0,
        }
    }

    #[test]
    fn operations_and_flags_are_read_as_the_kernel_writes_them() {
        let fua = 1 << 13;
        let keep = 1 << 15;
        for (op_flags, kind) in [
            (0, RequestKind::Read),
            (1, RequestKind::Write { fua: false }),
            (1 | fua, RequestKind::Write { fua: true }),
            (1 | 1 << 8 | 1 << 11, RequestKind::Write { fua: false }),
            (3, RequestKind::Discard),
            (
                5,
                RequestKind::WriteZeroes {
                    fua: false,
                    may_free: true,
                },
            ),
            (
                5 | fua | keep,
                RequestKind::WriteZeroes {
                    fua: true,
                    may_free: false,
                },
            ),
        ] {
            let request = decode(descriptor(op_flags, 8, 16), 3, &BOUNDS).unwrap();
            assert_eq!((request.kind, request.tag), (kind, 3));
            let extent = request.extent.unwrap();
            assert_eq!((extent.offset().get(), extent.len().get()), (4096, 8192));
        }
        let flush = decode(descriptor(2, 0, 0), 0, &BOUNDS).unwrap();
        assert_eq!((flush.kind, flush.extent), (RequestKind::Flush, None));
    }

    #[test]
    fn what_was_not_offered_is_not_supported() {
        for op in [4, 6, 10, 18, 255] {
            assert_eq!(
                decode(descriptor(op, 0, 8), 0, &BOUNDS),
                Err(Errno::EOPNOTSUPP)
            );
        }
    }

    #[test]
    fn a_read_only_volume_is_read_and_flushed_only() {
        let bounds = Bounds {
            read_only: true,
            ..BOUNDS
        };
        for op in [1, 3, 5] {
            assert_eq!(decode(descriptor(op, 0, 8), 0, &bounds), Err(Errno::EROFS));
        }
        assert!(decode(descriptor(0, 0, 8), 0, &bounds).is_ok());
        assert!(decode(descriptor(2, 0, 0), 0, &bounds).is_ok());
    }

    #[test]
    fn an_answer_is_the_bytes_moved_or_the_negated_error() {
        let read = decode(descriptor(0, 0, 8), 0, &BOUNDS).unwrap();
        assert_eq!(result_code(&read, Ok(())), 4096);
        assert_eq!(result_code(&read, Err(Errno::ENOSPC)), -28);
        let discard = decode(descriptor(3, 0, 8), 0, &BOUNDS).unwrap();
        assert_eq!(result_code(&discard, Ok(())), 0);
    }

    proptest! {
        #[test]
        fn no_request_leaves_its_bounds(op in 0u32..6, start: u64, sectors: u32) {
            if let Ok(request) = decode(descriptor(op, start, sectors), 0, &BOUNDS) {
                match request.extent {
                    None => prop_assert_eq!(request.kind, RequestKind::Flush),
                    Some(extent) => {
                        prop_assert!(extent.end().get() <= BOUNDS.volume_len.get());
                        prop_assert!(extent.len().get() <= BOUNDS.request_bytes_max);
                        prop_assert!(extent.offset().get() % 4096 == 0);
                        prop_assert!(extent.len().get() % 4096 == 0);
                    }
                }
            }
        }

        #[test]
        fn whole_blocks_within_the_volume_are_accepted(block in 0u64..256, blocks in 1u64..=16) {
            prop_assume!(block + blocks <= 256);
            let sectors = u32::try_from(blocks * 8).unwrap();
            prop_assert!(decode(descriptor(1, block * 8, sectors), 0, &BOUNDS).is_ok());
        }
    }
}
