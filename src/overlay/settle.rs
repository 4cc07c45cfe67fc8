//! Calls that may have been done by a generation before it died (`in doubt`) are settled by looking, not by repeating
//! blindly: the answer of the repetition is read in the light of what is there now.

use std::cell::Cell;
use std::ffi::OsStr;
use std::path::Path;

use nix::errno::Errno;

use crate::backing::{FileKind, OpResult, Tree};

/// Nobody can tell whether the call was done. Callers are told EIO, and an event says which call it was; no backing gives
/// this errno.
pub const UNSETTLED: Errno = Errno::ENOTRECOVERABLE;

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
        Err(Errno::EEXIST) if in_doubt => ours(seen(tree.stat(path))?.kind == kind),
        result => result,
    }
}

/// symlink: the same target says that it was us.
pub fn symlink(result: OpResult<()>, in_doubt: bool, tree: &dyn Tree, path: &Path, target: &OsStr) -> OpResult<()> {
    match result {
        Err(Errno::EEXIST) if in_doubt => match seen(tree.read_link(path)) {
            // No symlink at all.
            Err(Errno::EINVAL) => ours(false),
            found => ours(found? == target),
        },
        result => result,
    }
}

/// link: the same size and time say that it was us; no better sign crosses SFTP.
pub fn link(result: OpResult<()>, in_doubt: bool, tree: &dyn Tree, from: &Path, to: &Path) -> OpResult<()> {
    match result {
        Err(Errno::EEXIST) if in_doubt => {
            let (from, to) = (seen(tree.stat(from))?, seen(tree.stat(to))?);
            ours((from.kind, from.size, from.mtime) == (to.kind, to.size, to.mtime))
        }
        // There is nothing any more that the new name could be compared with.
        Err(Errno::ENOENT) if in_doubt => match tree.stat(to) {
            Ok(_) => Err(UNSETTLED),
            Err(error) => Err(error),
        },
        result => result,
    }
}

/// rename: the source is gone and the target is there.
pub fn rename(result: OpResult<()>, in_doubt: bool, tree: &dyn Tree, from: &Path, to: &Path) -> OpResult<()> {
    match result {
        Err(Errno::ENOENT) if in_doubt => match (tree.stat(from), tree.stat(to)) {
            (Err(Errno::ENOENT), Ok(_)) => Ok(()),
            (Err(Errno::ENOENT), Err(Errno::ENOENT)) => Err(UNSETTLED),
            (Err(error), _) | (_, Err(error)) if error != Errno::ENOENT => Err(error),
            _ => result,
        },
        result => result,
    }
}

/// rename with RENAME_EXCHANGE: twice is not at all, and nobody can tell which of the two it would be.
pub fn exchange(rename: impl FnOnce() -> OpResult<()>, in_doubt: bool) -> OpResult<()> {
    if in_doubt { Err(UNSETTLED) } else { rename() }
}

/// What was there a moment ago and is not any more says nothing.
fn seen<T>(result: OpResult<T>) -> OpResult<T> {
    result.map_err(|error| if error == Errno::ENOENT { UNSETTLED } else { error })
}

/// What is there was made by this call, or by somebody else.
fn ours(yes: bool) -> OpResult<()> {
    if yes { Ok(()) } else { Err(Errno::EEXIST) }
}

/// A call that may have been done before: in doubt, or because this very run finds that it was done to another file and
/// does it again.
pub struct Again(Cell<bool>);

impl Again {
    /// Of a call whose first run may not be the first.
    pub fn new(in_doubt: bool) -> Again {
        Again(Cell::new(in_doubt))
    }

    /// What a run comes to: `expected` is the error that its own success would have caused, if `done` finds it done.
    pub fn settle(&self, result: OpResult<()>, expected: Errno, done: impl FnOnce() -> OpResult<bool>) -> OpResult<()> {
        let again = self.0.replace(true);
        if again && result == Err(expected) && done()? { Ok(()) } else { result }
    }
}

#[cfg(test)]
mod tests;
