//! Files: data, sizes, attributes, times, owners.

use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use steadfs::backing::fake::{Call, Fault, What};

use crate::rig::{LOCAL, PATIENCE, Rig, SSHFS, errno};

#[test]
fn what_is_written_is_on_the_backing_and_can_be_read_again() {
    let rig = Rig::new(LOCAL);
    let data: Vec<u8> = (0..3_000_000_u32).map(|i| ((i * 7) >> 3) as u8).collect();
    std::fs::write(rig.hot("f"), &data).unwrap();
    assert!(std::fs::read(rig.cold("f")).unwrap() == data);
    assert!(std::fs::read(rig.hot("f")).unwrap() == data);
    let file = File::open(rig.hot("f")).unwrap();
    let mut part = vec![0; 70_000];
    file.read_exact_at(&mut part, 1_234_567).unwrap();
    assert!(part == data[1_234_567..1_304_567]);
    assert_eq!(file.read_at(&mut part, 3_000_000).unwrap(), 0);
    assert_eq!(file.metadata().unwrap().len(), 3_000_000);
    assert!(rig.complaints.lock().is_empty());
}

#[test]
fn appending_writers_do_not_overwrite_each_other() {
    let rig = Rig::prompt(SSHFS, PATIENCE);
    let open = || OpenOptions::new().append(true).create(true).open(rig.hot("log")).unwrap();
    let (mut one, mut two) = (open(), open());
    for i in 0..50 {
        writeln!(one, "one {i}").unwrap();
        writeln!(two, "two {i}").unwrap();
    }
    let text = std::fs::read_to_string(rig.cold("log")).unwrap();
    assert_eq!(text.lines().count(), 100);
    assert_eq!(text.lines().nth(1), Some("two 0"));
}

#[test]
fn sizes_change_by_truncate_ftruncate_and_o_trunc() {
    let rig = Rig::new(LOCAL);
    std::fs::write(rig.hot("f"), "0123456789").unwrap();
    let file = OpenOptions::new().write(true).open(rig.hot("f")).unwrap();
    file.set_len(4).unwrap();
    assert_eq!(std::fs::read_to_string(rig.cold("f")).unwrap(), "0123");
    nix::unistd::truncate(&rig.hot("f"), 6).unwrap();
    assert_eq!(std::fs::read(rig.cold("f")).unwrap(), b"0123\0\0");
    File::create(rig.hot("f")).unwrap().write_all(b"new").unwrap();
    assert_eq!(std::fs::read_to_string(rig.cold("f")).unwrap(), "new");
    assert_eq!(std::fs::metadata(rig.hot("f")).unwrap().len(), 3);
}

#[test]
fn exclusive_creation_and_modes_are_the_callers() {
    let rig = Rig::new(LOCAL);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o4640);
    options.open(rig.hot("f")).unwrap();
    assert_eq!(errno(options.open(rig.hot("f"))), Some(libc::EEXIST));
    assert_eq!(std::fs::metadata(rig.cold("f")).unwrap().mode() & 0o7777, 0o4640);
    std::fs::set_permissions(rig.hot("f"), PermissionsExt::from_mode(0o604)).unwrap();
    assert_eq!(std::fs::metadata(rig.cold("f")).unwrap().mode() & 0o7777, 0o604);
    std::os::unix::fs::chown(rig.hot("f"), Some(12), Some(34)).unwrap();
    let cold = std::fs::metadata(rig.cold("f")).unwrap();
    assert_eq!((cold.uid(), cold.gid()), (12, 34));
    let hot = std::fs::metadata(rig.hot("f")).unwrap();
    assert_eq!((hot.uid(), hot.gid(), hot.mode() & 0o7777), (12, 34, 0o604));
}

