//! What a start makes of what the last run left.
//!
//! Owns the recovery of log, maps and links. Memory that is intact goes on as it is: nothing needs
//! to be compared. Without it the maps on disk say what may differ. The new run is durable before
//! anything of it is visible.

use super::adapter::{GroupLog, SharedWords};
use super::group::{Admin, FileOf, LinkMeta, State};
use super::metadata::{MapFile, hex, link_path, read_map};
use super::notes::adopt_notes;
use super::open::{OpenReport, dirty_layout, random_id};
use super::{OpenError, SourceOptions};
use blkrep_core::dirty::Bits;
use blkrep_core::source::{LinkIndex, LinkMark, LinkSetup, LinkStart, Transmit, WriteLog};
use blkrep_io::{Host, HostError, Region};
use blkrep_log::superblock::{Group, GroupLink, TransmitHeld};
use blkrep_log::{LogHandle, MemoryLog, MemoryLogName, MemoryLogShape};
use blkrep_types::{ByteLen, Incarnation, RecordKind, Seq, planted};
use std::path::Path;
use std::sync::Arc;

pub(super) struct Recovery<'a, H> {
    pub(super) host: &'a H,
    pub(super) directory: &'a Path,
    pub(super) options: &'a SourceOptions,
    /// The last run ended in order.
    pub(super) clean: bool,
}

pub(super) fn log_name(record: &Group) -> String {
    format!("{}-log-{}", record.name, hex(&record.log_id))
}

pub(super) fn link_memory_name(record: &Group, link: &[u8; 16]) -> String {
    format!("{}-link-{}", record.name, hex(link))
}

pub(super) const fn transmit_of(held: TransmitHeld) -> Transmit {
    match held {
        TransmitHeld::Started => Transmit::Started,
        TransmitHeld::Paused => Transmit::Paused,
        TransmitHeld::Stopped => Transmit::Stopped,
    }
}

/// The bitmaps of a link in memory that outlives the process, and whether they were there.
pub(super) fn link_memory<H: Host>(
    host: &H,
    record: &Group,
    link: &[u8; 16],
    words: usize,
    trusted: bool,
) -> Result<(SharedWords, SharedWords, bool), HostError> {
    let len = ByteLen::new(u64::try_from(2 * words * 8).expect("64-bit platform"));
    let name = link_memory_name(record, link);
    let (region, existed) = host.shared_memory(&name, len)?;
    let kept = existed && trusted;
    if !kept {
        region.whole().clear();
    }
    let live = SharedWords::new(&region, 0, words);
    let compare = SharedWords::new(&region, words, words);
    Ok((live, compare, kept))
}

/// A new log over new memory.
pub(super) fn make_log<H: Host>(host: &H, record: &Group) -> Result<MemoryLog, HostError> {
    let shape = MemoryLogShape::holding(record.log_bytes);
    let (region, _) = host.shared_memory(&log_name(record), shape.bytes())?;
    let base = (record.head.0, record.head.1);
    let name = memory_name(record);
    Ok(MemoryLog::create(
        region,
        shape,
        &name,
        record.incarnation,
        base,
    ))
}

fn memory_name(record: &Group) -> MemoryLogName {
    MemoryLogName {
        group: record.log_id,
        generation: record.history.current(),
    }
}

