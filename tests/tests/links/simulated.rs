//! A link to nowhere: it measures, and protects nothing.

use crate::lab::{Lab, MIB, same};
use crate::volume::Volume;
use serde_json::Value;

fn problems(group: &Value) -> String {
    group["problems"].to_string()
}

fn simulated(link: &Value, name: &str) -> u64 {
    link["simulated"][name].as_u64().unwrap_or(0)
}

#[test]
fn a_simulated_link_measures_what_a_real_one_would_need() {
    let lab = Lab::new();
    let source = lab.node("a");
    let disk = lab.file("disk", 4 * MIB, 3);
    let volume = source.attach("pg", &disk, "--group db");
    source.ok("set --group db link.simulated-rate=1MiB");
    let said = source.ok("connect db --to null --json");
    assert!(said.contains("simulated"), "{said}");
    let link = source.link("db", "the mirror to end", |link| {
        simulated(link, "mirror_bytes") >= 4 * MIB && link["mirror"]["state"] == "idle"
    });
    let wire = simulated(&link, "mirror_compressed_bytes");
    assert!(wire > 0 && wire < 2 * MIB, "{link}");
    assert_eq!(simulated(&link, "rate_bytes"), MIB);
    assert_eq!(simulated(&link, "mirror_ms"), wire * 1000 / MIB);
    assert_eq!(link["simulated"]["write_bytes"], 0);

    let mut open = Volume::open(&volume);
    for at in 0..4 {
        let bytes: Vec<u8> = std::fs::read(&disk).unwrap();
        let piece = usize::try_from(MIB).unwrap();
        open.write(at * MIB, &bytes[..piece]).unwrap();
    }
    let link = source.link("db", "the writes to be seen", |link| {
        simulated(link, "write_bytes") >= 4 * MIB
    });
    let wire = simulated(&link, "write_compressed_bytes");
    for name in [
        "queue_bytes",
        "peak_1s_bytes",
        "peak_10s_bytes",
        "peak_60s_bytes",
    ] {
        assert!(
            (1..=wire).contains(&simulated(&link, name)),
            "{name}: {link}"
        );
    }
    let text = source.ctl("status db").stdout;
    for words in [
        "simulated for",
        "on a line of 1.0 MiB a second",
        "simulated, stopped",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    source.event("link-simulated", "protects nothing");
}

#[test]
fn a_simulated_link_protects_nothing_and_says_so() {
    let lab = Lab::new();
    let (mut source, target) = (lab.node("a"), lab.node("b"));
    let disk = lab.file("disk", 2 * MIB, 3);
    source.attach("pg", &disk, "--group db");
    for line in [
        "--mode sync",
        "--mode memory",
        "--map pg=/x",
        "--overwrite --yes",
    ] {
        source.no(&format!("connect db --to null {line}"), "bad-request");
    }
    source.ok("connect db --to null --as nowhere");
    let link = source.link("db", "it to begin", |link| {
        link["connection"] == "simulated"
    });
    for (field, value) in [("data_state", "not-ready"), ("replication", "stopped")] {
        assert_eq!(link[field], value, "{link}");
    }
    assert_eq!(
        (&link["sent_bytes"], &link["sent_compressed_bytes"]),
        (&0.into(), &0.into())
    );
    let group = source.group("db").unwrap();
    let said = problems(&group);
    assert!(
        said.contains("has no link") && said.contains("is simulated"),
        "{said}"
    );

    let real = format!("connect db --to {}", target.address);
    source.no(&format!("{real} --as nowhere"), "link-exists");
    source.ok(&format!("{real} --as east"));
    source.no("connect db --to null --as east", "link-exists");
    let mut last = Value::Null;
    crate::lab::until("the real link is equal", || {
        last = source.group("db")?;
        let links = last["links"].as_array()?;
        let east = links.iter().find(|link| link["name"] == "east")?;
        (east["data_state"] == "ok" && east["mirror"]["state"] == "idle").then_some(())
    });
    same(&target.replicas.join("db.pg.img"), &disk);
    assert!(!problems(&source.group("db").unwrap()).contains("has no link"));
    source.ok("disconnect db --link nowhere --forget --yes");
    assert_eq!(
        source.group("db").unwrap()["links"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn a_simulated_link_goes_on_after_a_restart() {
    let lab = Lab::new();
    let mut source = lab.node("a");
    let disk = lab.file("disk", 2 * MIB, 3);
    source.attach("pg", &disk, "--group db");
    source.ok("connect db --to null");
    source.link("db", "it to begin", |link| {
        link["connection"] == "simulated"
    });
    source.stop();
    source.start();
    source.link("db", "it to begin again", |link| {
        link["connection"] == "simulated"
    });
}
