//! The remote directory, reached through one generation at a time.
//!
//! A [`Backing`] starts [`Generation`]s; a generation offers a [`Tree`] of plain POSIX calls below its root and is thrown
//! away whole when it dies. Calls of [`Tree`] and [`File`] may block for as long as the backing likes: the gate gives
//! them deadlines, [`Generation::abort`] gets them out.

pub mod dir;
pub mod fake;
pub mod mountinfo;
pub mod posix;
pub mod process;
pub mod record;
pub mod sshfs;
pub mod types;
pub(crate) mod unmount;

use std::ffi::{OsStr, OsString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

pub use record::{AdoptError, Record};
pub use types::{Attr, DirEntry, FileKind, FlagsRequest, SetTime, StatFs};

/// Result of one call into the backing; the error is the errno that the backing gave.
pub type OpResult<T> = Result<T, Errno>;

/// What a kind of backing can be relied on for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// (st_dev, st_ino) identify a file for as long as it exists, across generations: only a filesystem of this machine.
    pub stable_inodes: bool,
    /// A descriptor of an unlinked file stays good without a hidden name.
    pub keeps_unlinked: bool,
    /// Files can be given to the caller with chown.
    pub owners: bool,
    /// A write returns before the server has seen the data.
    pub asynchronous: bool,
    /// How old what it says of names and attributes may be.
    pub remembers: Duration,
}

/// Why a generation did not come up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// Worth trying again: unreachable, refused, reset, timed out. The text says which.
    #[error("{0}")]
    Unreachable(String),
    /// As `Unreachable`, but nobody said so: the link fell silent in the middle. Worth trying as soon as it is back.
    #[error("{0}")]
    Silent(String),
    /// Trying again changes nothing until somebody acts: refused key, unknown host key. ssh's own words.
    #[error("{0}")]
    Refused(String),
    /// The machine here lacks something: sshfs not installed, no /dev/fuse, bad option, no such remote directory.
    #[error("{0}")]
    Local(String),
}

/// A process of a generation ended. Sent at once, from the thread that reaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessExit {
    /// The generation it belonged to.
    pub generation: u64,
    /// Its pid and how it ended, in words.
    pub what: String,
}

/// Called by a generation when one of its processes ends. Never blocks.
pub type ExitSink = Arc<dyn Fn(ProcessExit) + Send + Sync>;

/// Signs of life that can be read without calling into the backing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vitals {
    /// When bytes were last seen to move on the link (see `backing/sshfs/link.rs` for what counts).
    pub progress_at: Option<Instant>,
    /// A process of the generation is stopped (state T), so it cannot answer.
    pub stopped: bool,
    /// The peer's kernel has acknowledged all we sent: the link works, whatever the server process does.
    pub link_acked: bool,
}

/// A remote directory and the way to it.
pub trait Backing: Send + Sync {
    /// What may be relied on.
    fn traits(&self) -> Traits;

    /// A cheap look whether a start is worth trying, without a login. Returns within `limit`.
    fn reach(&self, limit: Duration) -> Result<(), String>;

    /// Starts generation `number` and returns when it has answered a probe, or within about `limit`.
    /// After an error nothing of it is left.
    fn start(&self, number: u64, limit: Duration, exits: ExitSink) -> Result<Arc<dyn Generation>, StartError>;

    /// Takes over the generation that a daemon which is dead has left alive, with its root if somebody has kept that, and
    /// returns when it has answered a probe within `limit`. If anything speaks against it, it is aborted and removed as in
    /// a repair, so that it never lives beside the next one. Nothing that the dead daemon had sent comes after what is
    /// sent through what is returned; but how it ended was told to nobody, so what no fsync had committed is to be written
    /// again, as into a new generation.
    fn adopt(
        &self,
        _record: &Record,
        _root: Option<OwnedFd>,
        _limit: Duration,
        _exits: ExitSink,
    ) -> Result<Arc<dyn Generation>, AdoptError> {
        Err(AdoptError::Other("this backing has nothing to take over".into()))
    }

    /// Makes a [`Backing::start`] that is under way in another thread give up soon. No start follows.
    fn cancel_start(&self) {}
}

/// One life of the backing.
pub trait Generation: Send + Sync {
    /// Its number, 1 for the first.
    fn number(&self) -> u64;

    /// Its calls. They may block without limit.
    fn tree(&self) -> &dyn Tree;

    /// Asks the server something no cache can answer. May block without limit: call it in a thread that can be lost.
    fn probe(&self) -> OpResult<StatFs>;

    /// Signs of life. Never blocks.
    fn vitals(&self) -> Vitals;

    /// Bytes that have passed by what stands between it and its server, a number that only grows; `None` if nobody counts
    /// them. Never blocks.
    fn moved_bytes(&self) -> Option<u64> {
        None
    }

    /// Makes every call inside return with an error, now and for ever. Never blocks.
    fn abort(&self);

    /// What a successor needs to take it over; `None` if it cannot be taken over. Looks at processes, never into the
    /// backing.
    fn record(&self) -> Option<Record> {
        None
    }

