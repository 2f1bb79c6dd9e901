//! What a device is to look like, in the kernel's words.
//!
//! A [`DeviceSpec`] enters, the driver's parameters leave; and the mark by which a device is known
//! as ours. Never talks to the kernel.

use super::abi::{PARAMS_SET_BYTES, Params, SECTOR_SHIFT, param};
use crate::front::{DeviceSpec, Owner};
use blkrep_types::VolumeName;
use blkrep_types::limits::REQUEST_BYTES_MAX;

/// Upper bits of the mark of every device that blkrep made: `BR` in ASCII. The owner and the volume
/// follow, 24 bits each.
const MARK: u64 = 0x4252;
const MARK_SHIFT: u32 = 48;

/// The mark of a volume's device. The driver keeps it as long as the device exists, so that a
/// successor can tell its volume's device from another's, also from that of another daemon.
#[must_use]
pub(super) fn mark_of(owner: Owner, volume: &VolumeName) -> u64 {
    MARK << MARK_SHIFT | u64::from(owner.get()) << Owner::BITS | volume_of(volume)
}

fn volume_of(volume: &VolumeName) -> u64 {
    u64::from(crc32fast::hash(volume.as_str().as_bytes()) >> (u32::BITS - Owner::BITS))
}

/// True if blkrep made the device with this mark.
#[must_use]
pub(super) const fn is_ours(mark: u64) -> bool {
    mark >> MARK_SHIFT == MARK
}

/// True if blkrep made the device for a volume of this name, whichever daemon it was.
#[must_use]
pub(super) fn names(mark: u64, volume: &VolumeName) -> bool {
    is_ours(mark) && mark & ((1 << Owner::BITS) - 1) == volume_of(volume)
}

/// True if blkrep made the device with this mark, as this owner.
#[must_use]
pub(super) fn is_mark_of(mark: u64, owner: Owner) -> bool {
    is_ours(mark) && owner_of(mark) == u64::from(owner.get())
}

/// The part of a mark that says who made the device.
#[must_use]
pub(super) const fn owner_of(mark: u64) -> u64 {
    mark >> Owner::BITS & ((1 << Owner::BITS) - 1)
}

/// The largest request in bytes that a device of this spec takes.
pub(super) fn request_bytes(spec: &DeviceSpec) -> u32 {
    let limit = u32::try_from(REQUEST_BYTES_MAX).expect("the limit is 1 MiB");
    // Whole blocks of the largest size, whatever the volume's own is.
    (spec.request_bytes_max.min(limit) & !4095).max(4096)
}

/// The parameters of a device of this spec.
pub(super) fn params_of(spec: &DeviceSpec) -> Params {
    let request_sectors = request_bytes(spec) >> SECTOR_SHIFT;
    let block_shift = spec.block_size.shift();
    let physical_shift = physical_shift(spec.physical_block_bytes, block_shift);
    let mut params = Params {
        len: u32::try_from(PARAMS_SET_BYTES).expect("a small constant"),
        types: param::BASIC,
        attributes: attributes(spec),
        logical_shift: block_shift,
        physical_shift,
        io_opt_shift: physical_shift,
        io_min_shift: physical_shift,
        max_sectors: request_sectors,
        device_sectors: spec.len.get() >> SECTOR_SHIFT,
        ..Params::default()
    };
    if spec.discard && !spec.read_only {
        params.types |= param::DISCARD;
        params.discard_granularity = 1 << block_shift;
        // A range without bytes is one record of the log like any other: the same limit.
        params.discard_sectors_max = request_sectors;
        params.write_zeroes_sectors_max = request_sectors;
        params.discard_segments_max = 1;
    }
    params
}

fn attributes(spec: &DeviceSpec) -> u32 {
    let mut attributes = 0;
    if spec.read_only {
        attributes |= param::READ_ONLY;
    }
    if spec.write_cache {
        attributes |= param::VOLATILE_CACHE | param::FUA;
    }
    attributes
}

/// The backing's physical block as a shift, if it is one the kernel takes; else the logical block.
fn physical_shift(bytes: u32, block_shift: u8) -> u8 {
    /// 1 MiB: more than any disk says, less than what would make the kernel refuse.
    const SHIFT_MAX: u8 = 20;
    if !bytes.is_power_of_two() {
        return block_shift;
    }
    let shift = u8::try_from(bytes.trailing_zeros()).expect("below 32");
    if (block_shift..=SHIFT_MAX).contains(&shift) {
        shift
    } else {
        block_shift
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use blkrep_types::{BlockSize, ByteLen};

    fn spec() -> DeviceSpec {
        DeviceSpec {
            volume: VolumeName::try_from("data".to_owned()).unwrap(),
            owner: Owner::of("test"),
            len: ByteLen::new(1 << 30),
            block_size: BlockSize::B4096,
            physical_block_bytes: 4096,
            read_only: false,
            write_cache: true,
            discard: true,
            queues: 1,
            depth: 128,
            request_bytes_max: 512 << 10,
            device_id: None,
            recover: false,
        }
    }

    #[test]
    fn a_device_says_what_its_backing_is() {
        let params = params_of(&spec());
        assert_eq!(params.types, param::BASIC | param::DISCARD);
        assert_eq!(params.attributes, param::VOLATILE_CACHE | param::FUA);
        assert_eq!((params.logical_shift, params.physical_shift), (12, 12));
        assert_eq!(params.max_sectors, 1024);
        assert_eq!(params.device_sectors, 1 << 21);
        assert_eq!(params.discard_granularity, 4096);
        assert_eq!(params.discard_sectors_max, 1024);
        assert_eq!(params.write_zeroes_sectors_max, 1024);
    }

    #[test]
    fn a_read_only_device_without_a_cache_offers_neither_flush_nor_discard() {
        let spec = DeviceSpec {
            read_only: true,
            write_cache: false,
            ..spec()
        };
        let params = params_of(&spec);
        assert_eq!(params.attributes, param::READ_ONLY);
        assert_eq!(params.types, param::BASIC);
        assert_eq!(params.discard_sectors_max, 0);
    }

    #[test]
    fn no_request_is_larger_than_the_limit_or_smaller_than_a_block() {
        for (asked, given) in [(u32::MAX, 1 << 20), (1, 4096), (10_000, 8192)] {
            assert_eq!(
                request_bytes(&DeviceSpec {
                    request_bytes_max: asked,
                    ..spec()
                }),
                given
            );
        }
    }

    #[test]
    fn an_odd_physical_block_is_not_passed_on() {
        for (bytes, shift) in [
            (0, 9),
            (520, 9),
            (256, 9),
            (512, 9),
            (8192, 13),
            (1 << 31, 9),
        ] {
            assert_eq!(physical_shift(bytes, 9), shift, "{bytes}");
        }
        assert_eq!(physical_shift(512, 12), 12);
    }

    #[test]
    fn a_mark_names_the_volume_and_who_serves_it() {
        let other = VolumeName::try_from("wal".to_owned()).unwrap();
        let (one, two) = (Owner::of("one"), Owner::of("two"));
        let mark = mark_of(one, &spec().volume);
        assert!(is_ours(mark) && names(mark, &spec().volume) && !names(mark, &other));
        assert_ne!(mark, mark_of(one, &other));
        let twin = mark_of(two, &spec().volume);
        assert!(mark != twin && names(twin, &spec().volume));
        assert_ne!(owner_of(mark), owner_of(twin));
        assert!(!is_ours(0) && !is_ours(u64::MAX));
    }
}
