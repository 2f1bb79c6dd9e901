//! Devices that must not hang, must not come from the wrong place, and must come back.

use super::Context;
use super::disk::Memory;
use super::node::Node;
use super::shell::{command, run, spawn, try_run, wait_for};
use super::volume::{SIZE_MIB, node};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Tasks in uninterruptible sleep, by name: kernel threads that wait in peace are not counted as such.
fn hung_tasks() -> Result<Vec<String>> {
    let mut hung = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let is_task = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.parse::<u32>().is_ok());
        let Ok(stat) = fs::read_to_string(path.join("stat")) else {
            continue;
        };
        // The name is in parentheses and may contain blanks; the state follows the last one.
        let task = stat
            .rsplit_once(") ")
            .filter(|(_, tail)| is_task && tail.starts_with('D'));
        hung.extend(task.map(|(head, _)| head.to_owned()));
    }
    Ok(hung)
}

pub(super) fn forced_detach_leaves_no_hung_task(context: &Context) -> Result<String> {
    let backing = Memory::new("backing", SIZE_MIB, 512)?;
    let mut node = node(context)?;
    let device = node.attach("data", backing.path(), "--frontend ublk")?;
    let load = format!(
        "fio --name=load --filename={} --ioengine=libaio --direct=1 --iodepth=16 --rw=randwrite --bs=4k --size=32m \
         --time_based --runtime=600",
        device.display()
    );
    let mut load = spawn(command(&load))?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(
        load.is_running()?,
        "the load did not run: {}",
        load.stderr()?
    );
    node.kill()?;
    std::thread::sleep(Duration::from_millis(500));
    node.forced_detach(&["data"])?;
    wait_for("the device to go", Duration::from_secs(20), || {
        Ok(!device.exists())
    })?;
    // The load gets its error and ends; it hangs nowhere.
    let ended = load.finish(Duration::from_secs(40))?;
    ensure!(!ended.status.success(), "the load went on without a device");
    let mut hung = Vec::new();
    let settled = wait_for("no task to hang", Duration::from_secs(10), || {
        hung = hung_tasks()?;
        Ok(hung.is_empty())
    });
    settled.with_context(|| format!("hung: {hung:?}"))?;
    // Nothing of the volume keeps a successor from attaching it anew.
    node.restart()?;
    if node.device_of("data")?.is_none() {
        node.attach("data", backing.path(), "--frontend ublk")?;
    }
    node.detach("data")?;
    node.stop()?;
    Ok("gone, and attached anew".to_owned())
}

pub(super) fn bad_backings_are_refused(context: &Context) -> Result<String> {
    let backing = Memory::new("backing", SIZE_MIB, 512)?;
    let path = backing.path().to_owned();
    let mut node = node(context)?;
    let attach =
        |path: &Path, options: &str| format!("attach bad --backing {} {options}", path.display());
    let mut reasons = 0;
    let mut refuse = |node: &mut Node, line: &str, codes: &[&str]| -> Result<()> {
        reasons += 1;
        node.refuses(line, codes)
    };
    refuse(
        &mut node,
        &attach(Path::new("/dev/missing"), ""),
        &["backing-missing"],
    )?;
    refuse(
        &mut node,
        &attach(Path::new("/dev/null"), ""),
        &["backing-unsuitable"],
    )?;
    run(&format!("mkfs.ext4 -q -F {}", path.display()))?;
    fs::create_dir_all("/mnt/busy")?;
    run(&format!("mount {} /mnt/busy", path.display()))?;
    refuse(&mut node, &attach(&path, ""), &["backing-mounted"])?;
    run("umount /mnt/busy")?;
    let before = crate::inside::disk::read_direct(&path, 0, 1 << 20)?;
    let device = node.attach("good", &path, "--frontend ublk")?;
    refuse(&mut node, &attach(&path, ""), &["backing-attached"])?;
    let part = attach(&path, "--offset 1048576 --size 1048576");
    refuse(&mut node, &part, &["backing-overlaps", "backing-attached"])?;
    let mounted = try_run(&format!("mount {} /mnt/busy", path.display()))?;
    ensure!(
        !mounted.status.success(),
        "the backing could be mounted past the volume"
    );
    let open = fs::File::open(&device)?;
    refuse(&mut node, "detach good --yes", &["device-open"])?;
    drop(open);
    node.detach("good")?;
    ensure!(
        crate::inside::disk::read_direct(&path, 0, 1 << 20)? == before,
        "the backing has changed"
    );
    node.stop()?;
    Ok(format!("{reasons} refusals, nothing changed"))
}

