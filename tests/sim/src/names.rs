//! No name of a write is used twice on a link. (What is a record of one link's mirror is an empty one on
//! another's.)
//!
//! What a target has acknowledged as durable it has for ever.
//!
//! Owns what every name stood for when it was first handed to a link. A port of the group is
//! wrapped; whatever passes it must mean the same each time.

use blkrep::engine::source::{Batch, LinkPort};
use blkrep_core::source::{
    Acks, ContentPart, DigestReply, DownReason, HelloFacts, LinkStatus, Outgoing, Rejection,
    StreamStart, WelcomeFacts,
};
use blkrep_io::sim::{SimIo, SimSocket};
use blkrep_io::{Completion, Slice};
use blkrep_types::{
    ByteLen, Extent, Generation, LinkName, MirrorKind, Nanos, NoteReport, Record, Seq, VolumeIndex,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Meaning = (Record, Option<u32>);

#[derive(Debug, Clone, Default)]
struct Table {
    meanings: BTreeMap<(LinkName, [u8; 16], u64, u64), Meaning>,
    /// Connections whose stream has begun, by link.
    connections: BTreeMap<LinkName, u64>,
    complaint: Option<String>,
}

/// Every name seen on the wire, over all lives of the source.
#[derive(Debug, Clone, Default)]
pub struct Names {
    table: Arc<Mutex<Table>>,
    forgiving: bool,
}

impl Names {
    /// An empty table. If disks fail, a target is forgiven for lacking what it acknowledged.
    #[must_use]
    pub fn of(disks_fail: bool) -> Self {
        Self {
            forgiving: disks_fail,
            ..Self::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A table of its own with what this one has: for a copy of the world.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self {
            table: Arc::new(Mutex::new(self.lock().clone())),
            forgiving: self.forgiving,
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        u64::try_from(self.lock().meanings.len()).expect("64-bit platform")
    }

    /// Connections of a link so far.
    #[must_use]
    pub fn connections(&self, link: &LinkName) -> u64 {
        self.lock().connections.get(link).copied().unwrap_or(0)
    }

    /// What was said twice with two meanings, or acknowledged and is gone.
    ///
    /// # Errors
    /// The first such thing.
    pub fn judge(&self) -> Result<(), String> {
        self.lock().complaint.clone().map_or(Ok(()), Err)
    }

    fn note(&self, link: &LinkName, generation: Generation, record: Record, bytes: Option<u32>) {
        let name = (
            link.clone(),
            *generation.as_bytes(),
            record.incarnation.get(),
            record.seq.get(),
        );
        let mut table = self.lock();
        let first = *table.meanings.entry(name).or_insert((record, bytes));
        drop(table);
        if first != (record, bytes) {
            self.complain(format!(
                "one name, two writes: {first:?} and {record:?} with {bytes:?}"
            ));
        }
    }

    fn complain(&self, why: String) {
        self.lock().complaint.get_or_insert(why);
    }
}

/// A port that notes what it hands out.
#[derive(Debug)]
pub struct NamedPort<P> {
    port: P,
    link: LinkName,
    names: Names,
    generation: Generation,
}

impl<P> NamedPort<P> {
    /// Notes in `names` what `port` hands out.
    #[must_use]
    pub fn new(port: P, link: LinkName, names: Names) -> Self {
        Self {
            port,
            link,
            names,
            generation: Generation::NONE,
        }
    }
}

impl<P: LinkPort<SimIo>> LinkPort<SimIo> for NamedPort<P> {
    fn start(&mut self, io: &mut SimIo) {
        self.port.start(io);
    }

    fn hello(&mut self) -> HelloFacts {
        self.port.hello()
    }

    fn wanted(&self) -> bool {
        self.port.wanted()
    }

    fn welcome(&mut self, io: &mut SimIo, welcome: &WelcomeFacts) -> Result<(), Rejection> {
        self.port.welcome(io, welcome)
    }

    fn map_part(&mut self, volume: VolumeIndex, extent: Extent) {
        self.port.map_part(volume, extent);
    }

    fn map_unknown(&mut self) {
        self.port.map_unknown();
    }

    fn begin(&mut self, io: &mut SimIo) -> Option<StreamStart> {
        let start = self.port.begin(io)?;
        if start.set_back && !self.names.forgiving {
            let (run, seq) = (start.after.incarnation.get(), start.after.seq);
            self.names.complain(format!(
                "a target lacks what it acknowledged as durable: it has {run}/{seq}"
            ));
        }
        let mut table = self.names.lock();
        *table.connections.entry(self.link.clone()).or_default() += 1;
        drop(table);
        self.generation = start.generation;
        Some(start)
    }

    fn down(&mut self, io: &mut SimIo, reason: DownReason) {
        self.port.down(io, reason);
    }

    fn next(&mut self, io: &mut SimIo, records: usize, bytes: usize, batch: &mut Batch) {
        self.port.next(io, records, bytes, batch);
        for outgoing in &batch.records {
            let data = outgoing.record.kind.has_data();
            let crc = data.then(|| self.port.bytes(outgoing).with(crc32fast::hash));
            let names = &self.names;
            names.note(&self.link, self.generation, outgoing.record, crc);
        }
    }

    fn bytes(&self, record: &Outgoing) -> Slice {
        self.port.bytes(record)
    }

    fn release(&mut self, through: Seq, framed: ByteLen) {
        self.port.release(through, framed);
    }

    fn again(&mut self, io: &mut SimIo) {
        self.port.again(io);
    }

    fn acked(&mut self, io: &mut SimIo, acks: &Acks) -> bool {
        self.port.acked(io, acks)
    }

    fn digest(&mut self, io: &mut SimIo, reply: &DigestReply) -> bool {
        self.port.digest(io, reply)
    }

    fn content(&mut self, io: &mut SimIo, part: &ContentPart, bytes: &[u8]) -> bool {
        self.port.content(io, part, bytes)
    }

    fn takes_notes(&mut self, able: bool) {
        self.port.takes_notes(able);
    }

    fn note(&mut self, io: &mut SimIo, report: &NoteReport) {
        self.port.note(io, report);
    }

    fn on_completion(&mut self, io: &mut SimIo, completion: Completion<SimSocket>) {
        self.port.on_completion(io, completion);
    }

    fn on_turn(&mut self, io: &mut SimIo) {
        self.port.on_turn(io);
    }

    fn deadline(&self) -> Option<Nanos> {
        self.port.deadline()
    }

    fn busy(&self) -> bool {
        self.port.busy()
    }

    fn status(&self, now: Nanos) -> LinkStatus {
        self.port.status(now)
    }

    fn mirror(&mut self, io: &mut SimIo, kind: MirrorKind) {
        self.port.mirror(io, kind);
    }
}
