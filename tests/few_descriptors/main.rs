//! Open files whose descriptors were closed for want of such, while names change: what is opened again is the same file.
//! A process of its own, since the limit of descriptors is a process's.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../mount_dir/rig.rs"]
mod rig;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rig::{LOCAL, PATIENCE, Rig, SSHFS, errno};
use steadfs::backing::Traits;
use steadfs::backing::fake::{Call, Fault, What};

/// Descriptors that the process may have; the half of them for open files.
const LIMIT: u64 = 256;
/// More open files than there are descriptors for.
const MANY: usize = 200;

fn open(rig: &Rig, name: &str) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(rig.hot(name)).unwrap()
}

/// The callers' own descriptors need not count: they are in another process as a rule.
fn lower_the_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, LIMIT, hard).unwrap();
    // Looked at when the first file is opened.
    let rig = Rig::new(LOCAL);
    drop(open(&rig, "first"));
    drop(rig);
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(10_000), hard).unwrap();
}

/// Opens and uses so many others that no other file has a descriptor left. They have to be kept.
fn crowd(rig: &Rig) -> Vec<File> {
    let others: Vec<File> = (0..MANY).map(|number| open(rig, &format!("other-{number}"))).collect();
    let mut byte = [0];
    others.iter().for_each(|other| _ = other.read_at(&mut byte, 0).unwrap());
    others
}

fn content(file: &File) -> Vec<u8> {
    let mut text = vec![0; 64];
    let length = file.read_at(&mut text, 0).unwrap();
    text.truncate(length);
    text
}

/// A log is rotated in the very moment in which its descriptor is opened again.
fn rotated_meanwhile(traits: Traits) {
    let rig = Rig::with(traits, PATIENCE, |config| config.attr_timeout = std::time::Duration::ZERO);
    let log = open(&rig, "log");
    log.write_all_at(b"old", 0).unwrap();
    log.sync_all().unwrap();
    let others = crowd(&rig);
    let held = rig.control().inject(Fault::new(What::Hang).on(&[Call::Open]).path("log").times(1));
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| content(&log));
        assert!(rig.control().wait_inside(1, PATIENCE), "its descriptor was closed, and is opened again");
        std::fs::rename(rig.hot("log"), rig.hot("log.1")).unwrap();
        std::fs::write(rig.hot("log"), "new").unwrap();
        rig.control().remove(held);
        assert_eq!(reading.join().expect("no panic"), b"old");
    });
    log.write_all_at(b"more", 3).unwrap();
    log.sync_all().unwrap();
    assert_eq!(content(&log), b"oldmore");
    assert_eq!(std::fs::read(rig.cold("log.1")).unwrap(), b"oldmore");
    assert_eq!(std::fs::read(rig.cold("log")).unwrap(), b"new");
    drop(others);
}

/// Somebody else replaces a file whose descriptor is closed.
fn replaced_by_somebody_else(traits: Traits) {
    let rig = Rig::new(traits);
    let file = open(&rig, "file");
    file.write_all_at(b"mine", 0).unwrap();
    file.sync_all().unwrap();
    // Opened again once already, so that it has been compared before.
    for _ in 0..2 {
        drop(crowd(&rig));
        let others = crowd(&rig);
        assert_eq!(content(&file).len(), 4);
        file.write_all_at(b"mine", 0).unwrap();
        file.sync_all().unwrap();
        drop(others);
    }
    let others = crowd(&rig);
    std::fs::write(rig.cold("theirs"), "hers").unwrap();
    std::fs::rename(rig.cold("theirs"), rig.cold("file")).unwrap();
    assert_eq!(errno(file.write_all_at(b"more", 0).and_then(|()| file.sync_all())), Some(libc::EIO));
    assert_eq!(std::fs::read(rig.cold("file")).unwrap(), b"hers");
    drop(others);
}

#[test]
fn what_is_opened_again_is_the_same_file() {
    lower_the_limit();
    for traits in [LOCAL, SSHFS] {
        rotated_meanwhile(traits);
        replaced_by_somebody_else(traits);
    }
}
