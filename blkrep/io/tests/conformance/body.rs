//! The promises.

use crate::place::{Place, all, in_future, one};
use blkrep_io::{Access, Completion, FileKind, Host, Io, Op, Region, Slice, Worker, run};
use blkrep_types::{ByteLen, Errno, Nanos};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const LEN: u64 = 1 << 20;

type File<P> = <<<P as Place>::Host as Host>::Io as Io>::File;
type Socket<P> = <<<P as Place>::Host as Host>::Io as Io>::Socket;
type Ring<P> = <<P as Place>::Host as Host>::Io;

fn access(direct: bool) -> Access {
    Access {
        read_only: false,
        direct,
        claim: false,
        create: Some(ByteLen::new(LEN)),
    }
}

fn file<P: Place>(place: &P) -> File<P> {
    place
        .host()
        .open(&place.path("file"), access(place.direct()))
        .unwrap()
}

fn filled(len: usize, byte: u8) -> Slice {
    let slice = Region::heap(len).whole();
    slice.with_mut(|bytes| bytes.fill(byte));
    slice
}

fn write<P: Place>(io: &mut Ring<P>, file: &File<P>, offset: u64, slice: &Slice, durable: bool) {
    let (file, slice) = (file.clone(), slice.clone());
    let len = slice.len();
    io.submit(
        1,
        Op::Write {
            file,
            offset,
            slice,
            durable,
        },
    );
    let done = one(io);
    assert_eq!(
        (done.token, done.result),
        (1, Ok(u32::try_from(len).unwrap()))
    );
}

fn read<P: Place>(io: &mut Ring<P>, file: &File<P>, offset: u64, len: usize) -> Vec<u8> {
    let slice = filled(len, 0xee);
    io.submit(
        2,
        Op::Read {
            file: file.clone(),
            offset,
            slice: slice.clone(),
        },
    );
    let done = one(io);
    assert_eq!(
        (done.token, done.result),
        (2, Ok(u32::try_from(len).unwrap()))
    );
    slice.with(<[u8]>::to_vec)
}

pub(crate) fn what_was_written_is_read_back<P: Place>(place: &P) {
    let (mut io, file) = (place.ring(), file(place));
    let bytes = filled(64 << 10, 0);
    bytes.with_mut(|bytes| {
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = (index / 512) as u8;
        }
    });
    write::<P>(&mut io, &file, 8192, &bytes, false);
    assert_eq!(
        read::<P>(&mut io, &file, 8192, 64 << 10),
        bytes.with(<[u8]>::to_vec)
    );
    assert_eq!(read::<P>(&mut io, &file, 4096, 4096), [0; 4096]);
}

pub(crate) fn a_read_past_the_end_is_an_error<P: Place>(place: &P) {
    let (mut io, file) = (place.ring(), file(place));
    for offset in [LEN - 4096, LEN, LEN * 2] {
        let slice = filled(8192, 0);
        io.submit(
            9,
            Op::Read {
                file: file.clone(),
                offset,
                slice,
            },
        );
        assert_eq!(one(&mut io).result, Err(Errno::EIO), "at {offset}");
    }
}

pub(crate) fn an_empty_transfer_completes<P: Place>(place: &P) {
    let (mut io, file) = (place.ring(), file(place));
    let slice = filled(512, 0).part(0..0);
    io.submit(
        9,
        Op::Write {
            file,
            offset: 0,
            slice,
            durable: false,
        },
    );
    assert_eq!(one(&mut io).result, Ok(0));
}

pub(crate) fn zeroed_ranges_read_as_zeroes_and_their_neighbours_stay<P: Place>(place: &P) {
    let (mut io, file) = (place.ring(), file(place));
    for free in [false, true, false, true] {
        write::<P>(&mut io, &file, 0, &filled(1 << 20, 7), false);
        let (offset, len) = (4096, (1 << 20) - 12288);
        io.submit(
            3,
            Op::Zero {
                file: file.clone(),
                offset,
                len,
                free,
            },
        );
        let done = one(&mut io);
        assert_eq!((done.token, done.result), (3, Ok(0)));
        let bytes = read::<P>(&mut io, &file, 0, 1 << 20);
        let end = bytes.len() - 8192;
        assert!(
            bytes[..4096]
                .iter()
                .chain(&bytes[end..])
                .all(|byte| *byte == 7)
        );
        assert!(bytes[4096..end].iter().all(|byte| *byte == 0));
    }
}

