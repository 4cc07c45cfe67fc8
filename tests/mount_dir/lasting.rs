//! What somebody sets lasts, although what was written before is written again: times, setuid, capabilities, flags.

use std::ffi::CString;
use std::fs::{File, FileTimes, OpenOptions, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use steadfs::backing::fake::{Call, Fault, What};

use crate::rig::{LOCAL, PATIENCE, Rig, SSHFS, errno, until};

fn open(rig: &Rig, name: &str) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(rig.hot(name)).expect("opened")
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Times of access and modification that a file on this machine has.
fn times(path: &Path) -> (SystemTime, SystemTime) {
    let found = std::fs::metadata(path).unwrap();
    (found.accessed().unwrap(), found.modified().unwrap())
}

/// As cp -p and tar: written, times set, closed. The generation dies before or after the close.
#[test]
fn times_that_were_set_survive_a_replay() {
    for traits in [LOCAL, SSHFS] {
        for (by_path, closed) in [(false, false), (true, false), (false, true), (true, true)] {
            let what = format!("{traits:?}, by path: {by_path}, closed: {closed}");
            let rig = Rig::new(traits);
            let file = open(&rig, "f");
            file.write_all_at(b"acknowledged", 0).unwrap();
            match by_path {
                true => {
                    let (atime, mtime) = (TimeSpec::new(2000, 0), TimeSpec::new(1000, 0));
                    utimensat(AT_FDCWD, &rig.hot("f"), &atime, &mtime, UtimensatFlags::NoFollowSymlink).unwrap();
                }
                false => file.set_times(FileTimes::new().set_accessed(at(2000)).set_modified(at(1000))).unwrap(),
            }
            let mut file = Some(file);
            if closed {
                assert_eq!(nix::unistd::close(file.take().unwrap()), Ok(()));
            }
            rig.outage();
            assert_eq!(rig.repair().failed.len(), 0);
            assert_eq!(times(&rig.cold("f")).1, at(1000), "{what}");
            if traits == LOCAL {
                assert_eq!(times(&rig.cold("f")).0, at(2000), "a repair looks, and reads nothing: {what}");
            }
            if let Some(file) = file {
                assert_eq!(file.metadata().unwrap().modified().unwrap(), at(1000), "{what}");
                assert_eq!(nix::unistd::close(file), Ok(()));
            }
            assert_eq!(times(&rig.hot("f")).1, at(1000), "{what}");
            assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"acknowledged", "{what}");
            assert_eq!(rig.control().calls(Call::Sync), 1, "as many as a close by itself: {what}");
        }
    }
}

#[test]
fn times_of_an_append_that_is_held_back_or_cut_survive_a_replay() {
    for traits in [LOCAL, SSHFS] {
        let rig = Rig::with(traits, PATIENCE, |config| config.gather = Duration::from_secs(3600));
        let held = OpenOptions::new().append(true).create_new(true).open(rig.hot("held")).unwrap();
        let cut = open(&rig, "cut");
        cut.write_all_at(b"0123456789", 0).unwrap();
        cut.sync_all().unwrap();
        std::io::Write::write_all(&mut &held, b"line\n").unwrap();
        cut.set_len(4).unwrap();
        for file in [&held, &cut] {
            file.set_modified(at(1000)).unwrap();
        }
        assert_eq!(rig.overlay.counts().log_bytes, 0);
        rig.outage();
        rig.repair();
        for name in ["held", "cut"] {
            assert_eq!(times(&rig.cold(name)).1, at(1000), "{name}");
        }
    }
}

/// "Now" is as well the moment of a replay: a touch costs no commit.
#[test]
fn a_touch_commits_nothing() {
    let rig = Rig::new(SSHFS);
    let file = open(&rig, "f");
    file.write_all_at(b"data", 0).unwrap();
    let now = TimeSpec::UTIME_NOW;
    utimensat(AT_FDCWD, &rig.hot("f"), &now, &now, UtimensatFlags::NoFollowSymlink).unwrap();
    file.set_permissions(Permissions::from_mode(0o640)).unwrap();
    assert_eq!(rig.control().calls(Call::Sync), 0);
    assert!(rig.overlay.counts().log_bytes > 0);
}

