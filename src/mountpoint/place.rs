//! The mountpoint: found and checked without touching a mount that may hang.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use crate::backing::mountinfo::{self, Entry};
use crate::daemon::MountError;
use crate::rundir;

/// As many symbolic links as path_resolution(7) follows.
const MAX_LINKS: usize = 40;

/// The absolute path of `given` with all symbolic links resolved. What is mounted exactly there is never touched.
pub fn resolve(given: &Path) -> Result<PathBuf, MountError> {
    let table = mountinfo::entries().map_err(no_mountinfo)?;
    resolve_in(&table, given, &|_| false).map_err(|error| unresolved(given, error))
}

/// The same without a look at anything that lies on a mount which may hang: links there are not followed. `None` if it cannot be
/// told so where the path leads.
pub fn resolve_from_afar(given: &Path) -> Result<Option<PathBuf>, MountError> {
    let table = mountinfo::entries().map_err(no_mountinfo)?;
    match resolve_in(&table, given, &|path| may_hang(&table, path)) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some).map_err(|error| unresolved(given, error)),
    }
}

/// Whether a look at this path may wait for ever. If the root does, this program does not even start.
pub fn may_hang(table: &[Entry], path: &Path) -> bool {
    mountinfo::covering_in(table, path).is_some_and(|entry| entry.may_hang() && entry.mountpoint != Path::new("/"))
}

fn unresolved(given: &Path, error: io::Error) -> MountError {
    match error.kind() {
        io::ErrorKind::NotFound => missing(given),
        _ => MountError::Mount(format!("{}: {error}", given.display())),
    }
}

