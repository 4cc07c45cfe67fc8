//! Where paths lead, and where they must not.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use super::{Place, is_root, p};
use crate::backing::posix::*;
use crate::backing::{FileKind, SetTime};

#[test]
fn nothing_leaves_the_root() {
    let place = Place::new();
    let tree = &place.tree;
    std::os::unix::fs::symlink("../outside", place.at("up")).expect("symlink");
    std::os::unix::fs::symlink(place.outside(), place.at("abs")).expect("symlink");
    std::os::unix::fs::symlink("..", place.at("dirup")).expect("symlink");
    std::os::unix::fs::symlink("/proc/self/cwd", place.at("magic")).expect("symlink");
    std::fs::create_dir(place.at("d")).expect("mkdir");
    std::os::unix::fs::symlink("d", place.at("inside")).expect("symlink");

    for path in ["..", "../outside", "d/../../outside", "d/..", "/", "/etc/passwd"] {
        assert_eq!(tree.stat(p(path)), Err(Errno::EXDEV), "stat {path}");
        assert_eq!(tree.open(p(path), libc::O_RDONLY).err(), Some(Errno::EXDEV), "open {path}");
        assert_eq!(tree.unlink(p(path)), Err(Errno::EXDEV), "unlink {path}");
        assert_eq!(tree.mkdir(p(path), 0o700), Err(Errno::EXDEV), "mkdir {path}");
        assert_eq!(tree.rename(p("d"), p(path), 0), Err(Errno::EXDEV), "rename {path}");
        assert_eq!(tree.read_dir(p(path)), Err(Errno::EXDEV), "read_dir {path}");
    }
    for link in ["up", "abs", "dirup", "magic", "inside"] {
        assert_eq!(tree.stat(p(link)).map(|a| a.kind), Ok(FileKind::Symlink), "stat {link}");
        assert_eq!(tree.open(p(link), libc::O_RDWR).err(), Some(Errno::ELOOP), "open {link}");
        assert_eq!(tree.open(p(link), libc::O_WRONLY | libc::O_TRUNC).err(), Some(Errno::ELOOP), "open {link}");
        assert_eq!(tree.create(p(link), libc::O_WRONLY, 0o600).err(), Some(Errno::ELOOP), "create {link}");
        assert_eq!(tree.create(p(link), libc::O_WRONLY | libc::O_EXCL, 0o600).err(), Some(Errno::EEXIST), "{link}");
        assert_eq!(tree.set_size(p(link), 0), Err(Errno::EINVAL), "truncate {link}");
        assert_eq!(tree.set_mode(p(link), 0o777), Err(Errno::EOPNOTSUPP), "chmod {link}");
        let not_a_directory = tree.read_dir(p(link)).err();
        assert!(matches!(not_a_directory, Some(Errno::ELOOP | Errno::ENOTDIR)), "read_dir {link}: {not_a_directory:?}");
        // Below a link there is nothing.
        let below = p(link).join("outside");
        assert_eq!(tree.stat(&below), Err(Errno::ELOOP), "stat {below:?}");
        assert_eq!(tree.create(&below, libc::O_WRONLY, 0o600).err(), Some(Errno::ELOOP), "create {below:?}");
        assert_eq!(tree.unlink(&below), Err(Errno::ELOOP), "unlink {below:?}");
        assert_eq!(tree.link(p("d"), &below), Err(Errno::ELOOP), "link {below:?}");
        assert_eq!(tree.rename(p("d"), &below, 0), Err(Errno::ELOOP), "rename {below:?}");
    }
    assert_eq!(std::fs::read(place.outside()).expect("still there"), b"secret");
    assert_eq!(std::fs::symlink_metadata(place.outside()).expect("stat").permissions().mode() & 0o777, 0o644);
}

