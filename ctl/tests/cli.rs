//! The program `blkctl` against a daemon that answers from a script: requests, words, exit codes.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

const STATUS: &str = include_str!("status.json");

type Answer = Box<dyn Fn(&str) -> (u16, String) + Send>;

/// A daemon that answers each request with what a function of its first line says.
struct Scripted {
    dir: tempfile::TempDir,
    seen: Arc<Mutex<Vec<String>>>,
}

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Scripted {
    fn start(answer: Answer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), &answer, &record);
            }
        });
        Self { dir, seen }
    }

    fn with(status: u16, body: &str) -> Self {
        let body = body.to_owned();
        Self::start(Box::new(move |_| (status, body.clone())))
    }

    fn run(&self, line: &str) -> Ran {
        run(self.dir.path().join("s"), line)
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(mut stream: UnixStream, answer: &Answer, record: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let request = first.trim().trim_end_matches(" HTTP/1.1").to_owned();
    let body = String::from_utf8(body).unwrap();
    record.lock().unwrap().push(format!("{request} {body}"));
    let (status, reply) = answer(&request);
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n", reply.len());
    // A client that has seen enough may have gone.
    let _ = write!(stream, "{head}connection: close\r\n\r\n{reply}");
}

fn run(socket: PathBuf, line: &str) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_blkctl"))
        .arg("--socket")
        .arg(socket)
        .args(line.split_whitespace())
        .stdin(Stdio::null())
        .env_remove("BLKREP_SOCKET")
        .output()
        .unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A command line, the request it sends, and parts of its body.
const REQUESTS: [(&str, &str, &[&str]); 13] = [
    (
        "attach pg --backing /dev/sdb --group db --device-id 3 --offset 1MiB --extent-size 4KiB",
        "POST /v1/attach",
        &[
            "\"offset\":1048576",
            "\"extent_size\":4096",
            "\"frontend\":\"auto\"",
        ],
    ),
    ("detach pg", "POST /v1/detach", &["\"force\":false"]),
    (
        "connect db --to h:1 --map pg=/r/pg --mode sync --mirror checksum --yes",
        "POST /v1/connect",
        &[
            "\"map\":{\"pg\":\"/r/pg\"}",
            "\"mode\":\"sync\"",
            "\"confirmed\":true",
        ],
    ),
    (
        "disconnect db",
        "POST /v1/disconnect",
        &["\"forget\":false"],
    ),
    (
        "mirror start db --kind full",
        "POST /v1/mirror",
        &["\"start\"", "\"kind\":\"full\""],
    ),
    (
        "mirror pause db --link east",
        "POST /v1/mirror",
        &["\"pause\"", "\"east\""],
    ),
    (
        "transmit stop db",
        "POST /v1/transmit",
        &["\"action\":\"stop\""],
    ),
    (
        "target resume db",
        "POST /v1/target",
        &["\"action\":\"resume\""],
    ),
    (
        "promote db --force --yes",
        "POST /v1/promote",
        &["\"force\":true"],
    ),
    ("demote db", "POST /v1/demote", &["\"group\":\"db\""]),
    ("forget db --yes", "POST /v1/forget", &["\"group\":\"db\""]),
    (
        "set volume.queues=2 group.log-memory= --group db",
        "POST /v1/set",
        &[
            "\"value\":\"2\"",
            "\"key\":\"group.log-memory\",\"value\":null",
            "\"group\":\"db\"",
        ],
    ),
    (
        "get volume.queues",
        "GET /v1/settings?key=volume.queues",
        &[],
    ),
];

#[test]
fn each_command_sends_its_request() {
    let reply = r#"{"notes": [], "device": "/dev/ublkb0", "frontend": "ublk", "size_bytes": 4096,
        "link": "east", "links": [], "tracking": true, "schema": 1, "settings": []}"#;
    let daemon = Scripted::with(200, reply);
    for (line, path, parts) in REQUESTS {
        let ran = daemon.run(line);
        assert_eq!(ran.code, Some(0), "{line}: {}", ran.stderr);
        let seen = daemon.seen().pop().unwrap();
        assert!(seen.starts_with(path), "{line}: {seen}");
        for part in parts {
            assert!(seen.contains(part), "{line}: {part} in {seen}");
        }
    }
}

