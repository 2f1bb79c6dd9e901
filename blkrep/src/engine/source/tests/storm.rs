//! Random faults under load: whatever happens, source and target become equal.

use super::rig::{Rig, VOLUMES};
use super::rig::{extent, link};
use blkrep_core::source::Transmit;
use blkrep_types::{DataState, ExtentSize, MirrorKind, Mode, VolumeIndex};

fn fault(rig: &mut Rig) {
    let which = rig.random.below(12);
    if std::env::var_os("BLKREP_TELL").is_some() {
        let events = std::mem::take(&mut rig.events);
        let replica = rig.replica.lock().unwrap();
        eprintln!("{events:#?}\n{:?} {:?}", replica.name, replica.state);
        eprintln!("{:?}\nfault {which}", rig.daemon().shared.status());
    }
    match which {
        0..=2 => {
            rig.kill();
            let pause = rig.random.below(50);
            rig.run(pause);
            rig.start();
        }
        3 | 4 => {
            rig.power_loss();
            rig.start();
        }
        5 => {
            rig.stop(false);
            if rig.random.one_in(2) {
                rig.power_loss();
            }
            rig.start();
        }
        6 | 7 => {
            let mut replica = rig.replica.lock().unwrap();
            replica.reachable = !replica.reachable;
        }
        8 => rig.run(3000),
        9 => {
            let kind = [
                MirrorKind::Checksum,
                MirrorKind::Difference,
                MirrorKind::Full,
            ];
            let kind = kind[rig.random.index(3)];
            rig.shared().start_mirror(&link(), kind).unwrap();
        }
        10 => {
            let how = [Transmit::Paused, Transmit::Stopped, Transmit::Started];
            let how = how[rig.random.index(3)];
            rig.shared().set_transmit(&link(), how).unwrap();
        }
        _ => target_fault(rig),
    }
}

/// The target loses an extent, and knows it.
fn target_fault(rig: &mut Rig) {
    let volume = rig.random.index(VOLUMES);
    let grain = ExtentSize::DIRTY_DEFAULT.get();
    let at = rig.random.below(16) * grain;
    let was = rig.replica.lock().unwrap().reachable;
    rig.replica.lock().unwrap().reachable = false;
    rig.run(300);
    let mut replica = rig.replica.lock().unwrap();
    let from = usize::try_from(at).unwrap();
    replica.images[volume][from..from + 65536].fill(0xcc);
    let index = VolumeIndex::new(u16::try_from(volume).unwrap());
    replica.lost.push((index, extent(at, grain)));
    replica.merged = None;
    if replica.state == DataState::Ok {
        replica.state = DataState::MirrorRequired;
    }
    replica.reachable = was;
}

fn storm(seed: u64) {
    let mut rig = Rig::new(seed);
    rig.start();
    rig.load(20);
    let kinds = [MirrorKind::Full, MirrorKind::Checksum];
    let kind = kinds[rig.random.index(2)];
    let mode = [Mode::Async, Mode::Async, Mode::Sync][rig.random.index(3)];
    rig.connect(kind, mode);
    for _ in 0..12 {
        let count = rig.random.index(60);
        rig.load(count);
        fault(&mut rig);
        // What is known to be equal stays known: a floor moves on between storms.
        if rig.random.one_in(4) {
            rig.run(25_000);
        }
    }
    rig.replica.lock().unwrap().reachable = true;
    rig.shared()
        .set_transmit(&link(), Transmit::Started)
        .unwrap();
    rig.load(20);
    rig.settle();
}

#[test]
fn source_and_target_become_equal_after_any_storm() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let first = number("BLKREP_SEED").unwrap_or(100);
    let count = number("BLKREP_SEEDS");
    let usual = if number("BLKREP_SEED").is_some() {
        1
    } else {
        80
    };
    let seeds = first..first + count.unwrap_or(usual);
    for seed in seeds {
        let ran = std::panic::catch_unwind(|| storm(seed));
        if let Err(cause) = ran {
            eprintln!("replay with BLKREP_SEED={seed}");
            std::panic::resume_unwind(cause);
        }
    }
}
