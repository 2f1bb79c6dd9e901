//! The acts of the demonstration, in the order they are played.
//!
//! Owns what is done in each. A scene enters and is changed; figures leave.

use super::figures::{Attached, Crash, FullMirror, LongCut, ShortCut, Workload, Written};
use super::load::{Pace, extent_bytes};
use super::scene::{JOURNAL_BYTES, LOG_BYTES, Scene};
use super::show::bytes;
use anyhow::{Context as _, ensure};
use blkrep_api::{
    AttachReply, AttachRequest, ConnectReply, ConnectRequest, FrontendKind, MirrorKind, Mode, route,
};
use blkrep_types::ByteOffset;
use std::fs::File;
use std::time::{Duration, Instant};

/// How long the network is away.
const CUT: Duration = Duration::from_secs(3);
/// Work before and after an event.
const AROUND: Duration = Duration::from_secs(1);
/// Work over an undisturbed link.
const WORK: Duration = Duration::from_secs(4);
/// Longest filling, mirror or storm, on a slow machine too.
const LOAD_LIMIT: Duration = Duration::from_secs(300);
/// A volume is served again well within this: claims of a killed daemon end with its last write.
const SERVED_LIMIT: Duration = Duration::from_secs(60);
/// Operations of the storm; of about 16 KiB each, they are three times the log.
const STORM_OPERATIONS: u64 = 6500;

pub(crate) fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn wrote(written: &Written) -> String {
    let Written {
        operations,
        bytes: count,
        ..
    } = *written;
    format!("{operations} operations, {} written", bytes(count))
}

/// A file becomes a device, and the application fills it.
pub(crate) fn attach(scene: &mut Scene<'_>) -> anyhow::Result<(String, Attached)> {
    let backing = scene.backing();
    let made = File::create(&backing).and_then(|file| file.set_len(scene.size_bytes));
    made.with_context(|| format!("make {}", backing.display()))?;
    let request = AttachRequest {
        volume: scene.volume.clone(),
        backing,
        group: Some(scene.group.clone()),
        frontend: scene.frontend,
        device_id: None,
        offset: ByteOffset::new(0),
        size: None,
        extent_size: None,
        read_only: false,
        transient: false,
    };
    let reply: AttachReply = scene.source.post(route::ATTACH, &request)?;
    scene.frontend = reply.frontend;
    scene.show.tell(&format!(
        "a file of {} is served as {}",
        bytes(scene.size_bytes),
        reply.device
    ));
    reply.notes.iter().for_each(|note| scene.show.tell(note));
    let load = scene.load(&reply.device, Pace::Fill, LOAD_LIMIT)?;
    scene
        .interrupt
        .wait("filling the volume", LOAD_LIMIT, || Ok(load.is_finished()))?;
    let filled = load.end()?;
    scene.show.tell(&format!(
        "the application fills it through the device: {}",
        wrote(&filled)
    ));
    let figures = Attached {
        frontend: reply.frontend,
        device: reply.device.clone(),
        size_bytes: scene.size_bytes,
        filled_bytes: filled.bytes,
        failed: filled.failed,
    };
    Ok((reply.device, figures))
}

/// The first copy, while the application works.
pub(crate) fn full_mirror(scene: &mut Scene<'_>, device: &str) -> anyhow::Result<FullMirror> {
    let mut before = scene.before()?;
    let load = scene.load(device, Pace::Steady, LOAD_LIMIT)?;
    let request = ConnectRequest {
        group: scene.group.clone(),
        to: scene.network.address().to_string(),
        link: None,
        map: [(scene.volume.clone(), scene.replica())].into(),
        mode: Some(Mode::Async),
        on_loss: None,
        loss_timeout_ms: None,
        no_mirror: false,
        mirror: Some(MirrorKind::Full),
        overwrite: false,
        trust_map: false,
        confirmed: false,
    };
    let _made: ConnectReply = scene.source.post(route::CONNECT, &request)?;
    let bar = scene.show.bytes_bar(scene.size_bytes);
    let mut begun = false;
    scene.interrupt.wait("the full mirror", LOAD_LIMIT, || {
        let link = scene.look(&mut before)?;
        let mirror = &link.mirror;
        let done = mirror.bytes_sent.get() + mirror.bytes_skipped.get();
        bar.set(
            done,
            format!("{}, replica {}", mirror.state, link.data_state),
        );
        begun |= done > 0;
        let idle = mirror.state == blkrep_api::MirrorState::Idle;
        Ok(begun && idle && link.data_state == blkrep_api::DataState::Ok)
    })?;
    drop(bar);
    load.tell_to_stop();
    let written = load.end()?;
    let link = scene.until_equal(&mut before)?;
    let figures = FullMirror {
        size_bytes: scene.size_bytes,
        written,
        data_state: link.data_state,
        seen: scene.seen_since(before, false)?,
    };
    scene.show.kept(&format!(
        "{} mirrored while the application went on ({}); the replica is {}",
        bytes(figures.seen.mirror_bytes_sent + figures.seen.mirror_bytes_skipped),
        wrote(&written),
        figures.data_state
    ));
    Ok(figures)
}

