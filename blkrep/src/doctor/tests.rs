//! Each judgement of `doctor`, on facts of machines good and bad.

use super::*;
use facts::Space;

fn good() -> Facts {
    let space = Some(Space {
        free: 10 << 30,
        volatile: false,
    });
    Facts {
        release: "6.12.57".to_owned(),
        ublk_control: true,
        ublk_module: Module::Present,
        io_uring_disabled: Some(0),
        effective_uid: 0,
        fuse_device: true,
        fuse_module: Module::Present,
        loop_control: true,
        memlock_bytes: None,
        capabilities: u64::MAX,
        state_dir: "/var/lib/blkrep".into(),
        state_space: space,
        shm_space: space,
    }
}

fn level_of(facts: &Facts, check: &str) -> FindingLevel {
    let findings = judge(facts);
    let found = findings.iter().find(|finding| finding.check == check);
    found.map_or(FindingLevel::Ok, |finding| finding.level)
}

#[test]
fn a_good_machine_has_nothing_to_tell() {
    let findings = judge(&good());
    assert!(
        findings.iter().all(|f| f.level == FindingLevel::Ok),
        "{findings:?}"
    );
}

#[test]
fn each_lack_is_found() {
    use FindingLevel::{Error, Note, Ok, Warning};
    type Break = fn(&mut Facts);
    let cases: [(&str, FindingLevel, Break); 13] = [
        ("ublk", Warning, |f| {
            (f.ublk_control, f.ublk_module) = (false, Module::Loadable);
        }),
        ("ublk", Warning, |f| {
            (f.ublk_control, f.ublk_module) = (false, Module::Missing);
        }),
        ("io-uring", Error, |f| f.io_uring_disabled = Some(2)),
        ("io-uring", Ok, |f| f.io_uring_disabled = Some(1)),
        ("io-uring", Warning, |f| {
            (f.io_uring_disabled, f.effective_uid) = (Some(1), 1000);
        }),
        ("fuse", Note, |f| f.fuse_device = false),
        ("loop", Note, |f| f.loop_control = false),
        ("locked-memory", Warning, |f| {
            (f.memlock_bytes, f.capabilities) = (Some(ByteLen::new(8 << 20)), 0);
        }),
        ("io-flusher", Warning, |f| f.capabilities = 0),
        ("state-directory", Error, |f| f.state_space = None),
        ("state-directory", Error, |f| {
            f.state_space = Some(Space {
                free: 10 << 30,
                volatile: true,
            });
        }),
        ("state-directory", Warning, |f| {
            f.state_space = Some(Space {
                free: 1 << 20,
                volatile: false,
            });
        }),
        ("shared-memory", Error, |f| f.shm_space = None),
    ];
    for (check, level, break_it) in cases {
        let mut facts = good();
        break_it(&mut facts);
        assert_eq!(level_of(&facts, check), level, "{check}: {facts:?}");
    }
}

#[test]
fn every_finding_that_is_not_ok_says_what_it_means_and_what_to_do() {
    let mut bad = good();
    bad.release = "6.18.4".to_owned();
    (bad.ublk_control, bad.ublk_module) = (false, Module::Missing);
    (bad.fuse_device, bad.loop_control, bad.capabilities) = (false, false, 0);
    bad.memlock_bytes = Some(ByteLen::new(65536));
    (bad.io_uring_disabled, bad.state_space, bad.shm_space) = (Some(2), None, None);
    for finding in judge(&bad) {
        assert_ne!(finding.level, FindingLevel::Ok, "{finding:?}");
        assert!(!finding.meaning.is_empty() && !finding.action.is_empty());
    }
}

#[test]
fn this_machine_can_be_looked_at() {
    let findings = examine(Path::new("/"));
    assert_eq!(findings.len(), 9);
    assert!(findings[0].what.contains("kernel"));
}
