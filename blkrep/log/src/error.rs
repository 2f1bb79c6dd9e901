//! Why bytes from a disk are not what they should be.

/// Bytes that are no legal superblock or map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// There is nothing: the place was never written.
    #[error("the {what} was never written")]
    Blank {
        /// Which structure.
        what: &'static str,
    },
    /// The first bytes are those of something else.
    #[error("the {what} does not begin as one")]
    Magic {
        /// Which structure.
        what: &'static str,
    },
    /// Fewer bytes than the structure says it has.
    #[error("the {what} is cut off")]
    Short {
        /// Which structure.
        what: &'static str,
    },
    /// A checksum does not match.
    #[error("the {what} is corrupt: its checksum does not match")]
    Checksum {
        /// Which structure.
        what: &'static str,
    },
    /// Written by a newer program.
    #[error(
        "the {what} has version {found}, this program reads up to {supported}; start the newer program again"
    )]
    Newer {
        /// Which structure.
        what: &'static str,
        /// The version found.
        found: u32,
        /// The newest version that is understood.
        supported: u32,
    },
    /// A checked field with a value that it cannot have.
    #[error("field '{field}' of the {what} has no legal value")]
    Field {
        /// Which structure.
        what: &'static str,
        /// The field, as the format page names it.
        field: &'static str,
    },
    /// More text than a copy has room for.
    #[error("the {what} has no room for so many links and paths")]
    Room {
        /// Which structure.
        what: &'static str,
    },
}
