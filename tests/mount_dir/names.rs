//! Names: directories, links, renames, listings, extended attributes.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::Mode;
use steadfs::backing::fake::{Call, Fault, What};

use crate::rig::{LOCAL, PATIENCE, Rig, SSHFS, errno, names};

#[test]
fn directories_links_and_special_files_are_made_and_removed() {
    let rig = Rig::new(LOCAL);
    std::fs::create_dir_all(rig.hot("a/b/c")).unwrap();
    std::os::unix::fs::symlink("../x y", rig.hot("a/l")).unwrap();
    assert_eq!(std::fs::read_link(rig.hot("a/l")).unwrap(), Path::new("../x y"));
    assert_eq!(std::fs::read_link(rig.cold("a/l")).unwrap(), Path::new("../x y"));
    nix::unistd::mkfifo(&rig.hot("a/p"), Mode::S_IRUSR).unwrap();
    assert!(std::fs::symlink_metadata(rig.cold("a/p")).unwrap().file_type().is_fifo());
    assert_eq!(errno(std::fs::remove_dir(rig.hot("a"))), Some(libc::ENOTEMPTY));
    assert_eq!(errno(std::fs::create_dir(rig.hot("a"))), Some(libc::EEXIST));
    assert_eq!(errno(std::fs::remove_file(rig.hot("none"))), Some(libc::ENOENT));
    std::fs::remove_dir_all(rig.hot("a")).unwrap();
    assert!(rig.cold_names("").is_empty());
    assert!(rig.complaints.lock().is_empty());
}

#[test]
fn hard_links_are_one_file() {
    for traits in [LOCAL, SSHFS] {
        let rig = Rig::new(traits);
        std::fs::create_dir(rig.hot("d")).unwrap();
        std::fs::write(rig.hot("f"), "x").unwrap();
        std::fs::hard_link(rig.hot("f"), rig.hot("d/l")).unwrap();
        let (f, l) = (std::fs::metadata(rig.hot("f")).unwrap(), std::fs::metadata(rig.hot("d/l")).unwrap());
        assert_eq!((f.dev(), f.ino(), f.nlink()), (l.dev(), l.ino(), 2));
        std::fs::remove_file(rig.hot("f")).unwrap();
        assert_eq!(std::fs::read_to_string(rig.hot("d/l")).unwrap(), "x");
        assert_eq!(std::fs::metadata(rig.cold("d/l")).unwrap().nlink(), 1);
    }
}

#[test]
fn renames_obey_their_flags_and_keep_inodes() {
    let rig = Rig::new(LOCAL);
    std::fs::create_dir(rig.hot("d")).unwrap();
    std::fs::write(rig.hot("f"), "f").unwrap();
    std::fs::write(rig.hot("g"), "g").unwrap();
    let ino = std::fs::metadata(rig.hot("f")).unwrap().ino();
    let rename = |from: &str, to: &str, flags| renameat2(AT_FDCWD, &rig.hot(from), AT_FDCWD, &rig.hot(to), flags);
    assert_eq!(rename("f", "g", RenameFlags::RENAME_NOREPLACE), Err(Errno::EEXIST));
    rename("f", "g", RenameFlags::RENAME_EXCHANGE).unwrap();
    assert_eq!(std::fs::read_to_string(rig.cold("g")).unwrap(), "f");
    rename("g", "d/h", RenameFlags::empty()).unwrap();
    assert_eq!(std::fs::metadata(rig.hot("d/h")).unwrap().ino(), ino);
    std::fs::rename(rig.hot("d"), rig.hot("e")).unwrap();
    assert_eq!(std::fs::metadata(rig.hot("e/h")).unwrap().ino(), ino);
    assert_eq!((rig.cold_names(""), rig.cold_names("e")), (vec!["e".into(), "f".into()], vec!["h".into()]));
    std::fs::create_dir(rig.hot("e/sub")).unwrap();
    assert_eq!(errno(std::fs::rename(rig.hot("f"), rig.hot("e"))), Some(libc::EISDIR));
}

#[test]
fn long_listings_are_complete_in_every_order() {
    let rig = Rig::new(SSHFS);
    let mut expected: Vec<String> = (0..1500).map(|i| format!("{i:04}-{}", "n".repeat(i % 60))).collect();
    expected.sort();
    for name in &expected {
        std::fs::write(rig.cold(name), "").unwrap();
    }
    assert_eq!(names(rig.mountpoint()), expected);
    let mut directory = nix::dir::Dir::open(rig.mountpoint(), OFlag::O_RDONLY, Mode::empty()).unwrap();
    assert_eq!(directory.iter().take(700).count(), 700);
    // Dropping the iterator rewinds; what was made meanwhile is seen then.
    std::fs::write(rig.hot("zz-late"), "").unwrap();
    let seen: Vec<_> = directory.iter().map(|entry| entry.unwrap()).collect();
    assert_eq!(seen.len(), 1500 + 3);
    assert!(seen.iter().any(|entry| entry.file_name().to_bytes() == b"zz-late"));
    let types = seen.iter().filter(|entry| entry.file_type() == Some(nix::dir::Type::Directory)).count();
    assert_eq!(types, 2, "`.` and `..`");
}

