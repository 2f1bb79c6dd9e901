//! Kernels on which ublk is known to be broken.
//!
//! Owns the list, with the report each entry comes from. A version leaves as a finding.

use super::{finding, ok};
use blkrep_api::{Finding, FindingLevel};

/// First kernel whose ublk lets a device outlive its server.
const RECOVERY_SINCE: (u32, u32) = (6, 1);

struct Broken {
    /// Beginning of the release string.
    release: &'static str,
    /// What happens.
    what: &'static str,
    /// The public report.
    report: &'static str,
    level: FindingLevel,
}

/// Longest match first. A release is matched whole or up to a character that is no digit.
const BROKEN: [Broken; 4] = [
    Broken {
        release: "6.17.0-1017-aws",
        what: "the kernel panics in ublk_init_queues when a ublk device is added",
        report: "longhorn/longhorn#13509",
        level: FindingLevel::Error,
    },
    Broken {
        release: "6.18.4",
        what: "ublk sets up its queues before the tags they need when a device is added",
        report: "zabbly/linux#52",
        level: FindingLevel::Error,
    },
    Broken {
        release: "6.17",
        what: "starting a ublk device fails with EINVAL on some builds, and others panic",
        report: "longhorn/longhorn#11977",
        level: FindingLevel::Warning,
    },
    Broken {
        release: "6.7.0",
        what: "a null pointer is followed when the server of a ublk device ends",
        report: "spdk/spdk#3384",
        level: FindingLevel::Warning,
    },
];

pub(super) fn judge(release: &str) -> Finding {
    let check = "kernel";
    if let Some(broken) = BROKEN.iter().find(|entry| is(release, entry.release)) {
        return finding(
            check,
            broken.level,
            format!("kernel {release}: {} ({})", broken.what, broken.report),
            "the front end ublk can stop this machine or not work",
            "install another kernel, or attach with --frontend loop or nbd",
        );
    }
    match version(release) {
        Some(found) if found >= RECOVERY_SINCE => ok(
            check,
            format!("kernel {release}: no trouble with ublk is known"),
        ),
        Some(_) => finding(
            check,
            FindingLevel::Warning,
            format!("kernel {release} has no ublk that lets a device outlive its server"),
            "the front end ublk is not used",
            "install kernel 6.1 or newer, or use --frontend loop or nbd",
        ),
        None => finding(
            check,
            FindingLevel::Note,
            format!("kernel release '{release}' is not understood"),
            "known trouble cannot be looked up",
            "report it with the output of uname -a",
        ),
    }
}

fn is(release: &str, entry: &str) -> bool {
    let rest = release.strip_prefix(entry);
    rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_kernels_are_named_and_their_neighbours_are_not() {
        for (release, level, part) in [
            ("6.17.0-1017-aws", FindingLevel::Error, "#13509"),
            ("6.17.0-1018-aws", FindingLevel::Warning, "#11977"),
            ("6.17", FindingLevel::Warning, "#11977"),
            ("6.18.4", FindingLevel::Error, "#52"),
            ("6.18.4-zabbly+", FindingLevel::Error, "#52"),
            ("6.18.40", FindingLevel::Ok, "no trouble"),
            ("6.1.0-44-amd64", FindingLevel::Ok, "no trouble"),
            ("6.12.57+deb13-cloud-amd64", FindingLevel::Ok, "no trouble"),
            ("7.3.0", FindingLevel::Ok, "no trouble"),
            ("6.7.0-68.fc38.x86_64", FindingLevel::Warning, "#3384"),
            ("6.0.1", FindingLevel::Warning, "outlive"),
            ("5.15.0", FindingLevel::Warning, "outlive"),
            ("weird", FindingLevel::Note, "not understood"),
        ] {
            let found = judge(release);
            assert_eq!(found.level, level, "{release}: {found:?}");
            assert!(found.what.contains(part), "{release}: {found:?}");
        }
    }
}
