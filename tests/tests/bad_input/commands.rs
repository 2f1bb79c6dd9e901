//! Commands as somebody gives them who is new here.

use crate::lab::{Lab, MIB, ctl, run};
use serde_json::Value;
use std::net::TcpListener;
use std::time::{Duration, Instant};

#[test]
fn wrong_names_and_roles_are_told_with_what_to_do() {
    let lab = Lab::new();
    let (mut source, mut target) = (lab.node("a"), lab.node("b"));
    let disk = lab.file("disk", MIB, 1);
    source.attach("pg", &disk, "--group db");
    source.ok(&format!("connect db --to {}", target.address));
    source.equal("db");
    let backing = disk.display();
    for (line, code, words) in [
        ("status nope", "no-such-group", "blkctl status"),
        ("detach nope", "no-such-volume", "blkctl status"),
        (
            "connect nope --to 127.0.0.1:1",
            "no-such-group",
            "blkctl status",
        ),
        (
            "connect db --to localhost",
            "peer-unreachable",
            "address and port",
        ),
        (
            "connect db --to host.invalid:7420",
            "peer-unreachable",
            "host.invalid",
        ),
        ("disconnect nope", "no-such-group", "blkctl status"),
        ("disconnect db --link nope", "no-such-link", "nope"),
        ("mirror start nope", "no-such-group", "blkctl status"),
        (
            "mirror pause db",
            "mirror-not-running",
            "blkctl mirror start",
        ),
        (
            "mirror resume db",
            "mirror-not-running",
            "blkctl mirror start",
        ),
        (
            "mirror stop db",
            "mirror-not-running",
            "blkctl mirror start",
        ),
        ("transmit pause db --link nope", "no-such-link", "nope"),
        ("target pause db", "wrong-role", "on its target"),
        ("target pause nope", "no-such-group", "blkctl status"),
        ("promote db", "wrong-role", "nothing to do"),
        ("promote nope", "no-such-group", "blkctl status"),
        ("demote db", "wrong-role", "blkctl detach"),
        ("demote nope", "no-such-group", "blkctl status"),
        ("forget db --yes", "group-busy", "detach"),
        ("forget nope --yes", "no-such-group", "blkctl status"),
        ("set nope=1", "no-such-setting", "blkctl get"),
        ("set volume.queues=0", "setting-invalid", "1 to 64"),
        ("get nope", "no-such-setting", "blkctl get"),
    ] {
        let said = source.no(line, code);
        assert!(said.contains(words), "`{line}`: {said}");
    }
    for (line, code, words) in [
        (
            format!("attach pg --group db --backing {backing} --frontend nbd"),
            "wrong-role",
            "blkctl promote db",
        ),
        (
            "connect db --to 127.0.0.1:1".to_owned(),
            "wrong-role",
            "blkctl promote db",
        ),
        (
            "mirror start db".to_owned(),
            "wrong-role",
            "blkctl promote db",
        ),
        (
            "disconnect db".to_owned(),
            "wrong-role",
            "blkctl promote db",
        ),
        (
            "transmit stop db".to_owned(),
            "wrong-role",
            "blkctl promote db",
        ),
        ("promote db".to_owned(), "source-alive", "--force"),
        ("demote db".to_owned(), "wrong-role", ""),
    ] {
        let said = target.no(&line, code);
        assert!(said.contains(words), "`{line}`: {said}");
    }
    // Nothing of all that changed anything.
    let link = source.equal("db");
    assert_eq!(
        (&link["transmit"], &link["connection"]),
        (&"started".into(), &"connected".into())
    );
}

#[test]
fn a_link_that_is_not_connected_says_why_in_the_status() {
    let lab = Lab::new();
    let source = lab.node("a");
    let disk = lab.file("disk", MIB, 1);
    source.attach("pg", &disk, "--group db");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    source.ok(&format!("connect db --to {address}"));
    let text = source.ctl("status").stdout;
    let line =
        format!("link link1 to {address} is down: cannot connect to {address}: Connection refused");
    assert!(text.contains(&line), "{text}");
    assert!(
        text.contains("do:    check that blkrepd runs there"),
        "{text}"
    );
    assert!(!text.contains("overflowed"), "nothing ran over: {text}");
}

#[test]
fn a_detached_group_and_a_former_source_are_told_as_what_they_are() {
    let lab = Lab::new();
    let (mut source, target) = (lab.node("a"), lab.node("b"));
    let disk = lab.file("disk", MIB, 1);
    source.attach("pg", &disk, "--group db");
    source.ok(&format!("connect db --to {}", target.address));
    source.equal("db");
    source.ok("detach pg");
    let text = source.ctl("status").stdout;
    assert!(text.contains("group db is detached"), "{text}");
    assert!(!text.contains("has no link"), "{text}");
    let attach = text
        .lines()
        .find(|line| line.contains("blkctl attach"))
        .unwrap();
    assert!(
        attach.contains(&format!("--group db --backing {}", disk.display())),
        "{attach}"
    );
    target.ok("promote db --frontend nbd");
    let ran = target.ctl("status");
    let text = ran.stdout;
    assert!(matches!(ran.code, Some(0 | 1)), "{text}");
    assert!(text.contains("former-source: leads nowhere yet"), "{text}");
    assert!(
        text.contains("blkctl connect db --to ADDR:PORT --mirror checksum --yes"),
        "{text}"
    );
    assert!(
        !text.contains("--to \n") && !text.contains("overflowed"),
        "{text}"
    );
    target.ok("disconnect db --link former-source --forget --yes");
    source.stop();
}

/// `connect` waits a moment for the target's answer. Nobody else may have to.
#[test]
fn a_connect_to_somebody_who_is_silent_holds_up_neither_status_nor_other_commands() {
    let lab = Lab::new();
    let node = lab.node("a");
    let disk = lab.file("disk", MIB, 1);
    node.attach("pg", &disk, "--group db");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let line = format!("connect db --to {}", silent.local_addr().unwrap());
    let (socket, other) = (node.socket(), lab.file("other", MIB, 2));
    let began = Instant::now();
    let connecting = std::thread::spawn(move || {
        let ran = run(ctl(&socket, &line));
        (ran, began.elapsed())
    });
    let link = node.link("db", "the link is there", |link| link["name"] == "link1");
    assert_ne!(link["connection"], "connected");
    let mut times = Vec::new();
    for line in [
        "status",
        "events",
        "get",
        "transmit pause db",
        "transmit resume db",
    ] {
        let began = Instant::now();
        let code = node.ctl(line).code;
        assert!(matches!(code, Some(0 | 1)), "{line}: {code:?}");
        times.push((line.to_owned(), began.elapsed()));
    }
    let began = Instant::now();
    node.attach("more", &other, "");
    times.push(("attach".to_owned(), began.elapsed()));
    let (ran, waited) = connecting.join().unwrap();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("not connected yet"), "{}", ran.stderr);
    assert!(
        waited >= Duration::from_secs(4),
        "it did not wait: {waited:?}"
    );
    let together: Duration = times.iter().map(|(_, time)| *time).sum();
    assert!(
        together < waited,
        "{times:?} beside a connect of {waited:?}"
    );
    for (line, time) in &times {
        assert!(*time < Duration::from_secs(3), "`{line}` took {time:?}");
    }
    node.ok("disconnect db");
    let status: Value = node.group("db").unwrap();
    assert_eq!(status["links"][0]["connection"], "disconnected");
}
