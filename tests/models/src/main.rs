//! Runs one model, in a process of its own: one that fails may leave its threads in the middle.
//!
//! Enters: its name. Leaves: success, or what the model found wrong.

#![forbid(unsafe_code)]

use blkrep_models::right::models::{Taking, Waiter};
use blkrep_models::{right, weak};
use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    match name.as_str() {
        "wake" => right::models::a_wake_is_never_lost(),
        "wake-weak" => weak::models::a_wake_is_never_lost(),
        "mail" => right::models::mail_is_always_read(Taking::First),
        "mail-taken-last" => right::models::mail_is_always_read(Taking::Last),
        "log" => right::models::what_is_published_is_sent(Waiter::LooksAgain),
        "log-trusting" => right::models::what_is_published_is_sent(Waiter::Trusts),
        "log-weak" => weak::models::what_is_published_is_sent(weak::models::Waiter::LooksAgain),
        "bytes" => right::models::what_is_published_is_whole(),
        "bytes-weak" => weak::models::what_is_published_is_whole(),
        "mailbox-1" => right::models::every_request_is_answered(1),
        "mailbox-2" => right::models::every_request_is_answered(2),
        "mailbox-weak" => weak::models::every_request_is_answered(2),
        "parts" => right::models::parts_end_once(),
        "parts-weak" => weak::models::parts_end_once(),
        "leaving" => right::models::a_device_that_leaves_reaches_its_queues(),
        "leaving-weak" => weak::models::a_device_that_leaves_reaches_its_queues(),
        _ => {
            eprintln!("there is no model '{name}'; see tests/models/src/main.rs");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
