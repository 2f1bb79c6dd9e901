//! Peers that are not what they say: at a target, and at a source.

use crate::lab::{Lab, MIB, Node, same, until};
use crate::peer::{NO_MAP, Peer, generation, hello, history, welcome};
use crate::volume::Volume;
use blkrep_types::{ByteLen, GroupName, History, Incarnation, LinkName, NodeName, Seq, WriteName};
use blkrep_wire::{
    Hello, Join, Message, PeerRole, RefuseCode, SessionId, Start, VERSION_CONNECTIONS,
};
use serde_json::Value;
use std::net::TcpListener;

const LEN: u64 = 2 * MIB;

/// A source and a target that are equal.
fn pair(lab: &Lab) -> (Node, Node, Volume) {
    let (source, target) = (lab.node("a"), lab.node("b"));
    let disk = lab.file("disk", LEN, 1);
    let address = source.attach("pg", &disk, "--group db");
    source.ok(&format!("connect db --to {}", target.address));
    source.equal("db");
    (source, target, Volume::open(&address))
}

fn history_of(node: &Node) -> History {
    let group = node.group("db").unwrap();
    let text = group["generation"].as_str().unwrap().to_owned();
    let mut bytes = [0; 16];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap();
    }
    let mut history = History::new();
    history.branch(
        blkrep_types::Generation::from_bytes(bytes),
        Incarnation::new(0),
        Seq::ZERO,
    );
    history
}

#[test]
fn a_connection_that_joins_no_living_session_is_refused_and_the_session_goes_on() {
    let lab = Lab::new();
    let (mut source, mut target, mut volume) = pair(&lab);
    for group in ["db", "nobody"] {
        let mut peer = Peer::connect(&target.address);
        peer.say(&Message::Join(Box::new(Join {
            version: VERSION_CONNECTIONS,
            index: 1,
            session: SessionId::new(7),
            node: NodeName::new("a").unwrap(),
            group: GroupName::new(group).unwrap(),
            link: LinkName::new("b").unwrap(),
        })));
        let refuse = peer.refusal();
        assert_eq!(refuse.code, RefuseCode::Unavailable);
        assert!(refuse.text.len() > 20, "it says why: {refuse:?}");
        peer.closes();
    }
    target.event("link-refused", "the session it wants to join is over");
    volume.write(0, &vec![9; 1 << 20]).unwrap();
    source.equal("db");
    same(&target.replicas.join("db.pg.img"), &lab.path("disk"));
    source.alive();
    target.alive();
}

#[test]
fn a_source_that_is_none_is_told_no_and_the_replica_stays_what_it_was() {
    let lab = Lab::new();
    let (mut source, mut target, mut volume) = pair(&lab);
    let ours = history_of(&source);
    let base = target.replicas.join("db.pg.img");
    let before = std::fs::read(&base).unwrap();
    let ask = |hello: Hello| {
        let mut peer = Peer::connect(&target.address);
        peer.say(&Message::Hello(Box::new(hello)));
        let refuse = peer.refusal();
        peer.closes();
        assert!(refuse.text.len() > 20, "it says why: {refuse:?}");
        refuse.code
    };
    let versions = Hello {
        versions: (7, 9),
        ..hello("db", LEN, ours.clone())
    };
    assert_eq!(ask(versions), RefuseCode::Version);
    let smaller = hello("db", LEN / 2, ours.clone());
    assert_eq!(ask(smaller), RefuseCode::Volumes);
    let two = {
        let mut hello = hello("db", LEN, ours.clone());
        let mut second = hello.volumes[0].clone();
        second.index = blkrep_types::VolumeIndex::new(1);
        hello.volumes.push(second);
        hello
    };
    assert_eq!(ask(two), RefuseCode::Volumes);
    // Our name and generation: but somebody else's link.
    assert_eq!(ask(hello("db", LEN, ours)), RefuseCode::Busy);
    // Another group may come, but goes only where it may.
    let elsewhere = {
        let mut hello = hello("other", LEN, history(9));
        hello.volumes[0].path = "/etc/passwd".to_owned();
        hello
    };
    assert_eq!(ask(elsewhere), RefuseCode::Path);
    let climbing = {
        let mut hello = hello("other", LEN, history(9));
        hello.volumes[0].path = format!("{}/../x", target.replicas.display());
        hello
    };
    assert_eq!(ask(climbing), RefuseCode::Path);
    let taken = {
        let mut hello = hello("other", LEN, history(9));
        hello.volumes[0].path = base.display().to_string();
        hello
    };
    assert_eq!(ask(taken), RefuseCode::Busy);
    let huge = {
        let mut hello = hello("other", 1 << 44, history(9));
        hello.volumes[0].path = lab.file("b/replicas/x", MIB, 0).display().to_string();
        hello
    };
    assert_eq!(ask(huge), RefuseCode::TooSmall);
    // What no volume can be is not understood at all: the map of it fits no memory.
    let mut peer = Peer::connect(&target.address);
    let absurd = hello("other", (1 << 62) - 512, history(9));
    peer.say(&Message::Hello(Box::new(absurd)));
    assert_eq!(peer.message(), None);
    target.event("peer-rubbish", "volumes.len");
    target.alive();
    assert!(target.group("other").is_none());
    assert!(std::fs::read(&base).unwrap() == before);
    volume.write(0, &[7; 4096]).unwrap();
    source.equal("db");
    source.alive();
}

