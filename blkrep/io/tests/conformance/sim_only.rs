//! What only a simulation can show: crashes, cuts, and that a seed is one run.

use crate::place::{Place, Simulated, all, in_future, one};
use blkrep_io::sim::{Crash, DiskFault, FaultKind, Moment, Next, SimOptions, SimWorld};
use blkrep_io::{Access, Completion, Host, Io, Op, Region, Slice, Worker};
use blkrep_types::{ByteLen, Errno, Nanos};
use std::path::Path;
use std::time::Duration;

pub(crate) const ACCESS: Access = Access {
    read_only: false,
    direct: false,
    claim: true,
    create: Some(ByteLen::new(64 << 10)),
};

pub(crate) fn filled(len: usize, byte: u8) -> Slice {
    let slice = Region::heap(len).whole();
    slice.with_mut(|bytes| bytes.fill(byte));
    slice
}

#[test]
fn a_killed_processs_writes_land_later_and_hold_its_claim() {
    let (mut late, mut never) = (0, 0);
    for seed in 0..60 {
        let place = Simulated::new(seed);
        let (host, path) = (place.host(), place.path("file"));
        let file = host.open(&path, ACCESS).unwrap();
        let mut io = host.ring(8).unwrap();
        let slice = filled(4096, 6);
        io.submit(
            1,
            Op::Write {
                file: file.clone(),
                offset: 0,
                slice,
                durable: false,
            },
        );
        place.world.crash_process(host.process());
        assert!(
            io.wait(None, &mut Vec::new()).is_err(),
            "a dead process's ring is dead"
        );
        assert!(
            host.open(&path, ACCESS).is_err(),
            "a dead process's host is dead"
        );
        let successor = place.world.start(place.node);
        let landed = |world: &SimWorld| world.image(place.node, &path)[0] == 6;
        let mut waited = 0;
        while successor.open(&path, ACCESS).is_err() {
            assert!(
                !landed(&place.world),
                "the claim ends when the write has landed"
            );
            let soon = place.world.now().after(Duration::from_millis(50));
            assert_eq!(place.world.next(soon), Next::Until);
            waited += 1;
            assert!(waited < 1000);
        }
        late += usize::from(waited > 1);
        never += usize::from(!landed(&place.world));
    }
    assert!(late > 10 && never > 5, "{late} landed late, {never} never");
}

/// A host that makes a file, writes it and stops: the calls are open, write and flush.
fn stopped(call: u64, moment: Moment) -> (Simulated, std::path::PathBuf, u64) {
    let place = Simulated::new(1);
    let (host, path) = (place.host(), place.path("file"));
    let before = place.world.calls(place.node);
    place.world.halt_at(place.node, before + call, moment);
    if let Ok(file) = host.open(&path, ACCESS) {
        let _ = host
            .write_at(&file, 0, &[6; 512])
            .and_then(|()| host.sync(&file));
    }
    assert!(place.world.halted(host.process()));
    assert!(!place.world.alive(host.process()));
    let made = place.world.calls(place.node) - before;
    (place, path, made)
}

#[test]
fn a_process_stops_before_or_after_the_call_it_was_told() {
    let first = |place: &Simulated, path: &Path| {
        let exists = place.world.paths(place.node).contains(&path.to_owned());
        exists.then(|| {
            let durable = place.world.durable_image(place.node, path)[0];
            (place.world.image(place.node, path)[0], durable)
        })
    };
    let expected = [
        (0, Moment::Before, None),
        (0, Moment::After, Some((0, 0))),
        (1, Moment::Before, Some((0, 0))),
        (1, Moment::After, Some((6, 0))),
        (2, Moment::Before, Some((6, 0))),
        (2, Moment::After, Some((6, 6))),
    ];
    for (call, moment, shown) in expected {
        let (place, path, made) = stopped(call, moment);
        assert_eq!(first(&place, &path), shown, "call {call}, {moment:?}");
        assert_eq!(made, call + 1);
        place.world.power_loss(place.node);
        assert!(!place.world.halted(place.host().process()));
    }
}

#[test]
fn what_a_stopped_process_had_in_flight_ends_as_it_is_told() {
    for (fate, landed) in [(None, 0), (Some(Duration::from_secs(2)), 6)] {
        let place = Simulated::new(1);
        let (host, path) = (place.host(), place.path("file"));
        let file = host.open(&path, ACCESS).unwrap();
        let mut io = host.ring(8).unwrap();
        let next = place.world.calls(place.node);
        place.world.halt_at(place.node, next, Moment::After);
        let write = Op::Write {
            file,
            offset: 0,
            slice: filled(4096, 6),
            durable: false,
        };
        io.submit(1, write);
        place.world.crash_process_with(host.process(), |_| fate);
        let image = |after: u64| {
            let then = place.world.now().after(Duration::from_secs(after));
            assert_eq!(place.world.next(then), Next::Until);
            place.world.image(place.node, &path)[0]
        };
        assert_eq!(image(1), 0, "it lands late if at all");
        assert_eq!(image(2), landed);
    }
}

