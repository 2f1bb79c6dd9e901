//! What became of a note at one target.

use super::bytes::{Reader, Writer};
use super::{NoteError, NoteId, TASK_DESCRIPTION_BYTES_MAX};
use crate::{Generation, Incarnation, Seq, WriteName};
use std::fmt;

/// Bytes of the fixed part.
const HEAD_BYTES: usize = 96;
/// Bytes of a command as it is shown; what is longer is cut.
const COMMAND_SHOWN_MAX: usize = 400;
/// Bytes of the last output of a task, or of the reason why it did not run.
pub(super) const OUTPUT_BYTES_MAX: usize = 2048;
/// Bytes of a report at most.
pub const NOTE_REPORT_BYTES_MAX: usize =
    HEAD_BYTES + TASK_DESCRIPTION_BYTES_MAX + COMMAND_SHOWN_MAX + OUTPUT_BYTES_MAX;

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident = $number:literal $text:literal),+ $(,)?) => {
        /// How far a note is, at one target.
        ///
        /// ```text
        ///   Queued -> Sent -> Waiting -> Running -> Done | Failed | TimedOut | Interrupted
        ///      |        |        +-> Set | Refused | Skipped
        ///      +--------+-> Skipped | Unable
        /// ```
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum NoteState { $($(#[$doc])* $name),+ }

        impl NoteState {
            /// Each of them, in order of its number.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Its word.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }

            /// Its number in a format.
            #[must_use]
            pub const fn number(self) -> u8 {
                match self { $(Self::$name => $number),+ }
            }

            /// The state with this number.
            #[must_use]
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

states! {
    /// In the source's log, not sent yet.
    Queued = 1 "queued",
    /// Sent, and not known to be durable at the target.
    Sent = 2 "sent",
    /// In the target's journal; earlier writes, or a pause, come first.
    Waiting = 3 "waiting",
    /// The target's base has every earlier write, and the command runs.
    Running = 4 "running",
    /// The command ended with exit status 0.
    Done = 5 "done",
    /// It ended otherwise, or could not be started.
    Failed = 6 "failed",
    /// It did not end in time and was killed.
    TimedOut = 7 "timed-out",
    /// The target does not run it: tasks are off there, or the program is not in its directory.
    Refused = 8 "refused",
    /// Its place came while the replica was no prefix, or was jumped over: it was not run, and is not set.
    Skipped = 9 "skipped",
    /// The target stopped, was promoted or died while it ran: what it did is not known. It is not run again.
    Interrupted = 10 "interrupted",
    /// The target's blkrepd is too old for notes, and got none.
    Unable = 11 "unable",
    /// A bookmark is in the target's list.
    Set = 12 "set",
}

impl NoteState {
    /// Nothing follows.
    #[must_use]
    pub const fn is_final(self) -> bool {
        !matches!(
            self,
            Self::Queued | Self::Sent | Self::Waiting | Self::Running
        )
    }
}

impl fmt::Display for NoteState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a target tells of a note, and keeps of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteReport {
    /// Which note.
    pub id: NoteId,
    /// Its place in the order.
    pub name: WriteName,
    /// It is a task.
    pub task: bool,
    /// How far it is.
    pub state: NoteState,
    /// The command's exit status; `None` if it has none, or was killed by a signal.
    pub exit: Option<u8>,
    /// When it was submitted: nanoseconds since 1970 by the source's clock.
    pub submitted: u64,
    /// When it was reached, by the target's clock; 0 before.
    pub began: u64,
    /// When it was over, by the target's clock; 0 before.
    pub ended: u64,
    /// The bookmark's name, or what the submitter said of the task.
    pub text: String,
    /// The command, as it is shown.
    pub command: String,
    /// The end of its output; or why it did not run.
    pub output: String,
}

/// No longer than `max` bytes, and on one line but for line feeds.
fn cut(text: &str, max: usize) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let c = if c.is_control() && c != '\n' { ' ' } else { c };
        if out.len() + c.len_utf8() > max {
            break;
        }
        out.push(c);
    }
    out
}

/// The words of a command as somebody would type them, cut to what is shown.
fn shown(words: &[String]) -> String {
    let quoted = words.iter().map(|word| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    });
    let text = quoted.collect::<Vec<_>>().join(" ");
    cut(&text.replace('\n', " "), COMMAND_SHOWN_MAX)
}

impl NoteReport {
    /// The first report of a note at its place.
    #[must_use]
    pub fn of(note: &super::Note, name: WriteName, state: NoteState) -> Self {
        let (text, command) = match &note.kind {
            super::NoteKind::Bookmark(name) => (name.as_str().to_owned(), String::new()),
            super::NoteKind::Task(task) => (task.description().to_owned(), shown(task.words())),
        };
        Self {
            id: note.id,
            name,
            task: note.kind.is_task(),
            state,
            exit: None,
            submitted: note.submitted,
            began: 0,
            ended: 0,
            text,
            command,
            output: String::new(),
        }
    }

    /// Its bytes.
    ///
    /// # Panics
    /// Never: texts are cut to what fits.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let text = cut(&self.text, TASK_DESCRIPTION_BYTES_MAX).replace('\n', " ");
        let command = cut(&self.command, COMMAND_SHOWN_MAX).replace('\n', " ");
        let output = cut(&self.output, OUTPUT_BYTES_MAX);
        let mut bytes = vec![0; HEAD_BYTES + text.len() + command.len() + output.len()];
        let mut writer = Writer::new(&mut bytes);
        writer.bytes(self.id.as_bytes());
        writer.bytes(self.name.generation.as_bytes());
        writer.u64(self.name.incarnation.get());
        writer.u64(self.name.seq.get());
        writer.u64(self.submitted);
        writer.u64(self.began);
        writer.u64(self.ended);
        writer.u8(self.state.number());
        writer.u8(u8::from(self.task));
        writer.u8(u8::from(self.exit.is_some()));
        writer.u8(self.exit.unwrap_or_default());
        writer.len(text.len());
        writer.len(command.len());
        writer.len(output.len());
        writer.bytes(&[0; 14]);
        writer.bytes(text.as_bytes());
        writer.bytes(command.as_bytes());
        writer.bytes(output.as_bytes());
        bytes
    }

    /// Reads the bytes of a report.
    ///
    /// # Errors
    /// They are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, NoteError> {
        let mut reader = Reader::new(bytes);
        let wrong = NoteError::Bytes;
        let id = NoteId::from_bytes(reader.array()?);
        let name = WriteName {
            generation: Generation::from_bytes(reader.array()?),
            incarnation: Incarnation::new(reader.u64()?),
            seq: Seq::new(reader.u64()?),
        };
        let (submitted, began, ended) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let state = NoteState::from_number(reader.u8()?).ok_or(wrong("state"))?;
        let (task, has_exit, exit) = (reader.u8()?, reader.u8()?, reader.u8()?);
        if task > 1 || has_exit > 1 || has_exit == 0 && exit != 0 {
            return Err(wrong("flags"));
        }
        let (text, command, output) = (reader.u16()?, reader.u16()?, reader.u16()?);
        if reader.array()? != [0_u8; 14] {
            return Err(wrong("reserved"));
        }
        let bounded = usize::from(text) <= TASK_DESCRIPTION_BYTES_MAX
            && usize::from(command) <= COMMAND_SHOWN_MAX
            && usize::from(output) <= OUTPUT_BYTES_MAX;
        if !bounded {
            return Err(wrong("length"));
        }
        let text = reader.text(usize::from(text))?;
        let command = reader.text(usize::from(command))?;
        let output = std::str::from_utf8(reader.bytes(usize::from(output))?);
        let output = output.map_err(|_| wrong("output"))?;
        if output.contains(|c: char| c.is_control() && c != '\n') {
            return Err(wrong("output"));
        }
        reader.end()?;
        Ok(Self {
            id,
            name,
            task: task == 1,
            state,
            exit: (has_exit == 1).then_some(exit),
            submitted,
            began,
            ended,
            text,
            command,
            output: output.to_owned(),
        })
    }
}
