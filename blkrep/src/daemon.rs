//! One run of `blkrepd`: start, readiness, watchdog, orderly stop.
//!
//! Owns the order of things: lock the state directory, bind what clients and peers connect to,
//! open the node, tell that it is ready; and the reverse. Never touches block data.

use crate::config::Config;
use crate::control::node::{Node, NodeContext};
use crate::control::{Control, ControlSocket, Limits, Served, SystemJudge};
use crate::events::{EventLimits, Events};
use crate::settings::Settings;
use crate::trust::{Trust, TrustPlan};
use anyhow::{Context as _, bail};
use blkrep_api::{EventId, NewEvent};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use sd_notify::NotifyState;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Seek as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Threads of the control plane: it waits far more than it works.
const CONTROL_THREADS: usize = 2;
/// Threads that may block: both command gates, roles of new clients, and the watchdog's question.
const BLOCKING_THREADS_MAX: usize = 64;

/// How long the port may be taken at the start. The kernel closes a killed daemon's listener a moment
/// after the process is gone: the ring that accepted on it goes first. A port that another program
/// serves stays taken, and is an error after this.
const LISTENER_WAIT: Duration = Duration::from_secs(5);
const LISTENER_RETRY: Duration = Duration::from_millis(50);

/// Runs a daemon until it is told to stop. `open` makes the data plane.
///
/// # Errors
/// Something the daemon needs cannot be had; nothing was served then. Or the control socket broke.
pub fn run<N, F>(config: Config, open: F) -> anyhow::Result<()>
where
    N: Node,
    F: FnOnce(NodeContext) -> anyhow::Result<Arc<N>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("control")
        .enable_all()
        .build()
        .context("start the threads of the control plane")?;
    // Before anything is opened: a signal that comes during the start is not lost.
    let stop = runtime.block_on(async { stop_signals() })?;
    let _lock = lock_state_dir(&config.state_dir)?;
    let listener = listen_on(config.listen, LISTENER_WAIT).with_context(|| {
        format!(
            "listen on {}: choose another address with --listen, port 0 takes any",
            config.listen
        )
    })?;
    let address = listener.local_addr().context("ask for the own address")?;
    let (socket, control) = ControlSocket::bind(&config.socket)?;
    let (settings, events) = open_records(&config)?;
    let trust = open_trust(&config, address, &events)?;
    let context = NodeContext {
        name: config.name.clone(),
        state_dir: config.state_dir.clone(),
        replica_dirs: config.replica_dirs.clone(),
        listener,
        trust: Arc::clone(&trust),
        settings: Arc::clone(&settings),
        events: events.clone(),
    };
    let node = open(context).context("open the node")?;
    let limits = settings.node();
    let server = Control::new(Served {
        name: config.name.clone(),
        listen: Some(address.to_string()),
        state_dir: config.state_dir.clone(),
        node: Arc::clone(&node) as Arc<dyn Node>,
        settings,
        trust,
        events: events.clone(),
        judge: Arc::new(SystemJudge::new()),
        limits: Limits {
            connections: limits.connections,
            request_timeout: limits.request_timeout,
            operation_timeout: limits.operation_timeout,
        },
    });
    let path = config.socket.display();
    let ready = format!("control socket {path}, listening on {address}");
    tell_ready(&config, &ready)?;
    events.publish(NewEvent::new(EventId::DaemonStarted, &ready));
    let watchdog = runtime.spawn(feed_watchdog(Arc::clone(&node)));
    let served = runtime.block_on(server.run(control, stop));
    watchdog.abort();
    let told = sd_notify::notify(&[NotifyState::Stopping]);
    told.unwrap_or_else(|error| tracing::warn!(%error, "tell systemd of the stop"));
    events.publish(NewEvent::new(EventId::DaemonStopping, "told to stop"));
    node.stop();
    events.close();
    drop(socket);
    // Commands that are still blocked must not hold up the stop; their clients are gone.
    runtime.shutdown_background();
    served.context("serve the control socket")
}

/// Listens on `address` as soon as nobody else does, for at most `wait`.
fn listen_on(address: SocketAddr, wait: Duration) -> io::Result<TcpListener> {
    let end = Instant::now() + wait;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < end => {
                std::thread::sleep(LISTENER_RETRY);
            }
            bound => return bound,
        }
    }
}

