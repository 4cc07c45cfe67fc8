//! What SFTP has no words for, and what it has other words for than a local filesystem.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::rig::Pair;
use super::said::{Log, agree, c, done};

const FS_IOC_GETFLAGS: libc::c_ulong = 0x8008_6601;
const FS_IOC_SETFLAGS: libc::c_ulong = 0x4008_6602;
const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;
const FICLONE: libc::c_ulong = 0x4004_9409;
const PAGE: usize = 4096;

pub fn body(log: &mut Log) {
    special(log);
    attributes(log);
    holes(log);
    times(log);
    flags(log);
    data(log);
    locks(log);
    space(log);
    names(log);
    links(log);
}

fn both(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn special(log: &mut Log) {
    let kinds = [libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFCHR, libc::S_IFBLK];
    for (number, kind) in kinds.into_iter().enumerate() {
        let path = log.c(&format!("node{number}"));
        // SAFETY: the path ends with NUL.
        log.note(format!("mknod {kind:o}"), done(unsafe { libc::mknod(path.as_ptr(), kind | 0o644, 0x103) }));
    }
    log.note("bind", UnixListener::bind(log.at("socket")).map(drop));
    let nameless = OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(log.at("."));
    log.note("O_TMPFILE", nameless.map(drop));
    log.note(
        "a listing",
        Ok(std::fs::read_dir(log.at(".")).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>()),
    );
}

fn attributes(log: &mut Log) {
    std::fs::write(log.at("x"), "x").unwrap();
    let path = log.c("x");
    // An access list of version 2 with a mask and one more user (linux/posix_acl_xattr.h).
    let entry =
        |tag: u16, perm: u16, id: u32| [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat();
    let all = u32::MAX;
    let list = [
        2_u32.to_le_bytes().to_vec(),
        entry(1, 6, all),
        entry(2, 4, 7),
        entry(4, 4, all),
        entry(16, 4, all),
        entry(32, 0, all),
    ];
    let list = list.concat();
    let lists = ["system.posix_acl_access", "system.posix_acl_default"];
    for name in ["user.a", "trusted.a", "security.a", "security.capability"].into_iter().chain(lists) {
        let value = if name.starts_with("system") { &list[..] } else { b"value" };
        let key = c(Path::new(name));
        let mut buffer = [0_u8; 256];
        // SAFETY: both names end with NUL, and the value has that length.
        let set = unsafe { libc::setxattr(path.as_ptr(), key.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
        log.note(format!("setxattr {name}"), done(set));
        // SAFETY: both names end with NUL, and the buffer has that length.
        let got = unsafe { libc::getxattr(path.as_ptr(), key.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
        log.note(format!("getxattr {name}"), done(got as i64));
        // SAFETY: both names end with NUL.
        log.note(format!("removexattr {name}"), done(unsafe { libc::removexattr(path.as_ptr(), key.as_ptr()) }));
    }
    // SAFETY: the name ends with NUL; nothing is written to a buffer of no bytes.
    log.note("listxattr", done(unsafe { libc::listxattr(path.as_ptr(), std::ptr::null_mut(), 0) } as i64));
    let found = log.at("x").metadata().unwrap();
    log.see("mode and links", (found.mode(), found.nlink(), found.uid(), found.gid()));
    log.see("blocks", (found.blocks(), found.blksize()));
}

fn holes(log: &mut Log) {
    let file = both(&log.at("holes")).unwrap();
    file.write_all_at(&[1; PAGE], 0).unwrap();
    file.write_all_at(&[2; PAGE], 1 << 20).unwrap();
    file.sync_all().unwrap();
    let fd = file.as_raw_fd();
    for whence in [libc::SEEK_DATA, libc::SEEK_HOLE] {
        for offset in [0, 4096, 8192, (1 << 20) + 4096, 1 << 21] {
            // SAFETY: only numbers are passed.
            log.note(format!("seek {whence} {offset}"), done(unsafe { libc::lseek(fd, offset, whence) }));
        }
    }
    let modes = [0, 1, 2, 3, 8, 16, 32, 64, 3 | 8];
    for mode in modes {
        // SAFETY: only numbers are passed.
        log.note(format!("fallocate {mode}"), done(unsafe { libc::fallocate(fd, mode, 0, 8192) }));
    }
    // SAFETY: only numbers are passed.
    log.see("posix_fallocate", unsafe { libc::posix_fallocate(fd, 0, 2 << 20) });
    let mut content = vec![0; 8192];
    log.note("what is in it", file.read_exact_at(&mut content, 0).map(|()| (content[0], content[4096], content[8191])));
    log.note("its size", file.metadata().map(|found| found.len()));
}

fn times(log: &mut Log) {
    let (file, directory) = (log.at("t"), log.at("td"));
    File::create(&file).unwrap();
    std::fs::create_dir(&directory).unwrap();
    let largest = i64::from(u32::MAX);
    let all = [
        (1, 0),
        (1_700_000_000, 123_456_789),
        ((1 << 31) - 1, 999_999_999),
        (1 << 31, 1),
        (largest, 0),
        (largest + 1, 0),
        (1 << 40, 5),
        (-1, 500_000_000),
        (-86_401, 0),
    ];
    for path in [&file, &directory] {
        for (seconds, nanoseconds) in all {
            let time = TimeSpec::new(seconds, nanoseconds);
            let set = utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink);
            log.note(format!("{seconds}.{nanoseconds}"), set.map_err(io::Error::from));
            let found = path.metadata().unwrap();
            log.see("atime", (found.atime(), found.atime_nsec()));
            log.see("mtime", (found.mtime(), found.mtime_nsec()));
        }
    }
    let (five, omit) = (TimeSpec::new(5, 0), TimeSpec::new(0, libc::UTIME_OMIT));
    for (atime, mtime) in [(&five, &five), (&omit, &TimeSpec::new(7, 0))] {
        let set = utimensat(nix::fcntl::AT_FDCWD, &file, atime, mtime, UtimensatFlags::NoFollowSymlink);
        log.note("both, or one", set.map_err(io::Error::from));
        log.see("mtime", file.metadata().unwrap().mtime());
    }
}

fn flags(log: &mut Log) {
    let file = both(&log.at("flags")).unwrap();
    let other = both(&log.at("clone")).unwrap();
    file.write_all_at(&[5; PAGE], 0).unwrap();
    let mut value = [0_u8; 64];
    for (name, request) in [("get", FS_IOC_GETFLAGS), ("set", FS_IOC_SETFLAGS), ("get extended", FS_IOC_FSGETXATTR)] {
        // SAFETY: each moves less than 64 bytes.
        log.note(format!("chattr {name}"), done(unsafe { libc::ioctl(file.as_raw_fd(), request, value.as_mut_ptr()) }));
    }
    // SAFETY: only numbers are passed.
    log.note("clone", done(unsafe { libc::ioctl(other.as_raw_fd(), FICLONE, file.as_raw_fd()) }));
}

fn data(log: &mut Log) {
    let path = log.at("data");
    std::fs::write(&path, vec![7; 3 * PAGE]).unwrap();
    let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path);
    log.note(
        "O_DIRECT",
        direct.as_ref().map(drop).map_err(|error| io::Error::from_raw_os_error(error.raw_os_error().unwrap())),
    );
    if let Ok(direct) = direct {
        let mut buffer = vec![0; PAGE];
        log.note("read", direct.read_at(&mut buffer, 0));
        log.note("write", direct.write_at(&buffer, PAGE as u64));
        log.note("write unaligned", direct.write_at(&[1; 100], 11));
        log.note("read unaligned", direct.read_at(&mut buffer[..7], 12));
    }
    let file = both(&path).unwrap();
    let mut byte = [b'z'];
    let vector = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    for flag in [0, libc::RWF_HIPRI, libc::RWF_DSYNC, libc::RWF_SYNC, libc::RWF_NOWAIT, libc::RWF_APPEND, 0x40, 0x4000]
    {
        // SAFETY: the vector has one element, whose buffer outlives the call.
        let written = unsafe { libc::pwritev2(file.as_raw_fd(), &vector, 1, 3, flag) };
        log.note(format!("pwritev2 {flag:#x}"), done(written as i64));
        // SAFETY: the same.
        let read = unsafe { libc::preadv2(file.as_raw_fd(), &vector, 1, 3, flag) };
        log.note(format!("preadv2 {flag:#x}"), done(read as i64));
    }
    for flag in [libc::O_SYNC, libc::O_DSYNC, libc::O_APPEND, libc::O_NOATIME, libc::O_PATH, libc::O_DIRECTORY] {
        let opened = OpenOptions::new().read(true).write(flag != libc::O_NOATIME).custom_flags(flag).open(&path);
        log.note(format!("open {flag:#o}"), opened.map(|file| file.metadata().unwrap().len()));
    }
    let mut appended = OpenOptions::new().append(true).open(&path).unwrap();
    log.note("append", appended.write(b"end"));
    log.note("the size", file.metadata().map(|found| found.len()));
    let (from, to) = (File::open(&path).unwrap(), both(&log.at("copy")).unwrap());
    let none = std::ptr::null_mut();
    for length in [100, 1 << 20] {
        // SAFETY: no offsets are passed.
        let copied = unsafe { libc::copy_file_range(from.as_raw_fd(), none, to.as_raw_fd(), none, length, 0) };
        log.note(format!("copy_file_range {length}"), done(copied as i64));
    }
    // SAFETY: no offset is passed.
    log.note("sendfile", done(unsafe { libc::sendfile(to.as_raw_fd(), file.as_raw_fd(), none, 50) } as i64));
    to.sync_all().unwrap();
    log.note("the copy", std::fs::read(log.at("copy")).map(|data| (data.len(), data[5], data[3])));
    // SAFETY: only numbers are passed.
    log.note("sync_file_range", done(unsafe { libc::sync_file_range(to.as_raw_fd(), 0, 0, 7) }));
    // SAFETY: only numbers are passed.
    log.note("readahead", done(unsafe { libc::readahead(to.as_raw_fd(), 0, 100) } as i64));
    // SAFETY: only numbers are passed.
    log.see("fadvise", unsafe { libc::posix_fadvise(to.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) });
    log.note("too large", file.set_len(1 << 62));
    log.note("the size", file.metadata().map(|found| found.len()));
    mapped(log, &path);
}

fn mapped(log: &mut Log, path: &Path) {
    let file = both(path).unwrap();
    for (name, how) in
        [("shared", libc::MAP_SHARED), ("private", libc::MAP_PRIVATE), ("validated", 3), ("DAX", 3 | 0x80000)]
    {
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of a file that nobody cuts meanwhile.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, rights, how, file.as_raw_fd(), 0) };
        if map == libc::MAP_FAILED {
            log.note::<()>(format!("mmap {name}"), Err(io::Error::last_os_error()));
            continue;
        }
        // SAFETY: the first byte of the mapping, which nobody else uses.
        unsafe { *map.cast::<u8>() = b'm' };
        // SAFETY: the whole of the mapping.
        log.note(format!("mmap {name}"), done(unsafe { libc::msync(map, PAGE, libc::MS_SYNC) }));
        // SAFETY: it is not used any more.
        unsafe { libc::munmap(map, PAGE) };
    }
    let mut first = [0];
    log.note("what was stored", File::open(path).unwrap().read(&mut first).map(|_| first[0]));
}

fn locks(log: &mut Log) {
    let (first, second) = (both(&log.at("locked")).unwrap(), both(&log.at("locked")).unwrap());
    for (name, file) in [("first", &first), ("second", &second)] {
        // SAFETY: only numbers are passed.
        log.note(
            format!("flock {name}"),
            done(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }),
        );
    }
    let lock = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 10, l_pid: 0 };
    for (name, file) in [("first", &first), ("second", &second)] {
        // SAFETY: the lock outlives the call.
        log.note(format!("OFD lock {name}"), done(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) }));
    }
    // SAFETY: only numbers are passed.
    log.note("lease", done(unsafe { libc::fcntl(first.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) }));
}

