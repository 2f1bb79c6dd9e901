//! The judges judged: small histories whose legal images are enumerated, and images broken on purpose.
//!
//! A brute-force reference tries every order and every prefix. On histories of a few operations it is the definition itself, and
//! the judges must agree with it on every image, legal or not.

#![allow(clippy::unwrap_used)]

use super::judge::{Judgement, Keep, judge};
use super::record::{Event, History, Kind};
use super::scan::scan;
use super::sector::{SECTOR_BYTES, Stamp, encode};
use super::verdict::{Findings, Verdict};
use proptest::prelude::*;
use std::collections::BTreeSet;

const RUN: u64 = 42;
const SECTORS: u64 = 4;
const VOLUMES: u16 = 2;

/// The image set as which operation each sector shows: 0 for none, or its place in the history plus one.
type Shown = Vec<usize>;

fn event_submit(counter: u64, kind: Kind, volume: u16, first: u64, count: u32) -> Event {
    Event::Submit {
        writer: 0,
        counter,
        kind,
        volume,
        first,
        count,
    }
}

fn complete(counter: u64) -> Event {
    Event::Complete {
        writer: 0,
        counter,
        errno: 0,
    }
}

fn history(events: &[Event]) -> Result<History, super::RecordError> {
    let mut text = String::new();
    let sectors = vec![SECTORS; usize::from(VOLUMES)];
    Event::Run { run: RUN, sectors }.append_to(&mut text);
    events.iter().for_each(|event| event.append_to(&mut text));
    History::parse(text.as_bytes())
}

/// Bytes of all volumes for what each sector shows.
fn render(history: &History, shown: &Shown) -> Vec<Vec<u8>> {
    let size = usize::try_from(SECTORS).unwrap();
    let mut volumes = vec![vec![0; size * SECTOR_BYTES]; usize::from(VOLUMES)];
    for (place, shows) in shown.iter().enumerate().filter(|(_, shows)| **shows > 0) {
        let operation = &history.operations[*shows - 1];
        if operation.kind.clears() {
            continue;
        }
        let (volume, sector) = (place / size, place % size);
        let stamp = Stamp {
            run: RUN,
            volume: operation.volume,
            writer: operation.writer,
            counter: operation.counter,
            first: operation.first,
            count: operation.count,
            index: u32::try_from(sector as u64 - operation.first).unwrap(),
        };
        encode(
            &stamp,
            &mut volumes[volume][sector * SECTOR_BYTES..][..SECTOR_BYTES],
        );
    }
    volumes
}

fn verdict(history: &History, volumes: &[Vec<u8>], judgement: Judgement, keep: Keep) -> Verdict {
    let mut findings = Findings::default();
    let scanned = (0_u16..).zip(volumes).map(|(volume, bytes)| {
        scan(history, volume, &mut bytes.as_slice(), None, &mut findings).unwrap()
    });
    let seen: Vec<_> = scanned.collect();
    judge(history, &seen, judgement, keep, findings)
}

fn apply(history: &History, index: usize, shown: &mut Shown) {
    let operation = &history.operations[index];
    for sector in operation.sectors() {
        let place = u64::from(operation.volume) * SECTORS + sector;
        shown[usize::try_from(place).unwrap()] = index + 1;
    }
}

/// Zeroes are zeroes, whoever wrote them.
fn anonymous(history: &History, shown: &Shown) -> Shown {
    let name = |shows: &usize| match shows {
        0 => 0,
        shows if history.operations[shows - 1].kind.clears() => 0,
        shows => *shows,
    };
    shown.iter().map(name).collect()
}

