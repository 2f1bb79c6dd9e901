//! The end of a device while requests wait, while the daemon dies, and beside another daemon's.

use super::Context;
use super::disk::{self, Behaviour, Mapped, Memory};
use super::node::Node;
use super::shell::{Running, command, run, spawn, wait_for};
use super::volume::{SIZE_MIB, node};
use anyhow::{Result, ensure};
use blkrep_api::VolumeState;
use std::path::Path;
use std::time::Duration;

/// A request that nobody holds up is answered long before, emulated or not.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A write that the application waits for.
fn writer(device: &Path) -> Result<Running> {
    spawn(command(&format!(
        "dd if=/dev/zero of={} bs=64k count=1 oflag=direct",
        device.display()
    )))
}

fn state(node: &mut Node, group: &str) -> Result<VolumeState> {
    Ok(node.group(group)?.volumes[0].state)
}

fn until_frozen(node: &mut Node) -> Result<()> {
    wait_for("the volume to be frozen", ANSWER_LIMIT, || {
        Ok(state(node, "data")? == VolumeState::Frozen)
    })
}

/// The daemon could be neither stopped nor told to let go of a volume whose requests wait for an operator, and after
/// the attempt no other command worked.
pub(super) fn frozen_volume_holds_up_nobody(context: &Context) -> Result<String> {
    let (memory, other) = (
        Memory::new("below", SIZE_MIB, 512)?,
        Memory::new("other", SIZE_MIB, 512)?,
    );
    let flakey = Mapped::new("flakey", memory.path(), Behaviour::Plain)?;
    let mut node = node(context)?;
    node.ctl("set volume.on-backing-error=freeze")?;
    let device = node.attach("data", &flakey.path(), "--frontend ublk")?;
    let second = node.attach("other", other.path(), "--frontend ublk")?;
    flakey.behave(Behaviour::FailWrites)?;
    let mut waits = writer(&device)?;
    until_frozen(&mut node)?;
    node.stop()?;
    ensure!(waits.is_running()?, "its request waits for the successor");
    node.restart()?;
    // The request came again, and its disk is as bad as before.
    until_frozen(&mut node)?;
    ensure!(waits.is_running()?, "its request waits for an operator");
    disk::write_direct(&second, 0, &[7; 4096])?;
    node.ctl("detach data --force --yes")?;
    let answered = waits.finish(ANSWER_LIMIT)?;
    ensure!(
        !answered.status.success(),
        "a write that failed was answered as done"
    );
    ensure!(!device.exists(), "the device is still there");
    disk::write_direct(&second, 4096, &[8; 4096])?;
    node.detach("other")?;
    // The disk is free, and works again.
    flakey.behave(Behaviour::Plain)?;
    let device = node.attach("data", &flakey.path(), "--frontend ublk")?;
    disk::write_direct(&device, 0, &[9; 4096])?;
    node.detach("data")?;
    node.stop()?;
    Ok("stopped, taken over, detached by force, attached again".to_owned())
}

/// The table said that the volume is served no longer; its device stayed, and what waited for it waited for ever.
pub(super) fn detach_cut_short_by_a_kill_is_finished(context: &Context) -> Result<String> {
    let memory = Memory::new("below", SIZE_MIB, 512)?;
    let delay = Duration::from_secs(4);
    let slow = Mapped::new("slow", memory.path(), Behaviour::Plain)?;
    let mut node = node(context)?;
    let device = node.attach("data", &slow.path(), "--frontend ublk")?;
    slow.behave(Behaviour::DelayWrites(delay))?;
    let waits = writer(&device)?;
    wait_for("the write to be under way", ANSWER_LIMIT, || {
        let stat = std::fs::read_to_string("/sys/block/ublkb0/inflight")?;
        Ok(stat.split_whitespace().any(|count| count != "0"))
    })?;
    let detach = node.begin("detach data --force --yes")?;
    wait_for("the detach to be under way", ANSWER_LIMIT, || {
        Ok(state(&mut node, "data")? != VolumeState::Served)
    })?;
    node.kill()?;
    drop(detach);
    slow.behave(Behaviour::Plain)?;
    node.restart()?;
    wait_for("the rest of the detach", ANSWER_LIMIT, || {
        Ok(node.status()?.groups.is_empty() && !device.exists())
    })?;
    waits.finish(ANSWER_LIMIT)?;
    let device = node.attach("data", &slow.path(), "--frontend ublk --device-id 0")?;
    disk::write_direct(&device, 0, &[9; 4096])?;
    node.detach("data")?;
    node.stop()?;
    Ok("the successor removed the device and forgot the volume".to_owned())
}