fn space(log: &mut Log) {
    let found = nix::sys::statvfs::statvfs(&log.at(".")).unwrap();
    log.see("statvfs", (found.block_size(), found.fragment_size(), found.name_max(), found.flags()));
    log.see("is there any", (found.blocks() > 0, found.blocks_free() > 0, found.files() > 0, found.files_free() > 0));
    let directory = File::open(log.at(".")).unwrap();
    log.note("fsync of a directory", directory.sync_all());
    log.note("fdatasync of a directory", directory.sync_data());
    // SAFETY: only numbers are passed.
    log.note("syncfs", done(unsafe { libc::syncfs(directory.as_raw_fd()) }));
}

fn names(log: &mut Log) {
    let at = |name: &str| log.at(name);
    std::fs::create_dir_all(at("n/full/d")).unwrap();
    std::fs::create_dir(at("n/empty")).unwrap();
    std::fs::write(at("n/f"), "f").unwrap();
    symlink("f", at("n/l")).unwrap();
    symlink("nowhere", at("n/dangling")).unwrap();
    let (f, full, empty, link) = (at("n/f"), at("n/full"), at("n/empty"), at("n/l"));
    let results = [
        ("rmdir of a full one", std::fs::remove_dir(&full)),
        ("mkdir of what is there", std::fs::create_dir(&full)),
        ("unlink of a directory", std::fs::remove_file(&full)),
        ("rmdir of a file", std::fs::remove_dir(&f)),
        ("a directory over a full one", std::fs::rename(&empty, &full)),
        ("a file over a directory", std::fs::rename(&f, &empty)),
        ("a directory over a file", std::fs::rename(&empty, &f)),
        ("a directory into itself", std::fs::rename(&full, at("n/full/d/e"))),
        ("a name of 255 bytes", std::fs::write(at(&format!("n/{}", "n".repeat(255))), "")),
        ("a name of 256 bytes", std::fs::write(at(&format!("n/{}", "n".repeat(256))), "")),
        ("a target of 4095 bytes", symlink("t".repeat(4095), at("n/long"))),
        ("a directory opened for writing", OpenOptions::new().write(true).open(&full).map(drop)),
        ("O_EXCL", OpenOptions::new().write(true).create_new(true).open(&f).map(drop)),
        ("O_NOFOLLOW", OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&link).map(drop)),
        ("a dangling link", File::open(at("n/dangling")).map(drop)),
        ("through a file", File::open(at("n/f/g")).map(drop)),
        ("a mode", std::fs::set_permissions(&f, PermissionsExt::from_mode(0o6755))),
        ("an owner", std::os::unix::fs::chown(&f, Some(1234), Some(1235))),
        ("an owner of a link", std::os::unix::fs::lchown(&link, Some(1), Some(1))),
        (
            "a directory over an empty one",
            std::fs::create_dir(at("n/new")).and_then(|()| std::fs::rename(at("n/new"), &empty)),
        ),
        ("a file over a file", std::fs::write(at("n/g"), "g").and_then(|()| std::fs::rename(at("n/g"), &f))),
    ];
    for (name, result) in results {
        log.note(name, result);
    }
    log.note("the target", std::fs::read_link(log.at("n/long")).map(|target| target.as_os_str().len()));
    let path = log.c("n/l");
    // SAFETY: the path ends with NUL.
    let result = done(unsafe { libc::fchmodat(libc::AT_FDCWD, path.as_ptr(), 0o600, libc::AT_SYMLINK_NOFOLLOW) });
    log.note("a mode of a link", result);
    let found = log.at("n/f").metadata().unwrap();
    log.see("the file", (found.mode(), found.len()));
}

fn links(log: &mut Log) {
    let (a, b) = (log.at("a"), log.at("b"));
    std::fs::write(&a, "a").unwrap();
    log.note("link", std::fs::hard_link(&a, &b));
    log.note("link to what is there", std::fs::hard_link(&a, &b));
    log.note("link of a directory", std::fs::hard_link(log.at("n"), log.at("n2")));
    log.note("link of a link", std::fs::hard_link(log.at("n/l"), log.at("l2")));
    let (one, other) = (a.metadata().unwrap(), b.metadata().unwrap());
    log.see("links", (one.nlink(), other.nlink()));
    log.see("one number", one.ino() == other.ino());
}

#[test]
fn what_sftp_cannot_say_is_refused_as_by_sshfs() {
    let pair = Pair::new("");
    let better = [("links", "(1, 1)", "(2, 2)"), ("one number", "false", "true")];
    let said = agree(&pair, "refused", &better);
    for line in ["mknod 10000: EPERM", "bind: EPERM", "O_TMPFILE: EOPNOTSUPP", "setxattr user.a: EOPNOTSUPP"] {
        assert!(said.contains(&line.to_owned()), "{line}: {said:#?}");
    }
    pair.end();
}
