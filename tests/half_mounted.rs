//! A daemon dies between mounting an overlay and handing its device over: the mount stays, dead, and no successor has it. The
//! next start, attach or reload clears it up and goes on, and nothing of anybody else's is unmounted. Needs root, /dev/fuse and
//! a debug build: the first thing that a daemon notes of an overlay is its session, in that very moment.
#![allow(clippy::unwrap_used)]

mod lab;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use lab::{mount_of, parts::Parts, process, sweep, wait};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use nix::sys::statvfs::statvfs;
use steadfs::backing::mountinfo;

/// A daemon named `box` that shows `store/a` at `hot`, and dies as it is told to.
struct Rig {
    directory: tempfile::TempDir,
    keeper: Option<Child>,
}

impl Rig {
    fn new() -> Rig {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root: run them as root");
        let prefix = format!("{}{}-", sweep::PREFIX, std::process::id());
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        for name in ["hot", "more", "stranger", "store/a", "store/b", "other"] {
            std::fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        let rig = Rig { directory, keeper: None };
        rig.configure("");
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn configure(&self, more: &str) {
        let text = format!(
            "name = \"box\"\nsource = \"dir:{}\"\n[defaults]\nguard = false\n[[overlay]]\nmountpoint = {:?}\npath = \"a\"\n{more}",
            self.text("store"),
            self.path("hot"),
        );
        std::fs::write(self.path("steadfs.toml"), text).unwrap();
    }

    /// The binary under test; `who` else than this daemon has directories of his own.
    fn steadfs(&self, who: &str, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfs"));
        command.args(words).stdin(Stdio::null());
        let place = |name: &str| self.path(&format!("{name}{who}"));
        command.env("STEADFS_RUNTIME_DIR", place("run")).env("STEADFS_STATE_DIR", place("state"));
        command
    }

    fn ask(&self, words: &[&str]) -> Output {
        self.steadfs("", words).output().unwrap()
    }

    /// Starts it, in the foreground.
    fn start(&mut self) {
        let log = OpenOptions::new().append(true).create(true).open(self.path("log")).unwrap();
        let mut command = self.steadfs("", &["run", "-f", &self.text("steadfs.toml")]);
        command.env("STEADFS_CRASH", self.path("crash")).stderr(log);
        self.keeper = Some(command.spawn().unwrap());
    }

    /// The same, and waits until it serves.
    fn serve(&mut self) {
        self.start();
        // It is live before it is mounted.
        wait("it serves", || {
            self.status()["state"] == "live" && mount_of(&self.path("hot")).is_some() && !self.is_dead("hot")
        });
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&self.ask(&["status", "--json", "@box"]).stdout).unwrap_or_default()
    }

    fn number(&self, pointer: &str) -> i32 {
        self.status().pointer(pointer).and_then(|pid| pid.as_i64()?.try_into().ok()).expect("a number")
    }

    /// Whoever notes something next dies before he has.
    /// An overlay that is unmounted notes things until its session has ended.
    fn wait_until_forgotten(&self) {
        wait("it is forgotten", || self.status()["overlays"].as_array().is_some_and(|all| all.len() == 1));
    }

    fn let_the_next_note_be_the_last(&self) {
        std::fs::write(self.path("crash.part"), "1:before").unwrap();
        std::fs::rename(self.path("crash.part"), self.path("crash")).unwrap();
    }

    /// What is written through the overlay there is in that directory of the store, and it is the only mount there.
    fn check(&self, place: &str, stored: &str, name: &str) {
        std::fs::write(self.path(place).join(name), name).unwrap();
        assert_eq!(std::fs::read_to_string(self.path("store").join(stored).join(name)).unwrap(), name);
        assert_eq!(self.mounts(place).len(), 1, "{:?}", self.mounts(place));
    }

    /// What is mounted there, the topmost last.
    fn mounts(&self, place: &str) -> Vec<mountinfo::Entry> {
        let path = self.path(place);
        mountinfo::entries().unwrap().into_iter().filter(|entry| entry.mountpoint == path).collect()
    }

    fn is_dead(&self, place: &str) -> bool {
        statvfs(&self.path(place)) == Err(nix::errno::Errno::ENOTCONN)
    }

    fn end(mut self) {
        let output = self.ask(&["umount", "box"]);
        assert!(output.status.success(), "{output:?}");
        let mut keeper = self.keeper.take().expect("it was started");
        wait("it ends", || keeper.try_wait().unwrap().is_some());
        assert!(mount_of(&self.path("hot")).is_none() && mount_of(&self.path("more")).is_none());
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        if let Some(mut keeper) = self.keeper.take() {
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
        let parts = Parts::of(self.directory.path());
        process::end(&[parts.keepers(), parts.daemons()].concat());
        sweep::directory(self.directory.path());
    }
}

/// A file that is open on the overlay that has nothing to do with it all.
struct Open(File, u64);

impl Open {
    fn on(rig: &Rig) -> Open {
        let file = OpenOptions::new().create(true).truncate(true).write(true).read(true).open(rig.path("hot/log"));
        let mut open = Open(file.unwrap(), 0);
        open.go_on();
        open
    }

    fn go_on(&mut self) {
        self.0.write_all(b"line\n").unwrap();
        self.0.sync_all().unwrap();
        self.1 += 5;
        let mut text = vec![0; self.1 as usize];
        self.0.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(text, b"line\n".repeat(text.len() / 5));
    }
}

const DETACHED: &str = "the dead mount of an earlier steadfs is detached";

#[test]
fn the_next_start_clears_up_what_the_first_daemon_left() {
    let mut rig = Rig::new();
    rig.let_the_next_note_be_the_last();
    rig.start();
    let mut keeper = rig.keeper.take().unwrap();
    wait("it does not start", || keeper.try_wait().unwrap().is_some());
    assert!(rig.is_dead("hot"), "it died too early, or too late:\n{}", rig.log());
    rig.serve();
    rig.check("hot", "a", "x");
    rig.end();
}

#[test]
fn a_successor_clears_up_what_an_attach_and_a_reload_left() {
    let mut rig = Rig::new();
    rig.serve();
    let mut open = Open::on(&rig);
    let hot = mount_of(&rig.path("hot"));
    let more = rig.text("more");
    let overlay = format!("[[overlay]]\nmountpoint = {more:?}\npath = \"b\"\n");
    for (number, words) in
        [&["attach", &more, "--path", "b", "-o", "guard=no"][..], &["reload", "box"]].iter().enumerate()
    {
        if words[0] == "reload" {
            rig.configure(&overlay);
        }
        let before = rig.number("/pid");
        rig.let_the_next_note_be_the_last();
        let output = rig.ask(words);
        assert!(!output.status.success(), "{output:?}");
        // The status is there before all overlays are.
        wait("a successor clears up and mounts it", || {
            let log = rig.log();
            log.matches(DETACHED).count() == number + 1 && rig.mounts("more").len() == 1 && !rig.is_dead("more")
        });
        wait("it answers", || rig.status()["pid"].as_i64().is_some_and(|pid| pid != i64::from(before)));
        rig.check("more", "b", words[0]);
        open.go_on();
        assert_eq!(mount_of(&rig.path("hot")), hot, "another mount");
        if words[0] == "reload" {
            let output = rig.ask(words);
            assert!(output.status.success(), "there is nothing left to be done: {output:?}");
        }
        let output = rig.ask(&["detach", &more]);
        assert!(output.status.success(), "{output:?}");
        assert!(rig.mounts("more").is_empty());
        rig.wait_until_forgotten();
    }
    drop(open);
    rig.end();
}

/// What somebody has mounted over a dead mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stranger {
    Local,
    Alive,
    Dead,
}

/// Attaches, and the daemon dies over it; somebody mounts there before the next one comes.
fn die_and_be_covered(rig: &Rig, stranger: Stranger) {
    let (daemon, keeper) = (rig.number("/pid"), rig.number("/keeper/pid"));
    // It hears all that the daemon has said when it goes on.
    process::stop(keeper);
    rig.let_the_next_note_be_the_last();
    let output = rig.ask(&["attach", &rig.text("more"), "--path", "b", "-o", "guard=no"]);
    assert!(!output.status.success(), "{output:?}");
    let threads = || std::fs::read_dir(format!("/proc/{daemon}/task")).map_or(0, Iterator::count);
    wait("the daemon is dead", || process::is_zombie(daemon) && threads() == 1);
    assert!(rig.is_dead("more"), "it died too early, or too late:\n{}", rig.log());
    let none: Option<&str> = None;
    match stranger {
        Stranger::Local => mount(Some("strange"), &rig.path("more"), Some("tmpfs"), MsFlags::empty(), none).unwrap(),
        Stranger::Alive | Stranger::Dead => {
            mount(Some(&rig.path("stranger")), &rig.path("more"), none, MsFlags::MS_BIND, none).unwrap();
        }
    }
    process::signal(keeper, Signal::SIGCONT);
    wait("a successor serves", || rig.status()["pid"].as_i64().is_some_and(|pid| pid != i64::from(daemon)));
}

/// Mounts another steadfs at `stranger`, of directories of its own; its process.
fn strange_mount(rig: &Rig) -> i32 {
    let source = format!("dir:{}", rig.text("other"));
    let output =
        rig.steadfs("2", &["mount", "-o", "guard=no,keeper=no", &source, &rig.text("stranger")]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let output = rig.steadfs("2", &["status", "--json", &rig.text("stranger")]).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    status["pid"].as_i64().unwrap().try_into().unwrap()
}

#[test]
fn what_covers_the_dead_mount_stays_and_the_next_attach_clears_up_below_it() {
    let mut rig = Rig::new();
    rig.serve();
    let mut open = Open::on(&rig);
    for stranger in [Stranger::Local, Stranger::Alive, Stranger::Dead] {
        let theirs = (stranger != Stranger::Local).then(|| strange_mount(&rig));
        if let (Stranger::Dead, Some(pid)) = (stranger, theirs) {
            process::signal(pid, Signal::SIGKILL);
            wait("it is dead", || rig.is_dead("stranger"));
        }
        die_and_be_covered(&rig, stranger);
        let said = format!("hots: {} cannot be mounted", rig.text("more"));
        wait("it gives the overlay up", || rig.log().matches(&said).count() == stranger as usize + 1);
        open.go_on();
        let mounts = rig.mounts("more");
        let top = mounts.last().map(|entry| entry.source.to_string_lossy().into_owned());
        let expected =
            if stranger == Stranger::Local { "strange".into() } else { format!("dir:{}", rig.text("other")) };
        assert_eq!((mounts.len(), top), (2, Some(expected)), "{stranger:?}: {mounts:?}\n{}", rig.log());
        rig.wait_until_forgotten();
        umount2(&rig.path("more"), MntFlags::MNT_DETACH).unwrap();
        if theirs.is_some() {
            let output = rig.steadfs("2", &["umount", &rig.text("stranger")]).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        assert!(rig.is_dead("more"), "it shows again");
        let output = rig.ask(&["attach", &rig.text("more"), "--path", "b", "-o", "guard=no"]);
        assert!(output.status.success(), "{output:?}");
        rig.check("more", "b", "y");
        let output = rig.ask(&["detach", &rig.text("more")]);
        assert!(output.status.success(), "{output:?}");
        rig.wait_until_forgotten();
    }
    drop(open);
    rig.end();
}

/// As it is after a reload of which the daemon died, and which could not be finished by the next one.
#[test]
fn a_reload_clears_up_a_dead_mount_in_its_way() {
    let mut rig = Rig::new();
    rig.serve();
    die_and_be_covered(&rig, Stranger::Local);
    wait("it gives the overlay up", || rig.log().contains("cannot be mounted"));
    rig.wait_until_forgotten();
    umount2(&rig.path("more"), MntFlags::empty()).unwrap();
    rig.configure(&format!("[[overlay]]\nmountpoint = {:?}\npath = \"b\"\n", rig.path("more")));
    let output = rig.ask(&["reload", "box"]);
    assert!(output.status.success(), "{output:?}");
    rig.check("more", "b", "z");
    rig.end();
}
