//! The demonstration as a user runs it: two daemons, the NBD front end, every figure as promised, nothing left behind.

#![allow(clippy::unwrap_used, missing_docs)]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A minute of demonstration on a busy machine.
const LIMIT: Duration = Duration::from_secs(400);

/// `blkctl`, with `blkrepd` beside it: built by the cargo that runs this test, in its profile, so that what is tested is what is
/// in the tree.
fn blkctl() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let line = "build --profile test --bins -p blkrep -p blkctl -p blkrep-tests --message-format=json-render-diagnostics";
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(line.split(' '))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(built.status.success(), "the product does not build");
        let lines = built.stdout.split(|byte| *byte == b'\n');
        let mut programs = lines
            .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
            .filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)));
        let found = programs.find(|path| path.file_name().is_some_and(|name| name == "blkctl"));
        let found = found.expect("cargo names what it built");
        assert!(found.with_file_name("blkrepd").is_file(), "blkrepd is not beside {}", found.display());
        found
    })
}

/// A short path on a disk: sockets have little room for a name, and memory may not take direct I/O.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

fn play(dir: &Path, stdout: Stdio) -> Child {
    let mut command = Command::new(blkctl());
    command
        .args(["demo", "--frontend", "nbd", "--size", "64MiB", "--json"])
        .env("TMPDIR", dir)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn end(playing: &mut Child) -> Option<i32> {
    let began = Instant::now();
    loop {
        if let Some(status) = playing.try_wait().unwrap() {
            return status.code();
        }
        if began.elapsed() > LIMIT {
            playing.kill().unwrap();
            panic!("the demonstration did not end in {} s", LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// No file below `dir`, and no process that names it.
fn nothing_is_left(dir: &Path) {
    let files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(files.is_empty(), "left behind: {files:?}");
    let name = dir.to_str().unwrap();
    for process in std::fs::read_dir("/proc").unwrap() {
        let words = std::fs::read(process.unwrap().path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        assert!(!words.contains(name), "still runs: {words}");
    }
}

#[test]
fn every_figure_is_as_promised_and_nothing_is_left() {
    let dir = directory();
    let out = dir.path().join("out");
    let mut playing = play(dir.path(), File::create(&out).unwrap().into());
    let words = std::io::read_to_string(playing.stderr.take().unwrap()).unwrap();
    let code = end(&mut playing);
    let summary = std::fs::read_to_string(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    assert_eq!(code, Some(0), "{words}\n{summary}");
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(
        (&summary["ok"], &summary["frontend"]),
        (&Value::Bool(true), &Value::from("nbd"))
    );
    let steps = summary["steps"].as_array().unwrap();
    let names: Vec<_> = steps
        .iter()
        .map(|step| step["name"].as_str().unwrap())
        .collect();
    let acts = [
        "attach",
        "full-mirror",
        "workload",
        "short-cut",
        "long-cut",
        "crash",
        "takeover",
        "check",
        "go-on",
        "clean-up",
    ];
    assert_eq!(names, acts, "{words}");
    let figure = |step: &str, path: &str| {
        let step = steps.iter().find(|found| found["name"] == step).unwrap();
        step["figures"]
            .pointer(path)
            .unwrap_or_else(|| panic!("no {path} in {step}"))
            .clone()
    };
    let number = |step: &str, path: &str| figure(step, path).as_u64().unwrap();
    let size = number("attach", "/size_bytes");
    assert_eq!(
        (size, number("attach", "/filled_bytes")),
        (64 << 20, 64 << 20)
    );
    // What is not zero travels: the volume was filled with noise.
    assert!(number("full-mirror", "/seen/mirror_bytes_sent") >= size);
    for undisturbed in ["workload", "short-cut"] {
        assert_eq!(number(undisturbed, "/seen/mirrors"), 0);
        assert_eq!(number(undisturbed, "/seen/mirror_bytes_sent"), 0);
        assert!(number(undisturbed, "/written/bytes") > 0);
    }
    assert!(number("short-cut", "/cut_ms") >= 3000);
    let sent = number("long-cut", "/seen/mirror_bytes_sent");
    assert!(sent > 0 && sent <= number("long-cut", "/touched_bytes") && sent <= size / 8);
    assert!(number("long-cut", "/written/bytes") > number("long-cut", "/log_bytes"));
    assert!(number("crash", "/seen/mirror_bytes_sent") <= number("crash", "/doubt_bytes"));
    assert_eq!(figure("check", "/legal"), true);
    assert_eq!(figure("check", "/forgery_found"), true);
    assert!(number("check", "/held") > 4000, "{words}");
    nothing_is_left(dir.path());
}

#[test]
fn an_interrupted_demonstration_cleans_up() {
    let dir = directory();
    let mut playing = play(dir.path(), Stdio::null());
    let words = BufReader::new(playing.stderr.take().unwrap());
    let mut heard = Vec::new();
    for line in words.lines() {
        let line = line.unwrap();
        let cut = line.starts_with("4. ");
        heard.push(line);
        if cut {
            // In the middle of the cut, with a load at work.
            std::thread::sleep(Duration::from_millis(2000));
            let pid = Pid::from_raw(i32::try_from(playing.id()).unwrap());
            kill(pid, Signal::SIGINT).unwrap();
        }
    }
    assert_eq!(end(&mut playing), Some(1), "{heard:#?}");
    assert!(
        heard.iter().any(|line| line.contains("interrupted")),
        "{heard:#?}"
    );
    assert!(
        heard.iter().any(|line| line.contains("taken back")),
        "{heard:#?}"
    );
    nothing_is_left(dir.path());
}
