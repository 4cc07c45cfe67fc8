//! Hidden files that a killed steadfs left on the backing: its successor removes them, and nothing else.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;
use steadfs::backing::fake::{Call, Fault, What};

use crate::rig::{Rig, SSHFS, names, until};

/// The name that another overlay gave to a file it has open.
const FOREIGN: &str = ".steadfs-hidden-000000000000000000000001deadbeef";

/// What outlives a steadfs.
struct World {
    base: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let base = tempfile::Builder::new().prefix("steadfs-world-").tempdir().unwrap();
        std::fs::create_dir(base.path().join("store")).unwrap();
        World { base }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    fn start(&self, state: &str, faults: &[Fault]) -> Rig {
        Rig::over(&self.path("store"), &self.path(state), SSHFS, faults)
    }

    fn all(&self) -> Vec<String> {
        let mut found = Vec::new();
        walk(&self.path("store"), &mut found);
        found.sort();
        found
    }

    fn hidden(&self) -> Vec<String> {
        self.all().into_iter().filter(|name| name.contains(".steadfs-hidden-")).collect()
    }
}

fn walk(directory: &Path, found: &mut Vec<String>) {
    for name in names(directory) {
        let path = directory.join(&name);
        found.push(path.display().to_string());
        if path.is_dir() {
            walk(&path, found);
        }
    }
}

fn open(rig: &Rig, name: &str) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(rig.hot(name)).unwrap()
}

fn unlinked(rig: &Rig, name: &str) -> File {
    let file = open(rig, name);
    file.write_all_at(b"kept", 0).unwrap();
    std::fs::remove_file(rig.hot(name)).unwrap();
    file
}

/// A journal that lists nothing goes, with its directory.
fn ends_without_a_trace(rig: &Rig, world: &World) {
    until(|| {
        rig.overlay.finish(Instant::now());
        !world.path("state").exists()
    });
}

#[test]
fn a_successor_removes_what_a_killed_steadfs_had_hidden_and_nothing_else() {
    let world = World::new();
    let killed = world.start("state", &[]);
    std::fs::create_dir_all(killed.hot("a/b/c")).unwrap();
    let mut files = vec![unlinked(&killed, "f"), unlinked(&killed, "a/b/c/f"), open(&killed, "a/target")];
    // Renamed over while open, then closed by nobody.
    std::fs::write(killed.hot("a/source"), "new").unwrap();
    std::fs::rename(killed.hot("a/source"), killed.hot("a/target")).unwrap();
    // Those below a directory that is renamed or removed are elsewhere afterwards.
    std::fs::rename(killed.hot("a/b"), killed.hot("b")).unwrap();
    std::fs::rename(killed.hot("a"), killed.hot("z")).unwrap();
    std::fs::create_dir(killed.hot("gone")).unwrap();
    files.push(unlinked(&killed, "gone/f"));
    std::fs::remove_dir(killed.hot("gone")).unwrap();
    let closed = unlinked(&killed, "closed");
    assert_eq!(world.hidden().len(), 5);
    drop(closed);
    until(|| world.hidden().len() == 4);
    killed.kill();
    drop(files);
    assert_eq!(world.hidden().len(), 4, "nobody has tidied up");
    for directory in ["", "b/c/", "z/"] {
        std::fs::write(world.path("store").join(format!("{directory}{FOREIGN}")), "somebody else's").unwrap();
    }
    std::fs::write(world.path("store/.fuse_hidden0000000400000001"), "libfuse's").unwrap();

    // An overlay with another state directory: another mountpoint, or another machine.
    let other = world.start("other", &[]);
    other.outage();
    other.repair();
    std::fs::write(other.hot("x"), "").unwrap();
    assert_eq!(other.control().calls(Call::Unlink), 0);
    other.kill();
    assert_eq!(world.hidden().len(), 7);

    let successor = world.start("state", &[]);
    until(|| world.hidden().len() == 3);
    assert!(world.hidden().iter().all(|name| name.ends_with(FOREIGN)), "{:?}", world.hidden());
    assert!(world.path("store/.fuse_hidden0000000400000001").exists());
    assert_eq!(std::fs::read_to_string(world.path("store/z/target")).unwrap(), "new");
    ends_without_a_trace(&successor, &world);
}

