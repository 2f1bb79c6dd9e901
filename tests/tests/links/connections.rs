//! Several connections of a link, and one of them lost.

use crate::lab::{Lab, MIB, same};
use crate::volume::Volume;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Connections through a relay on the loopback address, in the order in which they were made.
#[derive(Default)]
struct Relay(Mutex<Vec<TcpStream>>);

impl Relay {
    fn to(target: SocketAddr) -> (SocketAddr, Arc<Self>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let relay = Arc::new(Self::default());
        let kept = Arc::clone(&relay);
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near.unwrap(), TcpStream::connect(target).unwrap());
                kept.0.lock().unwrap().push(near.try_clone().unwrap());
                let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
                for (from, to) in [(near, far), back] {
                    std::thread::spawn(move || pass(from, to));
                }
            }
        });
        (address, relay)
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Ends one connection both ways.
    fn end(&self, which: usize) {
        let _ = self.0.lock().unwrap()[which].shutdown(Shutdown::Both);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

#[test]
fn a_link_goes_on_when_one_of_its_connections_is_lost() {
    let lab = Lab::new();
    let (source, target) = (lab.node("a"), lab.node("b"));
    let disk = lab.file("disk", 16 * MIB, 3);
    let volume = source.attach("pg", &disk, "--group db");
    source.ok("set --group db link.reconnect-interval=200ms");
    let (address, relay) = Relay::to(target.address.to_string().parse().unwrap());
    source.ok(&format!("connect db --to {address} --connections 4 --wait"));
    let all = source.link("db", "four connections", |link| link["connections"] == 4);
    assert_eq!(all["connections_wanted"], 4);
    assert_eq!(all["connections_lost"], 0);
    assert_eq!(relay.count(), 4);

    let mut open = Volume::open(&volume);
    for round in 0..24_u64 {
        let value = u8::try_from(round).unwrap() + 1;
        open.write(round % 16 * MIB, &vec![value; 1 << 20]).unwrap();
        if round % 8 == 4 {
            // The first one, of the session itself, is spared.
            relay.end(usize::try_from(1 + round / 8).unwrap());
        }
    }
    let whole = source.link("db", "all of it again", |link| {
        link["connections"] == 4 && link["queue"]["ops"] == 0
    });
    assert_eq!(whole["connections_lost"], 3, "{whole}");
    same(&target.replicas.join("db.pg.img"), &disk);
    let text = source.ctl("status db").stdout;
    assert!(text.contains("4 of 4 connections, 3 lost"), "{text}");
    let events = source.ctl("events").stdout;
    for name in ["connection-lost", "connection-restored"] {
        assert!(events.contains(name), "{events}");
    }
    assert!(!events.contains("link-down"), "{events}");
    let text = target.ctl("status db").stdout;
    assert!(text.contains("4 connections"), "{text}");
}

#[test]
fn another_number_of_connections_is_used_from_the_next_session_on() {
    let lab = Lab::new();
    let (source, target) = (lab.node("a"), lab.node("b"));
    let disk = lab.file("disk", MIB, 3);
    source.attach("pg", &disk, "--group db");
    source.ok(&format!("connect db --to {} --wait", target.address));
    assert_eq!(source.equal("db")["connections"], 1);
    source.ok("set --group db link.connections=3");
    let now = source.link("db", "the setting", |link| link["connections_wanted"] == 3);
    assert_eq!(now["connections"], 1);
    source.ok("disconnect db");
    source.ok(&format!("connect db --to {}", target.address));
    source.link("db", "three connections", |link| link["connections"] == 3);
    for wrong in ["0", "17", "many"] {
        let refused = source.ctl(&format!("set --group db link.connections={wrong}"));
        assert_ne!(refused.code, Some(0), "{wrong}");
    }
}
