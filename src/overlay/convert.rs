//! Between the backing's values and fuser's.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use nix::errno::Errno;

use super::files::LOST_FILE;
use crate::backing::{Attr, FileKind, SetTime};

/// fuser's type of a file.
pub fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// fuser's attributes of a node; st_ino is always the node id.
pub fn file_attr(node: u64, attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(node),
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.block_size,
        flags: 0,
    }
}

/// fuser's errno.
pub fn errno(errno: Errno) -> fuser::Errno {
    let told = if errno == LOST_FILE { Errno::EIO } else { errno };
    fuser::Errno::from_i32(told as i32)
}

/// The errno of a call on a node, as opposed to one on a name. The kernel believes that the node exists, so ENOENT means
/// that it has gone behind the kernel's back; ESTALE makes the kernel look its name up again and repeat the system call,
/// which then finds what is there now or fails with ENOENT.
pub fn node_errno(error: Errno) -> fuser::Errno {
    errno(if error == Errno::ENOENT { Errno::ESTALE } else { error })
}

/// A time of a setattr request.
pub fn set_time(time: Option<TimeOrNow>) -> SetTime {
    match time {
        None => SetTime::Omit,
        Some(TimeOrNow::Now) => SetTime::Now,
        Some(TimeOrNow::SpecificTime(at)) => SetTime::At(meant(at)),
    }
}

/// The time that the kernel sent. fuser 0.18 counts the nanoseconds of one before 1970 backwards, as it does the seconds
/// (system_time_from_time in its time.rs); the kernel counts them forwards. What it is told, fuser converts as it should.
fn meant(at: SystemTime) -> SystemTime {
    let Err(before) = at.duration_since(SystemTime::UNIX_EPOCH) else { return at };
    let nanoseconds = Duration::from_nanos(before.duration().subsec_nanos().into());
    at.checked_add(nanoseconds * 2).unwrap_or(at)
}

/// The type bits of a mode, as a kind; what mknod(2) is given without any is a regular file.
pub fn kind_of_mode(mode: u32) -> FileKind {
    match mode & libc::S_IFMT {
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::CharDevice,
        libc::S_IFBLK => FileKind::BlockDevice,
        libc::S_IFDIR => FileKind::Directory,
        _ => FileKind::Regular,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_before_1970_is_the_one_that_the_kernel_sent() {
        let epoch = SystemTime::UNIX_EPOCH;
        // Five seconds before 1970 and a nanosecond later, as fuser hands it on.
        let sent = epoch - Duration::new(5, 1);
        assert_eq!(set_time(Some(TimeOrNow::SpecificTime(sent))), SetTime::At(epoch - Duration::new(4, 999_999_999)));
        for plain in [epoch, epoch - Duration::from_secs(5), epoch + Duration::new(5, 1)] {
            assert_eq!(set_time(Some(TimeOrNow::SpecificTime(plain))), SetTime::At(plain));
        }
    }
}
