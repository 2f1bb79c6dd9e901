//! The disk queue, as it is set, shown, filled, lost and taken over.

use crate::lab::{Lab, MIB, Node, same};
use crate::volume::Volume;
use serde_json::Value;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const LEN: u64 = 32 * MIB;

/// A source with 4 MiB of log and a target that is equal, nothing of which is transmitted.
struct Held {
    source: Node,
    target: Node,
    disk: PathBuf,
    directory: PathBuf,
    volume: Volume,
}

impl Held {
    fn new(lab: &Lab, settings: &str) -> Self {
        let (source, target) = (lab.node("a"), lab.node("b"));
        let disk = lab.file("disk", LEN, 3);
        let directory = lab.path("queue");
        std::fs::create_dir_all(&directory).unwrap();
        let device = source.attach("pg", &disk, "--group db");
        let name = directory.display();
        source.ok(&format!(
            "set queue.directory={name} queue.segment-size=1MiB queue.free-space=1MiB {settings}"
        ));
        source.ok(&format!("connect db --to {} --wait", target.address));
        source.equal("db");
        source.ok("transmit pause db");
        Self {
            volume: Volume::open(&device),
            source,
            target,
            disk,
            directory,
        }
    }

    fn write(&mut self, from: u64, to: u64, mark: u8) {
        for at in (from..to).step_by(128 << 10) {
            self.volume.write(at, &vec![mark; 128 << 10]).unwrap();
        }
        self.volume.flush().unwrap();
    }

    fn queue(&self) -> Value {
        self.source.group("db").unwrap()["links"][0].clone()
    }

    fn on_disk(&self) -> u64 {
        self.queue()["queue"]["disk_bytes"].as_u64().unwrap()
    }

    /// Bytes that the directory really takes.
    fn taken(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        let files = std::fs::read_dir(&self.directory).unwrap();
        let files = files.map(|file| file.unwrap().metadata().unwrap());
        files.map(|about| about.blocks() * 512).sum()
    }

    /// Sends everything, and says how much of it a mirror sent.
    fn drain(&self) -> u64 {
        self.source.ok("transmit resume db");
        let link = self.source.equal("db");
        same(&self.target.replicas.join("db.pg.img"), &self.disk);
        link["mirror"]["bytes_sent"].as_u64().unwrap()
    }

    fn has_event(&self, name: &str) -> bool {
        let page = self.source.ok("events --json --limit 500");
        let page: Value = serde_json::from_str(&page).unwrap();
        let mut events = page["events"].as_array().unwrap().iter();
        events.any(|event| event["name"] == name)
    }
}

fn queue_file(directory: &Path) -> PathBuf {
    let mut files = std::fs::read_dir(directory).unwrap();
    files.next().unwrap().unwrap().path()
}

#[test]
fn what_memory_has_no_room_for_waits_on_disk_and_is_sent_in_order() {
    let lab = Lab::new();
    let mut held = Held::new(&lab, "queue.disk-size=64MiB queue.alert=25");
    let mirrored = held.queue()["mirror"]["bytes_sent"].as_u64().unwrap();
    held.write(0, LEN, 0x51);
    assert!(held.on_disk() > 20 * MIB, "{}", held.queue());
    assert!(held.taken() > 20 * MIB);
    assert_eq!(held.queue()["queue"]["disk_max_bytes"], 64 * MIB);
    held.source.event("queue-spilling", "on disk");
    held.source.event("queue-alert", "of 64");
    let text = held.source.ctl("status db").stdout;
    assert!(text.contains("on disk"), "{text}");
    // Written over while it waits: order matters.
    held.write(0, 4 * MIB, 0x52);
    assert_eq!(held.drain(), mirrored, "nothing is mirrored");
    held.source.event("queue-drained", "memory");
    held.source.event("queue-alert-over", "on disk");
    assert!(!held.has_event("link-behind"));
    assert_eq!(held.on_disk(), 0);
    assert!(held.taken() < MIB, "the filesystem has its space back");
}

#[test]
fn a_daemon_killed_with_a_full_queue_is_resumed_without_a_mirror() {
    let lab = Lab::new();
    let mut held = Held::new(&lab, "queue.disk-size=64MiB");
    held.write(0, 24 * MIB, 0x61);
    let before = held.on_disk();
    assert!(before > 12 * MIB, "{before}");
    held.source.kill();
    held.source.start();
    assert_eq!(held.on_disk(), before, "all of it is there");
    held.source.stop();
    held.source.start();
    assert_eq!(held.on_disk(), before, "and after an orderly stop");
    let sent = held.drain();
    assert_eq!(sent, 0, "nothing is mirrored");
    assert!(!held.has_event("link-behind"));
}

