use super::*;
use crate::message::Replication;
use crate::plan::{Common, point};

fn sample(round: u32, contestant: Contestant, point: &str, iops: f64) -> Message {
    Message::Sample(Sample {
        round,
        contestant,
        point: point.to_owned(),
        iops,
        bytes_per_second: iops * 4096.0,
        latency_mean_us: 10.0,
        latency_p99_us: 20.0,
        replication: None,
    })
}

fn through_a_link(round: u32, iops: f64, durable: f64, never_left: bool) -> Message {
    let Message::Sample(mut sample) = sample(round, Contestant::Async, "write 4k d32", iops) else {
        unreachable!("a sample was made");
    };
    sample.replication = Some(Replication {
        never_left,
        left_for: (!never_left).then(|| "behind".to_owned()),
        looks: 10,
        durable_bytes: 4096 * 1000,
        seconds: 1000.0 / durable,
        drain_seconds: 0.1,
        queue_bytes_max: 1 << 20,
    });
    Message::Sample(sample)
}

fn report(only: &[Contestant], messages: Vec<Message>) -> Report {
    let common = Common {
        rounds: 3,
        seconds: 1,
        size_mib: 200,
        only: only.to_vec(),
        rublk: None,
        settings: Vec::new(),
        virtual_time: false,
    };
    let plan = Plan {
        work: Work::Points,
        common,
    };
    Report::new("uml", &plan, messages)
}

#[test]
fn answers_count_where_they_promise_and_goals_are_of_their_guest() {
    let name = "write 4k d1";
    let only = [Contestant::Sync, Contestant::DrbdC];
    let mut messages = vec![sample(0, Contestant::DrbdC, name, 1000.0)];
    let Message::Sample(mut through) = through_a_link(0, 700.0, 500.0, true) else {
        unreachable!("a sample was made");
    };
    (through.contestant, through.point) = (Contestant::Sync, name.to_owned());
    messages.push(Message::Sample(through));
    let report = report(&only, messages);
    let goals = report.goals();
    let [_, (goal, ratio)] = goals.as_slice() else {
        panic!("depth 32 and depth 1, of UML alone: {goals:?}");
    };
    assert_eq!((goal.point, goal.least), (name, 0.6));
    assert_eq!(ratio.unwrap().median, 0.7);
}

#[test]
fn middle_of_odd_and_even_counts() {
    let odd = middle(vec![3.0, 1.0, 2.0]).unwrap();
    assert_eq!((odd.median, odd.least, odd.most), (2.0, 1.0, 3.0));
    assert_eq!(middle(vec![4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
    assert_eq!(middle(Vec::new()), None);
}

#[test]
fn ratios_are_taken_within_a_round() {
    // The machine is twice as fast in the second round; the ratio is the same in all.
    let name = "write 4k d1";
    let mut messages = Vec::new();
    for (round, speed) in [(0, 1.0), (1, 2.0), (2, 1.0)] {
        messages.push(sample(round, Contestant::Rublk, name, 1000.0 * speed));
        messages.push(sample(round, Contestant::Volume, name, 900.0 * speed));
    }
    let report = report(&[Contestant::Rublk, Contestant::Volume], messages);
    let ratio = report.ratio(Contestant::Volume, Contestant::Rublk, point(name).unwrap());
    let ratio = ratio.unwrap();
    assert!((ratio.least - 0.9).abs() < 1e-9 && (ratio.most - 0.9).abs() < 1e-9);
    assert!(report.markdown().contains("met"));
}

#[test]
fn only_durable_bytes_count_through_a_link() {
    let name = "write 4k d32";
    let only = [Contestant::Async, Contestant::DrbdA];
    // The application saw 3000, the target got 1000.
    let messages = vec![
        sample(0, Contestant::DrbdA, name, 1000.0),
        through_a_link(0, 3000.0, 1000.0, true),
    ];
    let kept_up = report(&only, messages);
    let ratio = kept_up.ratio(Contestant::Async, Contestant::DrbdA, point(name).unwrap());
    assert!((ratio.unwrap().median - 1.0).abs() < 1e-9);
    assert!(kept_up.markdown().contains("MISSED"));
}

#[test]
fn replication_that_fell_behind_is_no_figure() {
    let name = "write 4k d32";
    let only = [Contestant::Async, Contestant::DrbdA];
    let messages = vec![
        sample(0, Contestant::DrbdA, name, 1000.0),
        sample(1, Contestant::DrbdA, name, 1000.0),
        through_a_link(0, 3000.0, 3000.0, true),
        through_a_link(1, 3000.0, 3000.0, false),
    ];
    let report = report(&only, messages);
    assert_eq!(
        report.ratio(Contestant::Async, Contestant::DrbdA, point(name).unwrap()),
        None
    );
    let text = report.markdown();
    assert!(
        text.contains("NO FIGURE") && text.contains("round 2: behind"),
        "{text}"
    );
    let goal = &report.json()["goals"][0];
    assert_eq!(goal["reached"], false);
}

#[test]
fn missing_contestant_is_said_and_makes_the_report_incomplete() {
    let failed = Message::Failed {
        contestant: Contestant::MdNbd,
        reason: "no mdadm".to_owned(),
    };
    let report = report(&[Contestant::MdNbd], vec![failed]);
    assert!(!report.is_complete());
    assert!(
        report
            .markdown()
            .contains("md RAID1 + nbd FAILED: no mdadm")
    );
}

#[test]
fn mirror_is_held_against_the_limit() {
    let mirror = |contestant, seconds| {
        Message::Mirror(MirrorSample {
            round: 0,
            contestant,
            bytes: 200 << 20,
            seconds,
            disk_read: 200.0 * MIB,
            disk_write: 190.0 * MIB,
        })
    };
    let only = [Contestant::Async, Contestant::DrbdC];
    let text = |seconds| {
        let messages = vec![
            mirror(Contestant::Async, seconds),
            mirror(Contestant::DrbdC, 2.0),
        ];
        let mut report = report(&only, messages);
        report.plan.work = Work::Mirror {
            limit_mib: 200,
            disk_mib: 200,
        };
        report.markdown()
    };
    assert!(text(1.05).contains("0.90 met"));
    assert!(text(1.25).contains("0.90 MISSED"));
}

#[test]
fn memory_is_held_against_what_settings_grant() {
    let text = |peak_bytes| {
        let memory = Message::Memory(MemorySample {
            log_bytes: 64 << 20,
            written_bytes: 1280 << 20,
            idle_bytes: 10 << 20,
            down_bytes: 80 << 20,
            peak_bytes,
            configured: vec![("group.log-memory".to_owned(), 64 << 20)],
        });
        let mut report = report(&[Contestant::Async], vec![memory]);
        report.plan.work = Work::Memory { logs: 20 };
        report.markdown()
    };
    assert!(text(128 << 20).contains("64 MiB, met"));
    assert!(text((128 << 20) + 1).contains("64 MiB, MISSED"));
    assert!(text(1).contains("20.0 times the log"));
}
