//! Looks at what the node stands on: kernel, devices, limits, rights, space.
//!
//! Owns the checks. [`facts::Facts`] are gathered first, then judged by pure functions, so that
//! each judgement can be tested without the machine it is about. Changes nothing.

mod facts;
mod kernel;

use blkrep_api::{Finding, FindingLevel};
use blkrep_types::ByteLen;
use facts::{Facts, Module};
use std::path::Path;

/// Free space of the state directory below which a warning is given: maps, tables and event log
/// of some hundred volumes.
const STATE_FREE_WARN: u64 = 256 << 20;
/// Size of `/dev/shm` below which no default log memory fits.
const SHM_FREE_WARN: u64 = 128 << 20;
/// Locked memory needed: the default log memory and the queues of one volume.
const MEMLOCK_NEEDED: u64 = 256 << 20;

/// Capabilities by their bit.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;

/// Looks at everything.
#[must_use]
pub(crate) fn examine(state_dir: &Path) -> Vec<Finding> {
    judge(&Facts::gather(state_dir))
}

/// Judges what was found.
fn judge(facts: &Facts) -> Vec<Finding> {
    vec![
        kernel::judge(&facts.release),
        ublk(facts),
        io_uring(facts),
        fuse(facts),
        loop_devices(facts),
        memlock(facts),
        io_flusher(facts),
        state_dir(facts),
        shared_memory(facts),
    ]
}

fn finding(
    check: &str,
    level: FindingLevel,
    what: impl Into<String>,
    meaning: &str,
    action: &str,
) -> Finding {
    Finding {
        check: check.to_owned(),
        level,
        what: what.into(),
        meaning: meaning.to_owned(),
        action: action.to_owned(),
    }
}

fn ok(check: &str, what: impl Into<String>) -> Finding {
    finding(check, FindingLevel::Ok, what, "", "")
}

fn ublk(facts: &Facts) -> Finding {
    let check = "ublk";
    let meaning = "volumes are served by the loop front end (root) or by nbd instead";
    match (facts.ublk_control, facts.ublk_module) {
        (true, _) => ok(check, "/dev/ublk-control is there"),
        (false, Module::Loadable) => finding(
            check,
            FindingLevel::Warning,
            "the kernel has ublk, but its module ublk_drv is not loaded",
            meaning,
            "load it: modprobe ublk_drv; the package's modules-load.d/blkrep.conf does so at boot",
        ),
        (false, Module::Present) => finding(
            check,
            FindingLevel::Warning,
            "the kernel has ublk, but /dev/ublk-control is missing",
            meaning,
            "check that udev or devtmpfs makes device nodes, and that no container hides them",
        ),
        (false, Module::Missing) => finding(
            check,
            FindingLevel::Warning,
            "this kernel has no ublk driver",
            meaning,
            "use a kernel with CONFIG_BLK_DEV_UBLK, 6.1 or newer, for the fastest front end",
        ),
    }
}

fn io_uring(facts: &Facts) -> Finding {
    let check = "io-uring";
    let action = "allow it: sysctl kernel.io_uring_disabled=0";
    match (facts.io_uring_disabled, facts.effective_uid) {
        (None, _) => ok(
            check,
            "io_uring is not restricted by kernel.io_uring_disabled",
        ),
        (Some(0), _) => ok(check, "io_uring is allowed to everyone"),
        (Some(1), 0) => ok(
            check,
            "io_uring is allowed to privileged processes such as this one",
        ),
        (Some(1), _) => finding(
            check,
            FindingLevel::Warning,
            "io_uring is allowed to privileged processes and members of one group only",
            "without it nothing can be served",
            action,
        ),
        (Some(_), _) => finding(
            check,
            FindingLevel::Error,
            "io_uring is switched off on this machine",
            "nothing can be served",
            action,
        ),
    }
}

