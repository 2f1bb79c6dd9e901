//! The record of what was asked of the volumes, kept where the crash does not reach.
//!
//! Owns the line format and the history read from it. Lines enter and leave; never touches a volume.
//!
//! The place of a line in the record is its instant: a submission is on record before it is submitted and a completion
//! after it happened, so "completed before submitted" on record is true of the volume. One line each, with its own CRC-32:
//!
//! ```text
//! R run sectors-of-volume-0 sectors-of-volume-1 …
//! S writer counter kind volume first-sector sectors      kind: W write, F write FUA, Z zeroes, D discard, B flush
//! C writer counter errno                                 0 is success
//! M text                                                 a mark
//! ```
//! A last line without its end is a line the crash cut off, and is dropped.

use std::collections::HashMap;
use std::fmt::{self, Write as _};

/// What a writer asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A write.
    Write,
    /// A write that is durable when complete.
    WriteFua,
    /// Write-zeroes.
    Zeroes,
    /// Discard; reads as zeroes afterwards.
    Discard,
    /// All completed writes of the volume become durable.
    Flush,
}

impl Kind {
    const LETTERS: [(Self, &'static str); 5] = [
        (Self::Write, "W"),
        (Self::WriteFua, "F"),
        (Self::Zeroes, "Z"),
        (Self::Discard, "D"),
        (Self::Flush, "B"),
    ];

    fn letter(self) -> &'static str {
        match self {
            Self::Write => "W",
            Self::WriteFua => "F",
            Self::Zeroes => "Z",
            Self::Discard => "D",
            Self::Flush => "B",
        }
    }

    fn from_letter(letter: &str) -> Option<Self> {
        let found = Self::LETTERS.iter().find(|(_, known)| *known == letter);
        found.map(|(kind, _)| *kind)
    }

    /// True for zeroes and discards: the sectors read as zero afterwards.
    #[must_use]
    pub const fn clears(self) -> bool {
        matches!(self, Self::Zeroes | Self::Discard)
    }
}

/// One line of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The first line: the run's id and the sectors of each volume.
    Run {
        /// Identity of the run.
        run: u64,
        /// Sectors of each volume.
        sectors: Vec<u64>,
    },
    /// An operation is about to be submitted.
    Submit {
        /// Which writer.
        writer: u16,
        /// The writer's count, from 1.
        counter: u64,
        /// What.
        kind: Kind,
        /// Index of the volume.
        volume: u16,
        /// First sector.
        first: u64,
        /// Sectors; 0 for a flush.
        count: u32,
    },
    /// An operation came back.
    Complete {
        /// Which writer.
        writer: u16,
        /// The writer's count.
        counter: u64,
        /// 0, or the error number.
        errno: i32,
    },
    /// A named instant.
    Mark(String),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run { run, sectors } => {
                write!(f, "R {run:016x}")?;
                sectors.iter().try_for_each(|count| write!(f, " {count}"))
            }
            Self::Submit {
                writer,
                counter,
                kind,
                volume,
                first,
                count,
            } => {
                let kind = kind.letter();
                write!(f, "S {writer} {counter} {kind} {volume} {first} {count}")
            }
            Self::Complete {
                writer,
                counter,
                errno,
            } => write!(f, "C {writer} {counter} {errno}"),
            Self::Mark(text) => write!(f, "M {text}"),
        }
    }
}

impl Event {
    /// Appends the event as a line with its checksum.
    pub fn append_to(&self, line: &mut String) {
        let start = line.len();
        // Writing to a String cannot fail.
        let _ = write!(line, "{self}");
        let crc = crc32fast::hash(&line.as_bytes()[start..]);
        let _ = writeln!(line, " *{crc:08x}");
    }

    fn parse(line: &str) -> Option<Self> {
        let (body, crc) = line.rsplit_once(" *")?;
        if u32::from_str_radix(crc, 16).ok()? != crc32fast::hash(body.as_bytes()) {
            return None;
        }
        let (letter, rest) = body.split_once(' ')?;
        let mut words = rest.split(' ');
        let mut number = || words.next()?.parse::<u64>().ok();
        match letter {
            "R" => {
                let (run, counts) = rest.split_once(' ')?;
                let sectors = counts
                    .split(' ')
                    .map(|n| n.parse().ok())
                    .collect::<Option<_>>()?;
                Some(Self::Run {
                    run: u64::from_str_radix(run, 16).ok()?,
                    sectors,
                })
            }
            "S" => {
                let (writer, counter) = (number()?.try_into().ok()?, number()?);
                let kind = Kind::from_letter(words.next()?)?;
                let mut number = || words.next()?.parse::<u64>().ok();
                let (volume, first, count) = (number()?, number()?, number()?);
                let (volume, count) = (volume.try_into().ok()?, count.try_into().ok()?);
                Some(Self::Submit {
                    writer,
                    counter,
                    kind,
                    volume,
                    first,
                    count,
                })
            }
            "C" => {
                let (writer, counter) = (number()?.try_into().ok()?, number()?);
                let errno = words.next()?.parse().ok()?;
                Some(Self::Complete {
                    writer,
                    counter,
                    errno,
                })
            }
            "M" => Some(Self::Mark(rest.to_owned())),
            _ => None,
        }
    }
}

