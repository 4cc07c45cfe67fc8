//! Plain values that cross the border between the overlay and a backing.

use std::ffi::OsString;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// Type of a file, from the S_IFMT bits of `st_mode` (inode(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// S_IFREG.
    Regular,
    /// S_IFDIR.
    Directory,
    /// S_IFLNK.
    Symlink,
    /// S_IFIFO.
    Fifo,
    /// S_IFSOCK.
    Socket,
    /// S_IFCHR.
    CharDevice,
    /// S_IFBLK.
    BlockDevice,
}

/// The attributes of a file, as in `struct stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// st_dev and st_ino of the backing; they identify a file only where [`super::Traits::stable_inodes`] says so.
    pub identity: (u64, u64),
    /// Type.
    pub kind: FileKind,
    /// Permission bits, with setuid, setgid and sticky (07777).
    pub perm: u16,
    /// st_nlink.
    pub nlink: u32,
    /// st_uid.
    pub uid: u32,
    /// st_gid.
    pub gid: u32,
    /// st_rdev.
    pub rdev: u32,
    /// st_size in bytes.
    pub size: u64,
    /// st_blocks, of 512 bytes.
    pub blocks: u64,
    /// st_blksize in bytes.
    pub block_size: u32,
    /// st_atim.
    pub atime: SystemTime,
    /// st_mtim.
    pub mtime: SystemTime,
    /// st_ctim.
    pub ctime: SystemTime,
}

/// A time to set, as in utimensat(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// UTIME_OMIT.
    Omit,
    /// UTIME_NOW.
    Now,
    /// That time.
    At(SystemTime),
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name, without a slash.
    pub name: OsString,
    /// The type, where the directory says it.
    pub kind: Option<FileKind>,
    /// d_ino of the backing; 0 if it is not known. Of a mountpoint it is that of the directory below.
    pub ino: u64,
}

/// The figures of statvfs(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatFs {
    /// f_blocks, in units of `fragment_size`.
    pub blocks: u64,
    /// f_bfree.
    pub blocks_free: u64,
    /// f_bavail.
    pub blocks_available: u64,
    /// f_files.
    pub files: u64,
    /// f_ffree.
    pub files_free: u64,
    /// f_bsize in bytes.
    pub block_size: u32,
    /// f_namemax in bytes.
    pub name_max: u32,
    /// f_frsize in bytes.
    pub fragment_size: u32,
}

/// What is asked of a file's flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlagsRequest {
    /// FS_IOC_GETFLAGS.
    Get,
    /// FS_IOC_SETFLAGS.
    Set,
    /// FS_IOC_FSGETXATTR.
    GetExtended,
    /// FS_IOC_FSSETXATTR.
    SetExtended,
    /// FS_IOC_GETVERSION: the number that tells a file from later ones of its inode.
    GetVersion,
}

impl FlagsRequest {
    const ALL: [FlagsRequest; 5] = [
        FlagsRequest::Get,
        FlagsRequest::Set,
        FlagsRequest::GetExtended,
        FlagsRequest::SetExtended,
        FlagsRequest::GetVersion,
    ];

    /// That of an ioctl(2); `None` if it is none of these.
    pub fn of(number: u32) -> Option<FlagsRequest> {
        FlagsRequest::ALL.into_iter().find(|request| request.number() == number)
    }

    /// Its number (linux/fs.h). The macro there makes it of the size of a long, though what is moved is an int.
    pub fn number(self) -> u32 {
        let long = (std::mem::size_of::<libc::c_long>() as u32) << 16;
        let extended = (FSXATTR as u32) << 16;
        match self {
            FlagsRequest::Get => 2 << 30 | long | 0x6601,
            FlagsRequest::Set => 1 << 30 | long | 0x6602,
            FlagsRequest::GetExtended => 2 << 30 | extended | 0x581f,
            FlagsRequest::SetExtended => 1 << 30 | extended | 0x5820,
            FlagsRequest::GetVersion => 2 << 30 | long | 0x7601,
        }
    }

    /// Bytes that go in or out.
    pub fn size(self) -> usize {
        match self {
            FlagsRequest::Get | FlagsRequest::Set | FlagsRequest::GetVersion => std::mem::size_of::<libc::c_int>(),
            FlagsRequest::GetExtended | FlagsRequest::SetExtended => FSXATTR,
        }
    }

    /// True if it changes something.
    pub fn changes(self) -> bool {
        matches!(self, FlagsRequest::Set | FlagsRequest::SetExtended)
    }
}

/// Bytes of `struct fsxattr` (linux/fs.h).
const FSXATTR: usize = 28;
