//! `link set`: the mode of a link, and what happens to writes when it is lost.
//!
//! Owns the command, the event it leaves and its words. Never decides what a lost link means.

use super::links::NULL;
use super::state::Engine;
use super::{Inner, errors};
use crate::engine::source::OpenError;
use blkrep_api::{ApiError, CommandReply, ErrorCode, EventId, LinkRequest, NewEvent, OnLoss};
use blkrep_types::{LinkName, LossPolicy, Mode};
use std::time::Duration;

/// The longest that writes wait for a lost link before its policy is followed: more than an application
/// waits for a disk.
const LOSS_TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// A policy with what is to be another.
pub(super) fn changed(
    policy: LossPolicy,
    on_loss: Option<OnLoss>,
    timeout_ms: Option<u32>,
) -> LossPolicy {
    let timeout = timeout_ms.map(|millis| Duration::from_millis(millis.into()));
    LossPolicy {
        on_loss: on_loss.unwrap_or(policy.on_loss),
        timeout: timeout.unwrap_or(policy.timeout),
    }
}

/// Refuses a time-out that nobody can mean.
///
/// # Errors
/// It is too long.
pub(super) fn check_timeout(subject: &str, timeout_ms: Option<u32>) -> Result<(), ApiError> {
    let timeout = timeout_ms.map(|millis| Duration::from_millis(millis.into()));
    if timeout.is_none_or(|timeout| timeout <= LOSS_TIMEOUT_MAX) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::SettingInvalid,
        subject,
        format!(
            "the time-out for a lost link is at most {} s",
            LOSS_TIMEOUT_MAX.as_secs()
        ),
        "give a shorter one; to wait for as long as it takes: --on-loss block",
    ))
}

/// A simulated link has no target that could acknowledge anything.
fn check_simulated(
    subject: &str,
    engine: &Engine,
    link: &LinkName,
    mode: Option<Mode>,
) -> Result<(), ApiError> {
    let links = engine.links();
    let record = links.iter().find(|known| known.name == *link);
    let simulated = record.is_some_and(|record| record.peer == NULL);
    if !simulated || mode.is_none_or(|mode| mode == Mode::Async) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::NotSupported,
        subject,
        "it is simulated: nothing would ever be acknowledged",
        "leave it in mode async; connect a real target for the others",
    ))
}

impl Inner {
    pub(super) fn change_link(&self, request: &LinkRequest) -> Result<CommandReply, ApiError> {
        let group = &request.group;
        check_timeout(&format!("group {group}"), request.loss_timeout_ms)?;
        let engine = self.source(group)?;
        let links = self.meant(group, &engine, request.link.as_ref(), false)?;
        let subject = |link: &LinkName| format!("group {group} link {link}");
        for link in &links {
            check_simulated(&subject(link), &engine, link, request.mode)?;
        }
        let mut notes = Vec::new();
        for link in links {
            let wrap = |error| errors::of_engine(subject(&link), &error);
            let loss = (request.on_loss, request.loss_timeout_ms);
            let note = change_one(&engine, &link, request.mode, loss).map_err(wrap)?;
            let event = NewEvent::new(EventId::LinkChanged, note.clone());
            self.tell(event.group(group).link(&link));
            notes.push(format!("link {link}: {note}"));
        }
        Ok(CommandReply { notes })
    }
}

/// Changes what is not `None` of a link; says what it is now.
///
/// # Errors
/// There is no link of that name, or the state could not be written.
pub(super) fn change_one(
    engine: &Engine,
    link: &LinkName,
    mode: Option<Mode>,
    (on_loss, timeout_ms): (Option<OnLoss>, Option<u32>),
) -> Result<String, OpenError> {
    let record = |engine: &Engine| engine.links().into_iter().find(|known| known.name == *link);
    if let Some(mode) = mode {
        engine.set_mode(link, mode)?;
    }
    let before = record(engine).map_or_else(LossPolicy::default, |record| record.loss);
    let loss = changed(before, on_loss, timeout_ms);
    if loss != before {
        engine.set_loss_policy(link, loss)?;
    }
    let mode = record(engine).map_or_else(Mode::default, |record| record.mode);
    Ok(match (mode, loss.on_loss) {
        (Mode::Async, _) => "mode async: writes do not wait for it".to_owned(),
        (_, OnLoss::Block) => format!("mode {mode}, when it is lost: block"),
        (_, on_loss) => format!(
            "mode {mode}, when it is lost for {} ms: {on_loss}",
            loss.timeout.as_millis()
        ),
    })
}
