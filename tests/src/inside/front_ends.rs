//! The front ends for kernels without ublk, with a real kernel on the other side.

use super::Context;
use super::disk::{Memory, drop_caches};
use super::shell::{run, wait_for};
use super::volume::{SIZE_MIB, ext4_cycle, fio_verify, node};
use anyhow::{Context as _, Result, ensure};
use std::path::Path;
use std::time::Duration;

pub(super) fn ext4_on_loop(context: &Context) -> Result<String> {
    let backing = Memory::new("backing", SIZE_MIB, 512)?;
    let mut node = node(context)?;
    let device = node.attach("data", backing.path(), "--frontend loop")?;
    ensure!(
        device.starts_with("/dev") && device.to_string_lossy().contains("loop"),
        "got {}",
        device.display()
    );
    run(&fio_verify(&device, context.times(8, 48), "512-64k"))?;
    ext4_cycle(context, &device)?;
    node.detach("data")?;
    node.stop()?;
    run(&format!("e2fsck -fn {}", backing.path().display()))?;
    Ok(format!("{}", device.display()))
}

/// The path of the socket in `nbd+unix:///name?socket=/path` or `nbd+unix:///?socket=/path`.
fn socket_of(address: &Path) -> Result<(String, String)> {
    let text = address.to_str().context("read the address as text")?;
    let rest = text
        .strip_prefix("nbd+unix:///")
        .with_context(|| format!("{text} is no NBD address"))?;
    let (export, socket) = rest
        .split_once("?socket=")
        .with_context(|| format!("{text} names no socket"))?;
    Ok((export.to_owned(), socket.to_owned()))
}

pub(super) fn ext4_on_nbd(context: &Context) -> Result<String> {
    let backing = Memory::new("backing", SIZE_MIB, 512)?;
    let mut node = node(context)?;
    let address = node.attach("data", backing.path(), "--frontend nbd")?;
    let (export, socket) = socket_of(&address)?;
    let device = Path::new("/dev/nbd0");
    let name = if export.is_empty() {
        String::new()
    } else {
        format!("-N {export} ")
    };
    run(&format!(
        "nbd-client -unix {socket} {name}{}",
        device.display()
    ))?;
    wait_for("the client's device", Duration::from_secs(20), || {
        Ok(super::disk::bytes_of(device)? == SIZE_MIB << 20)
    })?;
    run(&fio_verify(device, context.times(8, 48), "512-64k"))?;
    ext4_cycle(context, device)?;
    run(&format!("nbd-client -d {}", device.display()))?;
    node.detach("data")?;
    node.stop()?;
    run(&format!("e2fsck -fn {}", backing.path().display()))?;
    Ok(format!("{}", address.display()))
}

pub(super) fn copies_equal_the_backing(context: &Context) -> Result<String> {
    let backing = Memory::new("backing", SIZE_MIB, 512)?;
    run(&fio_verify(backing.path(), 16, "4k-64k"))?;
    let mut node = node(context)?;
    let address = node.attach("data", backing.path(), "--frontend nbd")?;
    let copy = context.dir.join("copy");
    run(&format!("nbdcopy {} {}", address.display(), copy.display()))?;
    run(&format!(
        "cmp {} {}",
        copy.display(),
        backing.path().display()
    ))?;
    run(&format!(
        "qemu-img compare -f raw -F raw {} {}",
        address.display(),
        copy.display()
    ))?;
    // And the other way: what a client copies in is what the backing holds.
    let other = context.dir.join("other");
    std::fs::write(&other, vec![0x3c; usize::try_from(SIZE_MIB << 20)?])?;
    run(&format!(
        "nbdcopy {} {}",
        other.display(),
        address.display()
    ))?;
    drop_caches()?;
    node.detach("data")?;
    node.stop()?;
    run(&format!(
        "cmp {} {}",
        other.display(),
        backing.path().display()
    ))?;
    Ok("out and in".to_owned())
}
