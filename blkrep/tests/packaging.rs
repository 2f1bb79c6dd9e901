//! The packaged files agree with the code they serve.
#![allow(clippy::unwrap_used)]

use std::path::Path;

fn packaged(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../packaging")
        .join(name);
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_rule_tests_the_files_the_daemon_writes_and_jumps_to_labels_that_exist() {
    let rule = packaged("udev/61-blkrep.rules");
    for path in [
        "/run/blkrep/device/$kernel",
        "/run/blkrep/backing/$major:$minor",
        "/etc/blkrep/backing/path:$env{ID_PATH}",
        "/etc/blkrep/backing/dm:$env{DM_NAME}",
        "/etc/blkrep/backing/kernel:$kernel",
    ] {
        assert!(rule.contains(&format!("TEST==\"{path}\"")), "{path}");
    }
    for jump in rule.split("GOTO=\"").skip(1) {
        let label = jump.split('"').next().unwrap();
        assert!(rule.contains(&format!("LABEL=\"{label}\"")), "{label}");
    }
}

#[test]
fn the_groups_are_those_that_roles_are_judged_by() {
    let groups = packaged("systemd/blkrep.sysusers.conf");
    for name in [blkrep::control::ADMIN_GROUP, blkrep::control::MONITOR_GROUP] {
        assert!(groups.lines().any(|line| line == format!("g {name} - -")));
    }
}

#[test]
fn the_unit_keeps_what_devices_need() {
    let unit = packaged("systemd/blkrepd.service");
    for line in [
        "Type=notify",
        "KillMode=mixed",
        "LimitMEMLOCK=infinity",
        "RuntimeDirectoryPreserve=yes",
        "Before=remote-fs-pre.target",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
}
