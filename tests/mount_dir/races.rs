//! Names that change while a call is on its way, by our own hand or behind our back: no file is ever taken for another.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use steadfs::backing::fake::{Call, Fault, What};

use crate::rig::{LOCAL, PATIENCE, Rig, SSHFS, errno, until};

/// Long enough for another call to overtake.
const WHILE: Duration = Duration::from_millis(300);

/// A kernel that believes in names, or in nothing.
fn rig(traits: steadfs::backing::Traits, entry_timeout: u64) -> Rig {
    Rig::with(traits, PATIENCE, |config| {
        config.entry_timeout = Some(Duration::from_secs(entry_timeout));
        config.attr_timeout = Duration::ZERO;
    })
}

fn open(rig: &Rig, name: &str) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(rig.hot(name)).expect("opened")
}

fn ino(rig: &Rig, name: &str) -> u64 {
    std::fs::metadata(rig.hot(name)).expect("it is there").ino()
}

#[test]
fn a_new_file_is_not_the_one_that_was_removed_behind_our_back() {
    for traits in [LOCAL, SSHFS] {
        let rig = rig(traits, 0);
        let old = open(&rig, "f");
        std::fs::remove_file(rig.cold("f")).unwrap();
        let new = File::create_new(rig.hot("f")).unwrap();
        new.write_all_at(b"new", 0).unwrap();
        assert_ne!(old.metadata().unwrap().ino(), new.metadata().unwrap().ino());
        rig.outage();
        rig.repair();
        let written = old.write_at(b"overwritten", 0);
        match traits.keeps_unlinked {
            true => assert_eq!(written.unwrap(), 11, "it goes on without a name"),
            false => assert_eq!(errno(written), Some(libc::EIO), "it is gone, and the new one is not its"),
        }
        assert_eq!(old.sync_all().is_ok(), traits.keeps_unlinked);
        assert_eq!(std::fs::read_to_string(rig.cold("f")).unwrap(), "new");
    }
}

#[test]
fn what_others_put_in_the_place_of_a_file_that_was_missed_is_another_one() {
    let rig = rig(SSHFS, 0);
    let old = open(&rig, "f");
    std::fs::remove_file(rig.cold("f")).unwrap();
    assert_eq!(errno(std::fs::metadata(rig.hot("f"))), Some(libc::ENOENT));
    std::fs::write(rig.cold("f"), "theirs").unwrap();
    assert_ne!(ino(&rig, "f"), old.metadata().unwrap().ino());
    old.write_all_at(b"goes on", 0).unwrap();
    assert_eq!(std::fs::read_to_string(rig.hot("f")).unwrap(), "theirs");
}

#[test]
fn a_file_is_reached_by_the_name_that_is_left() {
    for traits in [LOCAL, SSHFS] {
        let rig = rig(traits, 60);
        std::fs::write(rig.hot("f"), "text").unwrap();
        std::fs::hard_link(rig.hot("f"), rig.hot("l")).unwrap();
        let held = File::open(rig.hot("l")).unwrap();
        std::fs::remove_file(rig.cold("f")).unwrap();
        rig.outage();
        assert_eq!(rig.repair().reopened, 1);
        assert_eq!(held.metadata().unwrap().len(), 4);
        assert_eq!(std::fs::read_to_string(rig.hot("l")).unwrap(), "text");
    }
}

#[test]
fn an_open_that_is_overtaken_by_a_rename_over_opens_what_it_says() {
    for traits in [LOCAL, SSHFS] {
        let rig = rig(traits, 60);
        std::fs::write(rig.hot("f"), "old").unwrap();
        std::fs::write(rig.hot("g"), "new!").unwrap();
        let (old, new) = (ino(&rig, "f"), ino(&rig, "g"));
        rig.control().inject(Fault::new(What::Late(WHILE)).on(&[Call::Open]).path("f").times(1));
        std::thread::scope(|scope| {
            let opening = scope.spawn(|| File::open(rig.hot("f")).expect("there is always one"));
            assert!(rig.control().wait_inside(1, PATIENCE));
            std::fs::rename(rig.hot("g"), rig.hot("f")).unwrap();
            let file = opening.join().expect("no panic");
            let mut text = [0; 4];
            let length = file.read_at(&mut text, 0).unwrap();
            let seen = (file.metadata().unwrap().ino(), &text[..length]);
            // A local filesystem gives the file that was looked up.
            assert_eq!(seen, if traits == LOCAL { (old, &b"old"[..]) } else { (new, &b"new!"[..]) });
        });
    }
}

