use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::backing::FileKind;

mod resolving;
mod twin;

/// A directory of its own, the tree below `root` in it, and things outside the root to reach for.
struct Place {
    dir: tempfile::TempDir,
    tree: PosixTree,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(dir.path().join("root")).expect("mkdir root");
        let outside = dir.path().join("outside");
        std::fs::write(&outside, "secret").expect("write outside");
        std::fs::set_permissions(&outside, PermissionsExt::from_mode(0o644)).expect("chmod outside");
        let root = nix::fcntl::open(&dir.path().join("root"), OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty());
        Place { tree: PosixTree::new(root.expect("open root")), dir }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path)
    }

    fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }
}

fn p(path: &str) -> &Path {
    Path::new(path)
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn names_of_any_bytes() {
    let place = Place::new();
    let tree = &place.tree;
    let mut names: Vec<OsString> =
        (1u8..=255).filter(|&b| b != b'/').map(|b| OsString::from_vec(vec![b'x', b])).collect();
    names.extend(["...", " ", "-rf", "a\nb", "\\040", "*"].map(OsString::from));
    names.push(OsString::from_vec(vec![0xff; 255]));
    for name in &names {
        drop(tree.create(Path::new(name), libc::O_WRONLY | libc::O_EXCL, 0o600).expect("create"));
        assert!(tree.stat(Path::new(name)).is_ok(), "{name:?}");
    }
    let mut listed: Vec<OsString> = tree.read_dir(p("")).expect("list").into_iter().map(|e| e.name).collect();
    listed.sort();
    names.sort();
    assert_eq!(listed, names);
    assert_eq!(tree.stat(Path::new(OsStr::from_bytes(b"a\0b"))), Err(Errno::EINVAL));
}

#[test]
fn a_large_directory_is_listed_whole_with_types() {
    let place = Place::new();
    for n in 0..3000 {
        std::fs::write(place.at(&format!("{n:0>100}")), "").expect("write");
    }
    assert_eq!(place.tree.mkdir(p("d"), 0o755), Ok(()));
    assert_eq!(place.tree.symlink(OsStr::new("x"), p("l")), Ok(()));
    let entries = place.tree.read_dir(p("")).expect("list");
    assert_eq!(entries.len(), 3002);
    let kind = |name: &str| entries.iter().find(|e| e.name == name).and_then(|e| e.kind);
    assert_eq!((kind("d"), kind("l")), (Some(FileKind::Directory), Some(FileKind::Symlink)));
    assert_eq!(place.tree.read_dir(p("l")), Err(Errno::ELOOP));
    assert_eq!(place.tree.read_dir(p("none")), Err(Errno::ENOENT));
}

#[test]
fn times_to_the_nanosecond_and_before_1970() {
    let place = Place::new();
    let tree = &place.tree;
    std::fs::write(place.at("f"), "").expect("write");
    let after = UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
    let before = UNIX_EPOCH - Duration::new(86_400, 1);
    assert_eq!(tree.set_times(p("f"), SetTime::At(after), SetTime::At(before)), Ok(()));
    assert_eq!(tree.stat(p("f")).map(|a| (a.atime, a.mtime)), Ok((after, before)));
    let meta = std::fs::metadata(place.at("f")).expect("stat");
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (-86_401, 999_999_999));
    assert_eq!(tree.set_times(p("f"), SetTime::Omit, SetTime::Now), Ok(()));
    let attr = tree.stat(p("f")).expect("stat");
    assert_eq!(attr.atime, after);
    assert!(attr.mtime.elapsed().is_ok_and(|d| d < Duration::from_secs(60)), "{:?}", attr.mtime);
    assert_eq!(tree.set_times(p(""), SetTime::At(after), SetTime::At(after)), Ok(()));
    assert_eq!(tree.stat(p("")).map(|a| a.mtime), Ok(after));
}

