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
const WRONG_FIRST: u8 = 1;
const WRONG_SECOND: u8 = 2;
const BLANK_SECOND: u8 = 4;

fn copy(input: &mut Input<'_>, wrong: bool) -> Vec<u8> {
    let mut copy = input.piece().to_vec();
    // The place of a copy is longer than what is written there.
    copy.resize(copy.len().next_multiple_of(512) + 512, 0);
    if !wrong {
        sealed::superblock(&mut copy, HEAD);
    }
    copy
}

/// What a start does with a superblock, but for files.
fn use_it(group: &Group, counter: u64) {
    let bytes = group
        .encode(counter + 1)
        .expect("what was read can be written");
    assert_eq!(
        Group::decode(&bytes).as_ref(),
        Ok(&(group.clone(), counter + 1))
    );
    let _memory = MemoryLogShape::holding(group.log_bytes).bytes();
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
    let mut input = Input(data);
    let choice = input.byte();
    let first = copy(&mut input, choice & WRONG_FIRST != 0);
    let mut second = copy(&mut input, choice & WRONG_SECOND != 0);
    if choice & BLANK_SECOND != 0 {
        second.fill(0);
    }
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
