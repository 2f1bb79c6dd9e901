//! Links that transmit in sessions: when there is a connection, and what is asked for wrongly.

use crate::lab::{Lab, MIB, Node, same, until};
use crate::volume::Volume;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

struct Pair {
    source: Node,
    target: Node,
    disk: PathBuf,
    volume: Volume,
}

/// A volume whose target has everything.
fn pair(lab: &Lab) -> Pair {
    let (source, target) = (lab.node("a"), lab.node("b"));
    let disk = lab.file("disk", 4 * MIB, 1);
    let address = source.attach("pg", &disk, "--group db");
    source.ok(&format!("connect db --to {} --wait", target.address));
    Pair {
        volume: Volume::open(&address),
        source,
        target,
        disk,
    }
}

impl Pair {
    fn link(&self) -> serde_json::Value {
        self.source.group("db").unwrap()["links"][0].clone()
    }

    /// The link is held for this reason, and there is no connection.
    fn until_held(&self, why: &str) {
        until(&format!("held: {why}"), || {
            let link = self.link();
            let held = link["transmit"] == "scheduled" && link["schedule"]["held_by"] == why;
            (held && link["connection"] == "down").then_some(())
        });
    }

    fn until_equal(&self) {
        let replica = self.target.replicas.join("db.pg.img");
        until("the replica is equal", || {
            let read = |path: &PathBuf| std::fs::read(path).unwrap();
            (read(&self.disk) == read(&replica)).then_some(())
        });
    }
}

#[test]
fn a_queue_begins_a_session_and_its_end_closes_the_connection() {
    let lab = Lab::new();
    let mut pair = pair(&lab);
    pair.source.ok("transmit schedule db --on --queue 1MiB");
    pair.until_held("queue-short");
    pair.volume.write(0, &[7; 65536]).unwrap();
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(pair.link()["connection"], "down", "too little waits");
    assert_eq!(pair.link()["queue"]["memory_bytes"], 65536);
    pair.volume.write(MIB, &vec![8; 1 << 20]).unwrap();
    pair.source.event("session-started", "");
    pair.until_equal();
    pair.source.event("session-ended", "sent");
    pair.until_held("queue-short");
    let status = pair.source.ctl("status db").stdout;
    assert!(
        status.contains("schedule: held until enough waits"),
        "{status}"
    );
    pair.source.ok("transmit schedule db --off");
    until("it transmits at once", || {
        (pair.link()["connection"] == "connected").then_some(())
    });
    pair.volume.write(0, &[9; 512]).unwrap();
    pair.until_equal();
}

#[test]
fn before_the_first_start_there_is_no_connection_also_after_a_kill_unless_a_session_is_asked_for() {
    let lab = Lab::new();
    let mut pair = pair(&lab);
    pair.source
        .ok("transmit schedule db --on --start 2099-01-01T00:00");
    pair.until_held("before-start");
    let third = lab.node("c");
    let said = pair
        .source
        .ctl(&format!("connect db --to {} --as second", third.address));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stderr.contains("held by its schedule"), "{said:?}");
    pair.source.ok("disconnect db --link second --forget --yes");
    pair.volume.write(0, &[7; 4096]).unwrap();
    pair.source.kill();
    pair.source.start();
    for _ in 0..20 {
        assert_ne!(pair.link()["connection"], "connected");
        thread::sleep(Duration::from_millis(100));
    }
    pair.until_held("before-start");
    pair.source.ok("transmit start db");
    pair.source.event("session-started", "");
    pair.until_equal();
    pair.until_held("before-start");
    same(&pair.disk, &pair.target.replicas.join("db.pg.img"));
}

#[test]
fn a_schedule_that_makes_no_sense_is_refused_whole() {
    let lab = Lab::new();
    let pair = pair(&lab);
    for (words, why) in [
        ("--on --time 1h", "something that begins the next session"),
        ("--on --interval 1h", "needs link.session-start"),
        ("--on --queue 101%", "outside its range"),
        ("--on --window tomorrow", "no period"),
        ("--on --start 22:00", "no date and time"),
        ("--on --off", "cannot be used with"),
    ] {
        let refused = pair.source.ctl(&format!("transmit schedule db {words}"));
        assert_eq!(refused.code, Some(2), "{words}");
        assert!(refused.stderr.contains(why), "{words}: {}", refused.stderr);
    }
    let shown = pair.source.ok("transmit schedule db");
    assert!(shown.contains("strongest first"), "{shown}");
    assert!(shown.contains("no schedule"), "{shown}");
    assert!(pair.link().get("schedule").is_none());
    assert_eq!(pair.link()["connection"], "connected");
}