#[test]
fn shared_memory_outlives_a_killed_process_and_not_a_power_cut() {
    let place = Simulated::new(1);
    let len = ByteLen::new(4096);
    let (region, _) = place.host().shared_memory("log", len).unwrap();
    region.store(0, 1, std::sync::atomic::Ordering::Release);
    place.world.crash_process(place.host().process());
    // What the rest of a dead worker's turn still writes is not there for its successor.
    region.store(8, 2, std::sync::atomic::Ordering::Release);
    let successor = place.world.start(place.node);
    let (region, found) = successor.shared_memory("log", len).unwrap();
    assert!(found);
    let load = |at| region.load(at, std::sync::atomic::Ordering::Acquire);
    assert_eq!((load(0), load(8)), (1, 0));
    place.world.power_loss(place.node);
    let (_, found) = place
        .world
        .start(place.node)
        .shared_memory("log", len)
        .unwrap();
    assert!(!found);
}

#[test]
fn a_flushed_file_survives_a_power_cut_and_an_unflushed_one_may_not() {
    let (mut vanished, mut lost) = (0, 0);
    for seed in 0..60 {
        let place = Simulated::new(seed);
        let host = place.host();
        let (kept, loose) = (place.path("kept"), place.path("loose"));
        let file = host.open(&kept, ACCESS).unwrap();
        host.write_at(&file, 0, &[1; 512]).unwrap();
        host.sync(&file).unwrap();
        host.write_at(&file, 512, &[1; 512]).unwrap();
        drop(host.open(&loose, ACCESS).unwrap());
        place.world.power_loss(place.node);
        let image = place.world.image(place.node, &kept);
        assert_eq!(image[..512], [1; 512]);
        lost += usize::from(image[512..1024] == [0; 512]);
        vanished += usize::from(!place.world.paths(place.node).contains(&loose));
    }
    assert!(
        (10..55).contains(&lost) && (10..50).contains(&vanished),
        "{lost} {vanished}"
    );
}

#[test]
fn a_process_can_die_in_any_blocking_call() {
    let mut reached = [0; 2];
    for seed in 0..40 {
        for (crash, kind) in [Crash::Process, Crash::Power].into_iter().zip(0..) {
            let place = Simulated::new(seed);
            let host = place.host();
            let file = host.open(&place.path("file"), ACCESS).unwrap();
            host.sync(&file).unwrap();
            place.world.crash_after(host.process(), 1, crash);
            host.write_at(&file, 0, &[7; 1024]).unwrap_or(());
            let failed = host.sync(&file).is_err() || host.write_at(&file, 0, &[8]).is_err();
            assert!(failed && !place.world.alive(host.process()));
            assert!(host.sync(&file).is_err(), "a dead process stays dead");
            reached[kind] += usize::from(place.world.image(place.node, file_path(&place))[0] == 7);
        }
    }
    assert!(reached.iter().all(|count| *count > 5), "{reached:?}");
}

fn file_path(_: &Simulated) -> &'static Path {
    Path::new("/files/file")
}

#[test]
fn injected_faults_and_stalls_are_felt() {
    let place = Simulated::new(3);
    let (host, path) = (place.host(), place.path("file"));
    let file = host.open(&path, ACCESS).unwrap();
    let fault = |kind, errno| DiskFault {
        kind,
        errno,
        bytes: None,
        times: 1,
    };
    let mut io = host.ring(8).unwrap();
    place
        .world
        .inject(place.node, &path, fault(FaultKind::Write, Errno::ENOSPC));
    let write = || Op::Write {
        file: file.clone(),
        offset: 0,
        slice: filled(512, 1),
        durable: false,
    };
    io.submit(1, write());
    assert_eq!(one(&mut io).result, Err(Errno::ENOSPC));
    place
        .world
        .inject(place.node, &path, fault(FaultKind::Sync, Errno::EIO));
    assert_eq!(host.sync(&file).unwrap_err().errno, Errno::EIO);
    place.world.stall(place.node, &path, Duration::from_secs(5));
    let begun = io.now();
    io.submit(2, write());
    assert_eq!(one(&mut io).result, Ok(512));
    assert!(io.now().since(begun) >= Duration::from_secs(5));
    place.world.corrupt(place.node, &path, 100, &[0xff]);
    let mut byte = [0];
    host.read_at(&file, 100, &mut byte).unwrap();
    assert_eq!(byte, [0xff]);
    place.world.set_space(place.node, ByteLen::new(1000));
    let full = host.open(&place.path("more"), ACCESS).unwrap_err();
    assert_eq!(full.errno, Errno::ENOSPC);
}

