//! From a path to descriptors, never leaving the root (promise P5).

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::Mode;

use super::{PosixTree, retry};
use crate::backing::OpResult;

/// Longest path that one call takes: PATH_MAX of limits.h counts the final NUL.
const LONGEST: usize = libc::PATH_MAX as usize - 1;

/// Where a call on a name acts: a directory and a last name in it.
pub(super) struct Spot<'a> {
    root: BorrowedFd<'a>,
    /// `None` if the parent is the root.
    parent: Option<OwnedFd>,
    /// One name, or `.` for the root itself.
    pub name: &'a OsStr,
}

impl Spot<'_> {
    /// The directory that the name is in.
    pub fn parent(&self) -> BorrowedFd<'_> {
        self.parent.as_ref().map_or(self.root, |fd| fd.as_fd())
    }
}

impl PosixTree {
    /// The parent and the last name of `path`; the parent is opened, the name is not looked at.
    pub(super) fn spot<'a>(&'a self, path: &'a Path) -> OpResult<Spot<'a>> {
        self.stop.check()?;
        check(path)?;
        let root = self.root.as_fd();
        let Some(name) = path.file_name() else {
            return Ok(Spot { root, parent: None, name: OsStr::new(".") });
        };
        let above = path.parent().unwrap_or(Path::new(""));
        let parent = if above.as_os_str().is_empty() { None } else { Some(self.open_directory(root, above)?) };
        Ok(Spot { root, parent, name })
    }

    /// openat2(2) of `path` below the root.
    pub(super) fn open_at(&self, path: &Path, flags: OFlag, mode: Mode) -> OpResult<OwnedFd> {
        self.stop.check()?;
        check(path)?;
        let root = self.root.as_fd();
        if path.as_os_str().is_empty() {
            return open_beneath(root, Path::new("."), flags, mode);
        }
        if path.as_os_str().len() <= LONGEST {
            return open_beneath(root, path, flags, mode);
        }
        let spot = self.spot(path)?;
        open_beneath(spot.parent(), Path::new(spot.name), flags, mode)
    }

    /// An O_PATH descriptor of a directory (without O_NOFOLLOW, so that a link is ELOOP, not ENOTDIR), in as many steps as the length of the path asks for.
    fn open_directory(&self, root: BorrowedFd<'_>, path: &Path) -> OpResult<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        if path.as_os_str().len() <= LONGEST {
            return open_beneath(root, path, flags, Mode::empty());
        }
        let mut reached: Option<OwnedFd> = None;
        for step in steps(path) {
            let from = reached.as_ref().map_or(root, |fd| fd.as_fd());
            reached = Some(open_beneath(from, &step, flags, Mode::empty())?);
        }
        reached.ok_or(Errno::ENOENT)
    }
}

fn open_beneath(from: BorrowedFd<'_>, path: &Path, flags: OFlag, mode: Mode) -> OpResult<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(mode)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_SYMLINKS);
    retry(|| nix::fcntl::openat2(from, path, how))
}

/// Refuses what no name below the root can look like. `..` is refused even where it would stay inside: callers never
/// need it, and as a last name the *at calls would take it.
fn check(path: &Path) -> OpResult<()> {
    if path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(Errno::EXDEV);
    }
    // Otherwise it would look like some other path that ends at the NUL.
    if path.as_os_str().as_bytes().contains(&0) { Err(Errno::EINVAL) } else { Ok(()) }
}

/// Cuts a path into relative pieces that one call takes each; a single name may be longer still and gets ENAMETOOLONG.
fn steps(path: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut step = PathBuf::new();
    for name in path.components() {
        let more = name.as_os_str().len() + 1;
        if !step.as_os_str().is_empty() && step.as_os_str().len() + more > LONGEST {
            out.push(std::mem::take(&mut step));
        }
        step.push(name);
    }
    if !step.as_os_str().is_empty() {
        out.push(step);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn steps_join_to_the_path(lengths in proptest::collection::vec(1usize..600, 1..40)) {
            let path: PathBuf = lengths.iter().map(|&n| "x".repeat(n)).collect();
            let steps = steps(&path);
            prop_assert_eq!(steps.iter().collect::<PathBuf>(), path);
            prop_assert!(steps.iter().all(|s| s.as_os_str().len() <= LONGEST));
        }
    }

    #[test]
    fn refuses_ways_out() {
        for path in ["..", "a/..", "a/../b", "/", "/etc", "../x"] {
            assert_eq!(check(Path::new(path)), Err(Errno::EXDEV), "{path}");
        }
        assert_eq!(check(Path::new("a\0b")), Err(Errno::EINVAL));
        for path in ["", "a", "...", "a/b..", "\\x"] {
            assert_eq!(check(Path::new(path)), Ok(()), "{path}");
        }
    }
}
