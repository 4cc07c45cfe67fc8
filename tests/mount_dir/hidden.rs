//! Files that lose their name while they are open, on a backing like sshfs.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use parking_lot::Mutex;
use steadfs::backing::fake::{Call, Fault, What};

use crate::rig::{LOCAL, PATIENCE, Rig, SSHFS, errno, names, until};

fn open(rig: &Rig, name: &str) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(rig.hot(name)).expect("opened")
}

fn text(file: &File) -> String {
    let mut buf = [0; 64];
    let length = file.read_at(&mut buf, 0).expect("read");
    String::from_utf8_lossy(&buf[..length]).into_owned()
}

#[test]
fn an_unlinked_file_is_kept_under_a_name_that_nobody_sees_until_its_last_close() {
    let rig = Rig::new(SSHFS);
    let mut file = open(&rig, "f");
    file.write_all(b"kept").unwrap();
    file.sync_all().unwrap();
    std::fs::remove_file(rig.hot("f")).unwrap();
    assert!(names(rig.mountpoint()).is_empty());
    let cold = rig.cold_names("");
    assert_eq!(cold.len(), 1);
    assert_eq!(errno(std::fs::metadata(rig.hot(&cold[0]))), Some(libc::ENOENT));
    assert_eq!(errno(std::fs::remove_file(rig.hot(&cold[0]))), Some(libc::ENOENT));
    assert_eq!(errno(File::create(rig.hot(&cold[0]))), Some(libc::EPERM));
    let ino = file.metadata().unwrap().ino();
    rig.outage();
    assert_eq!(rig.repair().reopened, 1);
    assert_eq!((text(&file).as_str(), file.metadata().unwrap().ino()), ("kept", ino));
    let second = file.try_clone().unwrap();
    drop(file);
    assert_eq!(rig.cold_names("").len(), 1);
    drop(second);
    until(|| rig.cold_names("").is_empty());
    assert_eq!(rig.overlay.counts().open_files, 0);
}

#[test]
fn a_new_file_under_the_old_name_is_another_one() {
    let rig = Rig::new(SSHFS);
    let old = open(&rig, "f");
    old.write_all_at(b"old", 0).unwrap();
    std::fs::remove_file(rig.hot("f")).unwrap();
    let new = open(&rig, "f");
    new.write_all_at(b"new!", 0).unwrap();
    assert_ne!(old.metadata().unwrap().ino(), new.metadata().unwrap().ino());
    rig.outage();
    rig.repair();
    assert_eq!((text(&old).as_str(), text(&new).as_str()), ("old", "new!"));
}

#[test]
fn a_file_that_is_renamed_over_goes_on_for_those_who_have_it_open() {
    let rig = Rig::new(SSHFS);
    let old = open(&rig, "state");
    old.write_all_at(b"old", 0).unwrap();
    std::fs::write(rig.hot("state.tmp"), "new!").unwrap();
    std::fs::rename(rig.hot("state.tmp"), rig.hot("state")).unwrap();
    assert_eq!(std::fs::read_to_string(rig.hot("state")).unwrap(), "new!");
    old.write_all_at(b"still old", 0).unwrap();
    rig.outage();
    rig.repair();
    assert_eq!(text(&old), "still old");
    assert_eq!(std::fs::read_to_string(rig.hot("state")).unwrap(), "new!");
    assert_eq!(names(rig.mountpoint()), ["state"]);
    drop(old);
    until(|| rig.cold_names("") == ["state"]);
}

#[test]
fn a_directory_goes_although_files_in_it_are_open() {
    let rig = Rig::new(SSHFS);
    std::fs::create_dir_all(rig.hot("a/b")).unwrap();
    let (one, two) = (open(&rig, "a/b/one"), open(&rig, "a/two"));
    one.write_all_at(b"one", 0).unwrap();
    std::fs::remove_dir_all(rig.hot("a")).unwrap();
    assert!(!rig.cold("a").exists());
    assert!(names(rig.mountpoint()).is_empty());
    rig.outage();
    assert_eq!(rig.repair().reopened, 2);
    assert_eq!(text(&one), "one");
    drop((one, two));
    until(|| rig.cold_names("").is_empty());
}

