//! Loads of files and of an NBD server, over one record.

#![allow(clippy::unwrap_used)]

use super::record::{History, Kind};
use super::{Judgement, Keep, Load, append, check_files, write};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::net::UnixListener;
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

/// Serves a file to `clients` connections, one after the other or at once, then is gone.
fn serve(socket: &Path, image: &Path, clients: usize) -> Vec<std::thread::JoinHandle<()>> {
    let listener = UnixListener::bind(socket).unwrap();
    let image = image.to_owned();
    let accepting = std::thread::spawn(move || {
        for stream in listener.incoming().take(clients) {
            let stream = stream.unwrap();
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(&image)
                .unwrap();
            std::thread::spawn(move || {
                let export: nbd::Export = nbd::Export {
                    size: BYTES,
                    send_flush: true,
                    ..nbd::Export::default()
                };
                let shaken: io::Result<()> =
                    nbd::server::handshake(&stream, |_| Ok(export)).map(drop);
                // A client that leaves ends the transmission, one way or another.
                drop(shaken.and_then(|()| nbd::server::transmission(&stream, file)));
            });
        }
    });
    vec![accepting]
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
    let serving = serve(&socket, &image, 4);
    let address = PathBuf::from(format!("nbd+unix:///?socket={}", socket.display()));
    let summary = write(&load(address, 300), record(&lines)).unwrap();
    assert_eq!((summary.submitted, summary.failed), (300, 0), "{summary:?}");
    for thread in serving {
        thread.join().unwrap();
    }
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
    for thread in serve(&socket, &image, 0) {
        thread.join().unwrap();
    }
    let address = PathBuf::from(format!("nbd+unix:///?socket={}", socket.display()));
    assert!(write(&load(address.clone(), 10), record(&lines)).is_err());
    assert_eq!(std::fs::metadata(&lines).unwrap().len(), 0);
    std::fs::remove_file(&socket).unwrap();
    // One connection to learn the size, one for the first writer: the second finds nobody.
    let serving = serve(&socket, &image, 2);
    let mut first = load(address.clone(), 4000);
    first.writers = 2;
    let ended = write(&first, record(&lines)).unwrap();
    assert!(ended.failed >= 1 && ended.submitted < 4000, "{ended:?}");
    for thread in serving {
        thread.join().unwrap();
    }
    let before = History::parse(&std::fs::read(&lines).unwrap()).unwrap();
    assert!(before.operations.iter().any(|op| op.completed.is_none()));
    std::fs::remove_file(&socket).unwrap();
    let serving = serve(&socket, &image, 4);
    let ended = append(&load(address, 200), &before, record(&lines)).unwrap();
    assert_eq!(ended.failed, 0, "{ended:?}");
    for thread in serving {
        thread.join().unwrap();
    }
    let after = History::parse(&std::fs::read(&lines).unwrap()).unwrap();
    assert_eq!(after.run, 9);
    let first_new = after.operations[before.operations.len()].writer;
    assert!(before.operations.iter().all(|op| op.writer < first_new));
    assert!(after.operations.iter().any(|op| op.kind == Kind::WriteFua));
    let verdict = check_files(&lines, &[image], &[], Judgement::Replica, Keep::Completed).unwrap();
    assert!(verdict.legal, "{verdict}");
}
