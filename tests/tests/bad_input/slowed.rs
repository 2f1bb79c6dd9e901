//! Writers that are slowed on request: by how much, and what is asked for wrongly.

use crate::lab::{Lab, MIB};
use crate::volume::Volume;
use std::time::{Duration, Instant};

#[test]
fn writes_are_delayed_when_asked_for_and_at_no_other_time() {
    let lab = Lab::new();
    let (mut source, target) = (lab.node("a"), lab.node("b"));
    let disk = lab.file("disk", MIB, 1);
    let mut volume = Volume::open(&source.attach("pg", &disk, "--group db"));
    source.ok(&format!("connect db --to {} --wait", target.address));
    let levels = "set --group db group.throttle=adaptive group.throttle-start=50";
    let why = source.no(
        &format!("{levels} group.throttle-stop=50"),
        "setting-invalid",
    );
    assert!(why.contains("below group.throttle-start"), "{why}");
    assert!(source.group("db").unwrap().get("throttle").is_none());
    source.ok("set --group db group.throttle=always group.throttle-delay=400ms");
    let begun = Instant::now();
    volume.write(0, &[7; 4096]).unwrap();
    // Its worker may have looked at the clock a little before it came.
    assert!(begun.elapsed() >= Duration::from_millis(300), "it waited");
    let throttle = source.group("db").unwrap()["throttle"].clone();
    assert_eq!(throttle["delay_us"], 400_000);
    assert_eq!(throttle["delayed_writes"], 1);
    // One that waits goes when nobody wants it to wait any more.
    source.ok("set --group db group.throttle-delay=1s");
    let waiting = std::thread::spawn(move || volume.write(4096, &[8; 4096]));
    source.ok("set --group db group.throttle=off");
    waiting.join().unwrap().unwrap();
    assert_eq!(source.group("db").unwrap()["throttle"]["delay_us"], 0);
    source.equal("db");
}
