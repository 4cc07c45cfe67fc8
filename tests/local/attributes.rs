//! Attributes, times, holes, flags.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::compare::{Log, agree, as_user, c, done};
use super::full::Disk;
use super::rig::{Local, forget_names};
use crate::lab::Lab;

const FS_IOC_GETFLAGS: libc::c_ulong = 0x8008_6601;
const FS_IOC_SETFLAGS: libc::c_ulong = 0x4008_6602;
const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;
const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401c_5820;
const FS_APPEND_FL: u32 = 0x20;
const FS_IMMUTABLE_FL: u32 = 0x10;
const FS_NODUMP_FL: u32 = 0x40;
const FS_NOATIME_FL: u32 = 0x80;

pub fn body(log: &mut Log) {
    times(log);
    sizes(log);
    holes(log);
    direct(log);
    flags(log);
}

/// Nanoseconds; before 1970; after 2038, 2106 and 2446, where ext4's end.
fn times(log: &mut Log) {
    let (file, directory, link) = (log.at("t"), log.at("td"), log.at("tl"));
    File::create(&file).unwrap();
    std::fs::create_dir(&directory).unwrap();
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    let all = [
        (0, 1),
        (1_700_000_000, 123_456_789),
        (-1, 500_000_000),
        (-86_401, 999_999_999),
        (-(1 << 31), 1),
        (-(1 << 31) - 1, 7),
        (i32::MAX as i64 + 1, 999_999_999),
        (u32::MAX as i64 + 1, 3),
        (15_032_385_535, 999_999_999),
        (15_032_385_536, 5),
        (1 << 40, 5),
    ];
    for path in [&file, &directory, &link] {
        for (seconds, nanoseconds) in all {
            let time = TimeSpec::new(seconds, nanoseconds);
            let set = utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink);
            log.note(format!("{seconds}.{nanoseconds}"), set.map_err(io::Error::from));
            let found = std::fs::symlink_metadata(path).unwrap();
            log.see("atime", (found.atime(), found.atime_nsec()));
            log.see("mtime", (found.mtime(), found.mtime_nsec()));
        }
    }
}

fn statx(path: &Path) -> libc::statx {
    let path = c(path);
    // SAFETY: plain numbers, for which zeros are values.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let all = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    // SAFETY: the path ends with NUL, the buffer is of that type.
    let result = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), libc::AT_SYMLINK_NOFOLLOW, all, &mut found) };
    assert_eq!(result, 0);
    found
}

fn sizes(log: &mut Log) {
    let path = log.at("s");
    let mut file = File::create(&path).unwrap();
    file.write_all(&vec![7; 1 << 20]).unwrap();
    file.sync_all().unwrap();
    file.set_len((1 << 20) + 5).unwrap();
    let found = statx(&path);
    log.see("statx", (found.stx_mask & libc::STATX_BASIC_STATS, found.stx_mode, found.stx_nlink, found.stx_size));
    log.see("blocks", (found.stx_blocks, found.stx_blksize, found.stx_uid, found.stx_gid));
    std::fs::hard_link(&path, log.at("s2")).unwrap();
    let both = (std::fs::metadata(&path).unwrap(), std::fs::metadata(log.at("s2")).unwrap());
    log.see("links", (both.0.nlink(), both.1.nlink(), both.0.ino() == both.1.ino(), both.0.dev() == both.1.dev()));
    std::fs::remove_file(&path).unwrap();
    log.see("links", std::fs::metadata(log.at("s2")).unwrap().nlink());
    std::fs::create_dir_all(log.at("sd/a/b")).unwrap();
    log.see("a directory's links", std::fs::metadata(log.at("sd")).unwrap().nlink());
    log.note("far too large", file.set_len(1 << 60));
    log.note("just too large", file.set_len((16 << 40) + 1));
    log.note("a write beyond", file.write_at(b"x", 17 << 40).map(drop));
    log.note("a negative size", Ok(nix::unistd::ftruncate(&file, -1)).and_then(|r| r.map_err(io::Error::from)));
    limited(log);
}

