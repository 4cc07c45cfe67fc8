//! Which daemon somebody means, found without touching any mount.

use std::path::{Path, PathBuf};

use crate::daemon::MountError;
use crate::mountpoint::{claim, place};
use crate::rundir;

/// The daemon of a `steadfs run` by its name, with or without the `@`; the only one there is if none is given.
pub fn of_name(name: Option<&str>) -> Result<PathBuf, MountError> {
    if let Some(name) = name {
        let home = PathBuf::from(format!("@{}", name.trim_start_matches('@')));
        return if claim::is_own(&home)? && claim::is_alive(&home) {
            Ok(home)
        } else {
            Err(MountError::Mount(format!("no steadfs of the name {name} runs: see steadfs status")))
        };
    }
    let mut all = running()?;
    match (all.pop(), all.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(MountError::Mount("no steadfs run is running: start one with steadfs run CONFIG.toml".into())),
        (Some(_), false) => Err(MountError::Usage("several daemons run: say which with --to NAME".into())),
    }
}

/// The daemon that has this overlay, by its resolved mountpoint.
pub fn of_overlay(mountpoint: &Path) -> Result<PathBuf, MountError> {
    let shown = mountpoint.display();
    if !claim::is_own(mountpoint)? {
        return Err(MountError::Mount(format!("no steadfs serves {shown}")));
    }
    let home = leads_to(mountpoint);
    home.ok_or_else(|| MountError::Usage(format!("{shown} is a mount of its own: run steadfs umount {shown}")))
}

/// Whose directories are meant by what somebody says: `@NAME`, `NAME`, or a hot path, which may be one of several.
pub fn named(given: &Path) -> PathBuf {
    if let Some(name) = given.to_str().filter(|name| !name.contains('/')) {
        let home = PathBuf::from(format!("@{}", name.trim_start_matches('@')));
        if name.starts_with('@') || rundir::of(&home).is_dir() {
            return home;
        }
    }
    let path = place::resolve(given).unwrap_or_else(|_| given.to_owned());
    leads_to(&path).unwrap_or(path)
}

/// The daemon that one of several overlays belongs to.
pub fn leads_to(mountpoint: &Path) -> Option<PathBuf> {
    let socket = std::fs::read_link(rundir::control_socket(mountpoint)).ok()?;
    Some(PathBuf::from(socket.parent()?.file_name()?)).filter(|home| home.to_str().is_some_and(|n| n.starts_with('@')))
}

fn running() -> Result<Vec<PathBuf>, MountError> {
    let base = rundir::base();
    let Ok(entries) = std::fs::read_dir(&base) else { return Ok(Vec::new()) };
    claim::own(&base)?;
    let names = entries.flatten().map(|entry| PathBuf::from(entry.file_name()));
    let is_name = |home: &PathBuf| home.to_str().is_some_and(|name| name.starts_with('@')) && claim::is_alive(home);
    Ok(names.filter(is_name).collect())
}
