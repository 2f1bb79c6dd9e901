//! What disks, networks and clocks of the twin do wrong, as they are told and no more.

use crate::place::{Place, Simulated, in_future, one};
use crate::sim_only::{ACCESS, filled, pair, recv, send};
use blkrep_io::sim::{DiskLie, Garble, LieKind, Next, SimFile, SimHost};
use blkrep_io::{Completion, Host, Io, Op, Region, Slice, Worker};
use blkrep_types::{Errno, Nanos};
use std::time::Duration;

/// A host with a flushed file of ones.
fn ones(seed: u64) -> (Simulated, SimHost, SimFile) {
    let place = Simulated::new(seed);
    let host = place.host();
    let file = host.open(&place.path("file"), ACCESS).unwrap();
    host.write_at(&file, 0, &[1; 4096]).unwrap();
    host.sync(&file).unwrap();
    (place, host, file)
}

fn read(host: &SimHost, file: &SimFile) -> [u8; 4096] {
    let mut bytes = [0; 4096];
    host.read_at(file, 0, &mut bytes).unwrap();
    bytes
}

fn tell(place: &Simulated, kind: LieKind, bytes: std::ops::Range<u64>) {
    let lie = DiskLie {
        kind,
        bytes: Some(bytes),
        times: 1,
    };
    place.world.deceive(place.node, &place.path("file"), lie);
}

fn changed(bytes: &[u8]) -> Vec<usize> {
    (0..bytes.len()).filter(|at| bytes[*at] != 1).collect()
}

#[test]
fn a_flipped_bit_at_rest_stays_until_it_is_written() {
    let (place, host, file) = ones(1);
    host.write_at(&file, 512, &[1; 512]).unwrap();
    place.world.flip(place.node, &place.path("file"), 600, 0x10);
    host.sync(&file).unwrap();
    assert_eq!(changed(&read(&host, &file)), [600]);
    assert_eq!(read(&host, &file)[600], 0x11);
    place.world.power_loss(place.node);
    let host = place.world.start(place.node);
    let file = host.open(&place.path("file"), ACCESS).unwrap();
    assert_eq!(changed(&read(&host, &file)), [600]);
    host.write_at(&file, 512, &[1; 512]).unwrap();
    assert_eq!(changed(&read(&host, &file)), [0; 0]);
}

#[test]
fn a_read_brings_a_flipped_bit_once() {
    for seed in 0..20 {
        let (place, host, file) = ones(seed);
        tell(&place, LieKind::FlippedRead, 1000..1010);
        let bytes = read(&host, &file);
        let at = changed(&bytes);
        assert!(at.len() == 1 && (1000..1010).contains(&at[0]), "{at:?}");
        assert_eq!((bytes[at[0]] ^ 1).count_ones(), 1);
        assert_eq!(changed(&read(&host, &file)), [0; 0]);
    }
}

#[test]
fn a_read_brings_what_a_sector_held_before() {
    let (place, host, file) = ones(1);
    tell(&place, LieKind::StaleRead, 0..4096);
    assert_eq!(changed(&read(&host, &file)), [0; 0]);
    host.write_at(&file, 512, &[2; 1024]).unwrap();
    let bytes = read(&host, &file);
    let expected: Vec<usize> = (1024..1536).collect();
    assert_eq!(changed(&bytes), expected, "one sector is stale");
    assert_eq!(changed(&read(&host, &file)).len(), 1024, "and only once");
}

