//! Places at a target that may not be written.

use crate::damage::content;
use crate::lab::{Lab, MIB, Node, until};
use std::path::Path;

fn source_of(lab: &Lab, name: &str, group: &str, len: u64) -> Node {
    let node = lab.node(name);
    let disk = lab.file(&format!("disk-{name}"), len, 3);
    node.attach("pg", &disk, &format!("--group {group}"));
    node
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_place_that_may_not_be_written_is_refused_and_nothing_is_made_or_changed() {
    let lab = Lab::new();
    let (mut source, mut target) = (source_of(&lab, "a", "db", 2 * MIB), lab.node("b"));
    let inside = target.replicas.clone();
    let small = lab.file("b/replicas/small", MIB, 4);
    let ext4 = lab.file("b/replicas/ext4", 2 * MIB, 0);
    let mut bytes = std::fs::read(&ext4).unwrap();
    bytes[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    std::fs::write(&ext4, bytes).unwrap();
    std::fs::create_dir(inside.join("dir")).unwrap();
    let outside = lab.file("outside", 2 * MIB, 5);
    let before = content(&lab.path(""));
    let dir = inside.display();
    for (path, code, words) in [
        (
            outside.display().to_string(),
            "target-path-denied",
            "--allow-replica-dir",
        ),
        ("/dev/null".to_owned(), "target-path-denied", "/dev/null"),
        (
            format!("{dir}/../../outside"),
            "target-path-denied",
            "plain absolute path",
        ),
        (dir.to_string(), "target-path-denied", "replicas"),
        (small.display().to_string(), "target-too-small", "2MiB"),
        (ext4.display().to_string(), "target-holds-data", "ext4"),
        (format!("{dir}/dir"), "peer-refused", "dir"),
        (format!("{dir}/none/x.img"), "peer-refused", "none/"),
    ] {
        let line = format!("connect db --to {} --map pg={path}", target.address);
        let said = source.no(&line, code);
        assert!(said.contains(words), "{path}: {said}");
        assert_eq!(
            source.group("db").unwrap()["links"]
                .as_array()
                .unwrap()
                .len(),
            0
        );
        assert!(target.group("db").is_none());
        target.alive();
    }
    let strange = format!("connect db --to {} --map wal={dir}/x.img", target.address);
    source.no(&strange, "no-such-volume");
    assert!(content(&inside) == content_below(&before, &inside));
    assert_eq!(std::fs::read(&outside).unwrap().len(), 2 << 20);
    assert_eq!(names(&target.state.join("replicas")), Vec::<String>::new());
    // What may be overwritten when told to, is.
    let line = format!(
        "connect db --to {} --map pg={} --overwrite --yes",
        target.address,
        ext4.display()
    );
    source.ok(&line);
    source.equal("db");
    assert!(std::fs::read(&ext4).unwrap() == std::fs::read(lab.path("disk-a")).unwrap());
}

fn content_below(
    all: &[(std::path::PathBuf, Vec<u8>)],
    dir: &Path,
) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    all.iter()
        .filter(|(path, _)| path.starts_with(dir))
        .cloned()
        .collect()
}

#[test]
fn an_allowed_directory_that_does_not_exist_is_named_and_not_made() {
    let lab = Lab::new();
    let mut source = source_of(&lab, "a", "db", MIB);
    let mut target = lab.plan("b");
    target.replicas = lab.path("b/elsewhere");
    target.start();
    let said = source.no(
        &format!("connect db --to {}", target.address),
        "peer-refused",
    );
    assert!(said.contains("elsewhere"), "{said}");
    assert!(!target.replicas.exists());
}

#[test]
fn one_place_takes_one_link_and_one_volume() {
    let lab = Lab::new();
    let (mut source, mut target) = (source_of(&lab, "a", "db", MIB), lab.node("b"));
    let mut other = source_of(&lab, "c", "web", MIB);
    let base = target.replicas.join("shared.img");
    let map = format!("--to {} --map pg={}", target.address, base.display());
    source.ok(&format!("connect db {map}"));
    source.equal("db");
    // Another group of another node, by the same name and by another name of the same file.
    let said = other.no(&format!("connect web {map}"), "target-path-taken");
    assert!(
        said.contains("shared.img") && said.contains("in use"),
        "{said}"
    );
    let alias = target.replicas.join("alias.img");
    std::os::unix::fs::symlink(&base, &alias).unwrap();
    let line = format!(
        "connect web --to {} --map pg={}",
        target.address,
        alias.display()
    );
    other.no(&line, "target-path-taken");
    // Another link of the same group, and another source of a group of the same name.
    let said = source.no(
        &format!("connect db --to {} --as second", target.address),
        "target-path-taken",
    );
    assert!(
        said.contains("link1") && said.contains("one link"),
        "{said}"
    );
    let disk = lab.file("disk-x", MIB, 9);
    other.attach("x", &disk, "--group db");
    other.no(
        &format!("connect db --to {}", target.address),
        "target-path-taken",
    );
    // Two volumes of one group.
    let disk = lab.file("disk-y", MIB, 9);
    // A refused link leaves its log to the group: its volumes are attached together again.
    let attach = format!(
        "attach y --backing {} --group web --frontend nbd",
        disk.display()
    );
    other.no(&attach, "group-busy");
    other.ok("detach pg");
    other.attach("pg", &lab.path("disk-c"), "--group web");
    other.ok(&attach);
    let both = format!(
        "connect web --to {} --map pg={dir}/one.img --map y={dir}/one.img",
        target.address,
        dir = target.replicas.display()
    );
    let said = other.no(&both, "target-path-denied");
    assert!(said.contains("one.img"), "{said}");
    let link = source.equal("db");
    assert_eq!(
        link["connection"], "connected",
        "the first link is not disturbed: {link}"
    );
    assert!(std::fs::read(&base).unwrap() == std::fs::read(lab.path("disk-a")).unwrap());
    assert!(target.group("web").is_none());
    target.alive();
}

/// A target that was never promoted answered `forget` with no-such-group: nothing could make it let go of a replica.
#[test]
fn a_replica_is_forgotten_when_told_and_its_data_is_left() {
    let lab = Lab::new();
    let (mut source, mut target) = (source_of(&lab, "a", "db", MIB), lab.node("b"));
    source.ok(&format!("connect db --to {}", target.address));
    source.equal("db");
    let said = target.no("forget db --yes", "group-busy");
    assert!(
        said.contains("node a") && said.contains("blkctl disconnect db"),
        "{said}"
    );
    source.ok("disconnect db --forget --yes");
    until("the target sees it", || {
        (target.group("db")?["target"]["connected"] == false).then_some(())
    });
    let base = target.replicas.join("db.pg.img");
    let before = std::fs::read(&base).unwrap();
    target.ok("forget db --yes");
    target.event("target-forgotten", "");
    assert!(target.group("db").is_none());
    target.no("forget db --yes", "no-such-group");
    assert_eq!(names(&target.state.join("replicas")), Vec::<String>::new());
    assert!(
        std::fs::read(&base).unwrap() == before,
        "its data was touched"
    );
    target.stop();
    target.start();
    assert!(
        target.group("db").is_none(),
        "it comes back after a restart"
    );
    source.ok(&format!(
        "connect db --to {} --mirror checksum",
        target.address
    ));
    source.equal("db");
    source.no("forget db --yes", "group-busy");
}

/// A name among devices that is none was made: a file in memory, gone with the next boot.
#[test]
fn a_missing_device_is_named_and_not_made() {
    let lab = Lab::new();
    let mut source = source_of(&lab, "a", "db", MIB);
    let mut target = lab.plan("b");
    target.replicas = "/dev".into();
    target.start();
    let missing = "/dev/no-such-disk-of-blkrep";
    let line = format!("connect db --to {} --map pg={missing}", target.address);
    let ran = source.ctl(&line);
    let made = Path::new(missing).exists();
    if made {
        std::fs::remove_file(missing).unwrap();
    }
    assert!(!made, "{ran:?}");
    let said = source.no(&line, "target-path-denied");
    assert!(
        said.contains(missing) && said.contains("not exist"),
        "{said}"
    );
    assert!(target.group("db").is_none());
    target.alive();
}

/// A link to a disk that is not connected was replaced by a file, and removed with it when that was too small.
#[test]
fn a_name_that_leads_nowhere_is_neither_replaced_nor_removed() {
    let lab = Lab::new();
    let (mut source, target) = (source_of(&lab, "a", "db", MIB), lab.node("b"));
    let name = target.replicas.join("disk");
    std::os::unix::fs::symlink(lab.path("unplugged"), &name).unwrap();
    let map = format!("--map pg={}", name.display());
    let said = source.no(
        &format!("connect db --to {} {map}", target.address),
        "peer-refused",
    );
    assert!(said.contains("exist"), "{said}");
    assert!(name.is_symlink() && !name.exists());
}
