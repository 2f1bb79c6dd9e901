//! Answers of reads on their way to a source.
//!
//! Owns what was read of a base until it is said, a part at a time and in the order in which it was found.
//! The memory of an answer goes back to whoever reads the bases.

use blkrep_io::Slice;
use blkrep_types::{ByteLen, ByteOffset, Extent, Record};
use blkrep_wire::Content;
use blkrep_wire::limits::CONTENT_BYTES_MAX;
use std::collections::VecDeque;

#[derive(Debug)]
struct Answer {
    record: Record,
    /// What was found; `None`: it cannot be told.
    whole: Option<Slice>,
    /// Bytes of it that are said.
    said: usize,
}

/// The answers of one connection.
#[derive(Debug, Default)]
pub(super) struct Contents {
    waiting: VecDeque<Answer>,
    said: Vec<Slice>,
}

impl Contents {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn push(&mut self, record: Record, whole: Option<Slice>) {
        self.waiting.push_back(Answer {
            record,
            whole,
            said: 0,
        });
    }

    pub(super) fn take_said(&mut self) -> impl Iterator<Item = Slice> + use<> {
        std::mem::take(&mut self.said).into_iter()
    }

    /// The next part to say.
    pub(super) fn next(&mut self) -> Option<Content> {
        let answer = self.waiting.front_mut()?;
        let record = answer.record;
        let all = record.extent.expect("a read has an extent");
        let from = answer.said;
        let len = match &answer.whole {
            Some(_) => (all.len().as_usize() - from).min(CONTENT_BYTES_MAX),
            None => all.len().as_usize(),
        };
        let bytes = |whole: &Slice| whole.part(from..from + len).with(<[u8]>::to_vec);
        let bytes = answer.whole.as_ref().map(bytes);
        answer.said += len;
        if answer.said == all.len().as_usize() {
            let whole = self.waiting.pop_front().and_then(|answer| answer.whole);
            self.said.extend(whole);
        }
        let wide = |len: usize| u64::try_from(len).expect("64-bit platform");
        let offset = ByteOffset::new(all.offset().get() + wide(from));
        Some(Content {
            incarnation: record.incarnation,
            seq: record.seq,
            volume: record.volume,
            extent: Extent::new(offset, ByteLen::new(wide(len))).expect("a part of an extent"),
            bytes,
        })
    }
}