#[test]
fn attributes_are_those_of_lstat() {
    let place = Place::new();
    std::fs::write(place.at("f"), vec![1; 5000]).expect("write");
    std::fs::hard_link(place.at("f"), place.at("g")).expect("link");
    let attr = place.tree.stat(p("g")).expect("stat");
    let meta = std::fs::symlink_metadata(place.at("g")).expect("stat");
    assert_eq!(attr.identity, (meta.dev(), meta.ino()));
    assert_eq!((u32::from(attr.perm), attr.nlink), (meta.mode() & 0o7777, 2));
    assert_eq!((attr.size, attr.blocks, u64::from(attr.block_size)), (5000, meta.blocks(), meta.blksize()));
    assert_eq!((attr.uid, attr.gid, attr.mtime), (meta.uid(), meta.gid(), meta.modified().expect("mtime")));
    assert_eq!(place.tree.stat(p("")).map(|a| a.kind), Ok(FileKind::Directory));
    assert_eq!(place.tree.stat(p("f/x")), Err(Errno::ENOTDIR));
    assert_eq!(place.tree.stat(p("none/x")), Err(Errno::ENOENT));
}

#[test]
fn modes_by_both_ways() {
    let place = Place::new();
    std::fs::write(place.at("f"), "").expect("write");
    assert_eq!(place.tree.set_mode(p("f"), libc::S_IFREG | 0o4751), Ok(()));
    assert_eq!(place.tree.stat(p("f")).map(|a| a.perm), Ok(0o4751));
    assert_eq!(place.tree.set_mode(p(""), 0o1770), Ok(()));
    assert_eq!(place.tree.stat(p("")).map(|a| a.perm), Ok(0o1770));
    // What kernels before 6.6 take.
    let fd = place.tree.open_at(p("f"), OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty()).expect("open");
    assert_eq!(chmod_by_proc(&fd, permissions(0o604)), Ok(()));
    assert_eq!(place.tree.stat(p("f")).map(|a| a.perm), Ok(0o604));
    std::os::unix::fs::symlink("f", place.at("l")).expect("symlink");
    let fd = place.tree.open_at(p("l"), OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty()).expect("open");
    assert_eq!(chmod_by_proc(&fd, permissions(0o600)), Err(Errno::EOPNOTSUPP));
    assert_eq!(place.tree.stat(p("f")).map(|a| a.perm), Ok(0o604));
}

#[test]
fn sizes() {
    let place = Place::new();
    std::fs::write(place.at("f"), "12345").expect("write");
    assert_eq!(place.tree.set_mode(p("f"), 0o200), Ok(()));
    assert_eq!(place.tree.set_size(p("f"), 3), Ok(()));
    assert_eq!(place.tree.set_size(p("f"), 1 << 33), Ok(()));
    assert_eq!(place.tree.stat(p("f")).map(|a| a.size), Ok(1 << 33));
    assert_eq!(place.tree.set_size(p("f"), u64::MAX), Err(Errno::EINVAL));
    assert_eq!(place.tree.set_size(p(""), 0), Err(Errno::EISDIR));
}

#[test]
fn special_files() {
    let place = Place::new();
    let tree = &place.tree;
    assert_eq!(tree.mknod(p("fifo"), libc::S_IFIFO | 0o600, 0), Ok(()));
    assert_eq!(tree.stat(p("fifo")).map(|a| a.kind), Ok(FileKind::Fifo));
    assert_eq!(tree.mknod(p("sock"), libc::S_IFSOCK | 0o600, 0), Ok(()));
    assert_eq!(tree.stat(p("sock")).map(|a| a.kind), Ok(FileKind::Socket));
    assert_eq!(tree.mknod(p("plain"), libc::S_IFREG | 0o600, 0), Ok(()));
    assert_eq!(tree.mknod(p("plain"), libc::S_IFREG | 0o600, 0), Err(Errno::EEXIST));
    // Nobody at the other end, and yet it returns.
    assert_eq!(tree.open(p("fifo"), libc::O_WRONLY).err(), Some(Errno::ENXIO));
    assert!(tree.open(p("fifo"), libc::O_RDONLY).is_ok());
    if is_root() {
        // Minor 300 needs the upper bits of the 32-bit encoding.
        let rdev = libc::makedev(1, 300) as u32;
        assert_eq!(tree.mknod(p("dev"), libc::S_IFBLK | 0o600, rdev), Ok(()));
        assert_eq!(tree.stat(p("dev")).map(|a| (a.kind, a.rdev)), Ok((FileKind::BlockDevice, rdev)));
    }
}