/// Sets a list of access, (tag, permissions, id) each, as linux/posix_acl_xattr.h has it.
fn set_list(path: &Path, attribute: &CStr, entries: &[(u16, u16, u32)]) {
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    let path = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: both strings end with NUL, and that many bytes can be read from the list.
    let done = unsafe { libc::setxattr(path.as_ptr(), attribute.as_ptr(), list.as_ptr().cast(), list.len(), 0) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn lists_of_access_are_obeyed_and_passed_on() {
    // Tags of acl(5): owner, a user, group, mask, others.
    let (owner, user, group, mask, others, nobody) = (1, 2, 4, 16, 32, u32::MAX);
    let rig = Rig::new(LOCAL);
    std::fs::set_permissions(rig.mountpoint(), PermissionsExt::from_mode(0o755)).unwrap();
    let shell = |uid: u32, words: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", words]).current_dir(rig.mountpoint());
        command.uid(uid).gid(uid).output().expect("sh runs").status.success()
    };
    let mode = |name: &str| {
        let modes = [rig.hot(name), rig.cold(name)].map(|path| std::fs::metadata(path).unwrap().mode() & 0o7777);
        assert_eq!(modes[0], modes[1], "{name}");
        modes[0]
    };
    std::fs::write(rig.hot("f"), "x").unwrap();
    std::fs::set_permissions(rig.hot("f"), PermissionsExt::from_mode(0o600)).unwrap();
    let entries = [(owner, 6, nobody), (user, 4, 1234), (group, 0, nobody), (mask, 4, nobody), (others, 0, nobody)];
    set_list(&rig.hot("f"), c"system.posix_acl_access", &entries);
    assert!(shell(1234, "cat f") && !shell(1234, "echo >> f") && !shell(1235, "cat f"));
    assert_eq!(mode("f"), 0o640);
    // The mask is what chmod sets.
    std::fs::set_permissions(rig.hot("f"), PermissionsExt::from_mode(0o600)).unwrap();
    assert!(!shell(1234, "cat f"));

    std::fs::create_dir(rig.hot("d")).unwrap();
    std::fs::set_permissions(rig.hot("d"), PermissionsExt::from_mode(0o777)).unwrap();
    let entries = [(owner, 7, nobody), (user, 7, 1234), (group, 5, nobody), (mask, 7, nobody), (others, 0, nobody)];
    set_list(&rig.hot("d"), c"system.posix_acl_default", &entries);
    let make = "umask 077; echo x > d/f && mkdir d/s && mkfifo d/p && echo x > g && mkdir h && mkfifo q";
    assert!(shell(0, make));
    // Where a list is passed on the umask does not count.
    assert_eq!(["d/f", "d/s", "d/p", "g", "h", "q"].map(mode), [0o660, 0o770, 0o660, 0o600, 0o700, 0o600]);
    assert!(shell(1234, "cat d/f && echo >> d/f && echo > d/s/t") && !shell(1235, "cat d/f"));
    assert_eq!(mode("d/s/t"), 0o660);
}

#[test]
fn an_open_that_truncates_takes_setuid_away() {
    let rig = Rig::new(LOCAL);
    std::fs::set_permissions(rig.mountpoint(), PermissionsExt::from_mode(0o755)).unwrap();
    let truncated = |uid: u32, mode: u32| {
        std::fs::write(rig.hot("f"), "x").unwrap();
        std::os::unix::fs::chown(rig.hot("f"), Some(1234), Some(1234)).unwrap();
        std::fs::set_permissions(rig.hot("f"), PermissionsExt::from_mode(mode)).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", ": > f"]).current_dir(rig.mountpoint()).uid(uid).gid(uid);
        assert!(command.status().unwrap().success());
        let modes = [rig.hot("f"), rig.cold("f")].map(|path| std::fs::metadata(path).unwrap().mode() & 0o7777);
        assert_eq!(modes[0], modes[1]);
        modes[0]
    };
    // Setgid without execution by the group is another thing; root keeps all of it.
    assert_eq!([0o6755, 0o4644, 0o2644].map(|mode| truncated(1234, mode)), [0o755, 0o644, 0o2644]);
    assert_eq!(truncated(0, 0o6755), 0o6755);
}

#[test]
fn what_the_backing_does_not_give_away_is_made_all_the_same() {
    let rig = Rig::new(LOCAL);
    std::fs::create_dir(rig.hot("d")).unwrap();
    std::fs::set_permissions(rig.hot("d"), PermissionsExt::from_mode(0o777)).unwrap();
    std::fs::set_permissions(rig.mountpoint(), PermissionsExt::from_mode(0o755)).unwrap();
    let make = || {
        let mut command = Command::new("sh");
        command.args(["-c", "echo x > d/f && mkdir d/s && ln -s x d/l && mkfifo d/p"]).current_dir(rig.mountpoint());
        let made = command.uid(65534).gid(65534).output().expect("sh runs").status.success();
        (made, rig.cold_names("d"))
    };
    for refusal in [Errno::EPERM, Errno::EACCES, Errno::EINVAL, Errno::ENOSYS, Errno::EOPNOTSUPP] {
        let fault = rig.control().inject(Fault::new(What::Errno(refusal)).on(&[Call::SetOwner]));
        assert_eq!(make(), (true, ["f", "l", "p", "s"].map(String::from).to_vec()), "{refusal}");
        assert_eq!(std::fs::metadata(rig.cold("d/f")).unwrap().uid(), 0);
        rig.control().remove(fault);
        for name in ["f", "l", "p"] {
            std::fs::remove_file(rig.hot("d").join(name)).unwrap();
        }
        std::fs::remove_dir(rig.hot("d/s")).unwrap();
    }
    rig.control().inject(Fault::new(What::Errno(Errno::EROFS)).on(&[Call::SetOwner]));
    assert!(!make().0);
}

#[test]
fn what_a_user_makes_is_the_users_and_permissions_hold() {
    let rig = Rig::new(LOCAL);
    for (name, mode) in [("open", 0o777), ("shut", 0o755), ("team", 0o2777)] {
        std::fs::create_dir(rig.hot(name)).unwrap();
        std::fs::set_permissions(rig.hot(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    std::os::unix::fs::chown(rig.hot("team"), None, Some(77)).unwrap();
    std::fs::set_permissions(rig.mountpoint(), PermissionsExt::from_mode(0o755)).unwrap();
    let as_nobody = |script: &str| {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).current_dir(rig.mountpoint()).uid(65534).gid(65534);
        command.output().expect("sh runs").status.success()
    };
    assert!(as_nobody("umask 027; : > open/f; mkdir open/d; ln -s x open/l; mkfifo open/p; : > team/f; mkdir team/d"));
    for (name, mode, gid) in [
        ("open/f", 0o640, 65534),
        ("open/d", 0o750, 65534),
        ("open/l", 0o777, 65534),
        ("open/p", 0o640, 65534),
        ("team/f", 0o640, 77),
        ("team/d", 0o2750, 77),
    ] {
        let cold = std::fs::symlink_metadata(rig.cold(name)).unwrap();
        assert_eq!((cold.uid(), cold.gid(), cold.mode() & 0o7777), (65534, gid, mode), "{name}");
    }
    assert!(!as_nobody(": > shut/f"));
    std::fs::write(rig.hot("open/secret"), "s").unwrap();
    std::fs::set_permissions(rig.hot("open/secret"), PermissionsExt::from_mode(0o600)).unwrap();
    assert!(!as_nobody("cat open/secret"));
    assert!(!as_nobody(": > open/secret"));
}

#[test]
fn a_file_that_appeared_behind_the_kernels_back_is_opened_with_its_permissions_checked() {
    let rig = Rig::with(LOCAL, crate::rig::PATIENCE, |config| config.entry_timeout = Some(Duration::from_secs(60)));
    std::fs::set_permissions(rig.cold(""), PermissionsExt::from_mode(0o777)).unwrap();
    assert!(!rig.hot("f").exists());
    std::fs::write(rig.cold("f"), "theirs").unwrap();
    std::fs::set_permissions(rig.cold("f"), PermissionsExt::from_mode(0o600)).unwrap();
    let script = "exec 3<>f";
    let output = Command::new("sh")
        .arg("-c")
        .arg(script)
        .current_dir(rig.mountpoint())
        .uid(65534)
        .gid(65534)
        .output()
        .expect("sh runs");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("ermission denied"), "{output:?}");
    assert_eq!(OpenOptions::new().create(true).append(true).open(rig.hot("f")).unwrap().metadata().unwrap().len(), 6);
    assert!(rig.complaints.lock().is_empty());
}

#[test]
fn times_are_set_now_or_not_at_all() {
    let rig = Rig::new(LOCAL);
    std::fs::write(rig.hot("f"), "x").unwrap();
    let (atime, mtime) = (TimeSpec::new(1_000_000_000, 5), TimeSpec::new(1_100_000_000, 123_456_789));
    let set = |atime: &TimeSpec, mtime: &TimeSpec| {
        utimensat(nix::fcntl::AT_FDCWD, &rig.hot("f"), atime, mtime, UtimensatFlags::NoFollowSymlink).unwrap();
        let cold = std::fs::metadata(rig.cold("f")).unwrap();
        assert_eq!(cold.mtime(), std::fs::metadata(rig.hot("f")).unwrap().mtime());
        ((cold.atime(), cold.atime_nsec()), (cold.mtime(), cold.mtime_nsec()))
    };
    assert_eq!(set(&atime, &mtime), ((1_000_000_000, 5), (1_100_000_000, 123_456_789)));
    let before = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
    let (atime, mtime) = set(&TimeSpec::UTIME_OMIT, &TimeSpec::UTIME_NOW);
    assert_eq!(atime, (1_000_000_000, 5));
    assert!(mtime.0 >= before - 1);
}

#[test]
fn an_unlinked_file_goes_on_for_those_who_have_it_open() {
    let rig = Rig::new(LOCAL);
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(rig.hot("f")).unwrap();
    file.write_all(b"one").unwrap();
    std::fs::remove_file(rig.hot("f")).unwrap();
    assert!(rig.cold_names("").is_empty());
    file.write_all(b"two").unwrap();
    assert_eq!(file.metadata().unwrap().len(), 6);
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "onetwo");
}

#[test]
fn holes_preallocation_and_copies_reach_the_backing() {
    let rig = Rig::new(LOCAL);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(rig.hot("f")).unwrap();
    file.write_all_at(b"end", 1 << 20).unwrap();
    let data = nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekData).unwrap();
    let hole = nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekHole).unwrap();
    assert_eq!((data, hole), (1 << 20, 0));
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, 3 << 20).unwrap();
    assert_eq!(std::fs::metadata(rig.cold("f")).unwrap().len(), 3 << 20);
    let copy = File::create(rig.hot("copy")).unwrap();
    let (mut from, mut done) = (0, 0);
    while done < 3 << 20 {
        // SAFETY: both descriptors are open and the offset is a local.
        let copied = unsafe {
            libc::copy_file_range(file.as_raw_fd(), &mut from, copy.as_raw_fd(), std::ptr::null_mut(), 3 << 20, 0)
        };
        assert!(copied > 0, "{}", std::io::Error::last_os_error());
        done += copied;
    }
    assert!(std::fs::read(rig.cold("copy")).unwrap() == std::fs::read(rig.cold("f")).unwrap());
}

