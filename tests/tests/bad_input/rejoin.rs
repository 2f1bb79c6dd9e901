//! An old source that becomes the target of the newer side: at every moment it is the one or the other.
//!
//! It used to give up what it was before it was sure to become a target. Killed or refused in between, the group was
//! lost to its operator, and the next command sent everything to another file.

use crate::changes::Killer;
use crate::lab::{Lab, MIB, Node, ctl, run, same};
use crate::volume::Volume;
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The way back, as status tells it.
const BACK: &str = "--mirror checksum --yes";

fn device(node: &Node, at: usize) -> String {
    let group = node.group("db").unwrap();
    group["volumes"][at]["device"].as_str().unwrap().to_owned()
}

fn write(node: &Node, seed: u8) {
    let mut volume = Volume::open(&device(node, 0));
    let at = u64::from(seed) * 8192;
    volume.write(at, &[seed; 8192]).unwrap();
    volume.flush().unwrap();
}

/// The target is promoted over its source, which hears of it.
fn promoted_over(source: &Node, target: &Node) {
    target.ok("promote db --frontend nbd --force --yes");
    fenced(source, 0);
}

fn fenced(node: &Node, at: usize) {
    crate::lab::until("the old source is fenced", || {
        let group = node.group("db")?;
        (group["volumes"][at]["state"] == "fenced").then_some(())
    });
}

/// A source `a` with a target `b`, which was promoted over it and has written since. Each has a volume for every disk.
fn superseded(lab: &Lab, disks: &[&str]) -> (Node, Node) {
    let (old, newer) = (lab.node("a"), lab.node("b"));
    for (disk, seed) in disks.iter().zip(1..) {
        old.attach(disk, &lab.file(disk, 2 * MIB, seed), "--group db");
    }
    old.ok(&format!("connect db --to {}", newer.address));
    old.equal("db");
    promoted_over(&old, &newer);
    write(&newer, 3);
    (old, newer)
}

fn back_to(old: &Node, options: &str) -> String {
    format!("connect db --to {} {BACK} {options}", old.address)
}

/// The old source is what it was: it serves what it served, fenced, and its disks are untouched.
fn is_what_it_was(old: &Node, volumes: usize) {
    let group = old.group("db").unwrap();
    assert_eq!(group["role"], "source", "{group}");
    assert_eq!(group["volumes"].as_array().unwrap().len(), volumes);
    for at in 0..volumes {
        assert_eq!(group["volumes"][at]["state"], "fenced", "{group}");
    }
    assert_eq!(group["links"].as_array().unwrap().len(), 1, "{group}");
}

fn says(newer: &Node, words: &str) {
    newer.link("db", &format!("the newer side says '{words}'"), |link| {
        let why = link["last_error"].as_str();
        why.is_some_and(|why| why.contains(words))
    });
}

fn is_target_on(node: &Node, disk: &Path) {
    let group = node.group("db").unwrap();
    assert_eq!(group["role"], "target", "{group}");
    assert_eq!(group["volumes"][0]["backing"], disk.to_str().unwrap());
    assert_eq!(group["volumes"][0]["state"], "replica", "{group}");
    crate::lab::until("the status says what it is worth", || {
        let shown = node.ctl("status").stdout;
        shown.contains("volume pg: replica, data ok").then_some(())
    });
    let left = std::fs::read_dir(node.state.join("groups"))
        .unwrap()
        .count();
    assert_eq!(left, 0, "of the source something is left");
}

#[test]
fn an_old_source_killed_at_any_step_of_its_rejoin_becomes_a_target_on_its_own_disk() {
    let lab = Lab::new();
    let (mut old, mut newer) = superseded(&lab, &["pg"]);
    let disks = [lab.path("pg"), newer.replicas.join("db.pg.img")];
    let mut killed = true;
    let mut number = 0;
    while killed {
        number += 1;
        let [old_disk, new_disk] = [number + 1, number].map(|at| &disks[at % 2]);
        let directories = ["", "groups", "replicas/db"];
        let directories = directories.map(|name| old.state.join(name));
        let killer = Killer::at_change(number, old.pid(), &directories);
        let line = back_to(&old, "");
        let socket = newer.socket();
        let connecting = std::thread::spawn(move || run(ctl(&socket, &line)));
        crate::lab::until("it is a target, or dead", || {
            (killer.has_killed() || connecting.is_finished()).then_some(())
        });
        killed = killer.end();
        if killed {
            old.reap();
            old.start();
        }
        let ran = connecting.join().unwrap();
        assert_eq!(ran.code, Some(0), "{ran:?}");
        newer.equal("db");
        same(old_disk, new_disk);
        is_target_on(&old, old_disk);
        let other = old.replicas.join("db.pg.img");
        assert!(
            other == *old_disk || !other.exists(),
            "another file was made"
        );
        promoted_over(&newer, &old);
        write(&old, u8::try_from(number % 200).unwrap());
        std::mem::swap(&mut newer, &mut old);
    }
    assert!(number > 10, "only {number} changes were seen");
}

