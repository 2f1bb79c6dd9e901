//! Two ends of an encrypted connection over a wire that cuts, delays, flips and ends.
#![allow(clippy::unwrap_used)]

use super::channel::Channel;
use super::cipher::Side;
use super::{
    Door, Failure, Fingerprint, Identity, Keeper, Outgoing, any_client, client_config,
    server_config,
};
use blkrep_io::{Region, Slice};
use blkrep_types::{Errno, NodeName};
use proptest::prelude::*;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};

/// Keys are costly to make: three for all tests.
fn identity(number: usize) -> &'static Identity {
    static MADE: OnceLock<Vec<Identity>> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let one = |_| {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            let certificate = params.self_signed(&key).unwrap();
            Identity {
                certificate: CertificateDer::from(certificate.der().to_vec()),
                key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            }
        };
        (0..3).map(one).collect()
    });
    &made[number]
}

/// Trusts one node, `peer`, whose certificate is that of `trusted`.
struct Guard {
    own: &'static Identity,
    trusted: Fingerprint,
    heard: Mutex<Vec<String>>,
    visitors: Mutex<Vec<(Door, Vec<u8>)>>,
}

impl Guard {
    fn new(own: usize, trusted: usize) -> Arc<Self> {
        Arc::new(Self {
            own: identity(own),
            trusted: identity(trusted).fingerprint(),
            heard: Mutex::default(),
            visitors: Mutex::default(),
        })
    }

    fn pins(&self) -> super::Pins {
        let trusted = self.trusted;
        Arc::new(move |shown| *shown == trusted)
    }

    fn heard(&self) -> String {
        self.heard.lock().unwrap().join("; ")
    }
}

impl Keeper<()> for Guard {
    fn outgoing(&self, _: SocketAddr) -> Outgoing {
        Outgoing::Plain
    }

    fn incoming(&self) -> Option<Arc<ServerConfig>> {
        Some(server_config(self.own, self.pins(), None).unwrap())
    }

    fn name_of(&self, certificate: &CertificateDer<'_>) -> Option<NodeName> {
        let known = Fingerprint::of(certificate) == self.trusted;
        known.then(|| NodeName::new("peer").unwrap())
    }

    fn opened(&self, (): &(), _: &NodeName) {}

    fn failed(&self, (): &(), _: Option<&NodeName>, _: Failure, why: &str) {
        self.heard.lock().unwrap().push(why.to_owned());
    }

    fn visitor(&self, (): &(), door: Door, seen: Vec<u8>) {
        self.visitors.lock().unwrap().push((door, seen));
    }
}

/// One end: its channel, what the socket is asked for, and what its worker has.
struct End {
    channel: Channel<()>,
    keeper: Arc<Guard>,
    receive: Option<Slice>,
    send: Option<Slice>,
    reading: Option<Slice>,
    unsent: VecDeque<u8>,
    got: Vec<u8>,
    ended: Option<Result<u32, Errno>>,
    write_failed: bool,
}

const TOKEN: u64 = 5;

impl End {
    fn new(channel: Channel<()>, keeper: Arc<Guard>, says: &[u8]) -> Self {
        Self {
            channel,
            keeper,
            receive: None,
            send: None,
            reading: None,
            unsent: says.iter().copied().collect(),
            got: Vec::new(),
            ended: None,
            write_failed: false,
        }
    }

    fn client(keeper: Arc<Guard>, says: &[u8], door: Option<Door>) -> Self {
        let config = client_config(keeper.own, keeper.pins(), door).unwrap();
        Self::new(
            Channel::connected((), Side::connecting(config)),
            keeper,
            says,
        )
    }

    fn server(keeper: Arc<Guard>, says: &[u8]) -> Self {
        Self::new(Channel::accepted(()).unwrap(), keeper, says)
    }

