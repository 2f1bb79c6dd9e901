//! Tasks and bookmarks of real daemons: where they stand, what may be run, and what a kill leaves.

use crate::lab::{Lab, MIB, Node, same, until};
use crate::volume::Volume;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

struct Pair {
    source: Node,
    target: Node,
    disk: PathBuf,
    volume: Volume,
    programs: PathBuf,
}

/// A volume whose target has everything, and a directory of programs there that is not set yet.
fn pair(lab: &Lab) -> Pair {
    let (source, target) = (lab.node("a"), lab.node("b"));
    let disk = lab.file("disk", 4 * MIB, 0);
    fs::write(&disk, vec![0; 4 << 20]).unwrap();
    let address = source.attach("pg", &disk, "--group db");
    source.ok(&format!("connect db --to {} --wait", target.address));
    let programs = lab.path("programs");
    fs::create_dir(&programs).unwrap();
    fs::set_permissions(&programs, fs::Permissions::from_mode(0o755)).unwrap();
    Pair {
        volume: Volume::open(&address),
        source,
        target,
        disk,
        programs,
    }
}

impl Pair {
    fn program(&self, name: &str, script: &str) {
        let path = self.programs.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn allow(&self) {
        let programs = self.programs.display();
        self.target
            .ok(&format!("set --group db task.directory={programs}"));
    }

    fn replica(&self) -> PathBuf {
        self.target.replicas.join("db.pg.img")
    }

    /// The only link's part of a task, as a node knows it.
    fn told(&self, node: &Node, id: &str) -> Value {
        let ran = node.ctl(&format!("task show db {id} --json"));
        if ran.code != Some(0) {
            assert!(ran.stdout.contains("no-such-note"), "{ran:?}");
            return Value::Null;
        }
        let list: Value = serde_json::from_str(&ran.stdout).unwrap();
        list["notes"][0]["links"][0].clone()
    }

    fn until_state(&self, node: &Node, id: &str, state: &str) -> Value {
        until(&format!("task {id} is {state}"), || {
            let told = self.told(node, id);
            (told["state"] == state).then_some(told)
        })
    }

    /// A command that must be refused with this code.
    fn no(&self, node: &Node, command: &str, code: &str) {
        let ran = node.ctl(&format!("task submit db --json -- {command}"));
        assert_eq!(ran.code, Some(2), "{command}: {ran:?}");
        let body: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(body["error"]["code"], code, "{command}: {body}");
        for part in ["happened", "subject", "action"] {
            assert!(!body["error"][part].as_str().unwrap().is_empty(), "{body}");
        }
    }

    fn submit(&self, command: &str) -> String {
        let said = self.source.ok(&format!("task submit db -- {command}"));
        said.trim().to_owned()
    }
}

/// How many sectors of an image are written, from its first one on; no later one may be.
fn prefix(image: &[u8]) -> u64 {
    let written: Vec<bool> = image.chunks(512).map(|sector| sector[0] != 0).collect();
    let first = written
        .iter()
        .position(|written| !written)
        .unwrap_or(written.len());
    assert!(
        !written[first..].contains(&true),
        "no prefix: sector {first} is missing"
    );
    u64::try_from(first).unwrap()
}

#[test]
fn a_task_sees_exactly_the_earlier_writes_while_a_writer_goes_on() {
    let lab = Lab::new();
    let pair = pair(&lab);
    pair.program(
        "snap",
        r#"cp "$BLKREP_BASE_0" "$1"; sleep 0.3; cmp "$BLKREP_BASE_0" "$1""#,
    );
    pair.allow();
    let (done, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let (count, ends) = (Arc::clone(&done), Arc::clone(&stop));
    let Pair {
        source,
        target,
        mut volume,
        disk,
        ..
    } = pair;
    let writer = thread::spawn(move || {
        for sector in 0..8192_u64 {
            if ends.load(Ordering::Acquire) {
                break;
            }
            volume.write(sector * 512, &[7; 512]).unwrap();
            count.store(sector + 1, Ordering::Release);
            thread::sleep(Duration::from_micros(300));
        }
    });
    for round in 0..5 {
        thread::sleep(Duration::from_millis(150));
        let copy = lab.path(&format!("copy{round}"));
        let before = done.load(Ordering::Acquire);
        let line = format!("task submit db --json -- snap {}", copy.display());
        let id: Value = serde_json::from_str(&source.ok(&line)).unwrap();
        let after = done.load(Ordering::Acquire);
        let id = id["note"]["id"].as_str().unwrap().to_owned();
        until("it is done", || {
            let told: Value =
                serde_json::from_str(&source.ok(&format!("task show db {id} --json"))).unwrap();
            let told = &told["notes"][0]["links"][0];
            assert_ne!(
                told["state"], "failed",
                "what it copied was changed under it: {told}"
            );
            (told["state"] == "done").then_some(())
        });
        let has = prefix(&fs::read(&copy).unwrap());
        assert!(
            (before..=after + 1).contains(&has),
            "{before} <= {has} <= {after}"
        );
    }
    stop.store(true, Ordering::Release);
    writer.join().unwrap();
    same(&disk, &target.replicas.join("db.pg.img"));
}

#[test]
fn tasks_are_off_until_the_target_has_a_directory_and_only_what_is_in_it_runs() {
    let lab = Lab::new();
    let mut pair = pair(&lab);
    pair.program("hello", "echo hello \"$1\"");
    let id = pair.submit("hello you");
    let told = pair.until_state(&pair.source, &id, "refused");
    assert!(
        told["output"].as_str().unwrap().contains("tasks are off"),
        "{told}"
    );
    pair.source.event("task-refused", "tasks are off");
    pair.target.event("task-refused", "tasks are off");
    pair.allow();
    let ran = pair
        .source
        .ctl("task submit db --wait --description why -- hello you");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(
        ran.stdout.contains("hello you (why)") && ran.stdout.contains("done"),
        "{ran:?}"
    );
    assert!(ran.stdout.contains("    hello you"), "its output: {ran:?}");
    let ran = pair.source.ctl("task submit db --wait -- absent");
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stdout.contains("refused"), "{ran:?}");
    for command in ["/bin/sh", "../sh", ".hidden"] {
        pair.no(&pair.source, command, "bad-request");
    }
    let long = format!("hello {}", "x".repeat(3000));
    pair.no(&pair.source, &long, "bad-request");
    pair.no(&pair.target, "hello", "wrong-role");
    let unknown = format!("task show db {}", "0".repeat(32));
    pair.source.no(&unknown, "no-such-note");
    pair.source.no("task list nobody", "no-such-group");
    pair.source.ok("disconnect db --forget --yes");
    pair.no(&pair.source, "hello", "no-such-link");
    pair.source.no("point bookmark db here", "no-such-link");
}

#[test]
fn a_task_that_is_late_is_killed_with_all_that_it_started_and_applying_goes_on() {
    let lab = Lab::new();
    let mut pair = pair(&lab);
    let pid = lab.path("pid");
    pair.program("hang", "sleep 1000 & echo $! > \"$1\"; wait");
    pair.allow();
    pair.target.ok("set --group db task.timeout=1s");
    let begun = Instant::now();
    let id = pair.submit(&format!("hang {}", pid.display()));
    pair.until_state(&pair.source, &id, "running");
    let group = pair.target.group("db").unwrap();
    assert!(
        group["target"]["task"]
            .as_str()
            .unwrap()
            .starts_with("hang"),
        "{group}"
    );
    assert!(
        group["problems"]
            .to_string()
            .contains("a task of group db runs"),
        "{group}"
    );
    pair.volume.write(MIB, &[9; 4096]).unwrap();
    assert_ne!(fs::read(pair.replica()).unwrap()[1 << 20], 9, "it waits");
    pair.until_state(&pair.source, &id, "timed-out");
    assert!(begun.elapsed() < Duration::from_secs(30));
    same(&pair.disk, &pair.replica());
    let child = fs::read_to_string(&pid).unwrap();
    until("what it started is gone", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    pair.source
        .event("task-timed-out", "had not ended after 1 s");
}

#[test]
fn a_task_that_runs_when_its_target_is_killed_is_interrupted_and_not_run_again() {
    let lab = Lab::new();
    let mut pair = pair(&lab);
    let log = lab.path("log");
    pair.program("once", "echo run >> \"$1\"; sleep 3");
    pair.allow();
    let id = pair.submit(&format!("once {}", log.display()));
    pair.until_state(&pair.target, &id, "running");
    pair.target.kill();
    pair.volume.write(MIB, &[9; 4096]).unwrap();
    pair.target.start();
    let told = pair.until_state(&pair.source, &id, "interrupted");
    assert!(
        told["output"].as_str().unwrap().contains("not run again"),
        "{told}"
    );
    same(&pair.disk, &pair.replica());
    pair.target.stop();
    pair.target.start();
    pair.until_state(&pair.target, &id, "interrupted");
    assert_eq!(fs::read_to_string(&log).unwrap(), "run\n");
    let again = pair.submit(&format!("once {}", log.display()));
    pair.until_state(&pair.source, &again, "done");
    assert_eq!(fs::read_to_string(&log).unwrap(), "run\nrun\n");
}

#[test]
fn bookmarks_are_known_on_both_ends_and_after_restarts_and_a_pause_holds_them_back() {
    let lab = Lab::new();
    let mut pair = pair(&lab);
    let ran = pair.source.ctl("point bookmark db monday --wait");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    pair.target.ok("target pause db");
    pair.volume.write(0, &[5; 512]).unwrap();
    pair.source.ok("point bookmark db tuesday");
    let ran = pair
        .source
        .ctl("point bookmark db wednesday --wait --timeout 1s");
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let places = |node: &Node| {
        let list: Value = serde_json::from_str(&node.ok("point list db --json")).unwrap();
        let all = list["notes"].as_array().unwrap().clone();
        let one = |note: &Value| {
            let name = note["text"].as_str().unwrap().to_owned();
            (
                name,
                note["seq"].as_u64().unwrap(),
                note["links"][0]["state"].to_string(),
            )
        };
        all.iter().map(one).collect::<Vec<_>>()
    };
    assert_eq!(
        places(&pair.target).len(),
        1,
        "what is paused has reached the first alone"
    );
    let before = places(&pair.source);
    assert_eq!(before.len(), 3);
    assert!(before[1].2.contains("waiting"), "{before:?}");
    pair.target.kill();
    pair.target.start();
    pair.target.ok("target resume db");
    until("all are set", || {
        let all = places(&pair.source);
        all.iter()
            .all(|(_, _, state)| state.contains("set"))
            .then_some(())
    });
    pair.source.kill();
    pair.source.start();
    let mut last = Vec::new();
    until("the source hears of them again", || {
        last = places(&pair.source);
        (last.len() == 3).then_some(())
    });
    assert_eq!(places(&pair.target), last);
    let place = |all: &[(String, u64, String)]| all.iter().map(|it| it.1).collect::<Vec<_>>();
    assert_eq!(place(&last), place(&before));
    same(&pair.disk, &pair.replica());
}
