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

fuzz_target!(|data: &[u8]| {
    let [first, second] = sealed::superblocks(&mut Input(data), HEAD);
    within(HELD_MAX, || {
        let Ok((replica, counter, _)) = Replica::choose(&first, &second) else {
            return;
        };
        for copy in [&first, &second] {
            if let Ok((_, other)) = Replica::decode(copy) {
                assert!(other <= counter, "the newer one is chosen");
            }
        }
        let _next_copy = counter + 1;
        let bytes = replica.encode(counter);
        assert_eq!(
            Replica::decode(&bytes).as_ref(),
            Ok(&(replica.clone(), counter))
        );
        let volumes = replica
            .volumes
            .iter()
            .map(|volume| (volume.len, volume.extent_size));
        u32::try_from(MapLayout::new(volumes).sectors()).expect("a sector has a number");
    });
});
