//! Failed writes wait, are tried again together, and are given up at the limit.

use super::super::flight::FlightId;
use super::super::retry::{Failure, Retries, RetryPolicy, WriteTrouble};
use blkrep_types::{Errno, Nanos, VolumeIndex};
use std::time::Duration;

const DELAY: Duration = Duration::from_secs(3);

fn retries(limit: Option<u32>) -> Retries {
    Retries::new(RetryPolicy {
        limit,
        delay: DELAY,
    })
}

fn id(index: usize) -> FlightId {
    FlightId::new(index).unwrap()
}

fn at(seconds: u64) -> Nanos {
    Nanos::new(0).after(Duration::from_secs(seconds))
}

fn fail(retries: &mut Retries, index: usize, errno: Errno, seconds: u64) -> Failure {
    retries.failed(id(index), VolumeIndex::new(1), errno, at(seconds))
}

#[test]
fn what_failed_is_tried_again_together_when_the_first_has_waited() {
    let mut retries = retries(None);
    assert_eq!(
        fail(&mut retries, 3, Errno::ENOSPC, 10),
        Failure::Again(true)
    );
    assert_eq!(
        fail(&mut retries, 9, Errno::ENOSPC, 11),
        Failure::Again(false)
    );
    assert!(retries.holds_back());
    assert_eq!((retries.waiting(), retries.due()), (2, Some(at(13))));
    assert_eq!(retries.next(at(12)), None);
    for _ in 0..2 {
        let next = retries.next(at(13)).unwrap();
        assert_eq!(retries.next(at(13)), Some(next), "until it is begun");
        retries.begun(next);
    }
    assert_eq!((retries.next(at(13)), retries.waiting()), (None, 0));
    assert!(retries.holds_back(), "neither has ended");
    assert_eq!(retries.succeeded(id(9)), None, "the other may fail again");
    assert_eq!(
        fail(&mut retries, 3, Errno::ENOSPC, 14),
        Failure::Again(false)
    );
    retries.next(at(17)).map(|id| retries.begun(id)).unwrap();
    let trouble = retries.succeeded(id(3)).unwrap();
    assert_eq!((trouble.why, trouble.failures), (WriteTrouble::Full, 3));
    assert_eq!(
        (trouble.since, trouble.volume),
        (at(10), VolumeIndex::new(1))
    );
    assert!(!retries.holds_back() && retries.trouble().is_none() && retries.due().is_none());
    assert_eq!(
        retries.succeeded(id(3)),
        None,
        "what never failed ends nothing"
    );
}

#[test]
fn a_write_is_given_up_when_it_was_tried_again_as_often_as_allowed() {
    let mut retries = retries(Some(2));
    for seconds in [1, 5] {
        assert!(matches!(
            fail(&mut retries, 0, Errno::EIO, seconds),
            Failure::Again(_)
        ));
        retries
            .next(at(seconds + 3))
            .map(|id| retries.begun(id))
            .unwrap();
    }
    assert_eq!(retries.failures(id(0)), 2);
    assert_eq!(fail(&mut retries, 0, Errno::EIO, 9), Failure::GivenUp);
    assert!(!retries.holds_back() && retries.trouble().is_none());
    // The place is another write's from now on.
    assert_eq!(fail(&mut retries, 0, Errno::EIO, 20), Failure::Again(true));
    assert_eq!(retries.trouble().unwrap().since, at(20));
}

#[test]
fn without_retries_a_write_is_given_up_at_once() {
    let mut retries = retries(Some(0));
    assert_eq!(fail(&mut retries, 0, Errno::EIO, 1), Failure::GivenUp);
    assert_eq!((retries.waiting(), retries.due()), (0, None));
}

#[test]
fn another_trouble_is_told_anew_and_each_errno_is_of_a_kind() {
    let mut retries = retries(None);
    for (number, why) in [
        (28, WriteTrouble::Full),
        (122, WriteTrouble::Full),
        (16, WriteTrouble::Busy),
        (26, WriteTrouble::Busy),
        (30, WriteTrouble::Denied),
        (13, WriteTrouble::Denied),
        (1, WriteTrouble::Denied),
        (5, WriteTrouble::Unknown),
        (110, WriteTrouble::Unknown),
    ] {
        assert_eq!(WriteTrouble::of(Errno::new(number)), why, "{number}");
    }
    assert_eq!(fail(&mut retries, 0, Errno::EROFS, 1), Failure::Again(true));
    assert_eq!(
        fail(&mut retries, 1, Errno::EROFS, 1),
        Failure::Again(false)
    );
    assert_eq!(fail(&mut retries, 2, Errno::EBUSY, 1), Failure::Again(true));
    assert_eq!(retries.trouble().unwrap().why, WriteTrouble::Busy);
}

#[test]
fn a_policy_in_force_reaches_what_waits() {
    let mut retries = retries(None);
    fail(&mut retries, 0, Errno::EIO, 1);
    let policy = RetryPolicy {
        limit: Some(1),
        delay: Duration::from_secs(1),
    };
    retries.set_policy(policy, at(2));
    assert_eq!(retries.due(), Some(at(3)));
    retries.set_policy(
        RetryPolicy {
            delay: DELAY,
            ..policy
        },
        at(2),
    );
    assert_eq!(retries.due(), Some(at(3)), "never later than promised");
    retries.hurry(at(2));
    retries.next(at(2)).map(|id| retries.begun(id)).unwrap();
    assert_eq!(fail(&mut retries, 0, Errno::EIO, 2), Failure::GivenUp);
}

#[test]
fn what_waits_can_be_given_up() {
    let mut retries = retries(None);
    fail(&mut retries, 4, Errno::EIO, 1);
    fail(&mut retries, 5, Errno::EIO, 1);
    assert!(retries.give_up_one().is_some() && retries.give_up_one().is_some());
    assert_eq!(retries.give_up_one(), None);
    assert!(!retries.holds_back() && retries.due().is_none());
}
