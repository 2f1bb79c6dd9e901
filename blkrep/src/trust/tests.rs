//! Trust of one node: what is written, what is decided, what strangers can say.
#![allow(clippy::unwrap_used)]

use super::identity::{hex, unhex};
use super::roster::{Trust, TrustPlan};
use super::token::Token;
use crate::events::Events;
use blkrep_api::{ErrorCode, NodeRole};
use blkrep_io::LineFacts;
use blkrep_io::real::RealSocket;
use blkrep_types::NodeName;
use blkrep_wire::tls::{Fingerprint, Keeper, Outgoing};
use proptest::prelude::*;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

fn open(dir: &Path, insecure_plain: bool) -> Arc<Trust> {
    Trust::open(TrustPlan {
        name: name("here"),
        listen: "127.0.0.1:7420".parse().unwrap(),
        insecure_plain,
        state_dir: dir.to_owned(),
        events: Events::in_memory(50),
    })
    .unwrap()
}

fn fingerprint(number: u8) -> Fingerprint {
    Fingerprint::from_bytes([number; 32])
}

fn to(trust: &Trust, address: &str) -> Outgoing {
    let keeper: &dyn Keeper<RealSocket> = trust;
    keeper.outgoing(address.parse().unwrap())
}

#[test]
fn what_was_pinned_is_there_after_a_restart_and_what_was_forgotten_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let trust = open(dir.path(), false);
    trust.need_keys().unwrap();
    let own = trust.list().fingerprint;
    for (number, node) in [(1, "a"), (2, "b")] {
        let pinned = trust.pin(&name(node), fingerprint(number), None, NodeRole::Monitor);
        pinned.unwrap();
    }
    trust.forget(&name("a")).unwrap();
    trust.set_role(&name("b"), NodeRole::Admin).unwrap();
    drop(trust);
    let again = open(dir.path(), false);
    assert_eq!(again.list().fingerprint, own);
    let nodes = again.list().nodes;
    assert_eq!(nodes.len(), 1);
    assert_eq!(
        (&nodes[0].name, nodes[0].role),
        (&name("b"), NodeRole::Admin)
    );
    assert!(again.paired()(&fingerprint(2)) && !again.paired()(&fingerprint(1)));
    assert_eq!(
        again.forget(&name("a")).unwrap_err().code,
        ErrorCode::NotPaired
    );
}

#[test]
fn a_name_and_a_certificate_belong_to_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let trust = open(dir.path(), false);
    let pin =
        |node: &str, number| trust.pin(&name(node), fingerprint(number), None, NodeRole::None);
    pin("a", 1).unwrap();
    pin("a", 1).unwrap();
    for (node, number) in [("a", 2), ("b", 1), ("here", 3)] {
        assert_eq!(pin(node, number).unwrap_err().code, ErrorCode::NodeExists);
    }
    assert_eq!(trust.list().nodes.len(), 1);
}

#[test]
fn another_host_is_never_spoken_to_without_encryption_unless_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let trust = open(dir.path(), false);
    assert!(matches!(to(&trust, "127.0.0.1:1"), Outgoing::Plain));
    assert!(matches!(to(&trust, "[::1]:1"), Outgoing::Plain));
    assert!(matches!(
        to(&trust, "[::ffff:127.0.0.1]:1"),
        Outgoing::Plain
    ));
    assert!(matches!(to(&trust, "192.0.2.1:1"), Outgoing::Refused(_)));
    trust.need_keys().unwrap();
    let here: SocketAddr = "127.0.0.1:2".parse().unwrap();
    trust
        .pin(&name("a"), fingerprint(1), Some(here), NodeRole::None)
        .unwrap();
    assert!(matches!(to(&trust, "127.0.0.1:2"), Outgoing::Encrypted(_)));
    assert!(matches!(to(&trust, "127.0.0.1:1"), Outgoing::Plain));
    assert!(matches!(to(&trust, "192.0.2.1:1"), Outgoing::Encrypted(_)));
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        to(&open(dir.path(), true), "192.0.2.1:1"),
        Outgoing::Plain
    ));
}

