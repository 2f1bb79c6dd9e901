//! The control plane over a real socket: roles, limits, rubbish, events.
#![allow(clippy::unwrap_used)]

mod fake;

use blkrep::control::{Peer, Role};
use blkrep_api::{EventId, NewEvent, route};
use fake::{Plane, connect, exchange, raw};
use serde_json::json;
use std::io::{BufRead as _, BufReader, Write as _};
use std::time::{Duration, Instant};

fn everyone(role: Role) -> impl Fn(Peer) -> Role {
    move |_| role
}

fn attach(volume: &str) -> serde_json::Value {
    json!({"volume": volume, "backing": "/dev/sdb", "frontend": "auto"})
}

const COMMANDS: [&str; 12] = [
    route::ATTACH,
    route::DETACH,
    route::CONNECT,
    route::DISCONNECT,
    route::FORGET,
    route::MIRROR,
    route::TRANSMIT,
    route::TARGET,
    route::PROMOTE,
    route::DEMOTE,
    route::REPLACE,
    route::SET,
];
const QUESTIONS: [&str; 5] = [
    route::VERSION,
    route::STATUS,
    route::SETTINGS,
    route::EVENTS,
    route::DOCTOR,
];

#[test]
fn administrators_do_everything() {
    let plane = Plane::start(everyone(Role::Administrator));
    let group = json!({"group": "db"});
    let bodies = [
        attach("pgdata"),
        json!({"volume": "pgdata"}),
        json!({"group": "db", "to": "192.0.2.1:7420", "mode": "async", "map": {"pgdata": "/r/x"}}),
        group.clone(),
        group.clone(),
        json!({"group": "db", "action": "start", "kind": "checksum"}),
        json!({"group": "db", "action": "pause"}),
        json!({"group": "db", "action": "resume"}),
        group.clone(),
        group,
        json!({"group": "db", "volume": "pgdata", "path": "/dev/sdc"}),
        json!({"assignments": [{"key": "volume.queues", "value": "2"}]}),
    ];
    for (path, body) in COMMANDS.iter().zip(bodies) {
        let (status, reply) = plane.post(path, &body);
        assert_eq!(status, 200, "{path}: {reply}");
    }
    assert_eq!(plane.asked().len(), COMMANDS.len());
    for path in QUESTIONS {
        assert_eq!(plane.get(path).0, 200, "{path}");
    }
    let (_, status) = plane.get(route::STATUS);
    assert_eq!(status["schema"], 1);
    assert_eq!(status["groups"][0]["volumes"][0]["device"], "/dev/ublkb0");
    assert!(status["groups"][0]["problems"][0]["action"].is_string());
    let (_, one) = plane.get("/v1/settings?key=volume.queues");
    assert_eq!(one["settings"][0]["value"], "2");
    assert_eq!(one["settings"][0]["origin"], "node");
}

#[test]
fn monitors_only_read_and_strangers_do_nothing() {
    let monitor = Plane::start(everyone(Role::Monitor));
    for path in QUESTIONS {
        assert_eq!(monitor.get(path).0, 200, "{path}");
    }
    let stranger = Plane::start(everyone(Role::None));
    for path in COMMANDS {
        for plane in [&monitor, &stranger] {
            let (status, reply) = plane.post(path, &attach("pgdata"));
            assert_eq!(
                (status, &reply["error"]["code"]),
                (403, &json!("forbidden"))
            );
            let action = reply["error"]["action"].as_str().unwrap();
            assert!(action.contains("blkrep-admin"), "{action}");
        }
    }
    for path in QUESTIONS.iter().chain([&route::EVENTS_FOLLOW, &"/other"]) {
        let (status, reply) = stranger.get(path);
        assert_eq!(status, 403, "{path}: {reply}");
    }
    assert_eq!(monitor.asked().len() + stranger.asked().len(), 0);
}

#[test]
fn the_kernel_says_who_asks() {
    let (sender, seen) = std::sync::mpsc::channel();
    let plane = Plane::start(move |peer: Peer| {
        sender.send(peer).unwrap();
        Role::Monitor
    });
    plane.get(route::STATUS);
    let peer = seen.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
    assert_eq!(peer.gid, nix::unistd::getegid().as_raw());
}

#[test]
fn refusals_say_what_happened_to_what_and_what_to_do() {
    let plane = Plane::start(everyone(Role::Administrator));
    for (body, status, code) in [
        (attach("taken"), 409, "volume-exists"),
        (attach("../etc"), 400, "bad-request"),
        (json!({"volume": "x"}), 400, "bad-request"),
        (json!([]), 400, "bad-request"),
        (
            json!({"volume": "x", "backing": "/b", "frontend": "auto", "nwe": 1}),
            400,
            "bad-request",
        ),
        (attach("panic"), 500, "internal"),
    ] {
        let (found, reply) = plane.post(route::ATTACH, &body);
        assert_eq!(
            (found, &reply["error"]["code"]),
            (status, &json!(code)),
            "{body}"
        );
        for field in ["happened", "subject", "action"] {
            assert!(
                !reply["error"][field].as_str().unwrap().is_empty(),
                "{reply}"
            );
        }
    }
    let (status, reply) = plane.get("/v1/nonsense");
    assert_eq!(
        (status, &reply["error"]["code"]),
        (404, &json!("no-such-command"))
    );
    assert_eq!(plane.get(route::ATTACH).0, 404);
    assert_eq!(plane.get("/v1/status?group=../x").0, 400);
    assert_eq!(plane.get("/v1/status?grp=x").0, 400);
    assert_eq!(plane.asked().len(), 0);
    assert_eq!(plane.post(route::ATTACH, &attach("pgdata")).0, 200);
}

