//! Names: errors, renames with flags, and what becomes of whoever is in a directory that goes or moves.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use super::compare::{Log, agree, c, done};
use super::rig::Local;
use crate::lab::parts::Part;

pub fn body(log: &mut Log) {
    errors(log);
    renames(log);
    removed(log);
    unlinked(log);
}

fn rename(from: &Path, to: &Path, flags: libc::c_uint) -> io::Result<i64> {
    let (from, to) = (c(from), c(to));
    // SAFETY: both paths end with NUL.
    done(unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) })
}

fn errors(log: &mut Log) {
    let every: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').chain([b'x']).collect();
    for name in [&every[..], &[0xff; 255], &[b'n'; 256], b"-rf", b"\n", b"a\\b"] {
        let path = log.at(OsStr::from_bytes(name));
        log.note(format!("a name of {}", name.len()), std::fs::write(&path, "x"));
        log.note("its content", std::fs::read(&path));
        log.note("removed", std::fs::remove_file(&path));
    }
    std::fs::create_dir(log.at("e")).unwrap();
    std::fs::write(log.at("e/f"), "x").unwrap();
    symlink("loop", log.at("loop")).unwrap();
    symlink("e/f", log.at("l0")).unwrap();
    (1..=41).for_each(|number| symlink(format!("l{}", number - 1), log.at(format!("l{number}"))).unwrap());
    for name in ["loop", "l39", "l40", "e/f/g", "e/none", "none/f", "e"] {
        log.note(name, std::fs::read(log.at(name)));
    }
    let no_follow = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(log.at("l0"));
    log.note("O_NOFOLLOW", no_follow.map(drop));
    log.note("a long target", symlink("t".repeat(4095), log.at("long")));
    log.note("read back", std::fs::read_link(log.at("long")).map(|target| target.as_os_str().len()));
    log.note("too long a target", symlink("t".repeat(4096), log.at("longer")));
    let elsewhere = format!("/dev/shm/steadfs-local-{}", std::process::id());
    log.note("a link to elsewhere", std::fs::hard_link(log.at("e/f"), &elsewhere));
    log.note("a rename to elsewhere", std::fs::rename(log.at("e/f"), &elsewhere));
    log.note("a link to a directory", std::fs::hard_link(log.at("e"), log.at("e2")));
    log.note("a directory that is there", std::fs::create_dir(log.at("e")));
    log.note("rmdir of a file", std::fs::remove_dir(log.at("e/f")));
    log.note("rmdir of a full one", std::fs::remove_dir(log.at("e")));
    log.note("unlink of a directory", std::fs::remove_file(log.at("e")));
    log.note(
        "O_DIRECTORY",
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(log.at("e/f")).map(drop),
    );
    log.note("a write to a directory", OpenOptions::new().write(true).open(log.at("e")).map(drop));
}

fn renames(log: &mut Log) {
    let at = |path: &str| log.at(path);
    let (r, f, g) = (at("r"), at("r/f"), at("r/g"));
    std::fs::create_dir_all(at("r/d/inner")).unwrap();
    std::fs::create_dir_all(at("r/empty")).unwrap();
    std::fs::write(&f, "f").unwrap();
    std::fs::write(&g, "g").unwrap();
    std::fs::hard_link(&f, at("r/same")).unwrap();
    let mut results = Vec::new();
    let mut try_one = |name: &str, from: &str, to: &str, flags| {
        let mut listed: Vec<_> = std::fs::read_dir(&r).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        listed.sort();
        results.push((name.to_owned(), rename(&r.join(from), &r.join(to), flags), listed));
    };
    try_one("NOREPLACE over one", "f", "g", libc::RENAME_NOREPLACE);
    try_one("NOREPLACE", "f", "h", libc::RENAME_NOREPLACE);
    try_one("EXCHANGE with a directory", "h", "d", libc::RENAME_EXCHANGE);
    try_one("EXCHANGE back", "h", "d", libc::RENAME_EXCHANGE);
    try_one("EXCHANGE with nothing", "h", "none", libc::RENAME_EXCHANGE);
    try_one("both flags", "h", "g", libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE);
    try_one("WHITEOUT", "g", "g2", libc::RENAME_WHITEOUT);
    try_one("no such flag", "h", "g2", 64);
    try_one("a directory over a full one", "empty", "d", 0);
    try_one("a directory over a file", "empty", "h", 0);
    try_one("a file over a directory", "h", "empty", 0);
    try_one("into itself", "d", "d/inner/d", 0);
    try_one("over what is above it", "d/inner", "d", 0);
    try_one("a link over its like", "h", "same", 0);
    try_one("a directory over an empty one", "d", "empty", 0);
    try_one("nothing", "none", "x", 0);
    try_one("the root", ".", "x", 0);
    for (name, result, listed) in results {
        log.note(name, result);
        log.see("before", listed);
    }
    let white = std::fs::symlink_metadata(log.at("r/g")).map(|found| (found.mode(), found.rdev(), found.nlink()));
    log.note("the whiteout", white);
    log.note("it goes", std::fs::remove_file(log.at("r/g")));
    // Open files below a directory that is renamed.
    std::fs::create_dir_all(log.at("old/deep")).unwrap();
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(log.at("old/deep/f")).unwrap();
    file.write_all(b"before").unwrap();
    log.note("rename above", std::fs::rename(log.at("old"), log.at("new")));
    log.note("a write", file.write_all(b" after"));
    log.note("by its new name", std::fs::read_to_string(log.at("new/deep/f")));
    log.note("by its old name", std::fs::read_to_string(log.at("old/deep/f")));
    std::fs::create_dir_all(log.at("old/deep")).unwrap();
    std::fs::write(log.at("old/deep/f"), "another").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    log.note("read", file.read_to_string(&mut text));
    log.see("it says", text);
}