    /// Lets the worker and the channel act; true if something happened.
    fn act(&mut self, size: usize, writing: &mut bool) -> bool {
        let mut moved = false;
        if self.channel.is_plain() {
            return false;
        }
        if self.reading.is_none() && self.ended.is_none() {
            let slice = Region::heap(size).whole().part(0..size);
            self.channel.read(TOKEN, slice.clone());
            self.reading = Some(slice);
            moved = true;
        }
        if !*writing && !self.unsent.is_empty() && !self.write_failed {
            let bytes: Vec<u8> = self.unsent.iter().copied().take(size * 3).collect();
            let slice = Region::heap(bytes.len()).whole().part(0..bytes.len());
            slice.write(0, &bytes);
            self.channel.write(TOKEN, slice);
            *writing = true;
            moved = true;
        }
        let acts = self.channel.advance(self.keeper.as_ref());
        if let Some(slice) = acts.receive {
            assert!(self.receive.replace(slice).is_none());
            moved = true;
        }
        if let Some(slice) = acts.send {
            assert!(self.send.replace(slice).is_none());
            moved = true;
        }
        if let Some((_, result)) = acts.read {
            let slice = self.reading.take().unwrap();
            match result {
                Ok(count) if count > 0 => {
                    let bytes = slice.part(0..usize::try_from(count).unwrap());
                    bytes.with(|bytes| self.got.extend_from_slice(bytes));
                }
                ended => self.ended = Some(ended),
            }
            moved = true;
        }
        if let Some((_, result)) = acts.wrote {
            *writing = false;
            match result {
                Ok(count) => drop(self.unsent.drain(..usize::try_from(count).unwrap())),
                Err(_) => self.write_failed = true,
            }
            moved = true;
        }
        moved
    }
}

/// What happens to bytes of one direction.
#[derive(Debug, Clone, Copy, Default)]
struct Trouble {
    flip: Option<(usize, u8)>,
    end_after: Option<usize>,
}

/// One direction.
#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    passed: usize,
    trouble: Trouble,
    /// The byte whose bit was flipped, as it was.
    flipped: Option<u8>,
    ended: bool,
}

impl Pipe {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let mut byte = *byte;
            if let Some((_, bit)) = self.trouble.flip.filter(|(at, _)| *at == self.passed) {
                self.flipped = Some(byte);
                byte ^= 1 << bit;
            }
            self.ended |= self.trouble.end_after == Some(self.passed);
            self.passed += 1;
            if !self.ended {
                self.bytes.push_back(byte);
            }
        }
    }
}

/// Moves bytes until nothing moves any more.
/// Until nothing moves any more; the byte that was flipped on each way, as it was.
fn run(ends: &mut [End; 2], troubles: [Trouble; 2], sizes: &[usize]) -> [Option<u8>; 2] {
    let mut pipes = troubles.map(|trouble| Pipe {
        trouble,
        ..Pipe::default()
    });
    let mut writing = [false; 2];
    let mut sizes = sizes.iter().copied().cycle();
    let mut still = 0;
    for _ in 0..2_000_000 {
        let mut moved = false;
        for at in 0..2 {
            let size = sizes.next().unwrap();
            let end = &mut ends[at];
            moved |= end.act(size, &mut writing[at]);
            if let Some(slice) = end.send.take() {
                let count = slice.len().min(size);
                slice.part(0..count).with(|bytes| pipes[at].push(bytes));
                end.channel.sent(Ok(u32::try_from(count).unwrap()));
                moved = true;
            }
            let pipe = &mut pipes[1 - at];
            if let Some(slice) = end.receive.take() {
                let count = slice.len().min(size).min(pipe.bytes.len());
                if count > 0 {
                    let bytes: Vec<u8> = pipe.bytes.drain(..count).collect();
                    slice.write(0, &bytes);
                    let result = Ok(u32::try_from(count).unwrap());
                    end.channel.received(result, end.keeper.as_ref());
                    moved = true;
                } else if pipe.ended {
                    end.channel.received(Ok(0), end.keeper.as_ref());
                    moved = true;
                } else {
                    end.receive = Some(slice);
                }
            }
        }
        // Whoever is done closes, and the other end hears it.
        for at in 0..2 {
            if (ends[at].ended.is_some() || ends[at].write_failed) && ends[at].send.is_none() {
                pipes[at].ended = true;
            }
        }
        still = if moved { 0 } else { still + 1 };
        if still > 3 {
            return pipes.map(|pipe| pipe.flipped);
        }
    }
    panic!("it never comes to rest");
}