#[test]
fn a_directory_goes_although_a_dead_sshfs_left_hidden_files_in_it() {
    let rig = Rig::new(SSHFS);
    std::fs::create_dir(rig.hot("d")).unwrap();
    std::fs::write(rig.cold("d/.fuse_hidden0000000400000001"), "left by a dead sshfs").unwrap();
    assert!(names(&rig.hot("d")).is_empty());
    // sshfs says EPERM where it means ENOTEMPTY.
    rig.control().inject(Fault::new(What::Errno(Errno::EPERM)).on(&[Call::Rmdir]).times(1));
    std::fs::remove_dir(rig.hot("d")).unwrap();
    assert!(rig.cold_names("").is_empty());
    std::fs::create_dir(rig.hot("e")).unwrap();
    std::fs::write(rig.hot("e/f"), "x").unwrap();
    assert_eq!(errno(std::fs::remove_dir(rig.hot("e"))), Some(libc::ENOTEMPTY));
    assert_eq!(names(&rig.hot("e")), ["f"]);
}

#[test]
fn a_directory_with_a_hidden_file_of_another_overlay_stays_and_somebody_is_told() {
    let rig = Rig::new(SSHFS);
    let notices: Arc<Mutex<Vec<String>>> = Arc::default();
    let told = Arc::clone(&notices);
    rig.overlay.on_notice(Box::new(move |words| told.lock().push(words)));
    std::fs::create_dir(rig.hot("d")).unwrap();
    let foreign = ".steadfs-hidden-000000000000000000000001deadbeef";
    std::fs::write(rig.cold("d").join(foreign), "open elsewhere").unwrap();
    std::fs::write(rig.cold("d/.fuse_hidden0000000400000001"), "x").unwrap();
    assert_eq!(errno(std::fs::remove_dir(rig.hot("d"))), Some(libc::ENOTEMPTY));
    assert_eq!(rig.cold_names("d").len(), 2, "all or nothing");
    assert!(notices.lock()[0].contains(foreign), "{notices:?}");
    assert_eq!(errno(std::fs::remove_file(rig.hot("d").join(foreign))), Some(libc::ENOENT));
}

#[test]
fn what_is_closed_in_an_outage_is_removed_after_it() {
    let rig = Rig::with(SSHFS, std::time::Duration::from_millis(200), |_| {});
    let file = open(&rig, "f");
    std::fs::remove_file(rig.hot("f")).unwrap();
    rig.outage();
    until(|| rig.gate.fails_fast());
    drop(file);
    until(|| rig.overlay.counts().open_files == 0);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(rig.cold_names("").len(), 1);
    rig.repair();
    until(|| rig.cold_names("").is_empty());
}

#[test]
fn hidden_names_are_no_links() {
    let rig = Rig::new(SSHFS);
    let mut file = open(&rig, "f");
    file.write_all(b"kept").unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 1);
    std::fs::remove_file(rig.hot("f")).unwrap();
    // What the kernel remembers is not believed after a write.
    file.write_all(b"more").unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
}

/// An sshfs says of every file that it has one name.
#[test]
fn a_link_that_goes_leaves_the_other_name_as_it_was() {
    let rig = Rig::new(SSHFS);
    open(&rig, "f").write_all(b"kept").unwrap();
    for _ in 0..3 {
        std::fs::hard_link(rig.hot("f"), rig.hot("g")).unwrap();
        assert_eq!(std::fs::metadata(rig.hot("f")).unwrap().nlink(), 2);
        std::fs::remove_file(rig.hot("g")).unwrap();
        assert_eq!(std::fs::metadata(rig.hot("f")).unwrap().nlink(), 1);
    }
}

#[test]
fn a_file_without_a_name_is_opened_again_by_its_descriptor() {
    for traits in [LOCAL, SSHFS] {
        let rig = Rig::new(traits);
        let mut file = open(&rig, "f");
        file.write_all(b"kept").unwrap();
        std::fs::remove_file(rig.hot("f")).unwrap();
        let again = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        assert_eq!(std::fs::read(&again).unwrap(), b"kept");
        OpenOptions::new().write(true).open(&again).unwrap().write_all(b"K").unwrap();
        assert_eq!(text(&file), "Kept");
        File::create(&again).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
    }
}

