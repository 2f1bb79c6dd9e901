//! The models: one function each, which panics where a promise is broken.

mod devices;
mod log;
mod wakes;

pub use devices::{
    a_device_that_leaves_reaches_its_queues, every_request_is_answered, parts_end_once,
};
pub use log::{Waiter, what_is_published_is_sent, what_is_published_is_whole};
pub use wakes::{Taking, a_wake_is_never_lost, mail_is_always_read};