fn text(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from(at * 7 % 251).unwrap() ^ seed)
        .collect()
}

fn trusted(a: &[u8], b: &[u8]) -> [End; 2] {
    [
        End::client(Guard::new(0, 1), a, None),
        End::server(Guard::new(1, 0), b),
    ]
}

#[test]
fn both_ends_get_what_the_other_said_and_know_who_it_was() {
    let (a, b) = (text(700_000, 1), text(300_000, 2));
    let mut ends = trusted(&a, &b);
    run(&mut ends, [Trouble::default(); 2], &[70_000, 1 << 20, 4096]);
    assert!(ends[0].got == b && ends[1].got == a);
    for end in &ends {
        assert_eq!(end.channel.facts().node.unwrap().as_str(), "peer");
        assert_eq!(end.keeper.heard(), "");
    }
}

#[test]
fn a_node_that_is_not_paired_is_refused_and_both_ends_say_why() {
    let mut ends = [
        End::client(Guard::new(2, 1), &text(5000, 1), None),
        End::server(Guard::new(1, 0), &text(5000, 2)),
    ];
    run(&mut ends, [Trouble::default(); 2], &[4096]);
    assert_eq!(ends[1].got, []);
    assert!(ends[1].keeper.heard().contains("not one that is pinned"));
    assert!(
        ends[0].keeper.heard().contains("does not accept this node"),
        "{}",
        ends[0].keeper.heard()
    );
    assert!(ends[1].channel.facts().node.is_none());
    assert!(matches!(ends[1].ended, Some(Err(_))));
}

#[test]
fn an_impostor_gets_nothing_and_both_ends_say_why() {
    let mut ends = [
        End::client(Guard::new(0, 1), &text(5000, 1), None),
        End::server(Guard::new(2, 0), &text(5000, 2)),
    ];
    run(&mut ends, [Trouble::default(); 2], &[4096]);
    assert!(ends[0].got.is_empty() && ends[1].got.is_empty());
    assert!(ends[0].keeper.heard().contains("not one that is pinned"));
    assert!(
        ends[1].keeper.heard().contains("does not accept this node"),
        "{}",
        ends[1].keeper.heard()
    );
    assert!(ends[0].write_failed);
}

#[test]
fn a_record_that_was_changed_ends_the_connection_and_both_ends_say_so() {
    let a = text(50_000, 1);
    let mut ends = trusted(&a, &[]);
    let mut troubles = [Trouble::default(); 2];
    troubles[0].flip = Some((30_000, 3));
    run(&mut ends, troubles, &[1 << 17]);
    assert!(a.starts_with(&ends[1].got) && ends[1].got.len() < a.len());
    assert!(matches!(ends[1].ended, Some(Err(_))));
    for end in &ends {
        assert!(
            end.keeper.heard().contains("changed on its way"),
            "{}",
            end.keeper.heard()
        );
    }
}

#[test]
fn a_visitor_is_given_away_with_all_it_said() {
    for door in [Door::Control, Door::Pair] {
        let client = End::client(Guard::new(0, 1), b"", Some(door));
        let mut ends = [client, End::server(Guard::new(1, 0), b"")];
        run(&mut ends, [Trouble::default(); 2], &[50]);
        let visitors = ends[1].keeper.visitors.lock().unwrap();
        let (found, seen) = &visitors[0];
        assert_eq!(*found, door);
        assert_eq!(seen[0], 0x16);
        let len = usize::from(u16::from_be_bytes([seen[3], seen[4]]));
        assert_eq!(seen.len(), 5 + len);
        assert!(ends[1].channel.is_given());
    }
}

