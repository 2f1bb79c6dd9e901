//! The promises of the group, in any order of what happens to it.

use super::*;
use proptest::prelude::*;

proptest! {
    /// Whatever the order of requests, completions, commits and acknowledgements: overlapping
    /// writes never run together, each begins after its intent is durable, each is in the log or
    /// dirty on every link, and everything is answered in the end.
    #[test]
    fn promises_hold_in_any_order(
        links in 0_usize..3,
        steps in prop::collection::vec((0_u8..9, any::<prop::sample::Index>(), 1_u64..40), 1..250),
    ) {
        let mut rig = Rig::new(links, 128 << 10, OnBackingError::Pass);
        let mut issued = 0;
        for (what, index, sectors) in steps {
            let busy = rig.group.requests_in_flight() >= 60;
            let offset = u64::try_from(index.index(200)).unwrap() * 512;
            match what {
                0..=2 if !busy => {
                    rig.write(extent(offset, sectors * 512));
                    issued += 1;
                }
                3 if !busy => {
                    let op = RequestOp::Zero { fua: sectors > 20, free: true };
                    rig.submit(op, Some(extent(offset, sectors * 512)));
                    issued += 1;
                }
                4 if !busy => {
                    rig.submit(RequestOp::Flush, None);
                    issued += 1;
                }
                5 if !rig.running.is_empty() => {
                    let result = if sectors == 1 { Err(Errno::EIO) } else { Ok(()) };
                    rig.finish(index.index(rig.running.len()), result);
                }
                6 => rig.commit(sectors > 4),
                7 if links > 0 => drop(rig.serve(index.index(links))),
                8 => rig.pass(Duration::from_millis(sectors * 20)),
                _ => {}
            }
        }
        for _ in 0..200 {
            rig.pass(Duration::from_secs(1));
            rig.commit(true);
            while !rig.running.is_empty() {
                rig.finish(0, Ok(()));
            }
            rig.finish_mirror_reads(true);
            (0..links).for_each(|index| drop(rig.serve(index)));
        }
        prop_assert_eq!(rig.answers.len(), issued);
        prop_assert_eq!(rig.group.requests_in_flight(), 0);
        for index in 0..links {
            prop_assert!(rig.group.link_is_drained(link(index)), "{:?}", rig.group.link_status(link(index)));
        }
    }
}
