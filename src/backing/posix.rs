//! Plain POSIX calls below one root descriptor: the [`Tree`] of every backing that is a directory here.
//!
//! Every path is resolved with openat2(2) below the root (`posix/resolve.rs`): no symbolic link is followed, no magic
//! link is taken and nothing outside the root is reached, whatever is swapped while a path is walked. Mutations act on
//! an O_PATH descriptor of the parent and the last name. Errors are the backing's own errno; paths that could only be
//! an attempt to leave the root (`..`, absolute) give EXDEV, as openat2 does.
//!
//! Modes are used as they come: the process must run with umask 0, since the kernel's FUSE has applied the caller's.
//! `/proc` must be mounted; attributes by descriptor go through `/proc/self/fd` where the kernel has nothing better.

mod convert;
pub(crate) mod dirents;
mod file;
mod nameless;
mod resolve;
mod xattr;

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags};
use nix::unistd::{Gid, Uid, UnlinkatFlags};

use super::{Attr, DirEntry, File, FlagsRequest, OpResult, SetTime, StatFs, Tree};

pub use file::PosixFile;
pub use nameless::Nameless;

/// Repeats a call that a signal broke off (EINTR); nobody sends steadfs signals in order to interrupt a call.
fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> OpResult<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => continue,
            done => return done,
        }
    }
}

/// Tells a tree and its files to refuse calls; see [`PosixTree::stop`].
#[derive(Debug, Clone, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn check(&self) -> OpResult<()> {
        if self.0.load(Ordering::Acquire) { Err(Errno::ECONNABORTED) } else { Ok(()) }
    }
}

/// A directory tree below an open root.
#[derive(Debug)]
pub struct PosixTree {
    root: OwnedFd,
    stop: Stop,
}

impl PosixTree {
    /// A tree below `root`, a descriptor of a directory (O_PATH is enough).
    pub fn new(root: OwnedFd) -> Self {
        PosixTree { root, stop: Stop::default() }
    }

    /// Makes every call that begins from now on, on the tree and on its open files, fail with ECONNABORTED. Does
    /// nothing to calls that are inside the kernel. Never blocks.
    pub fn stop(&self) {
        self.stop.0.store(true, Ordering::Release);
    }

    /// The root descriptor.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    fn file(&self, fd: OwnedFd) -> Box<dyn File> {
        Box::new(PosixFile::new(fd, self.stop.clone()))
    }

    /// Opens a file for data.
    fn open_data(&self, path: &Path, flags: i32, mode: Mode) -> OpResult<OwnedFd> {
        let flags = data_flags(flags) | OFlag::O_NOFOLLOW;
        // A fifo that somebody has put there must not block; a lease (EAGAIN) is worth waiting for.
        match self.open_at(path, flags | OFlag::O_NONBLOCK, mode) {
            Err(Errno::EAGAIN) => self.open_at(path, flags, mode),
            done => done,
        }
    }
}

/// Flags to open a file for data with. FUSE hands on flags that openat2 would refuse (such as the kernel's own mark for execve), so
/// only those that mean something here are kept. Not O_APPEND: a write has an offset of its own, and could not be repeated
/// otherwise. Not O_DIRECT: nobody aligns our buffers.
fn data_flags(flags: i32) -> OFlag {
    let kept = OFlag::O_ACCMODE
        | OFlag::O_TRUNC
        | OFlag::O_CREAT
        | OFlag::O_EXCL
        | OFlag::O_SYNC
        | OFlag::O_DSYNC
        | OFlag::O_NOATIME
        | OFlag::O_DIRECTORY;
    (OFlag::from_bits_retain(flags) & kept) | OFlag::O_NOCTTY
}

/// fchmodat2(2) is missing before Linux 6.6: 0 not known yet, 1 there, 2 missing.
static FCHMODAT2: AtomicU8 = AtomicU8::new(0);

fn chmod_by_descriptor(fd: &OwnedFd, mode: Mode) -> OpResult<()> {
    if FCHMODAT2.load(Ordering::Relaxed) != 2 {
        match retry(|| fchmodat2(fd, mode)) {
            Err(Errno::ENOSYS) => FCHMODAT2.store(2, Ordering::Relaxed),
            // Old seccomp filters say EPERM for calls they do not know; the other way then tells.
            Err(Errno::EPERM) if FCHMODAT2.load(Ordering::Relaxed) == 0 => {}
            done => {
                FCHMODAT2.store(1, Ordering::Relaxed);
                return done;
            }
        }
    }
    chmod_by_proc(fd, mode)
}