pub(crate) fn a_durable_write_and_a_flush_complete<P: Place>(place: &P) {
    let (mut io, file) = (place.ring(), file(place));
    write::<P>(&mut io, &file, 0, &filled(4096, 1), true);
    io.submit(5, Op::Sync { file: file.clone() });
    let done = one(&mut io);
    assert_eq!((done.token, done.result), (5, Ok(0)));
    assert_eq!(read::<P>(&mut io, &file, 0, 4096), [1; 4096]);
}

pub(crate) fn many_operations_at_once_all_complete_once<P: Place>(place: &P) {
    let (mut io, file) = (place.ring(), file(place));
    // More than the ring has entries.
    let count = 256_u64;
    for token in 0..count {
        let slice = filled(4096, token as u8);
        let file = file.clone();
        io.submit(
            token,
            Op::Write {
                file,
                offset: token * 4096,
                slice,
                durable: false,
            },
        );
    }
    let mut tokens: Vec<u64> = all(&mut io, 256)
        .into_iter()
        .map(|done| {
            assert_eq!(done.result, Ok(4096));
            done.token
        })
        .collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..count).collect::<Vec<_>>());
    for token in 0..count {
        assert_eq!(
            read::<P>(&mut io, &file, token * 4096, 4096),
            [token as u8; 4096]
        );
    }
}

pub(crate) fn a_file_is_made_whole_and_sized<P: Place>(place: &P) {
    let host = place.host();
    let made = host.open(&place.path("file"), access(false)).unwrap();
    let geometry = host.geometry(&made).unwrap();
    assert_eq!(
        (geometry.kind, geometry.len),
        (FileKind::Regular, ByteLen::new(LEN))
    );
    // What exists keeps its length.
    let other = Access {
        create: Some(ByteLen::new(5)),
        ..access(false)
    };
    let again = host.open(&place.path("file"), other).unwrap();
    assert_eq!(host.geometry(&again).unwrap().len, ByteLen::new(LEN));
}

pub(crate) fn a_missing_file_is_an_error<P: Place>(place: &P) {
    let missing = Access {
        create: None,
        ..access(false)
    };
    let error = place
        .host()
        .open(&place.path("missing"), missing)
        .unwrap_err();
    assert_eq!(error.errno, Errno::new(2));
    assert!(error.to_string().contains("missing"), "{error}");
}

/// Claims what nobody should hold. A process that another test is just starting may for a moment
/// hold a copy of a descriptor, until it runs its program.
pub(crate) fn claimed<H: Host>(host: &H, path: &Path, access: Access) -> <H::Io as Io>::File {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match host.open(path, access) {
            Err(error) if error.errno == Errno::EBUSY && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other.unwrap(),
        }
    }
}

pub(crate) fn a_claim_is_exclusive_until_it_is_dropped<P: Place>(place: &P) {
    let host = place.host();
    let claiming = Access {
        claim: true,
        ..access(false)
    };
    let path = place.path("claimed");
    let first = host.open(&path, claiming).unwrap();
    assert_eq!(host.open(&path, claiming).unwrap_err().errno, Errno::EBUSY);
    // Without a claim it can still be looked at.
    drop(host.open(&path, access(false)).unwrap());
    let second = first.clone();
    drop(first);
    assert_eq!(host.open(&path, claiming).unwrap_err().errno, Errno::EBUSY);
    drop(second);
    drop(claimed(&host, &path, claiming));
}

