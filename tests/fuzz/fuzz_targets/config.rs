//! Text of the configuration file, and of the file in which `set` keeps what was changed.
//!
//! Promises: no panic, no more memory than the text explains; a value that was taken is printed as it is
//! read; values that cannot be used are named and harm no other.
#![no_main]

use blkrep::config::{Config, Options};
use blkrep::settings::{Key, Settings};
use blkrep_api::GetQuery;
use blkrep_fuzz::{Input, within};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A parsed tree of many small values takes many times its text, which is cut to 64 KiB here.
const HELD_MAX: usize = 64 << 20;
const TEXT_MAX: usize = 64 << 10;

thread_local! {
    static DIRECTORY: tempfile::TempDir = memory();
}

fn memory() -> tempfile::TempDir {
    let shared = PathBuf::from("/dev/shm");
    let made = if shared.is_dir() {
        tempfile::tempdir_in(shared)
    } else {
        tempfile::tempdir()
    };
    made.expect("make a directory")
}

fn file(text: &str) -> BTreeMap<Key, blkrep::settings::Value> {
    // An address of the file could be a name, and a fuzzer asks nobody for names.
    let options = Options {
        listen: Some("127.0.0.1:0".to_owned()),
        ..Options::default()
    };
    let Ok(config) = Config::from_text(options, text, "db1.example.net") else {
        return BTreeMap::new();
    };
    for (key, value) in &config.settings {
        assert_eq!(
            key.parse(&value.to_string()).as_ref(),
            Ok(value),
            "{}",
            key.name()
        );
    }
    for dir in &config.replica_dirs {
        assert!(dir.is_absolute(), "a replica directory is absolute");
    }
    config.settings
}

fn kept(text: &[u8], file: BTreeMap<Key, blkrep::settings::Value>) {
    DIRECTORY.with(|directory| {
        std::fs::write(directory.path().join("settings.toml"), text).expect("write a file");
        let Ok((settings, _troubles)) = Settings::open(directory.path(), file) else {
            return;
        };
        let all = settings.get(&GetQuery::default()).expect("all settings");
        assert_eq!(all.settings.len(), Key::ALL.len());
        let _node = settings.node();
    });
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(&data[..data.len().min(TEXT_MAX)]);
    let first = input.piece();
    let second = input.rest();
    within(HELD_MAX, || {
        let settings = std::str::from_utf8(first).map(file).unwrap_or_default();
        kept(second, settings);
    });
});