fn fchmodat2(fd: &OwnedFd, mode: Mode) -> nix::Result<()> {
    // SAFETY: the descriptor is open, the path is a literal with its NUL, the rest are plain numbers.
    let done =
        unsafe { libc::syscall(libc::SYS_fchmodat2, fd.as_raw_fd(), c"".as_ptr(), mode.bits(), libc::AT_EMPTY_PATH) };
    Errno::result(done).map(drop)
}

fn chmod_by_proc(fd: &OwnedFd, mode: Mode) -> OpResult<()> {
    let stat = retry(|| nix::sys::stat::fstat(fd))?;
    // Before 6.6 some filesystems change the mode of a link and say EOPNOTSUPP all the same.
    if SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT) == SFlag::S_IFLNK {
        return Err(Errno::EOPNOTSUPP);
    }
    let link = proc_link(fd);
    retry(|| nix::sys::stat::fchmodat(AT_FDCWD, link.as_str(), mode, FchmodatFlags::FollowSymlink))
}

/// A name for what a descriptor is open on, for calls that take no O_PATH descriptor. It leads to that very file.
fn proc_link(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Permission bits of a mode, type bits dropped.
fn permissions(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode & 0o7777)
}

impl Tree for PosixTree {
    fn stat(&self, path: &Path) -> OpResult<Attr> {
        let spot = self.spot(path)?;
        retry(|| nix::sys::stat::fstatat(spot.parent(), spot.name, AtFlags::AT_SYMLINK_NOFOLLOW))
            .map(|stat| convert::attr(&stat))
    }

    fn set_mode(&self, path: &Path, mode: u32) -> OpResult<()> {
        let fd = self.open_at(path, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())?;
        chmod_by_descriptor(&fd, permissions(mode))
    }

    fn set_owner(&self, path: &Path, uid: Option<u32>, gid: Option<u32>) -> OpResult<()> {
        let spot = self.spot(path)?;
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        retry(|| nix::unistd::fchownat(spot.parent(), spot.name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW))
    }

    fn set_size(&self, path: &Path, size: u64) -> OpResult<()> {
        let size = convert::offset(size)?;
        let fd = self.open_at(path, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())?;
        // One call instead of open, ftruncate and close; on a link it is EINVAL, since the descriptor is the link.
        let link = proc_link(&fd);
        retry(|| nix::unistd::truncate(link.as_str(), size))
    }

    fn set_times(&self, path: &Path, atime: SetTime, mtime: SetTime) -> OpResult<()> {
        let spot = self.spot(path)?;
        let (atime, mtime) = (convert::time_to_set(atime), convert::time_to_set(mtime));
        let flags = UtimensatFlags::NoFollowSymlink;
        retry(|| nix::sys::stat::utimensat(spot.parent(), spot.name, &atime, &mtime, flags))
    }

    fn read_link(&self, path: &Path) -> OpResult<OsString> {
        let spot = self.spot(path)?;
        retry(|| nix::fcntl::readlinkat(spot.parent(), spot.name))
    }

    fn mknod(&self, path: &Path, mode: u32, rdev: u32) -> OpResult<()> {
        let spot = self.spot(path)?;
        let kind = SFlag::from_bits_truncate(mode & libc::S_IFMT);
        retry(|| nix::sys::stat::mknodat(spot.parent(), spot.name, kind, permissions(mode), u64::from(rdev)))
    }

    fn mkdir(&self, path: &Path, mode: u32) -> OpResult<()> {
        let spot = self.spot(path)?;
        retry(|| nix::sys::stat::mkdirat(spot.parent(), spot.name, permissions(mode)))
    }

    fn unlink(&self, path: &Path) -> OpResult<()> {
        let spot = self.spot(path)?;
        retry(|| nix::unistd::unlinkat(spot.parent(), spot.name, UnlinkatFlags::NoRemoveDir))
    }

    fn rmdir(&self, path: &Path) -> OpResult<()> {
        let spot = self.spot(path)?;
        retry(|| nix::unistd::unlinkat(spot.parent(), spot.name, UnlinkatFlags::RemoveDir))
    }

