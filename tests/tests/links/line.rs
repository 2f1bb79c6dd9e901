//! How a link's connections share the line: the kernel's ways, and limits that are a part of it.

use crate::lab::{Lab, MIB};
use std::fs;

#[test]
fn a_living_link_takes_another_congestion_control_and_goes_on_without_one_that_is_not_there() {
    let lab = Lab::new();
    let (source, target) = (lab.node("a"), lab.node("b"));
    let disk = lab.file("disk", MIB, 3);
    source.attach("pg", &disk, "--group db");
    source.ok(&format!(
        "connect db --to {} --connections 2 --wait",
        target.address
    ));
    let systems = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
    let in_force = |wanted: &str| {
        let wanted = wanted.trim().to_owned();
        source.link("db", "that congestion control", move |link| {
            link["congestion_control"] == wanted.as_str()
        })
    };
    in_force(&systems);
    // Every kernel has it.
    source.ok("set --group db link.congestion-control=reno");
    in_force("reno");
    source.ok("set --group db link.congestion-control=no-such-way");
    source.event("congestion-control-refused", "modprobe tcp_no-such-way");
    in_force(&systems);
    let events = source.ctl("events").stdout;
    assert!(
        !events.contains("link-down"),
        "the session went on: {events}"
    );
    let text = source.ctl("status db").stdout;
    assert!(
        text.contains("no congestion control 'no-such-way'"),
        "{text}"
    );
    source.ok("set --group db link.congestion-control=");
    source.link("db", "no refusal", |link| {
        link["congestion_refused"].is_null()
    });
    let wrong = source.ctl("set --group db link.congestion-control=../bbr");
    assert_ne!(wrong.code, Some(0), "{}", wrong.stdout);
}

#[test]
fn a_limit_may_be_a_part_of_the_line() {
    let lab = Lab::new();
    let (mut source, target) = (lab.node("a"), lab.node("b"));
    let disk = lab.file("disk", MIB, 3);
    source.attach("pg", &disk, "--group db");
    source.ok(&format!("connect db --to {} --wait", target.address));
    let said = source.no("transmit limit db 70%", "setting-invalid");
    assert!(said.contains("link.line-rate"), "{said}");
    source.ok("transmit limit db 70% --line 100Mbit/s");
    source.link("db", "the limit", |link| {
        link["bandwidth_limit"] == 8_750_000
    });
    source.ok("transmit limit db --line 10Mbit/s");
    source.link("db", "that of another line", |link| {
        link["bandwidth_limit"] == 875_000
    });
    source.event("bandwidth-changed", "7Mbit/s");
    let kept = source.ok("get link.bandwidth --group db");
    assert!(kept.contains("70%"), "{kept}");
    source.no("transmit limit db --line none", "setting-invalid");
}
