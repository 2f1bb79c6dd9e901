//! A link in `sync` mode is lost: what its writers see under each policy, and what its source knows afterwards.

use crate::lab::{Lab, MIB, Node, same, until};
use crate::volume::Volume;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A volume whose target has everything, in `sync` mode, with this policy.
struct Pair {
    source: Node,
    target: Node,
    address: String,
    disk: PathBuf,
}

fn in_step(lab: &Lab, policy: &str) -> Pair {
    let (source, target) = (lab.node("a"), lab.node("b"));
    let disk = lab.file("disk", 2 * MIB, 1);
    let address = source.attach("pg", &disk, "--group db");
    let options = format!("--to {} --mode sync {policy} --wait", target.address);
    source.ok(&format!("connect db {options}"));
    let pair = Pair {
        source,
        target,
        address,
        disk,
    };
    pair.until_protection("kept");
    pair.source.event("link-protected", "");
    pair
}

impl Pair {
    fn protection(&self) -> String {
        let group = self.source.group("db").unwrap();
        group["links"][0]["protection"].as_str().unwrap().to_owned()
    }

    fn until_protection(&self, wanted: &str) {
        let what = format!("protection {wanted}");
        until(&what, || (self.protection() == wanted).then_some(()));
    }

    fn replica(&self) -> PathBuf {
        self.target.replicas.join("db.pg.img")
    }

    /// A writer of its own; what its write came to.
    fn writer(&self, byte: u8) -> std::thread::JoinHandle<std::io::Result<()>> {
        let mut volume = Volume::open(&self.address);
        std::thread::spawn(move || volume.write(4096, &[byte; 4096]))
    }
}

#[test]
fn under_continue_writes_wait_a_moment_then_complete_and_that_is_known_after_a_kill() {
    let lab = Lab::new();
    let mut pair = in_step(&lab, "--on-loss continue --loss-timeout 700ms");
    let mut volume = Volume::open(&pair.address);
    pair.target.kill();
    let begun = Instant::now();
    volume.write(0, &[7; 4096]).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(600), "it waited");
    assert_eq!(pair.protection(), "degraded");
    pair.source.event("link-degraded", "");
    pair.source.kill();
    pair.source.start();
    assert_eq!(pair.protection(), "degraded", "it is on record");
    let status = pair.source.ctl("status db").stdout;
    assert!(status.contains("is degraded"), "{status}");
    pair.target.start();
    pair.until_protection("kept");
    same(&pair.disk, &pair.replica());
}

#[test]
fn under_block_writes_wait_for_the_link_and_go_on_when_it_is_back() {
    let lab = Lab::new();
    let mut pair = in_step(&lab, "--on-loss block");
    pair.target.kill();
    let writer = pair.writer(9);
    pair.until_protection("waiting");
    std::thread::sleep(Duration::from_secs(3));
    assert!(!writer.is_finished(), "for as long as it takes");
    let status = pair.source.ctl("status db").stdout;
    assert!(status.contains("--on-loss continue"), "{status}");
    pair.target.start();
    writer.join().unwrap().unwrap();
    pair.until_protection("kept");
    same(&pair.disk, &pair.replica());
}

#[test]
fn an_operator_lets_blocked_writes_go_on_without_the_link() {
    let lab = Lab::new();
    let mut pair = in_step(&lab, "--on-loss block");
    pair.target.kill();
    let writer = pair.writer(9);
    pair.until_protection("waiting");
    pair.source.ok("link set db --on-loss continue");
    writer.join().unwrap().unwrap();
    pair.until_protection("degraded");
    pair.source.event("link-changed", "continue");
}

#[test]
fn a_daemon_whose_writers_are_blocked_can_be_stopped() {
    let lab = Lab::new();
    let mut pair = in_step(&lab, "--on-loss block");
    pair.target.kill();
    let writer = pair.writer(9);
    pair.until_protection("waiting");
    pair.source.stop();
    writer.join().unwrap().unwrap_err();
    pair.target.start();
    pair.source.start();
    pair.until_protection("kept");
    same(&pair.disk, &pair.replica());
}

#[test]
fn under_fail_writes_get_errors_and_reads_do_not_until_the_link_is_back() {
    let lab = Lab::new();
    let mut pair = in_step(&lab, "--on-loss fail --loss-timeout 0s");
    let mut volume = Volume::open(&pair.address);
    let before = volume.read(8192, 4096).unwrap();
    pair.target.kill();
    pair.until_protection("waiting");
    volume.write(8192, &[7; 4096]).unwrap_err();
    volume.flush().unwrap_err();
    assert_eq!(
        volume.read(8192, 4096).unwrap(),
        before,
        "nothing was written"
    );
    pair.target.start();
    pair.until_protection("kept");
    volume.write(8192, &[8; 4096]).unwrap();
    volume.flush().unwrap();
    same(&pair.disk, &pair.replica());
}

#[test]
fn a_mode_and_a_policy_are_changed_at_once_and_what_is_no_policy_is_refused() {
    let lab = Lab::new();
    let mut pair = in_step(&lab, "");
    pair.source.ok("link set db --mode async");
    pair.until_protection("not-asked");
    pair.target.kill();
    let mut volume = Volume::open(&pair.address);
    volume.write(0, &[1; 4096]).unwrap();
    pair.source
        .ok("link set db --mode sync --on-loss fail --loss-timeout 5s");
    let group = pair.source.group("db").unwrap();
    assert_eq!(group["links"][0]["on_loss"], "fail");
    assert_eq!(group["links"][0]["loss_timeout_ms"], 5000);
    volume.write(0, &[2; 4096]).unwrap();
    assert_eq!(
        pair.protection(),
        "degraded",
        "it lacks what was written before"
    );
    let too_long = pair
        .source
        .no("link set db --loss-timeout 11m", "setting-invalid");
    assert!(too_long.contains("at most 600 s"), "{too_long}");
    let line = pair.source.ctl("link set db");
    assert_eq!(line.code, Some(2), "{line:?}");
    pair.target.start();
    pair.until_protection("kept");
    same(&pair.disk, &pair.replica());
}