#[test]
fn a_queue_that_is_full_becomes_dirty_extents_and_no_write_fails() {
    for settings in [
        "queue.disk-size=4MiB",
        // More than any disk of a test has free, and less than its filesystem is large.
        "queue.free-space=FREE",
    ] {
        let lab = Lab::new();
        let about = nix::sys::statvfs::statvfs("/var/tmp").unwrap();
        let free = about.blocks_free() * about.fragment_size() / MIB * MIB;
        let settings = settings.replace("FREE", &format!("{}KiB", free / 1024));
        let mut held = Held::new(&lab, "queue.disk-size=64MiB");
        held.source.ok(&format!("set {settings}"));
        held.write(0, LEN, 0x71);
        held.source.event("queue-full", "");
        held.source.event("link-behind", "");
        held.drain();
        assert_eq!(held.queue()["mirror"]["kind"], "difference");
        held.source.alive();
    }
}

#[test]
fn a_queue_whose_file_is_gone_or_changed_becomes_dirty_extents() {
    for gone in [true, false] {
        let lab = Lab::new();
        let mut held = Held::new(&lab, "queue.disk-size=64MiB");
        held.write(0, 16 * MIB, 0x81);
        assert!(held.on_disk() > 4 * MIB);
        if gone {
            held.source.kill();
            std::fs::remove_dir_all(&held.directory).unwrap();
            held.source.start();
            held.source.event("queue-failed", "");
        } else {
            let file = queue_file(&held.directory);
            let file = OpenOptions::new().write(true).open(file).unwrap();
            file.write_all_at(&[0x18], 4096 + 100_000).unwrap();
        }
        held.drain();
        if !gone {
            held.source.event("queue-unreadable", "");
        }
        held.source.event("link-behind", "");
        assert_eq!(held.queue()["mirror"]["kind"], "difference");
        held.source.alive();
        if gone {
            std::fs::create_dir(&held.directory).unwrap();
            crate::lab::until("the queue is there again", || {
                let mut files = std::fs::read_dir(&held.directory).unwrap();
                files.next().map(drop)
            });
        }
    }
}

#[test]
fn another_directory_is_used_when_the_former_is_drained() {
    let lab = Lab::new();
    let mut held = Held::new(&lab, "queue.disk-size=64MiB");
    let mirrored = held.queue()["mirror"]["bytes_sent"].as_u64().unwrap();
    held.write(0, 16 * MIB, 0x91);
    let second = lab.path("second");
    std::fs::create_dir(&second).unwrap();
    held.source
        .ok(&format!("set queue.directory={}", second.display()));
    assert!(held.on_disk() > 4 * MIB, "it is not thrown away");
    assert_eq!(held.drain(), mirrored, "nothing is mirrored");
    assert!(!held.has_event("link-behind"));
    crate::lab::until("the former file is removed", || {
        let mut files = std::fs::read_dir(&held.directory).unwrap();
        files.next().is_none().then_some(())
    });
    held.source.ok("transmit pause db");
    held.write(0, 16 * MIB, 0x92);
    assert!(held.on_disk() > 4 * MIB && queue_file(&second).is_file());
    held.source.ok("set queue.directory=none");
    held.drain();
    crate::lab::until("no queue, no file", || {
        let mut files = std::fs::read_dir(&second).unwrap();
        files.next().is_none().then_some(())
    });
}

/// Writes until it is told to stop, all over the volume; how many bytes that were.
fn write_on(device: &str, len: u64, stop: &AtomicBool, most: u64) -> u64 {
    const BYTES: u64 = MIB;
    let mut volume = Volume::open(device);
    let mut written = 0;
    let mut mark: u8 = 1;
    while written < most && !stop.load(Ordering::Acquire) {
        // Steps that share no divisor with the length: every block again and again, none of them in order.
        let at = written / BYTES * 37 % (len / BYTES) * BYTES;
        volume
            .write(at, &vec![mark; usize::try_from(BYTES).unwrap()])
            .expect("no write fails");
        written += BYTES;
        mark = mark.wrapping_add(7) | 1;
    }
    volume.flush().unwrap();
    written
}

