//! `status` in words: per group its volumes, its links, what is wrong and what to do.

use super::put;
use crate::output::{Painter, Tone};
use blkrep_api::{
    ConnectionState, DataState, GroupStatus, LinkStatus, MirrorState, Problem, ProblemLevel,
    ProtectionState, QueueStatus, ReplicationState, Role, ScheduleHold, SimulatedStatus, Status,
    TargetState, TargetStatus, VolumeState, VolumeStatus,
};
use blkrep_types::{ByteLen, Generation, NodeName, rate_text};
use std::fmt::Write as _;

/// The whole status.
pub(crate) fn status(painter: Painter, status: &Status) -> String {
    let mut text = String::new();
    put!(text, "node {}", painter.paint(Tone::Strong, &status.node));
    problems(&mut text, painter, &status.problems);
    if status.groups.is_empty() {
        put!(
            text,
            "no groups: serve a volume with: blkctl attach VOLUME --backing PATH"
        );
    }
    for found in &status.groups {
        group(&mut text, painter, found);
    }
    text
}

fn group(text: &mut String, painter: Painter, group: &GroupStatus) {
    let worst = group.problems.iter().map(|problem| problem.level).max();
    let (word, tone) = match worst {
        None | Some(ProblemLevel::Note) => ("ok", Tone::Good),
        Some(ProblemLevel::Warning) => ("warning", Tone::Warn),
        Some(ProblemLevel::Error) => ("error", Tone::Bad),
    };
    let role = match group.role {
        Role::Source => "source",
        Role::Target => "target",
        Role::Promoted => "promoted: serves as source",
        Role::FailedOver => "failed over: serves as source",
    };
    put!(
        text,
        "\ngroup {} ({role}): {}",
        painter.paint(Tone::Strong, &group.name),
        painter.paint(tone, word)
    );
    if group.generation != Generation::NONE {
        let generation = format!("  generation {}", group.generation);
        put!(text, "{}", painter.paint(Tone::Faint, generation));
    }
    let data = group.target.as_ref().map(|target| target.data_state);
    for found in &group.volumes {
        volume(text, painter, found, data);
    }
    for found in &group.links {
        link(text, painter, found);
    }
    if let Some(found) = group.target.as_ref().filter(|_| group.role == Role::Target) {
        target(text, painter, found);
    }
    if let Some(link) = &group.served_by {
        put!(
            text,
            "  served by the target of link {link}: the backing is lost"
        );
    }
    if let Some(throttle) = group.throttle {
        let delay = throttle.delay_us / 1000;
        put!(
            text,
            "  writes: delayed by {delay} ms now, {} have been",
            throttle.delayed_writes
        );
    }
    problems(text, painter, &group.problems);
}

fn volume(text: &mut String, painter: Painter, volume: &VolumeStatus, data: Option<DataState>) {
    let tone = match volume.state {
        VolumeState::Served => Tone::Good,
        VolumeState::Offline => Tone::Faint,
        VolumeState::Replica => data.map_or(Tone::Warn, worth),
        VolumeState::Recovering | VolumeState::ServedByTarget => Tone::Warn,
        VolumeState::Frozen | VolumeState::Failing | VolumeState::Fenced => Tone::Bad,
    };
    let device = if volume.device.is_empty() {
        String::new()
    } else {
        format!(" as {}", volume.device)
    };
    let mut state = volume.state.to_string();
    if let (VolumeState::Replica, Some(data)) = (volume.state, data) {
        write!(state, ", data {data}").expect("a String takes all text");
    }
    let mut remarks = String::new();
    if volume.read_only {
        remarks.push_str(", read-only");
    }
    if volume.transient {
        remarks.push_str(", transient");
    }
    put!(
        text,
        "  volume {}: {}{device}, {} on {}{remarks}",
        volume.name,
        painter.paint(tone, state),
        amount(volume.size_bytes),
        volume.backing
    );
}