#[test]
fn attributes_are_never_those_of_the_file_that_took_the_place() {
    for traits in [LOCAL, SSHFS] {
        let rig = rig(traits, 60);
        std::fs::write(rig.hot("f"), "old").unwrap();
        std::fs::write(rig.hot("g"), "new!").unwrap();
        let (old, new) = (ino(&rig, "f"), ino(&rig, "g"));
        // The rename is done, and not yet said to be, when the attributes are read.
        let rename = rig.control().inject(Fault::new(What::HangAfter).on(&[Call::Rename]).path("g").times(1));
        std::thread::scope(|scope| {
            let renaming = scope.spawn(|| std::fs::rename(rig.hot("g"), rig.hot("f")).expect("renamed"));
            until(|| std::fs::read_to_string(rig.cold("f")).is_ok_and(|text| text == "new!"));
            let asking = scope.spawn(|| std::fs::metadata(rig.hot("f")).expect("there is always one"));
            std::thread::sleep(WHILE);
            rig.control().remove(rename);
            renaming.join().expect("no panic");
            let seen = asking.join().expect("no panic");
            // A local filesystem may have looked the old one up, and gives that.
            let seen = (seen.ino(), seen.len());
            assert!(seen == (new, 4) || (traits == LOCAL && seen == (old, 3)), "{seen:?}");
        });
    }
}

#[test]
fn a_listing_is_complete_although_the_directory_is_renamed_meanwhile() {
    let rig = rig(SSHFS, 60);
    std::fs::create_dir_all(rig.hot("a/d")).unwrap();
    for i in 0..50 {
        std::fs::write(rig.hot(&format!("a/d/{i:02}")), "").unwrap();
    }
    let held = rig.control().inject(Fault::new(What::Hang).on(&[Call::Stat]).path("a/d/").after(10).times(1));
    std::thread::scope(|scope| {
        let listing = scope.spawn(|| {
            let mut directory = Dir::open(&rig.hot("a/d"), OFlag::O_RDONLY, Mode::empty()).expect("opened");
            directory.iter().filter(|entry| entry.is_ok()).count()
        });
        std::thread::sleep(WHILE);
        // In the middle of it.
        until(|| rig.control().inside() == 1);
        std::fs::rename(rig.hot("a"), rig.hot("z")).unwrap();
        // Missed at the old place, and the next one is found there again: none may fall between.
        let next = rig.control().inject(Fault::new(What::Hang).on(&[Call::Stat]).path("/d/").times(1));
        rig.control().remove(held);
        std::thread::sleep(WHILE);
        std::fs::rename(rig.hot("z"), rig.hot("a")).unwrap();
        rig.control().remove(next);
        assert_eq!(listing.join().expect("no panic"), 50 + 2);
    });
}

#[test]
fn a_directory_that_has_gone_is_not_an_empty_one() {
    let rig = rig(SSHFS, 60);
    std::fs::create_dir(rig.hot("d")).unwrap();
    std::fs::write(rig.hot("d/f"), "").unwrap();
    let listed = rig.control().inject(Fault::new(What::HangAfter).on(&[Call::ReadDir]));
    std::thread::scope(|scope| {
        let listing = scope.spawn(|| std::fs::read_dir(rig.hot("d")).expect("opened").next());
        until(|| rig.control().calls(Call::ReadDir) == 1);
        std::thread::sleep(WHILE);
        std::fs::rename(rig.cold("d"), rig.cold("moved away")).unwrap();
        rig.control().remove(listed);
        let first = listing.join().expect("no panic").expect("it does not look empty");
        assert_eq!(first.expect_err("nor is anything in it").raw_os_error(), Some(libc::ESTALE));
    });
}

