//! Another disk in the place of one that failed: what may not hold the volume is refused, and the link stays.

use crate::lab::{Lab, MIB, same};

#[test]
fn another_disk_takes_the_place_of_a_failed_one_and_the_link_stays() {
    let lab = Lab::new();
    let (mut source, mut target) = (lab.node("a"), lab.node("b"));
    let disk = lab.file("disk", 2 * MIB, 3);
    source.attach("pg", &disk, "--group db");
    source.ok(&format!("connect db --to {} --wait", target.address));
    source.equal("db");
    let new = target.replicas.join("new.img");
    let (new, replaced) = (new.display().to_string(), "replace db --map");
    let said = target.no(&format!("{replaced} pg=/etc/x --yes"), "target-path-denied");
    assert!(said.contains("/etc/x"), "{said}");
    target.no(&format!("{replaced} wal={new} --yes"), "no-such-volume");
    target.no(
        &format!("replace other --map pg={new} --yes"),
        "no-such-group",
    );
    source.equal("db");
    target.ok(&format!("{replaced} pg={new} --yes"));
    target.event("target-replaced", &new);
    source.link("db", "the whole disk to travel again", |link| {
        link["sent_bytes"].as_u64() >= Some(4 << 20)
    });
    source.equal("db");
    same(new.as_ref(), &disk);

    let (other, small) = (lab.file("other", 2 * MIB, 8), lab.file("small", MIB, 8));
    let (other_path, small) = (other.display(), small.display());
    source.no(&format!("{replaced} pg={other_path} --yes"), "group-busy");
    source.ok("detach pg --yes");
    source.no(
        &format!("{replaced} pg={small} --yes"),
        "backing-unsuitable",
    );
    source.ok(&format!("{replaced} pg={other_path} --yes"));
    source.attach("pg", &other, "--group db");
    source.equal("db");
    same(new.as_ref(), &other);
}
