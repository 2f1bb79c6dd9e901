//! Commands that change something.

use super::Session;
use crate::args::{
    Attach, Command, Connect, Detach, Disconnect, LinkCommand, MirrorCommand, OnLink, PointCommand,
    Promote, Replace, TargetCommand, TaskCommand, TransmitCommand,
};
use crate::client::nobody_listens;
use crate::{Outcome, left_behind, progress};
use blkrep_api::{
    AttachReply, AttachRequest, CommandReply, ConnectReply, ConnectRequest, DemoteRequest,
    DetachRequest, DisconnectReply, DisconnectRequest, ForgetRequest, LinkRequest, MirrorAction,
    MirrorKind, MirrorRequest, PromoteRequest, ReplaceRequest, TargetAction, TargetRequest,
    TransmitAction, TransmitRequest, route,
};
use blkrep_types::GroupName;
use serde::Serialize;

/// True for commands whose `--timeout` bounds the wait for the end of a mirror or task, not of a reply.
pub(super) fn waits(command: &Command) -> bool {
    match command {
        Command::Connect(connect) => connect.wait,
        Command::Mirror(MirrorCommand::Start { wait, .. } | MirrorCommand::Resume { wait, .. }) => {
            *wait
        }
        Command::Task(TaskCommand::Submit { wait, .. })
        | Command::Point(PointCommand::Bookmark { wait, .. }) => *wait,
        _ => false,
    }
}

