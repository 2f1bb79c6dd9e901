//! Groups without links, whose volumes come and go.

use super::*;

const OTHER: VolumeIndex = VolumeIndex::new(1);

fn set(rig: &mut Rig, lens: &[u64]) {
    let lens: Vec<_> = lens.iter().copied().map(ByteLen::new).collect();
    let layout = |size| MapLayout::new(lens.iter().map(|len| (*len, size)));
    let regions = layout(ExtentSize::INTENT);
    let bits = Bits::clear_of(regions.bits());
    let intent = IntentMap::new(bits, regions, IntentOptions::default());
    let dirty = layout(ExtentSize::DIRTY_DEFAULT);
    rig.group.set_volumes(&lens, dirty, intent);
}

fn write(rig: &mut Rig, volume: VolumeIndex, tag: u16) {
    rig.group.submit(NewRequest {
        worker: rig.queue,
        tag,
        volume,
        op: RequestOp::Write { fua: false },
        extent: Some(extent(0, 4096)),
    });
    take(rig);
}

/// As the rig does, which knows of one volume only.
fn take(rig: &mut Rig) {
    let mut actions = Vec::new();
    rig.group.take_actions(rig.queue, &mut actions);
    for action in actions {
        match action {
            Action::Write { id, extent, .. } => rig.running.push((id, extent, None)),
            Action::Complete { tag, result } => rig.answers.push((tag, result)),
            other => panic!("writes are all there is: {other:?}"),
        }
    }
}

fn finish(rig: &mut Rig) {
    let (id, ..) = rig.running.remove(0);
    rig.group.local_done(id, Ok(()));
    take(rig);
}

#[test]
fn a_volume_that_comes_is_served_beside_the_first_and_may_go_when_it_is_idle() {
    let mut rig = Rig::without_log(OnBackingError::Pass, |_| ());
    write(&mut rig, VOLUME, 1);
    set(&mut rig, &[LEN, LEN]);
    write(&mut rig, OTHER, 2);
    assert_eq!(rig.running.len(), 2, "the same place of another volume");
    assert!(!rig.group.volume_is_idle(OTHER));
    write(&mut rig, VOLUME, 3);
    assert_eq!(
        rig.running.len(),
        2,
        "the first volume's range is still held"
    );
    for _ in 0..3 {
        finish(&mut rig);
    }
    let mut answers: Vec<_> = rig.answers.iter().map(|(tag, _)| *tag).collect();
    answers.sort_unstable();
    assert_eq!(answers, [1, 2, 3]);
    assert!(rig.group.volume_is_idle(OTHER));
    set(&mut rig, &[LEN]);
    write(&mut rig, VOLUME, 4);
    assert_eq!(rig.running.len(), 1);
}

#[test]
#[should_panic(expected = "a volume that goes is idle")]
fn a_volume_with_a_write_under_way_does_not_go() {
    let mut rig = Rig::without_log(OnBackingError::Pass, |_| ());
    set(&mut rig, &[LEN, LEN]);
    write(&mut rig, OTHER, 1);
    set(&mut rig, &[LEN]);
}
