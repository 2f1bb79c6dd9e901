//! What `status` shows of links.
//!
//! Owns the translation of a group's and a driver's facts about a link into the API's words.

use super::links::NULL;
use super::state::Engine;
use super::{Inner, clock};
use crate::engine::link::{LinkConnection, LinkSnapshot};
use blkrep_api::{
    CompressionState, ConnectionState, LinkStatus, MirrorState, MirrorStatus, ProtectionState,
    QueueStatus, ReplicationState, ScheduleStatus, SimulatedStatus, TargetState, TransmitState,
};
use blkrep_core::compression::Packing;
use blkrep_core::meter::Meter;
use blkrep_core::source::{
    Connection, LinkStatus as Facts, MirrorPhase, MirrorProgress, Position, Protection, Transmit,
};
use blkrep_types::{ByteLen, DataState, GroupName, Mode};
use blkrep_wire::Applying;
use std::time::Duration;

impl Inner {
    pub(super) fn link_statuses(&self, group: &GroupName, engine: &Engine) -> Vec<LinkStatus> {
        let records = engine.links();
        let status = engine.status();
        let links = status
            .links
            .into_iter()
            .filter_map(|(name, wanted, facts)| {
                let record = records.iter().find(|record| record.name == name)?;
                let control = self.link_control(group, &name);
                let snapshot = control.as_ref().map(|control| control.snapshot());
                let snapshot = snapshot.unwrap_or_default();
                let lag = facts.oldest.map(|oldest| clock::now().since(oldest));
                let behind = facts.position == Position::Behind;
                let lag = (!behind).then(|| lag.map_or(0, |lag| lag.as_millis()));
                let simulated = snapshot.meter.as_ref().map(simulated);
                let schedule = self.schedule_of(group, &name, &facts);
                let peer = snapshot
                    .peer
                    .as_ref()
                    .filter(|_| snapshot.connection == LinkConnection::Up);
                let status = LinkStatus {
                    target_status: peer.map(|peer| applying(peer.applying)),
                    target_journal_bytes: peer.map(|peer| peer.journal_used),
                    peer: record.peer.clone(),
                    mode: record.mode,
                    on_loss: record.loss.on_loss,
                    loss_timeout_ms: u64::try_from(record.loss.timeout.as_millis())
                        .unwrap_or(u64::MAX),
                    protection: protection(record.mode, facts.protection),
                    connection: connection(wanted, &snapshot),
                    transmit: transmit(facts.transmit, schedule.as_ref()),
                    mirror: mirror(&facts.mirror),
                    replication: replication(&facts, wanted),
                    data_state: facts.data_state,
                    lag_ms: lag.and_then(|lag| u64::try_from(lag).ok()),
                    queue: QueueStatus {
                        memory_bytes: facts.queued_bytes,
                        disk_bytes: facts.queued_disk_bytes,
                        ops: facts.queued_ops,
                        memory_max_bytes: status.queue.memory.1,
                        disk_max_bytes: status.queue.disk_max,
                    },
                    dirty_bytes: facts.dirty_bytes,
                    sent_bytes: facts.sent_bytes,
                    bandwidth_limit: control
                        .as_ref()
                        .and_then(|control| control.settings().pace.rate()),
                    sent_compressed_bytes: facts.framed_bytes,
                    compression: compression(snapshot.packing),
                    connections: u16::try_from(snapshot.connections).unwrap_or(u16::MAX),
                    connections_wanted: control
                        .as_ref()
                        .map_or(1, |control| control.settings().connections.into()),
                    connections_lost: snapshot.connections_lost,
                    congestion_control: snapshot.congestion.map(|name| name.to_string()),
                    congestion_refused: snapshot.congestion_refused,
                    proven: snapshot
                        .proven
                        .filter(|_| snapshot.connection == LinkConnection::Up),
                    connected_since: snapshot.connected_since.map(clock::timestamp),
                    last_error: snapshot
                        .last_error
                        .filter(|_| snapshot.connection != LinkConnection::Up && wanted),
                    refusal: snapshot.refusal.map(|refusal| refusal.text),
                    schedule,
                    simulated,
                    name,
                };
                Some(match status.peer == NULL {
                    true => as_simulated(status),
                    false => status,
                })
            });
        links.collect()
    }
}

/// A link that sends nothing holds no replica, whatever its driver takes for sent.
fn as_simulated(status: LinkStatus) -> LinkStatus {
    LinkStatus {
        connection: match status.connection {
            ConnectionState::Connected => ConnectionState::Simulated,
            other => other,
        },
        replication: ReplicationState::Stopped,
        data_state: DataState::NotReady,
        target_status: None,
        target_journal_bytes: None,
        sent_bytes: ByteLen::ZERO,
        sent_compressed_bytes: ByteLen::ZERO,
        ..status
    }
}

