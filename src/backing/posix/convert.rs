//! Between the kernel's structures and the plain values of [`crate::backing::types`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::stat::FileStat;
use nix::sys::statvfs::Statvfs;
use nix::sys::time::TimeSpec;

use crate::backing::{Attr, FileKind, OpResult, SetTime, StatFs};

/// What a `struct stat` says.
pub(super) fn attr(stat: &FileStat) -> Attr {
    Attr {
        identity: (stat.st_dev, stat.st_ino),
        kind: kind(stat.st_mode).unwrap_or(FileKind::Regular),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        // Linux keeps device numbers in 32 bits; stat(2) only widens them.
        rdev: stat.st_rdev as u32,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        block_size: u32::try_from(stat.st_blksize).unwrap_or(4096),
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
    }
}

/// The same of a `struct statx`.
pub(super) fn attr_of_statx(found: &libc::statx) -> Attr {
    let mode = u32::from(found.stx_mode);
    let at = |stamp: &libc::statx_timestamp| time(stamp.tv_sec, stamp.tv_nsec.into());
    Attr {
        identity: (nix::sys::stat::makedev(found.stx_dev_major.into(), found.stx_dev_minor.into()), found.stx_ino),
        kind: kind(mode).unwrap_or(FileKind::Regular),
        perm: (mode & 0o7777) as u16,
        nlink: found.stx_nlink,
        uid: found.stx_uid,
        gid: found.stx_gid,
        rdev: nix::sys::stat::makedev(found.stx_rdev_major.into(), found.stx_rdev_minor.into()) as u32,
        size: found.stx_size,
        blocks: found.stx_blocks,
        block_size: found.stx_blksize,
        atime: at(&found.stx_atime),
        mtime: at(&found.stx_mtime),
        ctime: at(&found.stx_ctime),
    }
}

/// The type in the S_IFMT bits of a mode (inode(7)).
pub(super) fn kind(mode: u32) -> Option<FileKind> {
    Some(match mode & libc::S_IFMT {
        libc::S_IFREG => FileKind::Regular,
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFLNK => FileKind::Symlink,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::CharDevice,
        libc::S_IFBLK => FileKind::BlockDevice,
        _ => return None,
    })
}

/// The figures of statvfs(3); those that do not fit are as large as can be.
pub(super) fn stat_fs(figures: &Statvfs) -> StatFs {
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    StatFs {
        blocks: figures.blocks(),
        blocks_free: figures.blocks_free(),
        blocks_available: figures.blocks_available(),
        files: figures.files(),
        files_free: figures.files_free(),
        block_size: narrow(figures.block_size()),
        name_max: narrow(figures.name_max()),
        fragment_size: narrow(figures.fragment_size()),
    }
}

/// A `struct timespec` as a time; before 1970 the seconds are negative and the nanoseconds still count forwards.
fn time(seconds: i64, nanoseconds: i64) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let part = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0));
    let second = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    second.and_then(|t| t.checked_add(part)).unwrap_or(UNIX_EPOCH)
}

/// A time for utimensat(2).
pub(super) fn time_to_set(time: SetTime) -> TimeSpec {
    match time {
        SetTime::Omit => TimeSpec::UTIME_OMIT,
        SetTime::Now => TimeSpec::UTIME_NOW,
        SetTime::At(at) => timespec(at),
    }
}

fn timespec(at: SystemTime) -> TimeSpec {
    let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    match at.duration_since(UNIX_EPOCH) {
        Ok(after) => TimeSpec::new(seconds(after), i64::from(after.subsec_nanos())),
        Err(error) => {
            let before = error.duration();
            match i64::from(before.subsec_nanos()) {
                0 => TimeSpec::new(-seconds(before), 0),
                part => TimeSpec::new((-seconds(before)).saturating_sub(1), 1_000_000_000 - part),
            }
        }
    }
}

/// A size or offset for the kernel, which has no more than 63 bits for it.
pub(super) fn offset(value: u64) -> OpResult<i64> {
    i64::try_from(value).map_err(|_| Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn times_round_trip(seconds in -(1i64 << 60)..(1i64 << 60), nanoseconds in 0i64..1_000_000_000) {
            let spec = timespec(time(seconds, nanoseconds));
            prop_assert_eq!((spec.tv_sec(), spec.tv_nsec()), (seconds, nanoseconds));
        }

        #[test]
        fn no_time_panics(seconds in any::<i64>(), nanoseconds in any::<i64>()) {
            let spec = timespec(time(seconds, nanoseconds));
            prop_assert!((0..1_000_000_000).contains(&spec.tv_nsec()));
        }
    }

    #[test]
    fn before_1970() {
        let half = UNIX_EPOCH - Duration::from_millis(500);
        assert_eq!((timespec(half).tv_sec(), timespec(half).tv_nsec()), (-1, 500_000_000));
        assert_eq!(time(-1, 500_000_000), half);
    }

    #[test]
    fn offsets_beyond_63_bits_are_refused() {
        assert_eq!(offset(u64::MAX), Err(Errno::EINVAL));
        assert_eq!(offset(i64::MAX as u64), Ok(i64::MAX));
    }
}