/// Promotes the target, which is killed with a change of the given number: true if it came to that. In the end it is
/// promoted.
fn promote_and_kill(target: &mut Node, number: usize) -> bool {
    let directories = ["", "groups", "replicas/db"].map(|name| target.state.join(name));
    let killer = Killer::at_change(number, target.pid(), &directories);
    let ran = target.ctl("promote db --frontend nbd --force --yes");
    let killed = killer.end();
    if !killed {
        assert_eq!(ran.code, Some(0), "{ran:?}");
        return false;
    }
    target.reap();
    target.start();
    crate::lab::until("it is promoted", || {
        let group = target.group("db")?;
        if group["role"] == "target" {
            // It may just be opened, and its source may just have come back.
            target.ctl("promote db --frontend nbd --force --yes");
            return None;
        }
        (group["volumes"][0]["state"] == "served").then_some(())
    });
    true
}

/// What the former source lacks was tracked only after the promotion had served its first write, and not at all if it
/// was killed before: then everything was compared on the way back.
#[test]
fn a_promotion_killed_at_any_step_tracks_what_its_former_source_lacks() {
    let lab = Lab::new();
    let (mut source, mut target) = (lab.node("a"), lab.node("b"));
    source.attach("pg", &lab.file("pg", 2 * MIB, 1), "--group db");
    source.ok(&format!("connect db --to {}", target.address));
    source.equal("db");
    let mut number = 1;
    while promote_and_kill(&mut target, number) {
        let links = target.group("db").unwrap()["links"].clone();
        assert_eq!(links[0]["name"], "former-source", "{number}: {links}");
        assert_eq!(links[0]["dirty_bytes"], 0, "{number}: {links}");
        fenced(&source, 0);
        target.ok(&back_to(&source, ""));
        target.equal("db");
        std::mem::swap(&mut source, &mut target);
        number += 1;
    }
    assert!(number > 5, "only {number} changes were seen");
}

#[test]
fn an_old_source_whose_rejoin_is_refused_stays_what_it_was() {
    let lab = Lab::new();
    let (mut old, mut newer) = superseded(&lab, &["pg", "wal"]);
    let before = ["pg", "wal"].map(|disk| std::fs::read(lab.path(disk)).unwrap());
    let unchanged = |old: &Node| {
        is_what_it_was(old, 2);
        for (disk, before) in ["pg", "wal"].iter().zip(&before) {
            assert!(std::fs::read(lab.path(disk)).unwrap() == *before, "{disk}");
        }
    };
    // A place that is not allowed.
    let elsewhere = lab.path("elsewhere/wal");
    let line = back_to(&old, &format!("--map wal={}", elsewhere.display()));
    newer.no(&line, "target-path-denied");
    unchanged(&old);
    old.event("link-refused", "stays what it was");
    // A disk of its own that is too small for that volume.
    let small = old.replicas.join("small");
    File::create(&small).unwrap().set_len(MIB).unwrap();
    newer.no(
        &back_to(&old, &format!("--map wal={}", small.display())),
        "target-too-small",
    );
    unchanged(&old);
    // A device that somebody has open: it is waited for.
    let open = Volume::open(&device(&old, 1));
    let line = back_to(&old, &format!("--map wal={}", lab.path("wal").display()));
    newer.ok(&line);
    says(&newer, "is open on node a");
    unchanged(&old);
    drop(open);
    newer.equal("db");
    for disk in ["pg", "wal"] {
        same(
            &lab.path(disk),
            &newer.replicas.join(format!("db.{disk}.img")),
        );
    }
    is_target_on(&old, &lab.path("pg"));
    old.alive();
}

#[test]
fn an_old_source_whose_disk_is_busy_or_missing_stays_what_it_was() {
    let lab = Lab::new();
    let (mut old, newer) = superseded(&lab, &["pg"]);
    old.ok("detach pg");
    let disk = lab.path("pg");
    let known = |node: &Node| {
        let group = node.group("db").unwrap();
        assert_eq!(group["role"], "source", "{group}");
        assert_eq!(group["volumes"][0]["backing"], disk.to_str().unwrap());
    };
    let aside: PathBuf = lab.path("aside");
    std::fs::rename(&disk, &aside).unwrap();
    newer.ok(&back_to(&old, ""));
    says(&newer, "cannot be reached");
    known(&old);
    assert!(!disk.exists(), "another file took its place");
    let in_use = File::open(&aside).unwrap();
    in_use.lock().unwrap();
    std::fs::rename(&aside, &disk).unwrap();
    says(&newer, "is in use");
    known(&old);
    drop(in_use);
    let link: Value = newer.equal("db");
    assert_eq!(link["mirror"]["bytes_remaining"], 0, "{link}");
    same(&disk, &newer.replicas.join("db.pg.img"));
    is_target_on(&old, &disk);
    old.alive();
}

