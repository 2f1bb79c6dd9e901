//! The choice of a front end where the operator leaves it to us.
//!
//! Owns the order of preference. Enters: the front ends of this node. Leaves: the first that
//! works here, and why each better one does not. Never makes a device.

use crate::front::{FrontEnd, FrontError, FrontKind};
use blkrep_io::Io;

/// Best first: ublk keeps a device open over a killed daemon; a loop device is still a block
/// device for everybody; NBD needs a client of its own.
pub const PREFERENCE: [FrontKind; 3] = [FrontKind::Ublk, FrontKind::Loop, FrontKind::Nbd];

/// A front end that was not chosen although it is preferred.
#[derive(Debug)]
pub struct Skipped {
    /// Which.
    pub kind: FrontKind,
    /// Why, and what would make it work.
    pub reason: FrontError,
}

/// What the choice came to.
#[derive(Debug)]
pub struct Choice {
    /// The place of the chosen front end in the list; `None` if none works here.
    pub chosen: Option<usize>,
    /// The preferred ones that do not work here, best first.
    pub skipped: Vec<Skipped>,
}

/// Chooses the first of `front_ends` that is available, in the order of [`PREFERENCE`] whatever
/// the order of the list. A kind that is not in the list is not considered.
pub fn choose<I: Io>(front_ends: &[Box<dyn FrontEnd<I>>]) -> Choice {
    let mut skipped = Vec::new();
    for kind in PREFERENCE {
        for (index, front_end) in front_ends.iter().enumerate() {
            if front_end.kind() != kind {
                continue;
            }
            match front_end.available() {
                Ok(()) => {
                    return Choice {
                        chosen: Some(index),
                        skipped,
                    };
                }
                Err(reason) => skipped.push(Skipped { kind, reason }),
            }
        }
    }
    Choice {
        chosen: None,
        skipped,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::front::{DeviceSpec, Made};
    use blkrep_io::real::UringIo;
    use blkrep_types::Errno;

    #[derive(Debug)]
    struct Fake(FrontKind, bool);

    impl FrontEnd<UringIo> for Fake {
        fn kind(&self) -> FrontKind {
            self.0
        }

        fn available(&self) -> Result<(), FrontError> {
            self.1.then_some(()).ok_or_else(refusal)
        }

        fn make(&self, _spec: &DeviceSpec) -> Result<Made<UringIo>, FrontError> {
            Err(refusal())
        }
    }

    fn refusal() -> FrontError {
        FrontError {
            what: "try it".to_owned(),
            source: Errno::ENODEV,
            action: "buy a newer kernel".to_owned(),
        }
    }

    fn list(fakes: [(FrontKind, bool); 3]) -> Vec<Box<dyn FrontEnd<UringIo>>> {
        fakes
            .into_iter()
            .map(|(kind, works)| Box::new(Fake(kind, works)) as Box<dyn FrontEnd<UringIo>>)
            .collect()
    }

    #[test]
    fn the_best_that_works_is_chosen_and_the_better_ones_say_why_not() {
        use FrontKind::{Loop, Nbd, Ublk};
        let choice = choose(&list([(Nbd, true), (Loop, true), (Ublk, true)]));
        assert_eq!(choice.chosen, Some(2));
        assert!(choice.skipped.is_empty());

        let choice = choose(&list([(Nbd, true), (Loop, false), (Ublk, false)]));
        assert_eq!(choice.chosen, Some(0));
        let kinds: Vec<_> = choice.skipped.iter().map(|skipped| skipped.kind).collect();
        assert_eq!(kinds, [Ublk, Loop]);
        assert!(
            choice.skipped[0]
                .reason
                .to_string()
                .contains("newer kernel")
        );
    }

    #[test]
    fn nothing_is_chosen_where_nothing_works() {
        use FrontKind::{Loop, Nbd, Ublk};
        let choice = choose(&list([(Ublk, false), (Loop, false), (Nbd, false)]));
        assert_eq!(choice.chosen, None);
        assert_eq!(choice.skipped.len(), 3);
    }
}
