//! Every interleaving of the models, and proof that they can fail.

use std::process::{Command, Output};

fn run(model: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blkrep-models"));
    let run = command.arg(model).env("RUST_BACKTRACE", "0").output();
    run.expect("the models' program runs")
}

/// The model keeps its promise in every interleaving.
fn keeps(model: &str) {
    let run = run(model);
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{model}: {said}");
}

/// The model sees what is wrong.
fn finds(model: &str, wrong: &str) {
    let run = run(model);
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success(), "{model} finds nothing");
    assert!(said.contains(wrong), "{model}: {said}");
}

const WAITS_FOR_EVER: &str = "deadlock";

#[test]
fn a_wake_is_never_lost() {
    keeps("wake");
    finds("wake-weak", WAITS_FOR_EVER);
}

#[test]
fn mail_is_always_read() {
    keeps("mail");
    finds("mail-taken-last", WAITS_FOR_EVER);
}

#[test]
fn what_is_published_is_sent() {
    keeps("log");
    finds("log-trusting", WAITS_FOR_EVER);
    finds("log-weak", WAITS_FOR_EVER);
}

#[test]
fn what_is_published_is_whole() {
    keeps("bytes");
    finds("bytes-weak", "Causality violation");
}

#[test]
fn every_request_is_answered() {
    keeps("mailbox-1");
    keeps("mailbox-2");
    finds("mailbox-weak", WAITS_FOR_EVER);
}

#[test]
fn parts_end_once() {
    keeps("parts");
    finds("parts-weak", "the error is told");
}

#[test]
fn a_device_that_leaves_reaches_its_queues() {
    keeps("leaving");
    finds("leaving-weak", WAITS_FOR_EVER);
}
