//! Compression, as it is set and shown.

use crate::lab::{Lab, MIB, same};
use crate::volume::Volume;

fn counters(link: &serde_json::Value) -> (u64, u64) {
    let count = |name: &str| link[name].as_u64().unwrap();
    (count("sent_bytes"), count("sent_compressed_bytes"))
}

#[test]
fn mirror_and_writes_are_compressed_and_counted() {
    let lab = Lab::new();
    let (source, target) = (lab.node("a"), lab.node("b"));
    let disk = lab.file("disk", 4 * MIB, 3);
    let volume = source.attach("pg", &disk, "--group db");
    source.ok("set --group db link.compression=on");
    source.ok(&format!("connect db --to {} --wait", target.address));
    let mirrored = source.equal("db");
    assert_eq!(mirrored["compression"], "on");
    let (plain, wire) = counters(&mirrored);
    assert!(
        plain >= 4 * MIB && wire > 0 && wire < plain / 2,
        "{wire} of {plain}"
    );
    let text = source.ctl("status db").stdout;
    assert!(
        text.contains(" to 1)") && !text.contains("not compressed"),
        "{text}"
    );
    same(&target.replicas.join("db.pg.img"), &disk);

    let mut open = Volume::open(&volume);
    open.write(0, &vec![7; 1 << 20]).unwrap();
    let written = source.link("db", "the write to travel", |link| {
        counters(link).0 >= plain + MIB && link["queue"]["ops"] == 0
    });
    assert!(counters(&written).1 < wire + MIB / 10, "{written}");

    source.ok("set --group db link.compression=off");
    open.write(MIB, &vec![8; 1 << 20]).unwrap();
    let off = source.link("db", "another write to travel", |link| {
        counters(link).0 >= plain + 2 * MIB && link["queue"]["ops"] == 0
    });
    let more = counters(&off).1 - counters(&written).1;
    assert!((MIB..MIB + MIB / 10).contains(&more), "{more}");
    assert_eq!(off["compression"], "off");
    let text = source.ctl("status db").stdout;
    assert!(text.contains("not compressed: it is off"), "{text}");
    same(&target.replicas.join("db.pg.img"), &disk);
}

#[test]
fn a_line_that_takes_all_at_once_is_left_alone_and_said_so() {
    let lab = Lab::new();
    let (source, target) = (lab.node("a"), lab.node("b"));
    let disk = lab.file("disk", MIB, 3);
    source.attach("pg", &disk, "--group db");
    source.ok(&format!("connect db --to {} --wait", target.address));
    let link = source.equal("db");
    assert_eq!(link["compression"], "line-idle");
    let (plain, wire) = counters(&link);
    assert!(wire > plain, "frames and all: {wire} of {plain}");
}
