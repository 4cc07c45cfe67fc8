//! What others change on the store is seen by those who have it open: by descriptor, in a mapping, in a listing.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::lab::Lab;
use crate::{NOISE, over_directory, plain};

const PAGE: usize = 4096;

/// A page of a file.
struct Map(*const u8);

impl Map {
    fn of(file: &File) -> Map {
        // SAFETY: a new mapping of a file that is open.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Map(at.cast())
    }

    /// What is there; the file never becomes empty, so the page exists.
    fn get(&self, length: usize) -> Vec<u8> {
        // SAFETY: within the page. Others change it, so it is read byte by byte, as what may change.
        (0..length).map(|at| unsafe { self.0.add(at).read_volatile() }).collect()
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: it was mapped with that length, and nobody has a reference into it.
        unsafe { libc::munmap(self.0.cast_mut().cast(), PAGE) };
    }
}

/// Everything that somebody may have open.
struct Open {
    hot: PathBuf,
    /// Files are told apart by more than their names.
    identified: bool,
    file: File,
    map: Map,
    directory: Dir,
}

impl Open {
    fn new(hot: &Path, identified: bool) -> Open {
        let file = File::open(hot.join("d/f")).unwrap();
        let directory = Dir::open(&hot.join("d"), OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        let mut open = Open { hot: hot.to_owned(), identified, map: Map::of(&file), file, directory };
        open.look();
        open
    }

    /// All caches are filled.
    fn look(&mut self) {
        let _ = (self.text(), self.map.get(10), self.names(), self.path("d/link").symlink_metadata().is_ok());
        for name in ["d/f", "d/g", "d/link"] {
            let _ = (self.path(name).metadata().is_ok(), std::fs::read(self.path(name)).is_ok());
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.hot.join(name)
    }

    /// By descriptor.
    fn text(&self) -> String {
        let mut data = vec![0; PAGE];
        match self.file.read_at(&mut data, 0) {
            Ok(length) => String::from_utf8(data[..length].to_vec()).unwrap(),
            Err(error) => error.to_string(),
        }
    }

    /// By descriptor, of a file that has lost its name. SFTP does not tell files apart: there it may be the one that has the
    /// name now, as with sshfs alone.
    fn is_still(&self, expected: &str) -> bool {
        self.text() == expected || (!self.identified && self.text() == "the other one")
    }

    fn map(&self, expected: &str) -> bool {
        self.map.get(expected.len()) == expected.as_bytes()
    }

    /// By the open directory: the end of an iteration is a rewinddir(3).
    fn names(&mut self) -> Vec<String> {
        let names = self.directory.iter().map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }
}

struct Change {
    what: &'static str,
    make: fn(&Path),
    seen: fn(&mut Open) -> Vec<(&'static str, bool)>,
}

/// Another second, however fast this goes: SFTP knows no smaller ones.
fn at(path: &Path, second: u64) {
    let times = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + second);
    File::options().write(true).open(path).unwrap().set_modified(times).unwrap();
}

fn put(path: &Path, text: &str, second: u64) {
    // In place, as somebody does who does not cut it first.
    let file = File::options().write(true).create(true).truncate(false).open(path).unwrap();
    file.write_all_at(text.as_bytes(), 0).unwrap();
    file.set_len(text.len() as u64).unwrap();
    at(path, second);
}

const CHANGES: &[Change] = &[
    Change {
        what: "it has grown",
        make: |store| put(&store.join("d/f"), "ten bytes.and ten mo", 1),
        seen: |open| {
            vec![
                ("stat", open.path("d/f").metadata().unwrap().len() == 20),
                ("fstat", open.file.metadata().is_ok_and(|found| found.len() == 20)),
                ("read", open.text() == "ten bytes.and ten mo"),
                ("map", open.map("ten bytes.and ten mo")),
                ("read anew", open.read("d/f") == "ten bytes.and ten mo"),
            ]
        },
    },
    Change {
        what: "other content of the same size",
        make: |store| put(&store.join("d/f"), "TEN BYTES.AND TEN MO", 2),
        seen: |open| {
            vec![
                ("fstat", open.file.metadata().unwrap().mtime() == 1_000_000_002),
                ("stat", open.path("d/f").metadata().unwrap().mtime() == 1_000_000_002),
                ("read", open.text() == "TEN BYTES.AND TEN MO"),
                ("map", open.map("TEN BYTES.AND TEN MO")),
                ("read anew", open.read("d/f") == "TEN BYTES.AND TEN MO"),
            ]
        },
    },
    Change {
        what: "it was cut",
        make: |store| put(&store.join("d/f"), "cut", 3),
        seen: |open| {
            vec![
                ("fstat", open.file.metadata().unwrap().len() == 3),
                ("read", open.text() == "cut"),
                ("map", open.map("cut\0\0\0\0")),
                ("stat", open.path("d/f").metadata().unwrap().len() == 3),
            ]
        },
    },
    Change {
        what: "another mode, another owner",
        make: |store| {
            std::fs::set_permissions(store.join("d/f"), PermissionsExt::from_mode(0o640)).unwrap();
            std::os::unix::fs::chown(store.join("d/f"), Some(1234), Some(4321)).unwrap();
        },
        seen: |open| {
            let right = |found: io::Result<std::fs::Metadata>| {
                found.is_ok_and(|found| (found.mode() & 0o777, found.uid(), found.gid()) == (0o640, 1234, 4321))
            };
            vec![("fstat", right(open.file.metadata())), ("stat", right(open.path("d/f").metadata()))]
        },
    },
    Change {
        what: "a link leads elsewhere",
        make: |store| {
            symlink("a/longer/target", store.join("other")).unwrap();
            std::fs::rename(store.join("other"), store.join("d/link")).unwrap();
        },
        seen: |open| {
            vec![
                ("lstat", open.path("d/link").symlink_metadata().is_ok_and(|found| found.len() == 15)),
                ("readlink", open.path("d/link").read_link().is_ok_and(|to| to == Path::new("a/longer/target"))),
            ]
        },
    },
    Change {
        what: "a name has come, and one has gone",
        make: |store| {
            std::fs::write(store.join("d/new"), "").unwrap();
            std::fs::remove_file(store.join("d/g")).unwrap();
        },
        seen: |open| {
            let there = ["f", "link", "new"].map(String::from);
            vec![
                ("rewinddir", open.names() == there),
                ("a listing", crate::names(&open.path("d")) == there),
                ("stat", open.path("d/new").exists() && !open.path("d/g").exists()),
                ("open", File::open(open.path("d/g")).is_err()),
            ]
        },
    },
    Change {
        what: "another file has its name",
        make: |store| {
            put(&store.join("other"), "the other one", 4);
            std::fs::rename(store.join("other"), store.join("d/f")).unwrap();
        },
        seen: |open| {
            vec![
                ("read anew", open.read("d/f") == "the other one"),
                ("stat", open.path("d/f").metadata().is_ok_and(|found| found.len() == 13)),
                ("the descriptor", open.is_still("cut")),
            ]
        },
    },
    Change {
        what: "it is gone",
        make: |store| std::fs::remove_file(store.join("d/f")).unwrap(),
        seen: |open| {
            vec![
                ("stat", !open.path("d/f").exists()),
                ("open", File::open(open.path("d/f")).is_err()),
                ("rewinddir", open.names() == ["link", "new"].map(String::from)),
                ("fstat", open.file.metadata().is_ok_and(|found| found.len() == open.text().len() as u64)),
                ("the descriptor", open.is_still("cut")),
            ]
        },
    },
];

/// What is not seen in time, in words.
fn unseen_after(lab: &Lab, identified: bool, bound: Duration) -> Vec<String> {
    std::fs::create_dir(lab.store.join("d")).unwrap();
    put(&lab.store.join("d/f"), "ten bytes.", 0);
    std::fs::write(lab.store.join("d/g"), "").unwrap();
    symlink("target", lab.store.join("d/link")).unwrap();
    let mut open = Open::new(&lab.hot, identified);
    let mut unseen = Vec::new();
    for change in CHANGES {
        open.look();
        (change.make)(&lab.store);
        let start = Instant::now();
        let late = loop {
            let late = (change.seen)(&mut open).into_iter().filter(|(_, seen)| !seen).map(|(how, _)| how);
            let late: Vec<_> = late.collect();
            // With no time to remember anything, the first look counts.
            if late.is_empty() || bound.is_zero() || start.elapsed() > bound + NOISE {
                break late;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        unseen.extend(late.into_iter().map(|how| format!("{}: {how} ({})", change.what, open.text())));
    }
    unseen
}

#[test]
fn what_others_change_is_seen_by_who_has_it_open() {
    let none: [&str; 0] = [];
    let alone = unseen_after(&plain("dir_cache=no"), false, Duration::from_secs(1));
    println!("what sshfs alone does not show: {alone:?}");
    for (fresh, bound) in [("0", Duration::ZERO), ("1s", Duration::from_secs(1))] {
        let options = format!("attr_timeout={fresh}");
        assert_eq!(unseen_after(&over_directory(&options), true, bound), none, "dir:, {options}");
        assert_eq!(unseen_after(&Lab::new(&options), false, bound), none, "sshfs, {options}");
    }
}

#[test]
fn of_a_rewrite_in_the_same_second_who_opens_again_knows() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() - 1_000_000_000;
    for lab in [over_directory("attr_timeout=1s"), Lab::new("attr_timeout=1s")] {
        put(&lab.store.join("f"), "one", now);
        let open = File::open(lab.hot.join("f")).unwrap();
        let mut data = [0; 3];
        open.read_exact_at(&mut data, 0).unwrap();
        // Size and time say nothing: neither the kernel nor anybody else can know.
        put(&lab.store.join("f"), "two", now);
        assert_eq!(std::fs::read(lab.hot.join("f")).unwrap(), b"two", "open shows what is there");
    }
}