pub(crate) fn blocking_reads_and_writes_meet_the_rings<P: Place>(place: &P) {
    let (mut io, file, host) = (place.ring(), file(place), place.host());
    // Memory of any alignment, also for a file that is open past the page cache.
    let bytes = vec![3; 1024 + 1];
    host.write_at(&file, 512, &bytes[1..]).unwrap();
    host.sync(&file).unwrap();
    assert_eq!(read::<P>(&mut io, &file, 512, 1024), [3; 1024]);
    write::<P>(&mut io, &file, 4096, &filled(512, 4), false);
    let mut back = vec![0; 513];
    host.read_at(&file, 4096, &mut back[1..]).unwrap();
    assert_eq!(back[1..], [4; 512]);
    let past = host
        .read_at(&file, LEN - 512, &mut vec![0; 1024])
        .unwrap_err();
    assert_eq!(past.errno, Errno::EIO);
}

pub(crate) fn names_are_listed_sorted_and_removed<P: Place>(place: &P) {
    let host = place.host();
    let directory = place.path("directory");
    assert_eq!(host.list(&directory).unwrap(), Vec::<String>::new());
    for name in ["b", "a", "c"] {
        drop(host.open(&directory.join(name), access(false)).unwrap());
    }
    assert_eq!(host.list(&directory).unwrap(), ["a", "b", "c"]);
    host.remove(&directory.join("b")).unwrap();
    host.remove(&directory.join("b")).unwrap();
    assert_eq!(host.list(&directory).unwrap(), ["a", "c"]);
}

pub(crate) fn shared_memory_is_found_again_by_name_and_length<P: Place>(place: &P) {
    let host = place.host();
    let (region, found) = host.shared_memory("log", ByteLen::new(8192)).unwrap();
    assert!(!found);
    region.store(64, 42, Ordering::Release);
    drop(region);
    let (region, found) = host.shared_memory("log", ByteLen::new(8192)).unwrap();
    assert!(found);
    assert_eq!(region.load(64, Ordering::Acquire), 42);
    let (region, found) = host.shared_memory("log", ByteLen::new(4096)).unwrap();
    assert!(!found);
    assert_eq!(region.load(64, Ordering::Acquire), 0);
    host.forget_shared_memory("log").unwrap();
    host.forget_shared_memory("log").unwrap();
    assert!(!host.shared_memory("log", ByteLen::new(4096)).unwrap().1);
    host.forget_shared_memory("log").unwrap();
}

pub(crate) fn nobody_listening_is_connection_refused<P: Place>(place: &P) {
    let mut io = place.ring();
    let (listener, address) = place.host().listen(place.address()).unwrap();
    io.shutdown(&listener);
    drop(listener);
    io.submit(4, Op::Connect { peer: address });
    let done = one(&mut io);
    assert_eq!((done.token, done.result), (4, Err(Errno::ECONNREFUSED)));
    assert!(done.socket.is_none());
}

pub(crate) fn a_port_is_taken_once<P: Place>(place: &P) {
    let (_listener, address) = place.host().listen(place.address()).unwrap();
    assert_ne!(address.port(), 0);
    let taken = place.host().listen(address).unwrap_err();
    assert_eq!(taken.errno, Errno::new(98));
}

/// A connection: the connecting and the accepted end.
fn connected<P: Place>(place: &P, io: &mut Ring<P>) -> (Socket<P>, Socket<P>) {
    let (listener, address) = place.host().listen(place.address()).unwrap();
    io.submit(1, Op::Accept { listener });
    io.submit(2, Op::Connect { peer: address });
    let mut both = all(io, 2);
    both.sort_by_key(|done| done.token);
    let mut ends = both.into_iter().map(|done| {
        assert_eq!(done.result, Ok(0));
        done.socket.unwrap()
    });
    let accepted = ends.next().unwrap();
    (ends.next().unwrap(), accepted)
}

