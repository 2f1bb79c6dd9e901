//! The program `blkrepd`: start, readiness, refusals, signals.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

struct Daemon {
    child: Child,
    ready: String,
}

impl Daemon {
    fn start(dir: &Path, state: &str, socket: &str) -> Self {
        let mut child = command(dir, state, socket)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = lines
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.starts_with("control socket"));
        // Keeps the pipe empty, so that logging never blocks.
        std::thread::spawn(move || lines.map_while(Result::ok).count());
        Self {
            child,
            ready: ready.unwrap(),
        }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -{signal} {pid}")])
            .status();
        assert!(sent.unwrap().success());
    }

    fn end(mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "it does not stop"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already gone in most tests.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(dir: &Path, state: &str, socket: &str) -> Command {
    let config = dir.join("blkrepd.toml");
    if !config.exists() {
        std::fs::write(&config, "").unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_blkrepd"));
    command
        .arg("--config")
        .arg(config)
        .arg("--state")
        .arg(dir.join(state))
        .arg("--socket")
        .arg(dir.join(socket))
        .args(["--listen", "127.0.0.1:0", "--node", "n1", "--log", "debug"])
        .env_remove("NOTIFY_SOCKET")
        .env_remove("JOURNAL_STREAM");
    command
}

/// Runs a daemon that must refuse to start; returns what it says.
fn refused(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    String::from_utf8(output.stderr).unwrap()
}

fn ask(socket: &Path) -> String {
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    std::io::Write::write_all(&mut stream, b"GET /v1/version HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

#[test]
fn it_tells_where_it_listens_and_stops_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), "state", "control.sock");
    let address = daemon.ready.split("listening on ").nth(1).unwrap();
    assert!(!address.ends_with(":0"), "{address}");
    assert!(ask(&dir.path().join("control.sock")).contains(address));
    daemon.signal("HUP");
    assert!(ask(&dir.path().join("control.sock")).contains("200 OK"));
    daemon.signal("TERM");
    assert_eq!(daemon.end().code(), Some(0));
    assert!(!dir.path().join("control.sock").exists());
    let events = std::fs::read_to_string(dir.path().join("state/events.jsonl")).unwrap();
    assert!(events.contains("daemon-started") && events.contains("daemon-stopping"));
}

#[test]
fn a_second_daemon_is_refused_by_state_directory_and_by_socket() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), "state", "control.sock");
    let said = refused(command(dir.path(), "state", "other.sock"));
    let pid = format!("process {}", daemon.child.id());
    assert!(
        said.contains("already running") && said.contains(&pid),
        "{said}"
    );
    let said = refused(command(dir.path(), "other", "control.sock"));
    assert!(said.contains("already running"), "{said}");
    assert!(ask(&dir.path().join("control.sock")).contains("200 OK"));
}

#[test]
fn the_successor_of_a_killed_daemon_takes_over_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), "state", "control.sock");
    daemon.signal("KILL");
    daemon.end();
    assert!(dir.path().join("control.sock").exists());
    let _daemon = Daemon::start(dir.path(), "state", "control.sock");
    assert!(ask(&dir.path().join("control.sock")).contains("200 OK"));
}

#[test]
fn bad_configurations_are_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut open = command(dir.path(), "state", "control.sock");
    open.args(["--listen", "0.0.0.0:0"]);
    // A flag given twice is an error of the command line, whatever it says.
    assert!(refused(open).contains("--listen"));
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = dir.path().join("blkrepd.toml");
    for (text, part) in [
        ("[node]\nlog = 'a=b=c'".to_owned(), ""),
        (
            "[group]\nlog-memory = '1KiB'".to_owned(),
            "group.log-memory",
        ),
        (
            "[link]\nheartbeat-timeout = '1s'".to_owned(),
            "heartbeat-timeout",
        ),
        (
            "[nod]".to_owned(),
            "unknown section [nod]; known are node, volume",
        ),
    ] {
        std::fs::write(&config, &text).unwrap();
        let mut command = command(dir.path(), "state", "control.sock");
        if part.is_empty() {
            command = Command::new(env!("CARGO_BIN_EXE_blkrepd"));
            command.args(["--config", config.to_str().unwrap()]);
            let state = dir.path().join("state");
            command.args(["--state", state.to_str().unwrap()]);
        }
        let said = refused(command);
        assert!(
            said.starts_with("blkrepd: ") && said.contains(part),
            "{text}: {said}"
        );
    }
    let text = format!("[node]\nlisten = '{}'\n", held.local_addr().unwrap());
    std::fs::write(&config, text).unwrap();
    let mut taken = Command::new(env!("CARGO_BIN_EXE_blkrepd"));
    taken.arg("--config").arg(&config);
    taken.arg("--state").arg(dir.path().join("state"));
    taken.arg("--socket").arg(dir.path().join("control.sock"));
    let said = refused(taken);
    assert!(
        said.contains("choose another address with --listen"),
        "{said}"
    );
    let mut missing = Command::new(env!("CARGO_BIN_EXE_blkrepd"));
    missing.arg("--config").arg(dir.path().join("none.toml"));
    assert!(refused(missing).contains("none.toml"));
}

#[test]
fn readiness_is_told_on_a_descriptor() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("ready");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let daemon = env!("CARGO_BIN_EXE_blkrepd");
    let path = dir.path().display();
    std::fs::write(dir.path().join("blkrepd.toml"), "").unwrap();
    let script = format!(
        "exec {daemon} --config {path}/blkrepd.toml --state {path}/state --socket {path}/s \
         --listen 127.0.0.1:0 --ready-fd 7 7>{path}/ready"
    );
    let child = Command::new("sh")
        .args(["-c", &script])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Reads to the end: the daemon must close its end though it goes on.
    let told = std::fs::read_to_string(&pipe).unwrap();
    let daemon = Daemon { child, ready: told };
    assert!(daemon.ready.contains("listening on 127.0.0.1:"));
    assert!(ask(&dir.path().join("s")).contains("200 OK"));
    daemon.signal("INT");
    assert_eq!(daemon.end().code(), Some(0));
}

#[test]
fn systemd_is_told_of_start_watchdog_and_stop() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let notify = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let limit = Some(Duration::from_secs(10));
    notify.set_read_timeout(limit).unwrap();
    let mut told = String::new();
    let mut until = |word: &str| {
        let mut message = [0; 1024];
        while !told.contains(word) {
            let length = notify.recv(&mut message).unwrap();
            told.push_str(std::str::from_utf8(&message[..length]).unwrap());
        }
    };
    let child = command(dir.path(), "state", "s")
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "900000")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ready = String::new();
    let daemon = Daemon { child, ready };
    until("READY=1");
    until("STATUS=control socket");
    until("WATCHDOG=1");
    daemon.signal("TERM");
    until("STOPPING=1");
    assert_eq!(daemon.end().code(), Some(0));
}
