//! inotify(7), and mappings beside reads and writes.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use super::compare::{c, done};
use super::rig::{Actor, Local};

struct Watch(File);

impl Watch {
    fn on(path: &Path) -> Watch {
        // SAFETY: only a number is passed.
        let opened = done(unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) }).unwrap() as i32;
        let path = c(path);
        let what = libc::IN_ALL_EVENTS & !(libc::IN_ACCESS | libc::IN_OPEN | libc::IN_CLOSE_NOWRITE);
        // SAFETY: the path ends with NUL.
        done(unsafe { libc::inotify_add_watch(opened, path.as_ptr(), what) }).unwrap();
        // SAFETY: it was opened just now, and nobody else has it.
        Watch(unsafe { File::from_raw_fd(opened) })
    }

    /// What has been told since: masks and names.
    fn told(&mut self) -> Vec<(u32, OsString)> {
        let (mut all, mut buffer) = (Vec::new(), vec![0; 65536]);
        while let Ok(length) = self.0.read(&mut buffer) {
            let mut rest = &buffer[..length];
            while rest.len() >= 16 {
                let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap());
                let (mask, length) = (word(4), word(12) as usize);
                let name = rest[16..16 + length].split(|byte| *byte == 0).next().unwrap().to_vec();
                all.push((mask & !libc::IN_ISDIR, OsString::from_vec(name)));
                rest = &rest[16 + length..];
            }
        }
        all
    }
}

fn changes(at: &Path) -> Vec<(u32, OsString)> {
    let mut watch = Watch::on(at);
    let mut file = File::create(at.join("f")).unwrap();
    file.write_all(b"x").unwrap();
    drop(file);
    std::fs::set_permissions(at.join("f"), PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::rename(at.join("f"), at.join("g")).unwrap();
    std::fs::hard_link(at.join("g"), at.join("h")).unwrap();
    std::fs::create_dir(at.join("d")).unwrap();
    nix::unistd::truncate(&at.join("h"), 0).unwrap();
    std::fs::remove_file(at.join("g")).unwrap();
    std::fs::remove_dir(at.join("d")).unwrap();
    let mut told = watch.told();
    std::fs::remove_file(at.join("h")).unwrap();
    std::fs::remove_dir(at).unwrap();
    told.extend(watch.told());
    told
}

#[test]
fn local_changes_are_told_to_those_who_watch() {
    let local = Local::new("");
    let (plain, hot) = (local.lab.path("watched"), local.hot("watched"));
    std::fs::create_dir(&plain).unwrap();
    std::fs::create_dir(&hot).unwrap();
    let wanted = changes(&plain);
    assert!(wanted.len() > 10, "{wanted:?}");
    assert_eq!(changes(&hot), wanted);
    // A watch goes on after repairs and the daemon's death.
    std::fs::create_dir(&hot).unwrap();
    let mut watch = Watch::on(&hot);
    for event in [Local::outage, Local::succession] {
        event(&local);
        watch.told();
        std::fs::create_dir(hot.join("d")).unwrap();
        std::fs::remove_dir(hot.join("d")).unwrap();
        assert_eq!(watch.told(), [(libc::IN_CREATE, "d".into()), (libc::IN_DELETE, "d".into())]);
    }
    local.end();
}

const LENGTH: usize = 3 * 4096;

struct Map(*mut u8);

impl Map {
    fn of(file: &File) -> Map {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of a file that nobody cuts while it is used.
        let map =
            unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(map, libc::MAP_FAILED);
        Map(map.cast())
    }

    fn get(&self, at: usize) -> u8 {
        assert!(at < LENGTH);
        // SAFETY: a byte of the mapping, which others may change at any time.
        unsafe { self.0.add(at).read_volatile() }
    }

    fn set(&self, at: usize, byte: u8) {
        assert!(at < LENGTH);
        // SAFETY: as above.
        unsafe { self.0.add(at).write_volatile(byte) }
    }

    fn sync(&self) {
        // SAFETY: the whole mapping.
        done(unsafe { libc::msync(self.0.cast(), LENGTH, libc::MS_SYNC) }).unwrap();
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, which nobody uses any more.
        unsafe { libc::munmap(self.0.cast(), LENGTH) };
    }
}

#[test]
fn mappings_reads_and_writes_agree_before_and_after_an_outage() {
    let local = Local::new("");
    let path = local.hot("f");
    std::fs::write(&path, vec![0; LENGTH]).unwrap();
    let open = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let (one, two) = (open(), open());
    let (first, second) = (Map::of(&one), Map::of(&two));
    let mut other = Actor::start();
    assert_eq!(other.ask(&format!("open {}", path.display())), 0);
    let mut value = 0;
    let mut agree = |when: &str| {
        value += 10;
        // One mapping and the other, and a read of another process.
        first.set(5000, value);
        assert_eq!(second.get(5000), value, "{when}");
        assert_eq!(other.ask("get 0 5000"), i64::from(value), "{when}");
        // A write of another process, and both mappings.
        assert_eq!(other.ask(&format!("put 0 9000 {}", (b'a' + value / 10) as char)), 1, "{when}");
        assert_eq!([first.get(9000), second.get(9000)], [b'a' + value / 10; 2], "{when}");
        // A write through a descriptor of one's own.
        two.write_all_at(&[value + 1], 20).unwrap();
        assert_eq!([first.get(20), second.get(20)], [value + 1; 2], "{when}");
        first.sync();
        let cold = std::fs::read(local.cold("f")).unwrap();
        assert_eq!((cold[5000], cold[9000], cold[20]), (value, b'a' + value / 10, value + 1), "{when}");
    };
    agree("before");
    local.outage();
    agree("after a repair");
    local.succession();
    agree("after the daemon's death");
    drop((first, second, one, two, other));
    local.end();
}
