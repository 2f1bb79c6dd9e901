//! The requests of one queue: who has each tag.
//!
//! Owns the state of every tag. Answers of the driver and of the engine enter, commands for the
//! driver and requests for the engine leave. Pure: commands go through the trait [`Commands`], so
//! that all of it is tested without a kernel.
//!
//! ```text
//!            fetch              arrives                    arrives while leaving
//!     New ───────────► Driver ───────────► Engine   Driver ───────────────────────► Held
//!                      ▲    │                 │ abandoned: Held
//!                      │    │ abort, failure  │ complete: commit and fetch
//!                      │    └───────► Gone    │
//!                      └──────────────────────┘
//! ```

use super::abi::Descriptor;
use super::request::{Bounds, decode, result_code};
use crate::front::Request;
use blkrep_types::Errno;

/// A command for the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// Give me a request in this tag.
    Fetch {
        /// The tag.
        tag: u16,
    },
    /// The answer of a tag's request; and give me the next one.
    Commit {
        /// The tag.
        tag: u16,
        /// Bytes moved, or a negated error.
        result: i32,
    },
    /// Nothing: its completion says that the commands before it have reached the driver.
    Barrier,
}

/// Takes the commands of a queue.
pub(super) trait Commands {
    /// Submits a command. It takes effect at the next turn at the latest.
    fn submit(&mut self, command: Command);
}

/// Who has a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    /// Nobody yet.
    New,
    /// The driver, until a request comes.
    Driver,
    /// The engine, which will complete this request.
    Engine(Request),
    /// A request that came while leaving, or that the engine gave up: the driver issues it again to
    /// the successor.
    Held,
    /// Nobody any more.
    Gone,
}

impl Tag {
    /// Whether a tag may go from `self` to `next`.
    const fn may_become(&self, next: &Self) -> bool {
        match self {
            Self::New => matches!(next, Self::Driver),
            Self::Driver => matches!(next, Self::Engine(_) | Self::Held | Self::Gone),
            Self::Engine(_) => matches!(next, Self::Driver | Self::Held),
            Self::Held | Self::Gone => false,
        }
    }
}

/// The tags of one queue.
#[derive(Debug)]
pub(super) struct Tags {
    tags: Vec<Tag>,
    bounds: Bounds,
    /// Tags that the driver has.
    with_driver: u16,
    /// Tags that the engine has.
    with_engine: u16,
    /// Barriers submitted and not completed.
    barriers: u16,
    leaving: bool,
    /// What comes is answered with an error.
    refusing: bool,
    /// The driver has begun to give commands back.
    ending: bool,
}

impl Tags {
    pub(super) fn new(depth: u16, bounds: Bounds) -> Self {
        Self {
            tags: vec![Tag::New; usize::from(depth)],
            bounds,
            with_driver: 0,
            with_engine: 0,
            barriers: 0,
            leaving: false,
            refusing: false,
            ending: false,
        }
    }

    fn change(&mut self, tag: u16, next: Tag) {
        let place = &mut self.tags[usize::from(tag)];
        assert!(
            place.may_become(&next),
            "tag {tag}: {place:?} cannot become {next:?}"
        );
        match place {
            Tag::Driver => self.with_driver -= 1,
            Tag::Engine(_) => self.with_engine -= 1,
            Tag::New | Tag::Held | Tag::Gone => {}
        }
        match next {
            Tag::Driver => self.with_driver += 1,
            Tag::Engine(_) => self.with_engine += 1,
            Tag::New | Tag::Held | Tag::Gone => {}
        }
        *place = next;
    }

    /// Asks the driver for requests in every tag.
    pub(super) fn start(&mut self, commands: &mut impl Commands) {
        let depth = u16::try_from(self.tags.len()).expect("a depth is a u16");
        for tag in 0..depth {
            self.change(tag, Tag::Driver);
            commands.submit(Command::Fetch { tag });
        }
    }

