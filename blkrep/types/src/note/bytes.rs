//! Fields one after the other, little-endian, in bytes whose length is known.

use super::NoteError;

const SHORT: NoteError = NoteError::Bytes("length");

/// Writes from the front; what is not written stays as it is.
pub(super) struct Writer<'a> {
    rest: &'a mut [u8],
}

impl<'a> Writer<'a> {
    pub(super) const fn new(rest: &'a mut [u8]) -> Self {
        Self { rest }
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let (front, rest) = std::mem::take(&mut self.rest).split_at_mut(bytes.len());
        front.copy_from_slice(bytes);
        self.rest = rest;
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// A length or count, as 16 bits.
    pub(super) fn len(&mut self, value: usize) {
        self.u16(u16::try_from(value).expect("lengths of a note are checked"));
    }
}

/// Reads from the front.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], NoteError> {
        let (front, rest) = self.rest.split_at_checked(count).ok_or(SHORT)?;
        self.rest = rest;
        Ok(front)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], NoteError> {
        self.bytes(N)?.try_into().map_err(|_| SHORT)
    }

    pub(super) fn u8(&mut self) -> Result<u8, NoteError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, NoteError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, NoteError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, NoteError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Text of one line.
    pub(super) fn text(&mut self, count: usize) -> Result<String, NoteError> {
        let text = std::str::from_utf8(self.bytes(count)?);
        let text = text.map_err(|_| NoteError::Bytes("text"))?;
        if text.contains(char::is_control) {
            return Err(NoteError::Bytes("text"));
        }
        Ok(text.to_owned())
    }

    pub(super) fn rest_is_zero(&self) -> Result<(), NoteError> {
        if self.rest.iter().all(|byte| *byte == 0) {
            Ok(())
        } else {
            Err(NoteError::Bytes("rest"))
        }
    }

    pub(super) fn end(&self) -> Result<(), NoteError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(NoteError::Bytes("rest"))
        }
    }
}
