//! Agents that check each result themselves, and write down what was wrong.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use super::agents::Desk;

/// Bytes of a line of a log.
const LINE: usize = 200;
/// Names in the directory that is listed again and again.
const CROWDED: usize = 500;
/// Lines that are written without a pause.
const HASTE: u64 = 200_000;

/// Line `number` of a log.
fn line(number: u64) -> Vec<u8> {
    let mut text = format!("{number:012} ").into_bytes();
    text.extend((0..LINE as u64 - 14).map(|at| b'a' + ((at + number * 7) % 26) as u8));
    text.push(b'\n');
    text
}

/// Lines of 200 bytes are appended and never synced, only closed at last; somebody else reads them as they come. What the
/// file must be is checked in the end by [`verify_lines`].
pub(super) fn tail(path: &Path, desk: &Desk) {
    let open = || OpenOptions::new().append(true).create_new(true).open(path);
    let Some(mut file) = desk.timed("open", open) else { return };
    std::thread::scope(|scope| {
        scope.spawn(|| follow(path, desk));
        let mut next = 0;
        while !desk.stopped() {
            // One that failed may have been appended: then nobody can say where the next belongs.
            if desk.timed("append", || file.write_all(&line(next))).is_none() {
                break;
            }
            next += 1;
            if next == 100 {
                desk.ready();
            }
            if next > HASTE {
                sleep(Duration::from_millis(2));
            }
        }
        let closed = desk.close(file);
        desk.stream(path, next, closed);
    });
}

/// Reads what is appended, by one descriptor.
fn follow(path: &Path, desk: &Desk) {
    let Some(mut file) = desk.timed("open", || File::open(path)) else { return };
    let inode = desk.timed("fstat", || file.metadata()).map(|found| found.ino());
    let (mut next, mut rest) = (0, Vec::new());
    let mut buffer = vec![0; 16 << 10];
    while !desk.stopped() {
        match desk.timed("read", || file.read(&mut buffer)) {
            Some(0) | None => sleep(Duration::from_millis(5)),
            Some(more) => rest.extend(&buffer[..more]),
        }
        while rest.len() >= LINE {
            let found: Vec<u8> = rest.drain(..LINE).collect();
            if found != line(next) {
                return desk.wrong(format!("line {next} is read as {:?}", String::from_utf8_lossy(&found)));
            }
            next += 1;
        }
        if next % 64 == 0 {
            let now = desk.timed("fstat", || file.metadata()).map(|found| found.ino());
            if now.is_some() && now != inode {
                desk.wrong(format!("inode {now:?} instead of {inode:?}"));
            }
        }
    }
    desk.close(file);
}

/// Checks a log of the store: all lines that were acknowledged before the close, and nothing else.
pub fn verify_lines(path: &Path, lines: u64) {
    let data = fs::read(path).unwrap();
    assert_eq!(data.len() as u64, lines * LINE as u64, "bytes of the log");
    for (number, found) in (0..).zip(data.chunks(LINE)) {
        assert_eq!(found, line(number), "line {number} of the log");
    }
}

/// Makes, moves, lists and removes names, and uses files that have lost theirs. At the end there is the crowded directory,
/// and nothing else.
pub(super) fn names(directory: &Path, desk: &Desk) {
    let crowded = directory.join("crowded");
    desk.timed("mkdir", || fs::create_dir_all(&crowded));
    let wanted: BTreeSet<String> = (0..CROWDED).map(|n| format!("entry-{n:03}")).collect();
    for name in &wanted {
        desk.timed("create", || File::create_new(crowded.join(name)).map(drop));
    }
    desk.ready();
    for number in 0_u64.. {
        if desk.stopped() {
            break;
        }
        let round = Round { desk, directory, number };
        if let Some(found) = desk.timed("readdir", || list(&crowded))
            && (found.len() != CROWDED || found.iter().cloned().collect::<BTreeSet<_>>() != wanted)
        {
            desk.wrong(format!("{} names are listed instead of {CROWDED}", found.len()));
        }
        round.names();
        round.nameless();
    }
}

fn list(path: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

struct Round<'a> {
    desk: &'a Desk,
    directory: &'a Path,
    number: u64,
}

impl Round<'_> {
    fn expect(&self, what: &str, found: Option<impl PartialEq + std::fmt::Debug>, wanted: impl std::fmt::Debug) {
        if let Some(found) = found
            && format!("{found:?}") != format!("{wanted:?}")
        {
            self.desk.wrong(format!("round {}: {what}: {found:?} instead of {wanted:?}", self.number));
        }
    }

    fn names(&self) {
        let (desk, at) = (self.desk, |name: &str| self.directory.join(format!("{name}-{}", self.number)));
        let (old, new, sub) = (at("old"), at("new"), at("sub"));
        let text = format!("round {}", self.number);
        desk.timed("create", || {
            let mut file = File::create_new(&old)?;
            file.write_all(text.as_bytes())
        });
        desk.timed("mkdir", || fs::create_dir(&sub));
        desk.timed("rename", || fs::rename(&old, &new));
        self.expect("the old name", desk.timed("stat", || old.try_exists()), false);
        self.expect("what was renamed", desk.timed("read", || fs::read_to_string(&new)), &text);
        desk.timed("rename", || fs::rename(&new, sub.join("moved")));
        self.expect("the directory", desk.timed("readdir", || list(&sub)), ["moved"]);
        desk.timed("unlink", || fs::remove_file(sub.join("moved")));
        desk.timed("rmdir", || fs::remove_dir(&sub));
        self.expect("the directory", desk.timed("stat", || sub.try_exists()), false);
    }

    fn nameless(&self) {
        let (desk, path) = (self.desk, self.directory.join(format!("nameless-{}", self.number)));
        let open = || OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let Some(file) = desk.timed("create", open) else { return };
        let text = format!("kept while open, in round {}", self.number);
        desk.timed("write", || file.write_all_at(text.as_bytes(), 0));
        desk.timed("unlink", || fs::remove_file(&path));
        let mut found = vec![0; text.len()];
        let read = desk.timed("read", || file.read_exact_at(&mut found, 0));
        self.expect("what has no name", read.map(|()| String::from_utf8_lossy(&found).into_owned()), &text);
        self.expect("its size", desk.timed("fstat", || Ok(file.metadata()?.len())), text.len());
        desk.close(file);
    }
}
