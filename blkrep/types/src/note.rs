//! Notes: entries of the ordered stream that change no byte, but say something at their place.
//!
//! Owns what a bookmark and a task are, the bytes in which they travel, and what a target tells of
//! them; `docs/format/note.md` says the same in words. Bytes of others enter through checked readers.
//! Never runs anything.

mod bytes;
mod report;

pub use report::{NOTE_REPORT_BYTES_MAX, NoteReport, NoteState};

use crate::{BookmarkName, NameError};
use bytes::{Reader, Writer};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes of a note in the stream, in the log and in the journal, whatever it says: one page, so that a
/// command with its arguments fits and room for it is counted like that of a usual write.
pub const NOTE_BYTES: usize = 4096;
/// Words of a command: program and arguments.
pub const TASK_WORDS_MAX: usize = 64;
/// Bytes of all words of a command, each with a zero byte behind it.
pub const TASK_COMMAND_BYTES_MAX: usize = 2048;
/// Bytes of what somebody says of a task.
pub const TASK_DESCRIPTION_BYTES_MAX: usize = 200;

/// Where the words of a command begin.
const WORDS_AT: usize = 256;
const MAGIC: [u8; 8] = *b"BLKRnote";
const VERSION: u16 = 1;
const BOOKMARK: u8 = 1;
const TASK: u8 = 2;

/// Which note: random, never given twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NoteId([u8; 16]);

impl NoteId {
    /// The note with these random bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Reads 32 hexadecimal digits, as `Display` writes them.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        crate::Generation::from_hex(text).map(|same| Self(*same.as_bytes()))
    }
}

impl fmt::Display for NoteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NoteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for NoteId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NoteId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_hex(&text)
            .ok_or_else(|| serde::de::Error::custom("a note's id is 32 hexadecimal digits"))
    }
}

/// What is wrong with a command or its description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoteError {
    /// There is no command.
    #[error("a task needs a command: the name of a program in the target's task.directory")]
    Empty,
    /// The program is a path, or no name.
    #[error(
        "'{0}' is not the name of a program: use the name it has in the target's task.directory, without a path"
    )]
    Program(String),
    /// Too many words.
    #[error(
        "a command has at most {TASK_WORDS_MAX} words, this one has {0}: put it into a script at the target"
    )]
    Words(usize),
    /// Too long.
    #[error(
        "a command has at most {TASK_COMMAND_BYTES_MAX} bytes, this one has {0}: put it into a script at the target"
    )]
    Long(usize),
    /// A zero byte in a word.
    #[error("a word of the command has a zero byte in it: no program can be given that")]
    Zero,
    /// The description is too long or not plain text.
    #[error(
        "a description is at most {TASK_DESCRIPTION_BYTES_MAX} bytes of text without control characters"
    )]
    Description,
    /// A bookmark's name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Bytes that are no note.
    #[error("the bytes are no note of a version that is known here: {0}")]
    Bytes(&'static str),
}

/// A command that a target is asked to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskCommand {
    words: Vec<String>,
    description: String,
}

impl TaskCommand {
    /// Checks and takes a command.
    ///
    /// # Errors
    /// It is empty, too long, or names its program by a path; or the description is too long.
    pub fn new(words: Vec<String>, description: String) -> Result<Self, NoteError> {
        let program = words.first().ok_or(NoteError::Empty)?;
        if !is_program(program) {
            return Err(NoteError::Program(program.chars().take(80).collect()));
        }
        if words.len() > TASK_WORDS_MAX {
            return Err(NoteError::Words(words.len()));
        }
        let bytes = words.iter().map(|word| word.len() + 1).sum::<usize>();
        if bytes > TASK_COMMAND_BYTES_MAX {
            return Err(NoteError::Long(bytes));
        }
        if words.iter().any(|word| word.contains('\0')) {
            return Err(NoteError::Zero);
        }
        let plain = !description.contains(char::is_control);
        if !plain || description.len() > TASK_DESCRIPTION_BYTES_MAX {
            return Err(NoteError::Description);
        }
        Ok(Self { words, description })
    }