#[test]
fn direct_files_want_aligned_operations() {
    let place = Simulated::new(3);
    let direct = Access {
        direct: true,
        ..ACCESS
    };
    let file = place.host().open(&place.path("file"), direct).unwrap();
    let mut io = place.ring();
    for (offset, slice) in [
        (1, filled(512, 0)),
        (0, filled(100, 0)),
        (0, filled(1024, 0).part(1..513)),
    ] {
        io.submit(
            1,
            Op::Read {
                file: file.clone(),
                offset,
                slice,
            },
        );
        assert_eq!(one(&mut io).result, Err(Errno::EINVAL));
    }
}

#[test]
#[should_panic(expected = "changed while it was in flight")]
fn memory_changed_in_flight_is_noticed() {
    let place = Simulated::new(3);
    let file = place.host().open(&place.path("file"), ACCESS).unwrap();
    let mut io = place.ring();
    let slice = filled(512, 1);
    io.submit(
        1,
        Op::Write {
            file,
            offset: 0,
            slice: slice.clone(),
            durable: false,
        },
    );
    slice.write(0, &[2]);
    one(&mut io);
}

/// Two hosts with a connection between them.
pub(crate) struct Pair {
    pub(crate) world: SimWorld,
    pub(crate) nodes: [blkrep_io::sim::NodeId; 2],
    pub(crate) hosts: [blkrep_io::sim::SimHost; 2],
    pub(crate) rings: [blkrep_io::sim::SimIo; 2],
    pub(crate) sockets: [blkrep_io::sim::SimSocket; 2],
}

pub(crate) fn pair(seed: u64) -> Pair {
    let world = SimWorld::new(seed, SimOptions::default());
    let nodes = [world.add_node(), world.add_node()];
    let hosts = nodes.map(|node| world.start(node));
    let mut rings = [hosts[0].ring(8).unwrap(), hosts[1].ring(8).unwrap()];
    let (listener, address) = hosts[1].listen("0.0.0.0:7420".parse().unwrap()).unwrap();
    assert_eq!(address.ip(), nodes[1].address());
    rings[1].submit(1, Op::Accept { listener });
    rings[0].submit(1, Op::Connect { peer: address });
    let client = one(&mut rings[0]).socket.unwrap();
    let server = one(&mut rings[1]).socket.unwrap();
    Pair {
        world,
        nodes,
        hosts,
        rings,
        sockets: [client, server],
    }
}

pub(crate) fn send(pair: &mut Pair, from: usize, byte: u8) {
    let socket = pair.sockets[from].clone();
    pair.rings[from].submit(
        8,
        Op::Send {
            socket,
            slice: filled(1, byte),
        },
    );
}

pub(crate) fn recv(pair: &mut Pair, at: usize) -> Slice {
    let (socket, slice) = (pair.sockets[at].clone(), filled(1, 0));
    pair.rings[at].submit(
        9,
        Op::Recv {
            socket,
            slice: slice.clone(),
        },
    );
    slice
}

#[test]
fn a_cut_delays_bytes_one_way_until_it_is_healed() {
    let mut pair = pair(5);
    pair.world.cut(pair.nodes[0], pair.nodes[1]);
    send(&mut pair, 0, 1);
    assert_eq!(one(&mut pair.rings[0]).result, Ok(1));
    let slice = recv(&mut pair, 1);
    let mut out = Vec::new();
    let later = in_future(&pair.rings[1], 60_000);
    pair.rings[1].wait(Some(later), &mut out).unwrap();
    assert!(out.is_empty(), "nothing passes the cut");
    send(&mut pair, 1, 2);
    one(&mut pair.rings[1]);
    let other = recv(&mut pair, 0);
    one(&mut pair.rings[0]);
    assert_eq!(other.with(|bytes| bytes[0]), 2, "the other way is open");
    pair.world.heal(pair.nodes[0], pair.nodes[1]);
    assert_eq!(one(&mut pair.rings[1]).result, Ok(1));
    assert_eq!(slice.with(|bytes| bytes[0]), 1);
}

#[test]
fn a_reset_ends_both_sides() {
    let mut pair = pair(6);
    let _ = recv(&mut pair, 0);
    let _ = recv(&mut pair, 1);
    pair.world.reset_connections(pair.nodes[0], pair.nodes[1]);
    for end in [0, 1] {
        assert_eq!(one(&mut pair.rings[end]).result, Err(Errno::ECONNRESET));
    }
}