fn fuse(facts: &Facts) -> Finding {
    let check = "fuse";
    if facts.fuse_device {
        return ok(check, "/dev/fuse is there");
    }
    let action = match facts.fuse_module {
        Module::Missing => "use a kernel with CONFIG_FUSE_FS if the loop front end is wanted",
        Module::Loadable | Module::Present => "load it: modprobe fuse",
    };
    finding(
        check,
        FindingLevel::Note,
        "/dev/fuse is missing",
        "the loop front end does not work; ublk and nbd do not need it",
        action,
    )
}

fn loop_devices(facts: &Facts) -> Finding {
    let check = "loop";
    if facts.loop_control {
        return ok(check, "/dev/loop-control is there");
    }
    finding(
        check,
        FindingLevel::Note,
        "/dev/loop-control is missing",
        "the loop front end does not work; ublk and nbd do not need it",
        "load it: modprobe loop",
    )
}

fn memlock(facts: &Facts) -> Finding {
    let check = "locked-memory";
    let unlimited = facts.capability(CAP_SYS_RESOURCE) || facts.memlock_bytes.is_none();
    let limit = facts.memlock_bytes.map_or(u64::MAX, ByteLen::get);
    if unlimited || limit >= MEMLOCK_NEEDED {
        return ok(check, "memory can be locked");
    }
    finding(
        check,
        FindingLevel::Warning,
        format!("only {} of memory can be locked", ByteLen::new(limit)),
        "under memory pressure the daemon can wait for pages that wait for its own device",
        "start it with LimitMEMLOCK=infinity, as the package's unit does, or ulimit -l unlimited",
    )
}

fn io_flusher(facts: &Facts) -> Finding {
    let check = "io-flusher";
    if facts.capability(CAP_SYS_RESOURCE) {
        let rights = if facts.capability(CAP_SYS_ADMIN) {
            "the daemon has the rights to serve devices and to mark itself as their flusher"
        } else {
            "the daemon can mark itself as flusher of its devices"
        };
        return ok(check, rights);
    }
    finding(
        check,
        FindingLevel::Warning,
        "the daemon may not set PR_SET_IO_FLUSHER: it lacks CAP_SYS_RESOURCE",
        "under memory pressure it can wait for writeback to its own device",
        "run it as root, as the package's unit does; nbd volumes of other machines do not need it",
    )
}

fn state_dir(facts: &Facts) -> Finding {
    let check = "state-directory";
    let path = facts.state_dir.display();
    let Some(space) = facts.state_space else {
        return finding(
            check,
            FindingLevel::Error,
            format!("{path} cannot be looked at"),
            "nothing can be recorded",
            "make it, writable for the daemon only",
        );
    };
    if space.volatile {
        return finding(
            check,
            FindingLevel::Error,
            format!("{path} is in memory: a reboot empties it"),
            "after it, nothing is known of volumes, links and what was in flight",
            "put the state directory on a disk",
        );
    }
    if space.free < STATE_FREE_WARN {
        return finding(
            check,
            FindingLevel::Warning,
            format!("{path} has {} MiB free", space.free >> 20),
            "when it is full, nothing new can be attached or connected",
            "free space, or move the state directory",
        );
    }
    ok(check, format!("{path} has {} MiB free", space.free >> 20))
}

fn shared_memory(facts: &Facts) -> Finding {
    let check = "shared-memory";
    match facts.shm_space {
        Some(space) if space.free >= SHM_FREE_WARN => {
            ok(check, format!("/dev/shm has {} MiB free", space.free >> 20))
        }
        Some(space) => finding(
            check,
            FindingLevel::Warning,
            format!("/dev/shm has only {} MiB free", space.free >> 20),
            "a group's write log lives there; one that does not fit cannot be loaded",
            "enlarge it: mount -o remount,size=1G /dev/shm; or set group.log-memory lower",
        ),
        None => finding(
            check,
            FindingLevel::Error,
            "/dev/shm is missing",
            "a group's write log lives there and could not outlive the daemon",
            "mount a tmpfs on /dev/shm",
        ),
    }
}

#[cfg(test)]
mod tests;