#[test]
fn a_name_that_is_replaced_again_and_again_can_always_be_opened() {
    let rig = Rig::new(LOCAL);
    let target = rig.hot("target");
    std::fs::write(&target, "0").unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..2 {
            let (rig, target, done) = (&rig, &target, &done);
            scope.spawn(move || {
                for turn in 0..400 {
                    let new = rig.hot(&format!("new-{number}"));
                    std::fs::write(&new, turn.to_string()).unwrap();
                    std::fs::rename(&new, target).unwrap();
                }
                done.store(true, Ordering::SeqCst);
            });
        }
        while !done.load(Ordering::SeqCst) {
            let text = std::fs::read_to_string(&target).unwrap();
            assert!(text.parse::<u32>().unwrap() < 400);
            assert!(std::fs::metadata(&target).unwrap().len() > 0);
        }
    });
    // Nothing is kept that the kernel has forgotten.
    until(|| deleted(&rig.cold("target")) == 0);
}

/// Descriptors of this process, which serves the mount, on files that had that name.
fn deleted(path: &Path) -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    all.filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter(|found| found.to_string_lossy().contains(path.to_str().unwrap()))
        .count()
}

/// The kernel tells nobody of a descriptor by O_PATH.
#[test]
fn a_file_that_lost_its_name_is_shown_by_a_descriptor_of_its_path() {
    let rig = Rig::new(LOCAL);
    std::fs::write(rig.hot("f"), "kept").unwrap();
    let path = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(rig.hot("f")).unwrap();
    let again = PathBuf::from(format!("/proc/self/fd/{}", path.as_raw_fd()));
    std::fs::remove_file(rig.hot("f")).unwrap();
    std::fs::set_permissions(&again, std::fs::Permissions::from_mode(0o604)).unwrap();
    let found = path.metadata().unwrap();
    assert_eq!((found.nlink(), found.len(), found.mode() & 0o7777), (0, 4, 0o604));
    assert_eq!(std::fs::read(&again).unwrap(), b"kept");
    drop(path);
    until(|| deleted(&rig.cold("f")) == 0);
}

#[test]
fn a_removed_directory_can_be_looked_at_by_those_who_are_in_it() {
    let rig = Rig::new(LOCAL);
    std::fs::create_dir(rig.hot("d")).unwrap();
    let directory = File::open(rig.hot("d")).unwrap();
    std::fs::remove_dir(rig.hot("d")).unwrap();
    // What the kernel remembers of it is dropped with any change.
    directory.set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
    let found = directory.metadata().unwrap();
    assert!(found.is_dir() && found.nlink() == 0);
    directory.set_permissions(std::fs::Permissions::from_mode(0o711)).unwrap();
    assert_eq!(directory.metadata().unwrap().mode() & 0o7777, 0o711);
    directory.sync_all().unwrap();
    assert_eq!(errno(std::fs::metadata(rig.hot("d"))), Some(libc::ENOENT));
}

#[test]
fn a_removed_directory_can_be_synced_as_on_a_local_filesystem() {
    /// What fsync and a listing say of a directory that was removed while it was open.
    fn said(directory: &File) -> (Option<i32>, Option<i32>) {
        let synced = directory.sync_all().err().and_then(|error| error.raw_os_error());
        let mut buffer = [0_u8; 4096];
        // SAFETY: no more is written than the buffer has.
        let read =
            unsafe { libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) };
        (synced, Errno::result(read).err().map(|errno| errno as i32))
    }
    let plain = tempfile::tempdir().unwrap();
    let local = File::open(plain.path()).unwrap();
    plain.close().unwrap();
    let wanted = said(&local);
    assert_eq!(wanted, (None, Some(libc::ENOENT)));
    for traits in [LOCAL, SSHFS] {
        let rig = Rig::new(traits);
        std::fs::create_dir(rig.hot("d")).unwrap();
        let directory = File::open(rig.hot("d")).unwrap();
        std::fs::remove_dir(rig.hot("d")).unwrap();
        assert_eq!(said(&directory), wanted);
        // Another one takes the name.
        std::fs::create_dir(rig.hot("d")).unwrap();
        let synced = rig.control().calls(Call::SyncDir);
        assert_eq!(said(&directory), wanted);
        assert_eq!(rig.control().calls(Call::SyncDir), synced, "it is not that one that is synced");
        rig.outage();
        rig.repair();
        assert_eq!(said(&directory), wanted);
        assert!(rig.complaints.lock().is_empty());
    }
}

