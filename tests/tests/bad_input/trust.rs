//! Nodes that trust each other, and those that do not: what is not proven is refused, told, and not applied.

use crate::lab::{Lab, MIB, Node, Ran, same, until};
use crate::meddler::{Meddler, NEVER};
use crate::peer::{Peer, hello, history};
use crate::volume::Volume;
use blkrep_wire::{Hello, Message, RefuseCode};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::Ordering;

const LEN: u64 = 2 * MIB;

fn token(node: &Node, options: &str) -> String {
    node.ok(&format!("node pair --invite {options}"))
        .trim()
        .to_owned()
}

/// `joiner` uses a token of `inviter`, whom it reaches at `address`.
fn pair_at(joiner: &Node, inviter: &Node, address: &str, options: &str) {
    let token = token(inviter, options);
    joiner.ok(&format!("node pair {address} --token {token}"));
}

fn pair(joiner: &Node, inviter: &Node) {
    pair_at(joiner, inviter, &inviter.address, "");
}

/// A source and a target that are paired and equal, with what is between them.
fn replicated(lab: &Lab) -> (Node, Node, Meddler, Volume) {
    let (source, target) = (lab.node("a"), lab.node("b"));
    let meddler = Meddler::start(&target.address);
    pair_at(&source, &target, &meddler.address, "");
    let disk = lab.file("disk", LEN, 1);
    let device = source.attach("pg", &disk, "--group db");
    // As many bytes travel as are written.
    source.ok("set link.compression=off");
    source.ok(&format!("connect db --to {}", meddler.address));
    source.equal("db");
    (source, target, meddler, Volume::open(&device))
}

fn proven(node: &Node, side: &str) -> Value {
    let group = node.group("db").unwrap();
    match side {
        "source" => group["links"][0]["proven"].clone(),
        _ => group["target"]["proven"].clone(),
    }
}

#[test]
fn paired_nodes_replicate_encrypted_and_say_with_whom() {
    let lab = Lab::new();
    let (source, mut target, _meddler, mut volume) = replicated(&lab);
    assert_eq!(proven(&source, "source"), "b");
    // Its status is that of its last turn.
    until("the target says who it is connected to", || {
        (proven(&target, "target") == "a").then_some(())
    });
    volume.write(4096, &[9; 65536]).unwrap();
    volume.flush().unwrap();
    source.equal("db");
    same(&lab.path("disk"), &target.replicas.join("db.pg.img"));
    // Keys and pairings outlive the daemons.
    target.stop();
    target.start();
    source.equal("db");
    assert_eq!(proven(&source, "source"), "b");
    for name in ["trust.a", "trust.b"] {
        let mode = std::fs::metadata(target.state.join(name))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }
}

