//! A handshake from both ends: the first frame of a stranger, and the answer of a target.
//!
//! Promises: no panic, and no more memory than the longest first frame explains; a hello is read again
//! as it was read; maps of the volumes it names have a bounded size; and a target that would have to be
//! overwritten unasked is never judged to be one the stream may go on with.
#![no_main]

use blkrep::engine::target::TargetPolicy;
use blkrep_core::dirty::MapLayout;
use blkrep_core::identity::{SourceIdentity, Verdict, judge, place};
use blkrep_core::source::{PeerRole as Role, WelcomeFacts};
use blkrep_fuzz::{Input, sealed, within};
use blkrep_io::Region;
use blkrep_types::{Generation, Incarnation};
use blkrep_wire::limits::{HELLO_BODY_MAX, TARGET_BODY_MAX, buffer_bytes};
use blkrep_wire::{
    Decoder, Encoder, Frame, FrameKind, Hello, Message, PeerRole, Welcome, negotiate,
};
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::path::{Path, PathBuf};

/// Paths and names are copied once: the body, its parsed form, and the form sent again.
const HELD_MAX: usize = 6 * HELLO_BODY_MAX;

/// Bits of maps that one group can have in memory, in 64-bit words: what the limit of a group's
/// volumes promises.
const MAP_WORDS_MAX: usize = (1 << 32) / 64 + 64 * 58;

thread_local! {
    static DECODER: RefCell<Decoder> = RefCell::new(Decoder::new(
        Region::heap(buffer_bytes(HELLO_BODY_MAX)).whole(),
        HELLO_BODY_MAX,
    ));
}

/// The frame of this body, as the decoder gives it; made again it is the same.
fn message(kind: FrameKind, body: &[u8]) -> Option<Message> {
    let frame = sealed::frame(1, kind.number(), 0, body, body.len());
    DECODER.with_borrow_mut(|decoder| {
        decoder.reset();
        let space = decoder.space();
        space.write(0, &frame);
        decoder.received(frame.len());
        let Ok(Some(Frame::Message(message))) = decoder.next() else {
            return None;
        };
        assert!(decoder.is_empty(), "one frame was all there was");
        let again = Region::heap(frame.len()).whole();
        let len = Encoder::new().message(&message, &again);
        assert_eq!(len, Some(frame.len()));
        assert!(
            again.with(|bytes| bytes == frame),
            "it is what would have been sent"
        );
        Some(message)
    })
}

/// What a target does with a hello before it touches a disk.
fn greet(hello: &Hello) {
    if let Some(version) = negotiate((1, 1), hello.versions) {
        assert_eq!(version, 1);
    }
    let policy = TargetPolicy {
        directories: vec!["/replicas".into()],
        paths: Vec::new(),
    };
    for volume in &hello.volumes {
        let path = if volume.path.is_empty() {
            policy
                .choose(&hello.group, &volume.name)
                .expect("there is a directory")
        } else {
            PathBuf::from(&volume.path)
        };
        if policy.check(&path).is_ok() {
            let below = path.starts_with("/replicas") && path != Path::new("/replicas");
            assert!(below && !path.components().any(|part| part.as_os_str() == ".."));
        }
    }
    let layout = MapLayout::new(
        hello
            .volumes
            .iter()
            .map(|volume| (volume.len, volume.extent_size)),
    );
    assert!(
        layout.words() <= MAP_WORDS_MAX,
        "{} words of map",
        layout.words()
    );
    u32::try_from(layout.sectors()).expect("a sector has a number");
}

fn answer(hello: &Hello, welcome: &Welcome, choice: u8) {
    let source = SourceIdentity {
        history: &hello.history,
        head: (hello.incarnation, welcome.durable.seq),
        following: choice & 1 != 0,
        in_log: choice & 2 != 0,
        memory_floor: (choice & 4 != 0).then_some((Incarnation::new(1), welcome.durable.seq)),
        disk_floor: (choice & 8 != 0).then_some(place(welcome.durable)),
        overwrite: hello.overwrite,
        first_mirror: hello.mirror,
    };
    let facts = WelcomeFacts {
        role: match welcome.role {
            PeerRole::Target if welcome.history.current() == Generation::NONE => Role::New,
            PeerRole::Target => Role::Replica,
            PeerRole::Source => Role::Source,
        },
        data_state: welcome.data_state,
        history: welcome.history.clone(),
        durable: welcome.durable,
        reads: welcome.reads,
    };
    let verdict = judge(&source, &facts);
    if matches!(
        verdict,
        Verdict::Resume | Verdict::Difference | Verdict::DifferenceFromDisk
    ) {
        assert_eq!(
            facts.history.current(),
            hello.history.current(),
            "of one history"
        );
        assert_eq!(facts.role, Role::Replica, "and no source itself");
    }
    if facts.history.supersedes(hello.history.current()) {
        assert!(matches!(verdict, Verdict::Stale(_)), "the newer side wins");
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let choice = input.byte();
    let answer_kind = match input.byte() % 4 {
        0 => FrameKind::Refuse,
        1 => FrameKind::Start,
        2 => FrameKind::MapPart,
        _ => FrameKind::Welcome,
    };
    let (hello, reply) = (input.piece(), input.piece());
    within(HELD_MAX + 2 * TARGET_BODY_MAX, || {
        let hello = message(FrameKind::Hello, hello);
        let reply = message(answer_kind, reply);
        if let Some(Message::Hello(hello)) = &hello {
            greet(hello);
            if let Some(Message::Welcome(welcome)) = &reply {
                answer(hello, welcome, choice);
            }
        }
    });
});