    /// The program's name, then its arguments.
    #[must_use]
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// What its submitter says of it; may be empty.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }
}

/// A name that stands for a file of one directory and nothing else.
fn is_program(name: &str) -> bool {
    let plain = name.len() <= 255 && !name.contains(['/', '\0']);
    plain && !name.starts_with('.') && !name.is_empty()
}

/// What a note says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoteKind {
    /// This place has a name.
    Bookmark(BookmarkName),
    /// At this place the target runs a command.
    Task(TaskCommand),
}

impl NoteKind {
    /// True if something is to be run.
    #[must_use]
    pub const fn is_task(&self) -> bool {
        matches!(self, Self::Task(_))
    }
}

/// A note as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Which one.
    pub id: NoteId,
    /// When it was submitted: nanoseconds since 1970 by the source's clock.
    pub submitted: u64,
    /// What it says.
    pub kind: NoteKind,
}

impl Note {
    /// Its bytes.
    ///
    /// # Panics
    /// Never: what a note says was checked when it was made.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; NOTE_BYTES];
        let mut head = Writer::new(&mut bytes);
        head.bytes(&MAGIC);
        head.u16(VERSION);
        head.u8(if self.kind.is_task() { TASK } else { BOOKMARK });
        head.u8(0);
        head.u32(0);
        head.bytes(self.id.as_bytes());
        head.u64(self.submitted);
        let (text, words): (&str, &[String]) = match &self.kind {
            NoteKind::Bookmark(name) => (name.as_str(), &[]),
            NoteKind::Task(command) => (command.description(), command.words()),
        };
        let of_words = words.iter().map(|word| word.len() + 1).sum::<usize>();
        head.len(text.len());
        head.len(words.len());
        head.len(of_words);
        head.u16(0);
        head.bytes(text.as_bytes());
        let mut tail = Writer::new(&mut bytes[WORDS_AT..]);
        for word in words {
            tail.bytes(word.as_bytes());
            tail.u8(0);
        }
        bytes
    }

    /// Reads the bytes of a note.
    ///
    /// # Errors
    /// They are none, or say what no note may say.
    pub fn decode(bytes: &[u8]) -> Result<Self, NoteError> {
        if bytes.len() != NOTE_BYTES {
            return Err(NoteError::Bytes("length"));
        }
        let wrong = NoteError::Bytes;
        let mut head = Reader::new(&bytes[..WORDS_AT]);
        let magic = head.bytes(8)? == MAGIC && head.u16()? == VERSION;
        let kind = head.u8()?;
        let reserved = head.u8()? == 0 && head.u32()? == 0;
        if !magic || !reserved {
            return Err(wrong("head"));
        }
        let id = NoteId(head.array()?);
        let submitted = head.u64()?;
        let (text, words, of_words) = (head.u16()?, head.u16()?, head.u16()?);
        if head.u16()? != 0 {
            return Err(wrong("reserved"));
        }
        let text = head.text(usize::from(text))?;
        head.rest_is_zero()?;
        let mut tail = Reader::new(&bytes[WORDS_AT..]);
        let of_words = tail.bytes(usize::from(of_words))?;
        tail.rest_is_zero()?;
        let words = split_words(of_words, usize::from(words))?;
        let kind = match kind {
            BOOKMARK if words.is_empty() => NoteKind::Bookmark(BookmarkName::new(&text)?),
            TASK => NoteKind::Task(TaskCommand::new(words, text)?),
            _ => return Err(wrong("kind")),
        };
        Ok(Self {
            id,
            submitted,
            kind,
        })
    }
}

fn split_words(bytes: &[u8], count: usize) -> Result<Vec<String>, NoteError> {
    let wrong = || NoteError::Bytes("words");
    let text = std::str::from_utf8(bytes).map_err(|_| wrong())?;
    let words: Vec<String> = text.split_terminator('\0').map(str::to_owned).collect();
    let whole = text.is_empty() || text.ends_with('\0');
    if whole && words.len() == count {
        Ok(words)
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests;
