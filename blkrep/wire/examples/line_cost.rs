//! What encryption costs: CPU time per GiB over loopback, plain against TLS, in turns.
//!
//! `cargo run --release -p blkrep-wire --example line_cost -- [GIB] [ROUNDS]`. Both ends run in this process, on a thread
//! and a ring each, with sends of 1 MiB as a link makes them. The ratio is what counts: times are this machine's.

#![allow(clippy::unwrap_used)]

use blkrep_io::real::{RealHost, RealSocket};
use blkrep_io::{Completion, Host as _, Io, Op, Region, Slice, Worker, run};
use blkrep_types::{Nanos, NodeName};
use blkrep_wire::tls::{
    Door, Failure, Identity, Keeper, Line, LineHost, LineIo, Outgoing, any_client, client_config,
    server_config,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PIECE: usize = 1 << 20;

/// Encrypts, or not; trusts everybody.
struct Open {
    identity: Identity,
    encrypts: bool,
}

impl Keeper<RealSocket> for Open {
    fn outgoing(&self, _: SocketAddr) -> Outgoing {
        if self.encrypts {
            Outgoing::Encrypted(client_config(&self.identity, any_client(), None).unwrap())
        } else {
            Outgoing::Plain
        }
    }

    fn incoming(&self) -> Option<Arc<ServerConfig>> {
        Some(server_config(&self.identity, any_client(), None).unwrap())
    }

    fn name_of(&self, _: &CertificateDer<'_>) -> Option<NodeName> {
        NodeName::new("peer").ok()
    }

    fn opened(&self, _: &RealSocket, _: &NodeName) {}

    fn failed(&self, _: &RealSocket, _: Option<&NodeName>, _: Failure, why: &str) {
        panic!("{why}");
    }

    fn visitor(&self, _: &RealSocket, _: Door, _: Vec<u8>) {}
}

type Wire = Line<RealSocket>;

/// Sends, or receives, so many bytes.
struct End {
    first: Option<Op<<LineIo<blkrep_io::real::UringIo> as Io>::File, Wire>>,
    socket: Option<Wire>,
    sends: bool,
    piece: Slice,
    at: usize,
    left: usize,
}

impl End {
    fn go_on(&mut self, io: &mut LineIo<blkrep_io::real::UringIo>) {
        let socket = self.socket.clone().unwrap();
        let op = if self.sends {
            let slice = self.piece.part(self.at..PIECE);
            Op::Send { socket, slice }
        } else {
            let slice = self.piece.clone();
            Op::Recv { socket, slice }
        };
        io.submit(1, op);
    }
}

impl Worker<LineIo<blkrep_io::real::UringIo>> for End {
    fn start(&mut self, io: &mut LineIo<blkrep_io::real::UringIo>) {
        io.submit(0, self.first.take().unwrap());
    }

    fn on_completion(
        &mut self,
        io: &mut LineIo<blkrep_io::real::UringIo>,
        completion: Completion<Wire>,
    ) {
        let count = usize::try_from(completion.result.unwrap()).unwrap();
        if completion.token == 0 {
            self.socket = completion.socket;
        } else {
            assert!(count > 0, "the stream goes on to its end");
            self.at = (self.at + count) % PIECE;
            self.left = self.left.saturating_sub(count);
        }
        if self.left > 0 {
            self.go_on(io);
        }
    }

    fn on_turn(&mut self, _: &mut LineIo<blkrep_io::real::UringIo>) {}

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn finished(&self) -> bool {
        self.left == 0
    }
}

/// CPU time of this thread so far, in user and kernel.
fn spent() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanos = text.split(' ').next().unwrap();
    Duration::from_nanos(nanos.parse().unwrap())
}

fn round(encrypts: bool, bytes: usize) -> ([Duration; 2], Duration) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let identity = Identity {
        certificate: CertificateDer::from(certificate.der().to_vec()),
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
    };
    let keeper = Arc::new(Open { identity, encrypts });
    let host = LineHost::new(RealHost::new("blkrep-line-cost"), keeper);
    let (listener, peer) = host.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let began = Instant::now();
    let spawn = |sends: bool, first| {
        let host = host.clone();
        std::thread::spawn(move || {
            let piece = Region::heap(PIECE).whole();
            piece.with_mut(|bytes| {
                bytes
                    .iter_mut()
                    .zip((0..=250).cycle())
                    .for_each(|(to, byte)| *to = byte)
            });
            let mut io = host.ring(64).unwrap();
            let mut end = End {
                first: Some(first),
                socket: None,
                sends,
                piece,
                at: 0,
                left: bytes,
            };
            let before = spent();
            run(&mut io, &mut end).unwrap();
            spent().saturating_sub(before)
        })
    };
    let receiver = spawn(false, Op::Accept { listener });
    let sender = spawn(true, Op::Connect { peer });
    let sent = sender.join().unwrap();
    ([sent, receiver.join().unwrap()], began.elapsed())
}

fn main() {
    let mut words = std::env::args().skip(1);
    let mut number = |default: usize| words.next().map_or(default, |word| word.parse().unwrap());
    let (gib, rounds) = (number(2), number(5));
    let mut sums = [[0.0; 2]; 2];
    for _ in 0..rounds {
        for encrypts in [false, true] {
            let ([sent, received], took) = round(encrypts, gib << 30);
            #[allow(clippy::cast_precision_loss)]
            let each = [sent, received].map(|spent| spent.as_secs_f64() / gib as f64);
            let name = if encrypts { "TLS  " } else { "plain" };
            println!(
                "{name}: CPU s per GiB: sender {:.3}, receiver {:.3}; {gib} GiB in {:.2} s",
                each[0],
                each[1],
                took.as_secs_f64()
            );
            let sum = &mut sums[usize::from(encrypts)];
            sum[0] += each[0];
            sum[1] += each[1];
        }
    }
    let [plain, tls] = sums;
    println!(
        "ratio TLS to plain: sender {:.2}, receiver {:.2}; more CPU s per GiB: sender {:.3}, receiver {:.3}",
        tls[0] / plain[0],
        tls[1] / plain[1],
        (tls[0] - plain[0]) / f64::from(u32::try_from(rounds).unwrap()),
        (tls[1] - plain[1]) / f64::from(u32::try_from(rounds).unwrap())
    );
}