/// Whoever is in a directory that is removed or moved.
fn removed(log: &mut Log) {
    let home = std::env::current_dir().unwrap();
    let number = |path: &str| std::fs::metadata(path).map(|found| found.ino());
    std::fs::create_dir_all(log.at("one/here")).unwrap();
    std::fs::create_dir_all(log.at("two")).unwrap();
    std::env::set_current_dir(log.at("one/here")).unwrap();
    log.note(".. is", Ok(number("..").unwrap() == number(log.at("one").to_str().unwrap()).unwrap()));
    log.note("moved away", std::fs::rename(log.at("one/here"), log.at("two/there")));
    log.note(".. is another", Ok(number("..").unwrap() == number(log.at("two").to_str().unwrap()).unwrap()));
    log.note("where", std::env::current_dir().map(|path| path.ends_with("two/there")));
    log.note("a file", std::fs::write("f", "x"));
    log.note("it is there", std::fs::read(log.at("two/there/f")));
    std::fs::remove_file("f").unwrap();
    let opened = File::open(".").unwrap();
    log.note("rmdir", std::fs::remove_dir(log.at("two/there")));
    log.note("links", std::fs::metadata(".").map(|found| (found.nlink(), found.mode(), found.is_dir())));
    log.note("by descriptor", opened.metadata().map(|found| found.nlink()));
    log.note("where", std::env::current_dir().map(drop));
    log.note("a new file", File::create("f").map(drop));
    log.note("a new directory", std::fs::create_dir("d"));
    log.note("a file that never was", std::fs::metadata("f").map(drop));
    log.note("opened", File::open(".").map(drop));
    log.note(
        "listed",
        std::fs::read_dir(".").and_then(|mut entries| entries.next().transpose()).map(|entry| entry.is_some()),
    );
    log.note("above", Ok(number("..").unwrap() == number(log.at("two").to_str().unwrap()).unwrap()));
    log.note("made anew", std::fs::create_dir(log.at("two/there")));
    log.note("that is another", std::fs::metadata(".").map(|found| found.nlink()));
    std::env::set_current_dir(home).unwrap();
}

