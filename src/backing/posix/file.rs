//! One open file.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::FallocateFlags;
use nix::unistd::Whence;

use super::{Stop, convert, retry};
use crate::backing::{Attr, File, OpResult};

/// A [`File`] that is a descriptor of this process. Dropping it is close(2), which may block as long as any other call
/// if the filesystem flushes then.
#[derive(Debug)]
pub struct PosixFile {
    fd: OwnedFd,
    stop: Stop,
}

impl PosixFile {
    pub(super) fn new(fd: OwnedFd, stop: Stop) -> Self {
        PosixFile { fd, stop }
    }

    /// Of no tree: one that somebody else had opened.
    pub fn inherited(fd: OwnedFd) -> Self {
        PosixFile { fd, stop: Stop::default() }
    }

    /// Attributes of a file on FUSE that has no name any more. The kernel asks by handle where it wants to know the size
    /// (fuse_file_llseek of its fs/fuse/file.c), and remembers all that it is told. Nobody uses the position.
    fn stat_by_handle(&self) -> OpResult<Attr> {
        retry(|| nix::unistd::lseek(&self.fd, 0, Whence::SeekEnd))?;
        let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
        // SAFETY: a structure of numbers, for which zeros are values.
        let mut found: libc::statx = unsafe { std::mem::zeroed() };
        retry(|| {
            // SAFETY: an open descriptor, a literal with its NUL, and a structure that outlives the call.
            let done = unsafe {
                libc::statx(self.fd.as_raw_fd(), c"".as_ptr(), flags, libc::STATX_BASIC_STATS, &raw mut found)
            };
            Errno::result(done)
        })?;
        Ok(convert::attr_of_statx(&found))
    }
}

impl File for PosixFile {
    fn stat(&self) -> OpResult<Attr> {
        self.stop.check()?;
        match retry(|| nix::sys::stat::fstat(&self.fd)) {
            // FUSE looks by name, which somebody may have taken from it on the server.
            Err(Errno::ENOENT | Errno::ESTALE) => self.stat_by_handle(),
            result => result.map(|stat| convert::attr(&stat)),
        }
    }

    /// An error after a part was read is an error for all of it: a short read would mean the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> OpResult<usize> {
        let start = convert::offset(offset)?;
        let mut done = 0;
        // Once at least: to read nothing of a directory is an error too.
        loop {
            self.stop.check()?;
            let at = start.checked_add(done as i64).ok_or(Errno::EINVAL)?;
            done += match retry(|| nix::sys::uio::pread(&self.fd, &mut buf[done..], at))? {
                0 => return Ok(done),
                length => length,
            };
            if done == buf.len() {
                return Ok(done);
            }
        }
    }

    fn write_at(&self, data: &[u8], offset: u64) -> OpResult<usize> {
        self.stop.check()?;
        let offset = convert::offset(offset)?;
        retry(|| nix::sys::uio::pwrite(&self.fd, data, offset))
    }

    fn sync(&self, data_only: bool) -> OpResult<()> {
        self.stop.check()?;
        if data_only { retry(|| nix::unistd::fdatasync(&self.fd)) } else { retry(|| nix::unistd::fsync(&self.fd)) }
    }

    fn set_size(&self, size: u64) -> OpResult<()> {
        self.stop.check()?;
        let size = convert::offset(size)?;
        retry(|| nix::unistd::ftruncate(&self.fd, size))
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> OpResult<()> {
        self.stop.check()?;
        let (offset, len) = (convert::offset(offset)?, convert::offset(len)?);
        let mode = FallocateFlags::from_bits_retain(mode);
        retry(|| nix::fcntl::fallocate(&self.fd, mode, offset, len))
    }

    fn seek(&self, offset: i64, whence: i32) -> OpResult<i64> {
        self.stop.check()?;
        let whence = match whence {
            libc::SEEK_SET => Whence::SeekSet,
            libc::SEEK_CUR => Whence::SeekCur,
            libc::SEEK_END => Whence::SeekEnd,
            libc::SEEK_DATA => Whence::SeekData,
            libc::SEEK_HOLE => Whence::SeekHole,
            _ => return Err(Errno::EINVAL),
        };
        retry(|| nix::unistd::lseek(&self.fd, offset, whence))
    }

    fn copy_to(&self, offset: u64, to: &dyn File, to_offset: u64, len: u64) -> OpResult<usize> {
        self.stop.check()?;
        let to = to.as_raw_fd().ok_or(Errno::EOPNOTSUPP)?;
        let (from_at, to_at) = (convert::offset(offset)?, convert::offset(to_offset)?);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        retry(|| {
            // The kernel moves the offsets, so each try has its own.
            let (mut from_at, mut to_at) = (from_at, to_at);
            // SAFETY: both descriptors belong to files borrowed for the whole call, the offsets are locals.
            let done = unsafe { libc::copy_file_range(self.fd.as_raw_fd(), &mut from_at, to, &mut to_at, len, 0) };
            Errno::result(done).map(|n| usize::try_from(n).unwrap_or(0))
        })
    }

    fn as_raw_fd(&self) -> Option<i32> {
        Some(self.fd.as_raw_fd())
    }
}