#[test]
fn a_lost_write_reads_back_until_the_power_is_cut() {
    for durable in [false, true] {
        let (place, host, file) = ones(1);
        tell(&place, LieKind::LostWrite, 0..512);
        let mut io = host.ring(8).unwrap();
        for (token, offset) in [(1, 2048), (2, 0), (3, 2560)] {
            let (file, slice) = (file.clone(), filled(512, 2));
            let write = Op::Write {
                file,
                offset,
                slice,
                durable,
            };
            io.submit(token, write);
            assert_eq!(one(&mut io).result, Ok(512));
        }
        host.sync(&file).unwrap();
        assert_eq!(changed(&read(&host, &file)).len(), 1536);
        place.world.power_loss(place.node);
        let image = place.world.image(place.node, &place.path("file"));
        let kept: Vec<usize> = (2048..3072).collect();
        assert_eq!(changed(&image[..4096]), kept);
    }
}

#[test]
fn a_sector_that_cannot_be_read_can_after_a_write() {
    let (place, host, file) = ones(1);
    let path = place.path("file");
    place.world.spoil(place.node, &path, 1000..1030);
    let mut byte = [0];
    let mut errno = |offset| host.read_at(&file, offset, &mut byte).map_err(|e| e.errno);
    assert_eq!(errno(511), Ok(()));
    assert_eq!(errno(512), Err(Errno::EIO));
    assert_eq!(errno(1535), Err(Errno::EIO));
    assert_eq!(errno(1536), Ok(()));
    host.write_at(&file, 512, &[5; 512]).unwrap();
    host.write_at(&file, 1024, &[5; 500]).unwrap();
    assert_eq!(errno(512), Ok(()));
    assert_eq!(errno(1024), Err(Errno::EIO), "only a whole sector is new");
    place.world.clear_faults(place.node);
    assert_eq!(errno(1024), Ok(()));
}

#[test]
fn a_full_host_makes_no_file_and_lets_none_grow() {
    let (place, host, file) = ones(1);
    let end = ACCESS.create.unwrap().get();
    place.world.set_full(place.node, true);
    let full = |result: Result<(), blkrep_io::HostError>| result.unwrap_err().errno;
    assert_eq!(full(host.write_at(&file, end - 1, &[1; 2])), Errno::ENOSPC);
    assert_eq!(
        full(host.open(&place.path("more"), ACCESS).map(drop)),
        Errno::ENOSPC
    );
    host.write_at(&file, end - 1, &[1]).unwrap();
    place.world.set_full(place.node, false);
    host.write_at(&file, end - 1, &[1; 2]).unwrap();
    host.open(&place.path("more"), ACCESS).unwrap();
}

#[test]
fn an_old_copy_is_put_back() {
    let (place, host, file) = ones(1);
    let (path, gone) = (place.path("file"), place.path("gone"));
    drop(host.open(&gone, ACCESS).unwrap());
    let all = [path.clone(), gone.clone()];
    let backup = place.world.backup(place.node, &all);
    assert_eq!(backup.paths(), all);
    host.write_at(&file, 0, &[2; 512]).unwrap();
    host.remove(&gone).unwrap();
    place.world.restore(place.node, &backup);
    assert_eq!(place.world.unflushed(place.node), []);
    host.remove(&gone).unwrap();
    drop(host.open(&gone, ACCESS).unwrap());
    place.world.restore(place.node, &backup);
    assert_eq!(place.world.unflushed(place.node), []);
    assert_eq!(changed(&read(&host, &file)), [0; 0]);
    // What is written from then on is kept like any other write.
    host.write_at(&file, 0, &[3; 512]).unwrap();
    host.sync(&file).unwrap();
    let other = place.world.add_node();
    place.world.restore(other, &backup);
    place.world.power_loss(place.node);
    place.world.power_loss(other);
    assert_eq!(place.world.paths(place.node), all);
    assert_eq!(place.world.image(place.node, &path)[0], 3);
    let host = place.world.start(other);
    let copy = host.open(&path, ACCESS).unwrap();
    assert_eq!(changed(&read(&host, &copy)), [0; 0]);
    host.write_at(&copy, 0, &[4; 512]).unwrap();
    host.sync(&copy).unwrap();
    place.world.power_loss(other);
    assert_eq!(place.world.image(other, &path)[0], 4);
}

