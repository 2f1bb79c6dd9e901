//! Requests that wait for an operator, under the policy `freeze`: nothing else waits with them.

use crate::full::{fill, inside, open, small_disk};
use crate::lab::{Lab, MIB, Node, Ran, ctl, run, same, until};
use crate::volume::socket_of;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;

/// A node whose volume `pg` of group `db` waits for an operator, and the writer that waits with it.
struct Frozen {
    node: Node,
    address: String,
    filled: PathBuf,
    writer: JoinHandle<std::io::Result<()>>,
}

fn frozen(lab: &Lab) -> Frozen {
    let mut node = lab.plan("a");
    let disks = lab.path("disks");
    small_disk(&mut node, &disks, 4 * MIB);
    node.start();
    node.ok("set volume.on-backing-error=freeze");
    let disk = disks.join("disk");
    let file = File::create(inside(&node, &disk)).unwrap();
    file.set_len(8 << 20).unwrap();
    let address = node.attach("pg", &disk, "--group db");
    let filled = fill(&node, &disks);
    let mut volume = open(&node, &address);
    let writer = std::thread::spawn(move || volume.write(0, &[1; 8192]));
    node.event("volume-frozen", "");
    Frozen {
        node,
        address,
        filled,
        writer,
    }
}

#[test]
fn a_frozen_volume_is_detached_by_force_and_its_writer_gets_an_error() {
    let lab = Lab::new();
    let target = lab.node("b");
    let Frozen {
        mut node, writer, ..
    } = frozen(&lab);
    let other = lab.file("other", 2 * MIB, 1);
    node.attach("other", &other, "");
    node.no("detach pg", "device-open");
    node.ok("detach pg --force --yes");
    writer.join().unwrap().unwrap_err();
    node.event("volume-detach-forced", "");
    assert!(node.group("db").is_none(), "nothing of it is left");
    // Others never noticed.
    node.ok(&format!("connect other --to {}", target.address));
    node.equal("other");
    node.ok("detach other");
    node.alive();
}

/// Before, the volume of a group with a link could not be had back: its writer's request was still
/// there.
#[test]
fn what_was_detached_by_force_is_attached_again_and_the_replica_becomes_equal() {
    let lab = Lab::new();
    let target = lab.node("b");
    let Frozen {
        node,
        address,
        filled,
        writer,
    } = frozen(&lab);
    node.ok(&format!("connect db --to {}", target.address));
    node.ok("detach pg --force --yes");
    writer.join().unwrap().unwrap_err();
    std::fs::remove_file(filled).unwrap();
    let disk = lab.path("disks/disk");
    node.attach("pg", &disk, "--group db");
    let mut volume = open(&node, &address);
    volume.write(0, &[3; 8192]).unwrap();
    volume.flush().unwrap();
    node.equal("db");
    same(&target.replicas.join("db.pg.img"), &inside(&node, &disk));
}

/// The daemon waited for the answers of requests that wait for an operator.
#[test]
fn a_daemon_with_a_frozen_volume_can_be_stopped_and_goes_on_later() {
    let lab = Lab::new();
    let Frozen {
        mut node, writer, ..
    } = frozen(&lab);
    node.stop();
    writer.join().unwrap().unwrap_err();
}

/// A forced detach of volume `pg` that goes on behind; it is under way when this returns.
fn begin_detach(node: &Node) -> JoinHandle<Ran> {
    let socket = node.socket();
    let detach = std::thread::spawn(move || run(ctl(&socket, "detach pg --force --yes")));
    until("the detach is under way", || {
        node.group("db")
            .is_none_or(|group| group["volumes"][0]["state"] != "served")
            .then_some(())
    });
    detach
}

/// A client that asks for more than it takes holds up its own device's end, and nobody else.
#[test]
fn a_detach_that_takes_long_holds_up_no_other_command() {
    let lab = Lab::new();
    let mut node = lab.node("a");
    let [disk, other] = ["disk", "other"].map(|name| lab.file(name, 8 * MIB, 1));
    let address = node.attach("pg", &disk, "--group db");
    let mut greedy = Greedy::of(&address);
    greedy.ask();
    let detach = begin_detach(&node);
    node.attach("other", &other, "");
    let said = node.no(
        "attach pg --backing /dev/null --frontend nbd --group db",
        "group-busy",
    );
    assert!(said.contains("detach"), "{said}");
    node.ok("detach other");
    assert!(
        !detach.is_finished(),
        "it did not take long: nothing is shown"
    );
    let ran = detach.join().unwrap();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    drop(greedy);
    assert!(node.group("db").is_none());
    node.alive();
}

/// The table kept a volume that nothing served and nobody could see a reason for.
#[test]
fn a_detach_that_a_kill_cut_short_is_finished_by_the_next_start() {
    let lab = Lab::new();
    let mut node = lab.node("a");
    let disk = lab.file("disk", 8 * MIB, 1);
    let address = node.attach("pg", &disk, "--group db");
    let mut greedy = Greedy::of(&address);
    greedy.ask();
    let detach = begin_detach(&node);
    node.kill();
    assert_ne!(
        detach.join().unwrap().code,
        Some(0),
        "it was done already: nothing is shown"
    );
    node.start();
    assert!(node.group("db").is_none(), "{:?}", node.group("db"));
    node.event("volume-detached", "the daemon ended");
    node.attach("pg", &disk, "--group db");
}

/// Asks for much and takes nothing.
struct Greedy(UnixStream);

impl Greedy {
    fn of(address: &str) -> Self {
        let mut stream = UnixStream::connect(socket_of(address)).unwrap();
        let mut hello = [0; 18];
        stream.read_exact(&mut hello).unwrap();
        // Fixed newstyle without the zeroes; then the export `pg` without any option.
        stream.write_all(&3_u32.to_be_bytes()).unwrap();
        stream.write_all(b"IHAVEOPT").unwrap();
        stream.write_all(&1_u32.to_be_bytes()).unwrap();
        stream.write_all(&2_u32.to_be_bytes()).unwrap();
        stream.write_all(b"pg").unwrap();
        let mut export = [0; 10];
        stream.read_exact(&mut export).unwrap();
        Self(stream)
    }

    fn ask(&mut self) {
        for cookie in 0..8_u64 {
            let mut head = Vec::new();
            head.extend(0x2560_9513_u32.to_be_bytes());
            head.extend(0_u32.to_be_bytes());
            head.extend(cookie.to_be_bytes());
            head.extend(0_u64.to_be_bytes());
            head.extend((1_u32 << 20).to_be_bytes());
            self.0.write_all(&head).unwrap();
        }
    }
}
