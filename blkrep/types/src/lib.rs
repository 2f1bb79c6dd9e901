//! The words every room of blkrep uses: units, ranges, ids and limits.
//!
//! Owns checked value types. Outside data enters through a checked constructor and leaves as a
//! value that cannot be wrong. Never does I/O, never allocates on the data path, holds no state (but
//! for `planted`, which is not part of any release).
#![forbid(unsafe_code)]

mod congestion;
mod errno;
mod extent;
mod history;
mod id;
mod limit;
pub mod limits;
mod name;
mod note;
#[cfg(feature = "planted")]
pub mod planted;
mod record;
mod span;
mod state;
mod time;
mod units;
mod week;

pub use congestion::{Congestion, CongestionName};
pub use errno::Errno;
pub use extent::{Extent, ExtentError, ExtentIndex, ExtentSize};
pub use history::{Ancestor, History};
pub use id::{Generation, Incarnation, Seq, VolumeIndex, WriteName};
pub use limit::Limit;
pub use name::{BookmarkName, GroupName, LinkName, NameError, NodeName, VolumeName};
pub use note::{
    NOTE_BYTES, NOTE_REPORT_BYTES_MAX, Note, NoteError, NoteId, NoteKind, NoteReport, NoteState,
    TASK_COMMAND_BYTES_MAX, TASK_DESCRIPTION_BYTES_MAX, TASK_WORDS_MAX, TaskCommand,
};
pub use record::{Record, RecordKind};
pub use span::{format_rate, format_span, parse_rate, parse_span};
pub use state::{DataState, LossPolicy, MirrorKind, Mode, OnLoss};
pub use time::Nanos;
pub use units::{BlockSize, ByteLen, ByteOffset, UnitError, parse_size};
pub use week::{
    Open, PERIODS_MAX, Rate, Week, WeekMinute, Weekly, WeeklyRates, WeeklyWindow, rate_of,
    rate_text,
};

/// True if this mistake is planted and on: `if planted!(FuaAsPlainWrite) { .. }`. See ADR 6.
#[cfg(feature = "planted")]
#[macro_export]
macro_rules! planted {
    ($bug:ident) => {
        $crate::planted::Bug::$bug.is_on()
    };
}

/// False: no mistake is planted. See ADR 6.
#[cfg(not(feature = "planted"))]
#[macro_export]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}
