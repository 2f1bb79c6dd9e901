//! The reference pages of events and errors are what the code says.
#![allow(clippy::unwrap_used)]

use std::path::Path;

/// Compares `docs/reference/NAME` with `text`; writes it instead if `BLKREP_BLESS` is set.
fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs/reference")
        .join(name);
    if std::env::var_os("BLKREP_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == text,
        "docs/reference/{name} is stale: run the test with BLKREP_BLESS=1"
    );
}

#[test]
fn events_page_is_current() {
    check("events.md", &blkrep_api::events_markdown());
}

#[test]
fn errors_page_is_current() {
    check("errors.md", &blkrep_api::errors_markdown());
}