/// RLIMIT_FSIZE of the caller.
fn limited(log: &mut Log) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    setrlimit(Resource::RLIMIT_FSIZE, 10_000, hard).unwrap();
    let mut file = File::create(log.at("limited")).unwrap();
    log.note("a write across the limit", file.write(&[1; 20_000]));
    log.note("a write at the limit", file.write(&[1; 10]));
    log.note("a truncate beyond", file.set_len(10_001));
    // SAFETY: only numbers are passed.
    log.note("an allocation beyond", done(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, 20_000) }));
    log.note("the size", file.metadata().map(|found| found.len()));
    setrlimit(Resource::RLIMIT_FSIZE, soft, hard).unwrap();
}

fn holes(log: &mut Log) {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(log.at("h")).unwrap();
    file.write_all_at(&[1; 65536], 0).unwrap();
    file.write_all_at(&[2; 65536], 1 << 20).unwrap();
    file.set_len(2 << 20).unwrap();
    file.sync_all().unwrap();
    let fd = file.as_raw_fd();
    let look = |log: &mut Log| {
        let mut at = 0;
        for whence in [libc::SEEK_HOLE, libc::SEEK_DATA, libc::SEEK_HOLE, libc::SEEK_DATA] {
            // SAFETY: only numbers are passed.
            let found = done(unsafe { libc::lseek(fd, at, whence) });
            at = *found.as_ref().unwrap_or(&at);
            log.note("seek", found);
        }
        // SAFETY: only numbers are passed.
        log.note("beyond the end", done(unsafe { libc::lseek(fd, 3 << 20, libc::SEEK_DATA) }));
        let mut all = Vec::new();
        (&file).seek(SeekFrom::Start(0)).unwrap();
        (&file).read_to_end(&mut all).unwrap();
        log.see("bytes", all.iter().map(|byte| u64::from(*byte)).sum::<u64>());
        file.sync_all().unwrap();
        log.note("size, blocks", file.metadata().map(|found| (found.len(), found.blocks())));
    };
    look(log);
    let keep = libc::FALLOC_FL_KEEP_SIZE;
    for (name, mode, from, length) in [
        ("punch", keep | libc::FALLOC_FL_PUNCH_HOLE, 4096, 8192),
        ("punch in the middle of blocks", keep | libc::FALLOC_FL_PUNCH_HOLE, (1 << 20) + 100, 9000),
        ("zero", libc::FALLOC_FL_ZERO_RANGE, 20_000, 10_000),
        ("keep the size", keep, 4 << 20, 65536),
        ("zero and keep the size", keep | libc::FALLOC_FL_ZERO_RANGE, 4 << 20, 4096),
        ("allocate", 0, 2 << 20, 65536),
        ("nothing", 0, 0, 0),
        ("before the beginning", 0, -1, 10),
        ("too far", 0, i64::MAX, 10),
        ("punch without keeping", libc::FALLOC_FL_PUNCH_HOLE, 0, 4096),
    ] {
        // SAFETY: only numbers are passed.
        log.note(name, done(unsafe { libc::fallocate(fd, mode, from, length) }));
        look(log);
    }
    let reader = File::open(log.at("h")).unwrap();
    // SAFETY: only numbers are passed.
    log.note("of a reader", done(unsafe { libc::fallocate(reader.as_raw_fd(), 0, 0, 4096) }));
}

fn direct(log: &mut Log) {
    let path = log.at("direct");
    let open =
        |flags| OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(flags).open(&path);
    let file = open(libc::O_DIRECT).unwrap();
    let mut memory = vec![0_u8; 3 * 4096];
    let start = memory.as_ptr().align_offset(4096);
    let block = &mut memory[start..start + 4096];
    block.fill(5);
    log.note("an aligned write", file.write_at(block, 4096));
    let other = open(0).unwrap();
    let mut byte = [0];
    log.note("seen by others", other.read_exact_at(&mut byte, 5000).map(|()| byte));
    log.note("a write by others", other.write_at(b"other", 4096));
    block.fill(0);
    log.note("an aligned read", file.read_at(block, 4096));
    log.see("its content", (block[0], block[5], block[4095]));
    log.note("a read at the end", file.read_at(block, 8192));
    let synchronous = open(libc::O_SYNC).unwrap();
    log.note("O_SYNC", synchronous.write_at(b"sync", 0));
    let both = open(libc::O_DIRECT | libc::O_APPEND).unwrap();
    block.fill(6);
    log.note("O_DIRECT and O_APPEND", (&both).write(block));
    log.note("the size", both.metadata().map(|found| found.len()));
}

