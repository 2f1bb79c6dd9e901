//! The two copies of a source group's superblock, as a start reads them.
//!
//! Promises: no panic, no more memory than the copies explain, the newer good copy is chosen, what it says
//! can be written again and is the same, and sizes it names can be counted with.
#![no_main]

use blkrep_core::dirty::MapLayout;
use blkrep_fuzz::{Input, sealed, within};
use blkrep_log::MemoryLogShape;
use blkrep_log::superblock::{Chosen, Group, choose};
use blkrep_types::ExtentSize;
use libfuzzer_sys::fuzz_target;

const HEAD: usize = 512;
const HELD_MAX: usize = 8 << 20;

/// What a start does with a superblock, but for files.
fn use_it(group: &Group, counter: u64) {
    let bytes = group.encode(counter).expect("what was read can be written");
    assert_eq!(
        Group::decode(&bytes).as_ref(),
        Ok(&(group.clone(), counter))
    );
    let _memory = MemoryLogShape::holding(group.log_bytes).bytes();
    let _next_copy = counter + 1;
    let _next_run = group.incarnation.next().next();
    let _next_name = group.head.1.next();
    let dirty = MapLayout::new(
        group
            .volumes
            .iter()
            .map(|volume| (volume.len, volume.extent_size)),
    );
    let intent = MapLayout::new(
        group
            .volumes
            .iter()
            .map(|volume| (volume.len, ExtentSize::INTENT)),
    );
    for layout in [dirty, intent] {
        u32::try_from(layout.sectors()).expect("a sector has a number");
    }
    let mut places: Vec<_> = group.links.iter().map(|link| link.place).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), group.links.len(), "a link has its own place");
}

fuzz_target!(|data: &[u8]| {
    let [first, second] = sealed::superblocks(&mut Input(data), HEAD);
    within(HELD_MAX, || {
        let Ok(Chosen::Good { group, counter, .. }) = choose(&first, &second) else {
            return;
        };
        for copy in [&first, &second] {
            if let Ok((_, other)) = Group::decode(copy) {
                assert!(other <= counter, "the newer one is chosen");
            }
        }
        use_it(&group, counter);
    });
});
