//! Facts to bytes.

use super::{COPY_BYTES, Group, GroupLink, GroupVolume, MAGIC, TransmitHeld, VERSION, WHAT};
use crate::error::FormatError;
use crate::layout::{AncestorEntry, GroupHead, LinkEntry, TextName, VolumeEntry};
use blkrep_types::{MirrorKind, Mode, OnLoss};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

fn narrow<T: TryFrom<usize>>(value: usize) -> Result<T, FormatError> {
    T::try_from(value).map_err(|_| FormatError::Room { what: WHAT })
}

impl Group {
    /// Where the copy with this counter goes in the file.
    #[must_use]
    pub const fn copy_offset(counter: u64) -> u64 {
        (counter % 2) * COPY_BYTES
    }

    /// The bytes of a copy: whole sectors, at most [`COPY_BYTES`].
    ///
    /// # Errors
    /// There are more paths than fit.
    pub fn encode(&self, counter: u64) -> Result<Vec<u8>, FormatError> {
        let mut bytes = vec![0; size_of::<GroupHead>()];
        for ancestor in self.history.ancestors() {
            let entry = AncestorEntry {
                generation: *ancestor.generation.as_bytes(),
                parent: *ancestor.parent.as_bytes(),
                branch_incarnation: U64::new(ancestor.branch_incarnation.get()),
                branch_seq: U64::new(ancestor.branch_seq.get()),
            };
            bytes.extend_from_slice(entry.as_bytes());
        }
        for volume in &self.volumes {
            bytes.extend_from_slice(volume_entry(volume)?.as_bytes());
        }
        let mut texts = Vec::new();
        for link in &self.links {
            let from = texts.len();
            texts.extend_from_slice(link.peer.as_bytes());
            for path in &link.paths {
                texts.extend_from_slice(&narrow::<u16>(path.len())?.to_le_bytes());
                texts.extend_from_slice(path.as_bytes());
            }
            let entry = link_entry(link, texts.len() - from)?;
            bytes.extend_from_slice(entry.as_bytes());
        }
        bytes.extend_from_slice(&texts);
        let head = self.head(counter, &bytes)?;
        bytes[..size_of::<GroupHead>()].copy_from_slice(head.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        match u64::try_from(bytes.len()) {
            Ok(len) if len <= COPY_BYTES => Ok(bytes),
            Ok(_) | Err(_) => Err(FormatError::Room { what: WHAT }),
        }
    }

    fn head(&self, counter: u64, bytes: &[u8]) -> Result<GroupHead, FormatError> {
        let mut head = GroupHead::new_zeroed();
        head.magic = MAGIC;
        head.version = U32::new(VERSION);
        head.bytes = U32::new(narrow(bytes.len())?);
        head.counter = U64::new(counter);
        head.group_id = self.id;
        head.group = text_name(self.name.as_str())?;
        head.clean = u8::from(self.clean);
        head.distrust = u8::from(self.distrust);
        head.generation_count = U16::new(narrow(self.history.ancestors().len())?);
        head.volume_count = U16::new(narrow(self.volumes.len())?);
        head.link_count = U16::new(narrow(self.links.len())?);
        head.incarnation = U64::new(self.incarnation.get());
        head.head_incarnation = U64::new(self.head.0.get());
        head.head_seq = U64::new(self.head.1.get());
        head.log_id = self.log_id;
        head.log_bytes = U64::new(self.log_bytes.get());
        head.newer = *self.newer.as_bytes();
        head.served_by = self.served_by.map_or(0, |place| place + 1);
        head.intent_map = self.intent_map;
        head.body_crc = U32::new(crc32fast::hash(&bytes[size_of::<GroupHead>()..]));
        let crc = crc32fast::hash(&head.as_bytes()[..size_of::<GroupHead>() - 4]);
        head.crc = U32::new(crc);
        Ok(head)
    }
}

fn volume_entry(volume: &GroupVolume) -> Result<VolumeEntry, FormatError> {
    let bytes = |value: u64| usize::try_from(value).expect("64-bit platform");
    let mut entry = VolumeEntry::new_zeroed();
    entry.name = text_name(volume.name.as_str())?;
    entry.index = U16::new(volume.index.get());
    entry.len = U64::new(volume.len.get());
    entry.extent_bytes = U32::new(narrow(bytes(volume.extent_size.get()))?);
    entry.block_bytes = U16::new(narrow(bytes(volume.block_size.get()))?);
    Ok(entry)
}

fn link_entry(link: &GroupLink, text_bytes: usize) -> Result<LinkEntry, FormatError> {
    let mut entry = LinkEntry::new_zeroed();
    entry.name = text_name(link.name.as_str())?;
    entry.link_id = link.id;
    entry.place = link.place;
    entry.mode = match link.mode {
        Mode::Async => 1,
        Mode::Memory => 2,
        Mode::Sync => 3,
    };
    entry.on_loss = match link.loss.on_loss {
        OnLoss::Continue => 1,
        OnLoss::Block => 2,
        OnLoss::Fail => 3,
    };
    let timeout = u32::try_from(link.loss.timeout.as_millis());
    entry.loss_timeout_ms = U32::new(timeout.map_err(|_| FormatError::Room { what: WHAT })?);
    entry.transmit = match link.transmit {
        TransmitHeld::Started => 1,
        TransmitHeld::Paused => 2,
        TransmitHeld::Stopped => 3,
    };
    entry.overwrite = u8::from(link.overwrite);
    entry.first_mirror = match link.first_mirror {
        None => 0,
        Some(MirrorKind::Full) => 1,
        Some(MirrorKind::Difference) => 2,
        Some(MirrorKind::Checksum) => 3,
    };
    entry.wanted = u8::from(link.wanted);
    entry.peer_bytes = U16::new(narrow(link.peer.len())?);
    entry.text_bytes = U32::new(narrow(text_bytes)?);
    Ok(entry)
}

fn text_name(text: &str) -> Result<TextName, FormatError> {
    let mut name = TextName::new_zeroed();
    let place = name.bytes.get_mut(..text.len());
    place
        .ok_or(FormatError::Room { what: WHAT })?
        .copy_from_slice(text.as_bytes());
    name.len = U16::new(narrow(text.len())?);
    Ok(name)
}