/// Every image that some order and prefix leaves; with `must`, only prefixes that hold those.
fn legal_replicas(history: &History, must: &[bool]) -> BTreeSet<Shown> {
    fn extend(
        history: &History,
        must: &[bool],
        done: &mut Vec<bool>,
        shown: &Shown,
        found: &mut BTreeSet<Shown>,
    ) {
        if must
            .iter()
            .zip(done.iter())
            .all(|(must, done)| *done || !must)
        {
            found.insert(anonymous(history, shown));
        }
        for next in 0..done.len() {
            let ready = |other: usize| {
                done[other] || !history.operations[other].before(&history.operations[next])
            };
            if !done[next] && (0..done.len()).all(ready) {
                let mut after = shown.clone();
                apply(history, next, &mut after);
                done[next] = true;
                extend(history, must, done, &after, found);
                done[next] = false;
            }
        }
    }
    let mut found = BTreeSet::new();
    let mut done = vec![false; history.operations.len()];
    let blank = vec![0; usize::from(VOLUMES) * usize::try_from(SECTORS).unwrap()];
    extend(history, must, &mut done, &blank, &mut found);
    found
}

/// What each sector may show after power loss: tried over every order and every subset that holds the durable ones.
fn legal_after_power_loss(history: &History, durable: &[bool], place: usize) -> BTreeSet<usize> {
    fn extend(
        history: &History,
        durable: &[bool],
        place: usize,
        done: &mut Vec<bool>,
        shows: usize,
        found: &mut BTreeSet<usize>,
    ) {
        if done.iter().all(|done| *done) {
            found.insert(shows);
        }
        let size = usize::try_from(SECTORS).unwrap();
        for next in 0..done.len() {
            let operation = &history.operations[next];
            let ready = |other: usize| done[other] || !history.operations[other].before(operation);
            if done[next] || !(0..done.len()).all(ready) {
                continue;
            }
            done[next] = true;
            let covers = usize::from(operation.volume) == place / size
                && operation.sectors().contains(&((place % size) as u64));
            if covers {
                let name = if operation.kind.clears() { 0 } else { next + 1 };
                extend(history, durable, place, done, name, found);
            }
            if !covers || !durable[next] {
                extend(history, durable, place, done, shows, found);
            }
            done[next] = false;
        }
    }
    let mut found = BTreeSet::new();
    extend(
        history,
        durable,
        place,
        &mut vec![false; history.operations.len()],
        0,
        &mut found,
    );
    found
}

/// The definition, apart from the judge's own reckoning: pairs of a write and the flush that covers it.
fn durable(history: &History) -> Vec<bool> {
    let covered = |write: &super::Operation| {
        history.operations.iter().any(|flush| {
            flush.kind == Kind::Flush
                && flush.completed.is_some()
                && flush.volume == write.volume
                && write.before(flush)
        })
    };
    let keep = |op: &super::Operation| match op.kind {
        Kind::Flush => false,
        Kind::WriteFua if op.completed.is_some() => true,
        _ => covered(op),
    };
    history.operations.iter().map(keep).collect()
}

/// Up to `most` operations whose times overlap at random; clears are let through only where the record allows them.
fn histories(most: usize) -> impl Strategy<Value = History> {
    let operation = (0..10_u8, 0..VOLUMES, 0..SECTORS, 1..=3_u64, 0..4_usize);
    proptest::collection::vec(operation, 1..=most).prop_map(|drawn| {
        let mut events: Vec<Event> = Vec::new();
        let mut open: Vec<u64> = Vec::new();
        for (counter, (dice, volume, first, count, finish)) in (1_u64..).zip(drawn) {
            let kind = match dice {
                0 => Kind::Flush,
                1 => Kind::WriteFua,
                2 => Kind::Zeroes,
                3 => Kind::Discard,
                _ => Kind::Write,
            };
            let count = u32::try_from(count.min(SECTORS - first)).unwrap();
            let count = if kind == Kind::Flush { 0 } else { count };
            let before = events.clone();
            events.push(event_submit(counter, kind, volume, first, count));
            if history(&events).is_err() {
                events = before;
                continue;
            }
            open.push(counter);
            for _ in 0..finish.min(open.len()) {
                events.push(complete(open.remove(0)));
            }
        }
        history(&events).unwrap()
    })
}