fn simulated(meter: &Meter) -> SimulatedStatus {
    let needs = meter.needs(clock::now());
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    SimulatedStatus {
        span_ms: millis(needs.span),
        write_bytes: needs.writes.plain,
        write_compressed_bytes: needs.writes.framed,
        mirror_bytes: needs.mirror.plain,
        mirror_compressed_bytes: needs.mirror.framed,
        average_bytes: needs.average,
        peak_1s_bytes: needs.peaks[0],
        peak_10s_bytes: needs.peaks[1],
        peak_60s_bytes: needs.peaks[2],
        rate_bytes: needs.rate,
        queue_bytes: needs.queue,
        mirror_ms: millis(needs.mirror_time),
    }
}

const fn connection(wanted: bool, snapshot: &LinkSnapshot) -> ConnectionState {
    match snapshot.connection {
        LinkConnection::Up => ConnectionState::Connected,
        LinkConnection::Refused => ConnectionState::Refused,
        _ if !wanted => ConnectionState::Disconnected,
        LinkConnection::Connecting | LinkConnection::Negotiating => ConnectionState::Connecting,
        LinkConnection::Down => ConnectionState::Down,
        LinkConnection::Stopped => ConnectionState::Disconnected,
    }
}

/// What a target says of its applying, as a status shows it.
pub(super) const fn applying(word: Applying) -> TargetState {
    match word {
        Applying::Running => TargetState::Ok,
        Applying::Paused => TargetState::Paused,
        Applying::PausePending => TargetState::PausePending,
        Applying::Retrying => TargetState::Retrying,
    }
}

const fn protection(mode: Mode, protection: Protection) -> ProtectionState {
    match (mode, protection) {
        (Mode::Async, _) => ProtectionState::NotAsked,
        (_, Protection::Degraded) => ProtectionState::Degraded,
        (_, Protection::Joining { .. } | Protection::Recording(_)) => ProtectionState::CatchingUp,
        (_, Protection::Kept) => ProtectionState::Kept,
        (_, Protection::Lost { .. } | Protection::Degrading(_)) => ProtectionState::Waiting,
    }
}

const fn compression(packing: Packing) -> CompressionState {
    match packing {
        Packing::Off => CompressionState::Off,
        Packing::NotTaken => CompressionState::NotTaken,
        Packing::LineIdle => CompressionState::LineIdle,
        Packing::Incompressible => CompressionState::Incompressible,
        Packing::LineFaster => CompressionState::LineFaster,
        Packing::Packed => CompressionState::On,
    }
}

fn transmit(transmit: Transmit, schedule: Option<&ScheduleStatus>) -> TransmitState {
    let held = schedule.is_some_and(|schedule| schedule.held_by.is_some());
    match transmit {
        Transmit::Started if held => TransmitState::Scheduled,
        Transmit::Started => TransmitState::Started,
        Transmit::Paused => TransmitState::Paused,
        Transmit::Stopped => TransmitState::Stopped,
    }
}

fn replication(facts: &Facts, wanted: bool) -> ReplicationState {
    match (facts.transmit, facts.position, facts.connection) {
        (Transmit::Stopped, _, _) => ReplicationState::Stopped,
        (_, Position::Behind, _) => ReplicationState::Behind,
        (_, Position::Following, Connection::Up) => ReplicationState::Replicating,
        (_, Position::Following, _) if !wanted => ReplicationState::Stopped,
        (_, Position::Following, Connection::Down | Connection::Negotiating) => {
            ReplicationState::Pending
        }
    }
}

fn mirror(progress: &MirrorProgress) -> MirrorStatus {
    let done = progress.sent.get() + progress.skipped.get();
    let whole = done + progress.remaining.get();
    #[allow(clippy::cast_precision_loss)]
    let percent = if whole == 0 {
        100.0
    } else {
        done as f64 * 100.0 / whole as f64
    };
    MirrorStatus {
        state: match progress.phase {
            MirrorPhase::Idle => MirrorState::Idle,
            MirrorPhase::Running if progress.held_back => MirrorState::Waiting,
            MirrorPhase::Waiting => MirrorState::Waiting,
            MirrorPhase::Running | MirrorPhase::Ending => MirrorState::Mirroring,
            MirrorPhase::Paused => MirrorState::Paused,
        },
        kind: progress.kind,
        percent: if progress.phase == MirrorPhase::Idle {
            100.0
        } else {
            percent
        },
        bytes_sent: progress.sent,
        bytes_skipped: progress.skipped,
        bytes_remaining: progress.remaining,
        not_converging: progress.not_converging,
        held_back: progress.held_back,
    }
}
