//! The event log file: one JSON object a line, rotated by size.
//!
//! Owns `events.jsonl`, `events.jsonl.1` (the one before) and so on in the state directory. Its
//! total size is bounded. A torn last line, from a crash or a full disk, is skipped.

use blkrep_api::EventRecord;
use blkrep_types::ByteLen;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

const NAME: &str = "events.jsonl";

/// Longest line that is read back: an event's text, names and the rest are far shorter.
const LINE_BYTES_MAX: u64 = 16 << 10;

/// Bytes of each file that are read back at the start, from its end: enough for a full ring of
/// ordinary events, and a bound on the time a start takes.
const TAIL_BYTES: u64 = 4 << 20;

#[derive(Debug)]
pub(super) struct RotatingFile {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
    /// The last write ended in the middle of a line.
    torn: bool,
    file_size: ByteLen,
    files: u16,
}

impl RotatingFile {
    /// Opens the file in `dir` and reads the newest `kept` records. Also returns what is wrong.
    pub(super) fn open(
        dir: &Path,
        file_size: ByteLen,
        files: u16,
        kept: usize,
    ) -> (Self, VecDeque<EventRecord>, Option<String>) {
        let mut rotating = Self {
            path: dir.join(NAME),
            file: None,
            bytes: 0,
            torn: false,
            file_size,
            files,
        };
        let mut records = VecDeque::new();
        let mut trouble = None;
        for path in [rotating.numbered(1), rotating.path.clone()] {
            match read_tail(&path, kept, &mut records) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => trouble = Some(format!("{}: {error}", path.display())),
            }
        }
        if let Err(error) = rotating.reopen() {
            trouble = Some(format!("{}: {error}", rotating.path.display()));
        }
        (rotating, records, trouble)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn set_limits(&mut self, file_size: ByteLen, files: u16) {
        (self.file_size, self.files) = (file_size, files);
    }

    fn numbered(&self, number: u16) -> PathBuf {
        self.path.with_extension(format!("jsonl.{number}"))
    }

    fn reopen(&mut self) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)?;
        self.bytes = file.metadata()?.len();
        self.torn = self.bytes > 0 && {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            last != *b"\n"
        };
        self.file = Some(file);
        Ok(())
    }

    /// Appends a record. After an error the next call tries everything again.
    pub(super) fn append(&mut self, record: &EventRecord) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        let grown = self
            .bytes
            .saturating_add(line.len().try_into().unwrap_or(0));
        if self.bytes > 0 && grown > self.file_size.get() {
            self.rotate()?;
        }
        if self.file.is_none() {
            self.reopen()?;
        }
        if self.torn {
            // End the torn line first, so that only it is lost.
            line.insert(0, b'\n');
        }
        let written = match &mut self.file {
            Some(file) => file.write_all(&line),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        match written {
            Ok(()) => {
                self.torn = false;
                self.bytes += u64::try_from(line.len()).unwrap_or(0);
            }
            Err(_) => self.file = None,
        }
        written
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        // Of more files than now allowed, those that an earlier limit left are removed too.
        let mut last = self.files;
        while remove_if_there(&self.numbered(last))? {
            last = last.saturating_add(1);
        }
        if self.files > 1 {
            for number in (1..self.files - 1).rev() {
                rename_if_there(&self.numbered(number), &self.numbered(number + 1))?;
            }
            rename_if_there(&self.path, &self.numbered(1))?;
        } else {
            remove_if_there(&self.path)?;
        }
        self.reopen()
    }

    /// Makes what was written durable, as far as the disk lets it.
    pub(super) fn sync(&self) {
        if let Some(file) = &self.file
            && let Err(error) = file.sync_data()
        {
            tracing::warn!(path = %self.path.display(), %error, "sync the event log");
        }
    }
}

fn remove_if_there(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Appends the records at the end of the file, keeping the newest `kept` of all. Lines that are no
/// records are skipped, and so are records whose cursor does not rise.
fn read_tail(path: &Path, kept: usize, records: &mut VecDeque<EventRecord>) -> io::Result<()> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut reader = BufReader::new(file.take(TAIL_BYTES));
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut reader)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)?
            == 0
        {
            return Ok(());
        }
        let Ok(record) = serde_json::from_slice::<EventRecord>(&line) else {
            continue;
        };
        // A cursor near the end of its range is no record of ours: the next must not overflow.
        let rises = records
            .back()
            .is_none_or(|last| last.cursor < record.cursor);
        if rises && record.cursor < u64::MAX / 2 {
            records.push_back(record);
            if records.len() > kept {
                records.pop_front();
            }
        }
    }
}
