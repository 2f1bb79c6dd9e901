//! Each broken promise is found, one at a time.

use super::*;

const WROTE: Written = Written {
    operations: 10,
    failed: 0,
    bytes: 100 << 20,
    latency_ms_max: 1,
};
const QUIET: Seen = Seen {
    mirrors: 0,
    whole_mirrors: 0,
    mirror_bytes_sent: 0,
    mirror_bytes_skipped: 0,
    wire_bytes: 101 << 20,
    lag_ms_max: 3,
    queue_bytes_max: 4096,
    was_disconnected: false,
    was_behind: false,
    was_not_ok: false,
};

/// Each change of good figures must be found, and by itself.
fn each_is_found<F: Promised + Clone>(good: &F, changes: &[fn(&mut F)]) {
    assert_eq!(good.broken(), Vec::<String>::new());
    for (index, change) in changes.iter().enumerate() {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(!bad.broken().is_empty(), "change {index} was not found");
    }
}

#[test]
fn a_full_mirror_covers_the_volume_and_ends_ok() {
    let seen = Seen {
        mirrors: 1,
        whole_mirrors: 1,
        mirror_bytes_sent: 60,
        mirror_bytes_skipped: 4,
        ..QUIET
    };
    let good = FullMirror {
        size_bytes: 64,
        written: WROTE,
        seen,
        data_state: DataState::Ok,
    };
    each_is_found(
        &good,
        &[
            |f| f.seen.mirror_bytes_skipped = 3,
            |f| f.data_state = DataState::Mirroring,
            |f| f.seen.wire_bytes = 10,
            |f| f.written.failed = 1,
            |f| f.written.operations = 0,
        ],
    );
    let filled = Attached {
        frontend: FrontendKind::Nbd,
        device: String::new(),
        size_bytes: 5,
        filled_bytes: 5,
        failed: 0,
    };
    each_is_found(&filled, &[|f| f.filled_bytes = 4, |f| f.failed = 1]);
}

#[test]
fn what_the_log_absorbs_is_not_mirrored_at_all() {
    let seen = Seen {
        was_disconnected: true,
        ..QUIET
    };
    let good = ShortCut {
        cut_ms: 3000,
        log_bytes: 1,
        written: WROTE,
        seen,
    };
    each_is_found(
        &good,
        &[
            |f| f.seen.mirrors = 1,
            |f| f.seen.mirror_bytes_sent = 1,
            |f| f.seen.mirror_bytes_skipped = 1,
            |f| f.seen.was_behind = true,
            |f| f.seen.was_not_ok = true,
            |f| f.seen.was_disconnected = false,
            |f| f.seen.queue_bytes_max = 0,
            |f| f.written.failed = 1,
        ],
    );
    let good = Workload {
        written: WROTE,
        seen: QUIET,
    };
    each_is_found(
        &good,
        &[
            |f| f.seen.mirrors = 1,
            |f| f.seen.mirror_bytes_sent = 1,
            |f| f.seen.wire_bytes = 1 << 20,
            |f| f.written.bytes = 0,
        ],
    );
}

#[test]
fn what_the_log_does_not_hold_is_sent_as_the_extents_that_were_written() {
    let seen = Seen {
        mirrors: 1,
        mirror_bytes_sent: 32 << 20,
        wire_bytes: 33 << 20,
        was_behind: true,
        ..QUIET
    };
    let good = LongCut {
        cut_ms: 3000,
        log_bytes: 16 << 20,
        written: WROTE,
        touched_bytes: 32 << 20,
        journal_bytes: 64 << 20,
        seen,
    };
    each_is_found(
        &good,
        &[
            |f| f.seen.mirrors = 0,
            |f| f.seen.mirrors = 2,
            |f| f.seen.whole_mirrors = 1,
            |f| f.seen.mirror_bytes_sent += 1,
            |f| f.seen.mirror_bytes_sent = 0,
            |f| f.seen.wire_bytes = 40 << 20,
            |f| f.seen.was_behind = false,
            |f| f.seen.was_not_ok = true,
            |f| f.written.bytes = 16 << 20,
        ],
    );
    let mut large = good;
    (large.journal_bytes, large.seen.was_not_ok) = (16 << 20, true);
    assert!(
        large.broken().is_empty(),
        "more than the journal holds need not be held"
    );
}

#[test]
fn a_killed_daemon_costs_at_most_what_it_left_in_doubt() {
    let seen = Seen {
        mirrors: 1,
        mirror_bytes_sent: 4,
        mirror_bytes_skipped: 1,
        ..QUIET
    };
    let before = Written { failed: 2, ..WROTE };
    let good = Crash {
        device_survives: false,
        away_ms: 5,
        before,
        after: WROTE,
        doubt_bytes: 5,
        seen,
    };
    each_is_found(
        &good,
        &[
            |f| f.doubt_bytes = 4,
            |f| f.seen.whole_mirrors = 1,
            |f| f.device_survives = true,
            |f| f.after.failed = 1,
            |f| f.before.bytes = 0,
        ],
    );
    let ublk = Crash {
        device_survives: true,
        before: WROTE,
        seen: QUIET,
        ..good
    };
    each_is_found(
        &ublk,
        &[|f| f.seen.mirror_bytes_sent = 1, |f| f.before.failed = 1],
    );
}

#[test]
fn a_takeover_is_a_new_generation_with_a_legal_image() {
    let good = Takeover {
        away_ms: 1,
        frontend: FrontendKind::Nbd,
        device: String::new(),
        promoted: true,
        new_generation: true,
        written: WROTE,
    };
    each_is_found(
        &good,
        &[
            |f| f.promoted = false,
            |f| f.new_generation = false,
            |f| f.written.bytes = 0,
        ],
    );
    let good = GoneOn { written: WROTE };
    each_is_found(&good, &[|f| f.written.failed = 1, |f| f.written.bytes = 0]);
    let good = Checked {
        legal: true,
        operations: 9,
        completed: 8,
        held: 7,
        lost: 1,
        forgery_found: true,
        findings: Vec::new(),
    };
    each_is_found(
        &good,
        &[
            |f| f.legal = false,
            |f| f.held = 0,
            |f| f.forgery_found = false,
        ],
    );
    let good = CleanedUp {
        stopped_in_order: true,
        kept: None,
        left: Vec::new(),
    };
    each_is_found(
        &good,
        &[
            |f| f.stopped_in_order = false,
            |f| f.left.push("/tmp/x".to_owned()),
        ],
    );
}
