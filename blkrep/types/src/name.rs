//! Names that people give to nodes, groups, volumes and links.

use crate::limits::NAME_BYTES_MAX;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A name that is not legal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{name}' is not a legal {what} name: use 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' or '.', beginning with a letter or digit"
)]
pub struct NameError {
    what: &'static str,
    name: String,
}

fn check(what: &'static str, name: &str) -> Result<(), NameError> {
    let legal = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if legal {
        Ok(())
    } else {
        Err(NameError {
            what,
            name: name.chars().take(80).collect(),
        })
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Checks and takes a name.
            ///
            /// # Errors
            /// The name is empty, too long, or has a character that is not allowed.
            pub fn new(name: &str) -> Result<Self, NameError> {
                check($what, name)?;
                Ok(Self(name.to_owned()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(name: String) -> Result<Self, NameError> {
                check($what, &name)?;
                Ok(Self(name))
            }
        }

        impl std::str::FromStr for $type {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// The name of a host that runs `blkrepd`.
    NodeName,
    "node"
);
name!(
    /// The name of a group of volumes.
    GroupName,
    "group"
);
name!(
    /// The name of a volume: unique on its node, the file name below `/dev/blkrep`.
    VolumeName,
    "volume"
);
name!(
    /// The name of a link of a group.
    LinkName,
    "link"
);
name!(
    /// The name of a point, given at the source.
    BookmarkName,
    "bookmark"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_safe_as_a_file_name() {
        for wrong in ["", ".", "..", "a/b", "-rf", "a b", "ü", &"x".repeat(65)] {
            assert!(VolumeName::new(wrong).is_err(), "{wrong}");
        }
        for right in ["pgdata", "pg-data.1", "0", &"x".repeat(64)] {
            assert!(VolumeName::new(right).is_ok(), "{right}");
        }
    }
}
