//! Reads of a source that has lost its own copy.

use super::rig::{Rig, base};
use super::source::VOLUME_BYTES;
use blkrep_io::sim::{DiskFault, FaultKind};
use blkrep_types::Errno;
use std::time::Duration;

fn followed(seed: u64) -> Rig {
    let mut rig = Rig::new(seed);
    rig.book.borrow_mut().write(0, 3, 5, 0x11, false);
    rig.settle();
    rig
}

/// Asks, and waits until all of the volume's answer is there: the image, if it can be told.
fn read_all(rig: &mut Rig, volume: u16) -> Option<Vec<u8>> {
    rig.book.borrow_mut().contents.clear();
    rig.book.borrow_mut().read(volume, 0, VOLUME_BYTES);
    rig.poke();
    let complete = |rig: &mut Rig| {
        let book = rig.book.borrow();
        let told = book.contents.iter().map(|part| part.extent.len().get());
        told.sum::<u64>() == VOLUME_BYTES
    };
    assert!(rig.wait(complete), "it is answered");
    let book = rig.book.borrow();
    let mut image = Vec::new();
    for part in &book.contents {
        assert_eq!(part.extent.offset().get(), image.len() as u64, "in order");
        image.extend_from_slice(part.bytes.as_ref()?);
    }
    Some(image)
}

#[test]
fn a_read_sees_everything_written_before_it_and_nothing_behind_it() {
    let mut rig = followed(40);
    for round in 0..20_u8 {
        let at = u64::from(round) * 5 % 110;
        rig.book.borrow_mut().write(0, at, 9, 0x30 + round, false);
        let here = rig.book.borrow().images[0].clone();
        let mut later = rig.book.borrow_mut();
        later.contents.clear();
        later.read(0, 0, VOLUME_BYTES);
        later.write(0, at, 9, 0xee, false);
        drop(later);
        rig.poke();
        assert!(rig.wait(|rig| !rig.book.borrow().contents.is_empty()));
        let found = rig.book.borrow().contents[0].bytes.clone();
        assert!(found.unwrap() == here, "round {round}");
    }
    rig.settle();
    rig.check_equal();
}

#[test]
fn what_was_asked_in_an_earlier_connection_is_not_answered_in_the_next() {
    let mut rig = followed(41);
    rig.pause(true);
    rig.book.borrow_mut().read(0, 0, 4096);
    rig.poke();
    rig.run(Duration::from_secs(1));
    rig.kill();
    rig.restart_target();
    rig.book.borrow_mut().write(1, 0, 1, 0x77, false);
    rig.pause(false);
    rig.settle();
    assert!(rig.book.borrow().contents.is_empty());
    let image = read_all(&mut rig, 1).unwrap();
    assert!(image == rig.book.borrow().images[1]);
}

#[test]
fn a_base_that_cannot_be_read_says_so() {
    let mut rig = followed(42);
    let fault = DiskFault {
        kind: FaultKind::Read,
        bytes: None,
        times: 1,
        errno: Errno::EIO,
    };
    rig.world.inject(rig.target, &base(0), fault);
    assert!(read_all(&mut rig, 0).is_none());
    assert!(read_all(&mut rig, 0).is_some());
}