fn link(text: &mut String, painter: Painter, link: &LinkStatus) {
    let connection = match link.connection {
        ConnectionState::Connected => Tone::Good,
        ConnectionState::Connecting
        | ConnectionState::Disconnected
        | ConnectionState::Simulated => Tone::Plain,
        ConnectionState::Down => Tone::Warn,
        ConnectionState::Refused => Tone::Bad,
    };
    let replication = match link.replication {
        ReplicationState::Replicating => Tone::Good,
        ReplicationState::Ready | ReplicationState::Stopped => Tone::Plain,
        ReplicationState::Pending | ReplicationState::Behind => Tone::Warn,
    };
    if link.peer.is_empty() {
        let dirty = amount(link.dirty_bytes);
        put!(
            text,
            "  link {}: leads nowhere yet, dirty {dirty}",
            link.name
        );
        return;
    }
    put!(
        text,
        "  link {} to {} ({}): {}{}, {}, replica {}",
        link.name,
        link.peer,
        link.mode,
        painter.paint(connection, link.connection),
        secured(
            link.connection == ConnectionState::Connected,
            link.proven.as_ref()
        ),
        painter.paint(replication, link.replication),
        painter.paint(worth(link.data_state), link.data_state)
    );
    let lag = lag(link.lag_ms);
    let queue = &link.queue;
    let queued = ByteLen::new(
        queue
            .memory_bytes
            .get()
            .saturating_add(queue.disk_bytes.get()),
    );
    let mut line = format!(
        "    lag {lag}, queue {} in {} writes{}",
        amount(queued),
        queue.ops,
        on_disk(queue)
    );
    if link.dirty_bytes > ByteLen::ZERO {
        write!(line, ", dirty {}", amount(link.dirty_bytes)).expect("a String takes all text");
    }
    write!(line, ", {}", sent(link)).expect("a String takes all text");
    if let Some(connections) = connections(link) {
        write!(line, ", {connections}").expect("a String takes all text");
    }
    if let Some(control) = &link.congestion_control
        && link.connection == ConnectionState::Connected
    {
        write!(line, ", congestion control {control}").expect("a String takes all text");
    }
    if link.bandwidth_limit.is_some() {
        let limit = rate_text(link.bandwidth_limit);
        write!(line, ", limit {limit}").expect("a String takes all text");
    }
    put!(text, "{line}");
    if !matches!(
        link.protection,
        ProtectionState::NotAsked | ProtectionState::Kept
    ) {
        put!(
            text,
            "    protection {}; when it is lost: {}",
            painter.paint(Tone::Warn, link.protection),
            link.on_loss
        );
    }
    if let Some(status) = link
        .target_status
        .filter(|status| *status != TargetState::Ok)
    {
        let journal = amount(link.target_journal_bytes.unwrap_or_default());
        put!(
            text,
            "    target {}, its journal holds {journal}",
            painter.paint(Tone::Warn, status)
        );
    }
    if link.schedule.is_some() {
        put!(text, "    {}", schedule(link));
    }
    if let Some(needs) = &link.simulated {
        simulated(text, needs);
    }
    if link.mirror.state != MirrorState::Idle {
        let mirror = &link.mirror;
        let kind = mirror
            .kind
            .map_or_else(String::new, |kind| format!("{kind} "));
        put!(
            text,
            "    mirror {kind}{}: {:.1} %, {} sent, {} not needed, {} to go",
            mirror.state,
            mirror.percent,
            amount(mirror.bytes_sent),
            amount(mirror.bytes_skipped),
            amount(mirror.bytes_remaining)
        );
    }
}

/// How many connections a link has, where it is to have several, and how many it lost.
fn connections(link: &LinkStatus) -> Option<String> {
    let several = link.connections.max(link.connections_wanted) > 1;
    let talks = link.connection == ConnectionState::Connected;
    let lost = match link.connections_lost {
        0 => String::new(),
        lost => format!(", {lost} lost"),
    };
    let (now, wanted) = (link.connections, link.connections_wanted);
    (several && talks).then(|| format!("{now} of {wanted} connections{lost}"))
}

/// What a link's schedule does.
pub(crate) fn schedule(link: &LinkStatus) -> String {
    let Some(schedule) = &link.schedule else {
        return "no schedule".to_owned();
    };
    match (schedule.held_by, schedule.session_since) {
        (Some(ScheduleHold::Window), _) => "schedule: held until the window opens".to_owned(),
        (Some(ScheduleHold::Start), _) => "schedule: held until the next start".to_owned(),
        (Some(ScheduleHold::Queue), _) => "schedule: held until enough waits".to_owned(),
        (Some(ScheduleHold::Limit), _) => {
            "schedule: held until the window opens again; its limit is used up".to_owned()
        }
        (None, since) => {
            let since = since.map_or_else(String::new, |since| format!(" since {since:.0}"));
            let sent = amount(schedule.session_bytes);
            format!("schedule: a session runs{since}, {sent} sent")
        }
    }
}