pub(crate) fn bytes_arrive_in_order_and_whole<P: Place>(place: &P) {
    let mut io = place.ring();
    let (client, server) = connected(place, &mut io);
    let total = 300_000;
    let sent = filled(total, 0);
    sent.with_mut(|bytes| {
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = (index % 251) as u8;
        }
    });
    let got = filled(total, 0);
    let (mut sent_to, mut got_to) = (0, 0);
    let next_send = |at: usize| Op::Send {
        socket: client.clone(),
        slice: sent.part(at..total),
    };
    let next_recv = |at: usize| Op::Recv {
        socket: server.clone(),
        slice: got.part(at..total),
    };
    io.submit(1, next_send(0));
    io.submit(2, next_recv(0));
    let mut out = Vec::new();
    let end = in_future(&io, 20_000);
    while got_to < total {
        assert!(
            io.now() < end,
            "{sent_to} sent and {got_to} received in time"
        );
        io.wait(Some(end), &mut out).unwrap();
        for Completion { token, result, .. } in out.drain(..) {
            let moved = result.unwrap() as usize;
            assert!(moved > 0);
            if token == 1 {
                sent_to += moved;
                if sent_to < total {
                    io.submit(1, next_send(sent_to));
                }
            } else {
                got_to += moved;
                if got_to < total {
                    io.submit(2, next_recv(got_to));
                }
            }
        }
    }
    assert_eq!(sent.with(<[u8]>::to_vec), got.with(<[u8]>::to_vec));
}

pub(crate) fn a_closed_peer_reads_as_the_end<P: Place>(place: &P) {
    let mut io = place.ring();
    let (client, server) = connected(place, &mut io);
    let mut sent = 0;
    while sent < 10 {
        let slice = filled(10 - sent, 5);
        io.submit(
            1,
            Op::Send {
                socket: client.clone(),
                slice,
            },
        );
        sent += one(&mut io).result.unwrap() as usize;
    }
    drop(client);
    let slice = filled(10, 0);
    let mut got = 0;
    while got < 10 {
        let part = slice.part(got..10);
        io.submit(
            2,
            Op::Recv {
                socket: server.clone(),
                slice: part,
            },
        );
        got += one(&mut io).result.unwrap() as usize;
    }
    io.submit(
        3,
        Op::Recv {
            socket: server.clone(),
            slice: filled(10, 0),
        },
    );
    assert_eq!(one(&mut io).result, Ok(0));
}

pub(crate) fn a_shutdown_completes_what_is_pending<P: Place>(place: &P) {
    let mut io = place.ring();
    let (client, server) = connected(place, &mut io);
    io.submit(
        1,
        Op::Recv {
            socket: client.clone(),
            slice: filled(10, 0),
        },
    );
    io.submit(
        2,
        Op::Recv {
            socket: server.clone(),
            slice: filled(10, 0),
        },
    );
    io.shutdown(&client);
    for done in all(&mut io, 2) {
        assert!(matches!(done.result, Ok(0) | Err(_)), "{done:?}");
    }
    io.submit(
        3,
        Op::Send {
            socket: client.clone(),
            slice: filled(10, 0),
        },
    );
    assert!(one(&mut io).result.is_err());
    io.shutdown(&client);
}

pub(crate) fn a_listener_shut_down_ends_its_accept<P: Place>(place: &P) {
    let mut io = place.ring();
    let (listener, _) = place.host().listen(place.address()).unwrap();
    io.submit(
        1,
        Op::Accept {
            listener: listener.clone(),
        },
    );
    let mut out = Vec::new();
    let soon = in_future(&io, 20);
    io.wait(Some(soon), &mut out).unwrap();
    assert!(out.is_empty());
    io.shutdown(&listener);
    let done = one(&mut io);
    assert!(done.result.is_err() && done.socket.is_none());
}

pub(crate) fn a_waker_ends_a_wait<P: Place>(place: &P) {
    let mut io = place.ring();
    let mut out = Vec::new();
    for _ in 0..3 {
        let begun = io.now();
        let long = in_future(&io, 60_000);
        place.wake_later(&io, Duration::from_millis(30));
        // A ring may return early for its own reasons; a wake makes it return at all.
        while io.now().since(begun) < Duration::from_millis(20) {
            io.wait(Some(long), &mut out).unwrap();
        }
        assert!(io.now().since(begun) < Duration::from_secs(30));
        assert!(out.is_empty());
    }
}