/// A client that offers TLS 1.2 alone, or no protocol of ours, gets no further than its first message.
#[test]
fn a_first_message_that_asks_for_nothing_of_ours_is_refused() {
    let guard = Guard::new(0, 1);
    let config = client_config(guard.own, any_client(), None).unwrap();
    let mut other = (*config).clone();
    other.alpn_protocols = vec![b"h2".to_vec()];
    let side = Side::connecting(Arc::new(other));
    let client = End::new(Channel::connected((), side), guard, b"x");
    let mut ends = [client, End::server(Guard::new(1, 0), b"")];
    run(&mut ends, [Trouble::default(); 2], &[999]);
    assert!(
        ends[1]
            .keeper
            .heard()
            .contains("none of blkrep's protocols")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Sizes of reads, writes and pieces on the wire mean nothing.
    #[test]
    fn any_pieces_make_the_same_stream(sizes in prop::collection::vec(1usize..40_000, 1..20), len in 0usize..120_000) {
        let (a, b) = (text(len, 1), text(len / 3, 2));
        let mut ends = trusted(&a, &b);
        run(&mut ends, [Trouble::default(); 2], &sizes);
        prop_assert!(ends[0].got == b && ends[1].got == a);
    }

    /// Whatever one bit says: what is given out is a prefix of what was said.
    #[test]
    fn a_flipped_bit_gives_nothing_that_was_not_said(at in 0usize..60_000, bit in 0u8..8, side in 0usize..2, sizes in prop::collection::vec(64usize..40_000, 1..5)) {
        let (a, b) = (text(50_000, 1), text(50_000, 2));
        let mut ends = trusted(&a, &b);
        let mut troubles = [Trouble::default(); 2];
        troubles[side].flip = Some((at, bit));
        let flipped = run(&mut ends, troubles, &sizes)[side];
        prop_assert!(b.starts_with(&ends[0].got) && a.starts_with(&ends[1].got));
        // A length that was flipped makes an end wait for more; heartbeats end that. The version in a record's header, 03 03
        // in every one of TLS 1.3, says nothing, and nobody looks at it.
        let whole = ends[0].got == b && ends[1].got == a;
        let means_nothing = flipped.is_none_or(|byte| byte == 3);
        prop_assert!(!whole || means_nothing, "a bit was flipped and nobody saw it");
    }

    /// As much of the stream as came is given out, and no more; nothing hangs.
    #[test]
    fn a_cut_stream_ends_and_gives_a_prefix(at in 0usize..50_000, side in 0usize..2) {
        let (a, b) = (text(50_000, 1), text(50_000, 2));
        let mut ends = trusted(&a, &b);
        let mut troubles = [Trouble::default(); 2];
        troubles[side].end_after = Some(at);
        run(&mut ends, troubles, &[9000, 100]);
        prop_assert!(b.starts_with(&ends[0].got) && a.starts_with(&ends[1].got));
        prop_assert!(ends[1 - side].ended.is_some());
    }

    /// What a stranger sends first never does anything but end, however it is cut.
    #[test]
    fn a_stranger_can_send_what_it_likes(mut bytes in prop::collection::vec(any::<u8>(), 1..40_000), tls in any::<bool>(), sizes in prop::collection::vec(1usize..5000, 1..5)) {
        if tls {
            // A header that is believed, with any length, before the rubbish.
            bytes.splice(0..0, [0x16, 3, 1]);
        }
        let keeper = Guard::new(1, 0);
        let mut channel = Channel::accepted(()).unwrap();
        let mut sizes = sizes.into_iter().cycle();
        let mut left = &bytes[..];
        let room = Region::heap(100_000).whole();
        channel.read(TOKEN, room);
        loop {
            let acts = channel.advance(keeper.as_ref());
            if acts.send.is_some() {
                let count = acts.send.unwrap().len();
                channel.sent(Ok(u32::try_from(count).unwrap()));
            }
            if let Some((_, result)) = acts.read {
                prop_assert!(channel.is_plain() == matches!(result, Ok(count) if count > 0));
                break;
            }
            if let Some(slice) = acts.receive {
                let count = sizes.next().unwrap().min(slice.len()).min(left.len());
                slice.write(0, &left[..count]);
                left = &left[count..];
                channel.received(Ok(u32::try_from(count).unwrap()), keeper.as_ref());
            }
        }
        prop_assert!(channel.facts().node.is_none());
    }
}
