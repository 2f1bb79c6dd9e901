//! Another base in the place of one.

use super::super::*;
use super::faults::{followed, state, writes};
use super::rig::{Rig, STATE, base};
use blkrep_types::{DataState, VolumeName};
use std::path::Path;

/// Opens the stopped replica with another base for its second volume.
fn replace(rig: &mut Rig, volume: &str, path: &str) -> Result<(), TargetError> {
    let host = rig.world.start(rig.target);
    let name = VolumeName::new(volume).unwrap();
    let replacement = Replacement {
        volume: &name,
        path: Path::new(path),
        overwrite: false,
        policy: &rig.policy,
    };
    let opened = ReplicaFiles::open_replacing(&host, Path::new(STATE), &replacement);
    let process = host.process();
    let done = opened.map(|opened| assert!(opened.is_some(), "there is a replica"));
    rig.world.crash_process(process);
    done
}

#[test]
fn a_replaced_base_is_mirrored_and_the_others_are_not() {
    let mut rig = followed(131);
    writes(&rig, 40, 8);
    rig.settle();
    let mirrored = rig.book.borrow().mirror_bytes;
    rig.stop();
    let new = base(7);
    replace(&mut rig, "v1", new.to_str().unwrap()).unwrap();
    // Also if the power goes before anything else happens.
    rig.power_loss();
    rig.restart_target();
    assert_ne!(rig.status().data_state, DataState::Ok);
    assert_eq!(rig.status().volumes[1].path, new);
    rig.settle();
    assert_eq!(rig.status().data_state, DataState::Ok);
    let book = rig.book.borrow();
    assert_eq!(
        book.mirror_bytes - mirrored,
        book.volume_bytes,
        "one of two"
    );
    assert!(rig.world.image(rig.target, &base(0)) == book.images[0]);
    assert!(rig.world.image(rig.target, &new) == book.images[1]);
}

#[test]
fn a_base_is_replaced_only_by_what_may_hold_it() {
    let mut rig = followed(132);
    rig.stop();
    let before = rig.world.image(rig.target, &state("superblock"));
    let own = base(0);
    for (volume, path, why) in [
        ("v9", "/replicas/new.img", "no volume 'v9'"),
        ("v1", "/etc/passwd", "refused"),
        ("v1", own.to_str().unwrap(), "two volumes"),
    ] {
        let error = replace(&mut rig, volume, path).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        let after = rig.world.image(rig.target, &state("superblock"));
        assert!(before == after, "{volume} {path}");
    }
    rig.restart_target();
    rig.settle();
    rig.check_equal();
}
