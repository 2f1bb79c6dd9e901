//! Records in the state directory that are damaged or of a newer version.

use crate::damage::{GROUP_COPIES, REPLICA_COPIES, content, copy, flip, make_newer, newest};
use crate::lab::{Lab, MIB, Node, pattern, until};
use crate::volume::Volume;
use std::path::{Path, PathBuf};

fn record_of(node: &Node, group: &str) -> PathBuf {
    node.state.join(format!("groups/{group}.group"))
}

fn replica_of(node: &Node, group: &str) -> PathBuf {
    node.state.join(format!("replicas/{group}/superblock"))
}

/// The one sentence of a group's worst problem and its advice.
fn problem(node: &Node, group: &str) -> (String, String) {
    let found = node.group(group).unwrap()["problems"][0].clone();
    let text = |field: &str| found[field].as_str().unwrap().to_owned();
    (text("what"), text("action"))
}

/// A source with two groups and a target; both are equal and stopped.
fn pair(lab: &Lab) -> (Node, Node) {
    let (mut source, mut target) = (lab.node("a"), lab.node("b"));
    for group in ["db", "web"] {
        let disk = lab.file(&format!("disk-{group}"), 2 * MIB, 7);
        source.attach(&format!("{group}1"), &disk, &format!("--group {group}"));
        source.ok(&format!("connect {group} --to {}", target.address));
        source.equal(group);
    }
    source.stop();
    target.stop();
    (source, target)
}

#[test]
fn one_bad_copy_of_a_source_groups_record_comes_back_and_is_told() {
    let lab = Lab::new();
    let (mut source, mut target) = pair(&lab);
    target.start();
    let record = record_of(&source, "db");
    for bad in [
        newest(&record, GROUP_COPIES),
        GROUP_COPIES[0],
        GROUP_COPIES[1],
    ] {
        flip(&record, bad + 40, 4);
        source.start();
        source.equal("db");
        source.event("state-repaired", "db");
        source.stop();
    }
}

#[test]
fn a_source_group_whose_record_is_lost_is_refused_and_others_are_served() {
    let lab = Lab::new();
    let (mut source, mut target) = pair(&lab);
    let record = record_of(&source, "db");
    GROUP_COPIES.iter().for_each(|at| flip(&record, at + 40, 4));
    let damaged = std::fs::read(&record).unwrap();
    source.start();
    target.start();
    source.equal("web");
    let (what, action) = problem(&source, "db");
    assert!(what.contains("db1") && what.contains("corrupt"), "{what}");
    assert!(
        action.contains("backup") && action.contains("blkctl forget"),
        "{action}"
    );
    source.event("volume-attach-failed", "corrupt");
    let said = source.no(
        "attach db1 --group db --frontend nbd --backing /dev/null",
        "volume-exists",
    );
    assert!(said.contains("disk-db"), "{said}");
    let again = format!(
        "attach db1 --group db --frontend nbd --backing {}",
        lab.path("disk-db").display()
    );
    source.no(&again, "state-corrupt");
    source.no(&format!("connect db --to {}", target.address), "group-busy");
    assert!(
        std::fs::read(&record).unwrap() == damaged,
        "what cannot be read is left alone"
    );
    // What the status says helps: and the target is not overwritten without being told to.
    source.ok("forget db --yes");
    source.ok(&again);
    let said = source.no(
        &format!("connect db --to {}", target.address),
        "generation-unknown",
    );
    assert!(said.contains("--mirror checksum --yes"), "{said}");
    source.ok(&format!(
        "connect db --to {} --mirror checksum --yes",
        target.address
    ));
    let link = source.equal("db");
    assert_eq!(link["mirror"]["bytes_sent"], 0, "{link}");
}

#[test]
fn records_of_a_newer_version_are_refused_and_left_alone() {
    let lab = Lab::new();
    let (mut source, mut target) = pair(&lab);
    let (record, replica) = (record_of(&source, "db"), replica_of(&target, "db"));
    make_newer(&record, &GROUP_COPIES[..1]);
    make_newer(&replica, &REPLICA_COPIES[..1]);
    let before = [&record, &replica].map(|path| std::fs::read(path).unwrap());
    source.start();
    target.start();
    source.equal("web");
    for (node, words) in [(&source, "db1"), (&target, "replica")] {
        let (what, action) = problem(node, "db");
        assert!(what.contains(words) && what.contains("version 9"), "{what}");
        assert!(action.contains("newer"), "{action}");
    }
    target.event("state-newer", "version 9");
    target.no("promote db", "state-newer");
    target.no("target pause db", "state-newer");
    // A source that still knows the target does not overwrite what the target cannot read.
    let aside = lab.path("aside");
    std::fs::rename(&record, &aside).unwrap();
    source.stop();
    std::fs::copy(&aside, &record).unwrap();
    GROUP_COPIES[..1]
        .iter()
        .for_each(|at| flip(&record, at + 8, 4));
    source.start();
    source.link("db", "the refusal is told", |link| {
        link["last_error"]
            .as_str()
            .is_some_and(|why| why.contains("version 9"))
    });
    source.stop();
    target.stop();
    assert!(std::fs::read(&aside).unwrap() == before[0]);
    assert!(std::fs::read(&replica).unwrap() == before[1]);
}