#[test]
fn a_killed_peer_is_heard_of_and_one_without_power_only_when_it_is_back() {
    let mut pair = pair(7);
    let _ = recv(&mut pair, 0);
    pair.world.crash_process(pair.hosts[1].process());
    assert!(matches!(
        one(&mut pair.rings[0]).result,
        Ok(0) | Err(Errno::ECONNRESET)
    ));

    let mut pair = self::pair(8);
    pair.world.power_loss(pair.nodes[1]);
    send(&mut pair, 0, 1);
    one(&mut pair.rings[0]);
    let _ = recv(&mut pair, 0);
    let mut out = Vec::new();
    let later = in_future(&pair.rings[0], 60_000);
    pair.rings[0].wait(Some(later), &mut out).unwrap();
    assert!(out.is_empty(), "a host without power says nothing");
    let _back = pair.world.start(pair.nodes[1]);
    assert_eq!(one(&mut pair.rings[0]).result, Err(Errno::ECONNRESET));
}

#[test]
fn a_connection_through_a_cut_times_out() {
    let mut pair = pair(9);
    pair.world.cut(pair.nodes[1], pair.nodes[0]);
    let begun = pair.rings[0].now();
    let peer = std::net::SocketAddr::new(pair.nodes[1].address(), 7420);
    pair.rings[0].submit(1, Op::Connect { peer });
    let mut out = Vec::new();
    let limit = in_future(&pair.rings[0], 60_000);
    pair.rings[0].wait(Some(limit), &mut out).unwrap();
    assert_eq!(out[0].result, Err(Errno::ETIMEDOUT));
    assert!(pair.rings[0].now().since(begun) >= Duration::from_secs(5));
}

/// Writes until told to stop, and keeps a diary.
struct Diary {
    file: blkrep_io::sim::SimFile,
    lines: Vec<(u64, u64)>,
}

impl<I: Io<File = blkrep_io::sim::SimFile>> Worker<I> for Diary {
    fn start(&mut self, io: &mut I) {
        for token in 0..8 {
            self.write(io, token);
        }
    }

    fn on_completion(&mut self, io: &mut I, completion: Completion<I::Socket>) {
        self.lines.push((io.now().get(), completion.token));
        if completion.token < 200 {
            self.write(io, completion.token + 8);
        }
    }

    fn on_turn(&mut self, _: &mut I) {}

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn finished(&self) -> bool {
        self.lines.len() >= 208
    }
}

impl Diary {
    fn write<I: Io<File = blkrep_io::sim::SimFile>>(&self, io: &mut I, token: u64) {
        let (file, slice) = (self.file.clone(), filled(512, 1));
        io.submit(
            token,
            Op::Write {
                file,
                offset: token % 16 * 512,
                slice,
                durable: false,
            },
        );
    }
}

fn diary_of(seed: u64) -> Vec<(u64, u64)> {
    let place = Simulated::new(seed);
    let file = place.host().open(&place.path("file"), ACCESS).unwrap();
    let mut io = place.ring();
    let mut worker = Diary {
        file,
        lines: Vec::new(),
    };
    io.begin(&mut worker);
    let end = place.world.now().after(Duration::from_secs(100));
    while let Next::Ring(ring) = place.world.next(end) {
        assert_eq!(ring, io.id());
        io.turn(&mut worker);
    }
    assert!(Worker::<blkrep_io::sim::SimIo>::finished(&worker));
    worker.lines
}

#[test]
fn a_copied_host_has_the_same_files_and_a_life_of_its_own() {
    let place = Simulated::new(2);
    let (host, path) = (place.host(), place.path("file"));
    let file = host.open(&path, ACCESS).unwrap();
    host.write_at(&file, 0, &[1; 512]).unwrap();
    let other = SimWorld::new(9, SimOptions::default());
    let node = other.add_node();
    other.copy_files(node, &place.world, place.node);
    assert_eq!(
        other.image(node, &path),
        place.world.image(place.node, &path)
    );
    let copy = other.start(node).open(&path, ACCESS).unwrap();
    other.start(node).write_at(&copy, 0, &[2; 512]).unwrap();
    assert_eq!(place.world.image(place.node, &path)[0], 1);
    other.power_loss(node);
    assert!(!other.powered(node) && place.world.powered(place.node));
}

#[test]
fn a_seed_is_one_run() {
    assert_eq!(diary_of(11), diary_of(11));
    assert_ne!(diary_of(11), diary_of(12));
}

#[test]
fn operations_complete_out_of_order() {
    let tokens: Vec<u64> = diary_of(4).into_iter().map(|(_, token)| token).collect();
    assert!(!tokens.is_sorted());
    let place = Simulated::new(1);
    let file = place.host().open(&place.path("file"), ACCESS).unwrap();
    let mut io = place.ring();
    for token in 0..10 {
        io.submit(
            token,
            Op::Read {
                file: file.clone(),
                offset: 0,
                slice: filled(512, 0),
            },
        );
    }
    assert!(
        !all(&mut io, 10)
            .iter()
            .map(|done| done.token)
            .collect::<Vec<_>>()
            .is_sorted()
    );
}
