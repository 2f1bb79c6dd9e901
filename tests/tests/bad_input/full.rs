//! Disks without room: under the state directory, a journal, a base and a backing.
//!
//! A small disk is memory that only the daemon under test has mounted, in namespaces of its own: no root is needed.

use crate::lab::{Lab, MIB, Node, same, until};
use crate::volume::Volume;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Puts a disk of so many bytes at `dir` of a node that is not started.
pub(crate) fn small_disk(node: &mut Node, dir: &Path, bytes: u64) {
    let allowed = Command::new("unshare").args(["-rm", "true"]).output();
    let allowed = allowed.expect("`unshare` (util-linux) is needed to give a daemon a small disk");
    assert!(
        allowed.status.success(),
        "this machine gives no mount namespace, so no disk can run full here: {}; allow it (sysctl \
         kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0), or run as root",
        String::from_utf8_lossy(&allowed.stderr).trim()
    );
    std::fs::create_dir_all(dir).unwrap();
    let script = format!("mount -t tmpfs -o size={bytes} none \"$0\" && exec \"$@\"");
    let words = ["unshare", "-rm", "sh", "-c", &script];
    node.wrapped = words.into_iter().map(OsString::from).collect();
    node.wrapped.push(dir.into());
}

/// A path as the daemon sees it.
pub(crate) fn inside(node: &Node, path: &Path) -> PathBuf {
    let root = PathBuf::from(format!("/proc/{}/root", node.pid()));
    root.join(path.strip_prefix("/").unwrap())
}

/// Takes all the room there is in a directory; to be removed to give it back.
pub(crate) fn fill(node: &Node, dir: &Path) -> PathBuf {
    let path = inside(node, &dir.join("fill"));
    let mut file = File::create(&path).unwrap();
    for len in [1 << 16, 4096, 1] {
        while file.write_all(&vec![0xff; len]).is_ok() {}
    }
    path
}

pub(crate) fn open(node: &Node, address: &str) -> Volume {
    let (name, socket) = address.split_once("?socket=").unwrap();
    let socket = inside(node, Path::new(socket));
    Volume::open(&format!("{name}?socket={}", socket.display()))
}

#[test]
fn a_full_state_directory_refuses_what_needs_it_and_serves_what_is_there() {
    let lab = Lab::new();
    let mut target = lab.node("b");
    let mut node = lab.plan("a");
    let state = node.state.clone();
    small_disk(&mut node, &state, 24 * MIB);
    node.start();
    let [disk, more] = ["disk", "more"].map(|name| lab.file(name, 4 * MIB, 1));
    let address = node.attach("pg", &disk, "--group db");
    node.ok(&format!("connect db --to {}", target.address));
    node.equal("db");
    let filled = fill(&node, &state);

    let attach = format!("attach more --backing {} --frontend nbd", more.display());
    let link = format!("connect db --to {} --as other", target.address);
    for line in [&attach, &link, "set volume.queues=2", "detach pg"] {
        let said = node.no(line, "state-full");
        assert!(said.contains("free space"), "`{line}`: {said}");
    }
    assert!(node.group("more").is_none());
    let group = node.group("db").unwrap();
    assert_eq!(group["links"].as_array().unwrap().len(), 1, "{group}");
    assert_eq!(group["volumes"][0]["state"], "served", "{group}");
    // Maps and records have their room already: new regions are written and replicated.
    let mut volume = open(&node, &address);
    for at in 0..4 {
        volume.write(at * MIB, &[0x77; 8192]).unwrap();
    }
    volume.flush().unwrap();
    node.equal("db");
    drop(volume);

    std::fs::remove_file(filled).unwrap();
    node.ok(&attach);
    node.ok("set volume.queues=2");
    node.ok("detach pg");
    let base = target.replicas.join("db.pg.img");
    same(&base, &disk);
    assert!(
        std::fs::read(base).unwrap()[..8192]
            .iter()
            .all(|byte| *byte == 0x77)
    );
    target.alive();
}

#[test]
fn a_target_without_room_for_a_journal_refuses_and_leaves_nothing_behind() {
    let lab = Lab::new();
    let mut source = lab.node("a");
    let disk = lab.file("disk", MIB, 1);
    source.attach("pg", &disk, "--group db");
    let mut target = lab.plan("b");
    let state = target.state.clone();
    small_disk(&mut target, &state, 8 * MIB);
    target.start();
    for _ in 0..2 {
        let said = source.no(
            &format!("connect db --to {}", target.address),
            "peer-refused",
        );
        assert!(
            said.contains("journal") && said.contains("No space"),
            "{said}"
        );
        let left = std::fs::read_dir(inside(&target, &state.join("replicas")))
            .unwrap()
            .count();
        assert_eq!(left, 0, "a replica that was never made is left");
        assert_eq!(std::fs::read_dir(&target.replicas).unwrap().count(), 0);
    }
    assert!(target.group("db").is_none());
    target.alive();
    target.ok("set target.journal-size=16MiB");
}

