//! A source whose backing fails for good, under the policy `target`: its target serves the group.

use crate::full::{fill, inside, open, small_disk};
use crate::lab::{Lab, MIB, Node, forget_memory, until};
use crate::volume::Volume;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A node whose volume has more bytes than its disk has room, and its target, equal.
struct Pair {
    node: Node,
    target: Node,
    address: String,
    disk: PathBuf,
}

/// A small disk that is there whether or not a daemon runs.
struct Holder(Child);

impl Holder {
    fn start(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let script = "mount -t tmpfs -o size=4194304 none \"$0\" && echo up && exec sleep 600";
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", script]).arg(dir);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut said = [0; 3];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut said)
            .unwrap();
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pair(lab: &Lab, policy: &str) -> Pair {
    pair_in(lab, policy, None)
}

fn pair_in(lab: &Lab, policy: &str, holder: Option<&Holder>) -> Pair {
    let target = lab.node("b");
    let mut node = lab.plan("a");
    let disks = lab.path("disks");
    match holder {
        Some(holder) => {
            let pid = holder.0.id().to_string();
            let words = ["nsenter", "-U", "-m", "--preserve-credentials", "-t", &pid];
            node.wrapped = words.into_iter().map(OsString::from).collect();
        }
        None => small_disk(&mut node, &disks, 4 * MIB),
    }
    node.start();
    node.ok(&format!("set volume.on-backing-error={policy}"));
    let disk = disks.join("disk");
    let file = File::create(inside(&node, &disk)).unwrap();
    file.set_len(8 << 20).unwrap();
    let address = node.attach("pg", &disk, "--group db");
    node.ok(&format!("connect db --to {}", target.address));
    node.equal("db");
    let mut volume = open(&node, &address);
    volume.write(0, &[0x11; 8192]).unwrap();
    volume.flush().unwrap();
    node.equal("db");
    fill(&node, &disks);
    Pair {
        node,
        target,
        address,
        disk,
    }
}

fn bytes_of(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// What an application wrote, as it should read back.
fn check(volume: &mut Volume, image: &[u8]) {
    for (at, part) in (0..).step_by(1 << 16).zip(image.chunks(1 << 16)) {
        let found = volume.read(at, part.len()).unwrap();
        assert!(found == part, "64 KiB at {at} read otherwise");
    }
}

#[test]
fn a_source_without_its_backing_goes_on_and_its_target_takes_over_with_everything() {
    let lab = Lab::new();
    let Pair {
        mut node,
        mut target,
        address,
        disk,
    } = pair(&lab, "target");
    let mut image = vec![0; 8 << 20];
    image[..8192].fill(0x11);
    let mut volume = open(&node, &address);
    for round in 0..64_u64 {
        let at = usize::try_from(round * 37 % 120 * (64 << 10)).unwrap();
        let value = 0x20 + u8::try_from(round).unwrap();
        volume.write(at as u64, &vec![value; 12288]).unwrap();
        image[at..at + 12288].fill(value);
        let found = volume.read(at as u64, 12288).unwrap();
        assert!(found.iter().all(|byte| *byte == value), "round {round}");
    }
    volume.flush().unwrap();
    node.event("served-by-target", "");
    let group = node.group("db").unwrap();
    assert_eq!(group["served_by"], group["links"][0]["name"], "{group}");
    assert_eq!(group["volumes"][0]["state"], "served-by-target", "{group}");
    check(&mut volume, &image);
    // Nothing is done to the backing any more.
    let before = bytes_of(&inside(&node, &disk));
    volume.write(0, &[0x99; 4096]).unwrap();
    volume.flush().unwrap();
    image[..4096].fill(0x99);
    assert!(bytes_of(&inside(&node, &disk)) == before);
    check(&mut volume, &image);
    for line in [
        "disconnect db",
        "disconnect db --forget --yes",
        "transmit stop db",
        "mirror start db --kind checksum",
    ] {
        let said = node.ctl(line);
        assert!(said.code == Some(2), "`{line}`: {said:?}");
        assert!(said.stderr.contains("lost"), "`{line}`: {said:?}");
    }
    drop(volume);
    target.ok("promote db --force --yes");
    until("the old source hears of it", || {
        let group = node.group("db")?;
        (group["volumes"][0]["state"] == "fenced").then_some(())
    });
    assert!(bytes_of(&target.replicas.join("db.pg.img")) == image);
    node.alive();
    target.alive();
}

#[test]
fn while_its_target_is_away_a_served_group_waits_and_then_goes_on() {
    let lab = Lab::new();
    let Pair {
        mut node,
        mut target,
        address,
        ..
    } = pair(&lab, "target");
    let mut volume = open(&node, &address);
    volume.write(6 * MIB, &[0x31; 8192]).unwrap();
    node.event("served-by-target", "");
    target.kill();
    let reader = std::thread::spawn(move || {
        let found = volume.read(6 * MIB, 8192).unwrap();
        assert!(found.iter().all(|byte| *byte == 0x31));
        volume.write(0, &[0x32; 4096]).unwrap();
        volume.flush().unwrap();
        volume.read(0, 4096).unwrap()
    });
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(!reader.is_finished(), "there is nothing else to read from");
    target.start();
    assert!(reader.join().unwrap().iter().all(|byte| *byte == 0x32));
    node.alive();
}

#[test]
fn a_frozen_group_is_handed_to_its_target_by_the_setting() {
    let lab = Lab::new();
    let Pair {
        node,
        target: _target,
        address,
        ..
    } = pair(&lab, "freeze");
    let mut volume = open(&node, &address);
    let writer = std::thread::spawn(move || {
        volume.write(6 * MIB, &[0x41; 8192]).unwrap();
        volume.read(6 * MIB, 8192).unwrap()
    });
    node.event("volume-frozen", "");
    assert!(!writer.is_finished());
    node.ok("set volume.on-backing-error=target");
    assert!(writer.join().unwrap().iter().all(|byte| *byte == 0x41));
}

/// The backing is as it was, and looks good enough to be served.
#[test]
fn a_daemon_that_was_killed_goes_on_where_its_target_is() {
    let lab = Lab::new();
    let holder = Holder::start(&lab.path("disks"));
    let Pair {
        mut node,
        target,
        address,
        ..
    } = pair_in(&lab, "target", Some(&holder));
    let mut volume = open(&node, &address);
    volume.write(6 * MIB, &[0x61; 8192]).unwrap();
    node.event("served-by-target", "");
    // What the backing has room for, and the target alone gets.
    volume.write(0, &[0x62; 8192]).unwrap();
    volume.flush().unwrap();
    drop(volume);
    let serves = |node: &Node, what: &str| {
        until(what, || {
            let group = node.group("db")?;
            let state = &group["volumes"][0]["state"];
            let up = group["links"][0]["connection"] == "connected";
            (state == "served-by-target" && up).then_some(())
        });
    };
    node.kill();
    node.start();
    serves(&node, "it goes on after a kill");
    let address = node.group("db").unwrap()["volumes"][0]["device"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut volume = open(&node, &address);
    assert!(
        volume
            .read(0, 8192)
            .unwrap()
            .iter()
            .all(|byte| *byte == 0x62)
    );
    assert!(
        volume
            .read(6 * MIB, 8192)
            .unwrap()
            .iter()
            .all(|byte| *byte == 0x61)
    );
    volume.write(0, &[0x63; 4096]).unwrap();
    volume.flush().unwrap();
    drop(volume);
    // The host restarts: the memory of the log is gone, what the target has is all that there is.
    node.kill();
    assert!(forget_memory(&node.state) > 0);
    node.start();
    serves(&node, "it goes on after a restart of the host");
    let mut volume = open(&node, &address);
    assert!(
        volume
            .read(0, 4096)
            .unwrap()
            .iter()
            .all(|byte| *byte == 0x63)
    );
    assert!(
        volume
            .read(4096, 4096)
            .unwrap()
            .iter()
            .all(|byte| *byte == 0x62)
    );
    volume.write(4096, &[0x64; 4096]).unwrap();
    volume.flush().unwrap();
    assert!(
        volume
            .read(4096, 4096)
            .unwrap()
            .iter()
            .all(|byte| *byte == 0x64)
    );
    drop(volume);
    node.stop();
    node.start();
    serves(&node, "it goes on after a stop");
    let replica = bytes_of(&target.replicas.join("db.pg.img"));
    assert!(replica[..4096].iter().all(|byte| *byte == 0x63));
    assert!(replica[4096..8192].iter().all(|byte| *byte == 0x64));
}

#[test]
fn without_a_target_that_can_serve_the_group_waits_and_says_why() {
    let lab = Lab::new();
    let Pair {
        mut node,
        mut target,
        address,
        ..
    } = pair(&lab, "target");
    target.kill();
    let mut volume = open(&node, &address);
    let writer = std::thread::spawn(move || volume.write(6 * MIB, &[0x51; 8192]));
    node.event("not-served-by-target", "not connected");
    assert!(!writer.is_finished());
    target.start();
    writer.join().unwrap().unwrap();
    node.event("served-by-target", "");
    node.alive();
}
