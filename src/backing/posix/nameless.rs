//! Calls on a file that is open and may have no name any more, which a path cannot reach.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;

use nix::sys::stat::{fchmod, futimens};
use nix::unistd::{Gid, Uid, fchown};

use super::{convert, permissions, retry, xattr};
use crate::backing::{File, OpResult, SetTime};

/// An open file; its methods do what those of [`crate::backing::Tree`] do by path.
pub struct Nameless<'a>(BorrowedFd<'a>);

impl<'a> Nameless<'a> {
    /// The file, if there is a descriptor behind it and its generation still takes calls.
    pub fn of(file: &'a dyn File) -> OpResult<Option<Nameless<'a>>> {
        file.stat()?;
        // SAFETY: the file keeps its descriptor open for as long as it is borrowed.
        Ok(file.as_raw_fd().map(|fd| Nameless(unsafe { BorrowedFd::borrow_raw(fd) })))
    }

    /// fchmod(2).
    pub fn set_mode(&self, mode: u32) -> OpResult<()> {
        retry(|| fchmod(self.0, permissions(mode)))
    }

    /// fchown(2).
    pub fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> OpResult<()> {
        retry(|| fchown(self.0, uid.map(Uid::from_raw), gid.map(Gid::from_raw)))
    }

    /// futimens(3).
    pub fn set_times(&self, atime: SetTime, mtime: SetTime) -> OpResult<()> {
        retry(|| futimens(self.0, &convert::time_to_set(atime), &convert::time_to_set(mtime)))
    }

    /// fgetxattr(2).
    pub fn get_xattr(&self, name: &OsStr) -> OpResult<Vec<u8>> {
        xattr::get(&self.0, name)
    }

    /// flistxattr(2).
    pub fn list_xattr(&self) -> OpResult<Vec<u8>> {
        xattr::list(&self.0)
    }

    /// fsetxattr(2).
    pub fn set_xattr(&self, name: &OsStr, value: &[u8], flags: i32) -> OpResult<()> {
        xattr::set(&self.0, name, value, flags)
    }

    /// fremovexattr(2).
    pub fn remove_xattr(&self, name: &OsStr) -> OpResult<()> {
        xattr::remove(&self.0, name)
    }
}