/// An image drawn without regard to legality: each sector shows nothing or some operation that covers it.
fn any_image(history: &History, dice: &[usize]) -> Shown {
    let size = usize::try_from(SECTORS).unwrap();
    let pick = |place: usize| {
        let covers = |(_, op): &(usize, &super::Operation)| {
            usize::from(op.volume) == place / size
                && op.sectors().contains(&((place % size) as u64))
        };
        let all: Vec<_> = history
            .operations
            .iter()
            .enumerate()
            .filter(covers)
            .collect();
        let choice = dice[place] % (all.len() + 1);
        choice.checked_sub(1).map_or(0, |choice| all[choice].0 + 1)
    };
    (0..size * usize::from(VOLUMES)).map(pick).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn the_replica_judge_is_the_definition(
        history in histories(6),
        dice in proptest::collection::vec(0..100_usize, 8),
        pick in 0..1000_usize,
    ) {
        for keep in [Keep::Nothing, Keep::Flushed, Keep::Completed] {
            let must: Vec<bool> = match keep {
                Keep::Nothing => vec![false; history.operations.len()],
                Keep::Flushed => durable(&history),
                Keep::Completed => history.operations.iter().map(|op| op.completed.is_some()).collect(),
            };
            let legal = legal_replicas(&history, &must);
            let chosen = legal.iter().nth(pick % legal.len()).unwrap().clone();
            for shown in [chosen, any_image(&history, &dice)] {
                let expected = legal.contains(&anonymous(&history, &shown));
                let judged = verdict(&history, &render(&history, &shown), Judgement::Replica, keep);
                prop_assert_eq!(judged.legal, expected, "{:?} {:?} {}", keep, shown, judged);
            }
        }
    }

    #[test]
    fn the_power_loss_judge_is_the_definition(
        history in histories(6),
        dice in proptest::collection::vec(0..100_usize, 8),
    ) {
        let durable = durable(&history);
        let shown = any_image(&history, &dice);
        let expected = anonymous(&history, &shown).iter().enumerate().all(|(place, shows)| {
            legal_after_power_loss(&history, &durable, place).contains(shows)
        });
        let image = render(&history, &shown);
        let judged = verdict(&history, &image, Judgement::PowerLoss, Keep::Nothing);
        prop_assert_eq!(judged.legal, expected, "{:?} {}", shown, judged);
    }
}

/// Four writes, one after the other: A on volume 0, B on volume 1, C over part of A, D beside B; a flush after A and B.
fn sequence() -> History {
    let mut events = Vec::new();
    let steps = [
        (Kind::Write, 0, 0, 3),
        (Kind::Write, 1, 0, 2),
        (Kind::Flush, 0, 0, 0),
        (Kind::Flush, 1, 0, 0),
        (Kind::Write, 0, 1, 1),
        (Kind::Write, 1, 2, 2),
    ];
    for (counter, (kind, volume, first, count)) in (1..).zip(steps) {
        events.push(event_submit(counter, kind, volume, first, count));
        events.push(complete(counter));
    }
    history(&events).unwrap()
}

/// What `sequence` leaves: A C A - | B B D D, as places in the history plus one.
const WHOLE: [usize; 8] = [1, 5, 1, 0, 2, 2, 6, 6];

fn kinds(verdict: &Verdict) -> Vec<&'static str> {
    verdict
        .findings
        .iter()
        .map(|finding| finding.kind)
        .collect()
}

fn judged(shown: [usize; 8], judgement: Judgement) -> Verdict {
    let history = sequence();
    verdict(
        &history,
        &render(&history, &shown.to_vec()),
        judgement,
        Keep::Nothing,
    )
}