pub(crate) fn a_wake_before_the_wait_is_not_lost<P: Place>(place: &P) {
    let mut io = place.ring();
    let (waker, mut out) = (io.waker(), Vec::new());
    for _ in 0..3 {
        waker.wake();
        waker.clone().wake();
        let begun = io.now();
        let long = in_future(&io, 60_000);
        io.wait(Some(long), &mut out).unwrap();
        assert!(io.now().since(begun) < Duration::from_secs(30));
    }
}

/// A ring that remembers an earlier deadline neither ends a later wait with it nor oversleeps a
/// nearer one.
pub(crate) fn a_deadline_may_move<P: Place>(place: &P) {
    let (mut io, file) = (place.ring(), file(place));
    let mut out = Vec::new();
    io.submit(5, Op::Sync { file: file.clone() });
    io.wait(Some(in_future(&io, 10_000)), &mut out).unwrap();
    assert_eq!(out.len(), 1, "a completion ends a wait");
    out.clear();
    let (near, late) = (in_future(&io, 60), in_future(&io, 5_000));
    io.wait(Some(near), &mut out).unwrap();
    assert!(near <= io.now(), "a wait lasts to its deadline");
    assert!(io.now() < late, "a nearer deadline counts");
    io.submit(6, Op::Sync { file });
    io.wait(Some(in_future(&io, 500)), &mut out).unwrap();
    assert_eq!(out.len(), 1, "a completion ends a wait");
    let later = in_future(&io, 900);
    io.wait(Some(later), &mut out).unwrap();
    assert!(later <= io.now(), "a deadline of the past is forgotten");
}

pub(crate) fn a_deadline_ends_a_wait<P: Place>(place: &P) {
    let mut io = place.ring();
    let mut out = Vec::new();
    let deadline = in_future(&io, 30);
    let mut waits = 0;
    while io.now() < deadline {
        io.wait(Some(deadline), &mut out).unwrap();
        waits += 1;
        assert!(waits < 10, "a wait lasts to its deadline");
    }
    io.wait(Some(deadline), &mut out).unwrap();
    assert!(out.is_empty());
    assert!(io.now().since(deadline) < Duration::from_secs(10));
}

/// Writes, flushes, then stops after a pause.
struct Steps<F> {
    file: F,
    step: u32,
    until: Option<Nanos>,
}

impl<I: Io> Worker<I> for Steps<I::File> {
    fn start(&mut self, io: &mut I) {
        let slice = filled(4096, 9);
        io.submit(
            1,
            Op::Write {
                file: self.file.clone(),
                offset: 0,
                slice,
                durable: false,
            },
        );
    }

    fn on_completion(&mut self, io: &mut I, completion: Completion<I::Socket>) {
        assert!(completion.result.is_ok());
        self.step += 1;
        if completion.token == 1 {
            io.submit(
                2,
                Op::Sync {
                    file: self.file.clone(),
                },
            );
        } else {
            self.until = Some(io.now().after(Duration::from_millis(20)));
        }
    }

    fn on_turn(&mut self, io: &mut I) {
        if self.until.is_some_and(|until| until <= io.now()) {
            self.step += 1;
        }
    }

    fn deadline(&self) -> Option<Nanos> {
        self.until
    }

    fn finished(&self) -> bool {
        self.step >= 3
    }
}

pub(crate) fn a_worker_is_driven_to_its_end<P: Place>(place: &P) {
    let (mut io, file) = (place.ring(), file(place));
    let mut worker = Steps {
        file: file.clone(),
        step: 0,
        until: None,
    };
    run(&mut io, &mut worker).unwrap();
    assert_eq!(read::<P>(&mut io, &file, 0, 4096), [9; 4096]);
}