fn get_flags(path: &Path) -> io::Result<u32> {
    let (file, mut flags) = (File::open(path)?, 0_u32);
    // SAFETY: the kernel writes an int.
    done(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETFLAGS, &mut flags) })?;
    Ok(flags)
}

fn set_flags(path: &Path, flags: u32) -> io::Result<i64> {
    let file = File::open(path)?;
    // SAFETY: the kernel reads an int.
    done(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_SETFLAGS, &flags) })
}

fn flags(log: &mut Log) {
    let (file, directory) = (log.at("flags"), log.at("flags.d"));
    std::fs::write(&file, "content").unwrap();
    std::fs::create_dir(&directory).unwrap();
    for path in [&file, &directory] {
        let before = get_flags(path).unwrap();
        log.see("flags", before);
        for more in [FS_NODUMP_FL, FS_NOATIME_FL, FS_IMMUTABLE_FL] {
            log.note("set", set_flags(path, before | more));
            log.note("get", get_flags(path));
            log.note("chmod", std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)));
            log.note("unset", set_flags(path, before));
        }
        chown(path, Some(1001), None).unwrap();
        log.note("its owner's NODUMP", as_user(1001, 1001, &[], || set_flags(path, before | FS_NODUMP_FL)));
        log.note("another's", as_user(1002, 1002, &[], || set_flags(path, before)));
        log.note("flags", get_flags(path));
        let (opened, mut extended) = (File::open(path).unwrap(), [0_u32; 7]);
        // SAFETY: the buffer has the size of a `struct fsxattr`.
        log.note("extended", done(unsafe { libc::ioctl(opened.as_raw_fd(), FS_IOC_FSGETXATTR, &mut extended) }));
        log.see("they are", extended);
        extended[0] |= 0x40; // FS_XFLAG_NOATIME
        // SAFETY: as above.
        log.note("set extended", done(unsafe { libc::ioctl(opened.as_raw_fd(), FS_IOC_FSSETXATTR, &extended) }));
        log.note("flags", get_flags(path));
        // SAFETY: no such ioctl writes more than an int to it.
        log.note("no ioctl of files", done(unsafe { libc::ioctl(opened.as_raw_fd(), libc::TCGETS, &mut [0_u8; 64]) }));
        log.note("back", set_flags(path, before));
    }
    log.note("immutable", set_flags(&directory, FS_IMMUTABLE_FL));
    log.note("a file in it", File::create(directory.join("x")).map(drop));
    log.note("back", set_flags(&directory, 0));
    let before = get_flags(&file).unwrap();
    log.note("append only", set_flags(&file, before | FS_APPEND_FL));
    log.note("removed", std::fs::remove_file(&file));
    log.note("cut", OpenOptions::new().write(true).truncate(true).open(&file).map(drop));
    log.note("back", set_flags(&file, before));
}

#[test]
fn attributes_times_holes_limits_and_flags_are_those_of_the_backing() {
    let local = Local::new("");
    agree(&local, "attributes");
    local.end();
}

