//! The superblocks alone: two copies, written in turn.
//!
//! Owns the histories of facts, saved as the product saves them: a copy, a flush, then the other
//! copy and another flush. What is read back after a crash must be the facts before or after the save in flight, and
//! exact once that was announced; so after a crash of the recovery from that crash. One copy that
//! rots costs nothing and is seen.

use super::counts::Counts;
use super::flaw::Flaw;
use super::history::histories;
use super::medium::{Medium, SECTOR};
use blkrep_log::superblock as source;
use blkrep_store::superblock as target;
use blkrep_types::{
    BlockSize, ByteLen, DataState, ExtentSize, Generation, GroupName, History, Incarnation,
    LinkName, LossPolicy, MirrorKind, Mode, NodeName, Seq, VolumeIndex, VolumeName, WriteName,
};
use std::fmt::Debug;
use std::path::PathBuf;

/// Room for one of these small copies.
const COPY_BYTES: usize = 8 << 10;

/// What is read from two copies.
struct Found<F> {
    facts: F,
    counter: u64,
    /// The other copy is bad: it is written again.
    repair: bool,
}

/// One of the two formats, with changes of its facts.
trait Facts: Clone + PartialEq + Debug + Sized {
    type Update: Copy + Debug + PartialEq + 'static;

    const ALPHABET: &'static [Self::Update];

    fn first() -> Self;
    fn change(&mut self, step: u64, update: Self::Update);
    fn encode(&self, counter: u64) -> Vec<u8>;
    /// Which of the two places a copy with this counter has.
    fn place(counter: u64) -> usize;
    /// `None`: never written.
    fn choose(first: &[u8], second: &[u8]) -> Result<Option<Found<Self>>, String>;
}

fn name<T: std::str::FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().expect("a legal name")
}

fn generation(number: u64) -> Generation {
    let number = u8::try_from(number).expect("few");
    Generation::from_bytes([number; 16])
}