/// One operation with the two instants between which it happened.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Which writer.
    pub writer: u16,
    /// The writer's count.
    pub counter: u64,
    /// What.
    pub kind: Kind,
    /// Index of the volume.
    pub volume: u16,
    /// First sector.
    pub first: u64,
    /// Sectors.
    pub count: u32,
    /// Instant of submission.
    pub submitted: u64,
    /// Instant of successful completion. A failed or lost one stays `None`: it may have happened, at any later time.
    pub completed: Option<u64>,
}

impl Operation {
    /// The sectors it covers.
    #[must_use]
    pub fn sectors(&self) -> std::ops::Range<u64> {
        self.first..self.first + u64::from(self.count)
    }

    /// True if this one was complete before `later` was submitted.
    #[must_use]
    pub fn before(&self, later: &Self) -> bool {
        self.completed.is_some_and(|done| done < later.submitted)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { start, end } = self.sectors();
        let (writer, counter, volume) = (self.writer, self.counter, self.volume);
        write!(
            f,
            "{:?} {writer}/{counter} of volume {volume} sectors {start}..{end}",
            self.kind
        )
    }
}

use std::ops::Range;

/// All operations of a run, in order of submission.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Identity of the run.
    pub run: u64,
    /// Sectors of each volume.
    pub sectors: Vec<u64>,
    /// The operations, by submission.
    pub operations: Vec<Operation>,
    /// Named instants.
    pub marks: HashMap<String, u64>,
    by_name: HashMap<(u16, u64), usize>,
}

/// A record that cannot be judged by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordError {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for RecordError {}

impl History {
    /// Reads a record.
    ///
    /// # Errors
    /// A line that is damaged, repeated or out of place. A damaged last line is the crash's own doing and is dropped.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut history = Self::default();
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        for (index, line) in bytes[..whole].split(|byte| *byte == b'\n').enumerate() {
            let line_number = index + 1;
            // A terminal between us and the file may have added returns; nothing else is forgiven.
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                continue;
            }
            let event = std::str::from_utf8(line).ok().and_then(Event::parse);
            let event = event.ok_or(RecordError {
                line: line_number,
                what: "damaged",
            })?;
            history
                .push(event, line_number as u64)
                .map_err(|what| RecordError {
                    line: line_number,
                    what,
                })?;
        }
        if history.sectors.is_empty() {
            return Err(RecordError {
                line: 1,
                what: "no run: the record is empty",
            });
        }
        history.check_exclusive()?;
        Ok(history)
    }

    /// The history as known when only the record's first `bytes` were written: later completions are forgotten, later
    /// submissions stay, as operations that may or may not have happened.
    ///
    /// # Errors
    /// As `parse`.
    pub fn parse_until(record: &[u8], bytes: usize) -> Result<Self, RecordError> {
        let mut history = Self::parse(record)?;
        let known = record
            .get(..bytes)
            .unwrap_or(record)
            .iter()
            .filter(|byte| **byte == b'\n')
            .count() as u64;
        for operation in &mut history.operations {
            operation.completed = operation.completed.filter(|instant| *instant <= known);
        }
        Ok(history)
    }

    fn push(&mut self, event: Event, instant: u64) -> Result<(), &'static str> {
        match event {
            Event::Run { .. } if !self.sectors.is_empty() => return Err("a second run"),
            Event::Run { run, sectors } => (self.run, self.sectors) = (run, sectors),
            _ if self.sectors.is_empty() => return Err("before the run's first line"),
            Event::Mark(text) => drop(self.marks.insert(text, instant)),
            Event::Submit {
                writer,
                counter,
                kind,
                volume,
                first,
                count,
            } => {
                let size = self
                    .sectors
                    .get(usize::from(volume))
                    .ok_or("unknown volume")?;
                if first
                    .checked_add(u64::from(count))
                    .is_none_or(|end| end > *size)
                {
                    return Err("past the end of the volume");
                }
                if self
                    .by_name
                    .insert((writer, counter), self.operations.len())
                    .is_some()
                {
                    return Err("submitted twice");
                }
                let submitted = instant;
                self.operations.push(Operation {
                    writer,
                    counter,
                    kind,
                    volume,
                    first,
                    count,
                    submitted,
                    completed: None,
                });
            }
            Event::Complete {
                writer,
                counter,
                errno,
            } => {
                let index = *self
                    .by_name
                    .get(&(writer, counter))
                    .ok_or("never submitted")?;
                if errno == 0 && self.operations[index].completed.replace(instant).is_some() {
                    return Err("completed twice");
                }
            }
        }
        Ok(())
    }

    /// Zeroes carry no name, so what a zero sector shows is only known if nothing else was under way there.
    fn check_exclusive(&self) -> Result<(), RecordError> {
        let mut open: Vec<&Operation> = Vec::new();
        for operation in &self.operations {
            open.retain(|earlier| !earlier.before(operation));
            let clash = open.iter().any(|earlier| {
                (earlier.kind.clears() || operation.kind.clears())
                    && earlier.volume == operation.volume
                    && earlier.first < operation.sectors().end
                    && operation.first < earlier.sectors().end
            });
            if clash {
                let line = usize::try_from(operation.submitted).unwrap_or(usize::MAX);
                return Err(RecordError {
                    line,
                    what: "zeroes overlap another operation in flight",
                });
            }
            open.push(operation);
        }
        Ok(())
    }

    /// The place in `operations` of a writer's operation.
    #[must_use]
    pub fn find(&self, writer: u16, counter: u64) -> Option<usize> {
        self.by_name.get(&(writer, counter)).copied()
    }
}
