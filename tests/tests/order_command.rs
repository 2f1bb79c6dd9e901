//! The order checker as a command: real writers on real files, and what it says of them whole and broken.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};

const BYTES: usize = 4 << 20;

fn order(args: &[&str], dir: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blkrep-order"));
    command.current_dir(dir).args(args).output().unwrap()
}

fn load(dir: &Path) {
    for name in ["a", "b"] {
        File::create(dir.join(name))
            .unwrap()
            .set_len(BYTES as u64)
            .unwrap();
    }
    let line = "write --volume a --volume b --record record --writes 400 --writers 4 --prefill --span 524288 \
                --zeroes 5 --discards 2 --seed 7 --json";
    let done = order(&line.split_whitespace().collect::<Vec<_>>(), dir);
    assert!(done.status.success(), "{done:?}");
}

fn check(dir: &Path, judgement: &str) -> (Option<i32>, String) {
    let line = format!(
        "check --judgement {judgement} --record record --volume a --volume b --keep completed --json"
    );
    let done = order(&line.split_whitespace().collect::<Vec<_>>(), dir);
    (done.status.code(), String::from_utf8(done.stdout).unwrap())
}

/// Files that `O_DIRECT` works on: next to the build, since `/tmp` may be memory.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn a_whole_run_is_legal_by_both_judgements_and_holds_every_write() {
    let dir = directory();
    load(dir.path());
    for judgement in ["replica", "power-loss"] {
        let (code, verdict) = check(dir.path(), judgement);
        assert_eq!(code, Some(0), "{judgement}: {verdict}");
    }
}

#[test]
fn a_load_that_goes_on_with_a_record_is_judged_with_what_came_before() {
    let dir = directory();
    load(dir.path());
    let stale = fs::read(dir.path().join("b")).unwrap();
    let more = "write --volume a --volume b --record record --writes 200 --writers 3 --span 524288 --zeroes 5 \
                --seed 7 --append --host-survives --json";
    let done = order(&more.split_whitespace().collect::<Vec<_>>(), dir.path());
    assert!(done.status.success(), "{done:?}");
    let (code, verdict) = check(dir.path(), "replica");
    assert_eq!(code, Some(0), "{verdict}");
    assert!(verdict.contains("\"absent\":0"), "{verdict}");
    // What the first load left is not what both left.
    fs::write(dir.path().join("b"), stale).unwrap();
    assert_eq!(check(dir.path(), "replica").0, Some(1));
    // Volumes of another size are not those of the record.
    let file = File::options()
        .write(true)
        .open(dir.path().join("b"))
        .unwrap();
    file.set_len(BYTES as u64 / 2).unwrap();
    let done = order(&more.split_whitespace().collect::<Vec<_>>(), dir.path());
    assert_eq!(done.status.code(), Some(2), "{done:?}");
}

#[test]
fn a_volume_of_an_earlier_instant_is_rejected() {
    let dir = directory();
    load(dir.path());
    // Volume b loses its tail of the run: as if its replica had stopped while that of a went on.
    let image = fs::read(dir.path().join("b")).unwrap();
    let blank = vec![0; 512 << 10];
    fs::write(
        dir.path().join("b"),
        [&blank, &image[blank.len()..]].concat(),
    )
    .unwrap();
    for judgement in ["replica", "power-loss"] {
        let (code, verdict) = check(dir.path(), judgement);
        assert_eq!(code, Some(1), "{judgement}");
        assert!(
            verdict.contains(r#""legal":false"#) && verdict.contains("lost"),
            "{verdict}"
        );
    }
}

#[test]
fn a_flipped_bit_is_rejected_and_its_sector_named() {
    let dir = directory();
    load(dir.path());
    let mut image = fs::read(dir.path().join("a")).unwrap();
    image[BYTES - 512 * 3 + 100] ^= 4;
    fs::write(dir.path().join("a"), image).unwrap();
    let (code, verdict) = check(dir.path(), "replica");
    let sector = BYTES / 512 - 3;
    assert_eq!(code, Some(1));
    assert!(
        verdict.contains(&format!("[0,{sector},{}]", sector + 1)),
        "{verdict}"
    );
}

#[test]
fn nonsense_is_an_error_not_a_verdict() {
    let dir = directory();
    load(dir.path());
    for line in [
        "check --judgement replica --record record --volume a",
        "check --judgement replica --record missing --volume a --volume b",
        "check --judgement replica --record a --volume a --volume b",
        "write --volume missing --record r --writes 1",
        "write --volume a --record r",
        "write --volume a --record r --writes 1 --flush 90 --fua 90",
        "write --volume a --record missing --writes 1 --append",
        "write --volume nbd+unix:///?socket=missing --record r --writes 1",
        "write --volume nbd+unix:///?sock=missing --record r --writes 1",
    ] {
        let done = order(&line.split_whitespace().collect::<Vec<_>>(), dir.path());
        assert_eq!(done.status.code(), Some(2), "{line}: {done:?}");
        assert!(!done.stderr.is_empty(), "{line}");
    }
}
