//! What a run did, for the totals that a campaign prints.
//!
//! Owns the counters. Faults and commands enter, sums leave.

use super::plan::{Command, Fault, Plan};
use std::time::Duration;

macro_rules! report {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a run did.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Report {
            /// How long it took by its own clock.
            pub virtual_time: Duration,
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Report {
            /// Adds another run's.
            pub fn add(&mut self, other: &Self) {
                self.virtual_time += other.virtual_time;
                $(self.$name += other.$name;)*
            }

            /// Every counter by its name.
            #[must_use]
            pub fn counters(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

report! {
    /// Runs.
    runs,
    /// Hosts.
    nodes,
    /// Groups.
    groups,
    /// Groups with two targets.
    fans,
    /// Volumes.
    volumes,
    /// Requests of the applications.
    requests,
    /// Of them, those that change something.
    writes,
    /// Reads judged.
    reads,
    /// Requests that were answered with an error.
    failures,
    /// Names of writes seen on the wire.
    names,
    /// Times a pair of ends was compared while the run went on.
    looks,
    /// Times a daemon was killed.
    kills,
    /// Times a host lost power.
    power_cuts,
    /// Times a daemon ended in order.
    restarts,
    /// Cuts of the network.
    cuts,
    /// Resets of connections.
    resets,
    /// Single connections that were reset or went silent.
    severed,
    /// Disks that answered with errors.
    disk_errors,
    /// Disks that answered late.
    stalls,
    /// Ways on which bytes were changed.
    garbles,
    /// Ways that were slow.
    delays,
    /// Connections that arrived twice.
    doubles,
    /// Clocks that leapt.
    leaps,
    /// Groups all of whose backings failed.
    lost_backings,
    /// Times that a daemon went on with a target, starts that found it on record among them.
    served_there,
    /// Hosts that lost power then: their applications began anew with what the target had.
    begun_there,
    /// Groups that were taken over from that.
    taken_from_there,
    /// Hosts that were full.
    full_hosts,
    /// Sectors that could not be read.
    unreadable_sectors,
    /// Bits flipped at rest.
    rot,
    /// Lies of disks.
    lies,
    /// Old copies of a target put back.
    old_backups,
    /// Targets paused.
    pauses,
    /// Mirrors asked for.
    mirrors,
    /// Mirrors stopped or paused.
    mirror_stops,
    /// Transmissions held.
    holds,
    /// Links disconnected and connected.
    reconnects,
    /// Links forgotten and made anew.
    relinks,
    /// Groups, or volumes of them, detached and attached.
    detaches,
    /// Of the groups, those whose backings somebody else wrote to meanwhile.
    backings_written,
    /// Policies changed.
    freezes,
    /// Times of links changed.
    patience_changes,
    /// Modes changed.
    mode_changes,
    /// Commands that changed what happens when a link is lost.
    loss_changes,
    /// Disk queues changed.
    queue_changes,
    /// Policies of targets that are to try writes again changed.
    retry_changes,
    /// Bookmarks and tasks submitted.
    notes,
    /// Bookmarks that a target set.
    bookmarks_set,
    /// Tasks that ended on a target.
    tasks_done,
    /// Tasks that ran when their target ended.
    tasks_interrupted,
    /// Bookmarks and tasks whose place was no state of the source at the target.
    notes_skipped,
    /// Times that a disk queue began to hold something.
    spills,
    /// Times that one was drained.
    drains,
    /// Times that one was full.
    full_queues,
    /// Times that the disk of one did not take what was written.
    failed_queues,
    /// Times that what one held could not be read back.
    unreadable_queues,
    /// Times that an operator let writes go on that waited for a link.
    let_go,
    /// Requests that a promoted replica had to have, since they were answered in memory or sync mode.
    promised,
    /// Replicas promoted in a copy of their world, and judged.
    probes_promoted,
    /// Replicas that refused there.
    probes_refused,
    /// Takeovers.
    takeovers,
    /// Of them, behind a cut while the old source went on.
    takeovers_behind_cut,
    /// Old sources that became targets.
    rejoins,
}

fn count(number: usize) -> u64 {
    u64::try_from(number).expect("64-bit platform")
}

impl Report {
    /// What can be said of a plan before it is carried out.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let groups = &plan.groups;
        Self {
            runs: 1,
            nodes: count(plan.nodes),
            groups: count(groups.len()),
            fans: count(
                groups
                    .iter()
                    .filter(|group| group.targets.len() > 1)
                    .count(),
            ),
            volumes: count(groups.iter().map(|group| group.volumes.len()).sum()),
            ..Self::default()
        }
    }

    /// Counts a fault; crashes and old copies are counted when they happen.
    pub fn note_fault(&mut self, fault: &Fault) {
        match fault {
            Fault::Crash { .. } => {}
            Fault::Cut { .. } => self.cuts += 1,
            Fault::Reset { .. } => self.resets += 1,
            Fault::Sever { .. } => self.severed += 1,
            Fault::Disk { .. } => self.disk_errors += 1,
            Fault::Stall { .. } => self.stalls += 1,
            Fault::Lost { .. } => self.lost_backings += 1,
            Fault::Garble { .. } => self.garbles += 1,
            Fault::Delay { .. } => self.delays += 1,
            Fault::Double { times, .. } => self.doubles += u64::from(*times),
            Fault::Leap { .. } => self.leaps += 1,
            Fault::Full { .. } => self.full_hosts += 1,
            Fault::Unreadable { .. } => self.unreadable_sectors += 1,
            Fault::Rot { .. } => self.rot += 1,
            Fault::Lie { .. } => self.lies += 1,
            Fault::OldBackup { .. } => {}
        }
    }

    /// Counts a command; restarts are counted when they happen.
    pub fn note_command(&mut self, command: &Command) {
        match command {
            Command::Restart { .. } | Command::Reboot { .. } => {}
            Command::PauseTarget { .. } => self.pauses += 1,
            Command::Mirror { .. } => self.mirrors += 1,
            Command::StopMirror { .. } | Command::PauseMirror { .. } => self.mirror_stops += 1,
            Command::HoldTransmission { .. } => self.holds += 1,
            Command::Reconnect { .. } => self.reconnects += 1,
            Command::Relink { .. } => self.relinks += 1,
            Command::Detach { .. } => self.detaches += 1,
            Command::Freeze { .. } => self.freezes += 1,
            Command::SetPatience { .. } => self.patience_changes += 1,
            Command::SetMode { .. } => self.mode_changes += 1,
            Command::SetLoss { .. } => self.loss_changes += 1,
            Command::SetQueue { .. } => self.queue_changes += 1,
            Command::SetRetry { .. } => self.retry_changes += 1,
            Command::Note { .. } => self.notes += 1,
        }
    }
}