/// What a slow line cannot take goes through memory and disk and then into the map; nothing fails, nothing is
/// mirrored whole, and all of it keeps to its limits.
#[test]
fn two_gib_through_64_mib_of_memory_and_256_mib_of_disk() {
    const VOLUME: u64 = 512 * MIB;
    let lab = Lab::new();
    let (source, target) = (lab.node("a"), lab.node("b"));
    let disk = lab.file("disk", VOLUME, 3);
    let directory = lab.path("queue");
    std::fs::create_dir_all(&directory).unwrap();
    source.ok("set group.log-memory=64MiB link.compression=off");
    let device = source.attach("pg", &disk, "--group db");
    source.ok(&format!(
        "set queue.directory={} queue.disk-size=256MiB queue.free-space=1MiB",
        directory.display()
    ));
    source.ok(&format!(
        "connect db --to {} --wait --timeout 5m",
        target.address
    ));
    source.equal("db");
    source.ok("transmit limit db 8MiB/s");
    let link = || source.group("db").unwrap()["links"][0].clone();

    // A writer that never stops is told of, and keeps to every limit.
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (stop, device) = (Arc::clone(&stop), device.clone());
        thread::spawn(move || write_on(&device, VOLUME, &stop, u64::MAX))
    };
    let begun = Instant::now();
    let mut worst = (0, 0, 0);
    loop {
        let now = link();
        let bytes = |what: &str| now["queue"][what].as_u64().unwrap();
        worst.0 = worst.0.max(bytes("memory_bytes"));
        worst.1 = worst.1.max(bytes("disk_bytes"));
        worst.2 = worst.2.max(now["dirty_bytes"].as_u64().unwrap());
        if now["mirror"]["not_converging"] == true {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(240), "{now}");
        thread::sleep(Duration::from_millis(100));
    }
    source.event("mirror-not-converging", "");
    let text = source.ctl("status db").stdout;
    assert!(text.contains("does not converge"), "{text}");
    stop.store(true, Ordering::Release);
    let mut written = writer.join().unwrap();
    assert!(worst.0 <= 64 * MIB && worst.1 <= 256 * MIB, "{worst:?}");
    assert!(worst.2 > 0 && worst.2 <= VOLUME, "{worst:?}");
    // To 2 GiB in all.
    let never = AtomicBool::new(false);
    let rest = (2048 * MIB).saturating_sub(written);
    written += write_on(&device, VOLUME, &never, rest);
    assert!(written >= 2048 * MIB);

    source.ok("transmit limit db unlimited");
    let begun = Instant::now();
    let end = loop {
        let now = link();
        let done = now["replication"] == "replicating"
            && now["data_state"] == "ok"
            && now["mirror"]["state"] == "idle"
            && now["dirty_bytes"] == 0
            && now["queue"]["ops"] == 0;
        if done {
            break now;
        }
        assert!(begun.elapsed() < Duration::from_secs(240), "{now}");
        thread::sleep(Duration::from_millis(200));
    };
    assert_eq!(end["mirror"]["kind"], "difference", "by itself");
    assert!(end["mirror"]["not_converging"].is_null());
    let page = source.ok("events --json --limit 500 --id mirror-started");
    assert_eq!(
        page.matches("full, ").count(),
        1,
        "the first one only: {page}"
    );
    same(&target.replicas.join("db.pg.img"), &disk);
}

#[test]
fn settings_that_cannot_be_are_refused_and_nothing_changes() {
    let lab = Lab::new();
    let mut node = lab.node("a");
    let file = lab.file("file", 4096, 1);
    let code = "setting-invalid";
    for wrong in [
        "queue.directory=/nowhere/at/all".to_owned(),
        format!("queue.directory={}", file.display()),
        "queue.directory=relative".to_owned(),
        "queue.directory=/proc/self".to_owned(),
        format!(
            "queue.directory={} queue.free-space=1TiB",
            lab.path("").display()
        ),
        "queue.segment-size=64MiB queue.disk-size=32MiB".to_owned(),
        "queue.alert=0".to_owned(),
    ] {
        let said = node.no(&format!("set {wrong}"), code);
        assert!(!said.is_empty(), "{wrong}");
        let now = node.ok("get queue.directory --json");
        assert!(
            now.contains("\"value\":\"none\"") || now.contains("\"value\": \"none\""),
            "{now}"
        );
    }
    node.alive();
}