#[test]
fn links_are_handled_themselves() {
    let place = Place::new();
    let tree = &place.tree;
    assert_eq!(tree.symlink(place.outside().as_os_str(), p("l")), Ok(()));
    assert_eq!(tree.read_link(p("l")), Ok(place.outside().into_os_string()));
    let old = UNIX_EPOCH + Duration::from_secs(5);
    assert_eq!(tree.set_times(p("l"), SetTime::At(old), SetTime::At(old)), Ok(()));
    assert_eq!(tree.stat(p("l")).map(|a| a.mtime), Ok(old));
    assert_eq!(tree.link(p("l"), p("l2")), Ok(()));
    assert_eq!(tree.stat(p("l2")).map(|a| (a.kind, a.nlink)), Ok((FileKind::Symlink, 2)));
    if is_root() {
        assert_eq!(tree.set_owner(p("l"), Some(12), None), Ok(()));
        assert_eq!(tree.stat(p("l")).map(|a| (a.uid, a.gid)), Ok((12, nix::unistd::getegid().as_raw())));
    }
    let outside = std::fs::metadata(place.outside()).expect("stat");
    assert_eq!((outside.uid(), outside.mtime() > 5), (nix::unistd::geteuid().as_raw(), true));
    let long = "t/".repeat(2000);
    assert_eq!(tree.symlink(OsStr::new(&long), p("long")), Ok(()));
    assert_eq!(tree.read_link(p("long")), Ok(OsString::from(long)));
    assert_eq!(tree.read_link(p("")), Err(Errno::EINVAL));
}

#[test]
fn a_swap_of_a_directory_for_a_link_never_leads_out() {
    let place = Place::new();
    let decoy = place.dir.path().join("decoy");
    std::fs::create_dir(&decoy).expect("mkdir decoy");
    std::fs::create_dir(place.at("d")).expect("mkdir");
    std::os::unix::fs::symlink("../decoy", place.at("s")).expect("symlink");
    let stop = AtomicBool::new(false);
    let ends = Duration::from_millis(300);
    let (made, refused) = std::thread::scope(|scope| {
        scope.spawn(|| {
            // renameat2 with EXCHANGE: the name is a directory and a link by turns.
            while !stop.load(Ordering::Relaxed) {
                place.tree.rename(p("d"), p("s"), libc::RENAME_EXCHANGE).expect("exchange");
            }
        });
        let began = std::time::Instant::now();
        let (mut made, mut refused) = (0, 0);
        while began.elapsed() < ends {
            match place.tree.create(p("d/x"), libc::O_WRONLY, 0o600) {
                Ok(_) => made += 1,
                Err(Errno::ELOOP) => refused += 1,
                Err(other) => panic!("unexpected {other}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
        (made, refused)
    });
    assert!(made > 0 && refused > 0, "both were met: {made} and {refused}");
    assert_eq!(std::fs::read_dir(&decoy).expect("list").count(), 0);
}

#[test]
fn paths_longer_than_path_max() {
    let place = Place::new();
    let tree = &place.tree;
    let mut path = PathBuf::new();
    for n in 0..40 {
        path.push(format!("{n:0>200}"));
        assert_eq!(tree.mkdir(&path, 0o700), Ok(()), "level {n}");
    }
    assert!(path.as_os_str().len() > 8000);
    let (file, other) = (path.join("file"), path.join("other"));
    let open = tree.create(&file, libc::O_RDWR | libc::O_EXCL, 0o600).expect("create");
    assert_eq!(open.write_at(b"deep", 0), Ok(4));
    assert_eq!(tree.stat(&file).map(|a| a.size), Ok(4));
    assert_eq!(tree.set_size(&file, 2), Ok(()));
    assert_eq!(tree.set_mode(&file, 0o640), Ok(()));
    assert_eq!(open.stat().map(|a| (a.size, a.perm)), Ok((2, 0o640)));
    assert_eq!(tree.link(&file, &other), Ok(()));
    assert_eq!(tree.rename(&other, p("up"), 0), Ok(()));
    assert_eq!(tree.read_dir(&path).map(|e| e.len()), Ok(1));
    assert_eq!(tree.sync_dir(&path), Ok(()));
    assert_eq!(tree.unlink(&file), Ok(()));
    // A link half way down is still not followed.
    assert_eq!(tree.symlink(OsStr::new("."), &path.join("loop")), Ok(()));
    let looped = path.join("loop").join("x".repeat(200)).join("x");
    assert_eq!(tree.stat(&looped), Err(Errno::ELOOP));
    assert_eq!(tree.unlink(&path.join("loop")), Ok(()));
    assert_eq!(tree.stat(&path.join("n".repeat(256))), Err(Errno::ENAMETOOLONG));
    assert_eq!(tree.stat(p(&"n".repeat(5000))), Err(Errno::ENAMETOOLONG));
    while !path.as_os_str().is_empty() {
        assert_eq!(tree.rmdir(&path), Ok(()));
        path.pop();
    }
}