#[test]
fn a_stream_of_an_unknown_generation_or_from_the_future_is_not_taken() {
    let lab = Lab::new();
    let (mut source, mut target, mut volume) = pair(&lab);
    let ours = history_of(&source);
    source.ok("disconnect db");
    until("the target sees it", || {
        let seen = target.group("db")?["target"].clone();
        (seen["connected"] == false && seen["data_state"] == "ok").then_some(())
    });
    let mirror = source.group("db").unwrap()["links"][0]["mirror"].clone();
    let base = target.replicas.join("db.pg.img");
    let before = std::fs::read(&base).unwrap();
    let start = |of: &History, name: WriteName, adopt: bool| {
        let mut peer = Peer::connect(&target.address);
        let mut hello = hello("db", LEN, of.clone());
        hello.node = blkrep_types::NodeName::new("a").unwrap();
        peer.say(&Message::Hello(Box::new(hello)));
        let Some(Message::Welcome(welcome)) = peer.message() else {
            panic!("no welcome");
        };
        assert!(welcome.history.current() == ours.current());
        peer.say(&Message::Start(Start {
            after: name,
            head: name,
            generation: of.current(),
            adopt,
            connections: 1,
        }));
        match peer.message() {
            Some(Message::Error(farewell) | Message::Goodbye(farewell)) => {
                assert!(farewell.text.len() > 20, "{farewell:?}");
            }
            other => panic!("not ended: {other:?}"),
        }
        peer.closes();
        (
            welcome.durable,
            target.group("db").unwrap()["target"]["data_state"].clone(),
        )
    };
    let name = |generation, incarnation, seq| WriteName {
        generation,
        incarnation: Incarnation::new(incarnation),
        seq: Seq::new(seq),
    };
    // A generation that nobody here ever heard of.
    let unknown = history(9);
    let (durable, state) = start(&unknown, name(generation(9), 1, 0), true);
    assert_eq!(state, "ok");
    // The right generation, but after writes that the replica does not have.
    let future = name(
        ours.current(),
        durable.incarnation.get() + 5,
        durable.seq.get() + 1000,
    );
    let (again, state) = start(&ours, future, false);
    assert_eq!((again, &state), (durable, &Value::from("ok")));
    // A stream that begins before the right to send was given.
    let mut peer = Peer::connect(&target.address);
    peer.raw(&[0x55; 4096]);
    peer.closes();
    target.event("peer-rubbish", "");
    assert!(std::fs::read(&base).unwrap() == before);
    volume.write(0, &[7; 4096]).unwrap();
    source.ok(&format!("connect db --to {}", target.address));
    let link = source.equal("db");
    assert_eq!(link["mirror"], mirror, "the stream did not go on");
    source.alive();
    target.alive();
}

/// A source with a link to a target that the test plays.
fn played(lab: &Lab) -> (Node, TcpListener, Volume) {
    let source = lab.node("a");
    let disk = lab.file("disk", LEN, 1);
    let address = source.attach("pg", &disk, "--group db");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (source, listener, Volume::open(&address))
}

fn last_error(source: &Node, words: &str) {
    source.link("db", &format!("the status says '{words}'"), |link| {
        link["last_error"]
            .as_str()
            .is_some_and(|why| why.contains(words))
    });
}