/// What is no regular file and loses its name while somebody has it open.
fn special(log: &mut Log) {
    let (fifo, link) = (log.at("fifo"), log.at("link"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    symlink("nowhere", &link).unwrap();
    let fifo_open = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let path_only = libc::O_PATH | libc::O_NOFOLLOW;
    let link_open = OpenOptions::new().read(true).custom_flags(path_only).open(&link).unwrap();
    for (name, open, path) in [("fifo", &fifo_open, &fifo), ("link", &link_open, &link)] {
        log.note(format!("{name} removed"), std::fs::remove_file(path));
        let found = open.metadata().map(|found| (found.nlink(), found.mode(), found.uid()));
        log.note(format!("{name} looked at"), found);
    }
    log.note("fifo chmod", fifo_open.set_permissions(PermissionsExt::from_mode(0o600)));
    log.note("fifo mode", fifo_open.metadata().map(|found| found.mode()));
    log.note("fifo written", (&fifo_open).write(b"x"));
}

fn unlinked(log: &mut Log) {
    special(log);
    let path = log.at("u");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all(b"content").unwrap();
    log.note("unlink", std::fs::remove_file(&path));
    log.note("links", file.metadata().map(|found| (found.nlink(), found.len())));
    log.note("more", file.write_all(b" and more"));
    log.note("chmod", file.set_permissions(PermissionsExt::from_mode(0o640)));
    log.note("cut", file.set_len(12));
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    log.note("opened again", std::fs::read_to_string(&again));
    log.note("written so", OpenOptions::new().append(true).open(&again).and_then(|mut file| file.write_all(b"!")));
    log.note("read so", std::fs::read_to_string(&again));
    log.note("cut so", File::create(&again).map(drop));
    log.note("empty", file.metadata().map(|found| (found.nlink(), found.len(), found.mode())));
    let (link, by) = (c(log.at("u2")), c(&again));
    // SAFETY: both paths end with NUL.
    let linked =
        unsafe { libc::linkat(libc::AT_FDCWD, by.as_ptr(), libc::AT_FDCWD, link.as_ptr(), libc::AT_SYMLINK_FOLLOW) };
    log.note("a name again", done(linked));
    std::fs::write(&path, "another").unwrap();
    log.note("another by its name", std::fs::read_to_string(&again));
    let kept = File::open(&path).unwrap();
    std::fs::write(log.at("v"), "winner").unwrap();
    log.note("renamed over", std::fs::rename(log.at("v"), &path));
    log.note("the loser", std::fs::read_to_string(format!("/proc/self/fd/{}", kept.as_raw_fd())));
    log.note("its links", kept.metadata().map(|found| found.nlink()));
}

#[test]
fn names_renames_and_what_loses_its_name_are_as_on_the_backing() {
    let local = Local::new("");
    agree(&local, "names");
    local.end();
}

/// ext4's most.
const LINKS: u32 = 65_000;

#[test]
fn a_file_has_as_many_links_as_the_backing_allows() {
    let local = Local::new("");
    std::fs::create_dir(local.cold("links")).unwrap();
    std::fs::write(local.cold("links/0"), "x").unwrap();
    for number in 1..LINKS - 1 {
        std::fs::hard_link(local.cold("links/0"), local.cold(&format!("links/{number}"))).unwrap();
    }
    let begun = std::time::Instant::now();
    let link = |number: u32| std::fs::hard_link(local.hot("links/7"), local.hot(&format!("links/{number}")));
    link(LINKS - 1).unwrap();
    assert_eq!(link(LINKS).unwrap_err().raw_os_error(), Some(libc::EMLINK));
    // All of them are one file, whichever name the kernel has seen.
    let numbers = std::fs::read_dir(local.hot("links")).unwrap().map(|entry| entry.unwrap().metadata().unwrap().ino());
    let mut numbers: Vec<u64> = numbers.collect();
    assert_eq!(numbers.len() as u32, LINKS);
    numbers.dedup();
    assert_eq!(numbers.len(), 1);
    assert_eq!(std::fs::metadata(local.hot("links/64000")).unwrap().nlink(), u64::from(LINKS));
    for number in 0..1000 {
        std::fs::remove_file(local.hot(&format!("links/{number}"))).unwrap();
    }
    println!("{LINKS} links: listed and 1000 removed in {:.1} s", begun.elapsed().as_secs_f64());
    local.succession();
    link(1).unwrap_err();
    std::fs::hard_link(local.hot("links/2000"), local.hot("links/1")).unwrap();
    assert_eq!(std::fs::metadata(local.cold("links/1")).unwrap().nlink(), u64::from(LINKS) - 999);
    local.end();
}

#[test]
fn an_unlinked_file_goes_on_through_a_repair_of_a_directory() {
    let local = Local::new("");
    let mut actor = super::rig::Actor::start();
    let path = local.hot("u");
    assert_eq!(actor.ask(&format!("open {}", path.display())), 0);
    assert_eq!(actor.ask("put 0 0 kept"), 4);
    std::fs::remove_file(&path).unwrap();
    local.outage();
    assert_eq!(actor.ask("get 0 0"), i64::from(b'k'));
    assert_eq!(actor.ask("put 0 4 more"), 4);
    assert_eq!(actor.ask("get 0 7"), i64::from(b'e'));
    local.outage();
    assert_eq!(actor.ask("get 0 7"), i64::from(b'e'));
    assert!(!local.cold("u").exists());
    drop(actor);
    local.end();
}

#[test]
fn a_file_without_a_name_goes_on_through_the_deaths_of_daemon_and_keeper_and_an_upgrade() {
    let local = Local::new("");
    let mut unlinked = super::rig::Actor::start();
    assert_eq!(unlinked.ask(&format!("open {}", local.hot("u").display())), 0);
    assert_eq!(unlinked.ask("put 0 0 kept"), 4);
    std::fs::remove_file(local.hot("u")).unwrap();
    let mut replaced = super::rig::Actor::start();
    assert_eq!(replaced.ask(&format!("open {}", local.hot("r").display())), 0);
    assert_eq!(replaced.ask("put 0 0 kept"), 4);
    std::fs::write(local.hot("other"), "other").unwrap();
    std::fs::rename(local.hot("other"), local.hot("r")).unwrap();
    let held = |local: &Local| {
        let keeper = local.lab.parts().able_keeper().expect("there is one");
        let is = |to: &String| to.starts_with(local.cold("").to_str().unwrap()) && to.ends_with(" (deleted)");
        crate::lab::process::descriptors(keeper).into_iter().filter(is).count()
    };
    crate::lab::wait("the keeper has one of each", || held(&local) == 2);
    let mut at = 4;
    let mut goes_on = |words: &str| {
        for actor in [&mut unlinked, &mut replaced] {
            assert_eq!(actor.ask("get 0 0"), i64::from(b'k'), "{words}");
            assert_eq!(actor.ask(&format!("put 0 {at} more")), 4, "{words}");
            assert_eq!(actor.ask(&format!("get 0 {}", at + 3)), i64::from(b'e'), "{words}");
        }
        at += 4;
    };
    goes_on("at first");
    local.succession();
    goes_on("after the daemon's death");
    local.outage();
    local.succession();
    goes_on("after a repair and another death");
    local.lab.parts().kill(Part::Keeper).expect("there is one");
    crate::lab::wait("another keeper has them", || local.lab.parts().able_keeper().is_some() && held(&local) == 2);
    local.succession();
    goes_on("after the deaths of both, one after the other");
    let output = local.lab.steadfs(&["upgrade", local.lab.hot.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    goes_on("after an upgrade");
    assert_eq!(std::fs::read_to_string(local.hot("r")).unwrap(), "other");
    drop((unlinked, replaced));
    crate::lab::wait("nothing is held any longer", || held(&local) == 0);
    local.end();
}

/// Names that steadfs and libfuse give to files that are unlinked while open, over other backings.
const THEIRS: [&str; 3] =
    [".steadfs-hidden-0000", ".steadfs-hidden-00000000187b6c2f4d3e1a0000000000", ".fuse_hidden0000000100000001"];

pub fn hidden_body(log: &mut Log) {
    for name in THEIRS {
        let (path, directory) = (log.at(name), log.at("d"));
        let inside = directory.join(name);
        log.note("made", std::fs::write(&path, "content"));
        log.note("read", std::fs::read_to_string(&path));
        let mut listed: Vec<_> =
            std::fs::read_dir(log.at(".")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        listed.sort();
        log.see("listed", listed);
        std::fs::create_dir(&directory).unwrap();
        log.note("renamed", std::fs::rename(&path, &inside));
        log.note("rmdir", std::fs::remove_dir(&directory));
        std::fs::create_dir(log.at("empty")).unwrap();
        log.note("replaced", std::fs::rename(log.at("empty"), &directory));
        std::fs::remove_dir(log.at("empty")).unwrap();
        log.note("its content", std::fs::read_to_string(&inside));
        let written = OpenOptions::new().append(true).open(&inside).and_then(|mut file| file.write_all(b" and more"));
        log.note("written to and closed", written);
        log.note("its content", std::fs::read_to_string(&inside));
        log.note("links", std::fs::hard_link(&inside, &path));
        log.note("their number", std::fs::metadata(&path).map(|found| found.nlink()));
        let mut open = File::open(&inside).unwrap();
        log.note("renamed away", std::fs::rename(&inside, directory.join("plain")));
        log.note("renamed back", std::fs::rename(directory.join("plain"), &inside));
        log.note("unlinked while open", std::fs::remove_file(&inside));
        let mut text = String::new();
        log.note("and read", open.read_to_string(&mut text).map(|_| text));
        log.note("rmdir", std::fs::remove_dir(&directory));
        drop(open);
        log.note("the other name", std::fs::read_to_string(&path));
        log.note("unlinked", std::fs::remove_file(&path));
        log.note("a directory", std::fs::create_dir(&path));
        log.note("removed", std::fs::remove_dir(&path));
        log.note("a link", symlink("nowhere", &path));
        log.note("read", std::fs::read_link(&path));
        log.note("removed", std::fs::remove_file(&path));
    }
}

#[test]
fn hidden_names_are_ordinary_on_a_local_directory() {
    let local = Local::new("");
    agree(&local, "hidden");
    let mut open = Vec::new();
    for name in THEIRS {
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(local.hot(name)).unwrap();
        file.write_all(b"kept").unwrap();
        open.push(file);
    }
    local.outage();
    local.succession();
    for (name, mut file) in THEIRS.iter().zip(open) {
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        drop(file);
        assert_eq!((text, std::fs::read_to_string(local.hot(name)).unwrap()), ("kept".into(), "kept".into()), "{name}");
    }
    local.outage();
    let listed = std::fs::read_dir(&local.lab.hot).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(listed.filter(|name| THEIRS.iter().any(|theirs| name == theirs)).count(), THEIRS.len());
    local.end();
}
