//! Which layouts of bodies two nodes can use with each other.
//!
//! Owns the range this build speaks. The frame header and the bodies of `Hello` and `Refuse` are
//! the same in all versions, so that nodes of any two versions can tell each other no.

/// The oldest version this build speaks.
pub const VERSION_MIN: u16 = 1;

/// The newest version this build speaks.
pub const VERSION_MAX: u16 = 3;

/// The oldest version in which a target says which codecs it takes, and packed frames are legal.
pub const VERSION_PACKED: u16 = 2;

/// The oldest version in which a source may send notes, and a target says what became of them.
pub const VERSION_NOTES: u16 = 3;

/// The oldest version in which a session can have several connections.
pub const VERSION_CONNECTIONS: u16 = 3;

/// The oldest version in which a target may say that it answers reads.
pub const VERSION_READS: u16 = 3;

/// The version in the header of every frame before the peers agreed on one.
pub const HANDSHAKE_VERSION: u16 = 1;

/// The newest version that both sides speak; `None` if there is none.
#[must_use]
pub const fn negotiate(ours: (u16, u16), theirs: (u16, u16)) -> Option<u16> {
    let lowest = if ours.0 > theirs.0 { ours.0 } else { theirs.0 };
    let highest = if ours.1 < theirs.1 { ours.1 } else { theirs.1 };
    if lowest <= highest {
        Some(highest)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_chosen() {
        assert_eq!(negotiate((1, 3), (2, 5)), Some(3));
        assert_eq!(negotiate((2, 5), (1, 3)), Some(3));
        assert_eq!(negotiate((1, 1), (1, 1)), Some(1));
        assert_eq!(negotiate((1, 2), (3, 4)), None);
        assert_eq!(negotiate((3, 4), (1, 2)), None);
        assert_eq!(
            negotiate((5, 1), (5, 1)),
            None,
            "an empty range has nothing in common"
        );
    }
}
