//! Power cuts whose losses are chosen: the list is whole, and what is kept is what was said.

use crate::place::{Place, Simulated};
use crate::sim_only::{ACCESS, filled};
use blkrep_io::sim::{SimIo, Unflushed};
use blkrep_io::{Host, Io, Op};

/// A host with a flushed file of ones, over which lie a completed write of two sectors, one of
/// half a sector within it, and one in flight; and a new file that nobody flushed.
fn loose() -> (Simulated, SimIo) {
    let place = Simulated::new(1);
    let host = place.host();
    let file = host.open(&place.path("file"), ACCESS).unwrap();
    host.write_at(&file, 0, &[1; 2048]).unwrap();
    host.sync(&file).unwrap();
    host.write_at(&file, 512, &[2; 1024]).unwrap();
    host.write_at(&file, 600, &[3; 256]).unwrap();
    let mut io = host.ring(8).unwrap();
    io.submit(
        1,
        Op::Write {
            file,
            offset: 1024,
            slice: filled(1024, 4),
            durable: false,
        },
    );
    drop(host.open(&place.path("new"), ACCESS).unwrap());
    (place, io)
}

#[test]
fn what_a_power_cut_may_lose_is_listed() {
    let (place, _io) = loose();
    let write = |offset, len, in_flight| Unflushed::Write {
        path: place.path("file"),
        offset,
        len,
        in_flight,
    };
    let name = Unflushed::Name {
        path: place.path("new"),
    };
    let listed = place.world.unflushed(place.node);
    let expected = vec![
        write(512, 1024, false),
        write(512, 512, false),
        write(1024, 1024, true),
        name,
    ];
    assert_eq!(listed, expected);
    let sectors: Vec<u64> = listed.iter().map(Unflushed::sectors).collect();
    assert_eq!(sectors, [2, 1, 2, 1]);
    place.world.power_loss_keeping(place.node, |_, _| true);
    assert_eq!(place.world.unflushed(place.node), []);
}

#[test]
fn a_power_cut_keeps_exactly_what_it_is_told() {
    // Sector by sector: what it shows by which of its writes are kept, newest first.
    for subset in 0..1_u64 << 6 {
        let (place, _io) = loose();
        let kept = |bit: u64| subset >> bit & 1 == 1;
        let first = [0, 2, 3, 5];
        place
            .world
            .power_loss_keeping(place.node, |index, sector| kept(first[index] + sector));
        let image = place.world.image(place.node, &place.path("file"));
        let mixed = [vec![2; 88], vec![3; 256], vec![2; 168]].concat();
        let second = match (kept(2), kept(0)) {
            (true, _) => mixed,
            (false, true) => vec![2; 512],
            (false, false) => vec![1; 512],
        };
        let third = match (kept(3), kept(1)) {
            (true, _) => 4,
            (false, true) => 2,
            (false, false) => 1,
        };
        let fourth = if kept(4) { 4 } else { 1 };
        assert_eq!(image[..512], [1; 512], "{subset:b}");
        assert_eq!(image[512..1024], second, "{subset:b}");
        assert_eq!(image[1024..1536], [third; 512], "{subset:b}");
        assert_eq!(image[1536..2048], [fourth; 512], "{subset:b}");
        let paths = place.world.paths(place.node);
        assert_eq!(paths.contains(&place.path("new")), kept(5), "{subset:b}");
        let durable = place.world.durable_image(place.node, &place.path("file"));
        assert!(!place.world.powered(place.node) && durable == image);
    }
}

#[test]
fn a_write_that_a_newer_flushed_one_covers_is_not_to_be_lost() {
    let place = Simulated::new(1);
    let (host, path) = (place.host(), place.path("file"));
    let file = host.open(&path, ACCESS).unwrap();
    host.sync(&file).unwrap();
    host.write_at(&file, 0, &[1; 512]).unwrap();
    let mut io = host.ring(8).unwrap();
    io.submit(
        1,
        Op::Write {
            file: file.clone(),
            offset: 0,
            slice: filled(512, 2),
            durable: true,
        },
    );
    crate::place::one(&mut io).result.unwrap();
    assert_eq!(place.world.unflushed(place.node), []);
    host.write_at(&file, 512, &[3; 512]).unwrap();
    assert_eq!(place.world.unflushed(place.node).len(), 1);
    place
        .world
        .power_loss_keeping(place.node, |index, _| index == 0);
    let image = place.world.image(place.node, &path);
    assert_eq!((image[0], image[512]), (2, 3));
}
