//! Which daemon somebody means, found without touching any mount.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

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

/// Whose directories are meant by what somebody says: `@NAME`, `NAME`, or a hot path, which may be one of several. What
/// cannot be found stays as it is given.
pub fn named(given: &Path) -> PathBuf {
    find(given, |path| Ok(leads_to(path).or_else(|| with_directory(path)))).unwrap_or_else(|_| given.to_owned())
}

/// The absolute path of an overlay that somebody means.
pub fn hot_path(given: &Path) -> Result<PathBuf, MountError> {
    find_path(given, |path| Ok(with_directory(path)))
}

/// What `known` makes of `@NAME`, of `NAME`, or of a hot path. Of a path that it does not know: that, with links resolved.
/// An error if there is no such path.
pub fn find(given: &Path, known: impl Fn(&Path) -> Result<Option<PathBuf>, MountError>) -> Result<PathBuf, MountError> {
    let word = given.as_os_str().as_bytes();
    if !word.contains(&b'/') {
        let bare = word.iter().position(|&byte| byte != b'@').map_or(&word[word.len()..], |at| &word[at..]);
        let home = PathBuf::from(OsString::from_vec([b"@", bare].concat()));
        if word.first() == Some(&b'@') {
            return Ok(home);
        }
        if let Some(home) = known(&home)? {
            return Ok(home);
        }
    }
    find_path(given, known)
}

fn find_path(
    given: &Path,
    known: impl Fn(&Path) -> Result<Option<PathBuf>, MountError>,
) -> Result<PathBuf, MountError> {
    // As written it may be one that is known: then nothing has to be resolved, on whatever it lies.
    let written: PathBuf = std::path::absolute(given)
        .unwrap_or_else(|_| given.to_owned())
        .components()
        .filter(|part| *part != Component::CurDir)
        .collect();
    if let Some(found) = known(&written)? {
        return Ok(found);
    }
    match place::resolve_from_afar(given)? {
        Some(real) => Ok(known(&real)?.unwrap_or(real)),
        None => Ok(written),
    }
}

/// That path, if it has a runtime directory.
fn with_directory(path: &Path) -> Option<PathBuf> {
    rundir::of(path).is_dir().then(|| path.to_owned())
}

/// The daemon that one of several overlays belongs to.
pub fn leads_to(mountpoint: &Path) -> Option<PathBuf> {
    let socket = std::fs::read_link(rundir::control_socket(mountpoint)).ok()?;
    Some(PathBuf::from(socket.parent()?.file_name()?)).filter(|home| home.to_str().is_some_and(|n| n.starts_with('@')))
}

fn running() -> Result<Vec<PathBuf>, MountError> {
    let all = claim::directories()?.into_iter();
    let names = all.filter_map(|dir| dir.file_name().map(PathBuf::from));
    let is_name = |home: &PathBuf| home.to_str().is_some_and(|name| name.starts_with('@')) && claim::is_alive(home);
    Ok(names.filter(is_name).collect())
}