/// Replication as it is on most days.
pub(crate) fn workload(scene: &mut Scene<'_>, device: &str) -> anyhow::Result<Workload> {
    let mut before = scene.before()?;
    let load = scene.load(device, Pace::Steady, WORK)?;
    scene.watch(&mut before, &load, WORK)?;
    let written = load.end()?;
    scene.until_equal(&mut before)?;
    let seen = scene.seen_since(before, false)?;
    scene.show.tell(&format!(
        "{}; the target was at most {} ms behind, {} travelled",
        wrote(&written),
        seen.lag_ms_max,
        bytes(seen.wire_bytes)
    ));
    Ok(Workload { written, seen })
}

/// The network is away for a while, and the log holds what is written.
pub(crate) fn short_cut(scene: &mut Scene<'_>, device: &str) -> anyhow::Result<ShortCut> {
    let mut before = scene.before()?;
    let time = AROUND + CUT + AROUND;
    let load = scene.load(device, Pace::Steady, time)?;
    scene.interrupt.sleep(AROUND)?;
    scene.network.cut();
    let cut = Instant::now();
    let bar = scene.show.time_bar(CUT);
    while cut.elapsed() < CUT {
        let link = scene.look(&mut before)?;
        bar.set(
            millis(cut),
            format!(
                "cut: {} wait in the log",
                bytes(link.queue.memory_bytes.get())
            ),
        );
        scene.interrupt.sleep(Duration::from_millis(50))?;
    }
    drop(bar);
    scene.network.heal();
    let cut_ms = millis(cut);
    scene.watch(&mut before, &load, AROUND)?;
    let written = load.end()?;
    scene.until_equal(&mut before)?;
    let seen = scene.seen_since(before, false)?;
    scene.show.tell(&format!(
        "{}; up to {} of {} waited in the log and went on in order; mirrored: {}",
        wrote(&written),
        bytes(seen.queue_bytes_max),
        bytes(LOG_BYTES),
        bytes(seen.mirror_bytes_sent)
    ));
    Ok(ShortCut {
        cut_ms,
        log_bytes: LOG_BYTES,
        written,
        seen,
    })
}

/// The network is away, and more is written than the log holds.
pub(crate) fn long_cut(scene: &mut Scene<'_>, device: &str) -> anyhow::Result<LongCut> {
    let mut before = scene.before()?;
    scene.network.cut();
    let cut = Instant::now();
    let storm = Pace::Storm {
        operations: STORM_OPERATIONS,
        span_bytes: scene.size_bytes / 8,
    };
    let load = scene.load(device, storm, LOAD_LIMIT)?;
    let first = load.operations_before;
    scene.watch(&mut before, &load, CUT)?;
    let written = load.end()?;
    scene.interrupt.sleep(CUT.saturating_sub(cut.elapsed()))?;
    scene.look(&mut before)?;
    scene.network.heal();
    let cut_ms = millis(cut);
    scene.until_equal(&mut before)?;
    let history = scene.record.history()?;
    let figures = LongCut {
        cut_ms,
        log_bytes: LOG_BYTES,
        written,
        touched_bytes: extent_bytes(history.operations[first..].iter()),
        journal_bytes: JOURNAL_BYTES,
        seen: scene.seen_since(before, false)?,
    };
    scene.show.tell(&format!(
        "{} into {} of extents, with a log of {}; the difference mirror sent {}",
        wrote(&written),
        bytes(figures.touched_bytes),
        bytes(LOG_BYTES),
        bytes(figures.seen.mirror_bytes_sent)
    ));
    Ok(figures)
}

/// `kill -9` of the source's daemon in the middle of the work; a successor goes on.
pub(crate) fn crash(scene: &mut Scene<'_>, device: &str) -> anyhow::Result<(String, Crash)> {
    let device_survives = scene.frontend == FrontendKind::Ublk;
    let mut before = scene.before()?;
    let load = scene.load(device, Pace::Steady, AROUND * 3)?;
    let first = load.operations_before;
    scene.interrupt.sleep(AROUND)?;
    ensure!(!load.is_finished(), "the load ended before the kill");
    let killed = Instant::now();
    scene.source.kill()?;
    scene.source.launch(&scene.interrupt)?;
    let device = scene.served_by(&scene.source, SERVED_LIMIT)?;
    let away_ms = millis(killed);
    let written = load.end()?;
    let history = scene.record.history()?;
    let doubtful = history.operations[first..].iter();
    let doubt_bytes = extent_bytes(doubtful.filter(|operation| operation.completed.is_none()));
    scene.show.tell(&if device_survives {
        format!("the device stayed open and waited {away_ms} ms; no operation failed")
    } else {
        format!(
            "a new daemon serves it after {away_ms} ms as {device}; {} operations were in doubt",
            written.failed
        )
    });
    let load = scene.load(&device, Pace::Steady, AROUND)?;
    scene.watch(&mut before, &load, AROUND)?;
    let after = load.end()?;
    scene.until_equal(&mut before)?;
    let figures = Crash {
        device_survives,
        away_ms,
        before: written,
        after,
        doubt_bytes,
        seen: scene.seen_since(before, true)?,
    };
    scene.show.tell(&format!(
        "{} before, {} after; the stream went on, mirrored: {}",
        wrote(&written),
        wrote(&after),
        bytes(figures.seen.mirror_bytes_sent)
    ));
    Ok((device, figures))
}