#[test]
fn one_bad_copy_of_a_replicas_record_comes_back_and_two_are_never_written_over() {
    let lab = Lab::new();
    let (mut source, mut target) = pair(&lab);
    let replica = replica_of(&target, "db");
    flip(&replica, newest(&replica, REPLICA_COPIES) + 40, 4);
    target.start();
    target.event("state-repaired", "corrupt");
    source.start();
    source.equal("db");
    source.stop();
    target.stop();

    REPLICA_COPIES
        .iter()
        .for_each(|at| flip(&replica, at + 40, 4));
    let files = replica.parent().unwrap();
    let before = content(files);
    let base = target.replicas.join("db.db1.img");
    target.start();
    source.start();
    source.equal("web");
    source.link("db", "the refusal is told", |link| {
        link["last_error"]
            .as_str()
            .is_some_and(|why| why.contains("corrupt"))
    });
    let group = target.group("db").unwrap();
    assert_eq!(group["target"]["status"], "not-loaded", "{group}");
    let (what, action) = problem(&target, "db");
    assert!(what.contains("corrupt"), "{what}");
    assert!(action.contains("forget"), "{action}");
    target.event("state-corrupt", "corrupt");
    target.no("promote db", "state-corrupt");
    assert!(
        content(files) == before,
        "what cannot be read was written over"
    );
    // Forgotten, as it is told, the source makes it anew.
    target.ok("forget db --yes");
    source.equal("db");
    until("the replica has every byte", || {
        (std::fs::read(&base).unwrap() == std::fs::read(lab.path("disk-db")).unwrap()).then_some(())
    });
}

#[test]
fn a_damaged_volume_table_is_survived_once_and_then_refused_with_what_to_do() {
    let lab = Lab::new();
    let mut node = lab.node("a");
    let disk = lab.file("disk", MIB, 5);
    node.attach("pg", &disk, "");
    node.attach("wal", &lab.file("wal", MIB, 6), "");
    node.stop();
    let tables = ["table.a", "table.b"].map(|name| node.state.join(name));
    let whole = tables.clone().map(|path| std::fs::read(path).unwrap());
    std::fs::write(&tables[0], b"").unwrap();
    node.start();
    node.event("state-corrupt", "table.a");
    assert!(node.group("pg").is_some());
    node.stop();

    tables
        .iter()
        .for_each(|path| std::fs::write(path, b"rubbish\n").unwrap());
    let said = node.refused_start();
    assert!(
        said.contains("both copies") && said.contains("backup"),
        "{said}"
    );
    assert!(
        tables
            .iter()
            .all(|path| std::fs::read(path).unwrap() == b"rubbish\n")
    );

    let newer = format!("blkrep-table 9 9 {:08x}\n{{}}", crc32fast::hash(b"{}"));
    std::fs::write(&tables[1], &newer).unwrap();
    let said = node.refused_start();
    assert!(
        said.contains("version 9") && said.contains("newer"),
        "{said}"
    );
    assert!(std::fs::read(&tables[1]).unwrap() == newer.as_bytes());

    tables
        .iter()
        .zip(whole)
        .for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    node.start();
    let address = node.group("pg").unwrap()["volumes"][0]["device"].clone();
    let bytes = Volume::open(address.as_str().unwrap())
        .read(0, 512)
        .unwrap();
    assert!(
        bytes
            .iter()
            .zip(0..)
            .all(|(byte, at)| *byte == pattern(at, 5))
    );
}

/// The volume table of a node where a group was promoted is lost: its former source comes back and connects. Nothing
/// tells the node that it serves the group but the record of the replica it was, and that must be enough.
#[test]
fn a_promoted_copy_is_not_overwritten_by_its_former_source_even_if_the_table_is_lost() {
    let lab = Lab::new();
    let (mut source, mut target) = pair(&lab);
    target.start();
    target.ok("promote db --frontend nbd");
    let address = target.group("db").unwrap()["volumes"][0]["device"].clone();
    let mut volume = Volume::open(address.as_str().unwrap());
    volume.write(0, &[0xaa; 4096]).unwrap();
    volume.flush().unwrap();
    drop(volume);
    target.stop();
    for table in ["table.a", "table.b"] {
        std::fs::remove_file(target.state.join(table)).unwrap();
    }
    target.start();
    source.start();
    source.equal("web");
    let link = source.link("db", "the refusal is told", |link| {
        link["connection"] == "refused"
    });
    assert!(
        link["refusal"].as_str().unwrap().contains("promoted"),
        "{link}"
    );
    let base = std::fs::read(target.replicas.join("db.db1.img")).unwrap();
    assert!(
        base[..4096].iter().all(|byte| *byte == 0xaa),
        "newer data was overwritten"
    );
}

#[test]
fn a_replica_whose_disk_is_missing_is_not_made_anew_and_comes_back_with_it() {
    let lab = Lab::new();
    let (mut source, mut target) = pair(&lab);
    let base = target.replicas.join("db.db1.img");
    let aside = lab.path("aside");
    std::fs::rename(&base, &aside).unwrap();
    target.start();
    source.start();
    source.equal("web");
    let link = source.link("db", "the refusal is told", |link| {
        !link["last_error"].is_null()
    });
    assert!(
        link["last_error"].as_str().unwrap().contains("db.db1.img"),
        "{link}"
    );
    assert!(problem(&target, "db").0.contains("db.db1.img"));
    assert!(
        !base.exists(),
        "another file took the place of the missing one"
    );
    std::fs::rename(&aside, &base).unwrap();
    let link = source.equal("db");
    assert_eq!(link["mirror"]["bytes_sent"], 0, "{link}");
}

/// Puts the state of a node back to what it was.
pub(crate) fn set_back(node: &Node, from: &Path) {
    std::fs::remove_dir_all(&node.state).unwrap();
    copy(from, &node.state);
}