#[test]
fn renames_with_flags() {
    let place = Place::new();
    let tree = &place.tree;
    for name in ["a", "b"] {
        std::fs::write(place.at(name), name).expect("write");
    }
    let content = |name: &str| std::fs::read_to_string(place.at(name)).expect("read");
    assert_eq!(tree.rename(p("a"), p("b"), libc::RENAME_NOREPLACE), Err(Errno::EEXIST));
    assert_eq!(tree.rename(p("a"), p("b"), libc::RENAME_EXCHANGE), Ok(()));
    assert_eq!((content("a"), content("b")), ("b".into(), "a".into()));
    assert_eq!(tree.rename(p("a"), p("b"), 0), Ok(()));
    assert_eq!(content("b"), "b");
    assert_eq!(tree.rename(p("b"), p("c"), libc::RENAME_NOREPLACE), Ok(()));
    assert_eq!(tree.rename(p("c"), p("d"), 1 << 20), Err(Errno::EINVAL));
    assert_eq!(tree.rename(p(""), p("d"), 0), Err(Errno::EBUSY));
    assert_eq!((tree.rmdir(p("")), tree.mkdir(p(""), 0)), (Err(Errno::EINVAL), Err(Errno::EEXIST)));
}

#[test]
fn extended_attributes() {
    let place = Place::new();
    let tree = &place.tree;
    std::fs::write(place.at("f"), "").expect("write");
    let name = OsStr::new("user.steadfs.test");
    match tree.set_xattr(p("f"), name, b"value\0\xff", 0) {
        Err(Errno::EOPNOTSUPP) => {
            eprintln!("skipped: no user xattrs here");
            return;
        }
        done => assert_eq!(done, Ok(())),
    }
    assert_eq!(tree.get_xattr(p("f"), name), Ok(b"value\0\xff".to_vec()));
    assert_eq!(tree.set_xattr(p("f"), name, b"", libc::XATTR_CREATE), Err(Errno::EEXIST));
    assert_eq!(tree.set_xattr(p("f"), name, b"", libc::XATTR_REPLACE), Ok(()));
    assert_eq!(tree.get_xattr(p("f"), name), Ok(Vec::new()));
    let names = tree.list_xattr(p("f")).expect("list");
    assert!(names.split(|&b| b == 0).any(|n| n == name.as_bytes()), "{names:?}");
    assert_eq!(tree.remove_xattr(p("f"), name), Ok(()));
    assert_eq!(tree.get_xattr(p("f"), name), Err(Errno::ENODATA));
    assert_eq!(tree.remove_xattr(p("f"), name), Err(Errno::ENODATA));
    // Links hold none of the user's, and the file a link names is left alone.
    std::os::unix::fs::symlink("f", place.at("l")).expect("symlink");
    assert_eq!(tree.set_xattr(p("l"), name, b"x", 0), Err(Errno::EPERM));
    assert_eq!(tree.get_xattr(p("f"), name), Err(Errno::ENODATA));
    // Larger than the first try has room for, where the filesystem takes it.
    let large = vec![7u8; 20_000];
    match tree.set_xattr(p("f"), name, &large, 0) {
        Ok(()) => assert_eq!(tree.get_xattr(p("f"), name), Ok(large)),
        Err(error) => assert!(matches!(error, Errno::ENOSPC | Errno::E2BIG | Errno::ERANGE), "{error}"),
    }
}