/// What a real link would need.
fn simulated(text: &mut String, needs: &SimulatedStatus) {
    let span = needs.span_ms / 1000;
    put!(
        text,
        "    simulated for {span} s: writes {} a second on average, {} in the busiest second, {} over 10 s, {} over 60 s",
        amount(needs.average_bytes),
        amount(needs.peak_1s_bytes),
        amount(needs.peak_10s_bytes),
        amount(needs.peak_60s_bytes)
    );
    let of = |plain: ByteLen, wire: ByteLen| format!("{} as {}", amount(plain), amount(wire));
    put!(
        text,
        "    compression: writes {}, mirror {}",
        of(needs.write_bytes, needs.write_compressed_bytes),
        of(needs.mirror_bytes, needs.mirror_compressed_bytes)
    );
    put!(
        text,
        "    on a line of {} a second: a queue of {}, a mirror of {} s",
        amount(needs.rate_bytes),
        amount(needs.queue_bytes),
        needs.mirror_ms.div_ceil(1000)
    );
}

/// What was sent, how much smaller it was on the wire, and why nothing is compressed now.
fn sent(link: &LinkStatus) -> String {
    let mut text = format!("sent {}", amount(link.sent_bytes));
    let (plain, wire) = (link.sent_bytes.get(), link.sent_compressed_bytes.get());
    if wire > 0 && wire < plain {
        let tenths = u128::from(plain) * 10 / u128::from(wire);
        let (ratio, tenth) = (tenths / 10, tenths % 10);
        let wire = amount(link.sent_compressed_bytes);
        write!(text, " as {wire} ({ratio}.{tenth} to 1)").expect("a String takes all text");
    }
    let reason = link.compression.reason();
    if let Some(reason) = reason.filter(|_| link.connection == ConnectionState::Connected) {
        write!(text, ", not compressed: {reason}").expect("a String takes all text");
    }
    text
}

fn target(text: &mut String, painter: Painter, target: &TargetStatus) {
    let source = target
        .source
        .as_ref()
        .map_or("unknown", |name| name.as_str());
    let (word, tone) = if target.connected {
        ("connected", Tone::Good)
    } else {
        ("not connected", Tone::Warn)
    };
    put!(
        text,
        "  replica of {source}: {}{}, data {}, applying {}",
        painter.paint(tone, word),
        secured(target.connected, target.proven.as_ref()),
        painter.paint(worth(target.data_state), target.data_state),
        target.status
    );
    let journal = amount(target.journal_bytes);
    let limit = amount(target.journal_limit_bytes);
    let dirty = amount(target.dirty_bytes);
    let mut line = format!("    journal {journal} of {limit}, dirty {dirty}");
    if target.connections > 1 {
        let waits = amount(target.out_of_order_bytes);
        let connections = target.connections;
        write!(line, ", {connections} connections, {waits} out of order")
            .expect("a String takes all text");
    }
    put!(text, "{line}");
    if target.bookmarks > 0 {
        put!(text, "    bookmarks: {}", target.bookmarks);
    }
    if let Some(task) = &target.task {
        put!(text, "    task runs: {}", painter.paint(Tone::Strong, task));
    }
    if let Some(retrying) = &target.retrying {
        put!(
            text,
            "    {} takes no writes since {}: {}, tried again after {} failures",
            retrying.path,
            retrying.since,
            painter.paint(Tone::Bad, &retrying.error),
            retrying.failures
        );
    }
}

fn lag(millis: Option<u64>) -> String {
    match millis {
        None => "unknown".to_owned(),
        Some(0) => "none".to_owned(),
        Some(millis) if millis < 1000 => format!("{millis} ms"),
        Some(millis) => format!("{}.{} s", millis / 1000, millis % 1000 / 100),
    }
}

/// Whether a connection is encrypted, and with whom.
fn secured(connected: bool, proven: Option<&NodeName>) -> String {
    match proven {
        _ if !connected => String::new(),
        Some(node) => format!(" (encrypted, with node {node})"),
        None => " (not encrypted)".to_owned(),
    }
}

fn worth(data_state: DataState) -> Tone {
    match data_state {
        DataState::Ok => Tone::Good,
        DataState::Mirroring | DataState::Reverted | DataState::Unknown => Tone::Warn,
        DataState::MirrorRequired | DataState::RestoreRequired | DataState::NotReady => Tone::Bad,
    }
}

