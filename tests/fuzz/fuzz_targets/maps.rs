//! Map files of source and target, sector by sector, as a start loads them.
//!
//! Promises: no panic; a sector that is not good counts as all set; no bit lies outside a volume; what was
//! loaded is written and loaded again as it is.
#![no_main]

use blkrep_core::dirty::{Bits, MapLayout};
use blkrep_core::target::Part;
use blkrep_fuzz::{Input, sealed, within};
use blkrep_log::map as source;
use blkrep_store::map as target;
use blkrep_types::{ByteLen, ExtentSize};
use libfuzzer_sys::fuzz_target;

const NAME: [u8; 16] = [7; 16];
const SECTOR: usize = 512;
const HELD_MAX: usize = 8 << 20;
const WRONG: u8 = 1;

fn grain() -> ExtentSize {
    ExtentSize::try_from(4096).expect("the smallest grain")
}

/// Up to three volumes of up to a few sectors each.
fn layout(input: &mut Input<'_>) -> MapLayout {
    let count = 1 + usize::from(input.byte() % 3);
    let volumes: Vec<_> = (0..count)
        .map(|_| (ByteLen::new((1 + input.short() as u64) * 512), grain()))
        .collect();
    MapLayout::new(volumes)
}

/// The file's sectors: what the input has of each, with right checksums or not.
fn sectors(input: &mut Input<'_>, count: u64) -> Vec<[u8; SECTOR]> {
    let one = |_| {
        let flags = input.byte();
        let bytes = input.piece();
        let mut sector = [0; SECTOR];
        let len = bytes.len().min(SECTOR);
        sector[..len].copy_from_slice(&bytes[..len]);
        if flags & WRONG == 0 {
            sealed::map_sector(&mut sector);
        }
        sector
    };
    (0..count).map(one).collect()
}

fn load_target(layout: &MapLayout, sectors: &[[u8; SECTOR]]) {
    let name = |sector: usize| target::SectorName {
        replica: NAME,
        sector: u32::try_from(sector).expect("few sectors"),
    };
    let read: Vec<_> = (0..)
        .zip(sectors)
        .map(|(index, bytes)| target::decode_sector(&name(index), bytes).ok())
        .collect();
    let bits = read
        .iter()
        .map(|read| read.as_ref().map(|(bits, _)| bits.as_slice()));
    let (part, whole) = Part::read(layout.clone(), bits);
    assert_eq!(whole, read.iter().all(Option::is_some));
    for (_, extent) in part.extents() {
        assert!(extent.len().get() > 0);
    }
    assert!(part.bytes().get() <= 3 * 65_536 * 512);
    let again: Vec<_> = (0..sectors.len())
        .map(|sector| part.sector(sector as u64))
        .collect();
    for (index, bits) in again.iter().enumerate() {
        let mut bytes = [0; SECTOR];
        target::encode_sector(&name(index), 9, bits, &mut bytes);
        assert_eq!(target::decode_sector(&name(index), &bytes), Ok((*bits, 9)));
    }
    let (second, _) = Part::read(
        layout.clone(),
        again.iter().map(|bits| Some(bits.as_slice())),
    );
    assert_eq!(second.extents(), part.extents());
}

fn load_source(layout: &MapLayout, sectors: &[[u8; SECTOR]]) {
    let mut bits = Bits::clear_of(layout.bits());
    for (index, bytes) in (0..).zip(sectors) {
        let words = source::decode_sector(&NAME, index, bytes);
        let words = words.unwrap_or([u64::MAX; source::SECTOR_WORDS]);
        let mut again = [0; SECTOR];
        source::encode_sector(&NAME, index, 9, words.into_iter(), &mut again);
        assert_eq!(source::decode_sector(&NAME, index, &again), Ok(words));
        let from = usize::try_from(index).expect("64-bit platform") * source::SECTOR_WORDS;
        for (place, word) in words.into_iter().enumerate() {
            bits.set_word(from + place, word);
        }
    }
    layout.trim(&mut bits);
    let mut from = 0;
    while let Some(bit) = bits.next(from) {
        from = bit + 1;
        assert!(layout.locate(bit).is_some(), "no bit lies outside a volume");
    }
    assert!(layout.bytes(&bits).get() <= 3 * 65_536 * 512);
}

fn head(bytes: &[u8; SECTOR]) {
    if let Ok((head, counter)) = source::decode_head(&NAME, bytes) {
        let mut again = [0; SECTOR];
        source::encode_head(&NAME, counter, &head, &mut again);
        assert_eq!(&again, bytes, "a head is written as it was read");
        let _next_write = counter + 1;
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let layout = layout(&mut input);
    let sectors = sectors(&mut input, layout.sectors());
    within(HELD_MAX, || {
        load_target(&layout, &sectors);
        load_source(&layout, &sectors);
        head(&sectors[0]);
    });
});