#[test]
fn data_goes_to_stdout_and_talk_to_stderr() {
    let reply = r#"{"device": "/dev/loop0", "frontend": "loop", "size_bytes": 4096,
        "notes": ["the kernel has no ublk"]}"#;
    let daemon = Scripted::with(200, reply);
    let ran = daemon.run("attach pg --backing /x");
    assert_eq!(ran.stdout, "/dev/loop0\n");
    assert_eq!(ran.stderr, "the kernel has no ublk\n");
    let json = daemon.run("attach pg --backing /x --json");
    let value: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(value["frontend"], "loop");
}

#[test]
fn what_destroys_data_needs_yes_and_says_what_it_does() {
    let daemon = Scripted::with(200, "{}");
    for line in [
        "detach pg --force",
        "connect db --to h:1 --overwrite",
        "connect db --to h:1 --trust-map",
        "disconnect db --forget",
        "promote db --force",
        "promote db --inconsistent",
        "forget db",
    ] {
        let ran = daemon.run(line);
        assert_eq!(ran.code, Some(2), "{line}");
        assert!(
            ran.stderr.contains("Nothing was done: add --yes"),
            "{}",
            ran.stderr
        );
    }
    assert_eq!(daemon.seen().len(), 0);
}

#[test]
fn a_refusal_is_told_in_words_and_in_json() {
    let body = r#"{"schema": 1, "error": {"code": "backing-mounted", "subject": "/dev/sdb",
        "happened": "it is mounted on /srv", "action": "unmount it: umount /srv"}}"#;
    let daemon = Scripted::with(409, body);
    let ran = daemon.run("attach pg --backing /dev/sdb");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""));
    let said = "error: /dev/sdb: it is mounted on /srv\ndo: unmount it: umount /srv\n";
    assert_eq!(ran.stderr, said);
    let ran = daemon.run("attach pg --backing /dev/sdb --json");
    let value: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(value["error"]["code"], "backing-mounted");
}

#[test]
fn a_daemon_that_is_not_there_or_talks_rubbish_is_an_error_with_what_to_do() {
    let ran = run("/nowhere/s".into(), "status");
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("no daemon answers"), "{}", ran.stderr);
    assert!(ran.stderr.contains("do: start it"), "{}", ran.stderr);
    for (status, body) in [(200, "rubbish"), (500, "<html>"), (200, "{}")] {
        let ran = Scripted::with(status, body).run("status");
        assert_eq!(ran.code, Some(2), "{body}");
        assert!(ran.stderr.contains("do: "), "{}", ran.stderr);
    }
}

#[test]
fn a_silent_daemon_is_given_up_after_the_time_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _listener = UnixListener::bind(&path).unwrap();
    let began = std::time::Instant::now();
    let ran = run(path, "status --timeout 300ms");
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.stderr.contains("did not answer within 0.3 s"),
        "{}",
        ran.stderr
    );
    assert!(began.elapsed().as_secs() < 10);
}

#[test]
fn status_is_told_in_words_with_the_next_action() {
    let daemon = Scripted::with(200, STATUS);
    let ran = daemon.run("status");
    assert_eq!(ran.stdout, include_str!("status.txt"), "{}", ran.stdout);
    assert_eq!(ran.code, Some(1), "a warning is a condition");
    let json = daemon.run("status db --json");
    let found: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let sent: serde_json::Value = serde_json::from_str(STATUS).unwrap();
    assert_eq!(found, sent);
    assert_eq!(daemon.seen().pop().unwrap(), "GET /v1/status?group=db ");
}