fn problems(text: &mut String, painter: Painter, problems: &[Problem]) {
    for problem in problems {
        let (word, tone) = match problem.level {
            ProblemLevel::Note => ("note", Tone::Plain),
            ProblemLevel::Warning => ("warning", Tone::Warn),
            ProblemLevel::Error => ("error", Tone::Bad),
        };
        put!(text, "  {}: {}", painter.paint(tone, word), problem.what);
        put!(text, "    means: {}", problem.meaning);
        put!(text, "    do:    {}", problem.action);
    }
}

/// Bytes with one digit after the point, in the unit that suits them.
fn amount(bytes: ByteLen) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let bytes = bytes.get();
    let mut unit = 0;
    while unit + 1 < UNITS.len() && bytes >> (10 * (unit + 2)) > 0 {
        unit += 1;
    }
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let scale = 1_u128 << (10 * (unit + 1));
    let tenths = u128::from(bytes) * 10 / scale;
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// How much of a queue is on disk, where there is a disk queue.
fn on_disk(queue: &QueueStatus) -> String {
    let most = |most| format!(", {} of {} on disk", amount(queue.disk_bytes), amount(most));
    queue.disk_max_bytes.map_or_else(String::new, most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use blkrep_api::{CompressionState, MirrorStatus, Mode, TransmitState};

    fn link(plain: u64, wire: u64, compression: CompressionState) -> LinkStatus {
        LinkStatus {
            name: "east".to_owned().try_into().expect("a name"),
            peer: "192.0.2.1:7420".to_owned(),
            mode: Mode::Async,
            on_loss: blkrep_api::OnLoss::Continue,
            loss_timeout_ms: 2000,
            protection: ProtectionState::NotAsked,
            bandwidth_limit: None,
            connection: ConnectionState::Connected,
            transmit: TransmitState::Started,
            mirror: MirrorStatus::idle(),
            replication: ReplicationState::Replicating,
            data_state: DataState::Ok,
            lag_ms: Some(0),
            queue: QueueStatus::default(),
            dirty_bytes: ByteLen::ZERO,
            sent_bytes: ByteLen::new(plain),
            sent_compressed_bytes: ByteLen::new(wire),
            compression,
            connections: 1,
            connections_wanted: 1,
            connections_lost: 0,
            congestion_control: None,
            congestion_refused: None,
            schedule: None,
            simulated: None,
            proven: None,
            target_status: None,
            target_journal_bytes: None,
            connected_since: None,
            refusal: None,
            last_error: None,
        }
    }

    #[test]
    fn a_link_of_several_connections_says_how_many_there_are() {
        let mut one = link(1000, 1000, CompressionState::On);
        one.connection = ConnectionState::Connected;
        assert_eq!(connections(&one), None);
        one.connections_wanted = 4;
        assert_eq!(connections(&one).as_deref(), Some("1 of 4 connections"));
        (one.connections, one.connections_lost) = (4, 2);
        assert_eq!(
            connections(&one).as_deref(),
            Some("4 of 4 connections, 2 lost")
        );
        one.connection = ConnectionState::Connecting;
        assert_eq!(connections(&one), None);
    }

    #[test]
    fn a_link_says_what_compression_brings_and_why_there_is_none() {
        const MIB: u64 = 1 << 20;
        let mut on = link(31 * MIB, 10 * MIB, CompressionState::On);
        assert_eq!(sent(&on), "sent 31.0 MiB as 10.0 MiB (3.1 to 1)");
        on.compression = CompressionState::Incompressible;
        assert_eq!(
            sent(&on),
            "sent 31.0 MiB as 10.0 MiB (3.1 to 1), not compressed: what is written does not get smaller"
        );
        on.connection = ConnectionState::Down;
        assert_eq!(sent(&on), "sent 31.0 MiB as 10.0 MiB (3.1 to 1)");
        let idle = link(MIB, MIB + 100, CompressionState::LineIdle);
        let text = "sent 1.0 MiB, not compressed: the line takes all there is at once";
        assert_eq!(sent(&idle), text);
        assert_eq!(sent(&link(0, 0, CompressionState::On)), "sent 0 B");
    }

    #[test]
    fn amounts_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (10 << 30, "10.0 GiB"),
            (u64::MAX, "16383.9 PiB"),
        ] {
            assert_eq!(amount(ByteLen::new(bytes)), text);
        }
    }
}
