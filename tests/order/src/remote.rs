//! A volume behind an NBD address, so that a load needs neither a device node nor root.
//!
//! Owns the address and one connection a writer. Positioned writes, flushes and trims enter, results leave. Never retries an
//! operation: whoever asked decides what a failed one means.
//!
//! The `nbd` crate speaks the protocol without FUA and write-zeroes: a FUA write is sent as a write and a flush, which promises
//! no less, and write-zeroes are refused.

use nbd::client::{NbdClient, NbdExt as _, handshake};
use std::ffi::OsString;
use std::io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SCHEME: &str = "nbd+unix://";
/// Longer than any stall a load is meant to see; a server silent for longer counts as failed.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Larger writes may be two for the server: no server of ours takes less in one piece.
pub(super) const WRITE_BYTES_MAX: u32 = 64 << 10;

/// `nbd+unix:///EXPORT?socket=PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    socket: PathBuf,
    export: Vec<u8>,
}

impl Address {
    /// The address that `text` is; `None` if it is a path.
    pub(super) fn parse(text: &Path) -> Option<io::Result<Self>> {
        let rest = text.to_str()?.strip_prefix(SCHEME)?;
        let socket = rest.split_once('?').and_then(|(path, query)| {
            let mut fields = query.split('&');
            Some((
                path,
                fields.find_map(|field| field.strip_prefix("socket="))?,
            ))
        });
        let address = socket.and_then(|(path, socket)| {
            Some(Self {
                socket: OsString::from_vec(decoded(socket)?).into(),
                export: decoded(path.strip_prefix('/').unwrap_or(path))?,
            })
        });
        Some(address.ok_or_else(|| {
            let what = format!(
                "{}: an NBD address is nbd+unix:///EXPORT?socket=PATH",
                text.display()
            );
            io::Error::new(io::ErrorKind::InvalidInput, what)
        }))
    }

    /// A connection of one's own.
    pub(super) fn connect(&self) -> io::Result<Connection> {
        let stream = UnixStream::connect(&self.socket)
            .map_err(|error| super::named(&self.socket, &error))?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.set_write_timeout(Some(SILENCE_MAX))?;
        let mut line = Line {
            input: BufReader::new(stream.try_clone()?),
            output: BufWriter::new(stream),
        };
        let export = handshake(&mut line, &self.export)?;
        let bytes = export.size;
        Ok(Connection {
            client: NbdClient::new(line, &export),
            bytes,
        })
    }
}

/// Percent-decodes; `None` if it is not well formed or has a NUL.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.as_bytes().iter();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let byte = if *byte == b'%' {
            let mut digit = || char::from(*bytes.next()?).to_digit(16);
            u8::try_from(digit()? * 16 + digit()?).ok()?
        } else {
            *byte
        };
        plain.push(byte);
    }
    (!plain.contains(&0)).then_some(plain)
}

/// A stream whose small writes are sent together.
struct Line {
    input: BufReader<UnixStream>,
    output: BufWriter<UnixStream>,
}

impl Read for Line {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.input.read(into)
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// One connection of one writer.
pub(super) struct Connection {
    client: NbdClient<Line>,
    bytes: u64,
}

impl Connection {
    /// Size of the export.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes all of `bytes` as one request.
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.client.seek(SeekFrom::Start(offset))?;
        let written = self.client.write(bytes)?;
        if written == bytes.len() {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::WriteZero,
            "the export ends before the write does",
        ))
    }

    /// All writes that are complete, of every connection, become durable.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.client.flush()
    }

    /// Discards a range.
    pub(super) fn trim(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.client.seek(SeekFrom::Start(offset))?;
        self.client
            .trim(usize::try_from(len).map_err(io::Error::other)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_from_a_path_and_decoded() {
        let parse = |text: &str| Address::parse(Path::new(text));
        let address = parse("nbd+unix:///?socket=/run/a%20b/50%25.sock")
            .unwrap()
            .unwrap();
        assert_eq!(address.socket, Path::new("/run/a b/50%.sock"));
        assert!(address.export.is_empty());
        let address = parse("nbd+unix:///data?tls=no&socket=/s").unwrap().unwrap();
        assert_eq!(
            (address.export.as_slice(), address.socket.as_path()),
            (&b"data"[..], Path::new("/s"))
        );
        assert!(parse("/dev/ublkb0").is_none());
        for wrong in [
            "nbd+unix:///",
            "nbd+unix:///?socket=/a%2",
            "nbd+unix:///?socket=/a%zz",
            "nbd+unix:///?socket=%00",
        ] {
            assert!(parse(wrong).unwrap().is_err(), "{wrong}");
        }
    }
}
