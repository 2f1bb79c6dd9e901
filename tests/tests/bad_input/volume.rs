//! A volume behind its NBD socket, as an application has it.
//!
//! Owns one connection. Bytes go in and come out at places; every failure is the caller's to judge. Never retries.

use nbd::client::{NbdClient, handshake};
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

const SILENCE_MAX: Duration = Duration::from_secs(40);

/// Where a volume listens, from the address that `attach` prints.
pub(crate) fn socket_of(address: &str) -> PathBuf {
    let (_, socket) = address.split_once("?socket=").expect("an NBD address");
    assert!(
        !socket.contains('%'),
        "the directories of tests have plain names"
    );
    PathBuf::from(socket)
}

/// Reads and writes as they come.
struct Line(UnixStream);

impl Read for Line {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An open volume.
pub(crate) struct Volume(NbdClient<Line>);

impl Volume {
    /// Opens the volume at an address.
    pub(crate) fn open(address: &str) -> Self {
        let stream = UnixStream::connect(socket_of(address)).unwrap();
        stream.set_read_timeout(Some(SILENCE_MAX)).unwrap();
        stream.set_write_timeout(Some(SILENCE_MAX)).unwrap();
        let (path, _) = address.split_once("?socket=").unwrap();
        let (_, name) = path.rsplit_once('/').unwrap();
        let mut line = Line(stream);
        let export = handshake(&mut line, name.as_bytes()).unwrap();
        Self(NbdClient::new(line, &export))
    }

    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.seek(SeekFrom::Start(at))?;
        self.0.write_all(bytes)
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }

    pub(crate) fn read(&mut self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.0.seek(SeekFrom::Start(at))?;
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