#[test]
fn a_directory_goes_although_its_hidden_file_goes_meanwhile() {
    let rig = Rig::new(SSHFS);
    std::fs::create_dir(rig.hot("d")).unwrap();
    let file = open(&rig, "d/f");
    std::fs::remove_file(rig.hot("d/f")).unwrap();
    let hidden = rig.cold_names("d");
    // It is there when the directory is to be removed, and not any more when steadfs looks what is in the way.
    let held = rig.control().inject(Fault::new(What::Hang).on(&[Call::ReadDir]).path("d").times(1));
    std::thread::scope(|scope| {
        let removing = scope.spawn(|| std::fs::remove_dir(rig.hot("d")));
        assert!(rig.control().wait_inside(1, PATIENCE));
        std::fs::remove_file(rig.cold("d").join(&hidden[0])).unwrap();
        rig.control().remove(held);
        removing.join().expect("no panic").expect("removed");
    });
    drop(file);
}

#[test]
fn a_directory_goes_although_its_hidden_file_is_closed_while_it_is_looked_at() {
    let rig = Rig::new(SSHFS);
    // The second look takes longer than a directory is tried again and again: its server is busy with a large file's removal.
    for look in [20, 400].map(std::time::Duration::from_millis) {
        std::fs::create_dir(rig.hot("d")).unwrap();
        let file = open(&rig, "d/f");
        std::fs::remove_file(rig.hot("d/f")).unwrap();
        // It is in the listing, and not ours any more when the listing is looked through.
        let held = rig.control().inject(Fault::new(What::HangAfter).on(&[Call::ReadDir]).path("d").times(1));
        std::thread::scope(|scope| {
            let removing = scope.spawn(|| std::fs::remove_dir(rig.hot("d")));
            assert!(rig.control().wait_inside(1, PATIENCE));
            drop(file);
            until(|| rig.cold_names("d").is_empty());
            // Until that has been noted.
            std::thread::sleep(look);
            rig.control().remove(held);
            removing.join().expect("no panic").expect("removed");
        });
        assert!(rig.cold_names("").is_empty());
    }
}

#[test]
fn a_directory_goes_although_sshfs_hides_a_file_in_it_once_more() {
    let rig = Rig::new(SSHFS);
    let libfuses = ".fuse_hidden0000000400000001";
    let (d, e) = (rig.hot("d"), rig.hot("e"));
    std::fs::create_dir(&d).unwrap();
    std::fs::create_dir(&e).unwrap();
    for refused in [Call::Rmdir, Call::Rename] {
        std::fs::write(rig.cold("d").join(libfuses), "closed a moment ago").unwrap();
        // The name that was found is removed, and another one is there before it is tried again.
        let fault = rig.control().inject(Fault::new(What::Errno(Errno::EPERM)).on(&[refused]).times(2));
        match refused {
            Call::Rmdir => std::fs::remove_dir(&d).unwrap(),
            _ => std::fs::rename(&e, &d).unwrap(),
        }
        rig.control().remove(fault);
        let _ = std::fs::create_dir(&d);
    }
    // One that may not be removed is not tried for ever.
    let before = rig.control().calls(Call::Rmdir);
    rig.control().inject(Fault::new(What::Errno(Errno::EPERM)).on(&[Call::Rmdir]));
    assert_eq!(errno(std::fs::remove_dir(&d)), Some(libc::EPERM));
    assert_eq!(rig.control().calls(Call::Rmdir) - before, 2);
}
