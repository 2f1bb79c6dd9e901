//! `mirror` and `transmit`: what travels over links that are there.
//!
//! Owns the commands, the events they leave and their words. Never decides what a mirror sends.

use super::state::Engine;
use super::{Inner, errors};
use blkrep_api::{
    ApiError, CommandReply, ErrorCode, EventId, MirrorAction, MirrorRequest, NewEvent,
    TransmitAction, TransmitRequest,
};
use blkrep_core::source::{MirrorPhase, Transmit};
use blkrep_types::{LinkName, MirrorKind};

impl Inner {
    pub(super) fn mirror(&self, request: &MirrorRequest) -> Result<CommandReply, ApiError> {
        let group = &request.group;
        let engine = self.source(group)?;
        let mut notes = Vec::new();
        for link in self.meant(group, &engine, request.link.as_ref(), false)? {
            let subject = format!("group {group} link {link}");
            let wrap = |error| errors::of_engine(&subject, &error);
            let phase = phase_of(&engine, &link);
            let idle = matches!(phase, None | Some(MirrorPhase::Idle));
            if idle && request.action != MirrorAction::Start {
                return Err(ApiError::new(
                    ErrorCode::MirrorNotRunning,
                    subject,
                    "no mirror is running",
                    "start one with: blkctl mirror start",
                ));
            }
            let (id, note) = match request.action {
                MirrorAction::Start => {
                    let kind = request.kind.unwrap_or(MirrorKind::Difference);
                    engine.start_mirror(&link, kind).map_err(wrap)?;
                    (
                        EventId::MirrorStarted,
                        format!("{kind} mirror of link {link}"),
                    )
                }
                MirrorAction::Stop => {
                    engine.stop_mirror(&link).map_err(wrap)?;
                    (
                        EventId::MirrorStopped,
                        format!("mirror of link {link} is ended; what differs stays tracked"),
                    )
                }
                MirrorAction::Pause => {
                    engine.pause_mirror(&link).map_err(wrap)?;
                    (
                        EventId::MirrorPaused,
                        format!("mirror of link {link} is held"),
                    )
                }
                MirrorAction::Resume => {
                    engine.resume_mirror(&link).map_err(wrap)?;
                    (
                        EventId::MirrorStarted,
                        format!("mirror of link {link} goes on"),
                    )
                }
            };
            if request.action != MirrorAction::Start {
                self.tell(NewEvent::new(id, note.clone()).group(group).link(&link));
            }
            notes.push(note);
        }
        Ok(CommandReply { notes })
    }

    pub(super) fn transmit(&self, request: &TransmitRequest) -> Result<CommandReply, ApiError> {
        let group = &request.group;
        let engine = self.source(group)?;
        let (transmit, id, what) = match request.action {
            TransmitAction::Start | TransmitAction::Resume => (
                Transmit::Started,
                EventId::TransmitStarted,
                "writes are sent",
            ),
            TransmitAction::Pause => (
                Transmit::Paused,
                EventId::TransmitPaused,
                "writes are held in the log",
            ),
            TransmitAction::Stop => (
                Transmit::Stopped,
                EventId::TransmitStopped,
                "changes are tracked as extents",
            ),
        };
        let mut notes = Vec::new();
        for link in self.meant(group, &engine, request.link.as_ref(), false)? {
            engine
                .set_transmit(&link, transmit)
                .map_err(|error| errors::of_engine(format!("group {group} link {link}"), &error))?;
            if transmit == Transmit::Started {
                self.begin_session(group, &link);
            }
            self.tell(NewEvent::new(id, what).group(group).link(&link));
            notes.push(format!("link {link}: {what}"));
        }
        Ok(CommandReply { notes })
    }
}

fn phase_of(engine: &Engine, link: &LinkName) -> Option<MirrorPhase> {
    let status = engine.status();
    let found = status.links.into_iter().find(|(name, _, _)| name == link);
    found.map(|(_, _, status)| status.mirror.phase)
}
