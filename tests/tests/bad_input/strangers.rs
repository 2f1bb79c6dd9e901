//! Clients that speak rubbish, and people without rights.

use crate::lab::{LIMIT, Lab, MIB, Node, ctl, run, same};
use crate::volume::{Volume, socket_of};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Sends bytes, says that no more come, and waits until the other end closes.
fn send(mut stream: impl Read + Write, bytes: &[u8], end: impl FnOnce()) {
    // It may close before it has everything.
    let _ = stream.write_all(bytes);
    end();
    let mut rest = Vec::new();
    if let Err(error) = stream.read_to_end(&mut rest) {
        assert_ne!(
            error.kind(),
            std::io::ErrorKind::WouldBlock,
            "it neither answers nor closes"
        );
    }
}

fn knock_unix(path: &Path, bytes: &[u8]) {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    let other = stream.try_clone().unwrap();
    // Gone already if it did not wait for the end.
    send(stream, bytes, || drop(other.shutdown(Shutdown::Write)));
}

fn knock_tcp(address: &str, bytes: &[u8]) {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    let other = stream.try_clone().unwrap();
    send(stream, bytes, || drop(other.shutdown(Shutdown::Write)));
}

#[test]
fn rubbish_at_every_door_harms_only_its_sender() {
    let lab = Lab::new();
    let (mut source, mut target) = (lab.node("a"), lab.node("b"));
    let disk = lab.file("disk", 2 * MIB, 1);
    let address = source.attach("pg", &disk, "--group db");
    source.ok(&format!("connect db --to {}", target.address));
    let mut volume = Volume::open(&address);
    let noise: Vec<u8> = (0..70_000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    let mut hello = b"NBDMAGICIHAVEOPT".to_vec();
    hello.extend([0xff; 64]);
    let samples: [&[u8]; 8] = [
        b"",
        b"\0",
        &noise,
        &noise[..100],
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v1/attach HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        &hello,
    ];
    for (round, bytes) in samples.iter().enumerate() {
        knock_unix(&source.socket(), bytes);
        knock_unix(&socket_of(&address), bytes);
        knock_tcp(&source.address, bytes);
        knock_tcp(&target.address, bytes);
        let mark = u8::try_from(round + 1).unwrap();
        volume.write(u64::from(mark) * 8192, &[mark; 8192]).unwrap();
    }
    volume.flush().unwrap();
    for node in [&mut source, &mut target] {
        node.alive();
        node.event("peer-rubbish", "");
    }
    let link = source.equal("db");
    assert_eq!(link["connection"], "connected");
    assert_eq!(
        volume.read(8192, 16384).unwrap(),
        [[1; 8192], [2; 8192]].concat()
    );
    same(&target.replicas.join("db.pg.img"), &disk);
}

#[test]
fn a_start_without_rights_or_with_something_in_the_way_says_what_to_do() {
    let lab = Lab::new();
    let mut node = lab.plan("a");
    let state = std::mem::replace(&mut node.state, PathBuf::from("/sys/kernel/blkrep"));
    let said = node.refused_start();
    assert!(
        said.contains("/sys/kernel/blkrep") && said.contains("--state"),
        "{said}"
    );
    std::fs::write(&state, b"precious").unwrap();
    node.state.clone_from(&state);
    let said = node.refused_start();
    assert!(
        said.contains(state.to_str().unwrap()) && said.contains("--state"),
        "{said}"
    );
    std::fs::remove_file(&state).unwrap();
    std::fs::write(node.socket(), b"precious").unwrap();
    let said = node.refused_start();
    assert!(
        said.contains("no socket") && said.contains("--socket"),
        "{said}"
    );
    assert_eq!(std::fs::read(node.socket()).unwrap(), b"precious");
    std::fs::remove_file(node.socket()).unwrap();
    let mut command = node.command();
    command.args(["--allow-replica-dir", "relative"]);
    let said = run(command).stderr;
    assert!(
        said.contains("relative") && said.contains("absolute"),
        "{said}"
    );
    // Whatever was refused left nothing in the way.
    node.start();
    let mut second = lab.plan("second");
    second.address.clone_from(&node.address);
    let said = second.refused_start();
    assert!(
        said.contains(&node.address) && said.contains("--listen"),
        "{said}"
    );
}

/// A program where everybody may run it.
fn for_everybody(lab: &Lab, program: &Path) -> PathBuf {
    let copy = lab.path(program.file_name().unwrap().to_str().unwrap());
    std::fs::copy(program, &copy).unwrap();
    copy
}

fn as_nobody(command: &Command, program: &Path) -> Command {
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    nobody.arg(program).args(command.get_args());
    nobody
}

#[test]
fn who_has_no_role_is_told_which_group_he_needs() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "only root can become somebody else: run this test as root"
    );
    let lab = Lab::new();
    for dir in [lab.path(""), lab.path("a")] {
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut node: Node = lab.node("a");
    let line = ctl(&node.socket(), "detach pg --json");
    let program = for_everybody(&lab, Path::new(line.get_program()));
    let nobody = |words: &str| run(as_nobody(&ctl(&node.socket(), words), &program));
    for line in [
        "status",
        "events",
        "doctor",
        "get",
        "detach pg",
        "set volume.queues=2",
    ] {
        let ran = nobody(line);
        assert_eq!(ran.code, Some(2), "{line}: {ran:?}");
        assert!(ran.stderr.contains("needs the role") && ran.stderr.contains("do: run it as root"));
        assert!(ran.stderr.contains("blkrep-"), "{line}: {}", ran.stderr);
        assert_eq!(ran.stdout, "");
    }
    // A socket in a place that he may not enter.
    std::fs::set_permissions(&node.dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    let ran = nobody("status");
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("you may not open it"), "{}", ran.stderr);
    assert!(ran.stderr.contains("do: run it as root"), "{}", ran.stderr);
    node.alive();
}