fn open_records(config: &Config) -> anyhow::Result<(Arc<Settings>, Events)> {
    let (settings, troubles) = Settings::open(&config.state_dir, config.settings.clone())
        .map_err(|why| anyhow::anyhow!("settings of the configuration: {why}"))?;
    let limits = settings.node();
    let events = Events::open(
        &config.state_dir,
        EventLimits {
            kept: limits.events_kept,
            file_size: limits.events_file_size,
            files: limits.events_files,
        },
    );
    for trouble in troubles {
        let text = format!("{trouble}; the configuration's value or the default holds");
        events.publish(NewEvent::new(EventId::StateCorrupt, text));
    }
    Ok((Arc::new(settings), events))
}

fn open_trust(config: &Config, listen: SocketAddr, events: &Events) -> anyhow::Result<Arc<Trust>> {
    let plan = TrustPlan {
        name: config.name.clone(),
        listen,
        insecure_plain: config.insecure_plain,
        state_dir: config.state_dir.clone(),
        events: events.clone(),
    };
    Trust::open(plan).context("open the record of trust")
}

/// Makes the state directory if need be and takes it for this process alone.
fn lock_state_dir(dir: &Path) -> anyhow::Result<Flock<File>> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| {
            format!(
                "make state directory {}: choose another with --state",
                dir.display()
            )
        })?;
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            // For people only: what counts is the lock, which the kernel frees with the process.
            let written = lock.set_len(0).and_then(|()| lock.rewind());
            let pid = std::process::id();
            if let Err(error) = written.and_then(|()| writeln!(lock, "{pid}")) {
                tracing::warn!(path = %path.display(), %error, "write the process id");
            }
            Ok(lock)
        }
        Err((file, Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let read = file.take(32).read_to_string(&mut pid);
            let owner = match (read, pid.trim()) {
                (Ok(_), pid) if !pid.is_empty() => format!(" (process {pid})"),
                _ => String::new(),
            };
            bail!(
                "blkrepd is already running: state directory {} is in use by another \
                 daemon{owner}. Stop it first, or choose another directory with --state",
                dir.display()
            )
        }
        Err((_, error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

/// Done when SIGTERM or SIGINT came. SIGHUP is taken and does nothing: losing the terminal must
/// not end what serves devices, and every setting is changed by `blkctl set`.
fn stop_signals() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("take SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("take SIGINT")?;
    let mut hang_up = signal(SignalKind::hangup()).context("take SIGHUP")?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = hang_up.recv() => tracing::info!("SIGHUP does nothing: use blkctl set"),
            }
        }
    })
}

fn tell_ready(config: &Config, ready: &str) -> anyhow::Result<()> {
    eprintln!("{ready}");
    if let Some(number) = config.ready_fd {
        // Opened by its name in /proc: a number from outside is no owned descriptor.
        let path = format!("/proc/self/fd/{number}");
        OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{ready}"))
            .with_context(|| format!("write to --ready-fd {number}"))?;
        // The reader waits for the end of it as well.
        nix::unistd::close(number).with_context(|| format!("close --ready-fd {number}"))?;
    }
    sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(ready)])
        .context("tell systemd of the start")
}

/// Feeds systemd's watchdog, if it wants to be fed, while the node makes progress.
async fn feed_watchdog<N: Node>(node: Arc<N>) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = tokio::time::interval((limit / 3).max(Duration::from_millis(100)));
    loop {
        ticks.tick().await;
        let asked = Arc::clone(&node);
        let healthy = tokio::task::spawn_blocking(move || asked.healthy()).await;
        if matches!(healthy, Ok(true)) {
            let fed = sd_notify::notify(&[NotifyState::Watchdog]);
            fed.unwrap_or_else(|error| tracing::warn!(%error, "feed the watchdog"));
        } else {
            tracing::error!("the data plane makes no progress");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_belongs_to_one_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        let lock = lock_state_dir(&state).unwrap();
        let error = lock_state_dir(&state).unwrap_err().to_string();
        assert!(error.contains("already running"), "{error}");
        let own = format!("process {}", std::process::id());
        assert!(error.contains(&own), "{error}");
        drop(lock);
        assert!(lock_state_dir(&state).is_ok());
    }

    /// A target killed in a guest could not be started again: its port was taken for some milliseconds more.
    #[test]
    fn a_listener_waits_for_the_port_of_a_killed_predecessor_and_no_longer() {
        let held = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = held.local_addr().unwrap();
        let short = Duration::from_millis(120);
        let error = listen_on(address, short).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        let predecessor = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(150));
            drop(held);
        });
        let listener = listen_on(address, Duration::from_secs(30)).unwrap();
        assert_eq!(listener.local_addr().unwrap(), address);
        predecessor.join().unwrap();
    }
}