/// A disk that gives a request back to nobody: the detach ends with a refusal, others never notice, and it can be done
/// when the disk is back.
pub(super) fn detach_from_a_disk_that_does_not_answer_says_so(context: &Context) -> Result<String> {
    let (memory, other) = (
        Memory::new("below", SIZE_MIB, 512)?,
        Memory::new("other", SIZE_MIB, 512)?,
    );
    let silent = Mapped::new("silent", memory.path(), Behaviour::Plain)?;
    let mut node = node(context)?;
    let device = node.attach("data", &silent.path(), "--frontend ublk")?;
    run("dmsetup suspend --noflush --nolockfs silent")?;
    let waits = writer(&device)?;
    wait_for("the write to be under way", ANSWER_LIMIT, || {
        let stat = std::fs::read_to_string("/sys/block/ublkb0/inflight")?;
        Ok(stat.split_whitespace().any(|count| count != "0"))
    })?;
    let detach = node.begin("--json detach data --force --yes")?;
    wait_for("the detach to be under way", ANSWER_LIMIT, || {
        Ok(state(&mut node, "data")? != VolumeState::Served)
    })?;
    node.refuses("detach data --force --yes", &["group-busy"])?;
    let second = node.attach("other", other.path(), "--frontend ublk")?;
    disk::write_direct(&second, 0, &[7; 4096])?;
    node.detach("other")?;
    let said = detach.finish(Duration::from_secs(120))?;
    ensure!(
        said.stdout.contains("backing-failing") && said.stdout.contains("does not answer"),
        "the detach said {}{}",
        said.stdout,
        said.stderr
    );
    ensure!(
        device.exists(),
        "the device is gone although its disk has a request"
    );
    run("dmsetup --noudevsync resume silent")?;
    waits.finish(ANSWER_LIMIT)?;
    node.ctl("detach data --force --yes")?;
    ensure!(
        !device.exists() && node.status()?.groups.is_empty(),
        "something is left"
    );
    node.stop()?;
    Ok("refused after a minute, done when the disk was back".to_owned())
}

/// Two daemons of a host with a volume of the same name: the one that starts again took the other's device, with the
/// other's application on it, for the one it had left behind.
pub(super) fn device_of_another_daemon_is_left_alone(context: &Context) -> Result<String> {
    let backings = [
        Memory::new("one", SIZE_MIB, 512)?,
        Memory::new("two", SIZE_MIB, 512)?,
    ];
    let start = |name: &str| {
        Node::start(
            &context.dir.join(name),
            &context.dir.join(format!("{name}-state")),
        )
    };
    let (mut one, mut two) = (start("one")?, start("two")?);
    one.attach("data", backings[0].path(), "--frontend ublk")?;
    one.stop()?;
    one.forced_detach(&["data"])?;
    let device = two.attach("data", backings[1].path(), "--frontend ublk")?;
    ensure!(
        device == Path::new("/dev/ublkb0"),
        "the number is free again"
    );
    one.restart()?;
    let served =
        |node: &mut Node| Ok::<_, anyhow::Error>(state(node, "data")? == VolumeState::Served);
    ensure!(!served(&mut one)?, "the other's device was taken");
    let problems = one.group("data")?.problems;
    ensure!(
        problems
            .iter()
            .any(|problem| format!("{problem:?}").contains("another blkrepd")),
        "it is not said why: {problems:?}"
    );
    disk::write_direct(&device, 0, &[1; 4096])?;
    // Not even when the other is gone for a while.
    two.kill()?;
    one.stop()?;
    one.restart()?;
    ensure!(
        !served(&mut one)?,
        "the device that waits for the other was taken"
    );
    two.restart()?;
    ensure!(served(&mut two)?, "its own device was not taken over");
    disk::write_direct(&device, 4096, &[2; 4096])?;
    let bytes = disk::read_direct(backings[1].path(), 0, 8192)?;
    ensure!(
        bytes[..4096] == [1; 4096] && bytes[4096..] == [2; 4096],
        "a write went elsewhere"
    );
    two.detach("data")?;
    // Now the number is free, and the volume is served as before.
    wait_for("the first to serve its volume", ANSWER_LIMIT, || {
        served(&mut one)
    })?;
    one.detach("data")?;
    one.stop()?;
    two.stop()?;
    Ok("each daemon served its own".to_owned())
}