#[test]
fn fsync_reaches_the_backing_and_a_clean_close_does_not() {
    use steadfs::backing::fake::Call;
    let rig = Rig::new(LOCAL);
    let mut file = File::create(rig.hot("f")).unwrap();
    file.write_all(b"x").unwrap();
    file.sync_all().unwrap();
    assert_eq!(rig.control().calls(Call::Sync), 1);
    drop(file);
    assert_eq!(rig.control().calls(Call::Sync), 1, "nothing was written since");
    std::fs::write(rig.hot("g"), "y").unwrap();
    assert_eq!(rig.control().calls(Call::Sync), 2, "close commits what was written");
    File::open(rig.mountpoint()).unwrap().sync_all().unwrap();
    assert_eq!((rig.control().calls(Call::SyncDir), rig.control().calls(Call::ReadDir)), (1, 0));
}

#[test]
fn a_full_store_says_so() {
    use nix::errno::Errno;
    use steadfs::backing::fake::{Call, Fault, What};
    let rig = Rig::prompt(LOCAL, PATIENCE);
    let mut file = File::create(rig.hot("f")).unwrap();
    // Without room the backing's EIO is ENOSPC; with room it stays what it is.
    rig.control().inject(Fault::new(What::Errno(Errno::EIO)).on(&[Call::Write]).times(1));
    assert_eq!(errno(file.write_all(b"x")), Some(libc::EIO));
    rig.control().inject(Fault::new(What::Short(3)).on(&[Call::Write]));
    file.write_all(b"in pieces").unwrap();
    assert_eq!(std::fs::read_to_string(rig.cold("f")).unwrap(), "in pieces");
}

#[test]
fn a_quota_that_is_full_is_told_as_such() {
    let rig = Rig::prompt(LOCAL, PATIENCE);
    let mut file = File::create(rig.hot("f")).unwrap();
    rig.control().inject(Fault::new(What::Errno(Errno::EDQUOT)).on(&[Call::Write, Call::Create, Call::Mkdir]));
    assert_eq!(errno(file.write_all(b"too much")), Some(libc::EDQUOT));
    assert_eq!(errno(File::create(rig.hot("g"))), Some(libc::EDQUOT));
    assert_eq!(errno(std::fs::create_dir(rig.hot("d"))), Some(libc::EDQUOT));
    rig.control().clear_faults();
    file.write_all(b"enough").unwrap();
    file.sync_all().unwrap();
    assert!(rig.complaints.lock().is_empty());
}