/// A reason that may pass, found when the old source was closed already: its devices came and went with each attempt of
/// the newer side.
#[test]
fn an_old_source_whose_rejoin_is_refused_for_now_stays_closed_as_long_as_it_is_tried() {
    let lab = Lab::new();
    let (old, newer) = superseded(&lab, &["pg"]);
    let in_the_way = old.state.join("replicas/db");
    File::create(&in_the_way).unwrap();
    let served = count(&old, "volume-attached");
    newer.ok(&back_to(&old, ""));
    says(&newer, "replicas/db");
    let volume_is = |state: &str| {
        crate::lab::until(&format!("the volume is {state}"), || {
            let group = old.group("db")?;
            (group["volumes"][0]["state"] == state).then_some(group)
        })
    };
    crate::lab::until("the status says why it stays closed", || {
        let group = old.group("db")?;
        let problem = group["problems"][0].to_string();
        let told =
            problem.contains("is to overwrite it, and cannot") && problem.contains("replicas/db");
        told.then_some(())
    });
    volume_is("offline");
    // The newer side gives up: the old source is what it was.
    newer.ok("disconnect db");
    volume_is("fenced");
    assert_eq!(count(&old, "volume-attached"), served + 1, "once");
    newer.ok(&back_to(&old, ""));
    volume_is("offline");
    std::fs::remove_file(&in_the_way).unwrap();
    newer.equal("db");
    is_target_on(&old, &lab.path("pg"));
    assert_eq!(count(&old, "volume-attached"), served + 1, "no more");
}

/// The names of the events of a group.
fn events(node: &Node) -> Vec<String> {
    let page: Value = serde_json::from_str(&node.ok("events --json --limit 500")).unwrap();
    let events = page["events"].as_array().unwrap().iter();
    let names = events.map(|event| event["name"].as_str().unwrap().to_owned());
    names.collect()
}

fn count(node: &Node, name: &str) -> usize {
    events(node).iter().filter(|found| *found == name).count()
}

fn hears_of_a_newer_generation(both_write: bool) {
    let lab = Lab::new();
    let (mut source, target) = (lab.node("a"), lab.node("b"));
    source.attach("pg", &lab.file("pg", 2 * MIB, 1), "--group db");
    let connect = format!("connect db --to {}", target.address);
    source.ok(&connect);
    source.equal("db");
    source.ok("disconnect db");
    crate::lab::until("the target misses its source", || {
        let group = target.group("db")?;
        (group["target"]["connected"] == false).then_some(())
    });
    target.ok("promote db --frontend nbd");
    write(&target, 1);
    if both_write {
        write(&source, 2);
    }
    source.no(&connect, "restore-required");
    source.event("source-fenced", "which follows");
    if both_write {
        source.event("split-brain", "later ones");
    }
    source.stop();
    source.start();
    fenced(&source, 0);
    assert_eq!(count(&source, "split-brain"), usize::from(both_write));
    assert_eq!(count(&source, "source-fenced"), 1);
    source.alive();
}

#[test]
fn a_source_that_hears_of_a_newer_generation_says_so_once() {
    hears_of_a_newer_generation(false);
}

#[test]
fn a_source_that_wrote_after_its_target_was_promoted_says_that_two_wrote() {
    hears_of_a_newer_generation(true);
}

#[test]
fn two_promotions_of_one_group_are_a_split_brain_and_neither_is_overwritten() {
    let lab = Lab::new();
    let (source, mut one, other) = (lab.node("a"), lab.node("b"), lab.node("c"));
    source.attach("pg", &lab.file("pg", 2 * MIB, 1), "--group db");
    for (node, link) in [(&one, "one"), (&other, "two")] {
        source.ok(&format!("connect db --to {} --as {link}", node.address));
    }
    crate::lab::until("both are equal", || {
        let links = source.group("db")?["links"].clone();
        let ok = |at: usize| links[at]["data_state"] == "ok" && links[at]["dirty_bytes"] == 0;
        (ok(0) && ok(1)).then_some(())
    });
    for (node, seed) in [(&one, 1), (&other, 2)] {
        node.ok("promote db --frontend nbd --force --yes");
        write(node, seed);
    }
    let image = |node: &Node| std::fs::read(node.replicas.join("db.pg.img")).unwrap();
    let before = (image(&one), image(&other));
    let line = format!("connect db --to {} {BACK}", other.address);
    one.no(&line, "generation-unknown");
    for node in [&one, &other] {
        node.event("split-brain", "neither the other");
        assert_eq!(count(node, "split-brain"), 1);
        assert_eq!(count(node, "source-fenced"), 0);
    }
    assert!((image(&one), image(&other)) == before);
}