/// Sends so many ones from end 0 and gives what arrives at end 1.
fn sent(pair: &mut crate::sim_only::Pair, len: usize) -> Vec<u8> {
    let (mut left, mut got) = (len, Vec::new());
    while got.len() < len {
        if left > 0 {
            let (socket, slice) = (pair.sockets[0].clone(), filled(left, 1));
            pair.rings[0].submit(1, Op::Send { socket, slice });
            left -= usize::try_from(one(&mut pair.rings[0]).result.unwrap()).unwrap();
        }
        let slice: Slice = Region::heap(len).whole();
        let socket = pair.sockets[1].clone();
        pair.rings[1].submit(
            2,
            Op::Recv {
                socket,
                slice: slice.clone(),
            },
        );
        let count = usize::try_from(one(&mut pair.rings[1]).result.unwrap()).unwrap();
        slice.with(|bytes| got.extend_from_slice(&bytes[..count]));
    }
    got
}

#[test]
fn bytes_under_way_are_changed_one_way_and_as_told() {
    let mut pair = pair(1);
    let (from, to) = (pair.nodes[0], pair.nodes[1]);
    pair.world.garble(from, to, Garble::Bytes(10));
    let got = sent(&mut pair, 5000);
    assert_eq!(changed(&got), (0..10).collect::<Vec<_>>());
    assert!(got[..10].iter().all(|byte| (byte ^ 1).count_ones() == 1));
    assert_eq!(changed(&sent(&mut pair, 5000)), [0; 0]);
    pair.world.garble(from, to, Garble::OneIn(3));
    let hit = (0..60).filter(|_| !changed(&sent(&mut pair, 10)).is_empty());
    let hit = hit.count();
    assert!((10..50).contains(&hit), "{hit} of 60");
    pair.world.garble(from, to, Garble::Never);
    pair.world.garble(to, from, Garble::OneIn(1));
    assert_eq!(changed(&sent(&mut pair, 5000)), [0; 0]);
}

#[test]
fn a_slow_way_is_slow_until_it_is_told_otherwise() {
    let mut pair = pair(1);
    let span = (Duration::from_secs(1), Duration::from_secs(2));
    pair.world.delay(pair.nodes[0], pair.nodes[1], span);
    let mut took = |from: usize| {
        let begun = pair.world.now();
        send(&mut pair, from, 1);
        one(&mut pair.rings[from]);
        let _ = recv(&mut pair, 1 - from);
        one(&mut pair.rings[1 - from]);
        let took = pair.world.now().since(begun);
        let none = (Duration::ZERO, Duration::ZERO);
        if from == 0 {
            pair.world.delay(pair.nodes[0], pair.nodes[1], none);
        }
        took
    };
    let quick = Duration::from_millis(100);
    assert!(took(1) < quick, "the other way");
    assert!(took(0) >= span.0);
    assert!(took(0) < quick);
}

#[test]
fn a_connection_that_arrives_twice_is_accepted_twice_and_works_once() {
    let (mut silent, mut ended) = (0, 0);
    for seed in 0..20 {
        let mut pair = pair(seed);
        let (from, to) = (pair.nodes[0], pair.nodes[1]);
        let (listener, address) = pair.hosts[1].listen("0.0.0.0:0".parse().unwrap()).unwrap();
        pair.world.double_connections(from, to, 1);
        pair.rings[0].submit(1, Op::Connect { peer: address });
        let mine = one(&mut pair.rings[0]).socket.unwrap();
        let mut heard = Vec::new();
        for _ in 0..2 {
            let listener = listener.clone();
            pair.rings[1].submit(2, Op::Accept { listener });
            let socket = one(&mut pair.rings[1]).socket.unwrap();
            let slice = filled(1, 1);
            let socket = socket.clone();
            pair.rings[1].submit(3, Op::Recv { socket, slice });
        }
        let (socket, slice) = (mine.clone(), filled(1, 1));
        pair.rings[0].submit(2, Op::Send { socket, slice });
        let later = in_future(&pair.rings[1], 1_000);
        while pair.rings[1].now() < later {
            pair.rings[1].wait(Some(later), &mut heard).unwrap();
        }
        let mut results: Vec<u32> = heard.iter().map(|done| done.result.unwrap()).collect();
        results.sort_unstable();
        match results.as_slice() {
            [1] => silent += 1,
            [0, 1] => ended += 1,
            other => panic!("{other:?}"),
        }
        drop(mine);
    }
    assert!(silent > 3 && ended > 3, "{silent} silent, {ended} ended");
}