    /// The driver brought a request in `tag`.
    ///
    /// A request that cannot be right is answered at once with an error.
    pub(super) fn arrived(
        &mut self,
        commands: &mut impl Commands,
        tag: u16,
        descriptor: Descriptor,
        requests: &mut Vec<Request>,
    ) {
        assert_eq!(
            self.tags[usize::from(tag)],
            Tag::Driver,
            "a request fills a fetch of ours"
        );
        if self.leaving {
            self.change(tag, Tag::Held);
            return;
        }
        if self.refusing {
            return self.commit(commands, tag, -Errno::EIO.get());
        }
        match decode(descriptor, tag, &self.bounds) {
            Ok(request) => {
                self.change(tag, Tag::Engine(request));
                requests.push(request);
            }
            Err(errno) => {
                tracing::error!(?descriptor, %errno, "the kernel sent a request that cannot be");
                let result = -errno.get();
                self.commit(commands, tag, result);
            }
        }
    }

    /// The driver gave the tag's command back without a request.
    pub(super) fn gone(&mut self, tag: u16) {
        self.change(tag, Tag::Gone);
        self.ending = true;
    }

    /// The engine answers the request in `tag`.
    ///
    /// # Panics
    /// If the engine has no request in that tag: it completed one twice.
    pub(super) fn complete(
        &mut self,
        commands: &mut impl Commands,
        tag: u16,
        result: Result<(), Errno>,
    ) {
        let Some(Tag::Engine(request)) = self.tags.get(usize::from(tag)).copied() else {
            panic!("tag {tag} is completed but not with the engine");
        };
        self.change(tag, Tag::Driver);
        self.commit(commands, tag, result_code(&request, result));
    }

    fn commit(&mut self, commands: &mut impl Commands, tag: u16, result: i32) {
        commands.submit(Command::Commit { tag, result });
        // The ring may be closed as soon as we are finished, and nothing else may ever wake us.
        if self.leaving || self.ending {
            self.barriers += 1;
            commands.submit(Command::Barrier);
        }
    }

    /// A barrier completed.
    pub(super) fn barrier(&mut self) {
        assert!(self.barriers > 0, "a barrier completes once");
        self.barriers -= 1;
    }

    /// Hands on no more requests from now on.
    pub(super) fn leave(&mut self) {
        self.leaving = true;
    }

    /// Hands on no more requests from now on, and answers what comes with an error.
    pub(super) fn refuse(&mut self) {
        self.refusing = true;
    }

    /// The engine answers none of the requests it has: they are left to the successor.
    pub(super) fn abandon(&mut self) {
        let depth = u16::try_from(self.tags.len()).expect("a depth is a u16");
        for tag in 0..depth {
            if matches!(self.tags[usize::from(tag)], Tag::Engine(_)) {
                self.change(tag, Tag::Held);
            }
        }
    }

    /// True if every request that the engine got is answered, and the answers are delivered.
    pub(super) fn drained(&self) -> bool {
        self.with_engine == 0 && self.barriers == 0
    }

