//! What runs inside a guest: the first process, the bodies, and what they share.
//!
//! Owns every test body that needs a real kernel and root. A job enters, result lines leave. Never boots anything.

pub mod cut;
mod cuts_pair;
mod cuts_pair_disk;
mod cuts_pair_judge;
mod cuts_sync;
mod demo;
mod detach;
mod device;
pub mod disk;
mod front_ends;
mod idle;
pub mod init;
mod line;
mod lossy;
mod node;
mod pair;
mod power;
mod program;
mod rejoin;
mod rejoin_backup;
mod rejoin_return;
mod rejoin_unknown;
mod replicated;
mod replicated_behind;
mod self_tests;
pub mod shell;
mod storm;
mod storm_pair;
mod volume;

use anyhow::{Result, bail};
use std::path::PathBuf;

/// What a body is given.
#[derive(Debug)]
pub struct Context {
    /// Run the campaign whole, instead of its stated part.
    pub full: bool,
    /// An empty directory in memory.
    pub dir: PathBuf,
    /// Where a record outlives the guest.
    pub record: PathBuf,
    /// Words from the job.
    pub arguments: Vec<String>,
}

impl Context {
    /// How often: the part for every change, or the whole campaign.
    #[must_use]
    pub const fn times(&self, part: u32, whole: u32) -> u32 {
        if self.full { whole } else { part }
    }
}

/// A test body.
#[derive(Debug)]
pub struct Body {
    /// Its name, which is the promise it keeps.
    pub name: &'static str,
    /// When it has failed by standing still: for the part, and for the whole.
    pub timeout_s: (u64, u64),
    /// The product is not needed: a test of the harness itself.
    pub harness: bool,
    /// Not part of a plain run: a host-side scenario or a demonstration asks for it by name.
    pub on_request: bool,
    run: fn(&Context) -> Result<String>,
}

const fn harness(name: &'static str, run: fn(&Context) -> Result<String>) -> Body {
    Body {
        name,
        timeout_s: (90, 180),
        harness: true,
        on_request: false,
        run,
    }
}

const fn product(
    name: &'static str,
    part_s: u64,
    whole_s: u64,
    run: fn(&Context) -> Result<String>,
) -> Body {
    Body {
        name,
        timeout_s: (part_s, whole_s),
        harness: false,
        on_request: false,
        run,
    }
}