/// What is `avoided` is not looked at, and taken for no link. A `..` behind that is a [`io::ErrorKind::WouldBlock`].
fn resolve_in(table: &[Entry], given: &Path, avoided: &dyn Fn(&Path) -> bool) -> io::Result<PathBuf> {
    let mut path = std::path::absolute(given)?;
    for _ in 0..MAX_LINKS {
        path = path.components().filter(|part| *part != Component::CurDir).collect();
        // As written it may be a mountpoint already: then its name is final, whatever it would answer.
        if mountinfo::at_in(table, &path).is_some() {
            return Ok(path);
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return walk(&path, avoided);
        };
        let real = walk(parent, avoided)?.join(name);
        if mountinfo::at_in(table, &real).is_some() {
            return Ok(real);
        }
        if avoided(&real) {
            return Ok(real);
        }
        match std::fs::read_link(&real) {
            Ok(target) if trusted(&real)? => path = real.parent().unwrap_or(Path::new("/")).join(target),
            Ok(_) => return Err(foreign_link(&real)),
            // Not a link, or not there: both are for others to find.
            Err(_) => return Ok(real),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

/// As canonicalize(3), of an absolute path; but root follows no link of somebody else's, who could lead him anywhere.
fn walk(path: &Path, avoided: &dyn Fn(&Path) -> bool) -> io::Result<PathBuf> {
    let parts = |path: &Path| {
        let names = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
        names.map(|part| part.as_os_str().to_owned()).rev().collect::<Vec<_>>()
    };
    let (mut reached, mut ahead, mut links) = (PathBuf::from("/"), parts(path), 0);
    while let Some(name) = ahead.pop() {
        if name == ".." {
            reached.pop();
            continue;
        }
        let next = reached.join(name);
        if avoided(&next) {
            ahead.reverse();
            return match ahead.iter().any(|name| name == "..") {
                true => Err(io::ErrorKind::WouldBlock.into()),
                false => Ok(ahead.iter().fold(next, |path, name| path.join(name))),
            };
        }
        if !std::fs::symlink_metadata(&next)?.is_symlink() {
            reached = next;
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(nix::errno::Errno::ELOOP.into());
        }
        if !trusted(&next)? {
            return Err(foreign_link(&next));
        }
        let target = std::fs::read_link(&next)?;
        if target.is_absolute() {
            reached = PathBuf::from("/");
        }
        ahead.extend(parts(&target));
    }
    Ok(reached)
}

/// Whether a link was made by root, or by whoever asks; nobody but root has to be careful.
fn trusted(link: &Path) -> io::Result<bool> {
    Ok(!nix::unistd::geteuid().is_root() || std::fs::symlink_metadata(link)?.uid() == 0)
}

fn foreign_link(link: &Path) -> io::Error {
    io::Error::other(format!("{} is a link that is not root's: give the path that it leads to", link.display()))
}

/// Whether a mount can be made at this resolved path; st_dev and st_ino of the directory that was found fit for it.
pub fn check(path: &Path, nonempty: bool) -> Result<(u64, u64), MountError> {
    let shown = path.display();
    if let Some(entry) = mountinfo::at(path).map_err(no_mountinfo)? {
        return Err(MountError::Mount(already(path, &entry)));
    }
    let fail = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => missing(path),
        io::ErrorKind::PermissionDenied => MountError::Usage(format!("{shown}: permission denied")),
        _ => MountError::Mount(format!("{shown}: {error}")),
    };
    // All looks are at one directory, whatever is put in its place meanwhile.
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let directory = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(fail)?;
    let found = directory.metadata().map_err(fail)?;
    if !found.is_dir() {
        return Err(MountError::Mount(format!("{shown} is not a directory")));
    }
    let held = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
    if !nonempty && std::fs::read_dir(held).map_err(fail)?.next().is_some() {
        return Err(MountError::Mount(format!(
            "{shown} is not empty: empty it first, or add -o nonempty to hide what is there"
        )));
    }
    Ok((found.dev(), found.ino()))
}

/// Whether the directory of `dir:` is there and apart from the mountpoint.
pub fn check_source(path: &Path, mountpoint: &Path) -> Result<(), MountError> {
    let shown = path.display();
    let covering = mountinfo::covering(path).map_err(no_mountinfo)?;
    // A dead server would make every look at it hang; the first generation looks, under a deadline.
    let local = covering.is_none_or(|entry| !entry.may_hang());
    let real = match std::fs::canonicalize(path) {
        _ if !local => path.to_owned(),
        Ok(real) if real.is_dir() => real,
        Ok(_) => return Err(MountError::Mount(format!("dir:{shown} is not a directory"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(MountError::Mount(format!("dir:{shown} does not exist: make it first")));
        }
        Err(error) => return Err(MountError::Mount(format!("dir:{shown}: {error}"))),
    };
    if real.starts_with(mountpoint) || mountpoint.starts_with(&real) {
        let place = mountpoint.display();
        return Err(MountError::Mount(format!(
            "dir:{shown} and {place} contain one another: choose paths side by side"
        )));
    }
    Ok(())
}

fn already(path: &Path, entry: &Entry) -> String {
    let (shown, fstype, source) = (path.display(), entry.fstype.to_string_lossy(), entry.source.to_string_lossy());
    let ours = entry.is_fuse() && (entry.fstype == OsStr::new("fuse.steadfs") || rundir::of(path).exists());
    if ours && !super::claim::is_alive(path) {
        return format!("{shown} holds a mount whose steadfs is gone: run steadfs umount {shown} first");
    }
    let verb = if ours { "steadfs umount" } else { "umount" };
    format!("{shown} is already mounted ({source}, {fstype}): run {verb} {shown} first")
}

fn missing(path: &Path) -> MountError {
    MountError::Mount(format!("mountpoint {0} does not exist: run mkdir -p {0}", path.display()))
}

pub(crate) fn no_mountinfo(error: io::Error) -> MountError {
    MountError::System(format!("cannot read /proc/self/mountinfo: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_dots_are_resolved() {
        let dir = tempfile::tempdir().expect("tempdir");
        let base = dir.path().canonicalize().expect("real path");
        std::fs::create_dir_all(base.join("a/hot")).expect("mkdir");
        std::os::unix::fs::symlink("a", base.join("link")).expect("symlink");
        std::os::unix::fs::symlink("link/hot", base.join("last")).expect("symlink");
        std::os::unix::fs::symlink("loop", base.join("loop")).expect("symlink");
        for given in ["a/hot", "link/hot", "last", "a/./hot/", "a/../a/hot"] {
            assert_eq!(resolve(&base.join(given)), Ok(base.join("a/hot")), "{given}");
        }
        assert_eq!(resolve(&base.join("a/..")), Ok(base.clone()));
        assert!(matches!(resolve(&base.join("loop")), Err(MountError::Mount(_))));
        assert!(matches!(resolve(&base.join("no/such")), Err(MountError::Mount(_))));
    }

    #[test]
    fn nothing_is_looked_at_on_a_mount_that_may_hang() {
        let dir = tempfile::tempdir().expect("tempdir");
        let base = dir.path().canonicalize().expect("real path");
        std::fs::create_dir_all(base.join("a/hot")).expect("mkdir");
        for (name, target) in [("link", "a/hot"), ("into", "nfs/deep"), ("through", "nfs/../a/hot")] {
            std::os::unix::fs::symlink(target, base.join(name)).expect("symlink");
        }
        // Of this mount there is nothing but its line in the table: a look at what lies on it would say that it is missing.
        let line = format!("1 1 0:1 / / rw - ext4 x rw\n2 1 0:2 / {}/nfs rw - nfs4 s:/ rw\n", base.display());
        let table = mountinfo::parse(line.as_bytes());
        let resolve = |given: &str| resolve_in(&table, &base.join(given), &|path| may_hang(&table, path));
        for (given, found) in [("link", "a/hot"), ("a/none", "a/none"), ("nfs", "nfs"), ("a/../nfs", "nfs")] {
            assert_eq!(resolve(given).ok(), Some(base.join(found)), "{given}");
        }
        for (given, found) in [
            ("nfs/deep", "nfs/deep"),
            ("nfs/deep/er", "nfs/deep/er"),
            ("into", "nfs/deep"),
            ("into/er", "nfs/deep/er"),
            ("into/e/r", "nfs/deep/e/r"),
            ("a/../nfs/deep", "nfs/deep"),
        ] {
            assert_eq!(resolve(given).ok(), Some(base.join(found)), "{given}");
        }
        for given in ["through", "nfs/../a/hot", "into/../x"] {
            let refused = resolve(given).err().map(|error| error.kind());
            assert_eq!(refused, Some(io::ErrorKind::WouldBlock), "{given}");
        }
        let rootless = mountinfo::parse(b"1 1 0:1 / / rw - fuse.fuse-overlayfs x rw\n");
        assert!(!may_hang(&rootless, &base), "or it would find nothing in such a container");
    }

    #[test]
    fn root_follows_no_link_of_somebody_else() {
        let dir = tempfile::tempdir().expect("tempdir");
        let base = dir.path().canonicalize().expect("real path");
        std::fs::create_dir_all(base.join("a/hot")).expect("mkdir");
        for (name, target) in [("theirs", "a"), ("last", "a/hot")] {
            std::os::unix::fs::symlink(target, base.join(name)).expect("symlink");
            std::os::unix::fs::lchown(base.join(name), Some(65534), None).expect("root may");
        }
        for given in ["theirs/hot", "last", "a/../theirs/hot"] {
            let Err(MountError::Mount(text)) = resolve(&base.join(given)) else { panic!("{given} is followed") };
            assert!(text.contains("is a link that is not root's"), "{text}");
        }
    }

    #[test]
    fn mounts_are_known_without_a_look_at_them() {
        assert_eq!(resolve(Path::new("/proc")), Ok("/proc".into()));
        let Err(MountError::Mount(text)) = check(Path::new("/proc"), true) else { panic!("/proc can be mounted on") };
        assert!(text.starts_with("/proc is already mounted ("), "{text}");
    }

    #[test]
    fn a_source_must_not_contain_its_mountpoint() {
        let dir = tempfile::tempdir().expect("tempdir");
        let base = dir.path().canonicalize().expect("real path");
        for name in ["a/in", "b"] {
            std::fs::create_dir_all(base.join(name)).expect("mkdir");
        }
        let check = |source: &str, place: &str| check_source(&base.join(source), &base.join(place));
        assert!(check("a", "a").is_err() && check("a", "a/in").is_err() && check("a/in", "a").is_err());
        assert_eq!(check("a", "b"), Ok(()));
        assert!(check("none", "b").is_err());
    }
}
