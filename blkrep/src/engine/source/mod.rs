//! The source side of a group: what joins state machine, log, maps and disks.

mod port;

pub use port::{Batch, LinkPort, PORT_TOKEN};
