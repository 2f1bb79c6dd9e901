//! What was recorded and is not there any more, or is older than it should be.

use crate::damage::{copy, flip};
use crate::lab::{Lab, MIB, Node, forget_memory, same, until};
use crate::records::set_back;
use crate::volume::Volume;

const LEN: u64 = 8 * MIB;

/// A source and a target that are equal.
fn pair(lab: &Lab) -> (Node, Node) {
    let (source, target) = (lab.node("a"), lab.node("b"));
    let disk = lab.file("disk", LEN, 1);
    source.attach("pg", &disk, "--group db");
    source.ok(&format!("connect db --to {}", target.address));
    source.equal("db");
    (source, target)
}

fn open(source: &Node) -> Volume {
    let device = source.group("db").unwrap()["volumes"][0]["device"].clone();
    Volume::open(device.as_str().unwrap())
}

fn write(volume: &mut Volume, blocks: std::ops::Range<u64>, mark: u8) {
    for block in blocks {
        volume.write(block * 4096, &[mark; 4096]).unwrap();
    }
    volume.flush().unwrap();
}

fn is_equal(lab: &Lab, target: &Node) {
    same(&target.replicas.join("db.pg.img"), &lab.path("disk"));
}

#[test]
fn a_journal_that_rots_in_the_middle_is_told_and_what_it_held_is_sent_again() {
    let lab = Lab::new();
    let (mut source, mut target) = pair(&lab);
    target.ok("target pause db");
    let mut volume = open(&source);
    for round in 0..16 {
        write(&mut volume, round * 16..round * 16 + 16, 0x40);
        // A batch of its own each: the source has its acknowledgement.
        source.link("db", "it is acknowledged", |link| link["queue"]["ops"] == 0);
    }
    target.kill();
    // Where batches lie: docs/format/journal.md. The middle of what was received.
    let journal = target.state.join("replicas/db/journal");
    let bytes = std::fs::read(&journal).unwrap();
    let marked: Vec<usize> = (0..bytes.len() / 4096)
        .filter(|block| {
            bytes[block * 4096..(block + 1) * 4096]
                .iter()
                .all(|byte| *byte == 0x40)
        })
        .collect();
    assert!(
        marked.len() >= 128,
        "{} blocks are in the journal",
        marked.len()
    );
    let middle = u64::try_from(marked[marked.len() / 2]).unwrap();
    flip(&journal, middle * 4096 + 100, 8);
    target.start();
    target.event("journal-corrupt", "count as different");
    target.ok("target resume db");
    let link = source.equal("db");
    let sent = link["mirror"]["bytes_sent"].as_u64().unwrap();
    assert!(
        sent <= MIB + (64 << 10),
        "only what the journal held is sent again: {sent}"
    );
    is_equal(&lab, &target);
    source.alive();
    target.alive();
}

#[test]
fn without_any_map_everything_is_compared_and_only_what_differs_is_sent() {
    let lab = Lab::new();
    let (mut source, mut target) = pair(&lab);
    source.ok("transmit stop db");
    let mut volume = open(&source);
    write(&mut volume, 100..104, 0x41);
    drop(volume);
    source.stop();
    target.stop();
    let mut damaged = 0;
    for (dir, words) in [
        (source.state.join("groups"), ["intent", "link-"]),
        (target.state.join("replicas/db"), ["map", "journal"]),
    ] {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if words.iter().any(|word| name.contains(word)) {
                let len = std::fs::metadata(&path).unwrap().len();
                flip(&path, 0, usize::try_from(len.min(16 << 10)).unwrap());
                damaged += 1;
            }
        }
    }
    assert_eq!(
        damaged, 4,
        "both maps of the source, map and journal of the target"
    );
    target.start();
    source.start();
    source.event("intent-map-unreadable", "");
    target.event("journal-corrupt", "compared");
    source.ok("transmit start db");
    let link = source.equal("db");
    let sent = link["mirror"]["bytes_sent"].as_u64().unwrap();
    assert!((1..=128 << 10).contains(&sent), "{link}");
    is_equal(&lab, &target);
}

#[test]
fn a_target_set_back_to_an_old_backup_becomes_equal_again() {
    let lab = Lab::new();
    let (mut source, mut target) = pair(&lab);
    target.stop();
    let backup = lab.path("backup");
    copy(&target.state, &backup);
    let base = target.replicas.join("db.pg.img");
    let old = std::fs::read(&base).unwrap();
    target.start();
    let mut volume = open(&source);
    write(&mut volume, 0..300, 0x42);
    source.equal("db");
    target.stop();
    set_back(&target, &backup);
    std::fs::write(&base, old).unwrap();
    target.start();
    write(&mut volume, 300..310, 0x43);
    let link = source.equal("db");
    is_equal(&lab, &target);
    assert!(link["connected_since"].is_string());
    // Only the data was set back, and the target cannot know: an operator says so.
    target.stop();
    std::fs::write(&base, vec![0; usize::try_from(LEN).unwrap()]).unwrap();
    target.start();
    source.equal("db");
    source.ok("mirror start db --kind checksum --wait");
    is_equal(&lab, &target);
    source.alive();
}

/// The names that a source gave after its backup was taken mean something else when it gives them again.
#[test]
fn a_source_set_back_to_an_old_backup_never_takes_the_targets_future_for_its_own() {
    let lab = Lab::new();
    let (mut source, mut target) = pair(&lab);
    source.stop();
    let backup = lab.path("backup");
    copy(&source.state, &backup);
    let old = std::fs::read(lab.path("disk")).unwrap();
    source.start();
    let mut volume = open(&source);
    write(&mut volume, 0..64, 0x44);
    source.equal("db");
    drop(volume);
    source.stop();
    assert!(
        forget_memory(&source.state) > 0,
        "the source's log is in memory"
    );
    set_back(&source, &backup);
    std::fs::write(lab.path("disk"), old).unwrap();
    target.stop();
    source.start();
    let mut volume = open(&source);
    // As many writes as the target has seen and more, elsewhere: their names are the same.
    write(&mut volume, 1000..1200, 0x45);
    target.start();
    source.equal("db");
    is_equal(&lab, &target);
    source.alive();
    target.alive();
}

#[test]
fn a_target_that_is_gone_for_a_while_costs_nothing_but_time() {
    let lab = Lab::new();
    let (mut source, mut target) = pair(&lab);
    let mut volume = open(&source);
    let before = source.equal("db")["mirror"].clone();
    for round in 1..=3 {
        target.kill();
        write(&mut volume, 0..8, round);
        source.link("db", "it is down", |link| link["connection"] != "connected");
        target.start();
        assert_eq!(
            source.equal("db")["mirror"],
            before,
            "something was mirrored"
        );
        until("the target is equal", || {
            let base = std::fs::read(target.replicas.join("db.pg.img")).unwrap();
            (base[0] == round).then_some(())
        });
    }
    is_equal(&lab, &target);
    source.alive();
}
