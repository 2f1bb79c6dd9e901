//! Reading a body front to back.
//!
//! Owns the position in a body whose length and checksum are already known to be right. Each field
//! is checked as it is taken; what is left over at the end is an error too.

use crate::error::WireError;
use crate::frame::FrameKind;
use crate::layout::{AncestorBytes, Name, WriteNameBytes};
use blkrep_types::{
    Ancestor, DataState, Generation, History, Incarnation, MirrorKind, Seq, WriteName,
};
use zerocopy::{FromBytes, IntoBytes};

pub(crate) struct Body<'a> {
    kind: FrameKind,
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    pub(crate) const fn new(kind: FrameKind, bytes: &'a [u8]) -> Self {
        Self { kind, rest: bytes }
    }

    pub(crate) const fn wrong(&self, field: &'static str) -> WireError {
        WireError::Field {
            kind: self.kind,
            field,
        }
    }

    /// Refuses a field that is not as it should be.
    pub(crate) fn check(&self, right: bool, field: &'static str) -> Result<(), WireError> {
        if right {
            Ok(())
        } else {
            Err(self.wrong(field))
        }
    }

    pub(crate) fn take<T: FromBytes>(&mut self, field: &'static str) -> Result<T, WireError> {
        let (bytes, rest) = self
            .rest
            .split_at_checked(size_of::<T>())
            .ok_or_else(|| self.wrong(field))?;
        self.rest = rest;
        T::read_from_bytes(bytes).map_err(|_| self.wrong(field))
    }

    pub(crate) fn bytes(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], WireError> {
        let (bytes, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or_else(|| self.wrong(field))?;
        self.rest = rest;
        Ok(bytes)
    }

    pub(crate) fn text(&mut self, len: usize, field: &'static str) -> Result<String, WireError> {
        let bytes = self.bytes(len, field)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.wrong(field))?;
        self.check(!text.contains(char::is_control), field)?;
        Ok(text.to_owned())
    }

    pub(crate) fn history(&mut self, count: u16) -> Result<History, WireError> {
        let count = usize::from(count);
        self.check(
            count <= blkrep_types::limits::GENERATION_HISTORY_MAX,
            "generation_count",
        )?;
        let mut ancestors = Vec::with_capacity(count);
        for _ in 0..count {
            let bytes: AncestorBytes = self.take("generations")?;
            ancestors.push(Ancestor {
                generation: Generation::from_bytes(bytes.generation),
                parent: Generation::from_bytes(bytes.parent),
                branch_incarnation: Incarnation::new(bytes.branch_incarnation.get()),
                branch_seq: Seq::new(bytes.branch_seq.get()),
            });
        }
        History::from_oldest(ancestors).ok_or_else(|| self.wrong("generations"))
    }

    pub(crate) fn name<N: TryFrom<String>>(
        &self,
        name: &Name,
        field: &'static str,
    ) -> Result<N, WireError> {
        let len = usize::from(name.len.get());
        let (bytes, rest) = name
            .bytes
            .split_at_checked(len)
            .ok_or_else(|| self.wrong(field))?;
        self.reserved(rest, field)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.wrong(field))?;
        N::try_from(text.to_owned()).map_err(|_| self.wrong(field))
    }

    pub(crate) fn flag(&self, byte: u8, field: &'static str) -> Result<bool, WireError> {
        self.check(byte <= 1, field)?;
        Ok(byte == 1)
    }

    pub(crate) fn reserved(&self, bytes: &[u8], field: &'static str) -> Result<(), WireError> {
        self.check(bytes.iter().all(|byte| *byte == 0), field)
    }

    pub(crate) fn data_state(&self, byte: u8) -> Result<DataState, WireError> {
        data_state_from(byte).ok_or_else(|| self.wrong("data_state"))
    }

    /// Refuses what is left over.
    pub(crate) fn end(self) -> Result<(), WireError> {
        self.check(self.rest.is_empty(), "end")
    }
}

pub(crate) fn write_history(history: &History, out: &mut Vec<u8>) {
    for ancestor in history.ancestors() {
        let bytes = AncestorBytes {
            generation: *ancestor.generation.as_bytes(),
            parent: *ancestor.parent.as_bytes(),
            branch_incarnation: ancestor.branch_incarnation.get().into(),
            branch_seq: ancestor.branch_seq.get().into(),
        };
        out.extend_from_slice(bytes.as_bytes());
    }
}

pub(crate) fn name_bytes(text: &str) -> Name {
    let mut bytes = [0; 64];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    Name {
        bytes,
        len: count(text.len()).into(),
    }
}

/// A count that a limit keeps within 16 bits.
pub(crate) fn count(count: usize) -> u16 {
    u16::try_from(count).expect("bounded by a limit of its kind")
}

pub(crate) fn count_from_history(history: &History) -> u16 {
    count(history.ancestors().len())
}

pub(crate) const fn data_state_number(state: DataState) -> u8 {
    match state {
        DataState::Ok => 1,
        DataState::Mirroring => 2,
        DataState::MirrorRequired => 3,
        DataState::RestoreRequired => 4,
        DataState::NotReady => 5,
        DataState::Reverted => 6,
        DataState::Unknown => 7,
    }
}

const fn data_state_from(number: u8) -> Option<DataState> {
    Some(match number {
        1 => DataState::Ok,
        2 => DataState::Mirroring,
        3 => DataState::MirrorRequired,
        4 => DataState::RestoreRequired,
        5 => DataState::NotReady,
        6 => DataState::Reverted,
        7 => DataState::Unknown,
        _ => return None,
    })
}

pub(crate) const fn mirror_number(kind: MirrorKind) -> u8 {
    match kind {
        MirrorKind::Full => 1,
        MirrorKind::Difference => 2,
        MirrorKind::Checksum => 3,
    }
}

pub(crate) const fn mirror_from(number: u8) -> Option<MirrorKind> {
    Some(match number {
        1 => MirrorKind::Full,
        2 => MirrorKind::Difference,
        3 => MirrorKind::Checksum,
        _ => return None,
    })
}

impl From<WriteName> for WriteNameBytes {
    fn from(name: WriteName) -> Self {
        Self {
            generation: *name.generation.as_bytes(),
            incarnation: name.incarnation.get().into(),
            seq: name.seq.get().into(),
        }
    }
}

impl From<WriteNameBytes> for WriteName {
    fn from(bytes: WriteNameBytes) -> Self {
        Self {
            generation: Generation::from_bytes(bytes.generation),
            incarnation: Incarnation::new(bytes.incarnation.get()),
            seq: Seq::new(bytes.seq.get()),
        }
    }
}

/// Text as a field takes it: cut at a character, control characters replaced.
pub(crate) fn clean(text: &str, max: usize) -> String {
    let mut clean = String::with_capacity(text.len().min(max));
    for character in text.chars() {
        let character = if character.is_control() {
            ' '
        } else {
            character
        };
        if clean.len() + character.len_utf8() > max {
            break;
        }
        clean.push(character);
    }
    clean
}
