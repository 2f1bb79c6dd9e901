//! One body of promises, held against the real hands and their simulated twins.
//!
//! Every function of [`body`] runs three times: on a disk's filesystem, on tmpfs (which refuses
//! ways of zeroing that disks have) and in a simulated world. What only one of them can promise
//! (a real block device; what a crash leaves) has its own tests beside.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs)]

mod body;
mod place;
mod real_only;
mod sim_faults;
mod sim_loss;
mod sim_only;

use place::{OnDisk, OnTmpfs, Simulated};

macro_rules! promises {
    ($($name:ident),* $(,)?) => {
        mod on_disk { $(#[test] fn $name() { crate::body::$name(&crate::OnDisk::new()); })* }
        mod on_tmpfs { $(#[test] fn $name() { crate::body::$name(&crate::OnTmpfs::new()); })* }
        mod simulated { $(#[test] fn $name() {
            for seed in 0..20 { crate::body::$name(&crate::Simulated::new(seed)); }
        })* }
    };
}

promises!(
    what_was_written_is_read_back,
    a_read_past_the_end_is_an_error,
    an_empty_transfer_completes,
    zeroed_ranges_read_as_zeroes_and_their_neighbours_stay,
    a_durable_write_and_a_flush_complete,
    many_operations_at_once_all_complete_once,
    a_file_is_made_whole_and_sized,
    a_missing_file_is_an_error,
    a_claim_is_exclusive_until_it_is_dropped,
    blocking_reads_and_writes_meet_the_rings,
    names_are_listed_sorted_and_removed,
    shared_memory_is_found_again_by_name_and_length,
    nobody_listening_is_connection_refused,
    a_port_is_taken_once,
    bytes_arrive_in_order_and_whole,
    a_closed_peer_reads_as_the_end,
    a_shutdown_completes_what_is_pending,
    a_listener_shut_down_ends_its_accept,
    a_waker_ends_a_wait,
    a_wake_before_the_wait_is_not_lost,
    a_deadline_ends_a_wait,
    a_deadline_may_move,
    a_worker_is_driven_to_its_end,
);
