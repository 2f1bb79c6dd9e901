//! Who is at the other end of the control socket, and what they may do.
//!
//! Owns the roles. Credentials enter as the kernel gives them; a [`Role`] leaves. Never trusts
//! anything the client sends.

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use std::ffi::CString;

/// Group whose members may do everything.
pub const ADMIN_GROUP: &str = "blkrep-admin";
/// Group whose members may read.
pub const MONITOR_GROUP: &str = "blkrep-monitor";

/// What a caller may do; a later one may do all an earlier one may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Nothing.
    None,
    /// Read.
    Monitor,
    /// Everything.
    Administrator,
}

impl Role {
    /// In one word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Monitor => "monitor",
            Self::Administrator => "administrator",
        }
    }
}

/// Credentials of a process at the moment it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// Decides on roles. May block: user databases can be remote.
pub trait Judge: Send + Sync + 'static {
    /// What the peer may do.
    fn role(&self, peer: Peer) -> Role;
}

impl<F: Fn(Peer) -> Role + Send + Sync + 'static> Judge for F {
    fn role(&self, peer: Peer) -> Role {
        self(peer)
    }
}

/// Roles by the system's user database: root and the daemon's own user are administrators, others
/// are what their groups say.
#[derive(Debug, Clone, Copy)]
pub struct SystemJudge {
    own_uid: u32,
}

impl SystemJudge {
    /// The judge for this process.
    #[must_use]
    pub fn new() -> Self {
        Self {
            own_uid: Uid::effective().as_raw(),
        }
    }
}

impl Default for SystemJudge {
    fn default() -> Self {
        Self::new()
    }
}

impl Judge for SystemJudge {
    fn role(&self, peer: Peer) -> Role {
        if peer.uid == 0 || peer.uid == self.own_uid {
            return Role::Administrator;
        }
        let groups = groups_of(peer);
        let member = |name| {
            let group = Group::from_name(name).ok().flatten();
            group.is_some_and(|group| groups.contains(&group.gid))
        };
        if member(ADMIN_GROUP) {
            Role::Administrator
        } else if member(MONITOR_GROUP) {
            Role::Monitor
        } else {
            Role::None
        }
    }
}

/// The peer's own group and those the user database gives its user.
fn groups_of(peer: Peer) -> Vec<Gid> {
    let own = Gid::from_raw(peer.gid);
    let user = User::from_uid(Uid::from_raw(peer.uid)).ok().flatten();
    let listed = user
        .and_then(|user| CString::new(user.name).ok())
        .and_then(|name| getgrouplist(&name, own).ok());
    listed.unwrap_or_else(|| vec![own])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_daemons_user_are_administrators_and_strangers_nothing() {
        let judge = SystemJudge { own_uid: 4_000_001 };
        let role = |uid| {
            judge.role(Peer {
                uid,
                gid: 4_000_009,
            })
        };
        assert_eq!(role(0), Role::Administrator);
        assert_eq!(role(4_000_001), Role::Administrator);
        assert_eq!(role(4_000_002), Role::None);
    }

    #[test]
    fn roles_are_ordered_by_what_they_may_do() {
        assert!(Role::None < Role::Monitor && Role::Monitor < Role::Administrator);
    }
}