    /// True if the driver can still write to the memory of a tag.
    pub(super) fn driver_has_some(&self) -> bool {
        self.with_driver > 0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::front::RequestKind;
    use blkrep_types::ByteLen;

    #[derive(Default)]
    struct Sent(Vec<Command>);

    impl Commands for Sent {
        fn submit(&mut self, command: Command) {
            self.0.push(command);
        }
    }

    fn started(depth: u16) -> (Tags, Sent, Vec<Request>) {
        let bounds = Bounds {
            volume_len: ByteLen::new(1 << 20),
            block_bytes: 512,
            request_bytes_max: 64 << 10,
            read_only: false,
        };
        let mut tags = Tags::new(depth, bounds);
        let mut sent = Sent::default();
        tags.start(&mut sent);
        (tags, sent, Vec::new())
    }

    fn read(sectors: u32) -> Descriptor {
        Descriptor {
            sectors,
            ..Descriptor::default()
        }
    }

    #[test]
    fn a_start_fetches_every_tag() {
        let (tags, sent, _) = started(3);
        let fetches: Vec<Command> = (0..3).map(|tag| Command::Fetch { tag }).collect();
        assert_eq!(sent.0, fetches);
        assert!(tags.driver_has_some() && tags.drained());
    }

    #[test]
    fn an_answer_is_committed_with_the_bytes_moved() {
        let (mut tags, mut sent, mut requests) = started(2);
        tags.arrived(&mut sent, 1, read(8), &mut requests);
        assert_eq!(requests[0].kind, RequestKind::Read);
        assert!(!tags.drained());
        sent.0.clear();
        tags.complete(&mut sent, 1, Ok(()));
        assert_eq!(
            sent.0,
            [Command::Commit {
                tag: 1,
                result: 4096
            }]
        );
        assert!(tags.drained());
        tags.arrived(&mut sent, 1, read(8), &mut requests);
        tags.complete(&mut sent, 1, Err(Errno::EIO));
        assert_eq!(sent.0.last(), Some(&Command::Commit { tag: 1, result: -5 }));
    }

    #[test]
    fn an_impossible_request_is_answered_and_never_handed_on() {
        let (mut tags, mut sent, mut requests) = started(1);
        sent.0.clear();
        tags.arrived(&mut sent, 0, read(1 << 20), &mut requests);
        assert!(requests.is_empty());
        assert_eq!(sent.0, [Command::Commit { tag: 0, result: -5 }]);
    }

    #[test]
    #[should_panic(expected = "not with the engine")]
    fn a_request_is_completed_once() {
        let (mut tags, mut sent, mut requests) = started(1);
        tags.arrived(&mut sent, 0, read(1), &mut requests);
        tags.complete(&mut sent, 0, Ok(()));
        tags.complete(&mut sent, 0, Ok(()));
    }

    #[test]
    fn a_request_that_comes_while_leaving_is_left_to_the_successor() {
        let (mut tags, mut sent, mut requests) = started(3);
        tags.arrived(&mut sent, 0, read(1), &mut requests);
        tags.leave();
        sent.0.clear();
        tags.arrived(&mut sent, 1, read(1), &mut requests);
        assert_eq!((requests.len(), sent.0.len()), (1, 0));
        tags.complete(&mut sent, 0, Ok(()));
        assert_eq!(
            sent.0,
            [
                Command::Commit {
                    tag: 0,
                    result: 512
                },
                Command::Barrier
            ]
        );
        assert!(!tags.drained(), "the answer has not reached the driver yet");
        tags.barrier();
        assert!(tags.drained());
        tags.gone(0);
        assert!(tags.driver_has_some());
        tags.gone(2);
        assert!(
            !tags.driver_has_some(),
            "tag 1 is held, not with the driver"
        );
    }

    #[test]
    fn a_refusing_queue_answers_what_comes_with_an_error_and_waits_for_the_engine() {
        let (mut tags, mut sent, mut requests) = started(2);
        tags.arrived(&mut sent, 0, read(1), &mut requests);
        tags.refuse();
        tags.arrived(&mut sent, 1, read(1), &mut requests);
        let result = -Errno::EIO.get();
        assert_eq!(sent.0.pop(), Some(Command::Commit { tag: 1, result }));
        assert!(requests.len() == 1 && !tags.drained());
        tags.complete(&mut sent, 0, Ok(()));
        assert_eq!(
            sent.0.pop(),
            Some(Command::Commit {
                tag: 0,
                result: 512
            })
        );
        assert!(tags.drained());
    }

    #[test]
    fn what_the_engine_gives_up_is_left_to_the_successor() {
        let (mut tags, mut sent, mut requests) = started(2);
        tags.arrived(&mut sent, 0, read(1), &mut requests);
        tags.leave();
        assert!(!tags.drained());
        let before = sent.0.len();
        tags.abandon();
        assert!(
            tags.drained() && sent.0.len() == before,
            "without an answer"
        );
    }

    #[test]
    fn an_aborted_queue_still_delivers_the_answers_it_owes() {
        let (mut tags, mut sent, mut requests) = started(2);
        tags.arrived(&mut sent, 0, read(1), &mut requests);
        tags.gone(1);
        tags.complete(&mut sent, 0, Ok(()));
        assert_eq!(sent.0.last(), Some(&Command::Barrier));
        tags.barrier();
        tags.gone(0);
        assert!(tags.drained() && !tags.driver_has_some());
    }
}
