//! Backings that cannot be served.

use crate::damage::content;
use crate::lab::{Lab, MIB, pattern};
use crate::volume::Volume;
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;

#[test]
fn a_backing_that_cannot_be_served_is_refused_by_name_and_nothing_is_changed() {
    let lab = Lab::new();
    let mut node = lab.node("a");
    let disk = lab.file("disk", 4 * MIB, 1);
    let address = node.attach("pg", &disk, "--group db --size 2MiB");
    let held = lab.file("held", MIB, 2);
    let _claim = nix::fcntl::Flock::lock(
        std::fs::File::open(&held).unwrap(),
        nix::fcntl::FlockArg::LockExclusive,
    )
    .unwrap();
    let empty = lab.file("empty", 0, 0);
    let small = lab.file("small", 511, 0);
    symlink(&disk, lab.path("alias")).unwrap();
    symlink(lab.path("nowhere"), lab.path("dangling")).unwrap();
    let dir = lab.path("");
    let dir = dir.display();
    let before = content(&lab.path(""));
    for (line, code) in [
        (format!("x --backing {dir}/none"), "backing-missing"),
        (format!("x --backing {dir}/dangling"), "backing-missing"),
        (format!("x --backing {dir}"), "backing-unsuitable"),
        ("x --backing /dev/null".to_owned(), "backing-unsuitable"),
        (format!("x --backing {dir}/a/s"), "backing-unsuitable"),
        (
            format!("x --backing {}", empty.display()),
            "backing-unsuitable",
        ),
        (
            format!("x --backing {}", small.display()),
            "backing-unsuitable",
        ),
        (format!("x --backing {}", held.display()), "backing-in-use"),
        (format!("x --backing {dir}/disk"), "backing-attached"),
        (format!("x --backing {dir}/alias"), "backing-attached"),
        (
            format!("x --backing {dir}/disk --offset 2MiB"),
            "backing-attached",
        ),
        (
            format!("x --backing {dir}/disk --group db --offset 1MiB"),
            "backing-overlaps",
        ),
        (
            format!("x --backing {dir}/disk --group db --offset 2MiB --size 3MiB"),
            "backing-unsuitable",
        ),
        (
            format!("x --backing {dir}/disk --group db --offset 2097153"),
            "backing-unsuitable",
        ),
        (
            format!("x --backing {dir}/disk --group db --offset 2MiB --size 1000"),
            "backing-unsuitable",
        ),
        (
            format!("x --backing {dir}/disk --group db --offset 64GiB"),
            "backing-unsuitable",
        ),
        (
            format!("pg --backing {dir}/disk --group db --size 2MiB"),
            "volume-exists",
        ),
        (
            format!("pg --backing {dir}/small --group other"),
            "volume-exists",
        ),
    ] {
        let said = node.no(&format!("attach {line} --frontend nbd"), code);
        assert!(
            said.contains("error: volume ") || said.contains("error: group "),
            "{said}"
        );
    }
    if !std::path::Path::new("/dev/ublk-control").exists() {
        let line =
            format!("attach x --backing {dir}/disk --group db --offset 2MiB --frontend ublk");
        let said = node.no(&line, "frontend-unavailable");
        assert!(said.contains("ublk") && said.contains("nbd"), "{said}");
    }
    assert!(
        content(&lab.path("")) == before,
        "a refused command changed a file"
    );
    let bytes = Volume::open(&address).read(MIB, 512).unwrap();
    assert!(
        bytes
            .iter()
            .zip(MIB..)
            .all(|(byte, at)| *byte == pattern(at, 1))
    );
    let free = std::fs::File::open(&disk).unwrap();
    assert!(nix::sys::stat::fstat(free.as_fd()).unwrap().st_size == 4 << 20);
    // What is right next to it is taken.
    node.attach("wal", &disk, "--group db --offset 2MiB");
}

#[test]
fn a_backing_that_somebody_else_holds_at_the_start_keeps_no_other_from_being_served() {
    let lab = Lab::new();
    let mut node = lab.node("a");
    let [held, missing, free] = ["held", "missing", "free"].map(|name| {
        let disk = lab.file(name, MIB, 3);
        node.attach(name, &disk, "");
        disk
    });
    node.stop();
    let file = std::fs::File::open(&held).unwrap();
    let claim = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let aside = lab.path("aside");
    std::fs::rename(&missing, &aside).unwrap();
    let began = std::time::Instant::now();
    node.start();
    let waited = began.elapsed();
    assert!(waited.as_secs() < 20, "it started after {waited:?}");
    let state = |name: &str| node.group(name).unwrap()["volumes"][0]["state"].clone();
    assert_eq!(state("free"), "served");
    for (name, words) in [("held", "open elsewhere"), ("missing", "No such file")] {
        assert_eq!(state(name), "offline");
        let group = node.group(name).unwrap();
        let problem = &group["problems"][0];
        assert!(
            problem["what"].as_str().unwrap().contains(words),
            "{problem}"
        );
        assert!(
            problem["action"]
                .as_str()
                .unwrap()
                .contains("tried again by itself")
        );
    }
    // What was missing comes back by itself.
    drop(claim);
    std::fs::rename(&aside, &missing).unwrap();
    for name in ["held", "missing"] {
        crate::lab::until("it is served", || (state(name) == "served").then_some(()));
    }
    assert!(free.exists());
}

/// An attach that failed forgot its whole group if no other volume of it was served just then, whatever the trouble.
#[test]
fn an_attach_that_fails_leaves_a_group_whose_volumes_are_in_trouble_what_it_was() {
    let lab = Lab::new();
    let mut node = lab.node("a");
    node.attach("pg", &lab.file("pg", MIB, 1), "--group db");
    let generation = node.group("db").unwrap()["generation"].clone();
    node.stop();
    // Its device cannot be made, for a reason that passes.
    let in_the_way = ["pg", "wal"].map(|name| node.state.join(format!("run/nbd/{name}.sock")));
    in_the_way
        .iter()
        .for_each(|path| std::fs::write(path, b"").unwrap());
    node.start();
    node.event("volume-attach-failed", "in the way");
    let wal = lab.file("wal", MIB, 2);
    let line = format!(
        "attach wal --backing {} --group db --frontend nbd",
        wal.display()
    );
    assert_eq!(node.ctl(&line).code, Some(2));
    in_the_way
        .iter()
        .for_each(|path| std::fs::remove_file(path).unwrap());
    let group = crate::lab::until("the volume is served again", || {
        let group = node.group("db").unwrap();
        (group["volumes"][0]["state"] == "served").then_some(group)
    });
    assert_eq!(group["volumes"].as_array().unwrap().len(), 1, "{group}");
    assert_eq!(group["generation"], generation, "the group is another one");
    node.ok(&line);
    node.alive();
}