impl<H: Host> Recovery<'_, H> {
    /// Recovers everything; makes the new run durable. The log's memory, if there is a log.
    pub(super) fn run(
        &self,
        admin: &mut Admin<H>,
        state: &mut State<FileOf<H>>,
        report: &mut OpenReport,
    ) -> Result<Option<LogHandle>, OpenError> {
        let record = &mut admin.record;
        record.clean = false;
        // Stays on record until the maps that say the same are durable.
        let distrust = record.distrust;
        if record.links.is_empty() {
            record.distrust = false;
            record.head = (
                record.incarnation,
                if self.clean { record.head.1 } else { Seq::ZERO },
            );
            admin.superblock.save(record)?;
            return Ok(None);
        }
        let kept = self.kept_log(record, report);
        report.memory_kept = kept.is_some();
        if kept.is_none() {
            // A log of another identity: what lies around in memory is not taken for ours.
            let seq = if self.clean { record.head.1 } else { Seq::ZERO };
            let base = if self.clean {
                record.head.0
            } else {
                record.incarnation
            };
            record.head = (base, seq);
            let old = log_name(record);
            record.log_id = random_id(self.host);
            self.host.forget_shared_memory(&old)?;
        }
        // Durable before the memory carries the new run, and that before anything is served.
        admin.superblock.save(&admin.record)?;
        let record = &admin.record;
        let intact = kept.is_some();
        let log = match kept {
            Some(region) => self.adopt(record, region)?,
            None => GroupLog(make_log(self.host, record)?),
        };
        let lost = record
            .served_by
            .filter(|_| !planted!(StaleBackingServedAgain));
        let doubtful = doubts(&log, self.options.reissues, lost.is_some());
        let again = |doubt: &&Doubt| doubt.comes_again;
        report.doubtful_writes = doubtful.len() - doubtful.iter().filter(again).count();
        let handle = log.0.handle();
        let marks: Vec<_> = record
            .links
            .iter()
            .map(|link| log.mark(LinkIndex::new(usize::from(link.place))))
            .collect();
        if let Some(place) = lost {
            state.group.serve_from(LinkIndex::new(usize::from(place)));
        }
        state.group.set_log(log);
        for (link, mark) in record.links.iter().zip(marks) {
            let mark = mark.filter(|_| intact);
            self.open_link(record, link, mark, &doubtful, state, report)?;
            if distrust {
                state
                    .group
                    .distrust(LinkIndex::new(usize::from(link.place)));
            }
        }
        // What is doubtful is dirt on every link by now: a start that ends before finds it again.
        state.group.settle_entries(self.options.reissues);
        adopt_notes(state, &handle);
        Ok(Some(handle))
    }

    /// The memory of the last run, if it is a log of ours.
    fn kept_log(&self, record: &Group, report: &mut OpenReport) -> Option<Arc<Region>> {
        let shape = MemoryLogShape::holding(record.log_bytes);
        let opened = self.host.shared_memory(&log_name(record), shape.bytes());
        let (region, existed) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                report.log_problem = Some(error.to_string());
                return None;
            }
        };
        if !existed {
            return None;
        }
        match MemoryLog::recover(
            Arc::clone(&region),
            shape,
            &memory_name(record),
            record.incarnation,
        ) {
            Ok(_) => Some(region),
            Err(unusable) => {
                report.log_problem = Some(unusable.to_string());
                None
            }
        }
    }

    fn adopt(&self, record: &Group, region: Arc<Region>) -> Result<GroupLog, OpenError> {
        let shape = MemoryLogShape::holding(record.log_bytes);
        MemoryLog::recover(region, shape, &memory_name(record), record.incarnation)
            .map(GroupLog)
            .map_err(|error| OpenError::Command(error.to_string()))
    }

    fn open_link(
        &self,
        record: &Group,
        link: &GroupLink,
        mark: Option<LinkMark>,
        doubtful: &[Doubt],
        state: &mut State<FileOf<H>>,
        report: &mut OpenReport,
    ) -> Result<(), OpenError> {
        let layout = dirty_layout(&record.volumes);
        let path = link_path(self.directory, &record.name, &link.id);
        let map = read_map(self.host, &path, link.id, &layout)?;
        report.bad_sectors += map.bad;
        let (live, compare, kept) =
            link_memory(self.host, record, &link.id, layout.words(), mark.is_some())?;
        let mark = mark.filter(|_| kept);
        let (mut live, compare) = (Bits::new(live), Bits::new(compare));
        for doubt in doubtful.iter().filter(|doubt| !doubt.comes_again) {
            if doubt.link.is_none_or(|owner| owner == link.place) {
                let (first, last) = layout.bits_of(doubt.volume, doubt.extent);
                live.set(first, last);
            }
        }
        let place = usize::from(link.place);
        state.links[place] = Some(MapFile { ..map.file });
        state.metas[place] = LinkMeta {
            wanted: link.wanted,
            refused: false,
        };
        let start = LinkStart {
            live,
            compare,
            kept: map.bits,
            floor: map.floor,
            promised: map.promised,
            unnoted: false,
            mark,
        };
        state.group.add_link(&setup_of(link), start);
        Ok(())
    }
}

pub(super) fn setup_of(link: &GroupLink) -> LinkSetup {
    LinkSetup {
        place: LinkIndex::new(usize::from(link.place)),
        mode: link.mode,
        loss: link.loss,
        transmit: transmit_of(link.transmit),
        overwrite: link.overwrite,
        first_mirror: link.first_mirror,
    }
}

/// An entry of the last run whose local write may not have happened, or whose bytes never came.
pub(super) struct Doubt {
    link: Option<u8>,
    volume: blkrep_types::VolumeIndex,
    extent: blkrep_types::Extent,
    /// The front end issues the request again: until then nothing is to be done.
    comes_again: bool,
}

/// What is to be dirt of the entries of the last run, which stay as they are. Bytes that never came
/// leave nothing to send; a mirror's are to be sent again. A local write that is not known to be
/// done is done again by the front end that issues its requests again; without one, or if they do
/// not come, its extents are dirt.
fn doubts(log: &GroupLog, reissues: bool, lost: bool) -> Vec<Doubt> {
    let mut doubtful = Vec::new();
    let (mut seq, head): (Seq, (Incarnation, Seq)) = (log.base().1, log.head());
    while seq < head.1 {
        seq = seq.next();
        let entry = log.entry(seq);
        let mirror = matches!(
            entry.record.kind,
            RecordKind::Data { mirror: true } | RecordKind::Zero { mirror: true, .. }
        );
        let lost_mirror = mirror && !entry.published && !planted!(LostMirrorBlockForgotten);
        // Without a backing the log has all there is of it.
        let half_written =
            entry.published && !entry.local_done && !lost && !planted!(HalfWriteNotDoubted);
        if let Some(extent) = entry.record.extent.filter(|_| lost_mirror || half_written) {
            doubtful.push(Doubt {
                link: entry
                    .link
                    .map(|link| u8::try_from(link.as_usize()).expect("few links")),
                volume: entry.record.volume,
                extent,
                comes_again: half_written && reissues,
            });
        }
    }
    doubtful
}
