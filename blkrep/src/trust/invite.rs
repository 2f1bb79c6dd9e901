//! Invitations that this node has made.
//!
//! Owns them while the daemon runs: they end with it. Time is the daemon's own, which no clock
//! change moves.

use super::token::{InviteId, InviteSecret};
use blkrep_api::NodeRole;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq as _;

/// Invitations that are remembered, used ones too: the oldest goes.
const INVITES_MAX: usize = 32;
/// Wrong secrets for one invitation; then it is worth nothing. Nobody guesses 128 bits: whoever knows
/// its number and not its secret is no friend.
pub(super) const WRONG_MAX: u8 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Used,
    Spent,
}

/// One invitation.
struct Invite {
    id: InviteId,
    secret: InviteSecret,
    made: Instant,
    valid: Duration,
    role: NodeRole,
    wrong: u8,
    state: State,
}

/// Why a token is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// Nobody here made it, or the daemon was started since.
    Unknown,
    /// It was used.
    Used,
    /// Its time is over.
    Expired,
    /// The secret is another.
    Wrong,
    /// It was tried too often.
    Spent,
}

impl Denied {
    /// In words.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Unknown => {
                "the token is not known here: it was made by another daemon, or before this one was started"
            }
            Self::Used => "the token was used already",
            Self::Expired => "the token has expired",
            Self::Wrong => "the token's secret is wrong",
            Self::Spent => "the token was tried with wrong secrets and is worth nothing any more",
        }
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Invites(VecDeque<Invite>);

impl Invites {
    /// Remembers a new one.
    pub(super) fn open(
        &mut self,
        id: InviteId,
        secret: InviteSecret,
        role: NodeRole,
        valid: Duration,
        now: Instant,
    ) {
        if self.0.len() == INVITES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Invite {
            id,
            secret,
            made: now,
            valid,
            role,
            wrong: 0,
            state: State::Open,
        });
    }

    /// Uses one up; says what it grants.
    pub(super) fn take(
        &mut self,
        id: &InviteId,
        secret: &InviteSecret,
        now: Instant,
    ) -> Result<NodeRole, Denied> {
        let found = self.0.iter_mut().find(|invite| invite.id == *id);
        let invite = found.ok_or(Denied::Unknown)?;
        match invite.state {
            State::Used => return Err(Denied::Used),
            State::Spent => return Err(Denied::Spent),
            State::Open => {}
        }
        if now.duration_since(invite.made) >= invite.valid {
            return Err(Denied::Expired);
        }
        if !bool::from(invite.secret.ct_eq(secret)) {
            invite.wrong += 1;
            if invite.wrong >= WRONG_MAX {
                invite.state = State::Spent;
            }
            return Err(Denied::Wrong);
        }
        invite.state = State::Used;
        Ok(invite.role)
    }

    /// It was used up for nothing: the pairing could not be written down.
    pub(super) fn give_back(&mut self, id: &InviteId) {
        if let Some(invite) = self.0.iter_mut().find(|invite| invite.id == *id) {
            invite.state = State::Open;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: InviteId = [7; 8];
    const SECRET: InviteSecret = [9; 16];
    const MINUTE: Duration = Duration::from_secs(60);

    fn one(now: Instant) -> Invites {
        let mut invites = Invites::default();
        invites.open(ID, SECRET, NodeRole::Monitor, MINUTE, now);
        invites
    }

    #[test]
    fn a_token_works_once() {
        let now = Instant::now();
        let mut invites = one(now);
        assert_eq!(invites.take(&ID, &SECRET, now), Ok(NodeRole::Monitor));
        assert_eq!(invites.take(&ID, &SECRET, now), Err(Denied::Used));
        invites.give_back(&ID);
        assert_eq!(invites.take(&ID, &SECRET, now), Ok(NodeRole::Monitor));
    }

    #[test]
    fn a_token_expires_by_the_time_that_passed() {
        let now = Instant::now();
        let mut invites = one(now);
        let late = now + MINUTE;
        assert_eq!(invites.take(&ID, &SECRET, late), Err(Denied::Expired));
        let early = late - Duration::from_millis(1);
        assert_eq!(invites.take(&ID, &SECRET, early), Ok(NodeRole::Monitor));
    }

    #[test]
    fn wrong_secrets_are_counted_and_spend_the_token() {
        let now = Instant::now();
        let mut invites = one(now);
        let mut wrong = SECRET;
        wrong[15] ^= 1;
        for _ in 0..WRONG_MAX {
            assert_eq!(invites.take(&ID, &wrong, now), Err(Denied::Wrong));
        }
        assert_eq!(invites.take(&ID, &SECRET, now), Err(Denied::Spent));
        assert_eq!(invites.take(&[1; 8], &SECRET, now), Err(Denied::Unknown));
    }

    #[test]
    fn as_many_are_remembered_as_there_is_room_for() {
        let now = Instant::now();
        let mut invites = one(now);
        for number in 0..INVITES_MAX {
            let number = u8::try_from(number).expect("few");
            invites.open([number; 8], SECRET, NodeRole::None, MINUTE, now);
        }
        assert_eq!(invites.0.len(), INVITES_MAX);
    }
}