#[test]
fn nothing_of_the_data_is_seen_on_the_wire() {
    let lab = Lab::new();
    let (source, target) = (lab.node("a"), lab.node("b"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let real = target.address.clone();
    let tap = std::thread::spawn(move || {
        let mut all = Vec::new();
        // The pairing, and the link.
        for _ in 0..2 {
            let (mut from, _) = listener.accept().unwrap();
            let mut to = TcpStream::connect(&real).unwrap();
            let (mut back_from, mut back_to) = (to.try_clone().unwrap(), from.try_clone().unwrap());
            let back = std::thread::spawn(move || {
                let _ = std::io::copy(&mut back_from, &mut back_to);
                let _ = back_to.shutdown(Shutdown::Both);
            });
            let mut bytes = [0; 8192];
            while let Ok(count) = from.read(&mut bytes) {
                if count == 0 || to.write_all(&bytes[..count]).is_err() {
                    break;
                }
                all.extend_from_slice(&bytes[..count]);
            }
            let _ = to.shutdown(Shutdown::Both);
            back.join().unwrap();
        }
        all
    });
    pair_at(&source, &target, &address, "");
    let disk = lab.file("disk", LEN, 1);
    let marker = b"nobody but the two nodes may see this sentence";
    let mut bytes = std::fs::read(&disk).unwrap();
    bytes[8192..8192 + marker.len()].copy_from_slice(marker);
    std::fs::write(&disk, &bytes).unwrap();
    source.attach("pg", &disk, "--group db");
    // Nothing but encryption hides it.
    source.ok("set link.compression=off");
    source.ok(&format!("connect db --to {address}"));
    source.equal("db");
    source.ok("disconnect db");
    drop(source);
    drop(target);
    let all = tap.join().unwrap();
    assert!(
        all.len() > usize::try_from(LEN).unwrap() / 2,
        "the data passed here"
    );
    assert!(!all.windows(marker.len()).any(|window| window == marker));
}

#[test]
fn a_bit_that_flips_ends_the_connection_and_nothing_of_it_is_applied() {
    let lab = Lab::new();
    let (source, mut target, meddler, mut volume) = replicated(&lab);
    // A status may be a moment older than the stream.
    let before = until("the target says whose data it has", || {
        let group = target.group("db")?;
        (group["generation"] != "00000000000000000000000000000000").then_some(group)
    });
    for round in 0..4_u8 {
        meddler
            .flip_after
            .store(20_000 + usize::from(round) * 7001, Ordering::SeqCst);
        volume
            .write(u64::from(round) * 4096, &[round; 131_072])
            .unwrap();
        volume.flush().unwrap();
        until("the flip has happened", || {
            (meddler.flip_after.load(Ordering::SeqCst) == NEVER).then_some(())
        });
        source.equal("db");
        same(&lab.path("disk"), &target.replicas.join("db.pg.img"));
    }
    target.event("stream-broken", "node a");
    let told = source.event("link-down", "");
    assert!(told["text"].as_str().unwrap().len() > 10);
    // No mirror was needed: what was lost came again from the log.
    assert_eq!(
        target.group("db").unwrap()["generation"],
        before["generation"]
    );
    target.alive();
}

#[test]
fn a_stream_that_is_cut_anywhere_is_taken_up_again() {
    let lab = Lab::new();
    let (source, mut target, meddler, mut volume) = replicated(&lab);
    for round in 0..4_u8 {
        meddler
            .cut_after
            .store(30_000 + usize::from(round) * 5001, Ordering::SeqCst);
        volume
            .write(u64::from(round) * 8192, &[!round; 131_072])
            .unwrap();
        volume.flush().unwrap();
        until("the cut has happened", || {
            (meddler.cut_after.load(Ordering::SeqCst) == NEVER).then_some(())
        });
        source.equal("db");
        same(&lab.path("disk"), &target.replicas.join("db.pg.img"));
    }
    target.alive();
}

#[test]
fn a_node_that_is_not_paired_there_is_refused_and_nothing_is_made() {
    let lab = Lab::new();
    let (source, mut target, third) = (lab.node("a"), lab.node("b"), lab.node("c"));
    // The source trusts the target, which trusts somebody else and has forgotten the source.
    pair(&source, &target);
    pair(&third, &target);
    target.ok("node forget a");
    let disk = lab.file("disk", LEN, 1);
    source.attach("pg", &disk, "--group db");
    source.ok(&format!("connect db --to {}", target.address));
    target.event("node-refused", "not one that is pinned");
    source.event("node-refused", "does not accept this node's certificate");
    let link = source.link("db", "it says why", |link| {
        link["last_error"]
            .as_str()
            .is_some_and(|text| text.contains("does not accept this node's certificate"))
    });
    assert_ne!(link["connection"], "connected");
    assert!(target.group("db").is_none());
    assert!(
        std::fs::read_dir(&target.replicas)
            .unwrap()
            .next()
            .is_none()
    );
    target.alive();
    // Paired again, it connects by itself.
    source.ok("node forget b --yes");
    pair(&source, &target);
    source.equal("db");
}

#[test]
fn a_node_with_another_certificate_gets_nothing() {
    let lab = Lab::new();
    let (mut source, mut target, _meddler, mut volume) = replicated(&lab);
    target.stop();
    // Somebody else's machine at the same address, with a key of its own.
    let mut impostor = lab.plan("c");
    impostor.address.clone_from(&target.address);
    impostor.start();
    pair(&lab.node("d"), &impostor);
    volume.write(0, &[3; 4096]).unwrap();
    source.event("node-refused", "not one that is pinned");
    impostor.event("node-refused", "does not accept this node's certificate");
    assert!(impostor.group("db").is_none());
    assert!(
        std::fs::read_dir(&impostor.replicas)
            .unwrap()
            .next()
            .is_none()
    );
    impostor.stop();
    target.start();
    source.equal("db");
    source.alive();
}

#[test]
fn a_token_works_once_and_only_whole_and_only_in_time() {
    let lab = Lab::new();
    let (mut source, mut target, mut third) = (lab.node("a"), lab.node("b"), lab.node("c"));
    let address = target.address.clone();
    let once = token(&target, "");
    source.ok(&format!("node pair {address} --token {once}"));
    let said = third.no(
        &format!("node pair {address} --token {once}"),
        "token-refused",
    );
    assert!(said.contains("used already"), "{said}");
    target.event("pair-refused", "used already");
    let short = token(&target, "--valid 1s");
    std::thread::sleep(std::time::Duration::from_millis(1200));
    let said = third.no(
        &format!("node pair {address} --token {short}"),
        "token-refused",
    );
    assert!(said.contains("expired"), "{said}");
    target.event("pair-refused", "expired");
    let mut mistyped = token(&target, "");
    let last = if mistyped.ends_with('0') { "1" } else { "0" };
    mistyped.replace_range(mistyped.len() - 1.., last);
    let said = third.no(
        &format!("node pair {address} --token {mistyped}"),
        "token-refused",
    );
    assert!(
        said.contains("mistyped") && !said.contains(&mistyped),
        "{said}"
    );
    for text in ["", "blkrep1-", "blkrep1-00", "x"] {
        third.no(
            &format!("node pair {address} --token=x{text}"),
            "token-refused",
        );
    }
    // A token of another node: whoever answers is not the one that made it.
    let others = token(&source, "");
    let said = third.no(
        &format!("node pair {address} --token {others}"),
        "peer-refused",
    );
    assert!(said.contains("not one that is pinned"), "{said}");
    third.event("pair-refused", "not one that is pinned");
    target.event("pair-refused", "does not accept");
    // A restart ends what was open.
    let before = token(&target, "");
    target.stop();
    target.start();
    let said = third.no(
        &format!("node pair {address} --token {before}"),
        "token-refused",
    );
    assert!(said.contains("not known here"), "{said}");
    let list: Value = serde_json::from_str(&third.ok("node list --json")).unwrap();
    assert_eq!(list["nodes"].as_array().unwrap().len(), 0, "{list}");
    let list: Value = serde_json::from_str(&target.ok("node list --json")).unwrap();
    assert_eq!(list["nodes"].as_array().unwrap().len(), 1, "{list}");
    assert!(!target.log().contains(&once) && !source.log().contains(&once));
    source.alive();
}

#[test]
fn a_name_is_not_taken_over() {
    let lab = Lab::new();
    let (source, target) = (lab.node("a"), lab.node("b"));
    pair(&source, &target);
    let mut same_name = lab.plan("x");
    same_name.name = "a".to_owned();
    same_name.start();
    let token = token(&target, "");
    let line = format!("node pair {} --token {token}", target.address);
    let said = same_name.no(&line, "node-exists");
    assert!(said.contains("node forget a"), "{said}");
    target.event("pair-refused", "another certificate");
    // The token is not lost with it.
    lab.node("c").ok(&line);
}

#[test]
fn a_paired_source_without_encryption_or_with_anothers_name_is_told_no() {
    let lab = Lab::new();
    let (_source, mut target, _meddler, _volume) = replicated(&lab);
    let mut peer = Peer::connect(&target.address);
    let plain = Hello {
        node: blkrep_types::NodeName::new("a").unwrap(),
        ..hello("db", LEN, history(3))
    };
    peer.say(&Message::Hello(Box::new(plain)));
    let refuse = peer.refusal();
    assert_eq!(refuse.code, RefuseCode::Untrusted);
    assert!(refuse.text.contains("without encryption"), "{refuse:?}");
    target.event("plain-refused", "node a");
    target.alive();
    // A paired node that says it is another one.
    let mut renamed = lab.plan("c");
    renamed.start();
    pair(&renamed, &target);
    renamed.stop();
    renamed.name = "a".to_owned();
    renamed.start();
    let disk = lab.file("other", LEN, 2);
    renamed.attach("x", &disk, "--group other");
    let said = renamed.no(
        &format!("connect other --to {}", target.address),
        "not-paired",
    );
    assert!(said.contains("says it is node a"), "{said}");
    target.event("node-refused", "says it is node a");
    assert!(target.group("other").is_none());
}

#[test]
fn a_forgotten_nodes_connections_end_at_once() {
    let lab = Lab::new();
    let (source, mut target, _meddler, mut volume) = replicated(&lab);
    target.ok("node forget a");
    target.event("node-forgotten", "node a");
    volume.write(0, &[5; 4096]).unwrap();
    source.link("db", "it is down", |link| link["connection"] != "connected");
    source.event("node-refused", "does not accept this node's certificate");
    let replica = target.group("db").unwrap();
    assert_eq!(replica["target"]["connected"], false);
    target.no("node forget a", "not-paired");
}

#[test]
fn another_host_needs_a_pairing() {
    let lab = Lab::new();
    let mut source = lab.node("a");
    let disk = lab.file("disk", LEN, 1);
    source.attach("pg", &disk, "--group db");
    // An address for documentation: nothing is sent there.
    let said = source.no("connect db --to 192.0.2.1:7420", "not-paired");
    assert!(said.contains("node pair --invite"), "{said}");
    assert_eq!(
        source.group("db").unwrap()["links"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
}

#[test]
fn rubbish_in_tls_harms_only_its_sender() {
    let lab = Lab::new();
    let (source, mut target, _meddler, _volume) = replicated(&lab);
    for bytes in [
        &[0x16, 3, 1, 0xff, 0xff][..],
        &[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0],
        &[0x16; 20_000],
        &[0x16],
    ] {
        let mut stream = TcpStream::connect(&target.address).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // It may be reset: what was sent was not all read.
        let _ = stream.read_to_end(&mut answer);
    }
    target.event("node-refused", "");
    source.equal("db");
    target.alive();
}

#[test]
fn a_damaged_record_of_trust_is_survived_once_and_then_refused_with_what_to_do() {
    let lab = Lab::new();
    let (source, mut target, _meddler, _volume) = replicated(&lab);
    target.stop();
    std::fs::write(target.state.join("trust.a"), "rubbish").unwrap();
    target.start();
    target.event("state-corrupt", "trust.a");
    source.equal("db");
    target.stop();
    std::fs::write(target.state.join("trust.b"), "rubbish").unwrap();
    let said = target.refused_start();
    assert!(said.contains("pair the nodes again"), "{said}");
}

/// Runs `blkctl` at `node` for another node.
fn remote(node: &Node, other: &str, line: &str) -> Ran {
    node.ctl(&format!("--node {other} {line}"))
}

#[test]
fn a_paired_node_may_do_by_remote_control_what_its_role_says() {
    let lab = Lab::new();
    let (source, mut target, _meddler, _volume) = replicated(&lab);
    // Paired for links alone.
    let refused = |line: &str, words: &str| {
        let ran = remote(&source, "b", &format!("{line} --json"));
        assert_eq!(ran.code, Some(2), "{ran:?}");
        let body: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(body["error"]["code"], "forbidden", "{body}");
        assert!(ran.stdout.contains(words), "{ran:?}");
    };
    refused("status", "node a has none here");
    target.event("remote-refused", "needs the role monitor");
    target.ok("node role a monitor");
    let seen = remote(&source, "b", "status --json");
    let seen: Value = serde_json::from_str(&seen.stdout).unwrap();
    assert_eq!(
        (&seen["node"], &seen["groups"][0]["role"]),
        (&"b".into(), &"target".into())
    );
    // A monitor that tries to change something.
    for line in [
        "target pause db",
        "promote db --force --yes",
        "set link.reconnect=off",
        "node pair --invite",
        "node role a admin",
        "node forget a",
    ] {
        refused(line, "node a has monitor here");
    }
    target.event(
        "remote-refused",
        "needs the role administrator; node a has monitor here",
    );
    let group = target.group("db").unwrap();
    assert_eq!(
        (&group["role"], &group["target"]["status"]),
        (&"target".into(), &"ok".into())
    );
    target.ok("node role a admin");
    let ran = remote(&source, "b", "target pause db");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    until("applying is paused", || {
        (target.group("db")?["target"]["status"] == "paused").then_some(())
    });
    assert_eq!(remote(&source, "b", "target resume db").code, Some(0));
    // Nobody passes on what was passed on, and nobody else is asked.
    let ran = remote(&source, "c", "status");
    assert!(ran.stderr.contains("not paired"), "{ran:?}");
    target.ok("node forget a");
    let ran = remote(&source, "b", "status");
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.stderr
            .contains("does not accept this node's certificate"),
        "{ran:?}"
    );
    target.event("node-refused", "remote control from 127.0.0.1");
    target.alive();
}

#[test]
fn a_new_key_is_accepted_by_the_old_ones_word_and_the_old_one_is_not_any_more() {
    let lab = Lab::new();
    let (source, mut target, _meddler, _) = replicated(&lab);
    let certificate = |node: &Node| {
        let list: Value = serde_json::from_str(&node.ok("node list --json")).unwrap();
        list["fingerprint"].as_str().unwrap().to_owned()
    };
    let pinned = |node: &Node| {
        let list: Value = serde_json::from_str(&node.ok("node list --json")).unwrap();
        list["nodes"][0]["fingerprint"].as_str().unwrap().to_owned()
    };
    let kept = |node: &Node| {
        ["trust.a", "trust.b"].map(|name| {
            let path = node.state.join(name);
            (std::fs::read(&path).unwrap(), path)
        })
    };
    let old = certificate(&source);
    assert_eq!(pinned(&target), old);
    let before = kept(&source);
    source.ok("node rotate");
    let new = certificate(&source);
    assert_ne!(new, old);
    target.event("node-renewed", &new);
    source.equal("db");
    assert_eq!(pinned(&target), new);
    // Who has but the old key is nobody any more.
    let mut source = source;
    let after = kept(&source);
    source.stop();
    before
        .iter()
        .for_each(|(bytes, path)| std::fs::write(path, bytes).unwrap());
    source.start();
    target.event("node-refused", "not one that is pinned");
    assert_ne!(
        source.group("db").unwrap()["links"][0]["connection"],
        "connected"
    );
    source.stop();
    // With a node out of reach the old key stays.
    let own = certificate(&target);
    let said = target.no("node rotate", "peer-unreachable");
    assert!(said.contains("node a"), "{said}");
    assert_eq!(certificate(&target), own);
    after
        .iter()
        .for_each(|(bytes, path)| std::fs::write(path, bytes).unwrap());
    source.start();
    source.equal("db");
    // A target that has a new key is known by it, too.
    target.ok("node rotate");
    source.event("node-renewed", &certificate(&target));
    source.equal("db");
}
