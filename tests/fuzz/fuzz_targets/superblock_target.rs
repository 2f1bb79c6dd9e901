//! The two copies of a replica's superblock, as a target's start reads them.
//!
//! Promises: no panic, no more memory than the copies explain, the newer good copy is chosen, what it says
//! can be written again and is the same, and its maps have a bounded size.
#![no_main]

use blkrep_core::dirty::MapLayout;
use blkrep_fuzz::{Input, sealed, within};
use blkrep_store::superblock::Replica;
use libfuzzer_sys::fuzz_target;

const HEAD: usize = 512;
const HELD_MAX: usize = 8 << 20;
const WRONG_FIRST: u8 = 1;
const WRONG_SECOND: u8 = 2;
const BLANK_SECOND: u8 = 4;

fn copy(input: &mut Input<'_>, wrong: bool) -> Vec<u8> {
    let mut copy = input.piece().to_vec();
    copy.resize(copy.len().next_multiple_of(512) + 512, 0);
    if !wrong {
        sealed::superblock(&mut copy, HEAD);
    }
    copy
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let choice = input.byte();
    let first = copy(&mut input, choice & WRONG_FIRST != 0);
    let mut second = copy(&mut input, choice & WRONG_SECOND != 0);
    if choice & BLANK_SECOND != 0 {
        second.fill(0);
    }
    within(HELD_MAX, || {
        let Ok((replica, counter, _)) = Replica::choose(&first, &second) else {
            return;
        };
        for copy in [&first, &second] {
            if let Ok((_, other)) = Replica::decode(copy) {
                assert!(other <= counter, "the newer one is chosen");
            }
        }
        let bytes = replica.encode(counter + 1);
        assert_eq!(
            Replica::decode(&bytes).as_ref(),
            Ok(&(replica.clone(), counter + 1))
        );
        let volumes = replica
            .volumes
            .iter()
            .map(|volume| (volume.len, volume.extent_size));
        u32::try_from(MapLayout::new(volumes).sectors()).expect("a sector has a number");
    });
});