/// The disks that outlive a boot, in order: virtio in QEMU, ubd in UML.
pub(super) fn disks() -> Result<[PathBuf; 3]> {
    let names = if Path::new("/dev/vda").exists() {
        ["vda", "vdb", "vdc"]
    } else {
        ["ubdb", "ubdc", "ubdd"]
    };
    let paths = names.map(|name| Path::new("/dev").join(name));
    for path in &paths {
        ensure!(path.exists(), "{} is not there", path.display());
    }
    Ok(paths)
}

const VOLUMES: [&str; 2] = ["one", "two"];

pub(super) fn before_reboot(context: &Context) -> Result<String> {
    let [state_disk, one, two] = disks()?;
    let state = Path::new("/mnt/state");
    fs::create_dir_all(state)?;
    run(&format!("mkfs.ext4 -q -F {}", state_disk.display()))?;
    run(&format!(
        "mount {} {}",
        state_disk.display(),
        state.display()
    ))?;
    let mut node = Node::start(&context.dir.join("node"), &state.join("blkrep"))?;
    let mut table = String::new();
    for (name, backing) in VOLUMES.into_iter().zip([one, two]) {
        let device = node.attach(name, &backing, "--frontend ublk")?;
        run(&format!("mkfs.ext4 -q -F {}", device.display()))?;
        let at = Path::new("/mnt").join(name);
        fs::create_dir_all(&at)?;
        run(&format!("mount {} {}", device.display(), at.display()))?;
        fs::write(at.join("content"), name)?;
        run(&format!("umount {}", at.display()))?;
        let uuid = run(&format!("blkid -p -s UUID -o value {}", device.display()))?;
        table += &format!("{name} {} {}\n", uuid.trim(), device.display());
    }
    fs::write(state.join("table"), &table)?;
    nix::unistd::sync();
    // Ending the guest now, with both attached, is the reboot.
    Ok(format!("{} volumes attached", table.lines().count()))
}

pub(super) fn after_reboot(context: &Context) -> Result<String> {
    let [state_disk, one, two] = disks()?;
    let state = Path::new("/mnt/state");
    fs::create_dir_all(state)?;
    run(&format!(
        "mount {} {}",
        state_disk.display(),
        state.display()
    ))?;
    let table = fs::read_to_string(state.join("table"))?;
    let mut node = Node::start(&context.dir.join("node"), &state.join("blkrep"))?;
    for ((line, name), backing) in table.lines().zip(VOLUMES).zip([one, two]) {
        let [_, uuid, before] = line.split(' ').collect::<Vec<_>>()[..] else {
            anyhow::bail!("the table is damaged: {line}");
        };
        let device = node
            .device_of(name)?
            .with_context(|| format!("{name} did not come back"))?;
        ensure!(
            device == Path::new(before),
            "{name} was {before} and is {}",
            device.display()
        );
        let at = Path::new("/mnt").join(name);
        fs::create_dir_all(&at)?;
        let past = try_run(&format!("mount {} {}", backing.display(), at.display()))?;
        ensure!(
            !past.status.success(),
            "{name} could be mounted from its backing"
        );
        mount_by_uuid(uuid, &at, &device)?;
        ensure!(
            fs::read_to_string(at.join("content"))? == name,
            "{name} has other content"
        );
        run(&format!("umount {}", at.display()))?;
        node.detach(name)?;
    }
    node.stop()?;
    run(&format!("umount {}", state.display()))?;
    Ok("came back under the same names, through our devices".to_owned())
}

/// What `mount -a` does with a line of fstab. Two devices carry the UUID; the one that is free is ours.
fn mount_by_uuid(uuid: &str, at: &Path, device: &Path) -> Result<()> {
    let table = PathBuf::from("/run/fstab");
    fs::write(
        &table,
        format!("UUID={uuid} {} ext4 defaults 0 2\n", at.display()),
    )?;
    run(&format!("mount -a -T {}", table.display()))?;
    let mounts = fs::read_to_string("/proc/mounts")?;
    let found = mounts
        .lines()
        .find(|line| line.split(' ').nth(1) == at.to_str());
    let source = found
        .and_then(|line| line.split(' ').next())
        .context("it is not mounted")?;
    ensure!(
        Path::new(source) == device,
        "{uuid} was mounted from {source}, not {}",
        device.display()
    );
    Ok(())
}