#[test]
fn what_a_successor_cannot_remove_waits_for_the_next_repair_and_nobody_waits_for_it() {
    let world = World::new();
    let killed = world.start("state", &[]);
    let files: Vec<_> = (0..3).map(|number| unlinked(&killed, &format!("f{number}"))).collect();
    killed.kill();
    drop(files);
    // A server that says no, then one that says nothing.
    let refused = Fault::new(What::Errno(Errno::EACCES)).on(&[Call::Unlink]).times(1);
    let silent = Fault::new(What::Hang).on(&[Call::Unlink]);
    let successor = world.start("state", &[refused, silent]);
    assert!(successor.control().wait_inside(1, crate::rig::PATIENCE));
    std::fs::write(successor.hot("new"), "text").unwrap();
    assert_eq!(std::fs::read_to_string(successor.hot("new")).unwrap(), "text");
    assert_eq!(world.hidden().len(), 3);
    successor.outage();
    successor.control().clear_faults();
    successor.repair();
    until(|| world.hidden().is_empty());
    // Killed in the middle of it: the next one goes on.
    let file = unlinked(&successor, "again");
    successor.kill();
    drop(file);
    let last = world.start("state", &[]);
    until(|| world.hidden().is_empty());
    last.kill();
}

#[test]
fn hidden_files_are_found_although_nobody_knew_where_they_were() {
    for lost in [What::Errno(Errno::ENOTCONN), What::LostReply] {
        let world = World::new();
        let killed = world.start("state", &[]);
        std::fs::create_dir(killed.hot("d")).unwrap();
        let (inside, mut files) = (unlinked(&killed, "d/f"), vec![open(&killed, "g"), open(&killed, "h")]);
        std::fs::write(killed.hot("source"), "new").unwrap();
        killed.hold_verdicts();
        // Nobody is ever told of these: steadfs is killed while the gate is closed.
        std::thread::scope(|scope| {
            for call in [Call::Rename, Call::Link] {
                killed.control().inject(Fault::new(lost).on(&[call]));
            }
            let renaming = scope.spawn(|| std::fs::rename(killed.hot("d"), killed.hot("e")));
            until(|| killed.complaints.lock().len() == 1);
            killed.gate.stop();
            assert!(renaming.join().unwrap().is_err());
        });
        killed.kill();
        files.push(inside);
        drop(files);
        assert_eq!(world.hidden().len(), 1, "{lost:?}");
        let successor = world.start("state", &[]);
        until(|| world.hidden().is_empty());
        successor.kill();
    }
}

#[test]
fn a_kill_between_the_line_and_the_name_or_after_it_leaves_nothing() {
    for (call, lost) in [Call::Rename, Call::Link]
        .into_iter()
        .flat_map(|call| [What::Errno(Errno::ENOTCONN), What::LostReply].map(|lost| (call, lost)))
    {
        let world = World::new();
        let killed = world.start("state", &[]);
        let file = open(&killed, "f");
        std::fs::write(killed.hot("source"), "new").unwrap();
        killed.hold_verdicts();
        killed.control().inject(Fault::new(lost).on(&[call]));
        std::thread::scope(|scope| {
            let acting = scope.spawn(|| match call {
                Call::Link => std::fs::rename(killed.hot("source"), killed.hot("f")),
                _ => std::fs::remove_file(killed.hot("f")),
            });
            until(|| killed.complaints.lock().len() == 1);
            killed.gate.stop();
            assert!(acting.join().unwrap().is_err());
        });
        killed.kill();
        drop(file);
        assert_eq!(world.hidden().len(), usize::from(lost == What::LostReply), "{call:?} {lost:?}");
        let successor = world.start("state", &[]);
        until(|| world.hidden().is_empty());
        ends_without_a_trace(&successor, &world);
    }
}
