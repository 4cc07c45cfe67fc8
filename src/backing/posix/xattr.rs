//! Extended attributes of what an O_PATH descriptor is open on. The descriptor itself cannot be asked (EBADF), its name
//! in `/proc/self/fd` can, and a symbolic link is then meant itself, as with lgetxattr(2).

use std::ffi::{CString, OsStr};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;

use super::{proc_link, retry};
use crate::backing::OpResult;

/// What most values fit into, in bytes.
const USUAL: usize = 4096;
/// XATTR_SIZE_MAX and XATTR_LIST_MAX of linux/limits.h, in bytes.
const LARGEST: usize = 65536;

pub(super) fn get(fd: &impl AsRawFd, name: &OsStr) -> OpResult<Vec<u8>> {
    let (path, name) = (c_path(fd)?, c_name(name)?);
    fill(|buffer| {
        // SAFETY: both strings end with NUL, and at most `buffer.len()` bytes are written to the buffer.
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    })
}

pub(super) fn list(fd: &impl AsRawFd) -> OpResult<Vec<u8>> {
    let path = c_path(fd)?;
    fill(|buffer| {
        // SAFETY: the path ends with NUL, and at most `buffer.len()` bytes are written to the buffer.
        unsafe { libc::listxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    })
}

pub(super) fn set(fd: &impl AsRawFd, name: &OsStr, value: &[u8], flags: i32) -> OpResult<()> {
    let (path, name) = (c_path(fd)?, c_name(name)?);
    retry(|| {
        // SAFETY: both strings end with NUL, and `value.len()` bytes can be read from the value.
        let done = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
        Errno::result(done).map(drop)
    })
}

pub(super) fn remove(fd: &impl AsRawFd, name: &OsStr) -> OpResult<()> {
    let (path, name) = (c_path(fd)?, c_name(name)?);
    // SAFETY: both strings end with NUL.
    retry(|| Errno::result(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }).map(drop))
}

/// Calls with a buffer of the usual size, and once more with the largest there can be.
fn fill(call: impl Fn(&mut [u8]) -> isize) -> OpResult<Vec<u8>> {
    let mut buffer = vec![0u8; USUAL];
    let length = match retry(|| Errno::result(call(&mut buffer))) {
        Err(Errno::ERANGE) => {
            buffer.resize(LARGEST, 0);
            retry(|| Errno::result(call(&mut buffer)))?
        }
        done => done?,
    };
    buffer.truncate(usize::try_from(length).unwrap_or(0));
    Ok(buffer)
}

fn c_path(fd: &impl AsRawFd) -> OpResult<CString> {
    CString::new(proc_link(fd)).map_err(|_| Errno::EINVAL)
}

fn c_name(name: &OsStr) -> OpResult<CString> {
    CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)
}
