//! Calls that may have been done by a generation before it died (`in doubt`) are settled by looking, not by repeating
//! blindly: the answer of the repetition is read in the light of what is there now.

use std::ffi::OsStr;
use std::path::Path;

use nix::errno::Errno;

use crate::backing::{FileKind, OpResult, Tree};

/// unlink or rmdir: gone is what was wanted.
pub fn removal(result: OpResult<()>, in_doubt: bool) -> OpResult<()> {
    match result {
        Err(Errno::ENOENT) if in_doubt => Ok(()),
        result => result,
    }
}

/// mkdir or mknod: the kernel had looked before and found nothing, so what is there now was made by us.
pub fn making(result: OpResult<()>, in_doubt: bool, tree: &dyn Tree, path: &Path, kind: FileKind) -> OpResult<()> {
    match result {
        Err(Errno::EEXIST) if in_doubt && tree.stat(path)?.kind == kind => Ok(()),
        result => result,
    }
}

/// symlink: the same target says that it was us.
pub fn symlink(result: OpResult<()>, in_doubt: bool, tree: &dyn Tree, path: &Path, target: &OsStr) -> OpResult<()> {
    match result {
        Err(Errno::EEXIST) if in_doubt && tree.read_link(path)? == target => Ok(()),
        result => result,
    }
}

/// link: the same size and time say that it was us; no better sign crosses SFTP.
pub fn link(result: OpResult<()>, in_doubt: bool, tree: &dyn Tree, from: &Path, to: &Path) -> OpResult<()> {
    match result {
        Err(Errno::EEXIST) if in_doubt => {
            let (from, to) = (tree.stat(from)?, tree.stat(to)?);
            let same = (from.kind, from.size, from.mtime) == (to.kind, to.size, to.mtime);
            if same { Ok(()) } else { Err(Errno::EEXIST) }
        }
        result => result,
    }
}

/// rename: the source is gone and the target is there.
pub fn rename(result: OpResult<()>, in_doubt: bool, tree: &dyn Tree, from: &Path, to: &Path) -> OpResult<()> {
    match result {
        Err(Errno::ENOENT | Errno::EEXIST) if in_doubt => {
            if tree.stat(from) == Err(Errno::ENOENT) && tree.stat(to).is_ok() { Ok(()) } else { result }
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::posix::PosixTree;

    fn tree() -> (tempfile::TempDir, PosixTree) {
        let directory = tempfile::tempdir().expect("a directory");
        let root = std::fs::File::open(directory.path()).expect("it opens");
        (directory, PosixTree::new(root.into()))
    }

    #[test]
    fn gone_is_success_only_in_doubt() {
        assert_eq!(removal(Err(Errno::ENOENT), true), Ok(()));
        assert_eq!(removal(Err(Errno::ENOENT), false), Err(Errno::ENOENT));
        assert_eq!(removal(Err(Errno::ENOTEMPTY), true), Err(Errno::ENOTEMPTY));
    }

    #[test]
    fn what_exists_is_ours_only_if_it_is_of_the_kind() {
        let (_directory, tree) = tree();
        tree.mkdir(Path::new("d"), 0o755).expect("made");
        let exists = Err(Errno::EEXIST);
        assert_eq!(making(exists, true, &tree, Path::new("d"), FileKind::Directory), Ok(()));
        assert_eq!(making(exists, true, &tree, Path::new("d"), FileKind::Fifo), exists);
        assert_eq!(making(exists, false, &tree, Path::new("d"), FileKind::Directory), exists);
    }

    #[test]
    fn a_symlink_with_another_target_is_not_ours() {
        let (_directory, tree) = tree();
        tree.symlink(OsStr::new("here"), Path::new("s")).expect("made");
        let exists = Err(Errno::EEXIST);
        assert_eq!(symlink(exists, true, &tree, Path::new("s"), OsStr::new("here")), Ok(()));
        assert_eq!(symlink(exists, true, &tree, Path::new("s"), OsStr::new("there")), exists);
    }

    #[test]
    fn a_link_is_ours_if_it_is_the_same_file_as_far_as_can_be_seen() {
        let (directory, tree) = tree();
        std::fs::write(directory.path().join("f"), "four").expect("written");
        std::fs::write(directory.path().join("other"), "something else").expect("written");
        tree.link(Path::new("f"), Path::new("l")).expect("linked");
        let exists = Err(Errno::EEXIST);
        assert_eq!(link(exists, true, &tree, Path::new("f"), Path::new("l")), Ok(()));
        assert_eq!(link(exists, true, &tree, Path::new("f"), Path::new("other")), exists);
    }

    #[test]
    fn a_rename_is_done_when_only_the_target_is_there() {
        let (directory, tree) = tree();
        std::fs::write(directory.path().join("to"), "").expect("written");
        let missing = Err(Errno::ENOENT);
        assert_eq!(rename(missing, true, &tree, Path::new("from"), Path::new("to")), Ok(()));
        assert_eq!(rename(missing, true, &tree, Path::new("from"), Path::new("nowhere")), missing);
        assert_eq!(rename(missing, false, &tree, Path::new("from"), Path::new("to")), missing);
    }
}