#[test]
fn a_link_is_judged_by_who_it_is_proven_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let trust = open(dir.path(), false);
    trust
        .pin(&name("a"), fingerprint(1), None, NodeRole::None)
        .unwrap();
    let proven = |node: &str| LineFacts {
        node: Some(name(node)),
        trouble: None,
    };
    let plain = LineFacts::default();
    let own: Option<SocketAddr> = "127.0.0.1:5".parse().ok();
    let other: Option<SocketAddr> = "192.0.2.1:5".parse().ok();
    let judge =
        |facts: &LineFacts, from, node: &str| trust.judge_link(facts, from, &name(node)).is_ok();
    assert!(judge(&proven("a"), other, "a"));
    assert!(!judge(&proven("a"), other, "b"), "another's name");
    assert!(!judge(&plain, own, "a"), "paired, and plain");
    assert!(judge(&plain, own, "b"), "the own host");
    assert!(!judge(&plain, other, "b"), "another host");
    assert!(!judge(&plain, None, "b"), "nobody knows from where");
}

#[test]
fn an_announced_certificate_is_accepted_beside_the_old_one_until_it_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let trust = open(dir.path(), false);
    trust
        .pin(&name("a"), fingerprint(1), None, NodeRole::None)
        .unwrap();
    trust
        .pin(&name("b"), fingerprint(2), None, NodeRole::None)
        .unwrap();
    assert!(
        trust.renew(&fingerprint(9), fingerprint(3)).is_err(),
        "nobody's word"
    );
    assert!(
        trust.renew(&fingerprint(1), fingerprint(2)).is_err(),
        "another's certificate"
    );
    trust.renew(&fingerprint(1), fingerprint(3)).unwrap();
    let accepts = |trust: &Trust, number| trust.pins_of(&name("a"))(&fingerprint(number));
    assert!(accepts(&trust, 1) && accepts(&trust, 3) && !accepts(&trust, 2));
    drop(trust);
    let trust = open(dir.path(), false);
    assert!(accepts(&trust, 1) && accepts(&trust, 3));
    trust.settle(&name("a"));
    assert!(!accepts(&trust, 1) && accepts(&trust, 3));
}

#[test]
fn a_token_is_read_as_it_was_written_and_shows_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let trust = open(dir.path(), false);
    let reply = trust
        .invite(NodeRole::None, Duration::from_secs(1))
        .unwrap();
    let token = Token::parse(&reply.token).unwrap();
    assert_eq!(token.text(), reply.token);
    assert_eq!(token.inviter.to_string(), reply.fingerprint);
    assert!(!format!("{token:?} {reply:?}").contains(&hex(&token.secret)));
    let other = trust
        .invite(NodeRole::None, Duration::from_secs(1))
        .unwrap();
    assert_ne!(Token::parse(&other.token).unwrap().secret, token.secret);
}

proptest! {
    #[test]
    fn a_text_is_a_token_only_as_it_was_written(text in "(blkrep1-)?[0-9a-fA-F]{0,130}.{0,3}", at in 0usize..120, to in any::<u8>()) {
        let token = Token { id: [1; 8], secret: [2; 16], inviter: fingerprint(3) };
        if let Ok(read) = Token::parse(&text) {
            prop_assert_eq!(read.text(), text.trim().to_lowercase());
        }
        let mut changed = token.text().into_bytes();
        changed[at] = to;
        if let Ok(read) = Token::parse(&String::from_utf8_lossy(&changed)) {
            prop_assert_eq!(read, token);
        }
    }

    #[test]
    fn hexadecimal_is_read_back(bytes in prop::collection::vec(any::<u8>(), 0..50), text in ".{0,20}") {
        prop_assert_eq!(unhex(&hex(&bytes)), Some(bytes));
        if let Some(read) = unhex(&text) {
            prop_assert_eq!(hex(&read), text.to_lowercase());
        }
        if let Ok(read) = text.parse::<Fingerprint>() {
            prop_assert_eq!(read.to_string(), text.to_uppercase());
        }
    }
}