#[test]
fn files_read_write_and_move_data() {
    let place = Place::new();
    let tree = &place.tree;
    let file = tree.create(p("f"), libc::O_RDWR | libc::O_EXCL, 0o600).expect("create");
    assert_eq!(tree.create(p("f"), libc::O_RDWR | libc::O_EXCL, 0o600).err(), Some(Errno::EEXIST));
    assert_eq!(file.write_at(b"hello", 3), Ok(5));
    let mut buf = [9u8; 16];
    assert_eq!(file.read_at(&mut buf, 0), Ok(8));
    assert_eq!(&buf[..8], b"\0\0\0hello");
    assert_eq!(file.read_at(&mut buf, 8), Ok(0));
    assert_eq!(file.read_at(&mut buf, u64::MAX), Err(Errno::EINVAL));
    assert_eq!(file.write_at(b"x", u64::MAX), Err(Errno::EINVAL));
    assert_eq!((file.sync(true), file.sync(false), file.set_size(5)), (Ok(()), Ok(()), Ok(())));
    assert_eq!(file.stat().map(|a| a.size), Ok(5));
    assert_eq!(file.seek(0, libc::SEEK_HOLE), Ok(5));
    assert_eq!(file.seek(9, libc::SEEK_DATA), Err(Errno::ENXIO));
    assert_eq!(file.seek(0, 77), Err(Errno::EINVAL));
    let to = tree.create(p("g"), libc::O_RDWR, 0o600).expect("create");
    assert_eq!(file.copy_to(3, &*to, 1, 100), Ok(2));
    assert_eq!(std::fs::read(place.at("g")).expect("read"), b"\0he");
    match file.allocate(0, 0, 4096) {
        Err(Errno::EOPNOTSUPP) => {}
        done => assert_eq!((done, file.stat().map(|a| a.size)), (Ok(()), Ok(4096))),
    }
    assert_eq!(file.allocate(0, 0, 0), Err(Errno::EINVAL));
    assert_eq!(tree.open(p(""), libc::O_RDWR).err(), Some(Errno::EISDIR));
    assert!(tree.stat_fs().is_ok_and(|s| s.blocks > 0 && s.name_max == 255 && s.block_size > 0));
}

#[test]
fn open_takes_what_fuse_hands_on() {
    let place = Place::new();
    std::fs::write(place.at("f"), "12345").expect("write");
    // The kernel's mark for execve, O_LARGEFILE, O_CREAT, O_DIRECT and bits of no meaning.
    for extra in [0x20, 0o100000, libc::O_CREAT | libc::O_EXCL, libc::O_DIRECT, libc::O_NONBLOCK, 1 << 27] {
        let file = place.tree.open(p("f"), libc::O_RDWR | extra).expect("opens");
        assert_eq!(file.write_at(b"x", 0), Ok(1), "{extra:o}");
    }
    let file = place.tree.open(p("f"), libc::O_WRONLY | libc::O_APPEND).expect("opens");
    assert_eq!(file.write_at(b"y", 1), Ok(1));
    assert_eq!(std::fs::read(place.at("f")).expect("read"), b"xy345");
    assert!(place.tree.open(p("f"), libc::O_WRONLY | libc::O_TRUNC).is_ok());
    assert_eq!(place.tree.stat(p("f")).map(|a| a.size), Ok(0));
    assert_eq!(place.tree.open(p("none"), libc::O_WRONLY | libc::O_CREAT).err(), Some(Errno::ENOENT));
}

#[test]
fn a_stopped_tree_refuses_everything() {
    let place = Place::new();
    let file = place.tree.create(p("f"), libc::O_RDWR, 0o600).expect("create");
    place.tree.stop();
    assert_eq!(place.tree.stat(p("f")), Err(Errno::ECONNABORTED));
    assert_eq!(place.tree.mkdir(p("d"), 0o700), Err(Errno::ECONNABORTED));
    assert_eq!(place.tree.stat_fs(), Err(Errno::ECONNABORTED));
    assert_eq!(place.tree.get_xattr(p("f"), OsStr::new("user.x")), Err(Errno::ECONNABORTED));
    assert_eq!(file.write_at(b"x", 0), Err(Errno::ECONNABORTED));
    assert_eq!(file.read_at(&mut [0; 4], 0), Err(Errno::ECONNABORTED));
    assert_eq!(std::fs::read_dir(place.at("")).expect("list").count(), 1);
}

#[test]
fn no_descriptor_is_left_or_inherited() {
    let place = Place::new();
    let file = place.tree.create(p("f"), libc::O_RDWR, 0o600).expect("create");
    let fd = file.as_raw_fd().expect("a descriptor");
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("fdinfo");
    let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).expect("flags").trim();
    let flags = i32::from_str_radix(flags, 8).expect("octal");
    assert_ne!(flags & libc::O_CLOEXEC, 0);
}
