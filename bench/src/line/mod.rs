//! The link's own driver over a line of a rate, on this machine.
//!
//! Owns one run: the driver sends writes over loopback to a target that reads no faster than the line, packed or not, encrypted or
//! not. What a run is to be enters; rate, size on the line and processor time leave.

pub(crate) mod data;
mod port;
pub(crate) mod target;
mod trust;

use anyhow::{Context, Result, anyhow};
use blkrep::engine::link::{LinkControl, LinkEvent, LinkSettings, LinkWatch, LinkWorker, Pace};
use blkrep_core::compression::Compression;
use blkrep_io::real::RealHost;
use blkrep_io::{Host as _, Slice, run};
use blkrep_types::{ByteLen, Congestion};
use blkrep_wire::tls::LineHost;
use data::PAGE;
use port::Writes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;
use target::Target;
use trust::Trust;

/// One line and what is sent over it.
pub(crate) struct Case {
    /// Its name.
    pub(crate) line: &'static str,
    /// Bytes a second.
    rate: Option<u64>,
    mib: u64,
}

/// Every line, the slowest first.
pub(crate) const CASES: [Case; 3] = [
    Case {
        line: "100 Mbit/s",
        rate: Some(12_500_000),
        mib: 96,
    },
    Case {
        line: "1 Gbit/s",
        rate: Some(125_000_000),
        mib: 512,
    },
    Case {
        line: "loopback",
        rate: None,
        mib: 2048,
    },
];

/// How it is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    pub(crate) compression: Compression,
    pub(crate) encrypts: bool,
}

/// What a run came to.
pub(crate) struct Run {
    /// MiB a second.
    pub(crate) rate: f64,
    /// How much smaller it was on the line.
    pub(crate) ratio: f64,
    /// Seconds of processor time, in user and kernel, that the driver's thread needed for a GiB.
    pub(crate) cpu: f64,
}

struct Quiet;

impl LinkWatch for Quiet {
    fn event(&self, _event: &LinkEvent) {}
}

/// Sends the case's bytes.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn send(case: &Case, data: &Slice, how: How) -> Result<Run> {
    let trust = Arc::new(Trust::new(how.encrypts)?);
    let target = Target::new(case.rate, trust.server())?;
    let control = LinkControl::new(settings(target.address()?, how.compression)?);
    let framed = Arc::new(AtomicU64::new(0));
    let bytes = case.mib << 20;
    let count = bytes / u64::try_from(PAGE)?;
    let writes = Writes::new(data.clone(), count, Arc::clone(&framed));
    let driver = control.clone();
    let source = thread::spawn(move || -> Result<f64> {
        let mut worker = LinkWorker::new(writes, driver, Arc::new(Quiet));
        let host = LineHost::new(RealHost::new("blkrep-bench"), trust);
        let mut io = host.ring(64)?;
        run(&mut io, &mut worker).map_err(|errno| anyhow!("the ring broke: {errno}"))?;
        processor_time()
    });
    let took = target.take(count);
    control.stop();
    let spent = source
        .join()
        .map_err(|_| anyhow!("the driver ended by a panic"))??;
    let gib = bytes as f64 / f64::from(1 << 30);
    Ok(Run {
        rate: case.mib as f64 / took?.as_secs_f64(),
        ratio: bytes as f64 / framed.load(Ordering::Relaxed) as f64,
        cpu: spent / gib,
    })
}

fn settings(peer: SocketAddr, compression: Compression) -> Result<LinkSettings> {
    Ok(LinkSettings {
        connections: 1,
        pace: Pace::default(),
        node: "source".to_owned().try_into().ok().context("a name")?,
        peer,
        heartbeat: Duration::from_secs(1),
        timeout: Duration::from_secs(10),
        connect_timeout: Duration::from_secs(10),
        progress_timeout: Duration::from_secs(60),
        reconnect: false,
        reconnect_interval: Duration::from_secs(1),
        compression,
        compression_level: 1,
        congestion: Congestion::Auto,
        simulated: false,
        simulated_rate: ByteLen::new(1 << 20),
    })
}

/// Processor time of this thread so far, in seconds.
pub(crate) fn processor_time() -> Result<f64> {
    let path = "/proc/thread-self/schedstat";
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let nanos: u64 = text.split(' ').next().context("a time")?.parse()?;
    Ok(Duration::from_nanos(nanos).as_secs_f64())
}

/// Median, and in parentheses the least and the most.
pub(crate) fn spread(values: impl Iterator<Item = f64>) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (least, most) = (values[0], values[values.len() - 1]);
    format!("{:.2} ({least:.2}–{most:.2})", values[values.len() / 2])
}