#[test]
fn what_the_kernels_fuse_cannot_say_is_refused_or_left_out() {
    let local = Local::new("");
    let (plain, hot) = (local.lab.path("f"), local.hot("f"));
    for path in [&plain, &hot] {
        std::fs::write(path, vec![1; 65536]).unwrap();
    }
    // The crate that speaks the protocol has no FUSE_STATX and no FUSE_TMPFILE.
    assert_ne!(statx(&plain).stx_mask & libc::STATX_BTIME, 0);
    assert_eq!(statx(&hot).stx_mask & libc::STATX_BTIME, 0);
    let nameless = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(&local.lab.hot);
    assert_eq!(nameless.unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
    // The kernel's FUSE hands on neither.
    for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE] {
        let allocate = |path: &Path| {
            let file = OpenOptions::new().write(true).open(path).unwrap();
            // SAFETY: only numbers are passed.
            done(unsafe { libc::fallocate(file.as_raw_fd(), mode, 4096, 4096) })
        };
        assert_eq!(allocate(&plain).unwrap(), 0);
        assert_eq!(allocate(&hot).unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
    }
    // Direct I/O need not be aligned.
    let open = |path: &Path| OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    assert_eq!(open(&plain).write_at(&[1; 7], 3).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    assert_eq!(open(&hot).write_at(&[1; 7], 3).unwrap(), 7);
    // The backing's descriptor is not an appender's: offsets are the kernel's.
    assert_eq!(set_flags(&hot, get_flags(&hot).unwrap() | FS_APPEND_FL).unwrap(), 0);
    let appending = OpenOptions::new().append(true).open(&hot).map(drop);
    set_flags(&hot, get_flags(&hot).unwrap() & !FS_APPEND_FL).unwrap();
    assert_eq!(appending.unwrap_err().raw_os_error(), Some(libc::EPERM));
    local.end();
}

/// Numbers from there on are steadfs's own.
const OWN: u64 = 1 << 63;

fn number(path: impl AsRef<Path>) -> u64 {
    std::fs::symlink_metadata(path).unwrap().ino()
}

/// d_ino of each entry; nothing is looked up for it.
fn listed(path: &Path) -> BTreeMap<OsString, u64> {
    std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap()).map(|entry| (entry.file_name(), entry.ino())).collect()
}

fn git(at: &Path, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "safe.directory=*", "-C"]).arg(at);
    command.args(arguments).env("GIT_CONFIG_NOSYSTEM", "1").env("HOME", at).output().unwrap()
}

