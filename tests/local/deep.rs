//! Paths that are longer than PATH_MAX from the root, for whoever is down there.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};

use super::rig::Local;

/// Not inherited: what other tests start meanwhile would keep the mount busy.
const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

fn open_root(local: &Local) -> OwnedFd {
    File::open(&local.lab.hot).unwrap().into()
}

/// Goes down, making directories, and does there what one does.
fn go_down(local: &Local, name: &str, depth: usize) {
    let mut here = open_root(local);
    for _ in 0..depth {
        mkdirat(&here, name, Mode::from_bits_truncate(0o755)).unwrap();
        here = openat(&here, name, DIRECTORY, Mode::empty()).unwrap();
    }
    let open = |name: &str, flags| {
        openat(&here, name, flags | OFlag::O_CLOEXEC, Mode::from_bits_truncate(0o644)).map(File::from)
    };
    let mut file = open("file", OFlag::O_CREAT | OFlag::O_RDWR).unwrap();
    file.write_all(b"deep").unwrap();
    linkat(&here, "file", &here, "link", AtFlags::empty()).unwrap();
    symlinkat("file", &here, "symlink").unwrap();
    renameat(&here, "link", &here, "renamed").unwrap();
    let found = fstatat(&here, "renamed", AtFlags::AT_SYMLINK_NOFOLLOW).unwrap();
    assert_eq!((found.st_size, found.st_nlink), (4, 2));
    let mut entries: Vec<_> = nix::dir::Dir::openat(&here, ".", DIRECTORY, Mode::empty())
        .unwrap()
        .iter()
        .map(|entry| entry.unwrap().file_name().to_owned())
        .collect();
    entries.sort();
    assert_eq!(entries.len(), 5, "{entries:?}");
    // What is open down there is found again after a repair, and by a successor.
    local.outage();
    file.write_all(b" and deeper").unwrap();
    local.succession();
    file.write_all(b" still").unwrap();
    file.sync_all().unwrap();
    let mut text = String::new();
    open("symlink", OFlag::O_RDONLY).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "deep and deeper still");
    assert_eq!(file.metadata().unwrap().nlink(), 2);
    for name in ["file", "renamed", "symlink"] {
        unlinkat(&here, name, UnlinkatFlags::NoRemoveDir).unwrap();
    }
}

#[test]
fn whoever_is_deep_down_has_no_limit_of_path_max() {
    let local = Local::new("");
    for (name, depth) in [("d".repeat(255), 40), ("deep".to_owned(), 1000)] {
        let begun = std::time::Instant::now();
        go_down(&local, &name, depth);
        println!("{depth} directories of {} bytes: {:.1} s", name.len(), begun.elapsed().as_secs_f64());
    }
    // The library's own way is by descriptors, of which it would need 1000 at once.
    for name in std::fs::read_dir(&local.lab.store).unwrap() {
        crate::lab::run_ok("rm", &["-rf", name.unwrap().path().to_str().unwrap()]);
    }
    local.end();
}
