//! A line between two hosts, in one guest: a network namespace for the far one, and netem on both ends between.
//!
//! Owns the namespace, the two interfaces and what is lost and late between them. What the line is like enters; addresses, what
//! it carried and what a plain TCP stream gets of it leave. Never knows what a daemon is.

use super::shell::run;
use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The near end, in the guest's own namespace.
pub(super) const NEAR_ADDRESS: &str = "10.77.0.1";
/// The far end.
pub(super) const FAR_ADDRESS: &str = "10.77.0.2";
/// What it carries, in Mbit a second, each way.
pub(super) const MBIT: u32 = 100;
/// From one end to the other: half of a round trip.
const DELAY_MS: u32 = 20;
/// Packets that wait at an end: those of the delay, and a buffer of twice the line's round trip.
const PACKETS: u32 = 1000;
/// Of each packet: Ethernet, IPv4, TCP with a time stamp.
const HEADER_BYTES: u64 = 14 + 20 + 32;
/// How long a plain stream has to find out what the line carries, and how long it is watched then.
const STREAM_BEGIN: Duration = Duration::from_secs(2);
const STREAM_SPAN: Duration = Duration::from_secs(4);
/// A plain stream is sent in pieces of this.
const PIECE: usize = 256 << 10;

type Order = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own; what it starts is there too.
#[derive(Debug, Clone)]
pub(super) struct Far {
    orders: Arc<Mutex<Sender<Order>>>,
    thread: i32,
}

impl Far {
    fn new() -> Result<Self> {
        let (orders, received) = channel::<Order>();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            let left = unshare(CloneFlags::CLONE_NEWNET);
            let _ = tell.send(left.map(|()| nix::unistd::gettid().as_raw()));
            received.into_iter().for_each(|order| order());
        });
        let thread = told.recv()?.context("leave the network namespace")?;
        Ok(Self {
            orders: Arc::new(Mutex::new(orders)),
            thread,
        })
    }

    /// Does something there.
    pub(super) fn run<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (tell, told) = channel();
        let order = Box::new(move || drop(tell.send(act())));
        let orders = self.orders.lock().map_err(|_| anyhow!("a caller died"))?;
        orders
            .send(order)
            .map_err(|_| anyhow!("the far side is gone"))?;
        drop(orders);
        told.recv().context("wait for the far side")?
    }
}

/// The line.
#[derive(Debug)]
pub(super) struct Line {
    far: Far,
}

impl Line {
    /// Both ends, with nothing lost; short and wide before [`Line::lose`] is called.
    pub(super) fn new() -> Result<Self> {
        let far = Far::new()?;
        run("ip link add near type veth peer name far")?;
        let line = Self { far };
        run(&format!("ip link set far netns {}", line.far.thread))?;
        // Without the kernel's own large packets: netem would lose and delay dozens at once.
        run("ip link set near gso_max_segs 1 up")?;
        run(&format!("ip addr add {NEAR_ADDRESS}/24 dev near"))?;
        line.far.run(|| {
            run("ip link set lo up")?;
            run("ip link set far gso_max_segs 1 up")?;
            run(&format!("ip addr add {FAR_ADDRESS}/24 dev far"))
        })?;
        Ok(line)
    }

    /// Long and narrow from now on, both ways, and loses so many percent of the packets.
    pub(super) fn lose(&self, percent: &'static str) -> Result<()> {
        run(&format!(
            "tc qdisc replace dev near root {}",
            netem(percent)
        ))?;
        self.far
            .run(move || run(&format!("tc qdisc replace dev far root {}", netem(percent))))?;
        Ok(())
    }

    /// Who does things at the far end.
    pub(super) const fn far(&self) -> &Far {
        &self.far
    }

    /// Bytes of TCP streams that the near end has sent so far.
    pub(super) fn sent() -> Result<u64> {
        let read = |name: &str| -> Result<u64> {
            let path = format!("/sys/class/net/near/statistics/{name}");
            let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            Ok(text.trim().parse()?)
        };
        Ok(read("tx_bytes")? - HEADER_BYTES * read("tx_packets")?)
    }

    /// What so many TCP streams of the system's kind carry from here to the far end, in bytes a second.
    pub(super) fn plain_streams(&self, count: usize) -> Result<f64> {
        let listener = self.far.run(|| Ok(TcpListener::bind((FAR_ADDRESS, 0))?))?;
        let address = listener.local_addr()?;
        let watched = std::thread::spawn(move || -> Result<f64> {
            let accept = |_| Ok(listener.accept()?.0);
            let streams: Vec<TcpStream> = (0..count).map(accept).collect::<Result<_>>()?;
            watch(streams)
        });
        let senders = (0..count).map(|_| {
            let mut stream = TcpStream::connect(address)?;
            let piece = vec![0x5a; PIECE];
            // It ends when the other end has seen enough.
            Ok(std::thread::spawn(move || {
                while stream.write_all(&piece).is_ok() {}
            }))
        });
        let senders: Vec<_> = senders.collect::<Result<_>>()?;
        let rate = watched.join().map_err(|_| anyhow!("the sink died"))?;
        for sender in senders {
            sender.join().map_err(|_| anyhow!("a sender died"))?;
        }
        rate
    }
}

/// Takes what comes until it was watched for long enough; bytes a second, without the beginning.
fn watch(streams: Vec<TcpStream>) -> Result<f64> {
    let began = Instant::now();
    let taken = Arc::new(AtomicU64::new(0));
    let mut threads = Vec::new();
    for mut stream in streams {
        let taken = Arc::clone(&taken);
        stream.set_read_timeout(Some(STREAM_BEGIN))?;
        threads.push(std::thread::spawn(move || {
            let mut buffer = vec![0; PIECE];
            while began.elapsed() < STREAM_BEGIN + STREAM_SPAN {
                // None for a while is no end: a stream may wait for what was lost.
                let count = stream.read(&mut buffer).unwrap_or(0);
                taken.fetch_add(count as u64, Ordering::Relaxed);
            }
        }));
    }
    std::thread::sleep(STREAM_BEGIN.saturating_sub(began.elapsed()));
    let (since, before) = (Instant::now(), taken.load(Ordering::Relaxed));
    std::thread::sleep(STREAM_SPAN);
    let (took, after) = (since.elapsed(), taken.load(Ordering::Relaxed));
    for thread in threads {
        thread.join().map_err(|_| anyhow!("a reader died"))?;
    }
    Ok(per_second(after - before, took))
}

impl Drop for Line {
    fn drop(&mut self) {
        // The other end goes with it; the namespace with the thread.
        let _ = run("ip link del near");
    }
}

/// Bytes a second.
#[allow(clippy::cast_precision_loss)]
pub(super) fn per_second(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64()
}

fn netem(loss: &str) -> String {
    format!("netem delay {DELAY_MS}ms rate {MBIT}mbit loss {loss}% limit {PACKETS}")
}

/// True if this kernel has it, once its module is loaded.
pub(super) fn has_bbr() -> bool {
    let path = "/proc/sys/net/ipv4/tcp_available_congestion_control";
    fs::read_to_string(path).is_ok_and(|text| text.split_whitespace().any(|name| name == "bbr"))
}