#[test]
fn waiting_ends_when_the_target_is_equal_and_with_1_when_it_cannot_be() {
    let mut status: serde_json::Value = serde_json::from_str(STATUS).unwrap();
    let ok = {
        let link = &mut status["groups"][0]["links"][0];
        link["mirror"]["state"] = "idle".into();
        link["data_state"] = "ok".into();
        link["connection"] = "connected".into();
        status.to_string()
    };
    let rounds = Mutex::new(0);
    let daemon = Scripted::start(Box::new(move |request| {
        let mut round = rounds.lock().unwrap();
        *round += 1;
        match (request.starts_with("GET"), *round) {
            (false, _) => (200, "{}".to_owned()),
            (true, 0..4) => (200, STATUS.to_owned()),
            (true, _) => (200, ok.clone()),
        }
    }));
    let ran = daemon.run("mirror start db --wait");
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("link east: equal"), "{}", ran.stderr);
    assert!(daemon.seen().len() >= 4);

    status["groups"][0]["links"][0]["connection"] = "refused".into();
    status["groups"][0]["links"][0]["refusal"] = "another group".into();
    let refused = Scripted::with(200, &status.to_string());
    let ran = refused.run("mirror resume db --wait");
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr.contains("refused: another group"),
        "{}",
        ran.stderr
    );

    let endless = Scripted::with(200, STATUS);
    let ran = endless.run("mirror start db --wait --timeout 500ms");
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("the mirror goes on"), "{}", ran.stderr);
}

#[test]
fn doctor_exits_1_when_something_does_not_work() {
    let finding = |level: &str| {
        format!(
            r#"{{"schema": 1, "findings": [{{"check": "fuse", "level": "{level}", "what": "w"}}]}}"#
        )
    };
    for (level, code) in [("ok", 0), ("note", 0), ("warning", 0), ("error", 1)] {
        let ran = Scripted::with(200, &finding(level)).run("doctor");
        assert_eq!(ran.code, Some(code), "{level}");
        assert!(ran.stdout.starts_with(level), "{}", ran.stdout);
    }
}

#[test]
fn events_are_shown_and_followed() {
    let event = r#"{"cursor": 7, "time": "2026-11-21T04:00:00Z", "number": 1203,
        "name": "link-down", "severity": "warning", "group": "db", "text": "reset"}"#;
    let page = format!(r#"{{"schema": 1, "events": [{event}], "next": 7, "missed": 2}}"#);
    let daemon = Scripted::with(200, &page);
    let ran = daemon.run("events --severity warning --group db --id 1203");
    assert!(
        ran.stdout
            .starts_with("7 2026-11-21T04:00:00Z warning 1203 link-down group db: reset")
    );
    assert_eq!(ran.stderr, "2 events before these are gone\n");
    let seen = daemon.seen().pop().unwrap();
    assert!(
        seen.contains("severity=warning") && seen.contains("id=link-down"),
        "{seen}"
    );

    let line = event
        .replace('\n', " ")
        .replacen('{', r#"{"line": "event", "#, 1);
    let stream = format!("{line}\n{{\"line\": \"idle\"}}\n{line}\n");
    let follow = Scripted::with(200, &stream);
    let ran = follow.run("events --follow --after 3");
    assert_eq!(ran.stdout.matches("link-down").count(), 2);
    assert_eq!(
        follow.seen().pop().unwrap(),
        "GET /v1/events/follow?after=3 "
    );
    let ran = follow.run("events --follow --json");
    assert_eq!(ran.stdout.lines().count(), 2, "{}", ran.stdout);
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_sent() {
    let daemon = Scripted::with(200, "{}");
    for line in [
        "attach ../x --backing /x",
        "attach pg",
        "attach pg --backing /x --frontend tape",
        "attach pg --backing /x --size 1.5GiB",
        "attach pg --backing /x --extent-size 3KiB",
        "connect db --to h:1 --mode perhaps",
        "connect db --to h:1 --map pg=relative",
        "connect db --to h:1 --mirror full --no-mirror",
        "set volume.queues",
        "events --id nonsense",
        "status --timeout 5",
        "nonsense",
    ] {
        let ran = daemon.run(line);
        assert_eq!(ran.code, Some(2), "{line}");
        assert!(!ran.stderr.is_empty());
    }
    assert_eq!(daemon.seen().len(), 0);
}
