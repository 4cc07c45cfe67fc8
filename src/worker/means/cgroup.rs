//! The freezer of a control group, version 2 (`cgroup.freeze`).

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::{Failure, Job};
use crate::worker::pause::Found;

/// Time between two looks at whether it is frozen.
const LOOK: Duration = Duration::from_millis(20);

/// Nothing if it is not there or somebody else has frozen it.
pub(super) fn look(path: &Path) -> Result<Option<Found>, Failure> {
    let freeze = match std::fs::read_to_string(path.join("cgroup.freeze")) {
        Err(error) if is_gone(&error) && !path.is_dir() => return Ok(None),
        freeze => freeze.map_err(|error| shown(path, &error))?,
    };
    if freeze.trim() == "1" {
        return Ok(None);
    }
    if holds_steadfs(path) {
        return Err(Failure::of(format!("steadfs itself is in {}", path.display())));
    }
    let inode = path.metadata().map_err(|error| shown(path, &error))?.ino();
    Ok(Some(Found::Directory { inode }))
}

/// A process inside a call to a dead filesystem freezes only when the call ends; until then this waits.
pub(super) fn freeze(job: &Job, path: &Path) -> Result<(), Failure> {
    match std::fs::write(path.join("cgroup.freeze"), "1") {
        Err(error) if is_gone(&error) => return Ok(()),
        written => written.map_err(|error| shown(path, &error))?,
    }
    loop {
        match std::fs::read_to_string(path.join("cgroup.events")) {
            Ok(events) if events.lines().any(|line| line == "frozen 1") => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(shown(path, &error)),
            Ok(_) if (job.cut)() => return Err(Failure::of("cut short: steadfs ends")),
            Ok(_) if job.left().is_zero() => return Err(Failure::late("not all of its processes are frozen yet")),
            Ok(_) => std::thread::sleep(LOOK),
        }
    }
}

/// Another group of the same name is left alone.
pub(super) fn thaw(path: &Path, found: &Found) -> Result<(), Failure> {
    let same = match (found, path.metadata()) {
        (_, Err(error)) if is_gone(&error) => return Ok(()),
        (_, Err(error)) => return Err(shown(path, &error)),
        (Found::Directory { inode }, Ok(metadata)) => metadata.ino() == *inode,
        _ => true,
    };
    if !same {
        return Ok(());
    }
    match std::fs::write(path.join("cgroup.freeze"), "0") {
        Err(error) if is_gone(&error) => Ok(()),
        written => written.map_err(|error| shown(path, &error)),
    }
}

/// It, or a group below it, holds this process or its keeper.
fn holds_steadfs(path: &Path) -> bool {
    let own = [std::process::id().to_string(), nix::unistd::getppid().to_string()];
    let procs = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    if procs.lines().any(|line| own.iter().any(|own| own == line)) {
        return true;
    }
    let below = std::fs::read_dir(path).into_iter().flatten().flatten();
    below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).any(|entry| holds_steadfs(&entry.path()))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

fn shown(path: &Path, error: &io::Error) -> Failure {
    Failure::of(format!("{}: {error}", path.display()))
}