/// The generation dies in the commit, in the setting of the times before or after it was done.
#[test]
fn times_whose_setting_is_in_doubt_survive_a_replay() {
    for traits in [LOCAL, SSHFS] {
        for call in [Call::Sync, Call::SetTimes] {
            for lost in [What::Die, What::DieAfter] {
                let rig = Rig::new(traits);
                rig.hold_verdicts();
                let file = open(&rig, "f");
                file.write_all_at(b"acknowledged", 0).unwrap();
                rig.control().inject(Fault::new(lost).on(&[call]).times(1));
                std::thread::scope(|scope| {
                    let setting = scope.spawn(|| file.set_modified(at(1000)));
                    until(|| !rig.complaints.lock().is_empty());
                    rig.outage();
                    std::fs::write(rig.cold("f"), "acknow").unwrap();
                    if call == Call::SetTimes {
                        // It had been committed.
                        std::fs::write(rig.cold("f"), "acknowledged").unwrap();
                    }
                    rig.repair();
                    setting.join().expect("no panic").unwrap();
                });
                assert_eq!(times(&rig.cold("f")).1, at(1000), "{call:?} {lost:?}");
                rig.outage();
                rig.repair();
                assert_eq!(times(&rig.cold("f")).1, at(1000), "{call:?} {lost:?}");
                assert_eq!(nix::unistd::close(file), Ok(()));
                assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"acknowledged");
                assert_eq!(times(&rig.cold("f")).1, at(1000), "{call:?} {lost:?}");
            }
        }
    }
}

/// What cannot be committed is for fsync and close to tell.
#[test]
fn what_a_backing_refuses_before_times_are_set_is_told_by_fsync() {
    let rig = Rig::new(SSHFS);
    let file = open(&rig, "f");
    file.write_all_at(b"data", 0).unwrap();
    let full = rig.control().inject(Fault::new(What::Errno(Errno::EDQUOT)).on(&[Call::Sync]));
    file.set_modified(at(1000)).unwrap();
    assert_eq!(times(&rig.cold("f")).1, at(1000));
    rig.control().remove(full);
    assert_eq!(errno(file.sync_all()), Some(libc::EDQUOT));
    until(|| file.sync_all().is_ok());
    assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"data");
    assert!(rig.complaints.lock().is_empty());
}

/// A slow disk may take over a commit what it may take over an fsync; what commits nothing has the deadline of its kind.
#[test]
fn what_commits_first_has_the_deadline_of_an_fsync() {
    let rig = Rig::new(LOCAL);
    let file = open(&rig, "f");
    let sync_inside = |fault: Call, act: &(dyn Fn() + Sync)| {
        let hang = rig.control().inject(Fault::new(What::Hang).on(&[fault]));
        std::thread::scope(|scope| {
            let acting = scope.spawn(act);
            assert!(rig.control().wait_inside(1, PATIENCE));
            let inside = rig.gate.inside().sync.is_some();
            rig.control().remove(hang);
            acting.join().expect("no panic");
            inside
        })
    };
    let times = || file.set_modified(at(1000)).unwrap();
    let mode = || file.set_permissions(Permissions::from_mode(0o4755)).unwrap();
    let capability = || set_capability(&rig.hot("f"));
    let acts: [(&(dyn Fn() + Sync), Call); 3] =
        [(&times, Call::SetTimes), (&mode, Call::SetMode), (&capability, Call::SetXattr)];
    for (act, call) in acts {
        assert!(!sync_inside(call, act), "{call:?} of a file with nothing uncommitted");
        file.write_all_at(b"more", 0).unwrap();
        assert!(sync_inside(Call::Sync, act), "{call:?}");
        assert_eq!(rig.overlay.counts().log_bytes, 0);
    }
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).unwrap()
}

const CAPABILITY: &std::ffi::CStr = c"security.capability";

