//! How a TCP connection shares the line with others.
//!
//! Owns the choice of a congestion control. A wish and a connection enter, what is in force leaves.
//! A kernel that does not grant the wish leaves the connection with the system's.

use super::errno_of;
use super::socket::RealSocket;
use crate::proactor::Steering;
use blkrep_types::{Congestion, CongestionName};
use nix::errno::Errno as Error;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, getsockopt, setsockopt, socket, sockopt,
};
use std::ffi::OsString;
use std::os::fd::AsFd;

/// It takes what is lost for what it mostly is on a long line, noise, and keeps to the rate that arrives; what is lost in one
/// of a hundred packets stops others. The kernel paces it by itself since 4.13; before, it needed the queue `fq` below.
const FOR_LONG_LINES: &str = "bbr";

impl RealSocket {
    /// Chooses its congestion control; at any time.
    pub(super) fn steer(&self, wanted: Congestion) -> Steering {
        let granted = match wanted {
            Congestion::System => Ok(false),
            Congestion::Named(name) => self.ask_for(name).map(|()| true),
            // Within one host nothing is lost, and pacing halves what it carries.
            Congestion::Auto if self.stays_here() => Ok(false),
            Congestion::Auto => {
                let name = CongestionName::new(FOR_LONG_LINES);
                Ok(name.is_some_and(|name| self.ask_for(name).is_ok()))
            }
        };
        if granted != Ok(true)
            && let Some(name) = of_new_connections(self.is_v6())
            && congestion_of(self) != Some(name)
        {
            // The system gave it to this connection before, so it does so again.
            let _ = self.ask_for(name);
        }
        Steering {
            in_force: congestion_of(self),
            refused: granted.err().map(errno_of),
        }
    }

    fn ask_for(&self, name: CongestionName) -> Result<(), Error> {
        setsockopt(self, sockopt::TcpCongestion, &OsString::from(name.as_str()))
    }

    /// Both ends are of this host.
    fn stays_here(&self) -> bool {
        let Ok(stream) = self.stream() else {
            return false;
        };
        match (stream.local_addr(), stream.peer_addr()) {
            (Ok(ours), Ok(theirs)) => theirs.ip().is_loopback() || ours.ip() == theirs.ip(),
            _ => false,
        }
    }

    fn is_v6(&self) -> bool {
        let local = self.stream().and_then(|stream| stream.local_addr());
        local.is_ok_and(|address| address.is_ipv6())
    }
}

fn congestion_of(socket: &impl AsFd) -> Option<CongestionName> {
    let name = getsockopt(socket, sockopt::TcpCongestion).ok()?;
    CongestionName::new(name.to_str()?.trim_end_matches('\0'))
}

/// What the system gives a connection that asks for nothing.
fn of_new_connections(v6: bool) -> Option<CongestionName> {
    let family = match v6 {
        true => AddressFamily::Inet6,
        false => AddressFamily::Inet,
    };
    let fresh = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).ok()?;
    congestion_of(&fresh)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use blkrep_types::Errno;
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (RealSocket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        (RealSocket::from(stream), accepted)
    }

    #[test]
    fn a_living_connection_takes_another_congestion_control_and_goes_back() {
        let (socket, _other) = pair();
        let systems = of_new_connections(false);
        assert!(systems.is_some());
        let name = |text| CongestionName::new(text).unwrap();
        // Every kernel has it.
        let reno = socket.steer(Congestion::Named(name("reno")));
        assert_eq!((reno.in_force, reno.refused), (Some(name("reno")), None));
        assert_eq!(socket.steer(Congestion::System).in_force, systems);
        socket.steer(Congestion::Named(name("reno")));
        let auto = socket.steer(Congestion::Auto);
        assert_eq!((auto.in_force, auto.refused), (systems, None), "loopback");
    }

    #[test]
    fn one_that_the_kernel_does_not_have_leaves_the_systems_and_is_told() {
        let (socket, _other) = pair();
        let none = CongestionName::new("no-such-control").unwrap();
        let refused = socket.steer(Congestion::Named(none));
        assert_eq!(refused.in_force, of_new_connections(false));
        assert_eq!(refused.refused, Some(Errno::ENOENT));
    }
}
