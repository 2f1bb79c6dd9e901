//! Layers, persistence and refusals of settings.
#![allow(clippy::unwrap_used)]

use super::*;
use blkrep_api::SettingAssignment;
use std::time::Duration;

fn group() -> GroupName {
    GroupName::new("db.1").unwrap()
}

fn request(group: Option<GroupName>, pairs: &[(&str, Option<&str>)]) -> SetRequest {
    let assignments = pairs.iter().map(|(key, value)| SettingAssignment {
        key: (*key).to_owned(),
        value: value.map(str::to_owned),
    });
    SetRequest {
        group,
        assignments: assignments.collect(),
    }
}

fn open(dir: &Path) -> (Settings, Vec<String>) {
    let file = Key::GroupLogMemory.parse("8MiB").unwrap();
    Settings::open(dir, BTreeMap::from([(Key::GroupLogMemory, file)])).unwrap()
}

#[test]
fn a_group_beats_the_node_beats_the_file_beats_the_default_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let key = "group.log-memory";
    {
        let (settings, _) = open(dir.path());
        assert_eq!(settings.group(&group()).log_memory.get(), 8 << 20);
        settings
            .set(&request(None, &[(key, Some("16MiB"))]))
            .unwrap();
        settings
            .set(&request(Some(group()), &[(key, Some("32MiB"))]))
            .unwrap();
    }
    let (settings, troubles) = open(dir.path());
    assert_eq!(troubles, Vec::<String>::new());
    assert_eq!(settings.group(&group()).log_memory.get(), 32 << 20);
    let other = GroupName::new("other").unwrap();
    assert_eq!(settings.group(&other).log_memory.get(), 16 << 20);
    settings.set(&request(None, &[(key, None)])).unwrap();
    let query = GetQuery {
        key: Some(key.to_owned()),
        group: Some(other),
    };
    let report = settings.get(&query).unwrap().settings.remove(0);
    assert_eq!(
        (report.value.as_str(), report.origin),
        ("8MiB", SettingOrigin::File)
    );
}

#[test]
fn a_change_with_one_wrong_value_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, _) = open(dir.path());
    for (key, value, code) in [
        (
            "volume.queue-depth",
            Some("99999"),
            ErrorCode::SettingInvalid,
        ),
        ("no.such", Some("1"), ErrorCode::NoSuchSetting),
        (
            "link.heartbeat-timeout",
            Some("1s"),
            ErrorCode::SettingInvalid,
        ),
    ] {
        let wrong = request(None, &[("volume.queues", Some("4")), (key, value)]);
        assert_eq!(settings.set(&wrong).unwrap_err().code, code, "{key}");
    }
    assert_eq!(settings.group(&group()).queues, 1);
    assert!(!dir.path().join(FILE).exists());
    let wrong = request(Some(group()), &[("events.kept", Some("500"))]);
    assert_eq!(
        settings.set(&wrong).unwrap_err().code,
        ErrorCode::SettingInvalid
    );
}

#[test]
fn a_change_that_cannot_be_kept_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, _) = open(dir.path());
    // A directory in the way of the file cannot be replaced by it, whoever the caller is.
    std::fs::create_dir_all(dir.path().join(FILE).join("full")).unwrap();
    let error = settings
        .set(&request(None, &[("volume.queues", Some("4"))]))
        .unwrap_err();
    assert!(error.happened.contains("was not made"), "{error:?}");
    assert_eq!(settings.group(&group()).queues, 1);
}

#[test]
fn a_damaged_file_is_reported_and_the_daemon_starts() {
    let dir = tempfile::tempdir().unwrap();
    for damaged in [
        "][",
        "[node]\n\"no.such\" = \"1\"",
        "[node]\n\"volume.queues\" = \"many\"",
    ] {
        std::fs::write(dir.path().join(FILE), damaged).unwrap();
        let (settings, troubles) = open(dir.path());
        assert_eq!(troubles.len(), 1, "{damaged}");
        assert_eq!(settings.node().request_timeout, Duration::from_secs(10));
    }
}

#[test]
fn settings_of_a_forgotten_group_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, _) = open(dir.path());
    settings
        .set(&request(Some(group()), &[("volume.queues", Some("4"))]))
        .unwrap();
    settings.forget_group(&group());
    assert_eq!(open(dir.path()).0.group(&group()).queues, 1);
}

#[test]
fn settings_page_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/settings.md");
    let text = settings_markdown();
    if std::env::var_os("BLKREP_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == text,
        "docs/reference/settings.md is stale: run the test with BLKREP_BLESS=1"
    );
}
