//! Bounds, cursors and troubles of the event store.
#![allow(clippy::unwrap_used)]

use super::*;
use blkrep_types::GroupName;

fn limits(file_size: u64) -> EventLimits {
    EventLimits {
        kept: 100,
        file_size: ByteLen::new(file_size),
        files: 3,
    }
}

fn publish(events: &Events, count: usize) {
    for number in 0..count {
        let text = format!("event number {number}");
        events.publish(NewEvent::new(EventId::LinkUp, text));
    }
}

fn all() -> EventQuery {
    EventQuery::default()
}

#[test]
fn memory_keeps_the_newest_and_counts_the_missed() {
    let events = Events::in_memory(10);
    publish(&events, 25);
    let page = events.page(&EventQuery {
        after: Some(3),
        ..all()
    });
    let cursors: Vec<_> = page.events.iter().map(|event| event.cursor).collect();
    assert_eq!(cursors, (16..=25).collect::<Vec<_>>());
    assert_eq!((page.next, page.missed), (25, 12));
    let page = events.page(&EventQuery {
        after: Some(25),
        ..all()
    });
    assert_eq!((page.events.len(), page.next, page.missed), (0, 25, 0));
    let beyond = events.page(&EventQuery {
        after: Some(u64::MAX),
        ..all()
    });
    assert_eq!((beyond.events.len(), beyond.next), (0, 25));
    let limited = events.page(&EventQuery {
        limit: Some(2),
        ..all()
    });
    assert_eq!(limited.events[1].cursor, 25);
    assert_eq!(limited.events.len(), 2);
}

#[test]
fn a_query_filters_by_severity_id_and_group() {
    let events = Events::in_memory(10);
    let group = GroupName::new("db").unwrap();
    publish(&events, 2);
    events.publish(NewEvent::new(EventId::LinkDown, "gone").group(&group));
    events.publish(NewEvent::new(EventId::BackingError, "sector 7").group(&group));
    let count = |query: &EventQuery| events.page(query).events.len();
    let severity = Some(Severity::Warning);
    assert_eq!(count(&EventQuery { severity, ..all() }), 2);
    let id = Some(EventId::BackingError);
    assert_eq!(count(&EventQuery { id, ..all() }), 1);
    let group = Some(group);
    assert_eq!(count(&EventQuery { group, ..all() }), 2);
}

#[test]
fn cursors_go_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let events = Events::open(dir.path(), limits(1 << 20));
        publish(&events, 5);
        let page = events.page(&all());
        assert_eq!(page.next, (round + 1) * 5);
        assert_eq!(page.events.len(), usize::try_from(page.next).unwrap());
        events.close();
    }
}

#[test]
fn files_are_rotated_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let events = Events::open(dir.path(), limits(2000));
    publish(&events, 200);
    events.close();
    let mut sizes = Vec::new();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        sizes.push(entry.unwrap().metadata().unwrap().len());
    }
    assert_eq!(sizes.len(), 3);
    assert!(sizes.iter().all(|bytes| *bytes <= 2000), "{sizes:?}");
    let again = Events::open(dir.path(), limits(2000)).page(&all());
    assert_eq!(again.next, 200);
}

#[test]
fn a_torn_line_costs_only_itself() {
    let dir = tempfile::tempdir().unwrap();
    let events = Events::open(dir.path(), limits(1 << 20));
    publish(&events, 3);
    events.close();
    let path = dir.path().join("events.jsonl");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
    let events = Events::open(dir.path(), limits(1 << 20));
    publish(&events, 2);
    events.close();
    let page = Events::open(dir.path(), limits(1 << 20)).page(&all());
    assert_eq!(page.events.len(), 4);
}

#[test]
fn rubbish_in_the_file_is_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let mut rubbish = vec![0xff; 100_000];
    rubbish.extend(b"\n{\"cursor\": 18446744073709551615}\n{}\n[");
    std::fs::write(dir.path().join("events.jsonl"), rubbish).unwrap();
    let events = Events::open(dir.path(), limits(1 << 20));
    publish(&events, 1);
    assert_eq!(events.page(&all()).events.len(), 1);
}

#[test]
fn a_full_disk_costs_the_file_and_tells_so_once() {
    let dir = tempfile::tempdir().unwrap();
    // Every write to /dev/full fails with "no space left on device".
    std::os::unix::fs::symlink("/dev/full", dir.path().join("events.jsonl")).unwrap();
    let events = Events::open(dir.path(), limits(1 << 20));
    publish(&events, 20);
    events.close();
    let page = events.page(&all());
    let troubles = page.events.iter();
    let troubles = troubles.filter(|event| event.name == EventId::EventLogTrouble);
    assert_eq!(troubles.count(), 1);
    assert_eq!(page.events.len(), 21);
}

#[test]
fn those_who_follow_are_woken() {
    let events = Events::in_memory(10);
    let mut watch = events.watch();
    watch.mark_unchanged();
    publish(&events, 1);
    assert!(watch.has_changed().unwrap());
    assert_eq!(*watch.borrow_and_update(), 1);
}