#[test]
fn a_target_that_speaks_rubbish_is_told_in_the_status_and_the_volume_works_on() {
    let lab = Lab::new();
    let (mut source, listener, mut volume) = played(&lab);
    let line = format!("connect db --to {}", listener.local_addr().unwrap());
    let socket = source.socket();
    let connecting = std::thread::spawn(move || crate::lab::run(crate::lab::ctl(&socket, &line)));
    // Noise for an answer.
    let mut peer = Peer::accept(&listener);
    assert!(matches!(peer.message(), Some(Message::Hello(_))));
    peer.raw(&[0xa5; 4096]);
    last_error(&source, "frame");
    volume.write(0, &[1; 4096]).unwrap();
    // A version that was not offered.
    let ours = history_of(&source);
    let mut peer = Peer::accept(&listener);
    peer.message();
    let mut unknown = welcome(LEN, History::new(), WriteName::NONE);
    unknown.version = 77;
    peer.say(&Message::Welcome(Box::new(unknown)));
    last_error(&source, "version 77");
    // A map of what is not there.
    let mut peer = Peer::accept(&listener);
    peer.message();
    peer.say(&Message::Welcome(Box::new(welcome(
        LEN,
        History::new(),
        WriteName::NONE,
    ))));
    peer.say(&Message::MapPart(blkrep_wire::MapPart {
        volume: blkrep_types::VolumeIndex::new(0),
        extent_size: blkrep_types::ExtentSize::try_from(64 << 10).unwrap(),
        first: blkrep_types::ExtentIndex::new(1 << 30),
        bit_count: 8,
        bits: vec![0xff],
    }));
    last_error(&source, "longer than the volume");
    // An acknowledgement of what was never sent.
    let mut peer = Peer::accept(&listener);
    peer.message();
    peer.say(&Message::Welcome(Box::new(welcome(
        LEN,
        History::new(),
        WriteName::NONE,
    ))));
    peer.say(&NO_MAP);
    assert!(matches!(peer.message(), Some(Message::Start(_))));
    let future = WriteName {
        generation: ours.current(),
        incarnation: Incarnation::new(1),
        seq: Seq::new(1 << 40),
    };
    peer.say(&Message::Ack(blkrep_wire::Ack {
        received: future,
        durable: future,
        applied: future,
        journal_used: ByteLen::ZERO,
        journal_capacity: ByteLen::new(1 << 24),
        data_state: blkrep_types::DataState::Ok,
        applying: blkrep_wire::Applying::Running,
        held: false,
    }));
    last_error(&source, "was not sent");
    volume.write(4096, &[2; 4096]).unwrap();
    assert_eq!(
        volume.read(0, 8192).unwrap(),
        [[1; 4096], [2; 4096]].concat()
    );
    let ran = connecting.join().unwrap();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    drop(listener);
    // Nothing of all that counts as sent: a target that works gets everything.
    let mut target = lab.node("b");
    source.ok(&format!("connect db --as link1 --to {}", target.address));
    source.equal("db");
    same(&target.replicas.join("db.pg.img"), &lab.path("disk"));
    source.alive();
    target.alive();
}

#[test]
fn a_target_of_another_history_is_refused_and_a_newer_one_stops_the_writing() {
    let lab = Lab::new();
    let (mut source, listener, mut volume) = played(&lab);
    let ours = history_of(&source);
    let connect = |options: &str| {
        let line = format!(
            "connect db --to {} {options}",
            listener.local_addr().unwrap()
        );
        let socket = source.socket();
        std::thread::spawn(move || crate::lab::run(crate::lab::ctl(&socket, &line)))
    };
    let durable = |number| WriteName {
        generation: generation(number),
        incarnation: Incarnation::new(1),
        seq: Seq::new(9),
    };
    // A generation that is not known, in a replica and in a source.
    for role in [PeerRole::Target, PeerRole::Source] {
        let connecting = connect("--json");
        let mut peer = Peer::accept(&listener);
        peer.message();
        let mut unknown = welcome(LEN, history(9), durable(9));
        unknown.role = role;
        peer.say(&Message::Welcome(Box::new(unknown)));
        let ran = connecting.join().unwrap();
        let body: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(body["error"]["code"], "generation-unknown", "{body}");
        let action = body["error"]["action"].as_str().unwrap();
        assert!(action.contains("--mirror checksum --yes"), "{action}");
        assert_eq!(
            source.group("db").unwrap()["links"]
                .as_array()
                .unwrap()
                .len(),
            0
        );
    }
    volume.write(0, &[1; 4096]).unwrap();
    // One that goes on from ours: promoted over us.
    let connecting = connect("--json");
    let mut peer = Peer::accept(&listener);
    peer.message();
    let mut newer = ours.clone();
    newer.branch(generation(8), Incarnation::new(1), Seq::new(0));
    let mut promoted = welcome(LEN, newer, durable(8));
    promoted.role = PeerRole::Source;
    peer.say(&Message::Welcome(Box::new(promoted)));
    let ran = connecting.join().unwrap();
    let body: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(body["error"]["code"], "restore-required", "{body}");
    volume.write(0, &[2; 4096]).unwrap_err();
    let status = source.ctl("status").stdout;
    assert!(
        status.contains("newer data of group db exists elsewhere"),
        "{status}"
    );
    assert!(status.contains("--mirror checksum --yes"), "{status}");
    source.event("volume-fenced", "is newer");
    source.alive();
    let disk = std::fs::read(lab.path("disk")).unwrap();
    assert!(
        disk[..4096].iter().all(|byte| *byte == 1),
        "what was written stays"
    );
}