#[test]
fn each_host_has_a_clock_of_its_own() {
    let mut pair = pair(1);
    let [fast, slow] = pair.nodes;
    pair.world.set_clock_rate(fast, 1100);
    pair.world.set_clock_rate(slow, 900);
    let begun = pair.world.now();
    let shown = pair.nodes.map(|node| pair.world.clock(node));
    let waits = |pair: &mut crate::sim_only::Pair, end: usize, millis| {
        let until = in_future(&pair.rings[end], millis);
        pair.rings[end].wait(Some(until), &mut Vec::new()).unwrap();
        assert!(pair.rings[end].now() >= until);
    };
    waits(&mut pair, 0, 1_100);
    assert_eq!(pair.world.now(), begun.after(Duration::from_secs(1)));
    waits(&mut pair, 1, 900);
    assert_eq!(pair.world.now(), begun.after(Duration::from_secs(2)));
    let passed = |node: usize| pair.world.clock(pair.nodes[node]).since(shown[node]);
    assert_eq!(passed(0), Duration::from_millis(2_200));
    assert_eq!(passed(1), Duration::from_millis(1_800));
    pair.world.leap_clock(slow, Duration::from_secs(5));
    assert_eq!(passed(1), Duration::from_millis(6_800));
    let now: Nanos = pair.world.now();
    let soon = in_future(&pair.rings[1], 1);
    pair.world.leap_clock(slow, Duration::from_secs(5));
    pair.rings[1].wait(Some(soon), &mut Vec::new()).unwrap();
    assert_eq!(pair.world.now(), now, "a leap passes deadlines");
}

/// Waits for a time by its host's clock.
struct Alarm(Option<Nanos>);

impl<I: Io> Worker<I> for Alarm {
    fn start(&mut self, io: &mut I) {
        self.0 = Some(io.now().after(Duration::from_secs(10)));
    }

    fn on_completion(&mut self, _: &mut I, _: Completion<I::Socket>) {}

    fn on_turn(&mut self, io: &mut I) {
        self.0 = self.0.filter(|at| io.now() < *at);
    }

    fn deadline(&self) -> Option<Nanos> {
        self.0
    }

    fn finished(&self) -> bool {
        self.0.is_none()
    }
}

#[test]
fn a_deadline_keeps_to_its_hosts_clock_also_when_that_changes() {
    let place = Simulated::new(1);
    let (world, mut io, mut alarm) = (&place.world, place.ring(), Alarm(None));
    let begun = world.now();
    let at = |millis| begun.after(Duration::from_millis(millis));
    world.set_clock_rate(place.node, 500);
    io.begin(&mut alarm);
    assert_eq!(world.next(at(10_000)), Next::Until);
    // Five of ten seconds are left: four at twice the world's rate, and one at once.
    world.set_clock_rate(place.node, 2000);
    assert_eq!(world.next(at(12_000)), Next::Until);
    world.leap_clock(place.node, Duration::from_millis(900));
    assert_eq!(world.next(at(20_000)), Next::Ring(io.id()));
    assert_eq!(world.now(), at(12_050));
    io.turn(&mut alarm);
    assert!(Worker::<blkrep_io::sim::SimIo>::finished(&alarm));
}