#[test]
fn a_listing_survives_entries_that_vanish_or_cannot_be_looked_at() {
    let rig = Rig::new(LOCAL);
    for i in 0..600 {
        std::fs::write(rig.cold(&format!("{i:03}")), "").unwrap();
    }
    // Most of them are gone when they are looked at: an answer without entries would be the end of the directory.
    rig.control().inject(Fault::new(What::Errno(Errno::ENOENT)).on(&[Call::Stat]).path("0"));
    rig.control().inject(Fault::new(What::Errno(Errno::ENOENT)).on(&[Call::Stat]).path("1"));
    rig.control().inject(Fault::new(What::Errno(Errno::ENOENT)).on(&[Call::Stat]).path("2"));
    rig.control().inject(Fault::new(What::Errno(Errno::ENOENT)).on(&[Call::Stat]).path("3"));
    let left = names(rig.mountpoint());
    assert!(
        (0..600).map(|i| format!("{i:03}")).filter(|n| !n.contains(['0', '1', '2', '3'])).all(|n| left.contains(&n))
    );
    rig.control().clear_faults();
    rig.control().inject(Fault::new(What::Errno(Errno::EACCES)).on(&[Call::Stat]).path("5"));
    assert_eq!(names(rig.mountpoint()).len(), 600);
    assert_eq!(errno(std::fs::metadata(rig.hot("555"))), Some(libc::EACCES));
    rig.control().clear_faults();
    assert!(std::fs::metadata(rig.hot("555")).unwrap().is_file());
    assert!(rig.complaints.lock().is_empty());
}

#[test]
fn a_file_that_was_replaced_behind_our_back_is_found_anew() {
    let rig = Rig::with(LOCAL, PATIENCE, |config| {
        config.entry_timeout = Some(std::time::Duration::from_secs(60));
        config.attr_timeout = std::time::Duration::ZERO;
    });
    std::fs::write(rig.hot("f"), "old").unwrap();
    assert!(rig.hot("f").is_file());
    std::fs::remove_file(rig.cold("f")).unwrap();
    std::fs::create_dir(rig.cold("f")).unwrap();
    assert!(std::fs::metadata(rig.hot("f")).unwrap().is_dir());
    std::fs::remove_dir(rig.cold("f")).unwrap();
    assert_eq!(errno(File::open(rig.hot("f"))), Some(libc::ENOENT));
    assert_eq!(errno(std::fs::read_dir(rig.hot("f"))), Some(libc::ENOENT));
    assert!(rig.complaints.lock().is_empty(), "what we know ourselves is no evidence against the backing");
}

#[test]
fn a_name_in_a_directory_is_found_while_the_directories_above_are_renamed() {
    let rig = Rig::new(SSHFS);
    std::fs::create_dir_all(rig.hot("a/b")).unwrap();
    std::fs::write(rig.hot("a/b/f"), "x").unwrap();
    let directory = File::open(rig.hot("a/b")).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..300 {
                let (from, to) = if i % 2 == 0 { ("a", "z") } else { ("z", "a") };
                std::fs::rename(rig.hot(from), rig.hot(to)).expect("renamed");
            }
            stop.store(true, Relaxed);
        });
        scope.spawn(|| {
            let mut i = 0;
            while !stop.load(Relaxed) {
                let (from, to) = if i % 2 == 0 { ("g", "h") } else { ("h", "g") };
                if i == 0 {
                    openat(&directory, "g", OFlag::O_CREAT | OFlag::O_RDWR, Mode::S_IRWXU).expect("created");
                }
                renameat2(&directory, from, &directory, to, RenameFlags::empty()).expect("renamed below");
                i += 1;
            }
        });
        while !stop.load(Relaxed) {
            let file = openat(&directory, "f", OFlag::O_RDWR, Mode::empty()).expect("it was there all the time");
            nix::unistd::write(&file, b"y").expect("written");
        }
    });
    assert!(rig.complaints.lock().is_empty());
}

#[test]
fn extended_attributes_are_the_backings() {
    let rig = Rig::new(LOCAL);
    std::fs::write(rig.hot("f"), "").unwrap();
    let path = std::ffi::CString::new(rig.hot("f").into_os_string().into_encoded_bytes()).unwrap();
    let name = c"user.colour".as_ptr();
    let mut buf = [0_u8; 64];
    // SAFETY: the strings end with NUL and the lengths are those of the buffers.
    unsafe {
        assert_eq!(libc::setxattr(path.as_ptr(), name, b"blue".as_ptr().cast(), 4, libc::XATTR_CREATE), 0);
        assert_eq!(libc::setxattr(path.as_ptr(), name, b"red".as_ptr().cast(), 3, libc::XATTR_CREATE), -1);
        assert_eq!(Errno::last(), Errno::EEXIST);
        assert_eq!(libc::getxattr(path.as_ptr(), name, std::ptr::null_mut(), 0), 4);
        assert_eq!(libc::getxattr(path.as_ptr(), name, buf.as_mut_ptr().cast(), 2), -1);
        assert_eq!(Errno::last(), Errno::ERANGE);
        assert_eq!(libc::getxattr(path.as_ptr(), name, buf.as_mut_ptr().cast(), 64), 4);
        assert_eq!(&buf[..4], b"blue");
        let listed = usize::try_from(libc::listxattr(path.as_ptr(), buf.as_mut_ptr().cast(), 64)).unwrap();
        assert!(buf[..listed].split(|&b| b == 0).any(|listed| listed == b"user.colour"));
        assert_eq!(libc::removexattr(path.as_ptr(), name), 0);
        assert_eq!(libc::getxattr(path.as_ptr(), name, buf.as_mut_ptr().cast(), 64), -1);
        assert_eq!(Errno::last(), Errno::ENODATA);
    }
}

#[test]
fn where_there_are_no_attributes_the_kernel_asks_once_only() {
    let rig = Rig::new(SSHFS);
    rig.control().inject(Fault::new(What::Errno(Errno::EOPNOTSUPP)).on(&[Call::GetXattr]));
    let file = File::create(rig.hot("f")).unwrap();
    for i in 0..20 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", i).unwrap();
    }
    assert!(rig.control().calls(Call::GetXattr) <= 1, "not before every write");
}
