//! Which daemon somebody means, found without touching any mount: a hot path, the name of a configuration, or all there are.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::daemons;
use crate::backing::mountinfo;
use crate::daemon::MountError;
use crate::evidence::Settings;
use crate::mountpoint::{claim, place};
use crate::rundir;

/// What the directories of the daemon are named after that is called `given`: `@NAME`, `NAME`, its hot path, or one of its
/// hot paths, mounted or not.
fn named(given: &Path) -> Result<PathBuf, MountError> {
    // One of several overlays has a directory of its own, which leads to its daemon's.
    daemons::find(given, |path| match daemons::leads_to(path) {
        Some(home) => Ok(Some(home)),
        None if claim::is_own(path)? => Ok(Some(path.to_owned())),
        None => owner(path),
    })
}

/// The one that is meant, or all there are.
pub fn meant(given: Option<&Path>) -> Result<Vec<PathBuf>, MountError> {
    given.map_or_else(all, |given| named(given).map(|home| vec![home]))
}

/// The daemon among whose overlays that one is.
fn owner(hot: &Path) -> Result<Option<PathBuf>, MountError> {
    let has = |home: &PathBuf| Settings::read(home).overlays.iter().any(|overlay| overlay == hot);
    Ok(running()?.into_iter().find(has))
}

/// Those of all daemons of this user, and of overlays that somebody who is dead has left.
fn all() -> Result<Vec<PathBuf>, MountError> {
    let mut found: BTreeSet<PathBuf> = running()?.into_iter().collect();
    let served: BTreeSet<PathBuf> = found.iter().flat_map(|home| Settings::read(home).overlays).collect();
    let table = mountinfo::entries().map_err(place::no_mountinfo)?;
    // Those of other users are theirs to look after.
    let user = format!("user_id={}", nix::unistd::geteuid());
    let is_own = |entry: &mountinfo::Entry| {
        let mut options = entry.super_options.as_bytes().split(|&byte| byte == b',');
        entry.fstype == "fuse.steadfs" && options.any(|option| option == user.as_bytes())
    };
    let left = table.into_iter().filter(is_own).map(|entry| entry.mountpoint);
    found.extend(left.filter(|path| !served.contains(path)));
    Ok(found.into_iter().collect())
}

/// Those that have a runtime directory.
fn running() -> Result<Vec<PathBuf>, MountError> {
    let all = claim::directories()?;
    // A name that does not lead back is that of a long path, or no name of ours.
    let homes = all.iter().filter_map(|dir| Some(unescape(dir.file_name()?.as_bytes())));
    let mut homes: Vec<PathBuf> = homes.filter(|home| rundir::of(home).is_dir()).collect();
    homes.retain(|home| daemons::leads_to(home).is_none() && claim::own(&rundir::of(home)).is_ok());
    homes.sort();
    Ok(homes)
}

/// Undoes what [`rundir::name`] does to a path or to `@NAME`.
fn unescape(name: &[u8]) -> PathBuf {
    if name.first() == Some(&b'@') {
        return OsString::from_vec(name.to_owned()).into();
    }
    let (mut out, mut rest) = (Vec::new(), name);
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = |b: u8| char::from(b).to_digit(16);
        match (byte, tail) {
            (b'\\', &[b'x', high, low, ..]) if hex(high).zip(hex(low)).is_some() => {
                let value = hex(high).zip(hex(low)).map_or(0, |(high, low)| high * 16 + low);
                out.push(u8::try_from(value).unwrap_or(b'?'));
                rest = &tail[3..];
            }
            _ => {
                out.push(if byte == b'-' { b'/' } else { byte });
                rest = tail;
            }
        }
    }
    out.insert(0, b'/');
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_directories_lead_back() {
        for home in ["/srv/jobs", "/srv/a-b c/x.y", "/h\u{f6}t/new\nline", "@box", "@a-b", "/@odd"] {
            let name = rundir::name(Path::new(home));
            assert_eq!(unescape(name.as_bytes()), Path::new(home), "{name}");
        }
        assert_eq!(unescape(b"a\\x"), Path::new("/a\\x"));
        assert_eq!(unescape(b"a\\xzz"), Path::new("/a\\xzz"));
    }

    #[test]
    fn a_name_with_its_mark_needs_no_daemon() {
        assert_eq!(named(Path::new("@box")).expect("a name"), Path::new("@box"));
    }
}