/// A source and a target whose replica has no room: its base is sparse and its disk is full.
fn pair_with_a_full_base(lab: &Lab) -> (Node, Node, String, PathBuf, PathBuf) {
    let source = lab.node("a");
    let disk = lab.file("disk", 4 * MIB, 1);
    let address = source.attach("pg", &disk, "--group db");
    let mut target = lab.plan("b");
    let replicas = target.replicas.clone();
    small_disk(&mut target, &replicas, 6 * MIB);
    target.start();
    let base = inside(&target, &replicas.join("db.pg.img"));
    File::create(&base).unwrap().set_len(4 << 20).unwrap();
    let room = inside(&target, &replicas.join("room"));
    std::fs::write(&room, vec![1; 4 << 20]).unwrap();
    (source, target, address, base, room)
}

#[test]
fn a_base_that_runs_full_waits_and_says_so_and_goes_on_when_there_is_room() {
    let lab = Lab::new();
    let (source, mut target, address, base, room) = pair_with_a_full_base(&lab);
    target.ok("set target.retry-delay=200ms");
    source.ok(&format!("connect db --to {}", target.address));
    let event = target.event("target-full", "No space");
    let text = event["text"].as_str().unwrap();
    assert!(
        text.contains("db.pg.img") && text.contains("200ms"),
        "{text}"
    );
    let retrying = until("the status says that it is tried again", || {
        let retrying = target.group("db")?["target"]["retrying"].clone();
        (retrying["failures"].as_u64()? > 2).then_some(retrying)
    });
    assert_eq!(retrying["why"], "full");
    assert_eq!(target.group("db").unwrap()["target"]["status"], "retrying");
    let said = target.ctl("status").stdout;
    assert!(
        said.contains("takes no writes") && said.contains("make room"),
        "{said}"
    );
    until("the source hears of it", || {
        let link = source.group("db")?["links"][0].clone();
        (link["target_status"] == "retrying" && link["target_journal_bytes"].as_u64()? > 0)
            .then_some(())
    });
    // The source is not held up.
    let mut volume = Volume::open(&address);
    volume.write(0, &[0x33; 4096]).unwrap();
    volume.flush().unwrap();
    // Whether or not the source is connected just now: nothing is given up for it.
    let said = target.no("promote db --force --yes", "replica-not-ok");
    assert!(said.contains("No space"), "{said}");

    std::fs::remove_file(room).unwrap();
    target.event("target-writable", "db.pg.img");
    until("all is applied", || {
        let target = target.group("db")?["target"].clone();
        (target["data_state"] == "ok" && target["retrying"].is_null()).then_some(())
    });
    source.equal("db");
    same(&base, &lab.path("disk"));
    let given_up = target.ok("events --id target-write-error --json");
    assert!(!given_up.contains("db.pg.img"), "{given_up}");
}

#[test]
fn a_base_that_stays_full_is_given_up_at_the_limit_and_equal_when_there_is_room() {
    let lab = Lab::new();
    let (mut source, mut target, _, base, room) = pair_with_a_full_base(&lab);
    target.ok("set target.retry-limit=2 target.retry-delay=100ms");
    source.ok(&format!("connect db --to {}", target.address));
    let event = target.event("target-write-error", "No space");
    assert!(
        event["text"].as_str().unwrap().contains("db.pg.img"),
        "{event}"
    );
    until("the target says that it is not whole", || {
        let status = target.group("db")?["target"].clone();
        (status["data_state"] != "ok").then_some(())
    });
    // Whether or not the source is connected just now.
    target.no("promote db --force --yes", "replica-not-ok");
    source.alive();
    target.alive();

    std::fs::remove_file(room).unwrap();
    let end = std::time::Instant::now() + crate::lab::LIMIT;
    loop {
        // What failed is told with the next acknowledgement; a mirror that began before misses it.
        source.ctl("mirror start db --kind checksum --wait --timeout 10s");
        if target.group("db").unwrap()["target"]["dirty_bytes"] == 0 {
            break;
        }
        assert!(std::time::Instant::now() < end, "{:?}", target.group("db"));
    }
    source.equal("db");
    same(&base, &lab.path("disk"));
}

#[test]
fn a_backing_that_runs_full_gives_errors_and_goes_on_when_there_is_room() {
    let lab = Lab::new();
    let mut node = lab.plan("a");
    let disks = lab.path("disks");
    small_disk(&mut node, &disks, 4 * MIB);
    node.start();
    let disk = disks.join("disk");
    File::create(inside(&node, &disk))
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    let address = node.attach("pg", &disk, "");
    let filled = fill(&node, &disks);
    let mut volume = Volume::open(&address);
    volume.write(0, &[1; 4096]).unwrap_err();
    node.event("backing-error", "");
    let text = node.ctl("status").stdout;
    assert!(
        text.contains("returns errors") && text.contains("dmesg"),
        "{text}"
    );
    std::fs::remove_file(filled).unwrap();
    let mut volume = Volume::open(&address);
    volume.write(0, &[2; 4096]).unwrap();
    volume.flush().unwrap();
    assert_eq!(volume.read(0, 4096).unwrap(), vec![2; 4096]);
    node.alive();
}
