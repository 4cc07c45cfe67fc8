//! The directory that is mounted over, held by a descriptor. Whoever may write to one of its parents can put another
//! directory, or a link, in its place at any moment; the mount is made on what was checked, wherever the path leads then.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::fstat;

use crate::backing::unmount;
use crate::daemon::MountError;

/// See the module.
pub(super) struct Spot {
    directory: OwnedFd,
}

impl Spot {
    /// The directory at `path`, which must be canonical: a link in it is an error. It must be the one with that st_dev and
    /// st_ino, if they are given.
    pub fn open(path: &Path, checked: Option<(u64, u64)>) -> Result<Spot, MountError> {
        let fail = |errno: Errno| match errno {
            Errno::ELOOP | Errno::ENOTDIR => swapped(path),
            _ => MountError::Mount(format!("{}: {}", path.display(), errno.desc())),
        };
        let directory = unmount::hold(path).map_err(fail)?;
        let found = fstat(&directory).map_err(fail)?;
        if checked.is_some_and(|checked| checked != (found.st_dev, found.st_ino)) {
            return Err(swapped(path));
        }
        Ok(Spot { directory })
    }

    /// A name for it that leads nowhere else.
    pub fn name(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.directory.as_raw_fd()).into()
    }

    /// Where it is now.
    pub fn place(&self) -> std::io::Result<PathBuf> {
        std::fs::read_link(self.name())
    }
}

/// What is said when somebody is in the way.
pub(super) fn swapped(path: &Path) -> MountError {
    MountError::Mount(format!(
        "{} is no longer the directory that was checked: somebody replaced it or a directory above it; mount below \
         directories that others cannot write to",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn another_directory_and_a_link_are_not_what_was_checked() {
        let dir = tempfile::tempdir().expect("a directory");
        let base = dir.path().canonicalize().expect("real");
        std::fs::create_dir_all(base.join("a/hot")).expect("made");
        std::fs::create_dir_all(base.join("b/hot")).expect("made");
        let hot = base.join("a/hot");
        let found = std::fs::metadata(&hot).expect("there");
        let checked = Some((found.dev(), found.ino()));
        let spot = Spot::open(&hot, checked).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(spot.place().expect("a place"), hot);
        std::fs::rename(base.join("a"), base.join("c")).expect("renamed");
        assert_eq!(spot.place().expect("a place"), base.join("c/hot"));
        std::os::unix::fs::symlink("c", base.join("a")).expect("linked");
        assert!(Spot::open(&hot, checked).is_err(), "a link in the path");
        std::fs::remove_file(base.join("a")).expect("removed");
        std::fs::rename(base.join("b"), base.join("a")).expect("renamed");
        assert!(Spot::open(&hot, checked).is_err(), "another directory");
        assert!(Spot::open(&hot, None).is_ok());
    }
}