#[test]
fn inode_numbers_are_the_backings() {
    let local = Local::new("");
    let (cold, hot) = (local.cold("i"), local.hot("i"));
    std::fs::create_dir_all(cold.join("d/e")).unwrap();
    for number in 0..2000 {
        File::create(cold.join(format!("f{number}"))).unwrap();
    }
    std::fs::hard_link(cold.join("f7"), cold.join("d/link")).unwrap();
    std::os::unix::fs::symlink("nowhere", cold.join("symlink")).unwrap();
    nix::unistd::mkfifo(&cold.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Made in the overlay too.
    File::create(hot.join("by-us")).unwrap();
    std::fs::create_dir(hot.join("by-us.d")).unwrap();
    std::fs::hard_link(hot.join("by-us"), hot.join("by-us.d/link")).unwrap();
    let same = |when: &str| {
        for directory in ["", "d", "d/e", "by-us.d"] {
            let (wanted, found) = (listed(&cold.join(directory)), listed(&hot.join(directory)));
            assert_eq!(found, wanted, "{when}, {directory}");
            for (name, wanted) in wanted {
                assert_eq!(number(hot.join(directory).join(&name)), wanted, "{when}, {name:?}");
            }
            assert_eq!(number(hot.join(directory).join(".")), number(cold.join(directory)), "{when}");
        }
        // The root is 1 whatever it is on the backing, as its nature in the protocol is.
        assert_eq!((number(&local.lab.hot), number(hot.join("..")), number(local.lab.hot.join("."))), (1, 1, 1));
    };
    same("at first");
    let open = File::open(hot.join("f5")).unwrap();
    forget_names();
    same("forgotten");
    local.outage();
    same("after an outage");
    local.succession();
    same("after a death");
    forget_names();
    assert_eq!(listed(&hot), listed(&cold));
    assert_eq!(open.metadata().unwrap().ino(), number(cold.join("f5")));

    drop(open);
    // git believes its index only if the numbers are those that it saw.
    let repository = local.hot("repository");
    std::fs::create_dir(&repository).unwrap();
    std::fs::write(repository.join("a"), "a").unwrap();
    let long_ago = TimeSpec::new(1_700_000_000, 0);
    utimensat(nix::fcntl::AT_FDCWD, &repository.join("a"), &long_ago, &long_ago, UtimensatFlags::FollowSymlink)
        .unwrap();
    for arguments in [&["init", "-q"][..], &["add", "a"], &["commit", "-qm", "a"]] {
        let output = git(&repository, arguments);
        assert!(output.status.success(), "{output:?}");
    }
    forget_names();
    let output = git(&repository, &["diff-files", "--exit-code"]);
    assert!(output.status.success(), "{output:?}");
    local.end();
}

/// A file and one that was made after it and got its number while the kernel remembers it: how the second one is called. The
/// first one is removed on the store: what is removed here keeps its number for as long.
fn number_again(local: &Local, directory: &str, make: fn(&Path), remove: fn(&Path)) -> (File, PathBuf) {
    for attempt in 0..50 {
        let (old, new) = (format!("{directory}-old{attempt}"), format!("{directory}-new{attempt}"));
        make(&local.hot(&old));
        let wanted = number(local.hot(&old));
        assert_eq!(wanted, number(local.cold(&old)));
        // Nothing of the backing is open for it.
        let held = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(local.hot(&old)).unwrap();
        remove(&local.cold(&old));
        make(&local.hot(&new));
        if number(local.cold(&new)) == wanted {
            return (held, local.hot(&new));
        }
    }
    panic!("the filesystem gives no number again");
}

#[test]
fn a_number_that_is_given_again_is_that_of_one_file() {
    // On a disk of its own: nobody else takes the numbers.
    let mut lab = Lab::untimed();
    let disk = Disk::new(&lab, 1024);
    lab.store = disk.0.clone();
    let local = Local::over(lab, "disk", "", |_| {});
    let make_file = |path: &Path| std::fs::write(path, path.file_name().unwrap().as_encoded_bytes()).unwrap();
    let (held_file, file) = number_again(&local, "f", make_file, |path| std::fs::remove_file(path).unwrap());
    let make_directory = |path: &Path| std::fs::create_dir(path).unwrap();
    let (held_directory, directory) =
        number_again(&local, "d", make_directory, |path| std::fs::remove_dir(path).unwrap());
    let numbers = (number(&file), number(&directory));
    assert!(numbers.0 > OWN && numbers.1 > OWN && numbers.0 != numbers.1, "{numbers:?}");
    // One that is open when it loses its name has its number on the backing for as long.
    let mut unlinked = OpenOptions::new().read(true).write(true).create_new(true).open(local.hot("unlinked")).unwrap();
    unlinked.write_all(b"unlinked").unwrap();
    std::fs::remove_file(local.hot("unlinked")).unwrap();
    let mut open = OpenOptions::new().read(true).append(true).open(&file).unwrap();
    let content = file.file_name().unwrap().to_str().unwrap().to_owned();
    let works = |open: &mut File, times: usize| {
        open.write_all(b"!").unwrap();
        let wanted = format!("{content}{}", "!".repeat(times));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), wanted);
        assert_eq!(
            (open.metadata().unwrap().ino(), number(&file), number(&directory)),
            (numbers.0, numbers.0, numbers.1)
        );
        let entry = listed(&local.lab.hot)[file.file_name().unwrap()];
        assert_eq!(entry, numbers.0, "and in a listing");
        File::create(directory.join(format!("in{times}"))).unwrap();
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), times);
        assert!(!held_directory.metadata().is_ok_and(|found| found.ino() == numbers.1));
        assert!(!held_file.metadata().is_ok_and(|found| found.ino() == numbers.0));
    };
    works(&mut open, 1);
    local.outage();
    works(&mut open, 2);
    let mut text = String::new();
    unlinked.seek(SeekFrom::Start(0)).unwrap();
    unlinked.read_to_string(&mut text).unwrap();
    assert_eq!(text, "unlinked");
    assert_ne!(unlinked.metadata().unwrap().ino(), numbers.0);
    local.succession();
    works(&mut open, 3);
    drop((open, unlinked, held_file, held_directory));
    // When nobody holds the old ones any more the new ones get the number.
    crate::lab::wait("the old ones are forgotten", || {
        forget_names();
        (number(&file), number(&directory))
            == (
                number(local.cold(file.file_name().unwrap().to_str().unwrap())),
                number(local.cold(directory.file_name().unwrap().to_str().unwrap())),
            )
    });
    drop(disk);
    local.end();
}

#[test]
fn what_is_made_and_removed_again_and_again_has_the_backings_number() {
    let local = Local::new("");
    let mut own = 0;
    for round in 0..500 {
        let name = format!("t{}", round % 3);
        std::fs::write(local.hot(&name), "x").unwrap();
        let found = number(local.hot(&name));
        own += u32::from(found > OWN);
        assert!(found > OWN || found == number(local.cold(&name)));
        match round % 2 {
            0 => std::fs::remove_file(local.hot(&name)).unwrap(),
            _ => std::fs::rename(local.hot(&name), local.hot("target")).unwrap(),
        }
    }
    println!("{own} of 500 had another number for a while");
    assert!(own < 50, "{own}");
    local.end();
}