#[test]
fn whole_and_every_shorter_prefix_is_legal() {
    for shown in [
        WHOLE,
        [1, 5, 1, 0, 2, 2, 0, 0],
        [1, 1, 1, 0, 2, 2, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [0; 8],
    ] {
        let verdict = judged(shown, Judgement::Replica);
        assert!(verdict.legal, "{shown:?}: {verdict}");
    }
}

#[test]
fn a_dropped_write_is_rejected_and_named() {
    let verdict = judged([1, 5, 1, 0, 0, 0, 6, 6], Judgement::Replica);
    assert_eq!(kinds(&verdict), ["missing"]);
    assert_eq!(verdict.findings[0].ranges, [(1, 0, 2)]);
    assert!(
        verdict.findings[0].detail.contains("Write 0/2 of volume 1"),
        "{verdict}"
    );
}

#[test]
fn swapped_writes_are_rejected() {
    // D is there, C is not: they changed places in the order.
    let verdict = judged([1, 1, 1, 0, 2, 2, 6, 6], Judgement::Replica);
    assert_eq!(kinds(&verdict), ["missing"], "{verdict}");
    assert_eq!(verdict.findings[0].ranges, [(0, 1, 2)]);
}

#[test]
fn a_torn_write_is_rejected() {
    let verdict = judged([1, 5, 1, 0, 2, 2, 6, 0], Judgement::Replica);
    assert_eq!(kinds(&verdict), ["torn"], "{verdict}");
    assert_eq!(verdict.findings[0].ranges, [(1, 3, 4)]);
}

#[test]
fn a_volume_behind_the_other_is_rejected() {
    let verdict = judged([0, 0, 0, 0, 2, 2, 0, 0], Judgement::Replica);
    assert_eq!(kinds(&verdict), ["missing"], "{verdict}");
}

#[test]
fn content_of_another_place_or_volume_is_rejected() {
    let history = sequence();
    for (from, to) in [((0, 0), (1, 3)), ((0, 0), (0, 2)), ((1, 2), (1, 3))] {
        let mut image = render(&history, &WHOLE.to_vec());
        let bytes = image[from.0][from.1 * SECTOR_BYTES..][..SECTOR_BYTES].to_vec();
        image[to.0][to.1 * SECTOR_BYTES..][..SECTOR_BYTES].copy_from_slice(&bytes);
        for judgement in [Judgement::Replica, Judgement::PowerLoss] {
            let verdict = verdict(&history, &image, judgement, Keep::Nothing);
            assert!(kinds(&verdict).contains(&"misplaced"), "{verdict}");
        }
    }
}

#[test]
fn garbage_stale_runs_unrecorded_writes_and_short_images_are_rejected() {
    let history = sequence();
    let stamp = |run, counter| Stamp {
        run,
        volume: 0,
        writer: 0,
        counter,
        first: 3,
        count: 1,
        index: 0,
    };
    let (mut stale, mut unrecorded) = ([0; SECTOR_BYTES], [0; SECTOR_BYTES]);
    encode(&stamp(RUN - 1, 1), &mut stale);
    encode(&stamp(RUN, 77), &mut unrecorded);
    let garbage = [0x5a; SECTOR_BYTES];
    for (bytes, kind) in [
        (stale, "stale-run"),
        (unrecorded, "unrecorded"),
        (garbage, "foreign"),
    ] {
        let mut image = render(&history, &WHOLE.to_vec());
        image[0][3 * SECTOR_BYTES..].copy_from_slice(&bytes);
        let verdict = verdict(&history, &image, Judgement::PowerLoss, Keep::Nothing);
        assert_eq!(kinds(&verdict), [kind]);
    }
    let mut image = render(&history, &WHOLE.to_vec());
    image[1].truncate(2 * SECTOR_BYTES);
    let verdict = verdict(&history, &image, Judgement::Replica, Keep::Nothing);
    assert_eq!(kinds(&verdict), ["short-image"]);
}

#[test]
fn after_power_loss_flushed_writes_are_kept_and_others_may_vanish() {
    for shown in [WHOLE, [1, 1, 1, 0, 2, 2, 6, 0], [1, 1, 1, 0, 2, 2, 0, 6]] {
        let verdict = judged(shown, Judgement::PowerLoss);
        assert!(verdict.legal, "{verdict}");
    }
    for shown in [
        [1, 5, 0, 0, 2, 2, 6, 6],
        [1, 5, 1, 0, 0, 2, 6, 6],
        [1, 0, 1, 0, 2, 2, 6, 6],
    ] {
        let verdict = judged(shown, Judgement::PowerLoss);
        assert_eq!(kinds(&verdict), ["lost"], "{shown:?}: {verdict}");
    }
}

#[test]
fn a_completed_write_may_be_demanded_of_a_replica() {
    let history = sequence();
    let image = render(&history, &vec![1, 5, 1, 0, 2, 2, 0, 0]);
    let flushed = verdict(&history, &image, Judgement::Replica, Keep::Flushed);
    assert!(flushed.legal, "{flushed}");
    let all = verdict(&history, &image, Judgement::Replica, Keep::Completed);
    assert_eq!(kinds(&all), ["lost"], "{all}");
}

#[test]
fn overlapping_writes_may_take_either_order_but_only_one() {
    let events = [
        event_submit(1, Kind::Write, 0, 0, 2),
        event_submit(2, Kind::Write, 0, 0, 2),
        complete(1),
        complete(2),
    ];
    let history = history(&events).unwrap();
    let judged = |shown: [usize; 8]| {
        let image = render(&history, &shown.to_vec());
        verdict(&history, &image, Judgement::Replica, Keep::Nothing)
    };
    assert!(judged([1, 1, 0, 0, 0, 0, 0, 0]).legal && judged([2, 2, 0, 0, 0, 0, 0, 0]).legal);
    let mixed = judged([1, 2, 0, 0, 0, 0, 0, 0]);
    assert_eq!(kinds(&mixed), ["cycle"], "{mixed}");
}

#[test]
fn a_base_image_is_legal_content_and_zeroes_over_it_are_not() {
    let history = sequence();
    let base = vec![0x77; 4 * SECTOR_BYTES];
    let mut image = render(&history, &WHOLE.to_vec());
    let judge_with_base = |image: &[Vec<u8>]| {
        let mut findings = Findings::default();
        let mut base_of = [base.as_slice(), &[]];
        let [first, second] = &mut base_of;
        let seen = vec![
            scan(
                &history,
                0,
                &mut image[0].as_slice(),
                Some(first),
                &mut findings,
            )
            .unwrap(),
            scan(
                &history,
                1,
                &mut image[1].as_slice(),
                Some(second),
                &mut findings,
            )
            .unwrap(),
        ];
        judge(&history, &seen, Judgement::Replica, Keep::Nothing, findings)
    };
    assert_eq!(kinds(&judge_with_base(&image)), ["zeroed"]);
    image[0][3 * SECTOR_BYTES..].fill(0x77);
    let verdict = judge_with_base(&image);
    assert!(verdict.legal, "{verdict}");
}

#[test]
fn a_record_is_cut_off_at_its_last_whole_line_and_refused_if_damaged() {
    let mut text = String::new();
    Event::Run {
        run: RUN,
        sectors: vec![SECTORS],
    }
    .append_to(&mut text);
    event_submit(1, Kind::Write, 0, 0, 1).append_to(&mut text);
    complete(1).append_to(&mut text);
    Event::Mark("here".to_owned()).append_to(&mut text);
    let whole = History::parse(text.as_bytes()).unwrap();
    assert_eq!((whole.operations.len(), whole.marks["here"]), (1, 4));
    let cut = &text[..text.len() - 3];
    assert!(History::parse(cut.as_bytes()).unwrap().marks.is_empty());
    for byte in 0..text.len() - 1 {
        let mut damaged = text.clone().into_bytes();
        damaged[byte] ^= 1;
        let read = History::parse(&damaged);
        // A flipped line end joins or splits lines, which their checksums show as well.
        assert!(read.is_err(), "byte {byte}: {read:?}");
    }
}

#[test]
fn zeroes_beside_another_operation_make_a_record_unusable() {
    let events = [
        event_submit(1, Kind::Write, 0, 0, 2),
        event_submit(2, Kind::Zeroes, 0, 1, 2),
    ];
    assert!(history(&events).unwrap_err().what.contains("overlap"));
    let apart = [
        event_submit(1, Kind::Write, 0, 0, 2),
        event_submit(2, Kind::Zeroes, 1, 1, 2),
    ];
    assert!(history(&apart).is_ok());
}