fn history() -> History {
    let mut history = History::new();
    history.branch(generation(1), Incarnation::new(0), Seq::ZERO);
    history
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum GroupUpdate {
    /// A run begins.
    Begin,
    /// It ends in order.
    End,
    /// A link is made.
    Link,
    /// A newer generation is heard of.
    Fence,
}

fn link(place: u8) -> source::GroupLink {
    source::GroupLink {
        place,
        id: [place; 16],
        name: name::<LinkName>(&format!("link{place}")),
        mode: Mode::Async,
        loss: LossPolicy::default(),
        transmit: source::TransmitHeld::Started,
        overwrite: false,
        first_mirror: Some(MirrorKind::Full),
        wanted: true,
        peer: "10.0.0.2:7420".to_owned(),
        // Long enough for the copy to have a sector more with each link.
        paths: vec![format!("/dev/{}", "target".repeat(60))],
    }
}

impl Facts for source::Group {
    type Update = GroupUpdate;

    const ALPHABET: &'static [GroupUpdate] = &[
        GroupUpdate::Begin,
        GroupUpdate::End,
        GroupUpdate::Link,
        GroupUpdate::Fence,
    ];

    fn first() -> Self {
        Self {
            id: [3; 16],
            name: name::<GroupName>("group"),
            clean: false,
            distrust: false,
            served_by: None,
            history: history(),
            incarnation: Incarnation::new(1),
            head: (Incarnation::new(0), Seq::ZERO),
            log_id: [4; 16],
            log_bytes: ByteLen::new(4 << 20),
            newer: Generation::NONE,
            intent_map: [5; 16],
            volumes: vec![source::GroupVolume {
                index: VolumeIndex::new(0),
                name: name::<VolumeName>("volume"),
                len: ByteLen::new(1 << 20),
                block_size: BlockSize::B512,
                extent_size: ExtentSize::DIRTY_DEFAULT,
            }],
            links: vec![link(0)],
        }
    }

    fn change(&mut self, step: u64, update: GroupUpdate) {
        match update {
            GroupUpdate::Begin => {
                self.clean = false;
                self.incarnation = Incarnation::new(self.incarnation.get() + 1);
            }
            GroupUpdate::End => {
                self.clean = true;
                self.head = (self.incarnation, Seq::new(100 + step));
            }
            GroupUpdate::Link => {
                let place = u8::try_from(self.links.len()).expect("few");
                self.links.push(link(place));
            }
            GroupUpdate::Fence => self.newer = generation(10 + step),
        }
    }

    fn encode(&self, counter: u64) -> Vec<u8> {
        Self::encode(self, counter).expect("it is small")
    }

    fn place(counter: u64) -> usize {
        usize::from(Self::copy_offset(counter) != 0)
    }

    fn choose(first: &[u8], second: &[u8]) -> Result<Option<Found<Self>>, String> {
        match source::choose(first, second) {
            Ok(source::Chosen::Blank) => Ok(None),
            Ok(source::Chosen::Good {
                group,
                counter,
                repair,
            }) => Ok(Some(Found {
                facts: *group,
                counter,
                repair,
            })),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum ReplicaUpdate {
    /// A mirror begins: the replica is not `ok`.
    NotOk,
    /// It ends.
    Ok,
    /// A generation branches off and the journal is another one.
    Branch,
    /// It is promoted.
    Promote,
}

impl Facts for target::Replica {
    type Update = ReplicaUpdate;

    const ALPHABET: &'static [ReplicaUpdate] = &[
        ReplicaUpdate::NotOk,
        ReplicaUpdate::Ok,
        ReplicaUpdate::Branch,
        ReplicaUpdate::Promote,
    ];

    fn first() -> Self {
        Self {
            id: [9; 16],
            group: name::<GroupName>("group"),
            source: name::<NodeName>("first"),
            link: name::<LinkName>("link"),
            role: target::ReplicaRole::Target,
            data_state: DataState::NotReady,
            part: target::Part::Everything,
            paused: false,
            history: history(),
            base: WriteName::NONE,
            merged: WriteName::NONE,
            doubtful: 0,
            journal: [5; 16],
            volumes: vec![target::ReplicaVolume {
                index: VolumeIndex::new(0),
                name: name::<VolumeName>("volume"),
                len: ByteLen::new(1 << 20),
                block_size: BlockSize::B512,
                extent_size: ExtentSize::DIRTY_DEFAULT,
                path: PathBuf::from(format!("/dev/{}", "target".repeat(60))),
            }],
        }
    }

    fn change(&mut self, step: u64, update: ReplicaUpdate) {
        match update {
            ReplicaUpdate::NotOk => {
                self.data_state = DataState::Mirroring;
                self.part = target::Part::Map;
                self.doubtful = 1;
            }
            ReplicaUpdate::Ok => {
                self.data_state = DataState::Ok;
                self.part = target::Part::Empty;
                self.doubtful = 0;
                self.merged.seq = Seq::new(step);
            }
            ReplicaUpdate::Branch => {
                let (run, at) = (Incarnation::new(1), Seq::new(step));
                self.history.branch(generation(20 + step), run, at);
                self.journal = [30 + u8::try_from(step).expect("few"); 16];
            }
            ReplicaUpdate::Promote => self.role = target::ReplicaRole::Promoted,
        }
    }

    fn encode(&self, counter: u64) -> Vec<u8> {
        Self::encode(self, counter)
    }

    fn place(counter: u64) -> usize {
        usize::from(Self::copy_offset(counter) != 0)
    }

    fn choose(first: &[u8], second: &[u8]) -> Result<Option<Found<Self>>, String> {
        match Self::choose(first, second) {
            Ok((facts, counter, bad)) => Ok(Some(Found {
                facts,
                counter,
                repair: bad.is_some(),
            })),
            Err(blkrep_store::FormatError::Blank { .. }) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A superblock's file and what it is to say.
#[derive(Clone)]
struct Pair<F> {
    medium: Medium,
    counter: u64,
    /// What was announced; nothing before the first save.
    said: Option<F>,
    /// A save that a crash interrupted: until the next one is done it may still be found whole.
    interrupted: Option<F>,
    flaw: Flaw,
}

fn read<F: Facts>(file: &[u8]) -> Result<Option<Found<F>>, String> {
    let (first, second) = file.split_at(COPY_BYTES);
    F::choose(first, second)
}

impl<F: Facts> Pair<F> {
    fn new(flaw: Flaw) -> Self {
        Self {
            medium: Medium::new(vec![0; 2 * COPY_BYTES]),
            counter: 0,
            said: None,
            interrupted: None,
            flaw,
        }
    }

    fn write(&mut self, counter: u64, bytes: &[u8]) {
        let place = match self.flaw {
            Flaw::OnePlace => 0,
            _ => F::place(counter) * COPY_BYTES,
        };
        self.medium
            .write(u64::try_from(place).expect("small"), bytes);
    }

    /// Everything a crash now can leave says what was announced, or what is being saved. `deep`:
    /// so it does if the recovery crashes as well.
    fn point(&self, saving: Option<&F>, counts: &mut Counts, deep: bool) -> Result<(), String> {
        let mut recoveries = Vec::new();
        self.medium.losses(counts, |file| {
            let found = read::<F>(file)?;
            let facts = found.as_ref().map(|found| &found.facts);
            let legal = [self.said.as_ref(), saving, self.interrupted.as_ref()];
            if !legal.contains(&facts) {
                return Err(format!("a crash left {facts:?}, legal are {legal:?}"));
            }
            if let (true, Some(found)) = (deep, found) {
                recoveries.push((file.to_vec(), found));
            }
            Ok(())
        })?;
        for (file, found) in recoveries {
            self.recover(file, found, saving, counts)?;
        }
        Ok(())
    }

    /// A start over what a crash left: a bad copy is written again, and an older one; a good one is
    /// flushed. Then either alone would do.
    fn recover(
        &self,
        file: Vec<u8>,
        found: Found<F>,
        saving: Option<&F>,
        counts: &mut Counts,
    ) -> Result<(), String> {
        let mut pair = Self {
            medium: Medium::new(file.clone()),
            counter: found.counter,
            said: Some(found.facts.clone()),
            interrupted: saving.cloned(),
            flaw: self.flaw,
        };
        let halves = file.split_at(COPY_BYTES);
        if found.repair || (halves.0 != halves.1 && self.flaw != Flaw::OldCopyLeft) {
            pair.save(&found.facts, counts, false)
                .map_err(|why| format!("in the recovery: {why}"))?;
        }
        pair.medium.flush();
        pair.either_alone()
            .map_err(|why| format!("after the recovery: {why}"))
    }

    /// Either copy alone says what was announced, whatever a crash leaves.
    fn either_alone(&self) -> Result<(), String> {
        self.medium.losses(&mut Counts::default(), |file| {
            for copy in [0, COPY_BYTES] {
                let mut file = file.to_vec();
                file[copy..copy + COPY_BYTES].fill(0xff);
                self.still(&file)?;
            }
            Ok(())
        })
    }

    fn save(&mut self, facts: &F, counts: &mut Counts, deep: bool) -> Result<(), String> {
        let counter = self.counter + 1;
        let bytes = facts.encode(counter);
        self.point(None, counts, deep)?;
        self.write(counter, &bytes);
        self.point(Some(facts), counts, deep)?;
        if self.flaw != Flaw::SaveAnnouncedEarly {
            self.medium.flush();
        }
        (self.counter, self.said) = (counter, Some(facts.clone()));
        self.interrupted = None;
        self.point(None, counts, deep)?;
        self.write(counter + 1, &bytes);
        self.point(None, counts, deep)?;
        if self.flaw != Flaw::SecondNotFlushed {
            self.medium.flush();
        }
        self.point(None, counts, deep)?;
        self.either_alone()
    }

    /// One copy loses a bit or a whole sector: the facts are the same, and a whole one is seen.
    fn rot(&mut self, counts: &mut Counts) -> Result<(), String> {
        let good = self.medium.view();
        let used = self.said.as_ref().map_or(0, |facts| facts.encode(1).len());
        for copy in [0, COPY_BYTES] {
            for byte in copy..copy + used {
                let mut file = good.clone();
                file[byte] ^= 1 << (byte % 8);
                self.still(&file)
                    .map_err(|why| format!("a flipped bit at byte {byte}: {why}"))?;
            }
            for at in (copy..copy + used).step_by(SECTOR) {
                let mut file = good.clone();
                file[at..at + SECTOR]
                    .iter_mut()
                    .for_each(|byte| *byte ^= 0xff);
                counts.rotten += 1;
                if !self.still(&file)? {
                    return Err(format!("nobody sees that the sector at byte {at} is bad"));
                }
            }
        }
        Ok(())
    }

    /// The facts are still read; true if damage is seen.
    fn still(&self, file: &[u8]) -> Result<bool, String> {
        let found = read::<F>(file)?.ok_or("nothing is read")?;
        if Some(&found.facts) != self.said.as_ref() {
            return Err(format!("{:?} is read", found.facts));
        }
        Ok(found.repair)
    }
}

fn of_format<F: Facts>(longest: usize, flaw: Flaw, counts: &mut Counts) -> Result<(), String> {
    for history in histories(F::ALPHABET, longest) {
        counts.histories += 1;
        let mut facts = F::first();
        let mut pair = Pair::<F>::new(flaw);
        let mut carried = pair.save(&facts, counts, true);
        for (step, update) in (1..).zip(&history) {
            facts.change(step, *update);
            carried = carried.and_then(|()| pair.save(&facts, counts, true));
        }
        carried
            .and_then(|()| pair.rot(counts))
            .map_err(|why| format!("{history:?}: {why}"))?;
    }
    Ok(())
}

/// Goes through every history of up to `longest` updates of both superblocks.
///
/// # Errors
/// A state that a crash or rot leaves and that must not be.
pub fn explore(longest: usize, flaw: Flaw) -> Result<Counts, String> {
    let mut counts = Counts::default();
    of_format::<source::Group>(longest, flaw, &mut counts)?;
    of_format::<target::Replica>(longest, flaw, &mut counts)?;
    Ok(counts)
}