/// CAP_NET_BIND_SERVICE, as linux/capability.h has it (VFS_CAP_REVISION_2, effective).
fn set_capability(path: &Path) {
    let words = [0x0200_0001_u32, 1 << 10, 0, 0, 0];
    let value: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let path = c(path);
    // SAFETY: both strings end with NUL, and that many bytes can be read from the value.
    let done = unsafe { libc::setxattr(path.as_ptr(), CAPABILITY.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(done).expect("root may");
}

fn has_capability(path: &Path) -> bool {
    let path = c(path);
    // SAFETY: both strings end with NUL; only the length is asked for.
    unsafe { libc::getxattr(path.as_ptr(), CAPABILITY.as_ptr(), std::ptr::null_mut(), 0) > 0 }
}

#[test]
fn a_capability_survives_a_replay() {
    let rig = Rig::new(LOCAL);
    let file = open(&rig, "f");
    file.write_all_at(b"program", 0).unwrap();
    set_capability(&rig.hot("f"));
    rig.outage();
    rig.repair();
    assert!(has_capability(&rig.cold("f")), "no write came after it");
    assert_eq!(nix::unistd::close(file), Ok(()));
    assert!(has_capability(&rig.hot("f")) && has_capability(&rig.cold("f")));
    assert_eq!(rig.control().calls(Call::Sync), 1);
    // A write takes it away, as anywhere.
    open(&rig, "f").write_all_at(b"P", 0).unwrap();
    assert!(!has_capability(&rig.cold("f")));
}

/// Sent again by a daemon that is not root, a write would take setuid and setgid away: there is none that could be.
#[test]
fn setuid_and_setgid_are_set_when_everything_is_committed() {
    let rig = Rig::new(LOCAL);
    let file = open(&rig, "f");
    for mode in [0o4755, 0o2755, 0o6755] {
        file.write_all_at(b"program", 0).unwrap();
        assert!(rig.overlay.counts().log_bytes > 0);
        file.set_permissions(Permissions::from_mode(mode)).unwrap();
        assert_eq!(rig.overlay.counts().log_bytes, 0);
        rig.outage();
        assert_eq!(rig.repair().replayed, 0);
        assert_eq!(std::fs::metadata(rig.cold("f")).unwrap().mode() & 0o7777, mode);
    }
}

/// chattr +i: what was acknowledged before is on the backing, although nobody may write there any more.
#[test]
fn a_file_that_is_made_immutable_has_what_was_written_before() {
    let rig = Rig::new(LOCAL);
    let file = open(&rig, "f");
    let set = |flags: u32| {
        // SAFETY: FS_IOC_SETFLAGS reads an int.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), 0x4008_6602, &flags) })
    };
    let mut before = 0_u32;
    // SAFETY: FS_IOC_GETFLAGS writes an int.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), 0x8008_6601, &mut before) }).expect("it has flags");
    file.write_all_at(b"acknowledged", 0).unwrap();
    set(before | 0x10).expect("root may");
    let (uncommitted, report) = (rig.overlay.counts().log_bytes, {
        rig.outage();
        rig.repair()
    });
    let synced = file.sync_all();
    set(before).expect("root may");
    assert_eq!((uncommitted, report.replayed), (0, 0));
    synced.unwrap();
    assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"acknowledged");
}

/// Drops what the kernel has of a file, so that a read reaches the backing.
fn forget_pages(file: &File) {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
}

#[test]
fn a_read_that_reaches_the_backing_moves_the_time_of_access_as_there() {
    let rig = Rig::new(LOCAL);
    std::fs::write(rig.cold("plain"), "text").unwrap();
    std::fs::write(rig.cold("f"), "text").unwrap();
    let mut byte = [0];
    let old = FileTimes::new().set_accessed(at(1000)).set_modified(at(2000));
    let all = || OpenOptions::new().write(true).open(rig.cold("f")).unwrap();
    let moved = |name: &str| times(&rig.cold(name)).0 != at(1000);
    for flags in [0, libc::O_NOATIME] {
        for access in [libc::O_RDONLY, libc::O_RDWR] {
            let open = |path: &Path| {
                let mut options = OpenOptions::new();
                options.read(true).write(access == libc::O_RDWR).custom_flags(flags).open(path).unwrap()
            };
            let (plain, file) = (open(&rig.cold("plain")), open(&rig.hot("f")));
            for repaired in [false, true] {
                let what = format!("flags {flags:#o}, access {access}, repaired: {repaired}");
                if repaired {
                    rig.outage();
                    rig.repair();
                }
                plain
                    .set_times(old)
                    .or_else(|_| std::fs::File::options().write(true).open(rig.cold("plain")).unwrap().set_times(old))
                    .unwrap();
                all().set_times(old).unwrap();
                forget_pages(&plain);
                forget_pages(&file);
                plain.read_exact_at(&mut byte, 0).unwrap();
                let reads = rig.control().calls(Call::Read);
                file.read_exact_at(&mut byte, 0).unwrap();
                assert!(rig.control().calls(Call::Read) > reads, "{what}");
                assert_eq!(moved("f"), moved("plain"), "{what}");
                assert!(flags == 0 || !moved("f"), "{what}");
                assert_eq!(file.metadata().unwrap().accessed().unwrap(), times(&rig.cold("f")).0, "{what}");
            }
        }
    }
}