    /// Its root, to be kept for a successor: O_PATH, so that whoever keeps it cannot hang on it.
    fn root(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// After [`Generation::abort`]: kills and reaps processes, detaches the mount, removes the private directory.
    /// Returns within a few seconds; the error says what had to be left behind.
    fn retire(&self) -> Result<(), String>;
}

/// The calls of one generation. Paths are relative to its root; the empty path is the root. No symbolic link is ever
/// followed and nothing outside the root is ever reached (promise P5).
pub trait Tree: Send + Sync {
    /// lstat(2).
    fn stat(&self, path: &Path) -> OpResult<Attr>;
    /// chmod(2).
    fn set_mode(&self, path: &Path, mode: u32) -> OpResult<()>;
    /// lchown(2); `None` leaves an id as it is.
    fn set_owner(&self, path: &Path, uid: Option<u32>, gid: Option<u32>) -> OpResult<()>;
    /// truncate(2).
    fn set_size(&self, path: &Path, size: u64) -> OpResult<()>;
    /// utimensat(2) with AT_SYMLINK_NOFOLLOW.
    fn set_times(&self, path: &Path, atime: SetTime, mtime: SetTime) -> OpResult<()>;
    /// readlink(2).
    fn read_link(&self, path: &Path) -> OpResult<OsString>;
    /// mknod(2); `mode` has the file type.
    fn mknod(&self, path: &Path, mode: u32, rdev: u32) -> OpResult<()>;
    /// mkdir(2).
    fn mkdir(&self, path: &Path, mode: u32) -> OpResult<()>;
    /// unlink(2).
    fn unlink(&self, path: &Path) -> OpResult<()>;
    /// rmdir(2).
    fn rmdir(&self, path: &Path) -> OpResult<()>;
    /// symlink(2).
    fn symlink(&self, target: &OsStr, path: &Path) -> OpResult<()>;
    /// link(2).
    fn link(&self, from: &Path, to: &Path) -> OpResult<()>;
    /// renameat2(2) with its flags.
    fn rename(&self, from: &Path, to: &Path, flags: u32) -> OpResult<()>;
    /// open(2) of an existing file, with the flags given.
    fn open(&self, path: &Path, flags: i32) -> OpResult<Box<dyn File>>;
    /// open(2) of a file that is open already and may have lost its name, with the flags given. ENOENT where that cannot be.
    fn open_again(&self, _file: &dyn File, _flags: i32) -> OpResult<Box<dyn File>> {
        Err(Errno::ENOENT)
    }
    /// Reads or changes the flags of a file (ioctl_iflags(2), and the same of XFS): `request` is the ioctl's number, `data`
    /// what goes in and out. ENOTTY where there are none.
    fn flags(&self, _path: &Path, _request: FlagsRequest, _data: &mut [u8]) -> OpResult<()> {
        Err(Errno::ENOTTY)
    }
    /// open(2) with O_CREAT added.
    fn create(&self, path: &Path, flags: i32, mode: u32) -> OpResult<Box<dyn File>>;
    /// All entries but `.` and `..`, in the backing's order.
    fn read_dir(&self, path: &Path) -> OpResult<Vec<DirEntry>>;
    /// The same without leaving a time of access (O_NOATIME), where that is possible.
    fn read_dir_quietly(&self, path: &Path) -> OpResult<Vec<DirEntry>> {
        self.read_dir(path)
    }
    /// fsync(2) of a directory.
    fn sync_dir(&self, path: &Path) -> OpResult<()>;
    /// statvfs(3) of the root.
    fn stat_fs(&self) -> OpResult<StatFs>;
    /// lgetxattr(2).
    fn get_xattr(&self, path: &Path, name: &OsStr) -> OpResult<Vec<u8>>;
    /// llistxattr(2): names, each ended by a NUL byte.
    fn list_xattr(&self, path: &Path) -> OpResult<Vec<u8>>;
    /// lsetxattr(2).
    fn set_xattr(&self, path: &Path, name: &OsStr, value: &[u8], flags: i32) -> OpResult<()>;
    /// lremovexattr(2).
    fn remove_xattr(&self, path: &Path, name: &OsStr) -> OpResult<()>;
}

/// One open file of one generation. Closed on drop.
pub trait File: Send + Sync {
    /// fstat(2).
    fn stat(&self) -> OpResult<Attr>;
    /// pread(2) until `buf` is full or the file ends.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> OpResult<usize>;
    /// One pwrite(2); may be short.
    fn write_at(&self, data: &[u8], offset: u64) -> OpResult<usize>;
    /// fsync(2), or fdatasync(2).
    fn sync(&self, data_only: bool) -> OpResult<()>;
    /// ftruncate(2).
    fn set_size(&self, size: u64) -> OpResult<()>;
    /// fallocate(2).
    fn allocate(&self, mode: i32, offset: u64, len: u64) -> OpResult<()>;
    /// lseek(2) with SEEK_DATA or SEEK_HOLE.
    fn seek(&self, offset: i64, whence: i32) -> OpResult<i64>;
    /// copy_file_range(2) into `to`, which is a file of the same generation.
    fn copy_to(&self, offset: u64, to: &dyn File, to_offset: u64, len: u64) -> OpResult<usize>;
    /// The descriptor, where there is one.
    fn as_raw_fd(&self) -> Option<i32>;
}