#[test]
fn a_link_finds_its_source_while_the_directories_above_are_renamed() {
    let rig = rig(SSHFS, 60);
    std::fs::create_dir_all(rig.hot("a/b")).unwrap();
    std::fs::create_dir(rig.hot("t")).unwrap();
    std::fs::write(rig.hot("a/b/f"), "text").unwrap();
    rig.control().inject(Fault::new(What::Late(WHILE)).on(&[Call::Link]).times(1));
    std::thread::scope(|scope| {
        let linking = scope.spawn(|| std::fs::hard_link(rig.hot("a/b/f"), rig.hot("t/l")));
        until(|| rig.control().calls(Call::Link) == 1);
        std::fs::rename(rig.hot("a"), rig.hot("z")).unwrap();
        linking.join().expect("no panic").expect("it was there all the time");
    });
    assert_eq!(std::fs::read_to_string(rig.cold("t/l")).unwrap(), "text");
}

#[test]
fn a_directory_that_holds_only_hidden_files_is_renamed_over() {
    let rig = Rig::new(SSHFS);
    std::fs::create_dir(rig.hot("new")).unwrap();
    std::fs::create_dir(rig.hot("old")).unwrap();
    let file = open(&rig, "old/f");
    file.write_all_at(b"kept", 0).unwrap();
    std::fs::remove_file(rig.hot("old/f")).unwrap();
    assert_eq!(rig.cold_names("old").len(), 1);
    std::fs::rename(rig.hot("new"), rig.hot("old")).unwrap();
    rig.outage();
    assert_eq!(rig.repair().reopened, 1);
    let mut text = [0; 4];
    file.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"kept");
    drop(file);
    until(|| rig.cold_names("") == ["old"]);
    std::fs::create_dir(rig.hot("more")).unwrap();
    std::fs::write(rig.hot("old/g"), "").unwrap();
    assert_eq!(errno(std::fs::rename(rig.hot("more"), rig.hot("old"))), Some(libc::ENOTEMPTY));
}