/// Every body. The parts are chosen so that all of them together stay under twelve minutes of emulation.
pub const BODIES: &[Body] = &[
    harness("ublk_control_is_there", self_tests::ublk_control_is_there),
    harness(
        "flakey_disk_drops_writes",
        self_tests::flakey_disk_drops_writes,
    ),
    harness(
        "delayed_disk_delays_writes",
        self_tests::delayed_disk_delays_writes,
    ),
    harness(
        "honest_disk_is_legal_at_every_cut",
        self_tests::honest_disk_is_legal_at_every_cut,
    ),
    harness("lying_disk_is_caught", self_tests::lying_disk_is_caught),
    harness(
        "loads_work_on_a_plain_disk",
        self_tests::loads_work_on_a_plain_disk,
    ),
    Body {
        on_request: true,
        ..harness("load_until_power_cut", self_tests::load_until_power_cut)
    },
    product(
        "volume_verifies_at_depth_32",
        180,
        600,
        volume::verifies_at_depth_32,
    ),
    product(
        "two_volumes_verify_side_by_side",
        180,
        600,
        volume::two_volumes_verify_side_by_side,
    ),
    product(
        "volume_of_4096_byte_blocks_verifies",
        180,
        600,
        volume::blocks_of_4096_verify,
    ),
    product(
        "ext4_works_and_checks_clean",
        180,
        600,
        volume::ext4_works_and_checks_clean,
    ),
    product(
        "every_operation_reaches_the_backing",
        180,
        300,
        volume::every_operation_reaches_the_backing,
    ),
    product(
        "frozen_volume_holds_up_nobody",
        180,
        300,
        detach::frozen_volume_holds_up_nobody,
    ),
    product(
        "detach_cut_short_by_a_kill_is_finished",
        180,
        300,
        detach::detach_cut_short_by_a_kill_is_finished,
    ),
    product(
        "detach_from_a_disk_that_does_not_answer_says_so",
        300,
        400,
        detach::detach_from_a_disk_that_does_not_answer_says_so,
    ),
    product(
        "device_of_another_daemon_is_left_alone",
        180,
        300,
        detach::device_of_another_daemon_is_left_alone,
    ),
    product(
        "killed_daemon_loses_nothing",
        240,
        1800,
        storm::killed_daemon_loses_nothing,
    ),
    product(
        "ghost_writes_never_land_over_newer_data",
        180,
        900,
        storm::ghost_writes,
    ),
    product(
        "power_loss_keeps_what_was_flushed",
        240,
        3600,
        power::keeps_what_was_flushed,
    ),
    product(
        "daemon_without_flushes_is_caught",
        240,
        900,
        power::missing_flushes_are_caught,
    ),
    product(
        "replica_follows_its_source",
        180,
        300,
        replicated::follows_its_source,
    ),
    product(
        "difference_mirror_sends_only_what_was_written",
        180,
        300,
        replicated_behind::long_cut,
    ),
    product(
        "replicated_volumes_survive_storms",
        300,
        3600,
        storm_pair::replicated_volumes_survive,
    ),
    Body {
        // An emulated processor that shares its host with others does not fill such a line.
        on_request: true,
        ..product("lossy_line_is_filled", 300, 300, lossy::is_filled)
    },
    product(
        "bandwidth_limit_holds_over_ten_seconds",
        180,
        180,
        lossy::limit_holds,
    ),
    product(
        "old_source_returns_passive",
        180,
        300,
        rejoin_return::nothing_written,
    ),
    product(
        "old_source_that_wrote_too_overwrites_nothing",
        180,
        300,
        rejoin_return::both_wrote,
    ),
    product(
        "way_back_survives_its_newer_side",
        180,
        300,
        rejoin_return::newer_side_fails,
    ),
    product(
        "restored_target_overwrites_nothing",
        240,
        400,
        rejoin_backup::restored_target,
    ),
    product(
        "source_of_unknown_generation_overwrites_nothing",
        240,
        400,
        rejoin_unknown::unknown_generation,
    ),
    product(
        "promotions_after_power_cuts_are_prefixes",
        400,
        3600,
        cuts_pair::promotions_are_prefixes,
    ),
    product(
        "what_sync_answered_is_on_the_target_after_power_cuts",
        300,
        3600,
        cuts_sync::answered_is_on_the_target,
    ),
    product(
        "target_without_flushes_is_caught_in_sync",
        300,
        600,
        cuts_sync::journal_without_flushes_is_caught,
    ),
    product(
        "idle_source_compares_nothing_after_power_loss",
        300,
        600,
        idle::compares_nothing_after_power_loss,
    ),
    product(
        "ext4_works_on_loop_front_end",
        180,
        300,
        front_ends::ext4_on_loop,
    ),
    product(
        "ext4_works_on_nbd_front_end",
        180,
        300,
        front_ends::ext4_on_nbd,
    ),
    product(
        "nbd_copy_equals_the_backing",
        180,
        300,
        front_ends::copies_equal_the_backing,
    ),
    product(
        "forced_detach_leaves_no_hung_task",
        120,
        120,
        device::forced_detach_leaves_no_hung_task,
    ),
    product(
        "bad_backings_are_refused",
        120,
        120,
        device::bad_backings_are_refused,
    ),
    Body {
        on_request: true,
        ..product("volumes_before_reboot", 120, 120, device::before_reboot)
    },
    Body {
        on_request: true,
        ..product("volumes_after_reboot", 120, 120, device::after_reboot)
    },
    Body {
        on_request: true,
        ..product("demo", 120, 120, demo::demo)
    },
    Body {
        on_request: true,
        ..harness("program", program::program)
    },
];

/// Programs of the machine that bodies call, beyond busybox.
pub const TOOLS: &[&str] = &[
    "dash",
    "fio",
    "ip",
    "tc",
    "mkfs.ext4",
    "e2fsck",
    "mount",
    "umount",
    "blockdev",
    "blkdiscard",
    "losetup",
    "dmsetup",
    "nbd-client",
    "nbdcopy",
    "qemu-img",
    "blkid",
];

/// Runs one body by name.
///
/// # Errors
/// Its promise did not hold, or there is no such body.
pub fn run(name: &str, context: &Context) -> Result<String> {
    match BODIES.iter().find(|body| body.name == name) {
        Some(body) => (body.run)(context),
        None => bail!("no body is called {name}"),
    }
}