#[test]
fn rubbish_harms_only_its_sender() {
    let plane = Plane::start(everyone(Role::Administrator));
    let mut noise: Vec<u8> = (0..65_536_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    raw(&plane.socket, &noise);
    noise.truncate(100);
    raw(&plane.socket, &noise);
    for rubbish in [
        "\0\0\0\0",
        "GET / HTTP/9.9\r\n\r\n",
        "POST /v1/attach HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n",
        "POST /v1/attach HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        "POST /v1/attach HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "POST /v1/attach HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n\u{feff}",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}",
    ] {
        let reply = raw(&plane.socket, rubbish.as_bytes());
        assert!(!reply.starts_with(b"HTTP/1.1 200"), "{rubbish:?}");
    }
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    assert!(!raw(&plane.socket, long.as_bytes()).starts_with(b"HTTP/1.1 200"));
    assert_eq!(plane.get(route::STATUS).0, 200);
    assert_eq!(plane.asked().len(), 0);
}

#[test]
fn a_body_over_the_limit_is_refused() {
    let plane = Plane::start(everyone(Role::Administrator));
    let huge = json!({"volume": "x".repeat(1 << 20)});
    let (status, reply) = plane.post(route::ATTACH, &huge);
    // The refusal can be lost: the daemon closes while the client still sends.
    assert!(status == 413 || status == 0, "{status}: {reply}");
    let claimed = "POST /v1/attach HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n";
    let (status, reply) = exchange(&plane.socket, claimed);
    assert_eq!(
        (status, &reply["error"]["code"]),
        (413, &json!("too-large"))
    );
}

#[test]
fn slow_clients_are_cut_off_and_do_not_keep_others_out() {
    let plane = Plane::start(everyone(Role::Administrator));
    // More than may be connected at once; each sends half a head, or half a body, and waits.
    let half = "POST /v1/attach HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n";
    let mut slow = Vec::new();
    for number in 0..12 {
        let mut stream = connect(&plane.socket);
        let end = if number % 2 == 0 { "" } else { "\r\n{" };
        let _ = stream.write_all(format!("{half}{end}").as_bytes());
        slow.push(stream);
    }
    let began = Instant::now();
    let mut status = 0;
    while status != 200 && began.elapsed() < Duration::from_secs(10) {
        status = exchange(&plane.socket, "GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n").0;
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(status, 200);
    for stream in slow {
        let mut lines = Vec::new();
        // Ends because the daemon closes, not because of the read's own time-out.
        let read = std::io::Read::read_to_end(&mut BufReader::new(stream), &mut lines);
        let kind = read.err().map(|error| error.kind());
        assert!(
            matches!(kind, None | Some(std::io::ErrorKind::ConnectionReset)),
            "{kind:?}"
        );
    }
}

#[test]
fn a_command_that_takes_long_says_so_and_goes_on() {
    let plane = Plane::start(everyone(Role::Administrator));
    let (status, reply) = plane.post(route::ATTACH, &attach("slow"));
    assert_eq!(
        (status, &reply["error"]["code"]),
        (504, &json!("still-running"))
    );
    assert_eq!(plane.asked().len(), 0);
    assert_eq!(plane.get(route::STATUS).0, 200);
    let began = Instant::now();
    while plane.asked().is_empty() && began.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(plane.asked().len(), 1);
}

#[test]
fn events_are_followed_from_a_cursor_as_they_happen() {
    let plane = Plane::start(everyone(Role::Monitor));
    for number in 0..3 {
        plane
            .events
            .publish(NewEvent::new(EventId::LinkUp, format!("early {number}")));
    }
    let mut stream = connect(&plane.socket);
    let request = format!(
        "GET {}?after=1 HTTP/1.1\r\nhost: x\r\n\r\n",
        route::EVENTS_FOLLOW
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines();
    let mut next = || loop {
        let line = lines.next().unwrap().unwrap();
        if line.starts_with('{') {
            break serde_json::from_str::<serde_json::Value>(&line).unwrap();
        }
    };
    assert_eq!(next()["text"], "early 1");
    assert_eq!(next()["text"], "early 2");
    plane
        .events
        .publish(NewEvent::new(EventId::LinkDown, "late"));
    let late = next();
    assert_eq!(
        (&late["line"], &late["name"]),
        (&json!("event"), &json!("link-down"))
    );
    assert_eq!(late["cursor"], 4);
    // A burst larger than what is kept: what is missed is counted, nothing comes twice.
    for number in 0..500 {
        plane
            .events
            .publish(NewEvent::new(EventId::LinkUp, format!("burst {number}")));
    }
    let mut seen = 4;
    while seen < 504 {
        let line = next();
        match line["line"].as_str().unwrap() {
            "event" => {
                seen += 1;
                assert_eq!(line["cursor"], seen);
            }
            "missed" => seen += line["count"].as_u64().unwrap(),
            other => assert_eq!(other, "idle"),
        }
    }
}

#[test]
fn followers_end_when_the_daemon_stops() {
    let plane = Plane::start(everyone(Role::Monitor));
    let mut stream = connect(&plane.socket);
    let request = format!("GET {} HTTP/1.1\r\nhost: x\r\n\r\n", route::EVENTS_FOLLOW);
    stream.write_all(request.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    reader.read_line(&mut head).unwrap();
    assert!(head.contains("200"), "{head}");
    let began = Instant::now();
    drop(plane);
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut rest).unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
}