impl Session<'_> {
    pub(super) fn attach(&self, attach: &Attach) -> anyhow::Result<Outcome> {
        let reply: AttachReply = self.client.post(
            route::ATTACH,
            &AttachRequest {
                volume: attach.volume.clone(),
                // The daemon has another working directory.
                backing: std::path::absolute(&attach.backing)?,
                group: attach.group.clone(),
                frontend: attach.frontend,
                device_id: attach.device_id,
                offset: attach.offset,
                size: attach.size,
                extent_size: attach.extent_size,
                read_only: attach.read_only,
                transient: attach.transient,
            },
        )?;
        self.tell(&reply.notes);
        if self.output.json {
            self.output.json(&reply)?;
        } else {
            self.output.data(&format!("{}\n", reply.device));
        }
        Ok(Outcome::Done)
    }

    pub(super) fn detach(&self, detach: &Detach) -> anyhow::Result<Outcome> {
        if detach.force {
            self.confirmed(&format!(
                "Volume {} will be detached even while it is open: its users get errors.",
                detach.volume
            ))?;
        }
        let request = DetachRequest {
            volume: detach.volume.clone(),
            force: detach.force,
        };
        match self.command(route::DETACH, &request) {
            Err(error)
                if detach.force
                    && self.arguments.global.node.is_none()
                    && nobody_listens(&error) =>
            {
                self.output
                    .talk("No daemon answers: removing what it left behind.");
                left_behind::remove(&detach.volume, self.output)
            }
            other => other,
        }
    }

    pub(super) fn connect(&self, connect: &Connect) -> anyhow::Result<Outcome> {
        let Connect { group, to, .. } = connect;
        let confirmed = self.arguments.global.yes;
        if connect.overwrite {
            self.confirmed(&format!(
                "Whatever the target's paths for group {group} hold at {to} will be overwritten."
            ))?;
        }
        if connect.trust_map {
            self.confirmed(&format!(
                "Group {group} will be taken to be as equal at {to} as its maps say, without a \
                 comparison; if it is not, the replica is wrong."
            ))?;
        }
        if confirmed && connect.mirror == Some(MirrorKind::Checksum) {
            self.output.talk(&format!(
                "What differs at {to} in group {group} will be overwritten with this node's data."
            ));
        }
        if let Some(count) = connect.connections {
            self.set_connections(group, count)?;
        }
        let reply: ConnectReply = self.client.post(
            route::CONNECT,
            &ConnectRequest {
                group: group.clone(),
                to: to.clone(),
                link: connect.link.clone(),
                map: connect.map.iter().cloned().collect(),
                mode: connect.mode,
                on_loss: connect.loss.on_loss,
                loss_timeout_ms: connect.loss.loss_timeout,
                no_mirror: connect.no_mirror,
                mirror: connect.mirror,
                overwrite: connect.overwrite,
                trust_map: connect.trust_map,
                confirmed,
            },
        )?;
        self.tell(&reply.notes);
        if self.output.json {
            self.output.json(&reply)?;
        } else {
            self.output
                .talk(&format!("link {} to {to} is made", reply.link));
        }
        if connect.wait {
            return progress::wait_for_mirror(self, group, Some(&reply.link));
        }
        Ok(Outcome::Done)
    }

    pub(super) fn link(&self, command: &LinkCommand) -> anyhow::Result<Outcome> {
        let LinkCommand::Set { on, mode, loss } = command;
        let request = LinkRequest {
            group: on.group.clone(),
            link: on.link.clone(),
            mode: *mode,
            on_loss: loss.on_loss,
            loss_timeout_ms: loss.loss_timeout,
        };
        self.command(route::LINK, &request)
    }

    pub(super) fn disconnect(&self, disconnect: &Disconnect) -> anyhow::Result<Outcome> {
        let group = &disconnect.group;
        if disconnect.forget {
            self.confirmed(&format!(
                "Changes of group {group} will be tracked no longer: the next connect compares \
                 or copies everything."
            ))?;
        }
        let reply: DisconnectReply = self.client.post(
            route::DISCONNECT,
            &DisconnectRequest {
                group: group.clone(),
                link: disconnect.link.clone(),
                forget: disconnect.forget,
            },
        )?;
        if self.output.json {
            self.output.json(&reply)?;
        } else {
            for link in &reply.links {
                let tracked = if reply.tracking {
                    "; changes are tracked further"
                } else {
                    ""
                };
                self.output.talk(&format!("link {link} is ended{tracked}"));
            }
        }
        Ok(Outcome::Done)
    }

    pub(super) fn mirror(&self, mirror: &MirrorCommand) -> anyhow::Result<Outcome> {
        let (on, action, kind, wait) = match mirror {
            MirrorCommand::Start { on, kind, wait } => (on, MirrorAction::Start, *kind, *wait),
            MirrorCommand::Stop(on) => (on, MirrorAction::Stop, None, false),
            MirrorCommand::Pause(on) => (on, MirrorAction::Pause, None, false),
            MirrorCommand::Resume { on, wait } => (on, MirrorAction::Resume, None, *wait),
        };
        let outcome = self.command(
            route::MIRROR,
            &MirrorRequest {
                group: on.group.clone(),
                link: on.link.clone(),
                action,
                kind,
            },
        )?;
        if wait {
            return progress::wait_for_mirror(self, &on.group, on.link.as_ref());
        }
        Ok(outcome)
    }

    pub(super) fn transmit(&self, transmit: &TransmitCommand) -> anyhow::Result<Outcome> {
        let (OnLink { group, link }, action) = match transmit {
            TransmitCommand::Start(on) => (on, TransmitAction::Start),
            TransmitCommand::Stop(on) => (on, TransmitAction::Stop),
            TransmitCommand::Pause(on) => (on, TransmitAction::Pause),
            TransmitCommand::Resume(on) => (on, TransmitAction::Resume),
            TransmitCommand::Limit {
                group,
                rate,
                line,
                schedule,
            } => {
                let (rate, line) = (rate.as_deref(), line.as_deref());
                return self.limit(group, rate, line, schedule.as_deref());
            }
            TransmitCommand::Schedule(schedule) => return self.schedule(schedule),
        };
        let (group, link) = (group.clone(), link.clone());
        let request = TransmitRequest {
            group,
            link,
            action,
        };
        self.command(route::TRANSMIT, &request)
    }

    pub(super) fn target(&self, target: &TargetCommand) -> anyhow::Result<Outcome> {
        let (group, action) = match target {
            TargetCommand::Pause(on) => (&on.group, TargetAction::Pause),
            TargetCommand::Resume(on) => (&on.group, TargetAction::Resume),
        };
        let group = group.clone();
        self.command(route::TARGET, &TargetRequest { group, action })
    }

    pub(super) fn replace(&self, replace: &Replace) -> anyhow::Result<Outcome> {
        let (group, (volume, path)) = (&replace.group, &replace.map);
        let shown = path.display();
        self.confirmed(&format!(
            "Volume {volume} of group {group} will be on {shown}. If this node is the source, its \
             targets are made equal to what {shown} holds; if it is a target, {shown} is overwritten."
        ))?;
        let request = ReplaceRequest {
            group: group.clone(),
            volume: volume.clone(),
            path: path.clone(),
            overwrite: replace.overwrite,
        };
        self.command(route::REPLACE, &request)
    }

    pub(super) fn promote(&self, promote: &Promote) -> anyhow::Result<Outcome> {
        let group = &promote.group;
        if promote.inconsistent {
            self.confirmed(&format!(
                "Group {group} will be served here although its replica is not consistent: \
                 applications can find damaged data."
            ))?;
        }
        if promote.force {
            self.confirmed(&format!(
                "Group {group} will be served here although its source may still be writing: what \
                 it writes from now on is not in this copy."
            ))?;
        }
        self.command(
            route::PROMOTE,
            &PromoteRequest {
                group: group.clone(),
                force: promote.force,
                inconsistent: promote.inconsistent,
                frontend: promote.frontend,
            },
        )
    }

    pub(super) fn demote(&self, group: &GroupName) -> anyhow::Result<Outcome> {
        let group = group.clone();
        self.command(route::DEMOTE, &DemoteRequest { group })
    }

    pub(super) fn forget(&self, group: &GroupName) -> anyhow::Result<Outcome> {
        self.confirmed(&format!(
            "What this node remembers of group {group} (maps, history, journal) will be dropped; \
             its data stays."
        ))?;
        let group = group.clone();
        self.command(route::FORGET, &ForgetRequest { group })
    }

    /// A command whose reply is sentences.
    pub(super) fn command(&self, path: &str, request: &impl Serialize) -> anyhow::Result<Outcome> {
        let reply: CommandReply = self.client.post(path, request)?;
        if self.output.json {
            self.output.json(&reply)?;
        } else {
            self.tell(&reply.notes);
        }
        Ok(Outcome::Done)
    }

    fn tell(&self, notes: &[String]) {
        for note in notes {
            self.output.talk(note);
        }
    }
}