#[test]
fn extended_attributes_are_set_and_removed_once_only() {
    for lost in [What::Errno(Errno::ENOTCONN), What::LostReply] {
        let rig = Rig::new(LOCAL);
        std::fs::write(rig.hot("f"), "").unwrap();
        let path = |path: PathBuf| CString::new(path.into_os_string().into_encoded_bytes()).unwrap();
        let (hot, cold) = (path(rig.hot("f")), path(rig.cold("f")));
        let set = |path: &CString, value: &[u8], flags: i32| {
            // SAFETY: the strings end with NUL and the length is that of the value.
            let done =
                unsafe { libc::setxattr(path.as_ptr(), c"user.a".as_ptr(), value.as_ptr().cast(), value.len(), flags) };
            Errno::result(done)
        };
        // SAFETY: the strings end with NUL.
        let remove = |path: &CString| Errno::result(unsafe { libc::removexattr(path.as_ptr(), c"user.a".as_ptr()) });
        let value = || {
            let mut buffer = [0_u8; 16];
            // SAFETY: the strings end with NUL and the length is that of the buffer.
            let length =
                unsafe { libc::getxattr(cold.as_ptr(), c"user.a".as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
            Errno::result(length).map(|length| buffer[..usize::try_from(length).unwrap()].to_vec())
        };
        rig.hold_verdicts();
        let in_doubt = |call: Call, meanwhile: &dyn Fn(), act: &(dyn Fn() -> Result<i32, Errno> + Sync)| {
            let complaints = rig.complaints.lock().len();
            rig.control().inject(Fault::new(lost).on(&[call]).times(1));
            std::thread::scope(|scope| {
                let acting = scope.spawn(act);
                until(|| rig.complaints.lock().len() > complaints);
                rig.outage();
                meanwhile();
                rig.repair();
                acting.join().expect("no panic")
            })
        };
        let (create, replace) = (libc::XATTR_CREATE, libc::XATTR_REPLACE);
        assert_eq!(in_doubt(Call::SetXattr, &|| {}, &|| set(&hot, b"blue", create)), Ok(0));
        assert_eq!(set(&hot, b"blue", create), Err(Errno::EEXIST), "not in doubt it is the answer");
        assert_eq!(in_doubt(Call::SetXattr, &|| {}, &|| set(&hot, b"red", replace)), Ok(0));
        assert_eq!(value(), Ok(b"red".to_vec()));
        assert_eq!(in_doubt(Call::SetXattr, &|| {}, &|| set(&hot, b"green", 0)), Ok(0));
        assert_eq!(value(), Ok(b"green".to_vec()));
        assert_eq!(in_doubt(Call::RemoveXattr, &|| {}, &|| remove(&hot)), Ok(0));
        assert_eq!(remove(&hot), Err(Errno::ENODATA));
        assert_eq!(in_doubt(Call::SetXattr, &|| {}, &|| set(&hot, b"red", replace)), Err(Errno::ENODATA));
        // What somebody else has set is not ours, nor is it put in its place again.
        let theirs = || _ = set(&cold, b"theirs", 0).unwrap();
        assert_eq!(in_doubt(Call::SetXattr, &theirs, &|| set(&hot, b"ours", create)), Err(Errno::EEXIST));
        assert_eq!(value(), Ok(b"theirs".to_vec()));
        let gone = || _ = remove(&cold);
        let replaced = in_doubt(Call::SetXattr, &gone, &|| set(&hot, b"ours", replace));
        assert_eq!((replaced, value()), (Err(Errno::ENODATA), Err(Errno::ENODATA)));
    }
}

#[test]
fn what_is_open_is_changed_although_it_has_no_name() {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{PermissionsExt, fchown};

    let rig = Rig::new(LOCAL);
    let file = open(&rig, "f");
    std::fs::remove_file(rig.hot("f")).unwrap();
    assert!(rig.cold_names("").is_empty());
    file.set_permissions(PermissionsExt::from_mode(0o604)).unwrap();
    fchown(&file, Some(12), Some(34)).unwrap();
    let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    file.set_modified(time).unwrap();
    let seen = file.metadata().unwrap();
    assert_eq!((seen.mode() & 0o7777, seen.uid(), seen.gid(), seen.modified().unwrap()), (0o604, 12, 34, time));
    let (fd, name) = (file.as_raw_fd(), c"user.a".as_ptr());
    let mut buf = [0_u8; 64];
    // SAFETY: the strings end with NUL and the lengths are those of the buffers.
    unsafe {
        assert_eq!(libc::fsetxattr(fd, name, b"blue".as_ptr().cast(), 4, 0), 0);
        assert_eq!(libc::fgetxattr(fd, name, buf.as_mut_ptr().cast(), 64), 4);
        assert!(libc::flistxattr(fd, buf.as_mut_ptr().cast(), 64) > 0);
        assert_eq!(libc::fremovexattr(fd, name), 0);
        assert_eq!(libc::fgetxattr(fd, name, buf.as_mut_ptr().cast(), 64), -1);
    }
    assert_eq!(Errno::last(), Errno::ENODATA);
    rig.outage();
    rig.repair();
    file.set_permissions(PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600, "it goes on after a repair");
}

#[test]
fn a_file_is_opened_again_while_the_directory_above_is_renamed() {
    let rig = Rig::new(SSHFS);
    std::fs::create_dir(rig.hot("d")).unwrap();
    std::fs::write(rig.hot("d/f"), "text").unwrap();
    let file = open(&rig, "d/f");
    rig.outage();
    // So that the first call that uses it has to open it.
    let late = rig.control().inject(Fault::new(What::Errno(Errno::EACCES)).on(&[Call::Open]));
    rig.repair();
    rig.control().remove(late);
    let renamed = rig.control().inject(Fault::new(What::HangAfter).on(&[Call::Rename]));
    std::thread::scope(|scope| {
        let renaming = scope.spawn(|| std::fs::rename(rig.hot("d"), rig.hot("e")));
        until(|| rig.control().inside() == 1);
        let opened = rig.control().calls(Call::Open);
        let syncing = scope.spawn(|| file.sync_all());
        // It has looked where the file was.
        until(|| rig.control().calls(Call::Open) > opened);
        std::thread::sleep(WHILE);
        rig.control().remove(renamed);
        renaming.join().expect("no panic").unwrap();
        syncing.join().expect("no panic").unwrap();
    });
    let mut text = [0; 4];
    file.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"text");
}
