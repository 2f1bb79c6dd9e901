//! Kernels on which the ublk driver is known to be broken.
//!
//! Owns the table of releases with the reason. A release string enters, a verdict leaves; never
//! asks the driver anything, because on these kernels the first command is already fatal.

/// One known fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownFault {
    /// What happens.
    pub what: &'static str,
    /// Where it is reported.
    pub report: &'static str,
    /// A kernel that does not have it.
    pub fixed_in: &'static str,
}

/// The driver allocates its queues before the tag set that they need (commit `529d4d632788`
/// without `011af85ccd87`): the first ADD_DEV dereferences a null pointer in the kernel.
const ADD_DEV_ORDER: KnownFault = KnownFault {
    what: "the first ublk device crashes the kernel (null pointer in ublk_init_queues)",
    report: "longhorn/longhorn#13509, actions/runner-images#14175, zabbly/linux#52",
    fixed_in: "6.18.6",
};

/// First builds of Ubuntu's 6.17 kernels, by flavour, that carry [`ADD_DEV_ORDER`]. No fixed build
/// of this series is known, so every later one counts as broken.
const UBUNTU_6_17: [(&str, u32); 2] = [("azure", 1015), ("aws", 1017)];

/// The fault of a kernel release (`uname -r`), if one is known.
#[must_use]
pub fn known_fault(release: &str) -> Option<KnownFault> {
    let (numbers, rest) = split_version(release)?;
    match numbers {
        [6, 18, 4 | 5] => Some(ADD_DEV_ORDER),
        [6, 17, 0] => {
            let (build, flavour) = rest.strip_prefix('-')?.split_once('-')?;
            let build: u32 = build.parse().ok()?;
            UBUNTU_6_17
                .iter()
                .any(|(name, first)| flavour == *name && build >= *first)
                .then_some(ADD_DEV_ORDER)
        }
        _ => None,
    }
}

/// The running kernel's release.
pub(super) fn release() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Splits `6.18.4-arch1-1` into its three numbers and the rest. A missing third number is 0.
fn split_version(release: &str) -> Option<([u32; 3], &str)> {
    let end = release
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(release.len());
    let (version, rest) = release.split_at(end);
    let mut parts = version.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.parse().ok()?;
    let patch = match parts.next() {
        Some(patch) if !patch.is_empty() => patch.parse().ok()?,
        _ => 0,
    };
    Some(([major, minor, patch], rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_kernels_are_named() {
        for release in [
            "6.18.4",
            "6.18.5",
            "6.18.4-arch1-1",
            "6.18.4-zabbly+",
            "6.17.0-1015-azure",
            "6.17.0-1018-azure",
            "6.17.0-1017-aws",
        ] {
            assert_eq!(known_fault(release), Some(ADD_DEV_ORDER), "{release}");
        }
    }

    #[test]
    fn other_kernels_are_not() {
        for release in [
            "6.12.107+deb12-cloud-amd64",
            "6.18.3",
            "6.18.6",
            "6.18.44-arch1-1",
            "6.18",
            "6.17.0-5-generic",
            "6.17.0-1014-azure",
            "6.17.0-1016-aws",
            "6.17.1",
            "7.2.12-amd64",
            "16.18.4",
            "",
            "rubbish",
            "6",
            "6.x",
        ] {
            assert_eq!(known_fault(release), None, "{release}");
        }
    }
}
