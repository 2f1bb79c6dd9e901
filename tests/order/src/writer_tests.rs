//! Loads of files and of an NBD server, over one record.

#![allow(clippy::unwrap_used)]

use super::record::{History, Kind};
use super::{Judgement, Keep, Load, append, check_files, write};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

const BYTES: u64 = 2 << 20;

fn load(volume: PathBuf, operations: u64) -> Load {
    Load {
        volumes: vec![volume],
        writers: 3,
        seconds: None,
        stop_file: None,
        operations: Some(operations),
        max_bytes: 16 << 10,
        block_bytes: 512,
        span_bytes: Some(256 << 10),
        flush_percent: 5,
        fua_percent: 5,
        zero_percent: 0,
        discard_percent: 0,
        prefill: false,
        pause: Duration::ZERO,
        keep_going: false,
        host_survives: true,
        seed: 3,
        run: 9,
    }
}

fn record(path: &Path) -> File {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .unwrap()
}

/// An NBD server of a file, gone after a number of connections or when told.
struct Server {
    socket: PathBuf,
    accepting: std::thread::JoinHandle<()>,
}

impl Server {
    fn of(socket: &Path, image: &Path, clients: usize) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let image = image.to_owned();
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().take(clients) {
                serve(stream.unwrap(), &image);
            }
        });
        Self {
            socket: socket.to_owned(),
            accepting,
        }
    }

    /// Waits until nobody listens. A writer that found no work left never connected: its place is taken here.
    fn gone(self) {
        while !self.accepting.is_finished() {
            drop(UnixStream::connect(&self.socket));
            std::thread::sleep(Duration::from_millis(1));
        }
        self.accepting.join().unwrap();
        std::fs::remove_file(self.socket).unwrap();
    }
}

fn serve(stream: UnixStream, image: &Path) {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).open(image).unwrap();
    std::thread::spawn(move || {
        let export: nbd::Export = nbd::Export {
            size: BYTES,
            send_flush: true,
            ..nbd::Export::default()
        };
        let shaken: io::Result<()> = nbd::server::handshake(&stream, |_| Ok(export)).map(drop);
        // A client that leaves ends the transmission, one way or another.
        drop(shaken.and_then(|()| nbd::server::transmission(&stream, file)));
    });
}

#[test]
fn writers_on_an_nbd_address_leave_a_legal_image() {
    let dir = tempfile::tempdir().unwrap();
    let (image, socket, lines) = (
        dir.path().join("i"),
        dir.path().join("s"),
        dir.path().join("r"),
    );
    File::create(&image).unwrap().set_len(BYTES).unwrap();
    // One connection to learn the size, and one a writer.
    let serving = Server::of(&socket, &image, 4);
    let address = PathBuf::from(format!("nbd+unix:///?socket={}", socket.display()));
    let summary = write(&load(address, 300), record(&lines)).unwrap();
    assert_eq!((summary.submitted, summary.failed), (300, 0), "{summary:?}");
    serving.gone();
    let verdict = check_files(
        &lines,
        std::slice::from_ref(&image),
        &[],
        Judgement::Replica,
        Keep::Completed,
    )
    .unwrap();
    assert!(verdict.legal && verdict.visible > 10, "{verdict}");
}

#[test]
fn a_server_that_goes_away_leaves_operations_in_doubt_and_the_load_goes_on_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let (image, socket, lines) = (
        dir.path().join("i"),
        dir.path().join("s"),
        dir.path().join("r"),
    );
    File::create(&image).unwrap().set_len(BYTES).unwrap();
    Server::of(&socket, &image, 0).gone();
    let address = PathBuf::from(format!("nbd+unix:///?socket={}", socket.display()));
    assert!(write(&load(address.clone(), 10), record(&lines)).is_err());
    assert_eq!(std::fs::metadata(&lines).unwrap().len(), 0);
    // One connection to learn the size, one for the first writer: the second finds nobody.
    let serving = Server::of(&socket, &image, 2);
    let mut first = load(address.clone(), 1 << 20);
    first.writers = 2;
    let ended = write(&first, record(&lines)).unwrap();
    assert!(ended.failed >= 1 && ended.submitted < 1 << 20, "{ended:?}");
    serving.gone();
    let before = History::parse(&std::fs::read(&lines).unwrap()).unwrap();
    assert!(before.operations.iter().any(|op| op.completed.is_none()));
    let serving = Server::of(&socket, &image, 4);
    let ended = append(&load(address, 200), &before, record(&lines)).unwrap();
    assert_eq!(ended.failed, 0, "{ended:?}");
    serving.gone();
    let after = History::parse(&std::fs::read(&lines).unwrap()).unwrap();
    assert_eq!(after.run, 9);
    let first_new = after.operations[before.operations.len()].writer;
    assert!(before.operations.iter().all(|op| op.writer < first_new));
    assert!(after.operations.iter().any(|op| op.kind == Kind::WriteFua));
    let verdict = check_files(&lines, &[image], &[], Judgement::Replica, Keep::Completed).unwrap();
    assert!(verdict.legal, "{verdict}");
}