    fn symlink(&self, target: &OsStr, path: &Path) -> OpResult<()> {
        let spot = self.spot(path)?;
        retry(|| nix::unistd::symlinkat(target, spot.parent(), spot.name))
    }

    fn link(&self, from: &Path, to: &Path) -> OpResult<()> {
        let (from, to) = (self.spot(from)?, self.spot(to)?);
        retry(|| nix::unistd::linkat(from.parent(), from.name, to.parent(), to.name, AtFlags::empty()))
    }

    fn rename(&self, from: &Path, to: &Path, flags: u32) -> OpResult<()> {
        let (from, to) = (self.spot(from)?, self.spot(to)?);
        let flags = RenameFlags::from_bits_retain(flags);
        retry(|| nix::fcntl::renameat2(from.parent(), from.name, to.parent(), to.name, flags))
    }

    fn open(&self, path: &Path, flags: i32) -> OpResult<Box<dyn File>> {
        // O_EXCL means nothing to a file that exists, and openat2 refuses a mode without O_CREAT.
        let fd = self.open_data(path, flags & !(libc::O_CREAT | libc::O_EXCL), Mode::empty())?;
        Ok(self.file(fd))
    }

    fn open_again(&self, file: &dyn File, flags: i32) -> OpResult<Box<dyn File>> {
        self.stop.check()?;
        let fd = file.as_raw_fd().ok_or(Errno::ENOENT)?;
        let flags = data_flags(flags & !(libc::O_CREAT | libc::O_EXCL)) | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let link = format!("/proc/self/fd/{fd}");
        let fd = retry(|| nix::fcntl::open(link.as_str(), flags, Mode::empty()))?;
        Ok(self.file(fd))
    }

    fn flags(&self, path: &Path, request: FlagsRequest, data: &mut [u8]) -> OpResult<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY;
        let fd = self.open_at(path, flags, Mode::empty())?;
        if data.len() < request.size() {
            return Err(Errno::EINVAL);
        }
        retry(|| {
            // SAFETY: the number is one of five, each of which moves no more bytes than `size` says; the buffer has these.
            let result = unsafe { libc::ioctl(fd.as_raw_fd(), request.number().into(), data.as_mut_ptr()) };
            Errno::result(result).map(drop)
        })
    }

    fn create(&self, path: &Path, flags: i32, mode: u32) -> OpResult<Box<dyn File>> {
        let fd = self.open_data(path, flags | libc::O_CREAT, permissions(mode))?;
        Ok(self.file(fd))
    }

    fn read_dir(&self, path: &Path) -> OpResult<Vec<DirEntry>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let fd = self.open_at(path, flags, Mode::empty())?;
        dirents::read_all(&fd)
    }

    fn read_dir_quietly(&self, path: &Path) -> OpResult<Vec<DirEntry>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOATIME;
        match self.open_at(path, flags, Mode::empty()) {
            // The caller may do so, and whom the daemon runs as may not.
            Err(Errno::EPERM) => self.read_dir(path),
            fd => dirents::read_all(&fd?),
        }
    }

    fn sync_dir(&self, path: &Path) -> OpResult<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let fd = self.open_at(path, flags, Mode::empty())?;
        retry(|| nix::unistd::fsync(&fd))
    }

    fn stat_fs(&self) -> OpResult<StatFs> {
        self.stop.check()?;
        retry(|| nix::sys::statvfs::fstatvfs(self.root.as_fd())).map(|figures| convert::stat_fs(&figures))
    }

    fn get_xattr(&self, path: &Path, name: &OsStr) -> OpResult<Vec<u8>> {
        xattr::get(&self.open_at(path, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())?, name)
    }

    fn list_xattr(&self, path: &Path) -> OpResult<Vec<u8>> {
        xattr::list(&self.open_at(path, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())?)
    }

    fn set_xattr(&self, path: &Path, name: &OsStr, value: &[u8], flags: i32) -> OpResult<()> {
        xattr::set(&self.open_at(path, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())?, name, value, flags)
    }

    fn remove_xattr(&self, path: &Path, name: &OsStr) -> OpResult<()> {
        xattr::remove(&self.open_at(path, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())?, name)
    }
}

#[cfg(test)]
mod tests;
